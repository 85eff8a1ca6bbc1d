"""Tests of the training-step benchmark: contenders take the same step, multiplications are counted, ours stores no copies."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from support.measurements import ROOT, row
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from bench import harness, store
from bench.__main__ import main
from bench.cases import steps
from bench.cases.op_cases import Context
from bench.report import page as report
from bench.report.ratios import headline
from bench.report.targets import STEP
from bench.rivals import steps as eager_steps

TINY = steps.Size(x_dim=20, hidden=(9, 8, 7), latent=5, classes=3, unlabelled=8, labelled=6)
BY_HAND = eager_steps.bernoulli_log_prob_by_hand
SHARED = {
    "separate": eager_steps.shared,
    "joined": partial(eager_steps.shared, joined=True),
    "by hand": partial(eager_steps.shared, log_px=BY_HAND),
    "joined, by hand": partial(eager_steps.shared, log_px=BY_HAND, joined=True),
}


def work(name, size=TINY):
    """Returns a model in float64, a batch and the noise of the first step."""
    model, batch = steps.step_model(name, size).double(), steps.step_batch(size)
    batch = batch._replace(unlabelled=batch.unlabelled.double(), labelled=batch.labelled.double())
    return model, batch, steps.first_noise(model, batch)


def assert_same(outputs, truth):
    """Asserts that the loss and every gradient agree, and that none of them is zero."""
    assert len(outputs) == len(truth) > 40
    for got, expected in zip(outputs, truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
        assert expected.abs().max() > 1e-9


@pytest.mark.parametrize("name", steps.MODELS)
def test_ours_is_the_repeated_batch(name):
    model, batch, eps = work(name)
    assert_same(steps.our_step(model, batch, "exact")(), steps.float64(model, batch, eps, rows=3))


@pytest.mark.parametrize("name", steps.MODELS)
def test_our_sparse_sum_is_that_of_the_kept_labels(name):
    model, batch, eps = work(name)
    with torch.no_grad():
        model.q_y.logits.bias.zero_()  # Some rows then keep several labels, and some fewer than all.
    truth, kept = steps.float64_sparse(model, batch, eps, tau=0.6)
    assert len(batch.unlabelled) < kept < len(batch.unlabelled) * TINY.classes
    step = steps.our_step(model, batch, "sparse", tau=0.6)
    assert_same(step(), truth)


@pytest.mark.parametrize("form", SHARED)
@pytest.mark.parametrize("name", steps.MODELS)
def test_eager_is_the_repeated_batch(name, form):
    model, batch, eps = work(name)
    step = steps.eager_step(model, batch, eps, eager_steps.shared_layout(model), SHARED[form])
    assert_same(step(), steps.float64(model, batch, eps))


@pytest.mark.parametrize("name", steps.MODELS)
def test_repeated_contender(name):
    model, batch, eps = work(name)
    layout = eager_steps.repeated_layout(model)
    step = steps.eager_step(model, batch, steps.repeated_noise(eps), layout, eager_steps.repeated)
    assert_same(step(), steps.float64(model, batch, eps))


def test_a_wrong_gradient_is_found():
    model, batch, eps = work("adgm")
    truth = steps.float64(model, batch, eps)
    wrong = [t.clone() for t in truth]
    wrong[-1] *= 1.01
    assert steps.checker(truth)((), truth).passed and not steps.checker(truth)((), tuple(wrong)).passed


def test_the_timed_steps_stay_where_they_are():
    """Every call must be a step from the same parameters, with new noise after the first call."""
    model, batch, eps = work("adgm")
    layout = eager_steps.shared_layout(model)
    for step in (steps.our_step(model, batch, "exact"), steps.eager_step(model, batch, eps, layout, eager_steps.shared)):
        before = [p.detach().clone() for p in step.optimizer.param_groups[0]["params"]]
        losses = {float(step()[0]) for _ in range(3)}
        assert len(losses) == 3
        for p, start in zip(step.optimizer.param_groups[0]["params"], before, strict=True):
            assert torch.equal(p, start) and p.grad is not None and step.optimizer.state[p]["step"] == 3


@pytest.mark.parametrize("name", steps.MODELS)
def test_counted_multiplications(name):
    """The counted multiplications must be those of a step that shares every product; ours must perform no others."""
    model, batch, eps = work(name)
    expected = 2 * steps.multiplications(TINY, name, TINY.unlabelled * TINY.classes)
    step = steps.eager_step(model, batch, eps, eager_steps.shared_layout(model), eager_steps.shared)
    with FlopCounterMode(display=False) as counter:
        step()
    assert counter.get_total_flops() == expected


def test_the_classifier_is_sure():
    size = steps.Size()
    model, batch = steps.step_model("adgm", size), steps.step_batch(size)
    q = model.classify(batch.unlabelled, seed=0)
    assert q.amax(1).mean() == pytest.approx(0.98, abs=5e-3) and (q.amax(1) > 0.95).all()
    assert (q / 0.25).clamp(max=1.0).sum(1).mean() - 1.0 == pytest.approx(0.08, abs=0.02)


def allocations(step, at_least, path):
    """Returns how many tensors of at least `at_least` bytes a step allocates, in PyTorch's operators and in ours."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    profiled.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    return sum(event.get("name") == "[memory]" and event["args"]["Bytes"] >= at_least for event in events)


