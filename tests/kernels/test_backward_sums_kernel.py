"""src_c/kernels/backward_sums.h: dbeta = sum(dy) and dgamma = sum(dy xhat)."""

from __future__ import annotations

import math
from fractions import Fraction

import exact
import numpy as np
import pytest
from cases import (
    BLOCK_ROWS,
    Batch,
    check_training,
    generator,
    reference_backward,
    reference_forward,
    slow_if,
    within,
)
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples
from tolerances import dbeta_bound, dgamma_bound, dx_bound

import cbn
from cbn import reference


def sums(dy, x, eps=1e-5):
    """dgamma and dbeta in float64, so that no last rounding hides their errors."""
    ones = np.ones(x.shape[1])
    cache = cbn.batch_norm_forward(x, ones, ones, eps=eps)[1]
    return cbn.batch_norm_backward(dy, cache)[1:]


def check_sums(dy, x, eps=1e-5, exactly=False):
    dgamma, dbeta = sums(dy, x, eps)
    right = reference_forward(x, None, None, eps, exactly)
    _, right_dgamma, right_dbeta = reference_backward(dy, right)
    within(dgamma, right_dgamma, dgamma_bound(x.dtype, dy, exact.floats(right.xhat)))
    within(dbeta, right_dbeta, dbeta_bound(x.dtype, dy))
    return dgamma, dbeta


