"""Batch norm in pairs of float64, some 106 bits, and errors in units of what is allowed.

A pair (hi, lo) stands for hi + lo, with lo at most half a unit in the last place of hi: twice
float64's precision on every machine, which long double is not. The range is that of float64, so
that squares must fit. Equations are those of docs/math.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESULTS = ("y", "mean", "var", "dx", "dgamma", "dbeta")
ROUNDOFF = {"float32": 2.0**-24, "float64": 2.0**-53}
# The numerical contract, in the units that `units` returns. docs/accuracy.md proves those of
# float32; those of float64 are what an adversary has not reached.
BOUNDS = {
    "float32": {"y": 14, "mean": 6, "var": 20, "dx": 38, "dgamma": 15, "dbeta": 3},
    "float64": {"y": 16, "mean": 16, "var": 64, "dx": 64, "dgamma": 32, "dbeta": 16},
}
# The same of float32 in N x D arrays of at most 64 rows.
BOUNDS_OF_FEW_ROWS = {"y": 7, "mean": 4, "var": 6, "dx": 18, "dgamma": 8, "dbeta": 3}
# The same of inference, whose statistics are given; its units are those of `inference_terms`.
BOUNDS_OF_INFERENCE = {"y": 4, "dx": 2, "dgamma": 5, "dbeta": 3}  # float32
_CHUNK = 1 << 16  # elements at a time, so that temporaries stay in the cache


def bounds(dtype: str, N: int) -> dict[str, int]:
    """What is promised for training of N x D arrays."""
    return BOUNDS_OF_FEW_ROWS if dtype == "float32" and N <= 64 else BOUNDS[dtype]


def named(
    y: ArrayLike, mean: ArrayLike, var: ArrayLike, gradients: Iterable[ArrayLike]
) -> dict[str, NDArray]:
    """The results of training by name."""
    return dict(zip(RESULTS, map(np.asarray, (y, mean, var, *gradients)), strict=True))


class Pair(NamedTuple):
    """An array of numbers hi + lo."""

    hi: NDArray[np.float64]
    lo: NDArray[np.float64]

    @classmethod
    def of(cls, values: ArrayLike) -> Pair:
        hi = np.asarray(values, np.float64)
        return cls(hi, np.zeros_like(hi))

    def part(self, rows: slice) -> Pair:
        return Pair(self.hi[rows], self.lo[rows])

    def minus(self) -> Pair:
        return Pair(-self.hi, -self.lo)


def _two_sum(a: NDArray, b: NDArray) -> Pair:
    """a + b without any error."""
    hi = a + b
    c = hi - a
    return Pair(hi, (a - (hi - c)) + (b - c))


def _normalized(hi: NDArray, lo: NDArray) -> Pair:
    """hi + lo as a pair, where |hi| >= |lo|."""
    total = hi + lo
    return Pair(total, lo - (total - hi))


def _halves(a: NDArray) -> Pair:
    """Dekker's split into two numbers of 26 bits."""
    c = 134217729.0 * a
    hi = c - (c - a)
    return Pair(hi, a - hi)


def add(a: Pair, b: Pair) -> Pair:
    (hi, error), (lo, rest) = _two_sum(a.hi, b.hi), _two_sum(a.lo, b.lo)
    hi, error = _normalized(hi, error + lo)
    return _normalized(hi, error + rest)


def multiply(a: Pair, b: Pair) -> Pair:
    p, q, hi = _halves(a.hi), _halves(b.hi), a.hi * b.hi
    lo = ((p.hi * q.hi - hi) + p.hi * q.lo + p.lo * q.hi) + p.lo * q.lo
    return _normalized(hi, lo + (a.hi * b.lo + a.lo * b.hi))


def divide(a: Pair, b: Pair) -> Pair:
    quotient = Pair.of(a.hi / b.hi)
    rest = add(a, multiply(quotient, b).minus())
    return add(quotient, Pair.of(rest.hi / b.hi))


def square_root(a: Pair) -> Pair:
    root = Pair.of(np.sqrt(a.hi))
    rest = add(a, multiply(root, root).minus())
    return add(root, Pair.of(rest.hi / (2 * root.hi)))


def total(a: Pair) -> Pair:
    """The sum over the first axis."""
    while len(a.hi) > 1:
        half, odd = divmod(len(a.hi), 2)
        halves = add(a.part(slice(half)), a.part(slice(half, 2 * half)))
        if odd:
            last = a.part(slice(-1, None))
            halves = Pair(*(np.concatenate(both) for both in zip(halves, last, strict=True)))
        a = halves
    return a.part(0)


