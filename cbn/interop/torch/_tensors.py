"""Tensors as the compiled functions take them: addresses, sizes and strides; and new tensors."""

from __future__ import annotations

import functools
import math
import struct

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cbn import _core
from cbn.runtime import get_num_threads

DTYPES = {getattr(torch, name): number for name, number in _core.tensor_dtypes.items()}

ROWS = 6
"""Of a tensor of statistics, as _tensors.pxi has them."""


@functools.cache
def _packer(dims: int) -> struct.Struct:
    return struct.Struct(f"{1 + 2 * dims}n")


def is_rows(x: Tensor) -> bool:
    """Whether the channels of a position lie side by side, as in channels_last.

    Then all positions are rows, whose sums are taken in another order than those of contiguous
    images: by channels that are strides apart, 32 x 16 x 32 x 32 took 15 times as long.
    """
    return x.dim() > 2 and x.stride(1) == 1 and not x.is_contiguous()


def axes_of(tensor: Tensor, rows: bool = False) -> bytes:
    """The channel axis, sizes and strides; as `rows` with the channel axis last."""
    sizes, strides = tensor.shape, tensor.stride()
    dims = len(sizes)
    if rows:
        sizes, strides = (
            (*sizes[:1], *sizes[2:], sizes[1]),
            (*strides[:1], *strides[2:], strides[1]),
        )
        return _packer(dims).pack(dims - 1, *sizes, *strides)
    return _packer(dims).pack(1, *sizes, *strides)


def computed_dtype(x: Tensor) -> torch.dtype:
    """What an x is computed in, and the form of parameters beside it."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def parameter(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Per-channel values in that dtype and contiguous, as the C core takes them."""
    if tensor is None or (tensor.dtype is dtype and tensor.is_contiguous()):
        return tensor
    return tensor.detach().to(dtype).contiguous()


def array_of(tensor: Tensor | None, rows: bool = False) -> NDArray | None:
    """An array in the dtype that it is computed in; of half types a copy; see axes_of."""
    if tensor is None:
        return None
    array = tensor.detach().to(computed_dtype(tensor)).numpy()
    return np.moveaxis(array, 1, -1) if rows else array


def new_like(x: Tensor) -> Tensor:
    """An empty tensor for a result of x's shape, in the memory format PyTorch gives it."""
    if x.is_contiguous():
        # Not as x: at sizes of 1 its strides are free, and say channels_last or not.
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    return torch.empty_like(x, memory_format=torch._prims_common.suggest_memory_format(x))


def values_per_channel(x: Tensor) -> int:
    return math.prod(x.shape[2:], start=x.shape[0])


def threads() -> int:
    return min(torch.get_num_threads(), get_num_threads())
