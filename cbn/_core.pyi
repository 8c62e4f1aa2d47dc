from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float32] | NDArray[np.float64]
_Channels = NDArray[np.float64]
_Threads = int | Callable[[], int]

class _Fused:
    """One compiled function per dtype, by its C name."""

    def __getitem__(self, dtype: Literal["float", "double"]) -> _Fused: ...
    def __call__(self, *args: _Array | _Channels | float | int | None) -> None: ...

forward: _Fused  # (y, stats, x, gamma, beta, eps, threads)
inference: _Fused  # (y, stats, x, gamma, beta, eps, threads)
backward: _Fused  # (dx, dgamma, dbeta, dy, x, stats, count, gamma, threads)
inference_backward: _Fused  # (dx, dgamma, dbeta, stats, dy, x, gamma, eps, threads)
jvp: _Fused  # (y_dot, x_dot, x, stats, count, gamma, gamma_dot, beta_dot, threads)
# (g_dy, g_x, g_gamma, ddx, dy, x, stats, count, gamma, ddgamma, ddbeta, threads)
double_backward: _Fused

def plain_forward(
    x: object, gamma: object, beta: object, out: object, eps: float, threads: _Threads
) -> tuple[_Array, _Channels] | None: ...
def plain_backward(
    dy: object,
    x: _Array,
    stats: _Channels,
    count: float,
    gamma64: _Channels | None,
    gamma: NDArray | None,
    dgamma_dtype: np.dtype | None,
    dbeta_dtype: np.dtype | None,
    out: object,
    threads: _Threads,
) -> tuple[_Array, _Array | None, _Array | None] | None: ...
def plain_inference(
    x: object,
    mean: object,
    var: object,
    gamma: object,
    beta: object,
    out: object,
    eps: float,
    threads: _Threads,
) -> _Array | None: ...
def plain_inference_backward(
    dy: object,
    x: object,
    mean: object,
    var: object,
    gamma: object,
    out: object,
    eps: float,
    threads: _Threads,
) -> tuple[_Array, _Array | None, _Array] | None: ...
def choose_isa() -> str | None: ...
def chosen_isa() -> str | None: ...
def isa_tier(index: int) -> tuple[str, bool] | None: ...
def openmp() -> tuple[int, int]: ...
