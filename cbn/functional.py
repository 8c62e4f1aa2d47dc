"""The operators on arrays: defaults, allocation, one call down; equations of docs/math.md.

Design: arguments are checked in _check, arrays become (N, D) rows that the kernels take, as views
where the strides permit and as copies elsewhere, and one compiled call does the work. Per-channel
arguments travel as float64: D numbers cost nothing beside N x D, and the C core needs one form.
The usual arguments - plain float32 or float64 rows - go straight to _core, which knows them by a
few comparisons and declines whatever else it is given: all those checks take longer than a small
batch.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbn import _check, _core
from cbn._arrays import OutputRows, by_dtype, float64, gradient, input_rows, new_output
from cbn.cache import BatchNormCache
from cbn.runtime import get_num_threads, resolve_threads

_FORWARD = by_dtype(_core.forward)
_INFERENCE = by_dtype(_core.inference)
_BACKWARD = by_dtype(_core.backward)
_INFERENCE_BACKWARD = by_dtype(_core.inference_backward)


def _plain_threads(num_threads: int) -> bool:
    return type(num_threads) is int and 1 <= num_threads <= 1024


def fixed_statistics(mean: NDArray, var: NDArray) -> NDArray[np.float64]:
    """Given statistics in the form of the C core, which fills in the last row, invstd."""
    stats = np.zeros((4, mean.shape[0]))
    stats[0] = mean
    stats[2] = var
    return stats


def backward_with_sums(
    dy: NDArray, cache: BatchNormCache, target: OutputRows, threads: int
) -> tuple[NDArray, NDArray[np.float64], NDArray[np.float64]]:
    """dx, and the sums of dy * xhat and of dy in float64; the arguments have been checked."""
    sum_dy_xhat, sum_dy = np.empty((2, cache._stats.shape[1]))
    if sum_dy.size:
        kernel = _check.kernel_dtype(cache.x.dtype)
        _BACKWARD[kernel](
            *(target.rows, sum_dy_xhat, sum_dy, input_rows(dy, cache.axis, kernel), cache._rows),
            *(cache._stats, cache.count, cache._gamma, threads),
        )
    return target.finish(), sum_dy_xhat, sum_dy


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
    """Normalize a batch with its own statistics: training forward, equations (1)-(5).

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
    if (
        (axis is None and mask is sample_weight is virtual_batch_size is residual is activation)
        and (mask is None and type(eps) is float and 0 <= eps < math.inf)
        and (num_threads is None or _plain_threads(num_threads))
    ):
        plain = _core.plain_forward(x, gamma, beta, out, eps, num_threads or get_num_threads)
        if plain is not None:
            y, stats = plain
            gamma64 = None if gamma is None else stats[4]
            return y, BatchNormCache(x, x, stats, gamma64, gamma, beta, eps, 1)
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
    kernel = _check.kernel_dtype(x.dtype)
    if out is None:
        target = new_output(x, axis)
    else:
        _check.output(out, x.shape, _check.result_dtype(x.dtype))
        _check.overlap(out, {"x": x}, gamma=gamma, beta=beta)
        if np.may_share_memory(out, x):
            x = x.copy(order="K")
        target = OutputRows(out, axis, kernel)
    stats = np.empty((4, channels))
    rows = input_rows(x, axis, kernel)
    gamma64 = float64(gamma, copy=True)
    if channels:
        _FORWARD[kernel](target.rows, stats, rows, gamma64, float64(beta), eps, threads)
    stats.flags.writeable = False
    return target.finish(), BatchNormCache(x, rows, stats, gamma64, gamma, beta, eps, axis)


