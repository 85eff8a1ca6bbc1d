"""What all figures share: colours, lines, legends, titles, and PNG files that are written completely or not at all."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgmfast.files import disk_errors, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


# Okabe and Ito (2008), then Tol's "muted". Both palettes are made for all kinds of colour vision; beyond them, markers differ.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#AA9F00", "#882255", "#999999")
MARKERS = "osv^D"
STYLES = ("-", "--", "-.", ":")
LEGEND_LINES = 18  # lines of text in one column of a legend beside the axes
LEGEND_LETTERS = 40  # letters in one line of it


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of the given size in inches."""
    # pyplot would choose a window system and keep every figure alive.
    from matplotlib.figure import Figure

    return Figure(figsize=(max(width, 3.6), max(height, 2.0)), dpi=150, layout="constrained")


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure as a PNG file, completely or not at all, and create its folder if necessary."""
    path = Path(path)
    buffer = io.BytesIO()
    figure.draw_without_rendering()  # images keep their aspect, which the layout only knows in its second pass
    figure.savefig(buffer, format="png")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    return path


def fold(text: str, inches: float, size: float = 12.0) -> str:
    """Break a text of `size` points into lines that fit into a width in inches."""
    letters = max(10, int(inches * 72 / (0.55 * size)))
    return "\n".join(textwrap.fill(part, letters) for part in text.splitlines())


def color(number: int) -> tuple[float, float, float]:
    """The colour of curve `number`: one of COLORS, then further ones at even distances on the circle of hues."""
    from matplotlib.colors import hsv_to_rgb, to_rgb

    if number < len(COLORS):
        return to_rgb(COLORS[number])
    red, green, blue = hsv_to_rgb(((number * 0.618034) % 1.0, 0.9, 0.7)).tolist()
    return red, green, blue


def scatter(axes: Axes, points: np.ndarray, y: np.ndarray | None) -> None:
    """Draw points [N, 2], with a colour, a marker and a legend entry per class y [N]."""
    size = 14 if len(points) < 2000 else 5
    if y is None:
        axes.scatter(points[:, 0], points[:, 1], s=size, color=COLORS[0], linewidths=0)
        return
    for label in np.unique(y):
        rows, marker = points[y == label], MARKERS[label % len(MARKERS)]
        axes.scatter(rows[:, 0], rows[:, 1], s=size, color=color(label), marker=marker, linewidths=0, alpha=0.8, label=str(label))


def line(axes: Axes, x: Sequence[float], y: Sequence[float], label: str, number: int, marker: str | None = None) -> None:
    """Draw a curve in the colour and the style of its number, so that equal curves show through each other.

    If it has only one or two points, they get markers.
    """
    marker = marker or ("o" if len(x) < 3 else None)
    style = STYLES[number % len(STYLES)]
    axes.plot(x, y, label=label, color=color(number), marker=marker, linestyle=style, markersize=4, linewidth=1.6)


def over_epochs(axes: Axes, ylabel: str, title: str, *, legend: bool = True) -> None:
    """Label the axes of curves over the epochs, and draw the legend inside if it is wanted."""
    whole_numbers(axes.xaxis)
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.grid(alpha=0.25)
    if legend:
        axes.legend(frameon=False, fontsize=9)


def whole_numbers(axis: Axis) -> None:
    """Put the ticks of an axis on whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def log_axis(axis: Axis, steps: Sequence[float] = (1.0,)) -> None:
    """Give a logarithmic axis ticks at `steps` times the powers of ten, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def show_late_values(axes: Axes, curves: Sequence[Sequence[float]]) -> None:
    """Cut off the lowest twentieth of the values of rising curves, if they are so far below that they would flatten the rest."""
    low = min(sorted(values)[math.ceil(len(values) / 20) if len(values) > 4 else 0] for values in curves)
    lowest, high = min(map(min, curves)), max(map(max, curves))
    if low - lowest > high - low > 0:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def legend_beside(figure: Figure, axes: Axes, title: str = "", markerscale: float = 1.0) -> None:
    """Draw the legend of the axes at the right of the figure, which is made wider for it."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [textwrap.fill(label, LEGEND_LETTERS) for label in labels]
    columns = math.ceil(sum(label.count("\n") + 1 for label in labels) / LEGEND_LINES)
    longest = max((len(part) for label in [title, *labels] for part in label.splitlines()), default=0)
    figure.set_figwidth(figure.get_figwidth() + columns * (0.6 + 0.08 * longest))
    look: dict[str, Any] = {"frameon": False, "fontsize": 9, "markerscale": markerscale}
    figure.legend(handles, labels, title=title or None, loc="outside right center", ncols=columns, **look)
