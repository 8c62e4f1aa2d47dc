"""cbn/reference.py: weights, masks, merging, degenerate cases, accuracy."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from reference_case import EPS, FORMS, Case, close
from tolerances import mean_bound, u, var_bound, y_bound

from cbn import reference

# Weights, masks, fixed statistics -----------------------------------------------------------------


def test_integer_weights_are_repetition():
    case = Case((8, 3), 1e-2)
    repeat = np.array([1, 3, 2, 1, 5, 1, 2, 4])
    rows = np.repeat(np.arange(8), repeat)
    y, weighted = reference.forward(case.x, case.gamma, case.beta, case.eps, repeat)
    y_long, repeated = reference.forward(case.x[rows], case.gamma, case.beta, case.eps)
    close(y[rows], y_long, 1 + np.abs(y_long))
    close(weighted.var, repeated.var, repeated.var)
    dx, dgamma, dbeta = reference.backward(case.dy, weighted)
    each = (case.dy / repeat[:, None])[rows]
    dx_long, dgamma_long, dbeta_long = reference.backward(each, repeated)
    together = np.array([dx_long[rows == i].sum(axis=0) for i in range(8)])
    close(together, dx, 10.0)
    close(dgamma_long, dgamma, 10.0)
    close(dbeta_long, dbeta, 10.0)


def test_equal_weights_are_no_weights():
    case = Case((8, 3), 1e-2)
    y, cache = reference.forward(case.x, case.gamma, case.beta, case.eps, np.full(8, 0.7))
    close(y, case.y, 10.0)
    close(reference.backward(case.dy, cache)[0], reference.backward(case.dy, case.cache)[0], 10.0)


def test_a_mask_is_the_rows_alone():
    case = Case((9, 3), 1e-2)
    mask = np.array([0, 1, 1, 0, 1, 1, 1, 0, 1], bool)
    blank = mask[:, None] * 1.0
    y, cache = reference.forward(case.x * blank, case.gamma, case.beta, case.eps, mask)
    y_alone, alone = reference.forward(case.x[mask], case.gamma, case.beta, case.eps)
    close(y[mask], y_alone, 1 + np.abs(y_alone))
    found = reference.double_backward(case.ddx * blank, case.dy * blank, cache, case.ddgamma)
    expected = reference.double_backward(case.ddx[mask], case.dy[mask], alone, case.ddgamma)
    for a, b in zip(found, expected, strict=True):
        close(a[mask] if a.ndim == 2 else a, b, 10.0)
    for a, b in zip(
        reference.backward(case.dy * blank, cache),
        reference.backward(case.dy[mask], alone),
        strict=True,
    ):
        close(a[mask] if a.ndim == 2 else a, b, 10.0)


def test_a_row_of_weight_zero_is_normalized_by_the_others():
    case = Case((5, 2), 1e-2)
    weight = np.array([1.0, 1, 0, 1, 1])
    others = weight > 0
    y, cache = reference.forward(case.x, case.gamma, case.beta, case.eps, weight)
    mean, var = case.x[others].mean(axis=0), case.x[others].var(axis=0)
    close(y, reference.inference(case.x, mean, var, case.gamma, case.beta, case.eps), 10.0)
    dx, _, _ = reference.backward(case.dy, cache)
    close(dx[2], case.gamma * cache.invstd * case.dy[2], 10.0)
    only = np.zeros(case.shape)
    only[2] = case.dy[2]
    assert np.min(np.abs(reference.backward(only, cache)[0][others])) > 1e-6


def test_inference():
    case = Case((6, 3), 1e-2, "fixed")
    invstd = 1 / np.sqrt(case.var + case.eps)
    y = reference.inference(case.x, case.mean, case.var, case.gamma, case.beta, case.eps)
    close(y, case.gamma * (case.x - case.mean) * invstd + case.beta, 10.0)
    found = reference.inference_backward(case.dy, case.x, case.mean, case.var, case.gamma, case.eps)
    xhat = (case.x - case.mean) * invstd
    close(found[0], case.gamma * invstd * case.dy, 10.0)
    close(found[1], np.sum(case.dy * xhat, axis=0), 10.0)
    close(found[2], np.sum(case.dy, axis=0), 10.0)
    assert not reference.hessian(case.dy, case.cache).any()  # (59)
    plain = reference.inference(case.x, case.mean, case.var, eps=case.eps)
    close(plain, xhat, 10.0)


# Merging ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])
def test_blocks_merge_to_the_whole_batch(order, weighted):
    case = Case((40, 3), 1e-2, "row weights" if weighted else "batch")
    slices = [slice(0, 1), slice(1, 4), slice(4, 25), slice(25, 40)]
    weights = [None if case.weight is None else case.weight[s] for s in slices]
    blocks = [reference.moments(case.x[s] + 1e4, w) for s, w in zip(slices, weights, strict=True)]
    merged = blocks[order[0]]
    for k in order[1:]:
        merged = reference.merge_moments(merged, blocks[k])
    whole = reference.moments(case.x + 1e4, case.weight)
    close(merged.count, whole.count, np.ones(np.shape(whole.count)) * 40)
    close(merged.mean, whole.mean, np.full(3, 1e4))
    close(merged.m2, whole.m2, whole.m2)
    close(whole.m2 / whole.count, case.cache.var, 1e4 * np.ones(3))


def test_backward_over_blocks_is_backward_of_the_whole_batch():
    case = Case((40, 3), 1e-2)
    slices = [slice(0, 1), slice(1, 4), slice(4, 25), slice(25, 40)]
    whole = reference.moments(case.x)
    caches, ys, totals = [], [], None
    for s in slices:
        y, cache = reference.normalize(case.x[s], whole, case.gamma, case.beta, case.eps)
        sums = reference.backward_sums(case.dy[s], cache)
        totals = sums if totals is None else reference.merge_sums(totals, sums)
        caches.append(cache)
        ys.append(y)
    assert totals.count == 40
    close(np.concatenate(ys), case.y, 1 + np.abs(case.y))
    expected = reference.backward(case.dy, case.cache)
    parts = [
        reference.backward_apply(case.dy[s], c, totals) for s, c in zip(slices, caches, strict=True)
    ]
    close(np.concatenate([dx for dx, _, _ in parts]), expected[0], case.dx_terms())
    close(parts[0][1], expected[1], 40.0)
    close(parts[0][2], expected[2], 40.0)
    double = None
    for s, cache in zip(slices, caches, strict=True):
        sums = reference.double_backward_sums(case.ddx[s], case.dy[s], cache)
        double = sums if double is None else reference.merge_sums(double, sums)
    expected = reference.double_backward_sums(case.ddx, case.dy, case.cache)
    for a, b in zip(double, expected, strict=True):
        close(a, b, 40.0)


def test_running_statistics():
    case = Case((10, 3), 1e-2)
    batch = reference.moments(case.x)
    mean, var = reference.update_running(np.ones(3), np.full(3, 2.0), batch)
    close(mean, 0.9 + 0.1 * case.x.mean(axis=0), 10.0)
    close(var, 1.8 + 0.1 * case.x.var(axis=0, ddof=1), 10.0)
    _, biased = reference.update_running(mean, var, batch, momentum=1, correction=0)
    close(biased, case.x.var(axis=0), 10.0)
    mean = var = np.zeros(3)
    batches = [case.x[:4], case.x[4:6], case.x[6:]]
    for t, rows in enumerate(batches, start=1):
        mean, var = reference.update_running(mean, var, reference.moments(rows), 1 / t)  # (48)
    close(mean, np.mean([b.mean(axis=0) for b in batches], axis=0), 10.0)
    close(var, np.mean([b.var(axis=0, ddof=1) for b in batches], axis=0), 10.0)


# Degenerate cases ---------------------------------------------------------------------------------


def _everything(case):
    y_dot = reference.jvp(case.x_dot, case.cache, case.gamma_dot, case.beta_dot)
    double = reference.double_backward(case.ddx, case.dy, case.cache, case.ddgamma, case.ddbeta)
    return reference.backward_staged(case.dy, case.cache), y_dot, double


@pytest.mark.parametrize("eps", EPS)
def test_one_row(eps):
    case = Case((1, 4), eps)
    assert np.array_equal(case.y, case.beta[None])
    staged, y_dot, (g_dy, g_x, g_gamma) = _everything(case)
    zero = [staged.dx, staged.dgamma, staged.dvar, g_x, g_gamma, reference.jacobian(case.cache)]
    assert all(np.array_equal(a, np.zeros_like(a)) for a in zero)
    assert np.array_equal(staged.dbeta, case.dy[0])
    assert np.array_equal(y_dot, case.beta_dot[None])
    assert np.array_equal(g_dy, case.ddbeta[None])
    for form in FORMS:
        assert np.array_equal(form(case.dy, case.cache)[0], np.zeros((1, 4)))


def test_a_constant_column_without_eps():
    case = Case((5, 2), 0.0)
    case.x = np.broadcast_to([0.1, -1e30], case.shape)
    case.y, case.cache = case.forward()
    assert np.array_equal(case.cache.invstd, [0, 0])
    assert np.array_equal(case.y, np.broadcast_to(case.beta, case.shape))
    staged, y_dot, (g_dy, g_x, g_gamma) = _everything(case)
    zero = [staged.dx, staged.dgamma, staged.dvar, staged.dmean, g_x, g_gamma]
    zero += [reference.jacobian(case.cache), reference.eigenvalues(case.cache)]
    assert all(not a.any() for a in zero)
    assert np.array_equal(y_dot, np.broadcast_to(case.beta_dot, case.shape))
    assert np.array_equal(g_dy, np.broadcast_to(case.ddbeta, case.shape))


def test_a_constant_column_with_eps():
    case = Case((5, 2), 1e-4)
    case.x = np.broadcast_to([0.1, 7.3], case.shape)
    case.y, case.cache = case.forward()
    staged, _, (_, g_x, _) = _everything(case)
    expected = case.gamma / np.sqrt(1e-4) * (case.dy - case.dy.mean(axis=0))
    close(staged.dx, expected, case.dx_terms())
    assert not staged.dgamma.any() and not staged.dvar.any()
    assert not reference.hessian(case.dy, case.cache).any()
    close(g_x, case.ddgamma / np.sqrt(1e-4) * (case.dy - case.dy.mean(axis=0)), 1e3)


def test_two_rows_without_eps_have_no_gradient():
    case = Case((2, 3), 0.0)
    close(np.abs(case.cache.xhat), np.ones((2, 3)), 1.0)
    close(reference.backward(case.dy, case.cache)[0], np.zeros((2, 3)), case.dx_terms())


def test_missing_parameters_count_as_one_and_zero():
    case = Case((7, 3), 1e-2)
    y, cache = reference.forward(case.x, eps=case.eps)
    expected, _ = reference.forward(case.x, np.ones(3), np.zeros(3), case.eps)
    assert np.array_equal(y, expected) and np.array_equal(cache.gamma, np.ones(3))


def test_no_columns():
    y, cache = reference.forward(np.empty((4, 0)))
    assert y.shape == (4, 0)
    assert reference.backward(y, cache)[0].shape == (4, 0)
    assert reference.jacobian(cache).shape == (0, 4, 4)


# Accuracy -----------------------------------------------------------------------------------------


def _exact(column):
    values = [Fraction(float(v)) for v in column]
    mean = sum(values) / len(values)
    return mean, sum((v - mean) ** 2 for v in values) / len(values)


def _columns(rng, n):
    yield "near a large mean", np.float32(1e7) + rng.normal(0, 1, n).astype(np.float32)
    yield "double precision, 1e12", 1e12 + rng.normal(0, 1, n)
    yield "outlier in the first row", np.r_[1e30, rng.normal(0, 1, n - 1)]
    yield "small", rng.normal(1, 1, n) * 1e-150
    yield "alternating", np.where(np.arange(n) % 2, 1e8, -1e8) + rng.normal(0, 1e-6, n)


@pytest.mark.parametrize("n", [2, 3, 100, 1001])
def test_statistics_are_accurate(n):
    for name, column in _columns(np.random.default_rng(n), n):
        y, cache = reference.forward(column[:, None], [1.5], [0.5], 0.0)
        mean, var = _exact(column)
        bounds = var_bound(np.float64, float(var)), mean_bound(np.float64, float(mean), float(var))
        assert abs(Fraction(cache.var[0]) - var) <= Fraction(bounds[0]), name
        assert abs(Fraction(cache.mean[0]) - mean) <= Fraction(bounds[1]), name
        with mpmath.workdps(50):
            std = mpmath.sqrt(mpmath.mpf(var.numerator) / var.denominator)
            deviations = [Fraction(float(v)) - mean for v in column]
            xhat = [mpmath.mpf(d.numerator) / d.denominator / std for d in deviations]
            errors = [abs(1.5 * h + 0.5 - v) for h, v in zip(xhat, y[:, 0], strict=True)]
        bound = y_bound(np.float64, 1.5, 0.5, np.array([float(h) for h in xhat]))
        assert np.all(np.array([float(e) for e in errors]) <= bound), name


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("weight", [None, np.array([0, 0, 1, 2.5, 3, 1, 1])])
def test_constant_columns_have_no_variance(dtype, weight):
    x = np.broadcast_to(np.array([0.1, -3.3, 6e4], dtype), (7, 3)).copy()
    if weight is not None:
        x[:2] = [[1], [2]]  # rows that do not count
    y, cache = reference.forward(x, [2, 3, 4], [0.1, 0.2, 0.3], 1e-5, weight)
    assert np.array_equal(cache.var, np.zeros(3))
    assert np.array_equal(y[2:], np.broadcast_to([0.1, 0.2, 0.3], (5, 3)))
    assert not reference.moments(x, weight).m2.any()


def test_many_constant_columns_have_no_variance():
    rng = np.random.default_rng(0)
    for n in range(3, 60):
        x = np.broadcast_to(rng.normal(0, 10, 20), (n, 20)).copy()
        assert not reference.moments(x).m2.any()
        weight = rng.uniform(0, 1, n)
        weight[:2], x[:2] = 0, rng.normal(0, 1, (2, 20))
        assert not reference.moments(x, weight).m2.any()


def test_the_type_is_float64_or_wider():
    x = np.random.default_rng(0).normal(0, 1, (5, 2))
    for dtype, expected in [
        (np.float16, np.float64),
        (np.float32, np.float64),
        (">f4", np.float64),
        (">f8", np.float64),
        (np.int32, np.float64),
        (np.longdouble, np.longdouble),
    ]:
        y, cache = reference.forward(x.astype(dtype))
        assert y.dtype == expected and cache.mean.dtype == expected
        assert reference.backward(x.astype(dtype), cache)[0].dtype == expected
    wide, _ = reference.forward(x.astype(np.longdouble))
    narrow, _ = reference.forward(x)
    assert np.max(np.abs(wide - narrow)) <= 16 * u(np.float64) * 2
