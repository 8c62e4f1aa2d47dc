"""The operators on arrays: defaults, allocation, one call down. Equations are those of docs/math.md.

Design: arguments are checked in _check, arrays become (N, D) rows that the kernels take, as views
where the strides permit and as copies elsewhere, and one compiled call does the work. Per-channel
arguments travel as float64: D numbers cost nothing beside N x D, and the C core needs one form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbn import _check, _core
from cbn.runtime import resolve_threads

_C_NAMES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}
_FORWARD, _INFERENCE, _BACKWARD, _INFERENCE_BACKWARD = (
    {dtype: function[name] for dtype, name in _C_NAMES.items()}
    for function in (_core.forward, _core.inference, _core.backward, _core.inference_backward)
)


class BatchNormCache:
    """What backward needs to know of a forward call.

    Attributes
    ----------
    x : ndarray
        The input, not a copy of it: to change x between forward and backward is the caller's
        error. Only when the output was written over x (``out=x``) is it a copy.
    mean, var, invstd : ndarray of float64, shape (D,)
        Batch mean, biased batch variance and 1/sqrt(var + eps).
    count : int
        Values per channel, N.
    gamma : ndarray or None
        The scale as given.
    eps : float
    axis : int
        The channel axis, counted from the front.
    """

    __slots__ = ("_beta_dtype", "_gamma", "_rows", "_stats", "axis", "eps", "gamma", "x")

    def __init__(
        self,
        x: NDArray,
        rows: NDArray,
        stats: NDArray[np.float64],
        gamma: NDArray | None,
        beta: NDArray | None,
        eps: float,
        axis: int,
    ) -> None:
        self.x = x
        self.gamma = gamma
        self.eps = eps
        self.axis = axis
        self._rows = rows
        self._stats = stats
        self._gamma = _float64(gamma, copy=True)
        self._beta_dtype = None if beta is None else _check.result_dtype(beta.dtype)

    @property
    def mean(self) -> NDArray[np.float64]:
        return self._stats[0]

    @property
    def var(self) -> NDArray[np.float64]:
        return self._stats[2]

    @property
    def invstd(self) -> NDArray[np.float64]:
        return self._stats[3]

    @property
    def count(self) -> int:
        return self._rows.shape[0]

    def __repr__(self) -> str:
        return (
            f"BatchNormCache(x: {self.x.dtype} {self.x.shape}, axis={self.axis}, eps={self.eps},"
            f" count={self.count})"
        )


def _float64(values: NDArray | None, copy: bool = False) -> NDArray[np.float64] | None:
    return None if values is None else np.array(values, np.float64, copy=copy or None, order="C")


def _rows(array: NDArray, axis: int) -> NDArray:
    """The array as N rows of D channels; a view if one exists."""
    if array.ndim == 2 and axis == 1:
        return array
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


def _kernel_takes(rows: NDArray, dtype: np.dtype) -> bool:
    adjacent = rows.strides[1] == dtype.itemsize or rows.shape[1] == 1
    return rows.dtype == dtype and adjacent and rows.flags.aligned


def _input_rows(array: NDArray, axis: int, dtype: np.dtype) -> NDArray:
    rows = _rows(array, axis)
    return rows if _kernel_takes(rows, dtype) else np.array(rows, dtype, order="C")


class _Output:
    """Rows to compute into, for an array of the caller's shape, dtype and strides."""

    def __init__(self, out: NDArray, axis: int, dtype: np.dtype) -> None:
        self._out = out
        self._axis = axis
        rows = _rows(out, axis)
        self._direct = np.may_share_memory(rows, out) and _kernel_takes(rows, dtype)
        self.rows = rows if self._direct else np.empty(rows.shape, dtype)

    def finish(self) -> NDArray:
        if not self._direct:
            moved = np.moveaxis(self._out, self._axis, -1)
            np.copyto(moved, self.rows.reshape(moved.shape), casting="unsafe")
        return self._out


def _fixed_statistics(mean: NDArray, var: NDArray) -> NDArray[np.float64]:
    stats = np.zeros((4, mean.shape[0]))
    stats[0] = mean
    stats[2] = var
    return stats


