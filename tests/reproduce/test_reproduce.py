"""Tests of the published tables: they are complete and consistent, run once, resume, and print what was measured."""

import inspect
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from support.toy import dataset, metrics, recipe

from dgmfast import data, recipes, train
from dgmfast.errors import InputError
from dgmfast.models import MODELS
from dgmfast.objectives import Objective
from dgmfast.recipes import Schedule, registry
from dgmfast.reproduce import TABLES, Options, baselines, published
from dgmfast.reproduce import table as tables
from dgmfast.reproduce.published import Row, Table
from dgmfast.reproduce.table import scaled
from dgmfast.train import loop

M2 = {"name": "m2", "hidden": [8], "latent": 2}


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)


# ---------------------------------------------------------------- the tables


@pytest.mark.parametrize("name", TABLES)
def test_every_row_names_a_recipe_and_a_model_that_exist(name):
    table = TABLES[name]
    keys = [row.name for row in table.rows]
    assert len(set(keys)) == len(keys)
    for row in table.rows:
        assert row.start_from in ["", *keys]
        assert set(row.published) <= {"L_1", "L_5000", "error"}
        if row.source.startswith("baseline:"):
            assert row.source.removeprefix("baseline:") in baselines.BASELINES
            continue
        chosen = recipes.get(row.source).override(dict(row.changes))
        assert chosen.data in data.names()
        settings = {name: value for name, value in chosen.model.items() if name != "name"}
        inspect.signature(MODELS[chosen.model["name"]]).bind(x_dim=7, **settings)


def test_rows_of_one_key_are_one_run_in_every_table():
    plans = {}
    for table in TABLES.values():
        for row in table.rows:
            assert plans.setdefault(row.name, (row.source, dict(row.changes))) == (row.source, dict(row.changes))


@pytest.mark.parametrize(
    ("table", "row", "quantity", "value"),
    [
        ("mnist-likelihood", "lvae-mnist", "L_5000", -82.12),
        ("mnist-likelihood", "iwae2-mnist", "L_5000", -82.90),
        ("mnist-likelihood", "cagem-mnist-100", "L_5000", -79.38),
        ("omniglot-likelihood", "vae5-omniglot", "L_5000", -110.46),
        ("norb-likelihood", "lvae3-norb", "L_5000", 3519.0),
        ("mnist-error", "adgm-mnist-100", "error", 0.96),
        ("svhn-error", "sdgm-svhn-train-1000", "error", 29.82),
        ("norb-error", "sdgm-norb-1000", "error", 9.40),
        ("cagem", "cagem-mnist-20", "error", 15.86),
    ],
)
def test_published_numbers(table, row, quantity, value):
    [found] = [known for known in TABLES[table].rows if known.name == row]
    assert found.published[quantity][0] == value


def test_the_rows_that_change_a_recipe():
    rows = {
        row.name: recipes.get(row.source).override(dict(row.changes)) for t in TABLES.values() for row in t.rows if row.changes
    }
    assert rows["avae1-mnist"].model["latent"] == [64]
    assert rows["vae2-omniglot"].objective.k == 1 and rows["vae2-omniglot"].objective.m == 50
    plain, warm = rows["vae5-norb"], rows["vae5-bn-wu-norb"]
    assert plain.model["name"] == "vae" and not plain.model["batch_norm"] and plain.objective.warmup_epochs == 0
    assert warm.model["batch_norm"] and warm.model["norm_heads"] and warm.objective.warmup_epochs == 200
    assert len(warm.model["latent"]) == 5 and warm.data == "norb-single" and warm.model["likelihood"] == "gaussian"
    assert rows["cagem-mnist-0-c20"].model["num_classes"] == 20 and rows["sdgm-svhn-train-1000"].data == "svhn-train"


# ---------------------------------------------------------------- fewer epochs


def test_what_is_counted_in_epochs_is_scaled():
    step = Schedule("step", factor=0.75, every=200, after=100)
    long = recipe(epochs=2000, objective=Objective(warmup_epochs=200), schedule=step, eval_every=10)
    short = scaled(long, 100)
    assert (short.epochs, short.objective.warmup_epochs, short.schedule.every, short.schedule.after) == (100, 10, 10, 5)
    assert short.eval_every == 10 and scaled(long, 4).eval_every == 4
    assert scaled(long, 4).objective.warmup_epochs == 1 and scaled(long, 4).schedule.every == 1, "never less than one epoch"
    assert scaled(long, None) is long and scaled(long, 2000) is long
    assert scaled(recipe(epochs=100), 10).objective.warmup_epochs == 0, "what was not there stays away"
    with pytest.raises(InputError, match="epochs must be at least 1; got 0"):
        scaled(long, 0)


