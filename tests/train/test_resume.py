"""Tests that a run killed at any moment ends bit for bit like an uninterrupted one, and that a damaged run is reported."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.toy import assert_same_run, dataset, metrics, parameters, recipe

from dgmfast import recipes, train
from dgmfast.errors import InputError
from dgmfast.runs import folder as run_folder

QUIET = {"progress": False, "figures": False}
EPOCHS = 6

# Forks one process per moment. Each trains with a checkpoint every second epoch, and SIGKILL ends it at the n-th call of a
# function, before, after or halfway through the call.
KILLER = """
import importlib, json, os, signal, sys
import torch
import torch._dynamo, torch.utils.tensorboard
from support.toy import dataset, recipe
from dgmfast import train

torch.set_num_threads(1)

def train_until_killed(folder, module, name, nth, when):
    place = importlib.import_module(module)
    if "." in name:
        outer, name = name.split(".")
        place = getattr(place, outer)
    function, calls = getattr(place, name), []

    def killed(*arguments, **named):
        calls.append(1)
        if len(calls) < nth:
            return function(*arguments, **named)
        if when == "after":
            function(*arguments, **named)
        if when == "halfway":
            arguments[0].file.write(b'{"epoch": 4, "ste')
            arguments[0].file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(place, name, killed)
    train.fit(recipe(epochs=6), folder, dataset=dataset(), checkpoint_every=2, progress=False, figures=False)

for folder, moment in json.loads(sys.argv[1]).items():
    child = os.fork()  # before any computation, so that no thread is lost
    if child == 0:
        try:
            train_until_killed(folder, *moment)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, moment
"""

MOMENTS = {
    "before the first checkpoint": ("dgmfast.train.loop", "save_state", 1, "before"),
    "after the first checkpoint": ("dgmfast.train.loop", "save_state", 1, "after"),
    "in the middle of an epoch": ("torch.optim", "Adam.step", 14, "after"),
    "between the epoch's metrics and the checkpoint": ("dgmfast.runs.metrics", "Metrics.append", 4, "after"),
    "in the middle of a line of metrics": ("dgmfast.runs.metrics", "Metrics.append", 4, "halfway"),
    "between the sync of the metrics and the checkpoint": ("dgmfast.runs.metrics", "Metrics.sync", 3, "after"),
    "between the temporary file and its rename": ("os", "replace", 4, "before"),
    "between the checkpoint and the export": ("dgmfast.train.loop", "save_state", 3, "after"),
    "after the last checkpoint": ("dgmfast.train.loop", "save_state", 4, "after"),
}


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Uses one thread, as the child process does."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory) -> dict[str, Path]:
    """The folders of runs that were killed, one per moment."""
    base = tmp_path_factory.mktemp("killed")
    (base / "killer.py").write_text(KILLER)
    folders = {moment: base / str(i) for i, moment in enumerate(MOMENTS)}
    told = json.dumps({str(folders[moment]): where for moment, where in MOMENTS.items()})
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, str(base / "killer.py"), told], env=environment, check=True, timeout=240)
    return folders


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    """The same run without an interruption."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train.fit(recipe(epochs=EPOCHS), folder, dataset=dataset(), checkpoint_every=2, **QUIET)
    torch.set_num_threads(before)
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed(moment, killed_runs, whole_run, recwarn):
    folder = killed_runs[moment]
    if moment == "before the first checkpoint":
        with pytest.raises(InputError, match=r"no run that can be resumed: there is no state.pt"):
            train.resume(folder, dataset=dataset(), **QUIET)
        train.fit(recipe(epochs=EPOCHS), folder, dataset=dataset(), checkpoint_every=2, **QUIET)
    else:
        if moment == "between the epoch's metrics and the checkpoint":
            assert len(metrics(folder)) == 4, "the epochs 3 and 4 are logged, and the checkpoint is that of epoch 2"
        train.resume(folder, dataset=dataset(), **QUIET)
    assert_same_run(folder, whole_run)
    assert not list(folder.glob(".*"))
    assert not recwarn.list


def test_killed_from_outside(tmp_path):
    """A run of the digits that is killed from outside, at an arbitrary moment, must end like an uninterrupted one."""
    settings = {"epochs": 40, "model.hidden": [[16]], "eval_every": 2}
    command = [sys.executable, "-m", "dgmfast", "train", "vae-digits", "--threads", "1", "--no-figures", "--no-progress"]
    command += [text for name, value in settings.items() for text in ("--set", f"{name}={json.dumps(value)}")]
    cut = tmp_path / "cut"
    child = subprocess.Popen([*command, "--checkpoint-every", "3", "--out", str(cut)])
    train.fit(recipes.get("vae-digits").override(settings), tmp_path / "whole", **QUIET)
    while not (cut / "metrics.jsonl").exists() or len((cut / "metrics.jsonl").read_bytes().splitlines()) < 8:
        time.sleep(0.01)
        assert child.poll() is None
    child.kill()
    child.wait()
    assert 8 <= len((cut / "metrics.jsonl").read_bytes().splitlines()) < 40
    train.resume(cut, **QUIET)
    assert_same_run(cut, tmp_path / "whole")


# ---------------------------------------------------------------- extending


