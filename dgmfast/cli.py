"""The command line: train, evaluate, sample, bench, info. A user's error is one line and exit code 2, an interruption 130."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

try:
    import click
except ImportError:  # an extra, like all that only the command line needs
    sys.stderr.write("Error: the command line needs the extra `train`: pip install 'dgmfast[train]'\n")
    raise SystemExit(2) from None
import numpy as np
import torch

from dgmfast import _C, __version__, _report, _run, data, recipes, train
from dgmfast._distributed import resolve_device
from dgmfast._files import write_atomically
from dgmfast.errors import InputError

USER_ERROR, INTERRUPTED = 2, 130


class OneLineErrors(click.Group):
    """A group whose commands end every foreseeable error with one line instead of a traceback."""

    def main(self, *arguments: Any, standalone_mode: bool = True, **named: Any) -> Any:
        run: Callable[..., Any] = super().main
        if not standalone_mode:
            return run(*arguments, standalone_mode=False, **named)
        with warnings.catch_warnings():
            warnings.showwarning = _one_line_warning  # type: ignore[assignment]
            try:
                code = run(*arguments, standalone_mode=False, **named)
            except click.exceptions.NoArgsIsHelpError as error:
                error.show()
                code = error.exit_code
            except click.ClickException as error:
                code = _fail(error.format_message())
            except (click.Abort, KeyboardInterrupt):
                code = INTERRUPTED
            except ImportError as error:
                code = _fail(f"{error}; the command line needs the extra `train`: pip install 'dgmfast[train]'")
            except (OSError, ValueError, TypeError, MemoryError) as error:
                code = _fail(str(error) or type(error).__name__)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                code = _fail(f"out of memory: {str(error).splitlines()[0]}")
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> int:
    if _is_main():
        click.echo(f"Error: {' '.join(message.split())}", err=True)
    return USER_ERROR


def _out_of_memory(error: RuntimeError) -> bool:
    """Torch has a class for it on CUDA only."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _is_main() -> bool:
    """Under torchrun one process speaks."""
    return os.environ.get("RANK", "0") == "0"


def _one_line_warning(message: Warning | str, *details: Any) -> None:
    click.echo(f"Warning: {message}", err=True)


def _set_threads(context: click.Context, parameter: click.Parameter, value: int | None) -> None:
    if value is not None:
        torch.set_num_threads(value)


THREADS = click.option(
    "--threads",
    type=click.IntRange(1),
    callback=_set_threads,
    expose_value=False,
    help="Threads to compute with [all cores].",
)
DATA_DIR = click.option(
    "--data-dir", envvar="DGMFAST_DATA_DIR", type=click.Path(path_type=Path), help="Folder of the data sets [DGMFAST_DATA_DIR]."
)
DEVICE = click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")


@click.group(cls=OneLineErrors)
@click.version_option(__version__, prog_name="dgmfast")
def main() -> None:
    """Deep generative models: fused ops, exact bounds, log p(x) in constant memory."""


