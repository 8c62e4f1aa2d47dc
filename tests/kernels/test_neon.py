"""The C core for aarch64, cross-compiled and run under emulation: NEON gives the same answer.

Needs aarch64-linux-gnu-gcc and qemu-aarch64 (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross,
qemu-user). Without them it is skipped, unless CBN_REQUIRED_EMULATION names neon.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from ml_dtypes import bfloat16
from one_answer import EPS, EXTREMES, MATRICES, VECTORS, Arguments, compute, digest, name_of
from tiers import tiers_of

import cbn

ROOT = Path(__file__).resolve().parents[2]
SRC_C = ROOT / "src_c"
COMPILER = "aarch64-linux-gnu-gcc"
EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")
SHAPES = [
    *((1, 5), (2, 7), (31, 3), (33, 127), (64, 64), (256, 13), (257, 129), (1000, 1)),
    *((70, 1025), (4097, 17), (16385, 3), (40000, 1), EXTREMES),
]
CASES = [(shape, dtype) for shape in SHAPES for dtype in (np.float32, np.float64)]

# cbn_dtype's order, and arrays that are more than plain rows: half types, an inner axis.
DTYPES = [np.float32, np.float64, np.float16, bfloat16]
SPATIAL = [(4, 5, 9), (20, 7, 49), (3, 2, 31 * 33), (33, 17, 1), (600, 3, 1)]
SPATIAL_CASES = [
    (shape, dtype) for shape in SPATIAL for dtype in (DTYPES if shape[2] > 1 else DTYPES[2:])
]


@pytest.fixture(scope="module")
def tools() -> tuple[str, str]:
    """The cross compiler and the emulator."""
    compiler = shutil.which(COMPILER)
    emulator = next(filter(None, map(shutil.which, EMULATORS)), None)
    if compiler and emulator:
        return compiler, emulator
    message = f"NEON is not run: {COMPILER} or {EMULATORS[0]} is not installed"
    if "neon" in os.environ.get("CBN_REQUIRED_EMULATION", "").split(","):
        pytest.fail(message)
    pytest.skip(message)


def run(*command) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def driver(tools, tmp_path_factory) -> Path:
    """tests/neon/driver.c and the C core, built as setup.py builds; a warning is an error."""
    with mock.patch("setuptools.setup"):
        setup = runpy.run_path(str(ROOT / "setup.py"))
    gnu = setup["GNU"]
    folder = tmp_path_factory.mktemp("neon")
    flags = [*gnu["c"], *gnu["werror"], f"-I{SRC_C}"]
    sources = {
        path: [*gnu["kernels"], *gnu["tiers"][tier]]
        for tier in tiers_of("aarch64")
        for path in (SRC_C / "isa").glob(f"{tier}_*.c")
    }
    sources[SRC_C / "isa" / "wide.c"] = gnu["kernels"]
    core = [*gnu["core"], *gnu["openmp"]["compile"]]
    sources |= dict.fromkeys([*SRC_C.glob("*.c"), ROOT / "tests/neon/driver.c"], core)
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compile_one(source, more, target):
        run(tools[0], *flags, *more, "-c", source, "-o", target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, sources.values(), objects))
    libraries = [f"-l{name}" for name in gnu["libraries"]]
    program = folder / "driver"
    run(tools[0], "-static", *objects, *gnu["openmp"]["link"], *libraries, "-o", program)
    return program


@pytest.fixture(scope="module")
def arguments() -> dict:
    return {case: Arguments(case) for case in CASES}


class Spatial:
    """The arguments of a (B, C, S) array, as a.x, a.gamma and so on."""

    def __init__(self, shape, dtype):
        rng = np.random.default_rng(shape)
        for name in VECTORS:
            setattr(self, name, rng.uniform(0.5, 2, shape[1]))
        for name in MATRICES:
            setattr(self, name, rng.normal(3, 2, shape).astype(dtype))

    def compute(self):
        """Every array in the driver's order."""
        fixed, options = (self.x, self.mean, self.var, self.gamma), {"axis": 1, "eps": EPS}
        y, cache = cbn.batch_norm_forward(self.x, self.gamma, self.beta, **options)
        backward = cbn.batch_norm_inference_backward(self.dy, *fixed, **options)
        return [
            *(y, cache.mean, cache.var, cache.invstd),
            *cbn.batch_norm_backward(self.dy, cache),
            cbn.batch_norm_inference(*fixed, self.beta, **options),
            *backward,
        ]


@pytest.fixture(scope="module")
def spatial() -> dict:
    return {case: Spatial(*case) for case in SPATIAL_CASES}


@pytest.fixture(scope="module")
def vectors(arguments, spatial, tmp_path_factory) -> Path:
    """The file that the driver reads."""
    path = tmp_path_factory.mktemp("vectors") / "input"
    with path.open("wb") as file:
        for (shape, dtype), a in chain(arguments.items(), spatial.items()):
            outer, channels, inner = (*shape, 1)[:3]
            file.write(np.array([DTYPES.index(dtype), outer, channels, inner], "<i8").tobytes())
            file.write(np.array(EPS, "<f8").tobytes())
            for name in chain(VECTORS, MATRICES):
                file.write(getattr(a, name).tobytes())
    return path


@pytest.fixture(scope="module")
def here(arguments, spatial) -> dict[str, np.ndarray]:
    """What the installed cbn computes on this machine."""
    with np.errstate(all="ignore"):
        results = {name_of(case): compute(a) for case, a in arguments.items()}
        more = {case: dict(enumerate(a.compute())) for case, a in spatial.items()}
    return {
        f"{case} {key}": a for case, named in (results | more).items() for key, a in named.items()
    }


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("arm_tier", tiers_of("aarch64"))
def test_emulated(arm_tier, threads, tools, driver, vectors, here, tmp_path):
    output = tmp_path / "output"
    with mock.patch.dict(os.environ, CBN_ISA=arm_tier):
        told = run(tools[1], driver, threads, vectors, output)
    assert told.split() == [arm_tier, "openmp"]
    found, start = output.read_bytes(), 0
    for name, expected in here.items():
        array = np.frombuffer(found, expected.dtype, expected.size, start)
        start += expected.nbytes
        assert digest(array.reshape(expected.shape)) == digest(expected), name
    assert start == len(found)
    assert len(here) == 15 * len(CASES) + 11 * len(SPATIAL_CASES)
