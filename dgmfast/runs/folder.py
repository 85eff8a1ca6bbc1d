"""The run folder.

It holds config.json, state.pt (everything that resuming needs), model.safetensors (the exported parameters), and the logs.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import platform
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgmfast import _C, data, models
from dgmfast.errors import InputError
from dgmfast.files import make_folder, parse_json, write_atomically
from dgmfast.models import GenerativeModel
from dgmfast.nn import rename_parameters
from dgmfast.recipes import OWN_DATA, Recipe

CONFIG, STATE, EXPORT, METRICS, FIGURES = "config.json", "state.pt", "model.safetensors", "metrics.jsonl", "figures"
FORMAT = 2
GIVEN = "given_as_object"  # in recipe.model: the model cannot be made from its settings
STATE_KEYS = frozenset({"format", "recipe", "environment", "epoch", "step", "model", "optimizer", "metrics_bytes", "digest"})
TEST_SEED = 20150901  # seed of the one binarisation of every test set, the same for every model


@dataclass(frozen=True)
class Run:
    """A trained model with its folder and recipe.

    Args:
        folder: The run folder.
        recipe: The recipe.
        model: The model, in evaluation mode.
        image_shape: (C, H, W) of a row, or None if a row is not a whole image.
        epoch: Number of epochs that were trained when the model was exported.
    """

    folder: Path
    recipe: Recipe
    model: GenerativeModel
    image_shape: tuple[int, int, int] | None
    epoch: int


def run_environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """What the last bits of the parameters depend on besides the recipe, such as versions, the device and the threads."""
    from dgmfast import __version__

    return {
        "dgmfast": __version__,
        "torch": str(torch.__version__),
        "build": hashlib.blake2b(Path(str(_C.__file__)).read_bytes(), digest_size=6).hexdigest(),
        "isa": str(_C.isa()),
        "machine": platform.machine(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "world_size": world_size,
    }


def _processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def warn_if_changed(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Warn that a resumed run cannot be bit-equal if the environment has changed."""
    changed = [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
    if changed:
        warnings.warn(
            f"resumed under other conditions, so not bit for bit the uninterrupted run: {', '.join(changed)}", stacklevel=3
        )


def figures_folder(folder: Path) -> Path:
    """The folder of a run's figures, created if necessary.

    Raises:
        InputError: The folder cannot be created.
    """
    make_folder(folder / FIGURES)
    return folder / FIGURES


def holds_run(folder: Path) -> bool:
    """True if a run was begun in the folder."""
    metrics = folder / METRICS  # empty if the run was killed before its first checkpoint
    return (folder / STATE).exists() or (folder / CONFIG).exists() or (metrics.exists() and metrics.stat().st_size > 0)


def never_trained(folder: Path) -> bool:
    """True if the run in the folder never finished an epoch, so that another run may take its place."""
    metrics = folder / METRICS
    if not (folder / STATE).is_file() or (metrics.exists() and metrics.stat().st_size > 0):
        return False
    try:
        return bool(load_state(folder)["epoch"] == 0)
    except InputError:
        return False


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write state.pt completely or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    buffer = io.BytesIO()  # torch.save to a full disk would not give the reason
    torch.save({"format": FORMAT, **state, "digest": tensor_digest(state)}, buffer)
    write_atomically(folder / STATE, buffer.getvalue())


def load_state(folder: Path) -> dict[str, Any]:
    """Read the state that `save_state` wrote.

    Raises:
        InputError: There is no run in the folder, or state.pt is damaged or has another format.
    """
    path = folder / STATE
    if not path.is_file():
        raise InputError(f"{folder} holds no run that can be resumed: there is no {STATE} in it")
    try:
        content = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(content) as archive:  # torch.load does not check the checksums
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"bad checksum of {damaged}")
        content.seek(0)
        state = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive makes torch raise almost anything
        reason = str(error).split("\n")[0]
        raise InputError(f"{path}: expected a whole checkpoint; got a damaged file ({type(error).__name__}: {reason})") from error
    if not isinstance(state, dict) or not state.keys() >= STATE_KEYS:
        raise InputError(f"{path}: expected a checkpoint of dgmfast; got something else")
    if type(state["format"]) is not int or state["format"] != FORMAT:
        got = f"{state['format']!r:.50}"
        raise InputError(f"{path}: expected checkpoint format {FORMAT}; got {got}, of another version of dgmfast")
    _check_state(path, state)
    if state["digest"] != tensor_digest({name: value for name, value in state.items() if name not in ("format", "digest")}):
        raise InputError(f"{path}: expected a whole checkpoint; got a damaged file (bad digest of the tensors)")
    rename_parameters(state["model"])
    return state


def stored_recipe(folder: Path, state: dict[str, Any]) -> Recipe:
    """The recipe in a checkpoint.

    Raises:
        InputError: The checkpoint has no valid recipe.
    """
    try:
        return Recipe.from_dict(parse_json(state["recipe"]))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / STATE}: expected the settings of a run; got {error}") from error


