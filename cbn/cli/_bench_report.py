"""What ``cbn bench`` found: rows, means, noise and the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cbn.cli._contenders import OPS, Case

# Below this many elements the call itself counts more than the memory.
SMALL = 1 << 15
OWN = ("cbn", "floor")
SIZES = ("small", "in cache", "between", "past cache")
COLORS = {
    "cbn": "#0072b2",
    "floor": "0.45",
    "numpy": "#e69f00",
    "torch": "#d55e00",
    "jax": "#009e73",
    "numba": "#cc79a7",
    "onednn": "#56b4e9",
}
NOTES = """\
x floor: cbn's time over the floor's. x 1 thread: cbn's time in one thread over its time here.
x PEER: the peer's time over cbn's, so that cbn is faster above 1."""
JAX_NOTE = "jax takes the threads it likes, whatever --threads says, and always makes fresh arrays."


@dataclass
class Result:
    """One case.

    Attributes
    ----------
    seconds : dict
        Median time of a call of each contender, in the fastest of its ways.
    spread : dict
        Interquartile range over that median.
    ratios : dict
        As `NOTES` says, and ``best peer``, the least of the peers'.
    """

    shape: tuple[int, ...]
    layout: str
    dtype: str
    op: str
    threads: int
    rounds: int
    seconds: dict[str, float]
    spread: dict[str, float]
    ratios: dict[str, float]

    @classmethod
    def of(
        cls,
        case: Case,
        op: str,
        threads: int,
        samples: dict[str, list[list[float]]],
        one_thread: float | None,
    ) -> Result:
        """From every contender's samples, a list for each way."""
        seconds, spread = {}, {}
        for name, ways in samples.items():
            low, middle, high = min(
                (np.percentile(way, (25, 50, 75)).tolist() for way in ways), key=lambda way: way[1]
            )
            seconds[name], spread[name] = middle, (high - low) / middle
        ratios = {"floor": seconds["cbn"] / seconds["floor"]}
        if one_thread is not None:
            ratios["1 thread"] = one_thread / seconds["cbn"]
        peers = {name: seconds[name] / seconds["cbn"] for name in seconds if name not in OWN}
        ratios |= peers
        if peers:
            ratios["best peer"] = min(peers.values())
        rounds = len(samples["cbn"][0])
        return cls(
            *(case.shape, case.layout, case.dtype, op, threads, rounds, seconds, spread, ratios)
        )

    @property
    def name(self) -> str:
        return Case(self.shape, self.layout, self.dtype).name

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def size(self, cache: int) -> str:
        """One of SIZES: whether all arrays fit the last-level cache, or x alone fills it."""
        array = self.elements * np.dtype(self.dtype).itemsize
        arrays = 3 if self.op.endswith("backward") else 2
        if self.elements < SMALL:
            return "small"
        if array * arrays <= cache:
            return "in cache"
        return "between" if array < cache else "past cache"


# Text ---------------------------------------------------------------------------------------------


def heading(machine: dict[str, Any], columns: Sequence[str], fresh: bool) -> str:
    """What is measured, where, and the head of the table."""
    load = machine["load_average"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, last-level cache "
        f"{machine['last_level_cache'] >> 20} MiB, {machine['system']}",
        ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        f"cbn: ISA {machine['isa']}, {'' if machine['openmp'] else 'no '}OpenMP, "
        f"{machine['compiler']}",
        f"results: {'fresh arrays' if fresh else 'into arrays that are there (out=)'}"
        + ("" if load is None else f"; load average before: {load:.2f}"),
        NOTES,
        *([JAX_NOTE] if "jax" in columns else []),
        "",
        f"{'shape':18} {'op':18} {'dtype':8} threads {'ms':>9} {'ns/element':>10}"
        + "".join(f" {f'x {name}':>{_width(name)}}" for name in columns),
    ]
    return "\n".join(lines)


def row(result: Result, columns: Sequence[str]) -> str:
    """The line of one case."""
    seconds = result.seconds["cbn"]
    return (
        f"{result.name:18} {result.op:18} {result.dtype:8} {result.threads:7} "
        f"{1e3 * seconds:9.4g} {1e9 * seconds / result.elements:10.3f}"
        + "".join(
            f" {f'{result.ratios[name]:.2f}' if name in result.ratios else '-':>{_width(name)}}"
            for name in columns
        )
    )


def _width(column: str) -> int:
    return max(8, len(column) + 3)


def summarize(results: Sequence[Result], cache: int) -> list[dict[str, Any]]:
    """Geometric mean and worst case of every ratio, for each op, dtype, threads and size."""
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        key = (result.op, result.layout, result.dtype, result.threads, result.size(cache))
        groups.setdefault(key, []).append(result)
    order = sorted(groups, key=lambda key: (OPS.index(key[0]), *key[1:4], SIZES.index(key[4])))
    return [
        {
            **dict(zip(("op", "layout", "dtype", "threads", "size"), key, strict=True)),
            "cases": len(groups[key]),
            "ratios": {name: _mean_and_worst(name, groups[key]) for name in groups[key][0].ratios},
        }
        for key in order
    ]


def _mean_and_worst(name: str, results: Sequence[Result]) -> dict[str, float]:
    ratios = [result.ratios[name] for result in results]
    worst = max(ratios) if name == "floor" else min(ratios)
    return {"mean": float(np.exp(np.mean(np.log(ratios)))), "worst": worst}


