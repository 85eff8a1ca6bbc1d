"""Figures of models and of their training, as PNG files."""

from dgmfast.plots._canvas import COLORS, MARKERS
from dgmfast.plots._compare import bound_curves, bounds_by_depth, bounds_by_labels, draw_comparison, error_curves
from dgmfast.plots._curves import kl_layers, kl_units, training_curve
from dgmfast.plots._images import (
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
from dgmfast.plots._latents import confusion_matrix, decision_regions, latent_space, potential
from dgmfast.plots._likelihood import log_likelihood
from dgmfast.plots._run import draw_run

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
