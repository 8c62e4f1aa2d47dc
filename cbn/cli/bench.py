"""``cbn bench``: time cbn beside the memory's own speed and the peers that are installed."""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import cbn
from cbn.cli import _bench_report as report
from cbn.cli import _machine
from cbn.cli._bench_report import Result
from cbn.cli._contenders import OPS, Call, Case, Cbn, Data, Floor
from cbn.cli._machine import last_level_cache
from cbn.cli._options import (
    CommandError,
    add_words,
    check_plot,
    check_writable,
    positive,
    some_of,
    thread_counts,
)
from cbn.cli._peers import PEERS

DTYPES = ("float32", "float64")
GROUPS = {
    "default": "32x64 256x1024 1000x1000 1024x1024 4096x512 65536x64 4096x4096 1000000x16 "
    "128x65536",
    "small": "1x64 8x16 16x32 32x64 64x100 128x128 128x256",
    "nxd": "32x64 64x100 128x256 256x1024 512x512 1000x1000 1024x1024 128x4096 1024x4096 4096x512 "
    "4096x4096 65536x64 65536x256 1000000x8 1000000x16 1000000x100 8x65536 128x65536 1024x16384 "
    "16384x512",
    "odd": " ".join(
        f"{N}x{D}"
        for N in (1024, 65536)
        for D in (1, 3, 4, 7, 8, 13, 16, 30, 31, 32, 54, 64, 100, 127, 128, 256, 257, 784, 1000)
        + (1023, 1025)
    ),
    "pow2": "1024x1024 1024x1040 4096x1024 4096x1040 1024x4096 1024x4112 4096x4096 4096x4112",
    "large": "4096x4096 65536x256 1000000x16 1000000x100 128x65536 1024x16384 16384x512",
    "growth": " ".join(f"{4096 << k}x1000" for k in range(7)),
    # inputs of ResNet-50's layers, and three channels of an image
    "spatial": "8x3x224x224 8x64x112x112 32x64x56x56 8x256x56x56 32x128x28x28 32x512x28x28 "
    "32x256x14x14 32x1024x14x14 32x512x7x7 32x2048x7x7",
}
LAYOUTS = ("nchw", "nhwc")
# Timed calls of a turn take about this many seconds.
SLICE = 0.002


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "bench",
        help="time cbn, the memory's own speed and the peers that are installed",
        description="Time cbn beside the floor - a copy for forward, a triad of two reads and one "
        "write for backward, the faster of ordinary and non-temporal stores - and beside other "
        "libraries. They take turns on the same arrays in one process, in a new order each round; "
        "figures are medians over the rounds.",
    )
    parser.add_argument(
        "--shapes",
        type=_shapes,
        default="default",
        metavar="LIST",
        help=f"such as 256x1024 (N x D), 32x64x56x56 (N x C x positions); or "
        f"{', '.join([*GROUPS, 'cache'])} (default: default)",
    )
    parser.add_argument(
        "--layout",
        type=some_of(LAYOUTS),
        default="nchw",
        metavar="LIST",
        help="memory order of shapes with positions, of nchw, nhwc: channels before or after them "
        "(default: nchw)",
    )
    add_words(parser, "--ops", OPS, "forward,backward")
    add_words(parser, "--dtypes", DTYPES, "float32")
    parser.add_argument(
        "--threads",
        type=thread_counts,
        default="1,all",
        metavar="LIST",
        help="numbers, or all for as many as cbn takes by itself (default: 1,all)",
    )
    parser.add_argument(
        "--peers",
        type=_peers,
        default="auto",
        metavar="LIST",
        help=f"of {', '.join(PEERS)}; or auto for those installed, or none (default: auto)",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="results in fresh arrays, instead of reused ones"
    )
    parser.add_argument(
        "--repeat", type=positive, default=7, metavar="N", help="rounds, at least (default: 7)"
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=1.0, metavar="X", help="a case, at least (default: 1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw them")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a row a case and the means at the end; write what is to be written."""
    if options.plot is not None:
        try:
            check_plot(options.plot)
        except ModuleNotFoundError as error:
            raise CommandError(
                f'{error.name} is not installed: pip install "cbn[demo]" brings what --plot needs'
            ) from None
    if options.json is not None:
        check_writable("--json", options.json)
    threads = sorted({n or cbn.get_num_threads() for n in options.threads})
    columns = ["floor", *options.peers]
    if threads[0] == 1 < threads[-1]:
        columns.insert(1, "1 thread")
    if len(options.peers) > 1:
        columns.append("best peer")
    machine = _machine.facts(options.peers)
    cache = machine["last_level_cache"]
    print(report.heading(machine, columns, options.fresh), flush=True)
    results = []
    cases = [
        Case(shape, layout if len(shape) > 2 else "", dtype)
        for dtype in options.dtypes
        for shape in options.shapes
        for layout in (options.layout if len(shape) > 2 else [""])
    ]
    total = len(cases) * len(options.ops) * len(threads)
    measured, write = _progress(_measure_all(cases, options, threads), total)
    for result in measured:
        results.append(result)
        write(report.row(result, columns))
    summary, noise = report.summarize(results, cache), report.noise_of(results)
    print(report.closing(summary, noise, columns, cache))
    if options.json is not None:
        facts = {
            "machine": machine,
            "fresh": options.fresh,
            "noise": noise,
            "cases": list(map(vars, results)),
            "summary": summary,
        }
        options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        print(f"figures: {options.json}")
    if options.plot is not None:
        report.plot(results, machine, options.plot)
        print(f"plot: {options.plot}")
    return 0


def _progress(results: Iterable[Result], total: int) -> tuple[Iterable[Result], Callable]:
    """The results with a progress bar if tqdm is installed, and how to print beside it."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return results, partial(print, flush=True)
    return tqdm(results, total=total, unit="case", leave=False), tqdm.write


