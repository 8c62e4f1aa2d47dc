"""cbn/functional.py: the four operators on every kind of array."""

from __future__ import annotations

import numpy as np
import pytest
from cases import (
    EPS,
    LARGE_SHAPES,
    Batch,
    check_forward,
    check_inference,
    check_training,
    everything,
    generator,
    same_bytes,
)
from reference_case import DIFFERENCE_RTOL, slope

import cbn

ARRAYS = ("x", "dy", "gamma", "beta", "mean", "var")


def check_both(b, eps):
    check_training(b.x, b.dy, b.gamma, b.beta, eps)
    check_inference(b.x, b.dy, b.mean, b.var, b.gamma, b.beta, eps)


# Values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_every_shape(shape, dtype, parameters, eps):
    check_both(Batch(shape, dtype, parameters), eps)


@pytest.mark.parametrize("shape", LARGE_SHAPES, ids=str)
def test_large_shapes(shape, dtype):
    check_both(Batch(shape, dtype), 1e-5)


@pytest.mark.parametrize("eps", EPS)
def test_every_eps(eps, dtype):
    check_both(Batch((67, 21), dtype), eps)


@pytest.mark.parametrize("rows", [2, 33, 300])
@pytest.mark.parametrize("ratio", [1e1, 1e3, 1e6, 1e9, 1e12])
def test_a_mean_far_from_zero(rows, ratio, dtype):
    if dtype == np.float32 and ratio > 1e6:
        ratio = 4e6  # float32 holds no more than 2 bits beside 2^22
    b = Batch((rows, 4), dtype)
    b.x = (b.x.astype(np.float64) + 2 * ratio).astype(dtype)
    check_training(b.x, b.dy, b.gamma, b.beta, exactly=True)
    b.mean, b.var = b.x.mean(axis=0, dtype=np.float64), np.full(4, 4.0)
    check_inference(b.x, b.dy, b.mean, b.var, b.gamma, b.beta)


@pytest.mark.parametrize("scale", [1e-45, 1e-42, 1e-38, 1e-30, 1e-20, 1e20, 1e30, 3e37])
@pytest.mark.parametrize("rows", [2, 33, 300])
def test_float32_of_any_size(rows, scale):
    b = Batch((rows, 5), np.float32)
    wide = b.x.astype(np.float64)
    b.x = (wide * scale).astype(np.float32)
    b.x[:, 3] = wide[:, 3]  # beside a channel of ordinary size
    for eps in (0.0, 1e-5):
        right, cache = check_forward(b.x, b.gamma, b.beta, eps, exactly=True)
        assert np.all(np.isfinite([cache.mean, cache.var, cache.invstd]))
    gradients = cbn.batch_norm_backward(b.dy, cache)
    assert all(np.all(np.isfinite(a)) for a in gradients)


@pytest.mark.parametrize("scale", [1e-140, 1e-30, 1e30, 1e140])
def test_float64_of_any_size(scale):
    b = Batch((300, 5), np.float64)
    check_training(b.x * scale, b.dy, b.gamma, b.beta, 0.0, exactly=True)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("rows", [1, 2, 31, 33, 257, 20000])
