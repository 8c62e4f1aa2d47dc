"""Per-channel arguments of every function, method and dictionary: of another length or dtype they
raise, and nothing that was passed or is held has changed.
"""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
from cases import Batch

import cbn
from cbn import BackwardSums, BatchNorm, Moments, fold, moments
from cbn.interop import cs231n

N, C = 6, 4
SHAPES = [(0,), (C - 1,), (C + 1,), (100 * C,), (1, C), (C, 1), (2, C), ()]
DTYPES = [int, object, complex, bool, "U1", "M8[s]"]
STATE = ("weight", "bias", "running_mean", "running_var")


def b():
    batch = Batch((N, C), np.float32)
    batch.m = Moments.from_batch(batch.x)
    batch.cache = cbn.batch_norm_forward(batch.x, batch.gamma, batch.beta)[1]
    return batch


def of(function, *names):
    """A call of a function with the arrays of a Batch by the names of its parameters."""

    def arguments():
        batch = b()
        given = {name: getattr(batch, name) for name in names if hasattr(batch, name)}
        extra = {
            **dict.fromkeys(("gamma_dot", "ddgamma", "bias"), batch.gamma.copy()),
            **dict.fromkeys(("beta_dot", "ddbeta", "mean_low"), batch.beta.copy()),
            **dict.fromkeys(("x_dot", "ddx"), batch.dy.copy()),
            **dict.fromkeys(("running_mean", "sum_dy"), batch.mean.copy()),
            **dict.fromkeys(("running_var", "sum_dy_xhat", "m2"), batch.var.copy()),
            "count": 3.0,
            "weight": np.ones((C, C, 3) if "conv" in function.__name__ else (C, C), np.float32),
        }
        return given | {name: extra[name] for name in names if name not in given}

    vectors = [name for name in names if name not in ROWS]
    return function, arguments, vectors


ROWS = {"x", "dy", "x_dot", "ddx", "cache", "m", "count", "weight"}
POPULATION = ("mean", "var", "gamma", "beta")
FOLDS = (fold.into_linear, fold.into_conv, fold.into_conv_transpose, fold.before_linear)


def layer(**options):
    bn = BatchNorm(C, **options)
    bn(b().x)
    return bn


def loads(method, keys):
    def call(**given):
        bn = layer()
        before = contents(bn)
        try:
            getattr(bn, method)(given)
        finally:
            assert contents(bn) == before

    def arguments():
        return {key: np.ones(C, np.float32) for key in keys} | (
            {"num_batches_tracked": 1} if method == "load_state_dict" else {}
        )

    return call, arguments, list(keys)


def attributes(training, **options):
    """A layer whose attributes were replaced by the user."""

    def call(**given):
        bn = layer(**options).train(training)
        vars(bn).update(given)
        before = contents(bn)
        try:
            bn(b().x)
        finally:
            assert contents(bn) == before

    names = ("gamma", "beta", "running_mean", "running_var")
    return call, lambda: {name: np.ones(C, np.float32) for name in names}, list(names)


def course(mode):
    def call(gamma, beta, **running):
        return cs231n.batchnorm_forward(b().x, gamma, beta, running | {"mode": mode})

    names = ("gamma", "beta", "running_mean", "running_var")
    return call, lambda: {name: np.ones(C, np.float32) for name in names}, list(names)


def renorm(running_mean, running_var):
    return moments.renormalization(b().m, running_mean, running_var, 1e-5, 3.0, 5.0)


CALLS = {
    "forward": of(cbn.batch_norm_forward, "x", "gamma", "beta"),
    "inference": of(cbn.batch_norm_inference, "x", *POPULATION),
    "inference_backward": of(cbn.batch_norm_inference_backward, "dy", "x", *POPULATION[:3]),
    "inference_cache": of(cbn.batch_norm_inference_cache, "x", *POPULATION),
    "normalize": of(cbn.batch_norm_normalize, "x", "m", "gamma", "beta"),
    "jvp": of(cbn.batch_norm_jvp, "x_dot", "cache", "gamma_dot", "beta_dot"),
    "double_backward": of(
        cbn.batch_norm_double_backward, "ddx", "dy", "cache", "ddgamma", "ddbeta"
    ),
    "Moments": of(Moments, "count", "mean", "m2", "mean_low"),
    "BackwardSums": of(BackwardSums, "count", "sum_dy", "sum_dy_xhat"),
    "update_running_stats": of(cbn.update_running_stats, "running_mean", "running_var", "m"),
    "renormalization": (renorm, lambda: {"running_mean": np.ones(C), "running_var": np.ones(C)},
                        ["running_mean", "running_var"]),
    **{f"fold.{f.__name__}": of(f, "weight", "bias", *POPULATION) for f in FOLDS},
    "load_state_dict": loads("load_state_dict", STATE),
    "load_keras": loads("load_keras", ("gamma", "beta", "moving_mean", "moving_variance")),
    "load_flax": loads("load_flax", ("scale", "bias", "mean", "var")),
    "load_onnx": loads("load_onnx", ("scale", "B", "input_mean", "input_var")),
    "layer, training": attributes(True),
    "layer, renorm": attributes(True, renorm=True),
    "layer, evaluation": attributes(False),
    "cs231n, train": course("train"),
    "cs231n, test": course("test"),
}  # fmt: skip

CASES = [pytest.param(call, name, id=f"{call}-{name}") for call in CALLS for name in CALLS[call][2]]


def contents(value):
    """The bytes of every array in reach."""
    if isinstance(value, BatchNorm):
        value = value.state_dict()
    if isinstance(value, Moments):
        value = {"mean": value.mean, "m2": value.m2}
    if isinstance(value, dict):
        return {name: contents(part) for name, part in value.items()}
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.tobytes()
    return None