def batch_norm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int | None = None,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    virtual_batch_size: int | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
    out: NDArray | None = None,
    num_threads: int | None = None,
) -> tuple[NDArray, BatchNormCache]:
    """Normalize a batch with its own statistics: training forward, equations (1)-(4).

    Parameters
    ----------
    x : array_like, shape (N, D) or more dimensions
        The batch. float32 and float64 are computed as they are, float16 and bfloat16 in float32,
        integers and bool as float64.
    gamma, beta : array_like, shape (D,), optional
        Scale and shift, of any real floating dtype; ones and zeros when not given.
    axis : int, optional
        The channel axis. The last one for 2-D x; must be given for more dimensions.
    eps : float
        Added to the variance, finite and >= 0. A channel with var == 0 and eps == 0 has
        invstd = 0.
    mask, sample_weight, virtual_batch_size, residual, activation
        Not available in this version.
    out : ndarray, optional
        Where to put y: of x's shape and y's dtype, writable; x itself is allowed (x is then
        copied for the cache).
    num_threads : int, optional
        Threads for this call, see `get_num_threads`.

    Returns
    -------
    y : ndarray
        Of x's shape and dtype; `out` itself if given.
    cache : BatchNormCache
        For the backward functions; has the statistics.

    Raises
    ------
    ValueError
        A wrong shape or length, N = 0, eps negative or not finite, num_threads < 1, `out` of
        another dtype, read-only, or overlapping an input in part.
    TypeError
        A complex, object or string dtype, parameters that are not floating.

    Notes
    -----
    N = 1 gives y = beta. The bytes of the result do not depend on the number of threads, the
    instruction set, or the memory layout of x.

    Examples
    --------
    >>> import numpy as np, cbn
    >>> y, cache = cbn.batch_norm_forward(np.array([[1.0, 10.0], [3.0, 30.0]]), eps=0)
    >>> y
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> cache.mean, cache.var
    (array([ 2., 20.]), array([  1., 100.]))
    """
    _check.not_yet(
        mask=mask,
        sample_weight=sample_weight,
        virtual_batch_size=virtual_batch_size,
        residual=residual,
        activation=activation,
    )
    x = _check.real_array("x", x)
    axis = _check.batch(x, axis)
    channels = x.shape[axis]
    gamma = _check.parameter("gamma", gamma, channels)
    beta = _check.parameter("beta", beta, channels)
    eps = _check.epsilon(eps)
    threads = resolve_threads(num_threads)
    result, kernel = _check.result_dtype(x.dtype), _check.kernel_dtype(x.dtype)
    if out is None:
        out = np.empty_like(x, dtype=result, subok=False)
    else:
        _check.output(out, x.shape, result)
        _check.overlap(out, {"x": x}, gamma=gamma, beta=beta)
        if np.may_share_memory(out, x):
            x = x.copy(order="K")
    stats = np.empty((4, channels))
    rows = _input_rows(x, axis, kernel)
    target = _Output(out, axis, kernel)
    cache = BatchNormCache(x, rows, stats, gamma, beta, eps, axis)
    if channels:
        _FORWARD[kernel](target.rows, stats, rows, cache._gamma, _float64(beta), eps, threads)
    return target.finish(), cache


def batch_norm_backward(
    dy: ArrayLike,
    cache: BatchNormCache,
    *,
    out: NDArray | None = None,
    num_threads: int | None = None,
) -> tuple[NDArray, NDArray | None, NDArray | None]:
    """Gradients of a training forward call, in the closed form of docs/math.md.

    Parameters
    ----------
    dy : array_like, x's shape
        Gradient of the loss with respect to y; computed in x's dtype.
    cache : BatchNormCache
        As returned by `batch_norm_forward`; x must not have changed since.
    out : ndarray, optional
        Where to put dx: of x's shape and y's dtype, writable; dy itself is allowed.
    num_threads : int, optional
        Threads for this call.

    Returns
    -------
    dx : ndarray
        Of x's shape and y's dtype; `out` itself if given. 0 for N = 1.
    dgamma, dbeta : ndarray of shape (D,), or None
        In the dtype of gamma and beta; None for a parameter that was not given.

    Raises
    ------
    ValueError
        dy not of x's shape, a bad `out` (see `batch_norm_forward`), num_threads < 1.
    TypeError
        cache of another type, dy of a complex, object or string dtype.
    """
    _check.cache(cache, BatchNormCache)
    x = cache.x
    dy = _check.same_shape("dy", dy, x.shape)
    threads = resolve_threads(num_threads)
    result, kernel = _check.result_dtype(x.dtype), _check.kernel_dtype(x.dtype)
    if out is None:
        out = np.empty_like(x, dtype=result, subok=False)
    else:
        _check.output(out, x.shape, result)
        _check.overlap(out, {"dy": dy, "x": x}, gamma=cache.gamma)
    target = _Output(out, cache.axis, kernel)
    dgamma, dbeta = np.empty((2, cache._stats.shape[1]))
    if dgamma.size:
        rows = _input_rows(dy, cache.axis, kernel)
        _BACKWARD[kernel](
            target.rows, dgamma, dbeta, rows, cache._rows, cache._stats, cache._gamma, threads
        )
    gamma_dtype = None if cache.gamma is None else _check.result_dtype(cache.gamma.dtype)
    return target.finish(), _gradient(dgamma, gamma_dtype), _gradient(dbeta, cache._beta_dtype)


