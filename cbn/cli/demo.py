"""``cbn demo``: train a sigmoid net on handwritten digits with and without batch norm.

The experiment of Ioffe & Szegedy (2015), section 4.1, on the digits that scikit-learn ships: three
fully connected hidden layers of 100 sigmoid units, small Gaussian initial weights, minibatches of
60, plain gradient descent on the cross-entropy. Both nets start from the same weights and see the
same batches with the same learning rate. Batch norm stands before each sigmoid.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

import cbn
from cbn.cli._options import CommandError, check_plot, natural, positive

HIDDEN = (100, 100, 100)
BATCH = 60
WEIGHT_STD = 0.1
# For both nets. Without batch norm a smaller one learns slower, a larger one hardly faster.
LEARNING_RATE = 1.0
MOMENTUM = 0.1
EPS = 1e-5
TEST_SIZE = 450
GOAL = 0.9
PERCENTILES = (15, 50, 85)
EVALUATIONS = 300
COLORS = ("#d55e00", "#0072b2")


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="train on handwritten digits with and without batch norm",
        description="Train a net of three sigmoid layers on scikit-learn's handwritten digits, "
        "without and with batch norm; print how fast each learns and plot it.",
    )
    parser.add_argument(
        "--steps", type=positive, default=3000, metavar="N", help="steps a net (default: 3000)"
    )
    parser.add_argument(
        "--seed", type=natural, default=0, metavar="N", help="weights and batches (default: 0)"
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="threads of cbn (default: 1; batches of 60 leave little for more)",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        default=Path("cbn-demo.png"),
        metavar="PATH",
        help="where the picture goes (default: cbn-demo.png)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train both nets, print the table, write the picture."""
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
        import threadpoolctl
        import tqdm  # noqa: F401
    except ImportError as error:
        raise CommandError(
            f'{error.name} is not installed: pip install "cbn[demo]" brings what the demo needs'
        ) from None
    check_plot(options.plot)
    train, test = _digits()
    sizes = train.x.shape[1], *HIDDEN, 10
    print(
        f"{len(train.x)} digits to train, {len(test.x)} to test; layers "
        f"{'-'.join(map(str, sizes))}; batch {BATCH}, learning rate {LEARNING_RATE:g}, "
        f"seed {options.seed}",
        flush=True,
    )
    runs = []
    # The matrices are small: more BLAS threads only wait for each other.
    with cbn.num_threads(options.threads), threadpoolctl.threadpool_limits(1, "blas"):
        for name, batch_norm in (("without batch norm", False), ("with batch norm", True)):
            net = Net(sizes, batch_norm, options.seed)
            runs.append(_train(name, net, train, test, options.steps, options.seed))
    _plot(runs, options.plot)
    print(_table(runs), f"plot: {options.plot}", sep="\n")
    return 0


@dataclass
class Data:
    """Inputs (N, 64) in [0, 1] and labels (N,)."""

    x: np.ndarray
    label: np.ndarray


def _digits() -> tuple[Data, Data]:
    from sklearn.datasets import load_digits

    x, label = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    test, train = order[:TEST_SIZE], order[TEST_SIZE:]
    return Data(x[train], label[train]), Data(x[test], label[test])


# The net ------------------------------------------------------------------------------------------


class BatchNorm:
    """gamma, beta and running statistics around cbn's functions."""

    def __init__(self, features: int):
        self.gamma = np.ones(features, np.float32)
        self.beta = np.zeros(features, np.float32)
        self.mean = np.zeros(features)
        self.var = np.ones(features)

    def forward(self, x, training):
        if not training:
            return cbn.batch_norm_inference(x, self.mean, self.var, self.gamma, self.beta, eps=EPS)
        y, self.cache = cbn.batch_norm_forward(x, self.gamma, self.beta, eps=EPS)
        unbiased = self.cache.var * (len(x) / (len(x) - 1))
        self.mean += MOMENTUM * (self.cache.mean - self.mean)
        self.var += MOMENTUM * (unbiased - self.var)
        return y

    def backward(self, dy):
        dx, dgamma, dbeta = cbn.batch_norm_backward(dy, self.cache)
        self.gamma -= LEARNING_RATE * dgamma
        self.beta -= LEARNING_RATE * dbeta
        return dx


class Bias:
    """What stands in BatchNorm's place without batch norm."""

    def __init__(self, features: int):
        self.beta = np.zeros(features, np.float32)

    def forward(self, x, training):
        return x + self.beta

    def backward(self, dy):
        self.beta -= LEARNING_RATE * dy.sum(axis=0)
        return dy


