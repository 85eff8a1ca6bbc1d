"""Tests that data-parallel training on two gloo processes equals one process: batches, gradients and, to rounding, parameters."""

import itertools
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.toy import assert_same_run, dataset, metrics, parameters, recipe

from dgmfast import train
from dgmfast.models import create
from dgmfast.nn import RowBatchNorm
from dgmfast.objectives import Objective
from dgmfast.runs import Group
from dgmfast.runs import folder as run_folder
from dgmfast.runs.processes import Loss, RowSyncBatchNorm, _synchronise_batch_norm

QUIET = {"progress": False, "figures": False}
SIZES = (7, 2, 1)  # an odd batch, an even one, and one with too few rows
# With 61 rows in batches of 20, the last batch leaves one process without a row.
SETTINGS = {"epochs": 2, "objective": Objective(k=3)}
# The recipe has two stages, in each of which some parameters have no gradient.
STAGED = {
    "model": {"name": "m1m2", "latent": [3, 2], "hidden1": [8], "hidden2": [6], "pretrain_epochs": 1, "num_classes": 4},
    "epochs": 2,
    "labels": 8,
    "labelled_batch": 4,
    "start_at_mean": False,
}

# This script runs in each of the two processes; the first one writes what the tests read.
CHILD = """
import sys
import torch
from support.toy import dataset, recipe
from dgmfast import train
from dgmfast.runs import folder as run_folder
from dgmfast.runs import parallel, process_group
from dgmfast.errors import InputError
from dgmfast.models import VAE
from dgmfast.objectives import Objective
from test_distributed import QUIET, SETTINGS, SIZES, STAGED, gradient, model

torch.set_num_threads(1)
out = sys.argv[1]
with process_group(torch.device("cpu")) as group:
    gradients = {}
    for size in SIZES:
        net = model()
        gradient(net, parallel(net, Objective(k=2), group, torch.device("cpu")), size, group)
        gradients[size] = [p.grad for p in net.parameters()]
    if group.rank == 0:
        torch.save(gradients, out + "/gradients.pt")

    train.fit(recipe(**SETTINGS), out + "/two", dataset=dataset(), **QUIET)
    train.fit(recipe(**{**SETTINGS, "epochs": 1}), out + "/resumed", dataset=dataset(), **QUIET)
    train.resume(out + "/resumed", {"epochs": 2}, dataset=dataset(), **QUIET)

    train.fit(recipe(**STAGED), out + "/staged", dataset=dataset(), **QUIET)

    draw, calls = VAE.draw, []
    def broken(self, *arguments):
        terms = draw(self, *arguments)
        calls.append(1)
        if group.rank == 1 and len(calls) == 3:
            terms.log_px[0] = float("nan")
        return terms
    VAE.draw = broken
    try:
        train.fit(recipe(epochs=1, eval_every=9), out + "/bad", dataset=dataset(), **QUIET)
    except InputError as error:
        open(f"{out}/error{group.rank}", "w").write(str(error))
    try:
        train.resume(out + "/nowhere", dataset=dataset(), **QUIET)
    except InputError as error:
        open(f"{out}/nowhere{group.rank}", "w").write(str(error))
"""


def model():
    torch.manual_seed(3)
    return create("vae", x_dim=16, latent=[4, 3], hidden=[[8], [6]])


