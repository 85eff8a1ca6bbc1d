"""Figures of several runs: errors and bounds over the epochs, bounds against depth and against the number of labels."""

from __future__ import annotations

import inspect
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgmfast.errors import InputError
from dgmfast.models import MODELS, LabelModel
from dgmfast.plots.canvas import (
    MARKERS,
    color,
    legend_beside,
    line,
    log_axis,
    new_figure,
    over_epochs,
    save,
    show_late_values,
    whole_numbers,
)
from dgmfast.plots.curves import NATS, kl_layers, kl_units, split_of
from dgmfast.recipes import Recipe
from dgmfast.runs import METRICS, RunLog, metric_names, metric_series, read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Runs = Sequence[str | Path | RunLog]
MOST_COLUMNS = 6  # runs side by side in one figure
RUNS_TITLE = "mean of the runs (faint: each run)"


def error_curves(runs: Runs, path: str | Path) -> Path:
    """Draw the error in percent over the epochs, with one colour per run (App. A Fig. 5).

    Runs without labels are left out, because the numbers of their classes mean nothing.

    Raises:
        InputError: No run with labels has an error in its metrics, or a run is given twice.
    """
    logs = _logs(runs)
    figure, values = _over_epochs([log for log in logs if log.recipe.labels], logs, "_error", "error (%)", "Classification error")
    lowest, highest = min(map(min, values)), max(map(max, values))
    if 0.0 < 5.0 * lowest < highest:
        figure.axes[0].set_yscale("log")
        log_axis(figure.axes[0].yaxis, (1.0, 2.0, 5.0))
    return save(figure, path)


def bound_curves(runs: Runs, path: str | Path) -> Path:
    """Draw L_1 on the validation or test split over the epochs, with one colour per run.

    Raises:
        InputError: No run was evaluated during training, the runs are on different data, or a run is given twice.
    """
    runs = _logs(runs)
    _check_data(runs)
    figure, values = _over_epochs(runs, runs, "_elbo", f"{NATS} (higher is better)", "L_1 on held-out rows")
    show_late_values(figure.axes[0], values)
    return save(figure, path)


def _over_epochs(
    logs: Sequence[RunLog], given: Sequence[RunLog], suffix: str, ylabel: str, title: str
) -> tuple[Figure, list[list[float]]]:
    """Draw the metric of held-out rows whose name ends in `suffix` over the epochs, and return the values of each curve.

    `given` are all runs of the comparison, which the titles tell apart.
    """
    figure, titles = new_figure(6.4, 4.4), run_titles(given)
    axes = figure.subplots()
    values: list[list[float]] = []
    for log in logs:
        for name in metric_names(log.records, suffix=suffix):
            if name != "labelled_elbo":
                epochs, series = metric_series(log.records, name)
                line(axes, epochs, series, f"{titles[log.folder]}, {split_of(name)}", len(values))
                values.append(series)
    if not values:
        what = "error" if suffix == "_error" else "bound"
        raise InputError(f"expected the {what} of held-out rows in the metrics of a run; got none in {_folders(given)}")
    over_epochs(axes, ylabel, title, legend=False)
    legend_beside(figure, axes)
    return figure, values


