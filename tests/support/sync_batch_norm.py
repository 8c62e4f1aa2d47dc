"""One process of a group that normalizes parts of batches; run by test_interop_torch_sync.py.

Arguments: rank, a file for the group to meet in, a file with the cases, a file for the results.
"""

from __future__ import annotations

import datetime
import sys

import torch
from torch import distributed

from cbn.interop.torch import SyncBatchNorm


def steps(case: dict, rank: int) -> list[dict]:
    """Two training steps: y, all gradients, and the state after each."""
    x = case["parts"][rank].requires_grad_()
    layer = SyncBatchNorm(x.shape[1], **case["options"]).to(x.dtype)
    layer.load_state_dict(case["state"])
    found = []
    for _ in range(2):
        layer.zero_grad()
        x.grad = None
        y = layer(x)
        y.backward(case["dy"][rank])
        gradients = {f"{name}.grad": p.grad for name, p in layer.named_parameters()}
        results = {"y": y.detach(), "dx": x.grad, **gradients, **layer.state_dict()}
        found.append({name: tensor.clone() for name, tensor in results.items()})
    return found


def error_of_one_value(rank: int) -> str:
    try:
        SyncBatchNorm(4)(torch.ones(1 if rank == 0 else 0, 4))
    except ValueError as error:
        return str(error)
    return "none"


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
    return torch.nn.Sequential(*layers).double()


def gradients(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Those of the mean of the squares of the output."""
    model(x).square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


def data(processes: int) -> torch.Tensor:
    return torch.randn(6 * processes, 3, generator=torch.Generator().manual_seed(1)).double()


def of_distributed_data(rank: int, processes: int) -> list[torch.Tensor]:
    """By DistributedDataParallel, of parts of equal size."""
    synchronized = SyncBatchNorm.convert_sync_batchnorm(model())
    parallel = torch.nn.parallel.DistributedDataParallel(synchronized)
    return gradients(parallel, data(processes).chunk(processes)[rank])


def main(rank: int, meeting: str, cases: str, results: str) -> None:
    torch.set_num_threads(1)
    given = torch.load(cases)
    processes = len(given[0]["parts"])
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=processes,
        timeout=datetime.timedelta(seconds=60),
    )
    found = [steps(case, rank) for case in given]
    torch.save((found, error_of_one_value(rank), of_distributed_data(rank, processes)), results)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
