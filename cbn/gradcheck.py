"""Gradient checks with central differences, for any function and for batch norm.

A check compares a derivative with the differences of `scipy.differentiate.derivative` (adaptive,
eighth order, in float64). The coordinates of an argument are dealt into groups, at most
`max_probes` of them, and one probe moves the coordinates of one group together, each with a
random sign: a small argument is checked by the coordinate, and of a large one none is left out.

The relative error of a probe is ``|derivative - difference| / scale``. The scale is the magnitude
of the terms that the derivative adds up, where the caller gives it: a gradient that cancels to
nearly zero is then judged by what was added (root of the sum of squares over a group). Otherwise
it is the largest derivative of all probes of the argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import cbn
from cbn import _check, reference

try:
    from scipy.differentiate import derivative
except ModuleNotFoundError as error:
    raise ImportError(f'{error.name} is not installed: pip install "cbn[check]"') from error

__all__ = ["GradientCheck", "check_batch_norm", "check_jvp", "check_vjp"]

MAX_PROBES = 64
DIFFERENCES = 1e-9  # what the differences can be trusted to, relative to the scale
STEP = 1e-2  # the largest step, relative to the length over which the function changes


@dataclass(frozen=True)
class GradientCheck:
    """The outcome of one check.

    Attributes
    ----------
    name : str
        What was checked, for instance ``"dx"``.
    error : float
        Largest relative error; nan or inf if a value was not finite.
    tolerance : float
        Largest error that passes.
    probes : int
        Number of values compared.
    """

    name: str
    error: float
    tolerance: float
    probes: int

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return bool(self.error <= self.tolerance)


def check_vjp(
    f: Callable[..., Any],
    vjp: Callable[..., Any],
    *args: ArrayLike | None,
    rng: int | np.random.Generator = 0,
    dy: Any = None,
    names: Sequence[str] | None = None,
    scales: Sequence[ArrayLike | None] | None = None,
    lengths: Sequence[ArrayLike | None] | None = None,
    tolerance: float | None = None,
    max_probes: int = MAX_PROBES,
) -> tuple[GradientCheck, ...]:
    """Check a backward function (vector-Jacobian product) against differences of `f`.

    Parameters
    ----------
    f : callable
        ``f(*args)`` returns an array or a tuple of arrays. It is called with float64 copies of
        the arguments, and has to be smooth within the step: a ReLU near its kink fails.
    vjp : callable
        ``vjp(dy, *args)`` returns a tuple with one gradient an argument; for a single argument
        also the gradient itself. It is called with the arguments in their own dtypes.
        A gradient that is None is not checked.
    *args : array_like of real numbers, or None
        Where to check. Integers become float64. None is handed on and not checked.
    rng : int or numpy.random.Generator
        Seed or source of `dy` and of the directions.
    dy : array_like or tuple of array_like, optional
        Gradient of the outputs, shaped like what `f` returns; handed to `vjp` as it is. By
        default standard normal numbers in the coarsest dtype of `args`.
    names : sequence of str, optional
        Names of the gradients; ``"d0"``, ``"d1"``, ... by default.
    scales : sequence of array_like or None, optional
        Per argument the magnitude of the terms its gradient adds up, broadcast to the argument.
    lengths : sequence of array_like or None, optional
        Per argument the distance over which `f` changes, broadcast to the argument; the largest
        step is a hundredth of it. By default the magnitude of each value, at most the standard
        deviation of the argument and at least a thousandth of that.
    tolerance : float, optional
        Largest relative error that passes. By default ``max(1e-9, 64 * finfo.eps)`` of the
        coarsest dtype of `args`: 1e-9 for float64, 7.6e-6 for float32. Where `f` is large and
        nearly flat, its own rounding hides the difference; a larger length helps.
    max_probes : int
        Largest number of probes an argument. A probe calls `f` about 11 times.

    Returns
    -------
    tuple of GradientCheck
        One a gradient, in the order of the arguments.

    Raises
    ------
    TypeError, ValueError
        If an argument is not real or not finite, or `dy` or a gradient has the wrong shape.

    Examples
    --------
    >>> import numpy as np
    >>> from cbn.gradcheck import check_vjp
    >>> a = np.random.default_rng(0).normal(size=(4, 3))
    >>> [check] = check_vjp(np.tanh, lambda dy, a: dy * (1 - np.tanh(a) ** 2), a)
    >>> check.passed, check.probes
    (True, 12)
    >>> [check] = check_vjp(np.tanh, lambda dy, a: dy * (1 - np.tanh(a)), a)
    >>> check.passed
    False
    """
    rng = np.random.default_rng(rng)
    args, points, dtype = _arguments(args)
    scales = [None] * len(args) if scales is None else scales
    lengths = [None] * len(args) if lengths is None else lengths
    names = [f"d{i}" for i in range(len(args))] if names is None else names
    tolerance = _default_tolerance(dtype) if tolerance is None else tolerance

    out = f(*points)
    dy = _normal(out, rng, dtype) if dy is None else dy
    start, weights = _flat(out), _flat(dy)
    if weights.shape != start.shape:
        raise ValueError(f"dy: expected {start.size} values, as f returns, got {weights.size}")
    gradients = vjp(dy, *args)
    if not isinstance(gradients, tuple | list):
        gradients = (gradients,)
    if len(gradients) != len(args):
        raise ValueError(f"vjp: expected {len(args)} gradients, got {len(gradients)}")

    checks = []
    for i, (point, gradient) in enumerate(zip(points, gradients, strict=True)):
        if point is None or gradient is None:
            continue
        if np.shape(gradient) != point.shape:
            raise ValueError(
                f"vjp: expected shape {point.shape} for gradient {i}, got {np.shape(gradient)}"
            )
        groups = _deal(point.size, max_probes, rng)
        length = _length(point) if lengths[i] is None else lengths[i]
        step = (rng.choice([-STEP, STEP], point.shape) * length).ravel()

        def along(t, probe, i=i, point=point, group=groups, step=step):
            moved = point.copy()
            moved.reshape(-1)[group[probe]] += t * step[group[probe]]
            return weights @ (_flat(f(*points[:i], moved, *points[i + 1 :])) - start)

        claimed = _sums(step * _flat(gradient), groups)
        scale = scales[i]
        if scale is not None:
            scale = _magnitudes(step * np.broadcast_to(scale, point.shape).ravel(), groups)
        error = _compare(along, claimed, scale, tolerance)
        checks.append(GradientCheck(names[i], error, tolerance, len(groups)))
    return tuple(checks)


def check_jvp(
    f: Callable[..., Any],
    jvp: Callable[..., Any],
    *args: ArrayLike | None,
    rng: int | np.random.Generator = 0,
    tangents: Sequence[ArrayLike | None] | None = None,
    name: str = "y_dot",
    scale: ArrayLike | None = None,
    tolerance: float | None = None,
    max_probes: int = MAX_PROBES,
) -> GradientCheck:
    """Check a forward derivative (Jacobian-vector product) against differences of `f`.

    The outputs, not the arguments, are dealt into groups here.

    Parameters
    ----------
    f : callable
        As in `check_vjp`.
    jvp : callable
        ``jvp(tangents, *args)`` returns the derivative of ``f(*args)`` along `tangents`, a tuple
        with one array (or None) an argument.
    *args, rng, tolerance
        As in `check_vjp`.
    tangents : sequence of array_like or None, optional
        Directions; the largest step is a hundredth of them. By default standard normal numbers
        times the default `lengths` of `check_vjp`, in the dtypes of the arguments.
    name : str
        Name of the result.
    scale : array_like, optional
        The magnitude of the terms of the derivative, shaped like the output of `f`.
    max_probes : int
        Largest number of groups of outputs. There are about 11 calls of `f` in all.

    Returns
    -------
    GradientCheck

    Examples
    --------
    >>> import numpy as np
    >>> from cbn.gradcheck import check_jvp
    >>> a = np.random.default_rng(0).normal(size=5)
    >>> check_jvp(np.sin, lambda tangents, a: np.cos(a) * tangents[0], a).passed
    True
    """
    rng = np.random.default_rng(rng)
    args, points, dtype = _arguments(args)
    tolerance = _default_tolerance(dtype) if tolerance is None else tolerance
    if tangents is None:
        tangents = tuple(
            None if a is None else (_length(a) * _normal(a, rng)).astype(a.dtype) for a in args
        )
    start = _flat(f(*points))
    y_dot = _flat(jvp(tangents, *args))
    if y_dot.shape != start.shape:
        raise ValueError(f"jvp: expected {start.size} values, as f returns, got {y_dot.size}")
    groups = _deal(start.size, max_probes, rng)
    signs = rng.choice([-1.0, 1.0], start.size)

    @lru_cache
    def all_groups(t):
        moved = [
            p if p is None or tangent is None else p + t * STEP * np.asarray(tangent, np.float64)
            for p, tangent in zip(points, tangents, strict=True)
        ]
        return _sums(signs * (_flat(f(*moved)) - start), groups)

    claimed = STEP * _sums(signs * y_dot, groups)
    if scale is not None:
        scale = STEP * _magnitudes(_flat(scale), groups)
    error = _compare(lambda t, probe: all_groups(t)[probe], claimed, scale, tolerance)
    return GradientCheck(name, error, tolerance, len(groups))


def check_batch_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int | None = None,
    eps: float = 1e-5,
    rng: int | np.random.Generator = 0,
    max_probes: int | None = None,
) -> tuple[GradientCheck, ...]:
    """Check the compiled batch norm and all its derivatives on the caller's own arrays.

    y is compared with `cbn.reference` in extended precision, everything else with differences of
    the compiled float64 functions. float32 and float16 derivatives are computed in their own
    dtype and compared with float64 differences at the same values.

    Parameters
    ----------
    x : array_like of real numbers
        Input of two or more dimensions.
    gamma, beta : array_like of shape (D,), optional
    axis : int, optional
        Channel axis, as in `cbn.batch_norm_forward`.
    eps : float
    rng : int or numpy.random.Generator
        Seed or source of dy, of the tangents and of the directions.
    max_probes : int, optional
        Largest number of probes a gradient. By default 64, and fewer (at least 2) for an x of more
        than 65536 elements, which keeps the time of a check within a few seconds per million.

    Returns
    -------
    tuple of GradientCheck
        ``y``; ``dx dgamma dbeta`` of the backward pass; ``y_dot`` of the JVP; ``g_dy g_x g_gamma``
        of the double backward. Without gamma or beta their gradients are left out.

    Raises
    ------
    TypeError, ValueError
        As `cbn.batch_norm_forward`; and ValueError if x is not finite, or if eps is 0 and a
        channel is constant: batch norm has no derivative there.

    Examples
    --------
    >>> import numpy as np
    >>> from cbn.gradcheck import check_batch_norm
    >>> x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    >>> checks = check_batch_norm(x, gamma=np.ones(3, np.float32))
    >>> [check.name for check in checks]
    ['y', 'dx', 'dgamma', 'y_dot', 'g_dy', 'g_x', 'g_gamma']
    >>> all(check.passed for check in checks)
    True
    """
    rng = np.random.default_rng(rng)
    y, cache = cbn.batch_norm_forward(x, gamma, beta, axis=axis, eps=eps)
    (x, gamma, beta), _, dtype = _arguments((x, gamma, beta), ("x", "gamma", "beta"))
    axis = -1 if axis is None else axis
    terms = _Terms(x, gamma, beta, axis, eps)
    if eps == 0 and cache.count > 1 and not terms.var.all():
        raise ValueError(
            f"x: channel {np.argmin(terms.var)} is constant and eps is 0, where batch norm has no "
            "derivative"
        )
    rounding = 8 * _spacing(dtype)
    if max_probes is None:
        max_probes = max(2, min(MAX_PROBES, 2**22 // max(x.size, 1)))

    def forward(x, gamma, beta):
        return cbn.batch_norm_forward(x, gamma, beta, axis=axis, eps=eps)

    def backward(dy, x, gamma):
        return cbn.batch_norm_backward(dy, forward(x, gamma, origin)[1])

    # A shift of x or beta changes no derivative, and near zero the differences round least.
    origin = None if beta is None else np.zeros(beta.shape)
    size = 1 if gamma is None else np.where(gamma == 0, 1, np.abs(gamma))
    args, lengths = (terms.near, gamma, origin), (terms.length, size, size)
    tangents = (terms.length * _normal(x, rng)).astype(x.dtype), *_normal((gamma, beta), rng)
    dy, *dd = _normal((x, x, gamma, beta), rng)  # dd: ddx, ddgamma, ddbeta
    options = {"rng": rng, "max_probes": max_probes, "tolerance": max(DIFFERENCES, rounding)}
    return (
        terms.check_forward(y, rounding),
        *check_vjp(
            lambda *args: forward(*args)[0],
            lambda dy, *_: cbn.batch_norm_backward(dy, cache),
            *args,
            dy=dy,
            names=("dx", "dgamma", "dbeta"),
            scales=terms.backward(dy),
            lengths=lengths,
            **options,
        ),
        check_jvp(
            lambda *args: forward(*args)[0],
            lambda tangents, *_: cbn.batch_norm_jvp(tangents[0], cache, *tangents[1:]),
            *args,
            tangents=tangents,
            scale=terms.jvp(*tangents),
            **options,
        ),
        *check_vjp(
            backward,
            lambda dd, dy, *_: cbn.batch_norm_double_backward(dd[0], dy, cache, *dd[1:]),
            *(dy, terms.near, gamma),
            dy=dd,
            names=("g_dy", "g_x", "g_gamma"),
            scales=terms.double_backward(dy, *dd),
            lengths=(1, terms.length, size),
            **options,
        ),
    )


class _Terms:
    """Magnitudes of the terms each result adds up: docs/math.md with every term's absolute."""

    def __init__(self, x, gamma, beta, axis, eps):
        self.axis, self.moved = axis, np.moveaxis(x, axis, -1).shape
        self.rows = prod(self.moved[:-1]), self.moved[-1]
        rows = self._rows(x).astype(np.longdouble)
        self.y, cache = reference.forward(rows, gamma, beta, eps)
        self.var, self.invstd, self.xhat = cache.var, cache.invstd, np.abs(cache.xhat)
        self.gamma, self.beta = np.abs(cache.gamma), 0 if beta is None else np.abs(beta)
        self.near = self._like_x(rows - rows[:1])
        # How far y can be expected to see x move.
        length = np.where(cache.invstd > 0, np.sqrt(cache.var + eps), 1)
        self.length = self._like_x(np.broadcast_to(length, rows.shape))

    def _rows(self, a):
        return np.moveaxis(np.asarray(a), self.axis, -1).reshape(self.rows)

    def _like_x(self, rows):
        return np.moveaxis(rows.reshape(self.moved), -1, self.axis).astype(np.float64)

    def _centred(self, a):
        return a + a.mean(0) + self.xhat * (self.xhat * a).mean(0)

    def check_forward(self, y, tolerance):
        error = np.abs(self._rows(y) - self.y)
        scale = self.gamma * (1 + self.xhat) + self.beta
        return GradientCheck("y", _largest_ratio(error, scale), tolerance, error.size)

    def backward(self, dy):
        dy = np.abs(self._rows(dy))
        dx = self.gamma * self.invstd * self._centred(dy)
        return self._like_x(dx), (dy * self.xhat).sum(0), dy.sum(0)

    def jvp(self, x_dot, gamma_dot, beta_dot):
        y_dot = self.gamma * self.invstd * self._centred(np.abs(self._rows(x_dot)))
        y_dot = y_dot + self.xhat * (0 if gamma_dot is None else np.abs(gamma_dot))
        return self._like_x(y_dot + (0 if beta_dot is None else np.abs(beta_dot)))

    def double_backward(self, dy, ddx, ddgamma, ddbeta):
        g_dy = self.jvp(ddx, ddgamma, ddbeta)
        dy, ddx = np.abs(self._rows(dy)), np.abs(self._rows(ddx))
        e_dy, e_ddx = self._centred(dy), self._centred(ddx)
        xhat = 1 + self.xhat  # where var << eps the terms vanish, the rounding of dx does not
        inner = xhat * (ddx * e_dy).mean(0)
        inner = inner + e_ddx * (xhat * dy).mean(0) + e_dy * (xhat * ddx).mean(0)
        g_x = self.gamma * self.invstd**2 * inner
        g_x = g_x + self.invstd * e_dy * (0 if ddgamma is None else np.abs(ddgamma))
        return g_dy, self._like_x(g_x), self.invstd * (ddx * e_dy).sum(0)


