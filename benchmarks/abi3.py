"""What the limited API (abi3) costs a small call: ``python benchmarks/abi3.py``, in about a minute.

Builds the extension both ways from this source, and times each in turn.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    *("cbn", "src_c", "benchmarks", "licenses"),
    *("setup.py", "pyproject.toml", "README.md", "LICENSE"),
)
ROUNDS = 5

# What the limited API lacks, and what it has; the other allocator needs the GIL, which is held.
NOT_LIMITED = {"PyMem_Raw": "PyMem_", "PyBytes_AS_STRING": "PyBytes_AsString"}
LIMITED = """
core.define_macros.append(("Py_LIMITED_API", "0x030B0000"))
core.py_limited_api = True
setup("""

TIMER = """
import json, timeit
import numpy as np
import cbn

def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)

tiny, x, images = normal(2, 2), normal(32, 64), normal(4, 16, 4, 4)
gamma, beta, y = np.ones(64, np.float32), np.zeros(64, np.float32), np.empty_like(x)
cache = cbn.batch_norm_forward(x, gamma, beta)[1]
calls = {
    "forward, 2 x 2": lambda: cbn.batch_norm_forward(tiny, num_threads=1),
    "forward, 32 x 64": lambda: cbn.batch_norm_forward(x, gamma, beta, out=y, num_threads=1),
    "backward, 32 x 64": lambda: cbn.batch_norm_backward(x, cache, out=y, num_threads=1),
    "forward, 4 x 16 x 4 x 4": lambda: cbn.batch_norm_forward(images, axis=1, num_threads=1),
}
print(json.dumps({name: min(timeit.repeat(f, number=200, repeat=100)) / 2e-4
                  for name, f in calls.items()}))
"""


def build(folder: Path, limited: bool) -> None:
    """A copy of cbn in `folder`, with an extension of either kind."""
    source = folder / "source"
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True, parents=True)
        copy(ROOT / name, source / name)
    for old in source.glob("cbn/*.so"):
        old.unlink()
    if limited:
        setup_py = source / "setup.py"
        setup_py.write_text(setup_py.read_text().replace("\nsetup(", LIMITED))
        for part in (source / "cbn").glob("_*.p[yx][xi]"):
            text = part.read_text()
            for name, other in NOT_LIMITED.items():
                text = text.replace(name, other)
            part.write_text(text)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=source, check=True)


def times(folder: Path) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": str(folder / "source")}
    command = [sys.executable, "-P", "-c", TIMER]
    run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout)


def main() -> None:
    with tempfile.TemporaryDirectory() as temp:
        folders = {kind: Path(temp, kind) for kind in ("version", "abi3")}
        for kind, folder in folders.items():
            build(folder, limited=kind == "abi3")
        rounds = [{kind: times(folder) for kind, folder in folders.items()} for _ in range(ROUNDS)]
    print("| call | own version, us | abi3, us | ratio |\n|---|---|---|---|")
    for name in rounds[0]["abi3"]:
        own, abi3 = (statistics.median(r[kind][name] for r in rounds) for kind in folders)
        print(f"| {name} | {own:.2f} | {abi3:.2f} | {abi3 / own:.3f} |")


if __name__ == "__main__":
    main()