@pytest.mark.parametrize("name", steps.MODELS)
def test_a_step_stores_no_copy_of_x_per_class(name, tmp_path):
    """When x is by far the widest tensor, only the logits and their gradient may be as large as Y copies of x."""
    size = replace(TINY, x_dim=500, unlabelled=30, labelled=6)
    model, batch, eps = work(name, size)
    copies = size.unlabelled * size.classes * size.x_dim * 8
    weights = max(p.numel() for p in model.parameters()) * 8
    assert weights < copies
    assert allocations(steps.our_step(model, batch, "exact"), copies, tmp_path / "exact.json") == 2
    assert allocations(steps.our_step(model, batch, "sparse"), copies, tmp_path / "sparse.json") == 0
    layout = eager_steps.repeated_layout(model)
    repeated = steps.eager_step(model, batch, steps.repeated_noise(eps), layout, eager_steps.repeated)
    assert allocations(repeated, copies, tmp_path / "repeated.json") > 4  # the test must find copies where there are some


def test_what_is_too_much_is_not_run():
    assert not steps.too_much(steps.Size(classes=200), 9.0)
    assert steps.too_much(steps.Size(classes=200), 11.0) == "would take about 11 s a step"
    assert steps.too_much(steps.Size(classes=2000), 0.1).endswith("GiB")


@pytest.mark.slow
def test_quick_run(tmp_path: Path) -> None:
    """A quick run must write its measurements to disk, and the report must turn them into tables and plots."""
    bench = [sys.executable, "-m", "bench", "--quick", "--cases", "steps", "classes", "--threads", "1"]
    done = subprocess.run([*bench, "--out", str(tmp_path / "results")], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "results").iterdir()
    rows = store.read(folder)
    assert {r["shape"] for r in rows if r["case"] == "steps"} == {
        f"{model}, {how} sum, 5 classes" for model in ("ADGM", "SDGM") for how in ("exact", "sparse")
    }
    assert {r["classes"] for r in rows if r["case"] == "classes"} == {2, 5}
    for one in rows:
        assert one["status"] == "ok" and one["error"] <= one["tolerance"] and one["median_s"] > 0, one
        assert one["mode"] == STEP and one["flops"] > 0
    sparse = {r["contender"] for r in rows if r["shape"] == "ADGM, sparse sum, 5 classes" and r["case"] == "steps"}
    assert {"ours", "exact sum", "eager", "eager, joined pairs", "repeated batch"} <= sparse
    assert main(["report", "--results", str(tmp_path / "results"), "--no-readme", "--out", str(tmp_path / "tables.md")]) == 0
    text = (tmp_path / "tables.md").read_text()
    assert "`steps` ADGM, exact sum, 5 classes, training step" in text
    assert f"](results/{folder.name}/{report.CLASSES})" in text
    assert (folder / report.CLASSES).read_bytes().startswith(b"\x89PNG")


def test_targets_and_floor(tmp_path: Path) -> None:
    shape = {"case": "steps", "shape": "ADGM, exact sum, 10 classes", "mode": STEP, "flops": 1e10}
    rows = [row("ours", 0.1, **shape), row("eager", 0.12, **shape), row("eager, joined pairs", 0.11, **shape)]
    for n in (20, 100):
        rows += [row("ours", 0.02, **shape | {"case": "classes", "shape": f"ADGM, sparse sum, {n} classes", "classes": n})]
    rows += [row("mm", None, case="floor", shape="sgemm", status="ok", rate=1.25e11, unit="FLOP/s")]
    first, hundred = headline(rows)
    assert first.floor == pytest.approx(1.25) and first.target.floor == 1.3
    assert first.ratios["eager"].value == pytest.approx(1.1)
    assert hundred.shape == "ADGM, sparse sum, 100 classes" and hundred.target.ratios == {"exact sum": 15}
    store.replace(tmp_path / "machine", rows)
    page = tmp_path / "tables.md"
    assert main(["report", "--results", str(tmp_path), "--no-readme", "--out", str(page)]) == 0
    assert "| 100 ms | 1.1 ✗ (1.15) | – | 1.25 times its multiplications ✓ (at most 1.3) |" in page.read_text()


def test_a_gpu_has_no_such_cases() -> None:
    context = Context("cuda", 1, "default", harness.QUICK)
    assert steps.StepCase("adgm").groups(context) == steps.ClassesCase().groups(context) == []
