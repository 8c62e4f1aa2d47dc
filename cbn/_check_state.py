"""The checks of what holds state - Moments, running statistics, the layer - and of folding.

As in _check: a check returns the argument in the form the library uses, or raises ValueError or
TypeError with "name: expected ..., got ...".
"""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cbn import _check


def _real(name: str, value: Any, expected: str = "a real number") -> Any:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if not isinstance(value, numbers.Real) or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    return value


def _integer(name: str, value: Any, least: int) -> int:
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        integer = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer >= {least}, got {value!r}") from None
    if integer < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {integer}")
    return integer


def _count(value: Any) -> float:
    if not 0 <= _real("count", value) < math.inf:
        raise ValueError(f"count: expected a finite number >= 0, got {value}")
    return value


def _length(name: str, value: Any) -> int:
    """How many channels the first of several per-channel arguments has."""
    array = _check._array(name, value)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected shape (D,), got {array.shape}")
    return len(array)


def moments(
    count: Any, mean: Any, mean_low: Any, m2: Any
) -> tuple[float, np.ndarray, np.ndarray | None, np.ndarray]:
    """Count and per-channel values that can be moments."""
    count, channels = _count(count), _length("mean", mean)
    mean, m2 = _check._statistic("mean", mean, channels), _check._statistic("m2", m2, channels)
    _check.not_negative("m2", m2)
    return count, mean, _check.parameter("mean_low", mean_low, channels), m2


def backward_sums(count: Any, *sums: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """Count and per-channel values that can be the sums of backward."""
    count, channels = _count(count), _length("sum_dy", sums[0])
    return count, *(
        _check._statistic(name, value, channels)
        for name, value in zip(("sum_dy", "sum_dy_xhat"), sums, strict=True)
    )


def rows(count: Any, values: dict[str, Any]) -> tuple[float, list[np.ndarray]]:
    """Count and rows of (D,) float64; only those named _low may be missing (None)."""
    count, channels = _count(count), _length(*next(iter(values.items())))
    if float(count).is_integer():
        count = int(count)
    checked = []
    for name, value in values.items():
        if value is None and name.endswith("_low"):
            value = np.zeros(channels)
        checked.append(_check._statistic(name, value, channels).astype(np.float64))
        if name == "var":
            _check.not_negative(name, checked[-1])
    return count, checked


def buffer(value: Any, rows: int) -> tuple[float, np.ndarray]:
    """Count and rows of one packed array."""
    array = _check._array("buffer", value)
    if array.dtype.newbyteorder("=") != np.float64:
        raise TypeError(f"buffer: expected float64, got {array.dtype}")
    if array.ndim != 1 or len(array) % rows != 1:
        raise ValueError(f"buffer: expected shape (1 + {rows} * D,), got {array.shape}")
    return array[0].item(), array[1:].reshape(rows, -1)


def saved(file: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The arrays of an .npz file by name, None for those that are missing; the count a number."""
    expected = f"an .npz file of {', '.join(name for name in names if not name.endswith('_low'))}"
    try:
        with contextlib.ExitStack() as stack:
            opened = file if hasattr(file, "read") else stack.enter_context(open(file, "rb"))
            archive = np.load(opened, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("one array")
            stack.enter_context(archive)
            arrays = {name: archive[name] if name in archive else None for name in names}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        given = str(error) or type(error).__name__
        raise ValueError(f"file: expected {expected}, got {given}") from None
    missing = [name for name, a in arrays.items() if a is None and not name.endswith("_low")]
    if missing:
        raise ValueError(f"file: expected {expected}, got none of the name {missing[0]}")
    arrays["count"] = arrays["count"].item() if arrays["count"].size == 1 else None
    return arrays


def concatenable(parts: Any, kind: type) -> None:
    """Values of one kind and count."""
    some("parts", len(parts))
    for part in parts:
        is_kind("parts", part, kind)
        if part.count != parts[0].count:
            raise ValueError(f"parts: expected one count, got {parts[0].count} and {part.count}")


def some(name: str, number: int) -> None:
    if not number:
        raise ValueError(f"{name}: expected at least one, got none")


def of_batch(count: float) -> None:
    if math.isinf(count):
        raise ValueError("cache: expected that of batch_norm_forward, got one of given statistics")


def is_kind(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {kind.__name__}, got {type(value).__name__}")


def mergeable(name: str, value: Any, kind: type, channels: int) -> None:
    """What holds statistics or sums of that many channels."""
    is_kind(name, value, kind)
    given = value._channels
    if given != channels:
        raise ValueError(f"{name}: expected {channels} channels, got {given}")


def of_channels(name: str, value: Any, kind: type, channels: int) -> None:
    """The same, of some values."""
    mergeable(name, value, kind, channels)
    if not value.count > 0:
        raise ValueError(f"{name}: expected a count > 0, got {value.count}")


def correction(value: Any, count: float = math.inf) -> float:
    """What the divisor of the variance is less than the count, which leaves something."""
    if not math.isfinite(_real("correction", value)):
        raise ValueError(f"correction: expected a finite number, got {value}")
    if count <= value:
        raise ValueError(
            f"correction: expected less than the count of values, {count}, got {value}"
        )
    return value


def momentum(value: Any, decay: Any, default: float) -> float | None:
    """The weight of the new value; `default` itself counts as not given."""
    if decay is not None:
        if value is not default:
            raise TypeError(f"decay: expected None beside momentum={value!r}, got {decay!r}")
        return 1 - _fraction("decay", decay)
    return None if value is None else _fraction("momentum", value)


def _fraction(name: str, value: Any) -> float:
    if not 0 <= _real(name, value, "a number from 0 to 1") <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")
    return value


def batches_tracked(value: Any) -> int:
    return _integer("num_batches_tracked", value, 1)


def batches(value: Any, name: str = "num_batches_tracked") -> int:
    """A number of batches, 0 or more, that int64 can hold."""
    count = _integer(name, value, 0)
    if count >= 2**63:
        raise ValueError(f"{name}: expected an integer < 2^63, got {count}")
    return count


def updatable(name: str, array: Any, channels: int) -> None:
    """An array of the caller's that is about to be written."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected a numpy.ndarray, got {type(array).__name__}")
    _check.parameter(name, array, channels)
    if not array.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")
    if not array.flags.c_contiguous and _check._self_overlapping(array):
        raise ValueError(
            f"{name}: expected elements at distinct places, got strides {array.strides} for shape"
            f" {array.shape}"
        )


def running(running_mean: Any, running_var: Any, channels: int) -> None:
    updatable("running_mean", running_mean, channels)
    updatable("running_var", running_var, channels)
    if np.may_share_memory(running_mean, running_var) and _check._shares(running_mean, running_var):
        raise ValueError("running_var: expected memory of its own, got a part of running_mean")


def num_features(value: Any) -> int:
    return _integer("num_features", value, 0)


def parameter_dtype(value: Any) -> np.dtype:
    try:
        dtype = np.dtype(value)
    except TypeError:
        raise TypeError(f"dtype: expected a real floating dtype, got {value!r}") from None
    if not _check._is_float(dtype):
        raise TypeError(f"dtype: expected a real floating dtype, got {dtype}")
    return _check.result_dtype(dtype)


def renorm(value: bool, track_running_stats: bool) -> None:
    if value and not track_running_stats:
        raise ValueError("renorm: expected track_running_stats=True beside it, got False")


def clipping(r_max: Any, d_max: Any) -> None:
    if not _real("r_max", r_max) >= 1:
        raise ValueError(f"r_max: expected a number >= 1, got {r_max}")
    if not _real("d_max", d_max) >= 0:
        raise ValueError(f"d_max: expected a number >= 0, got {d_max}")


def features(x: np.ndarray, axis: int, channels: int) -> None:
    if x.shape[axis] != channels:
        raise ValueError(
            f"x: expected {channels} channels along axis {axis}, got {x.shape[axis]} of shape"
            f" {x.shape}"
        )


def several_values(x: np.ndarray, axis: int, mask: Any) -> None:
    """More than one value per channel, or by the mask none; the text is PyTorch's."""
    if mask is None:
        values = math.prod(x.shape[:axis] + x.shape[axis + 1 :])
    else:
        values = np.count_nonzero(_check.mask(mask, x.shape, axis))
    if values == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.shape}"
        )


