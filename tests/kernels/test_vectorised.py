"""The compiler made vector code of the kernels' plain loops, of the tier's width, without FMA."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from cbn import _core, show_config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF through binutils")

MACHINE = platform.machine()
TIERS = list(show_config("dicts")["isa_flags"])

# Multiplications, subtractions and additions of one turn of the main loop of every function that
# src_c/kernels/table.h lists.
MAIN_LOOP = {
    "normalize_1": (1, 2, 0),
    "normalize_relu_1": (1, 2, 0),
    "normalize_residual_1": (1, 2, 1),
    "normalize_residual_relu_1": (1, 2, 1),
    "relu_backward_1": (1, 2, 0),
    "relu_backward_residual_1": (1, 2, 1),
    "dx_1": (2, 2, 1),
    "scale_1": (1, 0, 1),
    "normalize_2": (2, 4, 0),
    "normalize_4": (4, 8, 0),
    "normalize_run": (1, 2, 0),
    "normalize_1_stream": (1, 2, 0),
    "normalize_4_stream": (4, 8, 0),
    "normalize_run_stream": (1, 2, 0),
    "dx_2": (4, 4, 2),
    "dx_run": (2, 2, 1),
    "dx_1_stream": (2, 2, 1),
    "dx_2_stream": (4, 4, 2),
    "dx_run_stream": (2, 2, 1),
    "scale_2": (2, 0, 2),
    "scale_4": (4, 0, 4),
    "scale_run": (1, 0, 1),
    "scale_1_stream": (1, 0, 1),
    "scale_4_stream": (4, 0, 4),
    "scale_run_stream": (1, 0, 1),
    "anchor_only": (0, 8, 7),
    "moments_only": (8, 8, 14),
    "backward_sums_only": (8, 4, 6),
    "backward_sums_dx_only": (12, 4, 10),
}
# The same of float64 alone, which is summed in blocks.
MAIN_LOOP_OF_BLOCKS = {
    "anchor_first": (0, 8, 7),
    "anchor_more": (0, 8, 8),
    "anchor_last": (0, 8, 8),
    "moments_first": (8, 8, 14),
    "moments_more": (8, 8, 16),
    "moments_last": (8, 8, 16),
    "backward_sums_first": (8, 4, 6),
    "backward_sums_more": (8, 4, 8),
    "backward_sums_last": (8, 4, 8),
    "backward_sums_dx_first": (12, 4, 10),
    "backward_sums_dx_more": (12, 4, 12),
    "backward_sums_dx_last": (12, 4, 12),
}
VERBS = ("mul", "sub", "add")

if MACHINE == "aarch64":
    WIDE_TIERS = {}
    SUFFIX = {"f32": ".4s", "f64": ".2d"}
    CONTRACTED = re.compile(r"fn?m(add|sub)|fml[as]l?2?")
else:
    WIDE_TIERS = {"avx2": "y", "avx512": "z"}
    SUFFIX = {"f32": "ps", "f64": "pd"}
    CONTRACTED = re.compile(r"vfn?m(add|sub|addsub|subadd)\d*[ps][sd]")


def packed(verb, dtype, tier):
    """A pattern of the instruction that does `verb` to a whole register of the tier's width."""
    if MACHINE == "aarch64":
        return re.compile(rf"f{verb}\s+v\d+\{SUFFIX[dtype]}\b.*")
    width = WIDE_TIERS.get(tier, "x")
    return re.compile(rf"v?{verb}{SUFFIX[dtype]}\s.*%{width}mm\d+")


def objdump(option):
    command = ["objdump", option, "--no-show-raw-insn", _core.__file__]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def source_files():
    """The source file of each address at which a local function begins."""
    files, current = {}, None
    for line in objdump("--syms"):
        if file := re.search(r" df \*ABS\*\s+\w+\s+(\S+)$", line):
            current = file[1]
        elif function := re.match(r"(\w+) l .* F ", line):
            files[int(function[1], 16)] = current
    return files


@pytest.fixture(scope="module")
def functions():
    """(name, dtype, tier, instructions) of every function of the extension module."""
    unit_of = {address: Path(file).stem for address, file in source_files().items()}
    found, body = [], None
    for line in objdump("--disassemble"):
        if head := re.fullmatch(r"([0-9a-f]+) <(.+)>:", line):
            tier, _, dtype = unit_of.get(int(head[1], 16), "").partition("_")
            body = []
            found.append((head[2], dtype, tier if tier in TIERS else "none", body))
        elif instruction := re.fullmatch(r"\s*[0-9a-f]+:\t(.+)", line):
            body.append(instruction[1].strip())
    assert len(found) > 50
    return found


@pytest.fixture(scope="module")
def kernels(functions):
    """The instructions by (function of kernels/table.h, dtype, tier)."""
    found = defaultdict(list)
    for name, dtype, tier, body in functions:
        found[name.partition(".")[0], dtype, tier] += body  # GCC adds .constprop.0
    return found


def test_every_function_of_the_table_is_looked_at():
    table = (Path(__file__).resolve().parents[2] / "src_c/kernels/table.h").read_text("utf-8")
    listed = re.findall(r"^CBN_(?:MAP|REDUCTION)\((\w+),", table, flags=re.MULTILINE)
    assert sorted(listed) == sorted([*MAIN_LOOP, *MAIN_LOOP_OF_BLOCKS])


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize("dtype", SUFFIX)
@pytest.mark.parametrize("kernel", MAIN_LOOP)
def test_the_main_loop_is_vector_code(kernel, dtype, isa, kernels):
    body = kernels[kernel, dtype, isa]
    assert body, "no such symbols: was the module stripped?"
    for verb, least in zip(VERBS, MAIN_LOOP[kernel], strict=True):
        pattern = packed(verb, dtype, isa)
        count = sum(bool(pattern.fullmatch(line)) for line in body)
        assert count >= least, f"{count} of {verb}"


def test_products_are_rounded_before_they_are_added(functions):
    for name, _, _, body in functions:
        fused = [line for line in body if CONTRACTED.match(line)]
        assert not fused, (name, fused[0])


@pytest.mark.skipif(MACHINE == "aarch64", reason="only x86 has string instructions")
@pytest.mark.parametrize("isa", TIERS)
def test_no_string_instruction_runs_once_a_run_or_panel(isa, kernels):
    """It would wait for all stores past the caches: [clears] of docs/decisions.md."""
    for driver in ("map_direct", "map_copies", "reduce_copies"):
        for dtype in ("f32", "f64"):
            body = kernels[driver, dtype, isa]
            assert body, f"{driver} is no function: look at the one that has it inside"
            assert not [line for line in body if re.match(r"rep\w* (stos|movs)", line)]


@pytest.mark.skipif(MACHINE == "aarch64", reason="registers have one width")
def test_wide_registers_stay_in_their_tier(functions):
    """What runs before the CPU was asked, or on the baseline, must not need AVX."""
    forbidden = {"avx2": r"%zmm", "avx512": r"never^"}
    for name, _, tier, body in functions:
        wide = [line for line in body if re.search(forbidden.get(tier, r"%[yz]mm"), line)]
        assert not wide, (name, tier, wide[0])
