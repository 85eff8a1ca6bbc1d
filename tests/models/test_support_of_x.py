"""Tests that x outside the support of p(x | latents), and invalid counts, are refused in one sentence by every function."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support import toy
from support.family import LABELLED, TINY, binary, labels, make
from torch import Tensor

from dgmfast import data, evaluate, models, train
from dgmfast.errors import InputError
from dgmfast.models import GenerativeModel
from dgmfast.objectives import Objective
from dgmfast.recipes import Recipe

TAKE_X: dict[str, Callable[[GenerativeModel, Tensor], object]] = {
    "elbo": lambda m, x: m.elbo(x),
    "log_weights": lambda m, x: m.log_weights(x),
    "reconstruct": lambda m, x: m.reconstruct(x),
    "latent_means": lambda m, x: m.latent_means(x),
    "log_likelihood": lambda m, x: evaluate.log_likelihood(m, x, k=2),
    "kl_units": lambda m, x: evaluate.kl_units(m, x),
    "loss": lambda m, x: Objective().loss(m, x),
}
VALUES = [(255.0, "lie in [0, 1]"), (-0.5, "lie in [0, 1]"), (1.0 + 2.0**-20, "lie in [0, 1]")]
NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("caller", TAKE_X)
@pytest.mark.parametrize("variant", TINY)
def test_a_value_outside_the_support(variant: str, caller: str) -> None:
    model, x = make(variant).eval(), binary(5)
    for value, words in VALUES:
        x[3, 4] = value
        with pytest.raises(InputError, match=rf"^{caller}: x must {re.escape(words)}.*; got {value:g} in row 3$"):
            TAKE_X[caller](model, x)
    x[3, 4] = 0.5
    TAKE_X[caller](model, x)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_value_that_is_not_finite(likelihood: str, value: float) -> None:
    model, x = make("vae", likelihood=likelihood).eval(), binary(5)
    x[2, 0] = value
    for caller, call in TAKE_X.items():
        with pytest.raises(InputError, match=rf"^{caller}: x must (be finite|lie in \[0, 1\]).*; got {value:g} in row 2$"):
            call(model, x)


def test_a_gaussian_output_takes_any_finite_value() -> None:
    model = make("vae", likelihood="gaussian").eval()
    x = torch.tensor([[1e4, -3.0, 0.0, 255.0, 2.0, -1e4]], dtype=torch.float64)
    for call in TAKE_X.values():
        call(model, x)


@pytest.mark.parametrize("variant", LABELLED)
def test_classification_refuses_it_too(variant: str) -> None:
    model, x = make(variant).eval(), binary(5)
    x[1, 1] = 7.0
    with pytest.raises(InputError, match=r"^classify: x must lie in \[0, 1\].*; got 7 in row 1$"):
        model.classify(x)
    with pytest.raises(InputError, match=r"^class_probabilities: x must lie in \[0, 1\].*; got 7 in row 1$"):
        evaluate.class_probabilities(model, x)


def test_a_pixelcnn_refuses_it_too() -> None:
    model = models.create("pixelcnn", x_dim=6, image=(1, 2, 3), maps=2, blocks=1, tail=2, first_kernel=3)
    x = torch.zeros(3, 6)
    x[2, 5] = 255.0
    for name in ("log_prob", "elbo", "log_weights"):
        with pytest.raises(InputError, match=rf"^{name}: x must lie in \[0, 1\].*; got 255 in row 2$"):
            getattr(model, name)(x)
    with pytest.raises(InputError, match=r"^complete: x must lie in \[0, 1\].*; got 255 in row 2$"):
        model.complete(x, torch.ones(6, dtype=torch.bool))


def bernoulli(**settings: Any) -> Recipe:
    """The toy recipe with a likelihood that does not follow from the data."""
    return toy.recipe(**settings).override({"model.likelihood": "bernoulli"})


@pytest.mark.parametrize("split", ["train", "test"])
def test_training_refuses_it_before_the_first_step(tmp_path, split: str) -> None:
    good = toy.dataset()
    part = getattr(good, split)
    x = part.x.clone()
    x[4] *= 255.0
    bad = replace(good, kind="real", **{split: data.Split(x, part.y)})
    with pytest.raises(InputError, match=rf"^{split} split of toy: x must lie in \[0, 1\].*; got .* in row 4$"):
        train.fit(bernoulli(binarize=False), tmp_path / "run", dataset=bad, progress=False, figures=False)
    assert not (tmp_path / "run").exists()


def test_training_refuses_levels_that_no_scale_brings_to_the_support(tmp_path) -> None:
    good = toy.dataset()
    train_split, test_split = (data.Split((255.0 * part.x).to(torch.uint8), part.y) for part in (good.train, good.test))
    levels = replace(good, kind="levels", train=train_split, test=test_split)
    with pytest.raises(InputError, match=r"^train split of toy: x must lie in \[0, 1\].* in row 0$"):
        train.fit(bernoulli(binarize=True), tmp_path / "run", dataset=levels, progress=False, figures=False)
    scaled = replace(levels, scale=torch.full((16,), 256.0))
    train.fit(bernoulli(binarize=True, epochs=1), tmp_path / "run", dataset=scaled, progress=False, figures=False)


@pytest.mark.parametrize("kind, words", [("grey", "lie in [0, 1]"), ("binary", "hold zeros and ones")])
def test_a_data_set_refuses_what_its_kind_rules_out(kind: str, words: str) -> None:
    good = toy.dataset(binary=True)
    x = good.test.x.clone()
    x[3] *= 255.0
    expected = f"Dataset toy: x must {words} for kind {kind}; got 255 in row 3 of the test split"
    with pytest.raises(InputError, match=re.escape(expected)):
        replace(good, kind=kind, test=data.Split(x, good.test.y))


@pytest.mark.parametrize("k", [1e3, True, None, "5", np.array([2, 3]), 0, -1, 2**40])
def test_a_count_that_is_none(k: object) -> None:
    model, x = make("adgm").eval(), binary(3)
    calls = {
        "elbo": lambda: model.elbo(x, k=k),
        "log_weights": lambda: model.log_weights(x, k),
        "classify": lambda: model.classify(x, k),
        "log_likelihood": lambda: evaluate.log_likelihood(model, x, k=k),
    }
    for caller, call in calls.items():
        with pytest.raises(InputError, match=rf"^{caller}: k must be (a whole number|at least 1|at most 4294967295); got "):
            call()


@pytest.mark.parametrize("n", [1e3, True, None, -1, 2**40])
def test_a_number_of_samples_that_is_none(n: object) -> None:
    with pytest.raises(InputError, match=r"^sample: n must be (a whole number|at least 0|at most 4294967295); got "):
        make("vae").sample(n)


@pytest.mark.parametrize("x", [np.zeros((3, 6)), [[0.0] * 6], None])
def test_an_x_that_is_no_tensor(x: object) -> None:
    model = make("vae").eval()
    for caller, call in TAKE_X.items():
        with pytest.raises(InputError, match=rf"^{caller}: x must be a tensor of shape \[N, 6\]; got {type(x).__name__}$"):
            call(model, x)


@pytest.mark.parametrize("variant", TINY)
def test_no_rows(variant: str) -> None:
    model, x = make(variant).eval(), binary(0)
    assert all(kl.isnan().all() for kl in evaluate.kl_units(model, x).values())
    assert evaluate.log_likelihood(model, x, k=2).log_px.shape == (0,)
    if variant in LABELLED:
        assert evaluate.class_probabilities(model, x).shape == (0, 3)
        assert math.isnan(evaluate.classification_error(model, x, labels(0)))


def test_labels_that_do_not_fit_the_rows() -> None:
    model, x, y = make("adgm").eval(), binary(4), labels(4)
    for wrong in (y[:3], y.unsqueeze(1), y.float(), y + 3, None, y.numpy()):
        with pytest.raises(InputError, match=r"^classification_error: y must "):
            evaluate.classification_error(model, x, wrong)
    with pytest.raises(InputError, match=r"^class_probabilities: model must have labels; got VAE$"):
        evaluate.class_probabilities(make("vae"), x)
