"""Arguments for the tests of the compiled functions, their references, and comparison."""

from __future__ import annotations

import zlib
from types import SimpleNamespace

import exact
import numpy as np
import pytest
from tolerances import (
    dbeta_bound,
    dgamma_bound,
    dx_bound,
    invstd_bound,
    mean_bound,
    var_bound,
    y_bound,
)

import cbn
from cbn import reference

DTYPES = [np.float32, np.float64]

# Around the kernels' units: 4, 8, 32, 256 and 512 rows, 16 to 512 channels.
SHAPES = [
    *((1, 1), (1, 7), (2, 1), (2, 3), (3, 5), (4, 4), (5, 2), (7, 3), (8, 9), (9, 8), (31, 17)),
    *((32, 16), (33, 15), (63, 5), (65, 4), (100, 1), (17, 255), (6, 256), (5, 257), (3, 1025)),
    *((255, 6), (256, 5), (257, 4), (513, 2), (1023, 1)),
]
LARGE_SHAPES = [(70001, 3), (16385, 17), (4097, 130), (513, 2049), (37, 4099), (2, 65537)]
BLOCK_ROWS = [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 63, 64, 65, 255, 256, 257, 288, 511, 512, 513]

EPS = [0.0, 1e-12, 1e-5, 1e-2, 1.0, 1e8]
PARAMETERS = ["none", "gamma", "beta", "gamma and beta"]

EXACT_SIZE = 150  # elements; larger arrays are compared with the reference in a wider type


