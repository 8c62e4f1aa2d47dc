"""Forward and backward with everything a call may ask for; arguments have been checked.

A pass is one compiled call where it can be. Ghost batches are passes over parts of axis 0, and
weights, which no kernel knows, are a few passes with what the kernels offer: sums of products and
affine maps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbn import _check, _core
from cbn._arrays import computed, new_array, round_to
from cbn._statistics import inverse_std, two_sum
from cbn.cache import BatchNormCache, ForwardOptions

_Channels = NDArray[np.float64]


class Call(NamedTuple):
    """What a forward call was given beside arrays of x's shape."""

    gamma: NDArray | None
    beta: NDArray | None
    gamma64: _Channels | None
    eps: float
    axis: int
    threads: int


class Sums(NamedTuple):
    """The gradients that are sums over the batch."""

    dy_xhat: _Channels
    dy: _Channels


def fixed_statistics(
    mean: NDArray | float, var: NDArray | float, channels: int, mean_low: NDArray | float = 0
) -> _Channels:
    """Given statistics in the form of the C core, which fills in the last row, invstd."""
    stats = np.zeros((4, channels))
    stats[0], stats[1], stats[2] = mean, mean_low, var
    return stats


def blank(out: NDArray | None, mask: NDArray[np.bool_] | None) -> None:
    """Zeros where the mask leaves out."""
    if out is not None and mask is not None:
        np.copyto(out, 0, where=~mask)


def inference(
    y: NDArray,
    x: NDArray,
    stats: _Channels,
    call: Call,
    residual: NDArray | None = None,
    relu: bool = False,
    positions: NDArray[np.intp] | None = None,
) -> None:
    """y of given statistics, (42), at the positions; the last row of stats is filled in."""
    if positions is not None and not positions.size:
        return
    beta = None if call.beta is None else np.array(call.beta, np.float64)
    _core.inference(
        *(y, stats, computed(x, y.dtype.newbyteorder("=")), call.axis, call.gamma64, beta),
        *(call.eps, residual, relu, positions, call.threads),
    )


def inference_backward(
    dx: NDArray,
    dgamma: _Channels,
    dbeta: _Channels,
    stats: _Channels,
    dy: NDArray,
    x: NDArray,
    call: Call,
) -> None:
    """dx and the sums of given statistics, (42)."""
    out, dy, x = _alike(dx, dy, x)
    _core.inference_backward(
        *(out, dgamma, dbeta, stats, dy, x, call.axis, call.gamma64, call.eps, call.threads)
    )
    if out is not dx:
        round_to(dx, out)


def positions_of(mask: NDArray[np.bool_] | None) -> NDArray[np.intp] | None:
    return None if mask is None else np.flatnonzero(mask)


def values_per_channel(x: NDArray, axis: int, positions: NDArray[np.intp] | None) -> int:
    if positions is not None:
        return positions.size
    return math.prod(x.shape[:axis] + x.shape[axis + 1 :])


def statistics(
    x: NDArray, axis: int, mask: NDArray[np.bool_] | None, weight: NDArray | None, threads: int
) -> tuple[float, _Channels]:
    """The count of a batch, and its mean, mean_low and var as the first rows of (4, D)."""
    positions = positions_of(mask)
    count = values_per_channel(x, axis, positions)
    stats = np.zeros((4, x.shape[axis]))
    if stats.size and count and weight is not None:
        count = _weighted_statistics(stats, x, axis, weight, threads)
    elif stats.size and count:
        values = computed(x, _check.result_dtype(x.dtype))
        _core.moments(stats, values, axis, 0.0, positions, threads)
    return count, stats


def forward(y: NDArray, x: NDArray, call: Call, options: ForwardOptions) -> BatchNormCache:
    """The cache of a call whose y has been written."""
    positions = options.positions
    count = values_per_channel(x, call.axis, positions)
    stats = np.zeros((4, x.shape[call.axis]))
    if not stats.size or not count:
        stats[3] = inverse_std(stats[2], call.eps)
    elif options.weight is not None:
        count = _weighted_statistics(stats, x, call.axis, options.weight, call.threads)
        inference(y, x, stats, call, options.residual, options.relu, positions)
    else:
        _core.forward(
            *(y, stats, computed(x, y.dtype.newbyteorder("=")), call.axis, call.gamma64),
            *(options.beta, call.eps, options.residual, options.relu, positions, call.threads),
        )
    blank(y, options.mask)
    return _cache(y, x, stats, count, call, options)


