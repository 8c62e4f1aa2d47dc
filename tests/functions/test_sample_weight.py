"""sample_weight: statistics and gradients of weighted rows; integers are repetition."""

from __future__ import annotations

import numpy as np
import option_reference as reference
import pytest
from cases import Batch, Masked, generator, same_bytes, some_weight, within
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import FLOATS, batches, layouts, masks, weights
from tolerances import dbeta_bound, dgamma_bound, dx_bound, mean_bound, var_bound, y_bound

import cbn

SHAPES = [((40, 5), 1), ((3, 70), 0), ((7, 11, 6), -1), ((4, 3, 50), 1), ((3, 4, 9, 5), 1)]
LARGE = [((3000, 40), 1), ((70001, 3), 1), ((8, 16, 28, 28), 1)]

shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)


@dtypes
@shapes
def test_values(shape, axis, dtype):
    b = Batch(shape, dtype, axis=axis)
    weight = some_weight(shape, axis)
    _, cache, _ = reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis, sample_weight=weight)
    assert cache.count == pytest.approx(weight.sum(), rel=1e-14)


@pytest.mark.parametrize("shape, axis", LARGE, ids=str)
def test_values_of_large_batches(shape, axis, dtype):
    b = Batch(shape, dtype, axis=axis)
    weight = some_weight(shape, axis)
    reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis, sample_weight=weight)


@given(data=st.data(), eps=st.sampled_from([0.0, 1e-5, 1.0]))
def test_any_weight(data, eps):
    b, axis = data.draw(batches())
    weight = data.draw(weights(b.x.shape, axis, data.draw(st.sampled_from(FLOATS))))
    options = {"axis": axis, "eps": eps}
    arguments = (b.x, b.dy, b.gamma, b.beta)
    y, _, gradients = reference.check(*arguments, sample_weight=weight, **options)
    x, dy, weight = (data.draw(layouts(a.shape))(a) for a in (b.x, b.dy, weight))
    again, cache = cbn.batch_norm_forward(x, b.gamma, b.beta, sample_weight=weight, **options)
    same_bytes(again, y)
    for found, right in zip(cbn.batch_norm_backward(dy, cache), gradients, strict=True):
        same_bytes(found, right)


@given(data=st.data())
def test_a_weight_and_a_mask(data):
    b, axis = data.draw(batches())
    mask = data.draw(masks(b.x.shape, axis))
    weight = data.draw(weights(b.x.shape, axis)) + 0.25
    assume(mask.any())
    cells = mask if mask.ndim == b.x.ndim else np.expand_dims(mask, axis)
    cells = np.broadcast_to(cells, b.x.shape)
    for name in ("x", "dy"):
        setattr(b, name, np.where(cells, getattr(b, name), np.array(np.nan, b.x.dtype)))
    reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis, mask=mask, sample_weight=weight)


def test_weights_behind_the_mask_do_not_count(dtype):
    m = Masked((60, 5), 1, dtype)
    weight = generator("behind").uniform(0.5, 2, 60)
    y, cache, gradients = m.run(sample_weight=weight)
    found = m.run(sample_weight=np.where(m.mask, weight, 1e6))
    same_bytes(found[0], y)
    assert found[1].count == cache.count
    same_bytes(found[2][0], gradients[0])


@shapes
def test_integers_are_repetition(shape, axis, dtype):
    """Each copy of row i receives dy_i / w_i; its y is that of row i, and its dx add up."""
    b = Batch(shape, dtype, axis=axis)
    times = generator("times", shape).integers(1, 5, np.delete(shape, axis))
    b.dy = (np.round(b.dy * 64) * np.expand_dims(times, axis)).astype(dtype)
    options = {"axis": axis, "sample_weight": times}
    y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, **options)
    dx, dgamma, dbeta = cbn.batch_norm_backward(b.dy, cache)
    copies = np.repeat(np.arange(times.size), times.ravel())
    x = reference.rows(b.x, axis)[copies]
    dy = (reference.rows(b.dy, axis) / times.reshape(-1, 1)).astype(dtype)[copies]
    right = reference.forward(x, b.gamma, b.beta)
    assert cache.count == len(copies)
    within(cache.mean, right.mean, mean_bound(dtype, right.mean, right.var))
    within(cache.var, right.var, var_bound(dtype, right.var))
    bound = y_bound(dtype, b.gamma, b.beta, right.xhat)
    within(reference.rows(y, axis)[copies], right.y, bound)
    repeated = reference.backward(dy, right)
    summed = np.zeros((times.size, b.x.shape[axis]), repeated[0].dtype)
    np.add.at(summed, copies, repeated[0])
    f = reference.forward(b.x, b.gamma, b.beta, **options)
    rows = reference.rows(b.dy, axis)
    share = f.share.astype(np.float64)
    bound = dx_bound(dtype, rows, f.xhat, b.gamma, f.invstd, share)
    within(reference.rows(dx, axis), summed, bound)
    within(dgamma, repeated[1], dgamma_bound(dtype, rows, f.xhat))
    within(dbeta, repeated[2], dbeta_bound(dtype, rows))


