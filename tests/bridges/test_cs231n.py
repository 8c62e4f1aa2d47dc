"""cbn.interop.cs231n against the course's conventions, written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import REFERENCE_RTOL

from cbn.interop import cs231n


def course_train(x, gamma, beta, momentum, running_mean, running_var, eps):
    """What the assignment asks for, in float64: rows are the batch."""
    mean, var = x.mean(0), x.var(0)
    out = gamma * (x - mean) / np.sqrt(var + eps) + beta
    return (
        out,
        momentum * running_mean + (1 - momentum) * mean,
        momentum * running_var + (1 - momentum) * var,
    )


@pytest.fixture
def batch():
    rng = np.random.default_rng(231)
    x = 12 + 3 * rng.normal(size=(40, 5))
    return x, rng.normal(size=5), rng.normal(size=5), rng.normal(size=(40, 5))


def test_training_steps_update_bn_param_in_place(batch):
    x, gamma, beta, _ = batch
    bn_param = {"mode": "train"}
    mean, var = np.zeros(5), np.zeros(5)
    for step in range(4):
        out, _ = cs231n.batchnorm_forward(x + step, gamma, beta, bn_param)
        expected, mean, var = course_train(x + step, gamma, beta, 0.9, mean, var, 1e-5)
        np.testing.assert_allclose(out, expected, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(bn_param["running_mean"], mean, rtol=1e-13)
        np.testing.assert_allclose(bn_param["running_var"], var, rtol=1e-12)


def test_momentum_weighs_the_old_value_and_eps_is_read(batch):
    x, gamma, beta, _ = batch
    start = np.arange(5.0), 1 + np.arange(5.0)
    bn_param = {"mode": "train", "momentum": 0.25, "eps": 0.5}
    bn_param |= {"running_mean": start[0], "running_var": start[1]}
    out, _ = cs231n.batchnorm_forward(x, gamma, beta, bn_param)
    expected, mean, var = course_train(x, gamma, beta, 0.25, *start, 0.5)
    np.testing.assert_allclose(out, expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(bn_param["running_mean"], mean, rtol=1e-13)
    np.testing.assert_allclose(bn_param["running_var"], var, rtol=1e-12)
    np.testing.assert_array_equal(start[0], np.arange(5.0))  # the caller's array is not written


def test_test_mode_uses_the_running_statistics_and_keeps_them(batch):
    x, gamma, beta, dout = batch
    mean, var = np.linspace(9, 12, 5), np.linspace(1, 2, 5)
    bn_param = dict(mode="test", running_mean=mean, running_var=var)
    out, cache = cs231n.batchnorm_forward(x, gamma, beta, bn_param)
    np.testing.assert_allclose(out, gamma * (x - mean) / np.sqrt(var + 1e-5) + beta, rtol=1e-11)
    assert bn_param["running_mean"] is mean and bn_param["running_var"] is var
    dx, dgamma, dbeta = cs231n.batchnorm_backward(dout, cache)
    np.testing.assert_allclose(dx, dout * gamma / np.sqrt(var + 1e-5), rtol=1e-12)
    np.testing.assert_allclose(dbeta, dout.sum(0), rtol=1e-12)


def test_both_backward_functions_are_the_gradient(batch):
    x, gamma, beta, dout = batch
    _, cache = cs231n.batchnorm_forward(x, gamma, beta, {"mode": "train"})
    dx, dgamma, dbeta = cs231n.batchnorm_backward(dout, cache)
    alternative = cs231n.batchnorm_backward_alt(dout, cache)
    for value, same in zip(alternative, (dx, dgamma, dbeta), strict=True):
        np.testing.assert_array_equal(value, same)

    xhat = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    dxhat = gamma * dout
    n = len(x)
    by_hand = (n * dxhat - dxhat.sum(0) - xhat * (dxhat * xhat).sum(0)) / (
        n * np.sqrt(x.var(0) + 1e-5)
    )
    np.testing.assert_allclose(dx, by_hand, rtol=0, atol=REFERENCE_RTOL * abs(dxhat).max())
    np.testing.assert_allclose(dgamma, (dout * xhat).sum(0), rtol=1e-12)
    np.testing.assert_allclose(dbeta, dout.sum(0), rtol=1e-12)


def test_spatial_is_the_flat_function_on_pixels():
    rng = np.random.default_rng(4)
    x, dout = rng.normal(3, 2, (2, 3, 4, 5)), rng.normal(size=(2, 3, 4, 5))
    gamma, beta = rng.normal(size=3), rng.normal(size=3)
    spatial, flat = {"mode": "train"}, {"mode": "train"}
    out, cache = cs231n.spatial_batchnorm_forward(x, gamma, beta, spatial)
    pixels = np.moveaxis(x, 1, -1).reshape(-1, 3)
    flat_out, flat_cache = cs231n.batchnorm_forward(pixels, gamma, beta, flat)
    np.testing.assert_array_equal(np.moveaxis(out, 1, -1).reshape(-1, 3), flat_out)
    np.testing.assert_array_equal(spatial["running_var"], flat["running_var"])

    dx, dgamma, dbeta = cs231n.spatial_batchnorm_backward(dout, cache)
    expected = cs231n.batchnorm_backward(np.moveaxis(dout, 1, -1).reshape(-1, 3), flat_cache)
    np.testing.assert_array_equal(np.moveaxis(dx, 1, -1).reshape(-1, 3), expected[0])
    np.testing.assert_array_equal(dgamma, expected[1])
    np.testing.assert_array_equal(dbeta, expected[2])


def test_wrong_mode_is_the_courses_error(batch):
    x, gamma, beta, _ = batch
    with pytest.raises(ValueError, match='Invalid forward batchnorm mode "predict"'):
        cs231n.batchnorm_forward(x, gamma, beta, {"mode": "predict"})
    with pytest.raises(KeyError, match="mode"):
        cs231n.batchnorm_forward(x, gamma, beta, {})


def test_a_failing_call_leaves_bn_param_alone(batch):
    x, gamma, beta, _ = batch
    bn_param = {"mode": "train", "running_mean": np.ones(5)}
    with pytest.raises(ValueError, match="gamma: expected shape"):
        cs231n.batchnorm_forward(x, gamma[:4], beta, bn_param)
    assert set(bn_param) == {"mode", "running_mean"}
    with pytest.raises(ValueError):
        cs231n.batchnorm_forward(x, gamma, beta, {**bn_param, "running_var": np.ones(4)})


def test_float32_running_statistics_stay_float32(batch):
    x, gamma, beta, _ = (a.astype(np.float32) for a in batch)
    bn_param = {"mode": "train"}
    out, _ = cs231n.batchnorm_forward(x, gamma, beta, bn_param)
    assert out.dtype == bn_param["running_mean"].dtype == np.float32


def test_integer_running_statistics_do_not_truncate(batch):
    x, gamma, beta, _ = batch
    bn_param = {"mode": "train", "running_mean": [0] * 5, "running_var": np.ones(5, int)}
    cs231n.batchnorm_forward(x, gamma, beta, bn_param)
    np.testing.assert_allclose(bn_param["running_mean"], 0.1 * x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(bn_param["running_var"], 0.9 + 0.1 * x.var(0), rtol=1e-12)


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 5)])
@pytest.mark.parametrize("mode", ["train", "test"])
def test_running_statistics_of_a_wrong_shape(batch, shape, mode):
    x, gamma, beta, _ = batch
    with pytest.raises(ValueError, match="running_var: expected shape"):
        cs231n.batchnorm_forward(x, gamma, beta, {"mode": mode, "running_var": np.ones(shape)})


def test_test_mode_without_statistics_starts_from_zeros(batch):
    x, gamma, beta, _ = batch
    bn_param = {"mode": "test"}
    cs231n.batchnorm_forward(x.astype(int), gamma, beta, bn_param)
    assert not bn_param["running_mean"].any() and not bn_param["running_var"].any()
