"""Training steps of PyTorch models on the CPU before and after cbn.interop.torch.convert.

Run ``python examples/torch_convert.py`` (needs PyTorch). Both versions of a model take turns, and
the least time of each counts. Then statistics of features far from zero, beside float64.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from torch import nn

from cbn.interop.torch import convert


class Block(nn.Module):
    """The basic block of a ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet() -> nn.Module:
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
    stem = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def mlp() -> nn.Module:
    layers = []
    for inputs, outputs in (64, 512), (512, 512), (512, 512):
        layers += nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(512, 10))


def step_of(model: nn.Module, x: torch.Tensor, target: torch.Tensor):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()

    return step


def least_times(steps: list, seconds: float) -> list[float]:
    """Milliseconds of each, which take turns."""
    for step in steps:
        step()
    least = [float("inf")] * len(steps)
    end = time.perf_counter() + seconds
    while True:
        for k, step in enumerate(steps):
            start = time.perf_counter()
            step()
            least[k] = min(least[k], 1e3 * (time.perf_counter() - start))
        if time.perf_counter() >= end:
            return least


def errors(mean: float) -> list[float]:
    """Relative errors of the running variance, PyTorch's and cbn's, of N x D with that mean."""
    x = torch.randn(65536, 8, generator=torch.Generator().manual_seed(0)) + mean
    exact = x.double().var(0)
    found = []
    for norm in nn.BatchNorm1d(8, momentum=1), convert(nn.BatchNorm1d(8, momentum=1)):
        norm(x)
        found.append(float(((norm.running_var - exact) / exact).abs().max()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10, help="for each model (default 10)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    images, rows = torch.randn(32, 3, 32, 32), torch.randn(1024, 64)
    last = images.to(memory_format=torch.channels_last)
    cases = {
        "ResNet": (resnet(), images),
        "ResNet, channels last": (resnet().to(memory_format=torch.channels_last), last),
        "MLP": (mlp(), rows),
    }
    print(f"A training step, threads: {arguments.threads}")
    print(f"{'model':22} {'PyTorch ms':>10} {'cbn ms':>8} {'speed-up':>8}")
    for name, (model, x) in cases.items():
        target = torch.randint(10, (len(x),))
        models = model, convert(copy.deepcopy(model))
        before, after = least_times([step_of(m, x, target) for m in models], arguments.seconds)
        print(f"{name:22} {before:10.2f} {after:8.2f} {before / after:8.2f}")

    print("\nRelative error of the running variance of 65536 x 8 in float32")
    print(f"{'mean / std':22} {'PyTorch':>10} {'cbn':>8}")
    for mean in 0.0, 1e2, 1e3, 1e4:
        print(f"{mean:<22g} {errors(mean)[0]:10.1e} {errors(mean)[1]:8.1e}")


if __name__ == "__main__":
    main()
