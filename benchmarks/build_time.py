"""Measure how long `pip install .` takes, for this folder and for an earlier revision in turn.

    python benchmarks/build_time.py BASE [--repeat 3]

Each turn clones the repository anew, with an empty virtual environment and no ccache, and installs

    clean      the clone as it is
    touched    again, after a new time stamp for cbn/_core.pyx
    cython     again, after an edit of cbn/_core.pyx
    kernel     again, after an edit of src_c/kernels/map.h

The table has the median seconds, the share of BASE's time in the same run, and the size of the
compiled module. Uncommitted changes of this folder are measured too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EDITS = {
    "clean": None,
    "touched": ("cbn/_core.pyx", ""),
    "cython": ("cbn/_core.pyx", "\n\n# An edit.\n"),
    "kernel": ("src_c/kernels/map.h", "\n/* An edit. */\n"),
}


def copy(revision: str | None, folder: Path) -> None:
    """A clone at the revision, or with None the files of this folder as git sees them."""
    subprocess.run(["git", "clone", "-q", ROOT, folder], check=True)
    if revision is not None:
        subprocess.run(["git", "-C", folder, "checkout", "-q", revision], check=True)
        return
    changed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--modified", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, changed.stdout.split("\0")):
        target = folder / name
        if (ROOT / name).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
        else:
            target.unlink(missing_ok=True)


def install_times(revision: str | None) -> tuple[dict[str, float], int]:
    """Seconds of each install of one clone, and bytes of the module that the first one made."""
    with tempfile.TemporaryDirectory() as temp:
        clone, environment = Path(temp, "cbn-source"), Path(temp, "environment")
        copy(revision, clone)
        subprocess.run([sys.executable, "-m", "venv", "--upgrade-deps", environment], check=True)
        variables = {k: v for k, v in os.environ.items() if not k.startswith("CBN_")}
        variables["CCACHE_DISABLE"] = "1"
        pip = environment / "bin" / "pip"
        subprocess.run([pip, "install", "-q", "numpy>=2.0"], check=True)
        seconds, size = {}, 0
        for name, edit in EDITS.items():
            if edit is not None:
                path = clone / edit[0]
                path.write_text(path.read_text(encoding="utf-8") + edit[1], encoding="utf-8")
            command = [pip, "install", "-q", "--force-reinstall", "--no-deps", "."]
            start = time.perf_counter()
            subprocess.run(command, cwd=clone, env=variables, check=True)
            seconds[name] = time.perf_counter() - start
            if not size:
                (module,) = environment.rglob("site-packages/cbn/_core*.so")
                size = module.stat().st_size
        return seconds, size


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="a git revision to compare with")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each (default: 3)")
    options = parser.parse_args()
    found = {"base": [], "new": []}
    sizes = {}
    for turn in range(options.repeat):
        for who, revision in (("base", options.base), ("new", None)):
            seconds, sizes[who] = install_times(revision)
            found[who].append(seconds)
            times = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
            print(f"turn {turn + 1}, {who}: {times}", flush=True)
    medians = {
        who: {name: statistics.median(turn[name] for turn in turns) for name in EDITS}
        for who, turns in found.items()
    }
    print(f"\n{'':10}{'base':>10}{'new':>10}{'share':>8}")
    for name in EDITS:
        base, new = medians["base"][name], medians["new"][name]
        share = new / medians["base"]["clean"]
        print(f"{name:10}{base:8.1f} s{new:8.1f} s{share:8.2f}")
    print(f"{'module':10}{sizes['base']:10}{sizes['new']:10}{sizes['new'] / sizes['base']:8.2f}")
    print("share: of the time that a clean install of base takes; module: bytes of _core*.so")
    return 0


if __name__ == "__main__":
    sys.exit(main())
