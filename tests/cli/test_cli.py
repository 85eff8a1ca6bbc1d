"""Tests of the command line: what it prints and writes, and one line with exit code 2 for every user error."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.command_line import call, refused
from support.toy import metrics

import dgmfast
from dgmfast import train
from dgmfast.cli import main, training

SMALL = ["--epochs", "2", "--set", "model.hidden=[[16]]", "--set", "model.latent=[2]", "--no-progress", "--no-figures"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    call("train", "vae-digits", "--out", folder, *SMALL)
    return folder


@pytest.fixture
def run(run_folder, tmp_path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


# ---------------------------------------------------------------- commands


def test_train_options_reach_the_recipe(tmp_path):
    options = ["--batch-size", 300, "--lr", 0.01, "--seed", 4, "--k", 3, "--set", "eps=1e-6", "--set", "model.activation=relu"]
    call("train", "vae", "--data", "digits", "--out", tmp_path / "run", *options, *SMALL)
    told = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]
    assert (told["batch_size"], told["learning_rate"], told["seed"], told["objective"]["k"], told["eps"]) == (
        300,
        0.01,
        4,
        3,
        1e-6,
    )
    assert told["model"] == {"name": "vae", "latent": [2], "hidden": [[16]], "activation": "relu", "x_dim": 64}
    assert (told["name"], told["data"]) == ("vae-on-digits", "digits")


def test_resume_with_the_same_command_and_without_a_recipe(run):
    call("train", "vae-digits", "--out", run, *SMALL, "--resume")
    call("train", "--out", run, "--resume", "--epochs", 3, "--no-figures")
    assert len(metrics(run)) == 3


def test_resume_begins_a_run_that_was_killed_too_early(tmp_path):
    result = call("train", "vae-digits", "--out", tmp_path / "run", *SMALL, "--resume")
    assert "starting from the beginning" in result.stderr
    assert len(metrics(tmp_path / "run")) == 2


def test_training_draws_figures(run):
    call("train", "--out", run, "--resume", "--epochs", 3)
    figures = {path.stem for path in (run / "figures").iterdir()}
    assert figures == {"latent_space", "reconstructions", "samples", "training_curve"}


def test_a_warning_is_one_line(run):
    result = call("train", "--out", run, "--resume", "--epochs", 3, "--no-figures", "--no-progress", "--threads", 2)
    torch.set_num_threads(1)
    assert result.stderr.splitlines() == [
        "Warning: resumed under other conditions, so not bit for bit the uninterrupted run: threads 1 -> 2"
    ]


def test_evaluate(run):
    result = call("evaluate", run, "--iw", 200, "--limit", 40, "--seed", 3)
    lines = result.stdout.splitlines()
    assert "vae-digits after 2 epochs, digits test" in lines[0]
    assert [line.split()[0] for line in lines[2:5]] == ["L_1", "L_50", "L_200"]
    told = json.loads((run / "evaluation.json").read_text())
    assert (told["k"], told["rows"], told["seed"], told["split"], told["epoch"]) == (200, 40, 3, "test", 2)
    bounds = told["bounds"]
    assert bounds["L_1"]["nats"] < bounds["L_50"]["nats"] < bounds["L_200"]["nats"] < 0
    assert 1 < bounds["L_200"]["mean_ess"] <= 200 and 0 < bounds["L_200"]["sampling_error"] < bounds["L_200"]["row_error"]
    rows = np.load(run / "evaluation.npz")
    assert {name: rows[name].shape for name in rows} == dict.fromkeys(("L_1", "L_50", "L_200", "ess", "std_error"), (40,))
    assert rows["L_200"].mean() == pytest.approx(bounds["L_200"]["nats"])
    assert f"{bounds['L_200']['nats']:.3f}" in lines[4]


def test_evaluate_is_the_same_for_any_chunk(run):
    values = []
    for chunk in ([], ["--chunk", 1], ["--chunk", 3000]):
        call("evaluate", run, "--iw", 60, "--limit", 9, *chunk)
        values.append(np.load(run / "evaluation.npz")["L_60"])
    assert np.array_equal(values[0], values[1]) and np.array_equal(values[0], values[2])


def test_evaluate_with_few_samples(run):
    assert [line.split()[0] for line in call("evaluate", run, "--iw", 1, "--limit", 1).stdout.splitlines()[2:-1]] == ["L_1"]
    lines = call("evaluate", run, "--iw", 50, "--split", "train", "--limit", 2).stdout.splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == ["L_1", "L_50"]


def test_sample(run):
    call("sample", run, "--n", 7, "--npz", run / "x.npz")
    x = np.load(run / "x.npz")["x"]
    assert x.shape == (7, 64) and x.min() >= 0 and x.max() <= 1
    assert (run / "samples.png").read_bytes().startswith(b"\x89PNG")
    call("sample", run, "--n", 7, "--npz", run / "again.npz", "--out", run / "else.png")
    assert np.array_equal(np.load(run / "again.npz")["x"], x) and (run / "else.png").exists()


def test_info():
    told = call("info").stdout
    for name in ("instruction set", "torch", "CUDA architectures", "GPU", "threads"):
        assert name in told
    assert str(torch.__version__) in told and dgmfast._C.isa() in told


def test_version_and_help():
    assert call("--version").stdout.strip() == f"dgmfast, version {dgmfast.__version__}"
    for command in main.commands:
        if command != "bench":
            assert "Usage" in call(command, "--help").stdout
    assert "train" in call(code=2).output


def test_bench_without_a_source_tree(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "source tree" in refused("bench", "--list")


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train"], "name a recipe"),
        (["train", "--resume"], "name a recipe"),
        (["train", "vae-digit"], "did you mean vae-digits"),
        (["train", "vae"], "--data"),
        (["train", "vae", "--data", "mnits"], "name must be one of digits"),
        (["train", "vae-digits", "--epochs", "many"], "--epochs"),
        (["train", "vae-digits", "--epoch", "3"], "No such option"),
        (["train", "vae-digits", "--epochs", "-1"], "epochs must be at least 0"),
        (["train", "vae-digits", "--k", "0"], "k must be at least 1"),
        (["train", "vae-digits", "--lr", "nan"], "learning_rate"),
        (["train", "vae-digits", "--set", "epochs"], "NAME=VALUE"),
        (["train", "vae-digits", "--set", "epoch=3"], "did you mean epochs"),
        (["train", "vae-digits", "--set", "latent=5"], "no setting is called 'latent'; did you mean model.latent?"),
        (["train", "vae-digits", "--set", "model.latnt=[5]"], "no setting is called 'latnt'; did you mean latent?"),
        (["train", "vae-digits", "--set", "model.latent=[5"], "must be JSON, such as [100,50]; got '[5'"),
        (["evaluate", "nowhere", "--iw", "1e3"], "--iw"),
        (["train", "vae-digits", "--set", "model.latent=[0]"], "must be positive"),
        (["train", "vae-digits", "--set", "model.latent=5"], "latent must be a list of sizes"),
        (["train", "vae-digits", "--set", "model.latent=[1000000000000]"], "model vae: "),
        (["train", "vae-digits", "--set", "model.batch_norm=no"], "batch_norm must be true or false; got 'no'"),
        (["train", "vae-digits", "--set", "objective.free_bits=NaN"], "free_bits must be at least 0"),
        (["train", "vae-digits", "--device", "cuda:99"], "CUDA devices"),
        (["train", "vae-digits", "--threads", "0"], "--threads"),
        (["train", "vae-digits", "--checkpoint-every", "0"], "checkpoint_every"),
        (["train", "vae-mnist", "--data-dir", "nowhere"], "nowhere"),
        (["train", "--out", "nowhere", "--resume"], "holds no run that can be resumed"),
        (["evaluate"], "RUN"),
        (["evaluate", "nowhere"], "nowhere is not the folder of a run"),
        (["sample", "nowhere"], "nowhere is not the folder of a run"),
        (["no-such-command"], "No such command"),
    ],
)
def test_a_wrong_call(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DGMFAST_DATA_DIR", raising=False)
    assert told in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_values_as_python_writes_them():
    texts = ["a=True", "b=False", "c=None", "d=.001", "e=1.", "f=-2.5E-3", "g=relu", "h=[1, 2]", "i=true", "j=3", 'k={"l": null}']
    found = training.parse_settings(texts)
    expected = [True, False, None, 0.001, 1.0, -0.0025, "relu", [1, 2], True, 3, {"l": None}]
    assert list(found.values()) == expected and [type(v) for v in found.values()] == [type(v) for v in expected]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evaluate", "RUN", "--iw", "0"], "k must be at least 1"),
        (["evaluate", "RUN", "--split", "valid"], "split must be one of train, test"),
        (["evaluate", "RUN", "--split", "holdout"], "split must be one of train, test"),
        (["evaluate", "RUN", "--chunk", "0"], "--chunk"),
        (["sample", "RUN", "--n", "0"], "--n"),
        (["sample", "RUN", "--out", "RUN/config.json/x.png"], "RUN/config.json"),
        (["train", "vae-digits", "--out", "RUN"], "--resume"),
        (["train", "iwae-digits", "--out", "RUN", "--resume"], "cannot change name"),
        (["train", "--out", "RUN", "--resume", "--batch-size", "1"], "cannot change batch_size"),
    ],
)
def test_a_wrong_call_on_a_run(arguments, told, run):
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert told.replace("RUN", str(run)) in refused(*(argument.replace("RUN", str(run)) for argument in arguments))
    assert {path: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.json", b"{", "expected the settings of a run"),
        ("config.json", b"[1]", "expected the settings of a run"),
        ("config.json", b'{"recipe": {"name": "x"}, "image_shape": null}', "a recipe must have"),
        ("config.json", b"\xff\xfe", "expected the settings of a run"),
        ("model.safetensors", b"", "expected the parameters"),
        ("model.safetensors", b"\x00" * 100, "expected the parameters"),
    ],
)
def test_a_damaged_run(file, content, told, run):
    (run / file).write_bytes(content)
    assert told in refused("evaluate", run)
    assert told in refused("sample", run)


def test_a_flipped_bit_of_a_parameter(run):
    path = run / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert "expected the parameters that were written; got others" in refused("evaluate", run)


def test_parameters_of_another_model(run, tmp_path):
    call("train", "vae-digits", "--out", tmp_path / "other", "--epochs", "0", "--no-figures")
    shutil.copy(tmp_path / "other" / "model.safetensors", run)
    assert "expected the parameters of this run's model" in refused("evaluate", run)


def test_foreseeable_errors_of_the_layers_below(monkeypatch, run):
    for error in (OSError(28, "No space left on device"), ValueError("a\nb"), TypeError("c"), MemoryError()):
        monkeypatch.setattr(train, "fit", lambda *a, error=error, **k: (_ for _ in ()).throw(error))
        assert refused("train", "vae-digits", "--out", run).removeprefix("Error: ") in (
            "[Errno 28] No space left on device",
            "a b",
            "c",
            "MemoryError",
        )


def test_memory_that_is_not_there(monkeypatch, run):
    def allocate(*arguments, **named):
        torch.empty(10**15)

    monkeypatch.setattr(train, "fit", allocate)
    assert refused("train", "vae-digits", "--out", run).startswith("Error: out of memory: ")
    monkeypatch.setattr(train, "fit", lambda *a, **k: torch.ones(2) @ torch.ones(3))
    assert isinstance(CliRunner().invoke(main, ["train", "vae-digits"]).exception, RuntimeError), "a fault of the code shows"


def test_packages_of_the_extra_that_are_missing(monkeypatch, run):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "dgmfast[train]" in refused("sample", run)
    without = "import sys; sys.modules['click'] = None; import dgmfast.cli"
    done = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, cwd=run)
    assert done.returncode == 2 and "dgmfast[train]" in done.stderr and len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------- as a process


def process(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "dgmfast", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_interrupted(tmp_path):
    # A shell's background jobs inherit that SIGINT is ignored, so the default is restored.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    arguments = ("train", "vae-digits", "--out", tmp_path / "run", "--epochs", 100000, "--no-figures", "--threads", 1)
    child = process(*arguments, **heard)
    while not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "metrics.jsonl").stat().st_size:
        time.sleep(0.02)
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=240)
    assert child.returncode == 130
    assert "Traceback" not in told and f"dgmfast train --out {tmp_path / 'run'} --resume" in told
    assert not list((tmp_path / "run").glob(".*"))
    call("train", "--out", tmp_path / "run", "--resume", "--epochs", 100000, "--set", "name=other", code=2)


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_real_limit_on_files_and_a_wrong_name(tmp_path):
    import resource

    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))}
    full = process("train", "vae-digits", "--out", tmp_path / "run", "--epochs", 1, "--no-figures", "--no-progress", **limit)
    wrong = process("train", "vae-digts")
    told = full.communicate(timeout=240)[1].splitlines()
    assert full.returncode == 2 and len(told) == 1
    assert told[0].startswith(f"Error: cannot write {tmp_path / 'run' / 'state.pt'}: File too large")
    assert not list((tmp_path / "run").glob(".*"))
    told = wrong.communicate(timeout=240)[1].splitlines()
    assert wrong.returncode == 2 and len(told) == 1 and "did you mean vae-digits" in told[0]