def refused(call, name, value):
    function, make, _ = CALLS[call]
    arguments = make() | {name: value}
    before = contents(arguments)
    with pytest.raises((ValueError, TypeError)) as caught:
        function(**arguments)
    assert re.match(r"\w+: expected .*, got ", str(caught.value), flags=re.DOTALL)
    assert contents(arguments) == before


def test_every_function_with_per_channel_arguments_is_here():
    """Public ones with such a parameter and no row in CALLS would not be tested."""
    vectors = {name for _, _, names in CALLS.values() for name in names}
    found = {getattr(cbn, name) for name in cbn.__all__ if inspect.isfunction(getattr(cbn, name))}
    found |= {
        f for _, f in inspect.getmembers(fold, inspect.isfunction) if f.__module__ == "cbn.fold"
    }
    tested = {function for function, _, _ in CALLS.values()}
    for function in found - tested:
        if not function.__name__.startswith("_"):
            assert not vectors & set(inspect.signature(function).parameters), function


@pytest.mark.parametrize("call", CALLS)
def test_the_arguments_are_good_as_they_are(call):
    function, make, names = CALLS[call]
    assert set(names) <= set(make())
    if call.startswith("layer"):
        return  # which asserts that it changes nothing
    if call.startswith("load"):
        with pytest.raises(AssertionError):
            function(**make())
        return
    function(**make())


@pytest.mark.parametrize("call, name", CASES)
def test_another_shape(call, name):
    for shape in SHAPES:
        for dtype in (np.float32, np.float64):
            refused(call, name, np.ones(shape, dtype))


@pytest.mark.parametrize("call, name", CASES)
def test_another_dtype(call, name):
    # Whatever NumPy can convert is loaded, and the zeros of the course may be integers.
    integers = call.startswith("load") or (call.startswith("cs231n") and name.startswith("running"))
    for dtype in DTYPES:
        if not (integers and np.dtype(dtype).kind in "bi"):
            value = np.ones(C, dtype) if dtype != "M8[s]" else np.zeros(C, dtype)
            refused(call, name, value)


@pytest.mark.parametrize("name", ["mask", "sample_weight"])
@pytest.mark.parametrize("length", [0, N - 1, N + 1, 100 * N])
@pytest.mark.parametrize(
    "call",
    [
        lambda x, **given: cbn.batch_norm_forward(x, **given),
        lambda x, **given: Moments.from_batch(x, **given),
        lambda x, **given: Moments(0, np.zeros(C), np.zeros(C)).update(x, **given),
        lambda x, **given: BatchNorm(C)(x, **given),
    ],
)
def test_arguments_per_position(call, name, length):
    value = np.ones(length, bool if name == "mask" else float)
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got \({length},\)"):
        call(b().x, **{name: value})


@pytest.mark.parametrize("length", [0, N - 1, N + 1])
def test_the_mask_of_inference(length):
    batch = b()
    for function in (cbn.batch_norm_inference, cbn.batch_norm_inference_cache):
        with pytest.raises(ValueError, match="^mask: expected"):
            function(batch.x, batch.mean, batch.var, mask=np.ones(length, bool))


@pytest.mark.parametrize("channels", [0, C - 1, C + 1, 100 * C])
def test_moments_and_sums_of_other_channels(channels):
    batch = b()
    zeros = np.zeros(channels)
    m, s = Moments(3, zeros, zeros), BackwardSums(3, zeros, zeros)
    calls = [
        lambda: cbn.batch_norm_normalize(batch.x, m),
        lambda: cbn.batch_norm_backward_apply(batch.dy, batch.cache, s),
        lambda: batch.m.merge(m),
        lambda: BackwardSums.from_batch(batch.dy, batch.cache).merge(s),
        lambda: cbn.update_running_stats(batch.mean, batch.var, m),
    ]
    before = contents(vars(batch))
    for call in calls:
        with pytest.raises(ValueError, match=r"^\w+: expected .*, got "):
            call()
    assert contents(vars(batch)) == before


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")
@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "relu"}, {"virtual_batch_size": 7}, {"sample_weight": np.arange(20.0 * N)}],
    ids=list,
)
def test_a_cache_whose_x_has_changed(options):
    """The statistics are of C channels; to walk through 20 N of them would leave the array."""
    x = np.random.default_rng(0).normal(size=(20 * N, C)).astype(np.float32)
    y, cache = cbn.batch_norm_forward(x, **options)
    sums = None if options else BackwardSums.from_batch(y, cache)
    for name in ("x", "axis", "count", "_stats"):
        with pytest.raises(AttributeError):
            setattr(cache, name, getattr(cache, name))
    cache.x.resize(cache.x.shape[::-1], refcheck=False)
    for dtype in (np.float32, np.float64):
        dy = np.ones(cache.x.shape, dtype)
        with pytest.raises(ValueError, match="^cache: expected x of shape .*, got "):
            cbn.batch_norm_backward(dy, cache)
        if options:
            continue
        calls = [
            lambda dy=dy: cbn.batch_norm_jvp(dy, cache),
            lambda dy=dy: cbn.batch_norm_double_backward(dy, dy, cache),
            lambda dy=dy: cbn.batch_norm_backward_staged(dy, cache),
            lambda dy=dy: BackwardSums.from_batch(dy, cache),
            lambda dy=dy: cbn.batch_norm_backward_apply(dy, cache, sums),
            lambda: cbn.batch_norm_jacobian(cache),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="^cache: expected x of shape .*, got "):
                call()
