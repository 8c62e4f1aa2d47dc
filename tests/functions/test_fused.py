"""residual and activation: y = relu(xhat gamma + beta + residual), its gradients, inference."""

from __future__ import annotations

import numpy as np
import option_reference as reference
import pytest
from cases import Batch, Masked, generator, same_bytes, some_weight
from hypothesis import given
from hypothesis import strategies as st
from reference_case import DIFFERENCE_RTOL, slope
from strategies import FLOATS, batches, layouts

import cbn

SHAPES = [((40, 5), 1), ((3, 70), 0), ((7, 11, 6), -1), ((4, 3, 50), 1), ((3, 4, 9, 5), 1)]
LARGE = [((3000, 40), 1), ((70001, 3), 1), ((8, 16, 28, 28), 1), ((8, 28, 28, 16), 3)]

shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)
large = pytest.mark.parametrize("shape, axis", LARGE, ids=str)
dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
kinds = pytest.mark.parametrize("kind", ["relu", "residual", "residual and relu"])


def options(b, kind):
    """The options of this kind for a Batch; residuals are a Batch's of another key."""
    residual = Batch(b.x.shape, b.x.dtype, axis=-1, key="residual").dy * b.x.dtype.type(2)
    activation = {"activation": "relu"} if "relu" in kind else {}
    return activation | ({"residual": residual} if "residual" in kind else {})


def run(b, axis, num_threads=None, **chosen):
    threads = {"num_threads": num_threads}
    y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, axis=axis, **chosen, **threads)
    return y, *cbn.batch_norm_backward(b.dy, cache, **threads)


def all_same(found, expected):
    for a, right in zip(found, expected, strict=True):
        same_bytes(a, right)


@kinds
@dtypes
@shapes
def test_values(shape, axis, dtype, kind):
    b = Batch(shape, dtype, axis=axis)
    chosen = options(b, kind)
    y, _, _ = reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis, **chosen)
    if "relu" in kind:
        assert 0 < np.count_nonzero(y) < y.size and not (y < 0).any()
    reference.check_inference(b, axis, **chosen)


@pytest.mark.slow
@kinds
@large
def test_values_of_large_batches(shape, axis, dtype, kind):
    b = Batch(shape, dtype, axis=axis)
    chosen = options(b, kind)
    reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis, **chosen)
    reference.check_inference(b, axis, **chosen)
    all_same(run(b, axis, 1, **chosen), run(b, axis, 3, **chosen))


@kinds
@given(data=st.data())
def test_any_batch_in_any_layout(kind, data):
    b, axis = data.draw(batches())
    chosen = options(b, kind)
    y, _, gradients = reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis, **chosen)
    fixed = (b.mean, b.var, b.gamma, b.beta)
    inference = cbn.batch_norm_inference(b.x, *fixed, axis=axis, **chosen)
    reference.check_inference(b, axis, **chosen)
    if "residual" in kind:
        chosen["residual"] = data.draw(layouts(b.x.shape))(chosen["residual"])
    b.x, b.dy = (data.draw(layouts(a.shape))(a) for a in (b.x, b.dy))
    all_same(run(b, axis, **chosen), (y, *gradients))
    same_bytes(cbn.batch_norm_inference(b.x, *fixed, axis=axis, **chosen), inference)


@shapes
def test_relu_is_of_the_same_y(shape, axis, dtype):
    b = Batch(shape, dtype, axis=axis)
    plain = cbn.batch_norm_forward(b.x, b.gamma, b.beta, axis=axis)[0]
    y = cbn.batch_norm_forward(b.x, b.gamma, b.beta, axis=axis, activation="relu")[0]
    assert np.array_equal(y, np.maximum(plain, 0))


@shapes
def test_a_residual_of_zeros_is_none(shape, axis, dtype):
    b = Batch(shape, dtype, axis=axis)
    y, dx, *_, dresidual = run(b, axis, residual=np.zeros_like(b.x))
    plain, plain_dx, *_ = run(b, axis)
    assert np.array_equal(y, plain) and np.array_equal(dx, plain_dx)
    assert np.array_equal(dresidual, b.dy) and not np.shares_memory(dresidual, b.dy)


def test_none_is_no_activation(dtype):
    b = Batch((40, 5), dtype)
    all_same(run(b, None, residual=None, activation=None), run(b, None))


@pytest.mark.parametrize("shape, axis", [((40, 5), 1), ((4, 3, 50), 1), ((3000, 40), 1)], ids=str)
@dtypes
def test_where_y_is_zero_dy_does_not_count(shape, axis, dtype):
    """gamma = beta = 0: y is the residual, of which a third is 0 exactly."""
    b = Batch(shape, dtype, axis=axis)
    b.gamma, b.beta = np.zeros_like(b.gamma), np.zeros_like(b.beta)
    residual = generator("signs", shape).integers(-1, 2, shape).astype(dtype)
    y, dx, dgamma, dbeta, dresidual = run(b, axis, residual=residual, activation="relu")
    assert np.array_equal(y, residual > 0) and not dx.any()
    assert np.array_equal(dresidual, np.where(residual > 0, b.dy, dtype(0)))
    f = reference.forward(b.x, b.gamma, b.beta, axis=axis, residual=residual, activation="relu")
    gradients = (dx, dgamma, dbeta, dresidual)
    reference.check_gradients(gradients, b.dy, y, f, b.x.dtype, b.gamma, b.beta, residual)
    nothing = run(b, axis, activation="relu")
    assert not any(a.any() for a in nothing)