@main.command(name="train")
@click.argument("name", metavar="[RECIPE_OR_MODEL]", required=False)
@click.option("--out", "folder", type=click.Path(path_type=Path), help="The run's folder [runs/NAME].")
@click.option("--resume", is_flag=True, help="Continue the run from its last checkpoint.")
@click.option("--data", "dataset", help="Train on this data set instead of the recipe's.")
@DATA_DIR
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--lr", type=float)
@click.option("--seed", type=int)
@click.option("--k", type=int, help="Importance samples inside the logarithm of the objective.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any setting, such as model.latent=[100,50].")
@DEVICE
@THREADS
@click.option("--checkpoint-every", type=int, default=10, show_default=True, help="Epochs between two checkpoints.")
@click.option("--checkpoint-minutes", type=float, default=10.0, show_default=True, help="Most minutes between two checkpoints.")
@click.option("--progress/--no-progress", default=True)
@click.option("--figures/--no-figures", default=True, help="Draw figures at the end.")
def train_command(
    name: str | None,
    folder: Path | None,
    resume: bool,
    dataset: str | None,
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
    changes = {path: value for path, value in shortcuts.items() if value is not None} | _settings(settings)
    recipe = recipes.one_of(name, dataset) if name else None
    if folder is None:
        if recipe is None:
            raise click.UsageError(f"name a recipe ({', '.join(recipes.names())}) or a model, or give --resume with --out")
        folder = Path("runs") / recipe.name
    try:
        if resume and (recipe is None or _run.holds_run(folder)):
            if recipe is not None:
                changes.setdefault("name", recipe.name)
            if dataset is not None:
                changes["data"] = dataset
            train.resume(folder, changes, **options)
        elif recipe is not None:
            if resume and _is_main():
                click.echo(f"{folder} holds no checkpoint yet: starting from the beginning", err=True)
            train.fit(recipe.override(changes), folder, **options)
        else:
            raise click.UsageError(f"name a recipe ({', '.join(recipes.names())}) or a model to begin a run")
    except KeyboardInterrupt:
        if _is_main():
            click.echo(f"\nInterrupted; continue from the last checkpoint with: dgmfast train --out {folder} --resume", err=True)
        raise


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE texts as a dict; a value that is not JSON is a string."""
    changes = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set takes NAME=VALUE, such as model.latent=[100,50]; got {text!r}")
        try:
            changes[path.strip()] = json.loads(value)
        except ValueError:
            changes[path.strip()] = value
    return changes


RUN = click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))


@main.command()
@RUN
@click.option("--iw", "k", default=5000, show_default=True, help="Importance samples K.")
@click.option("--split", default="test", show_default=True, help="train, valid or test.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many rows.")
@click.option("--chunk", type=click.IntRange(1), help="Rows x samples at a time (chosen from the free memory).")
@click.option("--seed", default=0, show_default=True, help="Of the importance samples.")
@DATA_DIR
@DEVICE
@THREADS
@click.option("--progress/--no-progress", default=True)
def evaluate(
    folder: Path,
    k: int,
    split: str,
    limit: int | None,
    chunk: int | None,
    seed: int,
    data_dir: Path | None,
    device: str,
    progress: bool,
) -> None:
    """Evaluate L_1, L_50 and L_K of a run; writes evaluation.json and evaluation.npz into its folder."""
    place = resolve_device(device)
    run = _run.open_run(folder, place)
    fixed = _run.fixed_split(data.load(run.recipe.data, data_dir), split, run.recipe.binarize)
    x = fixed.x[:limit].to(place)
    y = fixed.y[:limit].to(place) if run.model.num_classes and fixed.y is not None else None
    result = _report.bounds(run.model, x, k, seed, y, chunk, progress)
    settings = {"recipe": run.recipe.name, "epoch": run.epoch, "data": run.recipe.data, "split": split, "k": k, "seed": seed}
    _report.write(folder, settings | {"test_seed": _run.TEST_SEED, "environment": _run.environment(place, 1)}, result)
    click.echo(f"{run.recipe.name} after {run.epoch} epochs, {run.recipe.data} {split}; nats per row, ± standard errors")
    click.echo(_report.table(result.summary(), len(x)))
    click.echo(f"L_{k} took {result.seconds:.1f} s; per-row values are in {folder / 'evaluation.npz'}")


@main.command()
@RUN
@click.option("--n", default=100, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--out", type=click.Path(path_type=Path), help="The figure [RUN/samples.png].")
@click.option("--npz", type=click.Path(path_type=Path), help="Write the values, [n, D], too.")
@click.option("--seed", default=0, show_default=True)
@THREADS
def sample(folder: Path, n: int, out: Path | None, npz: Path | None, seed: int) -> None:
    """Draw samples from a run's model: a grid of images, and the values with --npz."""
    from dgmfast import plots

    run = _run.open_run(folder)
    if npz is not None:
        buffer = io.BytesIO()
        np.savez(buffer, x=run.model.sample(n, seed=seed).numpy())
        write_atomically(npz, buffer.getvalue())
        click.echo(f"wrote {npz}")
    if run.image_shape is not None:
        click.echo(f"wrote {plots.samples(run.model, out or folder / 'samples.png', run.image_shape, n=n, seed=seed)}")
    elif out is not None or npz is None:
        raise InputError(f"the rows of {run.recipe.data} are not images: write them with --npz")


@main.command()
@click.option("--out", default="demo_out", show_default=True, type=click.Path(path_type=Path))
@THREADS
def demo(out: Path) -> None:
    """Train a VAE and an IWAE on handwritten digits, evaluate them, and draw figures: a minute."""
    from dgmfast import _demo

    _demo.run(out)


@main.command()
def info() -> None:
    """Print what this installation computes with."""
    architectures = _C.cuda_architectures
    architectures = architectures() if callable(architectures) else architectures
    built = architectures if isinstance(architectures, str) else ", ".join(map(str, architectures))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows = {
        "dgmfast": __version__,
        "torch": torch.__version__,
        "instruction set": _C.isa(),
        "CUDA architectures": built or "none (built without CUDA)",
        "GPU": gpu,
        "threads": torch.get_num_threads(),
    }
    for name, value in rows.items():
        click.echo(f"{name:<20}{value}")


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> NoReturn:
    """Run the benchmarks of the source tree: the same as python -m bench."""
    tree = Path(__file__).resolve().parents[1]
    if not (tree / "bench" / "__main__.py").is_file():
        raise InputError("the benchmarks are not installed: run `python -m bench` in dgmfast's source tree")
    sys.exit(subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=tree).returncode)
