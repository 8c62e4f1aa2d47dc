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


def merge(
    count1: float, stats1: NDArray[np.float64], count2: float, stats2: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean, mean_low and var of both of two disjoint sets, neither empty: equation (44)."""
    count = count1 + count2
    share1, share2 = count1 / count, count2 / count
    (mean1, low1, var1), (mean2, low2, var2) = stats1[:3], stats2[:3]
    with np.errstate(over="ignore", invalid="ignore"):
        d = (mean2 - mean1) + (low2 - low1)
        mean, low = two_sum(mean1, low1 + d * share2)
        if np.isinf(d).any():  # too far apart for a difference, not for a mean
            mean = np.where(np.isinf(d), mean1 * share1 + mean2 * share2, mean)
            low = np.where(np.isinf(d), 0, low)
        var = var1 * share1 + var2 * share2 + (d * share1) * (d * share2)
    return np.array([mean, low, var])