def test_a_first_stage_is_scaled():
    m1m2 = recipe(epochs=500, model={"name": "m1m2"})
    assert scaled(m1m2, 50).model["pretrain_epochs"] == 10, "of 100, the model's own"
    assert scaled(recipe(epochs=500, model={"name": "m1m2", "pretrain_epochs": 0}), 50).model["pretrain_epochs"] == 0


# ---------------------------------------------------------------- a table of toys


@pytest.fixture
def toys(monkeypatch) -> Iterator[None]:
    """Registers a table with two recipes on the toy data."""
    labels = {"labels": 8, "labelled_batch": 5}
    monkeypatch.setitem(registry.RECIPES, "toy", recipe(start_at_mean=False))
    monkeypatch.setitem(registry.RECIPES, "toy-m2", recipe(model=M2, start_at_mean=False, **labels))
    fine = Row("VAE, fine-tuned", "toy", {}, {"epochs": 1}, "toy-fine", start_from="toy")
    rows = (Row("VAE", "toy", {"L_1": (-9.5,)}), fine, Row("M2", "toy-m2", {"L_5000": (-8.0,), "error": (0.96, 0.02)}))
    monkeypatch.setitem(TABLES, "toys-of-tests", Table("Toys", ("L_1", "L_5000", "error"), rows, "A note."))
    monkeypatch.setattr(data, "load", lambda name, data_dir=None: dataset())


def options(out, **changes) -> Options:
    return replace(Options(out, k=60, limit=9, progress=False, figures=False), **changes)


def reproduce(out, name="toys-of-tests", **changes) -> tuple[str, list[str]]:
    told: list[str] = []
    return tables.reproduce_table(name, options(out, **changes), told.append), told


