"""Tests of a run's files: they are complete or absent, follow no symbolic link, have one writer and a limited size."""

import gzip
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command_line import call, refused
from support.toy import dataset, recipe

from dgmfast import files, train
from dgmfast.data import files as data_files
from dgmfast.errors import InputError
from dgmfast.evaluate import RowResults
from dgmfast.runs import folder as run_folder
from dgmfast.runs import unfinished
from dgmfast.train import loop

posix = pytest.mark.skipif(os.name != "posix", reason="needs locks, links and limits of POSIX")
QUIET = {"progress": False, "figures": False}
SMALL = ["--epochs", "2", "--set", "model.hidden=[[16]]", "--set", "model.latent=[2]", "--no-progress", "--no-figures"]


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    call("train", "vae-digits", "--out", folder, *SMALL, "--threads", 1)
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


# ---------------------------------------------------------------- symbolic links


@posix
def test_a_link_in_the_place_of_a_file_is_replaced_and_its_target_is_left_alone(tmp_path):
    target, path = tmp_path / "target", tmp_path / "state.pt"
    target.write_text("precious")
    path.symlink_to(target)
    files.write_atomically(path, b"new")
    assert target.read_text() == "precious" and not path.is_symlink() and path.read_bytes() == b"new"


@posix
@pytest.mark.parametrize("file", ["state.pt", "model.safetensors", "config.json", "evaluation.json", "evaluation.csv"])
def test_links_of_the_names_of_temporary_files_are_not_followed(file, run, tmp_path):
    """Links under the names that temporary files once had, which another user put into a shared folder, must not be followed."""
    target = tmp_path / "target"
    target.write_text("precious")
    for name in (f".{file}.tmp", f"{file}.tmp", f".{file}.0123456789abcdef.tmp"):
        (run / name).symlink_to(target)
    call("train", "--out", run, "--resume", "--epochs", 3, "--no-figures", "--no-progress")
    call("evaluate", run, "--iw", 2, "--limit", 2, "--no-progress", "--no-figures")
    assert target.read_text() == "precious"


@posix
def test_a_linked_log_and_a_linked_folder_of_figures_are_refused(run, tmp_path):
    (tmp_path / "else").mkdir()
    (run / "figures").symlink_to(tmp_path / "else")
    for arguments in (["figures", run], ["evaluate", run, "--iw", 2, "--limit", 2, "--no-progress"]):
        assert f"cannot write into {run / 'figures'}: it is a symbolic link" in refused(*arguments)
    assert list((tmp_path / "else").iterdir()) == []
    target = tmp_path / "target"
    shutil.move(run / "metrics.jsonl", target)
    (run / "metrics.jsonl").symlink_to(target)
    before = target.read_bytes()
    told = refused("train", "--out", run, "--resume", "--epochs", 3, "--no-progress", "--no-figures")
    assert "metrics.jsonl: it is a symbolic link" in told and target.read_bytes() == before


# ---------------------------------------------------------------- what writers leave behind


@posix
def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from dgmfast import files;"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL);"
        "files.write_atomically(Path(sys.argv[1]), b'half')"
    )
    path = tmp_path / "state.pt"
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == -signal.SIGKILL
    [left] = tmp_path.glob(".*.tmp")
    (tmp_path / ".else.0123.tmp").write_text("of another file")
    files.write_atomically(path, b"whole")
    assert not left.exists() and {file.name for file in tmp_path.iterdir()} == {"state.pt", ".else.0123.tmp"}


@posix
def test_a_writer_at_work_is_not_disturbed(tmp_path, monkeypatch):
    """A second writer of the same file must not disturb the first, which has already written its temporary file."""
    path, fsync, others = tmp_path / "state.pt", os.fsync, []

    def meanwhile(descriptor):
        if not others:
            others.append(1)
            files.write_atomically(path, b"second")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    files.write_atomically(path, b"first")
    assert path.read_bytes() == b"first" and [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_a_name_that_is_none():
    with pytest.raises(InputError, match=r"cannot write '\.': expected the name of a file"):
        files.write_atomically(Path(), b"")


def test_json_that_is_nested_too_deeply(run):
    with pytest.raises(ValueError, match="nested too deeply"):
        files.parse_json("[" * 100_000)
    (run / "config.json").write_text('{"recipe": ' + "[" * 100_000)
    assert "config.json: expected the settings of a run" in refused("evaluate", run)


# ---------------------------------------------------------------- two commands at once


@posix
def test_two_evaluations_of_one_run(run):
    with files.locked(run, "evaluating"):
        for command in (["evaluate", run, "--iw", 2], ["evaluate", run, "--iw", 2, "--seed", 5]):
            assert f"another process is evaluating {run}: wait until it is done" in refused(*command)
    assert not (run / "evaluation.json").exists()
    call("evaluate", run, "--iw", 2, "--limit", 2, "--no-progress", "--no-figures")


@posix
def test_the_lock_ends_with_its_process(run):
    script = "import sys, time; from pathlib import Path; from dgmfast.files import locked\nwith locked(Path(sys.argv[1]), 'x'):"
    other = subprocess.Popen([sys.executable, "-c", f"{script} print(flush=True); time.sleep(60)", str(run)], stdout=-1)
    other.stdout.readline()
    with pytest.raises(InputError, match="another process"), files.locked(run, "evaluating"):
        pass
    other.kill()
    other.communicate()
    with files.locked(run, "evaluating"):
        pass


# ---------------------------------------------------------------- no space


@posix
@pytest.mark.parametrize("command", ["train", "evaluate", "sample", "figures"])
def test_a_limit_of_no_bytes_is_one_line_and_exit_code_2(command, run, tmp_path):
    import resource

    arguments = {
        "train": ["vae-digits", "--out", tmp_path / "new", *SMALL],
        "evaluate": [run, "--iw", 2, "--limit", 2, "--no-progress"],
        "sample": [run, "--n", 2],
        "figures": [run],
    }[command]
    done = subprocess.run(
        [sys.executable, "-m", "dgmfast", command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(tmp_path)},
    )
    lines = [line for line in done.stderr.splitlines() if "atplotlib" not in line]  # matplotlib prints about its cache
    assert done.returncode == 2, done.stderr
    assert lines[-1].startswith("Error: cannot write ") and "Traceback" not in done.stderr


# ---------------------------------------------------------------- damaged files of finished rows


def partial_rows(states=None, pareto_k=None, **arrays):
    states = torch.ones(3, 1, 5, dtype=torch.float64) if states is None else states
    return {"states": states.numpy(), "pareto_k": np.zeros(3) if pareto_k is None else pareto_k, "seconds": 1.0, **arrays}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (partial_rows(torch.ones(9, 1, 5, dtype=torch.float64), np.zeros(9)), "other settings"),
        (partial_rows(torch.ones(3, 1, 5, dtype=torch.complex128)), "states of torch.complex128"),
        (partial_rows(torch.full((3, 1, 5), float("nan"), dtype=torch.float64)), "states that no weights have"),
        (partial_rows(torch.full((3, 1, 5), 0.5, dtype=torch.float64)), "states that no weights have"),
        (partial_rows(pareto_k=np.full(3, np.inf)), "an infinite pareto_k"),
        (partial_rows(seconds=float("nan")), "nan seconds"),
        (partial_rows(seconds=-1.0), "-1.0 seconds"),
        (partial_rows(key=np.array("other")), "other settings"),
    ],
)
def test_rows_that_no_evaluation_left(content, told, tmp_path):
    kept = unfinished.EvaluationCheckpoint(tmp_path, {"k": 3})
    np.savez(kept.path, **{"key": np.array(kept.key), **content})
    with pytest.raises(InputError, match=rf"expected the rows of an interrupted evaluation; got {told}.*: remove it"):
        kept.load(1, torch.device("cpu"), 5)


