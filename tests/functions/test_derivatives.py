"""JVP, Jacobian, double backward and staged gradients, of training and of inference."""

from __future__ import annotations

import numpy as np
import pytest
from tolerances import (
    dgamma_bound,
    double_backward_bounds,
    dx_bound,
    jvp_bound,
    u,
)

import cbn
from cbn import reference

SHAPES = [(1, 1), (1, 4), (2, 3), (5, 1), (7, 13), (32, 64), (33, 257), (300, 31), (1025, 5)]
TRAINING, INFERENCE = "training", "inference"


class Case:
    """One batch with everything the derivatives take, and the caches of cbn and the reference."""

    def __init__(self, shape, dtype, mode=TRAINING, parameters=True, eps=1e-3, seed=0):
        rng = np.random.default_rng([*shape, seed])
        n, d = shape

        def draw(*size):
            return rng.normal(size=size).astype(dtype)

        self.dtype = np.dtype(dtype)
        self.x = draw(n, d) + dtype(3)
        self.dy, self.ddx, self.x_dot = draw(n, d), draw(n, d), draw(n, d)
        self.gamma, self.beta = (draw(d), draw(d)) if parameters else (None, None)
        self.gamma_dot, self.beta_dot = draw(d), draw(d)
        exact = self.x.astype(np.longdouble)
        if mode == TRAINING:
            _, self.cache = cbn.batch_norm_forward(self.x, self.gamma, self.beta, eps=eps)
            _, self.exact = reference.forward(exact, self.gamma, None, eps)
        else:
            mean, var = draw(d).astype(float), rng.random(d)
            self.cache = cbn.batch_norm_inference_cache(
                self.x, mean, var, self.gamma, self.beta, eps=eps
            )
            _, self.exact = reference.fixed_statistics(exact, mean, var, self.gamma, None, eps)

    @property
    def share(self):
        return self.exact.share(1.0)

    @property
    def scale(self):
        """xhat, gamma and invstd: the second half of most bounds' arguments."""
        return self.exact.xhat, self.exact.gamma, self.exact.invstd


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


modes = pytest.mark.parametrize("mode", [TRAINING, INFERENCE])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
parameters = pytest.mark.parametrize("parameters", [True, False], ids=["gamma", "no-gamma"])


def assert_within(actual, expected, bound):
    error = np.abs(np.asarray(actual, np.longdouble) - expected)
    assert np.all(error <= bound), f"{np.max(error / np.maximum(bound, 1e-300)):.3g} bounds"


@shapes
@modes
@parameters
@pytest.mark.parametrize("with_dots", [True, False])
def test_jvp(shape, dtype, mode, parameters, with_dots):
    case = Case(shape, dtype, mode, parameters)
    dots = (case.gamma_dot, case.beta_dot) if with_dots else ()
    y_dot = cbn.batch_norm_jvp(case.x_dot, case.cache, *dots)
    assert y_dot.dtype == dtype and y_dot.shape == shape
    expected = reference.jvp(case.x_dot, case.exact, *dots)
    assert_within(y_dot, expected, jvp_bound(dtype, case.x_dot, *case.scale, *dots, case.share))


@shapes
@modes
@parameters
@pytest.mark.parametrize("with_dd", [True, False])
def test_double_backward(shape, dtype, mode, parameters, with_dd):
    case = Case(shape, dtype, mode, parameters)
    dd = (case.gamma_dot, case.beta_dot) if with_dd else (None, None)
    results = cbn.batch_norm_double_backward(case.ddx, case.dy, case.cache, *dd)
    expected = reference.double_backward(case.ddx, case.dy, case.exact, *dd)
    bounds = double_backward_bounds(dtype, case.ddx, case.dy, *case.scale, *dd, case.share)
    assert (results[2] is not None) == parameters
    for actual, exact, bound in zip(results, expected, bounds, strict=True):
        if actual is not None:
            assert actual.dtype == dtype
            assert_within(actual, exact, bound)


