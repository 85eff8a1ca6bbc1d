"""The noise of a draw, by its coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgmfast import ops
from dgmfast.seeds import seed_or_drawn

Gaussian = tuple[Tensor, Tensor]  # mean, log_var
Seed = int | Tensor | None  # of a draw; None: a new one from torch's generator

SMALLEST = 2.0**-60  # keeps log u finite


@dataclass(frozen=True)
class Noise:
    """Where the noise of a draw comes from: row i, sample j, stream s always give the same numbers under one seed.

    seed: an int, or a 0-dim int64 tensor on the model's device. first_row, first_sample: the coordinates of the first draw.
    """

    seed: int | Tensor
    first_row: int = 0
    first_sample: int = 0

    def gaussian(self, q: Gaussian, k: int, stream: int) -> tuple[Tensor, Tensor]:
        """z ~ q and log q(z), q = (mean, log_var): k draws of each row of [B, D], or one (k = 1) of each of [B, K, D]."""
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
        """The noise of `seed`; where it is None, of a new seed from `generator`, by default torch's own of the device."""
        return cls(seed_or_drawn(caller, seed, generator, device), first_row, first_sample)

    @torch.no_grad()
    def uniform(self, like: Tensor, stream: int) -> Tensor:
        """u in (0, 1), float64, for each element of `like` [B, K, n]."""
        zeros = like.new_zeros(like.shape)
        normal, _ = self.gaussian((zeros, zeros), 1, stream)
        return torch.special.ndtr(normal.double()).clamp(SMALLEST, 1.0 - 2.0**-53)
