"""Tests of the figures of any model: each is a complete PNG with the right content, and wrong input gives one error."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.figures import assert_figure, record
from support.toy import dataset
from torch import Tensor

from dgmfast import data, models, plots
from dgmfast.data import Split
from dgmfast.errors import InputError
from dgmfast.models import create
from dgmfast.plots.images import _tile

LABEL_MODELS = {
    "m2": {"hidden": [8], "latent": 3},
    "m1m2": {"hidden1": [8], "hidden2": [8], "latent": [3, 2]},
    "adgm": {"hidden": [8], "latent": 3, "auxiliary": 2},
    "sdgm": {"hidden": [8], "latent": 3, "auxiliary": 2},
    "cagem": {"hidden1": [8], "hidden2": [8], "latent": [3, 2]},
}


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)


@pytest.fixture
def figures(monkeypatch):
    """The figures that the test has written."""
    return record(monkeypatch)


def model(x_dim=16, latent=(3, 2)):
    torch.manual_seed(0)
    return create("vae", x_dim=x_dim, latent=list(latent), hidden=[[8]] * len(latent)).eval()


def label_model(name, **settings):
    torch.manual_seed(0)
    return create(name, **{"x_dim": 16, "num_classes": 4, **LABEL_MODELS[name], **settings}).eval()


def axes_images(figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.images]


# ---------------------------------------------------------------- images


def test_tile_by_hand():
    images = torch.tensor([[[[0.0, 1.0]]], [[[0.25, 0.5]]], [[[1.0, 1.0]]]])  # three images of 1 x 2
    expected = [[1.0, 0.0, 0.8, 0.75, 0.5], [0.8, 0.8, 0.8, 0.8, 0.8], [0.0, 0.0, 0.8, 1.0, 1.0]]
    assert np.allclose(_tile(images, 2)[:, :, 0], expected), "ink is dark, a grey line apart, the empty cell white"


@pytest.mark.parametrize("n", [1, 7, 100])
def test_samples(n, tmp_path, figures):
    assert_figure(plots.samples(model(), tmp_path / "new folder" / "s.png", (1, 4, 4), n=n, seed=3))
    drawn = model().sample(n, seed=3).view(n, 4, 4)
    image = axes_images(figures[0])[0]
    columns = math.ceil(math.sqrt(n))
    row, column = divmod(n - 1, columns)
    assert np.allclose(image[5 * row : 5 * row + 4, 5 * column : 5 * column + 4], 1.0 - drawn[n - 1])


def test_samples_in_colour(tmp_path, figures):
    assert_figure(plots.samples(model(48), tmp_path / "s.png", (3, 4, 4), n=4))
    assert axes_images(figures[0])[0].shape == (9, 9, 3)


def test_a_pair_is_drawn_side_by_side():
    x = torch.arange(8.0).view(1, 8) / 8
    assert torch.equal(plots.Layout((2, 2, 2)).images(x, "x")[0, 0], torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7]]) / 8)


def test_rows_of_some_pixels_are_full_images():
    layout = plots.Layout((1, 2, 2), torch.tensor([3, 0]))
    assert layout.images(torch.tensor([[0.5, 2.0]]), "x").tolist() == [[[[1.0, 0.0], [0.0, 0.5]]]]


def test_the_layout_of_a_data_set():
    toy = dataset()
    assert plots.Layout.of(toy).shape == (1, 4, 4)
    assert plots.Layout.of(replace(toy, image_shape=None)) is None
    part = replace(toy, image_shape=None, pixels=torch.tensor([1, 2]), full_shape=(1, 4, 4))
    assert plots.Layout.of(part).pixels.tolist() == [1, 2]
    levels = torch.tensor([[0, 128]], dtype=torch.uint8)
    for scale in (None, torch.tensor([2.0, 4.0])):
        split = Split(levels, None)
        raw = data.Dataset("raw", split, None, split, (1, 1, 2), kind="levels", classes=None, note="", scale=scale)
        shown = plots.Layout.of(raw).images(data.sample_inputs(raw, levels, 0), "x").flatten()
        assert shown[0] < 1 / 256 and 0.5 <= shown[1] < 0.5 + 1 / 256


@pytest.mark.parametrize("n", [1, 10, 13])
def test_reconstructions(n, tmp_path, figures):
    x = dataset().test.x
    assert_figure(plots.reconstructions(model(), x, tmp_path / "r.png", (1, 4, 4), n=n, seed=2))
    image, again = axes_images(figures[0])[0], model().reconstruct(x[:n], None, 2)
    assert np.allclose(image[:4, :4], 1.0 - x[0].view(4, 4)) and np.allclose(image[5:9, :4], 1.0 - again[0].view(4, 4))
    assert [label.get_text() for label in figures[0].axes[0].get_yticklabels()] == ["data", "model"]


@pytest.mark.parametrize("name", LABEL_MODELS)
def test_reconstructions_of_a_model_with_a_label(name, tmp_path, figures):
    assert_figure(plots.reconstructions(label_model(name), dataset().test.x, tmp_path / "r.png", (1, 4, 4)))
    assert "p(x | y, z) with y and z drawn from q, seed 0" in figures[0].get_suptitle().replace("\n", " ")


class Counting(models.M2):
    """A model whose sample of class y is y/10 plus a hundredth of the row's noise."""

    def sample(self, n: int, y: Tensor | None = None, seed: int = 0) -> Tensor:
        noise = torch.rand(n, 1, generator=torch.Generator().manual_seed(seed))
        return (y.view(-1, 1) / 10 + noise / 100).expand(n, 16)


