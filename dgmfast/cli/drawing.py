"""The commands figures and compare."""

from __future__ import annotations

from pathlib import Path

from dgmfast.cli.group import DATA_DIR, RUN, THREADS, click
from dgmfast.runs import fixed_split, load_dataset, open_run


@click.command()
@RUN
@click.option("--split", help="Split of the data to draw [valid if there is one, else test].")
@click.option("--seed", default=0, show_default=True, help="Seed of the samples and of the latents.")
@DATA_DIR
@THREADS
def figures(folder: Path, split: str | None, seed: int, data_dir: Path | None) -> None:
    """Draw all figures of a run into RUN/figures.

    The figures of an evaluation and of a classification are drawn by `evaluate` and `classify`.
    """
    from dgmfast import plots

    run = open_run(folder)
    dataset = load_dataset(run.recipe, folder, data_dir)
    split = split or ("test" if dataset.valid is None else "valid")
    rows = fixed_split(dataset, split, run.recipe.binarize)
    for path in plots.draw_run(folder, run.model, rows, dataset, seed, split_name=split):
        click.echo(f"wrote {path}")


@click.command()
@click.argument("folders", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", default="comparison", show_default=True, type=click.Path(path_type=Path), help="Folder of the figures.")
def compare(folders: tuple[Path, ...], out: Path) -> None:
    """Draw figures that compare several runs.

    They show errors and bounds over the epochs, bounds against depth and against the number of labels, and the KL of the units.
    """
    from dgmfast import plots

    for path in plots.draw_comparison(folders, out):
        click.echo(f"wrote {path}")
