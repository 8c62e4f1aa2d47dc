"""Arrays in files, by pieces that are adjacent in the file: .npy, .npz, .csv, .tsv, .parquet.

An array in the order of its file is seen as (outer, channels, inner), as in the C core. Nothing is
memory-mapped, since the pages of a map count as memory of the process.
"""

from __future__ import annotations

import math
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbn.cli._options import CommandError

TEXT = {".csv": ",", ".tsv": "\t"}
TEXT_BYTES = 1 << 20
# Pieces of rows hold whole blocks of the C core: 32 rows in each of up to 2048 / D lanes.
BLOCK_ROWS, LANES_COLUMNS = 32, 2048


class Piece(NamedTuple):
    """Ranges of the three axes, whose elements are adjacent."""

    outer: slice
    channels: slice
    inner: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(part.stop - part.start for part in self)

    def first(self, shape: tuple[int, int, int]) -> int:
        """The place of its first element in an array of that shape."""
        (outer, channels, inner) = (part.start for part in self)
        return (outer * shape[1] + channels) * shape[2] + inner


class Block(NamedTuple):
    """A piece, where it begins, its elements when asked for, and how much of the file it is."""

    piece: Piece
    first: int
    load: Callable[[], NDArray]
    bytes: int


def pieces(shape: tuple[int, int, int], most: int) -> Iterator[Piece]:
    """The array by pieces of about `most` elements, up to twice as many, in the file's order."""
    outer, channels, inner = shape
    if channels * inner <= most:
        step = math.ceil(most / max(1, channels * inner))
        lanes = 1 << max(0, (LANES_COLUMNS // max(1, channels)).bit_length() - 1)
        if inner == 1 and step >= BLOCK_ROWS * lanes:
            step = math.ceil(step / (BLOCK_ROWS * lanes)) * BLOCK_ROWS * lanes
        steps = step, channels, inner
    else:
        steps = 1, max(1, most // inner), min(inner, most)
    for ranges in product(*map(_ranges, shape, steps)):
        yield Piece(*ranges)


def _ranges(size: int, step: int) -> list[slice]:
    """Of `step` each, and what is left over in the last one."""
    starts = range(0, max(1, size - step + 1), max(1, step))
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], size], strict=True)]


class Source:
    """An array in a file, to be read several times."""

    path: Path
    shape: tuple[int, ...]  # as NumPy shows it
    dtype: np.dtype
    fortran = False
    bytes: int
    names: list[str] | None = None  # of the columns

    def __init__(self, path: Path, *options: Any) -> None:
        self.path = path
        with ExitStack() as stack:
            self.stack = stack
            self._begin(*options)
            self.stack = stack.pop_all()

    def _begin(self, *options: Any) -> None:
        """Open the file and find what is in it."""
        raise NotImplementedError

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def error(self, text: Any) -> CommandError:
        return CommandError(f"cannot read {str(self.path)!r}: {text}")

    def blocks(self, axis: int, most: int) -> Iterator[Block]:
        """The pieces of about `most` elements; `axis` is the channel axis of `shape`."""
        raise NotImplementedError

    def stored(self, axis: int) -> tuple[int, int, int]:
        """The sizes (outer, channels, inner) in the order of the file."""
        shape = self.shape[::-1] if self.fortran else self.shape
        axis = len(shape) - 1 - axis if self.fortran else axis
        return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])

    def _header(self, file: BinaryIO) -> None:
        """Read that of the .npy format."""
        magic = np.lib.format.MAGIC_PREFIX
        if file.read(len(magic)) != magic:
            raise ValueError("expected a .npy file")
        version = tuple(file.read(2))
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise ValueError("expected version 1.0 or 2.0 of the .npy format")
        self.shape, self.fortran, self.dtype = readers[version](file)
        check_dtype(self.dtype)
        self.bytes = math.prod(self.shape) * self.dtype.itemsize


def check_dtype(dtype: np.dtype) -> None:
    if not (dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= 8)):
        raise ValueError(
            f"expected numbers (float16, float32, float64, an integer or bool), got {dtype}"
        )


