"""Fixtures: random numbers, shapes and dtypes, fresh interpreters, ISA tiers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from cases import DTYPES, PARAMETERS, SHAPES, generator
from cbn import show_config
from tiers import required_tiers

TESTS = Path(__file__).resolve().parent
VARIABLES = ("CBN_NUM_THREADS", "CBN_ISA", "OMP_NUM_THREADS")

# ci is derandomized: a change fails for what it changes and not by luck. deep takes hours: chosen
# by --hypothesis-profile=deep, or CBN_HYPOTHESIS=deep.
settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.register_profile("deep", max_examples=1_000_000, deadline=None, database=None)
settings.load_profile(os.environ.get("CBN_HYPOTHESIS") or "ci")


def pytest_generate_tests(metafunc):
    if "tier" in metafunc.fixturenames:
        metafunc.parametrize("tier", required_tiers())


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a fresh interpreter on the installed cbn; of VARIABLES it sees those given.

    A library to preload comes behind those of these tests, of which a sanitizer's must be first.
    """
    if "LD_PRELOAD" in environment:
        libraries = os.environ.get("LD_PRELOAD", ""), environment["LD_PRELOAD"]
        environment["LD_PRELOAD"] = " ".join(filter(None, libraries))
    inherited = {name: text for name, text in os.environ.items() if name not in VARIABLES}
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        env=inherited | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(name="run_python", scope="session")
def _run_python():
    return run_python


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """A function from a name in tests/shims to the path of the library that it makes of it."""
    compiler = show_config("dicts")["compiler"]["command"].split()
    folder = tmp_path_factory.mktemp("shims")

    def library(name: str) -> str:
        path = folder / f"{name}.so"
        if not path.exists():
            source = str(TESTS / "shims" / f"{name}.c")
            subprocess.run([*compiler, "-shared", "-fPIC", source, "-o", path, "-ldl"], check=True)
        return str(path)

    return library


@pytest.fixture(scope="session")
def isa_results(tmp_path_factory):
    """A function from a tier to what isa_cases.py computes on it, in a process of its own."""
    known = {}

    def results(tier: str) -> dict[str, np.ndarray]:
        if tier not in known:
            path = tmp_path_factory.mktemp("isa") / f"{tier}.npz"
            run = run_python(str(TESTS / "isa_cases.py"), str(path), CBN_ISA=tier)
            assert run.returncode == 0, run.stderr
            with np.load(path) as arrays:
                known[tier] = dict(arrays)
        return known[tier]

    return results


@pytest.fixture
def rng(request):
    """Random numbers of the test's own."""
    return generator(request.node.name)


@pytest.fixture(params=DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def dtype(request):
    return request.param


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request):
    return request.param


@pytest.fixture(params=PARAMETERS)
def parameters(request):
    """Which of gamma and beta are given."""
    return request.param
