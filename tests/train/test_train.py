"""Tests of the training loop: what it learns, what it writes and what it refuses."""

import errno
import json
import math
import os
import warnings

import pytest
import torch
from safetensors.torch import load_file
from support.toy import assert_same_run, dataset, metrics, parameters, recipe

from dgmfast import train
from dgmfast.errors import InputError
from dgmfast.models import VAE
from dgmfast.objectives import Objective
from dgmfast.recipes import Schedule
from dgmfast.runs import folder as run_folder
from dgmfast.seeds import derive_seed
from dgmfast.train import loop

QUIET = {"progress": False, "figures": False}


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Uses one thread: tiny models gain nothing from more, and lose much on a busy machine."""
    torch.set_num_threads(1)


def fit(folder, chosen=None, rows=None, **options):
    return train.fit(chosen or recipe(), folder, dataset=rows or dataset(), **{**QUIET, **options})


def resume(folder, changes=None, **options):
    return train.resume(folder, changes, dataset=dataset(), **{**QUIET, **options})


# ---------------------------------------------------------------- seeds


def test_derive_seed_is_fixed_and_in_range():
    assert derive_seed(0, "noise", 0, 0) == derive_seed(0, "noise", 0, 0)
    assert derive_seed(1, "init") == 7526557544683443979  # no run could be resumed if this number changed
    assert all(0 <= derive_seed(seed, "x") < 2**63 for seed in range(1000))


def test_derive_seed_tells_paths_apart():
    paths = [
        (seed, name, epoch, step) for seed in range(4) for name in ("noise", "torch") for epoch in range(50) for step in range(50)
    ]
    paths += [(0, "a", 12), (0, "a", 1, 2), (0, "a1", 2), (0, "a", "12"), (0, 12), (0, "12"), (0,), (1,)]
    seeds = {derive_seed(*path) for path in paths}
    assert len(seeds) == len(paths)
    low = {seed % 2**32 for seed in seeds}
    assert len(low) > len(paths) - 5, "the low 32 bits, which torch's generator reads, must be spread too"


# ---------------------------------------------------------------- what it does


def test_training_learns_and_logs(tmp_path):
    chosen = recipe(epochs=12, learning_rate=0.02, eval_every=2, schedule=Schedule("step", 0.5, 4))
    model = fit(tmp_path / "run", chosen)
    assert not model.training
    records = metrics(tmp_path / "run")
    assert [record["epoch"] for record in records] == list(range(1, 13))
    assert [record["step"] for record in records] == [4 * epoch for epoch in range(1, 13)], "61 rows in batches of 20"
    assert [record["lr"] for record in records[3:5]] == [0.02, 0.01]
    assert ["test_elbo" in record for record in records] == [epoch % 2 == 0 for epoch in range(1, 13)]
    assert records[-1]["elbo"] > records[0]["elbo"] + 0.1
    assert records[-1]["test_elbo"] > records[1]["test_elbo"]
    for record in records:
        assert record["elbo"] == pytest.approx(record["reconstruction"] - record["kl_z1"] - record["kl_z2"], abs=1e-4)


def test_the_run_folder(tmp_path):
    model = fit(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["recipe"]["model"]["x_dim"] == 16
    assert (
        config["environment"].items() >= {"threads": torch.get_num_threads(), "world_size": 1, "torch": torch.__version__}.items()
    )
    exported = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(exported[name], value) for name, value in model.state_dict().items())
    run = run_folder.open_run(tmp_path)
    assert (run.epoch, run.image_shape, run.model.training) == (3, (1, 4, 4), False)
    assert torch.equal(run.model.sample(3, seed=0), model.sample(3, seed=0))
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*"))


def test_events_repeat_the_metrics_and_a_resume_hides_what_came_after_the_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(tmp_path)
    resume(tmp_path, {"epochs": 5})
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("elbo")] == [
        (record["epoch"], pytest.approx(record["elbo"], rel=1e-6)) for record in metrics(tmp_path)
    ]


def test_the_seed_decides_and_the_generator_of_the_caller_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    fit(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    fit(tmp_path / "b")
    fit(tmp_path / "c", recipe(seed=1))
    assert_same_run(tmp_path / "b", tmp_path / "a")
    assert metrics(tmp_path / "c") != metrics(tmp_path / "a")


def test_checkpoint_settings_do_not_change_the_result(tmp_path):
    fit(tmp_path / "a", checkpoint_every=1, progress=True)
    fit(tmp_path / "b", checkpoint_every=100, checkpoint_minutes=1e-9)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_grey_levels_are_binarised_anew_every_epoch(tmp_path, monkeypatch):
    seen = []
    draw = VAE.draw

    def spy(self, encoding, x, *rest):
        if self.training:
            seen.append(x)
        return draw(self, encoding, x, *rest)

    monkeypatch.setattr(VAE, "draw", spy)
    fit(tmp_path / "grey", recipe(epochs=2, batch_size=61))
    assert all(set(x.unique().tolist()) == {0.0, 1.0} for x in seen)
    assert not torch.equal(seen[0].sum(0), seen[1].sum(0)), "epochs differ in more than the order of their rows"
    seen.clear()
    fit(tmp_path / "binary", recipe(epochs=2, batch_size=61), dataset(binary=True))
    assert torch.equal(seen[0].sum(0), seen[1].sum(0)) and not torch.equal(seen[0], seen[1])
    seen.clear()
    fit(tmp_path / "raw", recipe(epochs=1, batch_size=61, binarize=False))
    assert torch.equal(seen[0].sort(0).values, dataset().train.x.sort(0).values)


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": Objective(k=5)},
        {"objective": Objective(m=2, warmup_epochs=2, warmup_start=0.2)},
        {"objective": Objective(free_bits=0.5)},
        {"model": {"name": "vae", "latent": [3], "hidden": [[8]], "batch_norm": True}},
        {"model": {"name": "vae", "latent": [3], "hidden": [[8]], "likelihood": "gaussian"}, "binarize": False},
        {"batch_size": 1000},
    ],
)
def test_settings_train(settings, tmp_path):
    fit(tmp_path, recipe(**settings), dataset(62))
    records = metrics(tmp_path)
    numbers = [value for record in records for value in record.values() if isinstance(value, (int, float))]
    assert all(math.isfinite(value) for value in numbers)
    if "objective" in settings and settings["objective"].k > 1:
        assert all(record["objective"] > record["elbo"] for record in records), "L_5 lies above L_1"


def test_beta_warms_up(tmp_path):
    fit(tmp_path, recipe(epochs=4, objective=Objective(warmup_epochs=2, warmup_start=0.2)))
    assert [record["beta"] for record in metrics(tmp_path)] == pytest.approx([0.2, 0.6, 1.0, 1.0])


def test_metrics_without_a_terminal_are_at_most_a_line_per_epoch(tmp_path, capsys):
    fit(tmp_path, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3 and "toy epoch 3/3" in lines[-1]


# ---------------------------------------------------------------- non-finite values


def test_non_finite_data_names_the_row(tmp_path):
    rows = dataset()
    rows.train.x[7, 3] = math.nan
    with pytest.raises(InputError, match="epoch 1, step 1: x not finite in row 7 of the training data toy"):
        fit(tmp_path / "run", rows=rows)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("term", "told"), [("log_px", "reconstruction not finite"), ("log_q", "kl_z1 not finite")])
def test_a_non_finite_loss_names_the_step_and_the_term(term, told, tmp_path, monkeypatch):
    fit(tmp_path)
    before = parameters(tmp_path)
    draw, calls = VAE.draw, []

    def broken(self, *arguments):
        terms = draw(self, *arguments)
        if self.training:
            calls.append(1)
            if len(calls) == 6:  # the second step of the second epoch
                bad = terms.log_px if term == "log_px" else terms.latents["z1"].log_q
                bad[2] = math.inf
        return terms

    with monkeypatch.context() as patch:
        patch.setattr(VAE, "draw", broken)
        with pytest.raises(InputError, match=rf"epoch 5, step 2: .*{told}; the last checkpoint is intact"):
            resume(tmp_path, {"epochs": 6}, checkpoint_every=100)
    after = parameters(tmp_path)
    assert all(torch.equal(after[name], before[name]) for name in before)
    fit(tmp_path / "whole", recipe(epochs=6))
    resume(tmp_path, {"epochs": 6})
    assert_same_run(tmp_path, tmp_path / "whole")


def test_a_non_finite_parameter_never_reaches_a_checkpoint(tmp_path, monkeypatch):
    steps = loop._Training._steps

    def diverge(self, *arguments):
        told = steps(self, *arguments)
        if self.epoch == 1:
            self.model.output.logits.bias.data[0] = math.nan
        return told

    monkeypatch.setattr(loop._Training, "_steps", diverge)
    monkeypatch.setattr(loop._Training, "_evaluate", lambda self: {})
    with pytest.raises(InputError, match=r"after epoch 2: output.logits.bias not finite"):
        fit(tmp_path, checkpoint_every=1)
    assert parameters(tmp_path)["epoch"] == 1
    assert all(value.isfinite().all() for value in parameters(tmp_path).values())


# ---------------------------------------------------------------- what it refuses


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    fit(tmp_path)
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(InputError, match=r"holds a run already.*--resume"):
        fit(tmp_path)
    assert (tmp_path / "state.pt").read_bytes() == before


@pytest.mark.parametrize(
    "options", [{"checkpoint_every": 0}, {"checkpoint_minutes": 0.0}, {"device": "tpu"}, {"device": "cuda:99"}]
)
def test_wrong_options(options, tmp_path):
    with pytest.raises(InputError):
        fit(tmp_path, **options)


def test_batch_normalisation_needs_two_rows(tmp_path):
    normalised = recipe(model={"name": "vae", "latent": [3], "hidden": [[8]], "batch_norm": True})
    with pytest.raises(InputError, match="61 rows in batches of 20 leave 1; choose another batch_size"):
        fit(tmp_path / "run", normalised)


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    fit(tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is training"):
            resume(tmp_path, {"epochs": 5})
    resume(tmp_path, {"epochs": 5})


def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        fit(tmp_path / "run")


def test_a_full_disk_at_any_moment_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    fit(tmp_path / "whole", checkpoint_every=1)
    fsync = os.fsync
    for nth in range(1, 40):
        folder, calls = tmp_path / f"run{nth}", []

        def full(descriptor, nth=nth, calls=calls):
            calls.append(descriptor)
            if len(calls) == nth:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            try:
                fit(folder, checkpoint_every=1)
            except InputError as error:
                assert "cannot write" in str(error) and "No space left" in str(error)
            else:
                assert nth > 10 and len(calls) < nth
                return
        assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))
        if (folder / "state.pt").exists():
            resume(folder, checkpoint_every=1)
        else:
            fit(folder, checkpoint_every=1)
        assert_same_run(folder, tmp_path / "whole")
    raise AssertionError("the run never got through")


def test_no_warning_in_a_plain_run(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(tmp_path)
        resume(tmp_path, {"epochs": 4})
