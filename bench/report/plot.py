"""The pictures: the ratios, one row per piece of work and one mark per rival; a training step against the number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.report.ratios import RIVALS, headline, most_threads
from bench.store import Row

# Okabe and Ito's colours and two of Tol's, which colour-blind readers tell apart, and a shape for each besides.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#56B4E9",
    "#999999",
    "#CC79A7",
    "#E69F00",
    "#000000",
    "#F0E442",
    "#882255",
    "#332288",
)
STYLES = dict(zip(RIVALS, zip(COLOURS, "os^PX*Dv<>p", strict=True), strict=True))


def speedups(rows: Sequence[Row], path: Path) -> None:
    """Draw the ratios of a machine at its most threads into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    threads = most_threads(rows)
    listed = [work for work in headline(rows) if work.ratios][::-1]
    figure, axes = pyplot.subplots(figsize=(9.0, 1.4 + 0.27 * len(listed)))
    axes.axvline(1.0, color="0.35", linewidth=1.0, zorder=1)
    for rival, (colour, marker) in STYLES.items():
        found = [(work.ratios[rival].value, y) for y, work in enumerate(listed) if rival in work.ratios]
        if found:
            axes.scatter([v for v, _ in found], [y for _, y in found], color=colour, marker=marker, s=34, zorder=3, label=rival)
        wanted = [(w.target.ratios[rival], y) for y, w in enumerate(listed) if w.target and rival in w.target.ratios]
        if wanted:
            axes.scatter(
                [v for v, _ in wanted], [y for _, y in wanted], color=colour, marker="|", s=150, linewidths=1.6, zorder=2
            )
    axes.scatter([], [], color="0.35", marker="|", s=150, linewidths=1.6, label="target, in the rival's colour")
    axes.set_yticks(range(len(listed)), [work.title.replace("`", "") for work in listed], fontsize=8)
    axes.set_ylim(-0.7, len(listed) - 0.3)
    axes.set_xscale("log")
    ticks = [
        tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 1000, 5000) if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]
    ]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.grid(color="0.9", zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"times slower than dgmfast on {_machine(rows, threads)}")
    figure.legend(loc="upper center", ncols=6, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def classes(rows: Sequence[Row], path: Path) -> bool:
    """Draw the time of a training step against the number of classes into a PNG; false where it was not measured."""
    threads = most_threads(rows)
    found = [row for row in rows if row["case"] == "classes" and row["threads"] == threads and row["malloc"] == "default"]
    if not found:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.4))
    lines = {"repeated batch": ("repeated batch", ""), "exact sum": ("exact sum", "exact_flops"), "ours": ("sparse sum", "flops")}
    rates = [row["rate"] for row in rows if row["case"] == "floor" and row["shape"] == "sgemm" and row["threads"] == threads]
    for (contender, (label, flops)), colour, marker in zip(lines.items(), COLOURS, "os^", strict=False):
        timed = sorted((r for r in found if r["contender"] == contender and "median_s" in r), key=lambda r: r["classes"])
        labels = [row["classes"] for row in timed]
        axes.plot(labels, [1e3 * row["median_s"] for row in timed], color=colour, marker=marker, label=label)
        if flops and rates:
            axes.plot(labels, [1e3 * row[flops] / rates[0] for row in timed], color=colour, linestyle=":", linewidth=1.2)
    if rates:
        axes.plot([], [], color="0.35", linestyle=":", linewidth=1.2, label="its multiplications alone")
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({row["classes"] for row in found})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("classes")
    axes.set_ylabel("ms per training step of the ADGM")
    axes.set_title(_machine(rows, threads), fontsize=8)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True


def _machine(rows: Sequence[Row], threads: int) -> str:
    last = max(rows, key=lambda row: row["date"])
    machine = last.get("gpu") or f"{last['cpu']}, {threads} threads, {last['isa']}"
    return f"{machine}, torch {last['torch']}"