def values_of(x: NDArray, axis: int, options: ForwardOptions) -> float:
    """What a part counts for: values per channel, or the sum of their weights."""
    if options.weight is not None:
        return math.fsum(options.weight.flat)  # the same in any order
    return values_per_channel(x, axis, options.positions)


def _has_values(x: NDArray, options: ForwardOptions) -> bool:
    return x.size > 0 and (options.positions is None or options.positions.size > 0)


def forward_of_part(
    y: NDArray, x: NDArray, call: Call, options: ForwardOptions, stats: _Channels, count: float
) -> BatchNormCache:
    """The cache of a part, whose y has been written, with the statistics of the whole."""
    if _has_values(x, options):
        inference(y, x, stats, call, options.residual, options.relu, options.positions)
    else:
        stats[3] = inverse_std(stats[2], call.eps)
    blank(y, options.mask)
    return _cache(y, x, stats, count, call, options)


def _cache(
    y: NDArray, x: NDArray, stats: _Channels, count: float, call: Call, options: ForwardOptions
) -> BatchNormCache:
    stats.flags.writeable = False
    kept = y if options.in_place else x
    return BatchNormCache(
        *(kept, stats, call.gamma64, call.gamma, call.beta, call.eps, call.axis, count, options)
    )


def backward(
    dx: NDArray, dresidual: NDArray | None, dy: NDArray, cache: BatchNormCache, threads: int
) -> Sums:
    """The sums of a call whose dx and dresidual have been written."""
    options = cache._options
    if options.groups:
        return _backward_of_groups(dx, dresidual, dy, cache, threads)
    native = _check.result_dtype(cache.x.dtype)
    if _common_dtype(dy, cache.x) != native:
        return _wide_backward(dx, dresidual, dy, cache, threads)
    sums = Sums(*np.zeros((2, cache._stats.shape[1])))
    if not sums.dy.size or not options.any_positions:
        dx[...] = 0
        if dresidual is not None:
            dresidual[...] = 0
        return sums
    dy, x = computed(dy, native), computed(cache.x, native)
    stats, gamma = cache._stats, cache._gamma
    if options.in_place:
        stats, gamma = _statistics_of_y(cache)
    if options.weight is not None:
        _weighted_backward(dx, dresidual, dy, x, cache, sums, threads)
    elif options.relu:
        _core.gated_backward(
            *(dx, dx if dresidual is None else dresidual, *sums, dy, x, cache.axis, stats),
            *(cache.count, gamma, options.beta, options.residual, options.relu),
            *(options.positions, threads),
        )
    else:
        if dresidual is not None:
            dresidual[...] = dy
        _core.backward(
            *(dx, *sums, dy, x, cache.axis, stats, cache.count, gamma, options.positions),
            threads,
        )
    blank(dx, options.mask)
    blank(dresidual, options.mask)
    return sums


def sums_of(dy: NDArray, cache: BatchNormCache, threads: int) -> Sums:
    """The sums of `backward` alone, of a part."""
    sums = Sums(*np.zeros((2, cache._stats.shape[1])))
    if _has_values(dy, cache._options):
        dtype = _common_dtype(dy, cache.x)
        dy, x = computed(dy, dtype), computed(cache.x, dtype)
        gated = _gated(dy, x, cache, threads)
        positions = cache._options.positions
        _core.backward_sums(*sums, gated, x, cache.axis, cache._stats, positions, threads)
    return sums


def apply_sums(
    dx: NDArray,
    dresidual: NDArray | None,
    dy: NDArray,
    cache: BatchNormCache,
    count: float,
    sums: Sums,
    threads: int,
) -> None:
    """dx and dresidual of a part by sums over `count` values per channel."""
    options = cache._options
    out, dy, x = _alike(dx, dy, cache.x)
    if _has_values(dy, options):
        dy = _gated(dy, x, cache, threads)
        if dresidual is not None:
            round_to(dresidual, dy)
        if options.weight is not None:
            _weighted_dx(out, dy, x, cache, cache._stats, count, sums, threads)
        else:
            _core.backward_apply(
                *(out, dy, x, cache.axis, cache._stats, count, cache._gamma, *sums),
                *(options.positions, threads),
            )
        if out is not dx:
            round_to(dx, out)
    blank(dx, options.mask)
    blank(dresidual, options.mask)


