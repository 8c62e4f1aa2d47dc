"""What Moments and BackwardSums share: merging, copies, equality, buffers and files.

Design: such a value is a count and a few float64 rows of D channels, which are never written to
once they are set, so that values may share them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import IO, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbn import _check_state


class Mergeable:
    """A count and rows of one number a channel, of a set of values; disjoint sets merge."""

    __slots__ = ("_rows", "count")
    _NAMES: ClassVar[tuple[str, ...]]  # of the rows

    def _set(self, count: float, rows: NDArray[np.float64]) -> Self:
        rows.flags.writeable = False  # for m.mean *= 0.9 would be silent
        self.count, self._rows = count, rows
        return self

    @classmethod
    def _of(cls, count: float, rows: NDArray[np.float64]) -> Self:
        return cls.__new__(cls)._set(count, rows)

    @property
    def _channels(self) -> int:
        return self._rows.shape[1]

    def _merged(self, other: Self) -> NDArray[np.float64]:
        """The rows of both."""
        raise NotImplementedError

    def merge(self, other: Self) -> Self:
        """Take in values that are not yet in these, equation (44) or (46).

        Parameters
        ----------
        other : of the same class
            Of as many channels.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            Another number of channels.
        TypeError
            other of another class.

        Notes
        -----
        Any order of merging gives the same up to rounding; the same order, the same bytes.
        """
        _check_state.mergeable("other", other, type(self), self._channels)
        return self._set(self.count + other.count, self._merged(other))

    def __add__(self, other: Self) -> Self:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self._of(self.count, self._rows).merge(other)

    @classmethod
    def merge_all(cls, parts: Iterable[Self]) -> Self:
        """All of them merged, as a binary tree over their order.

        Parameters
        ----------
        parts : iterable of the class
            At least one; looked at once and not kept, so there may be any number.

        Returns
        -------
        of the same class
            A new one. Errors grow with the logarithm of the number of parts.

        Raises
        ------
        ValueError
            No parts, or of another number of channels.
        TypeError
            A part of another class.
        """
        subtrees: list[Self] = []
        number = 0
        for number, part in enumerate(parts, 1):
            _check_state.is_kind("parts", part, cls)
            # As many subtrees of its size are complete as the number has trailing zeros.
            for _ in range((number & -number).bit_length() - 1):
                part = subtrees.pop() + part
            subtrees.append(part)
        _check_state.some("parts", number)
        total = reduce(lambda right, left: left + right, reversed(subtrees))
        return cls._of(total.count, total._rows)

    def select(self, channels: slice | ArrayLike) -> Self:
        """The same of some channels.

        Parameters
        ----------
        channels : slice, or array_like of int or bool

        Returns
        -------
        of the same class

        Raises
        ------
        IndexError
            Channels that are not there.
        """
        index = channels if isinstance(channels, slice) else np.atleast_1d(channels)
        return self._of(self.count, self._rows[:, index].copy())

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """One value of the channels of several, which are of the same rows.

        Parameters
        ----------
        parts : sequence of the class
            At least one, of one count.

        Raises
        ------
        ValueError
            No parts, or of several counts.
        TypeError
            A part of another class.
        """
        _check_state.concatenable(parts, cls)
        return cls._of(parts[0].count, np.concatenate([part._rows for part in parts], axis=1))

    def to_buffer(self) -> NDArray[np.float64]:
        """Everything in one float64 array, for messages: the count, then row by row.

        Returns
        -------
        ndarray of float64, shape (1 + rows * D,)
            rows is 3 for Moments: mean, mean_low, var; 4 for BackwardSums: either sum, and after
            it what it leaves out. A new array.
        """
        return np.concatenate([[self.count], self._rows.reshape(-1)])

    @classmethod
    def from_buffer(cls, buffer: ArrayLike) -> Self:
        """The value whose `to_buffer` it is.

        Parameters
        ----------
        buffer : array_like of float64, shape (1 + rows * D,)

        Raises
        ------
        ValueError
            Another shape, a count or variance that none can be.
        TypeError
            Another dtype.
        """
        count, rows = _check_state.buffer(buffer, len(cls._NAMES))
        return cls._from(count, *rows)

    def save(self, file: str | os.PathLike | IO[bytes]) -> None:
        """Write it as ``.npz``: count, and an array (D,) a row; what `load` reads.

        Parameters
        ----------
        file : path or binary file
            As for `numpy.savez`, which adds ``.npz`` to a name without it.
        """
        np.savez(file, count=self.count, **dict(zip(self._NAMES, self._rows, strict=True)))

    @classmethod
    def load(cls, file: str | os.PathLike | IO[bytes]) -> Self:
        """Read what `save` has written, with the same bytes.

        Parameters
        ----------
        file : path or binary file
            Never unpickled. The rows that say what another leaves out need not be there.

        Raises
        ------
        OSError
            A file that cannot be read.
        ValueError, TypeError
            No .npz file, one without the arrays, values that cannot be.
        """
        arrays = _check_state.saved(file, ("count", *cls._NAMES))
        return cls._from(*arrays.values())

    @classmethod
    def _from(cls, count: float, *rows: NDArray) -> Self:
        """Checked; a count that is whole is an int again."""
        count, rows = _check_state.rows(count, dict(zip(cls._NAMES, rows, strict=True)))
        return cls._of(count, np.array(rows))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        same = np.array_equal(self._rows, other._rows, equal_nan=True)
        return same and self.count == other.count

    __hash__ = None

    def __reduce__(self) -> tuple[Any, ...]:
        return self._of, (self.count, self._rows)
