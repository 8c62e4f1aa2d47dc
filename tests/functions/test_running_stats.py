"""cbn/moments.py: running statistics, and what else is made of Moments."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from cases import DTYPES, generator, same_bytes, within
from tolerances import u

import cbn
from cbn import Moments, reference, update_running_stats
from cbn.moments import inverse_std, renormalization

HALVES = [np.float16, ml_dtypes.bfloat16]
U = u(np.float64)


def running(dtype=np.float64):
    rng = generator("running")
    return rng.normal(0, 2, 4).astype(dtype), rng.uniform(0.5, 2, 4).astype(dtype)


def batch_moments(seed=0, rows=10):
    return Moments.from_batch(generator("update", seed).normal(3, 2, (rows, 4)))


@pytest.mark.parametrize("kind", [*DTYPES, *HALVES, ">f4", ">f8"])
@pytest.mark.parametrize("correction", [0, 1, 2.5])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1, np.float32(0.25)])
def test_the_update_is_equation_47(momentum, correction, kind):
    mean, var = running(kind)
    m = batch_moments()
    right = reference.update_running(
        *(mean, var, reference.Moments(m.count, m.mean, m.m2), float(momentum), correction)
    )
    assert update_running_stats(mean, var, m, momentum=momentum, correction=correction) is True
    assert mean.dtype == var.dtype == np.dtype(kind)
    for actual, wanted in zip((mean, var), right, strict=True):
        scale = np.abs(wanted) + 10
        rounding = u(np.dtype(kind).newbyteorder("=")) * np.abs(wanted)
        within(actual.astype(np.float64), wanted, rounding + 8 * U * scale)


def test_the_default_is_a_tenth_of_the_new_value():
    m = batch_moments()
    a, b = running(), running()
    update_running_stats(*a, m)
    update_running_stats(*b, m, momentum=0.1, correction=1)
    same_bytes(np.array(a), np.array(b))


def test_decay_weighs_the_old_value():
    m = batch_moments()
    a, b = running(), running()
    update_running_stats(*a, m, decay=0.75)
    update_running_stats(*b, m, momentum=0.25)
    same_bytes(np.array(a), np.array(b))


def test_no_momentum_is_the_plain_average():
    mean, var = running()
    every = [batch_moments(seed) for seed in range(6)]
    for number, m in enumerate(every, 1):
        assert update_running_stats(mean, var, m, momentum=None, num_batches_tracked=number)
    np.testing.assert_allclose(mean, np.mean([m.mean for m in every], axis=0), rtol=20 * U)
    np.testing.assert_allclose(var, np.mean([m.var(1) for m in every], axis=0), rtol=20 * U)


def test_strided_running_statistics():
    both = np.zeros((4, 2), np.float32)
    both[:, 1] = 1
    mean, var = running(np.float32)
    mean[:], var[:] = 0, 1
    m = batch_moments()
    update_running_stats(both[::-1, 0], both[::-1, 1], m)
    update_running_stats(mean, var, m)
    same_bytes(np.ascontiguousarray(both[::-1].T), np.array([mean, var]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite(bad):
    x = generator("bad").normal(size=(10, 4))
    x[2, 1] = bad
    m = Moments.from_batch(x)
    mean, var = running()
    before = mean.copy(), var.copy()
    assert update_running_stats(mean, var, m, skip_nonfinite=True) is False
    same_bytes(np.array([mean, var]), np.array(before))
    assert update_running_stats(mean, var, m) is True
    assert np.isnan(var[1]) and np.isfinite(var[[0, 2, 3]]).all()
    assert not np.any(mean[[0, 2, 3]] == before[0][[0, 2, 3]])


def test_what_the_running_dtype_cannot_hold_is_not_finite():
    m = Moments.from_batch(np.array([[1e30], [-1e30]]))
    mean, var = np.zeros(1, np.float32), np.ones(1, np.float32)
    assert update_running_stats(mean, var, m, skip_nonfinite=True) is False
    assert mean == 0 and var == 1
    assert update_running_stats(mean.astype(float), var.astype(float), m, skip_nonfinite=True)
    assert update_running_stats(mean, var, m) and np.isinf(var)


def test_a_finite_batch_is_not_skipped():
    mean, var = running()
    assert update_running_stats(mean, var, batch_moments(), skip_nonfinite=True) is True


def test_an_empty_batch_changes_nothing():
    mean, var = running()
    before = mean.copy(), var.copy()
    assert update_running_stats(mean, var, Moments(0, np.zeros(4), np.zeros(4))) is False
    same_bytes(np.array([mean, var]), np.array(before))


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"m": None}, TypeError, "^m: expected Moments, got NoneType"),
        ({"momentum": 1.5}, ValueError, "^momentum: expected .* 0 to 1, got 1.5"),
        ({"momentum": -0.1}, ValueError, "^momentum: expected .* 0 to 1, got -0.1"),
        ({"momentum": np.nan}, ValueError, "^momentum: expected .* 0 to 1, got nan"),
        ({"momentum": "0.1"}, TypeError, "^momentum: expected .* 0 to 1, got '0.1'"),
        ({"momentum": 0.1, "decay": 0.9}, TypeError, "^decay: expected None beside momentum=0.1"),
        ({"momentum": None, "decay": 0.9}, TypeError, "^decay: expected None beside momentum"),
        ({"decay": 9}, ValueError, "^decay: expected .* 0 to 1, got 9"),
        ({"momentum": None}, TypeError, "^num_batches_tracked: expected .* >= 1, got None"),
        (
            {"momentum": None, "num_batches_tracked": 0},
            ValueError,
            "^num_batches_tracked: expected .* >= 1, got 0",
        ),
        ({"correction": 10}, ValueError, "^correction: expected less than .* 10, got 10"),
        ({"correction": np.nan}, ValueError, "^correction: expected a finite number, got nan"),
        ({"correction": "1"}, TypeError, "^correction: expected a real number, got '1'"),
        ({"running_mean": np.zeros(3)}, ValueError, r"^running_mean: expected .*\(4,\), got"),
        ({"running_var": np.ones(5)}, ValueError, r"^running_var: expected .*\(4,\), got"),
        ({"running_var": np.ones((1, 4))}, ValueError, "^running_var: expected .*, got"),
        ({"running_var": np.ones(4, int)}, TypeError, "^running_var: expected .*, got int64"),
        ({"running_mean": [0.0] * 4}, TypeError, "^running_mean: expected .*, got list"),
        ({"running_mean": None}, TypeError, "^running_mean: expected .*, got NoneType"),
        ({"running_var": np.ma.zeros(4)}, TypeError, "^running_var: expected .*masked"),
        ({"running_var": read_only(np.ones(4))}, ValueError, "^running_var: .*writable"),
        (
            {"running_var": np.lib.stride_tricks.as_strided(np.ones(4), (4,), (0,))},
            ValueError,
            "^running_var: expected elements at distinct places",
        ),
    ],
)
def test_bad_updates_change_nothing(changed, error, text):
    mean, var = running()
    arguments = {"running_mean": mean, "running_var": var, "m": batch_moments()} | changed
    before = {name: np.array(arguments[name]) for name in ("running_mean", "running_var")}
    with pytest.raises(error, match=text):
        update_running_stats(**arguments)
    for name, array in before.items():
        np.testing.assert_array_equal(np.array(arguments[name]), array)


def test_one_memory_for_both_is_refused():
    both = np.ones(6)
    with pytest.raises(ValueError, match="^running_var: expected memory of its own"):
        update_running_stats(both[:4], both[2:], batch_moments())
    assert np.all(both == 1)


def test_one_value_has_no_unbiased_variance():
    mean, var = running()
    with pytest.raises(ValueError, match="^correction: expected less than .* 1, got 1"):
        update_running_stats(mean, var, batch_moments(rows=1))
    assert update_running_stats(mean, var, batch_moments(rows=1), correction=0)


# What else is made of them ------------------------------------------------------------------------


def test_inverse_std():
    actual = inverse_std(np.array([3, 0, 0.25], np.float32), 1.0)
    np.testing.assert_allclose(actual, [0.5, 1, 1 / np.sqrt(1.25)], rtol=4 * U)
    same_bytes(inverse_std(np.array([0.0, 4.0]), 0.0), np.array([0, 0.5]))


def test_renormalization_leads_to_the_running_statistics():
    x = generator("renorm").normal(1, 2, (50, 4))
    mean, var = running()
    r, d = renormalization(Moments.from_batch(x), mean, var, 1e-3, 1e9, 1e9)
    y = cbn.batch_norm_forward(x, r, d, eps=1e-3)[0]
    right = cbn.batch_norm_inference(x, mean, var, eps=1e-3)
    np.testing.assert_allclose(y, right, rtol=1e-12, atol=1e-12)


def test_renormalization_is_clipped():
    m = Moments(4, np.array([0.0, 100.0, -100.0]), 4 * np.array([1.0, 1e4, 1e-4]))
    r, d = renormalization(m, np.zeros(3), np.ones(3), 0.0, 3.0, 5.0)
    np.testing.assert_allclose(r, [1, 3, 1 / 3])
    np.testing.assert_allclose(d, [0, 5, -5])
    plain = renormalization(m, np.zeros(3), np.ones(3), 0.0, 1.0, 0.0)
    np.testing.assert_array_equal(plain, [[1, 1, 1], [0, 0, 0]])
