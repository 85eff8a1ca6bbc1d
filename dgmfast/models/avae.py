"""The auxiliary variational auto-encoder with L layers (thesis §4.3; App. A eqs 1, 2 and 18–20)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dgmfast.models.base import GenerativeModel
from dgmfast.models.checks import check_flags, check_sizes
from dgmfast.models.noise import Noise
from dgmfast.models.terms import Encoding, Label, Latent, Terms
from dgmfast.nn import MLP, OUTPUTS, ConditionalGaussian, GaussianMLP, decode, fused_modules, lookup


class AVAE(GenerativeModel):
    """The auxiliary VAE with L layers: every latent z_i has an auxiliary variable a_i.

    The generative model is p(x|z₁) p(z_L) p(a_L|z_L) Π_{i<L} p(z_i|z_{i+1}) p(a_i|z_{≥i}). The inference model is q(a₁|x)
    q(z₁|a₁, x) Π_{i≥2} q(a_i|a_{i−1}, x) q(z_i|a_i, z_{i−1}). The other arguments are those of `VAE`.

    Args:
        latent: Sizes of z₁ … z_L.
        auxiliary: Sizes of a₁ … a_L; by default those of z, because the thesis gives none.
        uninformed: If true, p(a) is N(0, I). This is the ablation in which a cannot help.

    Raises:
        InputError: A setting is unknown or out of range.
    """

    def __init__(
        self,
        x_dim: int = 784,
        latent: Sequence[int] = (64, 32),
        hidden: Sequence[Sequence[int]] = ((512, 512), (256, 256)),
        auxiliary: Sequence[int] | None = None,
        activation: str = "leaky_relu",
        likelihood: str = "bernoulli",
        head: str = "log_var",
        batch_norm: bool = True,
        norm_heads: bool = False,
        uninformed: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(x_dim, latent, hidden)
        auxiliary = tuple(latent if auxiliary is None else auxiliary)
        check_sizes(x_dim, auxiliary, hidden)
        check_flags(batch_norm=batch_norm, norm_heads=norm_heads, uninformed=uninformed)
        self.x_dim, self.latent, self.uninformed = x_dim, tuple(latent), uninformed
        layers: dict[str, Any] = {"activation": activation, "batch_norm": batch_norm, "head": head, "norm_head": norm_heads}
        self.q_a, self.q_z, self.p_z, self.p_a = (nn.ModuleList() for _ in range(4))
        for i, (size, a_size, widths) in enumerate(zip(latent, auxiliary, hidden, strict=True)):
            if i == 0:
                self.q_a.append(GaussianMLP(x_dim, widths, a_size, **layers))
                self.q_z.append(ConditionalGaussian(a_size, widths, size, n_context=x_dim, **layers))
            else:
                self.q_a.append(ConditionalGaussian(auxiliary[i - 1], widths, a_size, n_context=x_dim, **layers))
                self.q_z.append(GaussianMLP(a_size + latent[i - 1], widths, size, **layers))
                self.p_z.append(GaussianMLP(size, widths[::-1], latent[i - 1], **layers))  # p(z_i | z_{i+1})
            if not uninformed:
                self.p_a.append(GaussianMLP(sum(latent[i:]), widths[::-1], a_size, **layers))
        self.decoder = MLP(latent[0], hidden[0][::-1], activation, batch_norm)
        self.output = lookup("likelihood", likelihood, OUTPUTS)(self.decoder.n_out, x_dim, head)

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        """The mean and log-variance of q(a₁|x), and the contributions of x to the first layers of q(z₁|·) and q(a_i|·)."""
        mean, log_var = self.q_a[0](x)
        encoding = {"mean": mean, "log_var": log_var}
        for name, q in {"q_z1": self.q_z[0], **{f"q_a{i + 1}": q for i, q in enumerate(self.q_a) if i > 0}}.items():
            assert isinstance(q, ConditionalGaussian)
            encoding[name] = q.context(x)
        return encoding

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Label = None) -> Terms:
        """Draw a₁, z₁, a₂, z₂, … in this order, and return the terms of the latents "a1" … and "z1" …."""
        q = encoding["mean"], encoding["log_var"]
        a = [Latent(*noise.gaussian(q, k, stream=0), (q[0].unsqueeze(1), q[1].unsqueeze(1)))]
        z: list[Latent] = []
        for i in range(len(self.latent)):
            if i > 0:
                q = self.q_a[i](a[-1].z, None, encoding[f"q_a{i + 1}"])
                a.append(Latent(*noise.gaussian(q, 1, stream=2 * i), q))
                q = self.q_z[i](torch.cat([a[i].z, z[-1].z], -1))
            else:
                q = self.q_z[0](a[0].z, None, encoding["q_z1"])
            z.append(Latent(*noise.gaussian(q, 1, stream=2 * i + 1), q))
        for i, p in enumerate(self.p_z):
            z[i].p = p(z[i + 1].z)
        z[-1].exact = True
        for i, a_i in enumerate(a):
            a_i.exact = self.uninformed
            if not self.uninformed:
                a_i.p = self.p_a[i](torch.cat([z_j.z for z_j in z[i:]], -1))
        latents = {f"a{i + 1}": a_i for i, a_i in enumerate(a)} | {f"z{i + 1}": z_i for i, z_i in enumerate(z)}
        return Terms(*decode(self.decoder, self.output, z[0].z, x.unsqueeze(1)), latents)

    def fused(self, device: torch.device) -> list[nn.Module]:
        """The modules that `draw` does not call on this device in evaluation (see nn.decode)."""
        return fused_modules(self.decoder, self.output, device)

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        """Draw z_L … z₁ from the prior, and return the decoder's output for z₁."""
        z = self.standard_normal(n, self.latent[-1], noise, stream=2 * len(self.p_z) + 1)
        for i in reversed(range(len(self.p_z))):
            z, _ = noise.gaussian(self.p_z[i](z), 1, stream=2 * i + 1)
        return self.decoder(z)