def gradients(n):
    """Columns of dy that are hard on a sum, by name."""
    rows = np.arange(n)
    return {
        "plain": lambda rng: rng.normal(0.3, 1, n),
        "cancelling": lambda rng: np.where(rows % 2, -1, 1) * 1e6 + rng.normal(0, 1, n),
        "cancelling halves": lambda rng: np.where(rows < n // 2, 1e6, -1e6) + rng.normal(0, 1, n),
        "one large, first": lambda rng: np.where(rows == 0, 1e8, rng.normal(0, 1, n)),
        "one large, last": lambda rng: np.where(rows == n - 1, -1e8, rng.normal(0, 1, n)),
        "heavy tails": lambda rng: rng.standard_cauchy(n),
        "ramp": lambda rng: rows - 0.3 * n,
        "sparse": lambda rng: np.where(rng.random(n) < 0.05, rng.normal(0, 1, n), 0),
        "huge": lambda rng: rng.normal(0, 1e30, n),
        "tiny": lambda rng: rng.normal(0, 1e-30, n),
        "zero": lambda rng: np.zeros(n),
        "constant": lambda rng: np.full(n, 0.1),
    }


def pairs(n, dtype):
    made = [np.asarray(make(generator("dy", name, n))) for name, make in gradients(n).items()]
    x = generator("x", n).normal(3, 2, (n, len(made)))
    return np.stack(made, axis=1).astype(dtype), x.astype(dtype)


@pytest.mark.parametrize("rows", slow_if(lambda n: n > 65, BLOCK_ROWS[1:]))
def test_hard_gradients(rows, dtype):
    check_sums(*pairs(rows, dtype), exactly=True)


@pytest.mark.parametrize("rows", [16384, 16385, 40000, 65537])
def test_hard_gradients_of_many_chunks(rows, dtype):
    check_sums(*pairs(rows, dtype))


@pytest.mark.parametrize("rows", [5, 33, 290])
def test_against_exact_sums(rows, dtype):
    """math.fsum knows no blocks."""
    dy, x = pairs(rows, dtype)
    _, dbeta = sums(dy, x)
    expected = np.array([math.fsum(column) for column in dy.T.astype(np.float64)])
    within(dbeta, expected, dbeta_bound(dtype, dy))


@pytest.mark.parametrize("rows", [2, 33, 257, 16385])
@pytest.mark.parametrize("row", [0, 1, 2, 3, 4, 31, 32, -1])
def test_every_row_counts_once(row, rows, dtype):
    row = min(row, rows - 1)
    b = Batch((rows, 5), dtype)
    b.x[row] = [9, -5, 10, -6, 20]  # away from the mean, where the bound is of some size
    dy = np.zeros_like(b.dy)
    dy[row] = [1, -2, 3, 0.5, 7]
    dgamma, dbeta = check_sums(dy, b.x)
    assert np.array_equal(dbeta, dy[row])
    assert np.array_equal(np.sign(dgamma), np.sign(dy[row] * (b.x[row] - b.x.mean(axis=0))))


@pytest.mark.parametrize("rows", BLOCK_ROWS)
def test_rows_past_the_end_are_not_read(rows, dtype):
    b = Batch((rows, 19), dtype)
    expected = sums(b.dy, b.x)
    for name in ("x", "dy"):
        memory = np.full((rows + 70, 19), np.nan, dtype)
        memory[:rows] = getattr(b, name)
        setattr(b, name, memory[:rows])
    for found, right in zip(sums(b.dy, b.x), expected, strict=True):
        assert np.array_equal(found, right)


@pytest.mark.parametrize("cols", [1, 15, 16, 17, 64, 65, 256, 257, 511, 512, 513, 1025])
def test_a_column_does_not_know_its_neighbours(cols, dtype):
    b = Batch((70, cols), dtype)
    together = sums(b.dy, b.x)
    for j in {0, 1 % cols, cols // 2, cols - 1}:
        alone = sums(b.dy[:, j : j + 1], b.x[:, j : j + 1])
        assert alone[0][0] == together[0][j] and alone[1][0] == together[1][j]


@pytest.mark.parametrize("offset", [0, 1e3, 1e6])
@pytest.mark.parametrize("rows", [33, 300])
def test_a_mean_far_from_zero(rows, offset, dtype):
    b = Batch((rows, 4), dtype)
    check_sums(b.dy, (b.x + offset).astype(dtype), exactly=True)


@pytest.mark.parametrize(
    ("scale", "eps"), [(1e-40, 0), (1e-30, 0), (1e-30, 1e-5), (1e30, 0), (1e30, 1e-5)]
)
def test_x_that_float32_cannot_square(scale, eps):
    b = Batch((70, 20), np.float32)
    x = b.x.copy()
    x[:, 5:9] = (b.x[:, 5:9].astype(np.float64) * scale).astype(np.float32)
    check_sums(b.dy, x, eps, exactly=True)


def test_the_sums_do_not_depend_on_gamma(dtype):
    b = Batch((70, 5), dtype)
    for gamma in (np.ones(5), b.gamma.astype(np.float64), np.zeros(5)):
        cache = cbn.batch_norm_forward(b.x, gamma, np.ones(5))[1]
        for found, right in zip(
            cbn.batch_norm_backward(b.dy, cache)[1:], sums(b.dy, b.x), strict=True
        ):
            assert np.array_equal(found, right)


@examples(100)
@given(
    rows=st.integers(2, 150),
    power=st.integers(-60, 60),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_any_gradient(rows, power, seed, dtype):
    rng = np.random.default_rng(seed)
    dy = np.ldexp(rng.standard_cauchy((rows, 2)), power).astype(dtype)
    check_training(rng.normal(3, 2, (rows, 2)).astype(dtype), dy, rng.normal(1, 1, 2), exactly=True)


def test_many_equal_float64_terms_do_not_pile_up_errors():
    """One rounding a block in the same direction would be 80 units here."""
    n = 2**20
    _, cache = cbn.batch_norm_forward(np.arange(n, dtype=float)[:, None], np.ones(1), np.zeros(1))
    dbeta = cbn.batch_norm_backward(np.full((n, 1), 0.1), cache)[2]
    exact = n * Fraction(0.1)
    assert abs(Fraction(float(dbeta[0])) - exact) <= 8 * Fraction(2) ** -53 * exact


def test_float32_gradients_whose_block_sums_overflow():
    x = np.random.default_rng(3).normal(size=(64, 2)).astype(np.float32)
    gamma = np.full(2, 1e-3, np.float32)
    _, cache = cbn.batch_norm_forward(x, gamma, gamma)
    dy = np.empty((64, 2), np.float32)
    dy[0::2], dy[1::2] = 2e37, 3e37
    dx = cbn.batch_norm_backward(dy, cache)[0]
    _, wide = reference.forward(x, gamma)
    expected = reference.backward(dy, wide)[0]
    assert np.all(abs(dx - expected) <= dx_bound(np.float32, dy, wide.xhat, gamma, wide.invstd))


def test_an_infinite_gradient_sums_to_infinity():
    _, cache = cbn.batch_norm_forward(np.eye(4), np.ones(4), np.zeros(4))
    dy = np.ones((4, 4))
    dy[1, 2] = np.inf
    np.testing.assert_array_equal(cbn.batch_norm_backward(dy, cache)[2], [4, 4, np.inf, 4])
