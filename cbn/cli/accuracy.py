"""``cbn accuracy``: the errors of cbn and of its peers, in units of u, on data that are hard."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cbn
from cbn.cli import _exact, _machine
from cbn.cli._contenders import EPS, Cbn, Data
from cbn.cli._exact import RESULTS
from cbn.cli._options import CommandError, add_words, check_writable, some_of, thread_counts
from cbn.cli._peers import PEERS, NumPy, Torch
from cbn.cli._tables import figure, head, line

DTYPES = ("float32", "float64")
NOTES = f"""\
Largest errors in units of u times the magnitudes of the terms that are added up, eps = {EPS:g}.
y: of |gamma| (1 + |xhat|) + |beta|. mean: of the standard deviation. var: of itself. dx, dgamma,
dbeta: of the sum of their terms' magnitudes, with 1 + |xhat| in place of |xhat|. inf: not finite,
or not 0 where the exact one is.
var/exact: in the channel where it is furthest from 1. bound: what cbn promises."""

Results = dict[str, NDArray]


# Data ---------------------------------------------------------------------------------------------


def _with_outlier(place: float) -> Callable[..., NDArray]:
    def columns(rng: np.random.Generator, N: int, D: int, dtype: str) -> NDArray:
        x = rng.normal(size=(N, D))
        x[int(place * (N - 1))] = 1e6
        return x

    return columns


def _constant(rng: np.random.Generator, N: int, D: int, dtype: str) -> NDArray:
    return np.broadcast_to(rng.lognormal(0, 5, D), (N, D))


def _subnormal(rng: np.random.Generator, N: int, D: int, dtype: str) -> NDArray:
    return rng.integers(-1000, 1000, (N, D)) * float(np.finfo(dtype).smallest_subnormal)


def _normal(mean: float, std: float) -> Callable[..., NDArray]:
    return lambda rng, N, D, dtype: rng.normal(mean, std, (N, D))


# Functions of a random generator, N, D and the dtype, by name.
DATA: dict[str, Callable[..., NDArray]] = {
    "normal": _normal(0, 1),
    "mean 1e4": _normal(1e4, 1),
    "mean 1e7": _normal(1e7, 1),
    "mean 1e12": _normal(1e12, 1),
    "outlier first": _with_outlier(0),
    "outlier in the middle": _with_outlier(0.5),
    "outlier last": _with_outlier(1),
    "random walk": lambda rng, N, D, dtype: rng.normal(size=(N, D)).cumsum(axis=0),
    "ramp": lambda rng, N, D, dtype: np.arange(N)[:, None] + rng.normal(size=D),
    "clusters": lambda rng, N, D, dtype: rng.normal(rng.choice([-1e4, 0, 1e4], (N, D)), 1),
    "heavy tails": lambda rng, N, D, dtype: rng.standard_t(1.5, (N, D)),
    "constant": _constant,
    "1e30": _normal(0, 1e30),
    "1e-30": _normal(0, 1e-30),
    "subnormals": _subnormal,
}
SHAPES = {"mean 1e4": (262144, 4)}
SHAPE = (65536, 8)
ONLY = {"mean 1e12": "float64", "subnormals": "float32"}  # whose squares float64 holds


def make(name: str, shape: tuple[int, int], dtype: str) -> Data:
    """The named data, the same at each call."""
    rng = np.random.default_rng([*name.encode(), *shape])
    x = np.ascontiguousarray(DATA[name](rng, *shape, dtype), dtype)
    dy = rng.normal(0.3, 1, shape).astype(dtype)
    gamma, beta = rng.normal(1, 0.5, (2, shape[1])).astype(dtype)
    return Data(x, dy, np.empty_like(x), gamma, beta, np.zeros_like(beta), np.ones_like(beta))


# Contenders ---------------------------------------------------------------------------------------


def of_cbn(data: Data, threads: int) -> Results:
    contender = Cbn(data, threads, fresh=True)
    y, cache = contender.forward()[0]()
    return _exact.named(y, cache.mean, cache.var, contender.backward()[0]())


def of_numpy(data: Data, threads: int) -> Results:
    contender = NumPy(data, threads, fresh=True)
    mean = data.x.mean(axis=0)
    var = np.square(data.x - mean).mean(axis=0)
    return _exact.named(contender.forward()[0](), mean, var, contender.backward()[0]())


def of_torch(data: Data, threads: int) -> Results:
    """The variance as torch gives it away: a running one, of which this batch is all."""
    contender = Torch(data, threads, fresh=True)
    d, batch_norm = contender.data, contender.torch.nn.functional.batch_norm
    y = batch_norm(d.x, d.mean, d.var, d.gamma, d.beta, training=True, momentum=1.0, eps=EPS)
    N = len(data.x)
    var = d.var.numpy().astype(np.float64) * ((N - 1) / N)
    return _exact.named(y, d.mean, var, contender.backward()[0]())


PEER_RESULTS = {"numpy": of_numpy, "torch": of_torch}
BY_THREADS = ("torch",)


# The command --------------------------------------------------------------------------------------


@dataclass
class Row:
    """One contender on one data set; `threads` is None where they decide nothing."""

    data: str
    shape: tuple[int, int]
    dtype: str
    library: str
    threads: int | None
    units: dict[str, float]
    var_ratio: float

    @property
    def cells(self) -> list[str]:
        by = "" if self.threads is None else f", {self.threads} thread{'s'[: self.threads > 1]}"
        shape = "x".join(map(str, self.shape))
        figures = [figure(self.units[name]) for name in RESULTS]
        return [self.data, shape, self.library + by, *figures, f"{self.var_ratio:.3g}"]


HEAD = ["data", "N x D", "library", *RESULTS, "var/exact"]
WIDTHS = [-22, -9, -17, 8, 8, 8, 8, 8, 8, 10]


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "accuracy",
        help="errors of cbn and of the peers that are installed, on data that are hard",
        description="Compare the results of training, forward and backward, with those computed "
        "in twice float64's precision, on named data: far from zero, with outliers, drifting, "
        "huge, tiny. PyTorch's results depend on the number of threads; cbn's do not.",
    )
    add_words(parser, "--dtypes", DTYPES)
    add_words(parser, "--data", DATA)
    parser.add_argument(
        "--peers",
        type=_peers,
        default="auto",
        metavar="LIST",
        help=f"of {', '.join(PEER_RESULTS)}; or auto for those installed, or none (default: auto)",
    )
    parser.add_argument(
        "--threads",
        type=thread_counts,
        default="1,all",
        metavar="LIST",
        help="of PyTorch: numbers, or all for as many as cbn takes by itself (default: 1,all)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table; write what is to be written."""
    if options.json is not None:
        check_writable("--json", options.json)
    machine = _machine.facts(options.peers)
    print(_heading(machine))
    rows = []
    for dtype in options.dtypes:
        print(_head(dtype, options.markdown), flush=True)
        for row in _measure(options, dtype):
            rows.append(row)
            print(line(row.cells, WIDTHS, options.markdown), flush=True)
    if options.json is not None:
        text = json.dumps(_facts(machine, rows), indent=1, allow_nan=False)
        options.json.write_text(text + "\n", encoding="utf-8")
        if not options.markdown:
            print(f"\nfigures: {options.json}")
    return 0


