"""Error bounds of the tests, as functions of dtype and operation.

No data whatever may exceed the bounds that docs/accuracy.md promises, which are `BOUNDS` of
cbn/cli/_exact.py and for float32 derived there: tests/kernels/test_adversary.py searches for data
that do. The bounds here are what the tests hold on all other data, hard as they are. They are
smaller than what is promised, since roundings do not all point in one direction there.

u is the unit roundoff, half the distance from 1 to the next number: 2^-24 for float32, 2^-53 for
float64. A bound is a small multiple of u times the sum of the magnitudes of the terms that are
added. That is the natural measure: terms that cancel leave their rounding errors behind, so no
bound relative to the result alone can hold. No bound grows with the length N, because sums are
formed in blocks and folded into float64: what is left of N is far below u.

y:    scale*(x - mean) + beta has four roundings of its own (subtraction, scale, product, sum), and
      invstd and the mean bring errors of their own, which the 1 in (1 + |xhat|) allows for: an
      error of the mean of u*std moves y by u*|gamma|. 8u leaves about a factor of two. float64 has
      no wider type to fold into, so its statistics have errors of the same kind: 16u.
var:  a sum of squares, all positive, so relative: a difference (rounded once, hence 2u in the
      square), a square, and the short block sum: 8u in float32; 64u in float64, as above.
dx, dgamma: 8u of the sum of the magnitudes of their terms, which for dx are the three terms of
      (16), each sum replaced by the sum of magnitudes.
dbeta: 3u in float32, "dbeta" in docs/accuracy.md: two roundings of a tree of four rows, and that of
      the result. 8u in float64, whose blocks of 32 rows are summed in float64.
half types (float16, bfloat16): computed in float32 and rounded once at the end, so the bound of
      float32 plus half a unit in the last place of the half type.

References. Where the reference is float64, its own error is negligible against float32. Against
float64 results use longdouble or exact arithmetic as the reference.

Numbers in brackets are equations of docs/math.md. xhat, dy and the like are (N, D), the rest (D,).
"""

from __future__ import annotations

import numpy as np

REFERENCE_RTOL = 1e-12  # two derivations of one formula in float64, relative to the terms
ADJOINT_RTOL = 1e-13  # <dy, J x_dot> against <J^T dy, x_dot>, relative to the terms
PEER_RTOL = 5e-6  # float32 of other frameworks; eps = 1e-5 beside var = 0.25 changes y by more

_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
_SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 0.0}


def u(dtype) -> float:
    """Return the unit roundoff of a floating dtype, by its name."""
    return _ROUNDOFF[np.dtype(dtype).name]


def is_half(dtype) -> bool:
    return np.dtype(dtype).itemsize == 2


def working(dtype) -> np.dtype:
    """Return the type the work is done in: float32 for the half types, else the dtype itself."""
    return np.dtype(np.float32) if is_half(dtype) else np.dtype(dtype)


def rounded(dtype, bound, value):
    """Add to the bound of the working type the rounding of value to a half type, if it is one."""
    if not is_half(dtype):
        return bound
    value = np.abs(np.asarray(value, np.float64))
    return bound + np.maximum(u(dtype) * (value + bound), _SMALLEST[np.dtype(dtype).name] / 2)


def _magnitude(a, missing=0.0):
    """Return |a| in float64, or the value that stands for a parameter that was not given."""
    return missing if a is None else np.abs(np.asarray(a, np.float64))


# Forward


def y_bound(dtype, gamma, beta, xhat):
    """Bound of |y - exact|, (N, D): 8u or 16u (float64) of |gamma|(1 + |xhat|) + |beta|."""
    gamma, beta = _magnitude(gamma, 1.0), _magnitude(beta)
    factor = 8 if working(dtype) == np.float32 else 16
    xhat = _magnitude(xhat)
    bound = factor * u(working(dtype)) * (gamma * (1 + xhat) + beta)
    return rounded(dtype, bound, gamma * xhat + beta)


def var_bound(dtype, var):
    """Bound of |var - exact|, (D,): 8u (float32) or 64u (float64) relative."""
    factor = 8 if working(dtype) == np.float32 else 64
    return factor * u(working(dtype)) * _magnitude(var)


def mean_bound(dtype, mean, var):
    """Bound of |mean - exact|, (D,).

    Statistics are float64, so mean can be off by u(float64)*|mean| from storage alone; what is more
    than that moves y. 6u*std in float32, "mean" in docs/accuracy.md; y_bound at xhat = 0 allows
    16u*std in float64.
    """
    factor = 6 if working(dtype) == np.float32 else 16
    std = np.sqrt(_magnitude(var))
    return u(np.float64) * _magnitude(mean) + factor * u(working(dtype)) * std


def invstd_bound(dtype, var, eps):
    """Bound of |invstd - exact|, (D,): half of var's relative error and a few roundings."""
    total = np.asarray(var, np.float64) + eps
    invstd = np.where(total > 0, 1 / np.sqrt(np.where(total > 0, total, 1)), 0)
    relative = 0.5 * var_bound(dtype, var) / np.where(total > 0, total, 1) + 4 * u(np.float64)
    return relative * invstd


