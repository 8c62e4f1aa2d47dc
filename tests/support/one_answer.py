"""Arguments for test_one_answer.py and test_neon.py, every way to lay them out, and hashes.

Run as a script it prints, as JSON, the hashes of CASES on the tier that CBN_ISA names.
"""

from __future__ import annotations

import hashlib
import json
from itertools import product

import numpy as np
from cases import DTYPES, generator

import cbn

EPS = 1e-5
SHAPES = [
    *((1, 5), (2, 1), (2, 7), (2, 1023), (2, 16385), (3, 31), (5, 1), (17, 4099), (31, 7)),
    *((32, 13), (33, 1), (33, 127), (40, 1023), (64, 16), (100, 3), (255, 31), (256, 8)),
    *((256, 257), (257, 13), (300, 1025), (1000, 1), (1000, 7), (1000, 127), (1023, 64)),
    *((4097, 13), (4097, 32), (16385, 7), (20000, 16), (65536, 3), (70000, 1)),
]
EXTREMES = (291, 40)
CASES = list(product([*SHAPES, EXTREMES], DTYPES))

MATRICES = ("x", "dy", "x_dot")
VECTORS = ("gamma", "beta", "mean", "var", "gamma_dot", "beta_dot")


def name_of(case) -> str:
    (rows, columns), dtype = case
    return f"{rows}x{columns} {np.dtype(dtype).name}"


class Arguments:
    """What all operations take: x, dy, x_dot (N, D), the rest float64 (D,)."""

    def __init__(self, case):
        shape, dtype = case
        rng = generator("one answer", shape, np.dtype(dtype).name)
        mean, std = rng.normal(0, 100, shape[1]), rng.lognormal(0, 1, shape[1])
        self.x, self.dy, self.x_dot = rng.standard_normal((3, *shape), dtype)
        self.x *= std.astype(dtype)
        self.x += mean.astype(dtype)
        self.dy += dtype(0.3)
        self.mean, self.var = mean + 0.1 * std, std**2 * rng.uniform(0.8, 1.2, shape[1])
        self.gamma, self.beta, self.gamma_dot, self.beta_dot = rng.normal(1, 0.5, (4, shape[1]))
        if shape == EXTREMES:
            self._go_to_extremes(dtype)

    def _go_to_extremes(self, dtype):
        """Channels that are huge, tiny, constant, not finite, or far from their mean."""
        tiny = float(np.finfo(dtype).smallest_subnormal)
        self.x[:, 1] *= dtype(1e30)
        self.x[:, 3] *= dtype(1e-30)
        self.x[:, 5] = tiny * np.arange(len(self.x))
        self.x[:, 7], self.x[:, 9] = 0, dtype(0.1)
        self.x[5, 11], self.x[6, 13] = np.nan, np.inf
        self.x[:, 15] += dtype(1e6)
        self.x[0, 17], self.x[-1, 18] = 1e9, -1e9
        self.x[::2, 19], self.x[1::2, 19] = 0.1, 0.7
        self.dy[7, 21], self.x_dot[8, 22] = -np.inf, np.nan
        self.dy[:, 23] *= dtype(1e37)
        self.dy[:, 25] = tiny * np.arange(len(self.dy))
        self.gamma[27], self.gamma[29], self.beta[31] = 1e-36, 1e36, -0.0
        self.mean[33], self.var[35] = 1e6, 0

    def map(self, matrix, vector=lambda a: a):
        """The same with the matrices and the vectors as the functions lay them out."""
        mapped = object.__new__(Arguments)
        for names, function in ((MATRICES, matrix), (VECTORS, vector)):
            vars(mapped).update((name, function(getattr(self, name))) for name in names)
        return mapped


