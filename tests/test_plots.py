"""Figures: each is a whole PNG, of any kind of model, and wrong input is one error."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from toy import dataset

from dgmfast import plots
from dgmfast.data import Split
from dgmfast.errors import InputError
from dgmfast.models import create


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)


def model(x_dim=16, latent=(3, 2)):
    torch.manual_seed(0)
    return create("vae", x_dim=x_dim, latent=list(latent), hidden=[[8]] * len(latent))


def records(epochs, **extra):
    return [
        {"epoch": e, "step": e, "lr": 1e-3, "beta": 1.0, "objective": -9.0 / e, "elbo": -9.0 / e, "reconstruction": -8.0 / e}
        | {"kl_z1": 1.0 / e, "kl_z2": -0.1, "seconds": 0.1}
        | (extra if e % 2 == 0 else {})
        for e in range(1, epochs + 1)
    ]


def metrics_file(folder, lines):
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def assert_figure(path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 200 and pixels.std() > 5, "a figure with something on it"
    assert not list(path.parent.glob(".*"))


@pytest.mark.parametrize("n", [1, 7, 100])
def test_samples(n, tmp_path):
    assert_figure(plots.samples(model(), tmp_path / "new folder" / "s.png", (1, 4, 4), n=n))


def test_samples_in_colour(tmp_path):
    assert_figure(plots.samples(model(48), tmp_path / "s.png", (3, 4, 4), n=4))


@pytest.mark.parametrize("n", [1, 10, 13])
def test_reconstructions(n, tmp_path):
    assert_figure(plots.reconstructions(model(), dataset().test.x, tmp_path / "r.png", (1, 4, 4), n=n))


@pytest.mark.parametrize("latent", [(3,), (1,), (3, 2)])
@pytest.mark.parametrize("labelled", [True, False])
def test_latent_space(latent, labelled, tmp_path):
    split = dataset().test
    assert_figure(plots.latent_space(model(latent=latent), split.x, tmp_path / "l.png", y=split.y if labelled else None))


@pytest.mark.parametrize("epochs", [1, 2, 40])
@pytest.mark.parametrize("extra", [{}, {"test_elbo": -2.0}, {"valid_elbo": -2.0}])
def test_training_curve(epochs, extra, tmp_path):
    assert_figure(plots.training_curve(metrics_file(tmp_path, records(epochs, **extra)), tmp_path / "c.png"))


def test_all_figures_of_a_run(tmp_path):
    metrics_file(tmp_path, records(3))
    split = dataset().test
    drawn = plots.draw_run(tmp_path, model(), split, (1, 4, 4))
    assert sorted(path.name for path in drawn) == ["latent_space.png", "reconstructions.png", "samples.png", "training_curve.png"]
    for path in drawn:
        assert_figure(path)
    metrics_file(tmp_path, [])
    assert [path.name for path in plots.draw_run(tmp_path, model(), Split(split.x, None), None)] == ["latent_space.png"]


def test_the_colours_and_markers_tell_ten_classes_apart():
    assert len({(plots.COLORS[i % len(plots.COLORS)], plots.MARKERS[i % len(plots.MARKERS)]) for i in range(10)}) == 10
    assert math.lcm(len(plots.COLORS), len(plots.MARKERS)) >= 10


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda path: plots.samples(model(), path, (1, 5, 5)), r"expected images of shape \[1, 5, 5\]"),
        (lambda path: plots.samples(model(), path, (2, 4, 2)), "1 or 3 colours"),
        (lambda path: plots.reconstructions(model(), dataset().test.x, path, (1, 2, 2)), "expected images"),
        (lambda path: plots.training_curve(path.parent / "none.jsonl", path), "none.jsonl: expected"),
        (lambda path: plots.training_curve(metrics_file(path.parent, []), path), "got an empty file"),
    ],
)
def test_wrong_input(draw, told, tmp_path):
    with pytest.raises(InputError, match=told):
        draw(tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()
