"""Memory that overlaps, has odd strides, is not aligned, read-only, or larger than it looks."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Batch, same_bytes, slow_if
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batches, layouts

import cbn
from cbn import BackwardSums, Moments


def every_function(b, axis, out=None, **vectors):
    """All that the public functions make of x, dy and the vectors, by name; out for one of them."""
    v = vars(b) | vectors
    parameters = {"gamma": v["gamma"], "beta": v["beta"], "axis": axis}
    y, cache = cbn.batch_norm_forward(v["x"], **parameters)
    relu = {"activation": "relu", "residual": v["dy"]}
    gated, gated_cache = cbn.batch_norm_forward(v["x"], **parameters, **relu)
    m = Moments.from_batch(v["x"], axis=axis)
    s = BackwardSums.from_batch(v["dy"], cache)
    population = (v["mean"], v["var"], v["gamma"])
    staged = cbn.batch_norm_backward_staged(v["dy"], cache)
    results = {
        "forward": (y, cache.mean, cache.mean_low, cache.var, cache.invstd),
        "backward": cbn.batch_norm_backward(v["dy"], cache),
        "relu": (gated, *cbn.batch_norm_backward(v["dy"], gated_cache)),
        "inference": (cbn.batch_norm_inference(v["x"], *population, v["beta"], axis=axis),),
        "inference_backward": cbn.batch_norm_inference_backward(
            v["dy"], v["x"], *population, axis=axis
        ),
        "normalize": (cbn.batch_norm_normalize(v["x"], m, **parameters)[0],),
        "apply": cbn.batch_norm_backward_apply(v["dy"], cache, s),
        "jvp": (cbn.batch_norm_jvp(v["dy"], cache, v["gamma"], v["beta"]),),
        "double": cbn.batch_norm_double_backward(v["dy"], v["x"], cache, v["gamma"], v["beta"]),
        "staged": tuple(staged),
        "jacobian": (cbn.batch_norm_jacobian(cache),),
    }
    return {
        f"{name} {i}": array for name, arrays in results.items() for i, array in enumerate(arrays)
    }


def alike(found, right):
    assert found.keys() == right.keys()
    for name in right:
        a, b = found[name], right[name]
        assert a.dtype == b.dtype and a.shape == b.shape, name
        assert np.array_equal(a, b) and np.array_equal(np.signbit(a), np.signbit(b)), name


# Strides ------------------------------------------------------------------------------------------


@given(drawn=batches(), data=st.data())
def test_any_strides_give_the_bytes_of_a_copy(drawn, data):
    b, axis = drawn
    right = every_function(b, axis)
    moved = {
        name: data.draw(layouts(getattr(b, name).shape), label=name)(getattr(b, name))
        for name in ("x", "dy", "gamma", "beta", "mean", "var")
    }
    alike(every_function(b, axis, **moved), right)


# Alignment and byte order -------------------------------------------------------------------------


def off_by_one(a):
    return np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape)


def packed(a):
    fields = np.zeros(a.shape, np.dtype([("flag", "u1"), ("value", a.dtype)]))
    fields["value"] = a
    return fields["value"]


def swapped(a):
    return a.astype(a.dtype.newbyteorder("S"))


@pytest.mark.parametrize("moved", [off_by_one, packed, swapped])
@pytest.mark.parametrize(
    "shape", slow_if((1500, 8).__eq__, [(5, 3), (70, 33), (1500, 8), (3, 40, 6)]), ids=str
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_unaligned_and_swapped_arrays_give_the_bytes_of_a_copy(dtype, shape, moved):
    b = Batch(shape, dtype)
    names = ("x", "dy", "gamma", "beta", "mean", "var")
    odd = {name: moved(getattr(b, name)) for name in names}
    assert all(not a.flags.aligned or not a.dtype.isnative for a in odd.values())
    alike(every_function(b, -1, **odd), every_function(b, -1))


# Overlap ------------------------------------------------------------------------------------------

N, C, LENGTH = 4, 3, 60
STEPS = st.integers(-6, 6)


@st.composite
def views(draw, shape):
    """A function from one memory to a view of it: any start, any strides, inside."""
    strides = [draw(STEPS) for _ in shape]
    reach = [(n - 1) * step for n, step in zip(shape, strides, strict=True)]
    low, high = sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach)
    start = draw(st.integers(-low, LENGTH - 1 - high))

    def view(memory):
        size = memory.itemsize
        return np.lib.stride_tricks.as_strided(
            memory[start:], shape, [size * step for step in strides]
        )

    return view


REAL = {  # what reads x, dy and vectors and writes one array
    "forward": lambda v, out: cbn.batch_norm_forward(v["x"], v["gamma"], v["beta"], out=out)[0],
    "relu": lambda v, out: cbn.batch_norm_forward(
        v["x"], v["gamma"], v["beta"], residual=v["dy"], activation="relu", out=out
    )[0],
    "masked": lambda v, out: cbn.batch_norm_forward(v["x"], mask=MASK, out=out)[0],
    "grouped": lambda v, out: cbn.batch_norm_forward(v["x"], virtual_batch_size=3, out=out)[0],
    "inference": lambda v, out: cbn.batch_norm_inference(
        v["x"], v["mean"], v["var"], v["gamma"], v["beta"], residual=v["dy"], out=out
    ),
    "inference_backward": lambda v, out: cbn.batch_norm_inference_backward(
        v["dy"], v["x"], v["mean"], v["var"], v["gamma"], out=out
    )[0],
    "backward": lambda v, out: cbn.batch_norm_backward(
        v["dy"], cbn.batch_norm_forward(v["x"], v["gamma"])[1], out=out
    )[0],
    "normalize": lambda v, out: cbn.batch_norm_normalize(v["x"], M, v["gamma"], out=out)[0],
    "apply": lambda v, out: cbn.batch_norm_backward_apply(
        v["dy"], cbn.batch_norm_normalize(v["x"], M, v["gamma"])[1], S, out=out
    )[0],
}
MASK = np.array([True, False, True, True])
M = Moments(9, np.array([1.0, 2, 3]), np.array([9.0, 8, 7]))
S = BackwardSums(9, np.array([1.0, -2, 3]), np.array([4.0, 5, -6]))
VECTORS = ("mean", "var", "gamma", "beta")


@settings(max_examples=300)
@given(data=st.data(), function=st.sampled_from(sorted(REAL)), dtype=st.sampled_from(["f4", "f8"]))
def test_overlap_gives_what_copies_give_or_an_error(data, function, dtype):
    """All arguments and out may lie anywhere in one small memory."""
    memory = np.random.default_rng(1).uniform(0.5, 4, LENGTH).astype(dtype)
    apart = memory.copy()
    shapes = dict.fromkeys(("x", "dy"), (N, C)) | dict.fromkeys(VECTORS, (C,))
    where = {name: data.draw(views(shape), label=name) for name, shape in shapes.items()}
    target = data.draw(st.sampled_from(["anywhere", *(["x", "dy"] * 2)]), label="out")
    where["out"] = where[target] if target in where else data.draw(views((N, C)), label="out")
    v = {name: view(memory) for name, view in where.items()}
    copies = {name: view(apart).copy() for name, view in where.items()}
    out = v["out"]
    try:
        found = REAL[function](v, out)
    except ValueError as error:
        assert str(error).partition(":")[0] in ("out", "gamma", "residual", "activation")
        same_bytes(memory, apart)
        return
    assert found is out
    same_bytes(out.copy(), REAL[function](copies, None))
    outside = np.ones(LENGTH, bool)
    where["out"](outside)[...] = False
    same_bytes(memory[outside], apart[outside])


@pytest.mark.parametrize("function", REAL)
def test_the_overlaps_that_are_allowed_are_tried(function):
    """Neither ValueError for all nor for none: a copy apart, and one row on."""
    memory = np.random.default_rng(1).uniform(0.5, 4, (2 * N + 1, C))
    v = {"x": memory[:N], "dy": memory[:N] + 1} | dict(zip(VECTORS, np.ones((4, C)), strict=True))
    right = REAL[function](v, None)
    same_bytes(REAL[function](v, memory[N + 1 :]), right)
    reads_x = v if function not in ("backward", "apply") else v | {"dy": v["x"]}
    before = memory.copy()
    with pytest.raises(ValueError, match="^out: expected .*, got a part of (x|dy|residual)"):
        REAL[function](reads_x, memory[1 : N + 1])
    same_bytes(memory, before)


@settings(max_examples=100)
@given(data=st.data())
def test_overlap_of_running_statistics(data):
    memory = np.random.default_rng(1).uniform(0.5, 4, LENGTH)
    apart = memory.copy()
    mean, var = (data.draw(views((C,)), label=name) for name in ("mean", "var"))
    right = mean(apart).copy(), var(apart).copy()
    cbn.update_running_stats(*right, M)
    try:
        cbn.update_running_stats(mean(memory), var(memory), M)
    except ValueError as error:
        assert str(error).startswith(("running_mean: ", "running_var: "))
        same_bytes(memory, apart)
        return
    same_bytes(mean(memory).copy(), right[0])
    same_bytes(var(memory).copy(), right[1])


# Read-only ----------------------------------------------------------------------------------------


def test_memory_mapped_read_only_inputs(tmp_path):
    """As joblib hands large arrays to its workers."""
    b = Batch((300, 7), np.float32)
    mapped = {}
    for name, array in vars(b).items():
        np.save(tmp_path / f"{name}.npy", array)
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
        assert isinstance(mapped[name], np.memmap) and not mapped[name].flags.writeable
    alike(every_function(b, -1, **mapped), every_function(b, -1))
    for name, array in vars(b).items():
        same_bytes(np.load(tmp_path / f"{name}.npy"), array)
    for function in REAL:
        v = {
            name: array[:N, :C] if array.ndim == 2 else array[:C] for name, array in mapped.items()
        }
        with pytest.raises(ValueError, match="^out: expected a writable array, got a read-only"):
            REAL[function](v, v["x"])
    with pytest.raises(ValueError, match="^running_mean: expected a writable array"):
        cbn.update_running_stats(mapped["mean"][:C], np.ones(C), M)


# Larger than 2^31 ---------------------------------------------------------------------------------

HUGE = 2**31 + 64


@pytest.mark.slow
def test_statistics_of_more_than_2_31_rows():
    m = Moments.from_batch(np.broadcast_to(np.array([0.1]), (HUGE, 1)))
    assert (m.count, m.mean[0], m.mean_low[0], m.m2[0]) == (HUGE, 0.1, 0, 0)


@pytest.mark.slow
def test_sums_of_more_than_2_31_rows():
    x, dy = (np.broadcast_to(np.array([value]), (HUGE, 1)) for value in (3.0, 0.5))
    cache = cbn.batch_norm_inference_cache(x, np.array([1.0]), np.array([4.0]), eps=0.0)
    s = BackwardSums.from_batch(dy, cache)  # xhat is 1
    assert (s.count, s.sum_dy[0], s.sum_dy_xhat[0]) == (HUGE, HUGE / 2, HUGE / 2)


def test_channels_far_apart():
    """Byte offsets past 2^32 in an array that is mostly never touched."""
    step = 2**30 + 12
    memory = np.zeros(4 * step + 2, np.float32)
    x = np.lib.stride_tricks.as_strided(memory, (2, 5), (4, 4 * step))
    x[...] = [[1, 2, 3, 4, 5], [3, 6, 9, 12, 15]]
    copy = x.copy()
    same_bytes(cbn.batch_norm_forward(x)[0], cbn.batch_norm_forward(copy)[0])
    right = cbn.batch_norm_inference(copy, copy[0], copy[1])
    cbn.batch_norm_inference(x, x[0].copy(), x[1].copy(), out=x)
    same_bytes(x.copy(), right)
