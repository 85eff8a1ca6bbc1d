"""The ladder variational auto-encoder (thesis §5.1; App. B)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dgmfast import ops
from dgmfast.models.base import Encoding, Label, Latent, Noise
from dgmfast.models.vae import VAE
from dgmfast.nn import MLP, GaussianHead


class LVAE(VAE):
    """The generative model of the VAE, with an inference model that corrects it from the top down (eqs 5.1–5.4).

    d_n = MLP(d_{n−1}), d_0 = x, gives q̂(z_n) = N(μ̂_n, σ̂²_n) on the way up; on the way down q(z_L) = q̂(z_L), and q(z_n|·) is the
    precision-weighted merge of q̂(z_n) and p(z_n|z_{n+1}): σ² = 1/(σ̂⁻² + σ_p⁻²), μ = σ² (μ̂ σ̂⁻² + μ_p σ_p⁻²).
    Every layer's KL is exact, because q and p share their parents. Arguments as for VAE; the defaults are the thesis's.
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
    ) -> None:
        super().__init__(x_dim, latent, hidden, activation, likelihood, head, batch_norm, norm_heads)

    def _build_inference(self, sizes: Sequence[int], hidden: Sequence[Sequence[int]]) -> None:
        self.up, self.q = nn.ModuleList(), nn.ModuleList()
        n_in = self.x_dim
        for widths, size in zip(hidden, self.latent, strict=True):
            up = MLP(n_in, widths, self.settings["activation"], self.settings["batch_norm"])
            self.up.append(up)
            n_in = up.n_out
            self.q.append(GaussianHead(n_in, size, self.settings["head"], self.settings["norm_head"]))

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        encoding, d = {}, x
        for i, (up, q) in enumerate(zip(self.up, self.q, strict=True), start=1):
            d = up(d)
            encoding[f"mean{i}"], encoding[f"log_var{i}"] = q(d)
        return encoding

    def infer(self, encoding: Encoding, k: int, noise: Noise) -> dict[str, Latent]:
        latents: dict[str, Latent] = {}
        for i in range(len(self.latent), 0, -1):
            q, p = (encoding[f"mean{i}"].unsqueeze(1), encoding[f"log_var{i}"].unsqueeze(1)), None
            if i == len(self.latent):
                z, log_q = noise.gaussian((encoding[f"mean{i}"], encoding[f"log_var{i}"]), k, stream=i - 1)
            else:
                p = self.p[i - 1](z)
                q = ops.gaussian_merge(*q, *p)
                z, log_q = noise.gaussian(q, 1, stream=i - 1)
            latents[f"z{i}"] = Latent(z, log_q, q, p, exact=True)
        return dict(reversed(latents.items()))