def gradient(net, loss, size, group):
    """Returns the gradient of the mean loss over a batch of `size` rows, from this process's part of it."""
    batch = dataset().train.x[:size].round()
    begin, end = group.shard(size)
    rows = batch[begin:end] if end > begin else batch[:1]
    value, _ = loss(rows, None, 0.5, 11, begin)
    (value * ((end - begin) / size * group.size)).backward()
    return [p.grad for p in net.parameters()]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """The files that the child script wrote in two processes."""
    out = tmp_path_factory.mktemp("two")
    (out / "child.py").write_text(CHILD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    common = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    children = [
        subprocess.Popen([sys.executable, str(out / "child.py"), str(out)], env={**common, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [child.wait(timeout=240) for child in children] == [0, 0]
    return out


@pytest.fixture
def one_process(tmp_path, threads) -> Path:
    torch.set_num_threads(1)
    train.fit(recipe(**SETTINGS), tmp_path / "one", dataset=dataset(), **QUIET)
    return tmp_path / "one"


def test_a_model_that_trains_in_stages(two_processes, tmp_path, threads):
    torch.set_num_threads(1)
    train.fit(recipe(**STAGED), tmp_path / "one", dataset=dataset(), **QUIET)
    got, expected = parameters(two_processes / "staged"), parameters(tmp_path / "one")
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_is_that_of_the_whole_batch(size, two_processes):
    net = model()
    expected = gradient(net, Loss(net, Objective(k=2)), size, Group())
    got = torch.load(two_processes / "gradients.pt")[size]
    for name, mine, theirs in zip(dict(net.named_parameters()), expected, got, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_parameters_and_metrics_are_those_of_one_process_within_rounding(two_processes, one_process):
    got, expected = parameters(two_processes / "two"), parameters(one_process)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
    for mine, theirs in zip(metrics(one_process), metrics(two_processes / "two"), strict=True):
        units = [record.pop("kl_units") for record in (mine, theirs)]  # approx cannot compare nested dicts
        assert theirs == pytest.approx(mine, rel=1e-5, abs=1e-5)
        assert all(units[1][layer] == pytest.approx(kl, rel=1e-4, abs=1e-4) for layer, kl in units[0].items())


def test_resume_is_bit_for_bit_on_two_processes(two_processes):
    assert_same_run(two_processes / "resumed", two_processes / "two")
    config = json.loads((two_processes / "two" / "config.json").read_text())
    assert config["environment"]["world_size"] == 2


def test_another_world_size_warns(two_processes, threads):
    torch.set_num_threads(1)
    with pytest.warns(UserWarning, match="world_size 2 -> 1"):
        train.resume(two_processes / "resumed", {"epochs": 3}, dataset=dataset(), **QUIET)
    assert math.isfinite(metrics(two_processes / "resumed")[2]["elbo"])


def test_all_processes_stop_at_a_loss_that_is_not_finite_in_one(two_processes):
    told = {(two_processes / f"error{rank}").read_text() for rank in range(2)}
    assert told == {"training stopped in epoch 1, step 3: reconstruction not finite; the last checkpoint is intact"}
    assert run_folder.load_state(two_processes / "bad")["epoch"] == 0


def test_all_processes_learn_of_an_error_of_the_first(two_processes):
    told = {(two_processes / f"nowhere{rank}").read_text() for rank in range(2)}
    assert len(told) == 1 and "no run that can be resumed" in told.pop()


def test_torchrun(tmp_path):
    """The documented torchrun command must train, and only the first process may print and write."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dgmfast"]
    command += ["train", "vae-digits", "--epochs", "1", "--no-figures", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 1/1") == 1
    assert len(metrics(tmp_path / "run")) == 1


@pytest.mark.parametrize(("rows", "size"), [(20, 2), (7, 3), (1, 2), (0, 2)])
def test_the_parts_of_a_batch_cover_it_evenly(rows, size):
    parts = [Group(rank, size).shard(rows) for rank in range(size)]
    assert parts[0][0] == 0 and parts[-1][1] == rows
    assert all(before[1] == after[0] for before, after in itertools.pairwise(parts))
    lengths = [end - begin for begin, end in parts]
    assert max(lengths) - min(lengths) <= 1


def test_batch_normalisation_is_replaced_with_its_state():
    net = create("vae", x_dim=16, latent=[3], hidden=[[8]], batch_norm=True)
    net.elbo(torch.rand(30, 16).round(), seed=0)  # this moves the running statistics
    before = {name: value.clone() for name, value in net.state_dict().items()}
    layers = sum(isinstance(module, RowBatchNorm) for module in net.modules())
    x = torch.rand(5, 16).round()
    expected = net.eval().reconstruct(x, seed=0)
    _synchronise_batch_norm(net)
    assert sum(isinstance(module, RowSyncBatchNorm) for module in net.modules()) == layers > 0
    assert {name: value.tolist() for name, value in net.state_dict().items()} == {n: v.tolist() for n, v in before.items()}
    torch.testing.assert_close(net.eval().reconstruct(x, seed=0), expected)
