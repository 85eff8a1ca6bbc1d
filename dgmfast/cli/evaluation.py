"""The commands evaluate, classify and sample."""

from __future__ import annotations

import io
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dgmfast import data, models
from dgmfast.cli.group import DATA_DIR, DEVICE, RUN, THREADS, click
from dgmfast.errors import InputError
from dgmfast.files import locked, write_atomically
from dgmfast.models import Label
from dgmfast.runs import (
    CLASSIFY_BY,
    TEST_SEED,
    Bounds,
    Run,
    bounds_table,
    classify_rows,
    evaluate_bounds,
    figures_folder,
    fixed_split,
    is_main,
    load_dataset,
    open_run,
    process_group,
    resolve_device,
    run_environment,
    short_name,
    write_bounds,
    write_class_rows,
    write_class_summary,
)

LABELS = {
    "exact": "log p(x), summed exactly over the label",
    "sampled": "log p(x), with a label drawn from q(y|·) per sample",
    "given": "log p(x, y) with the label given",
}
PATIENCE = timedelta(days=7)  # how long a process that has finished its rows waits for the others
SPLIT = click.option("--split", default="test", show_default=True, help="Split of the data: train, valid or test.")


@click.command()
@RUN
@click.option("--iw", "k", default=5000, show_default=True, help="Importance samples K.")
@click.option("--tolerance", type=float, help="Stop sampling a row once its standard error is below this, in nats [none].")
@click.option(
    "--labels",
    type=click.Choice(list(LABELS)),
    help="How a label is treated: summed over exactly, drawn once per sample (as in most published L_K), or given [exact].",
)
@click.option("--data", "dataset", help="Evaluate this data set, or all rows of this file, instead of the run's data.")
@SPLIT
@click.option("--limit", type=click.IntRange(1), help="Evaluate only the first N rows.")
@click.option("--chunk", type=click.IntRange(1), help="Rows x samples in memory at a time [from the free memory].")
@click.option("--seed", default=0, show_default=True, help="Seed of the importance samples.")
@DATA_DIR
@DEVICE
@THREADS
@click.option("--progress/--no-progress", default=True)
@click.option("--figures/--no-figures", default=True, help="Draw L_K against K, and the effective sample sizes.")
def evaluate(
    folder: Path,
    k: int,
    tolerance: float | None,
    labels: str | None,
    dataset: str | None,
    split: str,
    limit: int | None,
    chunk: int | None,
    seed: int,
    data_dir: Path | None,
    device: str,
    progress: bool,
    figures: bool,
) -> None:
    """Evaluate the bounds L_1, L_50 and L_K of a run.

    Writes evaluation.json, .csv and .npz into the run folder, and evaluation.png into its figures. With --data the files are
    called evaluation-DATA.*, and for another split than test evaluation-SPLIT.*.

    Finished rows are saved every few seconds: after an interruption, the same command continues from there. Under torchrun, the
    processes share the rows.
    """
    place = resolve_device(device)
    run = open_run(folder, place)
    if run.model.num_classes is None and labels is not None:
        raise InputError(f"--labels is for models with a label; got {labels} for {run.recipe.model['name']}")
    name, split, fixed = _rows(run, dataset, split, data_dir)
    x = fixed.x[:limit].to(place)
    settings: dict[str, Any] = {"recipe": run.recipe.name, "epoch": run.epoch, "data": name, "split": split, "k": k}
    settings |= {"seed": seed, "tolerance": tolerance}
    y: Label = None
    if run.model.num_classes is not None:
        settings["labels"] = labels = labels or "exact"
        y = _label(labels, fixed.y, limit, f"{name} {split}")
        y = y.to(place) if isinstance(y, Tensor) else y
    with process_group(place, PATIENCE) as group:
        group.broadcast_from_rank0(lambda: click.get_current_context().with_resource(locked(folder, "evaluating")))
        settings |= {"test_seed": TEST_SEED, "environment": run_environment(place, group.size)}
        kept_for = {"model settings": run.recipe.model, "environment": {**settings["environment"], "threads": None}}
        try:
            result = evaluate_bounds(run.model, x, k, seed, y, chunk, progress, tolerance, group, (folder, kept_for))
        except KeyboardInterrupt:
            if is_main():
                click.echo("\nInterrupted; the same command goes on from the rows that are done", err=True)
            raise
        # Plots and tables read evaluation.json, so it must be that of the test split of the run's own data.
        others = [part for part, own in ((name, short_name(run.recipe)), (split, "test")) if part != own]
        stem = "-".join(["evaluation", *others])
        group.broadcast_from_rank0(lambda: _finish(folder, settings, result, stem, figures))
        if result.partial is not None:
            result.partial.remove()


def _rows(run: Run, dataset: str | None, split: str, data_dir: Path | None) -> tuple[str, str, data.Split]:
    """The rows to evaluate, with the names of their data set and split. All rows of another file of the user's are evaluated."""
    if dataset is None:
        own = load_dataset(run.recipe, run.folder, data_dir)
        return short_name(run.recipe), split, fixed_split(own, split, run.recipe.binarize)
    if not data.is_path(dataset):
        return dataset, split, fixed_split(data.load(dataset, data_dir), split, run.recipe.binarize)
    own = load_dataset(run.recipe, run.folder, data_dir)
    rows = data.rows_like(own, dataset, label_column=run.recipe.data_options.get("label_column"))
    x = data.sample_inputs(own, rows.x, TEST_SEED) if run.recipe.binarize else rows.x
    return Path(dataset).stem, "all", data.Split(x, rows.y)


