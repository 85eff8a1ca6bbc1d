"""Tests of the baselines: the rows that they see, their error rate, and one error for what they cannot do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.toy import dataset

from dgmfast import data, models
from dgmfast.errors import InputError
from dgmfast.reproduce import baselines
from dgmfast.seeds import derive_seed


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)


class Fitted:
    """A classifier that keeps the data it was given and always answers 0."""

    def fit(self, x, y):
        self.x, self.y = x, y
        return self

    def predict(self, x):
        self.test_x = x
        return np.zeros(len(x), dtype=np.int64)


@pytest.fixture
def fitted(monkeypatch):
    classifier = Fitted()
    for name in baselines.BASELINES:
        monkeypatch.setitem(baselines.BASELINES, name, lambda seed: classifier)
    return classifier


def m1(x_dim=16, likelihood="bernoulli"):
    torch.manual_seed(0)
    return models.create("vae", x_dim=x_dim, latent=[3], hidden=[[5]], likelihood=likelihood).eval()


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_every_baseline_learns(name):
    result = baselines.run_baseline(name, dataset(200), 40, 0, m1())
    assert result.error < 30, "a quarter right by chance"
    assert result.predicted.shape == (23,) and result.seconds > 0
    wrong = (result.predicted != dataset(200).test.y).double().mean().item()
    assert result.error == pytest.approx(100 * wrong)
    assert result.std_error == pytest.approx(100 * (wrong * (1 - wrong) / 23) ** 0.5)


def test_the_labelled_rows_are_those_of_the_models(fitted):
    toy = dataset()
    rows = data.balanced_subset(toy.train.y, 8, derive_seed(3, "labels"), 4)
    result = baselines.run_baseline("mlp", toy, 8, seed=3)
    assert np.array_equal(fitted.x, toy.train.x[rows]) and np.array_equal(fitted.y, toy.train.y[rows])
    assert np.array_equal(fitted.test_x, toy.test.x)
    assert result.error == pytest.approx(100 * (toy.test.y != 0).double().mean().item())


def test_the_self_training_sees_the_other_rows_without_their_labels(fitted, monkeypatch):
    toy, vae = dataset(), m1()
    baselines.run_baseline("m1-svm", toy, 8, 0, vae)
    rows = data.balanced_subset(toy.train.y, 8, derive_seed(0, "labels"), 4)
    assert fitted.x.shape == (61, 3)
    assert np.allclose(fitted.x[:8], vae.latent_means(toy.train.x[rows], seed=0)["z1"], atol=1e-6)
    assert np.array_equal(fitted.y, [*toy.train.y[rows].tolist(), *([-1] * 53)])
    assert np.allclose(fitted.test_x, vae.latent_means(toy.test.x, seed=0)["z1"], atol=1e-6)
    means = vae.latent_means(toy.train.x, seed=0)["z1"].double().numpy()
    assert np.allclose(np.sort(fitted.x, 0), np.sort(means, 0), atol=1e-6), "every row once"
    monkeypatch.setattr(baselines, "UNLABELLED", 10)
    baselines.run_baseline("m1-svm", toy, 8, 0, vae)
    assert len(fitted.x) == 18


def test_levels_are_shares_of_256(fitted):
    levels = torch.tensor([[0, 128], [64, 255]] * 4, dtype=torch.uint8)
    split = data.Split(levels, torch.tensor([0, 1] * 4))
    raw = data.Dataset("raw", split, None, split, (1, 1, 2), kind="levels", classes=2, note="", scale=torch.tensor([2.0, 4.0]))
    baselines.run_baseline("logistic", raw, 2)
    assert sorted(fitted.x.tolist()) == [[0.0, 0.5], [0.25, 255 / 256]]
    vae = m1(2, "gaussian")
    baselines.run_baseline("m1-svm", raw, 2, 0, vae)
    assert np.allclose(fitted.test_x[0], vae.latent_means(torch.tensor([[0.25, 128.5 / 4]]))["z1"], atol=1e-6)


def test_the_svm_of_two_classes():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    split = data.Split(torch.randn(60, 2, generator=generator) + 8.0 * y.unsqueeze(1), y)
    plane = data.Dataset("plane", split, None, split, None, kind="real", classes=2, note="")
    assert baselines.run_baseline("m1-svm", plane, 2, 0, m1(2, "gaussian")).error < 10


def test_the_m1_recipe():
    recipe = baselines.m1_recipe("norb", "gaussian", seed=4, epochs=7)
    assert (recipe.name, recipe.data, recipe.seed, recipe.epochs, recipe.labels) == ("m1-norb", "norb", 4, 7, 0)
    assert recipe.model["likelihood"] == "gaussian" and recipe.model["latent"] == [50]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("tsvm", dataset(), 8), "baseline must be one of mlp, logistic, m1-svm; got 'tsvm'"),
        (("mlp", replace(dataset(), classes=None), 8), "expected rows with labels; toy has none"),
        (("m1-svm", dataset(), 8), "m1-svm needs a trained M1"),
        (("mlp", dataset(), 5), "n must be a positive multiple of classes, 4; got 5"),
    ],
)
def test_wrong_input(arguments, told):
    with pytest.raises(InputError, match=told):
        baselines.run_baseline(*arguments)
