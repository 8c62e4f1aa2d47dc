"""Every argument check and every user-facing error text.

A check returns the argument in the form the rest of the library uses, or raises ValueError or
TypeError with "name: expected ..., got ...". Nothing has been written when a check raises.
"""

from __future__ import annotations

import functools
import math
import numbers
import operator
import sys
from typing import Any

import numpy as np

_FLOATS = ("float16", "float32", "float64", "bfloat16")


# Cached: NumPy spells out a dtype's name in 2 us, half of a small batch norm.
@functools.cache
def _is_float(dtype: np.dtype) -> bool:
    return dtype.name in _FLOATS


def _is_masked(value: Any) -> bool:
    """A masked array; NumPy imports those late, 10 ms that no call and no fork should meet."""
    kind = getattr(sys.modules.get("numpy.ma"), "MaskedArray", None)
    return kind is not None and isinstance(value, kind)


def _array(name: str, value: Any) -> np.ndarray:
    if _is_masked(value):
        raise TypeError(f"{name}: expected a plain array, got a masked array; pass its .data")
    try:
        if not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except ValueError as error:
        kind = type(value).__name__
        raise ValueError(f"{name}: expected an array, got {kind}: {error}") from None


def real_array(name: str, value: Any) -> np.ndarray:
    """`value` as an array of a dtype that has a result: real floats, integers, bool."""
    array = _array(name, value)
    real_dtype(name, array.dtype)
    return array


def real_dtype(name: str, dtype: np.dtype) -> None:
    if not (_is_float(dtype) or dtype.kind in "biu"):
        raise TypeError(
            f"{name}: expected a real dtype (float32, float64, float16, bfloat16, an integer or"
            f" bool), got {dtype}"
        )


@functools.cache
def result_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of y and dx for an x of `dtype`: its native form, float64 for integers."""
    return dtype.newbyteorder("=") if _is_float(dtype) else np.dtype(np.float64)


@functools.cache
def kernel_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype the kernels compute an x of `dtype` in."""
    return np.dtype(np.float64 if result_dtype(dtype) == np.float64 else np.float32)


def batch(x: np.ndarray, axis: int | None, may_be_empty: bool = False) -> int:
    """The channel axis of x, from 0 on; x has at least one row, unless it may be empty."""
    if x.ndim < 2:
        raise ValueError(f"x: expected at least 2 dimensions, got shape {x.shape}")
    if axis is None:
        if x.ndim > 2:
            raise ValueError(
                f"axis: expected the channel axis of x of shape {x.shape} (1 where channels come"
                " first as in torch and ONNX, -1 where they come last as in Keras and Flax), got"
                " None"
            )
        axis = 1
    try:
        given = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis: expected an integer, got {axis!r}") from None
    if not -x.ndim <= given < x.ndim:
        raise ValueError(
            f"axis: expected {-x.ndim} to {x.ndim - 1} for x of shape {x.shape}, got {given}"
        )
    given %= x.ndim
    if not may_be_empty and math.prod(x.shape[:given] + x.shape[given + 1 :]) == 0:
        raise ValueError(f"x: expected at least one value per channel, got shape {x.shape}")
    return given


def parameter(name: str, value: Any, channels: int) -> np.ndarray | None:
    """A per-channel argument of any real floating dtype, None if not given."""
    if value is None:
        return None
    array = _array(name, value)
    parameter_form(name, array, channels)
    return array


def parameter_form(name: str, array: Any, channels: int) -> None:
    """What `parameter` demands, of anything that has a dtype and a shape."""
    if not _is_float(array.dtype):
        raise TypeError(f"{name}: expected a real floating dtype, got {array.dtype}")
    if array.shape != (channels,):
        raise ValueError(f"{name}: expected shape ({channels},), got {array.shape}")


