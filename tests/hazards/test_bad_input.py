"""Every bad argument: the exception, its text, and nothing written."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cases import Batch

import cbn

N, C = 6, 4
FUNCTIONS = ("forward", "backward", "inference", "inference_backward")
ON_X = ("forward", "inference", "inference_backward")
VECTORS = {
    "forward": ("gamma", "beta"),
    "inference": ("mean", "var", "gamma", "beta"),
    "inference_backward": ("mean", "var", "gamma"),
}


def good_arguments(function):
    """Valid keyword arguments of a function, with an `out` that shows whether it was touched."""
    b = Batch((N, C), np.float32)
    out = np.full((N, C), 7, np.float32)
    if function == "backward":
        cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta)[1]
        return {"dy": b.dy, "cache": cache, "out": out}
    arrays = {name: getattr(b, name) for name in ("x", *VECTORS[function])}
    dy = {"dy": b.dy} if function == "inference_backward" else {}
    return dy | arrays | {"out": out}


def contents(value):
    """The bytes of every array in reach."""
    if isinstance(value, dict):
        return {name: contents(part) for name, part in value.items()}
    if isinstance(value, cbn.BatchNormCache):
        return contents({name: getattr(value, name) for name in ("x", "mean", "var", "gamma")})
    if isinstance(value, np.ndarray):
        whole = value
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        return whole.tobytes()
    return None


def refused(function, arguments, error, text):
    """Assert that the call raises an error whose text matches, and writes nothing."""
    before = contents(arguments)
    with pytest.raises(error) as caught:
        getattr(cbn, f"batch_norm_{function}")(**arguments)
    assert type(caught.value) is error
    assert re.search(text, str(caught.value)), str(caught.value)
    assert contents(arguments) == before


def says(name, expected, given):
    return rf"^{name}: expected .*{re.escape(expected)}.*, got .*{re.escape(given)}"


def functions_taking(name):
    if name in ("out", "num_threads"):
        return FUNCTIONS
    if name in ("x", "axis", "eps"):
        return ON_X
    if name == "dy":
        return ("backward", "inference_backward")
    return [function for function, names in VECTORS.items() if name in names]


def table(names, cases):
    """One parameter per function that takes the argument, argument and case."""
    return [
        pytest.param(
            function, name, *case[1:], id="-".join(filter(None, [function, name, case[0]]))
        )
        for name in names
        for function in functions_taking(name)
        for case in cases
    ]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_good_arguments_are_good(function):
    arguments = good_arguments(function)
    getattr(cbn, f"batch_norm_{function}")(**arguments)
    assert not np.any(arguments["out"] == 7)


# Per-channel arguments ----------------------------------------------------------------------------

LENGTHS = [(0,), (C - 1,), (C + 1,), (100 * C,), (1,), (), (1, C), (C, 1), (N, C)]
VALUES = {
    "int": (np.ones(C, int), "int64"),
    "bool": (np.ones(C, bool), "bool"),
    "complex": (np.ones(C, complex), "complex128"),
    "object": (np.ones(C, object), "object"),
    "str": (np.array(["1"] * C), "<U1"),
    "list of str": (["a"] * C, "<U1"),
    "list of int": ([1] * C, "int64"),
    "date": (np.zeros(C, "M8[s]"), "datetime64"),
    "longdouble": (np.ones(C, np.longdouble), np.dtype(np.longdouble).name),
    "a string": ("gamma", "<U5"),
    "dict": ({}, "object"),
}
VALUES = {
    k: v for k, v in VALUES.items() if v[1] != "float64"
}  # longdouble is that on some systems


@pytest.mark.parametrize(("function", "name"), table(["mean", "var"], [("",)]))
def test_a_missing_statistic(function, name):
    refused(function, good_arguments(function) | {name: None}, TypeError, says(name, "", "None"))


@pytest.mark.parametrize("function", functions_taking("var"))
@pytest.mark.parametrize("value", [-1.0, -1e-300, -np.inf])
@pytest.mark.parametrize("kind", ["f8", ">f8"])
def test_a_negative_var(function, value, kind):
    var = np.ones(C, kind)
    var[2] = value
    text = says("var", ">= 0", str(np.float64(value)))
    refused(function, good_arguments(function) | {"var": var}, ValueError, text)


# x, dy, cache -------------------------------------------------------------------------------------

ARRAYS = [
    ("complex", np.ones((N, C), complex), TypeError, "complex128"),
    ("object", np.ones((N, C), object), TypeError, "object"),
    ("str", np.full((N, C), "1"), TypeError, "<U1"),
    ("bytes", np.full((N, C), b"1"), TypeError, "S1"),
    ("date", np.zeros((N, C), "M8[s]"), TypeError, "datetime64"),
    ("timedelta", np.zeros((N, C), "m8[s]"), TypeError, "timedelta64"),
    ("record", np.zeros((N, C), [("a", "f4")]), TypeError, "a"),
    ("masked", np.ma.masked_less(np.ones((N, C)), 0), TypeError, "masked array"),
    ("ragged", [[1.0, 2.0], [3.0]], ValueError, "list"),
    ("string", "abc", TypeError, "<U3"),
    ("None", None, TypeError, "object"),
]


@pytest.mark.parametrize(
    ("function", "name", "value", "error", "given"), table(["x", "dy"], ARRAYS)
)
def test_not_a_real_array(function, name, value, error, given):
    refused(function, good_arguments(function) | {name: value}, error, says(name, "", given))


@pytest.mark.parametrize("function", ON_X)
@pytest.mark.parametrize("shape", [(), (3,), (0,)])
def test_too_few_dimensions(function, shape):
    arguments = good_arguments(function) | {"x": np.ones(shape)}
    refused(function, arguments, ValueError, says("x", "2 dimensions", str(shape)))


@pytest.mark.parametrize("function", ON_X)
@pytest.mark.parametrize(
    ("shape", "axis"), [((0, C), None), ((0, C), 1), ((C, 0), 0), ((2, C, 0), 1), ((0, 0), None)]
)
def test_no_rows(function, shape, axis):
    arguments = good_arguments(function) | {"x": np.ones(shape), "axis": axis}
    refused(function, arguments, ValueError, says("x", "at least one", str(shape)))


@pytest.mark.parametrize("function", functions_taking("dy"))
@pytest.mark.parametrize(
    "shape",
    [(N - 1, C), (N + 1, C), (N, C - 1), (N, C + 1), (C, N), (N * C,), (1, N, C), (N, 1), ()],
)
def test_dy_of_another_shape(function, shape):
    arguments = good_arguments(function) | {"dy": np.ones(shape, np.float32)}
    refused(function, arguments, ValueError, says("dy", str((N, C)), str(shape)))


@pytest.mark.parametrize("cache", [None, (), {}, 3, np.ones((N, C)), cbn.BatchNormCache], ids=repr)
def test_not_a_cache(cache):
    arguments = good_arguments("backward") | {"cache": cache}
    refused("backward", arguments, TypeError, says("cache", "BatchNormCache", type(cache).__name__))


# axis, eps, num_threads, options ------------------------------------------------------------------


@pytest.mark.parametrize("function", ON_X)
@pytest.mark.parametrize("axis", [2, -3, 10**30])
def test_axis_out_of_range(function, axis):
    arguments = good_arguments(function) | {"axis": axis}
    refused(function, arguments, ValueError, says("axis", "-2 to 1", str(axis)))


@pytest.mark.parametrize("function", ON_X)
@pytest.mark.parametrize("axis", [1.0, "1", (1,), [0, 1]], ids=repr)
def test_axis_that_is_no_integer(function, axis):
    arguments = good_arguments(function) | {"axis": axis}
    refused(function, arguments, TypeError, says("axis", "integer", repr(axis)))


@pytest.mark.parametrize("function", ON_X)
@pytest.mark.parametrize("shape", [(N, C, 2), (N, C, 2, 2)])
def test_axis_is_never_guessed(function, shape):
    arguments = good_arguments(function) | {"x": np.ones(shape), "axis": None, "out": None}
    text = says("axis", str(shape), "None")
    refused(function, arguments, ValueError, text)
    refused(function, arguments, ValueError, r"\b1\b.*-1\b")


EPS = [
    *((repr(v), v, ValueError, ">= 0") for v in (np.nan, np.inf, -np.inf, -1, -1e-300)),
    ("too large for a float", 10**309, ValueError, ">= 0"),
    *((repr(v), v, TypeError, "number") for v in ("1e-5", b"1", None, 1e-5j, [1e-5], True, False)),
    *((repr(v), v, TypeError, "number") for v in (np.True_, np.array([1e-5]), np.ones(C))),
]


@pytest.mark.parametrize(("function", "name", "eps", "error", "expected"), table(["eps"], EPS))
def test_eps(function, name, eps, error, expected):
    refused(
        function, good_arguments(function) | {name: eps}, error, says(name, expected, repr(eps))
    )


THREADS = [
    *((repr(v), v, ValueError) for v in (0, -1, np.int64(0), -(10**30))),
    *((repr(v), v, TypeError) for v in (2.5, 2.0, "2", [2], True, False, np.True_)),
]


@pytest.mark.parametrize(("function", "name", "value", "error"), table(["num_threads"], THREADS))
def test_num_threads(function, name, value, error):
    given = str(value) if error is ValueError else repr(value)
    text = says(name, "integer >= 1", given)
    refused(function, good_arguments(function) | {name: value}, error, text)


@pytest.mark.parametrize(
    ("option", "value", "error", "words"),
    [
        ("activation", "tanh", ValueError, ["'relu'", "'tanh'"]),
        ("residual", np.ones((N, C + 1)), ValueError, [str((N, C)), str((N, C + 1))]),
        ("mask", np.ones((N,)), TypeError, ["bool", "float64"]),
        ("mask", np.ones((N + 1,), bool), ValueError, [str((N,)), str((N + 1,))]),
        ("sample_weight", -np.ones(N), ValueError, [">= 0"]),
        ("sample_weight", np.full(N, np.nan), ValueError, ["finite"]),
        ("sample_weight", np.zeros(N), ValueError, ["> 0", "zeros"]),
        ("virtual_batch_size", 0, ValueError, [">= 1", "0"]),
        ("virtual_batch_size", 2.0, TypeError, ["integer", "2.0"]),
    ],
)
def test_an_option_of_forward(option, value, error, words):
    refused(
        "forward",
        good_arguments("forward") | {option: value},
        error,
        rf"^{option}: .*" + ".*".join(map(re.escape, words)),
    )


# out ----------------------------------------------------------------------------------------------

OUTS = [
    *((str(shape), np.ones(shape, "f4"), ValueError, str((N, C)), str(shape))
      for shape in ((N, C + 1), (N + 1, C), (C, N), (N * C,), (1, N, C), (), (N, 1), (1, C))),
    *((kind, np.ones((N, C), kind), ValueError, "float32", str(np.dtype(kind)))
      for kind in ("f8", "f2", "i4", "c8", "O", ">f4")),
    *((type(out).__name__, out, TypeError, "ndarray", type(out).__name__)
      for out in ([[0.0] * C] * N, 3.0, "out", bytearray(4 * N * C), ())),
    ("read-only", np.broadcast_to(np.ones((N, C), "f4"), (N, C)), ValueError, "writ", "read-only"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "name", "out", "error", "expected", "given"), table(["out"], OUTS)
)
def test_out(function, name, out, error, expected, given):
    refused(function, good_arguments(function) | {name: out}, error, says(name, expected, given))


def windows(memory, shape, strides, offset=0):
    return np.lib.stride_tricks.as_strided(memory[offset:], shape, [4 * s for s in strides])


SELF_OVERLAPS = {
    "one row": ((N, C), (0, 1)),
    "one column": ((N, C), (C, 0)),
    "one element": ((N, C), (0, 0)),
    "sliding": ((N, C), (1, 1)),
    "rows share an element": ((N, C), (C - 1, 1)),
    "columns share": ((N, C), (1, N - 1)),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", SELF_OVERLAPS)
def test_out_that_overlaps_itself(function, kind):
    memory = np.ones(N * C, np.float32)
    out = windows(memory, *SELF_OVERLAPS[kind])
    text = says("out", "distinct", str(out.strides))
    refused(function, good_arguments(function) | {"out": out}, ValueError, text)


OVERLAPS = {
    "one row on": lambda memory: windows(memory, (N, C), (C, 1), C),
    "one element on": lambda memory: windows(memory, (N, C), (C, 1), 1),
    "last element": lambda memory: windows(memory, (N, C), (C, 1), N * C - 1),
    "reversed rows": lambda memory: windows(memory, (N, C), (C, 1))[::-1],
    "reversed columns": lambda memory: windows(memory, (N, C), (C, 1))[:, ::-1],
    "transposed": lambda memory: windows(memory, (N, C), (1, N)),
    "wider rows": lambda memory: windows(memory, (N, C), (C + 1, 1)),
}


@pytest.mark.parametrize("kind", OVERLAPS)
@pytest.mark.parametrize(
    ("function", "name"),
    [("forward", "x"), ("inference", "x"), ("inference_backward", "x"),
     ("inference_backward", "dy"), ("backward", "dy")],
)  # fmt: skip
def test_out_that_overlaps_an_input_in_part(function, name, kind):
    memory = np.arange(3 * N * C, dtype=np.float32) % 7
    arguments = good_arguments(function)
    arguments[name] = memory[: N * C].reshape(N, C)
    arguments["out"] = OVERLAPS[kind](memory)
    refused(function, arguments, ValueError, says("out", "itself", f"part of {name}"))


def test_out_that_overlaps_the_cached_x_in_part():
    memory = np.arange(3 * N * C, dtype=np.float32) % 7
    cache = cbn.batch_norm_forward(memory[: N * C].reshape(N, C))[1]
    arguments = good_arguments("backward") | {"cache": cache}
    arguments["out"] = OVERLAPS["one row on"](memory)
    refused("backward", arguments, ValueError, says("out", "itself", "part of x"))


@pytest.mark.parametrize(("function", "name"), table(["gamma", "beta", "mean", "var"], [("",)]))
def test_out_that_overlaps_a_vector(function, name):
    arguments = good_arguments(function)
    arguments["out"][:] = 1
    arguments[name] = arguments["out"][2]
    refused(function, arguments, ValueError, says("out", "its own", f"part of {name}"))


def test_out_that_shares_only_a_span_with_an_input_is_fine():
    """Interleaved memory is not shared memory."""
    memory = np.random.default_rng(0).normal(0, 1, (N, 2 * C))
    expected = cbn.batch_norm_forward(memory[:, ::2].copy())[0]
    y, _ = cbn.batch_norm_forward(memory[:, ::2], out=memory[:, 1::2])
    assert np.array_equal(y, expected)


def test_every_group_has_a_weight():
    x, weight = np.arange(12.0).reshape(4, 3), np.array([0, 0, 1.0, 1.0])
    expected = r"^sample_weight: expected a value > 0 in every group .*, got zeros from 0 on"
    with pytest.raises(ValueError, match=expected):
        cbn.batch_norm_forward(x, sample_weight=weight, virtual_batch_size=2)
    counted = weight > 0  # a group without values needs none
    y, cache = cbn.batch_norm_forward(x, mask=counted, sample_weight=weight, virtual_batch_size=2)
    assert cache.count == 2 and not y[:2].any() and y[2:].any()
    counted = np.array([True, False, True, True])  # a value without a weight needs one
    with pytest.raises(ValueError, match=expected):
        cbn.batch_norm_forward(x, mask=counted, sample_weight=weight, virtual_batch_size=2)
    weight[1] = 1.0  # and one is enough
    y, _ = cbn.batch_norm_forward(x, sample_weight=weight, virtual_batch_size=2)
    assert np.array_equal(y[2:], cbn.batch_norm_forward(x[2:])[0])