def _gradient(values: NDArray[np.float64], dtype: Any) -> NDArray | None:
    """A parameter's gradient in its dtype; too large for it is inf, as in any sum."""
    if dtype is None:
        return None
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def batch_norm_inference(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int | None = None,
    eps: float = 1e-5,
    residual: ArrayLike | None = None,
    activation: str | None = None,
    out: NDArray | None = None,
    num_threads: int | None = None,
) -> NDArray:
    """Normalize with given statistics: y = (x - mean) * gamma / sqrt(var + eps) + beta.

    Parameters
    ----------
    x : array_like, shape (N, D) or more dimensions
        See `batch_norm_forward`, also for axis, eps, out and num_threads.
    mean, var : array_like, shape (D,)
        Statistics of the population, of any real floating dtype; var >= 0.
    gamma, beta : array_like, shape (D,), optional
        Scale and shift; ones and zeros when not given.
    residual, activation
        Not available in this version.

    Returns
    -------
    y : ndarray
        Of x's shape and dtype; `out` itself if given. Each row depends on itself alone, to the
        bit.

    Raises
    ------
    ValueError, TypeError
        As `batch_norm_forward`, and for a negative var.
    """
    _check.not_yet(residual=residual, activation=activation)
    x = _check.real_array("x", x)
    axis = _check.batch(x, axis)
    channels = x.shape[axis]
    mean = _check.statistic("mean", mean, channels)
    var = _check.variance(var, channels)
    gamma = _check.parameter("gamma", gamma, channels)
    beta = _check.parameter("beta", beta, channels)
    eps = _check.epsilon(eps)
    threads = resolve_threads(num_threads)
    result, kernel = _check.result_dtype(x.dtype), _check.kernel_dtype(x.dtype)
    if out is None:
        out = np.empty_like(x, dtype=result, subok=False)
    else:
        _check.output(out, x.shape, result)
        _check.overlap(out, {"x": x}, mean=mean, var=var, gamma=gamma, beta=beta)
    target = _Output(out, axis, kernel)
    if channels:
        stats = _fixed_statistics(mean, var)
        rows = _input_rows(x, axis, kernel)
        _INFERENCE[kernel](
            target.rows, stats, rows, _float64(gamma), _float64(beta), eps, threads
        )
    return target.finish()


def batch_norm_inference_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    axis: int | None = None,
    eps: float = 1e-5,
    out: NDArray | None = None,
    num_threads: int | None = None,
) -> tuple[NDArray, NDArray | None, NDArray]:
    """Gradients of `batch_norm_inference`: the statistics are constants, dx = gamma * invstd * dy.

    Parameters
    ----------
    dy, x : array_like of one shape
        Gradient with respect to y, and the input.
    mean, var, gamma, axis, eps, num_threads
        As for `batch_norm_inference`.
    out : ndarray, optional
        Where to put dx; dy itself is allowed.

    Returns
    -------
    dx : ndarray
        Of x's shape and y's dtype.
    dgamma : ndarray of shape (D,), or None
        In gamma's dtype; None if gamma was not given.
    dbeta : ndarray of shape (D,)
        In gamma's dtype, or dx's if gamma was not given.

    Raises
    ------
    ValueError, TypeError
        As `batch_norm_inference`, and for dy not of x's shape.
    """
    x = _check.real_array("x", x)
    axis = _check.batch(x, axis)
    channels = x.shape[axis]
    dy = _check.same_shape("dy", dy, x.shape)
    mean = _check.statistic("mean", mean, channels)
    var = _check.variance(var, channels)
    gamma = _check.parameter("gamma", gamma, channels)
    eps = _check.epsilon(eps)
    threads = resolve_threads(num_threads)
    result, kernel = _check.result_dtype(x.dtype), _check.kernel_dtype(x.dtype)
    if out is None:
        out = np.empty_like(x, dtype=result, subok=False)
    else:
        _check.output(out, x.shape, result)
        _check.overlap(out, {"dy": dy, "x": x}, mean=mean, var=var, gamma=gamma)
    target = _Output(out, axis, kernel)
    dgamma, dbeta = np.empty((2, channels))
    if channels:
        stats = _fixed_statistics(mean, var)
        dy_rows, x_rows = _input_rows(dy, axis, kernel), _input_rows(x, axis, kernel)
        _INFERENCE_BACKWARD[kernel](
            target.rows, dgamma, dbeta, stats, dy_rows, x_rows, _float64(gamma), eps, threads
        )
    gamma_dtype = None if gamma is None else _check.result_dtype(gamma.dtype)
    return (
        target.finish(),
        _gradient(dgamma, gamma_dtype),
        _gradient(dbeta, result if gamma is None else gamma_dtype),
    )
