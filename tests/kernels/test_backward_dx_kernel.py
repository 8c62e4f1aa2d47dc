"""src_c/kernels/map.h: dx = gamma invstd (dy - mean(dy) - xhat mean(dy xhat))."""

from __future__ import annotations

import exact
import numpy as np
import pytest
from cases import BLOCK_ROWS, Batch, check_training, generator, same_bytes, slow_if, within
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples
from tolerances import dx_bound

import cbn

COLS = [1, 2, 3, 15, 16, 17, 64, 65, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025]


def dx_of(x, dy, gamma=None, eps=1e-5, **options):
    cache = cbn.batch_norm_forward(x, gamma, eps=eps)[1]
    return cbn.batch_norm_backward(dy, cache, **options)[0]


def check_dx(x, dy, gamma=None, eps=1e-5):
    right = exact.forward(x, gamma, eps=eps)
    xhat, invstd = exact.floats(right.xhat), exact.floats(right.invstd)
    expected = exact.backward(dy, right)[0]
    within(dx_of(x, dy, gamma, eps), expected, dx_bound(x.dtype, dy, xhat, gamma, invstd))


@pytest.mark.parametrize("rows", BLOCK_ROWS)
def test_every_number_of_rows(rows, dtype):
    b = Batch((rows, 3), dtype)
    check_dx(b.x, b.dy, b.gamma)


@pytest.mark.parametrize("cols", slow_if(lambda n: n > 257, COLS))
def test_every_number_of_columns(cols, dtype):
    b = Batch((6, cols), dtype)
    check_dx(b.x, b.dy, b.gamma)


def test_by_hand(dtype):
    """x = -1, 0, 1 has var = 2/3; with eps = 1/3, invstd = 1 and xhat = x."""
    x = np.array([[-1.0], [0], [1]], dtype)
    dy = np.array([[3.0], [0], [0]], dtype)
    expected = np.array([[2 * (3 - 1 - 1)], [2 * (0 - 1)], [2 * (0 - 1 + 1)]], dtype)
    bound = dx_bound(dtype, dy, x, 2, 1)
    within(dx_of(x, dy, np.array([2.0]), 1 / 3), expected.astype(np.float64), bound)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-2, 1.0, 1e8])
@pytest.mark.parametrize("rows", [2, 5, 70])
def test_every_eps(rows, eps, dtype):
    b = Batch((rows, 4), dtype)
    check_dx(b.x, b.dy, b.gamma, eps)


@pytest.mark.parametrize("offset", [1e3, 1e6, 1e12])
@pytest.mark.parametrize("rows", [3, 70])
def test_a_mean_far_from_zero(rows, offset, dtype):
    offset = min(offset, 1e6) if dtype == np.float32 else offset
    b = Batch((rows, 4), dtype)
    check_dx((b.x.astype(np.float64) + offset).astype(dtype), b.dy, b.gamma)


@pytest.mark.parametrize("position", [0, 35, 69])
def test_an_outlier(position, dtype):
    b = Batch((70, 4), dtype)
    for name in ("x", "dy"):
        getattr(b, name)[position] = 1e6
        check_dx(b.x, b.dy, b.gamma)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_channels_whose_coefficients_leave_float32(scale):
    """Beside ordinary ones; gamma brings the result back into float32."""
    b = Batch((70, 20), np.float32)
    x, gamma = b.x.astype(np.float64), b.gamma.astype(np.float64)
    x[:, 5:9] *= scale
    gamma[5:9] *= scale
    check_dx(x.astype(np.float32), b.dy, gamma, 0.0)
    for j in range(20):
        alone = dx_of(x[:, [j]].astype(np.float32), b.dy[:, [j]], gamma[[j]], 0.0)
        together = dx_of(x.astype(np.float32), b.dy, gamma, 0.0)
        assert np.array_equal(alone[:, 0], together[:, j])


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e30, 1e36])
def test_gradients_of_any_size(scale):
    b = Batch((70, 20), np.float32)
    dy = b.dy.astype(np.float64)
    dy[:, 5:9] *= scale
    check_dx(b.x, dy.astype(np.float32), b.gamma)


def test_zero_gradient(dtype):
    b = Batch((70, 5), dtype)
    assert not dx_of(b.x, np.zeros_like(b.dy), b.gamma).any()


@pytest.mark.parametrize("rows", [2, 33, 300])
def test_a_constant_gradient_moves_nothing(rows, dtype):
    """y's column sums do not depend on x, so dx = 0 up to the rounding of its terms."""
    b = Batch((rows, 5), dtype)
    dy = np.broadcast_to(b.dy[0], b.dy.shape)
    right = exact.forward(b.x, b.gamma)
    xhat, invstd = exact.floats(right.xhat), exact.floats(right.invstd)
    dx = dx_of(b.x, dy, b.gamma)
    within(dx, np.zeros(b.x.shape), dx_bound(dtype, dy, xhat, b.gamma, invstd))


@pytest.mark.parametrize("shape", [(1, 3), (7, 5), (70, 33), (300, 257)], ids=str)
def test_inference_scales(shape, dtype):
    """With fixed statistics dx is one product: dy times gamma invstd, rounded once to dtype."""
    b = Batch(shape, dtype)
    invstd = 1 / np.sqrt(b.var.astype(np.float64) + 1e-5)
    scale = (b.gamma.astype(np.float64) * invstd).astype(dtype)
    dx = cbn.batch_norm_inference_backward(b.dy, b.x, b.mean, b.var, b.gamma)[0]
    same_bytes(dx, b.dy * scale)


@examples(100)
@given(
    rows=st.integers(2, 100),
    ratio=st.integers(0, 20),
    power=st.integers(-30, 30),
    seed=st.integers(0, 2**32 - 1),
    eps=st.sampled_from([0.0, 1e-5, 1.0]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_any_batch(rows, ratio, power, seed, eps, dtype):
    rng = np.random.default_rng(seed)
    x = np.ldexp(rng.normal(2.0**ratio, 1, (rows, 2)), power).astype(dtype)
    check_dx(x, rng.standard_cauchy((rows, 2)).astype(dtype), rng.normal(0, 2, 2), eps)


def test_training_and_the_reference_agree_on_a_whole_step(dtype):
    rng = generator("step")
    x = rng.normal(-1, 5, (1000, 60)).astype(dtype)
    dy = rng.normal(0.1, 1, (1000, 60)).astype(dtype)
    check_training(x, dy, rng.normal(1, 1, 60), rng.normal(0, 1, 60))
