"""Baseline classifiers from scikit-learn: two that see only the labelled rows, and M1 + a self-training SVM.

No maintained library has a transductive SVM. Self-training therefore replaces the published M1 + TSVM.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgmfast import data
from dgmfast.errors import InputError
from dgmfast.models import GenerativeModel
from dgmfast.objectives import Objective
from dgmfast.recipes import Recipe
from dgmfast.runs import binomial_error
from dgmfast.seeds import derive_seed

UNLABELLED = 10_000  # rows of the self-training; the time of an SVM grows with the square of their number
ROUNDS = 10  # rounds of the self-training; each adds the rows with the highest confidence
ENCODED_ROWS = 1000

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Baseline:
    """The result of a baseline.

    Args:
        name: The name of the baseline.
        error: The error on the test rows, in percent.
        std_error: Its binomial standard error, in percent.
        predicted: [N], the predicted classes.
        seconds: The time that fitting and prediction took.
    """

    name: str
    error: float
    std_error: float
    predicted: Tensor  # [N]
    seconds: float


def run_baseline(name: str, dataset: data.Dataset, labels: int, seed: int = 0, m1: GenerativeModel | None = None) -> Baseline:
    """Fit the baseline `name` on `labels` labelled rows, and classify the test rows.

    The labelled rows are those of a model with this seed. The rows are grey levels, not binarised ones; integer levels are
    divided by 256, and real values are used as they are.

    Args:
        name: A key of BASELINES.
        dataset: The data set.
        labels: Number of labelled rows.
        seed: Seed of the choice of rows and of the fit.
        m1: A trained VAE, for "m1-svm".

    Raises:
        InputError: There is no such baseline, the data has no labels or too few, or "m1-svm" has no m1.
    """
    if name not in BASELINES:
        raise InputError(f"baseline must be one of {', '.join(BASELINES)}; got {name!r}")
    train, test = dataset.train, dataset.test
    if train.y is None or test.y is None or dataset.classes is None:
        raise InputError(f"baseline: expected rows with labels; {dataset.name} has none")
    if name == "m1-svm" and m1 is None:
        raise InputError("baseline: m1-svm needs a trained M1: name the run of a VAE on the same data")
    chosen = data.labelled_rows(dataset, labels, derive_seed(seed, "labels"))
    y = train.y[chosen].numpy()
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings that an optimiser has not converged
        if m1 is not None and name == "m1-svm":
            others = np.setdiff1d(np.arange(len(train.x)), chosen.numpy())
            order = torch.randperm(len(others), generator=torch.Generator().manual_seed(derive_seed(seed, "unlabelled")))
            rows = np.concatenate([chosen.numpy(), others[order[:UNLABELLED].numpy()]])
            x, test_x = (_means(m1, dataset, t) for t in (train.x[torch.from_numpy(rows)], test.x))
            y = np.concatenate([y, np.full(len(rows) - labels, -1)])  # scikit-learn marks a row without a label by -1
        else:
            x, test_x = (_rows(dataset, t).numpy() for t in (train.x[chosen], test.x))
        predicted = torch.from_numpy(BASELINES[name](seed).fit(x, y).predict(test_x))
    error = 100.0 * (predicted != test.y).double().mean().item()
    return Baseline(name, error, binomial_error(error, len(test.y)), predicted, time.perf_counter() - start)


def m1_recipe(data_name: str, likelihood: str = "bernoulli", seed: int = 0, epochs: int = 100) -> Recipe:
    """M1 of Kingma et al. (2014): a VAE with 50 latents and 600-600 units.

    It uses ReLU, because softplus left all latents unused.
    """
    model = {"name": "vae", "latent": [50], "hidden": [[600, 600]], "activation": "relu", "likelihood": likelihood}
    note = "M1 (thesis §4.1), the features of the baseline m1-svm"
    settings: dict[str, Any] = {"learning_rate": 3e-4, "batch_size": 100, "epochs": epochs, "eval_every": 10}
    return Recipe(f"m1-{data_name}", model, data_name, objective=Objective(), seed=seed, note=note, **settings)


def _rows(dataset: data.Dataset, x: Tensor) -> Tensor:
    """The rows as a classifier sees them."""
    return x.float() / 256.0 if dataset.kind == "levels" else x


@torch.no_grad()
def _means(m1: GenerativeModel, dataset: data.Dataset, x: Tensor) -> Array:
    """The means of q(z₁|x) of the rows as they are; only integer levels are dequantised, by the middle of a level."""
    if dataset.kind == "levels":
        x = (x.float() + 0.5) / (1.0 if dataset.scale is None else dataset.scale)
    device = next(m1.parameters()).device
    parts = [m1.latent_means(part.to(device), seed=0) for part in x.split(ENCODED_ROWS)]
    first = next(iter(parts[0]))
    return torch.cat([part[first] for part in parts]).double().cpu().numpy()


def _logistic(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000)


def _mlp(seed: int) -> Any:
    from sklearn.neural_network import MLPClassifier

    # the network sizes of M2: 2 x 500
    return MLPClassifier((500, 500), learning_rate_init=3e-4, max_iter=200, random_state=seed)


def _self_training_svm(seed: int) -> Any:
    from sklearn.semi_supervised import SelfTrainingClassifier
    from sklearn.svm import SVC

    class MarginSVC(SVC):  # type: ignore[misc]
        """An SVC whose confidence is the softmax of its margins. Calibration on so few labels made its predictions worse."""

        def predict_proba(self, x: Array) -> Array:
            margins = self.decision_function(x)
            margins = np.stack([-margins, margins], 1) if margins.ndim == 1 else margins
            odds = np.exp(margins - margins.max(1, keepdims=True))
            return np.asarray(odds / odds.sum(1, keepdims=True))

    # With a threshold instead, either no rows were added, or wrong ones too early.
    return SelfTrainingClassifier(MarginSVC(C=10.0), criterion="k_best", k_best=UNLABELLED // ROUNDS, max_iter=ROUNDS)


BASELINES: dict[str, Callable[[int], Any]] = {"mlp": _mlp, "logistic": _logistic, "m1-svm": _self_training_svm}
BASELINE_TITLES = {"mlp": "MLP", "logistic": "Multi-class logistic regression", "m1-svm": "M1 + self-training SVM"}
