"""A small data set and a small recipe for the tests of training."""

import json
from pathlib import Path
from typing import Any

import torch

from dgmfast import data
from dgmfast.recipes import Recipe

MODEL = {"name": "vae", "latent": [4, 3], "hidden": [[8], [6]], "activation": "tanh"}


def dataset(rows: int = 61, binary: bool = False) -> data.Dataset:
    """Returns blurred bars: `rows` training and 23 test images of 4 x 4 grey levels in 4 classes."""
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(rows + 23) % 4
    x = 0.1 + 0.2 * torch.rand(rows + 23, 4, 4, generator=generator)
    x[torch.arange(rows + 23), y] += 0.6
    x = x.flatten(1)
    if binary:
        x = x.round()
    splits = data.Split(x[:rows], y[:rows]), None, data.Split(x[rows:], y[rows:])
    return data.Dataset("toy", *splits, image_shape=(1, 4, 4), kind="binary" if binary else "grey", classes=4, note="")


def recipe(**settings: Any) -> Recipe:
    """Returns a recipe of three epochs of a two-layer model; `settings` are those of Recipe."""
    return Recipe(
        **{"name": "toy", "model": MODEL, "data": "toy", "batch_size": 20, "epochs": 3, "start_at_mean": True, **settings}
    )


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the logged epochs of a run without their wall-clock times."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    """Returns all tensors of a run's checkpoint: parameters, buffers and the optimiser's moments."""
    state = torch.load(folder / "state.pt", weights_only=True)
    moments = {f"{i}.{name}": value for i, entry in state["optimizer"]["state"].items() for name, value in entry.items()}
    return {**state["model"], **moments, "epoch": torch.tensor(state["epoch"]), "step": torch.tensor(state["step"])}


def assert_same_run(folder: Path, expected: Path) -> None:
    """Asserts that two runs have the same parameters, moments, metrics and exported model, bit for bit."""
    assert metrics(folder) == metrics(expected)
    got, want = parameters(folder), parameters(expected)
    assert got.keys() == want.keys()
    assert [name for name in want if not torch.equal(got[name], want[name])] == []
    assert (folder / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
