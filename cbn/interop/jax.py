"""Batch norm for JAX on CPUs: compiled forward, backward and double backward as callbacks.

The functions work under ``jax.jit``, ``jax.grad`` and ``jax.vmap``, with second derivatives in
reverse mode (``jax.grad`` of ``jax.grad``, ``jax.jacrev``). JAX allows one custom derivative a
function: there is no forward mode (``jax.jvp``, ``jax.jacfwd``, ``jax.hessian``), for which see
`cbn.batch_norm_jvp`.

Design: a callback sees NumPy arrays alone, since jax.numpy inside one can wait for itself. What
backward needs of forward, float64 statistics, travels as uint32: JAX has float64 only when it is
told to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbn import _check
from cbn._arrays import float64
from cbn.cache import NO_OPTIONS, BatchNormCache
from cbn.derivatives import batch_norm_double_backward, batch_norm_inference_cache
from cbn.functional import batch_norm_backward, batch_norm_forward, batch_norm_inference_backward
from cbn.functional import batch_norm_inference as _cbn_inference
from cbn.interop._extra import extra

with extra("jax"):
    import jax
    import jax.numpy as jnp
    from jax.custom_derivatives import SymbolicZero
    from jax.typing import ArrayLike

__all__ = ["batch_norm", "batch_norm_inference"]


class _Options(NamedTuple):
    axis: int
    eps: float
    num_threads: int | None


def batch_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int | None = None,
    eps: float = 1e-5,
    num_threads: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalize a batch with its own statistics: `cbn.batch_norm_forward` for JAX.

    Parameters
    ----------
    x : array_like, shape (N, D) or more dimensions
        Of dtype float32, float16, bfloat16 or, with ``jax_enable_x64``, float64; integers and bool
        become JAX's default float.
    gamma, beta : array_like, shape (D,), optional
        Scale and shift, of any of those floating dtypes; ones and zeros when not given.
    axis : int, optional
        The channel axis. The last one for 2-D x; must be given for more dimensions (Flax: -1).
    eps : float
        Added to the variance, finite and >= 0; a Python number, not traced.
    num_threads : int, optional
        Threads for this call and its derivatives, see `cbn.get_num_threads`; ``with
        cbn.num_threads(n)`` does not reach JAX's own threads.

    Returns
    -------
    y : jax.Array
        Of x's shape and dtype.
    mean, var : jax.Array, shape (D,)
        Mean and biased variance, rounded to float32 (float64 for such x); what running statistics
        are averaged of. They have gradients too, which cost nothing where none is asked for.

    Raises
    ------
    ValueError, TypeError
        As `cbn.batch_norm_forward`, when traced.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from cbn.interop.jax import batch_norm
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> y, mean, var = jax.jit(batch_norm)(x)
    >>> print(mean, var)
    [ 2. 20.] [  1. 100.]
    >>> jax.grad(lambda beta: batch_norm(x, beta=beta)[0].sum())(jnp.zeros(2))
    Array([2., 2.], dtype=float32)
    """
    x, options = _input(x, axis, eps, num_threads)
    channels = x.shape[options.axis]
    return _forward(
        options, x, _parameter("gamma", gamma, channels), _parameter("beta", beta, channels)
    )[:3]


def batch_norm_inference(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int | None = None,
    eps: float = 1e-5,
    num_threads: int | None = None,
) -> jax.Array:
    """Normalize with given statistics: `cbn.batch_norm_inference` for JAX.

    Parameters
    ----------
    x, gamma, beta, axis, eps, num_threads
        As for `batch_norm`.
    mean, var : array_like, shape (D,)
        Statistics of the population, floating; var >= 0, which is not checked. They have gradients
        as everything else.

    Returns
    -------
    jax.Array
        y, of x's shape and dtype.

    Raises
    ------
    ValueError, TypeError
        As `cbn.batch_norm_inference`, when traced.
    """
    x, options = _input(x, axis, eps, num_threads)
    channels = x.shape[options.axis]
    _check.given("mean", mean, channels)
    _check.given("var", var, channels)
    given = {"mean": mean, "var": var, "gamma": gamma, "beta": beta}
    return _inference(
        options, x, *(_parameter(name, value, channels) for name, value in given.items())
    )


