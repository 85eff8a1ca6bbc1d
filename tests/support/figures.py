"""Helpers for the tests of figures."""

import itertools
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image


def assert_figure(path: Path) -> None:
    """Asserts that a file is a complete PNG that is not empty, and that no temporary file is left beside it."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 60 and pixels.std() > 5, "a figure with something on it"
    assert not list(path.parent.glob(".*"))


def texts_of(figure: Figure) -> list[tuple[Text, Bbox]]:
    """Draws a figure and returns every text that was drawn, with its box in pixels."""
    canvas, drawn = FigureCanvasAgg(figure), []
    draw = Text.draw

    def recorded(self, renderer, *arguments, **named):
        drawn.append(self)
        draw(self, renderer, *arguments, **named)

    with mock.patch.object(Text, "draw", recorded):
        figure.draw_without_rendering()
    shown = {text: text.get_tightbbox(canvas.get_renderer()) for text in drawn if text.get_visible() and text.get_text().strip()}
    return [(text, box) for text, box in shown.items() if box is not None and box.width > 0 and box.height > 0]


def faults(figure: Figure) -> list[str]:
    """Returns what a reader could not read: texts outside the figure or over each other, and epochs that are fractions."""
    texts, found = texts_of(figure), []
    for text, box in texts:
        x0, y0, x1, y1 = (*(box.min - figure.bbox.min), *(figure.bbox.max - box.max))
        if min(x0, y0, x1, y1) < -1.0:
            found.append(f"{text.get_text()!r} is cut")
    for (one, box), (other, behind) in itertools.combinations(texts, 2):
        both = Bbox.intersection(box, behind)
        if both is not None and min(both.width, both.height) > 0.5:
            found.append(f"{one.get_text()!r} lies over {other.get_text()!r}")
    drawn = {text for text, _ in texts}
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.get_label_text() == "epoch"):
        ticks = [label.get_text() for label in axis.get_ticklabels() if label in drawn]
        found += [f"epoch {tick} is no whole number" for tick in ticks if not float(tick.replace("−", "-")).is_integer()]
    return found


def record(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Returns a list to which every figure written from now on is added, after a check that it has no faults.

    Figures are written small, which is fast.
    """
    written: list[Figure] = []
    save = Figure.savefig

    def savefig(self, *arguments, **named):
        found = faults(self)
        assert not found, found
        written.append(self)
        save(self, *arguments, **{**named, "dpi": 40})

    monkeypatch.setattr(Figure, "savefig", savefig)
    return written