def several_values_of_all(values: int, channels: int) -> None:
    """The same for the values of several processes together."""
    if values == 1:
        raise ValueError(
            "Expected more than 1 value per channel when training, got input size"
            f" (1, {channels}) on all ranks together"
        )


def without_renorm(options: dict[str, Any]) -> None:
    if options.get("renorm"):
        raise ValueError("renorm: expected False beside a communicator, got True")


def called(saved: Any) -> None:
    if saved is None:
        raise RuntimeError("backward: expected a call of the layer before it, got none")


def state(
    name: str, given: Any, keys: dict[str, str], targets: dict[str, Any], channels: int
) -> dict[str, Any]:
    """The values of a dictionary of state by attribute; keys has the attribute of each key."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{name}: expected a dictionary, got {type(given).__name__}")
    if set(given) != set(keys):
        raise ValueError(
            f"{name}: expected the keys {', '.join(keys) or 'none'}, got"
            f" {', '.join(map(str, given)) or 'none'}"
        )
    values = {}
    for key, attribute in keys.items():
        value = _check.real_array(key, given[key])
        if attribute == "num_batches_tracked":
            values[attribute] = batches(value, key)
            continue
        updatable(attribute, targets[attribute], channels)
        if value.shape != (channels,):
            raise ValueError(f"{key}: expected shape ({channels},), got {value.shape}")
        if attribute == "running_var":
            _check.not_negative(key, value)
        values[attribute] = value
    return values


def weight(value: Any, dimensions: str) -> np.ndarray:
    """The weight of a layer, of a real floating dtype: "(out, in)", or "(out, in, *k)"."""
    array = _check._array("weight", value)
    if not _check._is_float(array.dtype):
        raise TypeError(f"weight: expected a real floating dtype, got {array.dtype}")
    names = dimensions.strip("()").split(", ")
    fits = array.ndim >= len(names) if names[-1] == "*k" else array.ndim == len(names)
    if not fits:
        raise ValueError(f"weight: expected shape {dimensions}, got {array.shape}")
    return array


def groups(value: Any, channels: int) -> int:
    count = _integer("groups", value, 1)
    if channels % count:
        raise ValueError(f"groups: expected a divisor of {channels} channels, got {count}")
    return count


def axis(value: Any) -> int | None:
    """A channel axis before there is an x to look at."""
    try:
        return None if value is None else operator.index(value)
    except TypeError:
        raise TypeError(f"axis: expected an integer or None, got {value!r}") from None


def flattened(name: str, given: Any, parts: tuple[str, ...]) -> Any:
    """A dictionary of dictionaries as one, if it has the last of the parts."""
    if not isinstance(given, Mapping) or parts[-1] not in given:
        return given
    if not set(given) <= set(parts) or not all(isinstance(a, Mapping) for a in given.values()):
        raise ValueError(
            f"{name}: expected dictionaries under the keys {', '.join(parts)}, got the keys"
            f" {', '.join(map(str, given))}"
        )
    return {key: value for part in given.values() for key, value in part.items()}
