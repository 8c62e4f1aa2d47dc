"""The numerical contract on hard data, against twice float64's precision or 90 digits."""

from __future__ import annotations

import exact
import numpy as np
import pytest
from cases import check_inference, check_training, generator, same_bytes, slow_if
from one_answer import EXTREMES, Arguments, compute
from tolerances import (
    dbeta_bound,
    dgamma_bound,
    dx_bound,
    invstd_bound,
    jvp_bound,
    mean_bound,
    var_bound,
    y_bound,
)

import cbn
from cbn.cli import _exact
from cbn.cli._exact import Pair, add, divide, multiply, square_root
from cbn.cli.accuracy import DATA, make

RATIOS = {np.float32: [0, 1, 1e2, 1e4, 1e6, 1e7], np.float64: [0, 1, 1e4, 1e7, 1e9, 1e12]}


def assert_within(name, actual, right, bound):
    off = _exact.error(actual, right)
    good = off <= bound
    assert np.all(good), f"{name}: {np.sum(~good)} off, by up to {np.max(off / bound):.3g} bounds"


def check_statistics(cache, right, dtype, eps):
    mean, var = right["mean"].hi, right["var"].hi
    assert_within("var", cache.var, right["var"], var_bound(dtype, var))
    assert_within("mean", cache.mean, right["mean"], mean_bound(dtype, mean, var))
    if "invstd" in right:
        bound = invstd_bound(dtype, var, eps)
        assert_within("invstd", cache.invstd, right["invstd"], bound)


def check_gradients(gradients, dy, right, gamma, dtype):
    xhat, invstd = right["xhat"].hi, right["invstd"].hi
    bounds = {
        "dx": dx_bound(dtype, dy, xhat, gamma, invstd),
        "dgamma": dgamma_bound(dtype, dy, xhat),
        "dbeta": dbeta_bound(dtype, dy),
    }
    for (name, bound), actual in zip(bounds.items(), gradients, strict=True):
        assert_within(name, actual, right[name], bound)


def check(x, dy, eps=1e-5, gamma=None):
    """All results of training within their bounds; the parameters are float64."""
    beta, drawn = generator("parameters", x.shape).normal(1, 0.5, (2, x.shape[1]))
    gamma = drawn if gamma is None else gamma
    right = _exact.reference(x, dy, gamma, beta, eps)
    y, cache = cbn.batch_norm_forward(x, gamma, beta, eps=eps)
    check_statistics(cache, right, x.dtype, eps)
    assert_within("y", y, right["y"], y_bound(x.dtype, gamma, beta, right["xhat"].hi))
    check_gradients(cbn.batch_norm_backward(dy, cache), dy, right, gamma, x.dtype)
    y_dot = cbn.batch_norm_jvp(dy, cache)
    bound = jvp_bound(x.dtype, dy, right["xhat"].hi, gamma, right["invstd"].hi)
    assert_within("y_dot", y_dot, right["dx"], bound)


def gradient_like(x, key=0):
    return generator("dy", x.shape, key).normal(0.3, 1, x.shape).astype(x.dtype)


# The data of `cbn accuracy` -----------------------------------------------------------------------


@pytest.mark.parametrize("rows", slow_if(lambda n: n > 9999, [2, 3, 33, 300, 4097, 70001]))
@pytest.mark.parametrize("name", DATA)
def test_named_data(name, rows, dtype):
    if name == "subnormals" and dtype == np.float64:
        check_float64_subnormals(rows)
        return
    data = make(name, (rows, 4), np.dtype(dtype).name)
    check(data.x, data.dy)


def check_float64_subnormals(rows):
    """The squares are 0 in float64, and the mean is good to its last place."""
    x = make("subnormals", (min(rows, 300), 4), "float64").x
    y, cache = cbn.batch_norm_forward(x, beta=np.ones(4))
    mean = exact.forward(x).mean
    assert np.all(exact.error(cache.mean, mean) <= np.finfo(np.float64).smallest_subnormal)
    assert not cache.var.any() and np.all(y == 1)


@pytest.mark.parametrize("rows", [33, 300, 4097])
@pytest.mark.parametrize("name", ["1e30", "1e-30", "subnormals"])
def test_data_of_any_size_without_eps(name, rows, dtype):
    if name == "subnormals" and dtype == np.float64:
        name = "1e-30"
    data = make(name, (rows, 3), np.dtype(dtype).name)
    check(data.x, data.dy * dtype(1e-8), eps=0.0)  # or else dx would pass float32's range


