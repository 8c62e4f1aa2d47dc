"""cbn.interop.jax beside JAX's own derivatives of the formula, and its check_grads."""

from __future__ import annotations

import numpy as np
import pytest
from cases import generator, same_bytes, within
from tolerances import REFERENCE_RTOL, dbeta_bound, dgamma_bound, dx_bound, y_bound

import cbn
from cbn import reference

jax = pytest.importorskip("jax", reason="jax is not installed: pip install --group interop")
jnp = jax.numpy
check_grads = pytest.importorskip("jax.test_util").check_grads
bridge = pytest.importorskip("cbn.interop.jax")

EPS = 1e-3
FORMS = [((9, 4), None), ((3, 4, 5), 1), ((2, 3, 2, 4), -1)]
forms = pytest.mark.parametrize("shape, axis", FORMS, ids=str)
GIVEN = [(True, True), (True, False), (False, True), (False, False)]
given = pytest.mark.parametrize("scaled, shifted", GIVEN)


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def arguments(shape, axis, dtype=np.float64, scaled=True, shifted=True):
    """x, mean, var, gamma and beta."""
    rng = generator("jax", shape)
    channels = shape[-1 if axis is None else axis]
    x = rng.normal(3, 2, shape).astype(dtype)
    mean, gamma, beta = rng.normal(1, 1, (3, channels)).astype(dtype)
    var = rng.uniform(0.5, 2, channels).astype(dtype)
    return x, mean, var, gamma if scaled else None, beta if shifted else None


def formula(x, gamma, beta, axis, mean=None, var=None):
    """What a JAX user would write."""
    axis = (x.ndim - 1 if axis is None else axis) % x.ndim
    others = tuple(i for i in range(x.ndim) if i != axis)
    mean = x.mean(others) if mean is None else mean
    var = x.var(others) if var is None else var

    def along(a):
        return jnp.expand_dims(a, others)

    y = (x - along(mean)) / jnp.sqrt(along(var) + EPS)
    y = y if gamma is None else y * along(gamma)
    return (y if beta is None else y + along(beta)), mean, var


def close(found, expected):
    """Two derivations of one formula in float64, of numbers of one size."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype == np.float64 and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=10 * REFERENCE_RTOL * (1 + abs(b).max()))


def loss(function):
    """A scalar in which every result has a gradient of its own."""
    return lambda *args: sum(
        jnp.sum(jnp.sin((i + 1) * a)) for i, a in enumerate(jax.tree.leaves(function(*args)))
    )


def training(axis):
    return lambda x, gamma, beta: bridge.batch_norm(x, gamma, beta, axis=axis, eps=EPS)


def inference(axis):
    return lambda *args: bridge.batch_norm_inference(*args, axis=axis, eps=EPS)


@forms
@given
def test_training_is_the_formula_and_its_gradients(x64, shape, axis, scaled, shifted):
    x, _, _, *parameters = arguments(shape, axis, scaled=scaled, shifted=shifted)
    args, numbers = (x, *parameters), [i for i, a in enumerate((x, *parameters)) if a is not None]
    found, right = training(axis), lambda *args: formula(*args, axis)
    close(found(*args), right(*args))
    for wrap in (lambda f: f, jax.jit):
        gradients = (wrap(jax.grad(loss(f), numbers))(*args) for f in (found, right))
        close(*gradients)


@forms
@given
def test_inference_is_the_formula_and_its_gradients(x64, shape, axis, scaled, shifted):
    args = arguments(shape, axis, scaled=scaled, shifted=shifted)
    numbers = [i for i, a in enumerate(args) if a is not None]

    def right(x, mean, var, gamma, beta):
        return formula(x, gamma, beta, axis, mean, var)[0]

    close(inference(axis)(*args), right(*args))
    close(*(jax.grad(loss(f), numbers)(*args) for f in (inference(axis), right)))


@forms
def test_second_derivatives(x64, shape, axis):
    x, mean, var, gamma, beta = arguments(shape, axis)

    def right(*args):
        return formula(*args, axis)

    def right_inference(x, mean, var, gamma, beta):
        return formula(x, gamma, beta, axis, mean, var)[0]

    def of_gradient(function, numbers):
        gradient = jax.grad(loss(function), numbers)
        return jax.jit(jax.grad(loss(gradient), numbers))

    args = x, gamma, beta
    close(*(of_gradient(f, (0, 1, 2))(*args) for f in (training(axis), right)))
    args = x, mean, var, gamma, beta
    numbers = tuple(range(5))
    close(*(of_gradient(f, numbers)(*args) for f in (inference(axis), right_inference)))


def test_check_grads_of_jax(x64):
    x, mean, var, gamma, beta = arguments((7, 3), None)
    check_grads(jax.jit(training(None)), (x, gamma, beta), order=2, modes=["rev"])
    check_grads(inference(None), (x, mean, var, gamma, beta), order=2, modes=["rev"])


@pytest.mark.parametrize("order", [1, 2])
def test_vmap_is_a_loop(x64, order):
    x, mean, var, gamma, beta = arguments((6, 4), None)
    xs = jnp.stack([x, x + 1, 2 * x])

    def through(f):
        return f if order == 1 else jax.grad(loss(f))

    for f, args in ((training(None), (gamma, beta)), (inference(None), (mean, var, gamma, beta))):
        for wrap in (lambda f: f, jax.jit):
            found = wrap(jax.vmap(through(f), (0, *[None] * len(args))))(xs, *args)
            right = [through(f)(x, *args) for x in xs]
            close(found, jax.tree.map(lambda *a: jnp.stack(a), *right))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_types_have_cbns_bytes(half):
    x, _, _, gamma, beta = arguments((33, 5), None, np.float32)
    x, dy = x.astype(half), generator("jax half").normal(size=x.shape).astype(half)
    (y, mean, var), back = jax.vjp(training(None), jnp.asarray(x), gamma, beta)
    right, cache = cbn.batch_norm_forward(x, gamma, beta, eps=EPS)
    same_bytes(np.asarray(y), right)
    same_bytes(np.asarray(mean), cache.mean.astype(np.float32))
    same_bytes(np.asarray(var), cache.var.astype(np.float32))
    found = back((jnp.asarray(dy), jnp.zeros_like(mean), jnp.zeros_like(var)))
    for a, b in zip(found[1:], cbn.batch_norm_backward(dy, cache)[1:], strict=True):
        same_bytes(np.asarray(a), b)


def test_float32_keeps_the_accuracy_without_x64():
    """The float64 statistics reach backward although JAX has float32 alone."""
    x, _, _, gamma, beta = arguments((64, 5), None, np.float32)
    x = x + np.float32(1e5)
    dy = generator("jax float32").normal(size=x.shape).astype(np.float32)
    y, back = jax.vjp(lambda *args: training(None)(*args)[0], x, gamma, beta)
    dx, dgamma, dbeta = map(np.asarray, back(jnp.asarray(dy)))
    right_y, f = reference.forward(*(a.astype(np.float64) for a in (x, gamma, beta)), EPS)
    right = reference.backward(dy.astype(np.float64), f)
    within(np.asarray(y), right_y, y_bound(np.float32, gamma, beta, f.xhat))
    within(dx, right[0], dx_bound(np.float32, dy, f.xhat, gamma, f.invstd))
    within(dgamma, right[1], dgamma_bound(np.float32, dy, f.xhat))
    within(dbeta, right[2], dbeta_bound(np.float32, dy))


def test_no_gradient_is_asked_for_twice():
    """Statistics that no loss looks at cost no pass: one callback forward and one backward."""
    x, _, _, gamma, beta = arguments((6, 4), None, np.float32)
    gradient = jax.grad(lambda x: training(None)(x, gamma, beta)[0].sum())
    assert str(jax.make_jaxpr(gradient)(x)).count("pure_callback") == 2
    both = jax.grad(lambda x: sum(a.sum() for a in training(None)(x, gamma, beta)))
    assert str(jax.make_jaxpr(both)(x)).count("pure_callback") == 3


def test_large_arrays_do_not_wait_for_themselves(run_python):
    """In a process of its own: a deadlock would be killed there."""
    code = """
