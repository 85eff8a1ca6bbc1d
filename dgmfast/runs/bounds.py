"""Bounds of a model on a data set, as a table and as files."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dgmfast.errors import InputError
from dgmfast.evaluate import ImportanceSampling, LogLikelihood, RowResults, check_arguments, curve_points, progress_bar, stream
from dgmfast.files import write_atomically
from dgmfast.models import GenerativeModel, Label
from dgmfast.runs.folder import tensor_digest
from dgmfast.runs.processes import Group
from dgmfast.runs.unfinished import EvaluationCheckpoint

MIDDLE_K = 50
COLUMNS = ("log_px", "elbo", "ess", "std_error", "pareto_k", "k_used")


@dataclass(frozen=True)
class Bounds:
    """L_1, L_50 (if k is larger) and L_k of the same rows.

    Args:
        estimates: The estimates by K; the last one is that of L_k, and also holds L_1.
        seconds: The time that they took.
        partial: The file of finished rows, if the evaluation was saved on the way.
    """

    estimates: dict[int, LogLikelihood]
    seconds: float
    partial: EvaluationCheckpoint | None = None

    @property
    def last(self) -> LogLikelihood:
        """The estimates with all k samples."""
        return list(self.estimates.values())[-1]

    def summary(self) -> dict[str, dict[str, float | None]]:
        """For each bound, in nats: its mean over the rows, two standard errors of it, and the mean effective sample size.

        "row_error" is the standard error that comes from the choice of rows, and "sampling_error" the one that comes from the
        importance samples.
        """
        bounds: dict[str, dict[str, float | None]] = {"L_1": _row(self.last.elbo)}
        for k, estimate in self.estimates.items():
            if k > 1:
                bounds[f"L_{k}"] = _row(estimate.log_px) | {
                    "sampling_error": float(estimate.std_error.square().sum().sqrt()) / len(estimate.std_error),
                    "mean_ess": float(estimate.ess.mean()),
                }
        return bounds


def _row(values: Tensor) -> dict[str, float | None]:
    """The entry of a bound in the summary, from its values for each row."""
    n = len(values)
    error = float(values.std()) / math.sqrt(n) if n > 1 else None
    return {"nats": float(values.mean()), "row_error": error, "sampling_error": None, "mean_ess": None}


def evaluate_bounds(
    model: GenerativeModel,
    x: Tensor,
    k: int,
    seed: int = 0,
    y: Label = None,
    chunk: int | None = None,
    progress: bool = False,
    tolerance: float | None = None,
    group: Group | None = None,
    partial: tuple[Path, dict[str, Any]] | None = None,
) -> Bounds:
    """Evaluate the bounds of `model` on the rows x [N, D].

    The arguments that are not listed here are those of evaluate.log_likelihood.

    Args:
        group: The processes that share the rows. Each of them gets the whole result.
        partial: A folder for the finished rows of an interrupted evaluation, from which the same call continues; and a dict of
            what these rows depend on besides the arguments.

    Raises:
        InputError: There are no rows, k is below 1, or a value is not finite.
    """
    if len(x) == 0:
        raise InputError("evaluate: expected at least one row; got none")
    check_arguments(model, x, k, y, chunk, tolerance)
    group = group or Group()
    sampling = ImportanceSampling(k, seed, curve_points(k, *([MIDDLE_K] if k > MIDDLE_K else [])), tolerance, chunk)
    begin, end = group.shard(len(x))
    part, of_part = x[begin:end], y[begin:end] if isinstance(y, Tensor) else y
    kept = None
    if partial is not None:
        of_rows = {"x": tensor_digest(part), "y": _identify(of_part), "rows": [begin, end]}
        of_model = {"model": tensor_digest(model.state_dict()), **partial[1]}
        kept = EvaluationCheckpoint(partial[0], {**of_model, **of_rows, **asdict(sampling), "chunk": None})
    start = time.perf_counter()
    show = progress and group.rank == 0
    rows = group.all_or_raise(lambda: _rows(model, part, of_part, sampling, begin, kept, show))
    states, pareto_k = (group.gather(t, len(x)) for t in rows.tensors(len(sampling.points), x.device))
    seconds = time.perf_counter() - start + (0.0 if kept is None else kept.seconds)
    result = LogLikelihood.from_states(sampling, states, pareto_k)
    if group.rank == 0:
        result.warn()
    several = {k: result}
    if k > MIDDLE_K:
        at = curve_points(MIDDLE_K)
        first = LogLikelihood.from_states(replace(sampling, k=MIDDLE_K, points=at), states[:, : len(at)], pareto_k)
        several = {MIDDLE_K: first, **several}
    return Bounds(several, seconds, kept)


def _identify(y: Label) -> str:
    """A text that identifies the labels."""
    return tensor_digest(y) if isinstance(y, Tensor) else repr(y)


def _rows(
    model: GenerativeModel,
    x: Tensor,
    y: Label,
    sampling: ImportanceSampling,
    first_row: int,
    kept: EvaluationCheckpoint | None,
    show: bool,
) -> RowResults:
    """The results of this process's rows. Some of them may come from an interrupted evaluation."""
    rows = RowResults() if kept is None else kept.load(len(sampling.points), x.device, len(x))
    if len(rows) and show:
        print(f"continuing after {len(rows)} of {len(x)} rows", file=sys.stderr)
    with progress_bar(len(x) * sampling.k, show and sys.stderr.isatty(), len(rows) * sampling.k) as bar:
        if kept is None:
            stream(model, x, y, sampling, rows, first_row, bar.update)
            return rows
        try:
            stream(model, x, y, sampling, rows, first_row, bar.update, lambda: kept.save_sometimes(rows))
        finally:
            kept.save(rows)
    return rows


