"""Batch norm of Dask arrays, lazily, in chunks along any axes, also the channel axis.

Design: moments are a reduction whose state is an array of one record a channel, so that Dask cuts
and joins it along channels as it does the data. Inside a chunk cbn uses one thread, since the
scheduler has threads or processes of its own.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbn import _check, _check_state
from cbn.moments import Moments
from cbn.parts import batch_norm_normalize

try:
    import dask.array as da
    from dask import delayed
    from dask.delayed import Delayed
except ImportError as error:
    raise ImportError(
        f'cbn.distributed.dask needs dask.array ({error}): pip install "cbn[dask]"'
    ) from error

RECORD = np.dtype([("count", "f8"), *((name, "f8") for name in Moments._NAMES)])


def moments(array: da.Array, *, axis: int | None = None) -> Delayed:
    """The moments of all chunks, equations (43) and (44).

    Parameters
    ----------
    array : dask.array.Array, shape (N, D) or more dimensions
        Chunked along any axes; sizes of chunks may be unknown.
    axis : int, optional
        The channel axis. The last one for 2-D arrays; must be given for more dimensions.

    Returns
    -------
    dask.delayed.Delayed
        Of a `cbn.Moments`: what its ``compute()`` returns.

    Raises
    ------
    ValueError, TypeError
        As `cbn.Moments.from_batch`; not a Dask array.

    Examples
    --------
    >>> import dask.array as da
    >>> from cbn.distributed import dask as cbn_dask
    >>> x = da.arange(12.0, chunks=5).reshape(6, 2)
    >>> cbn_dask.moments(x).compute()
    Moments(count=6, mean=[5. 6.], m2=[70. 70.])
    """
    array, axis = _checked(array, axis)
    return delayed(_moments_of)(_records(array, axis))


def batch_norm(
    array: da.Array,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int | None = None,
    eps: float = 1e-5,
    m: Moments | Delayed | None = None,
) -> da.Array:
    """Normalize by the statistics of all chunks, equations (1)-(5).

    Parameters
    ----------
    array : dask.array.Array, shape (N, D) or more dimensions
        See `moments`, also for axis.
    gamma, beta : array_like, shape (D,), optional
        Scale and shift, of any real floating dtype; ones and zeros when not given.
    eps : float
        As for `cbn.batch_norm_forward`.
    m : Moments or what `moments` returns, optional
        In place of the array's own.

    Returns
    -------
    dask.array.Array
        y, of the array's shape and chunks, and of its dtype (float64 for integers).

    Raises
    ------
    ValueError, TypeError
        As `cbn.batch_norm_normalize`; not a Dask array.

    Notes
    -----
    No chunk can be normalized before all have been seen, so Dask keeps them all. An array that does
    not fit into memory is better read twice::

        m = moments(array).compute()
        y = batch_norm(array, gamma, beta, m=m)

    The bytes of the result depend on the chunks, but not on the scheduler.
    """
    array, axis = _checked(array, axis)
    channels = array.shape[axis]
    eps = _check.epsilon(eps)
    if m is None:
        records = _records(array, axis)
    else:
        if not isinstance(m, Delayed):
            _check_state.of_channels("m", m, Moments, channels)
        records = da.from_delayed(delayed(_given)(m, channels), (channels,), RECORD)
    given = []
    for name, value in ("gamma", gamma), ("beta", beta):
        value = _check.parameter(name, value, channels)
        chunks = None if value is None else da.from_array(value, chunks=(array.chunks[axis],))
        given += [chunks, None if value is None else (axis,)]
    axes = tuple(range(array.ndim))
    dtype = _check.result_dtype(array.dtype)
    return da.blockwise(
        *(_normalize, axes, array, axes, records, (axis,), *given),
        dtype=dtype,
        meta=np.empty((0,) * array.ndim, dtype),
        axis=axis,
        eps=eps,
    )


def _checked(array: Any, axis: int | None) -> tuple[da.Array, int]:
    if not isinstance(array, da.Array):
        kind = type(array).__name__
        raise TypeError(
            f"array: expected a dask.array.Array, got {kind}; see dask.array.from_array"
        )
    _check.real_array("array", array._meta)
    return array, _check.batch(array, axis)


def _records(array: da.Array, axis: int) -> da.Array:
    """One record a channel, in the chunks of the channel axis."""
    merge = partial(_merge, channels=axis)
    return da.reduction(
        array,
        chunk=partial(_of_chunk, channels=axis),
        combine=merge,
        aggregate=merge,
        axis=tuple(i for i in range(array.ndim) if i != axis),
        dtype=RECORD,
        meta=np.empty(0, RECORD),
    )


def _of_chunk(x: NDArray, axis: tuple[int, ...], keepdims: bool, channels: int) -> NDArray:
    if not x.size:
        m = Moments(0, *np.zeros((2, x.shape[channels])))
    else:
        m = Moments.from_batch(x, channels, num_threads=1)
    return np.expand_dims(_records_of(m), axis)


def _merge(records: NDArray, axis: tuple[int, ...], keepdims: bool, channels: int) -> NDArray:
    rows = np.moveaxis(records, channels, -1)
    rows = rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])
    total = _records_of(Moments.merge_all(map(_moments_of, rows)))
    return np.expand_dims(total, axis) if keepdims else total


def _given(m: Any, channels: float) -> NDArray:
    """The records of what Dask has computed; channels may be unknown, NaN."""
    if not math.isnan(channels):
        _check_state.of_channels("m", m, Moments, int(channels))
    return _records_of(m)


def _records_of(m: Moments) -> NDArray:
    records = np.empty(m._channels, RECORD)
    records["count"] = m.count
    for name, row in zip(Moments._NAMES, m._rows, strict=True):
        records[name] = row
    return records


def _moments_of(records: NDArray) -> Moments:
    count = records["count"][0].item() if len(records) else 0
    rows = np.array([records[name] for name in Moments._NAMES])
    return Moments._of(int(count), rows)


def _normalize(
    x: NDArray,
    records: NDArray,
    gamma: NDArray | None,
    beta: NDArray | None,
    axis: int,
    eps: float,
) -> NDArray:
    if not x.size:
        return np.empty(x.shape, _check.result_dtype(x.dtype))
    m = _moments_of(records)
    return batch_norm_normalize(x, m, gamma, beta, axis=axis, eps=eps, num_threads=1)[0]
