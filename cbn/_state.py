"""Changing arrays that outlive a call - running statistics, a layer's parameters - in one piece."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbn import _core

# Held from reading a running statistic to writing it, so that no update is lost. Reentrant, since a
# signal handler may call the layer as well; a fork waits for it, so that no child finds it held.
STATE_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=STATE_LOCK.acquire,
        after_in_parent=STATE_LOCK.release,
        after_in_child=STATE_LOCK.release,
    )


def write(targets: Sequence[NDArray], values: Sequence[ArrayLike]) -> None:
    """Write each of the values into its target, of at most one dimension: all of them or none.

    What can fail comes first; then no line of Python runs until all is written, so neither an
    interrupt nor another thread comes between.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        ready = [
            np.ascontiguousarray(value).astype(target.dtype, copy=False)
            for target, value in zip(targets, values, strict=True)
        ]
    deque(map(_core.put, targets, ready), maxlen=0)
