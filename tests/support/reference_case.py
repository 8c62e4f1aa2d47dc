"""Random arguments, the list of backward forms, and comparison, for the tests of the reference."""

from __future__ import annotations

import numpy as np
from scipy.differentiate import derivative
from tolerances import REFERENCE_RTOL, dx_terms

from cbn import reference

SHAPES = [(1, 1), (1, 4), (2, 3), (3, 1), (7, 3), (17, 5), (64, 2), (33, 31), (257, 4), (1000, 1)]
EPS = [0.0, 1e-12, 1e-5, 1e-2, 1.0, 1e3, 1e8]
KINDS = ["batch", "row weights", "cell weights", "fixed"]
FORMS = [
    reference.backward,
    reference.backward_alternative,
    reference.backward_delta,
    reference.backward_ones,
    reference.backward_one_line,
    reference.backward_staged,
    reference.backward_tensor,
]
DIFFERENCE_RTOL = 1e-9  # scipy's differences: of eighth order, with the step chosen by itself


class Case:
    """Random arguments of every operation, and the forward pass of the given kind."""

    def __init__(self, shape, eps, kind="batch"):
        rng = np.random.default_rng([*shape, int(eps * 1e3), KINDS.index(kind)])
        n, d = shape
        self.kind, self.eps, self.shape = kind, eps, shape
        self.x = rng.normal(3, 2, shape)
        self.gamma, self.beta = rng.normal(1, 0.5, d), rng.normal(0, 1, d)
        self.dy, self.ddx, self.x_dot = rng.normal(0.3, 1, (3, n, d))
        self.ddgamma, self.ddbeta, self.gamma_dot, self.beta_dot = rng.normal(0, 1, (4, d))
        self.mean, self.var = rng.normal(3, 1, d), rng.uniform(0.5, 4, d)
        size = {"row weights": n, "cell weights": shape}.get(kind)
        self.weight = None if size is None else rng.uniform(0, 2, size)
        self.y, self.cache = self.forward()

    def forward(self, x=None, gamma=None, beta=None):
        x = self.x if x is None else x
        gamma = self.gamma if gamma is None else gamma
        beta = self.beta if beta is None else beta
        if self.kind == "fixed":
            return reference.fixed_statistics(x, self.mean, self.var, gamma, beta, self.eps)
        return reference.forward(x, gamma, beta, self.eps, self.weight)

    def share(self):
        return self.cache.share(np.ones(self.shape))

    def dx_terms(self):
        return dx_terms(self.dy, self.cache.xhat, self.gamma, self.cache.invstd, self.share())


def close(actual, expected, scale, rtol=REFERENCE_RTOL):
    """Assert |actual - expected| <= rtol * scale, where scale is the magnitude of the terms."""
    assert np.shape(actual) == np.shape(expected)
    worst = np.max(np.abs(actual - expected) - rtol * scale)
    assert worst <= 0, f"off by {worst} beyond the bound"


def slope(f):
    """Return the derivative of f(t) at t = 0 by central differences."""
    result = derivative(np.vectorize(f, otypes=[float]), 0.0, initial_step=1e-2)
    return float(result.df)
