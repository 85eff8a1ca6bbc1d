"""Tests of the benchmark of image models: all contenders must take the same training step."""

import pytest
import torch

from bench import harness, store
from bench.__main__ import main
from bench.cases import image_steps
from bench.cases.op_cases import Context

FORMS = {"masked": image_steps.masked, "cropped": image_steps.cropped}


def work(name):
    return image_steps.image_model(name, quick=True).double(), image_steps.images(2).double()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", image_steps.MODELS)
def test_the_eager_forms_are_the_model(name, form, channels_last):
    model, x = work(name)
    eps = image_steps.noise(model, len(x))
    step = image_steps.eager_step(image_steps.Eager(model, FORMS[form], channels_last), x, eps)
    loss, *gradients = step()
    truth = image_steps.our_step(model, x)()
    torch.testing.assert_close(loss, truth[0], rtol=1e-10, atol=0)
    for got, expected in zip(gradients, truth[1:], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
    # Later steps draw new noise, except in the PixelCNN, which has none.
    assert not torch.equal(step()[0], loss) or name == "pixelcnn"


@pytest.mark.parametrize("name", image_steps.MODELS)
def test_the_truth_is_ours_in_float64(name):
    model, x = work(name)
    truth, ours = image_steps.float64(model, x), image_steps.our_step(model, x)()
    assert len(truth) == len(ours)
    for got, expected in zip(ours, truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


def test_a_wrong_contender_is_reported(monkeypatch):
    monkeypatch.setattr(image_steps, "cropped", lambda h, conv, mask: 1.01 * image_steps.masked(h, conv, mask))
    context = Context("cpu", 1, "default", harness.QUICK, compile=False, quick=True)
    [rows] = image_steps.ImageStepCase("pixelcnn").run(context)
    status = {row["contender"]: row["status"] for row in rows}
    assert status["ours"] == status["eager, weight times mask"] == "ok" and status["eager, cropped"] == "wrong"


def test_the_case_runs(tmp_path):
    assert main(["--quick", "--cases", "image_steps", "--out", str(tmp_path)]) == 0
    rows = store.read(next(tmp_path.iterdir()))
    assert {row["shape"] for row in rows} == {"PixelCNN, 50 images", "FAME, 50 images"}
    assert {row["status"] for row in rows} == {"ok"}
