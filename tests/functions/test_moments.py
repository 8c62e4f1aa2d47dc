"""cbn/moments.py: the class Moments, which merges exactly."""

from __future__ import annotations

import copy
import itertools
import pickle
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from cases import DTYPES, Batch, generator, same_bytes, within
from hypothesis import assume, given
from hypothesis import strategies as st
from tolerances import mean_bound, u, var_bound

import cbn
from cbn import Moments, reference, update_running_stats

HALVES = [np.float16, ml_dtypes.bfloat16]
U = u(np.float64)


def exact_moments(x):
    """Count, mean and m2 of the columns of x in rational arithmetic."""
    columns = [[Fraction(float(value)) for value in column] for column in x.T]
    means = [sum(column) / len(column) for column in columns]
    m2 = [
        sum((value - mean) ** 2 for value in column)
        for column, mean in zip(columns, means, strict=True)
    ]
    return len(x), means, m2


def total_mean(m):
    return [Fraction(a) + Fraction(b) for a, b in zip(m.mean, m.mean_low, strict=True)]


def bytes_of(m):
    return m.count, m.mean.tobytes(), m.mean_low.tobytes(), m.var().tobytes()


# A batch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*DTYPES, *HALVES, np.int32])
def test_from_batch_is_the_batch(dtype):
    x = generator("batch").normal(3, 20, (40, 5)).astype(dtype)
    m, right = Moments.from_batch(x), reference.moments(x.astype(np.float64))
    assert m.count == right.count == 40
    kind = np.float64 if dtype == np.int32 else dtype
    within(m.mean, right.mean, mean_bound(kind, right.mean, right.m2 / 40))
    within(m.m2, right.m2, var_bound(kind, right.m2))
    within(m.var(1), right.m2 / 39, var_bound(kind, right.m2 / 39))
    assert all(a.dtype == np.float64 for a in (m.mean, m.mean_low, m.m2, m.var(), m.var(1)))


def test_the_variance_is_that_which_normalizes(dtype):
    x = Batch((37, 5), dtype).x
    y, cache = cbn.batch_norm_forward(x)
    for m in (Moments.from_batch(x), Moments.from_cache(cache)):
        same_bytes(m.mean, cache.mean)
        same_bytes(m.mean_low, cache.mean_low)
        same_bytes(m.var(), cache.var)


@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 5, 2), 1), ((4, 5, 3), -1), ((3, 7), 0)])
def test_any_axis(shape, axis):
    x = generator(shape).normal(size=shape)
    rows = np.moveaxis(x, axis, -1).reshape(-1, 3)
    assert Moments.from_batch(x, axis) == Moments.from_batch(rows)


def test_threads_do_not_matter():
    x = generator("threads").normal(size=(5000, 40)).astype(np.float32)
    assert len({bytes_of(Moments.from_batch(x, num_threads=n)) for n in (1, 2, 3)}) == 1


# Merging ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e6, 1e10])
@pytest.mark.parametrize("sizes", [(1, 1), (1, 50), (20, 1, 9), (5, 17, 2, 8)], ids=str)
def test_any_order_of_blocks_is_one_pass(sizes, ratio):
    rng = generator("blocks", sizes, ratio)
    blocks = [rng.normal(rng.normal(0, 3), 1, (size, 3)) + ratio for size in sizes]
    count, mean, m2 = exact_moments(np.concatenate(blocks))
    std = np.sqrt([float(value / count) for value in m2])
    for order in itertools.permutations(blocks):
        m = Moments.from_batch(order[0])
        for block in order[1:]:
            m.update(block)
        assert m.count == count
        # mean_low keeps the mean's error at the scale of the deviation, however large the mean
        off = [float(abs(a - b)) for a, b in zip(total_mean(m), mean, strict=True)]
        assert np.all(off <= 16 * U * (std + U * ratio))
        within(m.m2, np.array([float(value) for value in m2]), 64 * U * np.array(m2, float))


def test_any_tree_of_blocks_is_one_pass():
    rng = generator("tree")
    x = rng.normal(1e8, 1, (64, 2))
    whole = Moments.from_batch(x)
    parts = [Moments.from_batch(block) for block in np.split(x, 16)]
    while len(parts) > 1:
        i, j = rng.choice(len(parts), 2, replace=False)
        parts[i].merge(parts[j])
        del parts[j]
    within(parts[0].var(), whole.var(), 64 * U * whole.var())


def test_many_single_rows_far_from_zero():
    x = generator("rows").normal(1e9, 1, (2000, 2))
    m = Moments.from_batch(x[:1])
    for row in x[1:]:
        m.update(row[None])
    count, mean, m2 = exact_moments(x)
    assert m.count == count
    assert [abs(float(a - b)) for a, b in zip(total_mean(m), mean, strict=True)] < [1e-12, 1e-12]
    np.testing.assert_allclose(m.m2, [float(value) for value in m2], rtol=2000 * U)


