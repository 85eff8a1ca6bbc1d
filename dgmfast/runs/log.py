"""Reads the files that figures of training use: metrics.jsonl, config.json and evaluation.json of a run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dgmfast.data import Dataset
from dgmfast.errors import InputError
from dgmfast.files import parse_json
from dgmfast.models import GenerativeModel
from dgmfast.recipes import Recipe
from dgmfast.runs.folder import CONFIG, METRICS, load_dataset, open_run

Record = dict[str, Any]  # the metrics of one epoch
EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class RunLog:
    """The log of a run.

    Args:
        folder: The run folder.
        recipe: The recipe.
        records: One record per epoch.
        evaluation: The result of `dgmfast evaluate`, empty if the run was not evaluated.
    """

    folder: Path
    recipe: Recipe
    records: list[Record]
    evaluation: dict[str, Any] = field(default_factory=dict)

    def test_bounds(self) -> dict[int, float]:
        """L_K of log p(x) on the test split in nats, by K; empty if the run was not evaluated on the test split."""
        if self.evaluation.get("split") != "test" or self.evaluation.get("labels") == "given":
            return {}
        return {int(name.removeprefix("L_")): bound["nats"] for name, bound in self.evaluation.get("bounds", {}).items()}


@dataclass(frozen=True)
class TrainedRun:
    """What `load_run` reads from a run folder.

    Args:
        folder: The run folder.
        model: The trained model, in evaluation mode.
        recipe: The settings of the experiment.
        metrics: The record of each epoch: "epoch", "elbo" and other numbers, in nats per row or percent.
        evaluation: What `dgmfast evaluate` wrote last for the test split; empty if it was not run.
        epoch: Number of epochs that were trained when the model was written.
    """

    folder: Path
    model: GenerativeModel
    recipe: Recipe
    metrics: list[Record]
    evaluation: dict[str, Any]
    epoch: int

    def dataset(self, data_dir: str | Path | None = None) -> Dataset:
        """The data that the run was trained on.

        Raises:
            InputError: The data cannot be read, or have changed since.
        """
        return load_dataset(self.recipe, self.folder, data_dir)


def load_run(folder: str | Path, device: str | torch.device = "cpu", model: GenerativeModel | None = None) -> TrainedRun:
    """Read a run: its model, settings, metrics and evaluation. No code of the folder is run.

    Args:
        folder: The run folder.
        device: The device of the model.
        model: A model of the same class and sizes. It is needed only if the run was trained on a model object that its settings
            do not describe, such as one with an encoder that was given as a module.

    Raises:
        InputError: The folder is not a run, or a file in it is damaged.
    """
    run = open_run(folder, device, model)
    metrics = run.folder / METRICS
    records = read_metrics(metrics) if metrics.exists() and metrics.stat().st_size else []
    return TrainedRun(run.folder, run.model, run.recipe, records, _read_evaluation(run.folder), run.epoch)


def read_metrics(path: str | Path) -> list[Record]:
    """The records of the epochs in metrics.jsonl. A last line that a run is still writing is left out.

    Raises:
        InputError: The file cannot be read, or holds no epoch yet.
    """
    try:
        whole, _, _ = Path(path).read_text().rpartition("\n")
        records = [_record(i, line) for i, line in enumerate(whole.splitlines(), 1)]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected one JSON object per epoch; got {error}") from error
    if not records:
        raise InputError(f"{path}: expected one JSON object per epoch; got an empty file")
    return records


def _record(number: int, line: str) -> Record:
    """The record in line `number` of metrics.jsonl: an epoch, and else finite numbers, null, or the KL of units by layer.

    Raises:
        ValueError: The line is something else.
    """
    record = parse_json(line)
    if not isinstance(record, dict) or type(record.get("epoch")) is not int or record["epoch"] < 1:
        raise ValueError(f"line {number} without an epoch")
    units = record.get("kl_units") or {}
    if not isinstance(units, dict) or not all(isinstance(kl, list) and all(map(_finite, kl)) for kl in units.values()):
        raise ValueError(f"line {number} with other kl_units than lists of numbers by layer")
    wrong = [name for name, value in record.items() if name != "kl_units" and value is not None and not _finite(value)]
    if wrong:
        raise ValueError(f"line {number} with a {wrong[0]} that is no finite number")
    return record


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def read_recipe(folder: str | Path) -> Recipe:
    """The recipe in the run's config.json.

    Raises:
        InputError: The file is missing or cannot be read.
    """
    path = Path(folder) / CONFIG
    try:
        return Recipe.from_dict(parse_json(path.read_text())["recipe"])
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not the folder of a run: there is no {CONFIG} in it") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected the settings of a run; got {error}") from error


def read_run(folder: str | Path) -> RunLog:
    """Everything that the files of a run say.

    Raises:
        InputError: The folder is not a run with at least one epoch, or a file in it is damaged.
    """
    folder = Path(folder)
    return RunLog(folder, read_recipe(folder), read_metrics(folder / METRICS), _read_evaluation(folder))


def _read_evaluation(folder: Path) -> dict[str, Any]:
    """The content of evaluation.json, or an empty dict if there is none."""
    path = folder / EVALUATION
    if not path.exists():
        return {}
    try:
        evaluation: dict[str, Any] = parse_json(path.read_text())
        _check_evaluation(evaluation)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected the bounds that `dgmfast evaluate` writes; got {error}") from error
    return evaluation


def _check_evaluation(evaluation: Any) -> None:
    """Raise ValueError unless this is what `dgmfast evaluate` writes, as far as the figures read it."""
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("bounds"), dict):
        raise ValueError("no bounds")
    for name, bound in evaluation["bounds"].items():
        number = name.removeprefix("L_")
        if not (name.startswith("L_") and number.isascii() and number.isdecimal() and len(number) < 12):
            raise ValueError(f"a bound called {name!r:.30}")
        if not isinstance(bound, dict) or not _finite(bound.get("nats")):
            raise ValueError(f"a bound {name} without a finite number of nats")
    if not isinstance(evaluation.get("split"), str) or not isinstance(evaluation.get("labels"), (str, type(None))):
        raise ValueError("no split, or labels that are no text")
    if type(evaluation.get("rows", 1)) is not int or evaluation.get("rows", 1) < 1:
        raise ValueError(f"rows of {evaluation['rows']!r:.30}")


def metric_series(records: list[Record], name: str) -> tuple[list[int], list[float]]:
    """The epochs that have a number called `name`, and its values."""
    found = [(record["epoch"], record[name]) for record in records if isinstance(record.get(name), (int, float))]
    return [epoch for epoch, _ in found], [value for _, value in found]


def metric_names(records: list[Record], *, prefix: str = "", suffix: str = "") -> list[str]:
    """The names of the numbers that occur in any epoch, in the order of their first appearance."""
    found = {name: None for record in records for name, value in record.items() if isinstance(value, (int, float))}
    return [name for name in found if name.startswith(prefix) and name.endswith(suffix)]
