"""Tests that figures can be read: no text is cut or lies over another, and epochs are whole numbers.

`support.figures.record` checks every figure that a test draws. Here each function draws its hardest cases.
"""

import inspect
import json
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from support.figures import faults, record
from support.toy import dataset, recipe

from bench import store
from bench.machine import ROOT
from bench.report import plot
from dgmfast import evaluate, plots
from dgmfast.models import create

NAME = "a-recipe-of-an-auxiliary-deep-generative-model-with-a-very-long-name"
SHAPE = (1, 4, 4)
MACHINES = sorted(path.parent for path in (ROOT / "bench" / "results").glob("*/measurements.jsonl"))


@pytest.fixture(autouse=True)
def figures(monkeypatch, threads):
    """Returns the figures that the test has written, each of which was checked."""
    torch.set_num_threads(1)
    return record(monkeypatch)


def model(name, **settings):
    torch.manual_seed(0)
    return create(name, **{"x_dim": 16, **settings}).eval()


def vae(layers=1):
    return model("vae", latent=[3] * layers, hidden=[[4]] * layers)


def cagem(classes):
    return model("cagem", num_classes=classes, hidden1=[4], hidden2=[4], latent=[3, 2])


def fame():
    tiny = {"latent": [3, 2], "maps": [4, 4], "dense": [4, 4], "decoder_maps": 4, "blocks": 1, "tail": 1, "first_kernel": 3}
    return model("fame", **tiny)


def pixelcnn():
    return model("pixelcnn", maps=4, blocks=1, tail=1, first_kernel=3)


