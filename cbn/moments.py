"""Moments of a batch as mergeable values, and the running statistics made of them; docs/math.md.

Design: a Moments is a few numbers a channel in float64, the variance instead of the sum of squares
m2, since m2 overflows sooner and is one product away. The mean is a sum of two numbers, so that
merging many blocks far from zero loses nothing that the variance needs.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbn import _check, _check_state, _core, _passes
from cbn._mergeable import Mergeable
from cbn._state import STATE_LOCK, write
from cbn._statistics import inverse_std
from cbn.cache import BatchNormCache
from cbn.runtime import resolve_threads

# A float of its own, by which a momentum that was given is told from the default.
DEFAULT_MOMENTUM = float("0.1")


class Moments(Mergeable):
    """Count, mean and variance of a set of rows; disjoint sets merge exactly, equation (44).

    Parameters
    ----------
    count : int or float
        Rows, or the sum of their weights; >= 0.
    mean, m2 : array_like, shape (D,)
        Mean, and sum of the squared distances from it (>= 0), of any real floating dtype. With
        count 0 there are none, and zeros take their place.
    mean_low : array_like, shape (D,), optional
        What mean leaves out.

    Attributes
    ----------
    count : int or float
    mean, mean_low, m2 : ndarray of float64, shape (D,)
        Read-only; mean + mean_low is the mean to twice float64's precision.

    Raises
    ------
    ValueError, TypeError
        A wrong shape or dtype, a negative count or m2.

    Examples
    --------
    >>> import numpy as np, cbn
    >>> m = cbn.Moments.from_batch(np.array([[1.0], [3.0]]))
    >>> m.update(np.array([[8.0]]))
    Moments(count=3, mean=[4.], m2=[26.])
    >>> m.var(correction=1)
    array([13.])
    """

    __slots__ = ()
    _NAMES = ("mean", "mean_low", "var")

    def __init__(
        self, count: float, mean: ArrayLike, m2: ArrayLike, mean_low: ArrayLike | None = None
    ) -> None:
        count, mean, mean_low, m2 = _check_state.moments(count, mean, mean_low, m2)
        rows = np.zeros((3, len(mean)))
        if count:
            rows[0] = mean
            rows[1] = 0 if mean_low is None else mean_low
            rows[2] = m2
            rows[2] /= count
        self._set(count, rows)

    @classmethod
    def _of(cls, count: float, rows: NDArray[np.float64]) -> Moments:
        return super()._of(count, rows if count else np.zeros_like(rows))

    @classmethod
    def from_batch(
        cls,
        x: ArrayLike,
        axis: int | None = None,
        mask: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> Moments:
        """The moments of a batch, equation (43).

        Parameters
        ----------
        x, axis, mask, sample_weight, num_threads
            As for `batch_norm_forward`.

        Returns
        -------
        Moments

        Raises
        ------
        ValueError, TypeError
            As `batch_norm_forward`.
        """
        x = _check.real_array("x", x)
        axis = _check.batch(x, axis)
        mask = _check.mask(mask, x.shape, axis)
        weight = _check.sample_weight(sample_weight, mask, x.shape, axis)
        threads = resolve_threads(num_threads)
        count, stats = _passes.statistics(x, axis, mask, weight, threads)
        return cls._of(count, stats[:3])

    @classmethod
    def from_cache(cls, cache: BatchNormCache) -> Moments:
        """The moments of the batch of a training forward call, which has computed them.

        Parameters
        ----------
        cache : BatchNormCache
            As returned by `batch_norm_forward`.

        Returns
        -------
        Moments

        Raises
        ------
        ValueError
            A cache of given statistics.
        TypeError
            cache of another type.
        """
        _check.cache(cache, BatchNormCache)
        _check_state.of_batch(cache.count)
        return cls._of(cache.count, np.array([cache.mean, cache.mean_low, cache.var]))

    def update(
        self,
        x: ArrayLike,
        axis: int | None = None,
        mask: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> Moments:
        """Take in one more batch, as `from_batch` and ``merge`` do; returns self."""
        return self.merge(Moments.from_batch(x, axis, mask, sample_weight, num_threads))

    @classmethod
    def from_batches(
        cls, batches: Iterable[ArrayLike], axis: int | None = None, num_threads: int | None = None
    ) -> Moments:
        """The moments of all batches together: of data that is read, made or received by parts.

        Parameters
        ----------
        batches : iterable of array_like
            At least one; looked at once, one after the other, and not kept. Shapes may differ in
            all but the number of channels.
        axis, num_threads
            As for `batch_norm_forward`.

        Returns
        -------
        Moments

        Raises
        ------
        ValueError
            No batches, another number of channels, and as `from_batch`.
        TypeError
            As `from_batch`.

        Notes
        -----
        Batches are merged as a binary tree, so that errors grow with the logarithm of their number.

        Examples
        --------
        >>> import numpy as np, cbn
        >>> x = np.arange(12.0).reshape(6, 2)
        >>> cbn.Moments.from_batches(x[i : i + 2] for i in range(0, 6, 2))
        Moments(count=6, mean=[5. 6.], m2=[70. 70.])
        """
        return cls.merge_all(cls.from_batch(x, axis, num_threads=num_threads) for x in batches)

    def _merged(self, other: Moments) -> NDArray[np.float64]:
        if self.count == 0 or other.count == 0:
            return self._rows if other.count == 0 else other._rows
        rows = self._rows.copy()
        if rows.size:
            _core.merge_moments(rows, self.count, other._rows, other.count)
        return rows

    @property
    def mean(self) -> NDArray[np.float64]:
        return self._rows[0]

    @property
    def mean_low(self) -> NDArray[np.float64]:
        return self._rows[1]

    @property
    def m2(self) -> NDArray[np.float64]:
        with np.errstate(over="ignore"):
            m2 = self._rows[2] * self.count
        m2.flags.writeable = False
        return m2

    def var(self, correction: float = 0) -> NDArray[np.float64]:
        """The variance m2 / (count - correction).

        Parameters
        ----------
        correction : float
            0 for the biased variance, which normalizes; 1 for the unbiased estimate.

        Returns
        -------
        ndarray of float64, shape (D,)

        Raises
        ------
        ValueError
            If count <= correction.
        """
        correction = _check_state.correction(correction, self.count)
        with np.errstate(over="ignore"):
            return self._rows[2] * (self.count / (self.count - correction))

    def __repr__(self) -> str:
        return f"Moments(count={self.count}, mean={self.mean}, m2={self.m2})"


class BackwardSums(Mergeable):
    """The sums that backward needs, of one part of a batch; those of disjoint parts add up, (46).

    Parameters
    ----------
    count : int or float
        Values per channel; >= 0.
    sum_dy, sum_dy_xhat : array_like, shape (D,)
        Of any real floating dtype.

    Attributes
    ----------
    count : int or float
    sum_dy, sum_dy_xhat : ndarray of float64, shape (D,)
        Read-only; dbeta and dgamma of the rows seen.

    Raises
    ------
    ValueError, TypeError
        A wrong shape or dtype, a negative count.

    Examples
    --------
    >>> import numpy as np, cbn
    >>> x, dy = np.array([[1.0], [3.0], [8.0]]), np.array([[1.0], [0.0], [2.0]])
    >>> m = cbn.Moments.from_batch(x)
    >>> s = cbn.BackwardSums(0, [0.0], [0.0])
    >>> parts = slice(0, 2), slice(2, 3)
    >>> caches = [cbn.batch_norm_normalize(x[part], m)[1] for part in parts]
    >>> for part, cache in zip(parts, caches):
    ...     s = s.merge(cbn.BackwardSums.from_batch(dy[part], cache))
    >>> s.count, s.sum_dy
    (3, array([3.]))
    >>> dx, _, _ = cbn.batch_norm_backward_apply(dy[parts[0]], caches[0], s)
    >>> np.allclose(dx, cbn.batch_norm_backward(dy, cbn.batch_norm_forward(x)[1])[0][parts[0]])
    True
    """

    __slots__ = ()
    _NAMES = ("sum_dy", "sum_dy_low", "sum_dy_xhat", "sum_dy_xhat_low")

    def __init__(self, count: float, sum_dy: ArrayLike, sum_dy_xhat: ArrayLike) -> None:
        count, sum_dy, sum_dy_xhat = _check_state.backward_sums(count, sum_dy, sum_dy_xhat)
        zeros = np.zeros_like(sum_dy)
        self._set(count, np.array([sum_dy, zeros, sum_dy_xhat, zeros], np.float64))

    @classmethod
    def from_batch(
        cls, dy: ArrayLike, cache: BatchNormCache, num_threads: int | None = None
    ) -> BackwardSums:
        """The sums of one part of a batch.

        Parameters
        ----------
        dy : array_like, the part's shape
        cache : BatchNormCache
            Of the part, from `batch_norm_normalize` with the moments of the whole batch, or from
            `batch_norm_forward`.
        num_threads : int, optional

        Returns
        -------
        BackwardSums

        Raises
        ------
        ValueError, TypeError
            As `batch_norm_backward`.
        """
        _check.part_cache(cache, BatchNormCache)
        dy = _check.same_shape("dy", dy, cache.x.shape)
        sums = _passes.sums_of(dy, cache, resolve_threads(num_threads))
        return cls(_passes.values_of(cache.x, cache.axis, cache._options), sums.dy, sums.dy_xhat)

    def _merged(self, other: BackwardSums) -> NDArray[np.float64]:
        rows = self._rows.copy()
        for i in (0, 2) if rows.size else ():
            _core.merge_sums(rows[i], rows[i + 1], other._rows[i], other._rows[i + 1])
        return rows

    @property
    def sum_dy(self) -> NDArray[np.float64]:
        return self._read_only(0)

    @property
    def sum_dy_xhat(self) -> NDArray[np.float64]:
        return self._read_only(2)

    def _read_only(self, row: int) -> NDArray[np.float64]:
        total = self._rows[row] + self._rows[row + 1]
        total.flags.writeable = False
        return total

    def __repr__(self) -> str:
        return (
            f"BackwardSums(count={self.count}, sum_dy={self.sum_dy},"
            f" sum_dy_xhat={self.sum_dy_xhat})"
        )


def update_running_stats(
    running_mean: NDArray,
    running_var: NDArray,
    m: Moments,
    *,
    momentum: float | None = DEFAULT_MOMENTUM,
    correction: float = 1,
    skip_nonfinite: bool = False,
    decay: float | None = None,
    num_batches_tracked: int | None = None,
) -> bool:
    """Average in place, where momentum weighs the NEW value as in PyTorch, equation (47).

    ONNX, Keras and the course cs231n call by that name the weight of the old value: give that as
    ``decay``.

    ``running_mean = (1 - momentum) * running_mean + momentum * m.mean``, and running_var likewise
    with ``m.var(correction)``.

    Parameters
    ----------
    running_mean, running_var : ndarray of float16, bfloat16, float32 or float64, shape (D,)
        Written to, in their own dtypes; the arithmetic is float64.
    m : Moments
        Of the batch.
    momentum : float or None
        From 0 to 1; None is the plain average over all batches so far, equation (48).
    correction : float
        See `Moments.var`.
    skip_nonfinite : bool
        Leave both as they are if the mean or the variance of any channel is not finite, or not in
        their dtypes.
    decay : float, optional
        1 - momentum, in its place.
    num_batches_tracked : int, optional
        The number of batches, this one included; needed, and looked at, for momentum=None only.

    Returns
    -------
    bool
        Whether they were updated: not if the batch was skipped, or m.count is 0.

    Raises
    ------
    ValueError
        A wrong length, count <= correction, arrays that are read-only or overlap, a momentum
        outside 0 to 1.
    TypeError
        Both momentum and decay, another dtype, not an array, momentum=None without
        num_batches_tracked.

    Notes
    -----
    Nothing has been written when it raises, and no interrupt comes between the two. Updates from
    several Python threads follow one another, in any order.

    Examples
    --------
    >>> import numpy as np, cbn
    >>> mean, var = np.zeros(1), np.ones(1)
    >>> m = cbn.Moments.from_batch(np.array([[1.0], [3.0]]))
    >>> cbn.update_running_stats(mean, var, m, momentum=0.5)
    True
    >>> mean, var
    (array([1.]), array([1.5]))
    """
    with STATE_LOCK:
        averages = averaged(
            *(running_mean, running_var, m, momentum, correction, skip_nonfinite, decay),
            num_batches_tracked,
        )
        if averages is not None:
            write((running_mean, running_var), averages)
    return averages is not None


def averaged(
    running_mean: NDArray,
    running_var: NDArray,
    m: Moments,
    momentum: float | None,
    correction: float,
    skip_nonfinite: bool,
    decay: float | None,
    num_batches_tracked: int | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """What `update_running_stats` writes, None if nothing."""
    _check_state.is_kind("m", m, Moments)
    momentum = _check_state.momentum(momentum, decay, DEFAULT_MOMENTUM)
    if momentum is None:
        momentum = 1 / _check_state.batches_tracked(num_batches_tracked)
    _check_state.running(running_mean, running_var, m._channels)
    if m.count == 0:
        return None
    var = m.var(correction)
    if skip_nonfinite and not (_fits(m.mean, running_mean) and _fits(var, running_var)):
        return None
    keep = 1 - momentum
    with np.errstate(over="ignore", invalid="ignore"):
        return (
            np.multiply(running_mean, keep, dtype=np.float64) + momentum * m.mean,
            np.multiply(running_var, keep, dtype=np.float64) + momentum * var,
        )


def average_plainly(
    running_mean: NDArray,
    running_var: NDArray,
    batches: NDArray[np.int64],
    cache: BatchNormCache,
    momentum: float | None,
    correction: float,
) -> bool:
    """Whether compiled code has averaged a batch as `averaged` would, and counted it, all at once.

    It takes running statistics of float32 or float64 side by side.
    """
    if cache.count == 0:
        return False
    momentum = _check_state.momentum(momentum, None, DEFAULT_MOMENTUM)
    if momentum is None:
        momentum = 1 / (int(batches) + 1)
    factor = cache.count / (cache.count - _check_state.correction(correction, cache.count))
    return _core.plain_average(running_mean, running_var, batches, cache, momentum, factor)


def _fits(values: NDArray, target: NDArray) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(values.astype(target.dtype)).all())


def renormalization(
    m: Moments,
    running_mean: NDArray,
    running_var: NDArray,
    eps: float,
    r_max: float,
    d_max: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """r and d of batch renormalization: xhat * r + d is x by the running statistics, if unclipped.

    Ioffe 2017, algorithm 1: r = std / running_std within [1/r_max, r_max] and
    d = (mean - running_mean) / running_std within [-d_max, d_max], where std = sqrt(var + eps).
    """
    _check_state.clipping(r_max, d_max)
    _check_state.running(running_mean, running_var, m._channels)
    mean, mean_low, var = m._rows
    invstd = inverse_std(running_var, eps)
    with np.errstate(over="ignore", invalid="ignore"):
        r = np.clip(np.sqrt(var + eps) * invstd, 1 / r_max, r_max)
        d = np.clip(((mean - running_mean) + mean_low) * invstd, -d_max, d_max)
    return r, d
