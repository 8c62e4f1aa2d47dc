"""out=x: y overwrites x and backward works from y; dx may be written over dy."""

from __future__ import annotations

import tracemalloc

import numpy as np
import option_reference as reference
import pytest
from cases import Batch, Masked, same_bytes, slow_if, some_weight, within
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import FLOATS, batches, layouts
from tolerances import dbeta_bound, dgamma_bound, dx_bound, y_bound

import cbn

SHAPES = [((40, 5), 1), ((3, 70), 0), ((7, 11, 6), -1), ((4, 3, 50), 1), ((3, 4, 9, 5), 1)]
SHAPES += [((3000, 40), 1), ((8, 16, 28, 28), 1)]

shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)


def batch(shape, dtype, axis, key="in place"):
    """A Batch with |gamma| of 1/2 to 2, as a user of the mode would have."""
    b = Batch(shape, dtype, axis=axis, key=key)
    b.gamma = (np.exp2(np.clip(b.gamma, -1, 1)) * np.sign(b.gamma)).astype(dtype)
    return b


def check(b, axis, **options):
    """y has the bytes of another array's; the gradients are those of xhat = (y - beta) / gamma."""
    x = b.x.copy(order="K")
    y, plain = cbn.batch_norm_forward(x, b.gamma, b.beta, axis=axis, **options)
    target = b.x
    found, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, axis=axis, out=b.x, **options)
    assert found is target
    same_bytes(found, y)
    for name in ("mean", "var"):
        same_bytes(getattr(cache, name), getattr(plain, name))
    assert cache.count == plain.count
    gradients = cbn.batch_norm_backward(b.dy, cache)
    same_bytes(target, y)
    f = reference.forward(x, b.gamma, b.beta, axis=axis, **options)
    from_x, beta = f.xhat, 0 if b.beta is None else reference.wide(b.beta)
    f.xhat = (reference.wide(reference.rows(y, f.axis)) - beta) / f.gamma
    f.xhat = np.where(f.real[:, None], f.xhat, 0)
    reference.check_gradients(gradients, b.dy, y, f, y.dtype, b.gamma, b.beta)
    f.xhat = from_x
    _check_beside_x(b, y, gradients, f)
    return cache, gradients


def _check_beside_x(b, y, gradients, f):
    """The gradients of x itself, allowing for the error that y's rounding makes in xhat."""
    dy, (dx, dgamma, dbeta, _) = reference.counted(b.dy, f, y), reference.backward(b.dy, f)
    size, xhat, scale = (np.abs(a).astype(np.float64) for a in (dy, f.xhat, f.gamma * f.invstd))
    share = f.share.astype(np.float64)
    off = y_bound(y.dtype, b.gamma, b.beta, xhat) / np.abs(f.gamma).astype(np.float64)
    found, right = (reference.rows(a, f.axis) for a in (gradients[0], dx))
    for g in f.groups:
        sums = off[g] * (size[g] * xhat[g]).sum(axis=0)
        sums = sums + (xhat[g] + off[g]) * (size[g] * off[g]).sum(axis=0)
        bound = dx_bound(y.dtype, dy[g], xhat[g] + off[g], b.gamma, f.invstd[g], share[g])
        bound = bound + scale[g] * share[g] * sums
        within(found[g], right[g], np.where(f.real[g, None], bound, 0))
    if gradients[1] is not None:
        bound = dgamma_bound(y.dtype, dy, xhat + off) + (size * off).sum(axis=0)
        within(gradients[1], dgamma, bound)
    if gradients[2] is not None:
        within(gradients[2], dbeta, dbeta_bound(y.dtype, dy))


# Values -------------------------------------------------------------------------------------------


@dtypes
@shapes
def test_values(shape, axis, dtype):
    check(batch(shape, dtype, axis), axis)


@pytest.mark.parametrize("given", ["", "gamma", "beta"])
@dtypes
def test_missing_parameters(given, dtype):
    b = batch((67, 5), dtype, 1)
    for name in {"gamma", "beta"} - {given}:
        setattr(b, name, None)
    check(b, None)


@given(drawn=batches(), data=st.data(), eps=st.sampled_from([1e-5, 1.0]))
def test_any_batch_in_any_layout(drawn, data, eps):
    b, axis = drawn
    assume(np.all(np.abs(b.gamma) > 0.1))
    b.x = data.draw(layouts(b.x.shape, writeable=True))(b.x)
    b.dy = data.draw(layouts(b.dy.shape))(b.dy)
    check(b, axis, eps=eps)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_constant_channels(eps, dtype):
    b = batch((50, 4), dtype, 1)
    b.x[:, 2] = 0.1
    _, (dx, dgamma, dbeta) = check(b, None, eps=eps)
    assert np.all(b.x[:, 2] == b.beta[2]) and dgamma[2] == 0
    assert eps or not dx[:, 2].any()


