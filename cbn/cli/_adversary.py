"""Search for the data on which batch norm errs most.

The columns of a batch do not depend on each other, so that D columns are D individuals of a
population. Each round mutates and crosses the worst ones, and judges all of them in one call by
pairs of float64 (_exact.py). An individual's fitness is the largest error of one result in its
column, in units of u times the terms that are added up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from cbn.cli import _exact

ELITE = 8  # one of so many individuals has offspring

Array = NDArray[np.float64]
# x, dy, gamma, beta and eps to the results by name.
Function = Callable[[NDArray, NDArray, NDArray, NDArray, float], dict[str, NDArray]]
# The same to what is exact, and to the terms that errors are measured by.
Judge = Callable[
    [NDArray, NDArray, NDArray, NDArray, float], tuple[dict[str, _exact.Pair], dict[str, Array]]
]


@dataclass
class Columns:
    """Individuals: x and dy have a column of N rows for each, gamma and beta a number."""

    x: NDArray
    dy: NDArray
    gamma: NDArray
    beta: NDArray

    def of(self, columns: NDArray) -> Columns:
        return Columns(*(getattr(self, f.name)[..., columns] for f in fields(self)))

    def with_(self, other: Columns) -> Columns:
        both = (
            np.concatenate([getattr(self, f.name), getattr(other, f.name)], axis=-1)
            for f in fields(self)
        )
        return Columns(*both)

    def as_type(self, dtype: str) -> Columns:
        with np.errstate(over="ignore"):
            return Columns(*(getattr(self, f.name).astype(dtype) for f in fields(self)))


# The first population ----------------------------------------------------------------------------


def _exponents(rng: np.random.Generator, N: int, D: int, last_bit: float) -> Array:
    return rng.standard_normal((N, D)) * np.exp2(rng.integers(-20, 20, (N, D)))


def _powers(rng: np.random.Generator, N: int, D: int, last_bit: float) -> Array:
    return np.exp2(rng.integers(-12, 12, (N, D))) * rng.choice([-1, 1], (N, D))


def _shifted(rng: np.random.Generator, N: int, D: int, last_bit: float) -> Array:
    return rng.standard_normal((N, D)) + np.exp2(rng.integers(0, 24, D))


def _outliers(rng: np.random.Generator, N: int, D: int, last_bit: float) -> Array:
    return rng.standard_normal((N, D)) * np.where(rng.random((N, D)) < 0.1, 1e4, 1)


def _bits_apart(rng: np.random.Generator, N: int, D: int, last_bit: float) -> Array:
    return 1 + rng.integers(-3, 4, (N, D)) * last_bit


def _two_levels(rng: np.random.Generator, N: int, D: int, last_bit: float) -> Array:
    """A step at an edge of trees, blocks or segments, on noise."""
    edges = np.array([1, 4, 8, 16, 32, 64, N // 2])
    edge = np.minimum(edges[rng.integers(0, len(edges), D)], N)
    step = np.where(np.arange(N)[:, None] < edge, 0, np.exp2(rng.integers(-2, 12, D)))
    return step + rng.standard_normal((N, D))


def _one_row(rng: np.random.Generator, N: int, D: int, last_bit: float) -> Array:
    rows = np.full((N, D), 1e-6) * rng.standard_normal((N, D))
    rows[rng.integers(0, N, D), np.arange(D)] = 1
    return rows


STARTS: tuple[Callable[[np.random.Generator, int, int, float], Array], ...] = (
    lambda rng, N, D, last_bit: rng.standard_normal((N, D)),
    lambda rng, N, D, last_bit: rng.integers(-2, 3, (N, D)).astype(float),
    lambda rng, N, D, last_bit: np.sort(rng.standard_normal((N, D)), axis=0),
    lambda rng, N, D, last_bit: rng.standard_normal((N, D)).cumsum(axis=0),
    lambda rng, N, D, last_bit: (-1.0) ** np.arange(N)[:, None] * rng.lognormal(0, 1, (N, D)),
    *(_exponents, _powers, _shifted, _outliers, _bits_apart, _two_levels, _one_row),
)


def _some_of_each(rng: np.random.Generator, N: int, D: int, last_bit: float) -> Array:
    rows = np.stack([start(rng, N, D, last_bit) for start in STARTS])
    return rows[rng.integers(0, len(STARTS), D), :, np.arange(D)].T


def first(rng: np.random.Generator, N: int, D: int, dtype: str) -> Columns:
    """Individuals of many kinds."""
    last_bit = 2 * _exact.ROUNDOFF[dtype]
    gamma = rng.standard_normal(D) * np.where(rng.random(D) < 0.1, 2.0 ** rng.integers(-20, 20), 1)
    beta = rng.standard_normal(D) * np.where(rng.random(D) < 0.5, 0, 0.1)
    x, dy = (_some_of_each(rng, N, D, last_bit) for _ in range(2))
    return Columns(x, dy, gamma, beta).as_type(dtype)


# Offspring ---------------------------------------------------------------------------------------


def _nudged(rng: np.random.Generator, rows: NDArray) -> NDArray:
    """One number in twenty goes to a neighbour."""
    towards = np.where(rng.random(rows.shape) < 0.5, np.inf, -np.inf).astype(rows.dtype)
    return np.where(rng.random(rows.shape) < 0.05, np.nextafter(rows, towards), rows)


def _changed(rng: np.random.Generator, rows: NDArray) -> NDArray:
    """Two rows of each column are scaled, shifted, replaced by another row, or turned around."""
    N, D = rows.shape
    columns, rows = np.arange(D), rows.copy()
    kind = rng.integers(0, 5, D)
    for row in rng.integers(0, N, (2, D)):
        step = np.exp2(rng.integers(-24, 3, D)) * rng.standard_normal(D)
        old, other = rows[row, columns], rows[rng.integers(0, N, D), columns]
        size = np.abs(rows).mean(axis=0, dtype=np.float64)
        rows[row, columns] = np.select(
            [kind == 0, kind == 1, kind == 2, kind == 3],
            [old * (1 + step), old + step * size, other, -old],
            old,
        )
    return rows


def offspring(rng: np.random.Generator, parents: Columns, D: int) -> Columns:
    """D children of the parents: mutated in x or in dy, and some of two parents."""
    count = parents.x.shape[1]
    child = parents.of(rng.integers(0, count, D))
    other = parents.of(rng.integers(0, count, D))
    crossed = (rng.random(child.x.shape) < 0.5) & (rng.random(D) < 0.2)
    in_x = rng.random(D) < 0.5
    with np.errstate(all="ignore"):
        x, dy = np.where(crossed, other.x, child.x), np.where(crossed, other.dy, child.dy)
        x = np.where(in_x, _nudged(rng, _changed(rng, x)), x)
        dy = np.where(in_x, dy, _nudged(rng, _changed(rng, dy)))
        gamma = np.where(rng.random(D) < 0.1, _nudged(rng, child.gamma), child.gamma)
    return Columns(x, dy, gamma, child.beta).as_type(child.x.dtype.name)


# The climb ---------------------------------------------------------------------------------------


def of_training(
    x: NDArray, dy: NDArray, gamma: NDArray, beta: NDArray, eps: float
) -> tuple[dict[str, _exact.Pair], dict[str, Array]]:
    """The judge of training."""
    right = _exact.reference(x, dy, gamma, beta, eps)
    return right, _exact.terms(right, dy, gamma, beta)


def fitness(
    function: Function, columns: Columns, result: str, eps: float, judge: Judge = of_training
) -> Array:
    """The error of a result in each column, in units; -1 where the data are of no use."""
    dtype = columns.x.dtype.name
    arrays = (columns.x, columns.dy, columns.gamma, columns.beta)
    with np.errstate(all="ignore"):
        finite = np.all([np.isfinite(a).all(axis=tuple(range(a.ndim - 1))) for a in arrays], axis=0)
        right, size = judge(*arrays, eps)
        found = _exact.ratios(function(*arrays, eps), right, size, dtype)[result]
    useful = finite & np.isfinite(right[result].hi.reshape(-1, len(finite))).all(axis=0)
    unit = size[result].reshape(-1, len(finite))
    normal = np.finfo(dtype).smallest_normal
    useful &= (unit.min(axis=0) > normal) & np.isfinite(unit).all(axis=0)
    return np.where(useful, found, -1)


@dataclass
class Found:
    """The worst individual until now."""

    units: float
    columns: Columns
    rounds: int


def climb(
    function: Function,
    result: str,
    N: int,
    dtype: str,
    eps: float,
    seed: int,
    D: int = 512,
    judge: Judge = of_training,
) -> Iterator[Found]:
    """The worst individual after each round, without an end."""
    rng = np.random.default_rng([seed, N, _exact.RESULTS.index(result)])
    columns = first(rng, N, D, dtype)
    units = fitness(function, columns, result, eps, judge)
    rounds = 0
    while True:
        order = np.argsort(-units, kind="stable")[:D]
        columns, units, rounds = columns.of(order), units[order], rounds + 1
        yield Found(float(units[0]), columns.of(np.array([0])), rounds)
        children = offspring(rng, columns.of(np.arange(max(1, D // ELITE))), D)
        units = np.concatenate([units, fitness(function, children, result, eps, judge)])
        columns = columns.with_(children)


def attack(
    function: Function,
    result: str,
    N: int,
    dtype: str,
    eps: float,
    *,
    seconds: float = np.inf,
    rounds: float = np.inf,
    seed: int = 0,
    D: int = 512,
    judge: Judge = of_training,
) -> Found:
    """Climb for so long, or for so many rounds."""
    end = time.monotonic() + seconds
    search = climb(function, result, N, dtype, eps, seed, D, judge)
    found = next(search)
    while found.rounds < rounds and time.monotonic() < end:
        found = next(search)
    return found
