"""src_c/kernels/moments.h, and the merging of its results, through the training forward pass."""

from __future__ import annotations

import exact
import numpy as np
import pytest
from cases import BLOCK_ROWS, check_forward, generator, reference_forward, slow_if, within
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from strategies import examples
from tolerances import mean_bound, var_bound

import cbn

# From 32768 rows on a chunk has more than 512 of them; 64 chunks at most.
CHUNK_ROWS = [16385, 32767, 32768, 32769, 32769 + 32, 40000, 65536 + 1]


def _outlier(n, position, size):
    return lambda rng: np.where(np.arange(n) == position, size, rng.normal(0, 1, n))


def kinds(n):
    """Columns that are hard on a sum of squares, by name."""
    rows = np.arange(n)
    return {
        "outlier first": _outlier(n, 0, 1e6),
        "outlier second": _outlier(n, 1, -1e6),
        "outlier in the middle": _outlier(n, n // 2, 1e6),
        "outlier last": _outlier(n, n - 1, 1e6),
        "outlier first, huge": _outlier(n, 0, 1e20),
        "outlier last, huge": _outlier(n, n - 1, -1e20),
        "ramp": lambda rng: rows * 1.0,
        "ramp far away": lambda rng: 1e6 - rows * 0.5,
        "steep ramp": lambda rng: 1.1 ** (rows % 700),
        "random walk": lambda rng: np.cumsum(rng.normal(0, 1, n)),
        "two clusters": lambda rng: rng.normal(np.where(rows < n // 3, -1e4, 1e4), 1),
        "block by block": lambda rng: rng.normal(1e4 * (rows // 32 % 7), 1),
        "chunk by chunk": lambda rng: rng.normal(1e4 * (rows // 512 % 5), 1),
        "interleaved": lambda rng: np.where(rows % 2, 1e4, -1e4) + rng.normal(0, 1, n),
        "cauchy": lambda rng: rng.standard_cauchy(n),
        "lognormal": lambda rng: rng.lognormal(0, 4, n),
        "two values": lambda rng: rng.choice([0.1, 0.3], n),
        "nearly constant": lambda rng: np.where(rows == n // 2, np.nextafter(3, 4, dtype="f4"), 3),
        "mostly zero": lambda rng: np.where(rng.random(n) < 0.02, rng.normal(0, 1, n), 0),
        "far from zero": lambda rng: rng.normal(1e6, 1, n),
        "growing": lambda rng: rng.normal(0, 1, n) * (1 + rows),
        "shrinking": lambda rng: rng.normal(0, 1, n) / (1 + rows),
    }


def columns(n, dtype):
    made = [np.asarray(make(generator("moments", name, n))) for name, make in kinds(n).items()]
    return np.stack(made, axis=1).astype(dtype)


def check_moments(x, exactly=False):
    """Mean and variance of every column within their bounds."""
    cache = cbn.batch_norm_forward(x)[1]
    right = reference_forward(x, None, None, 1e-5, exactly)
    mean, var = exact.floats(right.mean), exact.floats(right.var)
    within(cache.var, right.var, var_bound(x.dtype, var))
    within(cache.mean, right.mean, mean_bound(x.dtype, mean, var))
    return cache


@pytest.mark.parametrize("rows", slow_if(lambda n: n > 65, BLOCK_ROWS))
def test_hard_columns(rows, dtype):
    check_moments(columns(rows, dtype), exactly=True)


@pytest.mark.parametrize("rows", CHUNK_ROWS)
def test_hard_columns_of_many_chunks(rows, dtype):
    check_moments(columns(rows, dtype))


@pytest.mark.parametrize("rows", [33, 289])
def test_any_order_of_rows(rows, dtype):
    order = generator("order", rows).permutation(rows)
    check_moments(columns(rows, dtype)[order], exactly=True)
    check_moments(columns(rows, dtype)[::-1], exactly=True)


@pytest.mark.parametrize("rows", [33, 257, 16385])
@pytest.mark.parametrize("row", [0, 1, 7, 8, 31, 32, -1])
def test_every_row_counts(row, rows, dtype):
    """All zero but one row: mean = v/N and var = v^2 (N-1)/N^2."""
    x = np.zeros((rows, 3), dtype)
    x[row] = [1, -3, 1024]
    cache = check_moments(x)
    v = x[row].astype(np.float64)
    within(cache.mean, v / rows, mean_bound(dtype, v / rows, cache.var))
    within(cache.var, v**2 * (rows - 1) / rows**2, var_bound(dtype, cache.var))


@pytest.mark.parametrize("rows", BLOCK_ROWS)
def test_rows_past_the_end_are_not_read(rows, dtype):
    memory = np.full((rows + 70, 19), np.nan, dtype)
    memory[:rows] = columns(rows, dtype)[:, :19]
    inside = cbn.batch_norm_forward(memory[:rows])[1]
    alone = cbn.batch_norm_forward(memory[:rows].copy())[1]
    assert np.all(np.isfinite(inside.var))
    assert inside.mean.tobytes() == alone.mean.tobytes()
    assert inside.var.tobytes() == alone.var.tobytes()


@pytest.mark.parametrize("cols", [1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 511, 512, 513, 1025])
def test_a_column_does_not_know_its_neighbours(cols, dtype):
    x = generator("cols", cols).normal(3, 2, (70, cols)).astype(dtype)
    together = cbn.batch_norm_forward(x)[1]
    for j in {0, 1 % cols, cols // 2, cols - 1}:
        alone = cbn.batch_norm_forward(x[:, j : j + 1])[1]
        assert alone.mean[0] == together.mean[j] and alone.var[0] == together.var[j]


def test_wide_and_ordinary_channels_side_by_side():
    """Channels that float32 cannot square, among ordinary and constant ones."""
    x = generator("wide").normal(3, 2, (300, 64)).astype(np.float32)
    x[:, 3] *= np.float32(1e30)
    x[:, 4] *= np.float32(1e-30)
    x[:, 17] = 0
    x[:, 40] = np.float32(1e38)
    x[::2, 41] = np.float32(3e38)
    x[1::2, 41] = np.float32(-3e38)
    x[:, 42] = np.float32(1e-45) * np.arange(300, dtype=np.float32)
    cache = check_moments(x, exactly=True)
    assert np.all(np.isfinite(cache.var)) and cache.var[17] == cache.var[40] == 0
    for j in range(64):
        alone = cbn.batch_norm_forward(x[:, [j]])[1]
        assert alone.mean[0] == cache.mean[j] and alone.var[0] == cache.var[j]


@pytest.mark.parametrize("rows", [31, 33, 300])
def test_the_largest_float32(rows):
    big = np.finfo(np.float32).max
    signs = np.where(np.arange(rows)[:, None] % [2, 3, 4] == 0, 1, -1)
    cache = check_moments((signs * big).astype(np.float32), exactly=True)
    assert np.all(np.isfinite(cache.var))


def test_constant_channels_that_only_one_row_breaks(dtype):
    step = np.nextafter(dtype(1), dtype(2), dtype=dtype)
    x = np.ones((300, 300), dtype)
    x[np.arange(300), np.arange(300)] = step
    cache = check_moments(x)
    assert np.all(cache.var > 0)


WIDTH = {np.float32: 32, np.float64: 64}
LIMIT = {np.float32: None, np.float64: 1e150}  # the squares must be float64 themselves


@examples(300)
@given(data=st.data())
def test_any_finite_values(data):
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    limit = LIMIT[dtype]
    elements = st.floats(
        width=WIDTH[dtype],
        min_value=None if limit is None else -limit,
        max_value=limit,
        allow_nan=False,
        allow_infinity=False,
    )
    if dtype == np.float64:
        elements = elements.map(lambda v: 0.0 if abs(v) < 1e-130 else v)
    shape = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 3)))
    cache = check_moments(data.draw(arrays(dtype, shape, elements=elements)), exactly=True)
    assert np.all(np.isfinite(cache.mean)) and np.all(np.isfinite(cache.var))
    assert np.all(cache.var >= 0)


@given(
    rows=st.integers(2, 600),
    exponent=st.integers(-40, 40),
    ratio=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@example(rows=600, exponent=0, ratio=40, seed=0, dtype=np.float64)
def test_any_mean_and_spread(rows, exponent, ratio, seed, dtype):
    """|mean|/std up to 2^20 in float32 and 2^40 in float64, at any size."""
    ratio = min(ratio, 20) if dtype == np.float32 else ratio
    z = np.random.default_rng(seed).normal(2.0**ratio, 1, (rows, 1))
    check_moments(np.ldexp(z, exponent).astype(dtype), exactly=True)


@pytest.mark.parametrize("rows", [40, 300, 16390])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_statistics_merge(rows, share, dtype):
    """The parts' exact merge is the whole, (44); so is what the kernel merges."""
    x = columns(rows, dtype)[:, 9:12]
    cut = max(1, int(rows * share))
    a, b = (cbn.batch_norm_forward(part)[1] for part in (x[:cut], x[cut:]))
    whole = check_moments(x)
    delta = b.mean - a.mean
    m2 = a.var * cut + b.var * (rows - cut) + delta**2 * (cut * (rows - cut) / rows)
    within(m2 / rows, whole.var, 2 * var_bound(dtype, whole.var))


def test_one_row_has_no_variance(dtype):
    right, cache = check_forward(np.array([[1, -2, 1e30]], dtype), eps=0.0)
    assert not cache.var.any() and not cache.invstd.any()
