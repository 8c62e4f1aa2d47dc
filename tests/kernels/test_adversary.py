"""An adversary searches for data on which the promised bounds do not hold."""

from __future__ import annotations

from pathlib import Path

import exact
import numpy as np
import pytest
from cases import slow_if

from cbn.cli import _adversary, _exact
from cbn.cli._adversary import RESULTS, Columns
from cbn.cli.attack import of_cbn

CORPUS = sorted((Path(__file__).parent / "worst").glob("*.npz"))
EPS = 1e-5


def judged(columns, result, eps=EPS):
    return float(_adversary.fitness(of_cbn, columns, result, eps).max())


@pytest.mark.parametrize("dtype", _exact.BOUNDS)
@pytest.mark.parametrize("N", slow_if(lambda n: n not in (33, 64), [2, 3, 8, 17, 33, 64, 200, 600]))
@pytest.mark.parametrize("result", RESULTS)
def test_no_data_exceed_a_bound(result, N, dtype):
    found = _adversary.attack(of_cbn, result, N, dtype, EPS, rounds=40, seed=1, D=128)
    assert 0 < found.units <= _exact.BOUNDS[dtype][result]


@pytest.mark.parametrize("eps", [0.0, 1e10])
@pytest.mark.parametrize("result", RESULTS)
def test_nor_with_another_eps(result, eps):
    found = _adversary.attack(of_cbn, result, 33, "float32", eps, rounds=20, seed=2, D=128)
    assert found.units <= _exact.BOUNDS["float32"][result]


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_the_worst_data_until_now(path):
    """What `cbn attack --keep` has found in longer searches."""
    _, dtype, result, _ = path.stem.split("-")
    with np.load(path) as arrays:
        columns = Columns(*(arrays[name] for name in ("x", "dy", "gamma", "beta")))
    assert 0 < judged(columns, result) <= _exact.BOUNDS[dtype][result]


def test_the_corpus_has_every_result():
    assert {path.stem.split("-")[2] for path in CORPUS} == set(RESULTS)


def test_the_adversary_climbs():
    """It finds more than random data have, and the worse the arithmetic the more."""
    climb = _adversary.climb(of_cbn, "dbeta", 33, "float32", EPS, seed=0, D=64)
    first, *_, last = (next(climb) for _ in range(60))
    assert last.units > 1.3 * first.units

    def worse(x, dy, gamma, beta, eps):
        results = of_cbn(x, dy, gamma, beta, eps)
        dbeta = np.add.accumulate(dy, axis=0)[-1]  # one row after the other
        return results | {"dbeta": dbeta}

    found = _adversary.attack(worse, "dbeta", 33, "float32", EPS, rounds=60, seed=0, D=64)
    assert found.units > _exact.BOUNDS["float32"]["dbeta"] + 1


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_another_judge_agrees(path):
    """90 digits give the units that pairs of float64 give."""
    _, dtype, result, _ = path.stem.split("-")
    with np.load(path) as arrays:
        x, dy, gamma, beta = (arrays[name] for name in ("x", "dy", "gamma", "beta"))
    right = exact.forward(x, gamma, beta, EPS)
    gradients = dict(zip(("dx", "dgamma", "dbeta"), exact.backward(dy, right), strict=True))
    expected = gradients.get(result, getattr(right, result, None))
    actual = of_cbn(x, dy, gamma, beta, EPS)[result]
    pairs = _exact.reference(x, dy, gamma, beta, EPS)
    size = _exact.terms(pairs, dy, gamma, beta)[result]
    unit = _exact.ROUNDOFF[dtype] * size
    off = exact.error(actual, expected)
    if result == "mean":
        off = off - _exact.ROUNDOFF["float64"] * np.abs(pairs["mean"].hi)
    units = float((off / unit).max())
    assert units == pytest.approx(judged(Columns(x, dy, gamma, beta), result), rel=1e-4)
