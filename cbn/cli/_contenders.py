"""What ``cbn bench`` times: cbn and the memory's own speed here, other libraries in _peers.

A contender has one method an operation, which prepares it and returns the calls to time: one, or
several ways to the same result, of which the fastest counts. Every call reads the same arrays and
returns y, or dx and what comes with it. Statistics that a backward call needs are the contender's
own. A contender that cannot do a case has no calls for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cbn
from cbn import _floor

EPS = 1e-5
OPS = ("forward", "backward", "inference", "inference_backward")

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A shape, channels second; and where they are in memory: nchw, nhwc, or N x D and nothing."""

    shape: tuple[int, ...]
    layout: str
    dtype: str

    @property
    def name(self) -> str:
        """As the option takes the shape."""
        return "x".join(map(str, self.shape)) + (f" {self.layout}" if self.layout else "")


@dataclass
class Data:
    """x, dy and out as they lie in memory, the rest of shape (D,), all of one dtype."""

    x: NDArray
    dy: NDArray
    out: NDArray
    gamma: NDArray
    beta: NDArray
    mean: NDArray
    var: NDArray
    axis: int | None = None

    @classmethod
    def random(cls, case: Case) -> Data:
        """Channels with means around 1 and a standard deviation of 2."""
        rng = np.random.default_rng(0)
        (N, D, *positions), dtype = case.shape, case.dtype
        axis = {"": None, "nchw": 1, "nhwc": -1}[case.layout]
        shape = (N, *positions, D) if axis == -1 else case.shape
        x, dy = (rng.standard_normal(shape, dtype) for _ in range(2))
        x *= 2
        x += 1
        gamma, beta, mean, var = rng.uniform(0.5, 1.5, (4, D)).astype(dtype)
        return cls(x, dy, np.zeros_like(x), gamma, beta, mean, var, axis)

    def map(self, function: Callable[[NDArray], Any]) -> Data:
        """The same with a peer's arrays, of the same memory where the peer can."""
        arrays = (function(getattr(self, field.name)) for field in fields(self)[:-1])
        return Data(*arrays, self.axis)

    def rows(self) -> Data:
        """The same memory as N x D; channels must come last."""
        if self.axis is None:
            return self
        flat = self.map(
            lambda array: array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array
        )
        flat.axis = None
        return flat


class Contender:
    """A contender for one case; `out` is None where results are to be fresh arrays.

    It gets N x D rows unless it takes any axis.
    """

    any_axis = False

    package = "cbn"

    @classmethod
    def version(cls) -> str | None:
        """Its version, None if it is not installed."""
        try:
            return metadata.version(cls.package)
        except metadata.PackageNotFoundError:
            return None

    @classmethod
    def takes(cls, data: Data) -> bool:
        """Whether it can do the case."""
        return cls.any_axis or data.axis != 1

    def __init__(self, data: Data, threads: int, fresh: bool) -> None:
        self.data = data if self.any_axis else data.rows()
        self.threads = threads
        self.out = None if fresh else self.data.out


class Cbn(Contender):
    any_axis = True

    def __init__(self, data: Data, threads: int, fresh: bool) -> None:
        super().__init__(data, threads, fresh)
        self.options = {"out": self.out, "num_threads": threads}
        self.axis = {} if data.axis is None else {"axis": data.axis}

    def forward(self) -> list[Call]:
        d = self.data
        arguments = (d.x, d.gamma, d.beta)
        return [partial(cbn.batch_norm_forward, *arguments, **self.options, **self.axis)]

    def backward(self) -> list[Call]:
        d = self.data
        _, cache = cbn.batch_norm_forward(d.x, d.gamma, d.beta, out=d.out, **self.axis)
        return [partial(cbn.batch_norm_backward, d.dy, cache, **self.options)]

    def inference(self) -> list[Call]:
        d = self.data
        arguments = (d.x, d.mean, d.var, d.gamma, d.beta)
        return [partial(cbn.batch_norm_inference, *arguments, **self.options, **self.axis)]

    def inference_backward(self) -> list[Call]:
        d = self.data
        arguments = (d.dy, d.x, d.mean, d.var, d.gamma)
        call = cbn.batch_norm_inference_backward
        return [partial(call, *arguments, **self.options, **self.axis)]


class Floor(Contender):
    """A copy for forward, a triad of two reads and one write for backward, always into `out`."""

    any_axis = True

    def _streams(self, *inputs: NDArray) -> list[Call]:
        arrays = [array.reshape(-1).view(np.uint8) for array in (self.data.out, *inputs)]
        return [
            partial(_floor.stream, *arrays, threads=threads, non_temporal=non_temporal)
            for threads in sorted({1, self.threads})
            for non_temporal in (False, True)
        ]

    def forward(self) -> list[Call]:
        return self._streams(self.data.x)

    def backward(self) -> list[Call]:
        return self._streams(self.data.dy, self.data.x)

    inference = forward
    inference_backward = backward
