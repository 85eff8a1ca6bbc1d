"""Reproduces the tables of the thesis: trains and evaluates what is missing, and prints published and measured numbers."""

from __future__ import annotations

import inspect
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgmfast import data, models, recipes, train
from dgmfast.errors import InputError
from dgmfast.files import parse_json, write_atomically
from dgmfast.models import Label
from dgmfast.recipes import Recipe, unknown
from dgmfast.reproduce.baselines import m1_recipe, run_baseline
from dgmfast.reproduce.published import TABLES, Number, Row, Table
from dgmfast.runs import (
    EXPORT,
    METRICS,
    Run,
    classify_rows,
    evaluate_bounds,
    fixed_split,
    holds_run,
    load_state,
    open_run,
    read_metrics,
    resolve_device,
    run_environment,
    stored_recipe,
)

MEASURED = "measured.json"
RUNS = "runs"
CLASSIFY_SAMPLES = 10


@dataclass(frozen=True)
class Options:
    """The options of running a table.

    Args:
        out: The folder of the runs and of the tables.
        seeds: Number of runs per row, with the seeds 0, 1, ...
        epochs: Number of epochs, instead of each recipe's own. Settings that are counted in epochs are scaled with it.
        k: Number of importance samples.
        limit: Use only the first `limit` test rows for the bounds, or None for all.
        labels: The form of the bounds of models with a label: "sampled", as in most publications, or "exact".
        only: Names of the rows to run; empty for all.
        data_dir: The folder of the data sets.
        device: "cpu" or "cuda".
        progress: If true, show the progress.
        figures: If true, draw the figures of each run.
        changes: Changes to every recipe, or None.
    """

    out: Path
    seeds: int = 1
    epochs: int | None = None
    k: int = 5000
    limit: int | None = None
    labels: str = "sampled"
    only: Sequence[str] = ()
    data_dir: Path | None = None
    device: str = "cpu"
    progress: bool = True
    figures: bool = True
    changes: Mapping[str, Any] | None = None


def table(name: str) -> Table:
    """The table called `name`.

    Raises:
        InputError: There is no such table. The message suggests the most similar names.
    """
    if name not in TABLES:
        raise InputError(unknown("table", name, TABLES))
    return TABLES[name]


def scaled(recipe: Recipe, epochs: int | None) -> Recipe:
    """The recipe with another number of epochs. Its warm-up, its schedule and a first stage of its model shrink in proportion.

    Raises:
        InputError: epochs is below 1.
    """
    if epochs is None or epochs == recipe.epochs:
        return recipe
    if epochs < 1:
        raise InputError(f"epochs must be at least 1; got {epochs}")

    def shrink(count: int) -> int:
        return max(1, round(count * epochs / recipe.epochs)) if count else 0

    changes: dict[str, Any] = {
        "epochs": epochs,
        "eval_every": min(recipe.eval_every, epochs),
        "objective.warmup_epochs": shrink(recipe.objective.warmup_epochs),
        "schedule.every": shrink(recipe.schedule.every),
        "schedule.after": shrink(recipe.schedule.after),
    }
    stage = inspect.signature(models.MODELS[recipe.model["name"]]).parameters.get("pretrain_epochs")
    if stage is not None:
        changes["model.pretrain_epochs"] = shrink(recipe.model.get("pretrain_epochs", stage.default))
    return recipe.override(changes)


def reproduce_table(name: str, options: Options, tell: Callable[[str], None]) -> str:
    """Run the rows of a table for every seed, and return the table as Markdown. Finished runs are not repeated.

    After every run, out/NAME.md and out/NAME.json hold the table so far.

    Args:
        name: The name of the table.
        options: The options.
        tell: Called with one line of progress at a time.

    Raises:
        InputError: There is no such table or row, data is missing, a run with other settings is in the way, or the disk is full.
    """
    chosen = table(name)
    known = [row.name for row in chosen.rows]
    for wanted in options.only:
        if wanted not in known:
            raise InputError(unknown(f"row of {name}", wanted, known))
    rows = [row for row in chosen.rows if not options.only or row.name in options.only]
    plans = {(row.name, seed): _plan(row, seed, options) for seed in range(options.seeds) for row in rows}
    datasets = {
        plan.data: data.load(plan.data, options.data_dir) for plan in plans.values()
    }  # read before hours of training, so that missing data is noticed
    results: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    text = ""
    for seed in range(options.seeds):
        for row in rows:
            plan = plans[row.name, seed]
            folder = options.out / RUNS / row.name / f"seed-{seed}"
            tell(f"{row.title}, seed {seed}: {folder}")
            measure = _baseline if row.source.startswith("baseline:") else _model
            results[row.name].append(measure(row, plan, folder, chosen.quantities, datasets[plan.data], options))
            text = _write(options.out, name, chosen, rows, results, options)
    return text


