"""Hypothesis strategies: shapes and axes, arrays in any memory, masks, weights and groups."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from cases import Batch
from hypothesis import settings
from hypothesis import strategies as st

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.lists(st.integers(1, 6), min_size=2, max_size=5).map(tuple)


def examples(count):
    """That many examples, or as many as a profile asks for that looks further than usual."""
    asked = settings().max_examples
    return settings(max_examples=asked if asked > 100 else count)


@st.composite
def layouts(draw, shape, writeable=False):
    """A function that copies an array of this shape to other memory: step, order, offset, bytes."""
    steps = [draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in shape]
    pads = [draw(st.integers(0, 3)) for _ in shape]
    order = draw(st.permutations(range(len(shape))))
    swapped = not writeable and draw(st.booleans())
    unaligned = draw(st.booleans())
    read_only = not writeable and draw(st.booleans())

    def lay_out(a):
        kind = a.dtype
        if swapped and kind.kind == "f":
            kind = kind.newbyteorder()
        sizes = [n * abs(step) + pad for n, step, pad in zip(shape, steps, pads, strict=True)]
        sizes = [sizes[i] for i in order]
        memory = bytearray(int(np.prod(sizes)) * kind.itemsize + 1)
        whole = np.frombuffer(memory, np.uint8)[int(unaligned) :][: len(memory) - 1]
        whole = whole.view(kind).reshape(sizes).transpose(np.argsort(order))
        starts = [
            slice(pad, pad + n * abs(step)) for n, step, pad in zip(shape, steps, pads, strict=True)
        ]
        view = whole[tuple(starts)][tuple(slice(None, None, step) for step in steps)]
        view[...] = a
        view.flags.writeable = not read_only
        return view

    return lay_out


@st.composite
def batches(draw, dtypes=FLOATS, first=0):
    """A Batch and its channel axis, at least `first`."""
    shape = draw(SHAPES)
    axis = draw(st.integers(first, len(shape) - 1))
    b = Batch(shape, draw(st.sampled_from(dtypes)), axis=axis, key=draw(SEEDS))
    return b, axis


@st.composite
def masks(draw, shape, axis):
    """A bool mask: without the channel axis or with size 1 there, broadcast along some others."""
    return _per_position(draw, shape, axis, lambda rng, size: rng.random(size) < 0.6)


@st.composite
def weights(draw, shape, axis, dtype=np.float64):
    """Weights >= 0 with zeros among them, not all zero."""

    def values(rng, size):
        w = rng.choice([0.0, 0.5, 1.0, 2.0, 3.25], size)
        w.flat[rng.integers(w.size)] = 1.5
        return w.astype(dtype)

    return _per_position(draw, shape, axis, values)


def _per_position(draw, shape, axis, values):
    kept = draw(st.booleans())
    sizes = [n if draw(st.integers(0, 3)) else 1 for n in shape]
    sizes[axis] = 1
    a = np.asarray(values(np.random.default_rng(draw(SEEDS)), sizes))
    return a if kept else a.squeeze(axis)
