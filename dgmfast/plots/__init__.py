"""Figures of models and of their training, as PNG files."""

from dgmfast.plots.canvas import COLORS, MARKERS
from dgmfast.plots.compare import bound_curves, bounds_by_depth, bounds_by_labels, draw_comparison, error_curves
from dgmfast.plots.curves import kl_layers, kl_units, training_curve
from dgmfast.plots.images import (
    ImageShape,
    Layout,
    analogies,
    completions,
    layout_of_run,
    masking_study,
    reconstructions,
    samples,
    z2_grid,
)
from dgmfast.plots.latents import confusion_matrix, decision_regions, latent_space, potential
from dgmfast.plots.likelihood import log_likelihood
from dgmfast.plots.run import draw_run

__all__ = [
    "COLORS",
    "MARKERS",
    "ImageShape",
    "Layout",
    "analogies",
    "bound_curves",
    "bounds_by_depth",
    "bounds_by_labels",
    "completions",
    "confusion_matrix",
    "decision_regions",
    "draw_comparison",
    "draw_run",
    "error_curves",
    "kl_layers",
    "kl_units",
    "latent_space",
    "layout_of_run",
    "log_likelihood",
    "masking_study",
    "potential",
    "reconstructions",
    "samples",
    "training_curve",
    "z2_grid",
]