@shapes
@modes
@parameters
def test_staged(shape, dtype, mode, parameters):
    case = Case(shape, dtype, mode, parameters)
    staged = cbn.batch_norm_backward_staged(case.dy, case.cache)
    exact = reference.backward_staged(case.dy, case.exact)
    gamma, invstd = abs(case.exact.gamma), case.exact.invstd
    sums = dgamma_bound(dtype, case.dy, case.exact.xhat)
    ones = dgamma_bound(dtype, case.dy, np.ones(shape))
    assert_within(staged.dx, exact.dx, dx_bound(dtype, case.dy, *case.scale, case.share))
    assert_within(staged.dxhat, exact.dxhat, 2 * u(dtype) * abs(exact.dxhat))
    assert_within(staged.dvar, exact.dvar, gamma * invstd**2 / 2 * sums * (1 + 8 * u(dtype)))
    assert_within(staged.dmean, exact.dmean, gamma * invstd * ones * (1 + 8 * u(dtype)))
    assert staged.dvar.dtype == staged.dmean.dtype == np.float64

    dx, dgamma, dbeta = cbn.batch_norm_backward(case.dy, case.cache)
    np.testing.assert_array_equal(staged.dx, dx)
    for actual, same in ((staged.dgamma, dgamma), (staged.dbeta, dbeta)):
        assert (actual is None) is (same is None) is (not parameters)
        if parameters:
            np.testing.assert_array_equal(actual, same)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 3), (7, 13), (33, 6)])
@modes
@parameters
def test_jacobian(shape, dtype, mode, parameters):
    case = Case(shape, dtype, mode, parameters)
    n, d = shape
    jacobian = cbn.batch_norm_jacobian(case.cache)
    assert jacobian.shape == (d, n, n) and jacobian.dtype == dtype
    xhat, gamma, invstd = case.scale
    outer = 1 + np.abs(xhat.T[:, :, None] * xhat.T[:, None, :])
    terms = np.eye(n) + np.moveaxis(case.share * np.moveaxis(outer, 0, -1), -1, 0)
    bound = 8 * u(dtype) * np.abs(gamma * invstd)[:, None, None] * terms
    assert_within(jacobian, reference.jacobian(case.exact), bound)
    np.testing.assert_array_equal(jacobian, np.swapaxes(jacobian, 1, 2))


@modes
def test_jvp_and_backward_are_adjoint(mode):
    """(31): <dy, y_dot> = <dx, x_dot> + dgamma gamma_dot + dbeta beta_dot."""
    case = Case((50, 20), np.float64, mode)
    y_dot = cbn.batch_norm_jvp(case.x_dot, case.cache, case.gamma_dot, case.beta_dot)
    dx, dgamma, dbeta = cbn.batch_norm_backward(case.dy, case.cache)
    forward = (case.dy * y_dot).sum(0)
    reverse = (dx * case.x_dot).sum(0) + dgamma * case.gamma_dot + dbeta * case.beta_dot
    terms = np.abs(case.dy * y_dot).sum(0) + np.abs(dx * case.x_dot).sum(0)
    assert np.all(np.abs(forward - reverse) <= 1e-13 * terms)


def test_columns_of_the_jacobian_are_jvps():
    case = Case((6, 4), np.float64)
    jacobian = cbn.batch_norm_jacobian(case.cache)
    for i in range(6):
        x_dot = np.zeros((6, 4))
        x_dot[i] = 1
        column = cbn.batch_norm_jvp(x_dot, case.cache)
        np.testing.assert_allclose(jacobian[:, :, i].T, column, rtol=0, atol=1e-14)


def test_eigenvalues_of_the_jacobian():
    """(24): 0 along 1, gamma invstd^3 eps along xhat, gamma invstd on the rest."""
    case = Case((8, 3), np.float64, eps=0.5)
    found = np.linalg.eigvalsh(cbn.batch_norm_jacobian(case.cache))
    expected = np.sort(reference.eigenvalues(case.exact).astype(float), axis=1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_the_hessian_is_symmetric():
    """(58): <v, H u> = <u, H v> with H u = g_x for ddx = u and no ddgamma, ddbeta."""
    case = Case((40, 9), np.float64, eps=0.1)
    left = cbn.batch_norm_double_backward(case.ddx, case.dy, case.cache)[1]
    right = cbn.batch_norm_double_backward(case.x_dot, case.dy, case.cache)[1]
    one, other = (case.x_dot * left).sum(0), (case.ddx * right).sum(0)
    terms = np.abs(case.x_dot * left).sum(0)
    assert np.all(np.abs(one - other) <= 1e-12 * terms)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 10.0])
