"""The figure of an evaluation: L_K against K, and the effective sample sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dgmfast.evaluate import LogLikelihood
from dgmfast.plots.canvas import COLORS, line, new_figure, save

BINS = 40


def log_likelihood(result: LogLikelihood, path: str | Path, *, title: str = "") -> Path:
    """Draw the mean over the rows of log_px of the first K samples against K, in nats, and the effective sample sizes.

    The second panel shows how many rows have which effective sample size. `title` says which model and rows these are.
    """
    figure = new_figure(10.0, 4.2)
    curve, sizes = figure.subplots(1, 2)
    means = [float(log_px.mean()) for log_px in result.curve.values()]
    line(curve, list(result.curve), means, "first K samples", COLORS[0], "o")
    curve.axhline(result.mean("elbo")[0], color=COLORS[5], linestyle="--", label=f"L_1, of all {result.k} samples")
    curve.set_xscale("log")
    curve.set_xlabel("K")
    curve.set_ylabel("nats per row")
    curve.set_title(f"L_K, mean of {len(result.log_px)} rows")
    curve.legend(frameon=False, fontsize=9)
    curve.grid(alpha=0.25)
    sizes.hist(result.ess.cpu().numpy(), bins=np.geomspace(1.0, max(result.k, 2), BINS + 1).tolist(), color=COLORS[0])
    sizes.set_xscale("log")
    sizes.set_xlabel(f"effective sample size, of {result.k}")
    sizes.set_ylabel("rows")
    sizes.set_title(f"{int(result.dominated().sum())} rows are dominated by a few samples")
    sizes.grid(alpha=0.25)
    if title:
        figure.suptitle(title, fontsize=11)
    return save(figure, path)