def _plan(row: Row, seed: int, options: Options) -> Recipe:
    """The recipe that the row trains with this seed; for a baseline, that of its M1."""
    if row.source.startswith("baseline:"):
        return scaled(m1_recipe("mnist", seed=seed), options.epochs)
    recipe = scaled(recipes.get(row.source).override({**row.changes, **(options.changes or {}), "seed": seed}), options.epochs)
    if row.start_from:
        recipe = recipe.override({"start_from": str(options.out / RUNS / row.start_from / f"seed-{seed}")})
    return recipe


def _model(
    row: Row, recipe: Recipe, folder: Path, quantities: Sequence[str], dataset: data.Dataset, options: Options
) -> dict[str, Any]:
    """Train and evaluate a run, as far as that has not been done."""
    _train(recipe, folder, dataset, options)
    trained = open_run(folder, resolve_device(options.device))
    records = read_metrics(folder / METRICS)
    result: dict[str, Any] = {"seed": recipe.seed, "epochs": trained.epoch}
    result["train_seconds"] = round(sum(record["seconds"] for record in records), 3)
    start = time.perf_counter()
    if {"L_1", "L_5000"} & set(quantities):
        k = options.k if "L_5000" in quantities else 1
        labels = options.labels if trained.model.num_classes else None
        settings = {"what": "bounds", "epochs": trained.epoch, "k": k, "limit": options.limit, "labels": labels}
        result |= _measured(folder, settings, lambda: _bounds(trained, dataset, k, labels, options))
    if "error" in quantities and isinstance(trained.model, models.LabelModel) and recipe.labels:
        settings = {"what": "error", "epochs": trained.epoch, "samples": CLASSIFY_SAMPLES}
        result |= _measured(folder, settings, lambda: _error(trained, dataset))
    return {**result, "evaluate_seconds": round(time.perf_counter() - start, 1)}


def _train(recipe: Recipe, folder: Path, dataset: data.Dataset, options: Options) -> None:
    """Train or resume the run in the folder, unless it is complete.

    Raises:
        InputError: The folder holds a run with other settings.
    """
    how: dict[str, Any] = {"dataset": dataset, "device": options.device, "progress": options.progress, "figures": options.figures}
    if not holds_run(folder):
        train.fit(recipe, folder, **how)
        return
    stored = stored_recipe(folder, load_state(folder))
    changed = _changed(stored, recipe)
    if changed:
        raise InputError(f"{folder} holds a run with another {', '.join(changed)}: choose another --out, or remove it")
    if not (folder / EXPORT).is_file() or open_run(folder).epoch < recipe.epochs:
        train.resume(folder, {"epochs": recipe.epochs}, **how)


def _changed(stored: Recipe, wanted: Recipe) -> list[str]:
    """The settings that differ. More epochs, settings that follow from the data, the name and the note do not count."""
    before, after = stored.to_dict(), wanted.to_dict()
    before["epochs"] = max(before["epochs"], after["epochs"])
    before["model"] = {name: value for name, value in before["model"].items() if name in after["model"]}
    return [name for name in before if before[name] != after[name] and name not in ("name", "note")]


def _bounds(trained: Run, dataset: data.Dataset, k: int, labels: str | None, options: Options) -> dict[str, Any]:
    """The bounds of a run on the test rows, in nats."""
    device = resolve_device(options.device)
    x = fixed_split(dataset, "test", trained.recipe.binarize).x[: options.limit].to(device)
    y: Label = models.SampledLabel() if labels == "sampled" else None
    summary = evaluate_bounds(trained.model, x, k, 0, y, progress=options.progress).summary()
    return {name: bound["nats"] for name, bound in summary.items()}


def _error(trained: Run, dataset: data.Dataset) -> dict[str, Any]:
    """The classification error of a run on the test rows, in percent."""
    result = classify_rows(trained.model, trained.recipe, dataset, "test", CLASSIFY_SAMPLES)
    return {"error": result.error, "by": result.by}


