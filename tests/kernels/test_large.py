"""Arrays past the caches, whose results are stored in other ways: the same values and bytes."""

from __future__ import annotations

import numpy as np
import pytest
from cases import same_bytes, slow_if

import cbn

# Over 16 MB of float32: wide rows, narrow ones, lanes, rows whose lines differ, planes, images.
CASES = [
    *(((2003, 2208), -1), ((2000, 2200), -1), ((9000, 500), -1)),
    *(((270_000, 16), -1), ((4300, 1001), -1)),
    *(((8, 12, 220, 210), 1), ((90, 50, 31, 33), 1)),
]
QUICK = (((2003, 2208), -1), ((270_000, 16), -1), ((8, 12, 220, 210), 1))
PARTS = 5


@pytest.fixture(scope="module", params=slow_if(lambda case: case not in QUICK, CASES), ids=str)
def batch(request):
    shape, axis = request.param
    rng = np.random.default_rng(shape)
    x, dy = rng.standard_normal((2, *shape), np.float32)
    gamma, beta = rng.uniform(0.5, 2, (2, shape[axis]))
    return x, dy, gamma, beta, axis


def elsewhere(like, offset):
    """An array that begins `offset` bytes after where `like` does in its page."""
    raw = np.zeros(like.nbytes + 2 * 4096, np.uint8)
    start = (like.ctypes.data + offset - raw.ctypes.data) % 4096
    return raw[start : start + like.nbytes].view(like.dtype).reshape(like.shape)


def parts(array):
    return np.array_split(array, PARTS)


@pytest.mark.parametrize("offset", [0, 4, 64, 256, 4032])
def test_maps_are_those_of_small_parts(batch, offset):
    """Inference knows no other rows, so parts of the array give its bytes."""
    x, dy, gamma, beta, axis = batch
    mean, var = gamma - 1, beta
    mean[1::7] *= 1e36
    options = {"axis": axis}
    out = elsewhere(x, offset)
    y = cbn.batch_norm_inference(x, mean, var, gamma, beta, out=out, num_threads=2, **options)
    for found, part in zip(parts(y), parts(x), strict=True):
        same_bytes(found, cbn.batch_norm_inference(part, mean, var, gamma, beta, **options))
    dx = cbn.batch_norm_inference_backward(dy, x, mean, var, gamma, out=out, **options)[0]
    for found, dy_part, x_part in zip(parts(dx), parts(dy), parts(x), strict=True):
        right = cbn.batch_norm_inference_backward(dy_part, x_part, mean, var, gamma, **options)
        same_bytes(found, right[0])


def test_dx_of_fixed_statistics_over_dy_is_that_of_its_own(batch):
    """Over dy it is made after the sums, elsewhere along with them."""
    x, dy, gamma, beta, axis = batch
    fixed = (gamma - 1, beta, gamma)
    out = elsewhere(x, 64)
    found = cbn.batch_norm_inference_backward(dy, x, *fixed, axis=axis, out=out, num_threads=2)
    over = dy.copy()
    right = cbn.batch_norm_inference_backward(over, x, *fixed, axis=axis, out=over)
    for actual, expected in zip(found, right, strict=True):
        same_bytes(actual, expected)


def test_training_is_that_of_small_parts(batch):
    """With the moments and the sums of the whole, parts give the bytes of the maps."""
    x, dy, gamma, beta, axis = batch
    y, cache = cbn.batch_norm_forward(x, gamma, beta, axis=axis)
    dx = cbn.batch_norm_backward(dy, cache, num_threads=2)[0]
    m, s = cbn.Moments.from_batch(x, axis=axis), cbn.BackwardSums.from_batch(dy, cache)
    for found, found_dx, x_part, dy_part in zip(*map(parts, (y, dx, x, dy)), strict=True):
        right, of_part = cbn.batch_norm_normalize(x_part, m, gamma, beta, axis=axis)
        same_bytes(found, right)
        same_bytes(found_dx, cbn.batch_norm_backward_apply(dy_part, of_part, s)[0])


def test_threads_and_places(batch):
    x, dy, gamma, beta, axis = batch
    y, cache = cbn.batch_norm_forward(x, gamma, beta, axis=axis, num_threads=1)
    expected = cbn.batch_norm_backward(dy, cache, num_threads=1)
    for threads, offset in ((2, 64), (3, 16), (5, 2048)):
        options = {"num_threads": threads, "out": elsewhere(x, offset)}
        found, other = cbn.batch_norm_forward(x, gamma, beta, axis=axis, **options)
        same_bytes(found, y)
        same_bytes(other.mean, cache.mean)
        same_bytes(other.var, cache.var)
        for actual, right in zip(
            cbn.batch_norm_backward(dy, other, **options), expected, strict=True
        ):
            same_bytes(actual, right)