def _compare(function, claimed, scale, tolerance):
    """Return the largest relative error of the claimed d/dt function(t, probe) at t = 0."""
    unit = np.full(claimed.shape, np.abs(claimed).max(initial=0)) if scale is None else scale
    unit = np.where(np.isfinite(unit) & (unit > 0), unit, 1)

    @partial(np.vectorize, otypes=[float])
    def relative(t, probe):
        return function(t, int(probe)) / unit[int(probe)]

    tolerances = {"atol": tolerance / 10, "rtol": tolerance / 10}
    zeros, probes = np.zeros(claimed.size), np.arange(claimed.size)
    found = derivative(relative, zeros, args=(probes,), initial_step=1, tolerances=tolerances)
    measured = unit * found.df
    if scale is None:
        scale = np.maximum(np.abs(claimed), np.abs(measured)).max(initial=0)
    return _largest_ratio(np.abs(claimed - measured), scale)


def _largest_ratio(error, scale):
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(error == 0, 0, error / scale), initial=0))


def _deal(size, max_probes, rng):
    """Deal the indices below size into at most max_probes random groups."""
    return np.array_split(rng.permutation(size), min(size, max_probes)) if size else []


def _sums(terms, groups):
    return np.array([terms[group].sum() for group in groups])


def _magnitudes(terms, groups):
    """Root of the sum of squares: what terms with random signs add up to."""
    return np.sqrt(_sums(np.square(terms), groups))


