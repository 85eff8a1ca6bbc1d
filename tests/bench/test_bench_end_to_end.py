"""Tests of the benchmark of whole scripts: contenders take the same step, a wrong one is reported, the report has the rows."""

from __future__ import annotations

import re
import sys
from functools import partial

import pytest
import torch
from support.measurements import ROOT
from torch.nn import functional as F

from bench import harness, machine, store
from bench.__main__ import main
from bench.cases import end_to_end
from bench.cases.end_to_end import SCRIPTS, EndToEndCase
from bench.cases.image_steps import images
from bench.cases.op_cases import Context
from bench.rivals import end_to_end as scripts

BRIEF = harness.Settings(seconds=0.0, min_rounds=3, max_rounds=3, sample_seconds=0.0)
CONTEXT = Context("cpu", 1, "default", BRIEF, compile=False, quick=True)
VAE_LOSSES = {
    "ours": end_to_end.swapped_loss,
    "eager": scripts.script_loss,
    "from logits": scripts.logits_loss,
    "torch.distributions": scripts.distributions_loss,
}


def measured(script):
    [rows] = EndToEndCase(script).run(CONTEXT)
    return {row["contender"]: row for row in rows}


def vae():
    model, x = end_to_end.seeded(scripts.ScriptVAE).double(), images(6).double()
    return model, x, end_to_end.noise(len(x), 1, 20)


def iwae():
    pytest.importorskip("pythae")
    model, x = end_to_end.seeded(partial(scripts.pythae_iwae, 5)).double(), images(6).double()
    return model, x, end_to_end.noise(len(x), 5, 16)


def assert_same(outputs, truth):
    assert len(outputs) == len(truth)
    for got, expected in zip(outputs, truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", VAE_LOSSES)
def test_every_form_of_the_vae_is_the_same_step(name):
    model, x, eps = vae()
    assert_same(end_to_end.training_step(model, x, eps, VAE_LOSSES[name])(), end_to_end.vae_float64(model, x, eps))


def test_pythae_and_ours_have_one_bound_and_one_gradient():
    model, x, eps = iwae()
    log_w, truth = end_to_end.iwae_float64(model, x, eps)
    ours = end_to_end.training_step(end_to_end.fast_iwae(model), x, eps, scripts.pythae_loss)()
    theirs = end_to_end.training_step(model, x, eps, scripts.pythae_loss)()
    assert_same(ours, truth)
    assert_same([end_to_end.pythae_bound(model, x, eps)], [-truth[0]])
    assert_same(theirs[1:], truth[1:])
    assert end_to_end.pythae_checker(model, x, eps, log_w, truth)((), theirs).error < 1e-9
    assert not end_to_end.pythae_checker(model, x, eps, 1.01 * log_w, truth)((), theirs).passed


def test_the_subclass_is_that_of_the_example():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "examples" / "pythae_swap.md").read_text(), re.DOTALL)
    model, x, eps = iwae()
    names = {"IWAE": type(model), "config": model.model_config, "plain": model.float()}
    exec(blocks[1], names)
    x, eps = x.float(), eps.float()
    steps = [end_to_end.training_step(m, x, eps, scripts.pythae_loss) for m in (names["fast"], end_to_end.fast_iwae(model))]
    for got, expected in zip(*(step() for step in steps), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", [*VAE_LOSSES, "compile"])
def test_timed_steps_draw_new_noise_and_stay_where_they_are(name, monkeypatch):
    """The noise of the check must not stay in the timed steps, which matters most for compiled code."""
    model, x, eps = vae()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    loss = VAE_LOSSES.get(name, scripts.script_loss)
    step = end_to_end.training_step(model, x, eps, loss, compiled=name == "compile")
    before = [p.detach().clone() for p in step.optimizer.param_groups[0]["params"]]
    assert len({float(step()[0]) for _ in range(4)}) == 4
    for p, start in zip(step.optimizer.param_groups[0]["params"], before, strict=True):
        assert torch.equal(p, start) and step.optimizer.state[p]["step"] == 4


def test_a_wrong_script_is_reported_and_not_timed(monkeypatch):
    right = scripts.script_loss
    monkeypatch.setattr(scripts, "script_loss", lambda model, x: right(model, x) - 0.01 * scripts.script_kl(*model.encode(x)))
    rows = measured("vae-script")
    assert {name: row["status"] for name, row in rows.items()} == {"ours": "ok", "eager": "wrong", "eager, from logits": "ok"}
    assert "median_s" not in rows["eager"] and rows["ours"]["median_s"] > 0


def test_noise_from_elsewhere_is_reported(monkeypatch):
    def loss(model, x):
        mean, log_var = model.encode(x)
        logits = model.logits(mean + torch.exp(0.5 * log_var) * torch.randn(mean.shape))
        return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + scripts.script_kl(mean, log_var)

    monkeypatch.setattr(scripts, "logits_loss", loss)
    rows = measured("vae-script")
    assert rows["ours"]["status"] == "ok" and rows["eager, from logits"]["status"] == "wrong"


def test_a_wrong_pythae_is_reported(monkeypatch):
    models = pytest.importorskip("pythae.models")
    right = models.IWAE.loss_function
    monkeypatch.setattr(models.IWAE, "loss_function", lambda self, *args: (1.01 * right(self, *args)[0], *right(self, *args)[1:]))
    rows = measured("pythae-iwae-5")
    assert rows["ours"]["status"] == "ok" and rows["pythae"]["status"] == "wrong"


def test_without_pythae(monkeypatch):
    monkeypatch.setitem(sys.modules, "pythae.models", None)
    rows = measured("pythae-iwae-50")
    assert list(rows) == ["pythae"] and rows["pythae"]["status"] == "not installed"
    assert rows["pythae"]["note"] == "not installed: pip install pythae"


def test_the_report_has_every_script(tmp_path, monkeypatch):
    pytest.importorskip("pythae")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # Drawing takes seconds, and other tests cover it.
    rivals = {"vae-script": "eager", "vae-distributions": "torch.distributions"}
    for script in SCRIPTS:
        rows = measured(script)
        assert {"ours", rivals.get(script, "pythae")} <= set(rows)
        assert all(row["status"] == "ok" and row["error"] <= row["tolerance"] for row in rows.values()), rows
        store.replace(tmp_path / "machine", [row | machine.describe("cpu") for row in rows.values()])
    page = tmp_path / "tables.md"
    assert main(["report", "--results", str(tmp_path), "--no-readme", "--out", str(page)]) == 0
    listed = re.findall(r"^\| `end_to_end` (\S+), training step \|(.*)$", page.read_text(), re.MULTILINE)
    assert [script for script, _ in listed] == sorted(SCRIPTS)
    assert all(rivals.get(script, "pythae") in cells or script == "vae-script" for script, cells in listed)


def test_a_gpu_has_no_such_case():
    assert EndToEndCase("vae-script").groups(Context("cuda", 1, "default", harness.QUICK)) == []
