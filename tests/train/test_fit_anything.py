"""dgmfast.fit and dgmfast.load_run: any model, any data, callbacks, loggers, and runs that the command line knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import call, refused

import dgmfast
from dgmfast import data, models, train
from dgmfast.errors import InputError
from dgmfast.recipes import Recipe

QUIET: dict[str, Any] = {"progress": False, "figures": False}
VAE: dict[str, Any] = {"latent": (2,), "hidden": ((8,),)}
X = torch.randn(120, 5, generator=torch.Generator().manual_seed(0)) * 3.0 + 1.0
Y = np.where(X[:, 0].numpy() > 1.0, "high", "low")


def parameters(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_run_of_tensors_is_known_to_the_command_line(tmp_path: Path) -> None:
    model = dgmfast.fit("adgm", (X, Y), tmp_path / "run", latent=2, auxiliary=2, hidden=(8,), labels=10, epochs=2, **QUIET)
    run = dgmfast.load_run(tmp_path / "run")
    assert torch.equal(parameters(run.model), parameters(model)) and not run.model.training
    assert run.epoch == 2 and [record["epoch"] for record in run.metrics] == [1, 2] and run.evaluation == {}
    assert run.recipe.model["likelihood"] == "gaussian" and run.recipe.labelled_batch == 10
    assert run.dataset().class_names == ("high", "low")
    call("evaluate", tmp_path / "run", "--iw", 60, "--no-progress", "--no-figures")
    call("classify", tmp_path / "run")
    call("figures", tmp_path / "run")
    assert set(dgmfast.load_run(tmp_path / "run").evaluation["bounds"]) == {"L_1", "L_50", "L_60"}
    np.savez(tmp_path / "other.npz", x=X[:7].numpy(), y=Y[:7])
    call("evaluate", tmp_path / "run", "--iw", 5, "--data", tmp_path / "other.npz", "--no-progress", "--no-figures")
    assert len((tmp_path / "run" / "evaluation-other-all.csv").read_text().splitlines()) == 8


def test_resumed_is_uninterrupted_also_with_own_data(tmp_path: Path) -> None:
    whole = dgmfast.fit("vae", X, tmp_path / "whole", epochs=3, **VAE, **QUIET)
    dgmfast.fit("vae", X, tmp_path / "parts", epochs=1, **VAE, **QUIET)
    parts = train.resume(tmp_path / "parts", {"epochs": 3}, **QUIET)
    assert torch.equal(parameters(whole), parameters(parts))
    assert torch.equal(parameters(dgmfast.fit("vae", X, epochs=3, **VAE, **QUIET)), parameters(whole))  # without a folder


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    seen: list[int] = []

    def stop(model: models.GenerativeModel, record: dict[str, Any]) -> bool:
        seen.append(record["epoch"])
        return record["epoch"] == 2

    dgmfast.fit("vae", X, tmp_path / "run", epochs=5, on_epoch=stop, **VAE, **QUIET)
    assert seen == [1, 2] and dgmfast.load_run(tmp_path / "run").epoch == 2
    resumed = train.resume(tmp_path / "run", **QUIET)
    assert torch.equal(parameters(resumed), parameters(dgmfast.fit("vae", X, epochs=5, **VAE, **QUIET)))


def test_the_logger_gets_every_number() -> None:
    class Logger:
        def __init__(self) -> None:
            self.values: dict[tuple[str, int], float] = {}

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            self.values[tag, global_step] = scalar_value

    logger, records = Logger(), []
    dgmfast.fit("vae", X, epochs=2, logger=logger, on_epoch=[lambda model, record: records.append(record)], **VAE, **QUIET)
    for record in records:
        for name in ("elbo", "reconstruction", "kl_z1", "valid_elbo", "lr"):
            assert logger.values[name, record["epoch"]] == record[name]


def test_a_changed_rate_is_said(tmp_path: Path) -> None:
    dgmfast.fit("vae", X, tmp_path / "run", epochs=1, **VAE, **QUIET)
    train.resume(tmp_path / "run", {"epochs": 2, "learning_rate": 5e-4}, **QUIET)
    train.resume(tmp_path / "run", {"epochs": 3, "schedule.name": "step", "schedule.factor": 0.5}, **QUIET)
    assert [record["lr"] for record in dgmfast.load_run(tmp_path / "run").metrics] == [1e-3, 5e-4, 5e-4 * 0.25]
    config = (tmp_path / "run" / "config.json").read_text()
    for words in ('"setting": "learning_rate"', '"from": 0.001', '"to": 0.0005', '"after_epoch": 2', '"setting": "schedule"'):
        assert words in config
    with pytest.raises(InputError, match="keeps its settings, except for epochs, learning_rate and schedule"):
        train.resume(tmp_path / "run", {"batch_size": 7}, **QUIET)


def test_a_model_object_begins_where_it_is(tmp_path: Path) -> None:
    model = models.create("vae", x_dim=5, likelihood="gaussian", **VAE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.125)
    dgmfast.fit(model, X, tmp_path / "run", epochs=0, **QUIET)
    found = dgmfast.load_run(tmp_path / "run").model
    assert (parameters(found) == 0.125).all() and found.settings() == {
        "x_dim": 5,
        "likelihood": "gaussian",
        "latent": [2],
        "hidden": [[8]],
    }


def test_a_model_with_modules_is_given_again(tmp_path: Path) -> None:
    def make() -> models.GenerativeModel:
        return models.create("vae", x_dim=5, likelihood="gaussian", encoder=torch.nn.Linear(5, 4), **VAE)

    trained = dgmfast.fit(make(), X, tmp_path / "run", epochs=1, **QUIET)
    with pytest.raises(InputError, match="give it again"):
        dgmfast.load_run(tmp_path / "run")
    assert "was given as an object" in refused("evaluate", tmp_path / "run")
    assert torch.equal(parameters(dgmfast.load_run(tmp_path / "run", model=make()).model), parameters(trained))
    assert dgmfast.load_run(tmp_path / "run", model=make()).epoch == 1
    train.resume(tmp_path / "run", {"epochs": 2}, model=make(), **QUIET)


def test_images_recipes_and_loaders() -> None:
    images = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert dgmfast.fit("vae", images, epochs=1, **VAE, **QUIET).x_dim == 16
    loader = torch.utils.data.DataLoader([(image, i % 3) for i, image in enumerate(images)], batch_size=5)
    assert dgmfast.fit("m2", loader, epochs=1, latent=2, hidden=(8,), labels=6, **QUIET).num_classes == 3
    recipe = Recipe("mine", {"name": "vae", "latent": [2], "hidden": [[8]]}, "digits", epochs=1)
    assert dgmfast.fit(recipe, **QUIET).x_dim == 64
    assert dgmfast.fit(recipe, data.from_arrays(X), **QUIET).x_dim == 5
    assert dgmfast.fit("vae-digits", epochs=1, latent=[3], **QUIET).latent == (3,)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("vae",), {}, "fit: data must be given for a model"),
        (("vea", X), {}, "no recipe or model is called 'vea'; did you mean"),
        ((7, X), {}, "fit: model must be a name, a Recipe or a GenerativeModel; got int"),
        (("vae", X), {"latnt": 3}, "no setting is called 'latnt'; did you mean latent"),
        (("vae", X), {"epochs": 1.5}, "epochs must be of type int"),
        (("vae", X), {"label_column": "y"}, "label_column is for files"),
        (("vae", X), {"on_epoch": 3}, "on_epoch must be a function or a list"),
        (("vae", X), {"logger": 3}, "logger must have the method add_scalar; got int"),
        (("vae", data.from_arrays(X)), {"split": (0.8, 0.1, 0.1)}, "split must be left out for a data.Dataset"),
        (("vae", X), {"labels": 10}, "labels must be 0 for vae, which takes none"),
        (("m2", X), {"labels": 10}, "labels must be 0 for m2, whose rows have none"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments: tuple[Any, ...], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dgmfast.fit(*arguments, **{"epochs": 1, **QUIET, **settings})


def test_a_model_of_labels_without_labels_says_so() -> None:
    with pytest.warns(UserWarning, match="m2 is trained without labels, so its classes mean nothing; set labels"):
        dgmfast.fit("m2", (X, Y), epochs=1, latent=2, hidden=(8,), **QUIET)


def test_data_that_changed_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    dgmfast.fit("vae", tmp_path / "x.npy", tmp_path / "run", epochs=1, **VAE, **QUIET)
    np.save(tmp_path / "x.npy", X.numpy() + 1.0)
    with pytest.raises(InputError, match="it has changed since"):
        train.resume(tmp_path / "run", {"epochs": 2}, **QUIET)
    assert "it has changed since" in refused("evaluate", tmp_path / "run", "--iw", 5)


def test_the_options_of_the_command_line(tmp_path: Path) -> None:
    lines = ["a,b,c,d,e,state", *(",".join([*map(str, row), y]) for row, y in zip(X.tolist(), Y, strict=True))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    options = ["--data", tmp_path / "t.csv", "--label-column", "state", "--split", "0.7,0.1,0.2", "--epochs", 1]
    small = [option for name in ("latent=2", "hidden=[8]") for option in ("--set", f"model.{name}")]
    labels = ["--set", "labels=10", "--set", "labelled_batch=5"]
    call("train", "m2", "--out", tmp_path / "run", *options, *small, *labels, "--no-progress", "--no-figures")
    run = dgmfast.load_run(tmp_path / "run")
    assert len(run.dataset().test.x) == 24 and run.recipe.name == "m2-on-t" and run.dataset().class_names == ("high", "low")
    assert "--label-column must come with --data" in refused("train", "vae-digits", "--label-column", "y")
    assert "--split must be three fractions" in refused("train", "vae", "--data", tmp_path / "t.csv", "--split", "all")
    assert "there is no" in refused("train", "vae", "--data", tmp_path / "none.csv")
    assert "vae-digits" in call("recipes", "digits").output and "digits" in call("data").output


def test_importing_dgmfast_imports_neither_training_nor_the_compiler() -> None:
    others = "('dgmfast.train', 'dgmfast.data', 'sklearn', 'matplotlib', 'torch._dynamo')"
    new = f"[m for m in {others} if m in {{*sys.modules}} - before]"
    code = f"import sys, torch; before = set(sys.modules); import dgmfast; print({new})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
