"""How work is cut and dealt: src_c/plan.c, compiled by itself and called without a kernel."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    os.name == "nt" or shutil.which("cc") is None, reason="plan.c is compiled by cc"
)

SRC_C = Path(__file__).resolve().parents[2] / "src_c"

# Positions, channels, inner.
SHAPES = [
    *((1, 1, 1), (2, 0, 1), (5, 3, 1), (32, 64, 1), (257, 129, 1), (1000, 1000, 1)),
    *((4097, 130, 1), (1024, 31, 1), (100_003, 16, 1), (65_536, 64, 1), (8, 65_536, 1)),
    *((128, 9001, 1), (70_000, 3, 1), (8 * 49, 512, 49), (32 * 196, 256, 196)),
    *((8 * 12_544, 64, 12_544), (3 * 1009, 5, 1009), (16 * 3136, 3, 3136), (50_176, 3, 50_176)),
]
THREADS = [1, 2, 3, 4, 7, 8, 16, 61, 256]
CHANNELS, PLACES, BACKWARDS, SHARED_ROWS = range(4)
OF_SHAPE = ["lanes", "columns", "left_over", "run", "run_left_over", "chunk_rows", "chunks"]


class Plan(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_ssize_t)
            for name in (
                *("positions", "channels", "lanes", "columns", "left_over", "run"),
                *(
                    "run_left_over",
                    "group",
                    "rows",
                    "chunk_rows",
                    "chunks",
                    "strip",
                    "strips",
                    "lead",
                ),
            )
        ),
        *((name, ctypes.c_int) for name in ("by_rows", "threads", "slots")),
        ("slot_bytes", ctypes.c_size_t),
    ]


class Place(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_ssize_t) for name in ("chunk", "column", "columns")),
        *((name, ctypes.c_int) for name in ("share", "shares")),
        ("scratch", ctypes.c_void_p),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.so"
    flags = ["-std=c11", "-O1", "-shared", "-fPIC", "-o", str(path), str(SRC_C / "plan.c"), "-lm"]
    subprocess.run(["cc", *flags], check=True)
    library = ctypes.CDLL(str(path))
    size, number, pointer = ctypes.c_ssize_t, ctypes.c_int, ctypes.POINTER(Plan)
    for name, result, *arguments in (
        ("for", Plan, size, size, size, number, number),
        ("align", None, pointer, size),
        ("separate_lanes", None, pointer),
        ("maps_share_rows", number, pointer),
        ("scratch", ctypes.c_size_t, pointer),
        ("chunk_end", size, pointer, size),
        ("dealt", size, pointer, number, number, number),
        ("deal", Place, pointer, number, number, number, size),
    ):
        function = getattr(library, f"cbn_plan_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def plans(library):
    for shape, threads, direct in itertools.product(SHAPES, THREADS, (0, 1)):
        yield shape, library.cbn_plan_for(*shape, threads, direct)


def dealt(library, plan, deal, thread):
    count = library.cbn_plan_dealt(plan, deal, thread, plan.threads)
    return [library.cbn_plan_deal(plan, deal, thread, plan.threads, i) for i in range(count)]


def dealt_to_all(library, plan, deal):
    return [p for thread in range(plan.threads) for p in dealt(library, plan, deal, thread)]


def assert_each_column_once(plan, places, width):
    """The places of every chunk cover its columns, none of them twice."""
    chunks = {}
    for place in places:
        chunks.setdefault(place.chunk, []).append((place.column, place.columns))
    assert set(chunks) == set(range(plan.chunks))
    for ranges in chunks.values():
        end = 0
        for column, columns in sorted(ranges):
            assert column == end and columns > 0
            end += columns
        assert end == width


def test_what_decides_the_bytes_follows_from_the_shape(library):
    for shape in SHAPES:
        found = {
            tuple(getattr(library.cbn_plan_for(*shape, threads, direct), name) for name in OF_SHAPE)
            for threads in range(1, 257)
            for direct in (0, 1)
        }
        assert len(found) == 1, (shape, found)


def test_chunks_lanes_and_runs_have_every_position(library):
    for (positions, channels, _), plan in plans(library):
        in_rows = plan.rows * plan.lanes * plan.run
        assert in_rows + plan.left_over + plan.run_left_over == positions
        assert plan.columns == plan.lanes * channels
        ends = [library.cbn_plan_chunk_end(plan, chunk) for chunk in range(plan.chunks)]
        assert ends == sorted(set(ends)) and ends[-1] == plan.rows


@pytest.mark.parametrize("deal", [PLACES, BACKWARDS])
def test_every_place_is_dealt_once(library, deal):
    for (_, channels, _), plan in plans(library):
        if channels == 0:
            continue
        places = dealt_to_all(library, plan, deal)
        whole = [place for place in places if place.chunk < plan.chunks]
        assert_each_column_once(plan, whole, plan.columns)
        left_over = [place.columns for place in places if place.chunk == plan.chunks]
        assert left_over == ([channels] if plan.left_over else [])


def test_the_map_begins_where_the_reduction_ended(library):
    for _, plan in plans(library):
        for thread in range(plan.threads):
            there, back = (
                [(p.chunk, p.column) for p in dealt(library, plan, deal, thread)]
                for deal in (PLACES, BACKWARDS)
            )
            whole = [place for place in there if place[0] < plan.chunks]
            assert back[: len(whole)] == whole[::-1]


def test_threads_have_as_many_places_as_each_other(library):
    for _, plan in plans(library):
        counts = [
            sum(place.chunk < plan.chunks for place in dealt(library, plan, PLACES, thread))
            for thread in range(plan.threads)
        ]
        assert max(counts) - min(counts) <= 1


def test_shared_rows_are_everybodys(library):
    seen = 0
    for (_, channels, _), plan in plans(library):
        if channels == 0 or not library.cbn_plan_maps_share_rows(plan):
            continue
        seen += 1
        for thread in range(plan.threads):
            places = [p for p in dealt(library, plan, SHARED_ROWS, thread) if p.chunk < plan.chunks]
            assert_each_column_once(plan, places, plan.columns)
            assert {(place.share, place.shares) for place in places} == {(thread, plan.threads)}
    assert seen > 10


def test_channels_are_dealt_once(library):
    for (_, channels, _), plan in plans(library):
        end = 0
        for place in dealt_to_all(library, plan, CHANNELS):
            assert place.column == end
            end += place.columns
        assert end == channels


@pytest.mark.parametrize("lead", [1, 15])
def test_strips_may_begin_at_lines(library, lead):
    for (_, channels, inner), plan in plans(library):
        if channels == 0 or inner > 1 or plan.strip <= lead:
            continue
        library.cbn_plan_align(plan, lead)
        places = [p for p in dealt_to_all(library, plan, PLACES) if p.chunk < plan.chunks]
        assert_each_column_once(plan, places, plan.columns)
        begins = {place.column for place in places} - {0}
        assert all((begin + lead) % 16 == 0 for begin in begins)


def test_lanes_that_do_not_touch_are_strips(library):
    for _, plan in plans(library):
        if plan.lanes > 1:
            library.cbn_plan_separate_lanes(plan)
            places = [p for p in dealt_to_all(library, plan, PLACES) if p.chunk < plan.chunks]
            assert {place.columns for place in places} == {plan.channels}
            assert_each_column_once(plan, places, plan.columns)


def test_a_slot_has_room_for_every_place(library):
    """A number of eight bytes a column, wherever in 4 KiB the slot begins."""
    for (_, channels, _), plan in plans(library):
        if channels == 0:
            continue
        deals = [PLACES, *([SHARED_ROWS] if library.cbn_plan_maps_share_rows(plan) else [])]
        for lead in (0, 15) if plan.run == 1 and plan.strip > 15 else (0,):
            library.cbn_plan_align(plan, lead)
            places = [p for deal in deals for p in dealt_to_all(library, plan, deal)]
            widest = max(place.columns for place in places)
            columns = min(widest, plan.group) * plan.run if plan.run > 1 else widest
            assert columns * 8 + 4095 <= plan.slot_bytes
        assert library.cbn_plan_scratch(plan) == plan.threads * plan.slots * plan.slot_bytes


def test_huge_arrays_of_few_elements_are_planned(library):
    """Strides of zero make arrays of any size."""
    plan = library.cbn_plan_for(2**50, 2**10, 1, 256, 1)
    assert plan.threads == 256 and plan.chunks <= 2**13
