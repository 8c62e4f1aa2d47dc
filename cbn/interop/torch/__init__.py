"""Batch normalization for PyTorch on CPUs: its modules, its function, and `convert` for models.

`BatchNorm1d`, `BatchNorm2d`, `BatchNorm3d` and their lazy forms are subclasses of PyTorch's that
compute with cbn: constructor, attributes, state_dict, printed form and error texts are PyTorch's
own. `SyncBatchNorm` is like its namesake, and works under DistributedDataParallel. Tensors are not
copied; gradients of the first and second order, torch.compile, torch.func and autocast work as with
PyTorch's. Needs the extra ``cbn[torch]``.

A call uses as many threads as both `torch.get_num_threads` and `cbn.get_num_threads` allow.
"""

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError('cbn.interop.torch needs PyTorch: pip install "cbn[torch]"') from error

from cbn.interop.torch.conversion import convert, restore
from cbn.interop.torch.functional import batch_norm
from cbn.interop.torch.modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)
from cbn.interop.torch.sync import SyncBatchNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "SyncBatchNorm",
    "batch_norm",
    "convert",
    "restore",
]
