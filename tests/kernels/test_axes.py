"""Any rank, channel axis and strides: the right values, and the bytes of the contiguous copy."""

from __future__ import annotations

import hashlib
import json
import tracemalloc

import numpy as np
import option_reference as reference
import pytest
from cases import Batch, everything, generator, same_bytes, slow_if
from hypothesis import given
from hypothesis import strategies as st
from strategies import FLOATS, batches, examples, layouts

import cbn

AXES = {
    "NC": ((37, 6), 1),
    "CN": ((6, 37), 0),
    "NCL": ((5, 4, 9), 1),
    "NLC": ((5, 9, 4), -1),
    "NCHW": ((3, 5, 6, 7), 1),
    "NHWC": ((3, 6, 7, 5), 3),
    "NCDHW": ((2, 3, 4, 5, 3), 1),
    "NDHWC": ((2, 4, 5, 3, 3), -1),
    "the channels in the middle of six": ((2, 3, 2, 4, 3, 2), 3),
    "eight": ((2, 1, 3, 2, 3, 2, 1, 2), -4),
}
# Past the borders of blocks and lanes, where threads and vectors take turns.
LARGE = [
    *(((3, 5, 37, 41), 1), ((2, 64, 28, 28), 1), ((300, 7, 3), 1), ((2, 1030, 5), 1)),
    *(((5, 3, 1025), 1), ((1, 2, 300, 301), 1), ((9, 33, 1), 1), ((17, 9, 64), -1)),
    *(((7, 130, 2, 2), 1), ((3, 70001), 0), ((2, 3, 4, 5, 60), 2), ((40, 3, 16, 16), 0)),
    *(((8, 70, 7, 7), 1), ((3, 40, 9, 11), 1)),
]

axes = pytest.mark.parametrize("shape, axis", AXES.values(), ids=AXES)
large = pytest.mark.parametrize("shape, axis", LARGE, ids=str)
dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)


def reverse(a):
    return a[(slice(None, None, -1),) * a.ndim]


def moved(whole, part, a):
    """A copy of `a` in the part of fresh memory of shape `whole`."""
    view = np.full(whole, 77, a.dtype)[part]
    view[...] = a
    return view


def unaligned(a):
    part = moved(a.nbytes + 1, np.s_[1:], np.frombuffer(a.tobytes(), np.uint8))
    return part.view(a.dtype).reshape(a.shape)


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "reversed": lambda a: reverse(np.ascontiguousarray(reverse(a))),
    "sliced": lambda a: moved([2 * n for n in a.shape], (slice(None, None, 2),) * a.ndim, a),
    "wide rows": lambda a: moved((*a.shape[:-1], a.shape[-1] + 3), np.s_[..., 1:-2], a),
    "first and last exchanged": lambda a: np.swapaxes(np.swapaxes(a, 0, -1).copy(), 0, -1),
    "last axis first": lambda a: np.moveaxis(np.moveaxis(a, -1, 0).copy(), 0, -1),
    "first axis last": lambda a: np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0),
    "unaligned": unaligned,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()) if a.dtype.kind == "f" else a,
}


def laid(b, lay_out):
    """The Batch with every array in other memory."""
    other = object.__new__(Batch)
    vars(other).update((name, lay_out(a)) for name, a in vars(b).items())
    return other


# Values -------------------------------------------------------------------------------------------


@dtypes
@axes
def test_values(shape, axis, dtype):
    b = Batch(shape, dtype, axis=axis)
    reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis)
    reference.check_inference(b, axis)


@large
def test_values_of_large_batches(shape, axis, dtype):
    b = Batch(shape, dtype, axis=axis)
    reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis)
    reference.check_inference(b, axis)


@large
def test_a_mean_far_from_zero(shape, axis):
    b = Batch(shape, np.float32, axis=axis)
    b.x += np.float32(3e5)
    b.x[(0,) * len(shape)] = 1e9
    reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis)


