"""Values at the edges and what comes of them; and that a test which cannot run does not pass."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from cases import DTYPES, within
from hypothesis import given
from hypothesis import strategies as st
from tiers import TIERS, cpu_tiers
from tolerances import u, var_bound

import cbn
from cbn import BatchNorm, Moments

NAN, INF = math.nan, math.inf
BETA = 0.25


def y_and_statistics(column, eps, dtype=np.float64):
    x = np.array(column, dtype)[:, None]
    y, cache = cbn.batch_norm_forward(x, np.array([2.0]), np.array([BETA]), eps=eps)
    return y[:, 0].tolist(), cache.mean[0], cache.var[0], cache.invstd[0]


# The values of a channel, eps; y, mean, var and invstd with gamma 2 and beta 1/4.
TABLE = {
    "one value": ([3.0], 1.0, [BETA], 3, 0, 1),
    "one value without eps": ([3.0], 0.0, [BETA], 3, 0, 0),
    "a constant": ([0.1] * 5, 1.0, [BETA] * 5, 0.1, 0, 1),
    "a constant without eps": ([0.1] * 5, 0.0, [BETA] * 5, 0.1, 0, 0),
    "the largest numbers": ([1.7e308] * 3, 0.0, [BETA] * 3, 1.7e308, 0, 0),
    "the smallest numbers": ([5e-324] * 3, 0.0, [BETA] * 3, 5e-324, 0, 0),
    "both zeros": ([0.0, -0.0], 0.0, [BETA] * 2, 0, 0, 0),
    "two values": ([1.0, 3.0], 0.0, [BETA - 2, BETA + 2], 2, 1, 1),
    "two values and eps": ([1.0, 3.0], 3.0, [BETA - 1, BETA + 1], 2, 1, 0.5),
    "a NaN": ([1.0, NAN], 1.0, [NAN] * 2, NAN, NAN, NAN),
    "one NaN": ([NAN], 1.0, [NAN], NAN, NAN, NAN),
    "an infinity": ([1.0, INF], 1.0, [NAN] * 2, NAN, NAN, NAN),
    "both infinities": ([-INF, INF], 1.0, [NAN] * 2, NAN, NAN, NAN),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_outcome_of(name):
    column, eps, *right = TABLE[name]
    np.testing.assert_array_equal(
        np.concatenate([np.ravel(a) for a in y_and_statistics(column, eps)]),
        np.concatenate([np.ravel(np.array(a, float)) for a in right]),
    )


@pytest.mark.parametrize("name", ["a NaN", "one NaN", "an infinity", "both infinities"])
def test_what_is_not_finite_stays_in_its_channel(name, dtype):
    """The bytes of all others are those without it, in every function."""
    column = TABLE[name][0] * 20
    x = np.random.default_rng(0).normal(3, 2, (len(column), 21)).astype(dtype)
    spoilt, dy, others = x.copy(), x[::-1].copy(), np.arange(21) != 7
    spoilt[:, 7] = column

    def results(x):
        with np.errstate(all="ignore"):
            y, cache = cbn.batch_norm_forward(x)
            dx = cbn.batch_norm_backward(dy, cache)[0]
            inference = cbn.batch_norm_inference(x, cache.mean, np.ones(21))
        return y, dx, inference, cache.mean, cache.var

    for found, right in zip(results(spoilt), results(x), strict=True):
        assert found[..., others].tobytes() == right[..., others].tobytes()


@pytest.mark.parametrize(
    ("shape", "axis"), [((0, 3), None), ((3, 0), 0), ((2, 3, 0), 1), ((0, 3, 4), 1)]
)
def test_no_rows_is_an_error(shape, axis):
    with pytest.raises(ValueError, match="^x: expected at least one value per channel"):
        cbn.batch_norm_forward(np.ones(shape), axis=axis)
    with pytest.raises(ValueError, match="^x: expected at least one value per channel"):
        BatchNorm(3, axis=axis)(np.ones(shape))


@pytest.mark.parametrize(("shape", "axis"), [((4, 0), None), ((4, 0, 5), 1), ((0, 4), 0)])
def test_no_channels_is_an_empty_result(shape, axis, dtype):
    x = np.ones(shape, dtype)
    y, cache = cbn.batch_norm_forward(x, np.ones(0), np.ones(0), axis=axis)
    dx, dgamma, dbeta = cbn.batch_norm_backward(x, cache)
    assert y.shape == dx.shape == shape and y.dtype == dx.dtype == dtype
    assert dgamma.shape == dbeta.shape == cache.mean.shape == (0,)


def test_one_row_in_training_is_pytorchs_error():
    text = r"^Expected more than 1 value per channel when training, got input size \(1, 4\)$"
    with pytest.raises(ValueError, match=text):
        BatchNorm(4)(np.ones((1, 4)))


@pytest.mark.parametrize("eps", [-1.0, -5e-324, NAN, INF, -INF, 10**400])
def test_an_eps_that_is_none(eps):
    x, v = np.ones((3, 2)), np.ones(2)
    calls = [
        lambda: cbn.batch_norm_forward(x, eps=eps),
        lambda: cbn.batch_norm_forward(x[None], axis=2, eps=eps),
        lambda: cbn.batch_norm_inference(x, v, v, eps=eps),
        lambda: cbn.batch_norm_inference_backward(x, x, v, v, eps=eps),
        lambda: cbn.batch_norm_inference_cache(x, v, v, eps=eps),
        lambda: cbn.batch_norm_normalize(x, Moments.from_batch(x), eps=eps),
        lambda: cbn.fold.into_linear(np.ones((2, 2)), None, v, v, eps=eps),
        lambda: BatchNorm(2, eps=eps),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="^eps: expected a finite number >= 0, got"):
            call()


# Variance -----------------------------------------------------------------------------------------


@given(value=st.floats(-1e300, 1e300), rows=st.integers(1, 3000), kind=st.sampled_from(DTYPES))
def test_a_constant_channel_has_no_variance_at_all(value, rows, kind):
    with np.errstate(over="ignore"):
        value = kind(value)
    if not np.isfinite(value):
        value = np.finfo(kind).max
    x = np.full((rows, 3), value, kind)
    y, cache = cbn.batch_norm_forward(x, None, np.full(3, BETA, kind))
    assert not cache.var.any() and np.all(y == BETA) and np.all(cache.mean == float(value))
    assert not cbn.batch_norm_backward(x, cache)[0].any() or rows > 1
    m = Moments.from_batch(x[:1]).update(x)
    assert not m.m2.any()


@given(
    exponent=st.integers(-40, 300),
    mean=st.floats(-1e6, 1e6),
    rows=st.integers(2, 60),
    seed=st.integers(0, 99),
)
def test_no_variance_is_negative_or_overflows(exponent, mean, rows, seed):
    """Beside exact fractions, wherever the exact one is finite in float64."""
    kind = np.float32 if exponent < 30 else np.float64
    x = np.random.default_rng(seed).normal(mean, 1, (rows, 1)) * 10.0**exponent
    x = np.clip(x, -np.finfo(kind).max / 4, np.finfo(kind).max / 4).astype(kind)
    values = [Fraction(float(v)) for v in x[:, 0]]
    centre = sum(values) / rows
    exact = sum((v - centre) ** 2 for v in values) / rows
    cache = cbn.batch_norm_forward(x)[1]
    assert cache.var[0] >= 0
    if exact < Fraction(np.finfo(np.float64).max):
        smallest = 64 * u(np.float64) * np.finfo(np.float64).smallest_normal
        within(cache.var, np.array([float(exact)]), var_bound(kind, [float(exact)]) + smallest)


@pytest.mark.parametrize("value", [-1e-300, -1.0, -INF])
def test_a_negative_variance_is_never_taken(value):
    x, v, bad = np.ones((3, 2)), np.ones(2), np.array([1.0, value])
    bn = BatchNorm(2).eval()
    bn.running_var[...] = bad
    calls = [
        lambda: cbn.batch_norm_inference(x, v, bad),
        lambda: cbn.batch_norm_inference_backward(x, x, v, bad),
        lambda: cbn.batch_norm_inference_cache(x, v, bad),
        lambda: Moments(3, v, bad),
        lambda: cbn.fold.into_linear(np.ones((2, 2)), None, v, bad),
        lambda: BatchNorm(2).load_state_dict(BatchNorm(2).state_dict() | {"running_var": bad}),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"^(var|m2|running_var): expected values >= 0, got"):
            call()
    if value == float(np.float32(value)):  # which float32 can hold
        with pytest.raises(ValueError, match="^var: expected values >= 0, got"):
            bn(x)


# Tests that do not run ----------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]


def pytest_with(**environment):
    return subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "-n0", "tests/kernels/test_isa.py", "tests/kernels/test_one_answer.py",
         "-k", "tiers_found or test_tiers"],
        cwd=ROOT,
        env=os.environ | {"PYTEST_ADDOPTS": ""} | environment,
        capture_output=True,
        text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_tier_that_is_expected_and_does_not_run_is_a_failure():
    absent = next(name for name in TIERS if name not in cpu_tiers())
    run = pytest_with(CBN_REQUIRED_ISA=f"baseline,{absent}", CBN_ISA="")
    assert run.returncode == 1 and "2 failed" in run.stdout, run.stdout
    assert f"test_one_answer.py::test_tiers[{absent}]" in run.stdout


def test_the_continuous_integration_names_the_tiers_it_expects():
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "export CBN_REQUIRED_ISA" in text and "/proc/cpuinfo" in text
