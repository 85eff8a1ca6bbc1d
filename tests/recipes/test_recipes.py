"""Tests of the recipes: schedules against values worked out by hand, checked settings and the registry."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toy import MODEL, dataset, recipe

from dgmfast import data, recipes, train
from dgmfast.errors import InputError
from dgmfast.objectives import Objective
from dgmfast.recipes import Recipe, Schedule
from dgmfast.runs import folder as run_folder

# ---------------------------------------------------------------- schedules


def test_burda_schedule_over_its_own_3280_epochs():
    schedule = Schedule("burda")
    rates = [schedule.scale(epoch, 3280) for epoch in range(3280)]
    stages = [round(-7 * math.log10(rate)) for rate in rates]
    assert [stages.count(i) for i in range(8)] == [1, 3, 9, 27, 81, 243, 729, 2187]
    assert stages == sorted(stages)
    assert rates[0] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert rates[13] == pytest.approx(10 ** (-3 / 7))


def test_burda_schedule_is_scaled_to_the_epochs_that_are_run():
    rates = [Schedule("burda").scale(epoch, 328) for epoch in range(328)]
    stages = [round(-7 * math.log10(rate)) for rate in rates]
    # The stages end at a tenth of 0, 1, 4, 13, 40, 121, 364, 1093 and 3280, rounded up.
    assert [stages.count(i) for i in (3, 4, 5, 6, 7)] == [2, 9, 24, 73, 218]
    assert Schedule("burda").scale(0, 1) == 1.0


@given(st.integers(1, 5000), st.data())
def test_burda_schedule_falls_from_1_to_a_tenth(epochs, draw):
    epoch = draw.draw(st.integers(0, epochs - 1))
    rate = Schedule("burda").scale(epoch, epochs)
    assert 0.1 - 1e-12 <= rate <= 1.0
    assert rate >= Schedule("burda").scale(min(epoch + 1, epochs - 1), epochs)


def test_step_and_constant_schedules():
    step = Schedule("step", factor=0.75, every=200)
    assert [step.scale(epoch, 999) for epoch in (0, 199, 200, 400)] == [1.0, 1.0, 0.75, 0.5625]
    assert Schedule().scale(10**6, 1) == 1.0
    assert recipe(learning_rate=0.02, schedule=Schedule("step", 0.5, 2)).learning_rate_at(2) == 0.01


# ---------------------------------------------------------------- the registry


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_complete(name):
    chosen = recipes.get(name)
    assert chosen.name == name
    assert chosen.data in data.names()
    assert chosen.note
    x_dim = 64 if chosen.data == "digits" else 784
    model = run_folder.create_model(chosen.override({"model.x_dim": x_dim}))
    assert model.x_dim == x_dim
    assert Recipe.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


@pytest.mark.parametrize(
    ("name", "k", "latent"), [("vae-mnist", 1, [50]), ("iwae-mnist", 50, [50]), ("iwae2-mnist", 50, [100, 50])]
)
def test_the_settings_of_burda_2015(name, k, latent):
    chosen = recipes.get(name)
    assert chosen.objective == Objective(k=k)
    assert chosen.model["latent"] == latent and chosen.model["hidden"][0] == [200, 200] and chosen.model["activation"] == "tanh"
    assert (chosen.batch_size, chosen.learning_rate, chosen.eps, chosen.epochs) == (20, 1e-3, 1e-4, 3280)
    assert chosen.schedule == Schedule("burda") and chosen.start_at_mean


@pytest.mark.data
def test_mnist_recipe_starts_at_the_mean_of_the_data(data_dir, tmp_path):
    chosen = recipes.get("iwae2-mnist").override({"epochs": 0})
    model = train.fit(chosen, tmp_path / "run", data_dir=data_dir, progress=False, figures=False)
    mean = data.load("mnist", data_dir).train.x.mean(0).clamp(1e-3, 1 - 1e-3)
    assert (model.output.logits.bias.sigmoid() - mean).abs().max() < 1e-5


def test_a_wrong_name_suggests_the_nearest():
    with pytest.raises(InputError, match=r"no recipe is called 'iwae-mnits'; did you mean iwae-mnist"):
        recipes.get("iwae-mnits")
    with pytest.raises(InputError, match=r"no recipe or model is called 'vea'; did you mean .*vae"):
        recipes.resolve("vea")
    with pytest.raises(InputError, match=r"there are .*vae-mnist"):
        recipes.get("???")


def test_a_model_is_trained_on_the_data_that_is_named():
    assert recipes.resolve("vae", "digits").model == {"name": "vae"}
    assert recipes.resolve("vae-digits", "mnist").data == "mnist"
    with pytest.raises(InputError, match="--data"):
        recipes.resolve("vae")


# ---------------------------------------------------------------- settings


def test_override_reaches_nested_settings():
    changed = recipe().override(
        {"epochs": 7, "objective.k": 5, "model.latent": [2, 2], "schedule.name": "burda", "learning_rate": 1}
    )
    assert (changed.epochs, changed.objective.k, changed.model["latent"]) == (7, 5, [2, 2])
    assert changed.schedule.name == "burda" and changed.learning_rate == 1.0
    assert changed.override({}) == changed
    assert recipe().model == MODEL, "the original keeps its own settings"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "no setting is called 'epoch'; did you mean epochs"),
        ({"objective.kk": 3}, "objective.kk"),
        ({"objectives.k": 3}, "did you mean objective.k"),
        ({"epochs.k": 3}, "no setting is called 'epochs.k'"),
        ({"epochs": 2.5}, "epochs must be of type int; got 2.5"),
        ({"epochs": True}, "epochs must be of type int; got True"),
        ({"epochs": -1}, "epochs must be at least 0; got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"batch_size": "20"}, "batch_size must be of type int; got '20'"),
        ({"learning_rate": 0.0}, "learning_rate and eps must be positive"),
        ({"learning_rate": math.nan}, "learning_rate and eps must be positive"),
        ({"betas": [0.9]}, "betas must be of type"),
        ({"betas": [0.9, 1.0]}, r"betas must lie in \[0, 1\)"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"schedule": 3}, "schedule must be a dict"),
        ({"schedule.name": "cosine"}, "schedule.name must be one of"),
        ({"schedule.factor": 0.0}, "schedule.factor must be above 0"),
        ({"objective.k": 0}, "k must be at least 1"),
        ({"objective.k": "5"}, "objective.k must be of type int"),
        ({"model": {}}, "model's name under 'name'"),
        ({"model.latent": {1, 2}}, "model must hold what JSON can hold"),
        ({"latent": 5}, "no setting is called 'latent'; did you mean model.latent?"),
        ({"k": 5}, "no setting is called 'k'; did you mean objective.k?"),
        ({"batch_size": 1e2}, "batch_size must be of type int; got 100.0; write 100"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        recipe().override(settings)
    assert "\n" not in str(caught.value)


def test_a_recipe_must_be_complete():
    with pytest.raises(InputError, match="a recipe must have data"):
        Recipe.from_dict({"name": "x", "model": {"name": "vae"}})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "vea"}, "model must be one of"),
        ({"name": "vae", "latnt": [3]}, "latnt"),
        ({**MODEL, "x_dim": 99}, "x_dim must be 16"),
    ],
)
def test_a_wrong_model_is_found_before_anything_is_written(model, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train.fit(recipe(model=model), tmp_path / "run", dataset=dataset(), progress=False)
    assert not (tmp_path / "run").exists()
