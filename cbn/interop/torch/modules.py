"""PyTorch's batch norm modules with cbn underneath, and a model's from one to the other.

Design: a module differs from PyTorch's by its class alone. So `convert` and `restore` set
``__class__``, as PyTorch itself does for lazy modules and parametrizations, and whatever else the
module has - parameters, buffers, hooks, flags, references to it - stays.
"""

from __future__ import annotations

from torch import Tensor, nn

from cbn.interop.torch.functional import batch_norm


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """What a call does; the rest is PyTorch's."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize input, and in training mode average its statistics into the running ones."""
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        tracked = self.training and self.track_running_stats
        if tracked and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1 / float(self.num_batches_tracked)
        mean, var = self.running_mean, self.running_var
        training = self.training or (mean is None and var is None)
        if self.training and not tracked:
            mean = var = None
        return self._normalize(input, mean, var, training, momentum)

    def _normalize(
        self,
        input: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        training: bool,
        momentum: float,
    ) -> Tensor:
        return batch_norm(input, mean, var, self.weight, self.bias, training, momentum, self.eps)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d, computed by cbn: inputs (N, C) and (N, C, L)."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d, computed by cbn: inputs (N, C, H, W)."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d, computed by cbn: inputs (N, C, D, H, W)."""


class LazyBatchNorm1d(_BatchNorm, nn.LazyBatchNorm1d):
    """torch.nn.LazyBatchNorm1d, which becomes a `BatchNorm1d`."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_BatchNorm, nn.LazyBatchNorm2d):
    """torch.nn.LazyBatchNorm2d, which becomes a `BatchNorm2d`."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_BatchNorm, nn.LazyBatchNorm3d):
    """torch.nn.LazyBatchNorm3d, which becomes a `BatchNorm3d`."""

    cls_to_become = BatchNorm3d
