"""The Jacobian of one channel as a picture, and its spectrum.

Run ``python examples/jacobian.py --plot jacobian.png`` (needs matplotlib). The equations are
(22)-(24) of docs/math.md.
"""

from __future__ import annotations

import argparse

import matplotlib
import numpy as np

import cbn

matplotlib.use("Agg")
import matplotlib.pyplot as plt

N, EPS = 16, 0.4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", default="jacobian.png", metavar="PATH", help="where to save")
    path = parser.parse_args().plot

    x = np.sort(np.random.default_rng(0).standard_normal((N, 1)), axis=0)
    gamma, beta = np.array([1.5]), np.array([0.5])
    _, cache = cbn.batch_norm_forward(x, gamma, beta, eps=EPS)
    jac = cbn.batch_norm_jacobian(cache)[0]

    scale = (gamma * cache.invstd)[0]
    computed = np.linalg.eigvalsh(jac)
    closed = np.full(N, scale)
    closed[:2] = 0, scale * EPS / (cache.var[0] + EPS)
    print("symmetric to", np.max(np.abs(jac - jac.T)))
    print("eigenvalues differ from the closed form by", np.max(np.abs(computed - closed)))

    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    limit = np.max(np.abs(jac - np.diag(np.diag(jac))))
    image = left.imshow(jac, cmap="RdBu_r", vmin=-limit, vmax=limit)
    bar = fig.colorbar(image, ax=left, extend="max")
    bar.set_label("dy[k] / dx[i]  (the diagonal, about "
                  f"{np.mean(np.diag(jac)):.1f}, is off the scale)")  # fmt: skip
    left.set(xlabel="i (rows sorted by x)", ylabel="k", title=f"Jacobian of one channel, N = {N}")

    index = np.arange(1, N + 1)
    right.plot(index, closed, "o", markersize=12, mfc="none", color="#30465c", label="closed form")
    right.plot(index, computed, ".", color="#b4321e", label="numpy.linalg.eigvalsh")
    notes = ["0: the vector 1", "gamma invstd eps/(var + eps): xhat", "gamma invstd: all the rest"]
    for k, note in enumerate(notes, start=1):
        right.annotate(note, (k, closed[k - 1]), (4, -10), textcoords="offset points", va="top")
    right.set(xlabel="index", ylabel="eigenvalue", title="Its spectrum", ylim=(-0.12 * scale, None))
    right.legend(loc="center right")
    fig.savefig(path, dpi=120, metadata={"Software": None})
    print("saved", path)


if __name__ == "__main__":
    main()