def compute(a: Arguments, out=lambda over: None, axis=-1, num_threads=None):
    """Return every array by name; out(input) is where an operation's first result goes."""
    threads, options = {"num_threads": num_threads}, {"axis": axis, "eps": EPS}

    def run(function, *arguments, over, **options):
        target = out(over)
        saved = over.copy() if target is over else None
        results = function(*arguments, out=target, **options, **threads)
        results = results if isinstance(results, tuple) else (results,)
        assert target is None or results[0] is target
        if saved is not None:
            results = (results[0].copy(), *results[1:])
            over[...] = saved
        return results

    fixed = (a.x, a.mean, a.var, a.gamma)
    y, cache = run(cbn.batch_norm_forward, a.x, a.gamma, a.beta, over=a.x, **options)
    if out(a.x) is a.x:  # whose cache has y
        cache = cbn.batch_norm_forward(a.x, a.gamma, a.beta, **options, **threads)[1]
    training = run(cbn.batch_norm_backward, a.dy, cache, over=a.dy)
    (inference,) = run(cbn.batch_norm_inference, *fixed, a.beta, over=a.x, **options)
    backward = run(cbn.batch_norm_inference_backward, a.dy, *fixed, over=a.dy, **options)
    dots = (a.gamma_dot, a.beta_dot)
    y_dot = cbn.batch_norm_jvp(a.x_dot, cache, *dots, **threads)
    double = cbn.batch_norm_double_backward(a.x_dot, a.dy, cache, *dots, **threads)
    results = {"y": y, "mean": cache.mean, "var": cache.var, "invstd": cache.invstd}
    results |= zip(("dx", "dgamma", "dbeta"), training, strict=True)
    results |= {"inference": inference}
    results |= zip(("inference_dx", "inference_dgamma", "inference_dbeta"), backward, strict=True)
    results |= {"y_dot": y_dot}
    results |= zip(("g_dy", "g_x", "g_gamma"), double, strict=True)
    return results


def compute_without_parameters(a: Arguments, out=None, axis=-1, num_threads=None):
    """y and dx where neither gamma nor beta is given."""
    y, cache = cbn.batch_norm_forward(a.x, axis=axis, eps=EPS, num_threads=num_threads)
    dx, _, _ = cbn.batch_norm_backward(a.dy, cache, num_threads=num_threads)
    return {"bare y": y, "bare dx": dx}


def digest(array) -> str:
    """SHA-256 of the values in C order, with one NaN for all."""
    array = np.ascontiguousarray(array)
    if array.dtype.kind == "f" and np.isnan(array).any():
        array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
    return f"{array.dtype} {hashlib.sha256(array).hexdigest()}"


def hashes(a: Arguments, **options) -> dict[str, str]:
    """Return the hash of every result; rows are those of plain (N, D) arrays."""
    with np.errstate(all="ignore"):
        results = compute(a, **options) | compute_without_parameters(a, **options)
    transposed = options.get("axis") == 0
    return {name: digest(array.T if transposed else array) for name, array in results.items()}


# Memory -------------------------------------------------------------------------------------------

LINE = 128  # bytes: sixteen float64


def memory(shape, dtype, offset):
    """An array of NaN whose first byte is `offset` bytes past a multiple of LINE."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.full(size + LINE + offset, 0xFF, np.uint8)
    start = -raw.ctypes.data % LINE + offset
    return np.ndarray(shape, dtype, raw, start)


# From a function of a shape that makes an array, N and D to an (N, D) view.
LAYOUTS = {
    "C": lambda new, N, D: new((N, D)),
    "Fortran": lambda new, N, D: new((D, N)).T,
    "rows reversed": lambda new, N, D: new((N, D))[::-1],
    "columns reversed": lambda new, N, D: new((N, D))[:, ::-1],
    "both reversed": lambda new, N, D: new((N, D))[::-1, ::-1],
    "Fortran reversed": lambda new, N, D: new((D, N))[::-1, ::-1].T,
    "every third row": lambda new, N, D: new((3 * N, D))[1::3],
    "every second column": lambda new, N, D: new((N, 2 * D))[:, 1::2],
    "padded rows": lambda new, N, D: new((N, D + 5))[:, 2 : D + 2],
    "rows a power of two apart": lambda new, N, D: new((N, 1 << D.bit_length()))[:, :D],
    "byte-swapped": lambda new, N, D: new((N, D), swapped=True),
}


def lay_out(a: np.ndarray, layout: str, offset: int = 0, filled: bool = True) -> np.ndarray:
    """The matrix in other memory; without `filled` only room for one, in native byte order."""

    def new(shape, swapped=False):
        order = "S" if swapped and filled else "="
        return memory(shape, a.dtype.newbyteorder(order), offset)

    view = LAYOUTS[layout](new, *a.shape)
    if filled:
        view[...] = a
    return view


def lay_out_vector(a: np.ndarray, step: int, offset: int = 0) -> np.ndarray:
    """The vector with its elements `step` apart, which may be negative."""
    view = memory(a.size * abs(step), a.dtype, offset)[::step]
    view[...] = a
    return view


if __name__ == "__main__":
    tier = cbn.show_runtime("dicts")["isa"]["chosen"]
    found = {name_of(case): hashes(Arguments(case), num_threads=2) for case in CASES}
    print(json.dumps({"tier": tier, "hashes": found}))