@shapes
def test_zeros_and_ones_have_the_statistics_of_a_mask(shape, axis, dtype):
    """But rows of weight 0 have their y, by the statistics of the others."""
    b = Batch(shape, dtype, axis=axis)
    mask = generator("zeros", shape).random(np.delete(shape, axis)) < 0.6
    mask.flat[0] = True
    options = {"axis": axis, "sample_weight": mask.astype(np.float32)}
    y, cache, _ = reference.check(b.x, b.dy, b.gamma, b.beta, **options)
    masked, alone = cbn.batch_norm_forward(b.x, b.gamma, b.beta, axis=axis, mask=mask)
    assert cache.count == alone.count
    within(cache.mean, alone.mean, 2 * mean_bound(dtype, alone.mean, alone.var))
    assert np.all(np.moveaxis(y, axis, -1)[~mask] != 0)
    assert not np.moveaxis(masked, axis, -1)[~mask].any()


@pytest.mark.parametrize("factor", [2.0**-40, 0.5, 4, 2.0**60])
def test_only_shares_matter(factor, dtype):
    """Weights times a power of two: all the same but the count."""
    b = Batch((60, 7), dtype)
    weight = some_weight((60, 7), 1)
    y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, sample_weight=weight)
    scaled, other = cbn.batch_norm_forward(b.x, b.gamma, b.beta, sample_weight=factor * weight)
    assert other.count == factor * cache.count
    xhat = reference.forward(b.x, sample_weight=weight).xhat
    within(scaled, y.astype(np.longdouble), 2 * y_bound(dtype, b.gamma, b.beta, xhat))


def test_hard_data(dtype):
    """A mean far from zero, an outlier of weight 0 in front, a channel that is constant."""
    b = Batch((700, 4), dtype)
    b.x = (b.x + 1e5).astype(dtype)
    b.x[:, 2] = 0.1
    b.x[0], b.x[0, 2] = 1e9, 0.1
    b.dy[0] = 0  # or dgamma drowns all else
    weight = some_weight((700, 4), 1)
    weight[0] = 0
    y, cache, _ = reference.check(b.x, b.dy, b.gamma, b.beta, sample_weight=weight)
    assert cache.var[2] == 0 and np.all(y[:, 2] == b.beta[2])


def test_one_weight_for_all_and_out(dtype):
    b = Batch((33, 6), dtype)
    out = np.empty_like(b.x)
    options = {"sample_weight": np.full((1, 1), 3), "out": out}
    y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, **options)
    assert y is out and cache.count == 99
    f = reference.forward(b.x, b.gamma, b.beta)
    within(y, f.y, y_bound(dtype, b.gamma, b.beta, f.xhat))


def test_threads_and_later_changes(dtype):
    b = Batch((5000, 33), dtype)
    weight = some_weight((5000, 33), 1)
    results = []
    for threads in (1, 2, 5):
        given = weight.copy()
        options = {"sample_weight": given, "num_threads": threads}
        y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, **options)
        given[:] = 0
        results.append((y, cache.mean, *cbn.batch_norm_backward(b.dy, cache, num_threads=threads)))
    for other in results[1:]:
        for found, right in zip(other, results[0], strict=True):
            same_bytes(found, right)


def test_the_layout_of_the_weights_decides_nothing():
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(8, 9, 7, 6)), rng.uniform(0.1, 3, (9, 7, 6))
    y, cache = cbn.batch_norm_forward(x, axis=0, sample_weight=weight)
    other = cbn.batch_norm_forward(x, axis=0, sample_weight=np.asfortranarray(weight))
    assert other[1].count == cache.count
    same_bytes(other[0], y)


@pytest.mark.parametrize("bad", [-1.0, -1e-300, np.nan, np.inf, -np.inf])
def test_weights_are_finite_and_not_negative(bad):
    weight, out = np.ones(4), np.full((4, 3), 5.0)
    weight[2] = bad
    with pytest.raises(ValueError, match="sample_weight: expected"):
        cbn.batch_norm_forward(np.ones((4, 3)), sample_weight=weight, out=out)
    assert np.all(out == 5)


@pytest.mark.parametrize("weight", [np.zeros(4), np.ones((4, 3)), np.ones(5)], ids=str)
def test_other_weights_that_are_refused(weight):
    with pytest.raises(ValueError, match="sample_weight: expected"):
        cbn.batch_norm_forward(np.ones((4, 3)), sample_weight=weight)


@pytest.mark.parametrize("weight", [np.ones(4, complex), ["a"] * 4], ids=["complex", "str"])
def test_weights_are_real(weight):
    with pytest.raises(TypeError, match="sample_weight: expected"):
        cbn.batch_norm_forward(np.ones((4, 3)), sample_weight=weight)
