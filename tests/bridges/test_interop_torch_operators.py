"""The operators of cbn.interop.torch: derivatives, torch.compile, torch.func, autocast."""

from __future__ import annotations

import shutil
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install --group torch")

import cbn.interop.torch as interop  # noqa: E402
from cbn.interop.torch import _operators  # noqa: E402

theirs = torch.nn.functional.batch_norm
needs_compiler = pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler",
)
# torch.compile and its parts warn of what they themselves use.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

C = 3


def tensors(*shapes, seed=0, dtype=torch.float64):
    make = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=make, dtype=dtype) for shape in shapes]


def statistics():
    mean, var = tensors(C, C, seed=5)
    return mean, var.abs() + 0.5


# Gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "shape, given",
    [
        *(((4, C), given) for given in ("weight and bias", "weight", "bias", "neither")),
        ((2, C, 2), "weight and bias"),
        ((2, C, 1, 2), "weight and bias"),
    ],
    ids=str,
)
def test_gradcheck_and_gradgradcheck(shape, training, given):
    x, weight, bias = (a.requires_grad_() for a in tensors(shape, C, C))
    weight, bias = weight if "weight" in given else None, bias if "bias" in given else None
    running = (None, None) if training else statistics()
    arguments = [a for a in (x, weight, bias) if a is not None]

    def function(*_):
        return interop.batch_norm(x, *running, weight, bias, training)

    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


def test_gradgradcheck_of_channels_last():
    (x,) = tensors((1, C, 2, 2))
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x: interop.batch_norm(x, None, None, training=True), x
    )


@pytest.mark.parametrize("training", [True, False])
def test_double_backward_is_theirs(training):
    """The gradients of a penalty on the gradients, float32 beside float64."""
    running = (None, None) if training else statistics()
    found = []
    for function, dtype in (interop.batch_norm, torch.float32), (theirs, torch.float64):
        leaves = [a.to(dtype).requires_grad_() for a in tensors((4, C, 5), C, C)]
        x, weight, bias = leaves
        mean, var = (None if a is None else a.to(dtype) for a in running)
        y = function(x, mean, var, weight, bias, training)
        dx, dweight, dbias = torch.autograd.grad((y**3).sum(), leaves, create_graph=True)
        penalty = (dx**2).sum() + (dweight**3).sum() + (dbias * dx.sum()).sum()
        found.append(torch.autograd.grad(penalty, leaves))
    for actual, right in zip(*found, strict=True):
        bound = 1e-4 * float(right.abs().max())
        torch.testing.assert_close(actual.double(), right, rtol=0, atol=bound)


