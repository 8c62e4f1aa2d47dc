"""SyncBatchNorm over the processes of torch.distributed, on CPUs.

Every process sends the moments of its part of the batch, and in backward its sums, in one
all_gather of float64; all merge them in the order of ranks, so that all have the same bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from cbn._mergeable import Mergeable
from cbn.cache import NO_OPTIONS, BatchNormCache
from cbn.interop.torch import _check
from cbn.interop.torch._operators import update_running_stats
from cbn.interop.torch._tensors import array_of, is_rows, new_like, threads
from cbn.interop.torch.modules import _BatchNorm
from cbn.moments import BackwardSums, Moments
from cbn.parts import batch_norm_backward_apply, batch_norm_normalize


def _whole(own: Mergeable, group: Any) -> Mergeable:
    """Of the batch of all processes."""
    sent = torch.from_numpy(own.to_buffer())
    received = [torch.empty_like(sent) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(received, sent, group)
    return own.merge_all(own.from_buffer(tensor.numpy()) for tensor in received)


def _moments(x: Tensor) -> Moments:
    """Of the own part."""
    if not x.numel():
        return Moments(0, *np.zeros((2, x.shape[1])))
    rows = is_rows(x)
    return Moments.from_batch(array_of(x, rows), axis=_axis(rows), num_threads=threads())


def _axis(rows: bool) -> int:
    return -1 if rows else 1


def _computed(out: Tensor, rows: bool, function: Any, *args: Any, **settings: Any) -> tuple:
    """What a function returns that writes to `out`, or for half types to an array before it."""
    values = np.asarray(array_of(out, rows))
    result = function(*args, out=values, num_threads=threads(), **settings)
    if values.dtype.itemsize != out.element_size():
        out.copy_(torch.from_numpy(np.moveaxis(values, -1, 1) if rows else values))
    return result


class _SyncBatchNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any
    ) -> tuple[Tensor, Tensor, float]:
        whole = _whole(_moments(x), group)
        y, stats, rows = new_like(x), np.zeros((4, x.shape[1])), is_rows(x)
        if x.numel():
            _, cache = _computed(
                *(y, rows, batch_norm_normalize),
                *(array_of(x, rows), whole, array_of(weight), array_of(bias)),
                axis=_axis(rows),
                eps=eps,
            )
            stats = cache._stats.copy()
        else:
            stats[:3] = whole._rows
        statistics = torch.from_numpy(stats)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, statistics)
        ctx.has_bias, ctx.eps, ctx.count, ctx.group = bias is not None, eps, whole.count, group
        return y, statistics, whole.count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, statistics = ctx.saved_tensors
        gamma = array_of(weight)
        gamma64 = None if gamma is None else gamma.astype(np.float64)
        rows = is_rows(x)
        axis = _axis(rows) % x.dim()
        cache = BatchNormCache(
            *(array_of(x, rows), statistics.numpy(), gamma64, gamma, None, ctx.eps, axis),
            *(ctx.count, NO_OPTIONS),
        )
        own = BackwardSums(0, *np.zeros((2, x.shape[1])))
        if x.numel():
            own = BackwardSums.from_batch(array_of(dy, rows), cache, threads())
        dx = None
        if ctx.needs_input_grad[0]:
            dx, whole = new_like(x), _whole(own, ctx.group)
            if x.numel():
                _computed(dx, rows, batch_norm_backward_apply, array_of(dy, rows), cache, whole)
        dweight = None if weight is None else torch.from_numpy(own.sum_dy_xhat.copy())
        dbias = torch.from_numpy(own.sum_dy.copy()) if ctx.has_bias else None
        return dx, dweight, dbias, None, None


class SyncBatchNorm(_BatchNorm):
    """torch.nn.SyncBatchNorm for tensors on the CPU, with any backend that has all_gather (gloo).

    Statistics and the gradient of input are those of the batch of all processes, whose parts may
    have different sizes, none included; the gradients of weight and bias are those of the own
    part, which DistributedDataParallel averages. Without processes, or in evaluation mode, it is
    plain batch norm. There is no double backward, as in PyTorch's.

    It has the constructor and the state of torch.nn.SyncBatchNorm and is no subclass of it, since
    DistributedDataParallel refuses those on the CPU.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        settings = (eps, momentum, affine, track_running_stats, device, dtype)
        super().__init__(num_features, *settings, **options)
        self.process_group = process_group

    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def _normalize(
        self,
        input: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        training: bool,
        momentum: float,
    ) -> Tensor:
        self._check_non_zero_input_channels(input)
        group = self._group()
        if group is None:
            return super()._normalize(input, mean, var, training, momentum)
        return self._synchronized(input, mean, var, momentum, group)

    def _group(self) -> Any:
        """The processes to synchronize with, None for no others."""
        if not (self.training and distributed.is_available() and distributed.is_initialized()):
            return None
        group = self.process_group or distributed.group.WORLD
        return group if distributed.get_world_size(group) > 1 else None

    @torch.compiler.disable
    def _synchronized(
        self, input: Tensor, mean: Tensor | None, var: Tensor | None, momentum: float, group: Any
    ) -> Tensor:
        eps = float(self.eps)
        _check.arguments(input, mean, var, self.weight, self.bias, True, eps, alone=False)
        y, statistics, count = _SyncBatchNorm.apply(input, self.weight, self.bias, eps, group)
        _check.several_values(input, count)
        if mean is not None and count:
            update_running_stats(mean, var, statistics, int(count), float(momentum))
        return y

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """As torch.nn.SyncBatchNorm.convert_sync_batchnorm, to this class."""
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module, process_group)
        for each in module.modules():
            if type(each) is nn.SyncBatchNorm:
                each.__class__ = cls
        return module
