"""The examples run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name, folder, *arguments):
    """Run an example in an empty folder; return what it prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_linear_batchnorm(tmp_path):
    lines = run("linear_batchnorm.py", tmp_path).splitlines()
    errors = {line.split()[0]: float(line.split()[-1]) for line in lines[1:7]}
    assert set(errors) == {"W1", "b1", "gamma", "beta", "W2", "b2"}
    assert max(errors.values()) < 1e-5


@pytest.mark.slow
def test_jacobian(tmp_path):
    pytest.importorskip("matplotlib")
    out = run("jacobian.py", tmp_path, "--plot", "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    (line,) = [line for line in out.splitlines() if "eigenvalues" in line]
    assert float(line.split()[-1]) < 1e-12


def test_micro_batches(tmp_path):
    lines = run("micro_batches.py", tmp_path).splitlines()[2:]
    errors = {line.split()[0]: [float(word) for word in line.split()[1:]] for line in lines}
    assert set(errors) == {"W1", "gamma", "beta", "W2"}
    for merged, own in errors.values():
        assert merged < 1e-12 < 1e-3 < own


def test_torch_convert(tmp_path):
    pytest.importorskip("torch")
    lines = run("torch_convert.py", tmp_path, "--seconds", "0", "--threads", "1").splitlines()
    times = [float(text) for line in lines[2:5] for text in line.split()[-3:]]
    assert len(times) == 9 and all(0 < time for time in times)
    theirs, ours = zip(*(map(float, line.split()[1:]) for line in lines[-4:]), strict=True)
    assert max(ours) < 1e-6 < max(theirs)


def test_every_example_has_a_test():
    assert all(f"test_{path.stem}" in globals() for path in EXAMPLES.glob("*.py"))