def test_float32_blocks_are_one_float32_batch():
    x = generator("float32").normal(1e4, 1, (999, 7)).astype(np.float32)
    whole, m = Moments.from_batch(x), Moments.from_batch(x[:13])
    for start in range(13, 999, 58):
        m.update(x[start : start + 58])
    assert m.count == 999
    within(m.var(), whole.var(), 2 * var_bound(np.float32, whole.var()))
    within(m.mean, whole.mean, 2 * mean_bound(np.float32, whole.mean, whole.var()))


@given(
    st.lists(st.integers(-(2**40), 2**40), min_size=2, max_size=30),
    st.integers(1, 29),
    st.integers(-60, 60),
)
def test_splitting_anywhere(values, cut, exponent):
    assume(cut < len(values))
    x = np.ldexp(np.array(values, float)[:, None], exponent)
    count, (mean,), (m2,) = exact_moments(x)
    m = Moments.from_batch(x[:cut]).merge(Moments.from_batch(x[cut:]))
    assert m.count == count
    size = max(abs(x.ravel()))
    assert abs(total_mean(m)[0] - mean) <= 4 * U * Fraction(size)
    assert abs(Fraction(m.m2[0]) - m2) <= 128 * U * m2
    assert (m2 == 0) == (m.m2[0] == 0)


@given(st.floats(allow_nan=False, allow_infinity=False, width=64), st.integers(1, 9))
def test_a_constant_has_no_variance(value, rows):
    x = np.full((rows, 1), value)
    m = Moments.from_batch(x).update(x[:1]).update(x)
    assert m.mean == value and m.var() == 0 and m.count == 2 * rows + 1


def test_merge_returns_self_and_leaves_the_other_alone():
    x = Batch((9, 3), np.float64).x
    a, b = Moments.from_batch(x), Moments.from_batch(x[:4])
    before, old_mean, old = bytes_of(b), a.mean, a.mean.copy()
    assert a.merge(b) is a and a.count == 13
    assert bytes_of(b) == before
    same_bytes(old_mean, old)
    assert a.update(x) is a and a.count == 22


def test_merging_with_itself_doubles():
    m = Moments.from_batch(Batch((9, 3), np.float64).x)
    var, mean = m.var(), m.mean
    m.merge(m)
    assert m.count == 18
    same_bytes(m.mean, mean)
    np.testing.assert_allclose(m.var(), var, rtol=2 * U)


def test_empty_is_the_identity():
    m = Moments.from_batch(Batch((9, 3), np.float32).x)
    empty = Moments(0, [7.0, np.nan, np.inf], np.ones(3))
    before = bytes_of(m)
    assert bytes_of(m.merge(empty)) == before
    assert bytes_of(empty.merge(m)) == before
    endless = Moments(2, [np.inf], [np.inf])
    assert endless.merge(Moments(0, [0.0], [0.0])) == Moments(2, [np.inf], [np.inf])
    nothing = Moments(0, np.zeros(3), np.zeros(3))
    assert nothing.merge(copy.copy(nothing)).count == 0
    assert not np.any([nothing.mean, nothing.mean_low, nothing.m2])


def test_what_is_not_finite_stays_in_its_channel():
    x = Batch((20, 4), np.float64).x
    clean = Moments.from_batch(x[:8]).update(x[8:])
    for bad in (np.nan, np.inf, -np.inf):
        spoilt = x.copy()
        spoilt[3, 1] = bad
        m = Moments.from_batch(spoilt[:8]).update(spoilt[8:])
        assert np.isnan(m.var()[1])
        others = [0, 2, 3]
        same_bytes(m.mean[others], clean.mean[others])
        same_bytes(m.var()[others], clean.var()[others])


@pytest.mark.parametrize("scale", [1e-150, 1e150, 1.7e308])
def test_the_range_of_float64(scale):
    """No statistic overflows that the numbers do not."""
    x = np.array([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [1.0, 0.5]]) * scale
    m = Moments.from_batch(x[:1]).update(x[1:2]).update(x[2:])
    np.testing.assert_allclose(m.mean, [scale, 0.375 * scale], rtol=8 * U)
    if scale < 1e155:
        np.testing.assert_allclose(m.var() / scale**2, [0, np.var([1, -1, 1, 0.5])], rtol=8 * U)
    assert m.var()[0] == 0


def test_a_sum_of_squares_beyond_float64_has_a_variance():
    rows = np.array([[1.3e154], [-1.3e154]])
    m = Moments.from_batch(rows)
    for _ in range(5):
        m.merge(m)
    assert np.isinf(m.m2) and m.count == 64
    np.testing.assert_allclose(m.var(), 1.3e154**2, rtol=16 * U)


# Values of their own ------------------------------------------------------------------------------


