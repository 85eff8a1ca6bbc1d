"""Passes over many rows in blocks, in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dgmfast.models import GenerativeModel

ROWS = 1000  # rows in one block of a pass without importance samples


def in_blocks(model: GenerativeModel, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Concatenate function(block of x, number of its first row) over blocks of ROWS rows, in evaluation mode."""
    training = model.training
    model.eval()
    try:
        return torch.cat([function(x[first : first + ROWS], first) for first in range(0, max(1, len(x)), ROWS)])
    finally:
        model.train(training)
