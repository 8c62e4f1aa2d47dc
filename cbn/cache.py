"""BatchNormCache: what the derivatives need to know of a forward call."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


class BatchNormCache:
    """What the derivatives need to know of a forward call.

    Attributes
    ----------
    x : ndarray
        The input, not a copy of it: to change x between forward and backward is the caller's
        error. Only when the output was written over x (``out=x``) is it a copy.
    mean, var, invstd : ndarray of float64, shape (D,)
        Mean, biased variance and 1/sqrt(var + eps), those of the batch or those given.
    mean_low : ndarray of float64, shape (D,)
        What mean leaves out: mean + mean_low is the mean to twice float64's precision.
    count : int or float
        Values per channel, N; inf for given statistics, which x does not move.
    gamma : ndarray or None
        The scale as given.
    eps : float
    axis : int
        The channel axis, counted from the front.
    """

    __slots__ = (
        *("_beta_dtype", "_gamma", "_gamma_dtype", "_rows", "_stats"),
        *("axis", "count", "eps", "gamma", "x"),
    )

    def __init__(
        self,
        x: NDArray,
        rows: NDArray,
        stats: NDArray[np.float64],
        gamma64: NDArray[np.float64] | None,
        gamma: NDArray | None,
        beta: NDArray | None,
        eps: float,
        axis: int,
        fixed: bool = False,
    ) -> None:
        self.x = x
        self.gamma = gamma
        self.eps = eps
        self.axis = axis
        self.count = math.inf if fixed else rows.shape[0]
        self._rows = rows
        self._stats = stats  # read-only, for mean *= 0.9 would be silent
        self._gamma = gamma64
        self._gamma_dtype = None if gamma is None else gamma.dtype
        self._beta_dtype = None if beta is None else beta.dtype

    @property
    def mean(self) -> NDArray[np.float64]:
        return self._stats[0]

    @property
    def mean_low(self) -> NDArray[np.float64]:
        return self._stats[1]

    @property
    def var(self) -> NDArray[np.float64]:
        return self._stats[2]

    @property
    def invstd(self) -> NDArray[np.float64]:
        return self._stats[3]

    def __repr__(self) -> str:
        return (
            f"BatchNormCache(x: {self.x.dtype} {self.x.shape}, axis={self.axis}, eps={self.eps},"
            f" count={self.count})"
        )
