"""cbn/layer.py: BatchNorm beside the functions it calls, its state, and what leaves it alone."""

from __future__ import annotations

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from cases import generator, same_bytes
from hypothesis import given
from hypothesis import strategies as st

import cbn
from cbn import BatchNorm

N, C = 12, 4


def batch(seed=0, shape=(N, C), dtype=np.float32):
    rng = generator("layer", seed, shape)
    return rng.normal(3, 2, shape).astype(dtype), rng.normal(0.3, 1, shape).astype(dtype)


def trained(**options):
    """A layer after two batches and one backward, with parameters of its own."""
    bn = BatchNorm(C, **options)
    if bn.gamma is not None:
        rng = generator("parameters")
        bn.gamma[...], bn.beta[...] = rng.normal(1, 0.5, C), rng.normal(0, 1, C)
    for seed in (1, 2):
        x, dy = batch(seed, dtype=bn.dtype)
        bn(x)
    bn.backward(dy)
    return bn


def contents(bn):
    """Every array and number of a layer, as bytes."""
    arrays = ("gamma", "beta", "dgamma", "dbeta", "running_mean", "running_var")
    state = {name: getattr(bn, name) for name in arrays}
    state = {name: None if a is None else (a.dtype, a.tobytes()) for name, a in state.items()}
    return state | {"batches": bn.num_batches_tracked, "training": bn.training}


# What it computes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
def test_training_is_the_functions(affine, dtype):
    bn = trained(affine=affine, dtype=dtype, eps=1e-3)
    x, dy = batch(3, dtype=dtype)
    y, cache = cbn.batch_norm_forward(x, bn.gamma, bn.beta, eps=1e-3)
    dx, dgamma, dbeta = cbn.batch_norm_backward(dy, cache)
    mean, var = bn.running_mean.copy(), bn.running_var.copy()
    cbn.update_running_stats(mean, var, cbn.Moments.from_batch(x))
    same_bytes(bn(x), y)
    same_bytes(bn.backward(dy), dx)
    same_bytes(bn.running_mean, mean)
    same_bytes(bn.running_var, var)
    assert bn.num_batches_tracked == 3
    if affine:
        same_bytes(bn.dgamma, dgamma)
        same_bytes(bn.dbeta, dbeta)
    else:
        assert bn.gamma is bn.beta is bn.dgamma is bn.dbeta is None


@pytest.mark.parametrize("affine", [True, False])
def test_evaluation_is_the_functions(affine, dtype):
    bn = trained(affine=affine, dtype=dtype).eval()
    before = contents(bn)
    x, dy = batch(3, dtype=dtype)
    statistics = bn.running_mean, bn.running_var
    same_bytes(bn(x), cbn.batch_norm_inference(x, *statistics, bn.gamma, bn.beta))
    assert contents(bn) == before
    dx, dgamma, dbeta = cbn.batch_norm_inference_backward(dy, x, *statistics, bn.gamma)
    same_bytes(bn.backward(dy), dx)
    if affine:
        same_bytes(bn.dgamma, dgamma)
        same_bytes(bn.dbeta, dbeta)
    else:
        assert bn.dgamma is bn.dbeta is None


def test_evaluation_of_a_row_needs_no_others():
    bn = trained().eval()
    x = batch(3)[0]
    same_bytes(np.concatenate([bn(row[None]) for row in x]), bn(x))


@pytest.mark.parametrize(("shape", "axis"), [((3, C, 5, 2), 1), ((3, 5, C), -1), ((2, C, 7), 1)])
def test_any_axis(shape, axis):
    bn, rows = BatchNorm(C, axis=axis), BatchNorm(C)
    x, dy = batch(shape=shape)

    def flat(a):
        return np.moveaxis(a, axis, -1).reshape(-1, C)

    for _ in range(2):
        same_bytes(np.ascontiguousarray(flat(bn(x))), rows(flat(x)))
        same_bytes(np.ascontiguousarray(flat(bn.backward(dy))), rows.backward(flat(dy)))
        bn.eval(), rows.eval()
    same_bytes(bn.state_dict(), rows.state_dict())