@pytest.mark.parametrize("apart", ["x", "dy"])
@pytest.mark.parametrize("layout", ["Fortran", "reversed", "unaligned", "byte-swapped"])
@pytest.mark.parametrize(("shape", "axis"), [((70, 9), 1), ((3, 5, 16, 8), 1), ((9, 4, 200), 1)])
def test_values_of_arrays_that_lie_unlike(shape, axis, layout, apart):
    """One is taken as it lies, the other goes through scratch."""
    b = Batch(shape, np.float32, axis=axis)
    setattr(b, apart, LAYOUTS[layout](getattr(b, apart)))
    reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis)


@pytest.mark.parametrize("lay_out", [np.asarray, np.asfortranarray, reverse], ids=list("CFR"))
@pytest.mark.parametrize(("shape", "axis"), [((70, 9), 1), ((6, 9, 40), 1), ((3, 9, 5, 7), 1)])
def test_channels_that_float32_cannot_square(shape, axis, lay_out):
    """Among ordinary ones: what is computed with float64 begins at their columns."""
    b = Batch(shape, np.float32, axis=axis)
    channels = np.moveaxis(b.x, axis, 0)
    channels[[2, 3, 6]] *= np.float32(1e30)
    channels[5] *= np.float32(1e-30)
    b.x, b.dy = lay_out(b.x), lay_out(b.dy)
    reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis, eps=0.0)
    b.mean, b.var = b.mean.astype(np.float64), b.var.astype(np.float64)
    b.gamma = b.gamma.astype(np.float64)
    b.var[[2, 3, 6]] *= 1e60
    b.gamma[[2, 3, 6]] *= 1e30
    reference.check_inference(b, axis)


@given(drawn=batches(), eps=st.sampled_from([0.0, 1e-5, 1.0]))
def test_values_of_any_batch(drawn, eps):
    b, axis = drawn
    reference.check(b.x, b.dy, b.gamma, b.beta, axis=axis, eps=eps)
    reference.check_inference(b, axis, eps)


@axes
def test_negative_axes_count_from_the_end(shape, axis):
    b = Batch(shape, np.float32, axis=axis)
    other = axis - len(shape) if axis >= 0 else axis + len(shape)
    same_bytes(everything(b, axis=other), everything(b, axis=axis))


# One answer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@dtypes
@axes
def test_layouts(shape, axis, dtype, layout):
    b = Batch(shape, dtype, axis=axis)
    other = laid(b, LAYOUTS[layout])
    assert all(np.array_equal(a, getattr(b, name)) for name, a in vars(other).items())
    same_bytes(everything(other, axis=axis), everything(b, axis=axis))


@large
def test_layouts_of_large_batches(shape, axis, dtype):
    b = Batch(shape, dtype, axis=axis)
    expected = everything(b, axis=axis)
    for layout, lay_out in LAYOUTS.items():
        found = everything(laid(b, lay_out), axis=axis, num_threads=2)
        for name in expected:
            assert found[name].tobytes() == expected[name].tobytes(), (layout, name)


@pytest.mark.parametrize("kept", ["nothing", "the first axis", "channels", "all but channels"])
@dtypes
@axes
def test_broadcast_inputs(shape, axis, dtype, kept):
    b = Batch(shape, dtype, axis=axis)
    channels = axis % len(shape)
    chosen = {"nothing": [], "the first axis": [0], "channels": [channels]}
    keep = chosen.get(kept, [i for i in range(len(shape)) if i != channels])
    first = tuple(slice(None) if i in keep else slice(1) for i in range(len(shape)))
    b.x, b.dy = (np.broadcast_to(a[first], shape) for a in (b.x, b.dy))
    assert 0 in b.x.strides
    same_bytes(everything(b, axis=axis), everything(laid(b, np.ascontiguousarray), axis=axis))


@examples(150)
@given(data=st.data())
def test_any_layout(data):
    b, axis = data.draw(batches())
    expected = everything(b, axis=axis)
    other = laid(b, lambda a: data.draw(layouts(a.shape))(a))
    same_bytes(everything(other, axis=axis), expected)