def _measure(options: argparse.Namespace, dtype: str) -> Iterator[Row]:
    everybody = cbn.get_num_threads()
    threads = sorted({n or everybody for n in options.threads})
    for name in options.data:
        if ONLY.get(name, dtype) != dtype:
            continue
        shape = SHAPES.get(name, SHAPE)
        try:
            data = make(name, shape, dtype)
            right = _exact.reference(data.x, data.dy, data.gamma, data.beta, EPS)
            size = _exact.terms(right, data.dy, data.gamma, data.beta)
            for library, function in {"cbn": of_cbn, **PEER_RESULTS}.items():
                if library != "cbn" and library not in options.peers:
                    continue
                for n in threads if library in BY_THREADS else [None]:
                    with np.errstate(all="ignore"):
                        results = function(data, n or everybody)
                    units = _exact.units(results, right, size, dtype)
                    ratio = _ratio(results["var"], right["var"].hi)
                    yield Row(name, shape, dtype, library, n, units, ratio)
        except MemoryError:
            raise CommandError(f"not enough memory for {name}") from None


def _ratio(var: NDArray, exact: NDArray) -> float:
    """var/exact where it is furthest from 1; 1 for zero over zero."""
    with np.errstate(all="ignore"):
        ratios = np.where(var == exact, 1, np.asarray(var, np.float64) / exact)
        return float(ratios[np.argmax(np.nan_to_num(np.abs(np.log(ratios)), nan=np.inf))])


# Text ---------------------------------------------------------------------------------------------


def _heading(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['cpu']}, ISA {machine['isa']}\n{versions}\n\n{NOTES}"


def _head(dtype: str, markdown: bool) -> str:
    title = f"{dtype}, u = 2^{math.log2(_exact.ROUNDOFF[dtype]):.0f}"
    bounds = ["", "", "bound", *map(str, (_exact.BOUNDS[dtype][name] for name in RESULTS)), ""]
    return f"{head(title, HEAD, WIDTHS, markdown)}\n{line(bounds, WIDTHS, markdown)}"


def _facts(machine: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """For JSON, which has no inf: null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {"machine": machine, "bounds": _exact.BOUNDS, "cases": [plain(asdict(r)) for r in rows]}


# Options ------------------------------------------------------------------------------------------


def _peers(text: str) -> list[str]:
    if text == "none":
        return []
    if text == "auto":
        return [name for name in PEER_RESULTS if PEERS[name].version()]
    names = some_of(PEER_RESULTS)(text)
    for name in names:
        if PEERS[name].version() is None:
            raise argparse.ArgumentTypeError(f"{name} is not installed")
    return names
