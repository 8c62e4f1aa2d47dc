"""A batch in parts: forward with merged moments, backward with merged sums."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from cases import Batch, generator, same_bytes
from tolerances import u

import cbn

PARTS = [[], [1], [30, 31, 200], [7, 7, 250]]


def parts_of(array, cuts):
    return np.split(array, cuts)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cuts", PARTS)
def test_parts_are_the_whole(cuts, dtype):
    b = Batch((300, 17), dtype)
    y, cache = cbn.batch_norm_forward(b.x, b.gamma, b.beta)
    dx, dgamma, dbeta = cbn.batch_norm_backward(b.dy, cache)
    xs = [x for x in parts_of(b.x, cuts) if len(x)]
    dys = [dy for dy in parts_of(b.dy, cuts) if len(dy)]
    m = cbn.Moments.from_batch(xs[0])
    for x in xs[1:]:
        m.update(x)
    forward = [cbn.batch_norm_normalize(x, m, b.gamma, b.beta) for x in xs]
    sums = [cbn.BackwardSums.from_batch(dy, c) for dy, (_, c) in zip(dys, forward, strict=True)]
    s = sums[0]
    for other in sums[1:]:
        assert s.merge(other) is s
    assert s.count == m.count == 300
    results = [
        cbn.batch_norm_backward_apply(dy, c, s) for dy, (_, c) in zip(dys, forward, strict=True)
    ]
    close = {"rtol": 0, "atol": 64 * u(dtype) * np.abs(b.gamma).max() * 300}
    np.testing.assert_allclose(np.concatenate([y for y, _ in forward]), y, **close)
    np.testing.assert_allclose(np.concatenate([r[0] for r in results]), dx, **close)
    for _, found_dgamma, found_dbeta in results:
        np.testing.assert_allclose(found_dgamma, dgamma, **close)
        np.testing.assert_allclose(found_dbeta, dbeta, **close)
        assert found_dgamma.dtype == dgamma.dtype


@pytest.mark.parametrize("shape", [(300, 17), (4, 3, 20, 20)])
def test_one_part_has_the_bytes_of_the_whole(shape):
    axis = 1
    rng = np.random.default_rng(0)
    x, dy = rng.normal(5, 2, (2, *shape)).astype(np.float32)
    gamma = rng.normal(1, 0.1, shape[axis])
    y, cache = cbn.batch_norm_forward(x, gamma, axis=axis)
    m = cbn.Moments.from_batch(x, axis=axis)
    found, part = cbn.batch_norm_normalize(x, m, gamma, axis=axis)
    same_bytes(found, y)
    s = pickle.loads(pickle.dumps(cbn.BackwardSums.from_batch(dy, part)))
    for threads in (1, 3):
        results = cbn.batch_norm_backward_apply(dy, part, s, num_threads=threads)
        for actual, right in zip(results, cbn.batch_norm_backward(dy, cache), strict=True):
            assert (actual is None) == (right is None)
            if right is not None:
                same_bytes(actual, right)


OPTIONS = {
    "mask": ("mask",),
    "weights": ("sample_weight",),
    "mask and weights": ("mask", "sample_weight"),
    "residual": ("residual",),
    "activation": ("activation",),
    "all": ("mask", "sample_weight", "residual", "activation"),
}


@pytest.mark.parametrize("names", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", [(90, 5), (30, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda d: d.__name__)
def test_options_in_parts_are_those_of_the_whole(names, shape, dtype):
    rng = generator(shape, names)
    x, dy, residual = rng.normal(1, 2, (3, *shape)).astype(dtype)
    gamma, beta = rng.normal(1, 0.3, (2, shape[1]))
    positions = (shape[0], *shape[2:])
    known = {
        "mask": rng.random(positions) < 0.7,
        "sample_weight": rng.integers(0, 4, positions),
        "residual": residual,
        "activation": "relu",
    }
    known["mask"][20:22] = known["sample_weight"][22:25] = 0  # parts in which nothing counts
    x[20:22] = np.nan if "mask" in names else 1
    given = {name: known[name] for name in names}
    y, cache = cbn.batch_norm_forward(x, gamma, beta, axis=1, **given)
    whole = y, *cbn.batch_norm_backward(dy, cache)

    slices = [slice(0, 20), slice(20, 22), slice(22, 25), slice(25, None), slice(0, 0)]
    cut = [
        {name: a if isinstance(a, str) else a[part] for name, a in given.items()} for part in slices
    ]
    m = cbn.Moments(0, np.zeros(shape[1]), np.zeros(shape[1]))
    for part, options in zip(slices, cut, strict=True):
        weights = {k: v for k, v in options.items() if k in ("mask", "sample_weight")}
        if x[part].size and np.any(weights.get("sample_weight", 1)):
            m.merge(cbn.Moments.from_batch(x[part], 1, **weights))
    assert m.count == cache.count
    forward = [
        cbn.batch_norm_normalize(x[part], m, gamma, beta, axis=1, **options)
        for part, options in zip(slices, cut, strict=True)
    ]
    s = cbn.BackwardSums(0, np.zeros(shape[1]), np.zeros(shape[1]))
    for part, (_, c) in zip(slices, forward, strict=True):
        s += cbn.BackwardSums.from_batch(dy[part], c)
    assert s.count == cache.count
    backward = [
        cbn.batch_norm_backward_apply(dy[part], c, s)
        for part, (_, c) in zip(slices, forward, strict=True)
    ]
    order = np.argsort([part.start for part in slices], kind="stable")
    found = [[y, *gradients] for (y, _), gradients in zip(forward, backward, strict=True)]
    for i, right in enumerate(whole):
        parts = [found[j][i] for j in order]
        actual = parts[0] if right.ndim == 1 else np.concatenate(parts)
        terms = np.abs(right).max() + np.abs(dy).sum() * (right.ndim == 1)
        assert actual.dtype == right.dtype
        atol = 64 * u(dtype) * terms
        np.testing.assert_allclose(actual.astype(float), right.astype(float), rtol=0, atol=atol)


def test_parts_of_another_kind_of_cache():
    x = np.ones((4, 3))
    cache = cbn.batch_norm_forward(x, virtual_batch_size=2)[1]
    with pytest.raises(ValueError, match="^cache: expected one .* without virtual_batch_size"):
        cbn.BackwardSums.from_batch(x, cache)
    cache = cbn.batch_norm_forward(x, out=x)[1]
    with pytest.raises(ValueError, match="^cache: expected one .* without out=x"):
        cbn.batch_norm_backward_apply(x, cache, cbn.BackwardSums(4, np.ones(3), np.ones(3)))


def test_merging_keeps_what_additions_round_off():
    s = cbn.BackwardSums(1, [1e16], [0.0])
    for _ in range(1000):
        s.merge(cbn.BackwardSums(1, [1.0], [1e-3]))
    assert s.sum_dy[0] == 1e16 + 1000 and s.count == 1001
    s.merge(cbn.BackwardSums(1, [-1e16], [np.inf])).merge(cbn.BackwardSums(1, [0.0], [1.0]))
    assert s.sum_dy[0] == 1000 and s.sum_dy_xhat[0] == np.inf


def test_bad_parts():
    x = np.ones((4, 3))
    m, cache = cbn.Moments.from_batch(x), cbn.batch_norm_forward(x)[1]
    s = cbn.BackwardSums.from_batch(x, cache)
    with pytest.raises(TypeError, match="^m: expected Moments, got ndarray"):
        cbn.batch_norm_normalize(x, x)
    with pytest.raises(ValueError, match="^m: expected 2 channels, got 3"):
        cbn.batch_norm_normalize(x[:, :2], m)
    with pytest.raises(ValueError, match="^m: expected a count > 0, got 0"):
        cbn.batch_norm_normalize(x, cbn.Moments(0, np.zeros(3), np.zeros(3)))
    with pytest.raises(TypeError, match="^s: expected BackwardSums, got Moments"):
        cbn.batch_norm_backward_apply(x, cache, m)
    with pytest.raises(TypeError, match="^other: expected BackwardSums, got Moments"):
        s.merge(m)
    with pytest.raises(ValueError, match="^other: expected 3 channels, got 2"):
        s.merge(cbn.BackwardSums(1, [1.0, 2.0], [1.0, 2.0]))
    with pytest.raises(ValueError, match="^count: expected a finite number >= 0, got -1"):
        cbn.BackwardSums(-1, [1.0], [1.0])
    out = x.copy()
    with pytest.raises(ValueError, match="^out: expected an array with memory of its own"):
        cbn.batch_norm_normalize(out, m, out=out)
    same_bytes(out, x)
