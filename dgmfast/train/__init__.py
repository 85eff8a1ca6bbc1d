"""Training: fit a recipe, or resume a run."""

from dgmfast.train.loop import fit, resume

__all__ = ["fit", "resume"]
