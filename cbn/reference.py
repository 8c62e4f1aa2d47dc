"""Batch normalization in NumPy: docs/math.md as code, one function a derivation.

Slow and plain on purpose: the compiled library is tested against this module and never calls it.
Arrays are (N, D), rows by features; statistics and parameters are (D,). Everything is computed in
``np.result_type(x, np.float64)``, so float32 is widened and longdouble stays longdouble. Complex
input (for complex-step derivatives) and object arrays (mpmath, sympy) pass through as well.

Numbers in brackets are equations of docs/math.md. A missing gamma counts as ones, a missing beta
as zeros; their gradients are returned all the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Cache(NamedTuple):
    """What forward leaves for the derivatives.

    Row i has the share p_i = weight_i / count in the statistics (36): weight 1 and count N for a
    plain batch, the caller's weights and their sum (37), weight 0 for fixed statistics (42).
    """

    x: NDArray  # (N, D)
    centred: NDArray  # (N, D), x - mean
    xhat: NDArray  # (N, D)
    mean: NDArray  # (D,)
    var: NDArray  # (D,)
    invstd: NDArray  # (D,)
    gamma: NDArray  # (D,)
    eps: float
    weight: NDArray | int  # 1, 0, (N, 1) or (N, D)
    count: NDArray | int  # N, 1 or (D,)

    def share(self, a: NDArray) -> NDArray:
        """Return p_i a_i, shape (N, D)."""
        return self.weight * a / self.count

    def average(self, a: NDArray) -> NDArray:
        """Return the sum of p_i a_i over the rows, shape (D,)."""
        return _sum(self.weight * a) / self.count


class Staged(NamedTuple):
    """The gradients along the computation graph, figure 1."""

    dx: NDArray  # (N, D)
    dgamma: NDArray  # (D,)
    dbeta: NDArray  # (D,)
    dxhat: NDArray  # (N, D)
    dvar: NDArray  # (D,)
    dmean: NDArray  # (D,)


class Moments(NamedTuple):
    """Count (or sum of weights), mean and centred sum of squares (43)."""

    count: NDArray | int
    mean: NDArray
    m2: NDArray


class BackwardSums(NamedTuple):
    """The two sums backward needs and the rows' count (46)."""

    count: NDArray | int
    sum_dy: NDArray
    sum_dy_xhat: NDArray


class DoubleBackwardSums(NamedTuple):
    """The five sums double backward needs (51)."""

    sum_dy: NDArray
    sum_dy_xhat: NDArray
    sum_ddx: NDArray
    sum_ddx_xhat: NDArray
    sum_dy_ddx: NDArray


def _wide(a: ArrayLike) -> NDArray:
    a = np.asarray(a)
    return a.astype(np.result_type(a.dtype, np.float64))


def _sum(a: NDArray) -> NDArray:
    """Sum over the rows; the transposed copy lets NumPy sum each column pairwise."""
    return np.add.reduce(np.ascontiguousarray(a.T), axis=-1)


def _weights(x: NDArray, weight: ArrayLike | None) -> tuple[NDArray | int, NDArray | int]:
    """Return the weight as something that broadcasts with x, and its sum over the rows."""
    if weight is None:
        return 1, len(x)
    weight = _wide(weight)
    weight = weight[:, None] if weight.ndim == 1 else weight
    return weight, _count(weight, x)


def _count(weight: NDArray | int, x: NDArray) -> NDArray | int:
    return len(x) if np.ndim(weight) == 0 else _sum(np.broadcast_to(weight, x.shape))


def _centre(x: NDArray, weight: NDArray | int, count: NDArray | int) -> tuple[NDArray, NDArray]:
    """Return mean (D,) and x - mean (N, D): (1) from a shift (45), with a second pass.

    The shift starts from a row that counts, so a constant column is centred to exact zeros. What
    it misses of the mean is small and is subtracted from values that are already near zero.
    """
    first = np.argmax(np.broadcast_to(weight, x.shape) != 0, axis=0)
    start = np.take_along_axis(x, first[None], axis=0)[0]
    shift = start + _sum(weight * (x - start)) / count
    near = x - shift
    rest = _sum(weight * near) / count
    return shift + rest, near - rest


