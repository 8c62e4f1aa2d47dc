"""mask: masked cells are never read, the others get what they would get alone."""

from __future__ import annotations

import numpy as np
import option_reference as reference
import pytest
from cases import Batch, Masked, generator, same_bytes, within
from hypothesis import given
from hypothesis import strategies as st
from strategies import FLOATS, batches, layouts, masks
from tolerances import mean_bound

import cbn

SHAPES = [((40, 5), 1), ((3, 70), 0), ((7, 11, 6), -1), ((4, 3, 50), 1), ((3, 4, 9, 5), 1)]
LARGE = [((3000, 40), 1), ((70001, 3), 1), ((16, 100, 33), -1), ((8, 16, 28, 28), 1)]
PARTS = [0.02, 0.5, 0.98]

shapes = pytest.mark.parametrize("shape, axis", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)


# Values -------------------------------------------------------------------------------------------


@dtypes
@shapes
def test_values(shape, axis, dtype):
    m = Masked(shape, axis, dtype)
    reference.check(m.x, m.dy, m.gamma, m.beta, axis=axis, mask=m.mask)


@given(data=st.data())
def test_any_mask(data):
    b, axis = data.draw(batches())
    mask = data.draw(masks(b.x.shape, axis))
    cells = mask if mask.ndim == b.x.ndim else np.expand_dims(mask, axis)
    cells = np.broadcast_to(cells, b.x.shape)
    for name in ("x", "dy"):
        setattr(b, name, np.where(cells, getattr(b, name), np.array(np.nan, b.x.dtype)))
    y, cache, gradients = reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis, mask=mask)
    assert not y[~cells].any() and not gradients[0][~cells].any()
    x, dy, mask = (data.draw(layouts(a.shape))(a) for a in (b.x, b.dy, mask))
    again, cache = cbn.batch_norm_forward(x, b.gamma, b.beta, axis=axis, mask=mask)
    same_bytes(again, y)
    for found, right in zip(cbn.batch_norm_backward(dy, cache), gradients, strict=True):
        same_bytes(found, right)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("shape, axis", [*SHAPES, *LARGE], ids=str)
def test_bytes_are_those_of_the_compacted_rows(shape, axis, part, dtype):
    m = Masked(shape, axis, dtype, part)
    y, cache, (dx, dgamma, dbeta) = m.run()
    right, alone = cbn.batch_norm_forward(m.compact(m.x), m.gamma, m.beta)
    assert cache.count == alone.count == np.count_nonzero(m.mask)
    for name in ("mean", "var", "invstd"):
        same_bytes(getattr(cache, name), getattr(alone, name))
    same_bytes(m.compact(y), right)
    gradients = cbn.batch_norm_backward(m.compact(m.dy), alone)
    for found, expected in zip((m.compact(dx), dgamma, dbeta), gradients, strict=True):
        same_bytes(found, expected)
    assert not y[~m.cells].any() and not dx[~m.cells].any()


def test_a_mean_far_from_zero(dtype):
    """What lies behind the mask must not be an anchor, a mean or a cancellation."""
    m = Masked((300, 7), 1, dtype)
    m.mask[0] = m.cells[0, 0]
    m.x = (m.x + 1e5).astype(dtype)
    clean = m.run()
    m.x = np.where(m.cells, m.x, dtype(-1e30))
    y, cache, gradients = m.run()
    reference.check(m.x, m.dy, m.gamma, m.beta, mask=m.mask)
    same_bytes(y, clean[0])
    same_bytes(cache.mean, clean[1].mean)
    within(cache.mean, m.compact(m.x).astype(np.longdouble).mean(axis=0),
           mean_bound(dtype, cache.mean, cache.var))  # fmt: skip
    same_bytes(gradients[0], clean[2][0])


# Forms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["kept axis", "list", "read-only", "strided", "not contiguous"])
@shapes
def test_forms_of_one_mask(shape, axis, form):
    m = Masked(shape, axis, np.float32)
    expected = m.run()
    strided = np.zeros([2 * n for n in m.mask.shape], bool)[(slice(None, None, 2),) * m.mask.ndim]
    strided[...] = m.mask
    read_only = m.mask.copy()
    read_only.flags.writeable = False
    forms = {
        "kept axis": np.expand_dims(m.mask, axis),
        "list": m.mask.tolist(),
        "read-only": read_only,
        "strided": strided,
        "not contiguous": np.asfortranarray(m.mask)[::-1][::-1],
    }
    found = m.run(mask=forms[form])
    same_bytes(found[0], expected[0])
    same_bytes(found[2][0], expected[2][0])


