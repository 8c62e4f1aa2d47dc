"""src_c/kernels/map.h: the map of the forward pass and of inference."""

from __future__ import annotations

import exact
import numpy as np
import pytest
from cases import BLOCK_ROWS, Batch, check_forward, check_inference, generator, same_bytes, within
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples
from tolerances import y_bound

import cbn

COLS = [1, 2, 3, 15, 16, 17, 64, 65, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025]


def check_y(x, mean, var, gamma, beta, eps):
    y = cbn.batch_norm_inference(x, mean, var, gamma, beta, eps=eps)
    right = exact.inference(x, mean, var, gamma, beta, eps)
    within(y, right.y, y_bound(x.dtype, gamma, beta, exact.floats(right.xhat)))


@pytest.mark.parametrize("rows", BLOCK_ROWS)
def test_every_number_of_rows(rows, dtype):
    b = Batch((rows, 3), dtype)
    check_forward(b.x, b.gamma, b.beta)
    check_inference(b.x, b.dy, b.mean, b.var, b.gamma, b.beta)


@pytest.mark.parametrize("cols", COLS)
def test_every_number_of_columns(cols, dtype):
    b = Batch((6, cols), dtype)
    check_forward(b.x, b.gamma, b.beta)
    check_inference(b.x, b.dy, b.mean, b.var, b.gamma, b.beta)


def test_by_hand(dtype):
    x = np.array([[1, 10], [3, 50]], dtype)
    y = cbn.batch_norm_inference(x, [2.0, 20], [4.0, 0], [3.0, 0.5], [1.0, -1], eps=12.0)
    assert np.array_equal(y[:, 0], np.array([1 - 3 / 4, 1 + 3 / 4], dtype))
    within(y[:, 1], -1 + np.array([-5, 15]) / np.sqrt(12), y_bound(dtype, 0.5, -1, 9) * np.ones(2))


@pytest.mark.parametrize("row", [0, 1, 3, 4, 31, 32, -1])
def test_one_row_beside_garbage(row, dtype):
    """What other rows hold, finite or not, is no matter to inference."""
    b = Batch((70, 33), dtype)
    alone = cbn.batch_norm_inference(b.x[row][None], b.mean, b.var, b.gamma, b.beta)
    x = np.full((70, 33), np.nan, dtype)
    x[row] = b.x[row]
    y = cbn.batch_norm_inference(x, b.mean, b.var, b.gamma, b.beta)
    same_bytes(y[row], alone[0])
    assert np.all(np.isnan(np.delete(y, row, axis=0)))


@pytest.mark.parametrize("rows", [2, 33, 300])
@pytest.mark.parametrize("ratio", [10, 1e3, 1e6])
def test_the_mean_s_second_half_counts(rows, ratio, dtype):
    """Near a far mean x - mean must not lose the bits that the mean has beyond the dtype."""
    rng = generator("far", rows, ratio)
    x = rng.normal(ratio, 1, (rows, 5)).astype(dtype)
    mean = np.full(5, ratio) + rng.uniform(-0.5, 0.5, 5)
    check_y(x, mean, np.ones(5), rng.normal(1, 0.5, 5), rng.normal(0, 1, 5), 1e-5)


@pytest.mark.parametrize(
    ("gamma", "var"), [(1e-36, 1e-12), (1e36, 1e72), (1e-30, 1.0), (1e30, 1e10)]
)
def test_factors_that_float32_cannot_hold(gamma, var):
    b = Batch((37, 40), np.float32)
    b.gamma, b.var = b.gamma.astype(np.float64), b.var.astype(np.float64)
    b.gamma[[0, 7, 8, 20]] *= gamma
    b.var[[0, 7, 8, 30]] *= var
    x = np.clip(b.x, -4, 4)
    check_y(x, b.mean, b.var, b.gamma, b.beta, 0.0)


@pytest.mark.parametrize(("gamma", "std"), [(1e20, 1e-27), (1e-30, 1e-35), (1e-25, 1e-32)])
def test_factors_of_channels_with_little_spread(gamma, std):
    """gamma / std, or 1 / std, is past float32; gamma * x / std is not."""
    b = Batch((37, 40), np.float32)
    mean, var, gammas = (np.array(a, np.float64) for a in (b.mean, b.var, b.gamma))
    mean[:3] *= std
    var[:3] *= std**2
    gammas[:3] *= gamma
    b.x[:, :3] *= np.float32(std)
    check_y(b.x, mean, var, gammas, b.beta, 0.0)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_gamma_of_zero_leaves_beta(eps, dtype):
    b = Batch((70, 9), dtype)
    y, cache = cbn.batch_norm_forward(b.x, np.zeros(9), b.beta, eps=eps)
    assert np.array_equal(y, np.broadcast_to(b.beta, y.shape))
    dx, dgamma, _ = cbn.batch_norm_backward(b.dy, cache)
    assert not dx.any() and dgamma.all()


def test_var_of_zero_and_eps_of_zero_leave_beta(dtype):
    b = Batch((5, 4), dtype)
    y = cbn.batch_norm_inference(b.x, b.mean, np.zeros(4), b.gamma, b.beta, eps=0.0)
    assert np.array_equal(y, np.broadcast_to(b.beta, y.shape))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_var_that_is_not_finite(value, dtype):
    b = Batch((5, 4), dtype)
    b.var[1] = value
    y = cbn.batch_norm_inference(b.x, b.mean, b.var, b.gamma, b.beta)
    expected = np.full(5, np.nan) if np.isnan(value) else np.full(5, b.beta[1])
    assert np.array_equal(y[:, 1], expected, equal_nan=True)
    assert np.all(np.isfinite(np.delete(y, 1, axis=1)))


def signed(low, high):
    """Numbers of either sign whose size is spread over the powers of ten from low to high."""
    size = st.floats(low, high).map(lambda exponent: 10.0**exponent)
    return st.builds(lambda sign, value: sign * value, st.sampled_from([-1.0, 1.0]), size)


@examples(200)
@given(
    std=st.floats(-18, 18).map(lambda e: 10.0**e),
    gamma=signed(-15, 15),
    beta=signed(-15, 15),
    ratio=signed(-3, 5),
    rows=st.integers(1, 9),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_coefficients(std, gamma, beta, ratio, rows, dtype, seed):
    z = np.random.default_rng(seed).normal(ratio, 1, (rows, 2))
    x = (z * std).astype(dtype)
    coefficients = (np.array([value, value / 3]) for value in (ratio * std, std**2, gamma, beta))
    check_y(x, *coefficients, 0.0)