def test_var_is_m2_over_count_less_correction():
    m = Moments(5, [1.0, 2.0], [8.0, 0.0])
    np.testing.assert_allclose(m.var(), [1.6, 0])
    np.testing.assert_allclose(m.var(1), [2, 0])
    np.testing.assert_allclose(m.var(correction=-3), [1, 0])
    np.testing.assert_allclose(m.m2, [8, 0])
    np.testing.assert_allclose(Moments(0.5, [1.0], [2.0]).var(), 4)


@pytest.mark.parametrize(("count", "correction"), [(1, 1), (0, 0), (2, 2), (0.5, 1), (3, 7)])
def test_too_few_for_a_variance(count, correction):
    with pytest.raises(ValueError, match="^correction: expected less than .*, got"):
        Moments(count, [1.0], [0.0]).var(correction)


def test_copies():
    m = Moments.from_batch(Batch((20, 3), np.float32).x)
    for twin in (pickle.loads(pickle.dumps(m)), copy.copy(m), copy.deepcopy(m)):
        assert twin == m and bytes_of(twin) == bytes_of(m) and twin is not m
        twin.update(np.ones((2, 3)))
        assert twin != m and m.count == 20


def test_equality():
    a = Moments(3, [1.0, np.nan], [2.0, np.nan])
    assert a == Moments(3, [1.0, np.nan], [2.0, np.nan])
    assert a != Moments(4, [1.0, np.nan], [2.0, np.nan])
    assert a != Moments(3, [1.5, np.nan], [2.0, np.nan])
    assert a != Moments(3, [1.0], [2.0])
    assert a != Moments(3, [1.0, np.nan], [2.0, np.nan], mean_low=[1e-20, 0.0])
    assert a != (3, [1.0, np.nan], [2.0, np.nan])
    with pytest.raises(TypeError):
        hash(a)


def test_repr():
    assert repr(Moments(2, [1.0], [8.0])) == "Moments(count=2, mean=[1.], m2=[8.])"


def test_the_arrays_are_no_way_to_change_it():
    mean = np.zeros(3)
    m = Moments(2, mean, np.ones(3))
    mean += 1
    assert not m.mean.any()
    for name in ("mean", "mean_low", "m2"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(m, name)[0] = 1


def test_no_channels():
    m = Moments.from_batch(np.zeros((3, 0))).update(np.zeros((2, 0)))
    assert m.count == 5 and m.mean.shape == m.var().shape == (0,)
    assert update_running_stats(np.zeros(0), np.ones(0), m)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((-1, [0.0], [0.0]), ValueError, "^count: expected .*, got -1"),
        ((np.inf, [0.0], [0.0]), ValueError, "^count: expected .*, got inf"),
        ((np.nan, [0.0], [0.0]), ValueError, "^count: expected .*, got nan"),
        (("3", [0.0], [0.0]), TypeError, "^count: expected .*, got '3'"),
        ((True, [0.0], [0.0]), TypeError, "^count: expected .*, got True"),
        ((3, [[0.0]], [0.0]), ValueError, r"^mean: expected .*, got \(1, 1\)"),
        ((3, 0.0, [0.0]), ValueError, r"^mean: expected .*, got \(\)"),
        ((3, [0], [0.0]), TypeError, "^mean: expected .*, got int"),
        ((3, [0.0], [0.0, 1.0]), ValueError, r"^m2: expected .*\(1,\), got \(2,\)"),
        ((3, [0.0], None), TypeError, "^m2: expected .*, got None"),
        ((3, [0.0], [-1.0]), ValueError, "^m2: expected .*, got -1.0"),
        ((3, [0.0], [1.0], [0.0, 0.0]), ValueError, r"^mean_low: expected .*, got \(2,\)"),
    ],
)
def test_bad_values(arguments, error, text):
    with pytest.raises(error, match=text):
        Moments(*arguments)


def test_bad_merges():
    m = Moments.from_batch(np.ones((2, 3)))
    before = bytes_of(m)
    with pytest.raises(ValueError, match="^other: expected 3 channels, got 4"):
        m.merge(Moments.from_batch(np.ones((2, 4))))
    with pytest.raises(ValueError, match="^other: expected 3 channels, got 4"):
        m.merge(Moments(0, np.zeros(4), np.zeros(4)))
    with pytest.raises(TypeError, match="^other: expected Moments, got tuple"):
        m.merge((2, 3))
    with pytest.raises(ValueError, match="^other: expected 3 channels, got 1"):
        m.update(np.ones((2, 1)))
    with pytest.raises(ValueError, match="^x: expected"):
        m.update(np.ones((0, 3)))
    assert bytes_of(m) == before


def test_bad_caches():
    with pytest.raises(TypeError, match="^cache: expected"):
        Moments.from_cache(None)
    cache = cbn.batch_norm_inference_cache(np.ones((2, 3)), np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="^cache: expected .*, got one of given statistics"):
        Moments.from_cache(cache)
