"""cbn/layer.py: batch renormalization beside its paper."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from cases import generator, same_bytes
from reference_case import DIFFERENCE_RTOL, slope

from cbn import BatchNorm

N, C = 12, 4


def batch(seed=0):
    rng = generator("renorm", seed)
    return rng.normal(3, 2, (N, C)), rng.normal(0.3, 1, (N, C))


def renormalized(x, dy, gamma, beta, mean, var, eps, r_max, d_max):
    """Ioffe 2017, algorithm 1 and its gradients as printed, in float64."""
    m = len(x)
    mean_b = x.mean(axis=0)
    std_b = np.sqrt(eps + ((x - mean_b) ** 2).mean(axis=0))
    std = np.sqrt(var + eps)
    r = np.clip(std_b / std, 1 / r_max, r_max)
    d = np.clip((mean_b - mean) / std, -d_max, d_max)
    xhat = (x - mean_b) / std_b * r + d
    dxhat = dy * gamma
    dstd_b = np.sum(dxhat * (x - mean_b) * -r / std_b**2, axis=0)
    dmean_b = np.sum(dxhat * -r / std_b, axis=0)
    dx = dxhat * r / std_b + dstd_b * (x - mean_b) / (m * std_b) + dmean_b / m
    return gamma * xhat + beta, dx, np.sum(xhat * dy, axis=0), dy.sum(axis=0), r, d


@pytest.mark.parametrize("limits", [(3.0, 5.0), (1.1, 0.2), (1.0, 0.0), (1e9, 1e9)])
@pytest.mark.parametrize("affine", [True, False])
def test_renorm_is_the_papers(affine, limits):
    r_max, d_max = limits
    bn = BatchNorm(C, renorm=True, r_max=r_max, d_max=d_max, affine=affine, dtype=np.float64)
    rng = generator("renorm", limits)
    gamma, beta = np.ones(C), np.zeros(C)
    if affine:
        bn.gamma[...], bn.beta[...] = gamma, beta = rng.normal(1, 1, (2, C))
    for seed in range(3):
        x, dy = batch(seed)
        right = renormalized(
            *(x, dy, gamma, beta, bn.running_mean.copy(), bn.running_var.copy()),
            *(bn.eps, r_max, d_max),
        )
        plain = copy.deepcopy(bn)
        plain.renorm = False
        plain(x)
        np.testing.assert_allclose(bn(x), right[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(bn.backward(dy), right[1], rtol=1e-11, atol=1e-11)
        same_bytes(bn.state_dict(), plain.state_dict())
        if affine:
            np.testing.assert_allclose(bn.dgamma, right[2], rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(bn.dbeta, right[3], rtol=1e-12, atol=1e-12)
    assert (bn.dgamma is None) is not affine


def test_renorm_gradients_are_slopes_at_fixed_r_and_d():
    bn = BatchNorm(C, renorm=True, r_max=1.5, d_max=1.0, dtype=np.float64)
    rng = generator("renorm slopes")
    gamma, beta = rng.normal(1, 1, (2, C))
    bn.gamma[...], bn.beta[...] = gamma, beta
    x, dy = batch()
    running = bn.running_mean.copy(), bn.running_var.copy()
    *_, r, d = renormalized(x, dy, gamma, beta, *running, bn.eps, 1.5, 1.0)
    bn(x)
    dx = bn.backward(dy)
    x_dot, (gamma_dot, beta_dot) = rng.normal(size=x.shape), rng.normal(size=(2, C))

    def loss(x, gamma, beta):
        xhat = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + bn.eps)
        return np.sum(dy * (gamma * (xhat * r + d) + beta))

    for actual, by in (
        (np.sum(dx * x_dot), lambda t: loss(x + t * x_dot, gamma, beta)),
        (bn.dgamma @ gamma_dot, lambda t: loss(x, gamma + t * gamma_dot, beta)),
        (bn.dbeta @ beta_dot, lambda t: loss(x, gamma, beta + t * beta_dot)),
    ):
        assert abs(actual - slope(by)) <= DIFFERENCE_RTOL * np.sum(np.abs(dy))


@pytest.mark.parametrize(
    ("name", "value"),
    [("r_max", 0.9), ("d_max", -1), ("running_mean", np.zeros(C + 1)), ("running_var", [1.0] * C)],
)
def test_a_bad_attribute_changes_nothing(name, value):
    bn = BatchNorm(C, renorm=True, dtype=np.float64)
    x, dy = batch()
    bn(x)
    before, dx, good = bn.state_dict(), bn.backward(dy), getattr(bn, name)
    setattr(bn, name, value)
    with pytest.raises((ValueError, TypeError), match=f"^{name}: expected"):
        bn(x)
    setattr(bn, name, good)
    same_bytes(bn.state_dict(), before)
    same_bytes(bn.backward(dy), dx)


def test_evaluation_is_plain():
    bn, plain = BatchNorm(C, renorm=True), BatchNorm(C)
    x, dy = batch()
    for one in (bn, plain):
        one(x)
        one.eval()
    same_bytes(bn(x), plain(x))
    same_bytes(bn.backward(dy), plain.backward(dy))
    same_bytes(bn.dgamma, plain.dgamma)