def run(folder: Path, epochs, layers=1, labels=0, scale=1.0, **settings) -> Path:
    """Writes the folder of an evaluated run whose bounds rise over the epochs and whose errors fall."""
    folder.mkdir(parents=True)
    units = {f"z{i + 1}": [0.1 / (i + 1)] * 2 for i in range(layers)}
    lines = []
    for epoch in epochs:
        line = {"epoch": epoch, "step": epoch, "lr": 1e-3, "beta": 1.0, "objective": -1e3 * scale / epoch, "elbo": -1e5 / epoch}
        line |= {"reconstruction": -90.0, **{f"kl_{name}": sum(kl) for name, kl in units.items()}}
        line |= {"valid_elbo": -1e5 * scale / epoch, "kl_units": units, "seconds": 1.0}
        lines.append(line | ({"ce_q_y": 1e-4 / epoch, "valid_error": 90.0 * scale / epoch} if labels else {}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    named = {"name": NAME, "labels": labels, "labelled_batch": 3 if labels else 0, **settings}
    (folder / "config.json").write_text(json.dumps({"recipe": recipe(**named).to_dict(), "image_shape": None}))
    bounds = {f"L_{k}": {"nats": -90.0 - 100.0 / k} for k in (1, 50, 5000)}
    (folder / "evaluation.json").write_text(json.dumps({"split": "test", "labels": "exact", "bounds": bounds}))
    return folder


def of_depth(folder: Path, layers: int) -> Path:
    latent, hidden = [2] * layers, [[4]] * layers
    return run(folder, range(1, 41), layers, model={"name": "vae", "latent": latent, "hidden": hidden})


def with_labels(folder: Path, labels: int, epochs=range(1, 41), scale=1.0) -> Path:
    return run(folder, epochs, 2, labels, scale, model={"name": "cagem"})


def metrics(folder: Path, epochs=range(1, 3), layers=1, labels=0) -> Path:
    return run(folder, epochs, layers, labels) / "metrics.jsonl"


def many_runs(folder: Path) -> list[Path]:
    """Returns more runs than there are colours, in folders with long paths."""
    return [with_labels(folder / NAME / NAME / str(i), 6, scale=1.0 / (i + 1)) for i in range(14)]


def moons(classes):
    x = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    y = torch.arange(300) % classes
    m2 = model("adgm", x_dim=2, num_classes=classes, latent=3, auxiliary=2, hidden=[4], likelihood="gaussian")
    return m2, x, y


def classes_of(x, classes):
    return torch.arange(len(x)) % classes


X = dataset().train.x
ROWS = {"rows_name": "validation rows"}
# Function -> drawings of its hardest cases: few and many rows, classes, layers, epochs and runs, and long names.
CASES = {
    "samples": [lambda path: [plots.samples(vae(), path, SHAPE, n=n) for n in (1, 3, 50)]],
    "reconstructions": [
        lambda path: [plots.reconstructions(m, X, path, SHAPE, n=n, **ROWS) for m in (vae(), cagem(4), fame()) for n in (1, 13)]
    ],
    "masking_study": [lambda path: [plots.masking_study(fame(), X, path, SHAPE, n=n, **ROWS) for n in (1, 12)]],
    "completions": [
        lambda path: [plots.completions(pixelcnn(), X, path, SHAPE, n=n, draws=d, **ROWS) for n, d in ((1, 1), (12, 4))]
    ],
    "analogies": [lambda path: [plots.analogies(cagem(c), path, SHAPE, rows=r) for c, r in ((2, 1), (10, 10), (120, 3))]],
    "z2_grid": [
        lambda path: [plots.z2_grid(cagem(c), X, path, SHAPE, y=classes_of(X, c), fixed=1, n=4, **ROWS) for c in (2, 50)]
    ],
    "latent_space": [
        lambda path: [plots.latent_space(vae(n), X, path, y=classes_of(X, 50), **ROWS) for n in (1, 3)],
        lambda path: plots.latent_space(vae(), X[:2], path, **ROWS),
    ],
    "confusion_matrix": [
        lambda path: [
            plots.confusion_matrix(torch.full(shape, 10_000), path, predicted="most probable cluster", title=NAME + "\n" + NAME)
            for shape in ((2, 2), (10, 10), (4, 20), (50, 50), (3, 300))
        ]
    ],
    "decision_regions": [
        lambda path: [plots.decision_regions(m, x, y, path, labelled=(x[:3], y[:3]), **ROWS) for m, x, y in map(moons, (2, 30))]
    ],
    "potential": [lambda path: plots.potential(create("potential"), path, n=500)],
    "log_likelihood": [
        lambda path: [
            plots.log_likelihood(evaluate.log_likelihood(vae(), X.round(), k), path, title=f"{NAME} {NAME} {NAME}")
            for k in (1, 3, 60, 5000)
        ]
    ],
    "training_curve": [
        lambda path: [
            plots.training_curve(metrics(path.parent / str(i), epochs, layers, labels), path)
            for i, (epochs, layers, labels) in enumerate(
                [(range(1, 2), 1, 0), (range(1, 3), 5, 6), (range(1, 41), 11, 6), (range(9990, 10_001, 5), 1, 0)]
            )
        ],
        lambda path: plots.training_curve(metrics(path.parent / "potential"), path, potential=True),
    ],
    "kl_units": [
        lambda path: [
            plots.kl_units({f"{NAME}-{n}": metrics(path.parent / str(n), epochs, n) for n in (1, 3, 5)}, path)
            for path, epochs in ((path.parent / "1" / "f.png", range(1, 2)), (path.parent / "9" / "f.png", range(1, 10_000, 999)))
        ],
        lambda path: plots.kl_units({"": metrics(path.parent / "one")}, path),
    ],
    "kl_layers": [lambda path: plots.kl_layers({f"{NAME}-{n}": metrics(path.parent / str(n), layers=n) for n in (1, 9)}, path)],
    "error_curves": [
        lambda path: plots.error_curves([with_labels(path.parent / "one", 6, range(1, 3))], path),
        lambda path: plots.error_curves(many_runs(path.parent), path),
    ],
    "bound_curves": [
        lambda path: plots.bound_curves([of_depth(path.parent / "one", 1)], path),
        lambda path: plots.bound_curves(many_runs(path.parent), path),
    ],
    "bounds_by_depth": [lambda path: plots.bounds_by_depth([of_depth(path.parent / str(n), n) for n in (1, 2, 5, 11)], path)],
    "bounds_by_labels": [
        lambda path: plots.bounds_by_labels([with_labels(path.parent / str(n), n) for n in (0, 4, 8, 40)], path),
        lambda path: plots.bounds_by_labels([with_labels(path.parent / str(n), n) for n in (12, 1200, 60_000)], path),
    ],
}


@pytest.mark.parametrize(("name", "draw"), [(name, draw) for name, drawings in CASES.items() for draw in drawings])
def test_every_text_of_a_figure_can_be_read(name, draw, tmp_path, figures):
    draw(tmp_path / "figures" / "figure.png")
    assert figures


def test_every_function_that_draws_is_among_the_cases():
    drawing = {name for name in plots.__all__ if inspect.isfunction(getattr(plots, name)) and name != "layout_of_run"}
    assert drawing - set(CASES) == {"draw_run", "draw_comparison"}, "these two only call the others"


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_the_figures_of_the_benchmarks(machine, tmp_path, figures):
    rows = store.read(machine)
    plot.speedups(rows, tmp_path / "speedups.png")
    drawn = plot.classes(rows, tmp_path / "classes.png")
    assert len(figures) == 1 + drawn


# ---------------------------------------------------------------- the check itself


def plain() -> Figure:
    figure = Figure(figsize=(4, 3), layout="constrained")
    figure.subplots().set(xlabel="epoch", ylabel="nats", title="A title", xticks=[1, 2, 3])
    return figure


def test_a_figure_without_faults():
    assert faults(plain()) == []


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (lambda figure: figure.axes[0].set_title("A title that is far too long for this figure, and so it is cut"), "is cut"),
        (lambda figure: figure.set_layout_engine("none") or figure.axes[0].set_position((0, 0, 1, 1)), "'nats' is cut"),
        (lambda figure: figure.text(0.5, 1.0, "half outside", va="center"), "'half outside' is cut"),
        (lambda figure: figure.axes[0].set_yticks([1.0, 1.01, 2.0]), "'1.01' lies over '1.00'"),
        (lambda figure: figure.text(0.5, 0.5, "one") and figure.text(0.5, 0.5, "two"), "'two' lies over 'one'"),
        (lambda figure: figure.axes[0].set_xticks([1.0, 1.5]), "epoch 1.5 is no whole number"),
    ],
)
def test_a_planted_fault_is_found(plant, told):
    figure = plain()
    plant(figure)
    found = faults(figure)
    assert any(told in fault or " lies over ".join(told.split(" lies over ")[::-1]) in fault for fault in found), found
