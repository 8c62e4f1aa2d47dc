"""Draw the figures of the documentation into docs/figures: ``python docs/figures.py``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

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
            FancyBboxPatch(
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
    save(fig, path)


# Light, dark: those of one channel in two ghost batches.
CHANNELS = ("#9ecae1", "#4a90c2"), ("#fdbe85", "#d9792b"), ("#a1d99b", "#4aa564")
MASKED = "#f0f0f0"


def draw_axes(path: Path) -> None:
    """Draw which cells share a mean: in four layouts, cells of one colour."""
    fig, axes = plt.subplots(1, 4, figsize=(13, 3.7), width_ratios=[3, 6.6, 8, 3])
    light = [shades[0] for shades in CHANNELS]

    def grid(ax, color_of, rows, cols, left=0.0, top=0.0):
        for row in range(rows):
            for col in range(cols):
                color = color_of(row, col)
                hatch = "////" if color == MASKED else None
                ax.add_patch(
                    Rectangle(
                        (left + col, top + row), 1, 1,
                        facecolor=color, edgecolor="#b0b0b0" if hatch else "white",
                        hatch=hatch, linewidth=0 if hatch else 1.2,
                    )
                )  # fmt: skip

    grid(axes[0], lambda row, col: light[col], 6, 3)
    axes[0].set_title("rows\n(N, D)")
    for image in range(2):
        for channel in range(3):
            place = {"left": 3.4 * channel, "top": 3.4 * image}
            grid(axes[1], lambda row, col, color=light[channel]: color, 3, 3, **place)
        axes[1].text(-0.3, 3.4 * image + 1.5, f"image {image}", ha="right", va="center")
    axes[1].set_title("images\n(N, C, H, W), axis=1")
    lengths = 5, 2, 4, 1
    for channel in range(2):
        grid(
            axes[2],
            lambda row, col, color=light[channel]: color if col < lengths[row] else MASKED,
            *(4, 5, 5.6 * channel, 1),
        )
    axes[2].set_title("padded sequences, by channel\n(N, C, T), axis=1, mask=")
    grid(axes[3], lambda row, col: CHANNELS[col][row // 3], 6, 3)
    axes[3].axhline(3, color=FORWARD, linewidth=1.5, linestyle="--")
    axes[3].set_title("ghost batches\n(N, D), virtual_batch_size=3")
    for ax in axes:
        ax.autoscale()
        ax.set_aspect("equal")
        ax.invert_yaxis()
        ax.axis("off")
    fig.tight_layout(w_pad=2)
    save(fig, path)


def draw_parts(path: Path) -> None:
    """Draw a batch of two parts: what is done to each, and what is merged."""
    fig, axes = plt.subplots(2, 1, figsize=(8.5, 6.4))
    steps = [
        ("Moments\n.from_batch", "batch_norm_normalize", FORWARD, "x", "y"),
        ("BackwardSums\n.from_batch", "batch_norm_\nbackward_apply", BACKWARD, "dy", "dx"),
    ]
    for ax, (reduce, apply, color, data, result) in zip(axes, steps, strict=True):
        style = "-" if color == FORWARD else (0, (5, 2))
        arrows = {"arrowstyle": "-|>", "mutation_scale": 13, "color": color, "linestyle": style}

        def box(x, y, text, width, ax=ax, color=color):
            place = (x - width / 2, y - 0.3), width, 0.6
            look = {"facecolor": "#f4f6f8", "edgecolor": color, "linewidth": 1.3, "zorder": 3}
            ax.add_patch(FancyBboxPatch(*place, boxstyle="round,pad=0.08", **look))
            text_look = {"ha": "center", "va": "center", "family": "monospace", "zorder": 4}
            ax.text(x, y, text, color=color, **text_look)

        box(4.9, 1.1, "merge", 1)
        for part, y in enumerate((2.2, 0)):
            for x, name in ((0, data), (10.2, result)):
                text = f"{name} of\npart {part}"
                ax.text(x, y, text, color=color, ha="center", va="center")
            box(2.4, y, reduce, 2.1)
            box(7.7, y, apply, 3.1)
            side = 1 if y else -1
            for start, end in (
                ((0.6, y), (1.25, y)),
                ((3.55, y), (4.5, 1.1 + 0.4 * side)),
                ((5.3, 1.1 + 0.4 * side), (6.05, y)),
                ((9.35, y), (9.8, y)),
                ((7.7, y + 0.8 * side), (7.7, y + 0.4 * side)),  # the part itself, past the merge
            ):
                ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **arrows))
            over = y + 0.8 * side
            ax.plot([0, 0, 7.7], [y + 0.35 * side, over, over], color=color, linestyle=":")
        ax.set(xlim=(-0.6, 10.8), ylim=(-1, 3.2))
        ax.axis("off")
    fig.tight_layout(h_pad=0)
    save(fig, path)


def save(fig, path: Path) -> None:
    fig.savefig(path, dpi=120, bbox_inches="tight", metadata={"Software": None})
    plt.close(fig)


if __name__ == "__main__":
    figures = DOCS / "figures"
    figures.mkdir(exist_ok=True)
    draw_graph(figures / "graph.png")
    draw_axes(figures / "axes.png")
    draw_parts(figures / "parts.png")
    sys.argv = ["jacobian.py", "--plot", str(figures / "jacobian.png")]
    runpy.run_path(str(DOCS.parent / "examples" / "jacobian.py"), run_name="__main__")
