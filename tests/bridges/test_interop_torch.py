"""cbn.interop.torch beside PyTorch's own modules and function."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install --group torch")

from cases import same_bytes  # noqa: E402

import cbn  # noqa: E402
import cbn.interop.torch as interop  # noqa: E402

nn = torch.nn
theirs = nn.functional.batch_norm

C = 6
FORMATS = {
    "NC": ((9, C), torch.contiguous_format),
    "NCL": ((4, C, 5), torch.contiguous_format),
    "NCHW": ((3, C, 4, 5), torch.contiguous_format),
    "NHWC": ((3, C, 4, 5), torch.channels_last),
    "NCDHW": ((2, C, 3, 4, 5), torch.contiguous_format),
    "NDHWC": ((2, C, 3, 4, 5), torch.channels_last_3d),
}
NAMES = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
OPTIONS = [
    {},
    {"momentum": None},
    {"momentum": 0.3, "eps": 1e-2},
    {"affine": False},
    {"bias": False},
    {"track_running_stats": False},
]
# Of values near 1, beside PyTorch in float64.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}

layouts = pytest.mark.parametrize("layout", FORMATS)


def close(actual, expected, dtype=None, scale=1):
    """Equal up to roundings of that dtype, relative to 1 or to the largest value expected."""
    bound = TOLERANCE[dtype or actual.dtype] * scale * max(1.0, float(expected.abs().max()))
    assert actual.shape == expected.shape
    assert float((actual.double() - expected.double()).abs().max()) <= bound


def sample(layout, dtype=torch.float32, seed=0):
    """x and dy."""
    shape, memory_format = FORMATS[layout]
    make = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=make) * 2 + 3).to(dtype).to(memory_format=memory_format)
    dy = torch.randn(shape, generator=make).to(dtype).to(memory_format=memory_format)
    return x, dy


def pair(layout, dtype=torch.float32, **options):
    """cbn's module, and PyTorch's in float64 with the same state."""
    name = NAMES[len(FORMATS[layout][0])]
    ours = getattr(interop, name)(C, **options).to(dtype)
    make = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(1, 0.5, generator=make)
    right = getattr(nn, name)(C, **options).double()
    right.load_state_dict(ours.state_dict())
    return ours, right


def run(module, x, dy):
    """y, dx and the gradients of the parameters."""
    x = x.detach().requires_grad_()
    y = module(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], dy)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@layouts
def test_training_steps_and_evaluation(layout, options, dtype):
    ours, right = pair(layout, dtype, **options)
    for step in range(6):
        if step == 4:
            ours.eval(), right.eval()
        x, dy = sample(layout, dtype, step)
        actual, expected = run(ours, x, dy), run(right, x.double(), dy.double())
        for a, b in zip(actual, expected, strict=True):
            close(a, b, dtype, scale=4)
        for tensor in actual[:2]:
            assert tensor.dtype is dtype and tensor.stride() == x.stride()
        state = ours.state_dict()
        assert list(state) == list(right.state_dict())
        for name, value in right.state_dict().items():
            assert state[name].dtype is (torch.int64 if name.endswith("tracked") else dtype)
            close(state[name].double(), value.double(), dtype)
        with torch.no_grad():  # a step of gradient descent on both
            for a, b in zip(ours.parameters(), right.parameters(), strict=True):
                b -= 0.1 * expected[2]
                a.copy_(b)


@pytest.mark.parametrize("parameters", ["same", "float32"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False])
@layouts
def test_half_types(layout, training, dtype, parameters):
    """Parameters and running statistics of x's dtype, or float32 as PyTorch allows."""
    kind = dtype if parameters == "same" else torch.float32
    ours, right = pair(layout, kind)
    ours.train(training), right.train(training)
    x, dy = sample(layout, dtype)
    actual, expected = run(ours, x, dy), run(right, x.double(), dy.double())
    for a, b, expected_dtype in zip(actual, expected, [dtype, dtype, kind, kind], strict=True):
        assert a.dtype is expected_dtype
        close(a, b, dtype)
    for name, value in right.state_dict().items():
        assert ours.state_dict()[name].dtype is (torch.int64 if name.endswith("tracked") else kind)
        close(ours.state_dict()[name].double(), value.double(), kind, scale=4)


