"""support/option_reference.py itself: against slopes, repetition, compacted rows and torch."""

from __future__ import annotations

import numpy as np
import option_reference as reference
import pytest
from cases import generator
from reference_case import DIFFERENCE_RTOL, close, slope

from cbn import reference as plain

SHAPES = [((12, 3), 1), ((3, 12), 0), ((6, 2, 4), 1), ((4, 3, 2, 2), -1)]
OPTIONS = ["mask", "sample_weight", "virtual_batch_size", "residual", "activation"]
shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)


def arguments(shape, axis, names, key=""):
    """x, dy, gamma, beta and the options of these names; no y is near the corner of ReLU."""
    rng = generator("option reference", shape, axis, tuple(names), key)
    x, dy = rng.normal(1, 2, (2, *shape))
    gamma, beta = rng.normal(1, 0.5, shape[axis]), 9.0 * (-1) ** np.arange(shape[axis])
    rest = np.delete(shape, axis)
    options = {
        "mask": rng.random(rest) < 0.7,
        "sample_weight": rng.uniform(0, 2, rest),
        "virtual_batch_size": 4,
        "residual": rng.choice([-20.0, 20.0], shape),
        "activation": "relu",
    }
    return x, dy, gamma, beta, {name: options[name] for name in names} | {"axis": axis}


SLOPES = [
    (shape, axis, names)
    for shape, axis in SHAPES
    for names in ([], *([name] for name in OPTIONS), OPTIONS)
    if axis != 0 or "virtual_batch_size" not in names
]


@pytest.mark.parametrize("shape, axis, names", SLOPES)
def test_gradients_are_slopes(shape, axis, names):
    x, dy, gamma, beta, options = arguments(shape, axis, names)
    residual = options.pop("residual", None)
    rng = generator("directions", shape, axis)
    dots = [rng.normal(size=a.shape) for a in (x, gamma, beta, x)]

    def loss(t):
        moved = [a + t * dot for a, dot in zip((x, gamma, beta), dots, strict=False)]
        added = None if residual is None else residual + t * dots[3]
        f = reference.forward(*moved, eps=0.1, residual=added, **options)
        return float((dy * f.y).sum())

    f = reference.forward(x, gamma, beta, eps=0.1, residual=residual, **options)
    gradients = reference.backward(dy, f)
    expected = sum(
        float((gradient * dot).sum())
        for gradient, dot in zip(gradients[: 3 + (residual is not None)], dots, strict=False)
    )
    scale = sum(np.abs(g * d).sum() for g, d in zip(gradients, dots, strict=True))
    close(slope(loss), expected, scale, DIFFERENCE_RTOL)


@shapes
def test_without_options_it_is_the_plain_reference(shape, axis):
    x, dy, gamma, beta, options = arguments(shape, axis, [])
    f = reference.forward(x, gamma, beta, **options)
    y, cache = plain.forward(reference.rows(x, axis), gamma, beta)
    close(f.y, reference.unrows(y, shape, axis), np.abs(y).max())
    right = plain.backward(reference.rows(dy, axis), cache)
    dx, dgamma, dbeta, dresidual = reference.backward(dy, f)
    close(reference.rows(dx, axis), right[0], np.abs(right[0]).max())
    close(dgamma, right[1], np.abs(dy).sum())
    close(dbeta, right[2], np.abs(dy).sum())
    assert np.array_equal(dresidual, dy)


@shapes
def test_rows_come_back(shape, axis):
    a = np.arange(np.prod(shape)).reshape(shape)
    assert np.array_equal(reference.unrows(reference.rows(a, axis), shape, axis), a)
    assert reference.rows(a, axis).shape[1] == shape[axis]


@shapes
def test_a_mask_is_the_compacted_rows(shape, axis):
    x, dy, gamma, beta, options = arguments(shape, axis, ["mask"])
    mask = options["mask"]
    x[~np.broadcast_to(np.expand_dims(mask, axis), shape)] = np.nan
    f = reference.forward(x, gamma, beta, **options)
    alone = reference.forward(np.moveaxis(x, axis, -1)[mask], gamma, beta)
    assert f.count == alone.count == mask.sum()
    close(f.mean, alone.mean, 10)
    close(f.var, alone.var, 10)
    close(np.moveaxis(f.y, axis, -1)[mask], alone.y, 10)
    assert not np.moveaxis(f.y, axis, -1)[~mask].any()
    dx = reference.backward(dy, f)[0]
    right = reference.backward(np.moveaxis(dy, axis, -1)[mask], alone)[0]
    close(np.moveaxis(dx, axis, -1)[mask], right, 10)
    assert not np.moveaxis(dx, axis, -1)[~mask].any()


def test_integer_weights_are_repetition():
    x, dy, gamma, beta, _ = arguments((12, 3), 1, [])
    weight = np.array([0, 1, 2, 3, 0, 1, 5, 1, 1, 2, 0, 4])
    f = reference.forward(x, gamma, beta, sample_weight=weight)
    copies = np.repeat(np.arange(12), weight)
    alone = reference.forward(x[copies], gamma, beta)
    close(f.mean, alone.mean, 10)
    close(f.var, alone.var, 10)
    close(f.y[copies], alone.y, 10)
    dy[weight == 0] = 0
    right = reference.backward((dy / np.maximum(weight, 1)[:, None])[copies], alone)
    dx, dgamma, dbeta, _ = reference.backward(dy, f)
    summed = np.zeros_like(dx)
    np.add.at(summed, copies, right[0])
    close(dx, summed, 10)
    close(dgamma, right[1], np.abs(dy).sum())
    close(dbeta, right[2], np.abs(dy).sum())


@pytest.mark.parametrize("size", [1, 4, 5, 12, 100])
def test_groups_are_calls_of_their_own(size):
    x, dy, gamma, beta, _ = arguments((12, 3), 1, [])
    f = reference.forward(x, gamma, beta, virtual_batch_size=size)
    dx, dgamma, dbeta, _ = reference.backward(dy, f)
    totals = 0
    for start in range(0, 12, size):
        part = slice(start, start + size)
        alone = reference.forward(x[part], gamma, beta)
        right = reference.backward(dy[part], alone)
        assert np.array_equal(f.y[part], alone.y) and np.array_equal(dx[part], right[0])
        totals = totals + np.array(right[1:3])
    close(np.array([dgamma, dbeta]), totals, np.abs(dy).sum())
    close(f.mean, x.mean(axis=0), 10)
    close(f.var, x.var(axis=0), 10)


@shapes
def test_residual_and_relu_beside_torch(shape, axis):
    torch = pytest.importorskip("torch")
    x, dy, gamma, beta, options = arguments(shape, axis, ["residual", "activation"])
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, gamma, beta, options["residual"])]
    first = torch.movedim(leaves[0], axis, 1) if axis else leaves[0].T
    y = torch.nn.functional.batch_norm(first, None, None, *leaves[1:3], training=True)
    y = torch.relu((torch.movedim(y, 1, axis) if axis else y.T) + leaves[3])
    y.backward(torch.tensor(dy))
    f = reference.forward(x, gamma, beta, **options)
    close(f.y, y.detach().numpy(), 10)
    dx, dgamma, dbeta, dresidual = reference.backward(dy, f)
    assert np.array_equal(dresidual, leaves[3].grad.numpy())
    close(dx, leaves[0].grad.numpy(), 10)
    close(dgamma, leaves[1].grad.numpy(), np.abs(dy).sum())
    close(dbeta, leaves[2].grad.numpy(), np.abs(dy).sum())
