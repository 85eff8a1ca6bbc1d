"""The ladder variational auto-encoder (thesis §5.1; App. B)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dgmfast import ops
from dgmfast.models.checks import check_flags, check_sizes
from dgmfast.models.noise import Gaussian, Noise
from dgmfast.models.terms import Encoding, Label, Latent
from dgmfast.models.vae import HierarchicalVAE
from dgmfast.nn import MLP, ConditionalMLP, GaussianHead, GaussianMLP, RowWise


def upward_layers(
    n_in: int,
    latent: Sequence[int],
    hidden: Sequence[Sequence[int]],
    activation: str,
    batch_norm: bool,
    head: str,
    norm_head: bool,
    encoder: nn.Module | None = None,
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Create the MLPs and the heads of `climb`. An MLP without layers passes d on unchanged."""
    up, heads = nn.ModuleList(), nn.ModuleList()
    for widths, size in zip(hidden, latent, strict=True):
        given = encoder if not up else None
        mlp: MLP | RowWise = MLP(n_in, widths, activation, batch_norm) if given is None else RowWise(given, n_in, "encoder")
        n_in = mlp.n_out
        up.append(mlp)
        heads.append(GaussianHead(n_in, size, head, norm_head))
    return up, heads


def climb(up: nn.ModuleList, heads: nn.ModuleList, d: Tensor) -> list[Gaussian]:
    """The upward pass q̂(z_n) = head_n(d_n) with d_n = MLP_n(d_{n−1}), for n = 1 … L (eqs 5.1–5.3)."""
    q_hat = []
    for mlp, head in zip(up, heads, strict=True):
        d = mlp(d)
        q_hat.append(head(d))
    return q_hat


class Ladder(HierarchicalVAE):
    """The inference model of the LVAE, which corrects the generative model from the top down (eqs 5.1–5.4).

    The upward pass computes d_n = up_n(d_{n−1}) with d_0 = x, and from it q̂(z_n) = N(μ̂_n, σ̂²_n). The downward pass starts from
    q(z_L) = q̂(z_L). Below, q(z_n|·) is the precision-weighted product of q̂(z_n) and p(z_n|z_{n+1}): σ² = 1/(σ̂⁻² + σ_p⁻²) and μ
    = σ² (μ̂ σ̂⁻² + μ_p σ_p⁻²). Every layer's KL is exact, because q and p have the same parents.
    """

    up: nn.ModuleList
    q: nn.ModuleList

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        """The mean and log-variance of each q̂(z_n), from the upward pass."""
        encoding = {}
        for i, (mean, log_var) in enumerate(climb(self.up, self.q, x), start=1):
            encoding[f"mean{i}"], encoding[f"log_var{i}"] = mean, log_var
        return encoding

    def infer(self, encoding: Encoding, k: int, noise: Noise) -> dict[str, Latent]:
        """Draw z_L … z₁ in the downward pass."""
        layers = range(1, len(self.latent) + 1)
        return self._descend(
            [(encoding[f"mean{i}"].unsqueeze(1), encoding[f"log_var{i}"].unsqueeze(1)) for i in layers], k, noise
        )

    def _descend(self, q_hat: list[Gaussian], k: int, noise: Noise) -> dict[str, Latent]:
        """Draw z_L … z_1 from the top down, given q̂ of z₁ … z_L, each for 1 or k samples of a row."""
        mean, log_var = q_hat[-1]
        top: Gaussian = (mean.expand(-1, k, -1), log_var.expand(-1, k, -1))
        latents = [Latent(*noise.gaussian(top, 1, stream=len(q_hat) - 1), q_hat[-1], exact=True)]
        for i in range(len(q_hat) - 2, -1, -1):
            p = self.p[i](latents[-1].z)
            q = ops.gaussian_merge(*q_hat[i], *p)
            latents.append(Latent(*noise.gaussian(q, 1, stream=i), q, p, exact=True))
        return {f"z{i + 1}": latent for i, latent in enumerate(reversed(latents))}


class LVAE(Ladder):
    """The ladder VAE: the generative model of `VAE` with the inference model of `Ladder` (eqs 5.1–5.4).

    The arguments are those of `VAE`; the defaults are the thesis's.
    """

    def __init__(
        self,
        x_dim: int = 784,
        latent: Sequence[int] = (64, 32, 16, 8, 4),
        hidden: Sequence[Sequence[int]] = ((512, 512), (256, 256), (128, 128), (64, 64), (32, 32)),
        activation: str = "leaky_relu",
        likelihood: str = "bernoulli",
        head: str = "softplus",
        batch_norm: bool = True,
        norm_heads: bool = True,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_sizes(x_dim, latent, hidden)
        check_flags(batch_norm=batch_norm, norm_heads=norm_heads)
        self.x_dim, self.latent = x_dim, tuple(latent)
        layers: dict[str, Any] = {"activation": activation, "batch_norm": batch_norm, "head": head, "norm_head": norm_heads}
        self.up, self.q = upward_layers(x_dim, latent, hidden, **layers, encoder=encoder)
        self._add_mlps_of_p(hidden, likelihood, layers, decoder)


class AuxiliaryLVAE(LVAE):
    """The LVAE with an auxiliary variable a, which thesis §7 proposes.

    q(a|x) comes before the upward pass, which sees [x, a]. The generative model adds p(a|z₁ … z_L). The other arguments are those
    of `LVAE`.

    Args:
        auxiliary: Size of a.
    """

    def __init__(
        self,
        x_dim: int = 784,
        latent: Sequence[int] = (64, 32, 16, 8, 4),
        hidden: Sequence[Sequence[int]] = ((512, 512), (256, 256), (128, 128), (64, 64), (32, 32)),
        auxiliary: int = 64,
        activation: str = "leaky_relu",
        likelihood: str = "bernoulli",
        head: str = "softplus",
        batch_norm: bool = True,
        norm_heads: bool = True,
    ) -> None:
        super().__init__(x_dim, latent, hidden, activation, likelihood, head, batch_norm, norm_heads)
        layers: dict[str, Any] = {"activation": activation, "batch_norm": batch_norm, "head": head, "norm_head": norm_heads}
        self.q_a = GaussianMLP(x_dim, hidden[0], auxiliary, **layers)
        self.p_a = GaussianMLP(sum(latent), hidden[0][::-1], auxiliary, **layers)
        self.first = ConditionalMLP(auxiliary, hidden[0], activation, batch_norm, n_context=x_dim)
        self.up[0] = nn.Identity()  # `first` takes its place

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        """The mean and log-variance of q(a|x), and the contribution of x to the first layer of the upward pass."""
        mean, log_var = self.q_a(x)
        return {"mean": mean, "log_var": log_var, "context": self.first.context(x)}

    def infer(self, encoding: Encoding, k: int, noise: Noise) -> dict[str, Latent]:
        """Draw a, compute the upward pass from [x, a], and draw z_L … z₁ in the downward pass."""
        q_a = encoding["mean"], encoding["log_var"]
        a, log_q = noise.gaussian(q_a, k, stream=len(self.latent))
        d = self.first(a, None, encoding["context"])
        latents = self._descend(climb(self.up, self.q, d), k, noise)
        p_a = self.p_a(torch.cat([latent.z for latent in latents.values()], -1))
        return {**latents, "a": Latent(a, log_q, (q_a[0].unsqueeze(1), q_a[1].unsqueeze(1)), p_a)}
