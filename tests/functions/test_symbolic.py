"""A symbolic proof for N = 3: cbn/reference.py runs on symbols and equals the derivative.

s stands for sqrt(var + eps). After differentiating, eps is replaced by s^2 - var. As eps was free,
s is independent of the x, every expression is rational in the symbols, and it is zero only if its
numerator is the zero polynomial, which sympy decides.
"""

from __future__ import annotations

import numpy as np
import pytest
import sympy
from reference_case import FORMS

from cbn import reference

N = 3
EPS, S = sympy.symbols("eps s", positive=True)
GAMMA, BETA, DDGAMMA, DDBETA = sympy.symbols("gamma beta ddgamma ddbeta")
X = sympy.symbols(f"x:{N}")
DY = sympy.symbols(f"dy:{N}")
DDX = sympy.symbols(f"ddx:{N}")


def column(symbols):
    return np.array(symbols, dtype=object)[:, None]


class Batch:
    """y in symbols, written down from the definition, and the same as a cache."""

    def __init__(self, weights):
        count = sum(weights)
        mean = sum(w * x for w, x in zip(weights, X, strict=True)) / count
        self.var = sum(w * (x - mean) ** 2 for w, x in zip(weights, X, strict=True)) / count
        self.y = [GAMMA * (x - mean) / sympy.sqrt(self.var + EPS) + BETA for x in X]
        self.loss = sum(dy * y for dy, y in zip(DY, self.y, strict=True))
        centred = column([x - mean for x in X])
        self.cache = reference.Cache(
            x=column(X), centred=centred, xhat=centred / S, mean=np.array([mean]),
            var=np.array([self.var]), invstd=np.array([1 / S]), gamma=np.array([GAMMA]), eps=EPS,
            weight=column(weights), count=np.array([count]),
        )  # fmt: skip

    def is_zero(self, difference):
        rational = sympy.together(sympy.sympify(difference).subs(EPS, S**2 - self.var))
        numerator = sympy.Poly(sympy.numer(rational), S)
        return all(sympy.expand(c) == 0 for c in numerator.all_coeffs())


@pytest.fixture(
    scope="module",
    params=[(1, 1, 1), pytest.param((1, 2, 4), marks=pytest.mark.slow)],
    ids=["batch", "weights"],
)
def batch(request):
    return Batch([sympy.Integer(w) for w in request.param])


def test_every_backward_is_the_derivative(batch):
    truth = [sympy.diff(batch.loss, x) for x in X]
    for form in FORMS:
        dx, dgamma, dbeta = form(column(DY), batch.cache)[:3]
        assert all(batch.is_zero(a - b) for a, b in zip(dx[:, 0], truth, strict=True))
        assert batch.is_zero(dgamma[0] - sympy.diff(batch.loss, GAMMA))
        assert batch.is_zero(dbeta[0] - sympy.diff(batch.loss, BETA))


def test_a_wrong_formula_is_not_zero(batch):
    dx, _, _ = reference.backward(column(DY), batch.cache)
    assert not batch.is_zero(dx[0, 0] - sympy.diff(batch.loss, X[1]))
    assert not batch.is_zero(dx[0, 0] + sympy.diff(batch.loss, X[0]))


def test_the_jacobian_and_the_jvp_are_the_derivative(batch):
    jacobian = reference.jacobian(batch.cache)[0]
    truth = [[sympy.diff(y, x) for x in X] for y in batch.y]
    for k, i in np.ndindex(N, N):
        assert batch.is_zero(jacobian[k, i] - truth[k][i])
    expected = truth @ column(DDX) + batch.cache.xhat * DDGAMMA + DDBETA
    for jvp in (reference.jvp, reference.jvp_staged):
        y_dot = jvp(column(DDX), batch.cache, [DDGAMMA], [DDBETA])
        assert all(batch.is_zero(d) for d in (y_dot - expected)[:, 0])


def test_double_backward_is_the_second_derivative(batch):
    # <ddx, dx> + <ddgamma, dgamma> + <ddbeta, dbeta>, with dx = d loss / dx and so on
    phi = sum(v * sympy.diff(batch.loss, x) for v, x in zip(DDX, X, strict=True))
    phi += DDGAMMA * sympy.diff(batch.loss, GAMMA) + DDBETA * sympy.diff(batch.loss, BETA)
    g_dy, g_x, g_gamma = reference.double_backward(
        column(DDX), column(DY), batch.cache, [DDGAMMA], [DDBETA]
    )
    assert all(batch.is_zero(g - sympy.diff(phi, d)) for g, d in zip(g_dy[:, 0], DY, strict=True))
    assert batch.is_zero(g_gamma[0] - sympy.diff(phi, GAMMA))
    assert all(batch.is_zero(g - sympy.diff(phi, x)) for g, x in zip(g_x[:, 0], X, strict=True))
