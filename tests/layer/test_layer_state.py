"""cbn/layer.py: state dictionaries, its own and those of Keras, Flax and ONNX."""

from __future__ import annotations

import types

import ml_dtypes
import numpy as np
import pytest
from cases import generator, same_bytes

from cbn import BatchNorm

C = 4
OTHERS = {
    "load_keras": ("gamma", "beta", "moving_mean", "moving_variance"),
    "load_flax": ("scale", "bias", "mean", "var"),
    "load_onnx": ("scale", "B", "input_mean", "input_var"),
}
ATTRIBUTES = ("gamma", "beta", "running_mean", "running_var")


def values(dtype=np.float32):
    """gamma, beta, mean and var."""
    rng = generator("state")
    return [*rng.normal(size=(3, C)).astype(dtype), rng.uniform(0.5, 2, C).astype(dtype)]


def state():
    keys = ("weight", "bias", "running_mean", "running_var")
    return dict(zip(keys, values(), strict=True)) | {"num_batches_tracked": np.array(6)}


def holds(bn, arrays):
    for name, value in zip(ATTRIBUTES, arrays, strict=True):
        same_bytes(getattr(bn, name), np.asarray(value, np.float32))


def test_a_new_layers_state():
    given = BatchNorm(C).state_dict()
    assert list(given) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    ones, zeros = np.ones(C, np.float32), np.zeros(C, np.float32)
    for array, right in zip(given.values(), (ones, zeros, zeros, ones, np.array(0)), strict=True):
        same_bytes(array, right)
    assert given["num_batches_tracked"].shape == ()
    assert given["num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_there_and_back(affine, track):
    options = {"affine": affine, "track_running_stats": track}
    bn, twin = BatchNorm(C, **options), BatchNorm(C, **options)
    bn(generator("x").normal(size=(5, C)))
    assert ("weight" in bn.state_dict(), "running_mean" in bn.state_dict()) == (affine, track)
    twin.load_state_dict(bn.state_dict())
    same_bytes(twin.state_dict(), bn.state_dict())


def test_the_state_is_a_copy():
    bn = BatchNorm(C)
    out = bn.state_dict()
    out["weight"][...] = 7
    assert np.all(bn.gamma == 1)
    given = state()
    bn.load_state_dict(given)
    given["running_mean"][...] = 7
    holds(bn, values())


def test_loading_writes_into_the_layers_own_arrays():
    """An optimizer that holds gamma goes on with the loaded one."""
    bn = BatchNorm(C, dtype=np.float64)
    before = [getattr(bn, name) for name in ATTRIBUTES]
    assert bn.load_state_dict(state()) is None
    assert all(getattr(bn, name) is a for name, a in zip(ATTRIBUTES, before, strict=True))
    assert bn.gamma.dtype == np.float64 and bn.num_batches_tracked == 6
    assert type(bn.num_batches_tracked) is int


@pytest.mark.parametrize("kind", [list, ml_dtypes.bfloat16, np.float16, ">f8", int])
def test_whatever_numpy_makes_an_array_of(kind):
    def as_kind(a):
        return a.tolist() if kind is list else a.astype(kind)

    given = {name: as_kind(a) for name, a in state().items() if name != "num_batches_tracked"}
    bn = BatchNorm(C)
    bn.load_state_dict(types.MappingProxyType(given | {"num_batches_tracked": 3}))
    holds(bn, given.values())
    assert bn.num_batches_tracked == 3


@pytest.mark.parametrize("loader", OTHERS)
def test_other_libraries(loader):
    bn = BatchNorm(C)
    bn(generator("x").normal(size=(5, C)))
    given = dict(zip(OTHERS[loader], values(), strict=True))
    getattr(bn, loader)(given)
    holds(bn, values())
    assert bn.num_batches_tracked == 1


def test_nested_flax():
    bn = BatchNorm(C)
    gamma, beta, mean, var = values()
    statistics = {"mean": mean, "var": var}
    bn.load_flax({"params": {"scale": gamma, "bias": beta}, "batch_stats": statistics})
    holds(bn, values())
    plain = BatchNorm(C, affine=False)
    plain.load_flax({"batch_stats": statistics})
    same_bytes(plain.running_var, var)
    for wrong in ({"batch_stats": mean}, {"batch_stats": statistics, "more": {}}):
        with pytest.raises(ValueError, match="^state: expected dictionaries under"):
            bn.load_flax(wrong)
    with pytest.raises(ValueError, match="^state: expected the keys scale, bias, mean, var, got"):
        bn.load_flax({"batch_stats": statistics})
    with pytest.raises(ValueError, match="^state: expected the keys scale, bias, mean, var, got"):
        bn.load_flax({"batch_stats": {"BatchNorm_0": statistics}})
    holds(bn, values())


def without(name):
    return {key: value for key, value in state().items() if key != name}


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (None, TypeError, "^state: expected a dictionary, got NoneType"),
        ([], TypeError, "^state: expected a dictionary, got list"),
        (
            without("bias"),
            ValueError,
            "^state: expected the keys weight, bias, .*, got weight, run",
        ),
        (without("num_batches_tracked"), ValueError, "^state: expected the keys"),
        ({}, ValueError, "^state: expected the keys .*, got none"),
        (state() | {"more": 1}, ValueError, "^state: expected the keys .*, got .*more"),
        (state() | {1: 1}, ValueError, "^state: expected the keys .*, got .*1"),
        (state() | {"bias": np.ones(C + 1)}, ValueError, r"^bias: expected shape \(4,\), got"),
        (state() | {"weight": np.ones((1, C))}, ValueError, r"^weight: expected shape \(4,\), got"),
        (state() | {"running_var": 1.0}, ValueError, r"^running_var: expected shape \(4,\), got"),
        (state() | {"running_mean": ["a"] * C}, TypeError, "^running_mean: expected a real dtype"),
        (state() | {"running_mean": np.ones(C) * 1j}, TypeError, "^running_mean: expected a real"),
        (state() | {"running_mean": [[1], [1, 2]]}, ValueError, "^running_mean: expected an array"),
        (
            state() | {"running_var": np.array([1, 1, -2.0, 1])},
            ValueError,
            "^running_var: expected values >= 0, got -2.0 in channel 2",
        ),
        (state() | {"num_batches_tracked": -1}, ValueError, "^num_batches_tracked: expected"),
        (state() | {"num_batches_tracked": 2**63}, ValueError, "^num_batches_tracked: expected"),
        (state() | {"num_batches_tracked": 1.5}, TypeError, "^num_batches_tracked: expected"),
        (state() | {"num_batches_tracked": [1, 2]}, TypeError, "^num_batches_tracked: expected"),
    ],
)
def test_a_bad_state_changes_nothing(given, error, text):
    bn = BatchNorm(C)
    before = bn.state_dict()
    with pytest.raises(error, match=text):
        bn.load_state_dict(given)
    same_bytes(bn.state_dict(), before)


def test_an_attribute_that_cannot_be_written_changes_nothing():
    bn = BatchNorm(C)
    bn.running_var.flags.writeable = False
    before = bn.state_dict()
    with pytest.raises(ValueError, match="^running_var: expected a writable"):
        bn.load_state_dict(state())
    same_bytes(bn.state_dict(), before)


@pytest.mark.parametrize("loader", OTHERS)
def test_loaders_are_as_strict(loader):
    bn = BatchNorm(C)
    before = bn.state_dict()
    given = dict(zip(OTHERS[loader], values(), strict=True))
    for wrong in (given | {"epsilon": 1e-3}, {}, given | {OTHERS[loader][0]: np.ones(3)}):
        with pytest.raises(ValueError):
            getattr(bn, loader)(wrong)
    same_bytes(bn.state_dict(), before)
