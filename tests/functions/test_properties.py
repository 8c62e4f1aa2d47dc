"""What holds for every batch: invariances to the bit, identities of the gradients."""

from __future__ import annotations

import exact
import numpy as np
from cases import Batch, everything, same_bytes, within
from hypothesis import given
from hypothesis import strategies as st
from tolerances import dgamma_bound, dx_bound, var_bound, y_bound

import cbn

DTYPES = st.sampled_from([np.float32, np.float64])
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.tuples(st.integers(1, 300), st.integers(1, 40))
EPS = st.sampled_from([0.0, 1e-5, 1e-2, 1.0])
BATCHES = st.builds(Batch, SHAPES, DTYPES, key=SEEDS)


def training(b, eps=1e-5):
    cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, eps=eps)[1]
    return cache, cbn.batch_norm_backward(b.dy, cache)


def bounds(b, eps):
    """xhat and the bounds of dx and dgamma, from the exact forward pass."""
    right = exact.forward(b.x, b.gamma, b.beta, eps)
    xhat, invstd = exact.floats(right.xhat), exact.floats(right.invstd)
    dx = dx_bound(b.x.dtype, b.dy, xhat, b.gamma, invstd)
    return right, xhat, dx, dgamma_bound(b.x.dtype, b.dy, xhat)


# To the bit ---------------------------------------------------------------------------------------


@given(b=BATCHES, seed=SEEDS)
def test_permuting_channels_permutes_bytes(b, seed):
    expected = everything(b)
    order = np.random.default_rng(seed).permutation(b.x.shape[1])
    for name in vars(b):
        setattr(b, name, np.ascontiguousarray(getattr(b, name)[..., order]))
    permuted = {name: a[..., order] for name, a in expected.items()}
    same_bytes(everything(b), permuted)


@given(b=BATCHES, power=st.integers(-25, 25), eps=EPS)
def test_scaling_x_and_eps_leaves_y(b, power, eps):
    """x by 2^k and eps by 4^k: y and dgamma keep their bytes, dx is divided by 2^k exactly."""
    y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, eps=eps)
    dx, dgamma, dbeta = cbn.batch_norm_backward(b.dy, cache)
    x = np.ldexp(b.x, power)
    scaled, cache = cbn.batch_norm_forward(x, b.gamma, b.beta, eps=float(np.ldexp(eps, 2 * power)))
    same_bytes(scaled, y)
    for found, right in zip(
        cbn.batch_norm_backward(b.dy, cache), (np.ldexp(dx, -power), dgamma, dbeta), strict=True
    ):
        assert np.array_equal(found, right)


@given(b=BATCHES, shift=st.integers(-(2**12), 2**12), eps=EPS)
def test_shifting_x_leaves_y_to_rounding(b, shift, eps):
    """By a constant that x can hold: each y is within its bound of the one exact result.

    Not to the bit, for the mean in two parts is rounded elsewhere.
    """
    x = (np.round(b.x * 16) / 16).astype(b.x.dtype)
    moved = x + x.dtype.type(shift)
    assert np.array_equal(moved.astype(np.float64) - shift, x)
    y, cache = cbn.batch_norm_forward(x, b.gamma, b.beta, eps=eps)
    found, other = cbn.batch_norm_forward(moved, b.gamma, b.beta, eps=eps)
    xhat = (x - cache.mean) * cache.invstd
    within(found, y, 2 * y_bound(x.dtype, b.gamma, b.beta, xhat))
    within(other.var, cache.var, 2 * var_bound(x.dtype, cache.var))


@given(b=BATCHES)
def test_negating_x_negates_y_and_dx(b):
    """Rounding to nearest has no side."""
    b.beta[:] = 0
    y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta)
    dx, dgamma, dbeta = cbn.batch_norm_backward(b.dy, cache)
    negated, cache = cbn.batch_norm_forward(-b.x, b.gamma, b.beta)
    assert np.array_equal(negated, -y)
    for found, right in zip(
        cbn.batch_norm_backward(-b.dy, cache), (-dx, dgamma, -dbeta), strict=True
    ):
        assert np.array_equal(found, right)


@given(b=BATCHES, power=st.integers(-30, 30), eps=EPS)
def test_backward_scales_with_dy(b, power, eps):
    cache, expected = training(b, eps)
    dy = np.ldexp(b.dy, power)
    for found, right in zip(cbn.batch_norm_backward(dy, cache), expected, strict=True):
        assert np.array_equal(found, np.ldexp(right, power))