def _normalize(x, centred, mean, var, gamma, beta, eps, weight, count) -> tuple[NDArray, Cache]:
    ones = np.ones(x.shape[1], x.dtype)
    gamma = ones if gamma is None else _wide(gamma) * ones
    total = var + eps
    invstd = np.where(total == 0, 0, 1 / np.sqrt(np.where(total == 0, 1, total)))  # (3)
    xhat = centred * invstd  # (4)
    y = gamma * xhat + (0 if beta is None else _wide(beta))  # (5)
    return y, Cache(x, centred, xhat, mean, var, invstd, gamma, eps, weight, count)


# Forward ------------------------------------------------------------------------------------------


def forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
    weight: ArrayLike | None = None,
) -> tuple[NDArray, Cache]:
    """Normalize each column by its own statistics.

    (1)-(5), Agarwal (1)-(4); with weights (37).

    Parameters
    ----------
    x : (N, D)
    gamma, beta : (D,), optional
    eps : float
        With eps = 0 a constant column gets invstd = 0.
    weight : (N,) or (N, D), optional
        How often each row (or cell) counts in the statistics. A mask is a weight of 0 and 1 with
        x set to any finite number, and dy and ddx to 0, where it is 0; see docs/math.md.

    Returns
    -------
    y : (N, D)
    cache : Cache
    """
    x = _wide(x)
    weight, count = _weights(x, weight)
    mean, centred = _centre(x, weight, count)
    var = _sum(weight * centred**2) / count  # (2)
    return _normalize(x, centred, mean, var, gamma, beta, eps, weight, count)


def normalize(
    x: ArrayLike,
    moments: Moments,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
) -> tuple[NDArray, Cache]:
    """Normalize the rows x (N, D) of a larger batch by the moments of that whole batch.

    (4), (5) with the statistics of (44).
    """
    x = _wide(x)
    mean, var = moments.mean, moments.m2 / moments.count
    return _normalize(x, x - mean, mean, var, gamma, beta, eps, 1, moments.count)


def fixed_statistics(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
) -> tuple[NDArray, Cache]:
    """Normalize x (N, D) by a mean and var (D,) that do not depend on x.

    (42). Every derivative of this module takes the cache and then is that of inference.
    """
    x, mean, var = _wide(x), _wide(mean), _wide(var)
    return _normalize(x, x - mean, mean, var, gamma, beta, eps, 0, 1)


def inference(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    eps: float = 1e-5,
) -> NDArray:
    """Return y (N, D) for given statistics (D,), (42)."""
    return fixed_statistics(x, mean, var, gamma, beta, eps)[0]


# Backward, five ways ------------------------------------------------------------------------------


def backward_staged(dy: ArrayLike, cache: Cache) -> Staged:
    """Reverse mode through the graph: (7)-(12); Agarwal (5)-(10); Kadulin, backward mode.

    With fixed statistics dvar and dmean are the gradients of the given var and mean.

    Parameters
    ----------
    dy : (N, D)
    cache : Cache

    Returns
    -------
    Staged
        dx, dgamma, dbeta and the intermediate dxhat, dvar, dmean.
    """
    dy, invstd, centred = _wide(dy), cache.invstd, cache.centred
    dbeta = _sum(dy)  # (7)
    dgamma = _sum(dy * cache.xhat)  # (8)
    dxhat = cache.gamma * dy  # (9)
    dvar = -_sum(dxhat * centred) * invstd**3 / 2  # (10)
    dmean = -invstd * _sum(dxhat) - 2 * dvar * cache.average(centred)  # (11), last term zero
    dx = dxhat * invstd + cache.share(2 * dvar * centred + dmean)  # (12)
    return Staged(dx, dgamma, dbeta, dxhat, dvar, dmean)


