"""The batch norm functions of Stanford's course cs231n, compiled.

Same names, arguments and conventions as in the course's assignment: ``bn_param`` is a dictionary
with the keys mode ("train" or "test"), eps (default 1e-5), momentum (default 0.9), running_mean
and running_var (default zeros). momentum weighs the OLD value, the running variance is the biased
one, and both running statistics are put into ``bn_param``.

    running_mean = momentum * running_mean + (1 - momentum) * mean
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbn import _check
from cbn.cache import BatchNormCache
from cbn.derivatives import batch_norm_inference_cache
from cbn.functional import batch_norm_backward, batch_norm_forward, batch_norm_inference

Gradients = tuple[NDArray, ...]


def batchnorm_forward(
    x: NDArray, gamma: NDArray, beta: NDArray, bn_param: dict[str, Any]
) -> tuple[NDArray, BatchNormCache]:
    """Normalize by the batch (mode "train") or by the running statistics (mode "test").

    Parameters
    ----------
    x : ndarray, shape (N, D)
    gamma, beta : ndarray, shape (D,)
    bn_param : dict
        See the module; gets both running statistics, new ones in mode "train", and only when the
        call succeeds.

    Returns
    -------
    out : ndarray, shape (N, D)
    cache : BatchNormCache
        For `batchnorm_backward`. In mode "test" its gradients are those with constant statistics.

    Raises
    ------
    KeyError
        bn_param without "mode".
    ValueError
        Another mode, or a bad argument as in `cbn.batch_norm_forward`.
    """
    return _forward(x, gamma, beta, bn_param, axis=1)


def batchnorm_backward(dout: NDArray, cache: BatchNormCache) -> Gradients:
    """Return dx (N, D), dgamma (D,) and dbeta (D,)."""
    return batch_norm_backward(dout, cache)


def batchnorm_backward_alt(dout: NDArray, cache: BatchNormCache) -> Gradients:
    """Return dx (N, D), dgamma (D,) and dbeta (D,), the same: cbn has one backward, equation (16).

    The course asks for two derivations; `cbn.reference` has all of them.
    """
    return batch_norm_backward(dout, cache)


def spatial_batchnorm_forward(
    x: NDArray, gamma: NDArray, beta: NDArray, bn_param: dict[str, Any]
) -> tuple[NDArray, BatchNormCache]:
    """`batchnorm_forward` for images x of shape (N, C, H, W), per channel; gamma, beta (C,)."""
    return _forward(x, gamma, beta, bn_param, axis=1)


def spatial_batchnorm_backward(dout: NDArray, cache: BatchNormCache) -> Gradients:
    """Return dx (N, C, H, W), dgamma (C,) and dbeta (C,)."""
    return batch_norm_backward(dout, cache)


def _forward(
    x: NDArray, gamma: NDArray, beta: NDArray, bn_param: dict[str, Any], axis: int
) -> tuple[NDArray, BatchNormCache]:
    mode = bn_param["mode"]
    if mode not in ("train", "test"):
        raise ValueError(f'Invalid forward batchnorm mode "{mode}"')
    eps = bn_param.get("eps", 1e-5)
    momentum = bn_param.get("momentum", 0.9)
    x = _check.real_array("x", x)
    channels = x.shape[_check.batch(x, axis)]
    dtype = _check.result_dtype(x.dtype)
    mean, var = (
        _running(bn_param, name, channels, dtype) for name in ("running_mean", "running_var")
    )
    if mode == "train":
        out, cache = batch_norm_forward(x, gamma, beta, axis=axis, eps=eps)
        mean, var = _average(mean, cache.mean, momentum), _average(var, cache.var, momentum)
    else:
        out = batch_norm_inference(x, mean, var, gamma, beta, axis=axis, eps=eps)
        cache = batch_norm_inference_cache(x, mean, var, gamma, beta, axis=axis, eps=eps)
    bn_param["running_mean"], bn_param["running_var"] = mean, var
    return out, cache


def _running(bn_param: dict[str, Any], name: str, channels: int, dtype: np.dtype) -> NDArray:
    running = np.asarray(bn_param.get(name, np.zeros(channels, dtype)))
    if running.dtype.kind in "biu":
        running = running.astype(np.float64)
    _check.parameter_form(name, running, channels)
    return running


def _average(old: NDArray, new: NDArray, momentum: float) -> NDArray:
    return (momentum * old + (1 - momentum) * new).astype(old.dtype)
