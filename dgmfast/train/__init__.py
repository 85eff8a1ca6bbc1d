"""Training: one call for any model and data, fitting a recipe, and resuming a run."""

from dgmfast.train import front
from dgmfast.train.loop import OnEpoch, ScalarLogger, fit, resume

fit_model = front.fit

__all__ = ["OnEpoch", "ScalarLogger", "fit", "fit_model", "resume"]