def test_what_is_lost_in_y_is_lost_for_the_gradients():
    """beta = 2^20 leaves y a few bits of xhat; the gradients follow y, since x is gone."""
    b = batch((400, 3), np.float32, 1)
    b.beta = np.full(3, 2.0**20, np.float32)
    check(b, None)


@pytest.mark.parametrize("size", slow_if((1).__eq__, [1, 2, 1000]))
@shapes
def test_with_groups(shape, axis, dtype, size):
    if axis == 0:  # groups are not cut from channels
        shape, axis = shape[::-1], 1
    check(batch(shape, dtype, axis), axis, virtual_batch_size=size)


@shapes
def test_with_weights(shape, axis, dtype):
    weight = some_weight(shape, axis) + 0.1
    check(batch(shape, dtype, axis), axis, sample_weight=weight)


@shapes
def test_with_a_mask(shape, axis, dtype):
    m = Masked(shape, axis, dtype)
    m.gamma = batch(shape, dtype, axis).gamma
    check(m, axis, mask=m.mask)


def test_threads(dtype):
    results = []
    for threads in (1, 2, 5):
        b = batch((5000, 33), dtype, 1)
        options = {"out": b.x, "num_threads": threads}
        y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, **options)
        results.append((y, *cbn.batch_norm_backward(b.dy, cache, num_threads=threads)))
    for other in results[1:]:
        for found, right in zip(other, results[0], strict=True):
            same_bytes(found, right)


@dtypes
@shapes
def test_dx_over_dy(shape, axis, dtype):
    b = batch(shape, dtype, axis)
    for out in (None, b.x.copy()):
        x = b.x if out is None else out
        _, cache = cbn.batch_norm_forward(x, b.gamma, b.beta, axis=axis, out=out)
        expected = cbn.batch_norm_backward(b.dy, cache)
        dy = b.dy.copy()
        found = cbn.batch_norm_backward(dy, cache, out=dy)
        assert found[0] is dy
        for a, right in zip(found, expected, strict=True):
            same_bytes(a, right)


@dtypes
@shapes
def test_dx_of_fixed_statistics_over_dy(shape, axis, dtype):
    """Also where they lie past float32: such channels are made in float64 either way."""
    b = batch(shape, dtype, axis)
    channels = shape[axis]
    mean = np.resize([0.5, -1e36, 1e30, 1e-40, 1e300], channels)
    var = np.resize([2.0, 5e-324, 1e70, 1e-70], channels)
    gamma = np.resize([1.3, -0.7, 1e35, 1e-38, -1e300, 0.0, 1e160], channels)
    b.dy[..., 0] = -0.0
    options = {"axis": axis, "eps": 0.0}
    expected = cbn.batch_norm_inference_backward(b.dy, b.x, mean, var, gamma, **options)
    for name in ("dy", "x"):
        over = {"dy": b.dy.copy(), "x": b.x.copy()}
        found = cbn.batch_norm_inference_backward(
            over["dy"], over["x"], mean, var, gamma, out=over[name], **options
        )
        for a, right in zip(found, expected, strict=True):
            same_bytes(a, right)


def test_no_copy_of_x():
    x = np.random.default_rng(1).standard_normal((8192, 512), np.float32)
    dy = x[::-1].copy()
    tracemalloc.start()
    try:
        _, cache = cbn.batch_norm_forward(x, out=x)
        cbn.batch_norm_backward(dy, cache, out=dy)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 4


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_gamma_with_a_zero(zero, dtype):
    b = batch((40, 5), dtype, 1)
    before = b.x.copy()
    b.gamma[3] = zero
    with pytest.raises(ValueError, match=r"gamma: expected|out: expected"):
        cbn.batch_norm_forward(b.x, b.gamma, b.beta, out=b.x)
    same_bytes(b.x, before)
    cbn.batch_norm_forward(b.x, b.gamma, b.beta, out=np.empty_like(b.x))


@pytest.mark.parametrize("kind", ["residual", "activation"])
def test_residual_and_activation(kind, dtype):
    b = batch((40, 5), dtype, 1)
    before = b.x.copy()
    option = {"residual": b.dy} if kind == "residual" else {"activation": "relu"}
    with pytest.raises(ValueError, match=f"{kind}: expected|out: expected"):
        cbn.batch_norm_forward(b.x, b.gamma, b.beta, out=b.x, **option)
    same_bytes(b.x, before)
    cbn.batch_norm_inference(b.x, b.mean, b.var, b.gamma, b.beta, out=b.x, **option)