def backward_alternative(dy: ArrayLike, cache: Cache) -> tuple[NDArray, NDArray, NDArray]:
    """Return dx (N, D), dgamma (D,), dbeta (D,) by (13), the course notes' last line."""
    dy, xhat, count = _wide(dy), cache.xhat, cache.count
    dxhat = cache.gamma * dy
    sums = _sum(dxhat) + xhat * _sum(dxhat * xhat)
    dx = cache.invstd / count * (count * dxhat - cache.weight * sums)
    return dx, _sum(dy * xhat), _sum(dy)


def backward_delta(dy: ArrayLike, cache: Cache) -> tuple[NDArray, NDArray, NDArray]:
    """Return dx (N, D), dgamma (D,), dbeta (D,) by (14), (15); Agarwal (11)-(13)."""
    dy, xhat = _wide(dy), cache.xhat
    delta = cache.gamma * cache.invstd * dy  # (14)
    dx = delta - cache.share(xhat * _sum(xhat * delta)) - cache.share(_sum(delta))  # (15)
    return dx, _sum(dy * xhat), _sum(dy)


def backward_one_line(dy: ArrayLike, cache: Cache) -> tuple[NDArray, NDArray, NDArray]:
    """Return dx (N, D), dgamma (D,), dbeta (D,) by (16), the blog post's line of NumPy."""
    dy, xhat, share = _wide(dy), cache.xhat, cache.share
    dx = cache.gamma * cache.invstd * (dy - share(_sum(dy)) - share(xhat * _sum(dy * xhat)))
    return dx, _sum(dy * xhat), _sum(dy)


def backward_tensor(dy: ArrayLike, cache: Cache) -> tuple[NDArray, NDArray, NDArray]:
    """Return dx (N, D), dgamma (D,), dbeta (D,) by (17), Kadulin's formula for the whole array."""
    dy, centred, invstd = _wide(dy), cache.centred, cache.invstd
    mean_dy, mean_centred_dy = cache.share(_sum(dy)), cache.share(_sum(centred * dy))
    dx = cache.gamma * invstd * (-mean_dy - centred * invstd**2 * mean_centred_dy + dy)
    return dx, _sum(dy * cache.xhat), _sum(dy)


def backward_ones(dy: ArrayLike, cache: Cache) -> tuple[NDArray, NDArray, NDArray]:
    """Return dx (N, D), dgamma (D,), dbeta (D,) by (18), the answer's form with 1^T."""
    dy, xhat, count = _wide(dy), cache.xhat, cache.count
    row = np.ones((1, len(dy)), xhat.dtype)
    dxhat = cache.gamma * dy
    sums = row @ dxhat + xhat * (row @ (dxhat * xhat))
    dx = cache.invstd / count * (count * dxhat - cache.weight * sums)
    return dx, (row @ (dy * xhat))[0], (row @ dy)[0]


def inference_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    eps: float = 1e-5,
) -> tuple[NDArray, NDArray, NDArray]:
    """Return dx (N, D), dgamma (D,), dbeta (D,) for given statistics (D,), (42)."""
    _, cache = fixed_statistics(x, mean, var, gamma, None, eps)
    return backward(dy, cache)


# The Jacobian and forward mode --------------------------------------------------------------------


def jacobian(cache: Cache) -> NDArray:
    """Return J (D, N, N) with J[d, k, i] = dy[k, d] / dx[i, d]: (22), weighted (39); blog (2.4)."""
    xhat = cache.xhat
    eye = np.eye(len(xhat), dtype=xhat.dtype)[:, :, None]
    inner = eye - cache.share(1 + xhat[:, None] * xhat[None])
    return np.moveaxis(cache.gamma * cache.invstd * inner, -1, 0)


def eigenvalues(cache: Cache) -> NDArray:
    """Return the N eigenvalues of each channel's Jacobian, (D, N), by (24).

    First that of the vector 1, then that of xhat, then the N - 2 equal ones.
    """
    n = len(cache.x)
    rest = cache.gamma * cache.invstd
    values = np.repeat(rest[:, None], n, axis=1)
    values[:, 0] = 0
    if n > 1:
        values[:, 1] = rest * cache.eps * cache.invstd**2
    return values


