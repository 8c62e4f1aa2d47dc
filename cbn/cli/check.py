"""``cbn check``: gradient checks of the compiled batch norm on a shape or on a file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import cbn
from cbn.cli._options import CommandError, natural, positive

if TYPE_CHECKING:
    from cbn.gradcheck import GradientCheck

PASSES = {
    "y": "forward",
    **dict.fromkeys(("dx", "dgamma", "dbeta"), "backward"),
    "y_dot": "JVP",
    **dict.fromkeys(("g_dy", "g_x", "g_gamma"), "double backward"),
}


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "check",
        help="check every gradient on a shape or on your own .npy file",
        description="Compare forward with the float64 reference, and backward, JVP and double "
        "backward with central differences. gamma, beta and all directions are random. An error "
        "is relative to the magnitude of the terms that are added up. Exit status: 0 all pass, "
        "1 one fails.",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--shape",
        type=_shape,
        default=(64, 32),
        metavar="NxD",
        help="shape of a random x, such as 64x32 or 8x3x5x5 (default: 64x32)",
    )
    source.add_argument("--input", type=Path, metavar="FILE", help="read x from a .npy file")
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32", "float64"),
        help="dtype of x, gamma and beta (default: that of the file, or float32)",
    )
    parser.add_argument(
        "--axis", type=int, metavar="N", help="channel axis; needed for more than 2 dimensions"
    )
    parser.add_argument("--eps", type=float, default=1e-5, metavar="X", help="default: 1e-5")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--probes",
        type=positive,
        metavar="N",
        help="directional derivatives a gradient; a small array gets one a coordinate, a large "
        "one random groups of coordinates (default: 64, fewer beyond 65536 elements)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table; return 1 if a check failed."""
    try:
        from cbn.gradcheck import check_batch_norm
    except ImportError as error:
        raise CommandError(str(error)) from None
    try:
        rng = np.random.default_rng(options.seed)
        x = _input(options, rng)
        y, cache = cbn.batch_norm_forward(x, axis=options.axis, eps=options.eps)
        gamma, beta = rng.normal(size=(2, len(cache.mean))).astype(y.dtype)
        checks = check_batch_norm(
            x,
            gamma,
            beta,
            axis=options.axis,
            eps=options.eps,
            rng=rng,
            max_probes=options.probes,
        )
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from None
    except MemoryError:
        raise CommandError("x: not enough memory") from None
    shape = "x".join(map(str, x.shape))
    print(f"x: {shape}, {x.dtype}, axis {cache.axis}, eps {options.eps:g}, seed {options.seed}")
    print(_table(checks))
    return 0 if all(check.passed for check in checks) else 1


def _input(options: argparse.Namespace, rng: np.random.Generator) -> np.ndarray:
    if options.input is None:
        return rng.normal(3, 2, options.shape).astype(options.dtype or "float32")
    x = _load(options.input)
    if options.dtype is None or x.dtype.kind not in "biuf":
        return x
    with np.errstate(over="ignore"):
        return x.astype(options.dtype)


def _load(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            magic = file.read(len(np.lib.format.MAGIC_PREFIX))
            if magic != np.lib.format.MAGIC_PREFIX:
                raise ValueError("expected a .npy file")
            file.seek(0)
            return np.load(file, allow_pickle=False)
    except OSError as error:
        raise CommandError(f"--input: cannot read {str(path)!r}: {error.strerror}") from None
    except (EOFError, ValueError) as error:
        raise CommandError(f"--input: cannot read {str(path)!r}: {error}") from None


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(natural, text.split("x")))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers with x between them, such as 64x32, got {text!r}"
        ) from None


def _table(checks: Sequence[GradientCheck]) -> str:
    lines = [f"{'':24}{'relative error':>16}{'tolerance':>12}{'compared':>11}"]
    for check in checks:
        lines.append(
            f"{PASSES[check.name]:17}{check.name:7}{check.error:16.1e}{check.tolerance:12.1e}"
            f"{check.probes:11}   {'pass' if check.passed else 'FAIL'}"
        )
    failed = [check.name for check in checks if not check.passed]
    lines.append(f"failed: {', '.join(failed)}" if failed else f"all {len(checks)} pass")
    return "\n".join(lines)
