"""Draw the figures of docs/math.md into docs/figures: ``python docs/figures.py``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parent
FORWARD, BACKWARD = "#30465c", "#b4321e"

# name: (position, value, gradient)
NODES = {
    "x": ((0, 0), r"$x_i$", r"$\mathrm{dx}_i$"),
    "mean": ((5.5, 2.5), r"$\mathrm{mean}$", r"$\mathrm{dmean}$"),
    "var": ((5.5, 5.2), r"$\mathrm{var}$", r"$\mathrm{dvar}$"),
    "xhat": ((11, 0), r"$\hat{x}_i$", r"$\mathrm{dxhat}_i$"),
    "y": ((15.2, 0), r"$y_i$", r"$\mathrm{dy}_i$"),
    "gamma": ((13.9, 2.9), r"$\gamma$", r"$\mathrm{d}\gamma$"),
    "beta": ((16.5, 2.9), r"$\beta$", r"$\mathrm{d}\beta$"),
}

# from, to: (what flows back, where its label stands)
EDGES = {
    ("x", "mean"): (r"$\frac{1}{N}\,\mathrm{dmean}$", (3.75, 0.85)),
    ("x", "var"): (r"$\frac{2}{N}(x_i-\mathrm{mean})\,\mathrm{dvar}$", (0.9, 3.1)),
    ("mean", "var"): (r"$0$", (5.95, 3.85)),
    ("x", "xhat"): (r"$\mathrm{invstd}\;\mathrm{dxhat}_i$", (5.5, -0.55)),
    ("mean", "xhat"): (r"$-\mathrm{invstd}\,\sum\,\mathrm{dxhat}_i$", (6.75, 0.78)),
    ("var", "xhat"): (
        r"$-\frac{1}{2}\,\mathrm{invstd}^3\,\sum\,\mathrm{dxhat}_i\,(x_i-\mathrm{mean})$",
        (10.7, 4.2),
    ),
    ("xhat", "y"): (r"$\gamma\,\mathrm{dy}_i$", (13.1, -0.55)),
    ("gamma", "y"): (r"$\sum\,\mathrm{dy}_i\,\hat{x}_i$", (13.3, 1.35)),
    ("beta", "y"): (r"$\sum\,\mathrm{dy}_i$", (17.0, 1.35)),
}


def draw_graph(path: Path) -> None:
    """Draw the computation graph: values flow along the dark arrows, gradients along the red."""
    plt.rcParams["mathtext.fontset"] = "cm"
    fig, ax = plt.subplots(figsize=(12, 4.6))
    for (start, end), (label, where) in EDGES.items():
        a, b = NODES[start][0], NODES[end][0]
        length = ((b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2) ** 0.5
        unit = (b[0] - a[0]) / length, (b[1] - a[1]) / length
        for (p, q), color, style in (((a, b), FORWARD, "-"), ((b, a), BACKWARD, (0, (5, 2)))):
            side = 0.11 if color == FORWARD else -0.11
            shift = -unit[1] * side, unit[0] * side
            ax.annotate(
                "",
                xy=(q[0] + shift[0], q[1] + shift[1]),
                xytext=(p[0] + shift[0], p[1] + shift[1]),
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": color,
                    "linestyle": style,
                    "linewidth": 1.4,
                    "shrinkA": 31,
                    "shrinkB": 31,
                },
            )
        ax.text(*where, label, color=BACKWARD, fontsize=15, ha="center", va="center")
    for (x, y), value, gradient in NODES.values():
        ax.add_patch(
            matplotlib.patches.FancyBboxPatch(
                (x - 0.62, y - 0.45), 1.24, 0.9, boxstyle="round,pad=0.1",
                facecolor="#f4f6f8", edgecolor=FORWARD, linewidth=1.2, zorder=3,
            )
        )  # fmt: skip
        ax.text(x, y + 0.24, value, color=FORWARD, fontsize=15, ha="center", va="center", zorder=4)
        ax.text(
            x, y - 0.26, gradient, color=BACKWARD, fontsize=14, ha="center", va="center", zorder=4
        )
    ax.plot([], [], color=FORWARD, label="forward: values")
    ax.plot([], [], color=BACKWARD, linestyle="--", label="backward: what each edge adds")
    ax.legend(loc="upper right", fontsize=12, frameon=False)
    ax.set(xlim=(-1.4, 18), ylim=(-1, 6), aspect="equal")
    ax.axis("off")
    fig.savefig(path, dpi=120, bbox_inches="tight", metadata={"Software": None})
    plt.close(fig)


if __name__ == "__main__":
    figures = DOCS / "figures"
    figures.mkdir(exist_ok=True)
    draw_graph(figures / "graph.png")
    sys.argv = ["jacobian.py", "--plot", str(figures / "jacobian.png")]
    runpy.run_path(str(DOCS.parent / "examples" / "jacobian.py"), run_name="__main__")
