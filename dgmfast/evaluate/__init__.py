"""log p(x) by importance sampling with standard errors, class probabilities, and the KL divergence of each latent unit."""

from dgmfast.evaluate.blocks import ImportanceSampling
from dgmfast.evaluate.classes import class_probabilities, classification_error
from dgmfast.evaluate.likelihood import LogLikelihood, log_likelihood
from dgmfast.evaluate.progress import progress_bar
from dgmfast.evaluate.streaming import RowResults, check_arguments, curve_points, stream
from dgmfast.evaluate.units import active_units, kl_units

__all__ = [
    "ImportanceSampling",
    "LogLikelihood",
    "RowResults",
    "active_units",
    "check_arguments",
    "class_probabilities",
    "classification_error",
    "curve_points",
    "kl_units",
    "log_likelihood",
    "progress_bar",
    "stream",
]
