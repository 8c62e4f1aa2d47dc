"""The float64 arithmetic on statistics: what src_c/channels.c does to blocks, for whole batches.

Statistics are arrays whose rows are mean, mean_low and var, and maybe invstd: the mean is
mean + mean_low, so that merging many blocks far from zero loses nothing that the variance needs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def two_sum(a: NDArray, b: NDArray) -> tuple[NDArray, NDArray]:
    """a + b as the nearest number and what it leaves out (Knuth's two-sum), NaN past infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = a + b
        b_in_total = total - a
        return total, (a - (total - b_in_total)) + (b - b_in_total)


def inverse_std(var: NDArray, eps: float) -> NDArray[np.float64]:
    """1 / sqrt(var + eps), 0 where that is 0: equation (3)."""
    std = np.sqrt(np.add(var, eps, dtype=np.float64))
    return np.divide(1, std, out=np.zeros_like(std), where=std != 0)
