"""The commands data, recipes, reproduce and baseline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dgmfast import data, recipes, train
from dgmfast.cli.group import DATA_DIR, DEVICE, THREADS, click
from dgmfast.cli.training import parse_settings
from dgmfast.errors import InputError
from dgmfast.files import write_atomically
from dgmfast.models import GenerativeModel
from dgmfast.reproduce import BASELINE_TITLES, BASELINES, TABLES, Options, m1_recipe, reproduce_table, run_baseline
from dgmfast.runs import holds_run, is_main, open_run


@click.command(name="data")
@DATA_DIR
def data_command(data_dir: Path | None) -> None:
    """List the data sets, whether their files are there, and how to get each."""
    for name in data.names():
        what, source = data.describe(name)
        try:
            rows = data.load(name, data_dir)
            there = f"{len(rows.train.x)} + {len(rows.test.x)} rows of {rows.train.x.shape[1]}"
        except InputError as error:
            missing = "found none" in str(error) or "no data folder" in str(error) or "existing folder" in str(error)
            there = "not there" if missing else f"damaged: {error}"
        click.echo(f"{name:<16}{what}\n{'':<16}{there}; source: {source}")
    click.echo("\nA file or folder of your own: --data FILE.npz, .npy, .csv or .parquet, or a folder of images.")


@click.command(name="recipes")
@click.argument("word", required=False)
def recipes_command(word: str | None) -> None:
    """List the recipes with their model, data, epochs and note; with WORD, those in whose name it occurs."""
    for name in recipes.names():
        if word is None or word in name:
            recipe = recipes.get(name)
            labels = f", {recipe.labels} labels" if recipe.labels else ""
            click.echo(f"{name:<30}{recipe.model['name']} on {recipe.data}{labels}, {recipe.epochs} epochs; {recipe.note}")


@click.command()
@click.argument("name", metavar="TABLE", required=False)
@click.option("--list", "listed", is_flag=True, help="Show the tables and their rows.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Runs per row, with the seeds 0, 1, ...")
@click.option(
    "--epochs", type=click.IntRange(1), help="Epochs of every run; warm-up and schedule scale with them [the recipes' own]."
)
@click.option("--iw", "k", default=5000, show_default=True, type=click.IntRange(1), help="Importance samples of the last bound.")
@click.option("--limit", type=click.IntRange(1), help="Evaluate the bounds on the first N test rows only.")
@click.option(
    "--labels",
    type=click.Choice(["sampled", "exact"]),
    default="sampled",
    show_default=True,
    help="How the bounds treat a label: drawn once per sample, as in most publications, or summed over.",
)
@click.option("--only", multiple=True, metavar="ROW", help="Run only this row, as --list names it. May be given several times.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change any setting of every run.")
@click.option("--out", default="reproduce", show_default=True, type=click.Path(path_type=Path), help="Folder of runs and tables.")
@DATA_DIR
@DEVICE
@THREADS
@click.option("--progress/--no-progress", default=True)
@click.option("--figures/--no-figures", default=True, help="Draw the figures of each run.")
def reproduce(name: str | None, listed: bool, settings: tuple[str, ...], **options: Any) -> None:
    """Run the recipes of a published table, and print published and measured numbers.

    Finished runs are not repeated, and interrupted ones continue from their last checkpoint. The table shows the thesis's and the
    measured numbers side by side; OUT/TABLE.md and OUT/TABLE.json hold the table so far.
    """
    if listed:
        for table_name, table in TABLES.items():
            click.echo(f"{table_name:<20}{table.title}\n{'':<20}rows: {', '.join(row.name for row in table.rows)}")
        return
    if name is None:
        raise click.UsageError(f"name a table: {', '.join(TABLES)}")
    chosen = Options(changes=parse_settings(settings), **options)
    try:
        text = reproduce_table(name, chosen, lambda line: click.echo(line, err=True))
    except KeyboardInterrupt:
        if is_main():
            click.echo("\nInterrupted; the same command continues from the last checkpoint", err=True)
        raise
    click.echo(text, nl=False)
    click.echo(f"\nwrote {chosen.out / name}.md and {chosen.out / name}.json", err=True)


@click.command()
@click.argument("name", metavar=f"[{'|'.join(BASELINES)}]")
@click.option("--data", "dataset", default="mnist", show_default=True, help="Name of the data set.")
@click.option(
    "--labels", default=100, show_default=True, type=click.IntRange(1), help="Number of labelled rows, the same for each class."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the labelled rows and of the fit.")
@click.option(
    "--m1", type=click.Path(path_type=Path), help="For m1-svm: the run folder of a VAE, which is trained first if there is none."
)
@click.option("--epochs", default=100, show_default=True, type=click.IntRange(1), help="Epochs of that VAE's training.")
@click.option(
    "--json", "out", type=click.Path(path_type=Path), help="Write the result and the prediction of every row to this file."
)
@DATA_DIR
@THREADS
@click.option("--progress/--no-progress", default=True)
def baseline(
    name: str,
    dataset: str,
    labels: int,
    seed: int,
    m1: Path | None,
    epochs: int,
    out: Path | None,
    data_dir: Path | None,
    progress: bool,
) -> None:
    """Train a scikit-learn classifier on a few labels, and classify the test rows."""
    rows = data.load(dataset, data_dir)
    features = _m1(m1, rows, seed, epochs, progress) if name == "m1-svm" else None
    result = run_baseline(name, rows, labels, seed, features)
    message = f"error {result.error:.2f} ± {result.std_error:.2f} % of {len(result.predicted)} rows"
    click.echo(f"{BASELINE_TITLES[name]}, {dataset} with {labels} labels, seed {seed}: {message}, {result.seconds:.1f} s")
    if out is not None:
        content = {"baseline": name, "data": dataset, "labels": labels, "seed": seed, "error": result.error}
        content |= {"std_error": result.std_error, "seconds": round(result.seconds, 3), "predicted": result.predicted.tolist()}
        write_atomically(out, (json.dumps(content) + "\n").encode())
        click.echo(f"wrote {out}")


def _m1(folder: Path | None, dataset: data.Dataset, seed: int, epochs: int, progress: bool) -> GenerativeModel:
    """The model of the run in the folder. If there is no run, it is trained there."""
    folder = folder or Path("runs") / f"m1-{dataset.name}-{seed}"
    if not holds_run(folder):
        likelihood = "bernoulli" if dataset.kind in ("grey", "binary") else "gaussian"
        return train.fit(m1_recipe(dataset.name, likelihood, seed, epochs), folder, dataset=dataset, progress=progress)
    run = open_run(folder)
    if run.recipe.data != dataset.name:
        raise InputError(f"--m1 must be a run on {dataset.name}; {folder} is one on {run.recipe.data}")
    return run.model
