"""cbn/_tensors.pxi, which the bridges to tensor libraries call, on the memory of arrays."""

from __future__ import annotations

import struct

import ml_dtypes
import numpy as np
import pytest
from cases import Batch, generator, same_bytes

import cbn
from cbn import _core

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
SHAPES = [(70, 33), (9, 5, 31), (4, 3, 8, 7), (70000, 2)]
EPS = 1e-5


def axes(a):
    steps = (stride // a.itemsize for stride in a.strides)
    return struct.pack(f"{1 + 2 * a.ndim}n", 1, *a.shape, *steps)


def address(a):
    return None if a is None else a.ctypes.data


def dtype_of(a):
    return _core.tensor_dtypes[a.dtype.name]


def parameters(b):
    """gamma, beta, mean and var as tensors have them: in the dtype that x is computed in."""
    wide = b.x.dtype == np.float64
    to = np.float64 if wide else np.float32
    return [None if a is None else a.astype(to) for a in (b.gamma, b.beta, b.mean, b.var)], wide


def forward(b, training):
    given, wide = parameters(b)
    y, stats = np.empty_like(b.x), np.full((6, b.x.shape[1]), np.nan)
    gamma, beta, mean, var = given if not training else (*given[:2], None, None)
    _core.tensor_forward(
        *(address(y), axes(y), address(b.x), axes(b.x), dtype_of(b.x), address(stats)),
        *(address(gamma), address(beta), address(mean), address(var), wide, training, EPS, 2),
    )
    return y, stats


def backward(b, stats, training):
    given, wide = parameters(b)
    dx = np.empty_like(b.x)
    dgamma, dbeta = np.full((2, b.x.shape[1]), np.nan, np.float64 if wide else np.float32)
    _core.tensor_backward(
        *(address(dx), axes(dx), address(dgamma), address(dbeta), address(b.dy), axes(b.dy)),
        *(address(b.x), axes(b.x), dtype_of(b.x), address(stats)),
        *(given[0] is not None, wide, training, EPS, 2),
    )
    return dx, dgamma, dbeta


def batch(shape, dtype, which, order):
    b = Batch(shape, dtype, which, axis=1)
    b.x, b.dy = (np.asarray(a, order=order) for a in (b.x, b.dy))
    return b


@dtypes
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("which", ["gamma and beta", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_step_is_that_of_arrays(shape, which, order, dtype):
    b = batch(shape, dtype, which, order)
    (gamma, beta, *_), _ = parameters(b)
    y, stats = forward(b, training=True)
    right, cache = cbn.batch_norm_forward(b.x, gamma, beta, axis=1, eps=EPS)
    same_bytes(y, right)
    same_bytes(stats[0], cache.mean)
    same_bytes(stats[2:4], np.stack([cache.var, cache.invstd]))
    dx, dgamma, dbeta = backward(b, stats, training=True)
    same_bytes(dx, cbn.batch_norm_backward(b.dy, cache)[0])
    ones = np.ones_like(dgamma)  # there are sums without parameters too
    cache = cbn.batch_norm_forward(b.x, ones, ones, axis=1, eps=EPS)[1]
    for found, expected in zip(
        (dgamma, dbeta), cbn.batch_norm_backward(b.dy, cache)[1:], strict=True
    ):
        same_bytes(found, expected)


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_inference_is_that_of_arrays(shape, dtype):
    b = batch(shape, dtype, "gamma and beta", "C")
    (gamma, beta, mean, var), _ = parameters(b)
    y, stats = forward(b, training=False)
    same_bytes(y, cbn.batch_norm_inference(b.x, mean, var, gamma, beta, axis=1, eps=EPS))
    dx, dgamma, dbeta = backward(b, stats, training=False)
    options = {"axis": 1, "eps": EPS}
    right = cbn.batch_norm_inference_backward(b.dy, b.x, mean, var, gamma, **options)
    for found, expected in zip((dx, dgamma, dbeta), right, strict=True):
        same_bytes(found, expected)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
def test_running_statistics_are_averaged(momentum, wide):
    """(47), with the unbiased variance; nothing is written past the last channel."""
    dtype, count = np.float64 if wide else np.float32, 5
    stats, mean, var = (generator("average", i).uniform(1, 2, (6, 7)) for i in range(3))
    mean, var = mean[0].astype(dtype), var[0].astype(dtype)
    before = mean.astype(np.float64), var.astype(np.float64)
    _core.tensor_average(address(mean), address(var), address(stats), 6, wide, count, momentum)
    biased = stats.reshape(-1)[12:18]  # the statistics of six channels lie side by side
    expected = (
        (1 - momentum) * before[0][:6] + momentum * stats.reshape(-1)[:6],
        (1 - momentum) * before[1][:6] + momentum * (biased * (count / (count - 1))),
    )
    for found, right, old in zip((mean, var), expected, before, strict=True):
        assert np.allclose(found[:6], right, rtol=4 * np.finfo(dtype).eps, atol=0)
        assert found[6] == old[6]


@pytest.mark.parametrize("missing", range(3))
def test_a_tensor_without_memory_is_refused(missing):
    addresses = [0 if i == missing else 8 for i in range(3)]
    with pytest.raises(RuntimeError, match="a tensor without memory"):
        _core.tensor_average(*addresses, 1, True, 2, 0.1)


def test_too_many_dimensions_are_refused():
    x, stats = np.ones((1,) * 64, np.float32), np.full((6, 1), 7.0)
    many = struct.pack("131n", *[1] * 131)
    with pytest.raises(RuntimeError, match="sizes"):
        _core.tensor_forward(
            *(address(x), many, address(x), many, _core.tensor_dtypes["float32"]),
            *(address(stats), None, None, None, None, False, True, EPS, 1),
        )
    assert np.all(stats == 7)