class Net:
    """Linear layers, each with batch norm (or a bias) and a sigmoid; the last gives the logits."""

    def __init__(self, sizes, batch_norm: bool, seed: int):
        rng = np.random.default_rng(seed)
        hidden = BatchNorm if batch_norm else Bias
        self.weights = [
            rng.normal(0, WEIGHT_STD, shape).astype(np.float32) for shape in pairwise(sizes)
        ]
        self.shifts = [*map(hidden, sizes[1:-1]), Bias(sizes[-1])]

    def forward(self, x, training):
        self.inputs = [x]
        for weight, shift in zip(self.weights[:-1], self.shifts[:-1], strict=True):
            self.last = shift.forward(self.inputs[-1] @ weight, training)
            self.inputs.append((1 + np.tanh(self.last / 2)) / 2)
        return self.shifts[-1].forward(self.inputs[-1] @ self.weights[-1], training)

    def train(self, x, label):
        """Take one step down the gradient of the cross-entropy."""
        logits = self.forward(x, training=True)
        delta = np.exp(logits - logits.max(axis=1, keepdims=True))
        delta /= delta.sum(axis=1, keepdims=True)
        delta[np.arange(len(x)), label] -= 1
        delta /= len(x)
        for weight, shift, a in zip(
            self.weights[::-1], self.shifts[::-1], self.inputs[::-1], strict=True
        ):
            delta = shift.backward(delta)
            dweight = a.T @ delta
            delta = delta @ weight.T * (a * (1 - a))
            weight -= LEARNING_RATE * dweight


# The two runs -------------------------------------------------------------------------------------


@dataclass
class History:
    """What one run leaves: a value an evaluation on the test digits."""

    name: str
    steps: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    last: list[np.ndarray] = field(default_factory=list)  # percentiles
    seconds: float = 0.0

    def record(self, step: int, net: Net, test: Data) -> None:
        logits = net.forward(test.x, training=False)
        self.steps.append(step)
        self.accuracy.append(float(np.mean(logits.argmax(axis=1) == test.label)))
        self.last.append(np.percentile(net.last[:, 0], PERCENTILES))

    @property
    def steps_to_goal(self) -> int | None:
        reached = (s for s, a in zip(self.steps, self.accuracy, strict=True) if a >= GOAL)
        return next(reached, None)


def _train(name: str, net: Net, train: Data, test: Data, steps: int, seed: int) -> History:
    from tqdm import tqdm

    rng = np.random.default_rng(seed + 1)
    every = max(1, steps // EVALUATIONS)
    history = History(name)
    history.record(0, net, test)
    start = time.perf_counter()
    with tqdm(total=steps, desc=name, unit="step", mininterval=0.2) as bar:
        for step in range(1, steps + 1):
            rows = rng.integers(len(train.x), size=BATCH)
            net.train(train.x[rows], train.label[rows])
            if step % every == 0 or step == steps:
                history.record(step, net, test)
                bar.set_postfix_str(f"test accuracy {history.accuracy[-1]:.1%}", refresh=False)
                bar.update(step - bar.n)
    history.seconds = time.perf_counter() - start
    return history


def _table(runs: list[History]) -> str:
    lines = [f"{'':20}{f'steps to {GOAL:.0%}':>14}{'final accuracy':>17}{'train time':>13}"]
    for run in runs:
        steps = "not reached" if run.steps_to_goal is None else run.steps_to_goal
        lines.append(f"{run.name:20}{steps:>14}{run.accuracy[-1]:>17.1%}{run.seconds:>11.1f} s")
    return "\n".join(lines)


# The picture --------------------------------------------------------------------------------------


def _plot(runs: list[History], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("Handwritten digits, three hidden layers of 100 sigmoid units")
    panels = figure.subplot_mosaic([["accuracy", 0], ["accuracy", 1]], width_ratios=(3, 2))
    panels[1].sharex(panels[0])
    panels[1].sharey(panels[0])

    axes = panels["accuracy"]
    axes.axhline(GOAL, color="0.5", linewidth=1, linestyle="--")
    axes.set(xlabel="training steps", ylabel="test accuracy", ylim=(0, 1.02))
    axes.set_title("Accuracy on the test digits", fontsize="medium")
    axes.yaxis.set_major_formatter("{x:.0%}")
    for i, (run, color) in enumerate(zip(runs, COLORS, strict=True)):
        axes.plot(run.steps, run.accuracy, color=color, label=run.name)
        low, middle, high = np.transpose(run.last)
        panels[i].fill_between(run.steps, low, high, color=color, alpha=0.25, linewidth=0)
        panels[i].plot(run.steps, middle, color=color)
        panels[i].set_title(f"A sigmoid of the last layer, {run.name}", fontsize="medium")
        panels[i].set_ylabel("input\n(15, 50, 85 %)")
    axes.legend(loc="lower right")
    panels[0].tick_params(labelbottom=False)
    panels[1].set_xlabel("training steps")
    for axes in panels.values():
        axes.grid(alpha=0.3)
        axes.margins(x=0.01)
    figure.savefig(path, dpi=150)