def test_constant_channels(rows, eps, dtype):
    tiny, huge = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    x = np.repeat(np.array([[0.1, -3.3, 0, 1e30, tiny, huge, -huge, 1 / 3]], dtype), rows, axis=0)
    b = Batch(x.shape, dtype)
    y, cache = cbn.batch_norm_forward(x, b.gamma, b.beta, eps=eps)
    assert np.array_equal(cache.mean, x[0]) and not cache.var.any()
    assert np.array_equal(y, np.broadcast_to(b.beta, x.shape))
    dx, dgamma, _ = cbn.batch_norm_backward(b.dy, cache)
    assert not dgamma.any()
    if eps == 0:
        assert not cache.invstd.any() and not dx.any()


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_one_row(eps, dtype, parameters):
    b = Batch((1, 37), dtype, parameters)
    y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, eps=eps)
    beta = np.zeros(37) if b.beta is None else b.beta
    assert np.array_equal(y, beta[None]) and cache.count == 1
    dx, dgamma, dbeta = cbn.batch_norm_backward(b.dy, cache)
    assert not dx.any()
    assert dgamma is None or not dgamma.any()
    assert dbeta is None or np.array_equal(dbeta, b.dy[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x", "dy"])
@pytest.mark.parametrize("shape", [(1, 5), (40, 5), (300, 40), (7, 600), (70000, 3)], ids=str)
def test_what_is_not_finite_stays_in_its_channel(shape, name, bad, dtype):
    b = Batch(shape, dtype)
    clean = everything(b)
    channel = shape[1] // 2
    getattr(b, name)[shape[0] // 3, channel] = bad
    others = np.arange(shape[1]) != channel
    for key, spoilt in everything(b).items():
        same_bytes(spoilt[..., others], clean[key][..., others])
    if name == "x":
        y, cache = cbn.batch_norm_forward(b.x)
        assert np.all(np.isnan(y[:, channel])) and np.isnan(cache.var[channel])


def test_parameters_that_are_not_finite_stay_in_their_channel(dtype):
    b = Batch((40, 5), dtype)
    clean = everything(b)
    b.gamma[2], b.beta[2], b.mean[2], b.var[2] = np.nan, np.inf, -np.inf, np.nan
    others = np.arange(5) != 2
    for key, spoilt in everything(b).items():
        same_bytes(spoilt[..., others], clean[key][..., others])


@pytest.mark.parametrize("eps", [1e-5, 1e-1, 10.0])
@pytest.mark.parametrize("rows", [2, 3, 17, 130])
@pytest.mark.parametrize("kind", ["training", "inference"])
def test_gradients_are_slopes(kind, rows, eps):
    """scipy's central differences of <dy, y> along random directions; dy is random, never ones."""
    b = Batch((rows, 6), np.float64, key=eps)
    rng = generator("slopes", kind, rows, eps)
    if kind == "training":
        cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, eps=eps)[1]
        gradients = cbn.batch_norm_backward(b.dy, cache)
    else:
        gradients = cbn.batch_norm_inference_backward(b.dy, b.x, b.mean, b.var, b.gamma, eps=eps)

    def loss(t, name, direction):
        moved = {key: getattr(b, key) for key in ("x", "gamma", "beta")}
        moved[name] = moved[name] + t * direction
        if kind == "training":
            y, _ = cbn.batch_norm_forward(*moved.values(), eps=eps)
        else:
            y = cbn.batch_norm_inference(moved.pop("x"), b.mean, b.var, *moved.values(), eps=eps)
        return float(np.sum(b.dy * y))

    for name, gradient in zip(("x", "gamma", "beta"), gradients, strict=True):
        direction = rng.normal(0, 1, gradient.shape)
        found = slope(lambda t, name=name, direction=direction: loss(t, name, direction))
        terms = np.sum(np.abs(gradient * direction)) + np.sum(np.abs(b.dy))
        assert abs(found - np.sum(gradient * direction)) <= DIFFERENCE_RTOL * terms


# Threads, memory ----------------------------------------------------------------------------------


def test_scratch_holds_the_rows_that_are_left_over(dtype):
    """Of more columns than the strips of many threads, wherever in 4 KiB scratch begins."""
    b = Batch((4097, 130), dtype)
    memory = np.empty(b.x.nbytes + 8192, np.uint8)
    expected = None
    for offset in range(0, 4096, 64):
        start = -memory.ctypes.data % 4096 + offset
        x = memory[start : start + b.x.nbytes].view(dtype).reshape(b.x.shape)
        x[...] = b.x
        args = b.dy, x, b.mean, b.var, b.gamma
        results = cbn.batch_norm_inference_backward(*args, num_threads=16)
        expected = expected or results
        for actual, first in zip(results, expected, strict=True):
            same_bytes(actual, first)


def _strided(a):
    wide = np.zeros([3 * n for n in a.shape], a.dtype)
    view = wide[tuple(slice(1, None, 3) for _ in a.shape)]
    view[...] = a
    return view


def _inside_a_wider_matrix(a):
    wide = np.zeros([n + 3 for n in a.shape], a.dtype)
    view = wide[tuple(slice(1, n + 1) for n in a.shape)]
    view[...] = a
    return view


def _reversed(a):
    back = tuple(slice(None, None, -1) for _ in a.shape)
    return a[back].copy()[back]


def _unaligned(a):
    view = np.frombuffer(bytearray(a.nbytes + 1), a.dtype, offset=1).reshape(a.shape)
    view[...] = a
    return view


def _packed_field(a):
    records = np.zeros(a.shape, [("tag", "u1"), ("value", a.dtype)])
    records["value"] = a
    return records["value"]


def _read_only(a):
    view = a.copy()
    view.flags.writeable = False
    return view


def _byte_swapped(a):
    return a.astype(a.dtype.newbyteorder())


VIEWS = [_strided, _inside_a_wider_matrix, _reversed, _unaligned, _packed_field, np.asfortranarray]
LAYOUTS = [*VIEWS, _read_only, _byte_swapped]


@pytest.mark.parametrize("part", [(1, 7), (40, 1), (1, 1)], ids=str)
def test_broadcast_input(part, dtype):
    b = Batch((40, 7), dtype)
    for name in ("x", "dy"):
        view = np.broadcast_to(getattr(b, name)[: part[0], : part[1]], (40, 7))
        setattr(b, name, view.copy())
        expected = everything(b)
        setattr(b, name, view)
        same_bytes(everything(b), expected)


def out_calls(b, cache):
    """Each function as a function of out, and the inputs it may be written over."""
    return [
        (lambda out: cbn.batch_norm_forward(b.x, b.gamma, b.beta, out=out)[0], "x"),
        (lambda out: cbn.batch_norm_backward(b.dy, cache, out=out)[0], "dy"),
        (lambda out: cbn.batch_norm_inference(b.x, b.mean, b.var, b.gamma, b.beta, out=out), "x"),
        (lambda out: cbn.batch_norm_inference_backward(
            b.dy, b.x, b.mean, b.var, b.gamma, out=out)[0], "dy"),
    ]  # fmt: skip


@pytest.mark.parametrize("function", range(4))
@pytest.mark.parametrize("layout", [np.copy, *VIEWS], ids=lambda f: f.__name__.strip("_"))
def test_out(function, layout, dtype):
    b = Batch((70, 33), dtype)
    cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta)[1]
    call, _ = out_calls(b, cache)[function]
    out = layout(np.full((70, 33), 7, dtype))
    assert call(out) is out
    same_bytes(out, call(None))


@pytest.mark.parametrize("function", range(4))
@pytest.mark.parametrize("layout", [np.copy, *VIEWS], ids=lambda f: f.__name__.strip("_"))
def test_in_place(function, layout, dtype):
    b = Batch((70, 33), dtype)
    cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta)[1]
    call, over = out_calls(b, cache)[function]
    expected = call(None)
    setattr(b, over, layout(getattr(b, over)))
    out = getattr(b, over)
    assert call(out) is out
    same_bytes(out, expected)