def noise_of(results: Sequence[Result]) -> dict[str, Any]:
    """How much the floor's time varied: spread of the middle case and of the worst."""
    spreads = [result.spread["floor"] for result in results]
    worst = results[int(np.argmax(spreads))]
    return {
        "median": float(np.median(spreads)),
        "worst": max(spreads),
        "worst_case": f"{worst.name} {worst.op} {worst.dtype}, threads {worst.threads}",
    }


def closing(
    summary: Sequence[dict[str, Any]],
    noise: dict[str, Any],
    columns: Sequence[str],
    cache: int,
) -> str:
    """The table of means, what its sizes are, and the noise."""
    lines = [
        "",
        "geometric mean (worst case)",
        f"{'op':18} {'layout':6} {'dtype':8} threads {'size':10} cases"
        + "".join(f" {f'x {name}':>14}" for name in columns),
    ]
    for line in summary:
        cells = (line["ratios"].get(name) for name in columns)
        lines.append(
            f"{line['op']:18} {line['layout']:6} {line['dtype']:8} {line['threads']:7} "
            f"{line['size']:10} "
            f"{line['cases']:5}"
            + "".join(
                f" {'-' if cell is None else '{mean:.2f} ({worst:.2f})'.format(**cell):>14}"
                for cell in cells
            )
        )
    lines += [
        f"small: under {SMALL} elements; in cache: all arrays together take at most "
        f"{cache >> 20} MiB; past cache: x alone takes as much",
        f"noise: the interquartile range of the floor's time is {noise['median']:.0%} of its "
        f"median in the middle case, {noise['worst']:.0%} at most ({noise['worst_case']})",
    ]
    return "\n".join(lines)


# The picture --------------------------------------------------------------------------------------


def plot(results: Sequence[Result], machine: dict[str, Any], path: Path) -> None:
    """A row for each op and dtype: time over the floor, time an element by size, threads."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys((result.op, result.dtype) for result in results))
    scaling = any("1 thread" in result.ratios for result in results)
    widths = [4 + 0.3 * min(len({result.name for result in results}), 40), 4.5]
    widths += [4.5] * scaling
    figure = Figure(figsize=(sum(widths), 1.2 + 3.6 * len(kinds)), layout="constrained")
    FigureCanvasAgg(figure)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    figure.suptitle(f"{machine['cpu']}, ISA {machine['isa']}; {versions}", fontsize="small")
    panels = figure.subplots(len(kinds), len(widths), squeeze=False, width_ratios=widths)
    most = max(result.threads for result in results)
    for row, (op, dtype) in zip(panels, kinds, strict=True):
        chosen = [result for result in results if (result.op, result.dtype) == (op, dtype)]
        shown = [result for result in chosen if result.threads == most]
        _plot_over_floor(row[0], shown)
        row[0].set_title(f"{op.replace('_', ' ')}, {dtype}, threads: {most}", fontsize="medium")
        shown.sort(key=lambda result: result.elements)
        full = machine["last_level_cache"] / np.dtype(dtype).itemsize
        _plot_by_size(row[1], shown, full)
        if scaling:
            alone = {result.name: result.seconds for result in chosen if result.threads == 1}
            _plot_scaling(row[2], shown, alone, full)
        for axes in row:
            axes.grid(alpha=0.3)
    figure.legend(
        *panels[0][1].get_legend_handles_labels(), loc="outside lower center", ncols=len(COLORS)
    )
    figure.savefig(path, dpi=150)


def _plot_over_floor(axes: Any, results: Sequence[Result]) -> None:
    axes.axhline(1, color=COLORS["floor"])
    positions = range(len(results))
    for name in _contenders(results):
        if name != "floor":
            ratios = [_seconds(result, name) / result.seconds["floor"] for result in results]
            axes.plot(positions, ratios, "o", **_style(name))
    axes.set_xticks(positions, [result.name for result in results], rotation=60, ha="right")
    axes.set(yscale="log", ylabel="time over the floor's")
    axes.yaxis.set_major_formatter("{x:g}")


def _plot_by_size(axes: Any, results: Sequence[Result], full: float) -> None:
    sizes = [result.elements for result in results]
    for name in _contenders(results):
        times = [1e9 * _seconds(result, name) / result.elements for result in results]
        axes.plot(sizes, times, ".-", label=name, **_style(name))
    axes.set(yscale="log", ylabel="ns an element")
    axes.yaxis.set_major_formatter("{x:g}")
    _scale_by_size(axes, full)


def _plot_scaling(
    axes: Any, results: Sequence[Result], alone: dict[str, dict], full: float
) -> None:
    sizes = [result.elements for result in results]
    for name in _contenders(results):
        gains = [
            alone[result.name].get(name, math.nan) / _seconds(result, name) for result in results
        ]
        axes.plot(sizes, gains, ".-", **_style(name))
    axes.set(ylim=(0, None), ylabel=f"speed-up of {results[0].threads} threads over 1")
    _scale_by_size(axes, full)


def _contenders(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.seconds))


def _seconds(result: Result, name: str) -> float:
    return result.seconds.get(name, math.nan)


def _style(name: str) -> dict[str, Any]:
    own = name == "cbn"
    return {"color": COLORS[name], "linewidth": 1 + own, "zorder": 2 + own}


def _scale_by_size(axes: Any, full: float) -> None:
    axes.axvline(full, color="0.7", linestyle=":")
    axes.set(xscale="log", xlabel="elements (dotted: x fills the last-level cache)")