def bounds_table(summary: dict[str, dict[str, float | None]], n: int) -> str:
    """The summary as a text table. The errors are standard errors of the mean."""
    lines = [f"{'bound':<10}{'nats':>10}{'± rows':>10}{'± samples':>11}{'mean ESS':>10}   ({n} rows)"]
    for name, row in summary.items():
        cells = [
            f"{_text(row['nats'], 3):>10}{_text(row['row_error'], 3):>10}",
            f"{_text(row['sampling_error'], 4):>11}{_text(row['mean_ess'], 1):>10}",
        ]
        lines.append(f"{name:<10}{''.join(cells)}")
    return "\n".join(lines)


def _text(value: float | None, digits: int) -> str:
    """The value with so many decimal places; empty for None."""
    return "" if value is None else f"{value:.{digits}f}"


def write_bounds(folder: Path, settings: dict[str, Any], result: Bounds, stem: str = "evaluation") -> None:
    """Write STEM.npz and STEM.csv (one line per row) and STEM.json into the run folder.

    Raises:
        InputError: A file cannot be written.
    """
    arrays = {f"L_{k}": estimate.log_px.cpu().numpy() for k, estimate in result.estimates.items()}
    last = result.last
    arrays |= {"L_1": last.elbo.cpu().numpy(), "ess": last.ess.cpu().numpy(), "std_error": last.std_error.cpu().numpy()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(folder / f"{stem}.npz", buffer.getvalue())
    write_atomically(folder / f"{stem}.csv", _csv(last).encode())
    report = {**settings, "rows": len(last.elbo), "seconds": round(result.seconds, 3), "bounds": result.summary()}
    report["curve"] = {str(k): float(log_px.mean()) for k, log_px in last.curve.items()}
    report |= {"mean_k_used": float(last.k_used.double().mean()), "dominated_rows": int(last.dominated().sum())}
    write_atomically(folder / f"{stem}.json", (json.dumps(report, indent=2) + "\n").encode())


def _csv(result: LogLikelihood) -> str:
    """A CSV table with one line per row: its estimates, and log_px of the first K samples as log_px_K."""
    columns: dict[str, Tensor] = {name: getattr(result, name) for name in COLUMNS}
    columns |= {f"log_px_{k}": log_px for k, log_px in result.curve.items()}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["row", *columns])
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    table.writerows([i, *row] for i, row in enumerate(rows))
    return text.getvalue()
