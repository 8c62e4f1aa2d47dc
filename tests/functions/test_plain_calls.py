"""The short way of _core: taken by plain arguments alone, with the bytes of the general way."""

from __future__ import annotations

import numpy as np
import pytest
from cases import same_bytes

import cbn
from cbn import _core
from cbn.cache import NO_OPTIONS, BatchNormCache

SHAPES = [(1, 1), (2, 3), (32, 64), (1, 5), (300, 17), (4097, 2), (70, 1025)]
# Also in C order with more dimensions, or the channels first.
CASES = [*((shape, 1) for shape in SHAPES), ((5, 40), 0), ((1, 7), 0), ((3, 4, 5), 1)]
CASES += [((3, 4, 5), 0), ((3, 4, 5), -1), ((2, 3, 8, 8), -3), ((32, 24, 7, 7), 1)]
CASES += [((4, 3, 1, 1), 1), ((2, 1, 6, 5, 4), 1), ((16, 40, 9, 9), 1)]
DTYPES = [np.float32, np.float64]


def data(shape, dtype, parameters=np.float32, axis=1):
    rng = np.random.default_rng(shape)
    x, dy = rng.normal(1, 2, (2, *shape)).astype(dtype)
    gamma, beta = rng.normal(0, 1, (2, shape[axis])).astype(parameters)
    return x, dy, gamma, beta


def everything(x, dy, gamma, beta, **general):
    """All results of the functions that have a short way, which no NumPy integer takes."""
    y, cache = cbn.batch_norm_forward(x, gamma, beta, **general)
    dx, dgamma, dbeta = cbn.batch_norm_backward(dy, cache)
    inference = cbn.batch_norm_inference(x, cache.mean, cache.var, gamma, beta, **general)
    back = cbn.batch_norm_inference_backward(dy, x, cache.mean, cache.var, gamma, **general)
    names = ("y", "mean", "mean_low", "var", "invstd", "dx", "dgamma", "dbeta", "inference")
    names += ("inference dx", "inference dgamma", "inference dbeta")
    statistics = (cache.mean, cache.mean_low, cache.var, cache.invstd)
    return dict(zip(names, (y, *statistics, dx, dgamma, dbeta, inference, *back), strict=True))


