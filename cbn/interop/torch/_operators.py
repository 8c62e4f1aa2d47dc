"""The operators torch knows: batch norm, its backward and its double backward.

Design: an operator exists twice, made of the same functions. In eager mode it is an
autograd.Function, which costs 5 us a call; where torch records a graph (torch.compile,
torch.export, make_fx, fake tensors) it is the custom operator torch.ops.cbn.*, which costs 40.
Where both meet the function comes first and its forward is the operator: a custom operator knows
no forward mode, and would give tangents of zero.
Statistics travel as one float64 tensor with the rows mean, mean_low, var and invstd, and nothing is
kept in Python between forward and backward.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from cbn import _core
from cbn.cache import NO_OPTIONS, BatchNormCache
from cbn.derivatives import batch_norm_double_backward
from cbn.interop.torch import _check
from cbn.interop.torch._tensors import (
    DTYPES,
    ROWS,
    array_of,
    axes_of,
    computed_dtype,
    is_rows,
    new_like,
    parameter,
    threads,
    values_per_channel,
)

_PLAIN = {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer}


def in_graph(x: Tensor) -> bool:
    """Whether the call is recorded, or x has no memory to compute on."""
    return (
        torch.compiler.is_compiling()
        or type(x) not in _PLAIN
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.jit.is_tracing()
        or torch._C._functorch.is_legacy_batchedtensor(x)  # is_grads_batched, vectorize=True
    )


def in_transform() -> bool:
    """Whether torch.func transforms the call."""
    return torch._C._are_functorch_transforms_active()


def _forward_mode() -> bool:
    return forward_ad._current_level >= 0


def _call(function: Any, operator: Any, like: Tensor, *args: Any) -> Any:
    """The function or its operator, as the place and the tensor `like` ask for."""
    if torch.compiler.is_compiling():
        if _forward_mode():
            raise NotImplementedError(
                "cbn.interop.torch: forward mode (torch.func.jvp, jacfwd, hessian) is not"
                " supported inside torch.compile"
            )
        return operator(*args)
    if in_transform() or _forward_mode():
        return function.recorded.apply(*args)
    if in_graph(like):
        return operator(*args)
    if torch.is_grad_enabled():
        # What Function.apply does besides is to bind defaults, which takes 20 us.
        return super(Function, function).apply(*args)
    return function.forward(*args)


# Forward ------------------------------------------------------------------------------------------


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """y and the statistics: in training those of x, else those given."""
    x = x.resolve_neg()
    y, dtype = new_like(x), computed_dtype(x)
    stats = torch.empty((ROWS, x.shape[1]), dtype=torch.float64)
    if not x.numel():
        return y, stats.zero_()
    weight, bias = parameter(weight, dtype), parameter(bias, dtype)
    mean, var = (None, None) if training else (parameter(mean, dtype), parameter(var, dtype))
    rows = is_rows(x)
    axes = axes_of(x, rows)
    _core.tensor_forward(
        *(y.data_ptr(), axes if x.is_contiguous() else axes_of(y, rows)),
        *(x.data_ptr(), axes, DTYPES[x.dtype], stats.data_ptr()),
        None if weight is None else weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        None if mean is None else mean.data_ptr(),
        None if var is None else var.data_ptr(),
        *(dtype is torch.float64, training, eps, threads()),
    )
    return y, stats


def _forward_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, _, _, ctx.training, ctx.eps = inputs
    stats = output[1]
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, stats)
    if _forward_mode():
        ctx.save_for_forward(x, weight, stats)
    ctx.has_bias = bias is not None


def _forward_backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 7
    x, weight, stats = ctx.saved_tensors
    dx, dweight, dbias = _gradients(dy, x, weight, stats, ctx.training, ctx.eps)
    dweight, dbias = None if weight is None else dweight, dbias if ctx.has_bias else None
    return dx, dweight, dbias, None, None, None, None


def _outer_forward_mode(jvp: Any) -> Any:
    """A jvp with forward mode on for the levels around its own: torch turns off all of them."""

    @functools.wraps(jvp)
    def nested(ctx: Any, *tangents: Tensor | None) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            saved = (
                None if tensor is None else forward_ad.unpack_dual(tensor).primal
                for tensor in ctx.saved_tensors
            )
            return jvp(ctx, tuple(saved), *tangents)

    return nested


@_outer_forward_mode
def _forward_jvp(
    ctx: Any,
    saved: tuple[Tensor, ...],
    x_dot: Tensor | None,
    weight_dot: Tensor | None,
    bias_dot: Tensor | None,
    *others: Tensor | None,
) -> tuple[Tensor, None]:
    """(30); the Jacobian is symmetric, so J x_dot is the dx of backward."""
    if any(tangent is not None for tangent in others):
        raise NotImplementedError(
            "cbn.interop.torch: batch norm has no derivatives in running_mean and running_var"
        )
    x, weight, stats = saved
    shape = (1, -1) + (1,) * (x.dim() - 2)
    y_dot = torch.zeros_like(x)
    if x_dot is not None:
        y_dot = y_dot + _gradients(x_dot, x, weight, stats, ctx.training, ctx.eps)[0]
    if weight_dot is not None:
        given = (None, None) if ctx.training else (stats[0], stats[2])
        xhat = batch_norm_with_statistics(x, None, None, *given, ctx.training, ctx.eps)[0]
        y_dot = y_dot + xhat * weight_dot.reshape(shape)
    if bias_dot is not None:
        y_dot = y_dot + bias_dot.reshape(shape)
    return y_dot.to(x.dtype), None


# Backward -----------------------------------------------------------------------------------------


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, stats: Tensor, training: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, and the gradients of weight and bias whether or not there are any."""
    x, dy = x.resolve_neg(), dy.resolve_neg()
    dx, dtype = new_like(x), computed_dtype(x)
    dweight, dbias = (torch.empty(x.shape[1], dtype=dtype) for _ in range(2))
    if x.numel():
        rows = is_rows(x)
        axes = axes_of(x, rows)
        _core.tensor_backward(
            *(dx.data_ptr(), axes if x.is_contiguous() else axes_of(dx, rows)),
            *(dweight.data_ptr(), dbias.data_ptr()),
            *(dy.data_ptr(), axes_of(dy, rows), x.data_ptr(), axes, DTYPES[x.dtype]),
            *(stats.data_ptr(), weight is not None, dtype is torch.float64),
            *(training, eps, threads()),
        )
    else:
        dweight.zero_(), dbias.zero_()
    if weight is None or weight.dtype is dtype:
        return dx, dweight, dbias
    return dx, dweight.to(weight.dtype), dbias.to(weight.dtype)


