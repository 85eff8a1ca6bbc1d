"""Tests of several processes: the process with an error reports it once, with its rank, and the others stop within seconds."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dgmfast.errors import InputError, ToldElsewhere
from dgmfast.runs import processes

CPU = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def clean() -> dict[str, str]:
    """Returns the environment without the variables of a launcher."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", processes.RENDEZVOUS_SECONDS)
    return {name: value for name, value in os.environ.items() if name not in names}


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def command(*arguments, **environment) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dgmfast", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean(), **CPU, **environment},
    )


def told(child: subprocess.Popen[str], seconds: float = 240.0) -> list[str]:
    """Waits for a child that must end with exit code 2, and returns the lines of its standard error."""
    lines = child.communicate(timeout=seconds)[1].splitlines()
    assert child.returncode == 2, lines
    return lines


# ---------------------------------------------------------------- the environment


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1"}, (0, 1)),  # a scheduler sets this for a single process
        ({"RANK": "x"}, (0, 1)),
        ({"WORLD_SIZE": "1", "RANK": "7"}, (0, 1)),
        ({"WORLD_SIZE": "3", "RANK": "2", "MASTER_ADDR": "host", "MASTER_PORT": "1234"}, (2, 3)),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE in the environment must be a whole number of at least 1; got 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE in the environment must be a whole number of at least 1; got '0'"),
        ({"WORLD_SIZE": "2"}, "RANK and MASTER_ADDR and MASTER_PORT must be set where WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR and MASTER_PORT must be set where WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "2", "RANK": "x", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "RANK in the environment must be a whole"),
        ({"WORLD_SIZE": "2", "RANK": "-1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "RANK in the environment must be a whole"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "RANK must be below WORLD_SIZE, 2; got 2"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "p"}, "MASTER_PORT in the environment must be"),
    ],
)
def test_the_place_of_a_process(environment, expected, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, tuple):
        assert processes.rank_and_size() == expected
    else:
        with pytest.raises(InputError, match=expected):
            processes.rank_and_size()
        assert processes.is_main() and processes.error_line(InputError("x"), "x") == "Error: x", "nobody else would tell it"


def test_who_tells_an_error(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert processes.error_line(InputError("x"), "x") == "Error in process 1 of 2: x"
    assert processes.error_line(ToldElsewhere("x"), "x") is None
    monkeypatch.setenv("RANK", "0")
    assert processes.error_line(InputError("x"), "x") == "Error: x"


# ---------------------------------------------------------------- commands


def test_a_rank_in_the_environment_of_a_single_process_silences_nothing():
    assert told(command("evaluate", "/no/such/run", RANK="1")) == [
        "Error: /no/such/run is not the folder of a run: there is no config.json and no model.safetensors in it"
    ]


def test_processes_that_do_not_meet_stop_with_a_sentence():
    """Processes that cannot meet, because of a wrong address or a missing process, must stop with one sentence."""
    common = {"WORLD_SIZE": "2", "MASTER_PORT": free_port(), processes.RENDEZVOUS_SECONDS: "2"}
    start = time.monotonic()
    alone = command("train", "vae-digits", RANK="0", **common)
    elsewhere = command("train", "vae-digits", RANK="1", **{**common, "MASTER_PORT": free_port()})
    for child, rank in ((alone, ""), (elsewhere, " in process 1 of 2")):
        lines = [line for line in told(child) if line.startswith("Error")]  # torch's own warnings may come first
        assert len(lines) == 1
        assert lines[0].startswith(f"Error{rank}: expected 2 processes (WORLD_SIZE) to meet at 127.0.0.1:")
        assert f"within 2 seconds ({processes.RENDEZVOUS_SECONDS})" in lines[0]
    assert time.monotonic() - start < 60.0


def test_an_error_of_the_second_process_alone_is_told_by_it(tmp_path):
    """If only the second process cannot read the data, that process must report the error."""
    digits = "from dgmfast import cli, data; import os, sys\nfrom dgmfast.errors import InputError\nload = data.load\n"
    digits += "def broken(*a):\n    if os.environ['RANK'] == '1': raise InputError('no data here')\n    return load(*a)\n"
    (tmp_path / "child.py").write_text(f"{digits}data.load = broken\ncli.main(sys.argv[1:])\n")
    arguments = ["train", "vae-digits", "--epochs", "1", "--no-figures", "--no-progress", "--out", str(tmp_path / "run")]
    start = time.monotonic()
    done = subprocess.run(
        [*TORCHRUN, str(tmp_path / "child.py"), *arguments], capture_output=True, text=True, timeout=240, env={**clean(), **CPU}
    )
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == ["Error in process 1 of 2: no data here"]
    assert time.monotonic() - start < 90.0


def test_an_error_that_all_processes_have_is_told_once(tmp_path):
    done = subprocess.run(
        [*TORCHRUN, "-m", "dgmfast", "evaluate", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        timeout=240,
        env={**clean(), **CPU},
    )
    assert done.returncode != 0 and done.stderr.count("is not the folder of a run") == 1, done.stderr


@pytest.mark.parametrize("batch", [1, 2])
def test_too_few_labelled_rows_for_batch_normalisation_leave_no_folder(batch, tmp_path):
    """Too few labelled rows per process must leave no folder behind, so that the corrected command can start the run."""
    run = tmp_path / "run"
    arguments = ["train", "adgm-moons", "--epochs", "1", "--no-figures", "--no-progress", "--out", str(run)]
    setting = ["--set", f"labelled_batch={batch}", "--set", "batch_size=100"]
    if batch == 1:
        child = command(*arguments, *setting)
        lines = told(child)
        assert "labelled_batch 1 for 1 process" in lines[-1]
    else:
        whole = [*TORCHRUN, "-m", "dgmfast", *arguments, *setting]
        done = subprocess.run(whole, capture_output=True, text=True, timeout=240, env={**clean(), **CPU})
        assert done.returncode != 0 and "labelled_batch 2 for 2 processes" in done.stderr
    assert not Path(run).exists()


def test_an_instruction_set_that_there_is_none_of_is_one_line():
    [line] = told(command("info", DGMFAST_CPU="bogus"))
    assert line.startswith("Error: DGMFAST_CPU")


@pytest.mark.parametrize("count", ["0", "33000", "99999999999999999999"])
def test_a_number_of_threads_that_no_machine_has(count):
    """An impossible number of threads must be refused; it once ended in a segmentation fault of OpenMP."""
    assert "--threads" in told(command("sample", "/nowhere", "--threads", count))[-1]