@pytest.mark.parametrize("parameters", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, axis", CASES)
def test_both_ways_give_the_same_bytes(shape, axis, dtype, parameters):
    x, dy, gamma, beta = data(shape, dtype, parameters, axis)
    for g, b in ((gamma, beta), (gamma, None), (None, beta), (None, None)):
        short = everything(x, dy, g, b, axis=axis)
        general = everything(x, dy, g, b, axis=np.int64(axis))
        for name in [name for name in short if short[name] is None]:
            assert short.pop(name) is general.pop(name)
        same_bytes(short, general)


@pytest.mark.parametrize("shape, axis", [*CASES, ((5, 3), None), ((5, 3), -1)])
def test_any_axis_takes_the_short_way(shape, axis, monkeypatch):
    monkeypatch.setattr("cbn._check.real_array", None)  # where the general way begins
    monkeypatch.setattr("cbn._check.unchanged", None)
    x, dy, gamma, beta = data(shape, np.float32, axis=1 if axis is None else axis)
    y, cache = cbn.batch_norm_forward(x, gamma, beta, axis=axis)
    channels = cache.axis
    assert y.shape == x.shape and channels == (1 if axis is None else axis % x.ndim)
    assert cache.count == x.size / x.shape[channels]
    out = np.empty_like(x)
    assert cbn.batch_norm_backward(dy, cache, out=out)[0] is out
    assert cbn.batch_norm_backward(dy, cache, out=dy)[0] is dy
    cbn.batch_norm_inference(x, cache.mean, cache.var, gamma, beta, axis=axis)
    cbn.batch_norm_inference_backward(x, x, cache.mean, cache.var, gamma, axis=axis)


def forward(x, gamma, beta, out, threads=1, axis=None):
    return _core.plain_forward(
        *(x, gamma, beta, axis, out, 1e-5, threads, BatchNormCache, NO_OPTIONS)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_arguments_take_the_short_way(dtype):
    x, dy, gamma, beta = data((32, 64), dtype)
    padded = np.zeros((32, 80), dtype)[:, 3:67]
    padded[...] = x
    for rows in (x, padded, x[::-1], x[::2]):
        out = np.empty(rows.shape, dtype)
        y, cache = forward(rows, gamma, None, out)
        assert y is out and type(cache) is BatchNormCache
        stats = cache._stats
        assert stats.dtype == np.float64 and not stats.flags.writeable
        dx = np.empty(rows.shape, dtype)
        back = _core.plain_backward(rows, cache, dx, 1, NO_OPTIONS)
        assert back[0] is dx and back[1].dtype == gamma.dtype and back[2] is None
        in_place = np.array(rows)
        mean, var = stats[0].copy(), stats[2].copy()
        assert (
            _core.plain_inference(*(in_place, mean, var, None, beta, None, in_place, 0.1, 1))
            is in_place
        )


def unusual():
    x, _, gamma, beta = data((32, 64), np.float32)
    swapped = x.astype(">f4")
    read_only = np.empty_like(x)
    read_only.flags.writeable = False
    unaligned = np.empty(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    memory = np.empty((33, 64), np.float32)
    memory[:32] = x
    long = np.ones(x.size, np.float32)
    return {
        "list": (x.tolist(), gamma, beta, None),
        "subclass": (x.view(np.matrix), gamma, beta, None),
        "masked": (np.ma.array(x), gamma, beta, None),
        "half": (x.astype(np.float16), gamma, beta, None),
        "integers": (x.astype(int), gamma, beta, None),
        "byte-swapped": (swapped, gamma, beta, None),
        "unaligned": (unaligned, gamma, beta, None),
        "Fortran": (np.asfortranarray(x), gamma, beta, None),
        "reversed columns": (x[:, ::-1], gamma, beta, None),
        "three dimensions": (x[None], gamma, beta, None),
        "no rows": (x[:0], gamma, beta, None),
        "gamma too short": (x, gamma[:-1], beta, None),
        "gamma of integers": (x, gamma.astype(int), beta, None),
        "gamma strided": (x, np.repeat(gamma, 2)[::2], beta, None),
        "beta a scalar": (x, gamma, 1.0, None),
        "beta byte-swapped": (x, gamma, beta.astype(">f8"), None),
        "out read-only": (x, gamma, beta, read_only),
        "out of another dtype": (x, gamma, beta, np.empty(x.shape)),
        "out of another shape": (x, gamma, beta, np.empty_like(x[1:])),
        "out is x": (x, gamma, beta, x),
        "out overlaps": (memory[:32], gamma, beta, memory[1:]),
        "out overlaps itself": (
            x,
            gamma,
            beta,
            np.lib.stride_tricks.as_strided(long, x.shape, (128, 4)),
        ),
        "out has gamma": (x, long[:64], beta, long.reshape(x.shape)),
        "out a list": (x, gamma, beta, [[0.0]]),
    }


@pytest.mark.parametrize("name", unusual())
def test_anything_else_is_declined_untouched(name):
    x, gamma, beta, out = unusual()[name]
    before = None if out is None else np.array(out)
    assert forward(x, gamma, beta, out) is None
    if out is not None:
        np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("axis", [None, 3, -4, 2**80, True, 1.0, "1"])
def test_an_axis_that_is_none_is_declined(axis):
    x, _, gamma, beta = data((4, 3, 5), np.float32)
    assert forward(x, gamma, beta, None, axis=axis) is None


def test_images_that_are_not_in_c_order_are_declined():
    x, dy, gamma, beta = data((4, 6, 8, 10), np.float32)
    for other in (x.transpose(0, 1, 3, 2), x[:, :, ::2], x[::-1], np.asfortranarray(x)):
        assert forward(other, gamma, beta, None, axis=1) is None
    _, cache = forward(x, gamma, beta, None, axis=1)
    for other in (dy[::-1], dy.reshape(4, 6, 80), dy.reshape(4, 6, 10, 8), np.asfortranarray(dy)):
        assert _core.plain_backward(other, cache, None, 1, NO_OPTIONS) is None
        assert _core.plain_backward(dy, cache, other, 1, NO_OPTIONS) is None
    memory = np.empty(2 * x.size, np.float32)
    overlaps = memory[x.size - 1 : 2 * x.size - 1].reshape(x.shape)
    first = memory[: x.size].reshape(x.shape)
    assert forward(first, gamma, beta, overlaps, axis=1) is None
    assert forward(x, memory[:6], beta, first, axis=1) is None


def test_a_cache_whose_image_has_changed_its_shape_is_declined():
    x, dy, gamma, beta = data((4, 3, 8, 8), np.float32)
    x = x.copy()
    _, cache = forward(x, gamma, beta, None, axis=1)
    x.resize((2, 3, 16, 8), refcheck=False)
    assert _core.plain_backward(dy.reshape(x.shape), cache, None, 1, NO_OPTIONS) is None
    with pytest.raises(ValueError, match=r"cache: expected x of shape \(4, 3, 8, 8\)"):
        cbn.batch_norm_backward(dy.reshape(x.shape), cache)


def test_a_cache_whose_x_has_changed_its_shape_is_declined():
    x, dy, gamma, beta = data((32, 64), np.float32)
    _, cache = cbn.batch_norm_forward(x, gamma, beta)
    other = BatchNormCache(
        *(x.reshape(64, 32), cache._stats, None, None, None, 1e-5, 1, 64, NO_OPTIONS)
    )
    assert _core.plain_backward(dy.reshape(64, 32), other, None, 1, NO_OPTIONS) is None


def test_a_negative_variance_is_declined():
    x, dy, _, beta = data((32, 64), np.float32)
    mean, var = np.zeros(64), np.ones(64)
    var[63] = -1e-300
    assert _core.plain_inference(x, mean, var, None, beta, None, None, 1e-5, 1) is None


@pytest.mark.parametrize(
    "shape, asked", [((100, 100), 0), ((256, 128), 1), ((8, 8, 8, 8), 0), ((8, 8, 32, 16), 1)]
)
def test_threads_are_asked_for_where_they_may_pay(shape, asked):
    x, dy, gamma, beta = data(shape, np.float32)
    calls = []
    forward(x, gamma, beta, None, lambda: calls.append(1) or 2, axis=1)
    assert len(calls) == asked


def test_mean_and_mean_low_are_the_mean_to_twice_the_precision():
    x = 1e12 + np.random.default_rng(0).normal(0, 1, (1000, 3))
    _, cache = cbn.batch_norm_forward(x)
    rest = (x - cache.mean).mean(0)  # the differences are exact
    assert np.all(cache.mean_low != 0)
    np.testing.assert_allclose(cache.mean_low, rest, rtol=1e-6)
    assert not cache.mean_low.flags.writeable


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"momentum": None, "correction": 0}, {"momentum": 1}])
def test_a_layer_averages_the_short_way(options, dtype, monkeypatch):
    x = data((32, 64), np.float32)[0]
    x[0, 1], x[0, 2], x[0, 3] = np.inf, np.nan, 1e30
    layer, general = (cbn.BatchNorm(64, dtype=dtype, **options) for _ in range(2))
    monkeypatch.setattr(_core, "plain_average", lambda *_: False)
    for factor in (1, 2, 3):
        general(factor * x)
    monkeypatch.undo()
    monkeypatch.setattr("cbn.layer.averaged", None)
    for factor in (1, 2, 3):
        layer(factor * x)
    assert layer.num_batches_tracked == 3
    same_bytes(layer.state_dict(), general.state_dict())


