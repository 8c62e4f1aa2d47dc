"""Batch norm in 90 digits: an oracle that shares no code with the library or its reference."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from mpmath import mp, mpf, workprec

PRECISION = 300  # bits: squares of float32's whole range still leave 40 below the last one

_exact = np.frompyfunc(lambda value: mpf(float(value)), 1, 1)
_invstd = np.frompyfunc(lambda square: 1 / mp.sqrt(square) if square else mpf(0), 1, 1)


def exact(a):
    """Return the array as mpmath numbers, without any rounding."""
    return _exact(np.asarray(a))


def floats(a):
    return np.asarray(a).astype(np.float64)


def error(actual, expected):
    """Return |actual - expected| in float64; expected may be mpmath numbers or wider floats."""
    expected = np.asarray(expected)
    if expected.dtype != object:
        return np.abs(np.asarray(actual).astype(expected.dtype) - expected).astype(np.float64)
    with workprec(PRECISION):
        return floats(abs(exact(actual) - expected))


def _normalize(x, mean, var, gamma, beta, eps):
    invstd = _invstd(var + exact(eps))
    xhat = (x - mean) * invstd
    gamma = 1 if gamma is None else exact(gamma)
    y = gamma * xhat + (0 if beta is None else exact(beta))
    return SimpleNamespace(mean=mean, var=var, invstd=invstd, xhat=xhat, y=y, gamma=gamma)


def forward(x, gamma=None, beta=None, eps=1e-5):
    """Return .mean .var .invstd .xhat .y of a training forward pass; x is (N, D)."""
    with workprec(PRECISION):
        x = exact(x)
        mean = x.sum(axis=0) / len(x)
        return _normalize(x, mean, ((x - mean) ** 2).sum(axis=0) / len(x), gamma, beta, eps)


def inference(x, mean, var, gamma=None, beta=None, eps=1e-5):
    """The same for given statistics."""
    with workprec(PRECISION):
        return _normalize(exact(x), exact(mean), exact(var), gamma, beta, eps)


def backward(dy, cache, fixed=False):
    """Return dx, dgamma, dbeta; with fixed statistics their dependence on x is left out."""
    with workprec(PRECISION):
        dy = exact(dy)
        dgamma, dbeta = (dy * cache.xhat).sum(axis=0), dy.sum(axis=0)
        share = mpf(0) if fixed else mpf(1) / len(dy)
        dx = cache.gamma * cache.invstd * (dy - share * (dbeta + cache.xhat * dgamma))
        return dx, dgamma, dbeta
