"""Run as a script: compute many cases on the tier CBN_ISA names and save them for test_isa.py."""

from __future__ import annotations

import sys

import numpy as np

import cbn
from cases import DTYPES, PARAMETERS, SHAPES, Batch, everything


def extremes(dtype) -> Batch:
    """Channels that leave the fast path: huge, tiny, constant, not finite, far from their mean."""
    b = Batch((291, 40), dtype, key="extremes")
    b.x[:, 3] *= dtype(1e30)
    b.x[:, 7] *= dtype(1e-30)
    b.x[:, 11] *= dtype(1e-38)
    b.x[:, 13] = 0
    b.x[:, 17] = dtype(0.1)
    b.x[5, 19] = np.nan
    b.x[6, 23] = np.inf
    b.x[:, 29] += dtype(1e6)
    b.x[0, 31] = 1e9
    b.gamma[33], b.gamma[34] = 1e-36, 1e36
    b.dy[7, 37] = -np.inf
    return b


def batches():
    for dtype in DTYPES:
        name = np.dtype(dtype).name
        for shape in [*SHAPES, (16385, 3), (300, 1025)]:
            for parameters in PARAMETERS:
                yield f"{name} {shape} {parameters}", Batch(shape, dtype, parameters)
        yield f"{name} extremes", extremes(dtype)


def compute() -> dict[str, np.ndarray]:
    results = {"tier": np.array(cbn.show_runtime("dicts")["isa"]["chosen"])}
    with np.errstate(all="ignore"):
        for case, b in batches():
            results |= {f"{case} {name}": a for name, a in everything(b, num_threads=2).items()}
    return results


if __name__ == "__main__":
    np.savez(sys.argv[1], **compute())
