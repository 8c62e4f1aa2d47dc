"""``cbn attack``: the largest errors of training that a search finds, beside what is promised."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import cbn
from cbn.cli import _adversary, _exact, _machine
from cbn.cli._adversary import Columns, Found
from cbn.cli._exact import RESULTS
from cbn.cli._options import CommandError, add_words, natural
from cbn.cli._peers import PEERS
from cbn.cli._tables import figure, head, line

DTYPES = ("float32", "float64")
LIBRARIES = ("cbn", "torch")
NOTES = """\
Largest errors that a search has found, in units of u times the magnitudes of the terms that are
added up. y: of |gamma| (1 + |xhat|) + |beta|. mean: of the standard deviation. var: of itself.
dgamma: of the sum of |dy| (1 + |xhat|), dx: of |gamma| invstd (|dy| + (1 + |xhat|) times the mean
of those), dbeta: of the sum of |dy|. bound: what cbn promises."""
HEAD = ["N", "library", *RESULTS]
WIDTHS = [-8, -8, 10, 10, 10, 10, 10, 10]


def of_cbn(
    x: NDArray, dy: NDArray, gamma: NDArray, beta: NDArray, eps: float
) -> dict[str, NDArray]:
    """All results of training."""
    y, cache = cbn.batch_norm_forward(x, gamma, beta, eps=eps)
    gradients = cbn.batch_norm_backward(dy, cache)
    return _exact.named(y, cache.mean, cache.var, gradients)


def of_torch(
    x: NDArray, dy: NDArray, gamma: NDArray, beta: NDArray, eps: float
) -> dict[str, NDArray]:
    """The same of PyTorch's operators, whose variance is 1 / invstd^2 - eps."""
    import torch

    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in (x, gamma, beta, dy)]
    x_t, gamma_t, beta_t, dy_t = tensors
    y, mean, invstd = torch.native_batch_norm(x_t, gamma_t, beta_t, None, None, True, 0.0, eps)
    gradients = torch.ops.aten.native_batch_norm_backward(
        dy_t, x_t, gamma_t, None, None, mean, invstd, True, eps, [True, True, True]
    )
    var = 1 / np.square(invstd.numpy().astype(np.float64)) - eps
    return _exact.named(y, mean, var, gradients)


FUNCTIONS = {"cbn": of_cbn, "torch": of_torch}


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "attack",
        help="search for the data on which cbn errs most",
        description="Search for columns on which training errs most: the worst ones of a "
        "population are changed a little, again and again, and judged in twice float64's "
        "precision. The exit status is 1 if cbn exceeds a bound that it promises.",
    )
    add_words(parser, "--dtypes", DTYPES, "float32")
    add_words(parser, "--results", RESULTS)
    parser.add_argument(
        "--rows",
        type=_row_counts,
        default="8,33,64,200",
        metavar="LIST",
        help="of a batch (default: 8,33,64,200)",
    )
    parser.add_argument(
        "--library",
        choices=LIBRARIES,
        default="cbn",
        help="whose training is attacked (default: cbn)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=5.0,
        metavar="T",
        help="for each result and number of rows (default: 5)",
    )
    parser.add_argument("--eps", type=float, default=1e-5, help="(default: 1e-5)")
    parser.add_argument("--seed", type=natural, default=0, help="another search (default: 0)")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="write the worst columns there, as .npz"
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table; return 1 if a bound is exceeded."""
    _check(options)
    machine = _machine.facts([options.library] if options.library != "cbn" else [])
    print(f"{machine['cpu']}, ISA {machine['isa']}\n\n{NOTES}")
    exceeded = False
    for dtype in options.dtypes:
        bounds = _exact.BOUNDS[dtype]
        print(head(dtype, HEAD, WIDTHS, options.markdown))
        cells = [str(bounds[name]) if name in options.results else "" for name in RESULTS]
        print(line(["", "bound", *cells], WIDTHS, options.markdown), flush=True)
        for N in options.rows:
            units = {}
            for name, found in _found(options, dtype, N):
                units[name] = found.units
                exceeded |= options.library == "cbn" and found.units > _exact.bounds(dtype, N)[name]
            cells = [figure(units[name]) if name in units else "" for name in RESULTS]
            print(line([str(N), options.library, *cells], WIDTHS, options.markdown), flush=True)
    return int(exceeded)


def _found(options: argparse.Namespace, dtype: str, N: int) -> Iterator[tuple[str, Found]]:
    for name in options.results:
        found = _adversary.attack(
            FUNCTIONS[options.library],
            name,
            N,
            dtype,
            options.eps,
            seconds=options.seconds,
            seed=options.seed,
        )
        if options.keep is not None:
            _save(options.keep / f"{options.library}-{dtype}-{name}-{N}.npz", found.columns)
        yield name, found


def _save(path: Path, columns: Columns) -> None:
    np.savez_compressed(path, x=columns.x, dy=columns.dy, gamma=columns.gamma, beta=columns.beta)


def _check(options: argparse.Namespace) -> None:
    if not options.seconds > 0:
        raise CommandError(f"--seconds: expected more than 0, got {options.seconds:g}")
    if not 0 <= options.eps < np.inf:
        raise CommandError(
            f"--eps: expected a finite number that is not negative, got {options.eps:g}"
        )
    if options.library != "cbn" and PEERS[options.library].version() is None:
        raise CommandError(f"--library: {options.library} is not installed")
    if options.keep is not None:
        try:
            options.keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(
                f"--keep: cannot write {str(options.keep)!r}: {error.strerror}"
            ) from None


def _row_counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 2:
        raise argparse.ArgumentTypeError(f"expected numbers of at least 2, got {text!r}")
    return counts