def _finish(folder: Path, settings: dict[str, Any], result: Bounds, stem: str, figures: bool) -> None:
    """Write the files and the figure, and print the table."""
    write_bounds(folder, settings, result, stem)
    rows, labels = len(result.last.log_px), settings.get("labels")
    note = f"; {LABELS[labels]}" if labels else ""
    where = f"{settings['recipe']} after {settings['epoch']} epochs, {settings['data']} {settings['split']}{note}"
    click.echo(f"{where}; nats per row, ± standard errors")
    click.echo(bounds_table(result.summary(), rows))
    used = f" with {result.last.mean('k_used')[0]:.0f} samples per row" if settings["tolerance"] is not None else ""
    files = f"{folder / stem}.csv and .npz"
    if figures:
        from dgmfast import plots

        figure, title = figures_folder(folder) / f"{stem}.png", f"{where}; seed {settings['seed']}"
        files += f", curves in {plots.log_likelihood(result.last, figure, title=title)}"
    click.echo(f"L_{settings['k']} took {result.seconds:.1f} s{used}; per-row values are in {files}")


def _label(labels: str, y: Tensor | None, limit: int | None, rows: str) -> Label:
    """The label that the option --labels stands for."""
    if labels != "given":
        return models.SampledLabel() if labels == "sampled" else models.ExactSum()
    if y is None:
        raise InputError(f"--labels given needs rows with labels; {rows} has none")
    return y[:limit]


@click.command()
@RUN
@click.option(
    "--by",
    type=click.Choice(CLASSIFY_BY),
    help="Classifier: q(y|x), p(y|x) from the bounds, both combined, or CaGeM's cascade [q; cascade for a CaGeM].",
)
@click.option("--samples", default=10, show_default=True, type=click.IntRange(1), help="Draws of the latents for each row.")
@click.option("--grey", is_flag=True, help="Classify the grey levels themselves instead of one binary draw of them.")
@SPLIT
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write the table of rows here, and .json and .png beside it [RUN/classification.csv, .json, RUN/figures/confusion.png].",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the draws.")
@DATA_DIR
@DEVICE
@THREADS
def classify(
    folder: Path,
    by: str | None,
    samples: int,
    grey: bool,
    split: str,
    out: Path | None,
    seed: int,
    data_dir: Path | None,
    device: str,
) -> None:
    """Classify the rows of a split.

    Prints the error, draws the confusion matrix, and writes the class probabilities of every row as CSV.
    """
    from dgmfast import plots

    if out is not None and (not out.name or out.is_dir() or out.suffix in (".json", ".png")):
        raise InputError(f"--out must name the table of the rows, such as errors.csv; got {out}")
    run = open_run(folder, resolve_device(device))
    click.get_current_context().with_resource(locked(folder, "classifying"))
    result = classify_rows(run.model, run.recipe, load_dataset(run.recipe, folder, data_dir), split, samples, seed, by, grey)
    message = f"error {result.error:.2f} ± {result.std_error:.2f} % of {len(result.y)} rows"
    where = f"{short_name(run.recipe)} {split}{', grey levels' if grey else ''}, by {result.by}"
    click.echo(f"{run.recipe.name} after {run.epoch} epochs, {where}: {message}")
    draws = f"{samples} draw{'s' if samples > 1 else ''}, seed {seed}"
    figure = figures_folder(folder) / "confusion.png" if out is None else out.with_suffix(".png")
    settings: dict[str, Any] = {"recipe": run.recipe.name, "epoch": run.epoch, "data": run.recipe.data, "split": split}
    settings |= {"samples": samples, "seed": seed, "grey": grey}
    out = out or folder / "classification.csv"
    write_class_rows(out, result)
    write_class_summary(out.with_suffix(".json"), settings, result)
    plots.confusion_matrix(result.confusion, figure, title=f"{message.capitalize()}\n{where}, {draws}")
    click.echo(f"wrote {out}, {out.with_suffix('.json')} and {figure}")


@click.command()
@RUN
@click.option("--n", default=100, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--out", type=click.Path(path_type=Path), help="Write the figure here [RUN/samples.png].")
@click.option("--npz", type=click.Path(path_type=Path), help="Also write the values, [n, D], to this file.")
@click.option("--seed", default=0, show_default=True)
@click.option("--temperature", default=1.0, show_default=True, help="Divide the logits of autoregressive pixels by this.")
@click.option("--progress/--no-progress", default=True)
@DATA_DIR
@THREADS
def sample(
    folder: Path,
    n: int,
    out: Path | None,
    npz: Path | None,
    seed: int,
    temperature: float,
    progress: bool,
    data_dir: Path | None,
) -> None:
    """Draw samples from a run's model as a grid of images.

    With --npz, the values are written too. Models with autoregressive pixels, such as a PixelCNN or FAME with concatenation, draw
    x pixel by pixel. Other models show the mean of p(x | latents).
    """
    from tqdm import tqdm

    from dgmfast import plots

    run = open_run(folder)
    with tqdm(unit="row of pixels", disable=not (progress and run.model.autoregressive), leave=False) as bar:

        def advance(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        x = run.model.sample(n, seed=seed, temperature=temperature, progress=advance)
    if npz is not None:
        buffer = io.BytesIO()
        np.savez(buffer, x=x.numpy())
        write_atomically(npz, buffer.getvalue())
        click.echo(f"wrote {npz}")
    layout = plots.layout_of_run(folder, run.recipe, data_dir)
    if layout is not None:
        click.echo(f"wrote {plots.samples(run.model, out or folder / 'samples.png', layout, n=n, seed=seed, x=x)}")
    elif out is not None or npz is None:
        raise InputError(f"the rows of {run.recipe.data} are not images: write them with --npz")
