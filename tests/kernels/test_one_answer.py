"""One answer: the hash of every result, whatever the threads, the tier, the place or the layout.

Every axis is varied by itself against plain C arrays and one thread; then a seeded sample of
combinations.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numpy as np
import one_answer
import pytest
from cases import generator, slow_if
from one_answer import (
    CASES,
    EXTREMES,
    LAYOUTS,
    SHAPES,
    Arguments,
    compute,
    digest,
    hashes,
    lay_out,
    lay_out_vector,
    name_of,
)

THREADS = range(1, 17)
cases = pytest.mark.parametrize(
    "case", slow_if(lambda case: np.prod(case[0]) > 2**16, CASES), ids=name_of
)
# Where memory is cut up depends on small numbers; two large shapes show that they serve for all.
PLACED = [c for c in CASES if np.prod(c[0]) < 2**16 or c[0] in ((4097, 32), (70000, 1))]
placed = pytest.mark.parametrize(
    "case", slow_if(lambda case: np.prod(case[0]) > 2**14, PLACED), ids=name_of
)


@cache
def plain(case) -> dict[str, str]:
    """The hashes that all others must equal."""
    return hashes(Arguments(case), num_threads=1)


def in_place(over):
    return over if over.dtype.isnative else None


def outputs(layout, offset=0):
    return partial(lay_out, layout=layout, offset=offset, filled=False)


def test_the_shapes_and_the_hash():
    assert len(set(SHAPES)) == 30
    zero, minus, nan = np.zeros(3), np.array([0, -0.0, 0]), np.array([1, np.nan, 0])
    arrays = Arguments(CASES[0])
    before = plain(CASES[0])
    assert len(before) == len(compute(arrays)) + 2 == 17
    arrays.x[0, 0] = np.nextafter(arrays.x[0, 0], np.inf)
    differ = {name for name, text in hashes(arrays).items() if text != before[name]}
    assert "mean" in differ
    digests = {digest(a) for a in (zero, minus, nan, zero.astype("f4"), nan[::-1])}
    assert len(digests) == 5
    assert digest(nan) == digest(np.copysign(nan, [1, -1, 1]))


@cases
def test_threads(case):
    arrays = Arguments(case)
    for threads in THREADS:
        assert hashes(arrays, num_threads=threads) == plain(case), threads


def test_tiers(tier, run_python):
    run = run_python(one_answer.__file__, CBN_ISA=tier)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["tier"] == tier
    assert found["hashes"] == {name_of(case): plain(case) for case in CASES}


@placed
def test_alignments(case):
    """Sixteen elements along two cache lines, and offsets at which no element is aligned."""
    arrays, size = Arguments(case), np.dtype(case[1]).itemsize
    for offset in [*range(0, 16 * size, size), *range(1, size), 16 * size - 1]:
        matrix = partial(lay_out, layout="C", offset=offset)
        vector = partial(lay_out_vector, step=1, offset=offset % 8)
        moved = arrays.map(matrix, vector)
        assert moved.x.ctypes.data % 128 == offset % 128
        assert hashes(moved, out=outputs("C", offset)) == plain(case), offset


@placed
def test_layouts(case):
    arrays = Arguments(case)
    for layout in LAYOUTS:
        laid = arrays.map(partial(lay_out, layout=layout), partial(lay_out_vector, step=-2))
        assert hashes(laid) == plain(case), layout
        assert hashes(arrays, out=outputs(layout)) == plain(case), f"out: {layout}"


@cases
def test_in_place(case):
    assert hashes(Arguments(case), out=in_place) == plain(case)


@cases
def test_the_channel_axis_first(case):
    """Few positions are rows wherever the axis is; more have an order of their own."""
    moved = Arguments(case).map(lambda a: np.ascontiguousarray(a.T))
    transposed = Arguments(case).map(lambda a: a.T)
    expected = plain(case) if len(Arguments(case).x) < 1024 else hashes(moved, axis=0)
    assert hashes(moved, axis=0, num_threads=3) == expected
    assert hashes(transposed, axis=0, num_threads=2) == expected


@cases
def test_combinations(case):
    rng, arrays, layouts = generator("combinations", *case), Arguments(case), list(LAYOUTS)
    for _ in range(4):
        chosen = []

        def somewhere(a, filled=True, chosen=chosen):
            layout, offset = layouts[rng.integers(len(layouts))], int(rng.integers(128))
            chosen.append((layout, offset))
            return lay_out(a, layout, offset, filled)

        laid = arrays.map(
            somewhere, lambda a: lay_out_vector(a, int(rng.choice([1, -1, 3])), rng.integers(64))
        )
        out = [in_place, partial(somewhere, filled=False)][rng.integers(2)]
        threads = int(rng.integers(1, 17))
        assert hashes(laid, out=out, num_threads=threads) == plain(case), (chosen, out, threads)


FORK = """
import json
import os
import signal
import one_answer as one

parent = {one.name_of(case): one.hashes(one.Arguments(case), num_threads=4) for case in one.CASES}
reading, writing = os.pipe()
if os.fork() == 0:
    signal.alarm(60)
    child = {one.name_of(case): one.hashes(one.Arguments(case), num_threads=4)
             for case in one.CASES}
    os.write(writing, b"same" if child == parent else b"differ")
    os._exit(0)
os.close(writing)
print(json.dumps([os.read(reading, 9).decode(), parent]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child(run_python):
    run = run_python("-W", "ignore", "-c", FORK)
    assert run.returncode == 0, run.stderr
    child, parent = json.loads(run.stdout)
    assert child == "same"
    assert parent == {name_of(case): plain(case) for case in CASES}


@pytest.mark.parametrize("threads", [1, 3])
def test_a_pool_of_callers(threads):
    """More callers than cores, on the same arrays at once."""
    chosen = [case for case in CASES if case[0] in ((4097, 32), (256, 257), (100, 3), EXTREMES)]
    arrays = {case: Arguments(case) for case in chosen}
    expected = [plain(case) for case in chosen * 4]
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(hashes, arrays[case], num_threads=threads) for case in chosen * 4]
        assert [call.result() for call in calls] == expected
