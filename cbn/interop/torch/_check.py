"""What batch norm refuses, in PyTorch's words wherever it has some."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from cbn.interop.torch._tensors import ROWS, values_per_channel

_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_HALF = {torch.float16, torch.bfloat16}


def arguments(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    alone: bool = True,
) -> None:
    """Of torch.nn.functional.batch_norm; x that is not alone is a part of a batch."""
    if not isinstance(x, Tensor):
        raise TypeError(f"input: expected a torch.Tensor, got {type(x).__name__}")
    if x.dim() < 2:
        raise ValueError(f"expected at least 2D input (got {x.dim()}D input)")
    if training:
        if alone:
            several_values(x, values_per_channel(x))
        if not eps > 0:
            raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")
        if (running_mean is None) is not (running_var is None):
            raise ValueError(
                "running_mean and running_var must either both be None or neither be None"
            )
    elif not eps >= 0:
        raise ValueError(f"batch_norm eps must be non-negative, but got {eps}")
    elif running_mean is None or running_var is None:
        name = "running_mean" if running_mean is None else "running_var"
        raise RuntimeError(f"{name} must be defined in evaluation mode")
    if eps == math.inf:
        raise ValueError(f"batch_norm eps must be finite, but got {eps}")
    dtype, channels = x.dtype, x.shape[1]
    if not (x.is_cpu and x.layout is torch.strided and dtype in _DTYPES):
        _memory("input", x)
        raise NotImplementedError(f"\"batch_norm\" not implemented for '{_name(x)}'")
    for tensor in (running_mean, running_var, weight, bias):
        # Nearly always all is well, and then this is all.
        if tensor is not None and not (
            tensor.dtype is dtype
            and tensor.is_cpu
            and tensor.dim() == 1
            and tensor.numel() == channels
        ):
            _parameters(x, running_mean, running_var, weight, bias)
    for tensor in (running_mean, running_var):
        if tensor is not None and tensor.requires_grad:
            raise RuntimeError(
                "batch_norm is not differentiable with respect to running_mean and running_var,"
                " which cannot have requires_grad True"
            )


def _parameters(x: Tensor, *tensors: Tensor | None) -> None:
    """That lengths fit, and dtypes: one for all of them, x's, or float32 beside a half x."""
    names = "running_mean", "running_var", "weight", "bias"
    given = {
        name: tensor for name, tensor in zip(names, tensors, strict=True) if tensor is not None
    }
    first = next(iter(given.values()))
    for name, tensor in given.items():
        if tensor.numel() != x.shape[1]:
            raise RuntimeError(f"{name} should contain {x.shape[1]} elements not {tensor.numel()}")
        if tensor.dim() != 1:
            raise RuntimeError(f"{name} should have 1 dimension not {tensor.dim()}")
        _memory(name, tensor)
        if tensor.dtype is x.dtype is first.dtype:
            continue
        if tensor.dtype is not first.dtype:
            raise RuntimeError(f"expected scalar type {_name(first)} but found {_name(tensor)}")
        if tensor.dtype is not torch.float32:
            raise RuntimeError("mixed dtype (CPU): expect parameter to have scalar type of Float")
        if x.dtype not in _HALF:
            raise RuntimeError("mixed dtype (CPU): all inputs must share same datatype.")


def operator(schema: str, args: tuple) -> None:
    """Of an operator called by itself: what the compiled functions rely on."""
    names = re.findall(r"(\w+)(?=[,)])", schema.partition("->")[0])
    given = {
        name: value for name, value in zip(names, args, strict=True) if isinstance(value, Tensor)
    }
    for name, tensor in given.items():
        _memory(name, tensor)
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name}: expected a real floating dtype, got {tensor.dtype}")
    channels = given["x"].shape[1] if "x" in given else given["stats"].shape[-1]
    for name, tensor in given.items():
        shape, dtype = (channels,), tensor.dtype
        if name in ("x", "dy", "ddx"):
            shape, dtype = given["x"].shape, given["x"].dtype
        if name == "stats":
            shape, dtype = (ROWS, channels), torch.float64
        if tensor.shape != shape or tensor.dtype is not dtype:
            raise ValueError(
                f"{name}: expected {dtype} of shape {tuple(shape)}, got {tensor.dtype} of shape"
                f" {tuple(tensor.shape)}"
            )


def several_values(x: Tensor, count: int) -> None:
    """That the batch of x has more than one value per channel, or none."""
    if count == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.size()}"
        )


def _memory(name: str, tensor: Tensor) -> None:
    if not tensor.is_cpu:
        raise NotImplementedError(
            f"cbn.interop.torch: {name} is on device {tensor.device}, expected cpu;"
            " cbn.interop.torch.restore(model) gives back PyTorch's batch norm"
        )
    if tensor.layout is not torch.strided:
        raise NotImplementedError(
            f"cbn.interop.torch: {name} has layout {tensor.layout}, expected torch.strided"
        )


def _name(tensor: Tensor) -> str:
    """As PyTorch's own texts call a dtype: Float, BFloat16, Long."""
    return tensor.type().rpartition(".")[2].removesuffix("Tensor")
