"""Batch norm for HIPS autograd: compiled, with derivatives in both modes to the second order.

The derivatives are made of three linear maps, each of which `cbn` computes: the tangent T of y, its
transpose B (backward), and H, the second derivative of <dy, y>, which double backward gives and
which is symmetric. Only the derivative of a tangent by a tangent needs a formula of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbn.cache import BatchNormCache
from cbn.derivatives import (
    batch_norm_double_backward,
    batch_norm_inference_cache,
    batch_norm_jvp,
)
from cbn.functional import batch_norm_backward, batch_norm_forward
from cbn.functional import batch_norm_inference as _cbn_inference
from cbn.interop._extra import extra

with extra("autograd"):
    import autograd.builtins  # primitives that return tuples
    import autograd.numpy  # noqa: F401  arrays as arguments
    from autograd.extend import defjvp_argnums, defvjp_argnums, primitive
    from autograd.tracer import isbox

__all__ = ["batch_norm", "batch_norm_inference"]


def batch_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int | None = None,
    eps: float = 1e-5,
    num_threads: int | None = None,
) -> NDArray:
    """Normalize a batch with its own statistics: y of `cbn.batch_norm_forward` for autograd.

    Parameters
    ----------
    x, gamma, beta, axis, eps, num_threads
        As for `cbn.batch_norm_forward`.

    Returns
    -------
    ndarray
        y, of x's shape and dtype; inside ``autograd.grad`` and its like a traced one.

    Raises
    ------
    ValueError, TypeError
        As `cbn.batch_norm_forward`.
    NotImplementedError
        When a third derivative is asked for.

    Examples
    --------
    >>> import numpy as np
    >>> from autograd import grad
    >>> from cbn.interop.autograd import batch_norm
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> grad(lambda beta: batch_norm(x, None, beta).sum())(np.zeros(2))
    array([2., 2.])
    """
    return _forward(x, gamma, beta, _Call(None, axis, eps, num_threads))


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
) -> NDArray:
    """Normalize with given statistics: `cbn.batch_norm_inference` for autograd.

    Parameters
    ----------
    x, mean, var, gamma, beta, axis, eps, num_threads
        As for `cbn.batch_norm_inference`; mean and var are constants for autograd.

    Returns
    -------
    ndarray
        y, of x's shape and dtype.

    Raises
    ------
    ValueError, TypeError
        As `cbn.batch_norm_inference`, and for a mean or var to differentiate by.
    NotImplementedError
        When a third derivative is asked for.
    """
    for name, value in {"mean": mean, "var": var}.items():
        if isbox(value):
            raise TypeError(f"{name}: expected a constant, got an argument of the derivative")
    return _forward(x, gamma, beta, _Call((mean, var), axis, eps, num_threads))


class _Call:
    """One call of batch norm, on whose cache all its derivatives work."""

    def __init__(self, statistics: Any, axis: int | None, eps: float, threads: int | None) -> None:
        self.statistics = statistics
        self.options: dict[str, Any] = {"axis": axis, "eps": eps}
        self.threads: dict[str, Any] = {"num_threads": threads}
        self.cache: BatchNormCache

    def forward(self, x: Any, gamma: Any, beta: Any) -> NDArray:
        if self.statistics is None:
            y, self.cache = batch_norm_forward(x, gamma, beta, **self.options, **self.threads)
            return y
        mean, var = self.statistics
        y = _cbn_inference(x, mean, var, gamma, beta, **self.options, **self.threads)
        self.cache = batch_norm_inference_cache(x, mean, var, gamma, beta, **self.options)
        return y

    def backward(self, dy: NDArray) -> tuple[Any, ...]:
        return batch_norm_backward(dy, self.cache, **self.threads)

    def tangent(self, x_dot: Any, gamma_dot: Any = None, beta_dot: Any = None) -> NDArray:
        x_dot = np.zeros_like(self.cache.x) if x_dot is None else x_dot
        return batch_norm_jvp(x_dot, self.cache, gamma_dot, beta_dot, **self.threads)

    def channels(self, values: NDArray) -> NDArray:
        """Per-channel values, to multiply arrays of x's shape with."""
        shape = [1] * self.cache.x.ndim
        shape[self.cache.axis] = -1
        return values.reshape(shape)


@primitive
def _forward(x: Any, gamma: Any, beta: Any, call: _Call) -> NDArray:
    return call.forward(x, gamma, beta)


@primitive
def _tangent(x_dot: Any, gamma_dot: Any, beta_dot: Any, x: Any, gamma: Any, call: _Call) -> NDArray:
    """T: the tangent of y."""
    return call.tangent(x_dot, gamma_dot, beta_dot)


@primitive
def _backward(dy: Any, x: Any, gamma: Any, call: _Call, argnums: tuple[int, ...]) -> tuple:
    """B: those gradients in x, gamma and beta."""
    gradients = call.backward(dy)
    return tuple(gradients[i] for i in argnums)


@primitive
def _hessian(x_dot: Any, gamma_dot: Any, beta_dot: Any, dy: Any, call: _Call) -> tuple:
    """T of dy's gradient and H: gradients of <T(x_dot, gamma_dot, beta_dot), dy> in dy, x, gamma.

    H alone is the tangent of B's gradients in x and gamma; that in beta has none.
    """
    x_dot = np.zeros_like(call.cache.x) if x_dot is None else x_dot
    return batch_norm_double_backward(x_dot, dy, call.cache, gamma_dot, beta_dot, **call.threads)


