"""Tests of dgmfast evaluate on a whole run: its files, interruptions and restarts, another data set, and two processes."""

import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command_line import call
from support.figures import assert_figure, record

from dgmfast import data, evaluate
from dgmfast.models import VAE
from dgmfast.runs import folder as run_folder
from dgmfast.runs import unfinished

SMALL = ["--epochs", "1", "--set", "model.hidden=[[16]]", "--set", "model.latent=[2]", "--no-progress", "--no-figures"]
SAME = ["--iw", "600", "--limit", "21", "--seed", "3", "--threads", "1", "--no-progress"]


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    call("train", "vae-digits", "--out", folder, *SMALL)
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def undisturbed(trained, tmp_path_factory) -> dict[str, bytes]:
    """The files of an evaluation without an interruption."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("undisturbed") / "run"))
    torch.set_num_threads(1)
    call("evaluate", folder, *SAME, "--no-figures")
    return {name: (folder / name).read_bytes() for name in ("evaluation.csv", "evaluation.json")}


def rows_of(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def partials(folder: Path) -> list[Path]:
    return list(folder.glob("*partial*"))


# ---------------------------------------------------------------- files


def test_files_and_figure(run, monkeypatch):
    figures = record(monkeypatch)
    told = call("evaluate", run, *SAME).stdout.splitlines()[-1]
    model, x = run_folder.open_run(run).model, run_folder.fixed_split(data.load("digits"), "test", True).x[:21]
    expected = evaluate.log_likelihood(model, x, 600, 3)
    rows = rows_of((run / "evaluation.csv").read_bytes())
    points = [1, 10, 50, 100, 600]
    estimates = ["log_px", "elbo", "ess", "std_error", "pareto_k", "k_used"]
    assert list(rows[0]) == ["row", *estimates, *(f"log_px_{k}" for k in points)]
    for name in estimates:
        found = torch.tensor([float(row[name]) for row in rows], dtype=torch.float64)
        torch.testing.assert_close(found, getattr(expected, name).double(), rtol=1e-9, atol=0.0)
    assert all(row["log_px_600"] == row["log_px"] and int(row["row"]) == i for i, row in enumerate(rows))
    report = json.loads((run / "evaluation.json").read_text())
    assert report["curve"]["100"] == pytest.approx(np.mean([float(row["log_px_100"]) for row in rows]))
    assert list(report["curve"]) == [str(k) for k in points] and report["mean_k_used"] == 600 and report["tolerance"] is None
    assert report["dominated_rows"] == int(expected.dominated().sum())
    assert report["bounds"]["L_50"]["nats"] == report["curve"]["50"] and report["bounds"]["L_50"]["mean_ess"] <= 50
    assert_figure(run / "figures" / "evaluation.png")
    curve, sizes = figures[0].axes
    assert curve.lines[0].get_xydata().tolist() == [[k, report["curve"][str(k)]] for k in points]
    assert sum(bar.get_height() for bar in sizes.patches) == 21
    assert "evaluation.csv" in told and "evaluation.png" in told and partials(run) == []


def test_a_tolerance(run):
    last = call("evaluate", run, *SAME, "--iw", 2000, "--tolerance", 0.1, "--no-figures").stdout.splitlines()[-1]
    used = [int(row["k_used"]) for row in rows_of((run / "evaluation.csv").read_bytes())]
    errors = [float(row["std_error"]) for row in rows_of((run / "evaluation.csv").read_bytes())]
    assert all(k in range(250, 2001, 250) and (error < 0.1 or k == 2000) for k, error in zip(used, errors, strict=True))
    assert min(used) < 2000 and f"with {np.mean(used):.0f} samples per row" in last
    refusal = call("evaluate", run, "--tolerance", 0, code=2).stderr
    assert refusal == "Error: log_likelihood: tolerance must be a positive number of nats; got 0.0\n"


def test_another_data_set(run, monkeypatch):
    call("evaluate", run, *SAME, "--no-figures")
    before = (run / "evaluation.json").read_bytes()
    load = data.load

    def with_ones(name, data_dir=None):
        digits = load("digits", data_dir)
        ones = data.Split(torch.ones_like(digits.test.x), digits.test.y)
        return replace(digits, name="ones", test=ones) if name == "ones" else load(name, data_dir)

    monkeypatch.setattr(data, "load", with_ones)
    assert "digits test" not in call("evaluate", run, *SAME, "--data", "ones").stdout
    report = json.loads((run / "evaluation-ones.json").read_text())
    assert report["data"] == "ones" and report["bounds"]["L_600"]["nats"] < json.loads(before)["bounds"]["L_600"]["nats"]
    assert (run / "evaluation.json").read_bytes() == before and (run / "figures" / "evaluation-ones.png").exists()
    refusal = call("evaluate", run, "--data", "moons", code=2).stderr
    assert refusal == "Error: log_likelihood: x must be floating, of shape [N, 64]; got torch.float32 [10000, 2]\n"


# ---------------------------------------------------------------- interruptions


def interrupted(monkeypatch, after: int, stop) -> list[int]:
    """Makes `stop` run at the call number `after` of the model's draw; returns a list that grows with each call."""
    draw, calls = VAE.draw, []

    def draw_or_stop(self, *arguments):
        calls.append(1)
        if len(calls) == after:
            stop()
        return draw(self, *arguments)

    monkeypatch.setattr(VAE, "draw", draw_or_stop)
    return calls