def _common_dtype(dy: NDArray, x: NDArray) -> np.dtype:
    """x's, or for a half x and a dy of another dtype, which keeps its bits, float32."""
    native = _check.result_dtype(x.dtype)
    return native if dy.dtype.newbyteorder("=") == native else _check.kernel_dtype(x.dtype)


def _alike(dx: NDArray, dy: NDArray, x: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """The three in one dtype; dx itself or an array to round into it."""
    dtype = _common_dtype(dy, x)
    out = dx if dtype == dx.dtype.newbyteorder("=") else np.empty(dx.shape, dtype)
    return out, computed(dy, dtype), computed(x, dtype)


def _wide_backward(
    dx: NDArray, dresidual: NDArray | None, dy: NDArray, cache: BatchNormCache, threads: int
) -> Sums:
    """A half x and a dy of another dtype, which keeps its bits."""
    dtype = _check.kernel_dtype(cache.x.dtype)
    options, residual = cache._options, cache._options.residual
    wide = BatchNormCache(
        *(cache.x.astype(dtype), cache._stats, cache._gamma, cache.gamma, None, cache.eps),
        *(cache.axis, cache.count),
        options
        if residual is None
        else dataclasses.replace(options, residual=residual.astype(dtype)),
    )
    wide_dx = np.empty(dx.shape, dtype)
    wide_dresidual = None if dresidual is None else np.empty(dx.shape, dtype)
    sums = backward(wide_dx, wide_dresidual, dy.astype(dtype), wide, threads)
    round_to(dx, wide_dx)
    if dresidual is not None and wide_dresidual is not None:
        round_to(dresidual, wide_dresidual)
    return sums


def _statistics_of_y(cache: BatchNormCache) -> tuple[_Channels, _Channels]:
    """Mean and invstd that make xhat = (y - beta) / gamma of y, and the gamma that goes with it."""
    gamma, beta = cache._gamma, cache._options.beta
    stats = np.zeros_like(cache._stats)
    stats[0] = 0 if beta is None else beta
    stats[3] = 1 if gamma is None else 1 / gamma
    return stats, cache.invstd.copy() if gamma is None else gamma * gamma * cache.invstd


# Ghost batches ------------------------------------------------------------------------------------


def _parts(length: int, size: int) -> Iterator[slice]:
    for first in range(0, length, size):
        yield slice(first, min(first + size, length))


def forward_of_groups(
    y: NDArray,
    x: NDArray,
    call: Call,
    size: int,
    options: ForwardOptions,
) -> BatchNormCache:
    """Forward over `size` entries of axis 0 at a time; the cache has the pooled statistics."""
    parts = list(_parts(x.shape[0], size))
    caches = [forward(y[part], x[part], call, _options_of(options, part)) for part in parts]
    count, stats = _pooled(caches, call.eps)
    whole = dataclasses.replace(options, groups=tuple(zip(parts, caches, strict=True)))
    return _cache(y, x, stats, count, call, whole)


def _options_of(options: ForwardOptions, part: slice) -> ForwardOptions:
    arrays = {
        name: None if (array := getattr(options, name)) is None else array[part]
        for name in ("mask", "weight", "residual")
    }
    return dataclasses.replace(options, positions=positions_of(arrays["mask"]), **arrays)


def _pooled(caches: list[BatchNormCache], eps: float) -> tuple[float, _Channels]:
    """Count and statistics of all groups."""
    count, stats = 0, np.zeros_like(caches[0]._stats)
    for group in filter(lambda cache: cache.count > 0, caches):
        if not count:
            stats[:3] = group._stats[:3]
        elif stats.size:
            _core.merge_moments(stats, count, group._stats, group.count)
        count += group.count
    stats[3] = inverse_std(stats[2], eps)
    return count, stats


def _backward_of_groups(
    dx: NDArray, dresidual: NDArray | None, dy: NDArray, cache: BatchNormCache, threads: int
) -> Sums:
    total, low = np.zeros((2, 2, cache._stats.shape[1]))
    for part, group in cache._options.groups:
        of_part = None if dresidual is None else dresidual[part]
        total, lost = two_sum(
            total, np.array(backward(dx[part], of_part, dy[part], group, threads))
        )
        low += lost
    return Sums(*np.where(np.isfinite(low), total + low, total))


# Weights ------------------------------------------------------------------------------------------


def _channel_view(values: _Channels, ndim: int, axis: int) -> NDArray:
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _weighted_statistics(
    stats: _Channels, x: NDArray, axis: int, weight: NDArray[np.float64], threads: int
) -> float:
    """Weighted mean, mean_low and var into stats. Returned: the sum of the weights.

    The mean of the unweighted values is moved twice by sum(w (x - mean)) / sum(w), the second time
    by a rounding error of the first; sum(w (x - mean)^2) is the sum of products of
    t = w (x - mean) with x - mean.
    """
    dtype = _check.kernel_dtype(x.dtype)
    values = computed(x, dtype)
    counted = np.flatnonzero(weight > 0)
    of_x = np.broadcast_to(weight.astype(dtype), x.shape)
    total = math.fsum(weight.flat)  # the same in any order
    _core.moments(stats, values, axis, 0.0, counted, threads)
    one, shift = np.empty((2, stats.shape[1]))
    for _ in range(2):
        stats[3] = 1
        _core.backward_sums(shift, one, of_x, values, axis, stats, counted, threads)
        stats[0], stats[1] = two_sum(stats[0], stats[1] + shift / total)
    t = np.zeros(x.shape, dtype)
    centred = fixed_statistics(stats[0], 1, stats.shape[1], stats[1])
    _core.inference(t, centred, values, axis, None, None, 0.0, None, False, counted, threads)
    t *= of_x
    stats[3] = 1
    _core.backward_sums(shift, one, t, values, axis, stats, counted, threads)
    stats[2] = np.maximum(shift, 0) / total
    return total


def _gated(dy: NDArray, x: NDArray, cache: BatchNormCache, threads: int) -> NDArray:
    """dy, and 0 where the activation, computed again, let nothing through."""
    options = cache._options
    if not options.relu:
        return dy
    call = Call(None, options.beta, cache._gamma, cache.eps, cache.axis, threads)
    residual = options.residual
    residual = None if residual is None else computed(residual, _check.result_dtype(x.dtype))
    y = new_array(x, zeros=True)
    inference(y, x, cache._stats.copy(), call, residual, True, options.positions)
    return np.where(y > 0, dy, np.zeros((), dy.dtype))


def _weighted_backward(
    dx: NDArray,
    dresidual: NDArray | None,
    dy: NDArray,
    x: NDArray,
    cache: BatchNormCache,
    sums: Sums,
    threads: int,
) -> None:
    """dx, and the sums are filled in."""
    stats = _statistics_of_y(cache)[0] if cache._options.in_place else cache._stats
    dtype, positions = _check.kernel_dtype(x.dtype), cache._options.positions
    dy = _gated(dy, x, cache, threads)
    arrays = computed(dy, dtype), computed(x, dtype)
    _core.backward_sums(*sums, *arrays, cache.axis, stats, positions, threads)
    if dresidual is not None:
        round_to(dresidual, dy)
    _weighted_dx(dx, *arrays, cache, stats, cache.count, sums, threads)


def _weighted_dx(
    dx: NDArray,
    dy: NDArray,
    x: NDArray,
    cache: BatchNormCache,
    stats: _Channels,
    count: float,
    sums: Sums,
    threads: int,
) -> None:
    """dx_i = scale (dy_i - w_i sum(dy) / W - w_i xhat_i sum(dy xhat) / W), where W is the count."""
    options, axis = cache._options, cache.axis
    dtype = _check.kernel_dtype(x.dtype)
    dy, x = computed(dy, dtype), computed(x, dtype)
    scale = cache.invstd if cache._gamma is None else cache._gamma * cache.invstd
    t = np.zeros(x.shape, dtype)
    along_one = -scale * sums.dy / count
    along_xhat = -scale * sums.dy_xhat / count
    affine = fixed_statistics(stats[0], 1, stats.shape[1], stats[1])
    _core.inference(
        *(t, affine, x, axis, along_xhat * stats[3], along_one, 0.0, None, False),
        *(options.positions, threads),
    )
    t *= options.weight.astype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):  # masked cells may hold anything
        t += dy * _channel_view(scale, x.ndim, axis).astype(dtype)
    round_to(dx, t)
