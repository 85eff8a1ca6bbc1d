"""Small VAEs, binary rows, and log p(x) by quadrature."""

from __future__ import annotations

import math

import torch

from dgmfast import models, reference

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TWO_LAYERS = {"latent": (6, 3), "hidden": ((20, 15), (10,))}
SHAPES = [{"latent": (5,), "hidden": ((20,),)}, TWO_LAYERS, {"latent": (6, 4, 2), "hidden": ((20,), (), (7,))}]


def binary(rows: int, dim: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * dim)
    return (torch.rand(rows, dim, generator=generator) < 0.4).to(device, dtype)


def make(device: str = "cpu", seed: int = 0, **settings: object) -> models.VAE:
    torch.manual_seed(seed)
    return models.create("vae", x_dim=12, **settings).to(device)


def log_px_by_quadrature(model: models.VAE, x: torch.Tensor) -> torch.Tensor:
    """Returns log ∫ p(x|z) N(z; 0, 1) dz by the trapezoidal rule, for a model with a single one-dimensional latent."""
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    log_joint = reference.bernoulli_log_prob(model.output.logits(model.decoder(z.view(1, -1, 1))), x.unsqueeze(1))
    log_joint = log_joint + reference.gaussian_log_prob(z.view(1, -1, 1))
    return torch.logsumexp(log_joint, 1) + math.log(24 / 4000)
