"""The examples: what they print is right, and they remove nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from dgmfast.examples import digits
from support.command_line import refused

from dgmfast import evaluate, models, recipes


@pytest.fixture
def quick(monkeypatch):
    """The demonstration with one epoch and few samples."""
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
    # both have a standard error of their own; six of the two together, once in 10^8 by chance
    assert ((plain.double() - ours.log_px).abs() < 6.0 * 2**0.5 * ours.std_error).all()