def ctrl_c():
    raise KeyboardInterrupt


def test_the_same_command_goes_on_after_an_interruption(run, undisturbed, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted(patch, 2, ctrl_c)
        assert "the same command goes on" in call("evaluate", run, *SAME, "--no-figures", code=130).stderr
    assert len(partials(run)) == 1 and not (run / "evaluation.json").exists()
    again = interrupted(monkeypatch, 0, ctrl_c)
    result = call("evaluate", run, *SAME[:-1], "--no-figures")  # with progress
    assert "continuing after 8 of 21 rows" in result.stderr and len(again) == 2  # two of the three blocks
    assert (run / "evaluation.csv").read_bytes() == undisturbed["evaluation.csv"]
    told, expected = (json.loads(text) for text in ((run / "evaluation.json").read_bytes(), undisturbed["evaluation.json"]))
    assert {**told, "seconds": 0} == {**expected, "seconds": 0} and partials(run) == []


def test_the_same_command_goes_on_after_a_kill(run, undisturbed):
    script = (
        "import os, signal, sys; from dgmfast import cli; from dgmfast.runs import unfinished; from dgmfast.models import VAE;"
        "unfinished.SAVE_SECONDS = 0.0;"
        "draw, calls = VAE.draw, [];"
        "VAE.draw = lambda *a: (calls.append(1), os.kill(os.getpid(), signal.SIGKILL) if len(calls) == 3 else 0, draw(*a))[2];"
        "cli.main(sys.argv[1:])"
    )
    killed = subprocess.run([sys.executable, "-c", script, "evaluate", str(run), *SAME, "--no-figures"])
    assert killed.returncode == -signal.SIGKILL and len(partials(run)) == 1 and not (run / "evaluation.json").exists()
    assert "continuing after 16 of 21 rows" in call("evaluate", run, *SAME[:-1], "--no-figures").stderr
    assert (run / "evaluation.csv").read_bytes() == undisturbed["evaluation.csv"]


@pytest.mark.parametrize("other", [["--iw", "601"], ["--seed", "4"], ["--limit", "20"], ["--split", "train"], ["--tolerance", 9]])
def test_other_settings_start_anew(other, run, trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted(patch, 2, ctrl_c)
        call("evaluate", run, *SAME, "--no-figures", code=130)
    kept = {path: path.read_bytes() for path in partials(run)}
    result = call("evaluate", run, *SAME[:-1], *other, "--no-figures")
    assert "continuing" not in result.stderr
    assert {path: path.read_bytes() for path in partials(run)} == kept, "the first command can still go on"
    fresh = Path(shutil.copytree(trained, tmp_path / "fresh"))
    call("evaluate", fresh, *SAME, *other, "--no-figures")
    stem = "evaluation-train" if "train" in other else "evaluation"
    assert (run / f"{stem}.csv").read_bytes() == (fresh / f"{stem}.csv").read_bytes()
    assert (run / "evaluation.csv").exists() == (stem == "evaluation"), "the run's own numbers are of the test split"


def test_another_model_starts_anew(run, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted(patch, 2, ctrl_c)
        call("evaluate", run, *SAME, "--no-figures", code=130)
    call("train", "--out", run, "--resume", "--epochs", 2, "--no-figures", "--no-progress", "--threads", 1)
    assert "continuing" not in call("evaluate", run, *SAME[:-1], "--no-figures").stderr


def test_a_damaged_file_of_finished_rows(run, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted(patch, 2, ctrl_c)
        call("evaluate", run, *SAME, "--no-figures", code=130)
    [path] = partials(run)
    path.write_bytes(path.read_bytes()[:200])
    lines = call("evaluate", run, *SAME, "--no-figures", code=2).stderr.splitlines()
    assert len(lines) == 1 and f"{path}: expected the rows of an interrupted evaluation; got " in lines[0]


def test_rows_are_kept_now_and_then(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(unfinished.time, "monotonic", lambda: now[0])
    kept = unfinished.EvaluationCheckpoint(tmp_path, {"k": 3})
    rows = unfinished.RowResults([torch.ones(2, 1, 5, dtype=torch.float64)], [torch.zeros(2, dtype=torch.float64)])
    kept.save_sometimes(rows)
    assert not kept.path.exists()
    now[0] += unfinished.SAVE_SECONDS
    kept.save_sometimes(rows)
    again = unfinished.EvaluationCheckpoint(tmp_path, {"k": 3})
    assert len(again.load(1, torch.device("cpu"), 2)) == 2 and again.seconds == unfinished.SAVE_SECONDS


# ---------------------------------------------------------------- two processes

CHILD = """
import sys
import torch
from dgmfast import data
from dgmfast.runs import evaluate_bounds, fixed_split, open_run, process_group
from dgmfast.errors import InputError
from dgmfast.models import VAE

torch.set_num_threads(1)
folder, out = sys.argv[1:]
model = open_run(folder).model
x = fixed_split(data.load("digits"), "test", True).x[:21]
draw = VAE.draw
def broken(self, *arguments):
    terms = draw(self, *arguments)
    if group.rank == 1:
        terms.log_px[0] = float("nan")
    return terms
VAE.draw = broken
with process_group(torch.device("cpu")) as group:
    try:
        evaluate_bounds(model, x, 60, group=group)
    except InputError as error:
        open(f"{out}/error{group.rank}", "w").write(str(error))
"""


def test_both_processes_learn_of_an_error_of_one(run, tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = [sys.executable, str(tmp_path / "child.py"), str(run), str(tmp_path)]
    children = [subprocess.Popen(command, env={**common, "RANK": str(rank)}) for rank in range(2)]
    assert [child.wait(timeout=240) for child in children] == [0, 0]
    told = {(tmp_path / f"error{rank}").read_text() for rank in range(2)}
    assert told == {"log_likelihood: the weights of row 10 are not finite; look at log p(x|z)"}


def test_torchrun_gives_the_numbers_of_one_process(run, undisturbed):
    """The documented torchrun command must give the numbers of one process, and only the first process may print and write."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dgmfast"]
    command += ["evaluate", str(run), *SAME]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("L_600 took") == 1 and "Error" not in done.stderr and partials(run) == []
    found, expected = rows_of((run / "evaluation.csv").read_bytes()), rows_of(undisturbed["evaluation.csv"])
    for mine, theirs in zip(found, expected, strict=True):
        for name in ("log_px", "elbo", "log_px_1", "log_px_10", "log_px_100"):
            assert abs(float(mine[name]) - float(theirs[name])) <= 1e-6 * abs(float(theirs[name])) + 1e-5
        assert float(mine["ess"]) == pytest.approx(float(theirs["ess"]), rel=1e-3) and mine["k_used"] == theirs["k_used"]
    assert json.loads((run / "evaluation.json").read_text())["environment"]["world_size"] == 2
    assert_figure(run / "figures" / "evaluation.png")
