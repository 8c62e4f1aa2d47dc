"""Fixtures: random numbers, shapes and dtypes, fresh interpreters, ISA tiers; and the quick run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# OpenMP reads this when cbn is loaded. Threads that wait in a loop take the cores from other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
from cases import DTYPES, PARAMETERS, SHAPES, generator
from hypothesis import settings
from tiers import required_tiers

from cbn import show_config

SUPPORT = Path(__file__).resolve().parent / "support"
VARIABLES = ("CBN_NUM_THREADS", "CBN_ISA", "OMP_NUM_THREADS")

# Hypothesis is derandomized: a change fails for what it changes and not by luck. The quick run
# takes a quarter of the examples; deep takes hours and is chosen by CBN_HYPOTHESIS=deep.
settings.register_profile("quick", max_examples=25, derandomize=True, deadline=None, database=None)
settings.register_profile("all", derandomize=True, deadline=None, database=None)
settings.register_profile("deep", max_examples=1_000_000, deadline=None, database=None)


def pytest_addoption(parser):
    parser.addoption(
        "--all", action="store_true", help="run the tests that are marked slow as well"
    )


def pytest_configure(config):
    profile = "all" if config.option.all else "quick"
    settings.load_profile(os.environ.get("CBN_HYPOTHESIS") or profile)


def pytest_report_header(config):
    return (
        f"cbn: {'all tests' if config.option.all else 'quick run, --all runs the slow tests too'}"
    )


def pytest_collection_modifyitems(config, items):
    """Leave the slow tests out, but for those of a file that the command line names."""
    if config.option.all or config.option.markexpr:
        return
    named = {Path(argument.partition("::")[0]).resolve() for argument in config.args}
    slow = [item for item in items if item.get_closest_marker("slow") and item.path not in named]
    if slow:
        config.hook.pytest_deselected(items=slow)
        left_out = set(slow)
        items[:] = [item for item in items if item not in left_out]


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
    path = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")]))
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
    """A function from a name in support/shims to the path of the library that it makes of it."""
    compiler = show_config("dicts")["compiler"]["command"].split()
    folder = tmp_path_factory.mktemp("shims")

    def library(name: str) -> str:
        path = folder / f"{name}.so"
        if not path.exists():
            source = str(SUPPORT / "shims" / f"{name}.c")
            subprocess.run([*compiler, "-shared", "-fPIC", source, "-o", path, "-ldl"], check=True)
        return str(path)

    return library


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
