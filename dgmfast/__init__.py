"""dgmfast: fast and exact deep generative models in PyTorch.

`ops` holds the fused ops, `models` the models of the thesis, `objectives` the training bounds, and `evaluate` estimates
log p(x). `fit` trains a model on any data, and `load_run` reads a trained one. `reference` has every op in plain PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dgmfast import _load

_C = _load.load()

from dgmfast import evaluate, models, nn, objectives, ops, reference  # noqa: E402

if TYPE_CHECKING:
    from dgmfast import data, recipes, runs, train
    from dgmfast.runs import load_run
    from dgmfast.train import fit_model as fit

__version__ = "0.1.0"
__all__ = ["data", "evaluate", "fit", "load_run", "models", "nn", "objectives", "ops", "recipes", "reference", "runs", "train"]


def __getattr__(name: str) -> Any:
    """Import the rest when it is used, because most programs need the ops and models alone."""
    if name == "fit":
        return importlib.import_module("dgmfast.train").fit_model
    if name == "load_run":
        return importlib.import_module("dgmfast.runs").load_run
    if name in ("data", "recipes", "runs", "train"):
        return importlib.import_module(f"dgmfast.{name}")
    raise AttributeError(f"module 'dgmfast' has no attribute {name!r}")
