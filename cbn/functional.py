"""The operators on arrays: defaults, checks, allocation; equations of docs/math.md.

Design: arguments are checked in _check, arrays of any strides go to the compiled calls as they are.
Per-channel arguments travel as float64: D numbers cost nothing beside N x D, and the C core needs
one form. The usual arguments - float32 or float64 in C order - go straight to _core, which knows
them by a few comparisons and declines whatever else it is given: all those checks take longer than
a small batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbn import _check, _passes
from cbn._arrays import computed, float64, gradient, new_array
from cbn._core import plain_backward, plain_forward, plain_inference, plain_inference_backward
from cbn.cache import NO_OPTIONS, BatchNormCache, ForwardOptions
from cbn.runtime import get_num_threads, resolve_threads


def _plain_threads(num_threads: int) -> bool:
    return type(num_threads) is int and 1 <= num_threads <= 1024


def output(
    out: NDArray | None, like: NDArray, may_be: dict[str, NDArray], **others: NDArray | None
) -> NDArray:
    """Where a result of x's shape goes; `may_be` may be overwritten entirely."""
    if out is None:
        return new_array(like)
    _check.output(out, like.shape, _check.result_dtype(like.dtype))
    _check.overlap(out, may_be, **others)
    return out


def prepared(
    x: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    axis: int | None,
    eps: float,
    mask: ArrayLike | None,
    sample_weight: ArrayLike | None,
    residual: ArrayLike | None,
    activation: str | None,
    out: NDArray | None,
    num_threads: int | None,
    of_part: bool = False,
) -> tuple[NDArray, NDArray, _passes.Call, ForwardOptions]:
    """The arguments of a forward call checked, and a y that is not yet written.

    A part of a batch may be empty, and its y must not be x.
    """
    x = _check.real_array("x", x)
    axis = _check.batch(x, axis, of_part)
    channels = x.shape[axis]
    gamma = _check.parameter("gamma", gamma, channels)
    beta = _check.parameter("beta", beta, channels)
    eps = _check.epsilon(eps)
    threads = resolve_threads(num_threads)
    relu = _check.activation(activation)
    if residual is not None:
        residual = _check.same_shape("residual", residual, x.shape)
        residual = computed(residual, _check.result_dtype(x.dtype))
    mask = _check.mask(mask, x.shape, axis)
    weight = _check.sample_weight(sample_weight, mask, x.shape, axis, of_part)
    others = {"gamma": gamma, "beta": beta, "residual": residual, "mask": mask}
    y = output(out, x, {}, x=x, **others) if of_part else output(out, x, {"x": x}, **others)
    in_place = out is not None and not of_part and _check.same_memory(out, x)
    if in_place:
        _check.reversible(gamma, relu, residual)
    call = _passes.Call(gamma, beta, float64(gamma, copy=True), eps, axis, threads)
    beta64 = float64(beta, copy=True)
    positions = _passes.positions_of(mask)
    return y, x, call, ForwardOptions(mask, positions, weight, residual, relu, beta64, in_place)


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
    mask : array_like of bool, optional
        True where x counts; broadcastable to x without its channel axis. Other cells are never
        read, and y is 0 there. Nothing but masked cells gives zeros.
    sample_weight : array_like, optional
        Weights >= 0 of x in the statistics, broadcastable as mask: mean = sum(w x) / sum(w).
    virtual_batch_size : int, optional
        Normalize so many entries of axis 0 at a time by themselves (ghost batches), the last ones
        as they come; the cache's statistics are still those of the whole batch.
    residual : array_like, x's shape, optional
        Added to y, before the activation.
    activation : {None, "relu"}
        y = max(0, y); backward recomputes the sign and needs no mask.
    out : ndarray, optional
        Where to put y: of x's shape and y's dtype, writable. With x itself, backward works from y:
        gamma must not have a zero, and there can be no activation or residual.
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
    if mask is sample_weight is virtual_batch_size is residual is activation is None and (
        num_threads is None or _plain_threads(num_threads)
    ):
        threads = num_threads or get_num_threads
        plain = plain_forward(x, gamma, beta, axis, out, eps, threads, BatchNormCache, NO_OPTIONS)
        if plain is not None:
            return plain
    y, x, call, options = prepared(
        *(x, gamma, beta, axis, eps, mask, sample_weight, residual, activation, out, num_threads)
    )
    size = _check.virtual_batch_size(virtual_batch_size, call.axis, options.mask, options.weight)
    if size is None or size >= x.shape[0]:
        return y, _passes.forward(y, x, call, options)
    return y, _passes.forward_of_groups(y, x, call, size, options)


