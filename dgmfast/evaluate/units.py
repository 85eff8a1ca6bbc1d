"""The KL divergence of each latent unit, and how many units are active."""

from __future__ import annotations

import torch
from torch import Tensor

from dgmfast.evaluate.passes import in_blocks
from dgmfast.models import GenerativeModel, Label, Noise, SampledLabel


@torch.no_grad()
def kl_units(model: GenerativeModel, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The mean KL of each latent unit over the rows x [N, D], [D_i] in nats for each latent, from one sample per row.

    The KL is analytic where it is exact. Otherwise it is log q − log p at the sample, whose mean may be negative. A label is
    drawn from q(y|·). Without rows, the means are NaN.

    Raises:
        InputError: The model does not take x.
    """
    x = model.rows(x)
    model.check("kl_units", x, None)
    label: Label = SampledLabel() if model.num_classes else None

    def units(part: Tensor, first: int) -> Tensor:
        terms = model.draw(model.encode(part, label), part, 1, Noise(seed, first), label)
        sizes.update({name: latent.z.shape[-1] for name, latent in terms.latents.items()})
        return torch.cat([part.new_zeros(len(part), 0), *(latent.kl_units().flatten(1) for latent in terms.latents.values())], 1)

    sizes: dict[str, int] = {}
    means = in_blocks(model, x, units).mean(0)
    return dict(zip(sizes, means.split(list(sizes.values())), strict=True))


def active_units(units: dict[str, Tensor], threshold: float = 0.01) -> dict[str, int]:
    """The number of units of each latent whose mean KL is above `threshold` nats."""
    return {name: int((kl > threshold).sum()) for name, kl in units.items()}
