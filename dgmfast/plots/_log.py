"""What figures of training read: metrics.jsonl, config.json and evaluation.json of a run's folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgmfast._run import CONFIG, METRICS
from dgmfast.errors import InputError
from dgmfast.recipes import Recipe

Record = dict[str, Any]  # of one epoch
EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class RunLog:
    """What a run tells. evaluation: of `dgmfast evaluate`, empty where it was not run."""

    folder: Path
    recipe: Recipe
    records: list[Record]
    evaluation: dict[str, Any] = field(default_factory=dict)

    def test_bounds(self) -> dict[int, float]:
        """L_K of log p(x) on the test split in nats, by K; empty where the run was not evaluated on it."""
        if self.evaluation.get("split") != "test" or self.evaluation.get("labels") == "given":
            return {}
        return {int(name.removeprefix("L_")): bound["nats"] for name, bound in self.evaluation.get("bounds", {}).items()}


def read_metrics(path: str | Path) -> list[Record]:
    """The epochs of metrics.jsonl; a last line that a run is still writing is left out.

    Raises:
        InputError: the file cannot be read, or holds no epoch yet.
    """
    try:
        whole, _, _ = Path(path).read_text().rpartition("\n")
        records = [json.loads(line) for line in whole.splitlines()]
        if not all(isinstance(record, dict) and isinstance(record.get("epoch"), int) for record in records):
            raise ValueError("a line that is none")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected one JSON object per epoch; got {error}") from error
    if not records:
        raise InputError(f"{path}: expected one JSON object per epoch; got an empty file")
    return records


def read_recipe(folder: str | Path) -> Recipe:
    """The recipe in the run's config.json.

    Raises:
        InputError: there is none that can be read.
    """
    path = Path(folder) / CONFIG
    try:
        return Recipe.from_dict(json.loads(path.read_text())["recipe"])
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not the folder of a run: there is no {CONFIG} in it") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected the settings of a run; got {error}") from error


def read_run(folder: str | Path) -> RunLog:
    """All that the files of a run tell.

    Raises:
        InputError: the folder is not a run with at least one epoch, or a file in it is damaged.
    """
    folder = Path(folder)
    recipe, records = read_recipe(folder), read_metrics(folder / METRICS)
    path = folder / EVALUATION
    evaluation: dict[str, Any] = {}
    if path.exists():
        try:
            evaluation = json.loads(path.read_text())
            if not isinstance(evaluation, dict) or not all("nats" in bound for bound in evaluation["bounds"].values()):
                raise ValueError("something else")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: expected the bounds that `dgmfast evaluate` writes; got {error}") from error
    return RunLog(folder, recipe, records, evaluation)


def series(records: list[Record], name: str) -> tuple[list[int], list[float]]:
    """The epochs that have the number `name`, and its values."""
    found = [(record["epoch"], record[name]) for record in records if isinstance(record.get(name), (int, float))]
    return [epoch for epoch, _ in found], [value for _, value in found]


def names(records: list[Record], *, prefix: str = "", suffix: str = "") -> list[str]:
    """The names of numbers that any epoch has, in the order of their first appearance."""
    found = {name: None for record in records for name, value in record.items() if isinstance(value, (int, float))}
    return [name for name in found if name.startswith(prefix) and name.endswith(suffix)]
