"""Trains a VAE and an IWAE on handwritten digits, evaluates them with 5000 importance samples and draws figures.

    python examples/digits.py [FOLDER]

The run folder of each model is in FOLDER, which is demo_out by default. An interrupted demonstration continues where it stopped.
The last column of the table is the time that `plain_log_likelihood` below, in plain PyTorch, takes for the same bound.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dgmfast import data, recipes, train
from dgmfast.errors import InputError
from dgmfast.files import make_folder, write_atomically
from dgmfast.models import VAE, GenerativeModel
from dgmfast.nn import BernoulliOutput
from dgmfast.runs import FIGURES, TEST_SEED, evaluate_bounds, fixed_split, holds_run, write_bounds

NAMES = ("vae-digits", "iwae-digits")
K = 5000
MARK = "demo.txt"


def run_demo(out: Path, progress: bool = True) -> None:
    """Trains, evaluates and draws into `out`, and continues what an earlier demonstration left there. It removes nothing.

    Raises:
        InputError: `out` holds something else, or the disk is full.
    """
    start = time.perf_counter()
    _claim(out)
    dataset = data.load("digits")
    test = fixed_split(dataset, "test", binarize=True)
    header = f"{'':<13}{'L_1':>9}{'L_50':>9}{'L_5000':>9}{'± rows':>8}{'± samples':>11}{'mean ESS':>10}{'seconds':>9}"
    rows = [f"{header}{'plain PyTorch':>15}"]
    for name in NAMES:
        model = _trained(out / name, name, dataset, progress)
        result = evaluate_bounds(model, test.x, K, progress=progress)
        write_bounds(out / name, {"recipe": name, "split": "test", "k": K, "test_seed": TEST_SEED, "seed": 0}, result)
        plain = f"{_seconds(plain_log_likelihood, model.eval(), test.x, K):.2f} s"
        summary = result.summary()
        last = summary[f"L_{K}"]
        nats = "".join(f"{summary[bound]['nats']:>9.2f}" for bound in ("L_1", "L_50", f"L_{K}"))
        errors = f"{last['row_error']:>8.2f}{last['sampling_error']:>11.4f}{last['mean_ess']:>10.0f}"
        rows.append(f"{name:<13}{nats}{errors}{result.seconds:>9.2f}{plain:>15}")
    print(f"\nBounds on log p(x) of the {len(test.x)} test digits, in nats per digit (± standard errors of the mean)\n")
    print("\n".join(rows))
    figures = ", ".join(sorted(path.name for path in (out / NAMES[0] / FIGURES).glob("*.png")))
    print(f"\nThe last two columns: time to evaluate L_{K}, here and in plain PyTorch (examples/digits.py).")
    print(f"Figures in {out}/*/{FIGURES}: {figures}. All in {time.perf_counter() - start:.0f} s.")


def _claim(out: Path) -> None:
    """Marks `out` as a folder of the demonstration, or raises InputError if it holds something else."""
    mark = out / MARK
    if mark.is_file():
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds something else than an earlier demonstration: choose another --out")
    make_folder(out)
    write_atomically(mark, b"Written by `dgmfast demo`, which goes on from what is in this folder.\n")


def _trained(folder: Path, name: str, dataset: data.Dataset, progress: bool) -> GenerativeModel:
    """Returns the model of the run in the folder, after training the epochs that are missing."""
    if holds_run(folder):
        return train.resume(folder, dataset=dataset, progress=progress)
    return train.fit(recipes.get(name), folder, dataset=dataset, progress=progress)


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


@torch.no_grad()
def plain_log_likelihood(model: GenerativeModel, x: Tensor, k: int) -> Tensor:
    """Returns L_K of every row, [N] in nats, in plain PyTorch as a careful user writes it for a Bernoulli VAE.

    It encodes x once. The samples of an image go through the decoder in blocks that fit in cache, and their weights are added in
    a running log-sum-exp.
    """
    assert isinstance(model, VAE) and isinstance(model.output, BernoulliOutput)
    mean, log_var = model.q[0](x)
    samples = max(1, 2**18 // x.shape[1])
    bounds = []
    for row in range(len(x)):
        total = x.new_tensor(-math.inf)
        for done in range(0, k, samples):
            eps = torch.randn(min(samples, k - done), mean.shape[1])
            z1 = below = mean[row] + torch.exp(0.5 * log_var[row]) * eps
            # This is log p(z) − log q(z|x); the terms −½ D log 2π of both cancel.
            log_ratio = 0.5 * (eps.square().sum(1) + log_var[row].sum())
            for q, p in zip(model.q[1:], model.p, strict=True):
                mean_q, log_var_q = q(below)
                eps = torch.randn_like(mean_q)
                z = mean_q + torch.exp(0.5 * log_var_q) * eps
                mean_p, log_var_p = p(z)
                log_ratio += 0.5 * (eps.square() + log_var_q).sum(1)
                log_ratio -= 0.5 * ((below - mean_p).square() / log_var_p.exp() + log_var_p).sum(1)
                below = z
            log_ratio -= 0.5 * below.square().sum(1)
            logits = model.output.logits(model.decoder(z1))
            log_px = torch.mv(logits, x[row]) - F.softplus(logits).sum(1)
            total = torch.logaddexp(total, torch.logsumexp(log_px + log_ratio, 0))
        bounds.append(total - math.log(k))
    return torch.stack(bounds)


if __name__ == "__main__":
    run_demo(Path(sys.argv[1] if len(sys.argv) > 1 else "demo_out"))