def bounds_by_depth(runs: Runs, path: str | Path) -> Path:
    """Draw three bounds against the number of latent layers: L_1 of the training rows, and L_1 and L_K of the test rows.

    There is a curve per kind of model and number of labels, through the means over the runs of one depth (thesis Fig. 5.3).

    Raises:
        InputError: No two runs differ in depth, or the runs are on different data.
    """
    logs = _logs(runs)
    _check_data(logs)
    if len({depth(log.recipe) for log in logs}) < 2:
        raise InputError(f"expected runs with different numbers of latent layers; got one number in {_folders(logs)}")
    _check_rows(logs)
    # Evaluations are on the same number of rows, but maybe not on all test rows; the metrics are on all of them.
    evaluated = all(log.test_bounds() for log in logs)
    most = max((max(log.test_bounds(), default=1) for log in logs), default=1)
    panels: dict[str, Callable[[RunLog], float | None]] = {
        "Training rows, L_1": lambda log: _last(log, "elbo"),
        "Test rows, L_1": lambda log: log.test_bounds().get(1) if evaluated else _last(log, "test_elbo"),
    }
    if most > 1:
        panels[f"Test rows, L_{most}"] = lambda log: log.test_bounds().get(most)
    several = len({log.recipe.labels for log in logs}) > 1
    names = {log.folder: kind(log.recipe) + (f", {log.recipe.labels} labels" if several else "") for log in logs}
    order = list(dict.fromkeys(names.values()))
    figure = new_figure(4.6 * len(panels), 4.2)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, value) in zip(grid, panels.items(), strict=True):
        _curves(axes, [(names[log.folder], depth(log.recipe), value(log)) for log in logs], order)
        axes.set_xlabel("latent layers")
        axes.set_title(title)
    grid[0].set_ylabel(f"{NATS} (higher is better)")
    legend_beside(figure, grid[0], RUNS_TITLE)
    return save(figure, path)


def bounds_by_labels(runs: Runs, path: str | Path) -> Path:
    """Draw the bounds on log p(x) of the test rows against the number of labelled training rows, with a curve per K.

    The figure follows App. C Fig. 4.

    Raises:
        InputError: No two evaluated runs of models with a label differ in their number of labels, or they are on different data.
    """
    logs = [log for log in _logs(runs) if issubclass(MODELS[log.recipe.model["name"]], LabelModel) and log.test_bounds()]
    _check_rows(logs)
    if len({log.recipe.labels for log in logs}) < 2:
        raise InputError(
            "expected runs of models with a label, with different numbers of labels, each after `dgmfast evaluate` on its test "
            f"split; got {_folders(_logs(runs))}"
        )
    _check_data(logs)
    figure = new_figure(6.4, 4.4)
    axes = figure.subplots()
    points = [
        (f"{log.recipe.model['name'].upper()}, L_{k}", log.recipe.labels, bound)
        for log in logs
        for k, bound in sorted(log.test_bounds().items())
    ]
    _curves(axes, points, list(dict.fromkeys(name for name, _, _ in points)))
    axes.set_xlabel("labelled training rows")
    axes.set_ylabel(f"{NATS} (higher is better)")
    axes.set_title("Bounds on log p(x) of the test rows")
    legend_beside(figure, axes, RUNS_TITLE)
    return save(figure, path)