# Backward


def dbeta_bound(dtype, dy):
    """Bound of |dbeta - exact|, (D,): 3u (float32) or 8u (float64) of the sum of |dy|, (7)."""
    factor = 3 if working(dtype) == np.float32 else 8
    bound = factor * u(working(dtype)) * np.sum(_magnitude(dy), axis=0)
    return rounded(dtype, bound, np.abs(np.sum(np.asarray(dy, np.float64), axis=0)))


def dgamma_bound(dtype, dy, xhat):
    """Bound of |dgamma - exact|, (D,): 8u of the sum of |dy xhat|, (8)."""
    terms = np.asarray(dy, np.float64) * np.asarray(xhat, np.float64)
    bound = 8 * u(working(dtype)) * np.sum(np.abs(terms), axis=0)
    return rounded(dtype, bound, np.sum(terms, axis=0))


def dx_terms(dy, xhat, gamma, invstd, share=None):
    """Return the sum of the magnitudes of the terms of dx, (N, D): (16), (38).

    share is 1/N by default; p_i for weights; 0 for fixed statistics.
    """
    dy, xhat = _magnitude(dy), _magnitude(xhat)
    share = 1 / len(dy) if share is None else share
    sums = np.sum(dy, axis=0) + xhat * np.sum(dy * xhat, axis=0)
    return _magnitude(gamma, 1.0) * _magnitude(invstd) * (dy + share * sums)


def dx_bound(dtype, dy, xhat, gamma, invstd, share=None):
    """Bound of |dx - exact|, (N, D): 8u of dx_terms."""
    terms = dx_terms(dy, xhat, gamma, invstd, share)
    return rounded(dtype, 8 * u(working(dtype)) * terms, terms)


def jvp_bound(dtype, x_dot, xhat, gamma, invstd, gamma_dot=None, beta_dot=None, share=None):
    """Bound of |y_dot - exact|, (N, D): 8u of the sum of its terms' magnitudes, (30), (39)."""
    x_dot, xhat = _magnitude(x_dot), _magnitude(xhat)
    share = 1 / len(x_dot) if share is None else share
    averages = np.sum(share * x_dot, axis=0) + xhat * np.sum(share * x_dot * xhat, axis=0)
    terms = _magnitude(gamma, 1.0) * _magnitude(invstd) * (x_dot + averages)
    terms = terms + xhat * _magnitude(gamma_dot) + _magnitude(beta_dot)
    return rounded(dtype, 8 * u(working(dtype)) * terms, terms)


def double_backward_bounds(
    dtype, ddx, dy, xhat, gamma, invstd, ddgamma=None, ddbeta=None, share=None
):
    """Bounds of |g_dy - exact| and |g_x - exact| (N, D) and |g_gamma - exact| (D,).

    g_dy is a JVP and has its bound. The terms of g_x (56) and g_gamma (55) are products of two
    sums, each with the error of dx's sums, so 16u of the sum of the magnitudes of the terms.
    """
    g_dy = jvp_bound(dtype, ddx, xhat, gamma, invstd, ddgamma, ddbeta, share)
    share = 1 / len(np.asarray(dy)) if share is None else share
    gamma, invstd = _magnitude(gamma, 1.0), _magnitude(invstd)
    ddgamma, dy, ddx, xhat = map(_magnitude, (ddgamma, dy, ddx, xhat))
    sum_dy, sum_dy_xhat = np.sum(dy, axis=0), np.sum(dy * xhat, axis=0)
    mean_ddx, mean_ddx_xhat = np.sum(share * ddx, axis=0), np.sum(share * ddx * xhat, axis=0)
    e = dy + share * (sum_dy + xhat * sum_dy_xhat)
    e_ddx = np.sum(dy * ddx, axis=0) + sum_dy * mean_ddx + sum_dy_xhat * mean_ddx_xhat
    bracket = mean_ddx_xhat * e + share * xhat * e_ddx
    bracket = bracket + sum_dy_xhat * share * (ddx + mean_ddx + xhat * mean_ddx_xhat)
    terms_x = invstd * ddgamma * e + gamma * invstd**2 * bracket
    terms_gamma = invstd * e_ddx
    factor = 16 * u(working(dtype))
    return (
        g_dy,
        rounded(dtype, factor * terms_x, terms_x),
        rounded(dtype, factor * terms_gamma, terms_gamma),
    )


# Finite differences


def central_difference_bound(step, value, third):
    """Bound of the error of (f(t + step) - f(t - step)) / (2 step) in float64.

    Truncation is step^2/6 times the third derivative; rounding is the error of two values of f, of
    which an f with a handful of summed terms has some 10u each, divided by 2 step. value and third
    are bounds of |f| and |f'''| near t. The best step is about (u |f| / |f'''|)^(1/3), some 1e-5.
    """
    return step**2 / 6 * third + 10 * u(np.float64) * value / step


def forward_difference_bound(step, value, second):
    """Bound of the error of (f(t + step) - f(t)) / step in float64; as above with |f''|."""
    return step / 2 * second + 20 * u(np.float64) * value / step
