"""The noise of a draw, a function of its coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgmfast import ops
from dgmfast.seeds import seed_or_drawn

Gaussian = tuple[Tensor, Tensor]  # mean, log_var
Seed = int | Tensor | None  # None draws a new seed from torch's generator

SMALLEST = 2.0**-60  # keeps log u finite


@dataclass(frozen=True)
class Noise:
    """The noise of a draw: under one seed, row i, sample j and stream s always give the same numbers.

    Args:
        seed: An int, or a 0-dimensional int64 tensor on the model's device.
        first_row: Coordinate of the first row.
        first_sample: Coordinate of the first sample.
    """

    seed: int | Tensor
    first_row: int = 0
    first_sample: int = 0

    def gaussian(self, q: Gaussian, k: int, stream: int) -> tuple[Tensor, Tensor]:
        """Draw z ~ q and compute log q(z), for q = (mean, log_var).

        The result has k samples per row of [B, D], or one (k = 1) per entry of [B, K, D].
        """
        return ops.gaussian_sample(*q, k, seed=self.seed, stream=stream, first_row=self.first_row, first_sample=self.first_sample)

    @classmethod
    def of(
        cls,
        caller: str,
        seed: Seed,
        generator: torch.Generator | None,
        device: torch.device,
        first_row: int = 0,
        first_sample: int = 0,
    ) -> Noise:
        """The noise of `seed`, or of a new seed if it is None.

        The new seed is drawn from `generator`, by default torch's own generator of the device.
        """
        return cls(seed_or_drawn(caller, seed, generator, device), first_row, first_sample)

    @torch.no_grad()
    def uniform(self, like: Tensor, stream: int) -> Tensor:
        """Draw u in (0, 1), float64, for each element of `like` [B, K, n]."""
        zeros = like.new_zeros(like.shape)
        normal, _ = self.gaussian((zeros, zeros), 1, stream)
        return torch.special.ndtr(normal.double()).clamp(SMALLEST, 1.0 - 2.0**-53)
