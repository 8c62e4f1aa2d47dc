"""cbn/reference.py against itself, against differences and in 50 digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from reference_case import DIFFERENCE_RTOL, EPS, FORMS, KINDS, SHAPES, Case, close, slope
from tolerances import ADJOINT_RTOL, double_backward_bounds, dx_terms, u

from cbn import reference

# Every kind meets every shape and every eps, and every shape meets every eps.
cases = pytest.mark.parametrize(
    ("shape", "eps", "kind"),
    [
        (shape, eps, KINDS[(i + j) % len(KINDS)])
        for i, shape in enumerate(SHAPES)
        for j, eps in enumerate(EPS)
    ],
    ids=str,
)

# All derivations agree ----------------------------------------------------------------------------


@cases
def test_every_backward_agrees(shape, eps, kind):
    case = Case(shape, eps, kind)
    jacobian = reference.jacobian(case.cache) if shape[0] <= 64 else None
    dgamma = np.einsum("nd,nd->d", case.dy, case.cache.xhat)
    dbeta = np.einsum("nd->d", case.dy)
    expected = reference.backward_staged(case.dy, case.cache).dx
    if jacobian is not None:
        close(np.einsum("dki,kd->id", jacobian, case.dy), expected, case.dx_terms())
    for form in FORMS:
        dx, *parameters = form(case.dy, case.cache)[:3]
        close(dx, expected, case.dx_terms())
        close(parameters[0], dgamma, np.sum(np.abs(case.dy * case.cache.xhat), axis=0))
        close(parameters[1], dbeta, np.sum(np.abs(case.dy), axis=0))


@cases
def test_every_jvp_agrees(shape, eps, kind):
    case = Case(shape, eps, kind)
    share, xhat = case.share(), np.abs(case.cache.xhat)
    x_dot = np.abs(case.x_dot)
    terms = x_dot + np.sum(share * x_dot, axis=0) + xhat * np.sum(share * x_dot * xhat, axis=0)
    terms = np.abs(case.gamma * case.cache.invstd) * terms
    terms = terms + xhat * np.abs(case.gamma_dot) + np.abs(case.beta_dot)
    tangents = case.x_dot, case.cache, case.gamma_dot, case.beta_dot
    y_dot = reference.jvp(*tangents)
    close(reference.jvp_staged(*tangents), y_dot, terms)
    if shape[0] <= 64:
        product = np.einsum("dki,id->kd", reference.jacobian(case.cache), case.x_dot)
        close(product + case.cache.xhat * case.gamma_dot + case.beta_dot, y_dot, terms)
    close(reference.jvp(case.x_dot, case.cache), y_dot - case.cache.xhat * case.gamma_dot
          - case.beta_dot, terms)  # fmt: skip


@pytest.mark.parametrize("eps", EPS)
def test_jvp_is_backward_because_the_jacobian_is_symmetric(eps):
    case = Case((17, 5), eps)
    assert np.array_equal(reference.jacobian(case.cache).mT, reference.jacobian(case.cache))
    through_backward = reference.backward(case.x_dot, case.cache)[0]
    terms = dx_terms(case.x_dot, case.cache.xhat, case.gamma, case.cache.invstd)
    close(through_backward, reference.jvp(case.x_dot, case.cache), terms)


@pytest.mark.parametrize("kind", ["row weights", "cell weights"])
def test_the_weighted_jacobian_is_symmetric_between_shares(kind):
    case = Case((9, 3), 1e-2, kind)
    share = case.share()
    weighted = share.T[:, :, None] * reference.jacobian(case.cache)
    close(weighted, weighted.mT, np.max(np.abs(weighted)), 4 * u(np.float64))
    through_backward = reference.backward(share * case.x_dot, case.cache)[0]
    close(through_backward, share * reference.jvp(case.x_dot, case.cache), 1.0)


@cases
def test_jvp_and_vjp_are_adjoint(shape, eps, kind):
    case = Case(shape, eps, kind)
    y_dot = reference.jvp(case.x_dot, case.cache, case.gamma_dot, case.beta_dot)
    dx, dgamma, dbeta = reference.backward(case.dy, case.cache)
    left = np.sum(case.dy * y_dot)
    right = np.sum(dx * case.x_dot) + dgamma @ case.gamma_dot + dbeta @ case.beta_dot
    terms = np.sum(np.abs(case.x_dot) * case.dx_terms())
    terms += np.abs(case.gamma_dot) @ np.sum(np.abs(case.dy * case.cache.xhat), axis=0)
    terms += np.abs(case.beta_dot) @ np.sum(np.abs(case.dy), axis=0)
    close(left, right, terms, ADJOINT_RTOL)


# Against differentiation --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [1e-5, 1e-2, 1e3])
@pytest.mark.parametrize("shape", [(2, 3), (7, 3), (33, 4)], ids=str)
def test_backward_against_central_differences(shape, eps, kind):
    case = Case(shape, eps, kind)

    def loss(x=None, gamma=None, beta=None):
        return np.sum(case.dy * case.forward(x, gamma, beta)[0])

    dx, dgamma, dbeta = reference.backward(case.dy, case.cache)
    terms = np.sum(np.abs(case.x_dot) * case.dx_terms())
    close(slope(lambda t: loss(x=case.x + t * case.x_dot)), np.sum(dx * case.x_dot), terms,
          DIFFERENCE_RTOL)  # fmt: skip
    scale = np.sum(np.abs(case.dy * case.y))
    numeric = slope(lambda t: loss(gamma=case.gamma + t * case.gamma_dot))
    close(numeric, dgamma @ case.gamma_dot, scale, DIFFERENCE_RTOL)
    numeric = slope(lambda t: loss(beta=case.beta + t * case.beta_dot))
    close(numeric, dbeta @ case.beta_dot, scale, DIFFERENCE_RTOL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [1e-5, 1e-2, 1e3])
@pytest.mark.parametrize("shape", [(2, 3), (7, 3), (33, 4)], ids=str)
def test_double_backward_against_central_differences(shape, eps, kind):
    case = Case(shape, eps, kind)

    def phi(dy=case.dy, x=None, gamma=None):
        _, cache = case.forward(x, gamma)
        dx, dgamma, dbeta = reference.backward(dy, cache)
        return np.sum(case.ddx * dx) + case.ddgamma @ dgamma + case.ddbeta @ dbeta

    found = reference.double_backward(case.ddx, case.dy, case.cache, case.ddgamma, case.ddbeta)
    bounds = double_backward_bounds(
        np.float64, case.ddx, case.dy, case.cache.xhat, case.gamma, case.cache.invstd,
        case.ddgamma, case.ddbeta, case.share(),
    )  # fmt: skip
    directions = {"dy": case.x_dot, "x": case.x_dot, "gamma": case.gamma_dot}
    for (name, direction), gradient, bound in zip(directions.items(), found, bounds, strict=True):
        base = getattr(case, name)
        numeric = slope(lambda t, n=name, b=base, v=direction: phi(**{n: b + t * v}))
        terms = np.sum(np.abs(direction) * bound) / (16 * u(np.float64))
        close(numeric, np.sum(gradient * direction), terms, DIFFERENCE_RTOL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [1e-5, 1e-2, 10.0])
def test_the_jacobian_against_the_complex_step(eps, kind):
    case = Case((6, 2), eps, kind)
    jacobian = reference.jacobian(case.cache)
    for i, d in np.ndindex(case.shape):
        moved = case.x.astype(complex)
        moved[i, d] += 1e-30j
        column = case.forward(moved)[0].imag / 1e-30
        expected = np.zeros(case.shape)
        expected[:, d] = jacobian[d, :, i]
        close(column, expected, np.max(np.abs(jacobian)), ADJOINT_RTOL)


@pytest.mark.parametrize("eps", [1e-5, 1e-2, 10.0])
def test_staged_gradients_of_the_statistics_against_the_complex_step(eps):
    case = Case((6, 3), eps)
    mean, var = case.cache.mean, case.cache.var

    def y(mean, var):
        return reference.fixed_statistics(case.x, mean, var, case.gamma, case.beta, eps)[0]

    staged = reference.backward_staged(case.dy, case.cache)
    step = 1e-30
    dvar = np.sum(case.dy * y(mean, var + 1j * step).imag, axis=0) / step
    moved = mean + 1j * step
    dmean = np.sum(case.dy * y(moved, np.mean((case.x - moved) ** 2, axis=0)).imag, axis=0) / step
    close(staged.dvar, dvar, np.sum(np.abs(case.dy), axis=0) * np.max(case.cache.invstd) ** 3)
    close(staged.dmean, dmean, np.sum(np.abs(case.dy), axis=0) * np.max(case.cache.invstd))
    assert np.array_equal(staged.dxhat, case.gamma * case.dy)


def _digits(case):
    """Return the case with its arguments in 50 digits; the reference then works in them, too."""
    to_mpf = np.vectorize(mpmath.mpf, otypes=[object])
    for name, value in vars(case).items():
        if isinstance(value, np.ndarray):
            setattr(case, name, to_mpf(value))
    case.eps = mpmath.mpf(case.eps)
    case.y, case.cache = case.forward()
    return case


def _largest(a, b):
    return max(abs(p - q) for p, q in zip(np.ravel(a), np.ravel(b), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_derivative_in_50_digits(kind):
    with mpmath.workdps(50):
        case = _digits(Case((4, 2), 1e-2, kind))
        dx, dgamma, dbeta = reference.backward(case.dy, case.cache)
        for form in FORMS:
            assert _largest(form(case.dy, case.cache)[0], dx) < 1e-45
        g_dy, g_x, g_gamma = reference.double_backward(
            case.ddx, case.dy, case.cache, case.ddgamma, case.ddbeta
        )
        y_dot = reference.jvp_staged(case.ddx, case.cache, case.ddgamma, case.ddbeta)
        assert _largest(y_dot, g_dy) < 1e-45

        def loss(t, s, x_dot, gamma_dot):
            """Return <dy, y> with the arguments moved by t along ddx.., by s along x_dot.. ."""
            y, _ = case.forward(
                case.x + t * case.ddx + s * x_dot,
                case.gamma + t * case.ddgamma + s * gamma_dot,
                case.beta + t * case.ddbeta,
            )
            return np.sum(case.dy * y)

        zero_x, zero_gamma = np.zeros((4, 2), int), np.zeros(2, int)
        for i in np.ndindex(4, 2):
            unit = zero_x.copy()
            unit[i] = 1
            first = mpmath.diff(lambda s, v=unit: loss(0, s, v, zero_gamma), 0)
            assert abs(first - dx[i]) < 1e-40
            mixed = mpmath.diff(lambda t, s, v=unit: loss(t, s, v, zero_gamma), (0, 0), (1, 1))
            assert abs(mixed - g_x[i]) < 1e-40
        for d in range(2):
            unit = zero_gamma.copy()
            unit[d] = 1
            first = mpmath.diff(lambda s, v=unit: loss(0, s, zero_x, v), 0)
            assert abs(first - dgamma[d]) < 1e-40
            mixed = mpmath.diff(lambda t, s, v=unit: loss(t, s, zero_x, v), (0, 0), (1, 1))
            assert abs(mixed - g_gamma[d]) < 1e-40
        along = mpmath.diff(lambda t: loss(t, 0, zero_x, zero_gamma), 0)
        assert abs(along - np.sum(case.dy * g_dy)) < 1e-40
        assert _largest(dbeta, np.sum(case.dy, axis=0)) < 1e-45


# The spectrum and the Hessian ---------------------------------------------------------------------


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0] <= 64], ids=str)
def test_eigenvalues_and_eigenvectors(shape, eps):
    case = Case(shape, eps)
    jacobian, values = reference.jacobian(case.cache), reference.eigenvalues(case.cache)
    scale = np.abs(case.gamma * case.cache.invstd)
    computed = np.linalg.eigvalsh(jacobian)
    close(computed, np.sort(values, axis=1), np.maximum(scale, 1e-300)[:, None])
    close(np.trace(jacobian, axis1=1, axis2=2), np.sum(values, axis=1), shape[0] * scale)
    close(np.sum(jacobian, axis=2), np.zeros(shape[::-1]), scale[:, None])
    if shape[0] > 1:
        along = np.einsum("dki,id->kd", jacobian, case.cache.xhat)
        close(along, values[:, 1] * case.cache.xhat, scale * (1 + np.abs(case.cache.xhat)))


@pytest.mark.parametrize("kind", ["row weights", "cell weights"])
def test_weights_leave_the_eigenvalues(kind):
    case = Case((9, 3), 0.5, kind)
    computed = np.sort(np.linalg.eigvals(reference.jacobian(case.cache)).real, axis=1)
    close(computed, np.sort(reference.eigenvalues(case.cache), axis=1), 10.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-2, 1e3])
@pytest.mark.parametrize("shape", [(3, 2), (7, 3), (33, 4)], ids=str)
def test_the_hessian_is_symmetric_and_is_double_backward(shape, eps, kind):
    case = Case(shape, eps, kind)
    hessian = reference.hessian(case.dy, case.cache)
    assert np.array_equal(hessian, hessian.mT)
    *_, bound, bound_gamma = double_backward_bounds(
        np.float64, case.ddx, case.dy, case.cache.xhat, case.gamma, case.cache.invstd,
        case.ddgamma, None, case.share(),
    )  # fmt: skip
    _, g_x, g_gamma = reference.double_backward(case.ddx, case.dy, case.cache)
    product = np.einsum("dij,jd->id", hessian, case.ddx)
    close(product, g_x, bound / u(np.float64))
    # the block between x and gamma, once from each side
    _, with_gamma, _ = reference.double_backward(case.ddx, case.dy, case.cache, case.ddgamma)
    mixed = (with_gamma - g_x) / case.ddgamma
    close(np.sum(mixed * case.ddx, axis=0), g_gamma,
          np.sum(np.abs(case.ddx) * bound, axis=0) / np.abs(case.ddgamma) / u(np.float64)
          + bound_gamma / u(np.float64))  # fmt: skip


# Identities ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["batch", "row weights", "cell weights"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_identities(shape, kind):
    eps = EPS[(SHAPES.index(shape) + len(kind)) % len(EPS)]
    case = Case(shape, eps, kind)
    dx, dgamma, _ = reference.backward(case.dy, case.cache)
    xhat, invstd, var = case.cache.xhat, case.cache.invstd, case.cache.var
    quotient = eps * invstd**2
    terms = np.sum(case.dx_terms(), axis=0)
    close(case.cache.average(xhat), np.zeros(shape[1]), np.max(np.abs(xhat)))  # (6), (41)
    close(case.cache.average(xhat**2), var * invstd**2, np.ones(shape[1]))
    close(np.sum(dx, axis=0), np.zeros(shape[1]), terms)  # (32)
    along_xhat = np.sum(case.dx_terms() * np.abs(xhat), axis=0)
    close(np.sum(dx * xhat, axis=0), case.gamma * invstd * dgamma * quotient, along_xhat)  # (33)
    along_x = np.sum(case.dx_terms() * np.abs(case.x), axis=0)
    close(np.sum(dx * case.x, axis=0), case.gamma * dgamma * quotient, along_x)  # (34)


def test_the_second_term_of_dmean_vanishes():
    case = Case((50, 4), 1e-2)
    staged = reference.backward_staged(case.dy, case.cache)
    first = -case.cache.invstd * np.sum(staged.dxhat, axis=0)
    close(staged.dmean, first, np.sum(np.abs(staged.dxhat), axis=0) * case.cache.invstd)


def test_dy_of_ones_is_no_test():
    case = Case((50, 4), 1e-2)
    dx, _, _ = reference.backward(np.ones(case.shape), case.cache)
    close(dx, np.zeros(case.shape), np.abs(case.gamma * case.cache.invstd))


def test_the_linear_layer_below():
    rng = np.random.default_rng(0)
    a, w, b = rng.normal(1, 1, (20, 4)), rng.normal(0, 1, (4, 3)), rng.normal(0, 1, 3)
    gamma, dy, direction = rng.normal(1, 1, 3), rng.normal(0, 1, (20, 3)), rng.normal(0, 1, (4, 3))

    def loss(w):
        return np.sum(dy * reference.forward(a @ w + b, gamma)[0])

    _, cache = reference.forward(a @ w + b, gamma)
    dx, _, _ = reference.backward(dy, cache)
    da, dw, db = reference.linear_backward(dx, a, w)
    outer_products = sum(np.outer(a[n], dx[n]) for n in range(20))
    close(dw, outer_products, np.abs(a).T @ np.abs(dx))
    close(slope(lambda t: loss(w + t * direction)), np.sum(dw * direction), 100.0, DIFFERENCE_RTOL)
    close(da, np.einsum("nd,kd->nk", dx, w), np.abs(dx) @ np.abs(w).T)
    close(db, np.zeros(3), np.sum(np.abs(dx), axis=0))
    product_of_sums = np.outer(a.sum(axis=0), dx.sum(axis=0))
    assert np.max(np.abs(product_of_sums)) < 1e-12 < 0.1 < np.max(np.abs(dw))
