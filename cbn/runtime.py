"""Threads, and what this copy of cbn is and does: show_config, show_runtime."""

from __future__ import annotations

import contextlib
import contextvars
import json
import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from cbn import _check, _core
from cbn._build_config import CONFIG
from cbn._version import __version__

_VARIABLES = ("CBN_NUM_THREADS", "CBN_ISA", "OMP_NUM_THREADS")


def _tiers() -> tuple[list[str], list[str]]:
    """Names of the ISA tiers of this build, and of those this CPU runs; slowest first."""
    tiers = list(iter(map(_core.isa_tier, range(8)).__next__, None))
    return [name for name, _ in tiers], [name for name, supported in tiers if supported]


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """A variable of the environment that is wrong: an error of the import, or of the command."""
    try:
        yield
    except ValueError as error:
        # python -m sets argv[0] to "-m" until it has found the package
        if Path(sys.argv[0] if sys.argv else "").stem not in ("cbn", "-m"):
            raise
        print(f"cbn: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


with _settings():
    if _core.choose_isa() is not None:
        _check.isa(os.environ.get("CBN_ISA", ""), *_tiers())


def _cgroup_cpus() -> float:
    """CPUs that the control group grants, inf when it does not say (cgroup v2, then v1)."""
    with contextlib.suppress(OSError, ValueError):
        most, per = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.inf if most == "max" else int(most) / int(per)
    with contextlib.suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup/cpu")
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else math.inf
    return math.inf


def _machine_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    granted = _cgroup_cpus()
    return cpus if math.isinf(granted) else max(1, min(cpus, math.ceil(granted)))


# Read once: a look into os.environ costs as much as a small batch norm.
_environment_threads: int | None = None
with _settings():
    if os.environ.get("CBN_NUM_THREADS"):
        _environment_threads = _check.environment_threads(
            "CBN_NUM_THREADS", os.environ["CBN_NUM_THREADS"]
        )
_openmp_decides = bool(os.environ.get("OMP_NUM_THREADS"))
_limit = _machine_threads()

_global: int | None = None
_scoped: contextvars.ContextVar[int | None] = contextvars.ContextVar("cbn_threads", default=None)


def get_num_threads() -> int:
    """The number of threads that a call without ``num_threads=`` may use.

    The first that is set of: the innermost ``with num_threads(n)``, ``set_num_threads(n)``, the
    environment variable CBN_NUM_THREADS, OMP_NUM_THREADS; else the smallest of the CPUs this
    process may run on, the control group's quota rounded up, and OpenMP's own limit (so that
    threadpoolctl's limits hold). The environment is read when cbn is imported. Small arrays use
    fewer threads, down to one; so does a forked child, since OpenMP's threads do not survive
    fork(). No call uses more than 1024. GNU's OpenMP ends the process when the system cannot
    create a thread; a call with one thread never asks for any.

    Returns
    -------
    int

    Examples
    --------
    >>> import cbn
    >>> with cbn.num_threads(1):
    ...     cbn.get_num_threads()
    1
    """
    count = _scoped.get() or _global or _environment_threads
    if count is not None:
        return count
    openmp_threads = _core.openmp()[1]
    return openmp_threads if _openmp_decides else min(_limit, openmp_threads)


def resolve_threads(num_threads: int | None) -> int:
    """The threads for one call: its argument if given, else get_num_threads()."""
    return get_num_threads() if num_threads is None else _check.threads(num_threads)


def set_num_threads(n: int) -> None:
    """Set the number of threads for all calls of this process.

    Parameters
    ----------
    n : int
        At least 1. Results do not depend on it to the last bit.

    Raises
    ------
    ValueError, TypeError
        If n is less than 1, or not an integer.
    """
    global _global
    _global = _check.threads(n, "n")


@contextlib.contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Use n threads inside a ``with`` block, in this Python thread or task only.

    Parameters
    ----------
    n : int
        At least 1.
    """
    token = _scoped.set(_check.threads(n, "n"))
    try:
        yield
    finally:
        _scoped.reset(token)


def get_include() -> str:
    """The folder of cbn.h and cbn_api.h, for extension modules that use cbn's C functions.

    Returns
    -------
    str

    Examples
    --------
    >>> import os, cbn
    >>> sorted(os.listdir(cbn.get_include()))
    ['cbn.h', 'cbn_api.h']
    """
    return str(Path(__file__).parent / "include")


def _show(info: dict[str, Any], mode: str) -> dict[str, Any] | None:
    _check.mode(mode)
    if mode == "dicts":
        return info
    print(json.dumps(info, indent=2))
    return None


@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
@overload
def show_config(mode: Literal["stdout"] = ...) -> None: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show how this copy of cbn was built: compiler, flags of each ISA tier, OpenMP.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print it as JSON, or return it.

    Returns
    -------
    dict or None
    """
    return _show({"version": __version__, **CONFIG}, mode)


@overload
def show_runtime(mode: Literal["dicts"]) -> dict[str, Any]: ...
@overload
def show_runtime(mode: Literal["stdout"] = ...) -> None: ...
def show_runtime(mode: str = "stdout") -> dict[str, Any] | None:
    """Show what cbn runs with here: threads, ISA tiers built, supported and chosen, environment.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print it as JSON, or return it.

    Returns
    -------
    dict or None
    """
    built, supported = _tiers()
    openmp_version, openmp_threads = _core.openmp()
    info = {
        "version": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "threads": get_num_threads(),
        "openmp": {
            "enabled": openmp_version > 0,
            "version": openmp_version,
            "max_threads": openmp_threads,
        },
        "isa": {"built": built, "supported": supported, "chosen": _core.chosen_isa()},
        "environment": {name: os.environ.get(name) for name in _VARIABLES},
    }
    return _show(info, mode)