VIEWS = {
    "transposed": lambda: torch.randn(C, 9).T,
    "every second row and column": lambda: torch.randn(18, 2 * C)[::2, ::2],
    "expanded": lambda: torch.randn(1, C).expand(9, C),
    "permuted": lambda: torch.randn(3, 4, C, 5).permute(0, 2, 3, 1),
    "cut": lambda: torch.randn(3, C, 8, 9)[:, :, 1::2, 2:7],
    "cut channels last": lambda: torch.randn(3, 2 * C, 4, 5).to(memory_format=torch.channels_last)[
        :, ::2, 1:
    ],
    "cut channels last 3d": lambda: torch.randn(2, C, 3, 4, 5).to(
        memory_format=torch.channels_last_3d
    )[..., 1::2],
    "channels last of one pixel": lambda: torch.randn(9, C, 1, 1).to(
        memory_format=torch.channels_last
    ),
    "negated": lambda: torch.randn(9, C, dtype=torch.complex64).conj().imag,
    "six dimensions": lambda: torch.randn(2, C, 2, 2, 2, 3).transpose(2, 5),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", VIEWS)
def test_views(name, training):
    """Read as they lie; results have the memory format that PyTorch gives them."""
    torch.manual_seed(0)
    view = VIEWS[name]()
    mean, var = torch.randn(C), torch.rand(C) + 0.5
    dy = torch.randn(view.shape)
    found = []
    for function, dtype in (interop.batch_norm, torch.float32), (theirs, torch.float64):
        x = view.detach().to(dtype) if dtype != view.dtype else view.detach()
        x.requires_grad_()
        y = function(x, mean.to(dtype), var.to(dtype), training=training)
        found.append((y.detach(), *torch.autograd.grad(y, x, dy.to(dtype))))
    for a, b in zip(*found, strict=True):
        close(a, b, scale=8)
    like = theirs(view, mean, var, training=training)
    assert found[0][0].stride() == found[0][1].stride() == like.stride()


def test_large_means():
    """Where PyTorch's float32 loses its digits on N x D."""
    x = torch.randn(20000, C, generator=torch.Generator().manual_seed(0)) + 1e4
    mean, var = torch.zeros(C), torch.zeros(C)
    y = interop.batch_norm(x, mean, var, training=True, momentum=1)
    exact = x.double()
    close(mean, exact.mean(0), scale=1)
    close(var, exact.var(0), scale=1)
    close(y, theirs(exact, None, None, training=True))


def test_input_without_values():
    for shape in (0, C), (3, C, 0), (4, 0):
        ours, right = interop.BatchNorm1d(shape[1]), nn.BatchNorm1d(shape[1])
        x = torch.ones(shape, requires_grad=True)
        y = ours(x)
        y.sum().backward()
        assert y.shape == x.grad.shape == shape
        assert not ours.weight.grad.any() and not ours.bias.grad.any()
        if shape[1]:
            right(torch.ones(shape))
            for name, value in right.state_dict().items():
                assert torch.equal(ours.state_dict()[name], value)


def test_an_input_that_needs_no_gradient():
    ours, right = pair("NC")
    x, dy = sample("NC")
    (ours(x) * dy).sum().backward()
    (right(x.double()) * dy).sum().backward()
    for a, b in zip(ours.parameters(), right.parameters(), strict=True):
        close(a.grad, b.grad, scale=4)
    with torch.inference_mode():
        close(ours(x), right(x.double()))


def test_what_follows_may_work_in_place():
    x, dy = sample("NHWC")
    found = []
    for norm in interop.BatchNorm2d(C), nn.BatchNorm2d(C):
        model = nn.Sequential(norm, nn.ReLU(inplace=True))
        found.append(run(model, x, dy))
    for a, b in zip(*found, strict=True):
        close(a, b, scale=4)


def test_changes_between_forward_and_backward_are_noticed():
    x, dy = sample("NC")
    ours = interop.BatchNorm1d(C)
    y = ours(x.requires_grad_())
    with torch.no_grad():
        ours.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(dy)
    version = ours.running_mean._version
    ours(x)
    assert ours.running_mean._version > version


def test_evaluation_keeps_the_statistics_of_its_call():
    """A training call between an evaluation and its backward changes nothing in that."""
    x, dy = sample("NC")
    ours, right = pair("NC")
    expected = run(right.eval(), x.double(), dy.double())[1]
    x = x.requires_grad_()
    y = ours.eval()(x)
    ours.train()(x)
    close(torch.autograd.grad(y, x, dy)[0], expected)


def test_threads_change_no_byte():
    x, dy = torch.randn(2, 16, 32, 64, 64, generator=torch.Generator().manual_seed(0))
    found = []
    before = torch.get_num_threads()
    try:
        for threads in 1, 2:
            torch.set_num_threads(threads)
            found.append(run(interop.BatchNorm2d(32), x, dy))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


# Refusals -----------------------------------------------------------------------------------------

X, ZEROS, ONES = torch.randn(8, C), torch.zeros(C), torch.ones(C)
BAD = {
    "short mean": (X, ZEROS[1:], ONES),
    "short var": (X, ZEROS, ONES[1:]),
    "short weight": (X, ZEROS, ONES, ONES[1:], ZEROS),
    "long bias": (X, ZEROS, ONES, ONES, torch.zeros(C + 1)),
    "no mean": (X, None, ONES),
    "no var": (X, ZEROS, None),
    "mean alone in training": (X, ZEROS, None, None, None, True),
    "one value": (X[:1], None, None, None, None, True),
    "one value of images": (torch.ones(1, C, 1, 1), None, None, None, None, True),
    "eps 0 in training": (X, None, None, None, None, True, 0.1, 0.0),
    "eps negative": (X, ZEROS, ONES, None, None, False, 0.1, -1.0),
    "integers": (X.long(), None, None, None, None, True),
    "complex": (X.cfloat(), None, None, None, None, True),
    "float64 beside float32": (X.double(), ZEROS, ONES),
    "float32 beside float64": (X, ZEROS.double(), ONES.double()),
    "half beside float32": (X, None, None, ONES.half(), ZEROS.half(), True),
    "weights of two dtypes": (X, None, None, ONES, ZEROS.double(), True),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_in_their_words(name):
    with pytest.raises(Exception) as right:
        theirs(*BAD[name])
    with pytest.raises(right.type) as mine:
        interop.batch_norm(*BAD[name])
    assert str(mine.value) == str(right.value)
    assert not ZEROS.any() and (ONES == 1).all()


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_wrong_dimensions(name):
    for shape in (4,), (4, C), (4, C, 1), (4, C, 1, 1), (4, C, 1, 1, 1):
        results = []
        for module in getattr(interop, name)(C), getattr(nn, name)(C):
            try:
                results.append(module(torch.ones(shape)).shape)
            except ValueError as error:
                results.append(str(error))
        assert results[0] == results[1]


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ((X.to("meta"), None, None, None, None, True), NotImplementedError, "input is on device m"),
        (
            (X, ZEROS.to("meta"), ONES),
            NotImplementedError,
            "running_mean is on device meta, expect",
        ),
        ((X.to_sparse(), None, None, None, None, True), NotImplementedError, "has layout torch.sp"),
        ((X[0], None, None, None, None, True), ValueError, "at least 2D input .got 1D input"),
        ((X, None, None, ONES[None], None, True), RuntimeError, "should have 1 dimension not 2"),
        ((X, ZEROS, ONES, None, None, False, 0.1, float("inf")), ValueError, "eps must be finite"),
        ((X, None, None, None, None, True, 0.1, float("nan")), ValueError, "eps must be positive"),
        ((X, ZEROS.clone().requires_grad_(), ONES), RuntimeError, "not differentiable with"),
        ((X.numpy(), None, None, None, None, True), TypeError, "input: expected a torch.Tensor"),
    ],
)
def test_errors_of_its_own(arguments, error, text):
    with pytest.raises(error, match=text):
        interop.batch_norm(*arguments)


