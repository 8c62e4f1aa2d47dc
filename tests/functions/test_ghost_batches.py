"""virtual_batch_size: groups along axis 0, each normalized by itself; pooled statistics."""

from __future__ import annotations

import math

import numpy as np
import option_reference as reference
import pytest
from cases import Batch, Masked, same_bytes, some_weight, within
from hypothesis import given
from hypothesis import strategies as st
from strategies import FLOATS, batches, layouts
from tolerances import dbeta_bound, dgamma_bound, mean_bound, u, var_bound

import cbn

SHAPES = [((40, 5), 1), ((7, 11, 6), -1), ((10, 3, 50), 1), ((9, 4, 5, 5), 1), ((9, 5, 5, 4), 3)]
LARGE = [((3001, 40), 1, 128), ((70001, 3), 1, 4096), ((33, 16, 28, 28), 1, 8), ((999, 300), 1, 2)]
SIZES = [1, 2, 3, 7, 39, 40, 1000]

shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)
sizes = pytest.mark.parametrize("size", SIZES)
dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)


def run(b, axis, num_threads=None, **options):
    threads = {"num_threads": num_threads}
    y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, axis=axis, **options, **threads)
    return y, cache, cbn.batch_norm_backward(b.dy, cache, **threads)


def check_slices(b, axis, size, along=(), **options):
    """Every group has the bytes of a call of its own; `along` names options that are cut too."""
    y, cache, (dx, dgamma, dbeta, *rest) = run(b, axis, virtual_batch_size=size, **options)
    sums, pieces = 0, 0
    for start in range(0, len(b.x), size):
        part = slice(start, start + size)
        cut = {name: a[part] if name in along else a for name, a in options.items()}
        alone, own = cbn.batch_norm_forward(b.x[part], b.gamma, b.beta, axis=axis, **cut)
        gradients = cbn.batch_norm_backward(b.dy[part], own)
        same_bytes(y[part], alone)
        same_bytes(dx[part], gradients[0])
        for whole, piece in zip(rest, gradients[3:], strict=True):
            same_bytes(whole[part], piece)
        sums = sums + np.array(gradients[1:3]).astype(np.longdouble)
        pieces = pieces + u(dgamma.dtype) * np.abs(np.array(gradients[1:3]).astype(np.float64))
    f = reference.forward(b.x, b.gamma, b.beta, axis=axis, virtual_batch_size=size, **options)
    dy, kind = reference.counted(b.dy, f, y), b.x.dtype
    within(dgamma, sums[0], 2 * dgamma_bound(kind, dy, f.xhat) + pieces[0])
    within(dbeta, sums[1], 2 * dbeta_bound(kind, dy) + pieces[1])
    return cache


@sizes
@dtypes
@shapes
def test_values(shape, axis, dtype, size):
    b = Batch(shape, dtype, axis=axis)
    reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis, virtual_batch_size=size)


@sizes
@dtypes
@shapes
def test_bytes_are_those_of_separate_calls(shape, axis, dtype, size):
    check_slices(Batch(shape, dtype, axis=axis), axis, size)


@pytest.mark.slow
@pytest.mark.parametrize("shape, axis, size", LARGE, ids=str)
def test_large_batches(shape, axis, size, dtype):
    b = Batch(shape, dtype, axis=axis)
    check_slices(b, axis, size)
    reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis, virtual_batch_size=size)


@given(data=st.data(), size=st.integers(1, 8))
def test_any_batch_in_any_layout(data, size):
    b, axis = data.draw(batches(first=1))
    check_slices(b, axis, size)
    options = {"axis": axis, "virtual_batch_size": size}
    y, cache, gradients = reference.check(b.x, b.dy, b.gamma, b.beta, **options)
    for name in ("x", "dy"):
        a = getattr(b, name)
        setattr(b, name, data.draw(layouts(a.shape))(a))
    again, other, found = run(b, **options)
    same_bytes(again, y)
    same_bytes(other.mean, cache.mean)
    for a, right in zip(found, gradients, strict=True):
        same_bytes(a, right)


@sizes
@shapes
def test_statistics_are_those_of_the_whole_batch(shape, axis, dtype, size):
    b = Batch(shape, dtype, axis=axis)
    _, cache = cbn.batch_norm_forward(b.x, axis=axis, virtual_batch_size=size)
    _, plain = cbn.batch_norm_forward(b.x, axis=axis)
    assert cache.count == plain.count == b.x.size // shape[axis]
    within(cache.mean, plain.mean, 2 * mean_bound(dtype, plain.mean, plain.var))
    within(cache.var, plain.var, 2 * var_bound(dtype, plain.var))


