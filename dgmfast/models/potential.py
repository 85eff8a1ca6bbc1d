"""An auxiliary variational fit of a two-dimensional density (thesis §4.3; App. A §4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dgmfast import ops
from dgmfast.models.base import GenerativeModel
from dgmfast.models.noise import Noise, Seed
from dgmfast.models.terms import Encoding, Label, Latent, Terms
from dgmfast.nn import GaussianMLP

LOG_Z = 1.8775  # log ∫ exp(−U(z)) dz
A, Z = 0, 1  # noise streams


class Potential(GenerativeModel):
    """A variational fit of q(z) = ∫ q(a) q(z|a) da, with p(a|z), to a density p(z) ∝ exp(−U(z)) (eq. 4.18).

    It is the AVAE with a density in place of data. U(z) = ½ ((‖z‖ − 2)/0.4)² − log(e^{−½((z₁−2)/0.6)²} + e^{−½((z₁+2)/0.6)²}).
    The bound is on log Z = 1.8775 nats. A bound above log Z − log 2 proves that q covers both modes, because a q with one mode
    cannot reach it. x carries no data; only its number of rows counts.

    Args:
        x_dim: Size of the rows of x.
        auxiliary: Size of a.
        hidden: Widths of both networks.
        activation: A key of `nn.ACTIVATIONS`.
        uninformed: If true, p(a) = N(0, I) replaces p(a|z).
    """

    def __init__(
        self,
        x_dim: int = 1,
        auxiliary: int = 4,
        hidden: Sequence[int] = (20, 20, 20),
        activation: str = "tanh",
        uninformed: bool = False,
    ) -> None:
        super().__init__()
        self.x_dim = x_dim
        self.q_a = nn.Parameter(torch.zeros(2, auxiliary))  # mean and log-variance
        self.q_z = GaussianMLP(auxiliary, hidden, 2, activation)
        self.p_a = None if uninformed else GaussianMLP(2, hidden, auxiliary, activation)
        self._spread_out()

    def _spread_out(self) -> None:
        """Initialise q(z) as wide as the ring. A narrow initial q(z) finds one mode and stays there."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=5.0 / 3.0)
        nn.init.xavier_uniform_(self.q_z.gaussian.mean.weight, gain=4.0)  # type: ignore[arg-type]

    @staticmethod
    def log_target(z: Tensor) -> Tensor:
        """The log-density −U(z), not normalised: [..., 2] -> [...]."""
        first = z[..., 0]
        modes = torch.logaddexp(-0.5 * ((first - 2.0) / 0.6) ** 2, -0.5 * ((first + 2.0) / 0.6) ** 2)
        radius = (z.square().sum(-1) + 1e-12).sqrt()  # the constant makes the gradient finite at 0
        return modes - 0.5 * ((radius - 2.0) / 0.4) ** 2

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        """The mean and log-variance of q(a), repeated for each row of x."""
        mean, log_var = self.q_a.unsqueeze(1).expand(-1, x.shape[0], -1)
        return {"mean": mean, "log_var": log_var}

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Label = None) -> Terms:
        """Draw a and z, and return the terms of the latents "a" and "z". log_px is −U(z) without z's prior."""
        q_a = encoding["mean"], encoding["log_var"]
        a, log_q_a = noise.gaussian(q_a, k, A)
        q_z = self.q_z(a)
        z, log_q_z = noise.gaussian(q_z, 1, Z)
        p_a = None if self.p_a is None else self.p_a(z)
        latents = {
            "a": Latent(a, log_q_a, (q_a[0].unsqueeze(1), q_a[1].unsqueeze(1)), p_a, exact=p_a is None),
            "z": Latent(z, log_q_z, q_z),
        }
        # exp(−U) takes the place of p(x|z) p(z). Terms will add z's prior N(0, I), so it is subtracted here.
        return Terms(z, self.log_target(z) - ops.gaussian_log_prob(z), latents)

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        """Raise TypeError, because there is no p(x|z) to sample from; see `sample_q`."""
        raise TypeError("a potential has no p(x|z) to sample from: sample_q draws from q(z)")

    @torch.no_grad()
    def sample_q(self, n: int, seed: Seed = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw n samples from q(z) = ∫ q(a) q(z|a) da, [n, 2]."""
        noise = Noise.of("sample_q", seed, generator, self.q_a.device)
        a, _ = noise.gaussian((self.q_a[:1], self.q_a[1:]), n, A)
        z, _ = noise.gaussian(self.q_z(a), 1, Z)
        return z.squeeze(0)
