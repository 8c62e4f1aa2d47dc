"""What test_mpi.py compares, computed by every rank: ``mpiexec -n 2 python mpi_cases.py FOLDER``.

Each case leaves one file a rank. The cases of whole batches are listed here with the arguments of a
single process, which the test makes again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from cases import generator

import cbn

EVEN, UNEQUAL, EMPTY = "even", "unequal", "empty"

# shape, dtype, how rows are dealt, options
WHOLE = {
    "float32": ((300, 17), np.float32, EVEN, ()),
    "float64": ((300, 17), np.float64, UNEQUAL, ()),
    "float16": ((60, 5), np.float16, UNEQUAL, ()),
    "empty rank": ((200, 9), np.float32, EMPTY, ()),
    "many channels": ((40, 700), np.float32, UNEQUAL, ()),
    "images": ((12, 3, 5, 7), np.float32, UNEQUAL, ()),
    "one row": ((1, 4), np.float64, EMPTY, ()),
    "mask": ((90, 6), np.float32, UNEQUAL, ("mask",)),
    "weights": ((90, 6), np.float64, EMPTY, ("sample_weight",)),
    "all": ((40, 3, 6), np.float32, UNEQUAL, ("mask", "sample_weight", "residual", "activation")),
}


def whole(name):
    """x, dy, gamma, beta and options of a case, for all ranks together."""
    shape, dtype, _, names = WHOLE[name]
    rng = generator("mpi", name)
    x, dy, residual = rng.normal(5, 2, (3, *shape)).astype(dtype)
    gamma, beta = rng.normal(1, 0.3, (2, shape[1]))
    positions = (shape[0], *shape[2:])
    known = {
        "mask": rng.random(positions) < 0.7,
        "sample_weight": rng.integers(0, 4, positions) / 4,
        "residual": residual,
        "activation": "relu",
    }
    return x, dy, gamma, beta, {name: known[name] for name in names}


def rows_of(size, rows, dealt):
    """The slices of all ranks; the first rank has none when dealt EMPTY."""
    shares = {
        EVEN: np.ones(size),
        UNEQUAL: np.arange(1, size + 1) ** 2,
        EMPTY: np.r_[0, np.ones(size - 1)],
    }[dealt]
    cuts = np.r_[0, np.round(np.cumsum(shares) / shares.sum() * rows)].astype(int)
    return [slice(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]


def part_of(options, part):
    return {name: a if isinstance(a, str) else a[part] for name, a in options.items()}


def case_whole(mpi, comm):
    found = {}
    for name in WHOLE:
        x, dy, gamma, beta, options = whole(name)
        part = rows_of(comm.size, len(x), WHOLE[name][2])[comm.rank]
        for run in range(2):
            y, cache = mpi.batch_norm_forward(
                x[part], gamma, beta, comm=comm, axis=1, **part_of(options, part)
            )
            gradients = mpi.batch_norm_backward(dy[part], cache, comm=comm)
            results = {"y": y, "mean": cache.mean, "var": cache.var, "count": cache.count}
            results |= zip(("dx", "dgamma", "dbeta", "dresidual"), gradients, strict=False)
            found |= {f"{name}/{key}/{run}": value for key, value in results.items()}
    return found


class Counting:
    """A communicator that writes down the bytes of its messages."""

    def __init__(self, comm):
        self._comm = comm
        self.bytes = []

    def __getattr__(self, name):
        return getattr(self._comm, name)

    def Allreduce(self, message, result, op):  # noqa: N802
        self.bytes.append(message[0].nbytes)
        self._comm.Allreduce(message, result, op=op)


def case_messages(mpi, comm):
    found = {}
    for channels in (3, 256, 257, 1000):
        counting = Counting(comm)
        x = generator(comm.rank).normal(size=(4, channels))
        cache = mpi.batch_norm_forward(x, comm=counting)[1]
        forward = len(counting.bytes)
        mpi.batch_norm_backward(x, cache, comm=counting)
        found[f"forward/{channels}"] = counting.bytes[:forward]
        found[f"backward/{channels}"] = counting.bytes[forward:]
        layer = mpi.SyncBatchNorm(channels, comm=counting)
        layer(x)
        layer.backward(x)
        counting.bytes.clear()
        layer(x)
        layer.backward(x)
        found[f"layer/{channels}"] = np.array(counting.bytes)
    return found


def said(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def case_errors(mpi, comm):
    """Mistakes of one rank each, and after each of them a call that must work."""
    x = generator("errors", comm.rank).normal(size=(5, 3))
    found = {}
    for culprit in range(comm.size):
        mine = comm.rank == culprit
        bad = {
            "dtype": ({"x": x + 1j if mine else x}, "forward"),
            "not an array": ({"x": None if mine else x}, "forward"),
            "dimensions": ({"x": x[0] if mine else x}, "forward"),
            "channels": ({"x": x[:, :2] if mine else x}, "forward"),
            "gamma": ({"x": x, "gamma": np.ones(4 if mine else 3)}, "forward"),
            "weight": ({"x": x, "sample_weight": -np.ones(5) if mine else None}, "forward"),
            "out": ({"x": x, "out": np.ones(2) if mine else None}, "forward"),
            "dy": ({"dy": x[:2] if mine else x}, "backward"),
            "cache": ({"dy": x, "cache": None if mine else ...}, "backward"),
        }
        for name, (options, direction) in bad.items():
            cache = mpi.batch_norm_forward(x, comm=comm)[1]
            if options.get("cache", cache) is ...:
                options["cache"] = cache
            if direction == "forward":
                text = said(mpi.batch_norm_forward, comm=comm, **options)
            else:
                text = said(mpi.batch_norm_backward, comm=comm, **{"cache": cache} | options)
            found[f"{name}/{culprit}"] = text
    found["no rows"] = said(mpi.batch_norm_forward, x[:0], comm=comm)
    found["comm"] = said(mpi.batch_norm_forward, x, comm=None)
    found["renorm"] = said(mpi.SyncBatchNorm, 3, comm=comm, renorm=True)
    return found


def case_layer(mpi, comm):
    x, dy, gamma, beta, _ = whole("float32")
    parts = rows_of(comm.size, len(x), UNEQUAL)
    part = parts[comm.rank]
    layer = mpi.SyncBatchNorm(x.shape[1], comm=comm, momentum=0.3, dtype=np.float64)
    layer.gamma[:], layer.beta[:] = gamma, beta
    found = {}
    for step in range(3):
        found[f"y/{step}"] = layer((step + 1) * x[part])
        found[f"dx/{step}"] = layer.backward(dy[part])
        found[f"dgamma/{step}"], found[f"dbeta/{step}"] = layer.dgamma, layer.dbeta
        layer.gamma -= 0.1 * layer.dgamma
        layer.beta -= 0.1 * layer.dbeta
    state = layer.state_dict()
    found |= {f"state/{name}": value for name, value in state.items()}
    mine = comm.rank == comm.size - 1
    found["error/channels"] = said(layer, x[part][:, :3] if mine else x[part])
    found["error/None"] = said(layer, None if mine else x[part])
    found["error/dy"] = said(layer.backward, dy[:1, :1] if mine else dy[part])
    fresh = mpi.SyncBatchNorm(3, comm=comm)
    found["error/one value"] = said(fresh, np.ones((int(mine), 3)))
    found["error/backward first"] = said(fresh.backward, np.ones((1, 3)))
    found["untouched"] = all(np.array_equal(layer.state_dict()[k], v) for k, v in state.items())
    replaced = mpi.SyncBatchNorm(3, comm=comm)
    if mine:
        replaced.running_var = np.ones(2, np.float32)
    found["error/running_var"] = said(replaced, np.eye(3))
    found["untouched"] &= replaced.num_batches_tracked == 0 and not replaced.running_mean.any()
    layer.eval()
    if comm.rank == 0:  # alone: nothing is sent
        found["eval/y"] = layer(x)
        found["eval/dx"] = layer.backward(dy)
        found["eval/mask"] = layer(x, mask=np.arange(len(x)) % 2 == 0)
    wide = mpi.SyncBatchNorm(300, comm=comm)
    for _ in range(2):
        found["wide/error"] = said(wide, None if mine else np.eye(300))
        wide(np.eye(300))
    return found


def main(folder: Path) -> None:
    from mpi4py import MPI

    from cbn.distributed import mpi

    cbn.set_num_threads(1)
    comm = MPI.COMM_WORLD
    for name, case in globals().items():
        if name.startswith("case_"):
            np.savez(folder / f"{name}.{comm.rank}.npz", **case(mpi, comm))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