@pytest.mark.parametrize("small", [(1, 11), (7, 1), (1, 1), (7, 1, 1), (1, 11, 1)], ids=str)
def test_masks_are_broadcast(small):
    b = Batch((7, 11, 6), np.float32)
    mask = generator(small).random(small) < 0.5
    mask.flat[0] = True
    whole = np.broadcast_to(mask if mask.ndim == 2 else mask[..., 0], (7, 11))
    y, cache = cbn.batch_norm_forward(b.x, axis=-1, mask=mask)
    right, alone = cbn.batch_norm_forward(b.x, axis=-1, mask=whole)
    same_bytes(y, right)
    assert cache.count == alone.count == whole.sum()


def test_all_true_is_no_mask(dtype):
    b = Batch((300, 9), dtype)
    y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, mask=np.ones(300, bool))
    right, plain = cbn.batch_norm_forward(b.x, b.gamma, b.beta)
    same_bytes(y, right)
    same_bytes(cbn.batch_norm_backward(b.dy, cache)[0], cbn.batch_norm_backward(b.dy, plain)[0])


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@dtypes
@shapes
def test_all_false(shape, axis, dtype, eps):
    m = Masked(shape, axis, dtype)
    m.x, m.dy = np.full((2, *shape), np.nan, dtype)
    y, cache, gradients = m.run(mask=np.zeros_like(m.mask), eps=eps)
    assert cache.count == 0 and y.dtype == dtype and y.shape == shape
    for zero in (y, cache.mean, cache.var, *gradients):
        assert not zero.any()


def test_out_and_threads(dtype):
    m = Masked((5000, 33), 1, dtype)
    y, cache, (dx, dgamma, dbeta) = m.run(num_threads=1)
    out, dx_out = np.full((2, *y.shape), 5, dtype)
    assert m.run(out=out, num_threads=3)[0] is out
    same_bytes(out, y)
    found = cbn.batch_norm_backward(m.dy, cache, out=dx_out, num_threads=3)
    assert found[0] is dx_out
    for a, right in zip(found, (dx, dgamma, dbeta), strict=True):
        same_bytes(a, right)


# Lengths and errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lengths", [[3, 0, 5], [5], np.arange(0), np.array([1, 2], np.uint8)], ids=str
)
def test_lengths_to_mask(lengths):
    mask = cbn.lengths_to_mask(lengths, 5)
    assert mask.dtype == bool and mask.shape == (len(lengths), 5)
    assert mask.tolist() == [[t < n for t in range(5)] for n in lengths]


@pytest.mark.parametrize("lengths", [[3, -1], [6], [2**40]], ids=str)
def test_lengths_out_of_range(lengths):
    with pytest.raises(ValueError, match="lengths: expected"):
        cbn.lengths_to_mask(lengths, 5)


@pytest.mark.parametrize("lengths", [[1.5], ["a"], [None]], ids=str)
def test_lengths_are_integers(lengths):
    with pytest.raises(TypeError, match="lengths: expected"):
        cbn.lengths_to_mask(lengths, 5)


def test_padded_sequences():
    b = Batch((4, 9, 3), np.float32)
    mask = cbn.lengths_to_mask([9, 0, 4, 1], 9)
    b.x[~mask] = b.dy[~mask] = np.nan
    y, cache, _ = reference.check(b.x, b.dy, b.gamma, b.beta, axis=-1, mask=mask)
    assert cache.count == 14 and not y[1].any()


@pytest.mark.parametrize("shape", [(7, 11, 6), (11, 7), (8, 11), (7, 11, 2), (7, 11, 6, 1)])
def test_masks_of_another_shape(shape):
    out = np.full((7, 11, 6), 5.0)
    with pytest.raises(ValueError, match="mask: expected"):
        cbn.batch_norm_forward(np.ones((7, 11, 6)), axis=-1, mask=np.ones(shape, bool), out=out)
    assert np.all(out == 5)


@pytest.mark.parametrize("dtype", [np.int64, np.float32, object], ids=lambda d: np.dtype(d).name)
def test_masks_are_bool(dtype):
    with pytest.raises(TypeError, match="mask: expected"):
        cbn.batch_norm_forward(np.ones((4, 3)), mask=np.ones(4, dtype))