def test_the_third_order_is_refused():
    (x,) = tensors((4, C))
    x.requires_grad_()
    y = interop.batch_norm(x, None, None, training=True)
    (dx,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad((dx**3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no derivatives of the third order"):
        ddx.sum().backward()


def test_checkpoint_and_saved_tensor_hooks():
    x, dy = tensors((4, C), (4, C))
    x.requires_grad_()
    right = torch.autograd.grad(theirs(x, None, None, training=True), x, dy)[0]

    def function(x):
        return interop.batch_norm(x, None, None, training=True)

    y = torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(y, x, dy)[0], right)
    with torch.autograd.graph.saved_tensors_hooks(lambda a: a.numpy(force=True), torch.from_numpy):
        y = function(x)
    torch.testing.assert_close(torch.autograd.grad(y, x, dy)[0], right)


# Graphs -------------------------------------------------------------------------------------------


def arguments_of(operator, dtype=torch.float32, memory_format=torch.contiguous_format):
    x, dy, ddx, weight, bias = tensors(*[(2, C, 4, 5)] * 3, C, C, dtype=dtype)
    x, dy, ddx = (a.to(memory_format=memory_format) for a in (x, dy, ddx))
    mean, var = (a.to(dtype) for a in statistics())
    stats = _operators.batch_norm_with_statistics(x, weight, bias, None, None, True, 1e-5)[1]
    return {
        "training": (x, weight, bias, None, None, True, 1e-5),
        "inference": (x, weight, bias, mean, var, False, 1e-5),
        "bare": (x, None, None, None, None, True, 1e-5),
        "backward": (dy, x, weight, stats, True, 1e-5),
        "inference_backward": (dy, x, weight, stats, False, 1e-5),
        "double_backward": (ddx, weight, bias, dy, x, weight, stats, True, 1e-5),
        "running": (mean, var, stats, 40, 0.1),
    }[operator]


OPERATORS = {
    "training": "batch_norm",
    "inference": "batch_norm",
    "bare": "batch_norm",
    "backward": "batch_norm_backward",
    "inference_backward": "batch_norm_backward",
    "double_backward": "batch_norm_double_backward",
    "running": "update_running_stats_",
}


@pytest.mark.parametrize(
    "dtype, memory_format",
    [(torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)],
    ids=str,
)
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name, dtype, memory_format):
    """Schema, fake tensors, autograd registration, tracing with dynamic shapes."""
    arguments = arguments_of(name, dtype, memory_format)
    if name in ("training", "inference", "bare", "backward", "inference_backward"):
        is_input = {id(a) for a in arguments[:3] if a is not None}
        arguments = tuple(
            a.requires_grad_() if id(a) in is_input and a.dim() != 2 else a for a in arguments
        )
    results = torch.library.opcheck(getattr(torch.ops.cbn, OPERATORS[name]), arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("position, value", [(1, torch.ones(2)), (3, torch.ones(6, C))], ids=str)
def test_operators_check_what_they_are_given(position, value):
    arguments = list(arguments_of("backward"))
    arguments[position] = value
    with pytest.raises((ValueError, IndexError), match="expected|range"):
        torch.ops.cbn.batch_norm_backward(*arguments)


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        interop.BatchNorm2d(8),
        torch.nn.ReLU(inplace=True),
        torch.nn.Flatten(),
        torch.nn.Linear(200, 4),
        interop.BatchNorm1d(4),
    )


@needs_compiler
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_a_graph_break(dynamic):
    (x,) = tensors((5, 3, 7, 7), dtype=torch.float32)
    eager, compiled = model(), model()
    eager(x), compiled(x)
    function = torch.compile(compiled, fullgraph=True, dynamic=dynamic)
    for step in range(3):
        if step == 2:
            eager.eval(), compiled.eval()
        part = x[step:]
        found = []
        for module, call in (eager, eager), (compiled, function):
            module.zero_grad()
            y = call(part)
            (y**3).sum().backward()
            found.append([y, *(p.grad for p in module.parameters()), *module.buffers()])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_what_records_a_graph_finds_the_operators():
    x = torch.randn(4, C)
    norm = interop.BatchNorm1d(C).eval()
    program = torch.export.export(norm, (x,)).module()
    torch.testing.assert_close(program(x + 1), norm(x + 1))
    traced = torch.fx.experimental.proxy_tensor.make_fx(
        lambda x: interop.batch_norm(x, None, None, training=True)
    )(x)
    targets = [str(node.target) for node in traced.graph.nodes]
    assert any("cbn.batch_norm" in target for target in targets), targets
    torch.testing.assert_close(traced(2 * x + 1), theirs(2 * x + 1, None, None, training=True))


def test_fake_tensors():
    with torch._subclasses.FakeTensorMode():
        norm = interop.BatchNorm2d(C)
        x = torch.randn(2, C, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
        y = norm(x)
        assert y.shape == x.shape and y.stride() == x.stride()
        y.sum().backward()
        assert x.grad.shape == x.shape


# torch.func ---------------------------------------------------------------------------------------


def of_batch(function):
    return lambda x, weight: (function(x, None, None, weight, training=True) ** 3).sum()


def test_grad_and_jacobian():
    x, weight = tensors((4, C), C)
    ours, right = (
        torch.func.grad(of_batch(function), argnums=(0, 1))(x, weight)
        for function in (interop.batch_norm, theirs)
    )
    torch.testing.assert_close(ours, right)
    ours, right = (
        torch.func.jacrev(lambda x, function=function: function(x, None, None, training=True))(x)
        for function in (interop.batch_norm, theirs)
    )
    torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("dims", [(0, 0), (2, None), (None, 0), (-1, 1)], ids=str)
def test_vmap(dims):
    x = tensors((4, C))[0] if dims[0] is None else tensors((4, C, 2))[0].movedim(2, dims[0])
    weight = tensors(C)[0] if dims[1] is None else tensors((C, 2))[0].movedim(1, dims[1])
    for transform in (lambda f: f, lambda f: torch.func.grad(f, argnums=(0, 1))):
        ours, right = (
            torch.vmap(transform(of_batch(function)), in_dims=dims)(x, weight)
            for function in (interop.batch_norm, theirs)
        )
        torch.testing.assert_close(ours, right)


def test_running_statistics_in_transforms():
    (x,) = tensors((4, C))
    found = []
    for function in interop.batch_norm, theirs:
        mean, var = statistics()
        dx = torch.func.grad(
            lambda x, f=function, m=mean, v=var: (f(x, m, v, training=True) ** 3).sum()
        )(x)
        found.append((dx, mean, var))
    torch.testing.assert_close(*found)
    for function in interop.batch_norm, theirs:
        mean, var = statistics()
        with pytest.raises(RuntimeError, match="updated in place"):
            torch.vmap(lambda x, f=function, m=mean, v=var: f(x, m, v, training=True))(x[None])


def composed(x, mean, var, weight=None, bias=None, training=False):
    """Batch norm of PyTorch's own steps, whose derivatives of all orders are right."""
    others = [i for i in range(x.dim()) if i != 1]
    if training:
        mean, var = x.mean(others), x.var(others, correction=0)
    mean, var, weight, bias = (
        a if a is None else a.reshape(1, -1, *(1,) * (x.dim() - 2))
        for a in (mean, var, weight, bias)
    )
    xhat = (x - mean) / torch.sqrt(var + 1e-5)
    y = xhat if weight is None else xhat * weight
    return y if bias is None else y + bias


def case(function, shape, training):
    """The function of x, weight and bias, arguments, and their tangents."""
    mean, var = (None, None) if training else statistics()
    x, weight, bias, *tangents = tensors(*(shape, C, C) * 2)
    return lambda *args: function(args[0], mean, var, *args[1:], training=training), (
        (x, weight, bias),
        tuple(tangents),
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, C), (2, C, 3)], ids=str)
def test_forward_mode(shape, training):
    def results(function):
        f, (args, tangents) = case(function, shape, training)
        yield torch.func.jvp(f, args, tangents)
        for i in range(3):
            of_one = partial(lambda i, a: f(*args[:i], a, *args[i + 1 :]), i)
            yield torch.func.jvp(of_one, args[i : i + 1], tangents[i : i + 1])
        yield torch.func.jacfwd(f, (0, 1, 2))(*args)
        for outer in torch.func.jacfwd, torch.func.jacrev:
            for inner in torch.func.jacfwd, torch.func.jacrev:
                gradients = inner(lambda *args: (f(*args) ** 3).sum(), (0, 1, 2))
                yield outer(gradients)(*args)

    found = (list(results(function)) for function in (interop.batch_norm, composed))
    torch.testing.assert_close(*found)


