"""cbn.interop.torch.SyncBatchNorm over processes that talk by gloo."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install --group torch")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

import sync_batch_norm  # noqa: E402

from cbn.interop.torch import BatchNorm1d, SyncBatchNorm  # noqa: E402

WORKER = Path(__file__).parents[1] / "support" / "sync_batch_norm.py"
C = 5


def case(shapes, dtype=torch.float64, memory_format=torch.contiguous_format, **options):
    make = torch.Generator().manual_seed(len(shapes[0]))
    parts, dy = (
        [torch.randn(shape, generator=make, dtype=torch.float64) * 3 + 1 for shape in shapes]
        for _ in range(2)
    )
    layer = SyncBatchNorm(C, **options).to(dtype)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=make)
    return {
        "parts": [part.to(dtype).to(memory_format=memory_format) for part in parts],
        "dy": [part.to(dtype) for part in dy],
        "state": layer.state_dict(),
        "options": options,
    }


IMAGES = [(3, C, 4, 6), (2, C, 4, 6)]
PAIRS = {
    "uneven": case([(7, C), (2, C)]),
    "images": case(IMAGES, affine=False),
    "one empty": case([(4, C), (0, C)]),
    "one value each": case([(1, C), (1, C)], track_running_stats=False, eps=0.3),
    "float32": case(IMAGES, torch.float32, torch.channels_last),
    "bfloat16": case(IMAGES, torch.bfloat16, torch.channels_last),
}
TRIPLES = {"three": case([(0, C, 3), (2, C, 3), (3, C, 3)], momentum=0.4)}


def run(cases, folder):
    """What each process saves; all have ended, or are killed, after two minutes."""
    torch.save(list(cases.values()), folder / "cases")
    common = str(folder / "meeting"), str(folder / "cases")
    with contextlib.ExitStack() as stack:
        processes = []
        ranks = range(len(next(iter(cases.values()))["parts"]))
        for rank in ranks:
            command = [sys.executable, "-P", WORKER, str(rank), *common, folder / f"out{rank}"]
            process = subprocess.Popen(command, stdout=PIPE, stderr=STDOUT, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            out, _ = process.communicate(timeout=120)
            assert process.returncode == 0, out
    results = [torch.load(folder / f"out{rank}") for rank in ranks]
    steps, errors, gradients = zip(*results, strict=True)
    return dict(zip(cases, zip(*steps, strict=True), strict=True)), list(errors), gradients


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return run(PAIRS, tmp_path_factory.mktemp("pairs"))


def whole_batch(given):
    """The same steps in one process, by PyTorch in float64."""
    x = torch.cat(given["parts"]).double().requires_grad_()
    layer = torch.nn.SyncBatchNorm(C, **given["options"]).double()
    layer.load_state_dict(given["state"])
    for _ in range(2):
        layer.zero_grad()
        x.grad = None
        y = layer(x)
        y.backward(torch.cat(given["dy"]).double())
        gradients = {f"{name}.grad": p.grad for name, p in layer.named_parameters()}
        yield {"y": y.detach(), "dx": x.grad, **gradients, **layer.state_dict()}


def check(given, found, tolerance=1e-11):
    """`found` has the steps of every process."""
    for step, right in enumerate(whole_batch(given)):
        for name, expected in right.items():
            parts = [steps[step][name] for steps in found]
            if name in ("y", "dx"):
                actual = torch.cat(parts)
            elif name.endswith(".grad"):
                actual = torch.stack(parts).sum(dim=0)
            else:
                actual = parts[0]
                assert all(torch.equal(part, actual) for part in parts), name
            close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
            torch.testing.assert_close(actual, expected, **close, msg=name)


def check_distributed_data(found):
    """Every process has the gradients of the whole batch in one process, by PyTorch."""
    expected = sync_batch_norm.gradients(sync_batch_norm.model(), sync_batch_norm.data(len(found)))
    for gradients in found:
        for actual, right in zip(gradients, expected, strict=True):
            torch.testing.assert_close(actual, right, rtol=1e-11, atol=1e-11)


def test_distributed_data_parallel(pairs):
    check_distributed_data(pairs[2])


@pytest.mark.parametrize("name", ["uneven", "images", "one empty", "one value each"])
def test_parts_of_a_batch(name, pairs):
    check(PAIRS[name], pairs[0][name])


def test_three_processes_with_an_empty_one(tmp_path):
    found, _, gradients = run(TRIPLES, tmp_path)
    check(TRIPLES["three"], found["three"])
    check_distributed_data(gradients)


@pytest.mark.parametrize("name, tolerance", [("float32", 1e-4), ("bfloat16", 5e-2)])
def test_channels_last_and_other_dtypes(name, tolerance, pairs):
    found = pairs[0][name]
    for steps in found:
        for tensor in steps[0]["y"], steps[0]["dx"]:
            assert tensor.is_contiguous(memory_format=torch.channels_last)
            assert tensor.dtype is getattr(torch, name)
    given = PAIRS[name]
    exact = given | {"dy": [dy.double() for dy in given["dy"]]}
    check(exact, found, tolerance)


def test_one_value_in_all_processes(pairs):
    errors = [f"got input size torch.Size([{n}, 4])" for n in (1, 0)]
    start = "Expected more than 1 value per channel when training, "
    assert pairs[1] == [start + end for end in errors]


def test_alone_it_is_plain_batch_norm():
    x = torch.randn(6, C)
    sync, plain = SyncBatchNorm(C), BatchNorm1d(C)
    assert torch.equal(sync(x), plain(x))
    assert torch.equal(sync.running_var, plain.running_var)
    assert torch.equal(sync.eval()(x), plain.eval()(x))
    with pytest.raises(ValueError, match="number of input channels should be non-zero"):
        SyncBatchNorm(0)(torch.ones(3, 0))


def test_conversion_of_a_model():
    model = torch.nn.Sequential(torch.nn.Linear(3, C), BatchNorm1d(C), torch.nn.BatchNorm1d(C))
    weights = [layer.weight for layer in model]
    model = SyncBatchNorm.convert_sync_batchnorm(model)
    assert [type(layer) for layer in model[1:]] == [SyncBatchNorm] * 2
    assert all(layer.weight is weight for layer, weight in zip(model, weights, strict=True))
