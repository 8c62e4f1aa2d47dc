"""cbn/layer.py and cbn/fold.py beside PyTorch's layers and functions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from cases import generator, same_bytes

import cbn
from cbn import BatchNorm, fold

torch = pytest.importorskip("torch")

C = 5
SHAPES = {"1d": (17, C), "1d of length 6": (4, C, 6), "2d": (3, C, 4, 5)}
LAYERS = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}


def pair(shape, dtype=np.float32, **options):
    """cbn's layer and PyTorch's with the same parameters, which are not 1 and 0."""
    bn = BatchNorm(C, axis=1, dtype=dtype, **options)
    theirs = LAYERS[len(shape)](C, **options).to(getattr(torch, np.dtype(dtype).name))
    if bn.gamma is not None:
        rng = generator("parameters")
        bn.gamma[...], bn.beta[...] = rng.normal(1, 0.5, C), rng.normal(0, 1, C)
        theirs.load_state_dict({k: torch.from_numpy(a) for k, a in bn.state_dict().items()})
    return bn, theirs


def run(theirs, x, dy):
    """y, dx, and the gradients of the parameters, if there are any."""
    x = torch.tensor(x, requires_grad=True)
    theirs.zero_grad()
    y = theirs(x)
    y.backward(torch.tensor(dy))
    parameters = [parameter.grad.numpy() for parameter in theirs.parameters()]
    return [y.detach().numpy(), x.grad.numpy(), *parameters]


def agree(bn, theirs, dtype):
    """Equal states, up to the roundings of both."""
    ours = bn.state_dict()
    for name, value in theirs.state_dict().items():
        tolerance = 100 * np.finfo(dtype).eps
        np.testing.assert_allclose(
            ours.pop(name), value.numpy(), rtol=tolerance, atol=tolerance, err_msg=name
        )
    assert not ours


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"momentum": 0.3, "eps": 1e-2},
        {"affine": False},
        {"track_running_stats": False},
    ],
    ids=str,
)
def test_six_training_steps_and_evaluation(shape, options, dtype):
    bn, theirs = pair(shape, dtype, **options)
    rng = generator("steps", shape)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == np.float32 else {"rtol": 1e-11, "atol": 1e-11}
    for step in range(8):
        if step == 6:
            bn.eval(), theirs.eval()
        x, dy = rng.normal(1, 3, shape).astype(dtype), rng.normal(0.2, 1, shape).astype(dtype)
        y, dx = bn(x), bn.backward(dy)
        ours = [y, dx] if bn.gamma is None else [y, dx, bn.dgamma, bn.dbeta]
        for actual, right in zip(ours, run(theirs, x, dy), strict=True):
            np.testing.assert_allclose(actual, right, **close)
        agree(bn, theirs, dtype)
        if bn.gamma is not None:  # one step of gradient descent on both
            bn.gamma -= bn.dtype.type(0.1) * bn.dgamma
            bn.beta -= bn.dtype.type(0.1) * bn.dbeta
            with torch.no_grad():
                for parameter in theirs.parameters():
                    parameter -= 0.1 * parameter.grad


def test_state_dicts_both_ways():
    x = generator("state").normal(2, 3, (9, C)).astype(np.float32)
    _, theirs = pair(x.shape)
    theirs(torch.tensor(x))
    bn = BatchNorm(C)
    bn.load_state_dict(theirs.state_dict())
    same_bytes(bn.state_dict(), {k: t.numpy() for k, t in theirs.state_dict().items()})
    bn(x)
    fresh = torch.nn.BatchNorm1d(C)
    fresh.load_state_dict({k: torch.from_numpy(a) for k, a in bn.state_dict().items()})
    same_bytes(bn.state_dict(), {k: t.numpy() for k, t in fresh.state_dict().items()})
    assert list(bn.state_dict()) == list(fresh.state_dict())


def test_the_same_words_for_one_value():
    ours, theirs = BatchNorm(4), torch.nn.BatchNorm1d(4)
    with pytest.raises(ValueError) as mine:
        ours(np.ones((1, 4)))
    with pytest.raises(ValueError) as right:
        theirs(torch.ones(1, 4))
    assert str(mine.value) == str(right.value).replace("torch.Size([1, 4])", "(1, 4)")


def test_repr_begins_as_theirs():
    begin = repr(BatchNorm(4))[:-1].split(", affine")[0]
    assert repr(torch.nn.BatchNorm1d(4)).replace("BatchNorm1d", "BatchNorm").startswith(begin)


# Folding ------------------------------------------------------------------------------------------


def statistics(theirs):
    """PyTorch's batch norm with statistics and parameters that are not 0 and 1."""
    generator_ = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (theirs.running_mean, theirs.weight, theirs.bias):
            if tensor is not None:
                tensor.normal_(generator=generator_)
        theirs.running_var.uniform_(0.5, 3, generator=generator_)
    return theirs.eval()