@given(b=BATCHES, data=st.data())
def test_inference_knows_no_other_row(b, data):
    rows = data.draw(st.lists(st.integers(0, len(b.x) - 1), min_size=1, max_size=50))
    cols = data.draw(st.lists(st.integers(0, b.x.shape[1] - 1), min_size=1, max_size=20))
    y = cbn.batch_norm_inference(b.x, b.mean, b.var, b.gamma, b.beta)
    vectors = (b.mean[cols], b.var[cols], b.gamma[cols], b.beta[cols])
    part = cbn.batch_norm_inference(b.x[np.ix_(rows, cols)], *vectors)
    same_bytes(part, np.ascontiguousarray(y[np.ix_(rows, cols)]))


@given(b=BATCHES)
def test_missing_parameters_are_ones_and_zeros(b):
    ones, zeros = np.ones_like(b.gamma), np.zeros_like(b.beta)
    y, cache = cbn.batch_norm_forward(b.x)
    given, _ = cbn.batch_norm_forward(b.x, ones, zeros)
    same_bytes(given, y)
    dx, dgamma, dbeta = cbn.batch_norm_backward(b.dy, cache)
    assert dgamma is None and dbeta is None
    b.gamma, b.beta = ones, zeros
    same_bytes(training(b)[1][0], dx)


# Identities of the gradients ----------------------------------------------------------------------

SMALL = st.builds(
    Batch, st.tuples(st.integers(2, 60), st.integers(1, 4)), DTYPES, key=st.integers(0, 2**32 - 1)
)


@given(b=SMALL, eps=EPS)
def test_columns_of_dx_sum_to_zero(b, eps):
    dx = training(b, eps)[1][0]
    _, _, dx_error, _ = bounds(b, eps)
    total = exact.exact(dx).sum(axis=0)
    within(np.zeros(dx.shape[1]), total, dx_error.sum(axis=0))


@given(b=SMALL, eps=EPS)
def test_dx_along_xhat(b, eps):
    """sum(dx xhat) = gamma invstd dgamma eps / (var + eps), and not zero unless eps is."""
    _, (dx, dgamma, _) = training(b, eps)
    right, xhat, dx_error, dgamma_error = bounds(b, eps)
    along = (exact.exact(dx) * right.xhat).sum(axis=0)
    factor = exact.floats(right.gamma * right.invstd**3 * eps)
    bound = (dx_error * np.abs(xhat)).sum(axis=0) + np.abs(factor) * dgamma_error
    within(factor * dgamma, along, bound)


def _multiples(a):
    """Rounded to 2^-10, so that sums of a few are exact."""
    return (np.round(a * 1024) / 1024).astype(a.dtype)


@given(b=SMALL, eps=EPS, factor=st.integers(-3, 3), seed=SEEDS)
def test_backward_is_linear_in_dy(b, eps, factor, seed):
    """backward(dy + c dz) = backward(dy) + c backward(dz), each within its bound."""
    dz = np.random.default_rng(seed).normal(-0.2, 1, b.dy.shape).astype(b.dy.dtype)
    dy, dz = _multiples(b.dy), _multiples(dz)
    cache, _ = training(b, eps)
    right = exact.forward(b.x, b.gamma, b.beta, eps)
    xhat, invstd = exact.floats(right.xhat), exact.floats(right.invstd)
    total, bound = 0, 0
    for c, part in ((1, dy), (factor, dz), (-1, dy + factor * dz)):
        dx = cbn.batch_norm_backward(part, cache)[0]
        total = total + c * exact.exact(dx)
        bound = bound + abs(c) * dx_bound(b.x.dtype, part, xhat, b.gamma, invstd)
    within(np.zeros(b.x.shape), total, bound)


@given(b=SMALL, eps=EPS, seed=SEEDS)
def test_the_jacobian_is_symmetric(b, eps, seed):
    """<dz, J dy> = <J dz, dy>: backward is its own transpose."""
    dz = np.random.default_rng(seed).normal(-0.2, 1, b.dy.shape).astype(b.dy.dtype)
    cache, _ = training(b, eps)
    right = exact.forward(b.x, b.gamma, b.beta, eps)
    xhat, invstd = exact.floats(right.xhat), exact.floats(right.invstd)
    products, bound = [], 0
    for one, other in ((b.dy, dz), (dz, b.dy)):
        dx = cbn.batch_norm_backward(one, cache)[0]
        products.append((exact.exact(dx) * exact.exact(other)).sum(axis=0))
        error = dx_bound(b.x.dtype, one, xhat, b.gamma, invstd)
        bound = bound + (error * np.abs(other)).sum(axis=0)
    within(np.zeros(len(invstd)), products[0] - products[1], bound)
