"""`dgmfast.fit`: train a model on any data with one call."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dgmfast import data, models, recipes
from dgmfast.errors import InputError
from dgmfast.models import GenerativeModel
from dgmfast.recipes import OWN_DATA, Recipe, unknown
from dgmfast.runs import GIVEN, load_dataset
from dgmfast.train import loop
from dgmfast.train.loop import OnEpoch, ScalarLogger

RECIPE_FIELDS = {field.name for field in fields(Recipe)} - {"model", "data", "data_options"}
DATA_SETTINGS = ("kind", "split", "split_seed", "normalize", "image_shape", "label_column")


def fit(
    model: str | Recipe | GenerativeModel,
    data: Any = None,
    out: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
    figures: bool = True,
    checkpoint_every: int | None = None,
    checkpoint_minutes: float = 1.0,
    on_epoch: OnEpoch | Sequence[OnEpoch] = (),
    logger: ScalarLogger | None = None,
    **settings: Any,
) -> GenerativeModel:
    """Train a model, and return it in evaluation mode.

    Args:
        model: The name of a model or of a recipe, a recipe, or a model object, whose present parameters are the initial ones.
        data: A tensor or array x ([N, D], [N, H, W] or [N, C, H, W]); a pair (x, y) with labels; a torch Dataset or DataLoader; a
            data.Dataset; or the name or path that data.load takes. None takes the recipe's data.
        out: The run folder, or None to write no files. A run can be evaluated, resumed, drawn and compared from the command line;
            data that is not read from files is kept in it as data.npz.
        data_dir: The folder of the known data sets; by default that of DGMFAST_DATA_DIR.
        device: "cpu" or "cuda".
        progress: If true, show the progress on stderr.
        figures: If true and there is a run folder, draw the figures of the run at the end.
        checkpoint_every: Number of epochs between checkpoints, or None.
        checkpoint_minutes: Number of minutes between checkpoints.
        on_epoch: A function, or several, called with the model and a dict of numbers at the end of every epoch. If one returns
            True, training stops.
        logger: An object with add_scalar(name, value, epoch), such as a SummaryWriter.
        settings: Fields of a Recipe (epochs, batch_size, learning_rate, seed, labels, objective, …); settings of the model, if it
            is given by name (latent, hidden, likelihood, …); and arguments of data.from_arrays or data.from_file (kind, split,
            split_seed, normalize, image_shape, label_column).

    Raises:
        InputError: A setting is unknown or wrong, the model does not fit the data, a loss is not finite, or as for train.fit.
    """
    own = {name: settings.pop(name) for name in DATA_SETTINGS if name in settings}
    recipe, settings = _recipe(model, settings)
    recipe, dataset = _with_data(recipe, data, own, data_dir)
    changes = _changes(recipe, settings)
    labels = changes.get("labels", recipe.labels)
    if labels and not changes.get("labelled_batch", recipe.labelled_batch):
        changes["labelled_batch"] = max(1, min(int(labels), int(changes.get("batch_size", recipe.batch_size)) // 2))
    recipe = recipe.override(changes)
    return loop.fit(
        recipe,
        out,
        dataset=dataset,
        device=device,
        checkpoint_every=checkpoint_every,
        checkpoint_minutes=checkpoint_minutes,
        progress=progress,
        figures=figures,
        model=model if isinstance(model, GenerativeModel) else None,
        on_epoch=on_epoch,
        logger=logger,
    )


def _recipe(model: Any, settings: dict[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe that `model` stands for, and the settings that are still to be applied to it."""
    if isinstance(model, Recipe):
        return model, settings
    if isinstance(model, GenerativeModel):
        described = describe(model)
        return Recipe(str(settings.get("name", described["name"])), described, OWN_DATA), settings
    if not isinstance(model, str):
        raise InputError(f"fit: model must be a name, a Recipe or a GenerativeModel; got {type(model).__name__}")
    if model in recipes.names():
        return recipes.get(model), settings
    kind = models.find(model)
    if kind is None:
        raise InputError(f"fit: {unknown('recipe or model', model, [*recipes.names(), *models.MODELS])}")
    known = inspect.signature(kind).parameters
    of_model = {name: value for name, value in settings.items() if name in known and name not in RECIPE_FIELDS}
    return Recipe(model, {"name": model, **of_model}, OWN_DATA), {n: v for n, v in settings.items() if n not in of_model}


def describe(model: GenerativeModel) -> dict[str, Any]:
    """The model's name and settings, as a recipe has them.

    If they cannot make the model again, because its class has no name or an argument is a module, the dict says so under `GIVEN`.
    """
    name = models.registered_name(type(model))
    settings = model.settings()
    try:
        plain = json.loads(json.dumps(settings, allow_nan=False))
        made_again = name is not None
    except (TypeError, ValueError):
        plain, made_again = {}, False
    described = {"name": name or type(model).__name__, "x_dim": model.x_dim, **plain}
    return described if made_again else {"name": described["name"], "x_dim": model.x_dim, GIVEN: True}


def _with_data(recipe: Recipe, given: Any, own: dict[str, Any], data_dir: str | Path | None) -> tuple[Recipe, data.Dataset]:
    """The recipe with its data, and the data set."""
    if given is None:
        if recipe.data == OWN_DATA:
            raise InputError("fit: data must be given for a model; got None")
        given = recipe.data
    if isinstance(given, (str, Path)):
        options = {name: value for name, value in own.items() if value is not None}
        if "split" in options:
            options["split"] = list(options["split"])
        recipe = recipe.override({"data": str(given), "data_options": options})
        return recipe, load_dataset(recipe, None, data_dir)
    if "label_column" in own:
        raise InputError(f"fit: label_column is for files; got data of type {type(given).__name__}")
    dataset = _dataset(given, recipe.name, own)
    return recipe.override({"data": OWN_DATA, "data_options": {}}), dataset


def _dataset(given: Any, name: str, own: dict[str, Any]) -> data.Dataset:
    if isinstance(given, data.Dataset):
        if own:
            raise InputError(f"fit: {', '.join(own)} must be left out for a data.Dataset, which has them")
        return given
    if isinstance(given, (Tensor, np.ndarray)):
        return data.from_arrays(given, name=name, **own)
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return data.from_arrays(*given, name=name, **own)
    return data.from_torch(given, name=name, **own)


def _changes(recipe: Recipe, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as changes of a recipe."""
    kind = models.find(recipe.model["name"])
    of_model = set() if kind is None or GIVEN in recipe.model else set(inspect.signature(kind).parameters)
    changes: dict[str, Any] = {}
    for name, value in settings.items():
        if name in RECIPE_FIELDS:
            changes[name] = value
        elif name in of_model:
            changes[f"model.{name}"] = value
        else:
            raise InputError(f"fit: {unknown('setting', name, [*RECIPE_FIELDS, *of_model, *DATA_SETTINGS])}")
    return changes
