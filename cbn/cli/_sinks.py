"""Arrays into files, which take their name when they are complete and not before."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from cbn.cli._options import CommandError
from cbn.cli._sources import TEXT, Source

DIGITS = {"float16": 5, "float32": 9, "float64": 17}  # that read back as the same number
SUFFIXES = (".npy", ".npz", *TEXT, ".parquet")


def cannot_write(path: Path, error: Any) -> CommandError:
    return CommandError(f"cannot write {str(path)!r}: {error}")


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file of another name in the same folder, which becomes `path` if nothing is raised."""
    target = Path(os.path.realpath(path))  # of a link, what it leads to
    if target.exists() and not target.is_file():
        raise cannot_write(path, "expected a regular file or a new name")
    # The name is known before there is a file, lest a signal come between.
    other = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(other, "xb") as file:
            if target.exists():
                os.chmod(other, target.stat().st_mode & 0o777)
            yield file
        os.replace(other, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            other.unlink()
        if isinstance(error, OSError):
            raise cannot_write(path, error.strerror or error) from None
        raise


class _Signals:
    """Whether a signal has to wait, and the one that waits."""

    held = False
    waiting: int | None = None


def _end(number: int) -> NoReturn:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the command as an exception does, which cleans up."""

    def stop(number: int, frame: FrameType | None) -> None:
        if not _Signals.held:
            _end(number)
        _Signals.waiting = number

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    numbers = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Signals wait until the end of the block. An exception that comes when concurrent.futures has
    just taken a lock would leave it locked, and its threads would wait for ever."""
    _Signals.held = True
    try:
        yield
    finally:
        _Signals.held = False
        if (number := _Signals.waiting) is not None:
            _Signals.waiting = None
            _end(number)


class Sink:
    """An array's elements into a file, in the order of the file."""

    any_place = False  # whether write() may come from any thread in any order

    def __init__(self, file: BinaryIO, source: Source, dtype: np.dtype) -> None:
        self.file = file
        self.stack = ExitStack()

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def write(self, first: int, y: NDArray) -> None:
        """Put the elements from the first one on."""
        raise NotImplementedError


def _header(file: BinaryIO, source: Source, dtype: np.dtype) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    facts = {"descr": descr, "fortran_order": source.fortran, "shape": source.shape}
    np.lib.format.write_array_header_1_0(file, facts)


def _reserve(file: BinaryIO, size: int) -> None:
    """Space on the disk: one that is full shows before the work, which then takes 0.8 times the
    time (1.5 GB on ext4)."""
    if sys.platform != "linux":
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise


class Npy(Sink):
    any_place = hasattr(os, "pwrite")

    def __init__(self, file: BinaryIO, source: Source, dtype: np.dtype) -> None:
        super().__init__(file, source, dtype)
        _header(file, source, dtype)
        file.flush()
        self.start = file.tell()
        self.one_at_a_time = threading.Lock()
        _reserve(file, self.start + math.prod(source.shape) * dtype.itemsize)

    def write(self, first: int, y: NDArray) -> None:
        view = memoryview(y.reshape(-1).view(np.uint8))
        if not self.any_place:
            self.file.write(view)
            return
        place, done = self.start + first * y.itemsize, 0
        with self.one_at_a_time:  # as the system has it, but without spinning
            while done < len(view):
                done += os.pwrite(self.file.fileno(), view[done:], place + done)


class Npz(Sink):
    def __init__(self, file: BinaryIO, source: Source, dtype: np.dtype) -> None:
        super().__init__(file, source, dtype)
        archive = self.stack.enter_context(zipfile.ZipFile(file, "w"))
        name = f"{getattr(source, 'member', 'arr_0')}.npy"
        self.member = self.stack.enter_context(archive.open(name, "w", force_zip64=True))
        _header(self.member, source, dtype)

    def write(self, first: int, y: NDArray) -> None:
        self.member.write(memoryview(y.reshape(-1).view(np.uint8)))


class Text(Sink):
    def __init__(self, file: BinaryIO, source: Source, dtype: np.dtype, delimiter: str) -> None:
        super().__init__(file, source, dtype)
        self.columns, self.delimiter = source.shape[1], delimiter
        self.format = f"%.{DIGITS[dtype.name]}g"
        if source.names:
            file.write(f"{delimiter.join(source.names)}\n".encode())

    def write(self, first: int, y: NDArray) -> None:
        rows = _whole_rows(y, self.columns)
        np.savetxt(self.file, rows, fmt=self.format, delimiter=self.delimiter)


class Parquet(Sink):
    def __init__(self, file: BinaryIO, source: Source, dtype: np.dtype) -> None:
        super().__init__(file, source, dtype)
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        names = source.names or [f"x{i}" for i in range(source.shape[1])]
        kind = pyarrow.from_numpy_dtype(dtype)
        self.schema = pyarrow.schema([(name, kind) for name in names])
        self.array, self.table = pyarrow.array, pyarrow.Table.from_arrays
        self.writer = self.stack.enter_context(ParquetWriter(file, self.schema))

    def write(self, first: int, y: NDArray) -> None:
        columns = _whole_rows(y, len(self.schema)).T
        arrays = [self.array(np.ascontiguousarray(column)) for column in columns]
        self.writer.write_table(self.table(arrays, schema=self.schema))


def _whole_rows(y: NDArray, columns: int) -> NDArray:
    if y.size % columns:
        raise CommandError(f"--chunk: expected room for a row of {columns} columns")
    return y.reshape(-1, columns)


def sink_for(path: Path, source: Source) -> Callable[[BinaryIO, Source, np.dtype], Sink]:
    """By the name of the file; CommandError for a name, or for an array, that it cannot have."""
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise CommandError(
            f"--output: expected a name that ends in {', '.join(SUFFIXES)}, got {str(path)!r}"
        )
    if kind in (".npy", ".npz"):
        return Npy if kind == ".npy" else Npz
    if len(source.shape) != 2 or source.fortran:
        raise CommandError(
            f"--output: {kind} has rows, the input has"
            f" {'columns (Fortran order)' if source.fortran else f'{len(source.shape)} dimensions'}"
        )
    if kind in TEXT:
        return partial(Text, delimiter=TEXT[kind])
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError as error:
        raise CommandError(
            f'--output: {error.name} is not installed: pip install "cbn[parquet]"'
        ) from None
    return Parquet