def test_rows_that_an_evaluation_left(tmp_path):
    kept = unfinished.EvaluationCheckpoint(tmp_path, {"k": 3})
    kept.save(RowResults([torch.ones(3, 1, 5, dtype=torch.float64)], [torch.zeros(3, dtype=torch.float64)]))
    assert len(unfinished.EvaluationCheckpoint(tmp_path, {"k": 3}).load(1, torch.device("cpu"), 3)) == 3


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(
    "change",
    [
        {"exp_avg": torch.zeros(2, 2)},
        {"exp_avg": torch.zeros(3, dtype=torch.float64)},
        {"exp_avg_sq": torch.tensor(float("nan"))},
        {"step": torch.zeros(7)},
        {"more": torch.zeros(1)},
    ],
)
def test_moments_of_another_shape_are_refused(change, tmp_path):
    """Moments of another shape must be refused: Adam's fused kernel trusts shapes and once ended in a segmentation fault."""
    train.fit(recipe(epochs=1), tmp_path, dataset=dataset(), **QUIET)
    state = run_folder.load_state(tmp_path)
    state["optimizer"]["state"][0] |= change
    run_folder.save_state(tmp_path, {name: value for name, value in state.items() if name != "digest"})
    with pytest.raises(InputError, match=r"state\.pt: expected "):
        train.resume(tmp_path, {"epochs": 2}, dataset=dataset(), **QUIET)


@pytest.mark.parametrize("change", [{"epoch": -1}, {"step": -1}, {"epoch": 0}, {"step": 3}, {"metrics_bytes": 5}])
def test_a_checkpoint_that_contradicts_its_log_is_refused(change, tmp_path):
    train.fit(recipe(epochs=1), tmp_path, dataset=dataset(), **QUIET)
    state = run_folder.load_state(tmp_path)
    run_folder.save_state(tmp_path, {name: value for name, value in {**state, **change}.items() if name != "digest"})
    with pytest.raises(InputError, match=r"(state\.pt|metrics\.jsonl): expected "):
        train.resume(tmp_path, {"epochs": 2}, dataset=dataset(), **QUIET)


def test_a_run_that_never_finished_an_epoch_may_be_begun_anew(tmp_path):
    train.fit(recipe(epochs=0), tmp_path, dataset=dataset(), **QUIET)
    train.fit(recipe(epochs=1, seed=3), tmp_path, dataset=dataset(), **QUIET)
    with pytest.raises(InputError, match="holds a run already"):
        train.fit(recipe(epochs=1), tmp_path, dataset=dataset(), **QUIET)


def test_by_default_at_most_a_minute_and_an_epoch_are_lost(tmp_path, monkeypatch):
    """A checkpoint must be written at the end of an epoch a minute after the last one, and at the end of the run."""
    now, saved = [1000.0], []
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    save = loop._Training._save_state
    monkeypatch.setattr(loop._Training, "_save_state", lambda self, *a: (saved.append(self.epoch), save(self, *a)))
    steps = loop._Training._steps
    monkeypatch.setattr(loop._Training, "_steps", lambda self, *a: (now.__setitem__(0, now[0] + 25.0), steps(self, *a))[1])
    train.fit(recipe(epochs=7), tmp_path, dataset=dataset(), **QUIET)
    assert saved == [0, 3, 6, 7]


# ---------------------------------------------------------------- archives


def test_a_gzip_file_that_inflates_without_end_is_refused(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(1 << 26)))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"bomb\.gz: expected at most 1048576 bytes in the gzip file; it holds more"):
        data_files.read_unzipped(path, 1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 24, "not inflated whole"
