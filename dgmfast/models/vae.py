"""The variational auto-encoder with L latent layers (thesis ch. 3; M1 of Kingma et al. 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dgmfast.models.base import GenerativeModel, abstract_method
from dgmfast.models.checks import check_flags, check_sizes
from dgmfast.models.noise import Noise
from dgmfast.models.terms import Encoding, Label, Latent, Terms
from dgmfast.nn import MLP, OUTPUTS, GaussianMLP, decode, fused_modules, lookup


class HierarchicalVAE(GenerativeModel):
    """p(x|z₁) Π_{i<L} p(z_i|z_{i+1}) p(z_L), p(z_L) = N(0, I): what VAE, LVAE and FAME share.

    A subclass makes p, p[i] = p(z_{i+1}|z_{i+2}), the decoder and the output, and defines `encode` and `infer`.
    """

    latent: tuple[int, ...]
    p: nn.ModuleList
    decoder: nn.Module

    def infer(self, encoding: Encoding, k: int, noise: Noise) -> dict[str, Latent]:
        """z₁ … z_L from q, each [B, k, D_i], with their priors."""
        raise abstract_method(self, "infer")

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Label = None) -> Terms:
        latents = self.infer(encoding, k, noise)
        return Terms(*decode(self.decoder, self.output, latents["z1"].z, x.unsqueeze(1)), latents)

    def fused(self, device: torch.device) -> list[nn.Module]:
        return fused_modules(self.decoder, self.output, device)

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        z = self.standard_normal(n, self.latent[-1], noise, stream=len(self.p))
        for i in reversed(range(len(self.p))):
            z, _ = noise.gaussian(self.p[i](z), 1, stream=i)
        return self.decoder(z)

    def _add_mlps_of_p(self, hidden: Sequence[Sequence[int]], likelihood: str, layers: dict[str, Any]) -> None:
        """p and the decoder as MLPs, the widths of each in reverse, and the output."""
        z = self.latent
        self.p = nn.ModuleList(GaussianMLP(z[i], hidden[i][::-1], z[i - 1], **layers) for i in range(1, len(z)))
        decoder = MLP(z[0], hidden[0][::-1], layers["activation"], layers["batch_norm"])
        self.decoder = decoder
        self.output = lookup("likelihood", likelihood, OUTPUTS)(decoder.n_out, self.x_dim, layers["head"])


class VAE(HierarchicalVAE):
    """p(x|z₁) Π_{i<L} p(z_i|z_{i+1}) p(z_L), p(z_L) = N(0, I); q(z₁|x) Π_{i>1} q(z_i|z_{i−1}) bottom-up (eq. 3.35).

    latent: the sizes of z₁ … z_L. hidden: per layer, the widths of the MLP between z_{i−1} and z_i (z₀ = x), used upwards by q
    and in reverse by p. likelihood: "bernoulli" or "gaussian". head: "log_var" or "softplus" (see GaussianHead). batch_norm: in
    the MLPs; norm_heads: in the mean and variance layers of the latents too (App. B).
    """

    def __init__(
        self,
        x_dim: int = 784,
        latent: Sequence[int] = (50,),
        hidden: Sequence[Sequence[int]] = ((200, 200),),
        activation: str = "tanh",
        likelihood: str = "bernoulli",
        head: str = "log_var",
        batch_norm: bool = False,
        norm_heads: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(x_dim, latent, hidden)
        check_flags(batch_norm=batch_norm, norm_heads=norm_heads)
        self.x_dim, self.latent = x_dim, tuple(latent)
        layers: dict[str, Any] = {"activation": activation, "batch_norm": batch_norm, "head": head, "norm_head": norm_heads}
        sizes = (x_dim, *latent)
        # q[i]: q(z_{i+1} | z_i) with z_0 = x
        self.q = nn.ModuleList(GaussianMLP(sizes[i], hidden[i], sizes[i + 1], **layers) for i in range(len(latent)))
        self._add_mlps_of_p(hidden, likelihood, layers)

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        mean, log_var = self.q[0](x)
        return {"mean": mean, "log_var": log_var}

    def infer(self, encoding: Encoding, k: int, noise: Noise) -> dict[str, Latent]:
        q = encoding["mean"], encoding["log_var"]
        z, log_q = noise.gaussian(q, k, stream=0)
        latents = [Latent(z, log_q, (q[0].unsqueeze(1), q[1].unsqueeze(1)))]
        for i, q_i in enumerate(self.q[1:], start=1):
            q = q_i(latents[-1].z)
            latents.append(Latent(*noise.gaussian(q, 1, stream=i), q))
        for i, p_i in enumerate(self.p):
            latents[i].p = p_i(latents[i + 1].z)
        latents[-1].exact = True  # Of a bottom-up q alone this KL is its layer's term.
        return {f"z{i + 1}": latent for i, latent in enumerate(latents)}
