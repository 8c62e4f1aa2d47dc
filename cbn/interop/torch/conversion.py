"""A model's batch norms from PyTorch's to cbn's and back."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from cbn.interop.torch import modules
from cbn.interop.torch.sync import SyncBatchNorm

_OURS = {
    nn.BatchNorm1d: modules.BatchNorm1d,
    nn.BatchNorm2d: modules.BatchNorm2d,
    nn.BatchNorm3d: modules.BatchNorm3d,
    nn.LazyBatchNorm1d: modules.LazyBatchNorm1d,
    nn.LazyBatchNorm2d: modules.LazyBatchNorm2d,
    nn.LazyBatchNorm3d: modules.LazyBatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}

_Model = TypeVar("_Model", bound=nn.Module)


def convert(model: _Model) -> _Model:
    """Let cbn compute every batch norm of a model, in place.

    Parameters
    ----------
    model : torch.nn.Module
        May itself be a batch norm. Lazy ones and SyncBatchNorm are converted too. Modules of a
        subclass of PyTorch's batch norms are left alone, for they may compute something else.

    Returns
    -------
    torch.nn.Module
        The model itself. Its batch norms are the same objects of another class: parameters,
        buffers, hooks, flags and state_dict stay what they were, and optimizers keep working.

    Raises
    ------
    TypeError
        model is no module.

    Examples
    --------
    >>> import torch
    >>> from cbn.interop.torch import convert, restore
    >>> model = convert(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)))
    >>> type(model[1])
    <class 'cbn.interop.torch.modules.BatchNorm1d'>
    >>> type(restore(model)[1])
    <class 'torch.nn.modules.batchnorm.BatchNorm1d'>
    """
    return _with_classes(model, _OURS)


def restore(model: _Model) -> _Model:
    """Undo `convert`: let PyTorch compute every batch norm of a model, in place.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    torch.nn.Module
        The model itself.

    Raises
    ------
    TypeError
        model is no module.
    """
    return _with_classes(model, _THEIRS)


def _with_classes(model: _Model, classes: dict[type, type]) -> _Model:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        module.__class__ = classes.get(type(module), type(module))
    return model
