"""Arrays in the forms the compiled functions take, and back; no arithmetic, no error texts."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cbn import _check


def float64(values: NDArray | None, copy: bool = False) -> NDArray[np.float64] | None:
    """Per-channel values in the one form the C core takes."""
    if values is None:
        return None
    return np.array(values, np.float64) if copy else np.require(values, np.float64, ["C", "A"])


def computed(array: NDArray, dtype: np.dtype) -> NDArray:
    """The array in a dtype that the kernels know, in whichever byte order."""
    return array if array.dtype.newbyteorder("=") == dtype else array.astype(dtype)


def new_array(x: NDArray, zeros: bool = False) -> NDArray:
    """A fresh array for a result of x's shape."""
    make = np.zeros_like if zeros else np.empty_like
    return make(x, dtype=_check.result_dtype(x.dtype), subok=False)


def round_to(out: NDArray, values: NDArray) -> NDArray:
    """`out` with the values in its dtype; what a half type cannot hold is inf, as in a kernel."""
    with np.errstate(over="ignore"):
        np.copyto(out, values, casting="unsafe")
    return out


def _rows(array: NDArray, axis: int) -> NDArray:
    """The array as N rows of D channels; a view if one exists."""
    if array.ndim == 2 and axis == 1:
        return array
    channels = array.shape[axis]
    rows = math.prod(array.shape[:axis] + array.shape[axis + 1 :])
    return np.moveaxis(array, axis, -1).reshape(rows, channels)


def _kernel_takes(rows: NDArray, dtype: np.dtype) -> bool:
    adjacent = rows.strides[1] == dtype.itemsize or rows.shape[1] == 1
    return rows.dtype == dtype and adjacent and rows.flags.aligned


def input_rows(array: NDArray, axis: int, dtype: np.dtype) -> NDArray:
    """(N, D) rows of `dtype` with adjacent channels; a copy where the array has none."""
    rows = _rows(array, axis)
    return rows if _kernel_takes(rows, dtype) else np.array(rows, dtype, order="C")


class OutputRows:
    """(N, D) rows to compute into, for an array of the caller's shape, dtype and strides."""

    def __init__(self, out: NDArray, axis: int, dtype: np.dtype) -> None:
        self._out = out
        self._axis = axis
        rows = _rows(out, axis)
        self._direct = np.may_share_memory(rows, out) and _kernel_takes(rows, dtype)
        self.rows = rows if self._direct else np.empty(rows.shape, dtype)

    def finish(self) -> NDArray:
        """The array, with the rows in their places."""
        if not self._direct:
            moved = np.moveaxis(self._out, self._axis, -1)
            round_to(moved, self.rows.reshape(moved.shape))
        return self._out


def new_output(x: NDArray, axis: int) -> OutputRows:
    """Rows for a fresh array for a result of x's shape."""
    return OutputRows(new_array(x), axis, _check.kernel_dtype(x.dtype))


def gradient(values: NDArray[np.float64], dtype: np.dtype | None) -> NDArray | None:
    """A parameter's gradient in its dtype, None for none; what it cannot hold is inf."""
    if dtype is None:
        return None
    with np.errstate(over="ignore"):
        return values.astype(_check.result_dtype(dtype))
