"""Tensors as the compiled functions take them: addresses, sizes and strides; and new tensors."""

from __future__ import annotations

import functools
import math
import struct

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
    return struct.Struct(f"{2 * dims}n")


def axes_of(tensor: Tensor) -> bytes:
    """Sizes and strides."""
    sizes = tensor.shape
    return _packer(len(sizes)).pack(*sizes, *tensor.stride())


def computed_dtype(x: Tensor) -> torch.dtype:
    """What an x is computed in, and the form of parameters beside it."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def parameter(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Per-channel values in that dtype and contiguous, as the C core takes them."""
    if tensor is None or (tensor.dtype is dtype and tensor.is_contiguous()):
        return tensor
    return tensor.detach().to(dtype).contiguous()


def array_of(tensor: Tensor | None) -> NDArray | None:
    """An array in the dtype that it is computed in; of half types a copy."""
    return None if tensor is None else tensor.detach().to(computed_dtype(tensor)).numpy()


def new_like(x: Tensor) -> Tensor:
    """An empty tensor for a result of x's shape, in the memory format PyTorch gives it."""
    if x.is_contiguous():
        return torch.empty_like(x)
    return torch.empty_like(x, memory_format=torch._prims_common.suggest_memory_format(x))


def values_per_channel(x: Tensor) -> int:
    return math.prod(x.shape[2:], start=x.shape[0])


def threads() -> int:
    return min(torch.get_num_threads(), get_num_threads())