def jvp_staged(
    x_dot: ArrayLike,
    cache: Cache,
    gamma_dot: ArrayLike | None = None,
    beta_dot: ArrayLike | None = None,
) -> NDArray:
    """Return y_dot (N, D), forward mode through the graph: (26)-(29); Kadulin, forward mode."""
    x_dot, invstd, centred = _wide(x_dot), cache.invstd, cache.centred
    mean_dot = cache.average(x_dot)  # (26)
    var_dot = 2 * cache.average(centred * x_dot)  # (26)
    invstd_dot = -(invstd**3) * var_dot / 2  # (27)
    xhat_dot = (x_dot - mean_dot) * invstd + centred * invstd_dot  # (28)
    return cache.gamma * xhat_dot + _parameter_dot(cache, gamma_dot, beta_dot)  # (29)


def jvp(
    x_dot: ArrayLike,
    cache: Cache,
    gamma_dot: ArrayLike | None = None,
    beta_dot: ArrayLike | None = None,
) -> NDArray:
    """Return y_dot = J x_dot + xhat gamma_dot + beta_dot in closed form: (30), weighted (39).

    Parameters
    ----------
    x_dot : (N, D)
    cache : Cache
    gamma_dot, beta_dot : (D,), optional
        Zero if not given.

    Returns
    -------
    y_dot : (N, D)
    """
    x_dot, xhat = _wide(x_dot), cache.xhat
    inner = x_dot - cache.average(x_dot) - xhat * cache.average(xhat * x_dot)
    return cache.gamma * cache.invstd * inner + _parameter_dot(cache, gamma_dot, beta_dot)


def _parameter_dot(cache: Cache, gamma_dot: ArrayLike | None, beta_dot: ArrayLike | None):
    gamma_dot = 0 if gamma_dot is None else _wide(gamma_dot)
    return cache.xhat * gamma_dot + (0 if beta_dot is None else _wide(beta_dot))


# Blocks: what merges ------------------------------------------------------------------------------