def test_in_place_forward_leaves_y_for_backward(dtype):
    b = Batch((70, 33), dtype)
    y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta)
    expected = cbn.batch_norm_backward(b.dy, cache)
    cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, out=b.x)[1]
    assert cache.x is b.x
    same_bytes(b.x, y)
    for actual, right in zip(cbn.batch_norm_backward(b.dy, cache), expected, strict=True):
        largest = np.abs(right).max()
        np.testing.assert_allclose(actual, right, rtol=0, atol=64 * np.finfo(dtype).eps * largest)


def test_dx_over_x(dtype):
    b = Batch((70, 33), dtype)
    cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta)[1]
    expected = cbn.batch_norm_backward(b.dy, cache)[0]
    same_bytes(cbn.batch_norm_backward(b.dy, cache, out=b.x)[0], expected)


# Dtypes, axes, degenerate shapes ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["?", "b", "B", "h", "H", "i", "I", "q", "Q", ">i4"])
def test_integers_and_bool_are_float64(kind):
    b = Batch((50, 6), np.float64)
    b.x, b.dy = (np.abs(a * 9).astype(kind) for a in (b.x, b.dy))
    actual = everything(b)
    b.x, b.dy = b.x.astype(np.float64), b.dy.astype(np.float64)
    same_bytes(actual, everything(b))


