"""The command train."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgmfast import data, recipes, train
from dgmfast.cli.group import DATA_DIR, DEVICE, THREADS, click
from dgmfast.errors import InputError
from dgmfast.files import parse_json
from dgmfast.runs import holds_run, is_main


@click.command(name="train")
@click.argument("name", metavar="[RECIPE_OR_MODEL]", required=False)
@click.option("--out", "folder", type=click.Path(path_type=Path), help="The run's folder [runs/NAME].")
@click.option("--resume", is_flag=True, help="Continue the run from its last checkpoint.")
@click.option(
    "--data",
    "dataset",
    help="Train on this data set, .npz, .npy, .csv or .parquet file, or folder of images, not on the recipe's.",
)
@click.option("--label-column", help="For a .csv or .parquet file: the column of labels.")
@click.option("--split", help="For a file: the fractions of training, validation and test rows [0.8,0.1,0.1].")
@click.option(
    "--kind", type=click.Choice(["binary", "grey", "levels", "real"]), help="For a file: what x holds [from its values]."
)
@click.option("--normalize/--no-normalize", default=None, help="For a file: normalise each column [for kind real].")
@DATA_DIR
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--lr", type=float)
@click.option("--seed", type=int)
@click.option("--k", type=int, help="Importance samples inside the logarithm of the objective.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change any setting, such as model.latent=[100,50].")
@DEVICE
@THREADS
@click.option("--checkpoint-every", type=int, help="Also write a checkpoint every N epochs.")
@click.option(
    "--checkpoint-minutes",
    type=float,
    default=1.0,
    show_default=True,
    help="Write a checkpoint at the end of an epoch, N minutes after the last one.",
)
@click.option("--progress/--no-progress", default=True)
@click.option("--figures/--no-figures", default=True, help="Draw figures at the end.")
def train_command(
    name: str | None,
    folder: Path | None,
    resume: bool,
    dataset: str | None,
    label_column: str | None,
    split: str | None,
    kind: str | None,
    normalize: bool | None,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    seed: int | None,
    k: int | None,
    settings: tuple[str, ...],
    **options: Any,
) -> None:
    """Train a recipe, or a model on --data, in a new run folder.

    With --resume, continue the run in --out (or runs/NAME); --epochs extends it. Under torchrun, all processes train together.
    """
    shortcuts = {"epochs": epochs, "batch_size": batch_size, "learning_rate": lr, "seed": seed, "objective.k": k}
    changes = {path: value for path, value in shortcuts.items() if value is not None} | parse_settings(settings)
    own = {"label_column": label_column, "split": _fractions(split), "kind": kind, "normalize": normalize}
    own = {option: value for option, value in own.items() if value is not None}
    if own and not (dataset and data.is_path(dataset)):
        given = ", ".join(f"--{option.replace('_', '-')}" for option in own)
        raise InputError(f"{given} must come with --data and the path of a file or folder; got {dataset or 'no --data'}")
    if dataset and data.is_path(dataset):
        dataset = str(Path(dataset).absolute())
        changes["data_options"] = own
    recipe = recipes.resolve(name, dataset) if name else None
    if folder is None:
        if recipe is None:
            raise click.UsageError(f"name a recipe ({', '.join(recipes.names())}) or a model, or give --resume with --out")
        folder = Path("runs") / recipe.name
    try:
        if resume and (recipe is None or holds_run(folder)):
            if recipe is not None:
                changes.setdefault("name", recipe.name)
            if dataset is not None:
                changes["data"] = dataset
            train.resume(folder, changes, **options)
        elif recipe is not None:
            if resume and is_main():
                click.echo(f"{folder} holds no checkpoint yet: starting from the beginning", err=True)
            train.fit(recipe.override(changes), folder, **options)
        else:
            raise click.UsageError(f"name a recipe ({', '.join(recipes.names())}) or a model to begin a run")
    except KeyboardInterrupt:
        if is_main():
            click.echo(f"\nInterrupted; continue from the last checkpoint with: dgmfast train --out {folder} --resume", err=True)
        raise


def _fractions(text: str | None) -> list[float] | None:
    """The fractions that --split names."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--split must be three fractions, such as 0.8,0.1,0.1; got {text!r:.50}") from None


PYTHON_VALUES = {"True": True, "False": False, "None": None}


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE texts as a dict.

    A value is JSON, True, False, None, a number as Python writes it (.001), or else text.

    Raises:
        InputError: A text has no "=", or a list, dict or string is not valid JSON.
    """
    changes = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set takes NAME=VALUE, such as model.latent=[100,50]; got {text!r}")
        try:
            changes[path.strip()] = parse_json(value)
        except ValueError:
            if value.strip() in PYTHON_VALUES:
                changes[path.strip()] = PYTHON_VALUES[value.strip()]
            elif re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value.strip(), re.ASCII) and len(value) < 50:
                changes[path.strip()] = float(value)
            elif value.lstrip()[:1] in ("[", "{", '"'):
                raise InputError(f"--set {path.strip()} must be JSON, such as [100,50]; got {value[:100]!r}") from None
            else:
                changes[path.strip()] = value
    return changes