def test_x_of_another_dtype():
    bn = BatchNorm(C)
    x, dy = batch(dtype=np.float64)
    assert bn(x).dtype == bn.backward(dy).dtype == np.float64
    assert {a.dtype for a in (bn.dgamma, bn.dbeta, bn.running_mean)} == {np.dtype(np.float32)}
    assert bn(x.astype(np.float16)).dtype == np.float16
    assert bn([[1, 2, 3, 4], [2, 3, 4, 6]]).dtype == np.float64


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, ">f4"])
def test_parameters_of_other_dtypes(kind):
    bn = trained(dtype=kind)
    native = np.dtype(kind).newbyteorder("=")
    assert {a.dtype for a in (bn.gamma, bn.dbeta, bn.running_mean, bn.running_var)} == {native}
    assert bn.eval()(batch()[0].astype(kind)).dtype == native


def test_threads_do_not_matter():
    x, dy = batch(shape=(3000, C))
    results = []
    for threads in (None, 1, 2):
        bn = BatchNorm(C, num_threads=threads)
        results.append([bn(x), bn.backward(dy), bn.eval()(x), *bn.state_dict().values()])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            same_bytes(a, b)


@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize("missing", ["gamma", "beta"])
def test_one_parameter_alone(missing, renorm):
    """gamma or beta set to None, as PyTorch's bias=False."""
    bn, whole = (BatchNorm(C, renorm=renorm, r_max=1.5) for _ in range(2))
    setattr(bn, missing, None)
    x, dy = batch()
    for mode in (True, False):
        for one in (bn, whole):
            one.train(mode)
        same_bytes(bn(x), whole(x))
        same_bytes(bn.backward(dy), whole.backward(dy))
        other = {"gamma": "dbeta", "beta": "dgamma"}[missing]
        same_bytes(getattr(bn, other), getattr(whole, other))
        assert getattr(bn, f"d{missing}") is None
    assert {"gamma": "weight", "beta": "bias"}[missing] not in bn.state_dict()


def test_without_running_statistics_the_batch_normalizes_always():
    bn = BatchNorm(C, track_running_stats=False)
    assert bn.running_mean is bn.running_var is bn.num_batches_tracked is None
    x, dy = batch()
    y = bn(x)
    dx = bn.backward(dy)
    same_bytes(bn.eval()(x), y)
    same_bytes(bn.backward(dy), dx)
    assert set(bn.state_dict()) == {"weight", "bias"}
    with pytest.raises(ValueError, match="^Expected more than 1 value per channel"):
        bn(x[:1])


# Running statistics -------------------------------------------------------------------------------


def test_no_momentum_is_the_plain_average():
    bn = BatchNorm(C, momentum=None, dtype=np.float64)
    every = [batch(seed, dtype=np.float64)[0] for seed in range(5)]
    for x in every:
        bn(x)
    np.testing.assert_allclose(bn.running_mean, np.mean(every, axis=(0, 1)), rtol=1e-14)
    var = np.mean([x.var(axis=0, ddof=1) for x in every], axis=0)
    np.testing.assert_allclose(bn.running_var, var, rtol=1e-14)


@pytest.mark.parametrize("correction", [0, 1])
def test_correction(correction):
    bn = BatchNorm(C, momentum=1.0, correction=correction, dtype=np.float64)
    x = batch(dtype=np.float64)[0]
    bn(x)
    np.testing.assert_allclose(bn.running_var, x.var(axis=0, ddof=correction), rtol=1e-14)


def test_decay_is_the_weight_of_the_old_value():
    same_bytes(trained(decay=0.75).state_dict(), trained(momentum=0.25).state_dict())
    with pytest.raises(TypeError, match="^decay: expected None beside momentum=0.1, got 0.9"):
        BatchNorm(C, momentum=0.1, decay=0.9)


