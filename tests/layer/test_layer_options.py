"""cbn/layer.py and cbn/moments.py: mask, sample_weight, residual and activation on their way."""

from __future__ import annotations

import numpy as np
import pytest
from cases import generator, same_bytes

import cbn
from cbn import BatchNorm, Moments

N, C = 12, 4
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def batch(seed=0, shape=(N, C)):
    rng = generator("options", seed, shape)
    return rng.normal(3, 2, shape), rng.normal(0.3, 1, shape)


def layer(**options):
    bn = BatchNorm(C, dtype=np.float64, **options)
    rng = generator("parameters")
    bn.gamma[...], bn.beta[...] = rng.normal(1, 0.5, C), rng.normal(0, 1, C)
    return bn


def gradients(bn):
    return {"dgamma": bn.dgamma, "dbeta": bn.dbeta}


# Masks and weights --------------------------------------------------------------------------------


def test_moments_of_what_counts():
    x = batch()[0]
    mask = generator("mask").random(N) < 0.6
    padded = np.where(mask[:, None], x, np.nan)
    m, right = Moments.from_batch(padded, mask=mask), Moments.from_batch(x[mask])
    assert m.count == right.count == mask.sum()
    np.testing.assert_allclose(m.mean, right.mean, **CLOSE)
    np.testing.assert_allclose(m.var(1), right.var(1), **CLOSE)
    whole = m.update(x, mask=~mask)
    assert whole.count == N
    np.testing.assert_allclose(whole.var(), x.var(axis=0), **CLOSE)


def test_moments_of_weighted_rows():
    x = batch()[0]
    weight = generator("weight").integers(0, 4, N)
    m = Moments.from_batch(x, sample_weight=weight.astype(float))
    right = Moments.from_batch(np.repeat(x, weight, axis=0))
    assert m.count == right.count
    np.testing.assert_allclose(m.mean, right.mean, **CLOSE)
    np.testing.assert_allclose(m.m2, right.m2, **CLOSE)


def test_no_row_counts():
    m = Moments.from_batch(np.full((N, C), np.nan), mask=np.zeros(N, bool))
    assert m.count == 0 and not np.any([m.mean, m.mean_low, m.m2])
    x = batch()[0]
    assert m.update(x) == Moments.from_batch(x)
    assert m.update(x * np.nan, mask=np.zeros(N, bool)) == Moments.from_batch(x)


def test_a_mask_in_training():
    bn, rows = layer(), layer()
    x, dy = batch()
    mask = generator("mask").random(N) < 0.6
    y = bn(np.where(mask[:, None], x, np.nan), mask=mask)
    np.testing.assert_allclose(y[mask], rows(x[mask]), **CLOSE)
    dx = bn.backward(np.where(mask[:, None], dy, np.nan))
    np.testing.assert_allclose(dx[mask], rows.backward(dy[mask]), **CLOSE)
    assert not y[~mask].any() and not dx[~mask].any()
    for name, right in gradients(rows).items():
        np.testing.assert_allclose(gradients(bn)[name], right, **CLOSE)
    for name, right in rows.state_dict().items():
        np.testing.assert_allclose(bn.state_dict()[name], right, **CLOSE)


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"renorm": True}], ids=str)
def test_nothing_counts_and_nothing_is_tracked(options):
    bn = layer(**options)
    x, dy = batch()
    bn(x)
    before = bn.state_dict()
    assert not bn(x * np.nan, mask=np.zeros(N, bool)).any()
    same_bytes(bn.state_dict(), before)
    assert not bn.backward(dy).any()


def test_too_little_counts():
    bn = layer()
    x, dy = batch()
    bn(x)
    before, dx = bn.state_dict(), bn.backward(dy)
    with pytest.raises(ValueError, match="^Expected more than 1 value per channel when training"):
        bn(x, mask=np.arange(N) == 3)
    with pytest.raises(ValueError, match="^correction: expected less than"):
        bn(x, sample_weight=np.full(N, 0.5 / N))
    same_bytes(bn.state_dict(), before)
    same_bytes(bn.backward(dy), dx)
    assert bn.num_batches_tracked == 1


def test_a_mask_over_images():
    x, dy = batch(shape=(3, C, 5, 2))
    mask = generator("mask").random((3, 5, 1)) < 0.5
    bn, rows = layer(axis=1), layer()
    y, dx = bn(x, mask=mask), bn.backward(dy)
    counts = np.broadcast_to(mask, (3, 5, 2))
    flat, flat_dy = (np.moveaxis(a, 1, -1)[counts] for a in (x, dy))
    np.testing.assert_allclose(np.moveaxis(y, 1, -1)[counts], rows(flat), **CLOSE)
    np.testing.assert_allclose(np.moveaxis(dx, 1, -1)[counts], rows.backward(flat_dy), **CLOSE)
    np.testing.assert_allclose(bn.running_var, rows.running_var, **CLOSE)


