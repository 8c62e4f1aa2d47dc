"""Batch norm with every option in plain NumPy, for any rank; it shares no code with the library.

Inside, arrays are rows (N, D): the channel axis last, all others flattened in their order. float64
is computed in longdouble and every other dtype in float64, so that the error is negligible.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from cases import within
from tolerances import (
    dbeta_bound,
    dgamma_bound,
    dx_bound,
    invstd_bound,
    mean_bound,
    rounded,
    u,
    var_bound,
    working,
    y_bound,
)

import cbn


def wide(a):
    a = np.asarray(a)
    return a.astype(np.longdouble if a.dtype == np.float64 else np.float64)


def rows(a, axis):
    moved = np.moveaxis(np.asarray(a), axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def unrows(a, shape, axis):
    """Rows as an array of this shape."""
    return np.moveaxis(a.reshape(*np.delete(shape, axis), shape[axis]), -1, axis)


def positions(a, shape, axis):
    """A mask or a weight as one value per row: the channel axis may be missing or of size 1."""
    a = np.asarray(a)
    if a.ndim == len(shape):
        assert a.shape[axis] == 1
        a = a.squeeze(axis)
    return np.broadcast_to(a, np.delete(shape, axis)).ravel()


def moments(x, weight):
    """Sum of the weights, mean, x - mean and variance of the rows x; zeros where nothing counts.

    The shift by a row that counts keeps a constant column exact and a mean far from zero close.
    """
    total = weight.sum()
    share = weight / total if total else weight
    start = x[np.argmax(weight > 0)] if total else 0
    centred = x - start
    rest = share @ centred
    centred = centred - rest
    more = share @ centred
    return total, start + rest + more, centred - more, share @ (centred - more) ** 2


def forward(
    x,
    gamma=None,
    beta=None,
    *,
    axis=-1,
    eps=1e-5,
    mask=None,
    sample_weight=None,
    virtual_batch_size=None,
    residual=None,
    activation=None,
):
    """Return y in x's shape and what backward needs, as rows; .mean .var .count are pooled."""
    axis = -1 if axis is None else axis
    f = SimpleNamespace(shape=x.shape, axis=axis, relu=activation == "relu", eps=eps)
    all_true = np.ones(np.delete(x.shape, axis), bool)
    f.real = positions(all_true if mask is None else mask, x.shape, axis)
    x = np.where(f.real[:, None], wide(rows(x, axis)), 0)
    weight = 1 if sample_weight is None else wide(positions(sample_weight, f.shape, axis))
    weight = (f.real * weight).astype(x.dtype)
    f.gamma = np.ones(x.shape[1], x.dtype) if gamma is None else wide(gamma)
    f.count, f.mean, _, f.var = moments(x, weight)
    size = len(x)
    if virtual_batch_size is not None:
        assert axis % len(f.shape) != 0
        size = virtual_batch_size * (len(x) // f.shape[0])
    f.groups = [slice(start, start + size) for start in range(0, len(x), size)]
    f.xhat, f.invstd, f.share = np.empty_like(x), np.empty_like(x), np.zeros((len(x), 1), x.dtype)
    for group in f.groups:
        total, _, centred, var = moments(x[group], weight[group])
        f.invstd[group] = _invstd(var + eps)
        f.xhat[group] = centred * f.invstd[group]
        if total:
            f.share[group, 0] = weight[group] / total
    f.y = unrows(_affine(f, beta, residual), f.shape, axis)
    return f


def fixed(
    x, mean, var, gamma=None, beta=None, *, axis=-1, eps=1e-5, residual=None, activation=None
):
    """The same for given statistics, which do not depend on x: inference."""
    f = SimpleNamespace(shape=x.shape, axis=axis, relu=activation == "relu", eps=eps)
    x, mean, var = wide(rows(x, axis)), wide(mean), wide(var)
    f.real, f.groups = np.ones(len(x), bool), [slice(0, len(x))]
    f.gamma = np.ones(x.shape[1], x.dtype) if gamma is None else wide(gamma)
    f.share = np.zeros((len(x), 1), x.dtype)
    f.invstd = np.broadcast_to(_invstd(var + eps), x.shape)
    f.xhat = (x - mean) * f.invstd
    f.y = unrows(_affine(f, beta, residual), f.shape, axis)
    return f


def _invstd(square):
    return np.where(square == 0, 0, 1 / np.sqrt(np.where(square == 0, 1, square)))


def _affine(f, beta, residual):
    y = f.gamma * f.xhat + (0 if beta is None else wide(beta))
    if residual is not None:
        y = y + wide(rows(residual, f.axis))
    if f.relu:
        y = np.where(y > 0, y, 0)
    return np.where(f.real[:, None], y, 0)


def counted(dy, f, y):
    """The rows of dy that count: those of the mask, and with ReLU where y > 0."""
    dy = np.where(f.real[:, None], wide(rows(dy, f.axis)), 0)
    return np.where(rows(y, f.axis) > 0, dy, 0) if f.relu else dy


def backward(dy, f, y=None):
    """Return dx, dgamma, dbeta, dresidual; y has the signs, by default this module's own."""
    dy = counted(dy, f, f.y if y is None else y)
    dx = np.empty_like(dy)
    for g in f.groups:
        sums = dy[g].sum(axis=0) + f.xhat[g] * (dy[g] * f.xhat[g]).sum(axis=0)
        dx[g] = f.gamma * f.invstd[g] * (dy[g] - f.share[g] * sums)
    dx = np.where(f.real[:, None], dx, 0)
    dx, dresidual = (unrows(a, f.shape, f.axis) for a in (dx, dy))
    return dx, (dy * f.xhat).sum(axis=0), dy.sum(axis=0), dresidual


# Comparison ---------------------------------------------------------------------------------------


def check_output(y, cache, f, dtype, gamma=None, beta=None, residual=None):
    """Assert the bounds of y and, with a cache, of the pooled statistics."""
    shift = np.zeros(1) if beta is None else np.abs(wide(beta))
    if residual is not None:
        shift = shift + np.abs(wide(rows(residual, f.axis)))
    assert y.dtype == dtype and y.shape == f.shape
    bound = np.broadcast_to(y_bound(dtype, gamma, shift, f.xhat), f.xhat.shape)
    within(rows(y, f.axis), rows(f.y, f.axis), np.where(f.real[:, None], bound, 0))
    if cache is None:
        return
    assert cache.mean.dtype == cache.var.dtype == np.float64
    assert abs(cache.count - f.count) <= 8 * u(np.float64) * f.count
    within(cache.var, f.var, var_bound(dtype, f.var))
    within(cache.mean, f.mean, mean_bound(dtype, f.mean, f.var))
    if f.count and len(f.groups) == 1:
        within(cache.invstd, f.invstd[0], invstd_bound(dtype, f.var, f.eps))


def check_gradients(gradients, dy, y, f, dtype, gamma=None, beta=None, residual=None):
    """Assert the bounds of what batch_norm_backward returned."""
    dx, dgamma, dbeta, dresidual = backward(dy, f, y)
    assert len(gradients) == (3 if residual is None else 4)
    assert gradients[0].dtype == dtype and gradients[0].shape == f.shape
    dy = counted(dy, f, y)
    bound = [
        dx_bound(dtype, dy[g], f.xhat[g], gamma, f.invstd[g], f.share[g].astype(np.float64))
        for g in f.groups
    ]
    bound = np.where(f.real[:, None], np.concatenate(bound), 0)
    within(rows(gradients[0], f.axis), rows(dx, f.axis), bound)
    kernel = working(dtype)
    bounds = dgamma_bound(kernel, dy, f.xhat), dbeta_bound(kernel, dy)
    for found, parameter, right, bound in zip(
        gradients[1:3], (gamma, beta), (dgamma, dbeta), bounds, strict=True
    ):
        assert (found is None) is (parameter is None)
        if found is not None:
            assert found.dtype == parameter.dtype.newbyteorder("=")
            within(found, right, parameter_bound(bound, found.dtype, dtype, right))
    if residual is not None:
        assert gradients[3].dtype == dtype
        assert np.array_equal(gradients[3], dresidual.astype(dtype))


def parameter_bound(bound, own, dtype, right):
    """What rounding to the parameter's own dtype adds to the bound of x's dtype."""
    if np.dtype(own) == np.float32 and dtype == np.float64:
        return bound + u(own) * (np.abs(right) + bound)
    return rounded(own, bound, right)


def check(x, dy, gamma=None, beta=None, **options):
    """Run forward and backward, assert every bound, return (y, cache, gradients)."""
    f = forward(x, gamma, beta, **options)
    y, cache = cbn.batch_norm_forward(x, gamma, beta, **options)
    gradients = cbn.batch_norm_backward(dy, cache)
    dtype = np.dtype(x.dtype).newbyteorder("=")
    residual = options.get("residual")
    check_output(y, cache, f, dtype, gamma, beta, residual)
    check_gradients(gradients, dy, y, f, dtype, gamma, beta, residual)
    return y, cache, gradients


def check_inference(b, axis, eps=1e-5, **options):
    """The same for cbn's inference on a Batch, and for its backward if there are no options."""
    y = cbn.batch_norm_inference(b.x, b.mean, b.var, b.gamma, b.beta, axis=axis, eps=eps, **options)
    f = fixed(b.x, b.mean, b.var, b.gamma, b.beta, axis=axis, eps=eps, **options)
    check_output(y, None, f, b.x.dtype, b.gamma, b.beta, options.get("residual"))
    if not options:
        gradients = cbn.batch_norm_inference_backward(
            b.dy, b.x, b.mean, b.var, b.gamma, axis=axis, eps=eps
        )
        check_gradients(gradients, b.dy, y, f, b.x.dtype, b.gamma, b.gamma)