def _input(
    x: ArrayLike, axis: int | None, eps: float, num_threads: int | None
) -> tuple[jax.Array, _Options]:
    x = jnp.asarray(x)
    _check.real_dtype("x", x.dtype)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(float)
    threads = None if num_threads is None else _check.threads(num_threads)
    return x, _Options(_check.batch(x, axis), _check.epsilon(eps), threads)


def _parameter(name: str, value: ArrayLike | None, channels: int) -> jax.Array | None:
    if value is None:
        return None
    array = jnp.asarray(value)
    _check.parameter_form(name, array, channels)
    return array


def _like(*arrays: jax.Array | None) -> tuple[Any, ...]:
    """What a callback returns that makes arrays like these."""
    return tuple(None if a is None else jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays)


def _call(function: Callable[..., Any], results: Any, *arrays: jax.Array | None) -> Any:
    def callback(*arrays: Any) -> Any:
        return function(*(None if a is None else np.asarray(a) for a in arrays))

    return jax.pure_callback(callback, results, *arrays, vmap_method="sequential")


# Training. Each function that calls back has a derivative of its own, and the rules below use
# these functions alone: so derivatives can be differentiated once more.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(
    options: _Options, x: jax.Array, gamma: jax.Array | None, beta: jax.Array | None
) -> tuple[jax.Array, ...]:
    """y, mean, var and for backward the statistics in float64, as bits."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    channels = x.shape[options.axis]
    vector = jax.ShapeDtypeStruct((channels,), dtype)
    bits = jax.ShapeDtypeStruct((4, 2 * channels), np.uint32)

    def function(x: NDArray, gamma: NDArray | None, beta: NDArray | None) -> tuple[NDArray, ...]:
        y, cache = batch_norm_forward(x, gamma, beta, **options._asdict())
        with np.errstate(over="ignore"):
            statistics = cache.mean.astype(dtype), cache.var.astype(dtype)
        return y, *statistics, np.ascontiguousarray(cache._stats[:4]).view(np.uint32)

    return _call(function, (*_like(x), vector, vector, bits), x, gamma, beta)


def _forward_fwd(options: _Options, *inputs: Any) -> tuple[Any, Any]:
    x, gamma, beta = (None if a is None else a.value for a in inputs)
    results = _forward(options, x, gamma, beta)
    return results, (x, gamma, beta, results[2], results[3])


def _forward_bwd(options: _Options, kept: Any, cotangents: Any) -> tuple[Any, ...]:
    x, gamma, beta, var, bits = kept
    dy, dmean, dvar, _ = cotangents
    if isinstance(dy, SymbolicZero):
        dx, dgamma, dbeta = jnp.zeros_like(x), None, None
    else:
        dx, dgamma, dbeta = _backward(options, dy, x, gamma, beta, bits)
    if not (isinstance(dmean, SymbolicZero) and isinstance(dvar, SymbolicZero)):
        dx += _statistics_bwd(options, x, var, dmean, dvar)
    return dx, dgamma, dbeta


def _statistics_bwd(
    options: _Options, x: jax.Array, var: jax.Array, dmean: Any, dvar: Any
) -> jax.Array:
    """(dmean + 2 dvar (x - mean)) / N, the gradients of (1) and (2), as xhat times std."""
    count = x.size // max(x.shape[options.axis], 1)
    dmean, dvar = (jnp.zeros_like(var) if isinstance(a, SymbolicZero) else a for a in (dmean, dvar))
    scale = 2 * dvar * jnp.sqrt(var + options.eps) / count
    return _forward(options, x, scale, dmean / count)[0]


_forward.defvjp(_forward_fwd, _forward_bwd, symbolic_zeros=True)


def _batch_cache(
    options: _Options, x: NDArray, gamma: NDArray | None, beta: NDArray | None, bits: NDArray
) -> BatchNormCache:
    stats = np.ascontiguousarray(bits).view(np.float64)
    count = x.size // max(x.shape[options.axis], 1)
    return BatchNormCache(
        *(x, stats, float64(gamma), gamma, beta, options.eps, options.axis, count),
        NO_OPTIONS,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _backward(
    options: _Options,
    dy: jax.Array,
    x: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    bits: jax.Array,
) -> tuple[jax.Array | None, ...]:
    """dx, dgamma and dbeta of a batch."""

    def function(dy: NDArray, *batch: Any) -> tuple[NDArray | None, ...]:
        cache = _batch_cache(options, *batch)
        return batch_norm_backward(dy, cache, num_threads=options.num_threads)

    return _call(function, _like(x, gamma, beta), dy, x, gamma, beta, bits)


def _backward_fwd(options: _Options, *inputs: Any) -> tuple[Any, Any]:
    return _backward(options, *inputs), inputs


def _backward_bwd(options: _Options, inputs: Any, cotangents: Any) -> tuple[Any, ...]:
    dy, x, gamma, _, _ = inputs

    def function(dy: NDArray, *rest: Any) -> tuple[NDArray | None, ...]:
        *batch, ddx, ddgamma, ddbeta = rest
        return batch_norm_double_backward(
            *(ddx, dy, _batch_cache(options, *batch), ddgamma, ddbeta),
            num_threads=options.num_threads,
        )

    return *_call(function, _like(dy, x, gamma), *inputs, *cotangents), None, None


_backward.defvjp(_backward_fwd, _backward_bwd)


# Inference, the same with given statistics.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _inference(
    options: _Options,
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
) -> jax.Array:
    function = partial(_cbn_inference, **options._asdict())
    return _call(function, *_like(x), x, mean, var, gamma, beta)


def _inference_fwd(options: _Options, *inputs: Any) -> tuple[Any, Any]:
    return _inference(options, *inputs), inputs


def _inference_bwd(options: _Options, inputs: Any, dy: jax.Array) -> tuple[Any, ...]:
    """dmean and dvar are (11) and (10) of statistics that x does not move."""
    x, mean, var, gamma, beta = inputs
    wide = jnp.result_type(x, mean, var, jnp.float32)
    scale = jnp.ones(mean.shape, wide) if gamma is None else gamma.astype(wide)
    dx, dgamma, dbeta = _inference_backward(options, dy, x, mean, var, scale)
    invstd = _inverse_std(var.astype(wide), options.eps)
    return (
        dx,
        (-scale * invstd * dbeta).astype(mean.dtype),
        (-scale * invstd**2 / 2 * dgamma).astype(var.dtype),
        None if gamma is None else dgamma.astype(gamma.dtype),
        None if beta is None else dbeta.astype(beta.dtype),
    )


_inference.defvjp(_inference_fwd, _inference_bwd)


def _inverse_std(var: jax.Array, eps: float) -> jax.Array:
    total = var + eps
    return jnp.where(total > 0, 1 / jnp.sqrt(jnp.where(total > 0, total, 1)), 0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _inference_backward(
    options: _Options,
    dy: jax.Array,
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    gamma: jax.Array,
) -> tuple[jax.Array, ...]:
    """dx, and dgamma and dbeta in gamma's dtype."""
    function = partial(batch_norm_inference_backward, **options._asdict())
    return _call(function, _like(x, gamma, gamma), dy, x, mean, var, gamma)


