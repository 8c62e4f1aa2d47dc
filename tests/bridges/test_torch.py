"""Beside torch: the shapes and options its own suite samples for batch_norm, and gradients."""

from __future__ import annotations

import numpy as np
import option_reference as reference
import pytest
from cases import generator, within
from tolerances import dbeta_bound, dgamma_bound, dx_bound, var_bound, y_bound

import cbn

torch = pytest.importorskip("torch")

# Shape, training, momentum, eps: sample_inputs_batch_norm of torch 2.13, but for inputs of rank 1.
SAMPLES = [
    ((5, 5, 5), True, 0.5, 0.6),
    ((3, 2, 4), False, -1.2, 1e-5),
    ((3, 1), True, 0.0, 1e-5),
    ((3, 2, 3, 4), True, -1.0, 0.5),
    ((3, 2, 3, 4), False, -1.0, 0.5),
    ((2, 1), False, 0.1, 1e-5),
    ((2, 1), True, 0.1, 1e-5),
    ((1, 2, 3), True, 0.1, 1e-5),
]
PARAMETERS = ["", "weight", "bias", "weight bias"]
MORE = [((64, 33), "NC"), ((6, 16, 14, 14), "NCHW"), ((4, 8, 3, 5, 7), "NCDHW")]

samples = pytest.mark.parametrize("shape, training, momentum, eps", SAMPLES, ids=str)


class Sample:
    """Values in -9 to 9, running statistics in 0 to 9, as torch's make_tensor draws them."""

    def __init__(self, shape, dtype, given="weight bias"):
        rng = generator("torch", shape, np.dtype(dtype).name, given)
        self.shape, self.dtype, channels = shape, np.dtype(dtype), shape[1]
        self.x, self.dy = rng.uniform(-9, 9, (2, *shape)).astype(dtype)
        gamma, beta = rng.uniform(-9, 9, (2, channels)).astype(dtype)
        self.gamma = gamma if "weight" in given else None
        self.beta = beta if "bias" in given else None
        self.mean, self.var = rng.uniform(0, 9, (2, channels)).astype(dtype)

    def torch(self, training, momentum=0.1, eps=1e-5, after=None, add=None, dtype=None):
        """y, the gradients of x, gamma, beta (and of what is added) and the running statistics."""

        def leaf(a):
            return None if a is None else torch.tensor(a, dtype=dtype, requires_grad=True)

        leaves = [leaf(a) for a in (self.x, self.gamma, self.beta, add)]
        running = [torch.tensor(a, dtype=dtype) for a in (self.mean, self.var)]
        y = torch.nn.functional.batch_norm(
            leaves[0], *running, *leaves[1:3], training=training, momentum=momentum, eps=eps
        )
        y = y if add is None else y + leaves[3]
        y = y if after is None else after(y)
        y.backward(torch.tensor(self.dy, dtype=dtype))
        gradients = [None if a is None else a.grad.numpy() for a in leaves]
        return y.detach().numpy(), gradients, [a.numpy() for a in running]

    def cbn(self, training, eps=1e-5, **options):
        if training:
            options |= {"axis": 1, "eps": eps}
            y, cache = cbn.batch_norm_forward(self.x, self.gamma, self.beta, **options)
            return y, cbn.batch_norm_backward(self.dy, cache), cache
        fixed = (self.x, self.mean, self.var, self.gamma)
        y = cbn.batch_norm_inference(*fixed, self.beta, axis=1, eps=eps, **options)
        return y, cbn.batch_norm_inference_backward(self.dy, *fixed, axis=1, eps=eps), None

    def reference(self, training, eps=1e-5, **options):
        options |= {"axis": 1, "eps": eps}
        if training:
            return reference.forward(self.x, self.gamma, self.beta, **options)
        return reference.fixed(self.x, self.mean, self.var, self.gamma, self.beta, **options)


def check(sample, training, momentum, eps):
    """cbn's bounds around what torch computes in float64, whose own error is of float64's size."""
    kind = sample.dtype
    y, gradients, _ = sample.cbn(training, eps)
    right, right_gradients, _ = sample.torch(training, momentum, eps, dtype=torch.float64)
    f, dy = sample.reference(training, eps), reference.rows(sample.dy, 1)
    own = 4 if kind == np.float64 else 1  # both sides err in float64
    bounds = [
        dx_bound(kind, dy, f.xhat, sample.gamma, f.invstd, f.share.astype(np.float64)),
        dgamma_bound(kind, dy, f.xhat),
        dbeta_bound(kind, dy),
    ]
    assert y.dtype == kind and y.shape == sample.shape
    bound = own * y_bound(kind, sample.gamma, sample.beta, f.xhat)
    within(reference.rows(y, 1), reference.rows(right, 1), bound)
    for found, expected, bound in zip(gradients, right_gradients[:3], bounds, strict=True):
        if expected is not None:
            assert found.dtype == kind and found.shape == expected.shape
            if found.ndim > 1:
                found, expected = reference.rows(found, 1), reference.rows(expected, 1)
            within(found, expected, own * bound)


