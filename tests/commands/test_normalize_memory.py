"""cbn normalize: bounded memory for files of any size."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    for path in tmp_path.iterdir():  # pytest would keep them for a while
        path.unlink()


def peak(*argv):
    """Peak memory of the command in MB; by getrusage it would be no less than this process's."""
    code = (
        "import re, sys; from cbn.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "print(re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1])\n"
        "sys.exit(status)"
    )
    arguments = [sys.executable, "-c", code, "normalize", *argv]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    return int(run.stdout.splitlines()[-1]) / 1e3


def sparse(shape, dtype, order="C"):
    """A .npy file of zeros that takes no room."""
    with open("x.npy", "wb") as file:
        descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
        facts = {"descr": descr, "fortran_order": order == "F", "shape": shape}
        np.lib.format.write_array_header_1_0(file, facts)
        file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)


SIZES = {
    "rows": ((800_000, 100), "f4", "C"),
    "long rows": ((40, 2_000_000), "f4", "C"),
    "columns": ((8_000_000, 10), "f4", "F"),
    "integers": ((40_000_000, 1), "i8", "C"),
}
has_status = pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc/self/status"
)


@pytest.mark.slow
@has_status
@pytest.mark.parametrize(("shape", "dtype", "order"), SIZES.values(), ids=SIZES)
def test_memory_does_not_grow_with_the_file(shape, dtype, order):
    sparse(shape, dtype, order)  # 320 MB
    statistics = 24 * shape[1] / 1e6
    assert peak("x.npy", "--stats", "s.npz") < 200 + 20 * statistics
    assert peak("x.npy", "-o", "y.npy", "--apply", "s.npz") < 200 + 20 * statistics


@has_status
@pytest.mark.skipif("CBN_LARGE_FILES" not in os.environ, reason="CBN_LARGE_FILES=1 writes 4 GB")
def test_four_gigabytes():
    sparse((10_000_000, 100), "f4")
    assert peak("x.npy", "--in-place") < 200
