"""Gradient accumulation with batch norm whose gradients are those of the full batch.

Run ``python examples/micro_batches.py``. A network with batch norm that is trained on micro-batches
usually normalizes each of them by its own statistics, and the accumulated gradients are then not
those of the full batch. Two reductions of a few numbers a channel mend it: the moments of the
micro-batches are merged before any of them is normalized, (44) of docs/math.md, and their backward
sums before any of them has its dx, (46). Each costs one more pass over the layers below.
"""

from __future__ import annotations

import numpy as np

import cbn

ROWS, MICRO, INPUTS, HIDDEN = 96, 20, 8, 16  # the last micro-batch is smaller


def gradients(params: dict, batches: list[tuple[np.ndarray, np.ndarray]], rows: int) -> dict:
    """Gradients of mean((relu(bn(a W1)) W2 - target)^2) / 2, summed over the micro-batches."""
    m = cbn.Moments.from_batches(a @ params["W1"] for a, _ in batches)

    def forward(a: np.ndarray) -> tuple[np.ndarray, cbn.BatchNormCache]:
        gamma, beta = params["gamma"], params["beta"]
        return cbn.batch_norm_normalize(a @ params["W1"], m, gamma, beta, activation="relu")

    dW2, sums = 0, []
    for a, target in batches:
        y, cache = forward(a)
        dout = (y @ params["W2"] - target) / rows
        dW2 += y.T @ dout
        sums.append(cbn.BackwardSums.from_batch(dout @ params["W2"].T, cache))
    s = cbn.BackwardSums.merge_all(sums)

    dW1 = 0
    for a, target in batches:
        y, cache = forward(a)
        dout = (y @ params["W2"] - target) / rows
        dx, dgamma, dbeta = cbn.batch_norm_backward_apply(dout @ params["W2"].T, cache, s)
        dW1 += a.T @ dx
    return {"W1": dW1, "gamma": dgamma, "beta": dbeta, "W2": dW2}


def main() -> None:
    rng = np.random.default_rng(0)
    a, target = rng.normal(2, 1, (ROWS, INPUTS)), rng.normal(size=(ROWS, 1))
    params = {
        "W1": rng.normal(size=(INPUTS, HIDDEN)),
        "gamma": rng.normal(1, 0.2, HIDDEN),
        "beta": rng.normal(0, 0.2, HIDDEN),
        "W2": rng.normal(size=(HIDDEN, 1)),
    }
    micro = [(a[i : i + MICRO], target[i : i + MICRO]) for i in range(0, ROWS, MICRO)]
    full = gradients(params, [(a, target)], ROWS)
    merged = gradients(params, micro, ROWS)
    alone = [gradients(params, [batch], ROWS) for batch in micro]

    print("            difference from the full batch's gradient, over its largest element")
    print("parameter   statistics merged   each micro-batch by its own")
    for name, right in full.items():
        own = sum(found[name] for found in alone)
        off = [
            np.max(np.abs(found - right)) / np.max(np.abs(right)) for found in (merged[name], own)
        ]
        print(f"{name:9}   {off[0]:17.1e}   {off[1]:27.1e}")
        if off[0] > 1e-12:
            raise SystemExit("a gradient is wrong")


if __name__ == "__main__":
    main()