@given(st.integers(2, 9), st.integers(0, 5), st.floats(0, 1), st.sampled_from([0, 0.5, 1]))
def test_running_statistics_are_averages(rows, channels, momentum, correction):
    rng = generator(rows, channels, momentum)
    bn = BatchNorm(channels, momentum=momentum, correction=correction, dtype=np.float64)
    mean, var = np.zeros(channels), np.ones(channels)
    for _ in range(3):
        x = rng.normal(2, 3, (rows, channels))
        bn(x)
        mean = (1 - momentum) * mean + momentum * x.mean(axis=0)
        new = ((x - x.mean(axis=0)) ** 2).sum(axis=0) / (rows - correction)
        var = (1 - momentum) * var + momentum * new
    np.testing.assert_allclose(bn.running_mean, mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(bn.running_var, var, rtol=1e-12)


# What must not change -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "error", "text"),
    [
        (
            np.ones((1, C)),
            ValueError,
            r"more than 1 value per channel .*, got input size \(1, 4\)$",
        ),
        (np.ones((N, C + 1)), ValueError, "^x: expected 4 channels along axis 1, got 5"),
        (np.ones((0, C)), ValueError, "^x: expected at least one value"),
        (np.ones(C), ValueError, "^x: expected at least 2 dimensions"),
        (np.ones((2, C, 3)), ValueError, "^axis: expected the channel axis"),
        (np.ones((N, C), complex), TypeError, "^x: expected a real dtype"),
        ([[1, 2], [3]], ValueError, "^x: expected an array"),
    ],
    ids=["one", "channels", "none", "1-D", "3-D", "complex", "ragged"],
)
def test_a_bad_call_changes_nothing(x, error, text):
    bn, twin = trained(), trained()
    for mode in (True, False):
        if len(x) == 1 and not mode:
            continue  # one row is welcome in evaluation
        with pytest.raises(error, match=text):
            bn.train(mode)(x)
    bn.train()
    assert contents(bn) == contents(twin)
    dy = batch(5)[1]
    same_bytes(bn.backward(dy), twin.backward(dy))


def test_the_error_for_one_value_is_torchs():
    for shape, axis in (((1, C), None), ((1, C, 1, 1), 1)):
        with pytest.raises(ValueError) as caught:
            BatchNorm(C, axis=axis)(np.ones(shape))
        text = f"Expected more than 1 value per channel when training, got input size {shape}"
        assert str(caught.value) == text
    assert BatchNorm(C, axis=1)(np.ones((1, C, 2))).shape == (1, C, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("running_var", np.ones(C + 1, np.float32)),
        ("momentum", 7),
        ("correction", N),
        ("gamma", np.ones(C + 1)),
        ("eps", -1.0),
    ],
)
def test_a_bad_attribute_changes_nothing(name, value):
    bn, twin = trained(), trained()
    good = getattr(bn, name)
    setattr(bn, name, value)
    x, dy = batch(5)
    with pytest.raises((ValueError, TypeError), match=f"^{name}: expected"):
        bn(x)
    setattr(bn, name, good)
    assert contents(bn) == contents(twin)
    same_bytes(bn.backward(dy), twin.backward(dy))


def test_a_bad_backward_changes_nothing():
    bn, twin = trained(), trained()
    with pytest.raises(ValueError, match="^dy: expected shape"):
        bn.backward(np.ones((N, C + 1)))
    with pytest.raises(TypeError, match="^dy: expected"):
        bn.backward(np.ones((N, C), complex))
    assert contents(bn) == contents(twin)
    dy = batch(5)[1]
    same_bytes(bn.backward(dy), twin.backward(dy))


def test_backward_needs_a_call():
    bn = BatchNorm(C)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="^backward: expected a call of the layer before"):
            bn.backward(np.ones((N, C)))
        with pytest.raises(ValueError):
            bn(np.ones((1, C)))  # fails, so there still is none


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_batch_that_is_not_finite(bad):
    bn = trained(skip_nonfinite=True)
    before = bn.state_dict()
    x, dy = batch(3)
    x[3, 1] = bad
    y = bn(x)
    same_bytes(bn.state_dict(), before)
    others = [0, 2, 3]
    assert np.isnan(y[:, 1]).all() and np.isfinite(y[:, others]).all()
    assert np.isfinite(bn.backward(dy)[:, others]).all()
    bn(batch(4)[0])
    assert bn.num_batches_tracked == 3 and np.isfinite(bn.running_var).all()

    poisoned = trained()
    poisoned(x)
    assert np.isnan(poisoned.running_var[1]) and poisoned.num_batches_tracked == 3


def test_backward_is_of_the_last_call_whatever_came_since():
    """Parameters, statistics and the mode may change between forward and backward."""
    x, dy = batch(5)
    for mode in (True, False):
        bn, twin = trained().train(mode), trained().train(mode)
        same_bytes(bn(x), twin(x))
        for name in ("gamma", "beta", "running_mean", "running_var"):
            getattr(bn, name)[...] = 7
        bn.train(not mode)
        same_bytes(bn.backward(dy), twin.backward(dy))
        same_bytes(bn.dgamma, twin.dgamma)
        same_bytes(bn.backward(dy), twin.backward(dy))


