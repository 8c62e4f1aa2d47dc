"""cbn.interop.onnx beside onnx's node cases, its reference evaluator and the definition."""

from __future__ import annotations

import numpy as np
import pytest
from cases import generator, same_bytes, within
from tolerances import REFERENCE_RTOL, u, y_bound

import cbn

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install --group interop")
helper = pytest.importorskip("onnx.helper")
numpy_helper = pytest.importorskip("onnx.numpy_helper")
ReferenceEvaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
bridge = pytest.importorskip("cbn.interop.onnx")

INPUTS = ["X", "scale", "B", "input_mean", "input_var"]
NEWEST = onnx.defs.onnx_opset_version()
TRAINED = ["Y", "running_mean", "running_var"]


def node(outputs=("Y",), **attributes):
    return helper.make_node("BatchNormalization", INPUTS, list(outputs), **attributes)


def arguments(shape=(3, 4, 5, 2), dtype=np.float32, vector=None):
    rng = generator("onnx interop", shape)
    vector = shape[1:2] if vector is None else vector
    x = rng.normal(2, 3, shape).astype(dtype)
    scale, bias, mean = rng.normal(1, 1, (3, *vector)).astype(dtype)
    return x, scale, bias, mean, rng.uniform(0.5, 2, vector).astype(dtype)


def model(node, opset, dtype=np.float32):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    made = [helper.make_tensor_value_info(name, kind, None) for name in INPUTS]
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in node.output]
    graph = helper.make_graph([node], "one", made, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def node_cases():
    """What collect_testcases finds, without running every other operator's for it."""
    from onnx.backend.test.case import node
    from onnx.backend.test.case.node import batch_normalization  # noqa: F401

    return [case for case in node._NodeTestCases if case.name.startswith("test_batchnorm")]


@pytest.mark.parametrize("case", node_cases(), ids=lambda case: case.name)
def test_the_node_cases_of_onnx(case):
    (one,) = case.model.graph.node
    (opset,) = (entry.version for entry in case.model.opset_import)
    for inputs, outputs in case.data_sets:
        found = bridge.run_node(one, inputs, opset=opset)
        for a, right in zip(found, outputs, strict=True):
            assert a.dtype == right.dtype and a.shape == right.shape
            np.testing.assert_allclose(a, right, rtol=case.rtol, atol=case.atol)


def test_there_are_node_cases():
    assert len(node_cases()) == 4


@pytest.mark.parametrize("opset", [14, 15, NEWEST])
@pytest.mark.parametrize("training", [0, 1])
@pytest.mark.parametrize("shape", [(7, 3), (3, 4, 5, 2), (2, 3, 4)], ids=str)
def test_beside_the_reference_evaluator(opset, training, shape):
    settings = {"epsilon": 1e-2, "momentum": 0.75, "training_mode": training}
    one = node(TRAINED if training else ["Y"], **settings)
    args = arguments(shape, np.float64)
    feeds = dict(zip(INPUTS, args, strict=True))
    right = ReferenceEvaluator(model(one, opset, np.float64)).run(None, feeds)
    found = bridge.run_node(one, args, opset=opset)
    for a, b in zip(found, right, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=10 * REFERENCE_RTOL * (1 + abs(b).max()))


@pytest.mark.parametrize("opset", [7, 9, 13])
def test_old_opsets_train_when_more_outputs_are_asked_for(opset):
    args = x, scale, bias, mean, var = arguments(dtype=np.float64)
    (y,) = bridge.run_node(node(epsilon=0.5), args, opset=opset)
    epsilon = float(np.float32(0.5))
    same_bytes(y, cbn.batch_norm_inference(x, mean, var, scale, bias, axis=1, eps=epsilon))
    names = ["Y", "mean", "var", "saved_mean", "saved_var"]
    found = bridge.run_node(node(names, momentum=0.75), args, opset=opset)
    current = x.mean((0, 2, 3)), x.var((0, 2, 3))
    right = mean * 0.75 + current[0] / 4, var * 0.75 + current[1] / 4, *current
    for a, b in zip(found[1:], right, strict=True):
        np.testing.assert_allclose(a, b, rtol=REFERENCE_RTOL)
    some = bridge.run_node(node(["Y", "", "var"], momentum=0.75), args, opset=opset)
    assert len(some) == 3 and some[1] is None
    same_bytes(some[2], found[2])


@pytest.mark.parametrize("outputs", [("Y",), ("Y", "mean", "var")])
def test_spatial_0_has_statistics_of_each_place(outputs):
    args = arguments((6, 2, 3), np.float64, (2, 3))
    found = bridge.run_node(node(outputs, spatial=0), args, opset=7)
    x, scale, bias, mean, var = args
    current = (x.mean(0), x.var(0)) if len(outputs) > 1 else (mean, var)
    y = scale * (x - current[0]) / np.sqrt(current[1] + np.float32(1e-5)) + bias
    np.testing.assert_allclose(found[0], y, rtol=0, atol=1e-6)
    if len(outputs) > 1:
        assert found[1].shape == (2, 3)
        np.testing.assert_allclose(found[2], var * 0.9 + x.var(0) * 0.1, rtol=1e-6)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_types_with_float32_statistics(half):
    x, *vectors = arguments()
    x = x.astype(pytest.importorskip("ml_dtypes").bfloat16 if half == "bfloat16" else half)
    y, mean, var = bridge.run_node(node(TRAINED, training_mode=1), (x, *vectors), opset=15)
    assert y.dtype == x.dtype and mean.dtype == var.dtype == np.float32
    wide = x.astype(np.float64)
    right = 0.9 * vectors[3].astype(np.float64) + 0.1 * wide.var((0, 2, 3))
    np.testing.assert_allclose(var, right, rtol=1e-5)
    xhat = (wide - wide.mean((0, 2, 3), keepdims=True)) / np.sqrt(
        wide.var((0, 2, 3), keepdims=True) + np.float32(1e-5)
    )
    scale, bias = (a.astype(np.float64).reshape(-1, 1, 1) for a in vectors[:2])
    within(y.astype(np.float64), xhat * scale + bias, y_bound(x.dtype, scale, bias, xhat))


def test_one_dimension_is_one_channel():
    x, *vectors = arguments((5, 1))
    (y,) = bridge.run_node(node(), (x[:, 0], *vectors), opset=15)
    same_bytes(y, bridge.run_node(node(), (x, *vectors), opset=15)[0][:, 0])


def test_inputs_are_not_written():
    args = arguments()
    copies = [a.copy() for a in args]
    bridge.run_node(node(TRAINED, training_mode=1), args, opset=15)
    for a, copy in zip(args, copies, strict=True):
        same_bytes(a, copy)


def trained(dtype=np.float32, **options):
    bn = cbn.BatchNorm(4, axis=1, dtype=dtype, eps=0.5, **options)
    rng = generator("onnx layer")
    if bn.affine:
        bn.gamma[:], bn.beta[:] = rng.normal(size=(2, 4))
    bn(rng.normal(2, 3, (6, 4, 5)).astype(dtype))
    return bn


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_layer_goes_to_onnx_and_back(dtype, affine):
    bn = trained(dtype, affine=affine).eval()
    x = generator("onnx x").normal(2, 3, (6, 4, 5)).astype(dtype)
    one, tensors = bridge.to_node(bn, "X", "Y")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ends = [helper.make_tensor_value_info(name, kind, x.shape) for name in ("X", "Y")]
    graph = helper.make_graph([one], "layer", ends[:1], ends[1:], tensors)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(whole, full_check=True)
    (right,) = ReferenceEvaluator(whole).run(None, {"X": x})
    np.testing.assert_allclose(bn(x), right, rtol=0, atol=16 * u(dtype) * (1 + abs(right).max()))
    again = bridge.from_model(whole)["bn"]
    assert not again.training and again.dtype == dtype and again.eps == bn.eps
    same_bytes(again(x), bn(x))


def test_a_layer_in_training():
    bn = trained(correction=0, decay=0.75)
    one, tensors = bridge.to_node(bn, name="first")
    assert list(one.output) == ["Y", "first.running_mean", "first.running_var"]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
    again = bridge.from_node(one, values, opset=15)
    assert again.training and again.momentum == 0.25 and again.correction == 0
    x = generator("onnx training").normal(size=(5, 4)).astype(np.float32)
    y, mean, var = bridge.run_node(one, [x, *values.values()], opset=15)
    same_bytes(again(x), y)
    same_bytes(again.running_mean, mean)
    same_bytes(again.running_var, var)
    same_bytes(bn(x), y)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"axis": -1}, "axis=-1"),
        ({"track_running_stats": False}, "track_running_stats"),
        ({"activation": "relu"}, "activation"),
        ({"renorm": True}, "renorm"),
        ({"momentum": None}, "momentum=None"),
        ({}, "correction=1"),
    ],
)
def test_layers_that_onnx_cannot_express(options, text):
    with pytest.raises(ValueError, match=f"bn: expected .*{text}"):
        bridge.to_node(cbn.BatchNorm(4, **options))
    with pytest.raises(TypeError, match="bn: expected BatchNorm"):
        bridge.to_node(None)