def unusual_statistics():
    read_only = np.ones(64, np.float32)
    read_only.flags.writeable = False
    memory = np.ones(100, np.float32)
    return {
        "half": (np.ones(64, np.float16), np.ones(64, np.float16)),
        "two dtypes": (np.ones(64, np.float32), np.ones(64)),
        "strided": (np.ones(128, np.float32)[::2], np.ones(64, np.float32)),
        "too short": (np.ones(64, np.float32), np.ones(63, np.float32)),
        "none": (None, np.ones(64, np.float32)),
        "a list": (np.ones(64, np.float32), [1.0] * 64),
        "read-only": (np.ones(64, np.float32), read_only),
        "overlapping": (memory[:64], memory[36:]),
    }


@pytest.mark.parametrize("name", unusual_statistics())
def test_other_running_statistics_are_declined_untouched(name):
    x, _, gamma, beta = data((32, 64), np.float32)
    _, cache = forward(x, gamma, beta, None)
    batches = np.zeros((), np.int64)
    for both in (unusual_statistics()[name], unusual_statistics()[name][::-1]):
        assert _core.plain_average(*both, batches, cache, 0.1, 1.0) is False
        assert all(a is None or np.all(np.equal(a, 1)) for a in both)
    assert batches == 0


@pytest.mark.parametrize(
    "mistake, message",
    [
        ({"momentum": 1.5}, "momentum: expected a number from 0 to 1, got 1.5"),
        ({"correction": 32}, "correction: expected less than the count of values, 32, got 32"),
        ({"running_var": np.ones(3, np.float32)}, r"running_var: expected shape \(64,\)"),
    ],
)
def test_a_layer_with_a_mistake_changes_nothing(mistake, message):
    x = data((32, 64), np.float32)[0]
    layer = cbn.BatchNorm(64)
    layer(x)
    before = layer._saved
    for name, value in mistake.items():
        setattr(layer, name, value)
    state = layer.state_dict()
    with pytest.raises(ValueError, match=message):
        layer(x + 1)
    assert layer._saved is before
    same_bytes(layer.state_dict(), state)