def test_nothing_is_written_when_a_call_raises():
    ours = interop.BatchNorm1d(C)
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(RuntimeError, match="running_mean should contain"):
        interop.batch_norm(torch.ones(4, C + 1), ours.running_mean, ours.running_var, training=True)
    for name, value in before.items():
        assert torch.equal(ours.state_dict()[name], value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_channels_last_has_the_bytes_of_rows(dtype):
    x, dy = (
        torch.randn((8, 16, 16, 16), dtype=getattr(torch, dtype)).to(
            memory_format=torch.channels_last
        )
        for _ in range(2)
    )
    rows, dy_rows = (tensor.permute(0, 2, 3, 1).reshape(-1, 16).numpy() for tensor in (x, dy))
    weight = torch.linspace(0.5, 2, 16, dtype=x.dtype).requires_grad_()
    y = interop.batch_norm(x.requires_grad_(), None, None, weight, training=True)
    dx, dweight = torch.autograd.grad(y, (x, weight), dy)
    expected, cache = cbn.batch_norm_forward(rows, weight.detach().numpy())
    for ours, values in [
        (y.detach(), expected),
        *zip((dx, dweight), cbn.batch_norm_backward(dy_rows, cache), strict=False),
    ]:
        if ours.dim() > 1:
            ours = ours.permute(0, 2, 3, 1).reshape(-1, 16)
        same_bytes(ours.numpy(), values)