def _spacing(dtype):
    return float(np.spacing(np.ones((), dtype)))


def _default_tolerance(dtype):
    return max(DIFFERENCES, 64 * _spacing(dtype))


def _arguments(args, names=None):
    """Return the arguments as real arrays, their float64 copies and their coarsest dtype."""
    names = names or [f"argument {i}" for i in range(len(args))]
    arrays = tuple(map(_real, names, args))
    points = [None if a is None else np.array(a, np.float64, order="C") for a in arrays]
    dtypes = [a.dtype for a in arrays if a is not None]
    if not dtypes:
        raise ValueError("args: expected at least one array, got none")
    return arrays, points, max(dtypes, key=_spacing)


def _real(name, arg):
    if arg is None:
        return None
    array = _check.real_array(name, arg)
    array = array.astype(_check.result_dtype(array.dtype), copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got nan or inf")
    return array


def _length(point):
    """Return how far f can be expected to see a value move."""
    magnitude = np.abs(point)
    spread = (np.std(point) or magnitude.max()) if point.size else 0
    return np.clip(magnitude, 1e-3 * spread, spread) if spread else 1


def _normal(a, rng, dtype=None):
    """Return standard normal numbers shaped like a (an array, None, or a tuple of these)."""
    if isinstance(a, tuple | list):
        return tuple(_normal(part, rng, dtype) for part in a)
    return None if a is None else np.asarray(rng.standard_normal(a.shape), dtype or a.dtype)


def _flat(a):
    """Join an array, or a tuple of arrays and None, into one float64 vector."""
    parts = a if isinstance(a, tuple | list) else (a,)
    return np.concatenate([np.asarray(p, np.float64).ravel() for p in parts if p is not None])