def test_more_epochs_extend_a_finished_run(tmp_path, whole_run):
    train.fit(recipe(epochs=2), tmp_path, dataset=dataset(), **QUIET)
    train.resume(tmp_path, {"epochs": 4}, dataset=dataset(), **QUIET)
    train.resume(tmp_path, {"epochs": EPOCHS}, dataset=dataset(), **QUIET)
    assert_same_run(tmp_path, whole_run)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    train.resume(tmp_path, dataset=dataset(), **QUIET)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 7}, "cannot change batch_size from"),
        ({"objective.k": 5, "epochs": 9}, "cannot change objective"),
        ({"name": "other"}, "cannot change name"),
        ({"epochs": 1}, "epochs must be at least 2"),
        ({"epoch": 9}, "did you mean epochs"),
    ],
)
def test_a_resumed_run_keeps_its_settings(changes, message, tmp_path):
    train.fit(recipe(epochs=2), tmp_path, dataset=dataset(), **QUIET)
    with pytest.raises(InputError, match=message):
        train.resume(tmp_path, changes, dataset=dataset(), **QUIET)


def test_the_burda_schedule_cannot_be_extended(tmp_path):
    chosen = recipe(epochs=2).override({"schedule.name": "burda"})
    train.fit(chosen, tmp_path, dataset=dataset(), **QUIET)
    with pytest.raises(InputError, match="burda schedule is scaled to the run's 2 epochs"):
        train.resume(tmp_path, {"epochs": 3}, dataset=dataset(), **QUIET)
    train.resume(tmp_path, {"epochs": 2}, dataset=dataset(), **QUIET)


# ---------------------------------------------------------------- other conditions, damage


def test_another_thread_count_warns_in_one_line(tmp_path):
    train.fit(recipe(epochs=2), tmp_path, dataset=dataset(), **QUIET)
    torch.set_num_threads(2)
    with pytest.warns(UserWarning, match=r"not bit for bit the uninterrupted run: threads 1 -> 2$") as caught:
        train.resume(tmp_path, {"epochs": 3}, dataset=dataset(), **QUIET)
    assert len(caught) == 1


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -1])
def test_a_truncated_checkpoint(keep, tmp_path):
    train.fit(recipe(epochs=1), tmp_path, dataset=dataset(), **QUIET)
    path = tmp_path / "state.pt"
    path.write_bytes(path.read_bytes()[:keep])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"state.pt: expected a whole checkpoint; got a damaged file") as caught:
        train.resume(tmp_path, dataset=dataset(), **QUIET)
    assert "\n" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_flipped_byte_anywhere(tmp_path):
    train.fit(recipe(epochs=1), tmp_path, dataset=dataset(), **QUIET)
    path = tmp_path / "state.pt"
    content = path.read_bytes()
    expected, found = parameters(tmp_path), 0
    for place in range(50, len(content) - 50, len(content) // 60):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            state = run_folder.load_state(tmp_path)
        except InputError as error:
            assert "state.pt: expected" in str(error) and "\n" not in str(error)
            found += 1
        else:  # the flipped byte is between the parts of the archive
            assert all(torch.equal(state["model"][name], expected[name]) for name in state["model"])
            assert state["epoch"] == 1
    assert found > 20


@pytest.mark.parametrize(
    ("content", "message"),
    [([1, 2], "got something else"), ({"model": {}}, "got something else"), ({"format": 99}, "checkpoint format 2; got 99")],
)
def test_another_file_than_a_checkpoint(content, message, tmp_path):
    train.fit(recipe(epochs=1), tmp_path, dataset=dataset(), **QUIET)
    if isinstance(content, dict) and "format" in content:
        content = {**torch.load(tmp_path / "state.pt", weights_only=True), **content}
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(InputError, match=message):
        train.resume(tmp_path, dataset=dataset(), **QUIET)


def test_metrics_shorter_than_the_checkpoint_says(tmp_path):
    train.fit(recipe(epochs=2), tmp_path, dataset=dataset(), **QUIET)
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(InputError, match=r"metrics.jsonl: expected the \d+ bytes that the checkpoint counts; got 0"):
        train.resume(tmp_path, dataset=dataset(), **QUIET)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(InputError, match="holds no run that can be resumed"):
        train.resume(tmp_path, dataset=dataset(), **QUIET)
    with pytest.raises(InputError, match="holds no run that can be resumed"):
        train.resume(tmp_path / "nowhere", dataset=dataset(), **QUIET)
    assert not (tmp_path / "nowhere").exists()


def test_a_run_of_an_earlier_version_goes_on(tmp_path, whole_run):
    """A run of an earlier version must resume; it has a layer called spread in its Gaussian heads, and a max_norm."""
    train.fit(recipe(epochs=2), tmp_path, dataset=dataset(), checkpoint_every=2, **QUIET)
    state = run_folder.load_state(tmp_path)
    settings = json.loads(state["recipe"])
    state["recipe"] = json.dumps({{"grad_clip_norm": "max_norm"}.get(name, name): value for name, value in settings.items()})
    state["model"] = {name.replace("gaussian.scale.", "gaussian.spread."): value for name, value in state["model"].items()}
    assert "max_norm" in state["recipe"] and any("spread" in name for name in state["model"])
    run_folder.save_state(tmp_path, {name: value for name, value in state.items() if name != "digest"})
    run_folder.export_parameters(tmp_path, state["model"], 2)
    assert run_folder.open_run(tmp_path).epoch == 2
    train.resume(tmp_path, {"epochs": EPOCHS}, dataset=dataset(), checkpoint_every=2, **QUIET)
    assert_same_run(tmp_path, whole_run)