def _backward_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.training, ctx.eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    if _forward_mode():
        ctx.save_for_forward(*tensors)


def _backward_backward(
    ctx: Any, ddx: Tensor | None, ddweight: Tensor | None, ddbias: Tensor | None
) -> tuple[Tensor | None, ...]:
    given = ddx, ddweight, ddbias
    if all(gradient is None for gradient in given):
        return (None,) * 6
    weight = ctx.saved_tensors[2]
    g_dy, g_x, g_weight = _second_gradients(*given, *ctx.saved_tensors, ctx.training, ctx.eps)
    return g_dy, g_x, None if weight is None else g_weight, None, None, None


@_outer_forward_mode
def _backward_jvp(
    ctx: Any,
    saved: tuple[Tensor, ...],
    dy_dot: Tensor | None,
    x_dot: Tensor | None,
    weight_dot: Tensor | None,
    *_: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Linear in dy; in x and weight the second derivative of <dy, y>, which is symmetric."""
    dy, x, weight, stats = saved
    given = x, weight, stats, ctx.training, ctx.eps
    if dy_dot is None:
        dy_dot = torch.zeros_like(dy)
    dx, dweight, dbias = _gradients(dy_dot, *given)
    if x_dot is not None or weight_dot is not None:
        _, g_x, g_weight = _second_gradients(x_dot, weight_dot, None, dy, *given)
        dx, dweight = dx + g_x, dweight + g_weight
    return dx, dweight, dbias


# Double backward ----------------------------------------------------------------------------------


def _double_backward(
    ddx: Tensor | None,
    ddweight: Tensor | None,
    ddbias: Tensor | None,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    stats: Tensor,
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in dy, in x by all that depends on it, and in weight, given or not."""
    g_dy, g_x = new_like(x), new_like(x)
    g_weight = torch.zeros(x.shape[1], dtype=computed_dtype(x) if weight is None else weight.dtype)
    if x.numel():
        gamma = np.ones(x.shape[1]) if weight is None else stats[4].numpy()
        count = values_per_channel(x) if training else math.inf
        cache = BatchNormCache(
            *(array_of(x), stats[:4].numpy(), gamma, gamma, None, eps, 1, count, NO_OPTIONS)
        )
        ddx = torch.zeros_like(x) if ddx is None else ddx
        results = batch_norm_double_backward(
            *(array_of(ddx), array_of(dy), cache, array_of(ddweight), array_of(ddbias)),
            num_threads=threads(),
        )
        for to, values in zip((g_dy, g_x, g_weight), results, strict=True):
            to.copy_(torch.from_numpy(values))
    return g_dy, g_x, g_weight


def _no_third_order(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError("cbn.interop.torch: batch norm has no derivatives of the third order")


# vmap: channels do not meet, so the mapped dimension is one more of channels ----------------------


def _folded(tensor: Tensor | None, dim: int | None, size: int, axis: int) -> Tensor | None:
    """The mapped dimension put before axis and made one with it."""
    if tensor is None:
        return None
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.movedim(0, axis).flatten(axis, axis + 1)


def _mapped(function: Any, axes: tuple[int | None, ...], out_axes: tuple[int, ...]) -> Any:
    """The vmap rule of an operator with channels along the axes; None for no tensor."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple, tuple]:
        size = info.batch_size
        folded = [
            value if axis is None else _folded(value, dim, size, axis)
            for value, dim, axis in zip(args, in_dims, axes, strict=True)
        ]
        results = zip(function(*folded), out_axes, strict=True)
        return tuple(
            result.unflatten(axis, (size, result.shape[axis] // size)) for result, axis in results
        ), out_axes

    return rule


# The operators ------------------------------------------------------------------------------------


class _BatchNorm(Function):
    forward = staticmethod(_forward)
    setup_context = staticmethod(_forward_context)
    backward = staticmethod(_forward_backward)
    jvp = staticmethod(_forward_jvp)


class _BatchNormBackward(Function):
    forward = staticmethod(_backward)
    setup_context = staticmethod(_backward_context)
    backward = staticmethod(_backward_backward)
    jvp = staticmethod(_backward_jvp)


class _BatchNormDoubleBackward(Function):
    forward = staticmethod(_double_backward)
    setup_context = staticmethod(lambda ctx, inputs, output: None)
    backward = staticmethod(_no_third_order)
    jvp = staticmethod(_no_third_order)


def batch_norm_with_statistics(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """y of x (N, C, ...), and its statistics; see `_forward`."""
    return _call(_BatchNorm, _forward_op, x, x, *args)


def _gradients(dy: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _call(_BatchNormBackward, _backward_op, dy, dy, *args)


def _second_gradients(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    like = next(tensor for tensor in args if tensor is not None)
    return _call(_BatchNormDoubleBackward, _double_backward_op, like, *args)


def _register(function: Any, name: str, schema: str, fake: Any, vmap: Any) -> Any:
    """The function's custom operator; and give the function a form of it that graphs record."""

    def kernel(*args: Any) -> tuple[Tensor, ...]:
        _check.operator(schema, args)
        return function.forward(*args)

    function.vmap = staticmethod(vmap)
    op = torch.library.custom_op(
        f"cbn::{name}", kernel, mutates_args=(), device_types="cpu", schema=schema
    )
    op.register_fake(fake)
    op.register_vmap(vmap)
    op.register_autograd(function.backward, setup_context=function.setup_context)

    def forward(*args: Any) -> tuple[Tensor, ...]:
        like = next(arg for arg in args if arg is not None)
        return op(*args) if in_graph(like) else function.forward(*args)

    function.recorded = type(
        function.__name__, (function,), {"forward": staticmethod(forward), "__module__": __name__}
    )
    return op


def _fake_forward(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return new_like(x), x.new_empty((ROWS, x.shape[1]), dtype=torch.float64)


def _fake_backward(dy: Tensor, x: Tensor, weight: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    dtype = computed_dtype(x) if weight is None else weight.dtype
    return new_like(x), *(x.new_empty(x.shape[1], dtype=dtype) for _ in range(2))


def _fake_double_backward(
    ddx: Tensor, ddweight: Any, ddbias: Any, dy: Tensor, x: Tensor, weight: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    dtype = computed_dtype(x) if weight is None else weight.dtype
    return new_like(x), new_like(x), x.new_empty(x.shape[1], dtype=dtype)


_forward_op = _register(
    _BatchNorm,
    "batch_norm",
    "(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, bool training, float eps)"
    " -> (Tensor, Tensor)",
    _fake_forward,
    _mapped(batch_norm_with_statistics, (1, 0, 0, 0, 0, None, None), (1, 1)),
)
_backward_op = _register(
    _BatchNormBackward,
    "batch_norm_backward",
    "(Tensor dy, Tensor x, Tensor? weight, Tensor stats, bool training, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    _fake_backward,
    _mapped(_gradients, (1, 1, 0, 1, None, None), (1, 0, 0)),
)
_double_backward_op = _register(
    _BatchNormDoubleBackward,
    "batch_norm_double_backward",
    "(Tensor? ddx, Tensor? ddweight, Tensor? ddbias, Tensor dy, Tensor x, Tensor? weight,"
    " Tensor stats, bool training, float eps) -> (Tensor, Tensor, Tensor)",
    _fake_double_backward,
    _mapped(_second_gradients, (1, 0, 0, 1, 1, 0, 1, None, None), (1, 1, 0)),
)


# Running statistics -------------------------------------------------------------------------------


def _average(
    running_mean: Tensor, running_var: Tensor, stats: Tensor, count: int, momentum: float
) -> None:
    """(47) with the unbiased variance, in place."""
    dtype = torch.float64 if running_mean.dtype is torch.float64 else torch.float32
    mean, var = parameter(running_mean, dtype), parameter(running_var, dtype)
    _core.tensor_average(
        *(mean.data_ptr(), var.data_ptr(), stats.data_ptr(), stats.shape[1]),
        *(dtype is torch.float64, count, momentum),
    )
    if mean is not running_mean or var is not running_var:
        running_mean.copy_(mean), running_var.copy_(var)


def _checked_average(*args: Any) -> None:
    _check.operator(_AVERAGE, args)
    _average(*args)


_AVERAGE = (
    "(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor stats, SymInt count, float momentum)"
    " -> ()"
)
_average_op = torch.library.custom_op(
    "cbn::update_running_stats_",
    _checked_average,
    mutates_args=("running_mean", "running_var"),
    device_types="cpu",
    schema=_AVERAGE,
)
_average_op.register_fake(lambda *_: None)


@_average_op.register_vmap
def _average_of_many(*_: Any) -> None:
    raise RuntimeError(
        "cbn.interop.torch: under torch.vmap no running statistics can be updated in place; use"
        " track_running_stats=False or eval()"
    )


def update_running_stats(
    running_mean: Tensor, running_var: Tensor, stats: Tensor, count: int, momentum: float
) -> None:
    """Average the statistics of more than one value per channel into the running ones."""
    if in_graph(running_mean) or in_transform():
        _average_op(running_mean, running_var, stats, count, momentum)
        return
    _average(running_mean, running_var, stats, count, momentum)
    torch.autograd.graph.increment_version(running_mean)
    torch.autograd.graph.increment_version(running_var)