@pytest.mark.slow
@pytest.mark.parametrize("name", ["normal", "mean 1e7", "outlier first", "random walk", "ramp"])
def test_a_million_rows(name, dtype):
    data = make(name, (1 << 20, 1), np.dtype(dtype).name)
    check(data.x, data.dy)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("mean 1e4", np.float32), ("random walk", np.float64)],
    ids=["mean 1e4", "random walk"],
)
def test_two_to_the_24_rows(name, dtype):
    """The statistics, and y of some rows."""
    x = np.empty((1 << 24, 1), dtype)
    x[:] = DATA[name](generator(name), 1 << 24, 1, np.dtype(dtype).name)
    x[0] += 1e3
    y, cache = cbn.batch_norm_forward(x)
    mean, var = _exact.moments(x)
    check_statistics(cache, {"mean": mean, "var": var}, dtype, 1e-5)
    some = np.r_[:100, (1 << 23) - 50 : (1 << 23) + 50, -100:0]
    invstd = divide(Pair.of(1.0), square_root(add(var, Pair.of(1e-5))))
    xhat = multiply(add(Pair.of(x[some]), mean.minus()), invstd)
    assert_within("y", y[some], xhat, y_bound(dtype, None, None, xhat.hi))


# Far from zero, drifting, huge, tiny --------------------------------------------------------------


@pytest.mark.parametrize("rows", [2, 3, 33, 300, 70001])
@pytest.mark.parametrize("step", range(6))
def test_mean_over_std(step, rows, dtype):
    ratio, sign = RATIOS[dtype][step], [1, -1, 1]
    rng = generator("ratio", ratio, rows)
    x = (rng.normal(ratio, 1, (rows, 3)) * [1, 0.37, 1000] * sign).astype(dtype)
    check(x, gradient_like(x))


@pytest.mark.parametrize("rows", [300, 4097, 70000])
@pytest.mark.parametrize("first", [1, 8, 31, 32, 33, 256, 257])
def test_data_that_leave_their_first_rows(first, rows, dtype):
    x = np.full((rows, 2), 0.7, dtype)
    x[:first] = 0.1
    x[:, 1] += generator("noise", rows).normal(0, 1e-3, rows).astype(dtype)
    check(x, gradient_like(x))


@pytest.mark.parametrize("size", [1e6, 1e12, 1e20])
@pytest.mark.parametrize("place", [0, 1, 31, 32, 35000, -1])
def test_an_outlier_anywhere(place, size, dtype):
    x = generator("outlier").normal(0, 1, (70000, 1)).astype(dtype)
    x[place] = size
    check(x, gradient_like(x))


def check_finite_in_float64(x, check_y=True):
    """Mean and y within their bounds, var where float64 can hold it; else it is inf."""
    y, cache = cbn.batch_norm_forward(x, eps=0.0)
    right = exact.forward(x, eps=0.0)
    mean, var, std = (exact.floats(a) for a in (right.mean, right.var, 1 / right.invstd))
    assert np.all(np.isfinite(cache.mean)) and not np.isnan(cache.var).any()
    assert np.all(np.isfinite(cache.var) == np.isfinite(var))
    bound = mean_bound(np.float64, mean, 0) + std * mean_bound(np.float64, 0, 1)
    assert np.all(exact.error(cache.mean, right.mean) <= bound)
    if np.all(np.isfinite(var)):
        assert np.all(exact.error(cache.var, right.var) <= var_bound(np.float64, var))
    if check_y:
        assert np.all(np.isfinite(y))
        xhat = exact.floats(right.xhat)
        assert np.all(exact.error(y, right.y) <= y_bound(np.float64, None, None, xhat))


@pytest.mark.parametrize("scale", [1e-153, 3e153, 1e160, 1e300])
@pytest.mark.parametrize("rows", [2, 33, 300])
def test_float64_whose_squares_float64_cannot_hold(rows, scale):
    check_finite_in_float64(generator("squares", rows).normal(1, 1, (rows, 2)) * scale)


