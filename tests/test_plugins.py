"""examples/own_model, a package outside the tree: its model, likelihood and recipe are known once it is installed or imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dgmfast import models, nn, recipes
from dgmfast.errors import InputError
from dgmfast.recipes import Recipe

PACKAGE = Path(__file__).resolve().parents[1] / "examples" / "own_model"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with counts to train on, and the package in `site`, as pip installs it."""
    site = tmp_path / "site"
    site.mkdir()
    shutil.copy(PACKAGE / "src" / "own_model.py", site)
    info = site / "own_model-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-model\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[dgmfast.plugins]\nown_model = own_model\n")
    rates = np.random.default_rng(0).gamma(2.0, size=(200, 1))
    np.save(tmp_path / "counts.npy", np.random.default_rng(1).poisson(rates, size=(200, 12)).astype(np.float32))
    return tmp_path


def command(place: Path, *arguments: str, site: str = "site") -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(place / site)}
    return subprocess.run(
        [sys.executable, "-m", "dgmfast", *arguments], cwd=place, env=environment, capture_output=True, text=True, timeout=250
    )


@pytest.mark.slow
def test_an_installed_package_is_found(place: Path) -> None:
    trained = command(place, "train", "counts-demo", "--epochs", "2", "--no-progress", "--no-figures")
    assert trained.returncode == 0, trained.stderr
    evaluated = command(place, "evaluate", "runs/counts-demo", "--iw", "20", "--no-progress", "--no-figures")
    assert evaluated.returncode == 0 and "counts test" in evaluated.stdout, evaluated.stderr
    small = ["--set", "model.likelihood=poisson", "--set", "model.latent=[2]", "--set", "model.hidden=[[8]]", "--epochs", "1"]
    other = command(place, "train", "vae", "--data", "counts.npy", "--no-normalize", *small, "--no-progress", "--no-figures")
    assert other.returncode == 0, other.stderr


@pytest.mark.slow
def test_a_package_that_is_not_installed_is_imported_by_name(place: Path) -> None:
    shutil.rmtree(place / "site" / "own_model-0.1.dist-info")
    unknown = command(place, "train", "counts-demo")
    assert unknown.returncode == 2 and "no recipe or model is called 'counts-demo'" in unknown.stderr
    trained = command(place, "--import", "own_model", "train", "counts-demo", "--epochs", "1", "--no-progress", "--no-figures")
    assert trained.returncode == 0, trained.stderr
    unread = command(place, "evaluate", "runs/counts-demo", "--iw", "5")
    assert unread.returncode == 2 and "must be registered (models.register) in a module that is imported" in unread.stderr
    missing = command(place, "--import", "no_such_module", "info")
    assert missing.returncode == 2 and "cannot import no_such_module: ModuleNotFoundError" in missing.stderr


def test_names_are_taken_once() -> None:
    with pytest.raises(InputError, match="'vae' must be a new name"):
        models.register("vae")(models.M2)
    with pytest.raises(InputError, match="expected a subclass of GenerativeModel"):
        models.register("mine")(int)
    with pytest.raises(InputError, match="'gaussian' must be a new name"):
        nn.register_output("gaussian")(nn.BernoulliOutput)
    with pytest.raises(InputError, match="int must have log_prob, mean, sample, init_mean"):
        nn.register_output("mine")(int)
    with pytest.raises(InputError, match="'vae-digits' must be a new name"):
        recipes.register(Recipe("vae-digits", {"name": "vae"}, "digits"))
    assert models.register("vae")(models.VAE) is models.VAE and recipes.register(recipes.get("vae-digits"))