def batch_norm_backward(
    dy: ArrayLike,
    cache: BatchNormCache,
    *,
    out: NDArray | None = None,
    num_threads: int | None = None,
) -> tuple[NDArray | Any, ...]:
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
    dresidual : ndarray
        Only after a forward call with a residual; as dx.

    Raises
    ------
    ValueError
        dy not of x's shape, a bad `out` (see `batch_norm_forward`), num_threads < 1.
    TypeError
        cache of another type, dy of a complex, object or string dtype.

    Examples
    --------
    >>> import numpy as np, cbn
    >>> y, cache = cbn.batch_norm_forward(np.array([[1.0], [2.0], [3.0]]), eps=0)
    >>> cbn.batch_norm_backward([[1.0], [0.0], [2.0]], cache)[0].round(3)
    array([[ 0.612],
           [-1.225],
           [ 0.612]])
    """
    if not isinstance(cache, BatchNormCache):
        _check.cache(cache, BatchNormCache)
    if num_threads is None or _plain_threads(num_threads):
        plain = plain_backward(dy, cache, out, num_threads or get_num_threads, NO_OPTIONS)
        if plain is not None:
            return plain
    x, options = cache.x, cache._options
    _check.unchanged(cache)
    dy = _check.same_shape("dy", dy, x.shape)
    threads = resolve_threads(num_threads)
    may_be = {"dy": dy} if options.residual is not None else {"dy": dy, "x": x}
    others = {} if "x" in may_be else {"x": x, "residual": options.residual}
    dx = output(out, x, may_be, gamma=cache.gamma, **others)
    dresidual = None if options.residual is None else new_array(x)
    sums = _passes.backward(dx, dresidual, dy, cache, threads)
    dgamma = gradient(sums.dy_xhat, cache._gamma_dtype)
    dbeta = gradient(sums.dy, cache._beta_dtype)
    return (dx, dgamma, dbeta) if dresidual is None else (dx, dgamma, dbeta, dresidual)


def batch_norm_inference(
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
    mask : array_like of bool, optional
        True where y is wanted, as for `batch_norm_forward`; it is 0 elsewhere.
    residual, activation
        As for `batch_norm_forward`.

    Returns
    -------
    y : ndarray
        Of x's shape and dtype; `out` itself if given. Each row depends on itself alone, to the
        bit.

    Raises
    ------
    ValueError, TypeError
        As `batch_norm_forward`, and for a negative var.

    Examples
    --------
    >>> import numpy as np, cbn
    >>> cbn.batch_norm_inference(np.array([[5.0, 6.0]]), mean=[1, 2.0], var=[4.0, 16.0], eps=0)
    array([[2., 1.]])
    """
    if mask is residual is activation is None and (
        num_threads is None or _plain_threads(num_threads)
    ):
        threads = num_threads or get_num_threads
        plain = plain_inference(x, mean, var, gamma, beta, axis, out, eps, threads)
        if plain is not None:
            return plain
    x = _check.real_array("x", x)
    axis = _check.batch(x, axis)
    channels = x.shape[axis]
    mean, var, gamma = _check.population(mean, var, gamma, channels)
    beta = _check.parameter("beta", beta, channels)
    eps = _check.epsilon(eps)
    threads = resolve_threads(num_threads)
    relu = _check.activation(activation)
    if residual is not None:
        residual = _check.same_shape("residual", residual, x.shape)
        residual = computed(residual, _check.result_dtype(x.dtype))
    mask = _check.mask(mask, x.shape, axis)
    may_be = {"x": x} if residual is None else {"x": x, "residual": residual}
    y = output(out, x, may_be, mean=mean, var=var, gamma=gamma, beta=beta)
    if channels:
        call = _passes.Call(gamma, beta, float64(gamma), eps, axis, threads)
        stats = _passes.fixed_statistics(mean, var, channels)
        _passes.inference(y, x, stats, call, residual, relu, _passes.positions_of(mask))
    _passes.blank(y, mask)
    return y


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
) -> tuple[NDArray, NDArray | Any, NDArray | Any]:
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

    Examples
    --------
    >>> import numpy as np, cbn
    >>> cbn.batch_norm_inference_backward([[3.0]], [[5.0]], [1.0], [4.0], [10.0], eps=0)
    (array([[15.]]), array([6.]), array([3.]))
    """
    if num_threads is None or _plain_threads(num_threads):
        threads = num_threads or get_num_threads
        plain = plain_inference_backward(dy, x, mean, var, gamma, axis, out, eps, threads)
        if plain is not None:
            return plain
    x = _check.real_array("x", x)
    axis = _check.batch(x, axis)
    channels = x.shape[axis]
    dy = _check.same_shape("dy", dy, x.shape)
    mean, var, gamma = _check.population(mean, var, gamma, channels)
    eps = _check.epsilon(eps)
    threads = resolve_threads(num_threads)
    dx = output(out, x, {"dy": dy, "x": x}, mean=mean, var=var, gamma=gamma)
    dgamma, dbeta = np.empty((2, channels))
    if channels:
        stats = _passes.fixed_statistics(mean, var, channels)
        call = _passes.Call(gamma, None, float64(gamma), eps, axis, threads)
        _passes.inference_backward(dx, dgamma, dbeta, stats, dy, x, call)
    gamma_dtype = None if gamma is None else _check.result_dtype(gamma.dtype)
    return dx, gradient(dgamma, gamma_dtype), gradient(dbeta, gamma_dtype or dx.dtype)


def lengths_to_mask(lengths: ArrayLike, max_length: int | None = None) -> NDArray[np.bool_]:
    """The mask of padded sequences: True in the first lengths[n] cells of row n.

    Parameters
    ----------
    lengths : array_like of integers, shape (N,)
    max_length : int, optional
        Cells of a row; the longest of the lengths when not given.

    Returns
    -------
    ndarray of bool, shape (N, max_length)

    Raises
    ------
    ValueError
        Negative lengths, or longer ones than max_length.
    TypeError
        Lengths that are not integers, or not 1-D.

    Examples
    --------
    >>> import cbn
    >>> cbn.lengths_to_mask([2, 3])
    array([[ True,  True, False],
           [ True,  True,  True]])
    """
    lengths, max_length = _check.lengths(lengths, max_length)
    return np.arange(max_length) < lengths[:, None]