def test_weights_are_repetitions():
    bn, rows = layer(), layer()
    x, dy = batch()
    weight = generator("weight").integers(1, 4, N)
    y = bn(x, sample_weight=weight.astype(float))
    np.testing.assert_allclose(np.repeat(y, weight, axis=0), rows(np.repeat(x, weight, axis=0)))
    for name, right in rows.state_dict().items():
        np.testing.assert_allclose(bn.state_dict()[name], right, **CLOSE)
    spread = np.repeat(dy / weight[:, None], weight, axis=0)
    dx = np.add.reduceat(rows.backward(spread), np.cumsum(weight) - weight, axis=0)
    np.testing.assert_allclose(bn.backward(dy), dx, **CLOSE)


def test_in_evaluation_nothing_is_weighed():
    bn = layer()
    x = batch()[0]
    bn(x)
    y = bn.eval()(x)
    same_bytes(bn(x, sample_weight=np.arange(N, dtype=float)), y)


@pytest.mark.parametrize("mask", [np.arange(N) % 3 != 1, np.zeros(N, bool), np.ones(N, bool)])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_mask_in_evaluation(mask, activation):
    """As in training: y and dx are 0 where it leaves out, and what lies there is not read."""
    bn, rows = layer(activation=activation), layer(activation=activation)
    x, dy = batch()
    for each in (bn, rows):
        each.train()(x)
        each.eval()
    hole = np.where(mask[:, None], 0.0, np.nan)
    y, dx = bn(x + hole, mask=mask), bn.backward(dy + hole)
    assert not y[~mask].any() and not dx[~mask].any()
    if not mask.any():
        return
    same_bytes(y[mask], rows(x[mask]))
    same_bytes(dx[mask], rows.backward(dy[mask]))
    for name, right in gradients(rows).items():
        np.testing.assert_allclose(gradients(bn)[name], right, **CLOSE)


def test_masked_inference_over_its_input():
    x, mask = batch()[0], np.arange(N) < 5
    right = cbn.batch_norm_inference(x[mask], np.ones(C), np.ones(C))
    x[~mask] = np.nan
    assert cbn.batch_norm_inference(x, np.ones(C), np.ones(C), mask=mask, out=x) is x
    same_bytes(x[mask], right)
    assert not x[~mask].any()


def test_renorm_by_what_counts():
    bn, rows = layer(renorm=True, r_max=1.5), layer(renorm=True, r_max=1.5)
    x, dy = batch()
    mask = np.arange(N) % 3 != 1
    np.testing.assert_allclose(bn(x, mask=mask)[mask], rows(x[mask]), **CLOSE)
    np.testing.assert_allclose(bn.backward(dy)[mask], rows.backward(dy[mask]), **CLOSE)
    np.testing.assert_allclose(bn.dgamma, rows.dgamma, **CLOSE)


@pytest.mark.parametrize("name", ["mask", "sample_weight", "residual"])
def test_a_bad_option_changes_nothing(name):
    bn = layer()
    x, dy = batch()
    bn(x)
    before, dx = bn.state_dict(), bn.backward(dy)
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        bn(x, **{name: np.ones((N + 1, C), bool)})
    same_bytes(bn.state_dict(), before)
    same_bytes(bn.backward(dy), dx)


# Residual and activation --------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("renorm", [False, True])
def test_what_is_fused_is_the_same(renorm, with_residual, activation, training):
    fused, plain = layer(activation=activation, renorm=renorm), layer(renorm=renorm)
    residual = batch(1)[0] - 3
    for bn in (fused, plain):
        bn(batch(2)[0])
        bn.train(training)
    x, dy = batch()
    given = {"residual": residual} if with_residual else {}
    total = plain(x) + (residual if with_residual else 0)
    wanted = np.maximum(total, 0) if activation else total
    np.testing.assert_allclose(fused(x, **given), wanted, **CLOSE)
    inner = np.where(total > 0, dy, 0) if activation else dy
    result = fused.backward(dy)
    assert isinstance(result, tuple) is with_residual
    dx = result[0] if with_residual else result
    np.testing.assert_allclose(dx, plain.backward(inner), **CLOSE)
    if with_residual:
        np.testing.assert_allclose(result[1], inner, **CLOSE)
    for name, right in gradients(plain).items():
        np.testing.assert_allclose(gradients(fused)[name], right, **CLOSE)
    for name, right in plain.state_dict().items():
        np.testing.assert_allclose(fused.state_dict()[name], right, **CLOSE)


def test_an_unknown_activation():
    bn = layer()
    bn.activation = "swish"
    with pytest.raises(ValueError, match="^activation: expected"):
        bn(batch()[0])
    assert bn.num_batches_tracked == 0


def test_the_residual_may_be_the_last_output():
    reused, plain = layer(reuse_buffers=True), layer()
    x, dy = batch()
    for bn in (reused, plain):
        bn.y = bn(x, residual=bn(x))
    same_bytes(reused.y, plain.y)
    for a, b in zip(reused.backward(dy), plain.backward(dy), strict=True):
        same_bytes(a, b)


def test_update_running_stats_of_weights_that_sum_to_one():
    x = batch()[0]
    m = Moments.from_batch(x, sample_weight=np.full(N, 1 / N))
    mean, var = np.zeros(C), np.ones(C)
    with pytest.raises(ValueError, match="^correction: expected less than"):
        cbn.update_running_stats(mean, var, m, correction=1.5)
    assert cbn.update_running_stats(mean, var, m, momentum=1.0, correction=0)
    np.testing.assert_allclose(var, x.var(axis=0), **CLOSE)
