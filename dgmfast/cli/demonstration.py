"""The demonstration: a VAE and an IWAE on handwritten digits, their bounds, the same in plain PyTorch, and figures."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dgmfast import data, recipes, train
from dgmfast.errors import InputError
from dgmfast.files import make_folder, write_atomically
from dgmfast.models import GenerativeModel
from dgmfast.runs import FIGURES, TEST_SEED, evaluate_bounds, fixed_split, holds_run, write_bounds

NAMES = ("vae-digits", "iwae-digits")
K = 5000
MARK = "demo.txt"


def run_demo(out: Path, progress: bool = True) -> None:
    """Train, evaluate and draw into `out`, going on from what an earlier demonstration left there. Nothing is removed.

    Raises:
        InputError: `out` holds something else, or the disk is full.
    """
    start = time.perf_counter()
    _claim(out)
    dataset = data.load("digits")
    test = fixed_split(dataset, "test", binarize=True)
    eager = _eager_log_likelihood()
    header = f"{'':<13}{'L_1':>9}{'L_50':>9}{'L_5000':>9}{'± rows':>8}{'± samples':>11}{'mean ESS':>10}{'seconds':>9}"
    rows = [f"{header}{'plain PyTorch':>15}"]
    for name in NAMES:
        model = _trained(out / name, name, dataset, progress)
        result = evaluate_bounds(model, test.x, K, progress=progress)
        write_bounds(out / name, {"recipe": name, "split": "test", "k": K, "test_seed": TEST_SEED, "seed": 0}, result)
        plain = "not at hand" if eager is None else f"{_seconds(eager, model, test.x, K, 0):.2f} s"
        summary = result.summary()
        last = summary[f"L_{K}"]
        nats = "".join(f"{summary[bound]['nats']:>9.2f}" for bound in ("L_1", "L_50", f"L_{K}"))
        errors = f"{last['row_error']:>8.2f}{last['sampling_error']:>11.4f}{last['mean_ess']:>10.0f}"
        rows.append(f"{name:<13}{nats}{errors}{result.seconds:>9.2f}{plain:>15}")
    click.echo(f"\nBounds on log p(x) of the {len(test.x)} test digits, in nats per digit (± standard errors of the mean)\n")
    click.echo("\n".join(rows))
    figures = ", ".join(sorted(path.name for path in (out / NAMES[0] / FIGURES).glob("*.png")))
    click.echo(f"\nThe last two columns: time to evaluate L_{K}, here and in the best plain PyTorch.")
    click.echo(f"Figures in {out}/*/{FIGURES}: {figures}. All in {time.perf_counter() - start:.0f} s.")


def _claim(out: Path) -> None:
    """Mark `out` as the demonstration's own, unless it holds something else (InputError)."""
    mark = out / MARK
    if mark.is_file():
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds something else than an earlier demonstration: choose another --out")
    make_folder(out)
    write_atomically(mark, b"Written by `dgmfast demo`, which goes on from what is in this folder.\n")


def _trained(folder: Path, name: str, dataset: data.Dataset, progress: bool) -> GenerativeModel:
    """The model of the run in the folder, trained as far as it is not."""
    if holds_run(folder):
        return train.resume(folder, dataset=dataset, progress=progress)
    return train.fit(recipes.get(name), folder, dataset=dataset, progress=progress)


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def _eager_log_likelihood() -> Callable[..., Any] | None:
    """The benchmarks' rival, where the source tree is at hand."""
    tree = Path(__file__).resolve().parents[1]
    if not (tree / "bench" / "eager_likelihood.py").is_file():
        return None
    sys.path.insert(0, str(tree))
    try:
        function: Callable[..., Any] = importlib.import_module("bench.eager_likelihood").eager_log_likelihood
        return function
    finally:
        sys.path.remove(str(tree))
