"""Folding inference's batch norm into the linear or convolution layer beside it.

With given statistics batch norm is a scale and a shift a channel, equation (42), which the weights
and the bias next to it can take over. The scale is computed in float64; results are new arrays in
weight's dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbn import _check, _check_state
from cbn._statistics import inverse_std


def into_linear(
    weight: ArrayLike,
    bias: ArrayLike | None,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
) -> tuple[NDArray, NDArray]:
    """Fold batch norm into the linear layer x @ weight.T + bias before it.

    Parameters
    ----------
    weight : array_like, shape (out, in)
        Of any real floating dtype.
    bias : array_like, shape (out,), or None
    mean, var : array_like, shape (out,)
        Statistics, as for `cbn.batch_norm_inference`.
    gamma, beta : array_like, shape (out,), optional
    eps : float

    Returns
    -------
    weight, bias : ndarray
        Of the layer that does both, of weight's dtype and the shapes given; there always is a bias.

    Raises
    ------
    ValueError
        A wrong shape, a negative variance, eps negative or not finite.
    TypeError
        A dtype that is not real and floating.
    """
    weight = _check_state.weight(weight, "(out, in)")
    return _scale_outputs(weight, weight.shape[:1], bias, mean, var, gamma, beta, eps)


def into_conv(
    weight: ArrayLike,
    bias: ArrayLike | None,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
) -> tuple[NDArray, NDArray]:
    """Fold batch norm into the convolution before it.

    Parameters
    ----------
    weight : array_like, shape (out, in/groups, ...)
    bias, mean, var, gamma, beta, eps
        As for `into_linear`.

    Returns
    -------
    weight, bias : ndarray

    Raises
    ------
    ValueError, TypeError
        As `into_linear`.
    """
    weight = _check_state.weight(weight, "(out, in/groups, *k)")
    return _scale_outputs(weight, weight.shape[:1], bias, mean, var, gamma, beta, eps)


def into_conv_transpose(
    weight: ArrayLike,
    bias: ArrayLike | None,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    groups: int = 1,
) -> tuple[NDArray, NDArray]:
    """Fold batch norm into the transposed convolution before it.

    Parameters
    ----------
    weight : array_like, shape (in, out/groups, ...)
    bias, mean, var, gamma, beta, eps
        As for `into_linear`.
    groups : int
        Of the convolution; divides in.

    Returns
    -------
    weight, bias : ndarray

    Raises
    ------
    ValueError, TypeError
        As `into_linear`, and for groups.
    """
    weight = _check_state.weight(weight, "(in, out/groups, *k)")
    inputs, outputs, *kernel = weight.shape
    groups = _check_state.groups(groups, inputs)
    grouped = weight.reshape(groups, inputs // groups, outputs, *kernel)
    by_output = np.moveaxis(grouped, 2, 1)
    folded, bias = _scale_outputs(by_output, (groups, outputs), bias, mean, var, gamma, beta, eps)
    return np.ascontiguousarray(np.moveaxis(folded, 1, 2)).reshape(weight.shape), bias


def before_linear(
    weight: ArrayLike,
    bias: ArrayLike | None,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
) -> tuple[NDArray, NDArray]:
    """Fold batch norm into the linear layer after it.

    Into a convolution it cannot be folded exactly, for padding comes between the two.

    Parameters
    ----------
    weight : array_like, shape (out, in)
    bias : array_like, shape (out,), or None
    mean, var : array_like, shape (in,)
    gamma, beta : array_like, shape (in,), optional
    eps : float

    Returns
    -------
    weight, bias : ndarray

    Raises
    ------
    ValueError, TypeError
        As `into_linear`.
    """
    weight = _check_state.weight(weight, "(out, in)")
    outputs, inputs = weight.shape
    bias = _wide(_check.parameter("bias", bias, outputs))
    mean, scale, beta = _affine(mean, var, gamma, beta, eps, inputs)
    shift = weight.astype(np.float64) @ (beta - mean * scale)
    return (weight * scale).astype(_dtype(weight)), (shift + bias).astype(_dtype(weight))


def _scale_outputs(
    weight: NDArray,
    leading: tuple[int, ...],
    bias: ArrayLike | None,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    eps: float,
) -> tuple[NDArray, NDArray]:
    """Fold into a weight whose leading axes are the output channels."""
    outputs = int(np.prod(leading))
    wide_bias = _wide(_check.parameter("bias", bias, outputs))
    centre, scale, shift = _affine(mean, var, gamma, beta, eps, outputs)
    by_channel = scale.reshape(*leading, *[1] * (weight.ndim - len(leading)))
    folded_bias = (wide_bias - centre) * scale + shift
    return (weight * by_channel).astype(_dtype(weight)), folded_bias.astype(_dtype(weight))


def _affine(
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    eps: float,
    channels: int,
) -> tuple[Any, Any, Any]:
    """mean, scale and beta of y = (x - mean) * scale + beta in float64."""
    mean, var, gamma = _check.population(mean, var, gamma, channels)
    beta = _check.parameter("beta", beta, channels)
    invstd = inverse_std(var, _check.epsilon(eps))
    return _wide(mean), invstd if gamma is None else _wide(gamma) * invstd, _wide(beta)


def _wide(values: NDArray | None) -> NDArray[np.float64] | float:
    return 0.0 if values is None else values.astype(np.float64)


def _dtype(weight: NDArray) -> np.dtype:
    return _check.result_dtype(weight.dtype)
