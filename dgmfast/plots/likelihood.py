"""The figure of an evaluation: L_K against K, and the effective sample sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dgmfast.evaluate import LogLikelihood
from dgmfast.plots.canvas import COLORS, fold, line, log_axis, new_figure, save, whole_numbers

BINS = 40


def log_likelihood(result: LogLikelihood, path: str | Path, *, title: str = "") -> Path:
    """Draw the mean over the rows of log_px of the first K samples against K, in nats, and the effective sample sizes.

    The second panel shows how many rows have which effective sample size. `title` says which model and rows these are.
    """
    figure = new_figure(10.0, 4.2)
    curve, sizes = figure.subplots(1, 2)
    means = [float(log_px.mean()) for log_px in result.curve.values()]
    line(curve, list(result.curve), means, "L_K of the first K samples", 0, "o")
    label = f"L_1, mean over {result.k} sample{'s' if result.k > 1 else ''}"
    curve.axhline(result.mean("elbo")[0], color=COLORS[5], linestyle="--", label=label)
    curve.set_xscale("log")
    curve.set_xlim(0.8, 1.25 * result.k)
    curve.set_xlabel("K, number of samples")
    curve.set_ylabel("nats per row (higher is better)")
    curve.set_title(f"Bounds on log p(x), mean of {len(result.log_px)} rows")
    curve.legend(frameon=False, fontsize=9)
    curve.grid(alpha=0.25)
    ess = result.ess.clamp(max=result.k)  # rounding may put it above the last bin
    sizes.hist(ess.cpu().numpy(), bins=np.geomspace(1.0, max(result.k, 2), BINS + 1).tolist(), color=COLORS[0])
    sizes.set_xscale("log")
    sizes.set_xlabel(f"effective sample size, at most {result.k}")
    sizes.set_ylabel("rows")
    sizes.set_title(f"A few samples dominate {int(result.dominated().sum())} of {len(ess)} rows")
    sizes.grid(alpha=0.25)
    whole_numbers(sizes.yaxis)
    for axes in (curve, sizes):
        log_axis(axes.xaxis)
    figure.suptitle(fold(title, figure.get_figwidth(), 11), fontsize=11)
    return save(figure, path)