def _baseline(
    row: Row, m1: Recipe, folder: Path, quantities: Sequence[str], dataset: data.Dataset, options: Options
) -> dict[str, Any]:
    """Fit and measure a baseline, as far as that has not been done."""
    name = row.source.removeprefix("baseline:")
    trained, record = None, {"seed": m1.seed}
    if name == "m1-svm":
        of_m1 = options.out / RUNS / m1.name / f"seed-{m1.seed}"
        record |= _model(row, m1, of_m1, (), dataset, options)
        trained = open_run(of_m1).model

    def fit() -> dict[str, Any]:
        result = run_baseline(name, dataset, 100, m1.seed, trained)
        return {"error": result.error, "fit_seconds": round(result.seconds, 1)}

    measured = _measured(folder, {"what": name, "labels": 100, "epochs": record.get("epochs")}, fit)
    seconds = record.get("train_seconds", 0.0) + measured["fit_seconds"]
    return {**record, **measured, "train_seconds": round(seconds, 3)}


def _measured(folder: Path, settings: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The measurements with these settings in the run's folder. They are made now if they are missing.

    Raises:
        InputError: measured.json is damaged, or the disk is full.
    """
    path, key = folder / MEASURED, json.dumps(settings, sort_keys=True)
    try:
        known: dict[str, dict[str, Any]] = parse_json(path.read_text()) if path.exists() else {}
        if key in known:
            return dict(known[key])
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: expected earlier measurements; got {error}") from error
    known[key] = measure()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(known, indent=2) + "\n").encode())
    return known[key]


def _write(
    out: Path,
    name: str,
    chosen: Table,
    rows: Sequence[Row],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    options: Options,
) -> str:
    """Write the table as Markdown and JSON, and return the Markdown."""
    text = markdown(chosen, rows, results, options)
    content = {
        "table": name,
        "k": options.k,
        "limit": options.limit,
        "labels": options.labels,
        "environment": run_environment(resolve_device(options.device), 1),
        "rows": [{"title": row.title, "name": row.name, "published": row.published, "runs": results[row.name]} for row in rows],
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / f"{name}.json", (json.dumps(content, indent=2) + "\n").encode())
    write_atomically(out / f"{name}.md", text.encode())
    return text


def markdown(chosen: Table, rows: Sequence[Row], results: Mapping[str, Sequence[Mapping[str, Any]]], options: Options) -> str:
    """The table as Markdown, with published and measured numbers side by side.

    Measured numbers are means over the seeds ± their standard deviation.
    """
    heads = ["", "epochs", "seeds", "time"]
    for quantity in chosen.quantities:
        unit = "error %" if quantity == "error" else quantity
        heads += [f"{unit}, thesis", f"{_measured_name(quantity, options.k)}{' %' if quantity == 'error' else ''}, measured"]
    lines = [f"# {chosen.title}", "", _line(heads), _line(["---", *(["--:"] * (len(heads) - 1))])]
    for row in rows:
        runs = results[row.name]
        epochs = sorted({run["epochs"] for run in runs if "epochs" in run})
        cells = [row.title, "–".join(map(str, epochs)), str(len(runs)), _time(runs)]
        for quantity in chosen.quantities:
            cells.append(number(row.published.get(quantity, ())))
            name = _measured_name(quantity, options.k)
            cells.append(number(_over_seeds([run[name] for run in runs if name in run])))
        lines.append(_line(cells))
    about = []
    if set(chosen.quantities) & {"L_1", "L_5000"}:
        part = "all test rows" if options.limit is None else f"the first {options.limit} test rows"
        form = "drawn from q(y|·) per sample" if options.labels == "sampled" else "summed over exactly"
        about.append(f"Bounds in nats per row, on {part}; a label, where a model has one, is {form}.")
    about.append("Measured: mean over the seeds ± their standard deviation; time: to train, per run.")
    return "\n".join([*lines, "", " ".join([*about, chosen.note]).strip(), ""])


def _measured_name(quantity: str, k: int) -> str:
    """The name under which a quantity is measured with k samples."""
    return f"L_{k}" if quantity == "L_5000" else quantity


def _over_seeds(values: Sequence[float]) -> Number:
    """The mean over the seeds, and the standard deviation if there are several."""
    if len(values) < 2:
        return tuple(values)
    return statistics.mean(values), statistics.stdev(values)


def number(value: Number) -> str:
    """A value and its spread as text; empty if there is no value."""
    return " ± ".join(f"{part:.2f}".replace("-", "−") for part in value)


def _time(runs: Sequence[Mapping[str, Any]]) -> str:
    """The mean training time of the runs as text."""
    seconds = [run["train_seconds"] for run in runs if "train_seconds" in run]
    if not seconds:
        return ""
    mean = sum(seconds) / len(seconds)
    return f"{mean:.0f} s" if mean < 100 else f"{mean / 60:.0f} min" if mean < 6000 else f"{mean / 3600:.1f} h"


def _line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