def arrays(layer, bn):
    given = (layer.weight, layer.bias, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    return [None if a is None else a.detach().numpy() for a in given]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", ["linear", "conv1d", "conv2d", "conv3d", "transposed"])
def test_folding_is_theirs(name, affine, bias):
    layer, bn = {
        "linear": (torch.nn.Linear(3, C, bias), torch.nn.BatchNorm1d(C, affine=affine)),
        "conv1d": (torch.nn.Conv1d(3, C, 2, bias=bias), torch.nn.BatchNorm1d(C, affine=affine)),
        "conv2d": (torch.nn.Conv2d(3, C, 3, bias=bias), torch.nn.BatchNorm2d(C, affine=affine)),
        "conv3d": (torch.nn.Conv3d(3, C, 2, bias=bias), torch.nn.BatchNorm3d(C, affine=affine)),
        "transposed": (
            torch.nn.ConvTranspose2d(3, C, 3, bias=bias),
            torch.nn.BatchNorm2d(C, affine=affine),
        ),
    }[name]
    statistics(bn)
    function, options = fold.into_conv, {}
    if name == "linear":
        function = fold.into_linear
        if not affine:
            bn.weight, bn.bias = (
                torch.nn.Parameter(torch.ones(C)),
                torch.nn.Parameter(torch.zeros(C)),
            )
        fused = torch.nn.utils.fuse_linear_bn_eval(layer.eval(), bn)
    else:
        if name == "transposed":
            function, options = fold.into_conv_transpose, {"groups": 1}
        fused = torch.nn.utils.fuse_conv_bn_eval(layer.eval(), bn, name == "transposed")
    weight, new_bias = function(*arrays(layer, bn), bn.eps, **options)
    np.testing.assert_allclose(weight, fused.weight.detach().numpy(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(new_bias, fused.bias.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_folded_grouped_convolution_does_both(transposed, groups):
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    conv = kind(8, 12, (2, 3), stride=2, padding=1, groups=groups).double().eval()
    bn = statistics(torch.nn.BatchNorm2d(12)).double()
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    function = fold.into_conv_transpose if transposed else fold.into_conv
    options = {"groups": groups} if transposed else {}
    weight, bias = function(*arrays(conv, bn), bn.eps, **options)
    folded = copy.deepcopy(conv)
    folded.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    right, actual = bn(conv(x)).detach().numpy(), folded(x).detach().numpy()
    np.testing.assert_allclose(actual, right, rtol=1e-12, atol=1e-12)


def test_a_linear_layer_after_batch_norm():
    bn, linear = statistics(torch.nn.BatchNorm1d(C)), torch.nn.Linear(C, 3)
    weight, bias = fold.before_linear(*arrays(linear, bn), bn.eps)
    x = generator("before").normal(size=(20, C)).astype(np.float32)
    right = linear(bn(torch.tensor(x))).detach().numpy()
    np.testing.assert_allclose(x @ weight.T + bias, right, rtol=1e-4, atol=1e-5)


def test_the_running_variance_of_a_batch_of_two():
    """Unbiased, as theirs: the factor is 2 there."""
    mean, var = np.zeros(C, np.float32), np.ones(C, np.float32)
    x = generator("two").normal(size=(2, C)).astype(np.float32)
    cbn.update_running_stats(mean, var, cbn.Moments.from_batch(x))
    right = torch.nn.BatchNorm1d(C)
    right(torch.tensor(x))
    np.testing.assert_allclose(mean, right.running_mean.numpy(), rtol=1e-6)
    np.testing.assert_allclose(var, right.running_var.numpy(), rtol=1e-6)