def test_bad_nodes():
    args = arguments()
    cases = [
        (helper.make_node("Relu", ["X"], ["Y"]), 15, "node: expected a BatchNormalization"),
        (node(), 6, "opset: expected 7 or newer, got 6"),
        (node(training_mode=1), 9, "node: expected the attributes"),
        (node(spatial=1), 9, "node: expected the attributes"),
        (node(TRAINED), 15, "node: expected 1 to 1 outputs"),
        (node([*TRAINED, "more"], training_mode=1), 15, "node: expected 1 to 3 outputs"),
    ]
    for one, opset, text in cases:
        with pytest.raises(ValueError, match=text):
            bridge.run_node(one, args, opset=opset)
    with pytest.raises(ValueError, match="inputs: expected X"):
        bridge.run_node(node(), args[:4], opset=15)
    with pytest.raises(ValueError, match="input_mean: expected shape"):
        bridge.run_node(node(), (*args[:3], args[3][:2], args[4]), opset=15)
    with pytest.raises(ValueError, match="initializers: expected 'B' for B"):
        bridge.from_node(node(), {"scale": args[1]}, opset=15)
    with pytest.raises(ValueError, match="spatial"):
        bridge.from_node(node(spatial=0), {}, opset=7)


def test_without_onnx_nodes_are_still_run(run_python):
    """By anything with the attributes of a node; only onnx's own tensors need onnx."""
    code = """
import sys
sys.modules["onnx"] = None
from types import SimpleNamespace
import numpy as np
import cbn
from cbn.interop.onnx import run_node, to_node
node = SimpleNamespace(op_type="BatchNormalization", attribute=[], output=["Y"])
print(run_node(node, [np.ones((2, 1)), *np.ones((4, 1))], opset=15)[0].ravel())
try:
    to_node(cbn.BatchNorm(1).eval())
except ImportError as error:
    print(error)
"""
    run = run_python("-c", code)
    assert run.stdout.splitlines()[0] == "[1. 1.]", run.stderr
    assert 'pip install "cbn[onnx]"' in run.stdout