@pytest.mark.parametrize("kind", ["plus", "minus"])
def test_signs_hold_to_the_last_bit(kind):
    """The residual cancels y, or leaves one unit in the last place of either sign."""
    b = Batch((3000, 7), np.float32)
    plain = cbn.batch_norm_forward(b.x, b.gamma, b.beta)[0]
    towards = np.inf if kind == "plus" else -np.inf
    moved = np.where(generator(kind).random(plain.shape) < 0.5, plain, np.nextafter(plain, towards))
    y, dx, dgamma, dbeta, dresidual = run(b, None, residual=-moved, activation="relu")
    assert np.array_equal(dresidual != 0, y > 0)
    f = reference.forward(b.x, b.gamma, b.beta, residual=-moved, activation="relu")
    gradients = (dx, dgamma, dbeta, dresidual)
    reference.check_gradients(gradients, b.dy, y, f, b.x.dtype, b.gamma, b.beta, -moved)


@kinds
def test_gradients_are_slopes(kind):
    b = Batch((23, 4), np.float64)
    chosen = options(b, kind)
    leaves = [b.x, b.gamma, b.beta, *([chosen["residual"]] if "residual" in chosen else [])]
    rng = generator("slopes", kind)
    dots = [rng.normal(0, 1e-4, a.shape) for a in leaves]  # short: no y may change its sign
    gradients = run(b, None, **chosen)[1:]

    def loss(t):
        x, gamma, beta, *residual = (a + t * dot for a, dot in zip(leaves, dots, strict=True))
        moved = chosen | ({"residual": residual[0]} if residual else {})
        return (b.dy * cbn.batch_norm_forward(x, gamma, beta, **moved)[0]).sum() / 1e-4

    expected = sum((g * dot).sum() for g, dot in zip(gradients, dots, strict=True)) / 1e-4
    assert abs(slope(loss) - expected) <= 1e3 * DIFFERENCE_RTOL * np.abs(b.dy).sum()


@kinds
@shapes
def test_out(shape, axis, dtype, kind):
    b = Batch(shape, dtype, axis=axis)
    chosen = options(b, kind)
    expected = run(b, axis, **chosen)
    out = np.full(shape, 5, dtype)
    y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, axis=axis, out=out, **chosen)
    assert y is out
    dx = np.full(shape, 5, dtype)
    gradients = cbn.batch_norm_backward(b.dy, cache, out=dx)
    assert gradients[0] is dx
    all_same((y, *gradients), expected)
    over = b.dy.copy()
    all_same(cbn.batch_norm_backward(over, cache, out=over), expected[1:])
    fixed = (b.x, b.mean, b.var, b.gamma, b.beta)
    inference = cbn.batch_norm_inference(*fixed, axis=axis, **chosen)
    assert cbn.batch_norm_inference(*fixed, axis=axis, out=out, **chosen) is out
    same_bytes(out, inference)


@kinds
@dtypes
@shapes
def test_with_a_mask_and_weights(shape, axis, dtype, kind):
    m = Masked(shape, axis, dtype)
    chosen = options(m, kind) | {"axis": axis, "mask": m.mask}
    if "residual" in chosen:
        chosen["residual"] = np.where(m.cells, chosen["residual"], np.array(np.nan, dtype))
    reference.check(m.x, m.dy, m.gamma, m.beta, **chosen)
    weight = some_weight(shape, axis) + 0.1
    reference.check(m.x, m.dy, m.gamma, m.beta, sample_weight=weight, **chosen)


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["gelu", "ReLU", "", b"relu", 1], ids=repr)
def test_other_activations(activation):
    x, out, ones = np.ones((4, 3)), np.full((4, 3), 5.0), np.ones(3)
    text = f"activation: expected .*{activation!r}"
    with pytest.raises(ValueError, match=text):
        cbn.batch_norm_forward(x, activation=activation, out=out)
    with pytest.raises(ValueError, match=text):
        cbn.batch_norm_inference(x, ones, ones, activation=activation, out=out)
    assert np.all(out == 5)


@pytest.mark.parametrize("shape", [(4,), (3,), (1, 3), (3, 4), (4, 3, 1)], ids=str)
def test_residuals_of_another_shape(shape):
    x, out, ones = np.ones((4, 3)), np.full((4, 3), 5.0), np.ones(3)
    with pytest.raises(ValueError, match="residual: expected"):
        cbn.batch_norm_forward(x, residual=np.ones(shape), out=out)
    with pytest.raises(ValueError, match="residual: expected"):
        cbn.batch_norm_inference(x, ones, ones, residual=np.ones(shape), out=out)
    assert np.all(out == 5)


def test_out_may_not_be_a_part_of_the_residual():
    b = Batch((40, 5), np.float64)
    memory = np.zeros((41, 5))
    fixed = (b.x, b.mean, b.var, b.gamma, b.beta)
    for call in (
        lambda **options: cbn.batch_norm_forward(b.x, b.gamma, b.beta, **options),
        lambda **options: cbn.batch_norm_inference(*fixed, **options),
    ):
        with pytest.raises(ValueError, match="out: expected"):
            call(residual=memory[1:], out=memory[:-1])
    assert not memory.any()


def test_residuals_are_real():
    with pytest.raises(TypeError, match="residual: expected"):
        cbn.batch_norm_forward(np.ones((4, 3)), residual=np.ones((4, 3), complex))
