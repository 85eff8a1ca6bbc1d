"""dgmfast: fast and exact deep generative models in PyTorch.

`ops` holds the fused ops, `models` the models of the thesis, `objectives` the training bounds, and `evaluate` estimates
log p(x). `reference` has every op in plain PyTorch.
"""

from dgmfast import _load

_C = _load.load()

from dgmfast import evaluate, models, nn, objectives, ops, reference  # noqa: E402

__version__ = "0.1.0"
__all__ = ["evaluate", "models", "nn", "objectives", "ops", "reference"]
