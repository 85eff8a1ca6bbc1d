"""What all figures share: colours, scatter plots, and PNG files that are written completely or not at all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dgmfast.files import disk_errors, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito (2008), then Tol's "muted". Both palettes are made for all kinds of colour vision; beyond them, markers differ.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#AA9F00", "#882255", "#999999")
MARKERS = "osv^D"
Color = str | tuple[float, float, float]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of the given size in inches."""
    # pyplot would choose a window system and keep every figure alive.
    from matplotlib.figure import Figure

    return Figure(figsize=(max(width, 3.6), max(height, 2.0)), dpi=150, layout="constrained")


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure as a PNG file, completely or not at all, and create its folder if necessary."""
    path = Path(path)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    return path


def scatter(axes: Axes, points: np.ndarray, y: np.ndarray | None) -> None:
    """Draw points [N, 2], with a colour, a marker and a legend entry per class y [N]."""
    size = 14 if len(points) < 2000 else 5
    if y is None:
        axes.scatter(points[:, 0], points[:, 1], s=size, color=COLORS[0], linewidths=0)
        return
    for label in np.unique(y):
        color, marker = COLORS[label % len(COLORS)], MARKERS[label % len(MARKERS)]
        rows = points[y == label]
        axes.scatter(rows[:, 0], rows[:, 1], s=size, color=color, marker=marker, linewidths=0, alpha=0.8, label=str(label))


def line(
    axes: Axes, x: Sequence[float], y: Sequence[float], label: str, color: Color, marker: str | None = None, style: str = "-"
) -> None:
    """Draw a curve. If it has only one or two points, they get markers."""
    marker = marker or ("o" if len(x) < 3 else None)
    axes.plot(x, y, label=label, color=color, marker=marker, linestyle=style, markersize=4, linewidth=1.6)


def over_epochs(axes: Axes, ylabel: str, title: str) -> None:
    """Label the axes of curves over the epochs, and draw the legend if there is one."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