def draw_comparison(folders: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Draw all figures that these runs allow into the folder `out`, and return their paths.

    Raises:
        InputError: A folder is not a run, or the runs allow no figure.
    """
    logs, out = _logs(folders), Path(out)
    figures: dict[str, Callable[[Runs, Path], Path]] = {
        "errors": error_curves,
        "bounds": bound_curves,
        "bounds_by_depth": bounds_by_depth,
        "bounds_by_labels": bounds_by_labels,
    }
    drawn, reasons = [], []
    for name, draw in figures.items():
        try:
            drawn.append(draw(logs, out / f"{name}.png"))
        except InputError as reason:
            reasons.append(str(reason))
    titles, taken = run_titles(logs), set()
    for group in _same_layers(logs):
        models = stem = "-".join(sorted({log.recipe.model["name"] for log in group}))
        for number in itertools.count(2):
            if stem not in taken:
                break
            stem = f"{models}-{number}"
        taken.add(stem)
        titled = {titles[log.folder]: log.folder / METRICS for log in group}
        drawn.append(kl_units(titled, out / f"kl_units_{stem}.png"))
        drawn.append(kl_layers(titled, out / f"kl_layers_{stem}.png"))
    if not drawn:
        raise InputError(f"these runs allow no figure: {'; '.join(reasons)}")
    return drawn


def _same_layers(logs: Sequence[RunLog]) -> list[list[RunLog]]:
    """The runs that recorded the KL of their units, grouped by the names of their layers, at most MOST_COLUMNS per group."""
    groups: dict[tuple[str, ...], list[RunLog]] = defaultdict(list)
    for log in logs:
        layers = tuple(dict.fromkeys(layer for record in log.records for layer in record.get("kl_units") or {}))
        if layers:
            groups[layers].append(log)
    return [group[i : i + MOST_COLUMNS] for group in groups.values() for i in range(0, len(group), MOST_COLUMNS)]


def run_titles(logs: Sequence[RunLog]) -> dict[Path, str]:
    """A unique title for each folder: the recipe's name, or as many of the last parts of the path as make it unique.

    Raises:
        InputError: A run is given twice.
    """
    titles: dict[Path, str] = {}
    for log in logs:
        if log.folder in titles or any(log.folder.samefile(other) for other in titles):
            raise InputError(f"expected different runs; got {log.folder} twice")
        same = [other for other in logs if other is not log and other.recipe.name == log.recipe.name]
        parts, others = log.folder.resolve().parts, [other.folder.resolve().parts for other in same]
        ends = (n for n in range(1, len(parts) + 1) if all(other[-n:] != parts[-n:] for other in others))
        title = str(Path(*parts[-next(ends, len(parts)) :])) if same else log.recipe.name
        titles[log.folder] = title if title not in titles.values() else str(log.folder.resolve())
    return titles


def depth(recipe: Recipe) -> int:
    """The number of latent layers of the recipe's model."""
    latent = recipe.model.get("latent", _default(recipe, "latent"))
    return len(latent) if isinstance(latent, (list, tuple)) else 1


def kind(recipe: Recipe) -> str:
    """The model's name with the thesis's abbreviations for batch normalisation (BN), warm-up (WU) and importance weights (IW)."""
    name = recipe.model["name"].upper()
    normed = recipe.model.get("batch_norm", _default(recipe, "batch_norm"))
    weighted = f"+IW{recipe.objective.k}" if recipe.objective.k > 1 else ""
    return f"{name}{'+BN' if normed else ''}{'+WU' if recipe.objective.warmup_epochs else ''}{weighted}"


def _default(recipe: Recipe, setting: str) -> Any:
    """The default of a setting of the recipe's model, or None."""
    parameter = inspect.signature(MODELS[recipe.model["name"]]).parameters.get(setting)
    return None if parameter is None else parameter.default


def _curves(axes: Axes, points: Sequence[tuple[str, int, float | None]], order: Sequence[str]) -> None:
    """Draw each value as a faint mark, and a curve per name in `order` through the means of its values at each place."""
    curves: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, place, value in points:
        if value is not None:
            curves[name][place].append(value)
    for number, name in enumerate(order):
        places, marker = curves[name], MARKERS[number % len(MARKERS)]
        at = sorted(places)
        line(axes, at, [sum(places[place]) / len(places[place]) for place in at], name, number, marker)
        single = [(place, value) for place in at for value in places[place] if len(places[place]) > 1]
        axes.scatter([x for x, _ in single], [y for _, y in single], color=color(number), marker=marker, s=14, alpha=0.4)
    whole_numbers(axes.xaxis)
    axes.grid(alpha=0.25)


def _check_rows(logs: Sequence[RunLog]) -> None:
    """Raise InputError unless all evaluations are on the same number of test rows."""
    rows = {log.evaluation["rows"] for log in logs if log.test_bounds() and "rows" in log.evaluation}
    if len(rows) > 1:
        counts = " and ".join(map(str, sorted(rows)))
        raise InputError(f"expected evaluations of the same number of test rows; got {counts} in {_folders(logs)}")


def _check_data(logs: Sequence[RunLog]) -> None:
    """Raise InputError unless all runs are on the same data set."""
    data = sorted({log.recipe.data for log in logs})
    if len(data) > 1:
        raise InputError(f"expected runs on one data set, because bounds on different rows do not compare; got {', '.join(data)}")


def _last(log: RunLog, name: str) -> float | None:
    """The last value of a metric, or None."""
    values = metric_series(log.records, name)[1]
    return values[-1] if values else None


def _logs(runs: Runs) -> list[RunLog]:
    return [run if isinstance(run, RunLog) else read_run(run) for run in runs]


def _folders(logs: Sequence[RunLog]) -> str:
    return ", ".join(str(log.folder) for log in logs)
