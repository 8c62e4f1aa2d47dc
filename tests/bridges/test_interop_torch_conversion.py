"""cbn.interop.torch: convert and restore, state, copies, lazy modules, the import."""

from __future__ import annotations

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install --group torch")

import cbn.interop.torch as interop  # noqa: E402

nn = torch.nn
OURS = [interop.BatchNorm2d, interop.BatchNorm1d]
THEIRS = [nn.BatchNorm2d, nn.BatchNorm1d]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.ModuleDict({"linear": nn.Linear(6, 4), "norm": nn.BatchNorm1d(4)})

    def forward(self, x):
        return self.head["norm"](self.head["linear"](self.features(x).mean((2, 3))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x():
    return torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_there_and_back(net, x):
    right = copy.deepcopy(net)
    assert interop.convert(net) is net
    assert [type(norm) for norm in norms(net)] == OURS
    assert list(net.state_dict()) == list(right.state_dict())
    same(net(x), right(x))
    same(net.state_dict(), right.state_dict())
    assert str(net) == str(right)
    assert interop.restore(net) is net
    assert [type(norm) for norm in norms(net)] == THEIRS
    same(net(x), right(x))
    interop.convert(interop.convert(net))
    assert [type(norm) for norm in norms(net)] == OURS


def test_everything_of_a_module_stays(net, x):
    norm = net.features[1].double().eval()
    norm.weight.requires_grad_(False)
    norm.mark = "kept"
    calls = []
    handle = norm.register_forward_hook(lambda *_: calls.append("hook"))
    before = dict(norm.__dict__), dict(norm._parameters), dict(norm._buffers)
    interop.convert(net)
    assert net.features[1] is norm and type(norm) is interop.BatchNorm2d
    assert (dict(norm.__dict__), dict(norm._parameters), dict(norm._buffers)) == before
    assert not norm.training and norm.weight.dtype is torch.float64
    norm(torch.ones(2, 6, 3, 3, dtype=torch.float64))
    assert calls == ["hook"]
    handle.remove()


def test_optimizers_keep_working(net, x):
    right = copy.deepcopy(net)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (net, right)]
    for step in range(4):
        if step == 1:
            interop.convert(net)
        if step == 3:
            interop.restore(net)
        for module, optimizer in zip((net, right), optimizers, strict=True):
            optimizer.zero_grad()
            (module(x) ** 2).sum().backward()
            optimizer.step()
    same(net.state_dict(), right.state_dict())


def test_one_module_in_two_places_and_a_bare_one():
    norm = nn.BatchNorm1d(4)
    model = interop.convert(nn.Sequential(norm, nn.ReLU(), norm))
    assert model[0] is model[2] is norm and type(norm) is interop.BatchNorm1d
    assert interop.restore(norm) is norm and type(norm) is nn.BatchNorm1d


def test_subclasses_are_left_alone():
    class Own(nn.BatchNorm1d):
        def forward(self, input):
            return super().forward(input) + 1

    norm = interop.convert(Own(4))
    assert type(norm) is Own
    for value in None, "model", [nn.BatchNorm1d(4)]:
        with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got"):
            interop.convert(value)


@pytest.mark.parametrize("to_ours", [True, False])
def test_state_dicts_both_ways(net, x, to_ours):
    ours, right = interop.convert(copy.deepcopy(net)), copy.deepcopy(net)
    source, target = (right, ours) if to_ours else (ours, right)
    source(x)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += 0.5
    assert target.load_state_dict(source.state_dict()).missing_keys == []
    same(target.eval()(x), source.eval()(x))


def test_old_states_without_a_count():
    state = nn.BatchNorm1d(4).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    interop.BatchNorm1d(4).load_state_dict(state)


def copied_by(how, model):
    if how == "deepcopy":
        return copy.deepcopy(model)
    if how == "pickle":
        return pickle.loads(pickle.dumps(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_copies(net, x, how):
    interop.convert(net)(x)
    other = copied_by(how, net)
    assert [type(norm) for norm in norms(other)] == OURS
    assert torch.equal(other.eval()(x), net.eval()(x))
    assert other.features[1].weight is not net.features[1].weight


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("converted", [True, False])
def test_lazy_modules(dims, converted):
    name = f"BatchNorm{dims}d"
    lazy = getattr(nn if converted else interop, f"Lazy{name}")(eps=1e-3)
    lazy = interop.convert(nn.Sequential(lazy))[0]
    assert type(lazy) is getattr(interop, f"Lazy{name}")
    x = torch.randn(4, 5, *[3] * dims)
    y = lazy(x)
    assert "BatchNormBackward" not in type(y.grad_fn).__name__.replace("_BatchNormBackward", "")
    assert type(lazy) is getattr(interop, name) and lazy.num_features == 5
    right = getattr(nn, name)(5, eps=1e-3)
    same(y, right(x))
    same(lazy.state_dict(), right.state_dict())


def test_sync_batch_norm_is_converted():
    norm = interop.convert(nn.SyncBatchNorm(4))
    assert type(norm) is interop.SyncBatchNorm
    same(norm(torch.ones(3, 4)), torch.zeros(3, 4))
    assert type(interop.restore(norm)) is nn.SyncBatchNorm


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_constructor_and_printed_form(name):
    for options in {}, {"eps": 1e-3, "momentum": None}, {"affine": False}, {"bias": False}:
        ours, right = getattr(interop, name)(4, **options), getattr(nn, name)(4, **options)
        assert repr(ours) == repr(right)
        same(ours.state_dict(), right.state_dict())
        assert isinstance(ours, getattr(nn, name))
    assert getattr(interop, name)(4, dtype=torch.float64).weight.dtype is torch.float64
    assert getattr(interop, name)(4, device="meta").weight.is_meta


HIDDEN = """
import sys
sys.modules["torch"] = None
import cbn, cbn.interop
try:
    import cbn.interop.torch
except ImportError as error:
    print(error)
"""


def test_without_torch(run_python):
    run = run_python("-c", HIDDEN)
    assert run.stdout.strip() == 'cbn.interop.torch needs PyTorch: pip install "cbn[torch]"'
    loaded = run_python("-c", "import sys, cbn, cbn.interop; print('torch' in sys.modules)")
    assert loaded.stdout.strip() == "False"