def cells(text: str) -> dict[str, list[str]]:
    """Returns the cells of each table row by its title."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {title: values for title, *values in rows}


def test_a_table(toys, tmp_path, monkeypatch):
    text, told = reproduce(tmp_path, seeds=2)
    rows = cells(text)
    head = ["epochs", "seeds", "time", "L_1, thesis", "L_1, measured", "L_5000, thesis", "L_60, measured", "error %, thesis"]
    assert rows[""] == [*head, "error %, measured"]
    assert rows["VAE"][:2] == ["3", "2"] and rows["VAE, fine-tuned"][0] == "1"
    assert rows["VAE"][3] == "−9.50" and rows["M2"][5] == "−8.00" and rows["M2"][7] == "0.96 ± 0.02"
    assert rows["VAE"][7:] == ["", ""], "a model without a label has no error"
    assert told[0] == f"VAE, seed 0: {tmp_path / 'runs' / 'toy' / 'seed-0'}" and len(told) == 6
    assert "the first 9 test rows" in text and "A note." in text and (tmp_path / "toys-of-tests.md").read_text() == text

    told = json.loads((tmp_path / "toys-of-tests.json").read_text())
    runs = {row["name"]: row["runs"] for row in told["rows"]}
    bounds = [run["L_60"] for run in runs["toy"]]
    mean, sd = sum(bounds) / 2, abs(bounds[0] - bounds[1]) / 2**0.5
    assert rows["VAE"][6] == f"{mean:.2f} ± {sd:.2f}".replace("-", "−")
    assert all(run["L_1"] < min(run["L_50"], run["L_60"]) for run in runs["toy"])
    assert [run["seed"] for run in runs["toy-m2"]] == [0, 1] and all(run["train_seconds"] > 0 for run in runs["toy"])

    started = [json.loads((tmp_path / "runs" / "toy-fine" / f"seed-{s}" / "config.json").read_text())["recipe"] for s in (0, 1)]
    assert [run["start_from"] for run in started] == [str(tmp_path / "runs" / "toy" / f"seed-{s}") for s in (0, 1)]

    for module, name in ((train, "fit"), (train, "resume"), (tables, "evaluate_bounds")):  # nothing is left to run
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("a finished run is repeated"))
    assert cells(reproduce(tmp_path, seeds=2)[0]) == rows


def test_an_unfinished_run_goes_on(toys, tmp_path, monkeypatch):
    whole, _ = reproduce(tmp_path / "whole", only=["toy-m2"])
    train_epoch = loop._Training._train_epoch

    def interrupt(self, bar):
        if self.epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(self, bar)

    monkeypatch.setattr(loop._Training, "_train_epoch", interrupt)
    monkeypatch.setattr(loop._Options, "__init__", every_epoch(loop._Options.__init__))
    with pytest.raises(KeyboardInterrupt):
        reproduce(tmp_path / "cut", only=["toy-m2"])
    assert not (tmp_path / "cut" / "toys-of-tests.md").exists()
    monkeypatch.setattr(loop._Training, "_train_epoch", train_epoch)
    resumed, _ = reproduce(tmp_path / "cut", only=["toy-m2"])
    assert metrics(tmp_path / "cut" / "runs" / "toy-m2" / "seed-0") == metrics(tmp_path / "whole" / "runs" / "toy-m2" / "seed-0")
    assert cells(resumed)["M2"][4:] == cells(whole)["M2"][4:]


def every_epoch(init):
    """Wraps the initialiser of the training options so that checkpoints are one epoch apart."""

    def wrapped(self, folder, device, every, *others):
        init(self, folder, device, 1, *others)

    return wrapped


def test_more_epochs_extend_a_run_and_other_settings_are_refused(toys, tmp_path):
    reproduce(tmp_path, only=["toy"], epochs=1)
    text, _ = reproduce(tmp_path, only=["toy"], epochs=2)
    assert cells(text)["VAE"][0] == "2" and len(metrics(tmp_path / "runs" / "toy" / "seed-0")) == 2
    with pytest.raises(InputError, match=r"seed-0 holds a run with another learning_rate: choose another --out"):
        reproduce(tmp_path, only=["toy"], changes={"learning_rate": 0.5})
    with pytest.raises(InputError, match=r"holds a run with another epochs"):
        reproduce(tmp_path, only=["toy"], epochs=1)


def test_the_form_of_the_bounds(toys, tmp_path):
    sampled, _ = reproduce(tmp_path, only=["toy-m2"])
    exact, _ = reproduce(tmp_path, only=["toy-m2"], labels="exact")
    assert "drawn from q(y|·)" in sampled and "summed over exactly" in exact
    bounds = [float(cells(text)["M2"][6].replace("−", "-")) for text in (sampled, exact)]
    assert bounds[0] != bounds[1]
    known = json.loads((tmp_path / "runs" / "toy-m2" / "seed-0" / "measured.json").read_text())
    assert sorted(json.loads(key)["labels"] for key in known if json.loads(key)["what"] == "bounds") == ["exact", "sampled"]


def test_baselines_as_rows(toys, tmp_path, monkeypatch):
    small = {"model.hidden": [[8]], "model.latent": [3], "epochs": 2}
    monkeypatch.setattr(tables, "m1_recipe", lambda name, seed=0: recipe(name="m1-toy", seed=seed).override(small))
    run = baselines.run_baseline
    monkeypatch.setattr(
        tables, "run_baseline", lambda name, rows, labels, *rest: run(name, rows, labels - 92, *rest)
    )  # the toy data has 61 rows
    rows = tuple(Row(name, f"baseline:{name}", {}) for name in ("logistic", "m1-svm"))
    monkeypatch.setitem(TABLES, "toys-of-tests", Table("Baselines", ("error",), rows))
    text, _ = reproduce(tmp_path, seeds=2)
    assert float(cells(text)["logistic"][4].split(" ± ")[0]) < 60 and cells(text)["m1-svm"][0] == "2"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"baseline-logistic", "baseline-m1-svm", "m1-toy"}
    monkeypatch.setattr(tables, "run_baseline", lambda *a, **k: pytest.fail("a finished baseline is repeated"))
    assert cells(reproduce(tmp_path, seeds=2)[0]) == cells(text)


def test_numbers_as_text():
    assert [tables.number(value) for value in ((), (-86.755,), (0.96, 0.02))] == ["", "−86.75", "0.96 ± 0.02"]
    times = [tables._time([{"train_seconds": s}]) for s in (12.3, 600.0, 7200.0)]
    assert times == ["12 s", "10 min", "2.0 h"] and tables._time([{}]) == ""


def test_wrong_input(toys, tmp_path):
    with pytest.raises(InputError, match=r"no table is called 'mnist-eror'; did you mean mnist-error"):
        reproduce(tmp_path, "mnist-eror")
    with pytest.raises(InputError, match=r"no row of toys-of-tests is called 'toy-m3'; did you mean toy-m2"):
        reproduce(tmp_path, only=["toy-m3"])
    with pytest.raises(InputError, match=r"toy.seed-0 is not the folder of a run"):
        reproduce(tmp_path, only=["toy-fine"])
    reproduce(tmp_path, only=["toy"])
    (tmp_path / "runs" / "toy" / "seed-0" / "measured.json").write_text("{")
    with pytest.raises(InputError, match=r"measured\.json: expected earlier measurements"):
        reproduce(tmp_path, only=["toy"])
    assert published.TABLES is TABLES
