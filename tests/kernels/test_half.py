"""float16 and bfloat16: what float32 gives, rounded once; every pattern of 16 bits goes through."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import option_reference as reference
import pytest
from cases import Batch, everything, generator, same_bytes
from hypothesis import given
from strategies import batches

import cbn

HALVES = [np.float16, ml_dtypes.bfloat16]
SHAPES = [((1, 3), 1), ((67, 33), 1), ((5, 40), 0), ((1025, 7), 1), ((3, 5, 9, 11), 1)]
SHAPES += [((2, 9, 11, 16), -1), ((9, 130, 4), 1), ((40000, 2), 1)]

halves = pytest.mark.parametrize("half", HALVES, ids=lambda half: np.dtype(half).name)
shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)


def every_pattern(half):
    return np.arange(2**16, dtype=np.uint16).view(half)


def rounded(a, half):
    with np.errstate(over="ignore"):
        return a.astype(half)


def as_float32(b):
    """The same Batch with x and dy in float32; the parameters keep their dtype."""
    other = object.__new__(Batch)
    vars(other).update(vars(b), x=b.x.astype(np.float32), dy=b.dy.astype(np.float32))
    return other


def rounded_once(results, half):
    arrays = ("y", "dx", "inference", "inference_dx")
    return {name: rounded(a, half) if name in arrays else a for name, a in results.items()}


def same_numbers(actual, expected):
    """The same bytes, but for NaN and zero, which have many."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    with np.errstate(invalid="ignore"):  # signalling NaN
        nan, zero = np.isnan(expected), expected == 0
        assert np.array_equal(np.isnan(actual), nan)
    assert not actual[zero].any()
    kept = ~(nan | zero)
    same_bytes(actual[kept], expected[kept])


# Against float32 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [None, np.float32, np.float64], ids=str)
@halves
@shapes
def test_results_are_those_of_float32_rounded_once(shape, axis, half, parameters):
    b = Batch(shape, half, axis=axis)
    for name in ("gamma", "beta", "mean", "var"):
        setattr(b, name, getattr(b, name).astype(parameters or half))
    found, expected = everything(b, axis=axis), everything(as_float32(b), axis=axis)
    assert found["y"].dtype == found["dx"].dtype == half
    assert found["dgamma"].dtype == found["dbeta"].dtype == parameters or half
    assert found["mean"].dtype == found["var"].dtype == found["invstd"].dtype == np.float64
    same_bytes(found, rounded_once(expected, half))


@halves
@shapes
def test_results_without_parameters(shape, axis, half):
    b = Batch(shape, half, "none", axis=axis)
    found, expected = everything(b, axis=axis), everything(as_float32(b), axis=axis)
    assert found.pop("inference_dbeta").dtype == half  # dx's dtype, where gamma has none to give
    del expected["inference_dbeta"]
    same_bytes(found, rounded_once(expected, half))


@halves
@shapes
def test_values(shape, axis, half):
    b = Batch(shape, half, axis=axis)
    reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis)
    reference.check_inference(b, axis)


@halves
@pytest.mark.parametrize("step", [2, -1])
def test_wide_rows_whose_elements_lie_apart(step, half):
    """They are widened and narrowed a block at a time."""
    b = Batch((6, 1500), half)
    x, dy = (a[:, ::step] for a in (b.x, b.dy))
    count = x.shape[1]
    gamma, beta = b.gamma[:count], b.beta[:count]
    reference.check(x, dy, gamma, beta)
    out = np.zeros((6, 1500), half)[:, ::step]
    cbn.batch_norm_forward(x, gamma, beta, out=out)
    same_bytes(out.copy(), cbn.batch_norm_forward(x.copy(), gamma, beta)[0])


@halves
def test_wide_rows_far_from_zero(half):
    """Every part of a row has an anchor, sums and coefficients of its own."""
    rng = generator("far", np.dtype(half).name)
    b = Batch((70, 900), half)
    b.x = (rng.normal(0, 1, (70, 900)) + 30 * np.arange(1, 901) / 900).astype(half)
    reference.check(b.x, b.dy, b.gamma, b.beta)


@given(drawn=batches(dtypes=HALVES))
def test_any_batch(drawn):
    b, axis = drawn
    expected = everything(as_float32(b), axis=axis)
    same_bytes(everything(b, axis=axis), rounded_once(expected, b.x.dtype))


