"""Whole training scripts as users have them: a VAE in plain PyTorch and with torch.distributions, and pythae's IWAE.

Each script draws its own noise, and none of them calls dgmfast. pythae is optional and imported only when asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.nn import functional as F


class ScriptVAE(nn.Module):
    """The VAE 784-400-20 of PyTorch's examples, in our own words."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(784, 400)
        self.mean, self.log_var = nn.Linear(400, 20), nn.Linear(400, 20)
        self.hidden, self.output = nn.Linear(20, 400), nn.Linear(400, 784)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.encoder(x))
        return self.mean(h), self.log_var(h)

    def reparameterise(self, mean: Tensor, log_var: Tensor) -> Tensor:
        std = torch.exp(0.5 * log_var)
        return mean + std * torch.randn_like(std)

    def logits(self, z: Tensor) -> Tensor:
        return self.output(F.relu(self.hidden(z)))


def script_loss(model: ScriptVAE, x: Tensor) -> Tensor:
    """Returns the summed binary cross-entropy of the decoder's probabilities plus the KL divergence in closed form."""
    mean, log_var = model.encode(x)
    probs = torch.sigmoid(model.logits(model.reparameterise(mean, log_var)))
    return F.binary_cross_entropy(probs, x, reduction="sum") + script_kl(mean, log_var)


def logits_loss(model: ScriptVAE, x: Tensor) -> Tensor:
    """Returns the same loss from the logits, as a user can write it without a library."""
    mean, log_var = model.encode(x)
    logits = model.logits(model.reparameterise(mean, log_var))
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + script_kl(mean, log_var)


def script_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    return -0.5 * torch.sum(1.0 + log_var - mean.square() - log_var.exp())


def distributions_loss(model: ScriptVAE, x: Tensor) -> Tensor:
    """Returns the same loss from torch.distributions, with argument validation off."""
    mean, log_var = model.encode(x)
    q = Normal(mean, torch.exp(0.5 * log_var), validate_args=False)
    prior = Normal(0.0, 1.0, validate_args=False)
    pixels = Bernoulli(logits=model.logits(q.rsample()), validate_args=False)
    log_px = Independent(pixels, 1, validate_args=False).log_prob(x)
    return (kl_divergence(q, prior).sum(-1) - log_px).sum()


def pythae_iwae(k: int) -> Any:
    """Returns pythae's IWAE with K = k samples, latent size 16 and its default networks; raises ImportError without pythae."""
    from pythae.models import IWAE, IWAEConfig

    return IWAE(IWAEConfig(input_dim=(784,), latent_dim=16, reconstruction_loss="bce", number_samples=k))


def pythae_loss(model: Any, x: Tensor) -> Tensor:
    """Returns the loss that pythae's trainer minimises. torch.compile knows the key "loss", but not the attribute `.loss`."""
    return model({"data": x})["loss"]


def pythae_log_weights(recon_x: Tensor, x: Tensor, mean: Tensor, log_var: Tensor, z: Tensor) -> Tensor:
    """Returns log w [B, K], as `IWAE.loss_function` of pythae computes it from these arguments."""
    pixels = F.binary_cross_entropy(recon_x, x.unsqueeze(1).expand_as(recon_x), reduction="none").sum(-1)
    log_q = -0.5 * (log_var + (z - mean).square() / log_var.exp()).sum(-1)
    return -0.5 * z.square().sum(-1) - log_q - pixels