@pytest.mark.parametrize("classes", [4, 3])
def test_analogies(classes, tmp_path, figures):
    counting = Counting(x_dim=16, num_classes=4, latent=2, hidden=[4])
    assert_figure(plots.analogies(counting, tmp_path / "a.png", (1, 4, 4), rows=3, classes=classes))
    ink = 1.0 - axes_images(figures[0])[0][::5, ::5]  # one pixel of each cell
    assert ink.shape == (3, classes)
    assert np.allclose(ink - ink[:, :1], [np.arange(classes) / 10] * 3, atol=1e-6), "one noise in a row, the class in a column"
    assert len(np.unique(ink[:, 0])) == 3
    assert figures[0].axes[0].get_xlabel() == ("class y" if classes == 4 else "class y, 3 of 4")
    assert [label.get_text() for label in figures[0].axes[0].get_xticklabels()] == [str(c) for c in range(classes)]


@pytest.mark.parametrize("name", LABEL_MODELS)
def test_analogies_of_every_model(name, tmp_path, figures):
    chosen = label_model(name)
    assert_figure(plots.analogies(chosen, tmp_path / "a.png", (1, 4, 4), rows=2, seed=5))
    image = axes_images(figures[0])[0]
    third = chosen.sample(2, torch.tensor([3, 3]), 5)
    assert np.allclose(image[5:9, 15:19], 1.0 - third[1].view(4, 4))


def test_z2_grid(tmp_path, figures):
    chosen, x, y = label_model("cagem"), dataset().test.x, dataset().test.y
    assert_figure(plots.z2_grid(chosen, x, tmp_path / "z.png", (1, 4, 4), y=y, fixed=1, n=3, seed=4))
    inferred, space, fixed = figures[0].axes
    z2 = chosen.latent_means(x, None, 4)["z2"].double()
    (left, bottom), (right, top) = z2.quantile(torch.tensor([0.01, 0.99], dtype=torch.float64), 0).tolist()
    box = space.lines[0].get_xydata()
    assert {tuple(point) for point in box} == {(left, bottom), (right, bottom), (right, top), (left, top)}
    last = torch.tensor([[[right, bottom]]])  # the lower right cell
    cell = chosen.decode_z2(last, models.Noise(4), torch.tensor([1])).detach().view(4, 4)
    assert np.allclose(np.asarray(fixed.images[0].get_array())[10:14, 10:14], 1.0 - cell, atol=1e-6)
    cell = chosen.decode_z2(last, models.Noise(4)).detach().view(4, 4)
    assert np.allclose(np.asarray(inferred.images[0].get_array())[10:14, 10:14], 1.0 - cell, atol=1e-6)
    assert fixed.get_title() == "Class fixed: y = 1" and space.get_xlabel() == "first unit of z₂"


# ---------------------------------------------------------------- latents, classes and densities


@pytest.mark.parametrize("latent", [(3,), (1,), (3, 2)])
@pytest.mark.parametrize("labelled", [True, False])
def test_latent_space(latent, labelled, tmp_path, figures):
    split = dataset().test
    assert_figure(plots.latent_space(model(latent=latent), split.x, tmp_path / "l.png", y=split.y if labelled else None))
    assert len(figures[0].axes) == len(latent)
    for i, (axes, size) in enumerate(zip(figures[0].axes, latent, strict=True)):
        assert axes.get_title() == f"Mean of q(z{i + 1} | x), {size} dimensions, 23 rows"
        assert len(axes.collections) == (4 if labelled else 1)
        assert sum(len(points.get_offsets()) for points in axes.collections) == len(split.x)


@pytest.mark.parametrize("name", LABEL_MODELS)
def test_latent_space_of_every_layer(name, tmp_path, figures):
    assert_figure(plots.latent_space(label_model(name), dataset().test.x, tmp_path / "l.png", y=dataset().test.y))
    layers = {"m2": ["z"], "adgm": ["a", "z"], "sdgm": ["a", "z"]}.get(name, ["z1", "z2"])
    assert [axes.get_title().split(" |")[0] for axes in figures[0].axes] == [f"Mean of q({layer}" for layer in layers]