# Measuring ----------------------------------------------------------------------------------------


def _measure_all(
    cases: Sequence[Case], options: argparse.Namespace, threads: Sequence[int]
) -> Iterator[Result]:
    contenders = {"cbn": Cbn, "floor": Floor, **{name: PEERS[name] for name in options.peers}}
    for case in cases:
        try:
            data = Data.random(case)
            for op in options.ops:
                one_thread = None
                for n in threads:
                    calls = {
                        name: getattr(contender(data, n, options.fresh), op)()
                        for name, contender in contenders.items()
                        if contender.takes(data)
                    }
                    samples = _take_turns(calls, options.repeat, options.seconds)
                    result = Result.of(case, op, n, samples, one_thread)
                    if n == 1:
                        one_thread = result.seconds["cbn"]
                    yield result
        except MemoryError:
            raise CommandError(f"--shapes: not enough memory for {case.name}") from None
        data = calls = None  # freed before the next shape takes its memory


def _take_turns(
    calls: dict[str, list[Call]], rounds: int, seconds: float
) -> dict[str, list[list[float]]]:
    """Seconds a call, for every contender and each of its ways, a sample a round."""
    timers = {name: list(map(_Timer, ways)) for name, ways in calls.items() if ways}
    order = list(chain.from_iterable(timers.values()))
    shuffle = random.Random(0).shuffle
    done, end = 0, time.perf_counter() + seconds
    gc.collect()
    gc.disable()
    try:
        while done < rounds or time.perf_counter() < end:
            shuffle(order)
            for timer in order:
                timer.turn()
            done += 1
    finally:
        gc.enable()
    return {name: [timer.samples for timer in ways] for name, ways in timers.items()}


class _Timer:
    """One way to do a case, and the seconds a call took in each of its turns."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.samples: list[float] = []
        self._run(1)  # which compiles, and touches the memory
        self.number = max(1, int(SLICE / min(self._run(1) for _ in range(3))))

    def turn(self) -> None:
        _settle()
        self._run(self.number // 4 + 1)
        self.samples.append(self._run(self.number) / self.number)

    def _run(self, number: int) -> float:
        call = self.call
        start = time.perf_counter()
        for _ in repeat(None, number):
            call()
        return time.perf_counter() - start


def _settle() -> None:
    """Wait until the threads of the call before, which spin for some ms, have gone to sleep."""
    for _ in range(30):
        before = time.process_time()
        time.sleep(0.001)
        if time.process_time() - before < 0.0002:
            return


# Options ------------------------------------------------------------------------------------------


def _shapes(text: str) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    for word in text.split(","):
        if word == "cache":  # x takes a quarter of the last-level cache, a half, ...
            rows = last_level_cache() // 4000
            shapes += [(int(rows * part), 1000) for part in (0.25, 0.5, 1, 2, 4)]
        else:
            shapes += map(_shape, GROUPS.get(word, word).split(" "))
    return list(dict.fromkeys(shapes))


def _shape(text: str) -> tuple[int, ...]:
    try:
        N, D, *positions = map(positive, text.split("x"))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"expected NxD such as 256x1024, NxCxHxW, or {', '.join([*GROUPS, 'cache'])}, "
            f"got {text!r}"
        ) from None
    shape = N, D, *positions
    if math.prod(shape) > sys.maxsize // 8 or len(shape) > 8:
        raise argparse.ArgumentTypeError(f"expected a shape that fits into memory, got {text!r}")
    return shape


def _peers(text: str) -> list[str]:
    if text == "none":
        return []
    if text == "auto":
        return [name for name, peer in PEERS.items() if peer.version()]
    names = some_of(PEERS)(text)
    for name in names:
        if PEERS[name].version() is None:
            raise argparse.ArgumentTypeError(f"{name} is not installed")
    return names


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number >= 0, got {text!r}")
    return seconds
