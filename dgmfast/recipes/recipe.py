"""What an experiment consists of: every setting that its result depends on, checked, and readable from JSON."""

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

BURDA_STAGES = 8
BURDA_EPOCHS = 3280  # Σ_{i<8} 3^i
RENAMED = {"max_norm": "grad_clip_norm"}  # The settings that runs of earlier versions have under another name.


@dataclass(frozen=True)
class Schedule:
    """How the learning rate falls over the epochs.

    name: "constant"; "step", times `factor` every `every` epochs after the first `after`; or "burda", times 10^{-i/7} for 3^i
    epochs, i = 0 … 7 (Burda et al. 2015), 3280 epochs in all, scaled to the number of epochs of the recipe.
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
        """What multiplies the learning rate in epoch `epoch` (0-based) of `epochs`."""
        if self.name == "step":
            return self.factor ** (max(0, epoch - self.after) // self.every)
        if self.name == "burda":
            position = epoch * BURDA_EPOCHS // epochs
            stage = max(i for i in range(BURDA_STAGES) if position >= (3**i - 1) // 2)
            return float(10.0 ** (-stage / (BURDA_STAGES - 1)))
        return 1.0


@dataclass(frozen=True)
class Recipe:
    """A complete experiment: with the code's version and the machine it determines the trained parameters.

    model: the model's "name" and its settings (x_dim follows from the data, and num_classes where labels are used). data: a name
    that `data.load` knows. grad_clip_norm: the gradient's largest Euclidean norm, to which a longer one is scaled down (0: any).
    labels: how many training rows have their label, as many of each class (data.labelled_rows); the others train without.
    labelled_batch: how many of the batch_size rows of a batch are labelled ones. start_from: a run folder whose parameters to
    begin with. start_at_mean: let the untrained p(x|z) have the training data's mean. binarize: draw new binary images from grey
    levels, or new noise on integer levels, every epoch. eval_every: evaluate L_1 on the validation (else the test) split after
    every so many epochs.
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

    def __post_init__(self) -> None:
        try:
            # a copy of its own, equal to what comes back from a file
            object.__setattr__(self, "model", json.loads(json.dumps(self.model, allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise InputError(f"model must hold what JSON can hold; got {self.model!r} ({error})") from error
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
        """The settings as JSON can hold them."""
        return {**asdict(self), "betas": list(self.betas)}

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`, also of earlier versions; what is missing takes its default.

        Raises:
            InputError: an unknown setting, or one of the wrong type or out of range.
        """
        if isinstance(settings, Mapping):
            settings = {RENAMED.get(name, name): value for name, value in settings.items()}
        recipe: Recipe = _typed(Recipe, settings, "")
        return recipe

    def override(self, settings: Mapping[str, Any]) -> Recipe:
        """A recipe with other values, under names such as "epochs", "objective.k" and "model.latent".

        Raises:
            InputError: an unknown setting, or one of the wrong type or out of range.
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
    """One sentence about an unknown name, with the nearest ones or else all."""
    known = sorted(known)
    same = [name for name in known if name.split(".")[-1] == got.split(".")[-1]]  # somewhere else
    near = same or difflib.get_close_matches(got, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    return f"no {what} is called {got!r}; {hint}"


def _paths(settings: Mapping[str, Any] | None = None) -> list[str]:
    """All settings by their paths; those of the model where `settings` names one."""
    nested = {"objective": Objective, "schedule": Schedule}
    inner = [f"{outer}.{f.name}" for outer, cls in nested.items() for f in fields(cls)]
    model = (settings or {}).get("model") or {}
    kind = models.MODELS.get(model.get("name", "")) if isinstance(model, Mapping) else None
    of_model = [] if kind is None else [f"model.{name}" for name in inspect.signature(kind).parameters]
    return [*(f.name for f in fields(Recipe) if f.name not in nested), *inner, "model.name", *of_model]


def _at_least(low: int, name: str, value: int) -> None:
    if value < low:
        raise InputError(f"{name} must be at least {low}; got {value}")


def _typed(kind: Any, value: Any, path: str) -> Any:
    """`value` as the declared type: a whole number may stand for a float, a list for a tuple, a dict for a dataclass."""
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
