"""cbn.gradcheck: right derivatives pass, wrong ones fail, for users' functions and batch norm."""

from __future__ import annotations

import numpy as np
import pytest

import cbn
from cbn.gradcheck import check_batch_norm, check_jvp, check_vjp

RESULTS = ["y", "dx", "dgamma", "dbeta", "y_dot", "g_dy", "g_x", "g_gamma"]


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def linear(x, W, b):
    return x @ W + b


def linear_vjp(dy, x, W, b):
    return dy @ W.T, x.T @ dy, dy.sum(axis=0)


def failed(checks):
    return [check.name for check in checks if not check.passed]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_right_pair_passes(dtype):
    args = normal(5, 3, dtype=dtype), normal(3, 4, seed=1, dtype=dtype), normal(4, dtype=dtype)
    checks = check_vjp(linear, linear_vjp, *args, names=["dx", "dW", "db"])
    assert [check.name for check in checks] == ["dx", "dW", "db"]
    assert [check.probes for check in checks] == [15, 12, 4]
    assert not failed(checks)
    assert all(0 < check.error < check.tolerance for check in checks)


@pytest.mark.parametrize("wrong", range(3))
def test_only_the_wrong_gradient_fails(wrong):
    def vjp(dy, *args):
        gradients = [gradient.copy() for gradient in linear_vjp(dy, *args)]
        gradients[wrong].flat[-1] += 1e-6
        return gradients

    checks = check_vjp(linear, vjp, normal(5, 3), normal(3, 4, seed=1), normal(4))
    assert failed(checks) == [f"d{wrong}"]


@pytest.mark.parametrize("mistake", [lambda g: -g, np.zeros_like, lambda g: g * np.nan])
def test_gross_mistakes_fail(mistake):
    x = normal(6)
    (check,) = check_vjp(np.sin, lambda dy, x: mistake(dy * np.cos(x)), x)
    assert not check.passed
    assert not check_jvp(np.sin, lambda t, x: mistake(t[0] * np.cos(x)), x).passed


def test_every_coordinate_of_a_large_argument_is_checked():
    x = normal(60, 80)

    def vjp(dy, x):
        dx = dy * np.cos(x)
        dx[12, 34] *= 1.001
        return dx

    assert check_vjp(np.sin, lambda dy, x: dy * np.cos(x), x)[0].passed
    (check,) = check_vjp(np.sin, vjp, x)
    assert check.probes == 64 and not check.passed


def test_small_errors_everywhere_do_not_average_out():
    x = normal(60, 80)
    (check,) = check_vjp(np.sin, lambda dy, x: dy * np.cos(x) * (1 + 1e-7), x)
    assert not check.passed
    assert not check_jvp(np.sin, lambda t, x: t[0] * np.cos(x) * (1 + 1e-7), x).passed


@pytest.mark.parametrize(
    ("f", "df", "x"),
    [
        (np.exp, np.exp, 5 * normal(20)),
        (np.log, np.reciprocal, np.geomspace(1e-2, 1e1, 20)),
        (np.sin, np.cos, 1e3 + normal(20)),
        (np.sin, np.cos, np.zeros(4)),
        (lambda x: np.maximum(x, 0), lambda x: x > 0, normal(20)),
        (lambda x: 0 * x, lambda x: 0 * x, normal(20)),
        (np.tanh, lambda x: 1 - np.tanh(x) ** 2, np.array(0.3)),
        (np.sin, np.cos, np.zeros((3, 0))),
    ],
)
def test_steps_fit_the_argument(f, df, x):
    assert check_vjp(f, lambda dy, x: dy * df(x), x)[0].passed
    assert check_jvp(f, lambda t, x: t[0] * df(x), x).passed


def test_lengths_narrow_the_step():
    x = np.geomspace(1e-6, 1e6, 20)
    (check,) = check_vjp(np.log, lambda dy, x: dy / x, x, lengths=[x])
    assert check.passed


def test_scales_judge_what_cancels():
    def vjp(dy, x):
        return dy - dy.mean() + 1e-12

    def centre(x):
        return x - x.mean()

    x, dy = normal(6), 1 + 1e-9 * normal(6, seed=1)
    assert not check_vjp(centre, vjp, x, dy=dy)[0].passed
    assert check_vjp(centre, vjp, x, dy=dy, scales=[np.abs(dy) + 1])[0].passed


def test_several_outputs_and_arguments_left_out():
    def f(x, gamma, y):
        assert gamma is None
        return x * y, None, x.sum()

    def vjp(dys, x, gamma, y):
        return dys[0] * y + dys[2], None, dys[0] * x

    def jvp(tangents, x, gamma, y):
        return x * tangents[2] + tangents[0] * y, None, tangents[0].sum()

    args = normal(4), None, normal(4, seed=1)
    checks = check_vjp(f, vjp, *args)
    assert [check.name for check in checks] == ["d0", "d2"] and not failed(checks)
    assert check_jvp(f, jvp, *args).passed


def test_f_sees_float64_and_vjp_the_caller_s_dtypes():
    seen = set()

    def f(x):
        assert x.dtype == np.float64
        return x**2

    def vjp(dy, x):
        seen.update([dy.dtype, x.dtype])
        return 2 * dy * x

    assert check_vjp(f, vjp, normal(3, dtype=np.float32))[0].passed
    assert seen == {np.dtype(np.float32)}


