"""BatchNormCache: what the derivatives need to know of a forward call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbn._core import CacheFields


@dataclass(frozen=True, slots=True)
class ForwardOptions:
    """What a forward call was given beyond x, gamma and beta."""

    mask: NDArray[np.bool_] | None = None
    """As broadcast to x with a channel axis of size 1."""
    positions: NDArray[np.intp] | None = None
    """Those that take part, counted in the order of the axes; None for all."""
    weight: NDArray[np.float64] | None = None
    """Of a position, shaped as mask."""
    residual: NDArray | None = None
    relu: bool = False
    beta: NDArray[np.float64] | None = None
    in_place: bool = False
    """x was overwritten by y."""
    groups: tuple[tuple[slice, BatchNormCache], ...] = ()
    """Parts of axis 0 that were normalized by themselves, and their caches."""

    @property
    def any_positions(self) -> bool:
        return self.positions is None or self.positions.size > 0

    @property
    def plain(self) -> bool:
        """Whether backward is what it is without them."""
        if self is NO_OPTIONS:
            return True
        arrays = self.mask is not None or self.weight is not None or self.residual is not None
        return not (arrays or self.relu or self.in_place or self.groups)


NO_OPTIONS = ForwardOptions()


class BatchNormCache(CacheFields):
    """What the derivatives need to know of a forward call.

    Attributes
    ----------
    x : ndarray
        The input, not a copy of it: to change x between forward and backward is the caller's
        error. When the output was written over x (``out=x``) it is y, from which backward then
        works.
    mean, var, invstd : ndarray of float64, shape (D,)
        Mean, biased variance and 1/sqrt(var + eps), those of the batch or those given.
    mean_low : ndarray of float64, shape (D,)
        What mean leaves out: mean + mean_low is the mean to twice float64's precision.
    count : int or float
        Values per channel, N, without masked ones; the sum of the weights if there are any; inf for
        given statistics, which x does not move.
    gamma : ndarray or None
        The scale as given.
    eps : float
    axis : int
        The channel axis, counted from the front.
    """

    __slots__ = ()

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