def population(
    mean: Any, var: Any, gamma: Any, channels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Given statistics, which must be there, and the scale that goes with them."""
    mean, var = (
        _statistic(name, value, channels) for name, value in (("mean", mean), ("var", var))
    )
    not_negative("var", var)
    return mean, var, parameter("gamma", gamma, channels)


def not_negative(name: str, values: np.ndarray) -> None:
    if (values < 0).any():
        channel = int(np.argmax(values < 0))
        raise ValueError(
            f"{name}: expected values >= 0, got {values[channel]} in channel {channel}"
        )


def given(name: str, value: Any, channels: int) -> None:
    if value is None:
        raise TypeError(f"{name}: expected an array of shape ({channels},), got None")


def _statistic(name: str, value: Any, channels: int) -> np.ndarray:
    given(name, value, channels)
    array = _array(name, value)
    parameter_form(name, array, channels)
    return array


def epsilon(value: Any) -> float:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if not isinstance(value, numbers.Real) or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"eps: expected a real number, got {value!r}")
    try:
        eps = float(value)
    except OverflowError:
        eps = math.inf
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps: expected a finite number >= 0, got {value!r}")
    return eps


def threads(value: Any, name: str = "num_threads") -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer >= 1, got {value!r}")
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer >= 1, got {value!r}") from None
    if count < 1:
        raise ValueError(f"{name}: expected an integer >= 1, got {count}")
    return min(count, 2**31 - 1)


def same_shape(name: str, value: Any, shape: tuple[int, ...], of: str = "x") -> np.ndarray:
    """A real array of the shape of x."""
    array = real_array(name, value)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape} as {of}, got {array.shape}")
    return array


def output(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if not isinstance(out, np.ndarray) or _is_masked(out):
        raise TypeError(f"out: expected a plain numpy.ndarray, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    if out.dtype != dtype:
        raise ValueError(f"out: expected dtype {dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out: expected a writable array, got a read-only one")


def same_memory(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether a and b are the same elements in the same places."""
    return (
        a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
        and a.shape == b.shape
        and a.strides == b.strides
        and a.dtype == b.dtype
    )


def overlap(out: np.ndarray, may_be: dict[str, np.ndarray], **others: np.ndarray | None) -> None:
    """Refuse an out that shares memory with an input, unless it is one of `may_be` entirely."""
    for name, array in {**may_be, **others}.items():
        if array is None or not np.may_share_memory(out, array):
            continue
        if name in may_be and same_memory(out, array):
            continue
        if _shares(out, array):
            either = f"either {name} itself or" if name in may_be else "an array with"
            raise ValueError(f"out: expected {either} memory of its own, got a part of {name}")
    if not out.flags.c_contiguous and _self_overlapping(out):
        raise ValueError(
            f"out: expected elements at distinct places, got strides {out.strides} for shape"
            f" {out.shape}"
        )


def _shares(a: np.ndarray, b: np.ndarray) -> bool:
    try:
        return np.shares_memory(a, b, max_work=100_000)
    except np.exceptions.TooHardError:
        return True


def _self_overlapping(out: np.ndarray) -> bool:
    """True for broadcast arrays, windows and the like: an axis that steps inside the inner ones."""
    reach = out.itemsize
    steps = zip(map(abs, out.strides), out.shape, strict=True)
    for stride, size in sorted(step for step in steps if step[1] > 1):
        if stride < reach:
            return True
        reach += stride * (size - 1)
    return False


def cache(value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(
            f"cache: expected the {kind.__name__} returned by batch_norm_forward, got"
            f" {type(value).__name__}"
        )


def unchanged(cache: Any) -> None:
    """x still has the shape and the channels that the statistics and the mask are of."""
    shape = cache._shape
    if cache.x.shape != shape or shape[cache.axis] != cache._stats.shape[1]:
        raise ValueError(
            f"cache: expected x of shape {shape} with {cache._stats.shape[1]} channels, as in the"
            f" forward call, got shape {cache.x.shape} with channel axis {cache.axis}"
        )


def plain_cache(value: Any, kind: type) -> None:
    """A cache that the derivatives beyond backward know how to use."""
    part_cache(value, kind)
    options = value._options
    given = {
        "a mask": options.mask is not None,
        "sample_weight": options.weight is not None,
        "a residual": options.residual is not None,
        "an activation": options.relu,
    }
    _without(given)


def part_cache(value: Any, kind: type) -> None:
    """A cache that may be that of a part of a batch."""
    cache(value, kind)
    unchanged(value)
    options = value._options
    _without({"virtual_batch_size": bool(options.groups), "out=x": options.in_place})


def _without(given: dict[str, bool]) -> None:
    for name, has in given.items():
        if has:
            raise ValueError(f"cache: expected one of a forward call without {name}, got one with")


def activation(value: Any) -> bool:
    """Whether it is the ReLU."""
    if value is not None and not (isinstance(value, str) and value == "relu"):
        raise ValueError(f"activation: expected None or 'relu', got {value!r}")
    return value is not None


def _of_positions(name: str, array: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """The array broadcast to x's shape with a channel axis of size 1."""
    positions = (*shape[:axis], *shape[axis + 1 :])
    if array.ndim == len(shape) and array.shape[axis] == 1:
        array = np.squeeze(array, axis)
    try:
        return np.expand_dims(np.broadcast_to(array, positions), axis)
    except ValueError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {positions}, that of x without channels,"
            f" got {array.shape}"
        ) from None


def mask(value: Any, shape: tuple[int, ...], axis: int) -> np.ndarray | None:
    """A bool array of x's shape with a channel axis of size 1, None if not given."""
    if value is None:
        return None
    array = _array("mask", value)
    if array.dtype != np.bool_:
        raise TypeError(f"mask: expected a bool array, got {array.dtype}")
    return _of_positions("mask", array, shape, axis).copy()


def sample_weight(
    value: Any,
    counted: np.ndarray | None,
    shape: tuple[int, ...],
    axis: int,
    all_may_be_zero: bool = False,
) -> np.ndarray | None:
    """Weights of positions as float64, shaped as a mask and 0 where `counted` is False."""
    if value is None:
        return None
    array = real_array("sample_weight", value).astype(np.float64)
    if not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError("sample_weight: expected finite values >= 0, got others")
    weight = _of_positions("sample_weight", array, shape, axis).copy()
    if counted is not None:
        weight = np.where(counted, weight, 0.0)
    if not (all_may_be_zero or weight.any()) and (counted is None or counted.any()):
        raise ValueError("sample_weight: expected at least one value > 0, got zeros")
    return weight


def virtual_batch_size(
    value: Any, axis: int, counted: np.ndarray | None, weight: np.ndarray | None
) -> int | None:
    """The size of a group, each of which has a weight > 0 if it has values at all."""
    if value is None:
        return None
    if axis == 0:
        raise ValueError("virtual_batch_size: expected axis 0 to be the batch, got channels there")
    size = threads(value, "virtual_batch_size")
    if weight is None:
        return size
    for first in range(0, len(weight), size):
        group = slice(first, first + size)
        if not weight[group].any() and (counted is None or counted[group].any()):
            raise ValueError(
                "sample_weight: expected a value > 0 in every group of virtual_batch_size, got"
                f" zeros from {first} on"
            )
    return size


def reversible(gamma: np.ndarray | None, relu: bool, residual: Any) -> None:
    """What out=x needs, for backward to find xhat in y."""
    for name, given in {"activation": relu, "residual": residual is not None}.items():
        if given:
            raise ValueError(f"{name}: expected None with out=x, since backward works from y then")
    if gamma is not None and not (gamma != 0).all():
        channel = int(np.argmax(gamma == 0))
        raise ValueError(
            f"gamma: expected values other than 0 with out=x, since backward works from y then, got"
            f" 0 in channel {channel}"
        )


def lengths(values: Any, max_length: Any) -> tuple[np.ndarray, int]:
    array = _array("lengths", values)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise TypeError(
            f"lengths: expected a 1-D integer array, got {array.dtype} of shape {array.shape}"
        )
    if (array < 0).any():
        raise ValueError(f"lengths: expected values >= 0, got {array.min()}")
    longest = int(array.max()) if array.size else 0
    if max_length is None:
        return array, longest
    most = operator.index(max_length)
    if longest > most:
        raise ValueError(f"lengths: expected values <= max_length = {most}, got {longest}")
    return array, most


def mode(value: Any) -> None:
    if value not in ("stdout", "dicts"):
        raise ValueError(f"mode: expected 'stdout' or 'dicts', got {value!r}")


def environment_threads(name: str, text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError(f"{name}: expected an integer >= 1 or nothing, got {text!r}")
    return min(count, 2**31 - 1)


def isa(text: str, built: list[str], supported: list[str]) -> None:
    if not supported:
        raise ValueError(
            f"CBN_TIERS: expected a tier that this CPU runs, got a build with {', '.join(built)} "
            "alone; build cbn again without CBN_TIERS, or with another one"
        )
    raise ValueError(
        f"CBN_ISA: expected one of {', '.join(supported)} (this build has {', '.join(built)}; this"
        f" CPU runs the former) or nothing, got {text!r}"
    )
