"""cbn/fold.py: a folded layer computes what the two layers do."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from cases import generator, same_bytes
from hypothesis import given
from hypothesis import strategies as st
from tolerances import u

import cbn
from cbn import fold

EPS = 1e-3
U = u(np.float64)
LINEAR = ["into_linear", "before_linear"]
FUNCTIONS = [*LINEAR, "into_conv", "into_conv_transpose"]


def case(function="into_linear", given=("bias", "gamma", "beta"), dtype=np.float64, shape=(6, 4)):
    """weight, bias, mean, var, gamma and beta; out is 6."""
    rng = generator(function, shape)
    channels = 4 if function == "before_linear" else 6
    weight = rng.normal(size=shape).astype(dtype)
    bias = rng.normal(size=6).astype(dtype)
    mean, gamma, beta = rng.normal(2, 2, (3, channels)).astype(dtype)
    var = rng.uniform(0.5, 4, channels).astype(dtype)
    optional = {"bias": bias, "gamma": gamma, "beta": beta}
    bias, gamma, beta = (optional[name] if name in given else None for name in optional)
    return [weight, bias, mean, var, gamma, beta]


def shape_of(function):
    return {"into_conv": (6, 4, 2, 3), "into_conv_transpose": (4, 6, 3)}.get(function, (6, 4))


def good(function):
    return case(function, shape=shape_of(function))


def linear(x, weight, bias):
    y = x @ weight.astype(np.float64).T
    return y if bias is None else y + bias


OPTIONAL = [
    tuple(name for name, on in zip(("bias", "gamma", "beta"), bits, strict=True) if on)
    for bits in np.ndindex(2, 2, 2)
]


@pytest.mark.parametrize("given", OPTIONAL, ids=str)
def test_a_linear_layer_before_batch_norm(given):
    weight, bias, mean, var, gamma, beta = case("into_linear", given)
    x = generator("x").normal(size=(30, 4))
    right = cbn.batch_norm_inference(linear(x, weight, bias), mean, var, gamma, beta, eps=EPS)
    folded = fold.into_linear(weight, bias, mean, var, gamma, beta, eps=EPS)
    np.testing.assert_allclose(linear(x, *folded), right, rtol=100 * U, atol=100 * U)


@pytest.mark.parametrize("given", OPTIONAL, ids=str)
def test_a_linear_layer_after_batch_norm(given):
    weight, bias, mean, var, gamma, beta = case("before_linear", given)
    x = generator("x").normal(size=(30, 4))
    y = cbn.batch_norm_inference(x, mean, var, gamma, beta, eps=EPS)
    folded = fold.before_linear(weight, bias, mean, var, gamma, beta, eps=EPS)
    np.testing.assert_allclose(linear(x, *folded), linear(y, weight, bias), rtol=1e-13, atol=1e-13)


def test_a_point_convolution_is_a_linear_layer():
    given = case("into_linear")
    weight, bias = fold.into_linear(*given, eps=EPS)
    shaped = fold.into_conv(given[0][:, :, None, None], *given[1:], eps=EPS)
    same_bytes(shaped[0][:, :, 0, 0], weight)
    same_bytes(shaped[1], bias)
    turned = fold.into_conv_transpose(given[0].T[:, :, None], *given[1:], eps=EPS)
    same_bytes(np.ascontiguousarray(turned[0][:, :, 0].T), weight)
    same_bytes(turned[1], bias)


@given(st.sampled_from([1, 2, 3, 6]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
def test_groups_of_a_transposed_convolution(groups, inputs, outputs, kernel):
    """Each group for itself."""
    rng = generator(groups, inputs, outputs, kernel)
    weight = rng.normal(size=(groups * inputs, outputs, 2, kernel))
    channels = groups * outputs
    mean, gamma, beta, bias = rng.normal(size=(4, channels))
    var = rng.uniform(0.5, 2, channels)
    whole = fold.into_conv_transpose(weight, bias, mean, var, gamma, beta, EPS, groups=groups)
    parts = [np.split(a, groups) for a in (weight, bias, mean, var, gamma, beta)]
    alone = [fold.into_conv_transpose(*part, EPS) for part in zip(*parts, strict=True)]
    same_bytes(whole[0], np.concatenate([part[0] for part in alone]))
    same_bytes(whole[1], np.concatenate([part[1] for part in alone]))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_rounded_once_into_the_weights_dtype(function, dtype):
    given = case(function, dtype=dtype, shape=shape_of(function))
    wide = [a.astype(np.float64) for a in given]
    before = [a.copy() for a in given]
    results = getattr(fold, function)(*given, EPS)
    for actual, right in zip(results, getattr(fold, function)(*wide, EPS), strict=True):
        same_bytes(actual, right.astype(dtype))
        assert actual.flags.c_contiguous and actual.flags.writeable
        assert not any(np.shares_memory(actual, a) for a in given)
    for a, b in zip(given, before, strict=True):
        same_bytes(a, b)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_identity_gives_copies(function):
    weight, bias, *_ = good(function)
    channels = 4 if function == "before_linear" else 6
    results = getattr(fold, function)(weight, bias, np.zeros(channels), np.ones(channels), eps=0)
    same_bytes(results[0], weight)
    same_bytes(results[1], bias)
    assert not np.shares_memory(results[0], weight) and not np.shares_memory(results[1], bias)


def test_statistics_of_another_dtype_and_strides():
    given = case(dtype=np.float32)
    right = fold.into_linear(*given, EPS)
    other = [given[0][::-1].astype(">f4")[::-1], *(a.astype(np.float64) for a in given[1:])]
    for actual, wanted in zip(fold.into_linear(*other, EPS), right, strict=True):
        same_bytes(actual, wanted)
    same_bytes(fold.into_linear(*[a.tolist() for a in given], EPS)[0].astype(np.float32), right[0])


def test_no_variance_and_no_eps_is_no_scale():
    weight, bias, mean, _, gamma, beta = case()
    folded, new_bias = fold.into_linear(weight, bias, mean, np.zeros(6), gamma, beta, eps=0)
    assert not folded.any()
    same_bytes(new_bias, beta)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("place", "value", "error", "text"),
    [
        (0, np.ones(6), ValueError, r"^weight: expected shape \(.*\), got \(6,\)"),
        (0, np.ones((6, 4), int), TypeError, "^weight: expected a real floating dtype, got int64"),
        (0, np.ones((6, 4, 1, 1), complex), TypeError, "^weight: expected .*, got complex128"),
        (0, None, TypeError, "^weight: expected .*, got object"),
        (1, np.ones(5), ValueError, r"^bias: expected shape \(6,\), got \(5,\)"),
        (1, np.ones((6, 1)), ValueError, r"^bias: expected shape \(6,\), got \(6, 1\)"),
        (2, np.ones(9), ValueError, r"^mean: expected shape \([46],\), got \(9,\)"),
        (2, None, TypeError, r"^mean: expected an array of shape \([46],\), got None"),
        (3, np.ones(1), ValueError, r"^var: expected shape \([46],\), got \(1,\)"),
        (3, -1, ValueError, "^var: expected values >= 0, got -1.0 in channel 2"),
        (4, np.ones((1, 6)), ValueError, "^gamma: expected shape"),
        (5, "a", TypeError, "^beta: expected a real floating dtype"),
        (6, -1.0, ValueError, "^eps: expected"),
        (6, None, TypeError, "^eps: expected"),
    ],
)
def test_bad_arguments(function, place, value, error, text):
    arguments = [*good(function), EPS]
    if place == 3 and value == -1:
        value = np.ones_like(arguments[3])
        value[2] = -1
    arguments[place] = value
    with pytest.raises(error, match=text):
        getattr(fold, function)(*arguments)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        ("into_linear", (6, 4, 1)),
        ("before_linear", (6, 4, 1)),
        ("into_conv", (6, 4)),
        ("into_conv_transpose", (4, 6)),
    ],
)
def test_a_weight_of_another_layer(function, shape):
    arguments = good(function)
    arguments[0] = np.ones(shape)
    with pytest.raises(ValueError, match=r"^weight: expected shape \(.*\), got \("):
        getattr(fold, function)(*arguments)


@pytest.mark.parametrize(
    ("groups", "error"), [(0, ValueError), (3, ValueError), (-1, ValueError), (1.0, TypeError)]
)
def test_bad_groups(groups, error):
    with pytest.raises(error, match=f"^groups: expected .*, got {groups}"):
        fold.into_conv_transpose(*good("into_conv_transpose"), groups=groups)
