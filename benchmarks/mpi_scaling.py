"""Measure batch norm over MPI ranks beside the model of docs/scale.md.

Run ``python benchmarks/mpi_scaling.py``: it starts mpiexec with 1, 2 and 3 ranks itself, and prints
what they took, what the model says, and what it says for networks and numbers of ranks that are not
here. Needs mpi4py and mpiexec (pip install --group mpi).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import cbn

ROWS, CHANNELS = 65536, (64, 256, 1024)
MORE_RANKS = (16, 256, 4096)


def seconds(function: Callable[[], object], rounds: int, comm: Any) -> float:
    """The fastest of so many calls, each as long as on the slowest rank."""
    taken = np.empty(rounds)
    for i in range(rounds):
        comm.Barrier()
        start = time.perf_counter()
        function()
        taken[i] = time.perf_counter() - start
    return float(np.max(comm.allgather(taken), axis=0).min())


def measure(rows: int, rounds: int) -> dict:
    """Seconds by channels and by what took them."""
    from mpi4py import MPI

    from cbn.distributed import mpi

    cbn.set_num_threads(1)
    comm, found = MPI.COMM_WORLD, {}
    share = rows // comm.size
    rng = np.random.default_rng(comm.rank)
    for channels in CHANNELS:
        x, dy, y, dx = rng.standard_normal((4, share, channels), np.float32)
        moments = cbn.Moments.from_batch(x[:9])
        _, cache = mpi.batch_norm_forward(x, comm=comm)
        s = cbn.BackwardSums.from_batch(dy, cache)

        def step(x=x, dy=dy, y=y, dx=dx) -> None:
            _, cache = mpi.batch_norm_forward(x, comm=comm, out=y)
            mpi.batch_norm_backward(dy, cache, comm=comm, out=dx)

        def alone(x=x, dy=dy, y=y, dx=dx) -> None:
            m = cbn.Moments.from_batch(x)
            _, cache = cbn.batch_norm_normalize(x, m, out=y)
            s = cbn.BackwardSums.from_batch(dy, cache)
            cbn.batch_norm_backward_apply(dy, cache, s, out=dx)

        def call(m=moments, channels=channels) -> None:
            mpi.all_merged(MPI.COMM_SELF, cbn.Moments, m, agreed=channels)

        def merge(m=moments, s=s) -> None:
            for value in (m, s):
                (value + value).to_buffer()

        message = np.zeros(4 + 3 * channels)

        def exchange(message=message) -> None:
            comm.Sendrecv(message, comm.rank ^ 1, recvbuf=message.copy(), source=comm.rank ^ 1)

        times = {
            "step": seconds(step, rounds, comm),
            "alone": seconds(alone, rounds, comm),
            "call": 2 * seconds(call, 10 * rounds, comm),
            "merge": seconds(merge, 10 * rounds, comm),
            "exchange": seconds(exchange, 10 * rounds, comm) if comm.size == 2 else 0.0,
        }
        found[channels] = times
    return found


def started(ranks: int, options: argparse.Namespace) -> dict:
    """The measurements of so many ranks."""
    beside = Path(sys.executable).parent
    mpiexec = shutil.which("mpiexec", path=beside) or shutil.which("mpiexec")
    if mpiexec is None:
        raise SystemExit("there is no mpiexec: pip install --group mpi")
    command = [mpiexec, "-n", str(ranks), sys.executable, "-m", "mpi4py", __file__, "--rank"]
    command += ["--rows", str(options.rows), "--rounds", str(options.rounds)]
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    if run.returncode:
        raise SystemExit(run.stderr)
    found = json.loads(run.stdout.splitlines()[-1])
    return {int(channels): times for channels, times in found.items()}


def model(ranks: int, alone: float, call: float, stage: float) -> float:
    """Equation (1) of docs/scale.md; `stage` is both directions of one stage of the reductions."""
    return alone / ranks + call + math.ceil(math.log2(ranks)) * stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS, help="of all ranks together")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--latency", type=float, default=2e-6, help="of a network, in seconds")
    parser.add_argument("--bandwidth", type=float, default=1e10, help="of a network, in bytes/s")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        found = measure(options.rows, options.rounds)
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 0:
            print(json.dumps(found))
        return

    measured = {ranks: started(ranks, options) for ranks in (1, 2, 3)}
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, one thread a rank, float32")
    print("forward and backward of all rows, ms\n")
    print("| N x D | ranks | measured | model | of it local | call | a stage |")
    print("|---|---|---|---|---|---|---|")
    for channels in CHANNELS:
        one, two = measured[1][channels], measured[2][channels]
        stage = 2 * two["exchange"] + one["merge"]
        for ranks, found in measured.items():
            crowd = max(1, ranks / (os.cpu_count() or 1))  # ranks that share a core take turns
            local = one["alone"] * crowd
            values = found[channels]["step"], model(ranks, local, one["call"], stage)
            parts = local / ranks, one["call"], stage
            cells = " | ".join(f"{1e3 * t:.3g}" for t in (*values, *parts))
            print(f"| {options.rows}x{channels} | {ranks} | {cells} |")
    print(
        f"\nAs many rows on every rank, {options.rows} (weak scaling), over a network of"
        f" {1e6 * options.latency:g} us and {options.bandwidth / 1e9:g} GB/s (assumed), ms\n"
    )
    print("| D | 1 rank |" + "".join(f" {ranks} ranks |" for ranks in MORE_RANKS))
    print("|---|---|" + "---|" * len(MORE_RANKS))
    for channels in CHANNELS:
        one = measured[1][channels]
        size = (24 + 32) * max(channels, 256)
        stage = 2 * options.latency + size / options.bandwidth + one["merge"]
        times = [model(r, r * one["alone"], one["call"], stage) for r in (1, *MORE_RANKS)]
        cells = (f" {1e3 * t:.3g} ({times[0] / t:.1%}) |" for t in times[1:])
        print(f"| {channels} | {1e3 * times[0]:.3g} |{''.join(cells)}")


if __name__ == "__main__":
    main()