def test_forward_mode_of_other_tensors():
    mean, var = statistics()
    (x,) = tensors((4, C))
    with pytest.raises(NotImplementedError, match="no derivatives in running_mean"):
        torch.func.jvp(lambda var: interop.batch_norm(x, mean, var), (var,), (var,))
    half, weight = x.half(), torch.ones(C)
    y, y_dot = torch.func.jvp(
        lambda x, weight: interop.batch_norm(x, None, None, weight, training=True),
        (half, weight),
        (half, weight),
    )
    assert y_dot.dtype is torch.float16
    torch.testing.assert_close(y_dot, y, rtol=0, atol=1e-2)  # weight's part; x's own is almost 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # linearize
def test_transforms_of_recorded_graphs(training):
    """Without the functions around the operators the tangents would be 0."""

    def results(function):
        f, ((x, *others), (x_dot, *_)) = case(function, (4, C), training)

        def tangent(x):
            return torch.func.jvp(lambda x: f(x, *others), (x,), (x_dot,))[1]

        def cubes(x):
            return (f(x, *others) ** 3).sum()

        def mapped(x):
            return torch.vmap(torch.func.grad(cubes))(torch.stack([x, 2 * x]))

        for g in tangent, torch.func.grad(cubes), torch.func.hessian(cubes), mapped:
            yield torch.fx.experimental.proxy_tensor.make_fx(g)(x)(x_dot)
        yield torch.func.linearize(lambda x: f(x, *others), x)[1](x_dot)
        yield torch.compile(tangent, backend="aot_eager")(x)

    found = (list(results(function)) for function in (interop.batch_norm, composed))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("training", [True, False])
def test_batched_gradients(training):
    """is_grads_batched, and vectorize=True of torch.autograd.functional."""
    f, ((x, weight, bias), _) = case(interop.batch_norm, (4, C), training)
    args = tuple(a.requires_grad_() for a in (x, weight, bias))
    modes = {"check_forward_ad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(f, args, check_batched_grad=True, **modes)
    assert torch.autograd.gradgradcheck(f, args, check_batched_grad=True, check_fwd_over_rev=True)


# Autocast -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """Batch norm takes what comes: a float32 input stays, a half one from a convolution too."""
    (x,) = tensors((2, 3, 7, 7), dtype=torch.float32)
    ours = model()[:2]
    right = interop.restore(model()[:2])
    with torch.autocast("cpu", dtype=dtype):
        assert ours[1](torch.ones(2, 8, 2, 2)).dtype is torch.float32
        assert right[1](torch.ones(2, 8, 2, 2)).dtype is torch.float32
        y, expected = ours(x), right(x)
    assert y.dtype is expected.dtype is dtype
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert ours[1].weight.grad.dtype is torch.float32
