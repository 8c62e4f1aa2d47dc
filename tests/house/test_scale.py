"""docs/scale.md and the commands that made its figures."""

from __future__ import annotations

import doctest
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_of_the_page():
    failed, tried = doctest.testfile(str(ROOT / "docs" / "scale.md"), module_relative=False)
    assert tried > 5 and not failed


@pytest.mark.skipif(not shutil.which("cp"), reason="there is no cp")
def test_the_speed_of_files(tmp_path):
    script = ROOT / "benchmarks" / "normalize_speed.py"
    out = run(script, tmp_path, "--megabytes", 5, "--turns", 1)
    assert all(f"| {name} |" in out for name in ("cp", "shutil.copyfile", "cbn normalize"))
    assert not list(tmp_path.iterdir())


def test_the_scaling_of_ranks():
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install --group mpi")
    beside = Path(sys.executable).parent
    if not (shutil.which("mpiexec", path=beside) or shutil.which("mpiexec")):
        pytest.skip("there is no mpiexec: pip install --group mpi")
    out = run(ROOT / "benchmarks" / "mpi_scaling.py", "--rows", 600, "--rounds", 1)
    assert out.count("| 600x") == 9 and "4096 ranks" in out