def _inference_backward_fwd(options: _Options, *inputs: Any) -> tuple[Any, Any]:
    results = _inference_backward(options, *inputs)
    return results, (inputs, results[1:])


def _inference_backward_bwd(options: _Options, kept: Any, cotangents: Any) -> tuple[Any, ...]:
    (dy, x, mean, var, gamma), (dgamma, dbeta) = kept
    ddgamma = cotangents[1]

    def function(dy: NDArray, *rest: Any) -> tuple[NDArray | None, ...]:
        *given, ddx, ddgamma, ddbeta = rest
        cache = batch_norm_inference_cache(*given, axis=options.axis, eps=options.eps)
        return batch_norm_double_backward(
            ddx, dy, cache, ddgamma, ddbeta, num_threads=options.num_threads
        )

    g_dy, g_x, g_gamma = _call(function, _like(dy, x, gamma), dy, x, mean, var, gamma, *cotangents)
    invstd = _inverse_std(var.astype(gamma.dtype), options.eps)
    g_mean = -ddgamma * invstd * dbeta
    g_var = -(invstd**2) / 2 * (gamma * g_gamma + ddgamma * dgamma)
    return g_dy, g_x, g_mean.astype(mean.dtype), g_var.astype(var.dtype), g_gamma


_inference_backward.defvjp(_inference_backward_fwd, _inference_backward_bwd)