@samples
@pytest.mark.parametrize("given", PARAMETERS)
def test_the_samples_of_torch(shape, training, momentum, eps, given, dtype):
    check(Sample(shape, dtype, given), training, momentum, eps)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape, name", MORE, ids=str)
def test_larger_batches(shape, name, training, dtype):
    check(Sample(shape, dtype), training, 0.1, 1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_inputs_of_one_dimension(training):
    """torch samples shape (0,), which has no channel axis: cbn says so."""
    with pytest.raises(ValueError, match="x: expected at least 2 dimensions"):
        if training:
            cbn.batch_norm_forward(np.empty(0))
        else:
            cbn.batch_norm_inference(np.empty(0), np.empty(0), np.empty(0))


@pytest.mark.parametrize(
    "shape, momentum, eps",
    [(shape, momentum, eps) for shape, training, momentum, eps in SAMPLES if training]
    + [(shape, momentum, 1e-5) for shape, _ in MORE for momentum in (0.1, 1.0)],
    ids=str,
)
def test_running_statistics(shape, momentum, eps, dtype):
    """With torch's direction of momentum and its correction of n / (n - 1)."""
    momentum = max(momentum, 0.25)  # torch samples -1, which weighs nothing
    sample = Sample(shape, dtype)
    _, _, (mean, var) = sample.torch(True, momentum, eps, dtype=torch.float64)
    found = sample.mean.astype(np.float64), sample.var.astype(np.float64)
    cbn.update_running_stats(*found, cbn.Moments.from_batch(sample.x, axis=1), momentum=momentum)
    within(found[1], var, 2 * var_bound(dtype, np.maximum(var, 100)))
    within(found[0], mean, 2 * var_bound(dtype, np.full(mean.shape, 9.0)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape, name", MORE, ids=str)
def test_half_types_beside_float32(shape, name, training, dtype):
    """x and dy in a half type, parameters in float32, as torch's autocast calls it."""
    kind = np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)
    sample = Sample(shape, np.float32)
    sample.x, sample.dy = sample.x.astype(kind), sample.dy.astype(kind)
    y, gradients, _ = sample.cbn(training)
    f = sample.reference(training)
    sample.x, sample.dy = sample.x.astype(np.float32), sample.dy.astype(np.float32)
    right, right_gradients, _ = sample.torch(training, dtype=torch.float64)
    dy = reference.rows(sample.dy, 1)
    bound = y_bound(kind, sample.gamma, sample.beta, f.xhat)
    within(reference.rows(y, 1), reference.rows(right, 1), bound)
    share = f.share.astype(np.float64)
    bound = dx_bound(kind, dy, f.xhat, sample.gamma, f.invstd, share)
    within(reference.rows(gradients[0], 1), reference.rows(right_gradients[0], 1), bound)
    within(gradients[1], right_gradients[1], dgamma_bound(np.float32, dy, f.xhat))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape, name", MORE, ids=str)
def test_add_and_relu(shape, name, residual, training, dtype):
    sample = Sample(shape, dtype)
    added = Sample(shape, dtype, "residual").x if residual else None
    right, right_gradients, _ = sample.torch(training, after=torch.relu, add=added)
    options = {"activation": "relu"} | ({"residual": added} if residual else {})
    y, gradients, _ = sample.cbn(training, **options)
    f = sample.reference(training, **options)
    scale = np.abs(sample.beta) + (9 if residual else 0)
    own = 8  # torch's own error, in float32 too
    bound = own * y_bound(dtype, sample.gamma, scale, f.xhat)
    within(reference.rows(y, 1), reference.rows(right, 1), bound)
    if training:
        expected = [a for a in right_gradients if a is not None]
        dy, share = reference.counted(sample.dy, f, y), f.share.astype(np.float64)
        bound = own * dx_bound(dtype, dy, f.xhat, sample.gamma, f.invstd, share)
        within(reference.rows(gradients[0], 1), reference.rows(expected[0], 1), bound)
        within(gradients[1], expected[1], own * dgamma_bound(dtype, dy, f.xhat))
        within(gradients[2], expected[2], own * dbeta_bound(dtype, dy))
        assert len(gradients) == len(expected)
        assert not residual or np.array_equal(gradients[3], expected[3])