def stored_changes(folder: Path, state: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings that changed when the run was resumed before. Checkpoints of earlier versions have none.

    Raises:
        InputError: The checkpoint has something else in their place.
    """
    try:
        changes = parse_json(state.get("changes", "[]"))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / STATE}: expected the changes of a run's settings; got {error}") from error
    if not isinstance(changes, list) or not all(isinstance(change, dict) for change in changes):
        raise InputError(f"{folder / STATE}: expected the changes of a run's settings; got {changes!r:.50}")
    return changes


def _check_state(path: Path, state: dict[str, Any]) -> None:
    """Raise InputError unless every field of a checkpoint has the type with which it was saved."""
    wrong = [name for name in ("epoch", "step", "metrics_bytes") if type(state[name]) is not int or state[name] < 0]
    wrong += [name for name in ("recipe", "digest") if not isinstance(state[name], str)]
    environment, model, optimizer = state["environment"], state["model"], state["optimizer"]
    if not isinstance(environment, dict) or not all(isinstance(value, (str, int)) for value in environment.values()):
        wrong.append("environment")
    if not _plain_tensors(model):
        wrong.append("model")
    entries = optimizer.get("state") if isinstance(optimizer, dict) else None
    if not isinstance(entries, dict) or not all(_plain_tensors(entry) for entry in entries.values()):
        wrong.append("optimizer")
    if wrong:
        raise InputError(f"{path}: expected a checkpoint of dgmfast; got other values of {' and '.join(wrong)}")


def _plain_tensors(values: Any) -> bool:
    """True if `values` is a dict of tensors with strided memory."""
    return isinstance(values, dict) and all(isinstance(t, Tensor) and t.layout == torch.strided for t in values.values())


def check_tensors(path: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise InputError unless the tensors `found` in a file match `expected` in names, shapes and dtypes, and are finite."""
    for name in [*expected, *found]:
        if name not in found or name not in expected:
            got = "none" if name not in found else "one"
            raise InputError(f"{path}: expected the parameters of this run's model; got {got} called {name}")
        value, own = found[name], expected[name]
        if value.shape != own.shape or value.dtype != own.dtype:
            expected_tensor = f"{own.dtype} {list(own.shape)}; got {value.dtype} {list(value.shape)}"
            raise InputError(f"{path}: expected the parameters of this run's model, {name} of {expected_tensor}")
        if not value.isfinite().all():
            raise InputError(f"{path}: expected finite parameters; got {name} with a value that is not")


def tensor_digest(state: Any) -> str:
    """A digest of all tensors in the state.

    The archive's own checksums are not sufficient, because torch does not read the file by its directory alone.
    """
    digest = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for item in value.values():
                add(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)

    add(state)
    return digest.hexdigest()


def export_parameters(folder: Path, tensors: dict[str, Tensor], epoch: int) -> None:
    """Write model.safetensors.

    Raises:
        InputError: The file cannot be written.
    """
    from safetensors.torch import save

    tensors = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    # A single entry, because safetensors writes several entries in any order, and a resumed run must end with the same bytes.
    metadata = {"dgmfast": json.dumps({"epoch": epoch, "blake2b": tensor_digest(tensors)})}
    write_atomically(folder / EXPORT, save(tensors, metadata))


def write_config(
    folder: Path, recipe: Recipe, environment: dict[str, Any], dataset: data.Dataset, changes: list[dict[str, Any]]
) -> None:
    """Write config.json. `changes` are the settings that changed when the run was resumed.

    Raises:
        InputError: The file cannot be written.
    """
    config: dict[str, Any] = {"recipe": recipe.to_dict(), "image_shape": dataset.image_shape, "environment": environment}
    if changes:
        config["changes"] = changes
    if is_own(recipe):
        config["data_digest"] = data_digest(dataset)
    if dataset.normalization is not None:
        config["normalization"] = [t.tolist() for t in dataset.normalization]
    if dataset.pixels is not None:
        config |= {"pixels": dataset.pixels.tolist(), "full_shape": dataset.full_shape}
    write_atomically(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def open_run(folder: str | Path, device: str | torch.device = "cpu", model: GenerativeModel | None = None) -> Run:
    """Read a run's model from config.json and model.safetensors, in evaluation mode.

    Args:
        folder: The run folder.
        device: The device of the model.
        model: A model of the same class and sizes, for a run whose model cannot be made from its settings.

    Raises:
        InputError: The folder is not a run, or a file in it is damaged.
    """
    folder = Path(folder)
    missing = [name for name in (CONFIG, EXPORT) if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} is not the folder of a run: there is no {' and no '.join(missing)} in it")
    try:
        config = parse_json((folder / CONFIG).read_text())
        recipe = Recipe.from_dict(config["recipe"])
        image_shape = _shape(config["image_shape"], None if config.get("pixels") else recipe.model.get("x_dim"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{folder / CONFIG}: expected the settings of a run; got {reason}") from error
    model = create_model(recipe) if model is None else model
    epoch = _import(folder / EXPORT, model)
    return Run(folder, recipe, model.to(device).eval(), image_shape, epoch)


def _shape(value: Any, size: Any) -> tuple[int, int, int] | None:
    """The image shape (C, H, W) that is stored as `value`, for images of `size` numbers."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 3 or any(type(n) is not int or n < 1 for n in value):
        raise ValueError(f"an image_shape that is not [C, H, W], {value!r:.60}")
    if type(size) is int and math.prod(value) != size:
        raise ValueError(f"an image_shape {value} that is not of {size} numbers, model.x_dim")
    return value[0], value[1], value[2]


def _import(path: Path, model: GenerativeModel) -> int:
    """Load the parameters in model.safetensors into the model, and return the number of trained epochs."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = parse_json((file.metadata() or {}).get("dgmfast", "{}"))
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path}: expected the parameters of this run's model; got {reason}") from error
    digest = tensor_digest({name: tensors[name] for name in sorted(tensors)})
    rename_parameters(tensors)
    check_tensors(path, tensors, model.state_dict())
    epoch = metadata.get("epoch", 0) if isinstance(metadata, dict) else metadata
    if not isinstance(metadata, dict) or type(epoch) is not int or not 0 <= epoch < 1 << 40:
        raise InputError(f"{path}: expected the number of epochs that were trained; got {epoch!r:.50}")
    if metadata.get("blake2b", digest) != digest:  # a file from another program may have no digest
        raise InputError(f"{path}: expected the parameters that were written; got others, so the file is damaged")
    model.load_state_dict(tensors)
    return epoch


def short_name(recipe: Recipe) -> str:
    """What titles and file names call the recipe's data."""
    return recipe.name if recipe.data == OWN_DATA else Path(recipe.data).stem if data.is_path(recipe.data) else recipe.data


def is_own(recipe: Recipe) -> bool:
    """True if the recipe's data are a user's own, in a file or in the run folder."""
    return recipe.data == OWN_DATA or data.is_path(recipe.data)


def data_digest(dataset: data.Dataset) -> str:
    """A digest of the training rows and their labels."""
    return tensor_digest([dataset.train.x, dataset.train.y])


def load_dataset(recipe: Recipe, folder: Path | None = None, data_dir: str | Path | None = None) -> data.Dataset:
    """The data set of a recipe. That of a run of own data must be what it was in training.

    Args:
        recipe: The recipe.
        folder: The run folder, if there is a run.
        data_dir: The folder of the known data sets.

    Raises:
        InputError: The data cannot be read, or have changed.
    """
    if recipe.data == OWN_DATA:
        if folder is None:
            raise InputError(f"data must be a name or a path, because there is no run folder; got {OWN_DATA}")
        dataset = data.load_saved(folder / OWN_DATA)
    else:
        options = (recipe.data_options,) if recipe.data_options else ()
        dataset = data.load(recipe.data, data_dir, *options)
    if folder is not None and is_own(recipe):
        try:
            digest = parse_json((folder / CONFIG).read_text()).get("data_digest")
        except (OSError, ValueError, AttributeError):
            digest = None  # Whoever needs config.json reports that it is damaged.
        if digest is not None and digest != data_digest(dataset):
            raise InputError(f"{recipe.data} must hold the rows that {folder} was trained on; it has changed since")
    return dataset


def create_model(recipe: Recipe) -> GenerativeModel:
    """The untrained model of a recipe."""
    settings = dict(recipe.model)
    name = settings.pop("name")
    if settings.pop(GIVEN, False):
        raise InputError(
            f"the model {name} was given as an object that its settings do not describe: give it again, as "
            "dgmfast.load_run(folder, model=…)"
        )
    if models.find(name) is None:
        raise InputError(
            f"{models.unknown_name(name)}; a model of your own must be registered (models.register) in a module that is imported "
            "(dgmfast --import MODULE)"
        )
    return models.create(name, **settings)


def fixed_split(dataset: data.Dataset, split: str, binarize: bool) -> data.Split:
    """A split in the form on which bounds are evaluated. With `binarize`, grey levels are binarised by one fixed draw.

    Raises:
        InputError: The data set has no such split.
    """
    part: data.Split | None = {"train": dataset.train, "valid": dataset.valid, "test": dataset.test}.get(split)
    if part is None:
        have = [name for name in ("train", "valid", "test") if getattr(dataset, name) is not None]
        raise InputError(f"split must be one of {', '.join(have)} for {dataset.name}; got {split!r}")
    return data.Split(data.sample_inputs(dataset, part.x, TEST_SEED), part.y) if binarize else part


def initialise(model: GenerativeModel, recipe: Recipe, x: Tensor) -> None:
    """Set the initial parameters: those of the run recipe.start_from, or drawn ones, with the mean of x [N, D] if asked for.

    Raises:
        InputError: recipe.start_from is not a run of the same model.
    """
    if recipe.start_from:
        source = open_run(recipe.start_from)
        if source.recipe.model != recipe.model:
            raise InputError(f"start_from must be a run of the model {recipe.model}; got {source.recipe.model}")
        model.load_state_dict(source.model.state_dict())
    elif recipe.start_at_mean:
        model.init_output_mean(x.float().mean(0).cpu())
