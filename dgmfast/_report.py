"""Bounds of a model on a data set, as a table and as files."""

from __future__ import annotations

import io
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dgmfast._files import write_atomically
from dgmfast.errors import InputError
from dgmfast.evaluate import LogLikelihood, log_likelihood
from dgmfast.models.base import GenerativeModel, Label

MIDDLE_K = 50


@dataclass(frozen=True)
class Bounds:
    """L_1, L_50 (where k is larger) and L_k of the same rows, and the seconds that L_k took."""

    estimates: dict[int, LogLikelihood]  # the last one is of L_k and holds L_1 too
    seconds: float

    @property
    def last(self) -> LogLikelihood:
        return list(self.estimates.values())[-1]

    def summary(self) -> dict[str, dict[str, float | None]]:
        """Per bound, in nats: its mean over the rows, the standard errors of the mean that come from the rows and from the
        importance samples, and the mean effective sample size."""
        bounds: dict[str, dict[str, float | None]] = {"L_1": _row(self.last.elbo)}
        for k, estimate in self.estimates.items():
            if k > 1:
                bounds[f"L_{k}"] = _row(estimate.log_px) | {
                    "sampling_error": float(estimate.std_error.square().sum().sqrt()) / len(estimate.std_error),
                    "mean_ess": float(estimate.ess.mean()),
                }
        return bounds


def _row(values: Tensor) -> dict[str, float | None]:
    n = len(values)
    error = float(values.std()) / math.sqrt(n) if n > 1 else None
    return {"nats": float(values.mean()), "row_error": error, "sampling_error": None, "mean_ess": None}


def bounds(
    model: GenerativeModel,
    x: Tensor,
    k: int,
    seed: int = 0,
    y: Label = None,
    chunk: int | None = None,
    progress: bool = False,
) -> Bounds:
    """Evaluate the bounds of `model` on the rows x [N, D].

    Raises:
        InputError: no rows, k below 1, or a value that is not finite.
    """
    if len(x) == 0:
        raise InputError("evaluate: expected at least one row; got none")
    estimates = {}
    for samples in sorted({k, MIDDLE_K} if k > MIDDLE_K else {k}):
        start = time.perf_counter()
        estimates[samples] = log_likelihood(model, x, samples, seed, y, chunk, progress and samples == k and sys.stderr.isatty())
        seconds = time.perf_counter() - start
    return Bounds(estimates, seconds)


def table(summary: dict[str, dict[str, float | None]], n: int) -> str:
    """The summary as text; errors are standard errors of the mean."""
    lines = [f"{'bound':<10}{'nats':>10}{'± rows':>10}{'± samples':>11}{'mean ESS':>10}   ({n} rows)"]
    for name, row in summary.items():
        cells = [
            f"{_text(row['nats'], 3):>10}{_text(row['row_error'], 3):>10}",
            f"{_text(row['sampling_error'], 4):>11}{_text(row['mean_ess'], 1):>10}",
        ]
        lines.append(f"{name:<10}{''.join(cells)}")
    return "\n".join(lines)


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def write(folder: Path, settings: dict[str, Any], result: Bounds) -> None:
    """Write evaluation.npz (per row) and evaluation.json into the run's folder (InputError on a full disk)."""
    arrays = {f"L_{k}": estimate.log_px.cpu().numpy() for k, estimate in result.estimates.items()}
    last = result.last
    arrays |= {"L_1": last.elbo.cpu().numpy(), "ess": last.ess.cpu().numpy(), "std_error": last.std_error.cpu().numpy()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(folder / "evaluation.npz", buffer.getvalue())
    report = {**settings, "rows": len(last.elbo), "seconds": round(result.seconds, 3), "bounds": result.summary()}
    write_atomically(folder / "evaluation.json", (json.dumps(report, indent=2) + "\n").encode())
