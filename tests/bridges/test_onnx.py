"""ONNX BatchNormalization, opset 15: its node tests in both modes, by the operator's definition.

Y = (X - mean) / sqrt(var + epsilon) * scale + B over axis 1, and in training mode
running = input * momentum + current * (1 - momentum) with the population variance: momentum weighs
the old value there, the new one in cbn.
"""

from __future__ import annotations

import numpy as np
import pytest
from cases import generator, within
from tolerances import u, y_bound

import cbn

MOMENTUM = 0.9

EXAMPLE = (
    np.array([[[[-1, 0, 1]], [[2, 3, 4]]]], np.float32),
    *np.array([[1, 1.5], [0, 1], [0, 3], [1, 1.5]], np.float32),
)


def drawn():
    """Shape (2, 3, 4, 5): X, scale, B and the mean of any sign, the variance in 0 to 1."""
    rng = generator("onnx")
    vectors = rng.standard_normal((3, 3), np.float32)
    return rng.standard_normal((2, 3, 4, 5), np.float32), *vectors, rng.random(3, np.float32)


NODES = {"example": (EXAMPLE, 1e-5), "epsilon": (drawn(), 1e-2)}
nodes = pytest.mark.parametrize("inputs, epsilon", NODES.values(), ids=NODES)


def definition(x, scale, bias, mean, var, epsilon):
    """Y and xhat of the definition in float64, channels on axis 1."""

    def along(a):
        return np.asarray(a, np.float64).reshape(1, -1, *[1] * (x.ndim - 2))

    xhat = (x.astype(np.float64) - along(mean)) / np.sqrt(along(var) + epsilon)
    return xhat * along(scale) + along(bias), xhat, along(scale), along(bias)


def check(y, *arguments):
    right, xhat, scale, bias = definition(*arguments)
    assert y.dtype == np.float32
    within(y, right, y_bound(np.float32, scale, bias, xhat))


def current(x):
    others = tuple(i for i in range(x.ndim) if i != 1)
    return x.mean(axis=others, dtype=np.float64), x.astype(np.float64).var(axis=others)


@nodes
def test_inference_mode(inputs, epsilon):
    x, scale, bias, mean, var = inputs
    y = cbn.batch_norm_inference(x, mean, var, scale, bias, axis=1, eps=epsilon)
    check(y, *inputs, epsilon)


@nodes
def test_training_mode(inputs, epsilon):
    x, scale, bias, mean, var = inputs
    y, cache = cbn.batch_norm_forward(x, scale, bias, axis=1, eps=epsilon)
    check(y, x, scale, bias, *current(x), epsilon)
    for found, right in zip((cache.mean, cache.var), current(x), strict=True):
        within(found, right, 8 * u(np.float32) * np.maximum(np.abs(right), 1))


@nodes
def test_running_statistics(inputs, epsilon):
    x, _, _, mean, var = inputs
    running_mean, running_var = mean.copy(), var.copy()
    moments = cbn.Moments.from_batch(x, axis=1)
    options = {"momentum": 1 - MOMENTUM, "correction": 0}
    cbn.update_running_stats(running_mean, running_var, moments, **options)
    for found, old, new in zip((running_mean, running_var), (mean, var), current(x), strict=True):
        right = old.astype(np.float64) * MOMENTUM + new * (1 - MOMENTUM)
        within(found, right, 8 * u(np.float32) * np.maximum(np.abs(right), 1))


def test_the_example_by_hand():
    """The mean of every channel is its middle value, and the inputs' are the same."""
    x, scale, bias, mean, var = EXAMPLE
    y = cbn.batch_norm_inference(x, mean, var, scale, bias, axis=1)
    expected = [[-1, 0, 1], [1 - 1.5 / 1.5**0.5, 1, 1 + 1.5 / 1.5**0.5]]
    assert np.allclose(y[0, :, 0], expected, rtol=0, atol=1e-5)
    y, cache = cbn.batch_norm_forward(x, scale, bias, axis=1)
    assert np.array_equal(cache.mean, [0, 3]) and np.allclose(cache.var, [2 / 3, 2 / 3])
    step = 1 / np.sqrt(2 / 3)
    expected = [[-step, 0, step], [1 - 1.5 * step, 1, 1 + 1.5 * step]]
    assert np.allclose(y[0, :, 0], expected, rtol=0, atol=3e-5)
