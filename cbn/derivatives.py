"""Every other derivative of batch norm, from the cache of a forward call.

The Jacobian of a channel is symmetric, so the kernels of backward serve them all. A cache of
`batch_norm_inference_cache` gives the derivatives of inference instead. Equations are those of
docs/math.md.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbn import _check, _core, _passes
from cbn._arrays import computed, float64, gradient, input_rows, new_array, new_output
from cbn._passes import fixed_statistics
from cbn._statistics import inverse_std
from cbn.cache import BatchNormCache, ForwardOptions
from cbn.runtime import get_num_threads, resolve_threads


def _rows(cache: BatchNormCache) -> NDArray:
    return input_rows(cache.x, cache.axis, _check.kernel_dtype(cache.x.dtype))


class StagedGradients(NamedTuple):
    """All gradients along the computation graph, as `batch_norm_backward_staged` returns them."""

    dx: NDArray
    """x's shape, equation (12)."""
    dgamma: NDArray | Any
    """Shape (D,), equation (8); None if gamma was not given."""
    dbeta: NDArray | Any
    """Shape (D,), equation (7); None if beta was not given."""
    dxhat: NDArray
    """x's shape, equation (9)."""
    dvar: NDArray[np.float64]
    """Shape (D,), equation (10)."""
    dmean: NDArray[np.float64]
    """Shape (D,), equation (11)."""


