"""The variational auto-encoder with L latent layers (thesis ch. 3; M1 of Kingma et al. 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from dgmfast import ops
from dgmfast.errors import InputError
from dgmfast.models.base import Encoding, GenerativeModel, Noise, Terms
from dgmfast.nn import MLP, OUTPUTS, GaussianMLP, choose


class VAE(GenerativeModel):
    """p(x|z₁) Π_{i<L} p(z_i|z_{i+1}) p(z_L), p(z_L) = N(0, I); q(z₁|x) Π_{i>1} q(z_i|z_{i−1}) bottom-up (eq. 3.35).

    latent: the sizes of z₁ … z_L. hidden: per layer, the widths of the MLP between z_{i−1} and z_i (z₀ = x), used upwards by q
    and in reverse by p. likelihood: "bernoulli" or "gaussian". head: "log_var" or "softplus" (see GaussianHead).
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
    ) -> None:
        super().__init__()
        _check_sizes(x_dim, latent, hidden)
        if not isinstance(batch_norm, bool):
            raise InputError(f"batch_norm must be true or false; got {batch_norm!r}")
        self.x_dim, self.latent = x_dim, tuple(latent)
        sizes = (x_dim, *latent)
        settings: dict[str, Any] = {"activation": activation, "batch_norm": batch_norm, "head": head}
        # q[i]: q(z_{i+1} | z_i) with z_0 = x; p[i]: p(z_{i+1} | z_{i+2})
        self.q = nn.ModuleList(GaussianMLP(sizes[i], hidden[i], sizes[i + 1], **settings) for i in range(len(latent)))
        self.p = nn.ModuleList(GaussianMLP(sizes[i + 1], hidden[i][::-1], sizes[i], **settings) for i in range(1, len(latent)))
        self.decoder = MLP(latent[0], hidden[0][::-1], activation, batch_norm)
        self.output = choose("likelihood", likelihood, OUTPUTS)(self.decoder.n_out, x_dim, head)

    def encode(self, x: Tensor, y: Tensor | None = None) -> Encoding:
        mean, log_var = self.q[0](x)
        return {"mean": mean, "log_var": log_var}

    def _infer(self, encoding: Encoding, k: int, noise: Noise) -> tuple[list[Tensor], dict[str, Tensor], Tensor]:
        """z₁ … z_L from q, each [B, k, D_i]; log q(z_i|z_{i−1}) by name; and KL(q(z_L|z_{L−1}) ‖ N(0, I)), the one exact KL."""
        mean, log_var = encoding["mean"], encoding["log_var"]
        z, log_q = noise.gaussian(mean, log_var, k, stream=0)
        latents, log_qs = [z], {"z1": log_q}
        for i, q in enumerate(self.q[1:], start=1):
            mean, log_var = q(latents[-1])
            z, log_qs[f"z{i + 1}"] = noise.gaussian(mean, log_var, 1, stream=i)
            latents.append(z)
        kl = ops.gaussian_kl(mean, log_var)
        return latents, log_qs, kl if kl.dim() == 2 else kl.unsqueeze(1).expand(-1, k)

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Tensor | None = None) -> Terms:
        latents, log_q, kl = self._infer(encoding, k, noise)
        log_p = {}
        for i, p in enumerate(self.p):
            log_p[f"z{i + 1}"] = ops.gaussian_log_prob(latents[i], *p(latents[i + 1]))
        top = f"z{len(self.latent)}"
        log_p[top] = ops.gaussian_log_prob(latents[-1])
        log_px = self.output.log_prob(self.decoder(latents[0]), x.unsqueeze(1))
        return Terms(log_px, log_p, log_q, {top: kl})

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        zeros = next(self.parameters()).new_zeros(n, self.latent[-1])
        z, _ = noise.gaussian(zeros, zeros, 1, stream=len(self.p))
        for i in reversed(range(len(self.p))):
            mean, log_var = self.p[i](z)
            z, _ = noise.gaussian(mean, log_var, 1, stream=i)
        return self.output.mean(self.decoder(z)).squeeze(1)

    def posterior_mean(self, encoding: Encoding, noise: Noise, y: Tensor | None = None) -> Tensor:
        latents, _, _ = self._infer(encoding, 1, noise)
        return self.output.mean(self.decoder(latents[0])).squeeze(1)

    def latent_means(self, encoding: Encoding) -> dict[str, Tensor]:
        means = [encoding["mean"]]
        for q in self.q[1:]:
            means.append(q(means[-1])[0])
        return {f"z{i + 1}": mean for i, mean in enumerate(means)}

    @torch.no_grad()
    def start_at(self, mean: Tensor) -> None:
        """Let the untrained p(x|z) have the data's mean [D]."""
        self.output.start_at(mean)


def _check_sizes(x_dim: int, latent: Sequence[int], hidden: Sequence[Sequence[int]]) -> None:
    try:
        sizes = [x_dim, *latent, *(width for widths in hidden for width in widths)]
    except TypeError as error:
        raise InputError(f"latent must be a list of sizes and hidden a list of such lists; got {latent!r}, {hidden!r}") from error
    if not all(isinstance(size, Integral) and size >= 1 for size in sizes):
        raise InputError(f"x_dim, latent and hidden must be positive whole numbers; got {x_dim!r}, {latent!r}, {hidden!r}")
    if not latent or len(hidden) != len(latent):
        raise InputError(f"hidden must give one MLP per latent layer, and there must be one layer; got {latent!r}, {hidden!r}")
