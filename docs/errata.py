"""Print the table of misprints in docs/math.md: every formula as printed and as mended.

Run ``python docs/errata.py``. Each row evaluates a formula of one of the sources literally, then
with the one change that mends it, and prints the largest absolute difference from the truth. The
truth is the complex-step derivative of the forward pass, exact to rounding. N=7, D=3, float64,
eps=1e-2, fixed seed. tests/house/test_errata.py holds every row to it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from cbn import reference

ROUNDING = 1e-13


def complex_step(f: Callable, a: np.ndarray) -> np.ndarray:
    """Return the derivative of f (real or array valued) in each entry of a, entry axes last."""
    step = 1e-30
    columns = []
    for i in np.ndindex(a.shape):
        moved = a.astype(complex)
        moved[i] += 1j * step
        columns.append(np.imag(f(moved)) / step)
    columns = np.stack(columns, axis=-1)
    return columns.reshape(columns.shape[:-1] + a.shape)


def data() -> SimpleNamespace:
    """Return the inputs, what forward makes of them, and the true derivatives."""
    rng = np.random.default_rng(7)
    n, features, eps = 7, 3, 1e-2
    x = 1 + 0.5 * rng.standard_normal((n, features))
    dy = rng.standard_normal((n, features))
    gamma, beta = 1 + rng.random(features), rng.standard_normal(features)

    def loss(x, gamma=gamma):
        return np.sum(dy * reference.forward(x, gamma, beta, eps)[0])

    def loss_at(mean, var):
        return np.sum(dy * (gamma * (x - mean) / np.sqrt(var + eps) + beta))

    mean, var = x.mean(0), x.var(0)
    xhat = (x - mean) / np.sqrt(var + eps)
    jacobian = complex_step(lambda x: reference.forward(x, gamma, beta, eps)[0], x)
    channel = np.arange(features)
    truth = {
        "dx": complex_step(loss, x),
        "dgamma": complex_step(lambda gamma: loss(x, gamma), gamma),
        "dvar": complex_step(lambda var: loss_at(mean, var), var),
        "dmean": complex_step(lambda mean: loss_at(mean, ((x - mean) ** 2).mean(0)), mean),
        "var": var,
        "J": jacobian[:, channel, :, channel],  # (D, N, N)
    }
    return SimpleNamespace(
        m=n, eps=eps, x=x, dy=dy, gamma=gamma, mean=mean, var=var, xhat=xhat,
        total=var + eps, dxhat=gamma * dy, truth=truth,
    )  # fmt: skip


class Row(NamedTuple):
    """One misprint; the functions map data() to the quantity ``of``."""

    where: str
    printed: str
    right: str
    of: str
    as_printed: Callable
    as_mended: Callable


def agarwal_10(d, dvar_power):
    dvar = np.sum(d.dxhat * (d.x - d.mean) * -0.5 * d.total**dvar_power, axis=0)
    dmean = np.sum(-d.dxhat / np.sqrt(d.total), axis=0)
    return d.dxhat / np.sqrt(d.total) + dvar * 2 * (d.x - d.mean) / d.m + dmean / d.m


def agarwal_12(d, last_sign):
    last = np.sum(d.gamma * d.dy * last_sign / np.sqrt(d.total), axis=0)
    middle = np.sum(d.gamma * d.dy / d.total * (d.x - d.mean) / np.sqrt(d.total), axis=0)
    return d.gamma / np.sqrt(d.total) * d.dy - (d.x - d.mean) / d.m * middle - last / d.m


def agarwal_13(d, factor):
    delta = d.gamma * d.dy / np.sqrt(d.total)
    return delta - factor / d.m * np.sum(d.xhat * delta, axis=0) - np.sum(delta, axis=0) / d.m


def course_dvar(d, summand):
    return -0.5 * np.sum(summand * d.total**-1.5, axis=0)


def course_dmean(d, sign):
    return np.sum(d.dxhat * sign / np.sqrt(d.total), axis=0)


def course_dx(d, dvar=True, dmean=True):
    direct = d.dxhat / np.sqrt(d.total)
    var_path = course_dvar(d, d.dxhat * (d.x - d.mean)) * 2 / d.m * (d.x - d.mean)
    return direct + dvar * var_path + dmean * course_dmean(d, -1) / d.m


def course_second_to_last(d, power):
    var_path = np.sum(d.dxhat * (d.x - d.mean) * d.total**power, axis=0) * (d.x - d.mean) / d.m
    return d.dxhat / np.sqrt(d.total) + course_dmean(d, -1) / d.m - var_path


def course_last_but_one(d, sign):
    scale = d.total**-0.5
    var_path = scale / d.m * d.xhat * np.sum(d.dxhat * d.xhat, axis=0)
    return d.dxhat * scale - scale / d.m * np.sum(d.dxhat, axis=0) + sign * var_path


def course_last(d, dxhat):
    sums = np.sum(dxhat, axis=0) + d.xhat * np.sum(dxhat * d.xhat, axis=0)
    return d.total**-0.5 / d.m * (d.m * dxhat - sums)


def kadulin_jacobian(d, same_row):
    """Return J from the case i != j everywhere and ``same_row(bracket)`` on the diagonal."""
    centred, power = (d.x - d.mean).T, d.total[:, None, None]
    bracket = centred[:, :, None] * centred[:, None, :] / power
    values = -1 / d.m * (1 + bracket)
    rows = np.arange(d.m)
    values[:, rows, rows] = same_row(bracket)[:, rows, rows]
    return d.gamma[:, None, None] * power**-0.5 * values


def kadulin_reverse(d, direct):
    others = -(d.x - d.mean) * d.total**-1.5 / d.m, -(d.total**-0.5) / d.m
    var_path = others[0] * np.sum(d.dy * (d.x - d.mean), axis=0)
    return d.gamma * (direct * d.dy + var_path + others[1] * np.sum(d.dy, axis=0))


def blog_gradient(d, dy_in_third_sum):
    third = d.xhat * np.sum(dy_in_third_sum * d.xhat, axis=0)
    return d.gamma / np.sqrt(d.total) * (d.dy - np.sum(d.dy, axis=0) / d.m - third / d.m)


BLOG_LINE = (
    "gamma*(1.0/np.sqrt(sigmasq + eps))*(dl_dy - (1.0/N)*np.sum(dl_dy, axis=0)"
    " - (1.0/N)*x_norm*np.sum(dl_dy*x_norm, axis=0)"
)


def blog_line(d, code):
    names = {"sigmasq": d.var, "dl_dy": d.dy, "x_norm": d.xhat, "N": d.m}
    return eval(code, {"np": np, "gamma": d.gamma, "eps": d.eps, **names})


def answer(d, product):
    """Evaluate the answer's last formula; 1^T is a row of ones."""
    ones = np.ones((1, d.m))
    sums = ones @ d.dxhat + d.xhat * product(ones)
    return 1 / (d.m * np.sqrt(d.total)) * (d.m * d.dxhat - sums)


