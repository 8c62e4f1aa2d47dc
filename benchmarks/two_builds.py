"""Compare the speed of two builds of cbn, call by call, in one process.

    python benchmarks/two_builds.py BASE [NEW]

BASE and NEW (default: this folder) are folders with a built cbn, or git revisions, which are
checked out below build/revisions and built there. Both are imported into one process and take turns
on the same arrays, in a new order each round, so that whatever else the machine does meets both
alike. A ratio is the time of BASE divided by the time of NEW, so that more than 1 means that NEW is
faster; it is the median over the rounds. The result is one line a case, then the geometric mean,
the worst cases, and in how many cases the two returned other bytes.

--kinds says what the arrays and options are:

    plain      float32, C order, gamma and beta, out= given
    float64, float16, bfloat16
    relu, residual, fused    the options of forward (fused is both) and their backward
    fortran, strided         Fortran order, every second column
    extreme                  values near 1e30, which float32 arithmetic cannot square
    mask, weights, groups    seven of ten positions, a weight a position, four virtual batches
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from types import ModuleType

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {  # `table` is the shape list of `cbn bench`
    "table": "32x64 256x1024 1000x1000 1024x1024 4096x512 65536x64 4096x4096 1000000x16 128x65536",
    "small": "8x16 32x64 64x100 128x256",
    "odd": "1024x3 1024x7 1024x31 65536x13 1024x127 1024x257 1024x1023",
    "image": "8x64x112x112 32x64x56x56 32x256x14x14 32x512x7x7",
}
KINDS = ("plain", "float64", "float16", "bfloat16", "relu", "residual", "fused", "fortran")
KINDS += ("strided", "extreme", "mask", "weights", "groups")
OPS = ("forward", "backward", "inference", "inference_backward")
SLICE = 0.002  # seconds that the calls of one turn take together


# Two builds in one process -----------------------------------------------------------------------


def build(place: str) -> Path:
    """The folder of a built cbn: `place` itself, or a checkout of that revision."""
    if (folder := Path(place).resolve()).joinpath("cbn", "__init__.py").is_file():
        if not list(folder.glob("cbn/_core*.so")):
            raise SystemExit(f"{place}: expected a built cbn; run `pip install -e .` there")
        return folder
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run(
        [*git, "rev-parse", "--verify", "--quiet", f"{place}^{{commit}}"],
        capture_output=True,
        text=True,
    )
    if found.returncode != 0:
        raise SystemExit(f"{place}: expected a folder with a built cbn or a git revision")
    revision = found.stdout.strip()
    folder = ROOT / "build" / "revisions" / revision[:12]
    if not list(folder.glob("cbn/_core*.so")):
        print(f"building {revision[:12]} in {folder}", file=sys.stderr)
        subprocess.run(["git", "clone", "-q", "--no-checkout", str(ROOT), folder], check=True)
        subprocess.run(["git", "-C", folder, "checkout", "-q", revision], check=True)
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(command, cwd=folder, check=True)
    return folder


def load(folder: Path) -> ModuleType:
    """A cbn of its own: its modules leave sys.modules, where the next one takes their names."""
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module("cbn")
    finally:
        sys.path.remove(str(folder))
    if Path(module.__file__).parent != folder / "cbn":
        raise SystemExit(f"expected cbn of {folder}, got {module.__file__}")
    for name in [name for name in sys.modules if name == "cbn" or name.startswith("cbn.")]:
        del sys.modules[name]
    return module


# Calls -------------------------------------------------------------------------------------------


class Data:
    """The arrays of a case; x has channels second, as its shape."""

    def __init__(self, shape: tuple[int, ...], kind: str) -> None:
        rng = np.random.default_rng(0)
        (_, D, *positions) = shape
        self.axis = 1 if positions else None
        dtype = np.dtype("float64" if kind == "float64" else "float32")

        def array() -> np.ndarray:
            values = rng.standard_normal(shape, dtype)
            if kind == "extreme":
                values *= dtype.type(1e30)
            if kind == "bfloat16":
                import ml_dtypes

                return values.astype(ml_dtypes.bfloat16)
            if kind == "float16":
                return values.astype(np.float16)
            if kind == "fortran":
                return np.asfortranarray(values)
            if kind == "strided":
                wide = np.empty((*shape[:-1], 2 * shape[-1]), dtype)
                wide[..., ::2] = values
                return wide[..., ::2]
            return values

        self.x, self.dy, self.out, self.residual = (array() for _ in range(4))
        self.out = np.copy(self.out, order="K")
        self.gamma, self.beta, self.mean, self.var = rng.uniform(0.5, 1.5, (4, D)).astype(dtype)
        self.options = {}
        if kind in ("relu", "fused"):
            self.options["activation"] = "relu"
        if kind in ("residual", "fused"):
            self.options["residual"] = self.residual
        place = (shape[0], *positions) if positions else shape[:1]
        if kind == "mask":
            self.options["mask"] = rng.random(place) < 0.7
        if kind == "weights":
            self.options["sample_weight"] = rng.random(place)
        if kind == "groups":
            self.options["virtual_batch_size"] = max(1, shape[0] // 4)


def calls(cbn: ModuleType, data: Data, op: str, threads: int) -> Callable[[], object]:
    """One call of the operation."""
    d = data
    axis = {} if d.axis is None else {"axis": d.axis}
    options = {**axis, **d.options, "num_threads": threads}
    if op == "forward":
        return lambda: cbn.batch_norm_forward(d.x, d.gamma, d.beta, out=d.out, **options)
    if op == "inference":
        return lambda: cbn.batch_norm_inference(
            d.x, d.mean, d.var, d.gamma, d.beta, out=d.out, **options
        )
    if op == "backward":
        _, cache = cbn.batch_norm_forward(d.x, d.gamma, d.beta, **options)
        return lambda: cbn.batch_norm_backward(d.dy, cache, out=d.out, num_threads=threads)
    options = {**axis, "num_threads": threads}
    return lambda: cbn.batch_norm_inference_backward(
        d.dy, d.x, d.mean, d.var, d.gamma, out=d.out, **options
    )


def same_bytes(base: Callable, new: Callable, data: Data) -> bool:
    """Whether both calls return the same bytes, in `out` and beside it."""
    found = []
    for call in (base, new):
        data.out[...] = 0
        results = call()
        results = results if isinstance(results, tuple) else (results,)
        arrays = [data.out, *(r for r in results if isinstance(r, np.ndarray))]
        found.append([array.tobytes() for array in arrays])
    return found[0] == found[1]


def ratio(base: Callable, new: Callable, seconds: float, rounds: int) -> tuple[float, float]:
    """Median over the rounds of base's time divided by new's, and the median time of new."""
    contenders, samples = [base, new], {base: [], new: []}
    clock = time.perf_counter

    def run(call: Callable, number: int) -> float:
        start = clock()
        for _ in repeat(None, number):
            call()
        return (clock() - start) / number

    for call in contenders:
        run(call, 2)
    number = max(1, int(SLICE / min(run(new, 1) for _ in range(3))))
    order = random.Random(0)
    done, end = 0, clock() + seconds
    gc.collect()
    gc.disable()
    try:
        while done < rounds or clock() < end:
            order.shuffle(contenders)
            for call in contenders:
                run(call, number // 4 + 1)
                samples[call].append(run(call, number))
            done += 1
    finally:
        gc.enable()
    pairs = zip(samples[base], samples[new], strict=True)
    return statistics.median(a / b for a, b in pairs), statistics.median(samples[new])


# The command -------------------------------------------------------------------------------------


def cases(options: argparse.Namespace) -> Iterator[tuple[str, tuple[int, ...]]]:
    for kind in options.kinds:
        for shape in options.shapes:
            if kind in ("fortran", "strided") and math.prod(shape) > 1 << 24:
                continue  # minutes, for what smaller ones show
            yield kind, shape


def shapes(text: str) -> list[tuple[int, ...]]:
    words = " ".join(SHAPES.get(word, word) for word in text.split(",")).split()
    try:
        found = [tuple(map(int, word.split("x"))) for word in words]
    except ValueError:
        found = []
    if not found or min(map(len, found)) < 2 or min(map(min, found)) < 1:
        raise argparse.ArgumentTypeError(
            f"expected shapes such as 256x1024, or of {', '.join(SHAPES)}; got {text!r}"
        )
    return list(dict.fromkeys(found))


def some_of(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        found = text.split(",")
        if not set(found) <= set(known):
            raise argparse.ArgumentTypeError(f"expected of {', '.join(known)}; got {text!r}")
        return found

    return names


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="a folder or a revision")
    parser.add_argument("new", nargs="?", default=str(ROOT), help="the same (default: this folder)")
    parser.add_argument("--shapes", type=shapes, default="table", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--kinds", type=some_of(KINDS), default="plain")
    parser.add_argument("--ops", type=some_of(OPS), default="forward,backward")
    parser.add_argument("--threads", default="1,2", help="numbers (default: 1,2)")
    parser.add_argument("--seconds", type=float, default=1.0, help="a case, at least (default: 1)")
    parser.add_argument("--rounds", type=int, default=15, help="at least (default: 15)")
    parser.add_argument("--isa", help="the instruction set of both, as CBN_ISA")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if options.isa:
        os.environ["CBN_ISA"] = options.isa
    base, new = load(build(options.base)), load(build(options.new))
    isa = [cbn.show_runtime("dicts")["isa"]["chosen"] for cbn in (base, new)]
    print(f"base {options.base} ({isa[0]}), new {options.new} ({isa[1]}): time of base / of new")
    results, different = [], 0
    for kind, shape in cases(options):
        data = Data(shape, kind)
        for op in options.ops:
            if op.startswith("inference") and data.options:
                continue
            for threads in map(int, options.threads.split(",")):
                pair = [calls(cbn, data, op, threads) for cbn in (base, new)]
                different += not same_bytes(*pair, data)
                value, took = ratio(*pair, options.seconds, options.rounds)
                name = "x".join(map(str, shape))
                results.append((kind, name, op, threads, value, took))
                print(
                    f"{kind:9} {name:14} {op:18} {threads} {value:6.3f} {took * 1e6:10.1f} us",
                    flush=True,
                )
    ratios = [result[4] for result in results]
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    print(f"geometric mean {mean:.3f} of {len(ratios)} cases, worst:")
    for kind, name, op, threads, value, _ in sorted(results, key=lambda r: r[4])[:5]:
        print(f"  {value:.3f} {kind} {name} {op}, {threads} threads")
    print(f"cases with other bytes: {different}")
    if options.json:
        fields = ("kind", "shape", "op", "threads", "ratio", "seconds")
        figures = [dict(zip(fields, result, strict=True)) for result in results]
        options.json.write_text(
            json.dumps({"mean": mean, "different": different, "cases": figures}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