@halves
def test_statistics_are_better_than_the_type(half):
    """A mean far from zero and a batch far larger than a half type can count."""
    rng = generator("statistics", np.dtype(half).name)
    x = (1000 + 10 * rng.standard_normal((70000, 3))).astype(half)
    _, cache, _ = reference.check(x, rng.standard_normal(x.shape).astype(half))
    assert np.all(np.abs(cache.mean - x.astype(np.float64).mean(axis=0)) < 1e-6)
    assert np.all(np.abs(cache.var / x.astype(np.float64).var(axis=0) - 1) < 1e-6)


@halves
def test_the_ends_of_the_range(half):
    info = ml_dtypes.finfo(half)
    ends = np.array([info.max, info.max, -info.max, info.smallest_subnormal, 0], half)
    tiny = np.array([1, 2, 3, 5, 8], half) * info.smallest_subnormal
    x = np.stack([ends, tiny.astype(half), np.full(5, info.max, half)], axis=1)
    y, cache = cbn.batch_norm_forward(x, eps=0.0)
    right = cbn.batch_norm_forward(x.astype(np.float32), eps=0.0)
    same_bytes(y, rounded(right[0], half))
    assert np.isfinite(y.astype(np.float32)).all() and np.isfinite(cache.var).all()
    assert not y[:, 2].any() and cache.var[2] == 0


# Every pattern ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["long", "wide", "NCL", "strided"])
@halves
def test_every_pattern_goes_through_the_identity(half, layout):
    x = every_pattern(half)
    lay_out = {
        "long": lambda a: a[:, None],
        "wide": lambda a: a[None],
        "NCL": lambda a: a.reshape(16, 1, 4096),
        "strided": lambda a: np.repeat(a, 3)[::3][:, None],
    }[layout]
    channels = 2**16 if layout == "wide" else 1
    fixed = (np.zeros(channels), np.ones(channels))
    y = cbn.batch_norm_inference(lay_out(x), *fixed, axis=1, eps=0)
    same_numbers(y.reshape(-1), x)
    dx = cbn.batch_norm_inference_backward(lay_out(x), lay_out(x), *fixed, axis=1, eps=0)[0]
    same_numbers(dx.reshape(-1), x)


@halves
def test_every_pattern_has_its_value(half):
    """Reading alone: a lone row's mean is its value in float64."""
    x = every_pattern(half)
    finite = x[np.isfinite(x.astype(np.float32))]
    _, cache = cbn.batch_norm_forward(finite[None])
    assert np.array_equal(cache.mean, finite.astype(np.float64)) and not cache.var.any()


@pytest.mark.parametrize("seed", range(4))
@halves
def test_every_pattern_is_rounded_to_nearest_even(half, seed):
    """Products that are ties, just beside ties, subnormal, and past the largest number."""
    rng = generator("rounding", seed)
    bits = 2.0 ** np.arange(-30, 31, 4)
    ties = np.concatenate([bits * 1.5, bits * (1 + 2.0**-11), bits * (1 + 2.0**-8), bits * 3])
    gamma = np.concatenate([ties, rng.lognormal(0, 3, 16)]).astype(np.float32)
    beta = np.where(rng.random(len(gamma)) < 0.5, 0, rng.normal(size=len(gamma)))
    x = np.broadcast_to(every_pattern(half)[:, None], (2**16, len(gamma)))
    fixed = (np.zeros(len(gamma)), np.ones(len(gamma)), gamma, beta.astype(np.float32))
    y = cbn.batch_norm_inference(x, *fixed, eps=0)
    right = cbn.batch_norm_inference(x.astype(np.float32), *fixed, eps=0)
    same_numbers(y, rounded(right, half))


@halves
def test_every_distance_from_a_tie(half):
    """float32 sums from beta alone, of which the half type must keep the nearest."""
    rng = generator("ties", np.dtype(half).name)
    values = every_pattern(half).astype(np.float32)
    values = np.sort(values[np.isfinite(values)])
    between = values[:-1] + np.diff(values) / 2
    ends = [np.nextafter(between, side, dtype=np.float32) for side in (-np.inf, np.inf)]
    beta = np.concatenate([between, *ends, rng.choice(between, 100) * np.float32(1.0001)])
    with np.errstate(over="ignore"):
        beta = np.append(beta, [np.float32(ml_dtypes.finfo(half).max) * np.float32(1.01)])
    x = np.zeros((1, len(beta)), half)
    y, _ = cbn.batch_norm_forward(x, None, beta.astype(np.float32))
    same_bytes(y[0], rounded(beta.astype(np.float32), half))