@pytest.mark.parametrize("size", [32, 100, 256])
def test_pooling_is_exact_where_groups_differ(size, dtype):
    """Groups around means far apart, and all of them far from zero."""
    b = Batch((1001, 5), dtype)
    steps = np.repeat(np.arange(-(-1001 // size)), size)[:1001, None]
    b.x = (b.x + 1e5 + 1e3 * steps).astype(dtype)
    reference.check(b.x, b.dy, b.gamma, b.beta, virtual_batch_size=size)


def test_sums_over_many_groups_keep_the_bound(dtype):
    """All of one sign, so that a running sum in float64 would lose sqrt(groups) u."""
    b = Batch((8000, 3), dtype)
    b.dy = (1 + np.abs(b.dy)).astype(dtype)
    dbeta = run(b, None, virtual_batch_size=2)[2][2]
    exact = [math.fsum(column) for column in b.dy.T.tolist()]
    within(dbeta, np.array(exact), dbeta_bound(dtype, b.dy))


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_groups_of_one_row(eps, dtype):
    b = Batch((9, 4), dtype)
    y, cache, (dx, dgamma, _) = run(b, None, eps=eps, virtual_batch_size=1)
    assert np.array_equal(y, np.broadcast_to(b.beta, y.shape))
    assert not dx.any() and not dgamma.any() and cache.var.all()


def test_one_group_is_a_plain_call(dtype):
    b = Batch((300, 9), dtype)
    y, cache, gradients = run(b, None, virtual_batch_size=300)
    right, plain, expected = run(b, None)
    same_bytes(y, right)
    for name in ("mean", "var"):
        same_bytes(getattr(cache, name), getattr(plain, name))
    for found, gradient in zip(gradients, expected, strict=True):
        same_bytes(found, gradient)


def test_a_nan_stays_in_its_group_and_channel(dtype):
    b = Batch((50, 6), dtype)
    clean, _, (clean_dx, *_) = run(b, None, virtual_batch_size=16)
    b.x[20, 3] = np.nan
    y, cache, (dx, *_) = run(b, None, virtual_batch_size=16)
    spoilt = np.zeros((50, 6), bool)
    spoilt[16:32, 3] = True
    assert np.isnan(y[spoilt]).all() and np.isnan(cache.mean[3]) and np.isnan(cache.var[3])
    same_bytes(y[~spoilt], clean[~spoilt])
    same_bytes(dx[~spoilt], clean_dx[~spoilt])


def test_threads_and_out(dtype):
    b = Batch((5000, 33), dtype)
    y, cache, gradients = run(b, None, virtual_batch_size=700, num_threads=1)
    out, dx = np.empty_like(b.x), np.empty_like(b.x)
    for threads in (2, 5):
        options = {"virtual_batch_size": 700, "out": out, "num_threads": threads}
        found, other = cbn.batch_norm_forward(b.x, b.gamma, b.beta, **options)
        assert found is out
        same_bytes(out, y)
        same_bytes(other.var, cache.var)
        again = cbn.batch_norm_backward(b.dy, other, out=dx, num_threads=threads)
        assert again[0] is dx
        for a, right in zip(again, gradients, strict=True):
            same_bytes(a, right)


# With other options -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 16])
@shapes
def test_with_a_mask(shape, axis, dtype, size):
    """Groups may be masked entirely."""
    m = Masked(shape, axis, dtype)
    m.mask[:3] = False
    m.x[:3] = m.dy[:3] = np.nan
    check_slices(m, axis, size, along=("mask",), mask=m.mask)
    options = {"mask": m.mask, "virtual_batch_size": size}
    y, _, _ = reference.check(m.x, m.dy, m.gamma, m.beta, axis=axis, **options)
    assert not y[:3].any()


@shapes
def test_with_weights(shape, axis, dtype):
    b = Batch(shape, dtype, axis=axis)
    weight = some_weight(shape, axis) + 0.1
    check_slices(b, axis, 4, along=("sample_weight",), sample_weight=weight)
    options = {"sample_weight": weight, "virtual_batch_size": 4}
    reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis, **options)


@shapes
def test_with_residual_and_relu(shape, axis, dtype):
    b = Batch(shape, dtype, axis=axis)
    residual = Batch(shape, dtype, axis=axis, key="residual").dy
    options = {"residual": residual, "activation": "relu"}
    check_slices(b, axis, 4, along=("residual",), **options)
    reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis, virtual_batch_size=4, **options)


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_below_one(size):
    with pytest.raises(ValueError, match="virtual_batch_size: expected"):
        cbn.batch_norm_forward(np.ones((4, 3)), virtual_batch_size=size)


@pytest.mark.parametrize("size", [2.5, "4", [4]], ids=str)
def test_sizes_are_integers(size):
    with pytest.raises(TypeError, match="virtual_batch_size: expected"):
        cbn.batch_norm_forward(np.ones((4, 3)), virtual_batch_size=size)


@pytest.mark.parametrize("shape, axis", [((4, 3), 0), ((4, 3), -2), ((4, 3, 2), 0)], ids=str)
def test_groups_are_not_cut_from_channels(shape, axis):
    with pytest.raises(ValueError, match="virtual_batch_size: expected|axis: expected"):
        cbn.batch_norm_forward(np.ones(shape), axis=axis, virtual_batch_size=2)