def generator(*key):
    """A random generator that depends on the key alone."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


class Batch:
    """Random arguments of all four functions."""

    def __init__(self, shape, dtype, parameters="gamma and beta", axis=-1, key=0):
        rng = generator(shape, np.dtype(dtype).name, key)
        size = shape[axis]
        self.x = rng.normal(3, 2, shape).astype(dtype)
        self.dy = rng.normal(0.3, 1, shape).astype(dtype)
        self.mean = rng.normal(3, 1, size).astype(dtype)
        self.var = rng.uniform(0.5, 4, size).astype(dtype)
        gamma, beta = rng.normal(1, 0.5, size), rng.normal(0, 1, size)
        self.gamma = gamma.astype(dtype) if "gamma" in parameters else None
        self.beta = beta.astype(dtype) if "beta" in parameters else None


def everything(b, axis=None, eps=1e-5, num_threads=None):
    """Return every array that the four functions make of a Batch, by name."""
    common = {"axis": axis, "eps": eps, "num_threads": num_threads}
    y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, **common)
    training = cbn.batch_norm_backward(b.dy, cache, num_threads=num_threads)
    inference = cbn.batch_norm_inference(b.x, b.mean, b.var, b.gamma, b.beta, **common)
    fixed = cbn.batch_norm_inference_backward(b.dy, b.x, b.mean, b.var, b.gamma, **common)
    results = {"y": y, "mean": cache.mean, "var": cache.var, "invstd": cache.invstd}
    results |= zip(("dx", "dgamma", "dbeta"), training, strict=True)
    results |= {"inference": inference}
    results |= zip(("inference_dx", "inference_dgamma", "inference_dbeta"), fixed, strict=True)
    return {name: a for name, a in results.items() if a is not None}


def same_bytes(actual, expected):
    """Assert that two arrays, or two dicts of arrays, agree in dtype, shape and every byte."""
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for name in expected:
            same_bytes(actual[name], expected[name])
        return
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    if actual.tobytes() != expected.tobytes():
        differ = np.argwhere(actual != expected)
        raise AssertionError(f"{len(differ)} of {actual.size} differ, the first at {differ[:1]}")


def within(actual, expected, bound):
    """Assert |actual - expected| <= bound everywhere; NaN never is."""
    assert np.shape(actual) == np.shape(expected)
    off = exact.error(actual, expected)
    good = off <= bound
    if not np.all(good):
        ratio = np.max(np.where(np.isnan(off), np.inf, off) / np.broadcast_to(bound, off.shape))
        raise AssertionError(f"{np.sum(~good)} of {off.size} are off, by up to {ratio} bounds")


def _wide(a):
    """float64 for float32 and the half types, longdouble for float64."""
    if a is None:
        return None
    return np.asarray(a, np.longdouble if np.asarray(a).dtype == np.float64 else np.float64)


def _wider(cache, y):
    parts = {name: getattr(cache, name) for name in ("mean", "var", "invstd", "xhat", "gamma")}
    return SimpleNamespace(y=y, cache=cache, **parts)


def reference_forward(x, gamma, beta, eps, exactly=False):
    """Return .y .mean .var .invstd .xhat in 90 digits, or for large x in a wider type."""
    if exactly or x.size <= EXACT_SIZE:
        return exact.forward(x, gamma, beta, eps)
    y, cache = reference.forward(_wide(x), _wide(gamma), _wide(beta), eps)
    return _wider(cache, y)


def reference_inference(x, mean, var, gamma, beta, eps):
    if x.size <= EXACT_SIZE:
        return exact.inference(x, mean, var, gamma, beta, eps)
    statistics = np.asarray(mean, _wide(x).dtype), np.asarray(var, _wide(x).dtype)
    y, cache = reference.fixed_statistics(_wide(x), *statistics, _wide(gamma), _wide(beta), eps)
    return _wider(cache, y)


def reference_backward(dy, forward, fixed=False):
    if forward.xhat.dtype == object:
        return exact.backward(dy, forward, fixed)
    return reference.backward(_wide(dy), forward.cache)


def check_forward(x, gamma=None, beta=None, eps=1e-5, exactly=False):
    """Run the training forward pass on (N, D), assert all its bounds, return (reference, cache)."""
    y, cache = cbn.batch_norm_forward(x, gamma, beta, eps=eps)
    right = reference_forward(x, gamma, beta, eps, exactly)
    mean, var = exact.floats(right.mean), exact.floats(right.var)
    assert y.dtype == x.dtype and y.shape == x.shape
    within(cache.var, right.var, var_bound(x.dtype, var))
    within(cache.mean, right.mean, mean_bound(x.dtype, mean, var))
    within(cache.invstd, right.invstd, invstd_bound(x.dtype, var, eps))
    within(y, right.y, y_bound(x.dtype, gamma, beta, exact.floats(right.xhat)))
    return right, cache


def check_gradients(gradients, dy, right, gamma, dtype, fixed=False):
    """Assert the bounds of dx, dgamma and dbeta; None is not looked at."""
    dx, dgamma, dbeta = reference_backward(dy, right, fixed)
    xhat, invstd = exact.floats(right.xhat), exact.floats(right.invstd)
    assert gradients[0].dtype == dtype
    within(gradients[0], dx, dx_bound(dtype, dy, xhat, gamma, invstd, 0 if fixed else None))
    if gradients[1] is not None:
        within(gradients[1], dgamma, dgamma_bound(dtype, dy, xhat))
    if gradients[2] is not None:
        within(gradients[2], dbeta, dbeta_bound(dtype, dy))


def check_training(x, dy, gamma=None, beta=None, eps=1e-5, exactly=False):
    """Forward and backward."""
    right, cache = check_forward(x, gamma, beta, eps, exactly)
    gradients = cbn.batch_norm_backward(dy, cache)
    assert (gradients[1] is None) is (gamma is None) and (gradients[2] is None) is (beta is None)
    check_gradients(gradients, dy, right, gamma, x.dtype)


def check_inference(x, dy, mean, var, gamma=None, beta=None, eps=1e-5):
    """Inference and its backward."""
    y = cbn.batch_norm_inference(x, mean, var, gamma, beta, eps=eps)
    right = reference_inference(x, mean, var, gamma, beta, eps)
    assert y.dtype == x.dtype
    within(y, right.y, y_bound(x.dtype, gamma, beta, exact.floats(right.xhat)))
    gradients = cbn.batch_norm_inference_backward(dy, x, mean, var, gamma, eps=eps)
    assert (gradients[1] is None) is (gamma is None)
    check_gradients(gradients, dy, right, gamma, x.dtype, fixed=True)


def slow_if(is_slow, values):
    """Parameters, of which those for which the function is true are left to the whole run."""
    return [pytest.param(v, marks=pytest.mark.slow) if is_slow(v) else v for v in values]


class Masked:
    """A Batch whose masked cells are NaN, and the mask without the channel axis."""

    def __init__(self, shape, axis, dtype, part=0.6):
        b = Batch(shape, dtype, axis=axis, key="mask")
        mask = generator("mask", shape, axis, part).random(np.delete(shape, axis)) < part
        mask.flat[-1] = True
        self.mask, self.axis = mask, axis
        self.cells = np.broadcast_to(np.expand_dims(mask, axis), shape)
        self.x, self.dy = (np.where(self.cells, a, np.array(np.nan, dtype)) for a in (b.x, b.dy))
        self.gamma, self.beta = b.gamma, b.beta

    def compact(self, a):
        """The rows that count, (n, D)."""
        return np.ascontiguousarray(np.moveaxis(a, self.axis, -1)[self.mask])

    def run(self, **options):
        options = {"axis": self.axis, "mask": self.mask} | options
        y, cache = cbn.batch_norm_forward(self.x, self.gamma, self.beta, **options)
        return y, cache, cbn.batch_norm_backward(self.dy, cache)


def some_weight(shape, axis):
    """Of several sizes, a quarter of them 0."""
    rng = generator("weight", shape, axis)
    size = np.delete(shape, axis)
    return rng.lognormal(0, 1, size) * (rng.random(size) < 0.75)
