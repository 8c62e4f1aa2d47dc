"""What src_c/isa/tiers.toml says of the ISA tiers, and which must run on this machine."""

from __future__ import annotations

import os
import platform
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIERS = tomllib.loads((ROOT / "src_c" / "isa" / "tiers.toml").read_text(encoding="utf-8"))
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def tiers_of(machine: str) -> list[str]:
    """The tiers that are built for a processor family, slowest first."""
    return [name for name, tier in TIERS.items() if tier["machine"] in ("any", machine)]


def cpu_flags(cpuinfo: str) -> set[str]:
    """What the first CPU has, of the text of /proc/cpuinfo; ARM has other words than x86."""
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, flags=re.MULTILINE)
    return set(line[1].split()) if line else set()


def cpu_tiers() -> list[str]:
    """The tiers of this CPU by the system's account, in which cbn has no part."""
    machine = platform.machine().lower()
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpu_flags(cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else "")
    return [
        tier
        for tier in tiers_of(MACHINES.get(machine, machine))
        if flags.issuperset(TIERS[tier]["cpu"])
    ]


def required_tiers() -> list[str]:
    """The tiers that must run: those CBN_REQUIRED_ISA lists, else those of the CPU."""
    named = os.environ.get("CBN_REQUIRED_ISA")
    return named.split(",") if named else cpu_tiers()
