"""Time ``cbn normalize`` on a large file beside copies of it, all from a warm page cache.

Run ``python benchmarks/normalize_speed.py [FOLDER]``: they take turns, and each one's fastest turn
counts, since whatever else the machine does only slows them down.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CHANNELS, PART_ROWS = 128, 4096


def turn(command: list[str], output: Path) -> tuple[float, float, float]:
    """Seconds, seconds of processors, and peak memory in MB."""
    output.unlink(missing_ok=True)
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    taken = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} has failed")
    return taken, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", nargs="?", help="where to put the files (default: a temporary one)"
    )
    parser.add_argument("--megabytes", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        x, out = Path(folder, "x.npy"), Path(folder, "out.npy")
        rows = options.megabytes * 1_000_000 // (4 * CHANNELS)
        with open(x, "wb") as file:  # by parts: a large parent makes its children look large
            facts = {"descr": "<f4", "fortran_order": False, "shape": (rows, CHANNELS)}
            np.lib.format.write_array_header_1_0(file, facts)
            rng = np.random.default_rng(0)
            for first in range(0, rows, PART_ROWS):
                size = min(PART_ROWS, rows - first), CHANNELS
                file.write(rng.standard_normal(size, np.float32))
        copy = f"import shutil; shutil.copyfile({str(x)!r}, {str(out)!r})"
        commands = {
            "cp": [shutil.which("cp"), str(x), str(out)],
            "shutil.copyfile": [sys.executable, "-c", copy],
            "cbn normalize": [
                sys.executable,
                "-P",
                "-m",
                "cbn",
                "normalize",
                str(x),
                "-o",
                str(out),
            ],
        }
        turns = {name: [] for name in commands if commands[name][0]}
        for _ in range(options.turns):
            for name, taken in turns.items():
                taken.append(turn(commands[name], out))
        load, size = os.getloadavg()[0], x.stat().st_size
    print(f"{size / 1e9:.2f} GB, {os.cpu_count()} cores, load {load:.1f}, {options.turns} turns\n")
    print("| | s | CPU s | GB/s | of the copy's speed | peak MB |\n|---|---|---|---|---|---|")
    fastest = {
        name: [min(values) for values in zip(*taken, strict=True)] for name, taken in turns.items()
    }
    copied = next(iter(fastest.values()))[0]
    for name, (taken, cpu, _) in fastest.items():
        peak = max(memory for _, _, memory in turns[name])
        speed = f"{size / taken / 1e9:.2f} | {copied / taken:.0%}"
        print(f"| {name} | {taken:.2f} | {cpu:.2f} | {speed} | {peak:.0f} |")


if __name__ == "__main__":
    main()