def _half(name):
    return np.float16 if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 3), (7, 5), (300, 33)], ids=str)
def test_half_types(name, shape, parameters):
    check_both(Batch(shape, _half(name), parameters), 1e-5)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_types_in_any_layout_and_place(name):
    b = Batch((70, 33), _half(name))
    cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta)[1]
    for call, over in out_calls(b, cache):
        expected = call(None)
        same_bytes(call(_strided(expected)), expected)
        setattr(b, over, np.asfortranarray(getattr(b, over)))
        same_bytes(call(None), expected)
        same_bytes(call(getattr(b, over)), expected)
        b.x, b.dy = Batch((70, 33), _half(name)).x, Batch((70, 33), _half(name)).dy


@pytest.mark.parametrize("x_dtype", ["f2", "f4", "f8", ">f4", "i8"])
@pytest.mark.parametrize("gamma_dtype", ["f2", "f4", "f8", ">f8"])
@pytest.mark.parametrize("beta_dtype", ["f2", "f8"])
def test_gradients_have_the_dtype_of_their_argument(x_dtype, gamma_dtype, beta_dtype):
    b = Batch((20, 3), np.float64)
    b.x, b.dy = b.x.astype(x_dtype), b.dy.astype("f4")
    b.gamma, b.beta = b.gamma.astype(gamma_dtype), b.beta.astype(beta_dtype)
    x_result = np.dtype("f8" if x_dtype == "i8" else x_dtype).newbyteorder("=")
    gamma_result = np.dtype(gamma_dtype).newbyteorder("=")
    results = everything(b)
    for name in ("y", "dx", "inference", "inference_dx"):
        assert results[name].dtype == x_result
    assert results["dgamma"].dtype == results["inference_dgamma"].dtype == gamma_result
    assert results["inference_dbeta"].dtype == gamma_result
    assert results["dbeta"].dtype == np.dtype(beta_dtype)
    b.gamma, b.beta = b.gamma.astype("f8"), b.beta.astype("f8")
    wide = everything(b)
    same_bytes(results["y"], wide["y"])
    same_bytes(results["dgamma"], wide["dgamma"].astype(gamma_result))
    same_bytes(results["dbeta"], wide["dbeta"].astype(beta_dtype))


def test_the_gradient_of_a_beta_that_inference_does_not_see_has_dx_s_dtype(dtype):
    b = Batch((20, 3), dtype, "none")
    _, dgamma, dbeta = cbn.batch_norm_inference_backward(b.dy, b.x, b.mean, b.var)
    assert dgamma is None and dbeta.dtype == dtype


class _Converts:
    def __init__(self, a):
        self.a = a

    def __array__(self, dtype=None, copy=None):
        return self.a


class _Exports:
    def __init__(self, a):
        self.__dlpack__, self.__dlpack_device__ = a.__dlpack__, a.__dlpack_device__


FORMS = {
    "list": (np.ndarray.tolist, ARRAYS),
    "buffer": (memoryview, ARRAYS),
    "__array__": (_Converts, ARRAYS),
    "__dlpack__": (_Exports, ("x", "dy")),
}


