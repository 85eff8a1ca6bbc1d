"""Tests of the figures of one run and of several runs: what they read, which curves they show, and one error for wrong files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.figures import assert_figure, record
from support.toy import dataset, recipe

from dgmfast import plots
from dgmfast.data import Split
from dgmfast.errors import InputError
from dgmfast.models import create
from dgmfast.objectives import Objective
from dgmfast.plots.compare import run_titles
from dgmfast.runs import read_run

LABELS = {"labels": 6, "labelled_batch": 3}
UNITS = {"z1": [[0.5, 1e-6, 0.1], [0.02, 2e-6, 0.3]], "z2": [[-0.1], [0.2]]}  # of two evaluations


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)


@pytest.fixture
def figures(monkeypatch):
    """The figures that the test has written."""
    return record(monkeypatch)


def records(epochs, **extra):
    """Returns the records of epochs, of which every second one was evaluated and has `extra`."""
    return [
        {"epoch": e, "step": e, "lr": 1e-3, "beta": 1.0, "objective": -9.0 / e, "elbo": -9.0 / e, "reconstruction": -8.0 / e}
        | {"kl_z1": 1.0 / e, "kl_z2": -0.1, "seconds": 0.1}
        | (extra if e % 2 == 0 else {})
        for e in range(1, epochs + 1)
    ]


def semi_supervised(epochs):
    return [
        {**record, "ce_q_y": 2.0 / record["epoch"], "ce_p_y": 2.1, "labelled_elbo": -12.0, "kl_y": 0.3, "objective": -500.0}
        for record in records(epochs, test_elbo=-10.0, test_error=7.5, kl_units={"z1": [0.1, 0.2]})
    ]


def with_units(epochs=(2, 4)):
    lines = records(max(epochs), test_elbo=-2.0)
    for i, epoch in enumerate(epochs):
        lines[epoch - 1]["kl_units"] = {layer: values[i] for layer, values in UNITS.items()}
    return lines


def metrics_file(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run_folder(folder: Path, lines, bounds=None, over="exact", **settings) -> Path:
    """Writes the folder of a run with these metrics and bounds."""
    metrics_file(folder, lines)
    (folder / "config.json").write_text(json.dumps({"recipe": recipe(**settings).to_dict(), "image_shape": None}))
    if bounds is not None:
        told = {"split": "test", "labels": over, "bounds": {name: {"nats": value} for name, value in bounds.items()}}
        (folder / "evaluation.json").write_text(json.dumps(told))
    return folder


def curves(axes) -> dict[str, list[tuple[float, float]]]:
    """Returns the points of each curve by its name."""
    return {line.get_label(): [tuple(point) for point in line.get_xydata().tolist()] for line in axes.lines}


# ---------------------------------------------------------------- one run


@pytest.mark.parametrize("epochs", [1, 40])
@pytest.mark.parametrize("extra", [{}, {"test_elbo": -2.0}, {"valid_elbo": -2.0}])
def test_training_curve(epochs, extra, tmp_path, figures):
    assert_figure(plots.training_curve(metrics_file(tmp_path, records(epochs, **extra)), tmp_path / "c.png"))
    bounds, terms = figures[0].axes
    expected = {"training, ELBO": epochs}
    if extra and epochs > 1:
        expected["test, ELBO" if "test_elbo" in extra else "validation, ELBO"] = epochs // 2
    assert {name: len(points) for name, points in curves(bounds).items()} == expected, "the objective is the ELBO here"
    assert curves(terms)["−E log p(x | ·)"] == [(e, 8.0 / e) for e in range(1, epochs + 1)]
    assert list(curves(terms)) == ["−E log p(x | ·)", "KL of z1", "KL of z2"]


def test_training_curve_with_warm_up(tmp_path, figures):
    lines = [{**line, "objective": line["elbo"] + 1.0} for line in records(4)]
    plots.training_curve(metrics_file(tmp_path, lines), tmp_path / "c.png")
    assert list(curves(figures[0].axes[0])) == ["training, objective", "training, ELBO"]


def test_training_curve_of_a_model_with_a_label(tmp_path, figures):
    assert_figure(plots.training_curve(metrics_file(tmp_path, semi_supervised(6)), tmp_path / "c.png"))
    bounds, terms, entropies, errors = figures[0].axes
    assert list(curves(bounds)) == ["training, ELBO", "labelled rows, bound on log p(x, y)", "test, ELBO"]
    assert list(curves(terms))[1:] == ["KL of z1", "KL of z2", "KL of y"]
    assert curves(entropies)["−E log q(y | ·)"][1] == (2, 1.0) and "−E log p(y | ·)" in curves(entropies)
    assert curves(errors) == {"test rows": [(2, 7.5), (4, 7.5), (6, 7.5)]}
    assert errors.get_ylabel() == "error (%)" and errors.get_xlabel() == "epoch"


def test_training_curve_of_a_training_in_stages(tmp_path, figures):
    first = [{name: value for name, value in line.items() if name != "kl_z2"} for line in records(2)]
    later = [{**line, "epoch": line["epoch"] + 2} for line in semi_supervised(2)]
    plots.training_curve(metrics_file(tmp_path, first + later), tmp_path / "c.png")
    terms = curves(figures[0].axes[1])
    assert [epoch for epoch, _ in terms["KL of z1"]] == [1, 2, 3, 4] and [epoch for epoch, _ in terms["KL of z2"]] == [3, 4]


def test_a_line_that_is_still_being_written_is_left_out(tmp_path, figures):
    path = metrics_file(tmp_path, records(3))
    path.write_text(path.read_text() + '{"epoch": 4, "el')
    plots.training_curve(path, tmp_path / "c.png")
    assert len(curves(figures[0].axes[0])["training, ELBO"]) == 3


def test_kl_units(tmp_path, figures):
    assert_figure(plots.kl_units({"a run": metrics_file(tmp_path, with_units())}, tmp_path / "k.png"))
    z2, z1, bar = figures[0].axes
    mesh = z1.collections[0]
    # The units are sorted by their last KL with the strongest on top; the rows of the mesh go upwards.
    assert np.allclose(mesh.get_array(), [[1e-3, 1e-3], [0.5, 0.02], [0.1, 0.3]])
    assert mesh.get_coordinates()[0, :, 0].tolist() == [1.0, 3.0, 5.0]
    assert np.allclose(z2.collections[0].get_array(), [[1e-3, 0.2]]), "a negative estimate is drawn as nothing"
    assert z1.get_ylabel() == "z1\n3 units" and z1.get_xlabel() == "epoch"
    assert z2.get_title() == "a run, test rows"
    assert bar.get_yscale() == "log" and "nats" in bar.get_ylabel()


def test_kl_units_of_runs_beside_each_other(tmp_path, figures):
    two = metrics_file(tmp_path / "two", with_units())
    one = metrics_file(tmp_path / "one", records(3, kl_units={"z1": [0.1]}))
    assert_figure(plots.kl_units({"two layers": two, "one layer": one}, tmp_path / "k.png"))
    shown = [axes for axes in figures[0].axes if axes.get_visible() and axes.get_label() != "<colorbar>"]
    assert len(shown) == 3 and {axes.get_title() for axes in shown} == {
        "two layers, test rows",
        "one layer, held-out rows",
        "",
    }
    assert len({mesh.norm for axes in shown for mesh in axes.collections}) == 1, "one scale for all"


def test_kl_layers(tmp_path, figures):
    assert_figure(plots.kl_layers({"a run": metrics_file(tmp_path, with_units())}, tmp_path / "k.png"))
    found = curves(figures[0].axes[0])
    assert list(found) == ["z1", "z2"]
    assert np.allclose(found["z1"], [(2, 0.600001), (4, 0.320002)]) and np.allclose(found["z2"], [(2, -0.1), (4, 0.2)])
    assert figures[0].axes[0].get_title() == "a run, test rows"


# ---------------------------------------------------------------- all of a run


def label_model(name, **settings):
    torch.manual_seed(0)
    small = {"m2": {"hidden": [8], "latent": 3}, "cagem": {"hidden1": [8], "hidden2": [8], "latent": [3, 2]}}[name]
    return create(name, **{"x_dim": 16, "num_classes": 4, **small, **settings}).eval()


def vae():
    return create("vae", x_dim=16, latent=[3, 2], hidden=[[8], [8]]).eval()


def names_of(paths):
    for path in paths:
        assert_figure(path)
    return sorted(path.stem for path in paths)


OF_IMAGES = ["latent_space", "reconstructions", "samples"]


def test_all_figures_of_a_run(tmp_path, figures):
    metrics_file(tmp_path, with_units())
    toy = dataset()
    assert names_of(plots.draw_run(tmp_path, vae(), toy.test, toy)) == sorted(
        [*OF_IMAGES, "kl_layers", "kl_units", "training_curve"]
    )
    metrics_file(tmp_path, [])
    unlabelled = Split(toy.test.x, None)
    drawn = plots.draw_run(tmp_path, vae(), unlabelled, replace(toy, image_shape=None))
    assert names_of(drawn) == ["latent_space"]
    (tmp_path / "metrics.jsonl").unlink()
    assert names_of(plots.draw_run(tmp_path, vae(), unlabelled, replace(toy, image_shape=None))) == ["latent_space"]


def test_all_figures_of_a_model_with_a_label(tmp_path, figures):
    toy = dataset()
    m2 = label_model("m2")
    assert names_of(plots.draw_run(tmp_path, m2, toy.test, toy)) == sorted([*OF_IMAGES, "analogies"])
    titles = [figure.get_suptitle() or figure.axes[0].get_title() for figure in figures]
    assert titles[0].endswith(", 23 rows") and "The first 20 rows" in titles[2]
    drawn = plots.draw_run(tmp_path, m2, toy.test, toy, split_name="valid")
    assert drawn[0].stem == "latent_space"
    assert figures[len(titles)].axes[0].get_title().endswith(", 23 validation rows")


def test_the_confusion_matrix_of_classify_is_left_alone(tmp_path, figures):
    """Drawing a run must not replace confusion.png, which belongs to `classify` and has the numbers of classification.json."""
    toy = dataset()
    run_folder(tmp_path, semi_supervised(2), model={"name": "m2"}, labels=6, labelled_batch=3)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "confusion.png").write_bytes(b"of classify")
    drawn = plots.draw_run(tmp_path, label_model("m2"), toy.test, toy)
    assert (tmp_path / "figures" / "confusion.png").read_bytes() == b"of classify"
    assert not {"confusion", "clusters"} & {path.stem for path in drawn}


def test_all_figures_of_a_cagem_in_the_plane(tmp_path, figures):
    toy = dataset()
    run_folder(tmp_path, semi_supervised(2), model={"name": "cagem", "num_classes": 6})
    drawn = plots.draw_run(tmp_path, label_model("cagem", num_classes=6), toy.test, toy)
    expected = [*OF_IMAGES, "analogies", "clusters", "kl_layers", "kl_units", "training_curve", "z2_grid"]
    assert names_of(drawn) == sorted(expected)
    [clusters] = [figure for figure in figures if figure.axes[0].get_xlabel() == "most probable cluster"]
    assert clusters.get_suptitle().replace("\n", " ").endswith("23 rows, 1 draw, seed 0")
    assert (clusters.axes[0].get_xlim(), clusters.axes[0].get_ylim()) == ((-0.5, 5.5), (3.5, -0.5)), "classes by clusters"


def test_figures_of_rows_that_hold_some_pixels(tmp_path, figures):
    toy = dataset()
    full = replace(toy, image_shape=None, pixels=torch.arange(16) + 2, full_shape=(1, 3, 6))
    plots.draw_run(tmp_path, vae(), toy.test, full)
    image = figures[1].axes[0].images[0].get_array()
    assert image.shape == (10 * 4 - 1, 10 * 7 - 1) and np.all(image[0, :2] == 1.0), "pixels without data are white"


def test_all_figures_of_points_in_the_plane(tmp_path, figures):
    points = torch.rand(30, 2, generator=torch.Generator().manual_seed(0))
    split = Split(points, torch.arange(30) % 2)
    plane = replace(dataset(), train=split, test=split, image_shape=None, kind="real", classes=2)
    run_folder(tmp_path, [], model={"name": "m2"}, labels=6, labelled_batch=3)
    m2 = label_model("m2", x_dim=2, num_classes=2, likelihood="gaussian")
    assert names_of(plots.draw_run(tmp_path, m2, split, plane)) == ["decision_regions", "latent_space"]
    large = [points for points in figures[-1].axes[0].collections if points.get_sizes()[0] > 100]
    assert [len(points.get_offsets()) for points in large] == [3, 3], "three labelled rows of each class"


def test_a_potential_has_its_own_figure(tmp_path, figures):
    toy = replace(dataset(), image_shape=None)
    fit = create("potential").eval()
    assert names_of(plots.draw_run(tmp_path, fit, Split(torch.zeros(5, 1), None), toy)) == ["potential"]
    assert "log Z = 1.8775" in figures[0].axes[0].get_title()


# ---------------------------------------------------------------- several runs


def test_error_curves(tmp_path, figures):
    runs = [
        run_folder(tmp_path / "a", records(4, test_error=26.0), name="adgm", **LABELS),
        run_folder(tmp_path / "b", records(4, test_error=10.0), name="adgm", **LABELS),
        run_folder(tmp_path / "c", records(6, valid_error=5.0), name="m2", **LABELS),
        run_folder(tmp_path / "d", records(6), name="vae"),
        run_folder(tmp_path / "e", records(6, test_error=90.0), name="cagem"),
    ]
    assert_figure(plots.error_curves(runs, tmp_path / "e.png"))
    axes = figures[0].axes[0]
    assert curves(axes)["b, test"] == [(2, 10.0), (4, 10.0)]
    assert axes.get_legend_handles_labels()[1] == ["a, test", "b, test", "m2, validation"], "runs of one recipe by their folders"
    assert len({curve.get_color() for curve in axes.lines}) == 3, "one colour per run with labels"
    assert len({curve.get_linestyle() for curve in axes.lines}) == 3, "equal curves show through each other"
    assert (axes.get_ylabel(), axes.get_yscale()) == ("error (%)", "log")
    plots.error_curves(runs[1:], tmp_path / "e.png")
    assert figures[1].axes[0].get_yscale() == "linear", "a logarithm only where the errors span a factor of five"


def test_bound_curves(tmp_path, figures):
    runs = [run_folder(tmp_path / "a", semi_supervised(4), name="m2"), run_folder(tmp_path / "b", records(2), name="vae")]
    plots.bound_curves(runs, tmp_path / "b.png")
    assert curves(figures[0].axes[0]) == {"m2, test": [(2, -10.0), (4, -10.0)]}


def test_titles_of_runs(tmp_path):
    ends = ["x/seed-0", "y/seed-0", "y/seed-1"]
    runs = [read_run(run_folder(tmp_path / end, records(1), name="m2")) for end in ends]
    other = read_run(run_folder(tmp_path / "z", records(1), name="seed-1"))
    titles = run_titles([*runs, other])
    assert list(titles.values()) == ["x/seed-0", "y/seed-0", "seed-1", str((tmp_path / "z").resolve())]
    (tmp_path / "link").symlink_to(tmp_path / "z")
    with pytest.raises(InputError, match=r"expected different runs; got .*link twice"):
        plots.draw_comparison([tmp_path / "z", tmp_path / "link"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_run_is_left_out_of_a_comparison(tmp_path, figures):
    """No run may be left out, with more runs than colours, more than one figure of units holds, and two kinds of layers."""
    runs = [run_folder(tmp_path / str(i), with_units(), name="m2", model={"name": "vae"}) for i in range(12)]
    runs.append(run_folder(tmp_path / "one", records(2, kl_units={"z1": [0.1]}), name="one", model={"name": "vae"}))
    drawn = plots.draw_comparison(runs, tmp_path / "out")
    assert len(drawn) == len(set(drawn)) == len(list((tmp_path / "out").iterdir()))
    lines = next(figure for figure in figures if figure.axes[0].get_title() == "L_1 on held-out rows").axes[0].lines
    assert len({str(line.get_color()) for line in lines}) == len(lines) == 12
    titled = {axes.get_title() for figure in figures if figure.axes[-1].get_label() == "<colorbar>" for axes in figure.axes}
    assert titled >= {*(f"{i}, test rows" for i in range(12)), "one, held-out rows"}


def depth_run(folder, depth, value, model="vae", **settings):
    latent, hidden = [2] * depth, [[4]] * depth
    bounds = {"L_1": value, "L_50": value + 1, "L_5000": value + 2}
    model = {"name": model, "latent": latent, "hidden": hidden}
    return run_folder(folder, records(2, test_elbo=-99.0), bounds, model=model, **settings)


def test_bounds_by_depth(tmp_path, figures):
    warm = {"objective": Objective(warmup_epochs=2)}
    runs = [
        depth_run(tmp_path / "1", 1, -90.0),
        depth_run(tmp_path / "2", 2, -88.0),
        depth_run(tmp_path / "2b", 2, -86.0, seed=1),
        depth_run(tmp_path / "3", 3, -85.0, "lvae", **warm),
    ]
    assert_figure(plots.bounds_by_depth(runs, tmp_path / "d.png"))
    train, test, many = figures[0].axes
    assert curves(test) == {"VAE": [(1, -90.0), (2, -87.0)], "LVAE+BN+WU": [(3, -85.0)]}, "the mean over the seeds"
    assert curves(many)["VAE"] == [(1, -88.0), (2, -85.0)] and many.get_title() == "Test rows, L_5000"
    assert curves(train)["VAE"] == [(1, -4.5), (2, -4.5)]
    assert [axes.get_xlabel() for axes in figures[0].axes] == ["latent layers"] * 3
    (tmp_path / "1" / "evaluation.json").unlink()
    plots.bounds_by_depth(runs, tmp_path / "d.png")
    assert curves(figures[1].axes[1])["VAE"][0] == (1, -99.0), "else the last value of the training's log"


def test_bounds_of_other_numbers_of_rows_are_not_compared(tmp_path):
    runs = [depth_run(tmp_path / str(depth), depth, -90.0) for depth in (1, 2)]
    for folder, rows in zip(runs, (100, 1000), strict=True):
        path = folder / "evaluation.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "rows": rows}))
    with pytest.raises(InputError, match="the same number of test rows; got 100 and 1000"):
        plots.bounds_by_depth(runs, tmp_path / "d.png")


def label_run(folder, labels, value, **settings):
    several = {"labels": labels, "labelled_batch": 2} if labels else {}
    return run_folder(folder, records(2), {"L_1": value, "L_10": value + 1}, model={"name": "cagem"}, **several, **settings)


def test_bounds_by_labels(tmp_path, figures):
    runs = [label_run(tmp_path / str(n), n, -80.0 + n / 10) for n in (100, 0, 20)]
    given = run_folder(tmp_path / "g", records(2), {"L_1": -9.0}, "given", model={"name": "m2"}, labels=8, labelled_batch=2)
    assert_figure(plots.bounds_by_labels([*runs, given, depth_run(tmp_path / "vae", 1, -9.0)], tmp_path / "l.png"))
    axes = figures[0].axes[0]
    assert curves(axes) == {
        "CAGEM, L_1": [(0, -80.0), (20, -78.0), (100, -70.0)],
        "CAGEM, L_10": [(0, -79.0), (20, -77.0), (100, -69.0)],
    }
    assert axes.get_xlabel() == "labelled training rows"


def test_all_figures_of_several_runs(tmp_path, figures):
    runs = [depth_run(tmp_path / str(depth), depth, -90.0) for depth in (1, 2)]
    for folder in runs:
        metrics_file(folder, with_units())
    drawn = plots.draw_comparison(runs, tmp_path / "out")
    assert names_of(drawn) == ["bounds", "bounds_by_depth", "kl_layers_vae", "kl_units_vae"]
    assert figures[2].axes[0].get_title() != figures[2].axes[1].get_title(), "two runs of one recipe"
    drawn = plots.draw_comparison([label_run(tmp_path / f"c{n}", n, -80.0) for n in (0, 20)], tmp_path / "out")
    assert names_of(drawn) == ["bounds_by_labels"]


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file"),
        ("", "got an empty file"),
        ("{}\n", "got line 1 without an epoch"),
        ("[1]\n", "got line 1 without an epoch"),
    ],
)
def test_wrong_metrics(content, told, tmp_path):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"metrics.jsonl: expected one JSON object per epoch; .*{told}"):
        plots.training_curve(path, tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


def test_wrong_runs(tmp_path):
    out = tmp_path / "f.png"
    plain = run_folder(tmp_path / "plain", records(1))
    with pytest.raises(InputError, match=r"nowhere is not the folder of a run: there is no config\.json in it"):
        plots.error_curves([tmp_path / "nowhere"], out)
    with pytest.raises(InputError, match=r"expected the error of held-out rows in the metrics of a run; got none in .*plain"):
        plots.error_curves([plain], out)
    with pytest.raises(InputError, match=r"different numbers of latent layers; got one number in .*plain"):
        plots.bounds_by_depth([plain, plain], out)
    with pytest.raises(InputError, match="different numbers of labels, each after `dgmfast evaluate`"):
        plots.bounds_by_labels([plain], out)
    with pytest.raises(InputError, match="expected an epoch with the KL of its units; got none"):
        plots.kl_units({"": plain / "metrics.jsonl"}, out)
    with pytest.raises(InputError, match="these runs allow no figure: expected the error"):
        plots.draw_comparison([plain], out)
    other = run_folder(tmp_path / "other", records(2, test_elbo=-2.0), data="digits")
    with pytest.raises(InputError, match=r"on one data set, .* got digits, toy"):
        plots.bound_curves([plain, other], out)
    (plain / "evaluation.json").write_text('{"bounds": {"L_1": 3}}')
    with pytest.raises(InputError, match=r"evaluation\.json: expected the bounds that `dgmfast evaluate` writes"):
        plots.bounds_by_depth([plain], out)
    assert not out.exists()
