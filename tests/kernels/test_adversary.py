"""An adversary searches for data on which the promised bounds do not hold."""

from __future__ import annotations

from pathlib import Path

import exact
import numpy as np
import pytest
from cases import slow_if

import cbn
from cbn.cli import _adversary, _exact
from cbn.cli._adversary import Columns
from cbn.cli._exact import RESULTS, named
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
    assert 0 < found.units <= _exact.bounds(dtype, N)[result]


@pytest.mark.parametrize("eps", [0.0, 1e10])
@pytest.mark.parametrize("result", RESULTS)
def test_nor_with_another_eps(result, eps):
    found = _adversary.attack(of_cbn, result, 33, "float32", eps, rounds=20, seed=2, D=128)
    assert found.units <= _exact.BOUNDS["float32"][result]


# Other ways to the same results -------------------------------------------------------------------


def images(positions):
    """Training of (B, D, positions), whose rows are runs."""

    def function(x, dy, gamma, beta, eps):
        x, dy = (a.reshape(-1, positions, a.shape[1]).transpose(0, 2, 1).copy() for a in (x, dy))
        y, cache = cbn.batch_norm_forward(x, gamma, beta, axis=1, eps=eps)
        dx, *others = cbn.batch_norm_backward(dy, cache)
        y, dx = (a.transpose(0, 2, 1).reshape(-1, len(gamma)) for a in (y, dx))
        return named(y, cache.mean, cache.var, (dx, *others))

    return function


def jvp(x, dy, gamma, beta, eps):
    """The Jacobian is symmetric: the tangent of y has dx's exact value and terms."""
    y, cache = cbn.batch_norm_forward(x, gamma, beta, eps=eps)
    return of_cbn(x, dy, gamma, beta, eps) | {"dx": cbn.batch_norm_jvp(dy, cache)}


def in_place(x, dy, gamma, beta, eps):
    y, cache = cbn.batch_norm_forward(x.copy(), gamma, beta, eps=eps)
    over_dy, over_x = dy.copy(), x.copy()
    gradients = cbn.batch_norm_backward(over_dy, cache, out=over_dy)
    y = cbn.batch_norm_forward(over_x, gamma, beta, eps=eps, out=over_x)[0]
    return named(y, cache.mean, cache.var, gradients)


def masked(x, dy, gamma, beta, eps):
    """Every second row is left out, and would spoil everything."""
    mask = np.arange(2 * len(x)) % 2 == 0
    wide_x, wide_dy = (np.full((2 * len(a), a.shape[1]), np.nan, a.dtype) for a in (x, dy))
    wide_x[mask], wide_dy[mask] = x, dy
    y, cache = cbn.batch_norm_forward(wide_x, gamma, beta, eps=eps, mask=mask)
    dx, *others = cbn.batch_norm_backward(wide_dy, cache)
    return named(y[mask], cache.mean, cache.var, (dx[mask], *others))


def groups(x, dy, gamma, beta, eps):
    """The second of two virtual batches, after another one."""
    N = len(x)
    y, cache = cbn.batch_norm_forward(
        np.concatenate([dy, x]), gamma, beta, eps=eps, virtual_batch_size=N
    )
    dx = cbn.batch_norm_backward(np.concatenate([x, dy]), cache)[0]
    return of_cbn(x, dy, gamma, beta, eps) | {"y": y[N:], "dx": dx[N:]}


def parts(x, dy, gamma, beta, eps):
    """Statistics of three parts, merged backwards."""
    merged = cbn.Moments.from_batch(x[2 * len(x) // 3 :])
    for part in (x[len(x) // 3 : 2 * len(x) // 3], x[: len(x) // 3]):
        merged = cbn.Moments.from_batch(part).merge(merged)
    results = of_cbn(x, dy, gamma, beta, eps)
    return results | {"mean": np.asarray(merged.mean), "var": np.asarray(merged.var())}


WAYS = {
    "images": (images(64), 128, RESULTS),
    "small images": (images(49), 98, RESULTS),
    "jvp": (jvp, 33, ("dx",)),
    "in place": (in_place, 33, ("y", "dx")),
    "mask": (masked, 33, RESULTS),
    "groups": (groups, 33, ("y", "dx")),
    "parts": (parts, 66, ("mean", "var")),
}


@pytest.mark.parametrize(
    ("way", "result"), [(way, result) for way in WAYS for result in WAYS[way][2]]
)
def test_no_data_exceed_a_bound_in_another_way(way, result):
    function, N, _ = WAYS[way]
    found = _adversary.attack(function, result, N, "float32", EPS, rounds=15, seed=3, D=96)
    assert 0 < found.units <= _exact.BOUNDS["float32"][result]


def given_statistics(x, dy):
    """Statistics of nobody's: not far from x, and sometimes far from it."""
    return x[0].astype(np.float64), np.square(dy[0].astype(np.float64)) + 1e-3


def inference(x, dy, gamma, beta, eps):
    mean, var = given_statistics(x, dy)
    y = cbn.batch_norm_inference(x, mean, var, gamma, beta, eps=eps)
    gradients = cbn.batch_norm_inference_backward(dy, x, mean, var, gamma, eps=eps)
    return {"y": y} | dict(zip(("dx", "dgamma", "dbeta"), gradients, strict=True))


def of_inference(x, dy, gamma, beta, eps):
    right = _exact.inference(x, dy, gamma, beta, *given_statistics(x, dy), eps)
    return right, _exact.inference_terms(right, dy, gamma, beta)


@pytest.mark.parametrize("N", [8, 33])
@pytest.mark.parametrize("result", _exact.BOUNDS_OF_INFERENCE)
def test_no_data_exceed_a_bound_of_inference(result, N):
    found = _adversary.attack(
        inference, result, N, "float32", EPS, rounds=60, seed=4, D=96, judge=of_inference
    )
    assert 0.5 < found.units <= _exact.BOUNDS_OF_INFERENCE[result]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("N", [8, 33])
def test_backward_opens_the_gates_that_forward_did(N, dtype):
    """Also of values whose y is the last bit from 0."""
    rng = np.random.default_rng(N)
    data = _adversary.first(rng, N, 256, "float32").as_type(dtype)
    with np.errstate(all="ignore"):
        finite = np.isfinite(data.x).all(axis=0) & np.isfinite(data.dy).all(axis=0)
    data = data.of(np.flatnonzero(finite))
    y, cache = cbn.batch_norm_forward(data.x, data.gamma, data.beta, activation="relu")
    plain = cbn.batch_norm_forward(data.x, data.gamma, data.beta)[1]
    assert 0.1 < np.mean(y > 0) < 0.9
    gated = np.where(y > 0, data.dy, 0).astype(dtype)
    opened = cbn.batch_norm_backward(data.dy, cache), cbn.batch_norm_backward(gated, plain)
    for actual, expected in zip(*opened, strict=True):
        np.testing.assert_array_equal(actual, expected)


# The worst data until now -------------------------------------------------------------------------


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_the_worst_data_until_now(path):
    """What `cbn attack --keep` has found in longer searches."""
    _, dtype, result, _ = path.stem.split("-")
    with np.load(path) as arrays:
        columns = Columns(*(arrays[name] for name in ("x", "dy", "gamma", "beta")))
    assert 0 < judged(columns, result) <= _exact.bounds(dtype, len(columns.x))[result]


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