def batch_norm_backward(
    dy: ArrayLike,
    cache: BatchNormCache,
    *,
    out: NDArray | None = None,
    num_threads: int | None = None,
) -> tuple[NDArray, NDArray | None, NDArray | None]:
    """Gradients of a training forward call, in closed form, equation (16).

    Parameters
    ----------
    dy : array_like, x's shape
        Gradient of the loss with respect to y; computed in x's dtype.
    cache : BatchNormCache
        As returned by `batch_norm_forward`; x must not have changed since.
    out : ndarray, optional
        Where to put dx: of x's shape and y's dtype, writable; dy itself is allowed, and x itself,
        after which the cache is of no more use.
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
    if cache._rows is x and (num_threads is None or _plain_threads(num_threads)):
        plain = _core.plain_backward(
            *(dy, x, cache._stats, cache.count, cache._gamma, cache.gamma),
            *(cache._gamma_dtype, cache._beta_dtype, out, num_threads or get_num_threads),
        )
        if plain is not None:
            return plain
    dy = _check.same_shape("dy", dy, x.shape)
    threads = resolve_threads(num_threads)
    kernel = _check.kernel_dtype(x.dtype)
    if out is None:
        target = new_output(x, cache.axis)
    else:
        _check.output(out, x.shape, _check.result_dtype(x.dtype))
        _check.overlap(out, {"dy": dy, "x": x}, gamma=cache.gamma)
        target = OutputRows(out, cache.axis, kernel)
    dx, dgamma, dbeta = backward_with_sums(dy, cache, target, threads)
    return dx, gradient(dgamma, cache._gamma_dtype), gradient(dbeta, cache._beta_dtype)


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
    """Normalize with given statistics: y = (x - mean) * gamma / sqrt(var + eps) + beta, (42).

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
    if (
        (axis is None and residual is activation is None and type(eps) is float)
        and (0 <= eps < math.inf)
        and (num_threads is None or _plain_threads(num_threads))
    ):
        plain = _core.plain_inference(
            *(x, mean, var, gamma, beta, out, eps, num_threads or get_num_threads)
        )
        if plain is not None:
            return plain
    _check.not_yet(residual=residual, activation=activation)
    x = _check.real_array("x", x)
    axis = _check.batch(x, axis)
    channels = x.shape[axis]
    mean, var, gamma = _check.population(mean, var, gamma, channels)
    beta = _check.parameter("beta", beta, channels)
    eps = _check.epsilon(eps)
    threads = resolve_threads(num_threads)
    kernel = _check.kernel_dtype(x.dtype)
    if out is None:
        target = new_output(x, axis)
    else:
        _check.output(out, x.shape, _check.result_dtype(x.dtype))
        _check.overlap(out, {"x": x}, mean=mean, var=var, gamma=gamma, beta=beta)
        target = OutputRows(out, axis, kernel)
    if channels:
        stats = fixed_statistics(mean, var)
        rows = input_rows(x, axis, kernel)
        _INFERENCE[kernel](target.rows, stats, rows, float64(gamma), float64(beta), eps, threads)
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
    """Gradients of `batch_norm_inference`: dx = gamma * invstd * dy, equation (42).

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
    if (axis is None and type(eps) is float and 0 <= eps < math.inf) and (
        num_threads is None or _plain_threads(num_threads)
    ):
        plain = _core.plain_inference_backward(
            *(dy, x, mean, var, gamma, out, eps, num_threads or get_num_threads)
        )
        if plain is not None:
            return plain
    x = _check.real_array("x", x)
    axis = _check.batch(x, axis)
    channels = x.shape[axis]
    dy = _check.same_shape("dy", dy, x.shape)
    mean, var, gamma = _check.population(mean, var, gamma, channels)
    eps = _check.epsilon(eps)
    threads = resolve_threads(num_threads)
    kernel = _check.kernel_dtype(x.dtype)
    if out is None:
        target = new_output(x, axis)
    else:
        _check.output(out, x.shape, _check.result_dtype(x.dtype))
        _check.overlap(out, {"dy": dy, "x": x}, mean=mean, var=var, gamma=gamma)
        target = OutputRows(out, axis, kernel)
    dgamma, dbeta = np.empty((2, channels))
    if channels:
        stats = fixed_statistics(mean, var)
        dy_rows, x_rows = input_rows(dy, axis, kernel), input_rows(x, axis, kernel)
        _INFERENCE_BACKWARD[kernel](
            target.rows, dgamma, dbeta, stats, dy_rows, x_rows, float64(gamma), eps, threads
        )
    gamma_dtype = None if gamma is None else _check.result_dtype(gamma.dtype)
    dx = target.finish()
    return dx, gradient(dgamma, gamma_dtype), gradient(dbeta, gamma_dtype or dx.dtype)
