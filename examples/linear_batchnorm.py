"""Linear, batch norm, linear: forward and backward by hand, checked with finite differences.

Run ``python examples/linear_batchnorm.py`` (needs scipy). The weight gradient of the layer below
the batch norm is a^T dx, a sum of outer products over the batch: (35), (36) of docs/math.md.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import approx_fprime

import cbn

ROWS, INPUTS, HIDDEN, OUTPUTS = 32, 5, 4, 3


def forward(params: dict, a: np.ndarray, target: np.ndarray) -> tuple[float, tuple]:
    """Return the loss and what backward needs."""
    x = a @ params["W1"] + params["b1"]
    y, cache = cbn.batch_norm_forward(x, params["gamma"], params["beta"])
    out = y @ params["W2"] + params["b2"]
    error = out - target
    return 0.5 * np.sum(error**2) / len(a), (y, cache, error / len(a))


def backward(params: dict, a: np.ndarray, saved: tuple) -> tuple[dict, np.ndarray]:
    """Return the gradient of every parameter, and dx of the batch norm."""
    y, cache, dout = saved
    dy = dout @ params["W2"].T
    dx, dgamma, dbeta = cbn.batch_norm_backward(dy, cache)
    grads = {
        "W1": a.T @ dx,
        "b1": dx.sum(axis=0),
        "gamma": dgamma,
        "beta": dbeta,
        "W2": y.T @ dout,
        "b2": dout.sum(axis=0),
    }
    return grads, dx


def main() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((ROWS, INPUTS)) + 1
    target = rng.standard_normal((ROWS, OUTPUTS))
    params = {
        "W1": rng.standard_normal((INPUTS, HIDDEN)),
        "b1": rng.standard_normal(HIDDEN),
        "gamma": 1 + rng.random(HIDDEN),
        "beta": rng.standard_normal(HIDDEN),
        "W2": rng.standard_normal((HIDDEN, OUTPUTS)),
        "b2": rng.standard_normal(OUTPUTS),
    }
    _, saved = forward(params, a, target)
    grads, dx = backward(params, a, saved)

    worst = 0.0
    print("parameter   largest gradient   error against finite differences")
    for name, value in params.items():

        def loss(flat: np.ndarray, name: str = name, shape: tuple = value.shape) -> float:
            return forward({**params, name: flat.reshape(shape)}, a, target)[0]

        numeric = approx_fprime(value.ravel(), loss).reshape(value.shape)
        error = np.max(np.abs(grads[name] - numeric)) / (1 + np.max(np.abs(numeric)))
        worst = max(worst, error)
        print(f"{name:9}   {np.max(np.abs(grads[name])):16.3g}   {error:.1e}")

    outer_products = sum(np.outer(a[n], dx[n]) for n in range(ROWS))
    product_of_sums = np.outer(a.sum(axis=0), dx.sum(axis=0))
    difference = np.max(np.abs(grads["W1"] - outer_products))
    print(f"a^T dx differs from the sum of outer products by {difference:.1e}")
    print(f"the product of the sums is no gradient: below {np.max(np.abs(product_of_sums)):.1e}")
    if worst > 1e-5:
        raise SystemExit("a gradient is wrong")


if __name__ == "__main__":
    main()
