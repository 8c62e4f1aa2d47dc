"""ONNX's BatchNormalization: run it, read layers from models, write layers as nodes.

Opsets 7 to the newest: until 8 with the attribute ``spatial``, until 13 in training mode when more
than one output is asked for, from 14 on by ``training_mode``. momentum weighs the OLD value, the
variance is the biased one, channels are on axis 1. The onnx package is needed for tensors in its
own format alone; nodes and models are looked at, whoever made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbn import _check, _check_state
from cbn.functional import batch_norm_forward, batch_norm_inference
from cbn.interop._extra import extra
from cbn.layer import BatchNorm
from cbn.moments import Moments, update_running_stats

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

__all__ = ["batch_normalization", "from_model", "from_node", "run_node", "to_node"]

_INPUTS = ("scale", "B", "input_mean", "input_var")
_FIRST, _TRAINING_MODE, _SPATIAL_ENDS = 7, 14, 9


def batch_normalization(
    X: ArrayLike,
    scale: ArrayLike,
    B: ArrayLike,
    input_mean: ArrayLike,
    input_var: ArrayLike,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
) -> tuple[NDArray, ...]:
    """The operator with the attributes of all opsets.

    Parameters
    ----------
    X : array_like, shape (N, C, ...) or (N,)
        One dimension counts as one channel.
    scale, B, input_mean, input_var : array_like, shape (C,)
        Of any floating dtype; with ``spatial=0`` of X's shape without N.
    epsilon : float
    momentum : float
        Weight of the OLD running statistics.
    training_mode : int
        1 to normalize by the batch.
    spatial : int
        0 for statistics of each place of (C, ...) by itself, as opsets 7 and 8 have it.

    Returns
    -------
    Y : ndarray
        Of X's shape and dtype.
    running_mean, running_var, current_mean, current_var : ndarray, shape (C,)
        Only in training mode, in the dtypes of input_mean and input_var.

    Raises
    ------
    ValueError, TypeError
        As `cbn.batch_norm_forward`.
    """
    x = _check.real_array("X", X)
    shape = x.shape
    flat = x.reshape(-1, 1) if x.ndim == 1 else x if spatial else x.reshape(len(x), -1)
    channels = flat.shape[1] if flat.ndim > 1 else 0
    values = (scale, B, input_mean, input_var)
    if spatial:
        arrays = [np.asarray(value) for value in values]
    else:
        given = (
            _check.same_shape(n, v, shape[1:], "X") for n, v in zip(_INPUTS, values, strict=True)
        )
        arrays = [np.ravel(array) for array in given]
    for name, array in zip(_INPUTS, arrays, strict=True):
        _check.parameter(name, array, channels)
    gamma, beta, mean, var = arrays
    options = {"axis": 1, "eps": epsilon}
    if not training_mode:
        return (batch_norm_inference(flat, mean, var, gamma, beta, **options).reshape(shape),)
    y, cache = batch_norm_forward(flat, gamma, beta, **options)
    running = mean.copy(), var.copy()
    update_running_stats(*running, Moments.from_cache(cache), decay=momentum, correction=0)
    with np.errstate(over="ignore"):
        current = cache.mean.astype(mean.dtype), cache.var.astype(var.dtype)
    vector = shape[1:] if not spatial else (channels,)
    return y.reshape(shape), *(a.reshape(vector) for a in (*running, *current))


def run_node(
    node: NodeProto, inputs: Sequence[ArrayLike], *, opset: int
) -> tuple[NDArray | None, ...]:
    """Run a BatchNormalization node.

    Parameters
    ----------
    node : onnx.NodeProto
    inputs : sequence of five array_like
        X, scale, B, mean and var.
    opset : int
        Version of the operator set the node belongs to, at least 7.

    Returns
    -------
    tuple of ndarray
        One an output of the node, None for those it leaves out by an empty name.

    Raises
    ------
    ValueError
        Another operator, an older opset, an attribute or a number of inputs or outputs that the
        opset does not have; and as `batch_normalization`.
    TypeError
        As `batch_normalization`.

    Examples
    --------
    >>> import numpy as np, onnx
    >>> from cbn.interop.onnx import run_node
    >>> names = ["X", "scale", "B", "mean", "var"]
    >>> node = onnx.helper.make_node("BatchNormalization", names, ["Y"], epsilon=0.0)
    >>> x = np.array([[1.0], [3.0]], np.float32)
    >>> run_node(node, [x, *np.float32([[1], [0], [2], [1]])], opset=15)
    (array([[-1.],
           [ 1.]], dtype=float32),)
    """
    attributes = _attributes(node, opset)
    if len(inputs) != 5:
        raise ValueError(f"inputs: expected X, scale, B, mean and var, got {len(inputs)}")
    outputs = list(node.output)
    if opset < _TRAINING_MODE:
        attributes["training_mode"] = int(any(outputs[1:]))
    most = 1 if not attributes.get("training_mode") else 3 if opset >= _TRAINING_MODE else 5
    if not 1 <= len(outputs) <= most:
        raise ValueError(f"node: expected 1 to {most} outputs in this mode, got {len(outputs)}")
    results = batch_normalization(*inputs, **attributes)
    return tuple(a if name else None for a, name in zip(results, outputs, strict=False))


def _attributes(node: Any, opset: int) -> dict[str, Any]:
    if getattr(node, "op_type", None) != "BatchNormalization":
        got = getattr(node, "op_type", type(node).__name__)
        raise ValueError(f"node: expected a BatchNormalization, got {got}")
    if _check_state._integer("opset", opset, 1) < _FIRST:
        raise ValueError(f"opset: expected {_FIRST} or newer, got {opset}")
    attributes = {a.name: a.f if a.name in ("epsilon", "momentum") else a.i for a in node.attribute}
    known = {"epsilon", "momentum"}
    known |= {"training_mode"} if opset >= _TRAINING_MODE else set()
    known |= {"spatial"} if opset < _SPATIAL_ENDS else set()
    if not set(attributes) <= known:
        raise ValueError(
            f"node: expected the attributes {', '.join(sorted(known))} of opset {opset}, got"
            f" {', '.join(attributes)}"
        )
    return attributes


def from_node(
    node: NodeProto, initializers: Mapping[str, ArrayLike | TensorProto], *, opset: int
) -> BatchNorm:
    """The layer of a BatchNormalization node.

    Parameters
    ----------
    node : onnx.NodeProto
    initializers : mapping of str to array_like or onnx.TensorProto
        Has the node's inputs after X, shape (C,) each.
    opset : int
        At least 7.

    Returns
    -------
    cbn.BatchNorm
        In evaluation mode, unless the node is in training mode; axis 1, correction 0, the dtype of
        scale.

    Raises
    ------
    ValueError
        As `run_node`; spatial=0; an input that is not among the initializers.
    """
    attributes = _attributes(node, opset)
    if not attributes.get("spatial", 1):
        raise ValueError("node: expected spatial=1, got 0")
    state = {}
    for name, given in zip(_INPUTS, list(node.input)[1:], strict=True):
        if given not in initializers:
            raise ValueError(f"initializers: expected {given!r} for {name}, got none")
        state[name] = _array(initializers[given])
    bn = BatchNorm(
        len(state["scale"]),
        eps=attributes.get("epsilon", 1e-5),
        decay=attributes.get("momentum", 0.9),
        axis=1,
        dtype=state["scale"].dtype,
        correction=0,
    )
    bn.load_onnx(state)
    if opset < _TRAINING_MODE:
        return bn.train(any(list(node.output)[1:]))
    return bn.train(bool(attributes.get("training_mode", 0)))


def from_model(model: ModelProto) -> dict[str, BatchNorm]:
    """The layers of all BatchNormalization nodes of a model's main graph.

    Parameters
    ----------
    model : onnx.ModelProto
        Whose parameters are initializers.

    Returns
    -------
    dict
        By the node's name, or that of its first output if it has none.

    Raises
    ------
    ValueError
        As `from_node`.
    ImportError
        Without onnx.
    """
    (opset,) = {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.name or node.output[0]: from_node(node, initializers, opset=opset)
        for node in model.graph.node
        if node.op_type == "BatchNormalization"
    }


def to_node(
    bn: BatchNorm, x: str = "X", y: str = "Y", *, name: str = "bn"
) -> tuple[NodeProto, list[TensorProto]]:
    """A layer as a node of opset 14 or newer, and its parameters.

    Parameters
    ----------
    bn : cbn.BatchNorm
        In evaluation mode the node normalizes by the running statistics; in training mode it has
        the outputs ``{name}.running_mean`` and ``{name}.running_var`` too.
    x, y : str
        Names of the node's input and output.
    name : str
        Of the node, and what those of its parameters begin with.

    Returns
    -------
    node : onnx.NodeProto
    initializers : list of onnx.TensorProto
        scale, B, input_mean and input_var; ones and zeros for a layer without gamma and beta.

    Raises
    ------
    ValueError
        A layer that the operator cannot express: channels on another axis than 1, no running
        statistics, an activation; in training mode renorm, momentum=None, or a correction.
    ImportError
        Without onnx.
    """
    with extra("onnx"):
        from onnx import helper, numpy_helper
    _check_state.is_kind("bn", bn, BatchNorm)
    _expressible(bn)
    shape = (bn.num_features,)
    values = {
        "scale": np.ones(shape, bn.dtype) if bn.gamma is None else bn.gamma,
        "B": np.zeros(shape, bn.dtype) if bn.beta is None else bn.beta,
        "input_mean": bn.running_mean,
        "input_var": bn.running_var,
    }
    tensors = [numpy_helper.from_array(a, f"{name}.{key}") for key, a in values.items()]
    outputs, attributes = [y], {"epsilon": bn.eps}
    if bn.training:
        outputs += [f"{name}.running_mean", f"{name}.running_var"]
        assert bn.momentum is not None
        attributes |= {"momentum": 1 - bn.momentum, "training_mode": 1}
    inputs = [x, *(tensor.name for tensor in tensors)]
    node = helper.make_node("BatchNormalization", inputs, outputs, name, **attributes)
    return node, tensors


def _expressible(bn: BatchNorm) -> None:
    wrong = {
        f"axis={bn.axis}": bn.axis not in (None, 1),
        "track_running_stats=False": bn.running_mean is None,
        f"activation={bn.activation!r}": bn.activation is not None,
        "renorm=True": bn.training and bn.renorm,
        "momentum=None": bn.training and bn.momentum is None,
        f"correction={bn.correction}": bn.training and bn.correction != 0,
    }
    found = [setting for setting, is_wrong in wrong.items() if is_wrong]
    if found:
        raise ValueError(f"bn: expected a layer that ONNX can express, got one with {found[0]}")


def _array(value: Any) -> NDArray:
    if hasattr(value, "data_type"):
        with extra("onnx"):
            from onnx import numpy_helper
        return numpy_helper.to_array(value)
    return np.asarray(value)
