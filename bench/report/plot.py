"""The plots: the ratios, one line per work and one mark per rival, and the time of a step against the number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.report.ratios import RIVALS, headline, most_threads
from bench.store import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The colours are Okabe and Ito's and two of Tol's, which colour-blind readers can tell apart. Each also has its own marker.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#56B4E9",
    "#999999",
    "#CC79A7",
    "#E69F00",
    "#000000",
    "#AA9F00",
    "#882255",
    "#332288",
)
STYLES = dict(zip(RIVALS, zip(COLOURS, "os^PX*Dv<>p", strict=True), strict=True))


def speedups(rows: Sequence[Row], path: Path) -> None:
    """Draws the ratios of a machine, at its largest thread count, into a PNG."""
    from matplotlib import figure as figures
    from matplotlib import ticker

    threads = most_threads(rows)
    listed = [work for work in headline(rows) if work.ratios][::-1]
    figure = figures.Figure(figsize=(9.5, 1.6 + 0.27 * len(listed)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(1.0, color="0.35", linewidth=1.0, zorder=1)
    for rival, (colour, marker) in STYLES.items():
        found = [(work.ratios[rival].value, y) for y, work in enumerate(listed) if rival in work.ratios]
        if found:
            x, heights = [v for v, _ in found], [y for _, y in found]
            # The white edge separates marks that overlap.
            axes.scatter(x, heights, c=colour, marker=marker, s=64, edgecolors="white", linewidths=0.5, zorder=3, label=rival)
        wanted = [(w.target.ratios[rival], y) for y, w in enumerate(listed) if w.target and rival in w.target.ratios]
        if wanted:
            axes.scatter(
                [v for v, _ in wanted], [y for _, y in wanted], color=colour, marker="|", s=150, linewidths=1.6, zorder=2
            )
    axes.scatter([], [], color="0.35", marker="|", s=150, linewidths=1.6, label="target, in its colour")
    axes.set_yticks(range(len(listed)), [work.title.replace("`", "") for work in listed], fontsize=8)
    axes.set_ylim(-0.7, len(listed) - 0.3)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0) if high < 20.0 * low else (1.0,)))
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.set_xlabel("times slower than dgmfast")
    _tidy(axes)
    axes.set_title(_machine(rows, threads), fontsize=9, loc="right")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def classes(rows: Sequence[Row], path: Path) -> bool:
    """Draws the time of a training step against the number of classes into a PNG; returns False if it was not measured."""
    threads = most_threads(rows)
    found = [row for row in rows if row["case"] == "classes" and row["threads"] == threads and row["malloc"] == "default"]
    if not found:
        return False
    from matplotlib import figure as figures

    figure = figures.Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    lines = {"repeated batch": ("repeated batch", ""), "exact sum": ("exact sum", "exact_flops"), "ours": ("sparse sum", "flops")}
    rates = [row["rate"] for row in rows if row["case"] == "floor" and row["shape"] == "sgemm" and row["threads"] == threads]
    for (contender, (label, flops)), colour, marker in zip(lines.items(), COLOURS, "os^", strict=False):
        timed = sorted((r for r in found if r["contender"] == contender and "median_s" in r), key=lambda r: r["classes"])
        labels = [row["classes"] for row in timed]
        axes.plot(labels, [1e3 * row["median_s"] for row in timed], color=colour, marker=marker, label=label)
        if flops and rates:
            axes.plot(labels, [1e3 * row[flops] / rates[0] for row in timed], color=colour, linestyle=":", linewidth=1.2)
    if rates:
        axes.plot([], [], color="0.35", linestyle=":", linewidth=1.2, label="matrix products alone")
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({row["classes"] for row in found})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("number of classes")
    axes.set_ylabel("time of a training step of the ADGM (ms)")
    _tidy(axes)
    axes.set_title(_machine(rows, threads), fontsize=9)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    return True


def _tidy(axes: Axes) -> None:
    """Draws a light grid behind the data, and neither minor ticks nor a frame."""
    axes.minorticks_off()
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _machine(rows: Sequence[Row], threads: int) -> str:
    last = max(rows, key=lambda row: row["date"])
    machine = last.get("gpu") or f"{last['cpu']}, {threads} threads, {last['isa']}"
    return f"{machine}, torch {last['torch']}"
