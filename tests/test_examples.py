"""Tests of the examples: what they print is right, and they remove nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import refused

from dgmfast import evaluate, models, recipes
from dgmfast.examples import digits, drop_in, own_data, own_loop

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def quick(monkeypatch):
    """Limits the demonstration to one epoch and few samples."""
    get = recipes.get
    monkeypatch.setattr(digits, "K", 60)
    monkeypatch.setattr(digits.recipes, "get", lambda name: get(name).override({"epochs": 1}))


def test_the_demonstration_removes_nothing(tmp_path):
    (tmp_path / "vae-digits").mkdir()
    (tmp_path / "vae-digits" / "state.pt").write_text("weeks of work")
    assert f"{tmp_path} holds something else than an earlier demonstration" in refused("demo", "--out", tmp_path)
    assert (tmp_path / "vae-digits" / "state.pt").read_text() == "weeks of work"


def test_the_demonstration_goes_on_from_an_earlier_one(quick, tmp_path, capsys):
    digits.run_demo(tmp_path / "out", progress=False)
    state = (tmp_path / "out" / "vae-digits" / "model.safetensors").read_bytes()
    (tmp_path / "out" / "note.txt").write_text("mine")
    digits.run_demo(tmp_path / "out", progress=False)
    assert (tmp_path / "out" / "vae-digits" / "model.safetensors").read_bytes() == state
    assert (tmp_path / "out" / "note.txt").read_text() == "mine"
    assert len(re.findall(r"^(vae|iwae)-digits( +[-\d.]+){7} +[\d.]+ s$", capsys.readouterr().out, re.MULTILINE)) == 4


@pytest.mark.parametrize("settings", [{"latent": (3,), "hidden": ((8,),)}, {"latent": (3, 2), "hidden": ((8,), (6,))}])
def test_the_plain_bound_is_the_same_bound(settings: dict[str, Any]):
    torch.manual_seed(0)
    model, x = models.create("vae", x_dim=12, **settings), torch.rand(6, 12).round()
    ours, plain = evaluate.log_likelihood(model, x, 4000), digits.plain_log_likelihood(model, x, 4000)
    # Both have their own standard error. A difference of six joint standard errors has a chance of one in 10^8.
    assert ((plain.double() - ours.log_px).abs() < 6.0 * 2**0.5 * ours.std_error).all()


def test_the_example_of_the_front_page(capsys):
    """Its two losses must have the same mean, and the file must contain the lines of the README."""
    front = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert front
    texts = front[1], Path(drop_in.__file__).read_text()
    shown, there = ([line.split("#")[0].rstrip() for line in text.splitlines()] for text in texts)
    assert set(shown) <= {*there, "loss(x).backward()"}
    torch.manual_seed(0)
    with torch.no_grad():
        plain, ours = (torch.stack([f(drop_in.x) for _ in range(400)]) for f in (drop_in.plain_loss, drop_in.loss))
    error = ((plain.var() + ours.var()) / 400).sqrt()
    assert (plain.mean() - ours.mean()).abs() < 6.0 * error
    assert drop_in.seconds(drop_in.loss, 2) > 0.0


def test_the_loop_of_ones_own(capsys):
    torch.manual_seed(0)
    own_loop.main(epochs=2)
    bounds = [float(bound) for bound in re.findall(r"L_5 (-[\d.]+) nats", capsys.readouterr().out)]
    assert len(bounds) == 2 and bounds[1] > bounds[0]


def test_the_data_of_ones_own(tmp_path, capsys):
    run = own_data.main(str(tmp_path / "run"), epochs=4)
    # Guessing the more frequent state has an error of 40 %, with a standard error of 4 % on the test rows.
    error = float(re.search(r"test error ([\d.]+) %", capsys.readouterr().out)[1])
    assert run.epoch == 4 and error < 50.0
