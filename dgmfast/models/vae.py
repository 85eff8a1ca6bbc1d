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
from dgmfast.nn import MLP, OUTPUTS, GaussianMLP, RowWise, decode, fused_modules, lookup


class HierarchicalVAE(GenerativeModel):
    """The generative model p(x|z₁) Π_{i<L} p(z_i|z_{i+1}) p(z_L) with p(z_L) = N(0, I), the common base of VAE, LVAE and FAME.

    A subclass creates `p`, where p[i] = p(z_{i+1}|z_{i+2}), the decoder and the output, and defines `encode` and `infer`.
    """

    latent: tuple[int, ...]
    p: nn.ModuleList
    decoder: nn.Module

    def infer(self, encoding: Encoding, k: int, noise: Noise) -> dict[str, Latent]:
        """Draw z₁ … z_L from q, each [B, k, D_i], and return them with their priors."""
        raise abstract_method(self, "infer")

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Label = None) -> Terms:
        """Draw z₁ … z_L, decode z₁, and return the terms of the latents "z1" … "zL"."""
        latents = self.infer(encoding, k, noise)
        return Terms(*decode(self.decoder, self.output, latents["z1"].z, x.unsqueeze(1)), latents)

    def fused(self, device: torch.device) -> list[nn.Module]:
        """The modules that `draw` does not call on this device in evaluation (see nn.decode)."""
        return fused_modules(self.decoder, self.output, device)

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        """Draw z_L … z₁ from the prior, and return the decoder's output for z₁."""
        z = self.standard_normal(n, self.latent[-1], noise, stream=len(self.p))
        for i in reversed(range(len(self.p))):
            z, _ = noise.gaussian(self.p[i](z), 1, stream=i)
        return self.decoder(z)

    def _add_mlps_of_p(
        self, hidden: Sequence[Sequence[int]], likelihood: str, layers: dict[str, Any], decoder: nn.Module | None
    ) -> None:
        """Add p and the decoder, MLPs with the widths of q's in reverse order unless a decoder is given; and add the output."""
        z = self.latent
        self.p = nn.ModuleList(GaussianMLP(z[i], hidden[i][::-1], z[i - 1], **layers) for i in range(1, len(z)))
        p_x: MLP | RowWise = (
            MLP(z[0], hidden[0][::-1], layers["activation"], layers["batch_norm"])
            if decoder is None
            else RowWise(decoder, z[0], "decoder")
        )
        self.decoder = p_x
        self.output = lookup("likelihood", likelihood, OUTPUTS)(p_x.n_out, self.x_dim, layers["head"])


class VAE(HierarchicalVAE):
    """The variational auto-encoder with L latent layers and a bottom-up inference model (eq. 3.35).

    The generative model is p(x|z₁) Π_{i<L} p(z_i|z_{i+1}) p(z_L) with p(z_L) = N(0, I). The inference model is q(z₁|x) Π_{i>1}
    q(z_i|z_{i−1}).

    Args:
        x_dim: Size of x.
        latent: Sizes of z₁ … z_L.
        hidden: For each layer, the widths of the MLP between z_{i−1} and z_i (with z₀ = x). q uses them in this order, p in
            reverse.
        activation: A key of `nn.ACTIVATIONS`.
        likelihood: A key of `nn.OUTPUTS`: "bernoulli", "gaussian" or "pixelcnn".
        head: "log_var" or "softplus" (see `nn.GaussianHead`).
        batch_norm: If true, normalise the layers of the MLPs.
        norm_heads: If true, normalise the mean and variance layers of the latents too (App. B).
        encoder: A module [N, x_dim] -> [N, ...] to use instead of the MLP from x to the mean and log-variance layers of z₁.
        decoder: A module [N, latent[0]] -> [N, ...] to use instead of the MLP from z₁ to the last layer of p(x|z₁).

    Raises:
        InputError: A setting is unknown or out of range.
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
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_sizes(x_dim, latent, hidden)
        check_flags(batch_norm=batch_norm, norm_heads=norm_heads)
        self.x_dim, self.latent = x_dim, tuple(latent)
        layers: dict[str, Any] = {"activation": activation, "batch_norm": batch_norm, "head": head, "norm_head": norm_heads}
        sizes = (x_dim, *latent)
        # q[i] is q(z_{i+1} | z_i), with z_0 = x.
        first = None if encoder is None else RowWise(encoder, x_dim, "encoder")
        self.q = nn.ModuleList(
            GaussianMLP(sizes[i], hidden[i], sizes[i + 1], **layers, mlp=None if i else first) for i in range(len(latent))
        )
        self._add_mlps_of_p(hidden, likelihood, layers, decoder)

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        """The mean and log-variance of q(z₁|x)."""
        mean, log_var = self.q[0](x)
        return {"mean": mean, "log_var": log_var}

    def infer(self, encoding: Encoding, k: int, noise: Noise) -> dict[str, Latent]:
        """Draw z₁ … z_L bottom-up, each given the latent below it."""
        q = encoding["mean"], encoding["log_var"]
        z, log_q = noise.gaussian(q, k, stream=0)
        latents = [Latent(z, log_q, (q[0].unsqueeze(1), q[1].unsqueeze(1)))]
        for i, q_i in enumerate(self.q[1:], start=1):
            q = q_i(latents[-1].z)
            latents.append(Latent(*noise.gaussian(q, 1, stream=i), q))
        for i, p_i in enumerate(self.p):
            latents[i].p = p_i(latents[i + 1].z)
        # Only the top layer's p has no parents. The parents of the others depend on z under a bottom-up q.
        latents[-1].exact = True
        return {f"z{i + 1}": latent for i, latent in enumerate(latents)}
