"""torch.nn.functional.batch_norm, computed by cbn."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from cbn.interop.torch import _check
from cbn.interop.torch._operators import batch_norm_with_statistics, update_running_stats
from cbn.interop.torch._tensors import values_per_channel


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm with the signature and the conventions of torch.nn.functional.batch_norm.

    Parameters
    ----------
    input : Tensor, shape (N, C, ...)
        float32, float64, float16 or bfloat16, on the CPU, of any strides.
    running_mean, running_var : Tensor, shape (C,), optional
        Normalize, or with ``training`` are averaged in place with the batch's mean and unbiased
        variance. Parameters and these have one dtype: input's, or float32 beside a half input.
    weight, bias : Tensor, shape (C,), optional
        Scale and shift.
    training : bool
        Normalize by the batch.
    momentum : float
        The weight of the new value.
    eps : float
        Added to the variance.

    Returns
    -------
    Tensor
        Of input's shape and dtype, in its memory format as torch.nn.functional.batch_norm chooses
        it: channels last, or else contiguous.

    Raises
    ------
    ValueError
        One value per channel in training, fewer than 2 dimensions, a bad eps.
    RuntimeError
        Parameters of another length or dtype, or missing running statistics.
    NotImplementedError
        Tensors that are not on the CPU, sparse ones, dtypes that are not real floats.
    """
    if has_torch_function_variadic(input, running_mean, running_var, weight, bias):
        tensors = (input, running_mean, running_var, weight, bias)
        settings = {"training": training, "momentum": momentum, "eps": eps}
        return handle_torch_function(
            *(batch_norm, tensors, input, running_mean, running_var),
            weight=weight,
            bias=bias,
            **settings,
        )
    eps, momentum = float(eps), float(momentum)
    _check.arguments(input, running_mean, running_var, weight, bias, training, eps)
    mean, var = (None, None) if training else (running_mean, running_var)
    y, stats = batch_norm_with_statistics(input, weight, bias, mean, var, training, eps)
    if training and running_mean is not None and input.numel():
        count = values_per_channel(input)
        update_running_stats(running_mean, running_var, stats, count, momentum)
    return y
