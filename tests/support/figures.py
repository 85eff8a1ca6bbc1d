"""What tests of figures share."""

from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image


def assert_figure(path: Path) -> None:
    """A whole PNG with something on it."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 60 and pixels.std() > 5, "a figure with something on it"
    assert not list(path.parent.glob(".*"))


def record(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """A list to which every figure that is written from now on is added; they are written small, which is fast."""
    written: list[matplotlib.figure.Figure] = []
    save = matplotlib.figure.Figure.savefig

    def savefig(self, *arguments, **named):
        written.append(self)
        save(self, *arguments, **{**named, "dpi": 40})

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    return written
