"""dgmfast: fast, exact, trustworthy deep generative models in PyTorch.

`ops` are fused formulas, `models` the thesis's family, `evaluate` estimates log p(x), `reference` states the ops in plain torch.
"""

from dgmfast import _load

_C = _load.load()

from dgmfast import evaluate, models, nn, objectives, ops, reference  # noqa: E402

__version__ = "0.1.0"
__all__ = ["evaluate", "models", "nn", "objectives", "ops", "reference"]
