"""What machine and which versions a table of figures belongs to."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cbn
from cbn.cli._peers import PEERS

LAST_LEVEL_CACHE = 32 << 20


def facts(peers: Sequence[str]) -> dict[str, Any]:
    """The facts by name; versions of cbn, Python, NumPy and the peers."""
    runtime, config = cbn.show_runtime(mode="dicts"), cbn.show_config(mode="dicts")
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "last_level_cache": last_level_cache(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(terse=True),
        "threads": runtime["threads"],
        "isa": runtime["isa"]["chosen"],
        "openmp": runtime["openmp"]["enabled"],
        "compiler": config["compiler"]["version"],
        "versions": {
            "cbn": runtime["version"],
            "python": runtime["python"],
            **{name: PEERS[name].version() for name in dict.fromkeys(("numpy", *peers))},
        },
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def last_level_cache() -> int:
    """Its bytes, 32 MiB where the system does not say."""
    sizes = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, size = ((folder / name).read_text().strip() for name in ("level", "size"))
            sizes[int(level)] = int(size.removesuffix("K")) << 10
        except (OSError, ValueError):
            continue
    return sizes[max(sizes)] if sizes else LAST_LEVEL_CACHE