class Npy(Source):
    """A .npy file, read at any place by any thread."""

    def _begin(self) -> None:
        self.file = self.stack.enter_context(self.path.open("rb", buffering=0))
        self._header(self.file)
        self.start = self.file.tell()
        size = os.fstat(self.file.fileno()).st_size
        if size < self.start + self.bytes:
            raise ValueError(
                f"expected {self.start + self.bytes} bytes for shape {self.shape} of {self.dtype},"
                f" got {size}: the file is truncated"
            )
        self._of_thread = threading.local()
        self._one_at_a_time = threading.Lock()

    def blocks(self, axis: int, most: int) -> Iterator[Block]:
        shape = self.stored(axis)
        for piece in pieces(shape, most):
            size = math.prod(piece.shape) * self.dtype.itemsize
            first = piece.first(shape)
            yield Block(piece, first, partial(self.read, first, piece.shape), size)

    def read(self, first: int, shape: tuple[int, ...]) -> NDArray:
        """Elements from the first one on, in an array that the thread's next call overwrites."""
        size = math.prod(shape) * self.dtype.itemsize
        buffer = getattr(self._of_thread, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._of_thread.buffer = np.empty(size, np.uint8)
        view, place = memoryview(buffer)[:size], self.start + first * self.dtype.itemsize
        done = 0
        while done < size:
            try:
                read = self._read_at(view[done:], place + done)
            except OSError as error:
                raise self.error(error.strerror) from None
            if not read:
                raise self.error("the file has become shorter")
            done += read
        return buffer[:size].view(self.dtype).reshape(shape)

    def _read_at(self, view: memoryview, place: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self.file.fileno(), [view], place)
        with self._one_at_a_time:
            self.file.seek(place)
            return self.file.readinto(view)


class Npz(Source):
    """A member of a .npz file, compressed or not."""

    def _begin(self, member: str | None) -> None:
        self.archive = self.stack.enter_context(zipfile.ZipFile(self.path))
        members = [name.removesuffix(".npy") for name in self.archive.namelist()]
        if member is None and len(members) == 1:
            member = members[0]
        if member not in members:
            known = ", ".join(members) or "none"
            raise ValueError(f"expected --member to be one of {known}, got {member}")
        self.member = member
        with self._open() as file:
            self._header(file)

    def _open(self) -> BinaryIO:
        name = f"{self.member}.npy"
        return self.archive.open(name if name in self.archive.namelist() else self.member)

    def blocks(self, axis: int, most: int) -> Iterator[Block]:
        with self._open() as file:
            self._header(file)
            shape = self.stored(axis)
            for piece in pieces(shape, most):
                x = np.empty(piece.shape, self.dtype)
                view = memoryview(x.reshape(-1).view(np.uint8))
                done = 0
                while done < len(view):
                    read = file.readinto(view[done:])
                    if not read:
                        raise self.error("the member is truncated")
                    done += read
                yield Block(piece, piece.first(shape), lambda x=x: x, x.nbytes)
            file.read(1)  # the end, where the checksum is compared


def _rows(x: NDArray, row: int, axis: int, size: int) -> Block:
    """Rows of a table from that one on, which are those of all channels or channels themselves."""
    rows, columns = slice(row, row + len(x)), slice(0, x.shape[1])
    whole = slice(0, 1)
    piece = Piece(rows, columns, whole) if axis else Piece(whole, rows, columns)
    return Block(piece, row * x.shape[1], lambda: x.reshape(piece.shape), size)


class Text(Source):
    """Rows of numbers with commas or tabs between them, maybe under a line of names."""

    def _begin(self) -> None:
        self.delimiter, self.dtype = TEXT[self.path.suffix.lower()], np.dtype(np.float64)
        self.bytes = self.path.stat().st_size
        with self._open() as file:
            first = file.readline().strip("\r\n")
        fields = [field.strip() for field in first.split(self.delimiter)]
        self.names = None if all(map(_is_number, fields)) else fields
        with self._open() as file:
            rows = sum(not line.isspace() for line in file) - (self.names is not None)
        self.shape = (max(0, rows), len(fields))

    def _open(self) -> Any:
        return self.path.open(encoding="utf-8-sig")

    def blocks(self, axis: int, most: int) -> Iterator[Block]:
        columns, row, line = self.shape[1], 0, 1
        with self._open() as file:
            if self.names:
                file.readline()
                line += 1
            while lines := file.readlines(TEXT_BYTES):
                x = self._numbers(lines, line, columns)
                line += len(lines)
                if len(x):
                    yield _rows(x, row, axis, sum(map(len, lines)))
                    row += len(x)

    def _numbers(self, lines: list[str], line: int, columns: int) -> NDArray[np.float64]:
        where = f"lines {line} to {line + len(lines) - 1}"
        filled = [text for text in lines if text.strip()]
        if not filled:
            return np.empty((0, columns))
        try:
            x = np.loadtxt(filled, delimiter=self.delimiter, comments=None, ndmin=2)
        except ValueError as error:
            raise self.error(f"{where}: {error}".splitlines()[0]) from None
        if x.shape[1] != columns:
            raise self.error(f"{where}: expected {columns} columns, got {x.shape[1]}")
        return x


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Parquet(Source):
    """The columns of a .parquet file, all of numbers."""

    def _begin(self) -> None:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            self.file = self.stack.enter_context(ParquetFile(self.path))
        except ArrowException as error:
            raise ValueError(str(error).splitlines()[0]) from None
        schema = self.file.schema_arrow
        self.names = schema.names
        try:
            self.dtype = np.result_type(*(kind.to_pandas_dtype() for kind in schema.types))
        except (NotImplementedError, TypeError, ValueError):
            self.dtype = np.dtype(object)
        check_dtype(self.dtype)
        self.shape = (self.file.metadata.num_rows, len(self.names))
        self.bytes = math.prod(self.shape) * self.dtype.itemsize

    def blocks(self, axis: int, most: int) -> Iterator[Block]:
        columns, row = self.shape[1], 0
        for batch in self.file.iter_batches(max(1, most // columns)):
            for name, column in zip(self.names, batch.columns, strict=True):
                if column.null_count:
                    raise self.error(f"column {name}: expected numbers, got missing values")
            x = np.stack(
                [column.to_numpy(zero_copy_only=False) for column in batch.columns], axis=1
            )
            x = x.astype(self.dtype, copy=False)
            yield _rows(x, row, axis, x.nbytes)
            row += len(x)


def opened(path: Path, member: str | None = None) -> Source:
    """The array in a file, by the file's name; CommandError for what is none."""
    kind = path.suffix.lower()
    if member is not None and kind != ".npz":
        raise CommandError(f"--member: expected a .npz file beside it, got {str(path)!r}")
    try:
        if kind == ".npz":
            return Npz(path, member)
        if kind in TEXT:
            return Text(path)
        if kind == ".parquet":
            return Parquet(path)
        return Npy(path)
    except OSError as error:
        text = error.strerror or error
    except ModuleNotFoundError as error:
        text = f'{error.name} is not installed: pip install "cbn[parquet]"'
    except (EOFError, ValueError, SyntaxError, TokenError, zipfile.BadZipFile, zlib.error) as error:
        text = (str(error) or type(error).__name__).splitlines()[0]
    raise CommandError(f"cannot read {str(path)!r}: {text}")