def test_double_backward_is_the_derivative_of_backward(eps):
    """Central differences of <ddx, dx> + <ddgamma, dgamma> + <ddbeta, dbeta> along directions."""
    case = Case((9, 4), np.float64, eps=eps)
    step = 1e-5
    rng = np.random.default_rng(7)
    along = [rng.normal(size=case.x.shape), rng.normal(size=case.x.shape), rng.normal(size=4)]

    def phi(t):
        x, dy, gamma = (
            a + t * v for a, v in zip((case.x, case.dy, case.gamma), along, strict=True)
        )
        _, cache = cbn.batch_norm_forward(x, gamma, case.beta, eps=eps)
        dx, dgamma, dbeta = cbn.batch_norm_backward(dy, cache)
        return (case.ddx * dx).sum() + (case.gamma_dot * dgamma + case.beta_dot * dbeta).sum()

    g_dy, g_x, g_gamma = cbn.batch_norm_double_backward(
        case.ddx, case.dy, case.cache, case.gamma_dot, case.beta_dot
    )
    exact = (g_x * along[0]).sum() + (g_dy * along[1]).sum() + (g_gamma * along[2]).sum()
    assert abs((phi(step) - phi(-step)) / (2 * step) - exact) <= 1e-7 * abs(phi(0))


@modes
def test_one_row(mode):
    """One value per channel: in training nothing moves but beta."""
    case = Case((1, 5), np.float32, mode)
    y_dot = cbn.batch_norm_jvp(case.x_dot, case.cache, case.gamma_dot, case.beta_dot)
    results = cbn.batch_norm_double_backward(case.ddx, case.dy, case.cache, case.gamma_dot)
    if mode == TRAINING:
        np.testing.assert_array_equal(y_dot[0], case.beta_dot)
        for result in results:
            assert not result.any()
        assert not cbn.batch_norm_jacobian(case.cache).any()


def test_constant_channel_without_eps():
    case = Case((6, 2), np.float64)
    case.x[:, 0] = 5
    _, cache = cbn.batch_norm_forward(case.x, case.gamma, case.beta, eps=0)
    assert not cbn.batch_norm_jvp(case.x_dot, cache)[:, 0].any()
    assert not cbn.batch_norm_jacobian(cache)[0].any()
    for result in cbn.batch_norm_double_backward(case.ddx, case.dy, cache):
        assert np.all(np.isfinite(result))


def test_inference_backward_is_backward_with_fixed_statistics(dtype):
    case = Case((33, 7), dtype, INFERENCE)
    dx, dgamma, _ = cbn.batch_norm_inference_backward(
        case.dy, case.x, case.cache.mean, case.cache.var, case.gamma, eps=case.cache.eps
    )
    other = cbn.batch_norm_backward(case.dy, case.cache)
    assert_within(dx, other[0].astype(np.longdouble), 2 * u(dtype) * np.abs(dx))
    np.testing.assert_array_equal(dgamma, other[1])
    assert case.cache.count == np.inf


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_any_axis(axis):
    case = Case((30, 4), np.float64)
    shape = (2, 3, 5)

    def spread(rows):
        return np.moveaxis(rows.reshape(*shape, 4), -1, axis)

    _, cache = cbn.batch_norm_forward(spread(case.x), case.gamma, case.beta, axis=axis, eps=1e-3)
    y_dot = cbn.batch_norm_jvp(spread(case.x_dot), cache)
    np.testing.assert_array_equal(y_dot, spread(cbn.batch_norm_jvp(case.x_dot, case.cache)))
    results = cbn.batch_norm_double_backward(spread(case.ddx), spread(case.dy), cache)
    flat = cbn.batch_norm_double_backward(case.ddx, case.dy, case.cache)
    np.testing.assert_array_equal(results[0], spread(flat[0]))
    np.testing.assert_array_equal(results[1], spread(flat[1]))
    np.testing.assert_array_equal(
        cbn.batch_norm_jacobian(cache), cbn.batch_norm_jacobian(case.cache)
    )