def moments(x: ArrayLike, weight: ArrayLike | None = None) -> Moments:
    """Return the moments of x (N, D), weighted by (N,) or (N, D), (43)."""
    x = _wide(x)
    weight, count = _weights(x, weight)
    mean, centred = _centre(x, weight, count)
    return Moments(count, mean, _sum(weight * centred**2))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Return the moments of the union of two disjoint sets of rows, (44)."""
    count = a.count + b.count
    d = b.mean - a.mean
    mean = a.mean + d * (b.count / count)
    return Moments(count, mean, a.m2 + b.m2 + d**2 * (a.count * (b.count / count)))


def update_running(
    running_mean: ArrayLike,
    running_var: ArrayLike,
    batch: Moments,
    momentum: float = 0.1,
    correction: float = 1,
) -> tuple[NDArray, NDArray]:
    """Return the new running mean and variance (D,), (47); momentum weighs the new value."""
    var = batch.m2 / (batch.count - correction)
    keep = 1 - momentum
    return (
        keep * _wide(running_mean) + momentum * batch.mean,
        keep * _wide(running_var) + momentum * var,
    )


def backward_sums(dy: ArrayLike, cache: Cache) -> BackwardSums:
    """Return the sums over these rows that backward, (16), needs: (46)."""
    dy = _wide(dy)
    return BackwardSums(_count(cache.weight, dy), _sum(dy), _sum(dy * cache.xhat))


def backward_apply(
    dy: ArrayLike, cache: Cache, sums: BackwardSums
) -> tuple[NDArray, NDArray, NDArray]:
    """Return dx (N, D), dgamma (D,), dbeta (D,) from sums of the whole batch: (16), (38)."""
    count, sum_dy, sum_dy_xhat = sums
    inner = _wide(dy) - cache.weight * (sum_dy + cache.xhat * sum_dy_xhat) / count
    return cache.gamma * cache.invstd * inner, sum_dy_xhat, sum_dy


def backward(dy: ArrayLike, cache: Cache) -> tuple[NDArray, NDArray, NDArray]:
    """Return dx (N, D), dgamma (D,), dbeta (D,) as the compiled kernels do: (46), then (16)."""
    return backward_apply(dy, cache, backward_sums(dy, cache))


def merge_sums(a, b):
    """Add the BackwardSums, or the DoubleBackwardSums, of two disjoint sets of rows, (46)."""
    return type(a)(*map(np.add, a, b))


# Double backward ----------------------------------------------------------------------------------


def double_backward_sums(ddx: ArrayLike, dy: ArrayLike, cache: Cache) -> DoubleBackwardSums:
    """Return the five sums of (51), each (D,), from one pass over x, dy and ddx (N, D)."""
    ddx, dy, xhat = _wide(ddx), _wide(dy), cache.xhat
    w_ddx = cache.weight * ddx
    return DoubleBackwardSums(
        _sum(dy), _sum(dy * xhat), _sum(w_ddx), _sum(w_ddx * xhat), _sum(dy * ddx)
    )


def double_backward(
    ddx: ArrayLike,
    dy: ArrayLike,
    cache: Cache,
    ddgamma: ArrayLike | None = None,
    ddbeta: ArrayLike | None = None,
) -> tuple[NDArray, NDArray, NDArray]:
    """Differentiate <ddx, dx> + <ddgamma, dgamma> + <ddbeta, dbeta> in dy, x and gamma.

    (49)-(57): the sums, then one map over the rows.

    Parameters
    ----------
    ddx, dy : (N, D)
    cache : Cache
    ddgamma, ddbeta : (D,), optional
        Zero if not given.

    Returns
    -------
    g_dy, g_x : (N, D)
    g_gamma : (D,)
    """
    ddx, dy, xhat, invstd = _wide(ddx), _wide(dy), cache.xhat, cache.invstd
    ddgamma = 0 if ddgamma is None else _wide(ddgamma)
    ddbeta = 0 if ddbeta is None else _wide(ddbeta)
    s = double_backward_sums(ddx, dy, cache)
    scale = cache.gamma * invstd
    mean_ddx, mean_ddx_xhat = s.sum_ddx / cache.count, s.sum_ddx_xhat / cache.count  # (52)
    e_ddx = s.sum_dy_ddx - s.sum_dy * mean_ddx - s.sum_dy_xhat * mean_ddx_xhat  # (53)

    c_dy = invstd * (ddgamma - scale * mean_ddx_xhat)  # (57)
    c_ddx = -scale * invstd * s.sum_dy_xhat
    c_xhat = -c_dy * s.sum_dy_xhat - c_ddx * mean_ddx_xhat - scale * invstd * e_ddx
    c_one = -c_dy * s.sum_dy - c_ddx * mean_ddx
    g_dy = scale * (ddx - mean_ddx - xhat * mean_ddx_xhat) + xhat * ddgamma + ddbeta  # (50)
    g_x = c_dy * dy + cache.share(c_ddx * ddx + c_xhat * xhat + c_one)  # (57)
    g_gamma = invstd * e_ddx  # (55)
    return g_dy, g_x, g_gamma


def hessian(dy: ArrayLike, cache: Cache) -> NDArray:
    """Return H (D, N, N), the second derivative of <dy, y> in x, by (58); H ddx is in g_x."""
    dy, xhat = _wide(dy), cache.xhat
    p = cache.share(xhat**0).T
    q = p * xhat.T
    e = (dy - cache.share(_sum(dy) + xhat * _sum(dy * xhat))).T  # (53)
    eye = np.eye(len(dy), dtype=xhat.dtype)

    def outer(a, b):
        return a[:, :, None] * b[:, None, :]

    inner = p[:, None, :] * eye - outer(p, p) - outer(q, q)
    factor = -cache.gamma * cache.invstd**2
    return factor[:, None, None] * (
        outer(q, e) + outer(e, q) + _sum(dy * xhat)[:, None, None] * inner
    )


# The layer below ----------------------------------------------------------------------------------


def linear_backward(dx: ArrayLike, a: ArrayLike, w: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Return da (N, K), dw (K, D), db (D,) of the linear layer x = a w + b below, (35)."""
    dx, a, w = _wide(dx), _wide(a), _wide(w)
    return dx @ w.T, a.T @ dx, _sum(dx)