def test_confusion_matrix(tmp_path, figures):
    counts = torch.tensor([[3, 1, 0], [0, 0, 2]])
    assert_figure(plots.confusion_matrix(counts, tmp_path / "c.png", title="of six rows"))
    axes = figures[0].axes[0]
    assert np.array_equal(axes_images(figures[0])[0], [[3, 1, 0], [0, 0, 2], [0, 0, 0]])
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 2.5), (1.5, -0.5)), "the third row is no class"
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert [[written[column, row] for column in range(3)] for row in range(2)] == [["3", "1", "0"], ["0", "0", "2"]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert figures[0].get_suptitle() == "of six rows"


def test_a_large_confusion_matrix_has_no_numbers(tmp_path, figures):
    assert_figure(plots.confusion_matrix(torch.eye(50, dtype=torch.int64), tmp_path / "c.png"))
    assert not figures[0].axes[0].texts


class Halves(models.ADGM):
    """A classifier that returns class 1 where the first coordinate is positive."""

    def classify(self, x, k=1, seed=0, by="q", first_row=0):
        return torch.stack([(x[:, 0] <= 0).float(), (x[:, 0] > 0).float()], 1)


def test_decision_regions(tmp_path, figures):
    x = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = (x[:, 0] > 0).long()
    halves = Halves(x_dim=2, num_classes=2, latent=3, auxiliary=3, hidden=[4], likelihood="gaussian").eval()
    assert_figure(plots.decision_regions(halves, x, y, tmp_path / "d.png", labelled=(x[:3], y[:3])))
    regions, auxiliary = figures[0].axes
    background, (left, right, _, _) = axes_images(figures[0])[0], regions.images[0].get_extent()
    across = np.linspace(left, right, background.shape[1])
    assert np.array_equal(background, np.tile(across > 0, (len(background), 1)))
    assert left == pytest.approx(float(x[:, 0].min()) - 0.3) and right == pytest.approx(float(x[:, 0].max()) + 0.3)
    large = [len(points.get_offsets()) for points in regions.collections if points.get_sizes()[0] > 100]
    assert sum(large) == 3 and "3 labelled rows" in regions.get_title()
    assert auxiliary.get_title() == "Mean of q(a | x), 3 dimensions, 40 rows"


class Bump:
    """A Gaussian target with log Z = 0.5, whose q covers only one point of it."""

    @staticmethod
    def log_target(z: Tensor) -> Tensor:
        return 0.5 - math.log(2 * math.pi) - 0.5 * z.square().sum(1)

    def sample_q(self, n: int, seed: int = 0) -> Tensor:
        return torch.tensor([1.0, -2.0]) + 0.01 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def test_potential(tmp_path, figures):
    assert_figure(plots.potential(Bump(), tmp_path / "p.png", n=1000))
    target, q = axes_images(figures[0])
    cell = (8 / 100) ** 2
    assert target.sum() * cell == pytest.approx(1.0) and q.sum() * cell == pytest.approx(1.0)
    assert target.max() == pytest.approx(1 / (2 * math.pi), rel=2e-3)
    row, column = np.unravel_index(q.argmax(), q.shape)
    assert -4 + 8 * column / 100 == pytest.approx(1.0, abs=0.1) and -4 + 8 * row / 100 == pytest.approx(-2.0, abs=0.1)
    assert {image.get_clim()[1] for axes in figures[0].axes for image in axes.images} == {q.max()}, "one scale, which holds both"
    assert "log Z = 0.49" in figures[0].axes[0].get_title(), "the square holds all but 1e-4 of the mass"


# ---------------------------------------------------------------- wrong input


def test_the_colours_and_markers_tell_ten_classes_apart():
    assert len({(plots.COLORS[i % len(plots.COLORS)], plots.MARKERS[i % len(plots.MARKERS)]) for i in range(10)}) == 10
    assert math.lcm(len(plots.COLORS), len(plots.MARKERS)) >= 10


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda path: plots.samples(model(), path, (1, 5, 5)), r"expected images of shape \[1, 5, 5\]"),
        (lambda path: plots.samples(model(), path, (4, 2, 2)), "1, 2 or 3 channels"),
        (lambda path: plots.reconstructions(model(), dataset().test.x, path, (1, 2, 2)), "expected images"),
        (lambda path: plots.analogies(model(), path, (1, 4, 4)), "a model with a label; got VAE"),
        (lambda path: plots.z2_grid(model(), dataset().test.x, path, (1, 4, 4)), "a CaGeM with a z2 of size 2; got VAE"),
        (
            lambda path: plots.z2_grid(label_model("cagem"), dataset().test.x, path, (1, 4, 4), fixed=4),
            r"fixed must be a class, 0..3; got 4",
        ),
        (lambda path: plots.confusion_matrix(torch.zeros(3), path), r"counts must be \[Y, C\]"),
        (lambda path: plots.decision_regions(label_model("m2"), dataset().test.x, dataset().test.y, path), "rows of 16"),
    ],
)
def test_wrong_input(draw, told, tmp_path):
    with pytest.raises(InputError, match=told):
        draw(tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()
