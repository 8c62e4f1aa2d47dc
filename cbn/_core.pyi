from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cbn.cache import ForwardOptions

_Array = NDArray[np.float32] | NDArray[np.float64]
_Channels = NDArray[np.float64]
_Threads = int | Callable[[], int]

_Positions = NDArray[np.intp] | None

class CacheFields:
    x: NDArray
    gamma: NDArray | None
    eps: float
    axis: int
    count: float
    _shape: tuple[int, ...]
    _stats: _Channels
    _gamma: _Channels | None
    _gamma_dtype: np.dtype | None
    _beta_dtype: np.dtype | None
    _options: ForwardOptions
    def __init__(
        self,
        x: NDArray,
        stats: _Channels,
        gamma64: _Channels | None,
        gamma: NDArray | None,
        beta: NDArray | None,
        eps: float,
        axis: int,
        count: float,
        options: ForwardOptions,
    ) -> None: ...

_Cache = TypeVar("_Cache", bound=CacheFields)

def moments(
    stats: _Channels, x: NDArray, axis: int, eps: float, positions: _Positions, threads: int
) -> None: ...
def merge_moments(stats: _Channels, count: float, other: _Channels, other_count: float) -> None: ...
def merge_sums(
    total: _Channels, low: _Channels, other: _Channels, other_low: _Channels
) -> None: ...
def forward(
    y: NDArray,
    stats: _Channels,
    x: NDArray,
    axis: int,
    gamma: _Channels | None,
    beta: _Channels | None,
    eps: float,
    residual: NDArray | None,
    relu: bool,
    positions: _Positions,
    threads: int,
) -> None: ...
def inference(
    y: NDArray,
    stats: _Channels,
    x: NDArray,
    axis: int,
    gamma: _Channels | None,
    beta: _Channels | None,
    eps: float,
    residual: NDArray | None,
    relu: bool,
    positions: _Positions,
    threads: int,
) -> None: ...
def backward(
    dx: NDArray,
    dgamma: _Channels,
    dbeta: _Channels,
    dy: NDArray,
    x: NDArray,
    axis: int,
    stats: _Channels,
    count: float,
    gamma: _Channels | None,
    positions: _Positions,
    threads: int,
) -> None: ...
def gated_backward(
    dx: NDArray,
    gated: NDArray,
    dgamma: _Channels,
    dbeta: _Channels,
    dy: NDArray,
    x: NDArray,
    axis: int,
    stats: _Channels,
    count: float,
    gamma: _Channels | None,
    beta: _Channels | None,
    residual: NDArray | None,
    relu: bool,
    positions: _Positions,
    threads: int,
) -> None: ...
def backward_sums(
    sum_dy_xhat: _Channels,
    sum_dy: _Channels,
    dy: NDArray,
    x: NDArray,
    axis: int,
    stats: _Channels,
    positions: _Positions,
    threads: int,
) -> None: ...
def backward_apply(
    dx: NDArray,
    dy: NDArray,
    x: NDArray,
    axis: int,
    stats: _Channels,
    count: float,
    gamma: _Channels | None,
    sum_dy_xhat: _Channels,
    sum_dy: _Channels,
    positions: _Positions,
    threads: int,
) -> None: ...
def inference_backward(
    dx: NDArray,
    dgamma: _Channels,
    dbeta: _Channels,
    stats: _Channels,
    dy: NDArray,
    x: NDArray,
    axis: int,
    gamma: _Channels | None,
    eps: float,
    threads: int,
) -> None: ...
def jvp(
    y_dot: _Array,
    x_dot: _Array,
    x: _Array,
    stats: _Channels,
    count: float,
    gamma: _Channels | None,
    gamma_dot: _Channels | None,
    beta_dot: _Channels | None,
    threads: int,
) -> None: ...
def double_backward(
    g_dy: _Array,
    g_x: _Array,
    g_gamma: _Channels,
    ddx: _Array,
    dy: _Array,
    x: _Array,
    stats: _Channels,
    count: float,
    gamma: _Channels | None,
    ddgamma: _Channels | None,
    ddbeta: _Channels | None,
    threads: int,
) -> None: ...
def plain_forward(
    x: object,
    gamma: object,
    beta: object,
    axis: object,
    out: object,
    eps: object,
    threads: _Threads,
    cache_type: type[_Cache],
    options: ForwardOptions,
) -> tuple[_Array, _Cache] | None: ...
def plain_backward(
    dy: object,
    cache: CacheFields,
    out: object,
    threads: _Threads,
    no_options: ForwardOptions,
) -> tuple[_Array, _Array | None, _Array | None] | None: ...
def plain_inference(
    x: object,
    mean: object,
    var: object,
    gamma: object,
    beta: object,
    axis: object,
    out: object,
    eps: object,
    threads: _Threads,
) -> _Array | None: ...
def plain_inference_backward(
    dy: object,
    x: object,
    mean: object,
    var: object,
    gamma: object,
    axis: object,
    out: object,
    eps: object,
    threads: _Threads,
) -> tuple[_Array, _Array | None, _Array] | None: ...
def plain_average(
    running_mean: object,
    running_var: object,
    batches: NDArray[np.int64],
    cache: CacheFields,
    momentum: float,
    factor: float,
) -> bool: ...
def put(to: _Array, values: _Array) -> None: ...

tensor_dtypes: dict[str, int]

def tensor_forward(
    y: int,
    y_axes: bytes,
    x: int,
    x_axes: bytes,
    dtype: int,
    stats: int,
    weight: int | None,
    bias: int | None,
    mean: int | None,
    var: int | None,
    wide: bool,
    training: bool,
    eps: float,
    threads: int,
) -> None: ...
def tensor_backward(
    dx: int,
    dx_axes: bytes,
    dgamma: int,
    dbeta: int,
    dy: int,
    dy_axes: bytes,
    x: int,
    x_axes: bytes,
    dtype: int,
    stats: int,
    scaled: bool,
    wide: bool,
    training: bool,
    eps: float,
    threads: int,
) -> None: ...
def tensor_average(
    mean: int, var: int, stats: int, channels: int, wide: bool, count: float, momentum: float
) -> None: ...
def choose_isa() -> str | None: ...
def chosen_isa() -> str | None: ...
def isa_tier(index: int) -> tuple[str, bool] | None: ...
def openmp() -> tuple[int, int]: ...