def _total_of(function, *arrays: NDArray) -> Pair:
    """The sum over rows of a function of the arrays' rows, some rows at a time."""
    rows = max(1, _CHUNK // arrays[0].shape[1])
    parts = [
        total(function(*(Pair.of(a[start : start + rows]) for a in arrays)))
        for start in range(0, len(arrays[0]), rows)
    ]
    return total(Pair(*map(np.stack, zip(*parts, strict=True))))


def moments(x: NDArray) -> tuple[Pair, Pair]:
    """Mean and biased variance, (1) and (2)."""
    N = Pair.of(float(len(x)))
    mean = divide(_total_of(lambda rows: rows, x), N)

    def squares(rows: Pair) -> Pair:
        centred = add(rows, mean.minus())
        return multiply(centred, centred)

    return mean, divide(_total_of(squares, x), N)


def reference(
    x: NDArray, dy: NDArray, gamma: NDArray, beta: NDArray, eps: float
) -> dict[str, Pair]:
    """All results of training by name, and invstd and xhat: (1)-(8), (16)."""
    gamma_pair, N = Pair.of(gamma), Pair.of(float(len(x)))
    mean, var = moments(x)
    invstd = divide(Pair.of(1.0), square_root(add(var, Pair.of(eps))))
    xhat = multiply(add(Pair.of(x), mean.minus()), invstd)
    y = add(multiply(xhat, gamma_pair), Pair.of(beta))
    dy_pair = Pair.of(dy)
    dgamma, dbeta = total(multiply(dy_pair, xhat)), total(dy_pair)
    share = divide(add(dbeta, multiply(xhat, dgamma)), N)
    dx = multiply(multiply(gamma_pair, invstd), add(dy_pair, share.minus()))
    results = {"y": y, "mean": mean, "var": var, "dx": dx, "dgamma": dgamma, "dbeta": dbeta}
    return results | {"invstd": invstd, "xhat": xhat}


def inference(
    x: NDArray, dy: NDArray, gamma: NDArray, beta: NDArray, mean: NDArray, var: NDArray, eps: float
) -> dict[str, Pair]:
    """All results of inference and its backward, (42), and invstd and xhat."""
    gamma_pair, dy_pair = Pair.of(gamma), Pair.of(dy)
    invstd = divide(Pair.of(1.0), square_root(add(Pair.of(var), Pair.of(eps))))
    xhat = multiply(add(Pair.of(x), Pair.of(mean).minus()), invstd)
    y = add(multiply(xhat, gamma_pair), Pair.of(beta))
    dx = multiply(multiply(gamma_pair, invstd), dy_pair)
    dgamma, dbeta = total(multiply(dy_pair, xhat)), total(dy_pair)
    results = {"y": y, "dx": dx, "dgamma": dgamma, "dbeta": dbeta}
    return results | {"invstd": invstd, "xhat": xhat}


def inference_terms(
    right: dict[str, Pair], dy: NDArray, gamma: NDArray, beta: NDArray
) -> dict[str, NDArray[np.float64]]:
    """What errors of inference are measured by; the given mean has no error."""
    xhat, invstd = np.abs(right["xhat"].hi), right["invstd"].hi
    dy, gamma, beta = (np.abs(np.asarray(a, np.float64)) for a in (dy, gamma, beta))
    dgamma, dbeta = (dy * xhat).sum(axis=0), dy.sum(axis=0)
    return {"y": gamma * xhat + beta, "dx": gamma * invstd * dy, "dgamma": dgamma, "dbeta": dbeta}


def error(actual: ArrayLike, expected: Pair) -> NDArray[np.float64]:
    """|actual - expected|."""
    return np.abs((np.asarray(actual, np.float64) - expected.hi) - expected.lo)


def terms(
    right: dict[str, Pair], dy: NDArray, gamma: NDArray, beta: NDArray
) -> dict[str, NDArray[np.float64]]:
    """What errors are measured by: the sums of the magnitudes of the terms of each result.

    The 1 in 1 + |xhat| is for the error of the mean, which is a share of the deviation.
    """
    std, var = np.sqrt(right["var"].hi), right["var"].hi
    xhat, invstd = np.abs(right["xhat"].hi), right["invstd"].hi
    dy, gamma, beta = (np.abs(np.asarray(a, np.float64)) for a in (dy, gamma, beta))
    dgamma, dbeta = (dy * (1 + xhat)).sum(axis=0), dy.sum(axis=0)
    dx = gamma * invstd * (dy + (1 + xhat) * dgamma / len(dy))
    y = gamma * (1 + xhat) + beta
    return {"y": y, "mean": std, "var": var, "dx": dx, "dgamma": dgamma, "dbeta": dbeta}


def _half_of_the_last(dtype: np.dtype) -> float:
    return float(np.finfo(dtype).smallest_subnormal) / 2


def ratios(
    actual: dict[str, NDArray], right: dict[str, Pair], size: dict[str, NDArray], dtype: str
) -> dict[str, NDArray[np.float64]]:
    """The largest error of each result in every column, in units of u times its terms.

    What the format makes is taken off an error: of the mean the rounding to float64,
    whatever its type, of a subnormal result half its last place. What is not finite counts as inf,
    and so does an error where all terms are 0.
    """
    found = {}
    for name, terms_of_it in size.items():
        off = error(actual[name], right[name]) - _half_of_the_last(actual[name].dtype)
        if name == "mean":
            off = off - ROUNDOFF["float64"] * np.abs(right[name].hi)
        off = np.maximum(off, 0)
        unit = ROUNDOFF[dtype] * terms_of_it
        ratio = np.divide(off, unit, out=np.where(off == 0, 0, np.inf), where=unit > 0)
        ratio = np.where(np.isnan(ratio), np.inf, ratio)
        found[name] = ratio.reshape(-1, ratio.shape[-1]).max(axis=0)
    return found


def units(
    actual: dict[str, NDArray], right: dict[str, Pair], size: dict[str, NDArray], dtype: str
) -> dict[str, float]:
    """The largest of the ratios of each result."""
    return {name: float(np.max(r)) for name, r in ratios(actual, right, size, dtype).items()}
