"""docs/conventions.md is right about every framework at hand: one training step in each."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path

import numpy as np
import pytest
from cases import generator
from tolerances import PEER_RTOL

import cbn
from cbn.interop import cs231n

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conventions.md"
CHANNELS = 3
GAMMA = np.array([0.5, 1.0, 2.0], np.float32)
BETA = np.array([0.0, -1.0, 1.0], np.float32)


class Row:
    """What the page says of a framework."""

    def __init__(self, cells):
        axis, eps, momentum, weighs, variance, parameters, statistics = cells
        self.axis = int(axis)
        self.eps_name, self.eps = re.fullmatch(r"`(\w+)=(\S+)`", eps).groups()
        self.eps = float(self.eps)
        self.momentum = float(momentum)
        self.decay = {"new": 1 - self.momentum, "old": self.momentum}[weighs]
        self.correction = {"biased": 0, "unbiased": 1}[variance]
        self.names = re.findall(r"`(\w+)`", parameters + statistics)


def rows():
    text = PAGE.read_text(encoding="utf-8")
    table = text.split("\n\n")[2]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {name: Row(cells) for name, *cells in lines if name != "cbn"}


ROWS = rows()


def by_torch(x, row):
    torch = pytest.importorskip("torch")
    layer = torch.nn.BatchNorm2d(CHANNELS)
    assert (layer.eps, layer.momentum) == (row.eps, row.momentum)
    layer.load_state_dict(
        dict(zip(row.names, map(torch.tensor, (GAMMA, BETA, [0.0] * 3, [1.0] * 3)), strict=True)),
        strict=False,
    )
    y = layer(torch.tensor(x)).detach().numpy()
    return y, *(layer.state_dict()[name].numpy() for name in row.names[2:])


def by_keras(x, row):
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    keras = pytest.importorskip("keras")
    layer = keras.layers.BatchNormalization()
    assert (layer.axis, layer.epsilon, layer.momentum) == (row.axis, row.eps, row.momentum)
    layer.build(x.shape)
    for name, value in zip(row.names, (GAMMA, BETA), strict=False):
        getattr(layer, name).assign(value)
    y = np.asarray(layer(x, training=True))
    return y, *(np.asarray(getattr(layer, name)) for name in row.names[2:])


def by_flax(x, row):
    linen = pytest.importorskip("flax.linen")
    layer = linen.BatchNorm(use_running_average=False)
    assert (layer.axis, layer.epsilon, layer.momentum) == (row.axis, row.eps, row.momentum)
    params = dict(zip(row.names, (GAMMA, BETA), strict=False))
    stats = dict(zip(row.names[2:], (np.zeros(3, "f"), np.ones(3, "f")), strict=True))
    state = {"params": params, "batch_stats": stats}
    y, new = layer.apply(state, x, mutable=["batch_stats"])
    return np.asarray(y), *(np.asarray(new["batch_stats"][name]) for name in row.names[2:])


def by_onnx(x, row):
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    defaults = onnx.defs.get_schema("BatchNormalization", 15)
    given = {name: a.default_value.f for name, a in defaults.attributes.items()}
    assert given[row.eps_name] == np.float32(row.eps)
    assert given["momentum"] == np.float32(row.momentum)
    assert [i.name for i in defaults.inputs[1:]] == row.names
    inputs = {"X": x, **dict(zip(row.names, (GAMMA, BETA, np.zeros(3, "f"), np.ones(3, "f"))))}  # noqa: B905
    outputs = ["Y", "running_mean", "running_var"]
    node = onnx.helper.make_node("BatchNormalization", list(inputs), outputs, training_mode=1)
    infos = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in (*inputs, *outputs)
    ]
    graph = onnx.helper.make_graph([node], "g", infos[:5], infos[5:])
    opset = onnx.helper.make_opsetid("", 15)
    model = onnx.helper.make_model(graph, opset_imports=[opset])
    return ReferenceEvaluator(model).run(None, inputs)


def by_cs231n(x, row):
    bn_param = {"mode": "train"}
    y, _ = cs231n.spatial_batchnorm_forward(x, GAMMA, BETA, bn_param)
    mean, var = (bn_param[name] for name in row.names[2:])
    # The course begins with zeros, the others with a variance of 1.
    return y, mean, var + row.decay


STEPS = {
    "PyTorch": by_torch,
    "Keras": by_keras,
    "Flax": by_flax,
    "ONNX": by_onnx,
    "cs231n": by_cs231n,
}


def test_every_framework_of_the_page_is_run():
    assert list(STEPS) == list(ROWS)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.filterwarnings("ignore")  # the frameworks' own
def test_one_step(name):
    row = ROWS[name]
    # Few values and a small variance, so that correction and eps show: tolerances.py.
    shape = [2, 3, 2]
    shape.insert(row.axis % 4, CHANNELS)
    x = (generator("conventions").normal(0.2, 0.5, shape)).astype(np.float32)
    y, mean, var = STEPS[name](x, row)

    rows = np.moveaxis(x.astype(np.float64), row.axis, -1).reshape(-1, CHANNELS)
    xhat = (rows - rows.mean(axis=0)) / np.sqrt(rows.var(axis=0) + row.eps)
    expected = (
        xhat * GAMMA + BETA,
        (1 - row.decay) * rows.mean(axis=0),
        row.decay + (1 - row.decay) * rows.var(axis=0, ddof=row.correction),
    )
    actual = np.moveaxis(y, row.axis, -1).reshape(-1, CHANNELS), mean, var
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=PEER_RTOL, atol=PEER_RTOL)

    bn = cbn.BatchNorm(
        CHANNELS, axis=row.axis, eps=row.eps, decay=row.decay, correction=row.correction
    )
    bn.gamma[...], bn.beta[...] = GAMMA, BETA
    for a, b in zip((bn(x), bn.running_mean, bn.running_var), (y, mean, var), strict=True):
        np.testing.assert_allclose(a, b, rtol=PEER_RTOL, atol=PEER_RTOL)


# The table "What else differs" --------------------------------------------------------------------

ONE_VALUE = np.full((1, 1, 1, CHANNELS), 5.0, np.float32)


def test_one_value_a_channel_is_refused_by_pytorch():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        torch.nn.BatchNorm2d(CHANNELS)(torch.tensor(np.moveaxis(ONE_VALUE, -1, 1)))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        cbn.BatchNorm(CHANNELS, axis=-1)(ONE_VALUE)


@pytest.mark.parametrize("name", ["Keras", "Flax"])
@pytest.mark.filterwarnings("ignore")
def test_one_value_a_channel_gives_beta(name):
    y, _, _ = STEPS[name](ONE_VALUE, ROWS[name])
    np.testing.assert_array_equal(y.ravel(), BETA)


@pytest.mark.filterwarnings("ignore")
def test_flax_subtracts_squares_and_has_a_mask():
    linen = pytest.importorskip("flax.linen")
    assert linen.BatchNorm().use_fast_variance
    assert "mask" in inspect.signature(linen.BatchNorm.__call__).parameters


@pytest.mark.filterwarnings("ignore")
def test_keras_has_a_mask():
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    keras = pytest.importorskip("keras")
    assert "mask" in inspect.signature(keras.layers.BatchNormalization.call).parameters


def test_pytorch_has_no_mask_and_one_switch_for_both_parameters():
    torch = pytest.importorskip("torch")
    assert "mask" not in inspect.signature(torch.nn.BatchNorm2d.forward).parameters
    layer = torch.nn.BatchNorm2d(CHANNELS, affine=False)
    assert layer.weight is None and layer.bias is None
