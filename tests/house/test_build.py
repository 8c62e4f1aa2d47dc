"""setup.py: what a build compiles, what it keeps, and which tiers it makes."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREE = ("cbn", "src_c", "benchmarks", "setup.py", "pyproject.toml", "README.md")

pytestmark = pytest.mark.skipif(
    os.name == "nt", reason="CC does not choose the compiler on Windows"
)


@pytest.fixture(scope="module")
def setup():
    """The names of setup.py, which sets nothing up here."""
    with mock.patch("setuptools.setup"):
        return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def included(setup, source):
    return {path.name for path in setup["with_includes"](source)}


def test_a_tier_is_made_of_its_kernels_and_the_rest_is_not(setup, in_root):
    tier = included(setup, "src_c/isa/baseline_f32.c")
    assert {"baseline_f32.c", "map.h", "f32.h", "half.h", "stream.h", "cbn.h"} <= tier
    assert "f32_wide.h" in included(setup, "src_c/isa/wide.c") - tier
    plan = included(setup, "src_c/plan.c")
    assert {"plan.c", "plan.h", "kernels.h"} <= plan and "map.h" not in plan


def test_the_tiers_are_those_that_the_variable_lists(setup, monkeypatch):
    known = setup["known_tiers"]()
    for text, chosen in (("", known), (known[-1], known[-1:]), (f" {known[0]}, ", known[:1])):
        monkeypatch.setenv("CBN_TIERS", text)
        assert setup["chosen_tiers"]() == chosen
        left_out = {f"CBN_WITHOUT_{tier.upper()}" for tier in known if tier not in chosen}
        assert {name for name, _ in setup["without_tiers"]()} == left_out
    monkeypatch.setenv("CBN_TIERS", "baseline,sse9")
    with pytest.raises(setup["OptionError"], match="CBN_TIERS: expected a list of baseline.*sse9"):
        setup["chosen_tiers"]()


def test_what_is_kept_is_made_once_and_the_oldest_goes_first(setup, tmp_path):
    kept, made = setup["Kept"](tmp_path), []

    def make(folder):
        made.append(Path(folder, "new.o"))
        made[-1].write_text(str(len(made)))
        return made[-1]

    first = kept.get("a", ".o", ["text", "flags"], make)
    assert kept.get("a", ".o", ["text", "flags"], make) == first and len(made) == 1
    assert kept.get("b", ".o", ["text", "flags"], make) != first
    os.utime(first, (0, 0))
    for number in range(kept.MOST):
        kept.get("a", ".o", ["text", number], make)
    assert not Path(first).exists()
    assert len(list(tmp_path.glob("a-*.o"))) == kept.MOST
    assert {path.suffix for path in tmp_path.iterdir()} == {".o"}


@pytest.mark.slow
def test_a_build_compiles_what_has_changed(tmp_path):
    """One tier, not optimized so as to be done soon."""
    tree, compiler = tmp_path / "tree", tmp_path / "cc"
    ignored = shutil.ignore_patterns(
        "*.so", "build", "__pycache__", "_build_config.py", "*.egg-info"
    )
    tree.mkdir()
    for name in TREE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name, **({"ignore": ignored} if copy is shutil.copytree else {}))
    compiler.write_text('#!/bin/sh\nexec cc "$@" -O0\n')
    compiler.chmod(0o755)
    kept = tmp_path / "kept"
    variables = {"CC": str(compiler), "CBN_TIERS": "baseline", "CBN_OBJECTS": str(kept)}
    variables |= {"CBN_WERROR": "", "CIBUILDWHEEL": "0", "PYTHONPATH": ""}

    def compiled():
        before = set(kept.glob("*.o"))
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        run = subprocess.run(
            command, cwd=tree, env=os.environ | variables, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        return {path.name.partition("-")[0] for path in set(kept.glob("*.o")) - before}

    def edit(name, comment):
        with (tree / name).open("a") as file:
            file.write(comment)

    everything = compiled()
    assert {"baseline_f32", "baseline_f64", "wide", "_core", "_floor", "plan"} <= everything
    assert compiled() == set()
    edit("cbn/_core.pyx", "\n\n_EDITED = 1\n")
    assert compiled() == {"_core"}
    edit("src_c/kernels/map.h", "\n/* edited */\n")
    assert compiled() == {"baseline_f32", "baseline_f64", "wide"}
    edit("src_c/plan.c", "\n/* edited */\n")
    assert compiled() == {"plan"}
    variables["CFLAGS"] = "-DCBN_ANYTHING"
    assert compiled() == everything
    code = "import cbn; print(cbn.show_runtime('dicts')['isa']['built'], cbn.__file__)"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split()[0] == "['baseline']" and str(tree) in shown.stdout
