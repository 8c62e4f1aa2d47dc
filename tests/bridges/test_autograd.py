"""cbn.interop.autograd beside autograd's own derivatives of the formula, and its check_grads."""

from __future__ import annotations

import numpy as np
import pytest
from cases import generator, same_bytes
from tolerances import REFERENCE_RTOL

import cbn

pytest.importorskip("autograd", reason="autograd is not installed: pip install --group interop")
anp = pytest.importorskip("autograd.numpy")
check_grads = pytest.importorskip("autograd.test_util").check_grads
bridge = pytest.importorskip("cbn.interop.autograd")

from autograd import grad, hessian, make_hvp, make_jvp  # noqa: E402

EPS = 1e-3
FORMS = [((9, 4), None), ((3, 4, 5), 1), ((2, 3, 2, 4), -1)]
forms = pytest.mark.parametrize("shape, axis", FORMS, ids=str)
modes = pytest.mark.parametrize("fixed", [False, True], ids=["training", "inference"])
GIVEN = [(0, 1, 2), (0, 1), (0, 2), (0,), (2,)]


class Case:
    """Arguments, and functions of x, gamma and beta: the bridge's and the formula."""

    def __init__(self, shape, axis, fixed, dtype=np.float64):
        rng = generator("autograd", shape)
        self.axis, self.fixed = axis, fixed
        channels = shape[-1 if axis is None else axis]
        self.x = rng.normal(3, 2, shape).astype(dtype)
        self.mean, self.gamma, self.beta = rng.normal(1, 1, (3, channels)).astype(dtype)
        self.var = rng.uniform(0.5, 2, channels).astype(dtype)
        self.args = self.x, self.gamma, self.beta

    def bridge(self, x, gamma=None, beta=None):
        options = {"axis": self.axis, "eps": EPS}
        if self.fixed:
            given = (x, self.mean, self.var, gamma, beta)
            return bridge.batch_norm_inference(*given, **options)
        return bridge.batch_norm(x, gamma, beta, **options)

    def formula(self, x, gamma=None, beta=None):
        axis = (x.ndim - 1 if self.axis is None else self.axis) % x.ndim
        others = tuple(i for i in range(x.ndim) if i != axis)
        shape = tuple(-1 if i == axis else 1 for i in range(x.ndim))
        mean = anp.mean(x, others, keepdims=True)
        var = anp.mean((x - mean) ** 2, others, keepdims=True)  # anp.var lacks a forward mode
        if self.fixed:
            mean, var = self.mean.reshape(shape), self.var.reshape(shape)
        y = (x - mean) / anp.sqrt(var + EPS)
        y = y if gamma is None else y * anp.reshape(gamma, shape)
        return y if beta is None else y + anp.reshape(beta, shape)


def loss(y):
    return anp.sum(anp.sin(y) * (1 + anp.arange(y.size).reshape(y.shape) % 3))


def close(found, right):
    assert found.dtype == right.dtype == np.float64 and found.shape == right.shape
    atol = 10 * REFERENCE_RTOL * (1 + abs(right).max())
    np.testing.assert_allclose(found, right, rtol=0, atol=atol)


@forms
@modes
@pytest.mark.parametrize("argnum", [0, 1, 2])
def test_the_gradients_are_those_of_the_formula(shape, axis, fixed, argnum):
    case = Case(shape, axis, fixed)
    close(case.bridge(*case.args), case.formula(*case.args))
    close(*(grad(lambda *a, f=f: loss(f(*a)), argnum)(*case.args) for f in functions(case)))


@forms
@modes
def test_hessian_vector_products_and_tangents(shape, axis, fixed):
    case = Case(shape, axis, fixed)
    direction = generator("autograd direction", shape).normal(size=shape)
    close(*(make_hvp(lambda x, f=f: loss(f(x)))(case.x)[0](direction) for f in functions(case)))
    close(*(make_jvp(f)(*case.args)(direction)[1] for f in functions(case)))
    reverse_over_forward = (
        grad(lambda x, f=f: make_jvp(lambda x: loss(f(x)))(x)(direction)[1])(case.x)
        for f in functions(case)
    )
    close(*reverse_over_forward)


@modes
def test_the_hessian(fixed):
    case = Case((6, 3), None, fixed)
    close(*(hessian(lambda x, f=f: loss(f(x)))(case.x) for f in functions(case)))


def functions(case):
    return case.bridge, case.formula


@modes
@pytest.mark.parametrize("mode", ["rev", "fwd", "both"])
@pytest.mark.parametrize("numbers", GIVEN, ids=str)
def test_check_grads_of_autograd(fixed, mode, numbers):
    case = Case((7, 3), None, fixed)
    moves = ["rev", "fwd"] if mode == "both" else [mode]
    check_grads(case.bridge, numbers, modes=moves, order=2)(*case.args)


@modes
def test_check_grads_without_parameters(fixed):
    case = Case((3, 2, 4), 1, fixed)
    check_grads(case.bridge, modes=["rev", "fwd"], order=2)(case.x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_first_derivatives_have_cbns_bytes(dtype):
    case = Case((33, 5), None, False, dtype)
    y, cache = cbn.batch_norm_forward(*case.args, eps=EPS)
    same_bytes(case.bridge(*case.args), y)
    dy = generator("autograd dy").normal(size=y.shape).astype(dtype)
    dx, dgamma, dbeta = cbn.batch_norm_backward(dy, cache)
    for i, right in enumerate((dx, dgamma, dbeta)):
        same_bytes(grad(lambda *a: anp.sum(case.bridge(*a) * dy), i)(*case.args), right)
    same_bytes(make_jvp(case.bridge)(*case.args)(dy)[1], cbn.batch_norm_jvp(dy, cache))


def test_constant_channels_have_no_tangent_but_that_of_beta():
    x = np.full((4, 2), 3.0)
    hvp = make_hvp(lambda x: anp.sum(bridge.batch_norm(x, eps=0.0) ** 2))(x)[0]
    assert not hvp(np.arange(8.0).reshape(4, 2)).any()


def test_bad_arguments():
    x, ones = np.ones((4, 3)), np.ones(3)
    with pytest.raises(ValueError, match="gamma: expected shape"):
        grad(lambda x: anp.sum(bridge.batch_norm(x, np.ones(4))))(x)
    with pytest.raises(ValueError, match="axis: expected the channel axis"):
        bridge.batch_norm(np.ones((2, 3, 4)))
    with pytest.raises(TypeError, match="mean: expected a constant"):
        grad(lambda mean: anp.sum(bridge.batch_norm_inference(x, mean, ones)))(ones)
    with pytest.raises(ValueError, match="var: expected values >= 0"):
        bridge.batch_norm_inference(x, ones, -ones)


def test_a_third_derivative_is_refused():
    def third(x):
        second = make_hvp(lambda x: loss(bridge.batch_norm(x)))
        return grad(lambda x: anp.sum(second(x)[0](np.ones((5, 2)))))(x)

    with pytest.raises(NotImplementedError):
        third(generator("autograd third").normal(size=(5, 2)))
