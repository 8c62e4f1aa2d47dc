"""Which ISA tiers must run on this machine."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

X86_FLAGS = {
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx2", "fma", "f16c", *(f"avx512{part}" for part in ("f", "cd", "bw", "dq", "vl"))},
}


def cpu_tiers() -> list[str]:
    """The tiers of this CPU by the system's account, in which cbn has no part."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return ["baseline", "neon"]
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    line = re.search(r"^flags\s*:(.*)$", text, flags=re.MULTILINE)
    flags = set(line[1].split()) if line else set()
    return ["baseline", *(tier for tier, needs in X86_FLAGS.items() if needs <= flags)]


def required_tiers() -> list[str]:
    """The tiers that must run: those CBN_REQUIRED_ISA lists, else those of the CPU."""
    named = os.environ.get("CBN_REQUIRED_ISA")
    return named.split(",") if named else cpu_tiers()