@given(data=st.data())
def test_any_layout_of_out(data):
    b, axis = data.draw(batches())
    y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, axis=axis)
    dx = cbn.batch_norm_backward(b.dy, cache)[0]
    fixed = (b.mean, b.var, b.gamma)
    inference = cbn.batch_norm_inference(b.x, *fixed, b.beta, axis=axis)
    out = data.draw(layouts(b.x.shape, writeable=True))(np.zeros_like(b.x))
    assert cbn.batch_norm_forward(b.x, b.gamma, b.beta, axis=axis, out=out)[0] is out
    same_bytes(out, y)
    assert cbn.batch_norm_backward(b.dy, cache, out=out)[0] is out
    same_bytes(out, dx)
    assert cbn.batch_norm_inference(b.x, *fixed, b.beta, axis=axis, out=out) is out
    same_bytes(out, inference)
    dx = cbn.batch_norm_inference_backward(b.dy, b.x, *fixed, axis=axis)[0]
    assert cbn.batch_norm_inference_backward(b.dy, b.x, *fixed, axis=axis, out=out)[0] is out
    same_bytes(out, dx)


def digest(results):
    return {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in results.items()}


def hashes(**options):
    return [
        digest(everything(Batch(shape, dtype, axis=axis), axis=axis, **options))
        for shape, axis in [*AXES.values(), *LARGE]
        for dtype in FLOATS
    ]


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads(threads):
    assert hashes(num_threads=threads) == hashes(num_threads=1)


def test_tiers(tier, run_python):
    code = "import json, runpy, sys; test_axes = runpy.run_path(sys.argv[1]); "
    code += "print(json.dumps(test_axes['hashes'](num_threads=2)))"
    run = run_python("-c", code, __file__, CBN_ISA=tier)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == hashes(num_threads=1)


# Memory -------------------------------------------------------------------------------------------

MIB = 2**20
MEMORY = {
    "contiguous": ((16384, 1024), 1, np.float32, np.asarray),
    "float16": ((32768, 1024), 1, np.float16, np.asarray),
    "NCHW": ((64, 256, 32, 32), 1, np.float32, np.asarray),
    "Fortran": ((16384, 1024), 1, np.float32, np.asfortranarray),
    "sliced": ((16384, 1024), 1, np.float32, LAYOUTS["sliced"]),
}


@pytest.mark.parametrize("kind", slow_if(lambda kind: kind != "NCHW", MEMORY))
def test_no_temporary_of_the_size_of_x(kind):
    """The slowest test of this file: 64 MiB arrays, of which no call may copy a quarter."""
    shape, axis, dtype, lay_out = MEMORY[kind]
    rng = generator(kind)
    first, rest = rng.normal(size=(shape[0], *(1 for _ in shape[1:]))), rng.normal(size=shape[1:])
    x = lay_out((first * rest).astype(dtype))
    out = lay_out(x)
    assert x.nbytes == 64 * MIB
    gamma, beta = rng.normal(1, 0.5, (2, shape[axis])).astype(np.float32)

    def peak(function, *arguments, **options):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        function(*arguments, out=out, **options)
        return (tracemalloc.get_traced_memory()[1] - before) / MIB

    _, cache = cbn.batch_norm_forward(x, gamma, beta, axis=axis, out=out)
    fixed = (cache.mean, cache.var, gamma)
    tracemalloc.start()
    try:
        peaks = {
            "forward": peak(cbn.batch_norm_forward, x, gamma, beta, axis=axis),
            "backward": peak(cbn.batch_norm_backward, x, cache),
            "inference": peak(cbn.batch_norm_inference, x, *fixed, beta, axis=axis),
            "its backward": peak(cbn.batch_norm_inference_backward, x, x, *fixed, axis=axis),
        }
    finally:
        tracemalloc.stop()
    assert all(size < 16 for size in peaks.values()), peaks