@primitive
def _second_tangent(
    x_dot: Any, gamma_dot: Any, x_dot2: Any, gamma_dot2: Any, call: _Call
) -> NDArray:
    """The tangent along x_dot2 and gamma_dot2 of T(x_dot, gamma_dot).

    xhat' = T of x_dot / gamma, and by (3)-(4) with c = mean(xhat x_dot), c2 of x_dot2
    xhat'' = -invstd (c2 xhat' + c xhat'2 + xhat mean(x_dot xhat'2)); 0 for given statistics.
    """
    cache, along = call.cache, call.channels
    ones = np.ones(cache.var.shape)
    unit = _Call(call.statistics, cache.axis, cache.eps, call.threads["num_threads"])
    xhat = unit.forward(cache.x, ones, ones * 0)
    tangents = [None if a is None else unit.tangent(a) for a in (x_dot, x_dot2)]
    y = np.zeros_like(xhat)
    for xhat_dot, factor in zip(tangents, (gamma_dot2, gamma_dot), strict=True):
        if xhat_dot is not None and factor is not None:
            y += along(factor) * xhat_dot
    if call.statistics is None and x_dot is not None and x_dot2 is not None:
        c, c2 = (unit.backward(a)[1] / cache.count for a in (x_dot, x_dot2))
        others = tuple(i for i in range(xhat.ndim) if i != cache.axis)
        m = np.mean(x_dot * tangents[1], axis=others, dtype=np.float64)
        bend = along(c2) * tangents[0] + along(c) * tangents[1] + along(m) * xhat
        scale = cache.invstd if cache.gamma is None else cache.gamma * cache.invstd
        y -= (along(scale) * bend).astype(y.dtype)
    return y


def _spread(values: Any, argnums: tuple[int, ...], count: int = 3) -> list[Any]:
    """The values at their places, None elsewhere."""
    places: list[Any] = [None] * count
    for i, value in zip(argnums, values, strict=True):
        places[i] = value
    return places


def _forward_vjp(argnums: Any, y: Any, args: Any, _: Any) -> Any:
    x, gamma, _, call = args
    return lambda dy: _backward(dy, x, gamma, call, tuple(argnums))


def _forward_jvp(argnums: Any, dots: Any, y: Any, args: Any, _: Any) -> Any:
    x, gamma, _, call = args
    return _tangent(*_spread(dots, argnums), x, gamma, call)


def _tangent_vjp(argnums: Any, y_dot: Any, args: Any, _: Any) -> Any:
    *dots, x, gamma, call = args

    def vjp(dy: Any) -> tuple:
        linear = tuple(i for i in argnums if i < 3)
        gradients = _spread(_backward(dy, x, gamma, call, linear) if linear else (), linear, 5)
        if any(i >= 3 for i in argnums):
            gradients[3:] = _hessian(*dots, dy, call)[1:]
        return tuple(gradients[i] for i in argnums)

    return vjp


def _tangent_jvp(argnums: Any, dots: Any, y_dot: Any, args: Any, _: Any) -> Any:
    first_x, first_gamma, _, x, gamma, call = args
    *linear, x_dot, gamma_dot = _spread(dots, argnums, 5)
    parts = []
    if any(a is not None for a in linear):
        parts.append(_tangent(*linear, x, gamma, call))
    if x_dot is not None or gamma_dot is not None:
        parts.append(_second_tangent(first_x, first_gamma, x_dot, gamma_dot, call))
    return sum(parts[1:], parts[0])


def _backward_vjp(argnums: Any, gradients: Any, args: Any, _: Any) -> Any:
    dy, _, _, call, wanted = args

    def vjp(cotangents: Any) -> tuple:
        results = _hessian(*_spread(cotangents, wanted), dy, call)
        return tuple(results[i] for i in argnums)

    return vjp


def _backward_jvp(argnums: Any, dots: Any, gradients: Any, args: Any, _: Any) -> Any:
    dy, x, gamma, call, wanted = args
    dy_dot, x_dot, gamma_dot = _spread(dots, argnums)
    tangents: dict[int, Any] = {}
    if dy_dot is not None:
        tangents = dict(zip(wanted, _backward(dy_dot, x, gamma, call, wanted), strict=True))
    if x_dot is not None or gamma_dot is not None:
        for i, second in enumerate(_hessian(x_dot, gamma_dot, None, dy, call)[1:]):
            tangents[i] = tangents[i] + second if i in tangents else second
    dbeta_dot = np.zeros(call.cache.mean.shape, call.cache._beta_dtype)
    return autograd.builtins.tuple([tangents.get(i, dbeta_dot) for i in wanted])


defvjp_argnums(_forward, _forward_vjp)
defjvp_argnums(_forward, _forward_jvp)
defvjp_argnums(_tangent, _tangent_vjp)
defjvp_argnums(_tangent, _tangent_jvp)
defvjp_argnums(_backward, _backward_vjp)
defjvp_argnums(_backward, _backward_jvp)
