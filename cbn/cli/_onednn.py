"""oneDNN for ``cbn bench``, through its C interface (version 3 with OpenMP, found as libdnnl)."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import sys
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn.cli._contenders import EPS, Call, Contender, Data

PREFIX = "batch_normalization"
# From dnnl_types.h.
CPU, IN_ORDER, FLOAT32 = 1, 1, 3
FORWARD_TRAINING, FORWARD_INFERENCE, BACKWARD = 64, 96, 128
GIVEN_STATISTICS, SCALE, SHIFT = 1, 2, 4
ARGUMENTS = {
    **{"x": 1, "y": 17, "mean": 49, "var": 50, "gamma": 51, "beta": 52},
    **{"dx": 129, "dy": 145, "dgamma": 255, "dbeta": 256},
}


class _Argument(ctypes.Structure):
    _fields_ = (("index", c_int), ("memory", c_void_p))


class _Version(ctypes.Structure):
    _fields_ = (("major", c_int), ("minor", c_int), ("patch", c_int))


@functools.cache
def _library() -> ctypes.CDLL | None:
    found = [ctypes.util.find_library("dnnl"), *Path(sys.prefix, "lib").glob("libdnnl.*")]
    for path in filter(None, found):
        try:
            library = ctypes.CDLL(str(path))
            library.omp_set_num_threads.restype = None
            library.dnnl_version.restype = ctypes.POINTER(_Version)
        except (OSError, AttributeError):  # it does not load, or has threads of another kind
            continue
        if library.dnnl_version()[0].major == 3:
            return library
    return None


def _new(what: str, *arguments: Any) -> c_void_p:
    """A new object of oneDNN's; the process keeps it."""
    handle = c_void_p()
    _check(what, getattr(_library(), f"dnnl_{what}")(byref(handle), *arguments))
    return handle


def _check(what: str, status: int) -> None:
    if status != 0:
        raise RuntimeError(f"oneDNN: {what} returns status {status}")


class OneDnn(Contender):
    """Its primitives, made once a case; float32 only, and into arrays that are there."""

    def __init__(self, data: Data, threads: int, fresh: bool) -> None:
        super().__init__(data, threads, fresh)
        _library().omp_set_num_threads(threads)
        self.engine = _new("engine_create", CPU, c_size_t(0))
        self.stream = _new("stream_create", self.engine, c_uint(IN_ORDER))
        self.rows, self.channels = self._describe(data.x), self._describe(data.gamma)

    @classmethod
    def version(cls) -> str | None:
        if _library() is None:
            return None
        found = _library().dnnl_version()[0]
        return f"{found.major}.{found.minor}.{found.patch}"

    def _describe(self, array: NDArray) -> c_void_p:
        dims = c_int64 * 12
        strides = [stride // array.itemsize for stride in array.strides]
        layout = (array.ndim, dims(*array.shape), FLOAT32, dims(*strides))
        return _new("memory_desc_create_with_strides", *layout)

    def _calls(
        self, kind: int, given_statistics: bool, results: dict[str, NDArray], **inputs: NDArray
    ) -> list[Call]:
        """The call that computes the results and returns them."""
        if self.out is None or self.data.x.dtype != np.float32:
            return []
        flags = c_uint(SCALE | SHIFT | GIVEN_STATISTICS * given_statistics)
        forward_kind = FORWARD_TRAINING if kind == BACKWARD else kind
        settings = (self.rows, self.rows, c_float(EPS), flags, None)
        operation = _new(
            f"{PREFIX}_forward_primitive_desc_create", self.engine, forward_kind, *settings
        )
        if kind == BACKWARD:
            settings = (self.rows, *settings[:-1], operation, None)
            operation = _new(
                f"{PREFIX}_backward_primitive_desc_create", self.engine, kind, *settings
            )
        primitive = _new("primitive_create", operation)
        arrays = {**results, **inputs, "x": self.data.x, "gamma": self.data.gamma}
        arguments = (_Argument * len(arrays))()
        for argument, (name, array) in zip(arguments, arrays.items(), strict=True):
            description = self.rows if array.ndim == 2 else self.channels
            memory = _new("memory_create", description, self.engine, c_void_p(array.ctypes.data))
            argument.index, argument.memory = ARGUMENTS[name], memory.value
        execute, wait = _library().dnnl_primitive_execute, _library().dnnl_stream_wait

        def call():
            _check("execute", execute(primitive, self.stream, len(arrays), arguments))
            _check("wait", wait(self.stream))
            return tuple(results.values())

        return [call]

    def _forward(self, kind: int, given: bool, mean: NDArray, var: NDArray) -> list[Call]:
        inputs = {"mean": mean, "var": var, "beta": self.data.beta}
        return self._calls(kind, given, {"y": self.data.out}, **inputs)

    def _backward(self, given: bool, mean: NDArray, var: NDArray) -> list[Call]:
        dgamma, dbeta = np.empty((2, len(mean)), mean.dtype)
        results = {"dx": self.data.out, "dgamma": dgamma, "dbeta": dbeta}
        return self._calls(BACKWARD, given, results, dy=self.data.dy, mean=mean, var=var)

    def forward(self) -> list[Call]:
        d = self.data
        return self._forward(FORWARD_TRAINING, False, np.empty_like(d.mean), np.empty_like(d.var))

    def backward(self) -> list[Call]:
        d = self.data
        mean, var = np.empty_like(d.mean), np.empty_like(d.var)
        for call in self._forward(FORWARD_TRAINING, False, mean, var):
            call()
        return self._backward(False, mean, var)

    def inference(self) -> list[Call]:
        return self._forward(FORWARD_INFERENCE, True, self.data.mean, self.data.var)

    def inference_backward(self) -> list[Call]:
        return self._backward(True, self.data.mean, self.data.var)