import jax, numpy as np
from cbn.interop.jax import batch_norm
x = jax.numpy.asarray(np.random.default_rng(0).normal(size=(2048, 2048)).astype(np.float32))
f = jax.jit(jax.grad(lambda x: (batch_norm(2 * x)[0] ** 3).sum()))
for _ in range(3):
    f(x).block_until_ready()
    batch_norm(x + 1)[0].block_until_ready()
print("done")
"""
    run = run_python("-c", code)
    assert run.stdout == "done\n", run.stderr


def test_integers_and_options():
    x = jnp.arange(12).reshape(4, 3)
    y, _, _ = bridge.batch_norm(x, num_threads=1)
    assert y.dtype == np.float32
    same_bytes(np.asarray(y), cbn.batch_norm_forward(np.asarray(x, np.float32))[0])
    assert bridge.batch_norm(jnp.ones((3, 0)))[0].shape == (3, 0)


def test_statistics_past_float32_are_inf_and_y_is_not():
    x = np.array([[1e30], [-1e30]], np.float32)
    y, mean, var = bridge.batch_norm(x)
    assert np.array_equal(y, [[1], [-1]]) and mean == 0 and np.isinf(var)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_bad_arguments_raise_when_traced(wrap):
    x, ones = jnp.ones((4, 3)), jnp.ones(3)

    def call(x, *args, **options):
        return wrap(lambda x: bridge.batch_norm(x, *args, **options))(x)

    with pytest.raises(ValueError, match="gamma: expected shape"):
        call(x, jnp.ones(4))
    with pytest.raises(TypeError, match="beta: expected a real floating dtype"):
        call(x, ones, jnp.arange(3))
    with pytest.raises(ValueError, match="axis: expected the channel axis"):
        call(jnp.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="x: expected at least one value per channel"):
        call(jnp.ones((0, 3)))
    with pytest.raises(TypeError, match="x: expected a real dtype"):
        call(x + 1j)
    with pytest.raises(ValueError, match="eps: expected a finite number"):
        call(x, eps=-1.0)
    with pytest.raises(TypeError, match="eps: expected a real number"):
        wrap(lambda eps: bridge.batch_norm(x, eps=eps))(jnp.float32(1) + x[0])
    with pytest.raises(ValueError, match="num_threads: expected an integer >= 1"):
        call(x, num_threads=0)
    with pytest.raises(TypeError, match="mean: expected an array"):
        bridge.batch_norm_inference(x, None, ones)
    with pytest.raises(ValueError, match="var: expected shape"):
        bridge.batch_norm_inference(x, ones, jnp.ones(2))


def test_what_there_is_not_says_so(x64):
    x = jnp.asarray(arguments((5, 2), None)[0])
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(bridge.batch_norm, (x,), (x,))

    def third(x):
        return jax.grad(lambda x: loss(jax.grad(loss(jax.grad(loss(bridge.batch_norm)))))(x))(x)

    with pytest.raises(ValueError, match="Pure callbacks do not support JVP"):
        third(x)