@pytest.mark.parametrize("form", FORMS)
def test_anything_that_is_an_array(form):
    b = Batch((9, 4), np.float64)
    expected = everything(b)
    convert, names = FORMS[form]
    for name in names:
        setattr(b, name, convert(getattr(b, name)))
    same_bytes(everything(b), expected)


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 5), (2, 3, 4, 5), (2, 1, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_the_channel_axis_may_be_any(shape, name):
    for axis in range(-len(shape), len(shape)):
        b = Batch(shape, name, axis=axis)
        results = everything(b, axis=axis)
        assert cbn.batch_norm_forward(b.x, axis=axis)[1].axis == axis % len(shape)
        flat = Batch(shape, name, axis=axis)
        flat.x, flat.dy = (np.moveaxis(a, axis, -1).reshape(-1, shape[axis]) for a in (b.x, b.dy))
        for key, a in everything(flat).items():
            whole = np.moveaxis(results[key], axis, -1) if a.ndim == 2 else results[key]
            same_bytes(whole.reshape(a.shape), a)


def test_out_with_an_axis():
    b = Batch((4, 3, 5), np.float32, axis=1)
    expected, cache = cbn.batch_norm_forward(b.x, axis=1)
    for layout in VIEWS:
        out = layout(np.zeros((4, 3, 5), np.float32))
        assert cbn.batch_norm_forward(b.x, axis=1, out=out)[0] is out
        same_bytes(out, expected)
        assert cbn.batch_norm_backward(b.dy, cache, out=out)[0] is out
        same_bytes(out, cbn.batch_norm_backward(b.dy, cache)[0])


@pytest.mark.parametrize("shape", [(1, 0), (5, 0), (5, 0, 3)], ids=str)
def test_no_channels(shape, dtype):
    b = Batch(shape, dtype, axis=1)
    results = everything(b, axis=1)
    for name in ("y", "dx", "inference", "inference_dx"):
        assert results[name].shape == shape and results[name].dtype == dtype
    for name in ("mean", "var", "invstd", "dgamma", "dbeta", "inference_dgamma"):
        assert results[name].shape == (0,)
    out = np.empty(shape, dtype)
    assert cbn.batch_norm_forward(b.x, axis=1, out=out)[0] is out


def test_the_cache(dtype):
    b = Batch((6, 4), dtype)
    _, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta, eps=0.5, axis=-1)
    assert isinstance(cache, cbn.BatchNormCache)
    assert cache.x is b.x and cache.gamma is b.gamma
    assert (cache.count, cache.eps, cache.axis) == (6, 0.5, 1)
    for statistic in (cache.mean, cache.var, cache.invstd):
        assert statistic.dtype == np.float64 and statistic.shape == (4,)
    assert cbn.batch_norm_forward(b.x)[1].gamma is None
    assert "(6, 4)" in repr(cache)


def test_the_cache_serves_more_than_once(dtype):
    b = Batch((40, 4), dtype)
    _, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta)
    first = cbn.batch_norm_backward(b.dy, cache)
    cbn.batch_norm_backward(b.dy * 2, cache)
    for a, again in zip(first, cbn.batch_norm_backward(b.dy, cache), strict=True):
        same_bytes(again, a)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 31, 32, 33, 65, 300])
@pytest.mark.parametrize("cols", [1, 17, 257])
def test_nothing_is_written_beside_out(rows, cols, dtype):
    b = Batch((rows, cols), dtype)
    memory = np.full((rows + 9, cols + 40), 7, dtype)
    out = memory[3 : rows + 3, 5 : cols + 5]
    _, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta)
    fixed = (b.x, b.mean, b.var, b.gamma)
    calls = [
        lambda **o: cbn.batch_norm_forward(b.x, b.gamma, b.beta, **o)[0],
        lambda **o: cbn.batch_norm_backward(b.dy, cache, **o)[0],
        lambda **o: cbn.batch_norm_inference(*fixed, b.beta, **o),
        lambda **o: cbn.batch_norm_inference_backward(b.dy, *fixed, **o)[0],
    ]
    for call in calls:
        same_bytes(call(out=out), call())
        out[...] = 7
        assert np.all(memory == 7)
