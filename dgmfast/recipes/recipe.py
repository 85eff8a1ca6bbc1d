"""The settings of an experiment. They are complete, checked, and can be read from JSON.

Complete means that they hold every setting that a result depends on.
"""

from __future__ import annotations

import difflib
import inspect
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from dgmfast import models
from dgmfast.errors import InputError
from dgmfast.objectives import Objective

OWN_DATA = "data.npz"  # the file in a run folder that holds data which was given as tensors
BURDA_STAGES = 8
BURDA_EPOCHS = 3280  # Σ_{i<8} 3^i
RENAMED = {"max_norm": "grad_clip_norm"}  # settings that had another name in earlier versions


@dataclass(frozen=True)
class Schedule:
    """How the learning rate falls over the epochs.

    Args:
        name: "constant"; "step" multiplies by `factor` every `every` epochs, after the first `after` epochs; "burda" multiplies
            by 10^{-i/7} for 3^i epochs, i = 0 … 7 (Burda et al. 2015). Burda's schedule has 3280 epochs in total, and is scaled
            to the recipe's number of epochs.
        factor: Factor of "step", above 0 and at most 1.
        every: Number of epochs between two steps, at least 1.
        after: Number of epochs before the first step, at least 0.

    Raises:
        InputError: A setting is unknown or out of range.
    """

    name: str = "constant"
    factor: float = 1.0
    every: int = 1
    after: int = 0

    def __post_init__(self) -> None:
        if self.name not in ("constant", "step", "burda"):
            raise InputError(f"schedule.name must be one of constant, step, burda; got {self.name!r}")
        if not 0.0 < self.factor <= 1.0:
            raise InputError(f"schedule.factor must be above 0 and at most 1; got {self.factor}")
        _at_least(1, "schedule.every", self.every)
        _at_least(0, "schedule.after", self.after)

    def scale(self, epoch: int, epochs: int) -> float:
        """The factor of the learning rate in epoch `epoch` (0-based) of `epochs`."""
        if self.name == "step":
            return self.factor ** (max(0, epoch - self.after) // self.every)
        if self.name == "burda":
            position = epoch * BURDA_EPOCHS // epochs
            stage = max(i for i in range(BURDA_STAGES) if position >= (3**i - 1) // 2)
            return float(10.0 ** (-stage / (BURDA_STAGES - 1)))
        return 1.0


@dataclass(frozen=True)
class Recipe:
    """A complete experiment. Together with the version of the code and the machine, it determines the trained parameters.

    Args:
        name: The name of the recipe, by default also of the run folder.
        model: The model's "name" and its settings. x_dim follows from the data, as does num_classes if labels are used.
        data: A name or a path that `data.load` takes; or `OWN_DATA`, for data that lies in the run folder.
        objective: What training maximises.
        learning_rate: Adam's learning rate.
        betas: Adam's betas, in [0, 1).
        eps: Adam's eps.
        schedule: How the learning rate falls.
        grad_clip_norm: The largest Euclidean norm of the gradient; a longer gradient is scaled down to it. 0 means no limit.
        batch_size: Number of rows of a batch.
        epochs: Number of passes over the training rows.
        seed: Seed of all random choices.
        labels: Number of training rows whose labels are used, equally many of each class (see data.labelled_rows). The others are
            trained without labels.
        labelled_batch: Number of labelled rows among the batch_size rows of a batch.
        start_from: A run folder whose parameters are the initial ones.
        start_at_mean: If true, initialise p(x|z) so that its mean is that of the training data.
        binarize: If true, draw new binary images from grey levels, or new noise on integer levels, in every epoch.
        eval_every: Number of epochs between evaluations of L_1 on the validation split (else on the test split).
        note: What a reader should know, such as the published result.
        data_options: If `data` is a path, the arguments of data.from_file by name.

    Raises:
        InputError: A setting has the wrong type or is out of range.
    """

    name: str
    model: dict[str, Any]
    data: str
    objective: Objective = field(default_factory=Objective)
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: Schedule = field(default_factory=Schedule)
    grad_clip_norm: float = 0.0
    batch_size: int = 100
    epochs: int = 100
    seed: int = 0
    labels: int = 0
    labelled_batch: int = 0
    start_from: str = ""
    start_at_mean: bool = False
    binarize: bool = True
    eval_every: int = 1
    note: str = ""
    data_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            # A copy that equals what is read back from a file.
            for settings in ("model", "data_options"):
                object.__setattr__(self, settings, json.loads(json.dumps(getattr(self, settings), allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise InputError(f"{settings} must hold what JSON can hold; got {getattr(self, settings)!r} ({error})") from error
        if not isinstance(self.model, dict) or not isinstance(self.model.get("name"), str):
            raise InputError(f"model must be a dict with the model's name under 'name'; got {self.model!r}")
        for name, kind in get_type_hints(Recipe).items():
            _typed(kind, getattr(self, name), name)
        _at_least(1, "batch_size", self.batch_size)
        _at_least(0, "epochs", self.epochs)
        _at_least(0, "seed", self.seed)
        _at_least(1, "eval_every", self.eval_every)
        _at_least(0, "labels", self.labels)
        if self.labels and not 0 < self.labelled_batch < self.batch_size:
            raise InputError(f"labelled_batch must lie in 1..{self.batch_size - 1}, below batch_size; got {self.labelled_batch}")
        if not (0.0 < self.learning_rate < math.inf and 0.0 < self.eps < math.inf):
            raise InputError(f"learning_rate and eps must be positive; got {self.learning_rate} and {self.eps}")
        if not self.grad_clip_norm >= 0.0:
            raise InputError(f"grad_clip_norm must be at least 0; got {self.grad_clip_norm}")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise InputError(f"betas must lie in [0, 1); got {list(self.betas)}")

    def learning_rate_at(self, epoch: int) -> float:
        """The learning rate in epoch `epoch` (0-based)."""
        return self.learning_rate * self.schedule.scale(epoch, self.epochs)

    def to_dict(self) -> dict[str, Any]:
        """The settings as a dict that JSON can represent."""
        return {**asdict(self), "betas": list(self.betas)}

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`, also for dicts of earlier versions. Missing settings get their defaults.

        Raises:
            InputError: A setting is unknown, has the wrong type or is out of range.
        """
        if isinstance(settings, Mapping):
            settings = {RENAMED.get(name, name): value for name, value in settings.items()}
        recipe: Recipe = _typed(Recipe, settings, "")
        return recipe

    def override(self, settings: Mapping[str, Any]) -> Recipe:
        """A recipe with changed values, given under names such as "epochs", "objective.k" and "model.latent".

        Raises:
            InputError: A setting is unknown, has the wrong type or is out of range.
        """
        changed = self.to_dict()
        for path, value in settings.items():
            *outer, last = path.split(".")
            place = changed
            for name in outer:
                place = place.get(name, {}) if isinstance(place, dict) else {}
                if not isinstance(place, dict) or not place:
                    raise InputError(unknown("setting", path, _paths(changed)))
            if not outer and last not in changed:
                raise InputError(unknown("setting", path, _paths(changed)))
            place[last] = value
        return Recipe.from_dict(changed)


def unknown(what: str, got: str, known: Iterable[str]) -> str:
    """A sentence about an unknown name, with the most similar known names, or else with all of them."""
    known = sorted(known)
    same = [name for name in known if name.split(".")[-1] == got.split(".")[-1]]  # under another prefix
    near = same or difflib.get_close_matches(got, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    return f"no {what} is called {got!r}; {hint}"


def _paths(settings: Mapping[str, Any] | None = None) -> list[str]:
    """The paths of all settings, including those of the model that `settings` names."""
    nested = {"objective": Objective, "schedule": Schedule}
    inner = [f"{outer}.{f.name}" for outer, cls in nested.items() for f in fields(cls)]
    model = (settings or {}).get("model") or {}
    kind = models.MODELS.get(model.get("name", "")) if isinstance(model, Mapping) else None
    of_model = [] if kind is None else [f"model.{name}" for name in inspect.signature(kind).parameters]
    return [*(f.name for f in fields(Recipe) if f.name not in nested), *inner, "model.name", *of_model]


def _at_least(low: int, name: str, value: int) -> None:
    """Raise InputError if the value is below `low`."""
    if value < low:
        raise InputError(f"{name} must be at least {low}; got {value}")


def _typed(kind: Any, value: Any, path: str) -> Any:
    """`value` converted to the declared type: a whole number to a float, a list to a tuple, a dict to a dataclass."""
    if is_dataclass(kind) and isinstance(kind, type):
        return value if isinstance(value, kind) else _dataclass(kind, value, path)
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)) and len(value) == len(get_args(kind)):
        return tuple(_typed(part, item, path) for part, item in zip(get_args(kind), value, strict=True))
    options = get_args(kind) if NoneType in get_args(kind) else (kind,)
    for option in options:
        plain = get_origin(option) or option
        if plain is float and type(value) is int:
            return float(value)
        if type(value) is plain and plain is not tuple:
            return value
    hint = f"; write {int(value)}" if kind is int and type(value) is float and value.is_integer() else ""
    got = repr(value)
    raise InputError(
        f"{path} must be of type {getattr(kind, '__name__', None) if get_origin(kind) is None else kind}; "
        f"got {got if len(got) <= 200 else got[:200] + ' …'}{hint}"
    )


def _dataclass(cls: type, values: Any, path: str) -> Any:
    """The dataclass `cls` from a dict of settings; raises InputError for an unknown or missing setting."""
    if not isinstance(values, Mapping):
        raise InputError(f"{path or cls.__name__} must be a dict of settings; got {values!r}")
    hints = get_type_hints(cls)
    prefix = f"{path}." if path else ""
    for name in values:
        if name not in hints:
            raise InputError(unknown("setting", f"{prefix}{name}", _paths()))
    required = [name for name in ("name", "model", "data") if cls is Recipe and name not in values]
    if required:
        raise InputError(f"a recipe must have {', '.join(required)}; got {', '.join(values) or 'nothing'}")
    return cls(**{name: _typed(hints[name], value, f"{prefix}{name}") for name, value in values.items()})