def batch_norm_inference_cache(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int | None = None,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> BatchNormCache:
    """A cache with given statistics, for the derivatives of `batch_norm_inference`.

    Parameters
    ----------
    x, mean, var, gamma, beta, axis, eps, mask, residual, activation
        As for `batch_norm_inference`; without an activation, beta only decides whether there is a
        dbeta.

    Returns
    -------
    BatchNormCache
        With ``count`` inf: x does not move the statistics, so the Jacobian is diagonal.

    Raises
    ------
    ValueError, TypeError
        As `batch_norm_inference`.

    Examples
    --------
    >>> import cbn
    >>> cache = cbn.batch_norm_inference_cache([[5.0]], mean=[1.0], var=[4.0], eps=0)
    >>> cbn.batch_norm_jvp([[3.0]], cache)
    array([[1.5]])
    """
    x = _check.real_array("x", x)
    axis = _check.batch(x, axis)
    channels = x.shape[axis]
    mean, var, gamma = _check.population(mean, var, gamma, channels)
    beta = _check.parameter("beta", beta, channels)
    eps = _check.epsilon(eps)
    stats = fixed_statistics(mean, var, channels)
    stats[3] = inverse_std(stats[2], eps)
    stats.flags.writeable = False
    gamma64 = float64(gamma, copy=True)
    relu = _check.activation(activation)
    if residual is not None:
        residual = _check.same_shape("residual", residual, x.shape)
        residual = computed(residual, _check.result_dtype(x.dtype))
    mask = _check.mask(mask, x.shape, axis)
    positions = _passes.positions_of(mask)
    beta64 = float64(beta, copy=True)
    options = ForwardOptions(mask, positions, residual=residual, relu=relu, beta=beta64)
    return BatchNormCache(x, stats, gamma64, gamma, beta, eps, axis, math.inf, options)


def batch_norm_jvp(
    x_dot: ArrayLike,
    cache: BatchNormCache,
    gamma_dot: ArrayLike | None = None,
    beta_dot: ArrayLike | None = None,
    *,
    num_threads: int | None = None,
) -> NDArray:
    """Forward mode: the tangent of y, J x_dot + xhat gamma_dot + beta_dot, equation (30).

    Parameters
    ----------
    x_dot : array_like, x's shape
        Tangent of x.
    cache : BatchNormCache
    gamma_dot, beta_dot : array_like, shape (D,), optional
        Tangents of gamma and beta, of any real floating dtype; zero when not given. They may be
        given where gamma and beta were not: those are then ones and zeros that move.
    num_threads : int, optional

    Returns
    -------
    y_dot : ndarray
        Of x's shape and y's dtype.

    Raises
    ------
    ValueError, TypeError
        A wrong shape, length or dtype, cache of another type.

    Examples
    --------
    >>> import numpy as np, cbn
    >>> y, cache = cbn.batch_norm_forward(np.array([[1.0], [2.0], [3.0]]), eps=0)
    >>> cbn.batch_norm_jvp([[1.0], [1.0], [1.0]], cache, beta_dot=[0.5])  # x and beta move
    array([[0.5],
           [0.5],
           [0.5]])
    """
    _check.plain_cache(cache, BatchNormCache)
    channels = cache._stats.shape[1]
    x_dot = _check.same_shape("x_dot", x_dot, cache.x.shape)
    gamma_dot = _check.parameter("gamma_dot", gamma_dot, channels)
    beta_dot = _check.parameter("beta_dot", beta_dot, channels)
    threads = resolve_threads(num_threads)
    kernel = _check.kernel_dtype(cache.x.dtype)
    target = new_output(cache.x, cache.axis)
    if channels:
        _core.jvp(
            *(target.rows, input_rows(x_dot, cache.axis, kernel), _rows(cache), cache._stats),
            *(cache.count, cache._gamma, float64(gamma_dot), float64(beta_dot), threads),
        )
    return target.finish()


def batch_norm_double_backward(
    ddx: ArrayLike,
    dy: ArrayLike,
    cache: BatchNormCache,
    ddgamma: ArrayLike | None = None,
    ddbeta: ArrayLike | None = None,
    *,
    num_threads: int | None = None,
) -> tuple[NDArray, NDArray, NDArray | Any]:
    """Gradients of <ddx, dx> + <ddgamma, dgamma> + <ddbeta, dbeta>, equations (50)-(57).

    Parameters
    ----------
    ddx : array_like, x's shape
        Gradient of a second loss in the dx of backward.
    dy : array_like, x's shape
        What backward was given.
    cache : BatchNormCache
    ddgamma, ddbeta : array_like, shape (D,), optional
        Gradients in dgamma and dbeta, of any real floating dtype; zero when not given.
    num_threads : int, optional

    Returns
    -------
    g_dy, g_x : ndarray
        Gradients in dy and x, of x's shape and y's dtype.
    g_gamma : ndarray of shape (D,), or None
        Gradient in gamma, in its dtype; None if gamma was not given. There is none in beta:
        backward does not contain it.

    Raises
    ------
    ValueError, TypeError
        A wrong shape, length or dtype, cache of another type.

    Examples
    --------
    The gradients of the penalty sum(dx**2) / 2, where dx is proportional to gamma:

    >>> import numpy as np, cbn
    >>> x, dy, gamma = np.array([[1.0], [3.0], [8.0]]), np.array([[1.0], [0.0], [2.0]]), [4.0]
    >>> y, cache = cbn.batch_norm_forward(x, gamma)
    >>> dx, _, _ = cbn.batch_norm_backward(dy, cache)
    >>> g_dy, g_x, g_gamma = cbn.batch_norm_double_backward(dx, dy, cache)
    >>> np.allclose(g_gamma, np.sum(dx**2) / 4)
    True
    """
    _check.plain_cache(cache, BatchNormCache)
    channels = cache._stats.shape[1]
    ddx = _check.same_shape("ddx", ddx, cache.x.shape)
    dy = _check.same_shape("dy", dy, cache.x.shape)
    ddgamma = _check.parameter("ddgamma", ddgamma, channels)
    ddbeta = _check.parameter("ddbeta", ddbeta, channels)
    threads = resolve_threads(num_threads)
    kernel = _check.kernel_dtype(cache.x.dtype)
    g_dy, g_x = new_output(cache.x, cache.axis), new_output(cache.x, cache.axis)
    g_gamma = np.empty(channels)
    if channels:
        ddx_rows, dy_rows = (input_rows(a, cache.axis, kernel) for a in (ddx, dy))
        _core.double_backward(
            *(g_dy.rows, g_x.rows, g_gamma, ddx_rows, dy_rows, _rows(cache), cache._stats),
            *(cache.count, cache._gamma, float64(ddgamma), float64(ddbeta), threads),
        )
    return g_dy.finish(), g_x.finish(), gradient(g_gamma, cache._gamma_dtype)


def batch_norm_backward_staged(
    dy: ArrayLike, cache: BatchNormCache, *, num_threads: int | None = None
) -> StagedGradients:
    """Backward with the gradients of the intermediate xhat, var and mean, equations (7)-(12).

    Parameters
    ----------
    dy : array_like, x's shape
    cache : BatchNormCache
    num_threads : int, optional

    Returns
    -------
    StagedGradients
        dx, dgamma, dbeta as `batch_norm_backward`; dxhat of y's dtype; dvar and dmean float64.
        With given statistics (`batch_norm_inference_cache`) dvar and dmean are the gradients in
        those.

    Raises
    ------
    ValueError, TypeError
        As `batch_norm_backward`.

    Examples
    --------
    >>> import numpy as np, cbn
    >>> y, cache = cbn.batch_norm_forward(np.array([[1.0], [3.0]]), eps=0)
    >>> staged = cbn.batch_norm_backward_staged([[1.0], [0.0]], cache)
    >>> staged.dvar, staged.dmean
    (array([0.5]), array([-1.]))
    """
    _check.plain_cache(cache, BatchNormCache)
    dy = _check.same_shape("dy", dy, cache.x.shape)
    threads = resolve_threads(num_threads)
    dx = new_array(cache.x)
    sum_dy_xhat, sum_dy = _passes.backward(dx, None, dy, cache, threads)
    gamma = 1.0 if cache._gamma is None else cache._gamma
    return StagedGradients(
        dx,
        gradient(sum_dy_xhat, cache._gamma_dtype),
        gradient(sum_dy, cache._beta_dtype),
        dxhat=_scaled(dy, cache, threads),
        dvar=-(gamma * cache.invstd * sum_dy_xhat) * cache.invstd / 2,
        dmean=-gamma * cache.invstd * sum_dy,
    )


def _scaled(dy: NDArray, cache: BatchNormCache, threads: int) -> NDArray:
    """gamma * dy (9): inference with mean 0 and variance 1."""
    kernel = _check.kernel_dtype(cache.x.dtype)
    target = new_output(cache.x, cache.axis)
    if cache._stats.shape[1]:
        stats = fixed_statistics(0, 1, cache._stats.shape[1])
        rows = input_rows(dy, cache.axis, kernel)
        _core.inference(
            *(target.rows, stats, rows, 1, cache._gamma, None, 0.0, None, False, None, threads)
        )
    return target.finish()


def batch_norm_jacobian(cache: BatchNormCache) -> NDArray:
    """The Jacobian of y in x, channel by channel, equation (22).

    Parameters
    ----------
    cache : BatchNormCache

    Returns
    -------
    J : ndarray, shape (D, N, N)
        J[d, k, i] = dy[k, d] / dx[i, d] in y's dtype, symmetric in k and i; rows in C order of the
        axes other than the channel axis. It has D * N * N elements: for small batches.

    Raises
    ------
    TypeError
        cache of another type.

    Examples
    --------
    >>> import numpy as np, cbn
    >>> y, cache = cbn.batch_norm_forward(np.array([[0.0], [4.0], [8.0]]), eps=32 / 3)
    >>> cbn.batch_norm_jacobian(cache)[0].round(4)
    array([[ 0.0902, -0.0722, -0.018 ],
           [-0.0722,  0.1443, -0.0722],
           [-0.018 , -0.0722,  0.0902]])
    """
    _check.plain_cache(cache, BatchNormCache)
    x = _rows(cache)
    rows, channels = x.shape
    xhat = np.empty((rows, channels), x.dtype)
    if channels:
        stats, threads = cache._stats.copy(), get_num_threads()
        _core.inference(*(xhat, stats, x, 1, None, None, cache.eps, None, False, None, threads))
    scale = cache.invstd if cache._gamma is None else cache._gamma * cache.invstd
    if cache.count == math.inf:
        jacobian = np.zeros((channels, rows, rows))
    else:
        columns = xhat.T.astype(np.float64)
        jacobian = columns[:, :, None] * columns[:, None, :]
        jacobian += 1
        jacobian *= (-scale / cache.count)[:, None, None]
    np.einsum("dii->di", jacobian)[...] += scale[:, None]
    with np.errstate(over="ignore"):
        return jacobian.astype(_check.result_dtype(cache.x.dtype), copy=False)