def test_the_seed_repeats_a_check():
    args = np.sin, lambda dy, x: dy * np.cos(x), normal(9)
    assert check_vjp(*args, rng=3) == check_vjp(*args, rng=3) != check_vjp(*args, rng=4)


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (TypeError, "argument 0: expected a real dtype", lambda: check(np.array([1j]))),
        (TypeError, "argument 0: expected a real dtype", lambda: check(np.array(["a"]))),
        (ValueError, "argument 0: expected finite", lambda: check(np.array([1, np.nan]))),
        (ValueError, "at least one array", lambda: check(None)),
        (ValueError, "dy: expected 3 values", lambda: check(np.ones(3), dy=np.ones(4))),
        (ValueError, "gradient 0, got (1,)", lambda: check(np.ones(3), lambda dy, x: dy[:1])),
        (ValueError, "1 gradients, got 2", lambda: check(np.ones(3), lambda dy, x: (dy, dy))),
        (
            ValueError,
            "jvp: expected 3 values",
            lambda: check_jvp(np.sin, lambda t, x: t[0][:2], np.ones(3)),
        ),
    ],
)
def test_bad_input(error, text, call):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


def check(x, vjp=lambda dy, x: dy, **options):
    return check_vjp(np.sin, vjp, x, **options)


# Batch norm ---------------------------------------------------------------------------------------

CASES = {
    "one row": ((1, 3), None, 1e-5),
    "two rows, eps 0": ((2, 3), None, 0.0),
    "tall": ((50, 3), None, 1e-3),
    "wide": ((3, 70), None, 1e-12),
    "features first": ((4, 9), 0, 1e-5),
    "large eps": ((7, 5), None, 1e3),
    "channels first": ((4, 3, 2, 5), 1, 1e-5),
    "channels last": ((2, 3, 4), -1, 1e-5),
    "no channels": ((3, 0), None, 1e-5),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("case", CASES)
def test_batch_norm_passes(case, dtype):
    shape, axis, eps = CASES[case]
    x = (3 + normal(*shape)).astype(dtype)
    D = shape[-1 if axis is None else axis]
    gamma, beta = normal(D, seed=1, dtype=dtype), normal(D, seed=2, dtype=dtype)
    checks = check_batch_norm(x, gamma, beta, axis=axis, eps=eps)
    assert [check.name for check in checks] == RESULTS
    assert not failed(checks), checks


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("gamma", ["y", "dx", "dgamma", "y_dot", "g_dy", "g_x", "g_gamma"]),
        ("beta", ["y", "dx", "dbeta", "y_dot", "g_dy", "g_x"]),
        (None, ["y", "dx", "y_dot", "g_dy", "g_x"]),
    ],
)
def test_parameters_left_out(given, names):
    checks = check_batch_norm(normal(9, 3), **({given: normal(3, seed=1)} if given else {}))
    assert [check.name for check in checks] == names
    assert not failed(checks), checks


def test_hard_columns_pass():
    x = np.stack(
        [
            normal(40),
            normal(40) + 1e9,
            np.full(40, 5.0),
            1e-9 * normal(40),
            1e9 * normal(40),
            np.r_[1e6, normal(39)],
        ],
        axis=1,
    )
    gamma = np.array([1, 1e-9, 0, 1e9, -1, 3])
    checks = check_batch_norm(x, gamma, np.array([1e9, 1, 1, 0, 0, -1]))
    assert not failed(checks), checks


def test_integers_are_float64():
    checks = check_batch_norm(np.arange(12).reshape(4, 3) ** 2)
    assert not failed(checks) and checks[0].tolerance < 1e-14


@pytest.mark.parametrize(
    ("name", "which", "result"),
    [
        ("batch_norm_forward", 0, "y"),
        ("batch_norm_backward", 0, "dx"),
        ("batch_norm_backward", 1, "dgamma"),
        ("batch_norm_backward", 2, "dbeta"),
        ("batch_norm_jvp", None, "y_dot"),
        ("batch_norm_double_backward", 0, "g_dy"),
        ("batch_norm_double_backward", 1, "g_x"),
        ("batch_norm_double_backward", 2, "g_gamma"),
    ],
)
def test_one_wrong_number_of_batch_norm_fails(monkeypatch, name, which, result):
    right = getattr(cbn, name)

    def wrong(*args, **options):
        results = right(*args, **options)
        spoiled = results if which is None else results[which]
        if spoiled.dtype == np.float32:  # the differences are float64 and stay right
            spoiled.flat[-1] *= 1 + 1e-4
        return results

    monkeypatch.setattr(cbn, name, wrong)
    x, gamma, beta = (normal(*shape, dtype=np.float32) for shape in [(9, 3), (3,), (3,)])
    assert failed(check_batch_norm(x, gamma, beta)) == [result]


def test_a_constant_channel_without_eps_has_no_derivative():
    x = normal(5, 3)
    x[:, 2] = 4
    with pytest.raises(ValueError, match="channel 2 is constant and eps is 0"):
        check_batch_norm(x, eps=0)


def test_bad_batch_norm_input_names_the_argument():
    with pytest.raises(ValueError, match="x: expected finite"):
        check_batch_norm(np.array([[1, np.inf], [2, 3]]))
    with pytest.raises(ValueError, match="gamma: expected shape"):
        check_batch_norm(normal(4, 3), gamma=np.ones(2))
    with pytest.raises(ValueError, match="axis: expected"):
        check_batch_norm(normal(4, 3, 2))