ROWS = [
    Row(
        "Agarwal (5)",
        r"$\mathrm{d}\gamma = \mathrm{dy} \hat{x}$",
        "summed over the batch, (8)",
        "dgamma",
        lambda d: d.dy * d.xhat,
        lambda d: np.sum(d.dy * d.xhat, axis=0),
    ),
    Row(
        "Agarwal (8)",
        r"$(\mathrm{var}+\varepsilon)^{2}$",
        r"$(\mathrm{var}+\varepsilon)^{-3/2}$, (10)",
        "dx",
        lambda d: agarwal_10(d, 2),
        lambda d: agarwal_10(d, -1.5),
    ),
    Row(
        "Agarwal (12)",
        r"last term $-\frac1m\sum\gamma \mathrm{dy}_i \frac{-1}{\sqrt{\mathrm{var}+\varepsilon}}$",
        r"one minus sign, not two",
        "dx",
        lambda d: agarwal_12(d, -1),
        lambda d: agarwal_12(d, 1),
    ),
    Row(
        "Agarwal (13)",
        r"$\frac{x_i-\mathrm{mean}}{m}\sum\hat{x}_i\delta$",
        r"$\frac{\hat{x}_i}{m}\sum\hat{x}_k\delta_k$, (15)",
        "dx",
        lambda d: agarwal_13(d, d.x - d.mean),
        lambda d: agarwal_13(d, d.xhat),
    ),
    Row(
        "Course, variance",
        r"$\frac{1}{m}\sum(\hat{x}_i-\mathrm{mean})^2$, and so below",
        r"$x_i$ for $\hat{x}_i$, (2)",
        "var",
        lambda d: np.mean((d.xhat - d.mean) ** 2, axis=0),
        lambda d: np.mean((d.x - d.mean) ** 2, axis=0),
    ),
    Row(
        "Course, its (1)",
        r"$\mathrm{dvar} = -\frac12\sum(\hat{x}_i-\mathrm{mean})(\mathrm{var}+\varepsilon)^{-3/2}$",
        r"$\mathrm{dxhat}_i (x_i-\mathrm{mean})$ in the sum, (10)",
        "dvar",
        lambda d: course_dvar(d, d.xhat - d.mean),
        lambda d: course_dvar(d, d.dxhat * (d.x - d.mean)),
    ),
    Row(
        "Course, line above its (2)",
        r"$\sum \mathrm{dxhat}_i \frac{1}{\sqrt{\mathrm{var}+\varepsilon}}$",
        r"$\frac{-1}{\sqrt{\mathrm{var}+\varepsilon}}$, as in its (2)",
        "dmean",
        lambda d: course_dmean(d, 1),
        lambda d: course_dmean(d, -1),
    ),
    Row(
        "Course, “required”, last line",
        r"$\mathrm{dx}_i$ of two terms, no $\mathrm{dvar}$",
        r"the third term, (12)",
        "dx",
        lambda d: course_dx(d, dvar=False),
        course_dx,
    ),
    Row(
        "Course, “From (1), (2)”",
        r"$\mathrm{dx}_i$ of two terms, no $\mathrm{dmean}$",
        r"the third term, (12)",
        "dx",
        lambda d: course_dx(d, dmean=False),
        course_dx,
    ),
    Row(
        "Course, two lines before the last",
        r"$(\mathrm{var}+\varepsilon)^{-1/2}$ on the variance path",
        r"$(\mathrm{var}+\varepsilon)^{-3/2}$",
        "dx",
        lambda d: course_second_to_last(d, -0.5),
        lambda d: course_second_to_last(d, -1.5),
    ),
    Row(
        "Course, line before the last",
        r"$+$ on the $\hat{x}_i$ term",
        r"$-$, (13)",
        "dx",
        lambda d: course_last_but_one(d, 1),
        lambda d: course_last_but_one(d, -1),
    ),
    Row(
        r"Course, $\mathrm{dxhat}$",
        r"$\mathrm{dy}_i \delta$ (read as Agarwal's $\delta$)",
        r"$\mathrm{dy}_i \gamma$, (9)",
        "dx",
        lambda d: course_last(d, d.dy * (d.gamma * d.dy / np.sqrt(d.total))),
        lambda d: course_last(d, d.dy * d.gamma),
    ),
    Row(
        "Kadulin, case $i=j$",
        r"$1-\frac1N$ for $-\frac1N$ before the whole bracket",
        r"only the first term gains 1, (21)",
        "J",
        lambda d: kadulin_jacobian(d, lambda bracket: (1 - 1 / d.m) * (1 + bracket)),
        lambda d: kadulin_jacobian(d, lambda bracket: 1 - 1 / d.m * (1 + bracket)),
    ),
    Row(
        "Kadulin, backward mode",
        r"$\partial\hat{x}_i/\partial x_j = 1$ for $i=j$",
        r"$\mathrm{invstd}$, the direct path of (12)",
        "dx",
        lambda d: kadulin_reverse(d, 1),
        lambda d: kadulin_reverse(d, d.total**-0.5),
    ),
    Row(
        "Blog, gradient, first line",
        r"third sum without $\mathrm{dy}_k$",
        r"with $\mathrm{dy}_k$, (16)",
        "dx",
        lambda d: blog_gradient(d, 1),
        lambda d: blog_gradient(d, d.dy),
    ),
    Row(
        "Blog, the one line of Python",
        r"a closing parenthesis is missing",
        r"`)` at the end",
        "dx",
        lambda d: blog_line(d, BLOG_LINE),
        lambda d: blog_line(d, BLOG_LINE + ")"),
    ),
    Row(
        "Answer, last formula",
        r"$1^T \mathrm{dxhat} \hat{x}$, a matrix product",
        r"$1^T(\mathrm{dxhat}\circ\hat{x})$, (18)",
        "dx",
        lambda d: answer(d, lambda ones: ones @ d.dxhat @ d.xhat),
        lambda d: answer(d, lambda ones: ones @ (d.dxhat * d.xhat)),
    ),
]


def error(formula: Callable, of: str, d: SimpleNamespace) -> float | str:
    """Return the largest error of the formula, or why there is no number."""
    try:
        value = formula(d)
    except SyntaxError:
        return "syntax error"
    except ValueError:
        return "shapes do not match"
    if value.shape != d.truth[of].shape:
        return f"shape {value.shape}"
    return float(np.max(np.abs(value - d.truth[of])))


def show(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.3g}" if value > ROUNDING else f"< {ROUNDING:.0e}"


def table() -> str:
    d = data()
    lines = ["| where | printed | right | of | as printed | mended |", "|---|---|---|---|---|---|"]
    for row in ROWS:
        errors = [show(error(f, row.of, d)) for f in (row.as_printed, row.as_mended)]
        cells = [row.where, row.printed, row.right, f"`{row.of}`", *errors]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