def test_float64_around_a_huge_mean():
    """The differences have squares, the values have not."""
    spread = 1e-13 * generator("huge mean").uniform(-1, 1, (300, 2))
    check_finite_in_float64(1e160 * (1 + spread))


def test_the_ends_of_float64():
    """The differences are twice the largest number: the statistics hold, y cannot."""
    x = np.full((300, 2), 1.7e308)
    x[::3, 0] = x[7, 1] = -1.7e308
    check_finite_in_float64(x, check_y=False)


# Gradients ----------------------------------------------------------------------------------------

# The scale of dy, and of x so that dx is an ordinary number.
GRADIENTS = {
    np.float32: [(1e38, 1e4), (1e38, 10), (1e30, 1.0), (1e-30, 1.0), (1e-40, 1e-4), (1e-45, 1e-9)],
    np.float64: [(1e150, 1.0), (1e38, 1e4), (1e-40, 1e-4), (1e-150, 1.0), (1.0, 1.0), (3.0, 1e30)],
}


@pytest.mark.parametrize("rows", [2, 33, 300, 5000])
@pytest.mark.parametrize("which", range(6))
def test_huge_and_tiny_gradients(which, rows, dtype):
    scale, spread = GRADIENTS[dtype][which]
    rng = generator("gradients", which, rows)
    x = (rng.normal(1, 1, (rows, 4)) * spread).astype(dtype)
    dy = rng.uniform(-3, 3, (rows, 4))
    dy[:, 1] = dy[:, 1] * 1e-3 + 2  # so that most of it cancels
    dy[:, :3] *= scale
    check(x, dy.astype(dtype), eps=0.0)


def test_a_finite_dx_of_overflowing_terms():
    """gamma * invstd * dy is 1e39 and more, dx is 1e36."""
    rng = generator("overflow")
    x = rng.normal(0, 0.1, (300, 3)).astype(np.float32)
    dy = (1e38 * (1 + 1e-3 * rng.normal(0, 1, (300, 3)))).astype(np.float32)
    check(x, dy)


@pytest.mark.parametrize("rows", [3, 4, 6, 8])
def test_a_finite_dx_beside_one_overflowing_term(rows):
    """gamma * invstd * dy is more than float32 holds, and the sums take a part of it away."""
    x = generator("one").permuted(np.linspace(-1, 1, rows)[:, None].repeat(3, axis=1), axis=0)
    dy = np.zeros((rows, 3), np.float32)
    dy[rows // 2] = 2.8e38
    check(x.astype(np.float32), dy, gamma=1.3 * x.std(axis=0))


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_the_largest_and_smallest_float64_gradients(scale):
    rng = generator("large", scale)
    x, dy = rng.normal(1, 1, (2, 33, 2))
    check_training(x, dy * scale, np.array([1.5, 0.5]), np.zeros(2), exactly=True)


@pytest.mark.parametrize(("scale", "std"), [(1e38, 1e4), (1e38, 30), (1e-33, 1), (1e-40, 1e-4)])
def test_gradients_of_inference(scale, std):
    rng = generator("inference", scale)
    x = (rng.normal(1, 1, (5000, 2)) * std).astype(np.float32)
    dy = (rng.uniform(0.5, 3, (5000, 2)) * rng.choice([-1, 1], (5000, 2)) * scale).astype("f4")
    var, gamma = np.full(2, 2.0) * std**2, np.array([1.5, 0.5])
    check_inference(x, dy, np.full(2, float(std)), var, gamma, np.zeros(2), eps=0.0)


# Isolation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_channel(bad, dtype):
    """Beside channels that leave the ordinary way themselves."""
    arrays, spoilt = Arguments((EXTREMES, dtype)), Arguments((EXTREMES, dtype))
    channel = 6
    spoilt.x[100, channel] = spoilt.dy[200, channel] = spoilt.x_dot[0, channel] = bad
    others = np.arange(EXTREMES[1]) != channel
    with np.errstate(all="ignore"):
        clean, results = compute(arrays), compute(spoilt)
    for name, a in results.items():
        kept, expected = a[..., others], clean[name][..., others]
        assert np.array_equal(np.isnan(kept), np.isnan(expected)), name
        same_bytes(np.nan_to_num(kept, nan=0), np.nan_to_num(expected, nan=0))
    assert np.all(np.isnan(results["y"][:, channel])) and np.isnan(results["var"][channel])
