"""``cbn normalize``: batch norm of an array in a file, of any size, in bounded memory."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import sys
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from tokenize import TokenError
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import cbn
from cbn.cli._options import CommandError
from cbn.cli._sinks import Sink, replaced, signals_held, sink_for, stoppable
from cbn.cli._sources import Block, Npy, Source, opened

# Pieces of the first pass are as large as arrays that the C core takes to be far from the caches,
# for the same order of additions in them; those of the second one stay in a cache.
CHUNK = 16 << 20
NEAR_CHUNK = 4 << 20
MAX_WORKERS = 3  # each has buffers

_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "normalize",
        help="normalize an array in a file of any size",
        description="Normalize an array in a .npy, .npz, .csv, .tsv or .parquet file by the "
        "statistics of its channels, in two passes over the file and in bounded memory. The output "
        "takes its name, in place of a file that has it, when it is complete.",
    )
    parser.add_argument("input", type=Path, metavar="IN", help="the file to read")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="the file to write")
    parser.add_argument("--in-place", action="store_true", help="replace the input")
    parser.add_argument(
        "--axis", type=int, metavar="N", help="channel axis; needed for more than 2 dimensions"
    )
    parser.add_argument("--eps", type=float, default=1e-5, metavar="X", help="default: 1e-5")
    parser.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="a .npy file of bool that broadcasts to x without channels, True where x counts; y is "
        "0 elsewhere",
    )
    parser.add_argument("--member", metavar="NAME", help="which array of a .npz file of several")
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32", "float64"),
        help="convert x before (default: the file's, float64 for integers and text)",
    )
    statistics = parser.add_mutually_exclusive_group()
    statistics.add_argument(
        "--stats", type=Path, metavar="FILE", help="write the statistics: cbn.Moments.load reads it"
    )
    statistics.add_argument(
        "--apply",
        type=Path,
        metavar="FILE",
        help="normalize by statistics that --stats has written",
    )
    parser.add_argument(
        "--chunk",
        type=_bytes,
        default=CHUNK,
        metavar="SIZE",
        help="bytes at a time, such as 500000, 512K or 64M (default: 16M)",
    )
    parser.set_defaults(run=run)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)", text, flags=re.IGNORECASE)
    size = int(found[1]) << 10 * " KMG".index(found[2].upper() or " ") if found else 0
    if size < 1:
        raise argparse.ArgumentTypeError(
            f"expected a number of bytes, such as 500000, 512K or 64M, got {text!r}"
        )
    return size


def run(options: argparse.Namespace) -> int:
    """Write the files; return 0."""
    output = _output(options)
    with ExitStack() as stack:
        stack.enter_context(stoppable())
        source = stack.enter_context(opened(options.input, options.member))
        job = stack.enter_context(_Job(options, source, _given(options)))
        make_sink = output and sink_for(output, source)
        # Both before any work, which an unwritable folder would waste.
        saved = options.stats and stack.enter_context(replaced(options.stats))
        file = output and stack.enter_context(replaced(output))
        try:
            with ExitStack() as made:
                sink = file and made.enter_context(make_sink(file, source, job.dtype))
                m = job.moments()
                if saved:
                    m.save(saved)
                if sink:
                    job.normalize(m, sink)
        except (EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise source.error(error) from None
        except MemoryError:
            raise CommandError("not enough memory; try a smaller --chunk") from None
    shape = "x".join(map(str, source.shape))
    print(f"{shape}, {job.dtype}, {len(m.mean)} channels of {m.count:g} values")
    return 0


def _output(options: argparse.Namespace) -> Path | None:
    """Where y goes; the input itself only if that was asked for."""
    output = options.output
    if options.in_place:
        output = output or options.input
    elif output is None and options.stats is None:
        raise CommandError("expected --output, --in-place or --stats, got none of them")
    same = output is not None and _same_file(output, options.input)
    if same and not options.in_place:
        raise CommandError(f"--output: expected --in-place beside the input {str(output)!r} itself")
    if options.in_place and not same:
        raise CommandError(f"--in-place: expected no other --output, got {str(output)!r}")
    for path in filter(None, (options.input, options.output, options.apply, options.mask)):
        if options.stats is not None and _same_file(options.stats, path):
            raise CommandError(f"--stats: expected a file of its own, got {str(options.stats)!r}")
    return output


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return a.absolute() == b.absolute()


def _given(options: argparse.Namespace) -> cbn.Moments | None:
    """Those of --apply."""
    if options.apply is None:
        return None
    try:
        m = cbn.Moments.load(options.apply)
    except OSError as error:
        text = error.strerror
    except (TypeError, ValueError) as error:
        text = str(error)
    else:
        if m.count:
            return m
        text = "count: expected a number > 0, got 0"
    raise CommandError(f"--apply: cannot read {str(options.apply)!r}: {text}")


class _Job:
    """The two passes over a source."""

    def __init__(
        self, options: argparse.Namespace, source: Source, given: cbn.Moments | None
    ) -> None:
        self.source, self.given, self.eps = source, given, options.eps
        try:
            cbn.batch_norm_forward([[0.0]], eps=options.eps)
        except ValueError as error:
            raise CommandError(f"--{error}") from None
        self.axis = _axis(source.shape, options.axis)
        if math.prod(source.shape) == 0:
            raise source.error(f"expected at least one value, got shape {source.shape}")
        channels = source.shape[self.axis]
        if given is not None and len(given.mean) != channels:
            raise CommandError(f"--apply: expected {channels} channels, got {len(given.mean)}")
        native = source.dtype.newbyteorder("=")
        self.converted = np.dtype(options.dtype) if options.dtype else None
        self.dtype = self.converted or (native if native.kind == "f" else np.dtype(np.float64))
        self.chunk = options.chunk
        self.mask = None if options.mask is None else _Mask(options.mask, source, self.axis)
        self._of_thread = threading.local()
        self.workers = min(cbn.get_num_threads(), MAX_WORKERS)

    def __enter__(self) -> _Job:
        passes = 1 if self.given else 2
        self.bar = _bar(passes * self.source.bytes)
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        if self.mask is not None:
            self.mask.close()

    def moments(self) -> cbn.Moments:
        """Those given, or the first pass."""
        if self.given is not None:
            return self.given
        stored = self.source.stored(self.axis)
        with contextlib.closing(self._each(self._moments_of, self.chunk)) as found:
            m = cbn.Moments.merge_all(
                cbn.Moments.concatenate(
                    [
                        cbn.Moments.merge_all(m for _, m in of_channels)
                        for _, of_channels in groupby(of_outer, lambda item: item[0].channels)
                    ]
                )
                for _, of_outer in groupby(found, lambda item: item[0].outer)
            )
        if len(m.mean) != stored[1]:
            raise self.source.error("the file has changed")
        if not m.count:
            raise CommandError("--mask: expected at least one True, got none")
        return m

    def normalize(self, m: cbn.Moments, sink: Sink) -> None:
        """The second pass."""
        near = min(self.chunk, NEAR_CHUNK)
        for block, y in self._each(lambda block: self._normalized(block, m, sink), near, True):
            if y is not None:
                sink.write(block.first, y)

    def _moments_of(self, block: Block) -> cbn.Moments:
        x, mask = self._arrays(block)
        return cbn.Moments.from_batch(x, axis=1, mask=mask, num_threads=1)

    def _normalized(self, block: Block, m: cbn.Moments, sink: Sink) -> NDArray | None:
        x, mask = self._arrays(block)
        channels = block.piece.channels
        if channels.stop - channels.start < len(m.mean):
            m = m.select(channels)
        out = self._reused(x) if sink.any_place else None
        settings = {"axis": 1, "eps": self.eps, "mask": mask, "num_threads": 1}
        y, _ = cbn.batch_norm_normalize(x, m, out=out, **settings)
        if not sink.any_place:
            return y
        sink.write(block.first, y)
        return None

    def _reused(self, x: NDArray) -> NDArray:
        """An array for y, which the thread's next call overwrites."""
        flat = getattr(self._of_thread, "flat", None)
        if flat is None or flat.size < x.size:
            flat = self._of_thread.flat = np.empty(x.size, self.dtype)
        return flat[: x.size].reshape(x.shape)

    def _arrays(self, block: Block) -> tuple[NDArray, NDArray | None]:
        x, mask = block.load(), None
        if self.converted is not None:
            with np.errstate(over="ignore"):
                x = x.astype(self.converted, copy=False)
        if self.mask is not None:
            outer, _, inner = block.piece
            size = outer.stop - outer.start, inner.stop - inner.start
            mask = self.mask.read(
                outer.start * self.source.stored(self.axis)[2] + inner.start, size
            )
        if x.shape[2] == 1:
            return x[:, :, 0], None if mask is None else mask[:, 0]
        return x, mask

    def _each(
        self, function: Callable[[Block], _Result], chunk: int, whole: bool = False
    ) -> Iterator[tuple[Any, _Result]]:
        """Every block, or its piece, and the function of it, in order; the functions run in
        threads."""
        size = max(4, self.source.dtype.itemsize)
        blocks = self.source.blocks(self.axis, max(1, chunk // size))
        for block, result in _in_order(function, blocks, self.workers):
            yield (block if whole else block.piece), result
            self.bar.update(block.bytes)


class _Mask:
    """The mask by position, in the order of the source."""

    def __init__(self, path: Path, source: Source, axis: int) -> None:
        shape = source.shape[:axis] + source.shape[axis + 1 :]
        self.file, self.flat = None, None
        try:
            self.file = Npy(path)
            if self.file.dtype != np.bool_:
                raise ValueError(f"expected bool, got {self.file.dtype}")
            if self.file.shape == shape and self.file.fortran == source.fortran:
                return
            with path.open("rb") as file:
                mask = np.broadcast_to(np.load(file, allow_pickle=False), shape)
        except OSError as error:
            raise CommandError(f"--mask: cannot read {str(path)!r}: {error.strerror}") from None
        except (EOFError, SyntaxError, TokenError, ValueError) as error:
            self.close()
            raise CommandError(f"--mask: cannot read {str(path)!r}: {error}") from None
        self.flat = (mask.T if source.fortran else mask).flat

    def read(self, first: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
        if self.flat is None:
            return self.file.read(first, shape)
        return self.flat[first : first + math.prod(shape)].reshape(shape)

    def close(self) -> None:
        if self.file is not None:
            self.file.__exit__()


def _axis(shape: tuple[int, ...], axis: int | None) -> int:
    if len(shape) < 2:
        raise CommandError(f"x: expected at least 2 dimensions, got shape {shape}")
    if axis is None and len(shape) > 2:
        raise CommandError(f"--axis: expected the channel axis of x of shape {shape}, got none")
    axis = 1 if axis is None else axis
    if not -len(shape) <= axis < len(shape):
        raise CommandError(
            f"--axis: expected {-len(shape)} to {len(shape) - 1} for x of shape {shape}, got {axis}"
        )
    return axis % len(shape)


def _bar(total: int) -> Any:
    """A progress bar with the rate on a terminal, if tqdm is installed."""
    if not sys.stderr.isatty():
        return _NoBar()
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return _NoBar()
    return tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, leave=False)


class _NoBar:
    def update(self, count: int) -> None:
        pass

    def close(self) -> None:
        pass


def _in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> Iterator[tuple[_Item, _Result]]:
    """The results of a few threads, no more than one of them waiting a thread."""
    pool, pending = ThreadPoolExecutor(workers), deque()

    def next_one() -> tuple[_Item, _Result]:
        item, future = pending.popleft()
        with signals_held():
            return item, future.result()

    try:
        for item in items:
            with signals_held():
                pending.append((item, pool.submit(function, item)))
            if len(pending) > workers:
                yield next_one()
        while pending:
            yield next_one()
    finally:
        with signals_held():
            pool.shutdown(cancel_futures=True)
