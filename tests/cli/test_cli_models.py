"""Tests of the commands for figures, classes, tables and baselines: their output, and one line for every user error."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command_line import call, refused
from support.figures import record
from support.toy import dataset, recipe

from dgmfast import data, evaluate, models, train
from dgmfast.recipes import registry
from dgmfast.reproduce import baselines, published
from dgmfast.runs import folder as run_folder

M2 = {"name": "m2", "hidden": [8], "latent": 2}
LABELS = {"labels": 8, "labelled_batch": 5, "start_at_mean": False}


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def toy_data(monkeypatch):
    """Replaces every data set by the toy one; the name "bare" gives it without test labels."""
    bare = data.Split(dataset().test.x, None)

    def load(name, data_dir=None):
        return replace(dataset(), name="bare", test=bare) if name == "bare" else dataset()

    monkeypatch.setattr(data, "load", load)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Trained runs: a model without a label, two models with labels, and a labelled model trained without labels."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    cagem = {"name": "cagem", "hidden1": [8], "hidden2": [8], "latent": [3, 2], "num_classes": 4, "batch_norm": False}
    chosen = {
        "vae": recipe(eval_every=2),
        "m2": recipe(name="toy-m2", model=M2, eval_every=2, **LABELS),
        "cagem": recipe(name="toy-cagem", model=cagem, **LABELS),
        "clusters": recipe(name="toy-clusters", model=cagem),
    }
    for name, one in chosen.items():
        train.fit(one, folder / name, dataset=dataset(), progress=False, figures=False)
    return {name: folder / name for name in chosen}


@pytest.fixture
def run(runs, tmp_path):
    """Returns a function that copies a run, so that a test may write into it."""
    return lambda name: Path(shutil.copytree(runs[name], tmp_path / name))


# ---------------------------------------------------------------- classify


def test_classify(run):
    folder = run("m2")
    told = call("classify", folder, "--samples", 3, "--seed", 2).stdout
    opened = run_folder.open_run(folder)
    toy = dataset()
    x = run_folder.fixed_split(toy, "test", True).x
    expected = evaluate.class_probabilities(opened.model, x, 3, 2)
    wrong = (expected.argmax(1) != toy.test.y).double().mean().item()
    error, spread = 100 * wrong, 100 * math.sqrt(wrong * (1 - wrong) / 23)
    assert told.splitlines()[0] == f"toy-m2 after 3 epochs, toy test, by q: error {error:.2f} ± {spread:.2f} % of 23 rows"
    assert (folder / "figures" / "confusion.png").exists()
    with (folder / "classification.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "label", "predicted", "p0", "p1", "p2", "p3"] and len(rows) == 23
    assert [int(row["label"]) for row in rows] == toy.test.y.tolist()
    assert [int(row["predicted"]) for row in rows] == expected.argmax(1).tolist()
    assert np.allclose([[float(row[f"p{c}"]) for c in range(4)] for row in rows], expected, atol=1e-5)
    summary = json.loads((folder / "classification.json").read_text())
    assert summary["error"] == pytest.approx(error) and summary["std_error"] == pytest.approx(spread)
    confusion = np.array(summary["confusion"])
    assert confusion.sum() == 23 and np.trace(confusion) == round(23 * (1 - wrong))
    assert confusion.sum(1).tolist() == torch.bincount(toy.test.y).tolist()


@pytest.mark.parametrize(("name", "by"), [("m2", "q"), ("m2", "p"), ("m2", "both"), ("cagem", "cascade"), ("cagem", "q")])
def test_classify_by(name, by, run, tmp_path):
    folder = run(name)
    told = call("classify", folder, "--by", by, "--split", "train", "--out", tmp_path / "p.csv").stdout
    assert f"toy train, by {by}: error " in told and " of 61 rows" in told
    assert {path.name for path in tmp_path.iterdir()} >= {"p.csv", "p.json", "p.png"}, "beside each other"
    assert not (folder / "classification.csv").exists() and not (folder / "figures" / "confusion.png").exists()
    assert "--out must name the table of the rows" in refused("classify", folder, "--out", tmp_path / "p.json")


def test_classify_grey_levels_as_they_are(run):
    folder = run("m2")
    told = call("classify", folder, "--grey").stdout
    toy = dataset()
    expected = evaluate.class_probabilities(run_folder.open_run(folder).model, toy.test.x, 10, 0)
    with (folder / "classification.csv").open() as file:
        rows = [[float(row[f"p{c}"]) for c in range(4)] for row in csv.DictReader(file)]
    assert np.allclose(rows, expected, atol=1e-5) and "grey levels" in told
    assert json.loads((folder / "classification.json").read_text())["grey"] is True


def test_a_cagem_classifies_by_its_cascade(run):
    assert "by cascade" in call("classify", run("cagem")).stdout


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("vae", [], "expected a run of a model with a label, one of m1m2, m2"),
        ("clusters", [], "expected a run that was trained with labels; toy-clusters had none"),
        ("m2", ["--by", "cascade"], "by must be q, p or both"),
        ("m2", ["--by", "p", "--grey"], "grey needs rows of grey levels and by q or cascade; got grey rows and by p"),
        ("m2", ["--by", "r"], "'r' is not one of 'q', 'p', 'both', 'cascade'"),
        ("m2", ["--samples", "0"], "--samples"),
        ("m2", ["--split", "valid"], "split must be one of train, test"),
        ("m2", ["--out", "RUN/config.json/x.csv"], "RUN/config.json/x.csv"),
    ],
)
def test_what_cannot_be_classified(name, arguments, told, run):
    folder = run(name)
    arguments = [argument.replace("RUN", str(folder)) for argument in arguments]
    assert told.replace("RUN", str(folder)) in refused("classify", folder, *arguments)


def test_rows_without_labels_are_not_classified(run):
    folder = run("m2")
    config = json.loads((folder / "config.json").read_text())
    config["recipe"]["data"] = "bare"
    (folder / "config.json").write_text(json.dumps(config))
    assert "expected rows with labels; bare test has none" in refused("classify", folder)
    assert "--labels given needs rows with labels; bare test has none" in refused("evaluate", folder, "--labels", "given")


# ---------------------------------------------------------------- evaluate


def bounds_of(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_evaluate_sums_over_the_label(run):
    folder = run("m2")
    found = {}
    for labels in ("exact", "sampled", "given", None):
        chosen = [] if labels is None else ["--labels", labels]
        out = call("evaluate", folder, "--iw", 40, "--no-progress", *chosen).stdout.splitlines()[0]
        told = bounds_of(folder)
        found[labels] = told["bounds"]["L_40"]["nats"]
        assert told["labels"] == (labels or "exact")
        assert {"exact": "summed exactly", "sampled": "drawn from q(y|·)", "given": "log p(x, y)"}[labels or "exact"] in out
    x, y = run_folder.fixed_split(dataset(), "test", True).x, dataset().test.y
    model = run_folder.open_run(folder).model
    expected = {"exact": None, "sampled": models.SampledLabel(), "given": y}
    for labels, label in expected.items():
        assert found[labels] == pytest.approx(evaluate.log_likelihood(model, x, 40, 0, label).log_px.mean().item())
    assert found[None] == found["exact"] > found["given"], "log p(x) exceeds log p(x, y)"
    assert len(set(found.values())) == 3


def test_evaluate_a_model_without_a_label(run):
    folder = run("vae")
    call("evaluate", folder, "--iw", 2, "--no-progress")
    assert "labels" not in bounds_of(folder)
    assert "--labels is for models with a label; got exact for vae" in refused("evaluate", folder, "--labels", "exact")


# ---------------------------------------------------------------- figures


def drawn(result) -> set[str]:
    paths = [Path(line.removeprefix("wrote ")) for line in result.stdout.splitlines()]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    return {path.name.removesuffix(".png") for path in paths}


def test_figures(run, monkeypatch):
    record(monkeypatch)
    of_all = {"latent_space", "samples", "reconstructions", "training_curve", "kl_units", "kl_layers"}
    folder = run("cagem")
    assert drawn(call("figures", folder)) == of_all | {"analogies", "z2_grid"}
    assert {path.stem for path in (folder / "figures").iterdir()} == of_all | {"analogies", "z2_grid"}


def test_compare(runs, tmp_path, monkeypatch):
    record(monkeypatch)
    result = call("compare", runs["m2"], runs["cagem"], "--out", tmp_path / "out")
    expected = {"errors", "bounds", "bounds_by_depth", "kl_units_m2", "kl_layers_m2", "kl_units_cagem", "kl_layers_cagem"}
    assert drawn(result) == expected == {path.stem for path in (tmp_path / "out").iterdir()}


def test_figures_that_cannot_be_drawn(runs, tmp_path):
    assert "Missing argument" in refused("compare")
    assert "nowhere is not the folder of a run" in refused("compare", runs["m2"], tmp_path / "nowhere")
    assert "nowhere is not the folder of a run" in refused("figures", tmp_path / "nowhere")
    assert "split must be one of train, test" in refused("figures", runs["vae"], "--split", "valid")


def test_samples_of_rows_that_hold_some_pixels(run):
    folder = run("vae")
    config = json.loads((folder / "config.json").read_text())
    config |= {"image_shape": None, "pixels": list(range(2, 18)), "full_shape": [1, 3, 6]}
    (folder / "config.json").write_text(json.dumps(config))
    assert drawn(call("sample", folder, "--n", 4)) == {"samples"}
    (folder / "config.json").write_text(json.dumps({**config, "pixels": [1, 2]}))
    assert "expected images of shape [1, 3, 6]" in refused("sample", folder, "--n", 4)


# ---------------------------------------------------------------- reproduce and baseline


def test_reproduce(monkeypatch, tmp_path):
    row = published.Row("A toy", "toy", {"L_1": (-9.0,)})
    monkeypatch.setitem(registry.RECIPES, "toy", recipe())
    monkeypatch.setitem(published.TABLES, "toys-of-tests", published.Table("Toys", ("L_1",), (row,)))
    options = ["--epochs", 1, "--out", tmp_path, "--no-progress", "--no-figures", "--set", "learning_rate=0.01"]
    result = call("reproduce", "toys-of-tests", *options)
    assert "| A toy | 1 | 1 |" in result.stdout and "| −9.00 | −" in result.stdout
    assert "A toy, seed 0" in result.stderr and f"wrote {tmp_path / 'toys-of-tests'}.md" in result.stderr
    assert run_folder.open_run(tmp_path / "runs" / "toy" / "seed-0").recipe.learning_rate == 0.01
    monkeypatch.setattr(train, "fit", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    result = call("reproduce", "toys-of-tests", "--out", tmp_path / "again", code=130)
    assert "the same command continues" in result.stderr


def test_the_list_of_tables():
    told = call("reproduce", "--list").stdout
    for name, table in published.TABLES.items():
        assert name in told and all(row.name in told for row in table.rows)


def test_baseline(tmp_path):
    told = call("baseline", "logistic", "--labels", 8, "--seed", 1, "--json", tmp_path / "b.json").stdout
    result = baselines.run_baseline("logistic", dataset(), 8, 1)
    assert f"mnist with 8 labels, seed 1: error {result.error:.2f} ± {result.std_error:.2f} % of 23 rows" in told
    content = json.loads((tmp_path / "b.json").read_text())
    assert content["error"] == pytest.approx(result.error) and content["predicted"] == result.predicted.tolist()


def test_the_m1_of_a_baseline(runs, tmp_path, monkeypatch):
    with_m1 = call("baseline", "m1-svm", "--data", "toy", "--labels", 8, "--m1", runs["vae"]).stdout
    expected = baselines.run_baseline("m1-svm", dataset(), 8, 0, run_folder.open_run(runs["vae"]).model)
    assert f"error {expected.error:.2f} " in with_m1 and "M1 + self-training SVM" in with_m1
    monkeypatch.chdir(tmp_path)
    trained = ["baseline", "m1-svm", "--data", "toy", "--labels", 8, "--epochs", 1, "--no-progress"]
    first, again = call(*trained).stdout, call(*trained).stdout
    assert first.split(" %")[0] == again.split(" %")[0]
    assert run_folder.open_run("runs/m1-toy-0").epoch == 1


def test_baselines_that_cannot_be_fitted(runs):
    assert "baseline must be one of mlp, logistic, m1-svm; got 'tsvm'" in refused("baseline", "tsvm", "--labels", 8)
    assert "n must be a positive multiple of classes" in refused("baseline", "mlp", "--labels", 7)
    assert "expected rows with labels; bare has none" in refused("baseline", "mlp", "--data", "bare", "--labels", 8)
    told = refused("baseline", "m1-svm", "--labels", 8, "--data", "bare", "--m1", runs["vae"])
    assert "--m1 must be a run on bare; " in told and "is one on toy" in told


def test_tables_that_cannot_be_run(tmp_path):
    assert "name a table: mnist-likelihood" in refused("reproduce")
    assert "did you mean mnist-error" in refused("reproduce", "mnist-errors", "--out", tmp_path)
    assert "no row of toys is called 'adgm'" in refused("reproduce", "toys", "--only", "adgm", "--out", tmp_path)
    assert "NAME=VALUE" in refused("reproduce", "toys", "--set", "epochs", "--out", tmp_path)
    assert "--seeds" in refused("reproduce", "toys", "--seeds", 0)
    assert list(tmp_path.iterdir()) == []