# Modes, copies, text ------------------------------------------------------------------------------


def test_modes():
    bn = BatchNorm(C)
    assert bn.training is True
    assert bn.eval() is bn and bn.training is False
    assert bn.train() is bn and bn.training is True
    assert bn.train(False) is bn and bn.training is False


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))])
def test_copies(copied):
    bn = trained(momentum=None, reuse_buffers=True, axis=-1, renorm=True)
    twin = copied(bn)
    assert contents(twin) == contents(bn) and repr(twin) == repr(bn)
    with pytest.raises(RuntimeError, match="^backward: expected a call"):
        twin.backward(batch()[1])
    x, dy = batch(3)
    same_bytes(twin(x), bn(x))
    same_bytes(twin.backward(dy), bn.backward(dy))
    assert contents(twin) == contents(bn)
    bn(x)
    assert contents(twin) != contents(bn)


def test_a_pickle_has_no_data():
    bn = BatchNorm(C, reuse_buffers=True)
    bn(batch(shape=(10_000, C))[0])
    assert len(pickle.dumps(bn)) < 2000


def test_repr():
    usual = "BatchNorm(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True"
    assert repr(BatchNorm(4)) == usual + ")"
    assert repr(BatchNorm(4, axis=1, dtype=np.float64)) == usual + ", axis=1, dtype=float64)"
    assert repr(BatchNorm(4, correction=0, activation="relu")) == (
        usual + ", correction=0, activation=relu)"
    )


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"num_features": -1}, ValueError, "^num_features: expected .* >= 0, got -1"),
        ({"num_features": 2.0}, TypeError, "^num_features: expected .*, got 2.0"),
        ({"num_features": True}, TypeError, "^num_features: expected .*, got True"),
        ({"eps": -1}, ValueError, "^eps: expected"),
        ({"momentum": 2}, ValueError, "^momentum: expected"),
        ({"decay": -1}, ValueError, "^decay: expected"),
        ({"axis": 1.0}, TypeError, "^axis: expected"),
        ({"dtype": int}, TypeError, "^dtype: expected .*, got int64"),
        ({"dtype": "what"}, TypeError, "^dtype: expected .*, got 'what'"),
        ({"correction": np.inf}, ValueError, "^correction: expected"),
        ({"num_threads": 0}, ValueError, "^num_threads: expected"),
        ({"renorm": True, "r_max": 0.5}, ValueError, "^r_max: expected .*, got 0.5"),
        ({"renorm": True, "d_max": -1}, ValueError, "^d_max: expected .*, got -1"),
        ({"renorm": True, "d_max": "1"}, TypeError, "^d_max: expected .*, got '1'"),
        ({"renorm": True, "track_running_stats": False}, ValueError, "^renorm: expected"),
    ],
)
def test_bad_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        BatchNorm(**{"num_features": C} | arguments)


# Its own buffers ----------------------------------------------------------------------------------


def test_reused_buffers_are_reused():
    bn, plain = BatchNorm(C, reuse_buffers=True), BatchNorm(C)
    x, dy = batch()
    y, dx = bn(x), bn.backward(dy)
    same_bytes(y, plain(x))
    same_bytes(dx, plain.backward(dy))
    assert not np.shares_memory(y, dx)
    x2, dy2 = batch(1)
    assert bn(x2) is y and bn.backward(dy2) is dx
    same_bytes(y, plain(x2))
    same_bytes(dx, plain.backward(dy2))
    assert bn.eval()(x) is y
    other = bn(x.astype(np.float64))
    assert other.dtype == np.float64 and not np.shares_memory(other, y)
    assert bn(x[:5]).shape == (5, C)
    assert plain(x) is not plain(x)


def test_a_buffer_is_not_written_while_it_is_an_input():
    bn, plain = BatchNorm(C, reuse_buffers=True), BatchNorm(C)
    x, dy = batch()
    twice, right = bn(bn(x)), plain(plain(x))
    same_bytes(twice, right)
    same_bytes(bn.backward(bn.backward(dy)), plain.backward(plain.backward(dy)))
    reverse = bn.backward(dy)[::-1]
    same_bytes(bn.backward(reverse), plain.backward(plain.backward(dy)[::-1]))
    dx = bn.backward(dy)
    bn(dx), plain(dx.copy())
    for _ in range(2):
        same_bytes(bn.backward(dy), plain.backward(dy))