def test_empty_channels():
    _, cache = cbn.batch_norm_forward(np.empty((3, 0)), np.empty(0), np.empty(0))
    empty = np.empty((3, 0))
    assert cbn.batch_norm_jvp(empty, cache).shape == (3, 0)
    assert cbn.batch_norm_jacobian(cache).shape == (0, 3, 3)
    assert [a.shape for a in cbn.batch_norm_double_backward(empty, empty, cache)] == [
        (3, 0),
        (3, 0),
        (0,),
    ]
    assert cbn.batch_norm_backward_staged(empty, cache).dvar.shape == (0,)


GIVEN = Case((5, 4), np.float64)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda c: cbn.batch_norm_jvp(c.x_dot[:4], c.cache),
            ValueError,
            r"x_dot: .*\(5, 4\).*\(4, 4\)",
        ),
        (
            lambda c: cbn.batch_norm_jvp(c.x_dot, None),
            TypeError,
            "cache: .*BatchNormCache.*NoneType",
        ),
        (
            lambda c: cbn.batch_norm_jvp(c.x_dot, c.cache, np.ones(3)),
            ValueError,
            r"gamma_dot: .*\(4,\).*\(3,\)",
        ),
        (
            lambda c: cbn.batch_norm_jvp(c.x_dot, c.cache, None, np.ones(4, int)),
            TypeError,
            "beta_dot: .*floating.*int64",
        ),
        (
            lambda c: cbn.batch_norm_jvp(c.x_dot, c.cache, num_threads=0),
            ValueError,
            "num_threads: .*>= 1, got 0",
        ),
        (
            lambda c: cbn.batch_norm_double_backward(c.ddx.T, c.dy, c.cache),
            ValueError,
            r"ddx: .*\(5, 4\).*\(4, 5\)",
        ),
        (
            lambda c: cbn.batch_norm_double_backward(c.ddx, c.dy + 1j, c.cache),
            TypeError,
            "dy: .*real.*complex128",
        ),
        (
            lambda c: cbn.batch_norm_double_backward(c.ddx, c.dy, c.cache, np.ones((4, 1))),
            ValueError,
            r"ddgamma: .*\(4,\).*\(4, 1\)",
        ),
        (
            lambda c: cbn.batch_norm_double_backward(c.ddx, c.dy, c.cache, None, np.ones(400)),
            ValueError,
            r"ddbeta: .*\(4,\).*\(400,\)",
        ),
        (
            lambda c: cbn.batch_norm_backward_staged(c.dy[0], c.cache),
            ValueError,
            r"dy: .*\(5, 4\).*\(4,\)",
        ),
        (lambda c: cbn.batch_norm_jacobian("cache"), TypeError, "cache: .*BatchNormCache.*str"),
        (
            lambda c: cbn.batch_norm_inference_cache(c.x, np.zeros(4), -np.ones(4)),
            ValueError,
            "var: .*>= 0, got -1.0",
        ),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text):
        call(GIVEN)


def test_statistics_of_a_cache_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        GIVEN.cache.mean[0] = 1


def test_unaligned_tangents_are_as_good_as_aligned_ones():
    case = Case((20, 4), np.float64)
    shifted = np.empty(33, np.uint8)[1:].view(np.float64)
    shifted[...] = case.gamma_dot
    assert not shifted.flags.aligned
    np.testing.assert_array_equal(
        cbn.batch_norm_jvp(case.x_dot, case.cache, shifted, shifted),
        cbn.batch_norm_jvp(case.x_dot, case.cache, case.gamma_dot, case.gamma_dot),
    )


def test_jacobian_of_inference_is_diagonal_for_any_x():
    x = np.full((3, 2), 1e30, np.float32)
    jacobian = cbn.batch_norm_jacobian(cbn.batch_norm_inference_cache(x, np.zeros(2), np.ones(2)))
    expected = np.float32(1 / np.sqrt(1 + 1e-5)) * np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(jacobian, [expected, expected])
