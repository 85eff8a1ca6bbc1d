"""The cluster-aware generative model (thesis §4.6; App. C)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dgmfast.errors import InputError, check_count
from dgmfast.models.checks import check_flags, check_widths
from dgmfast.models.label_model import LabelModel
from dgmfast.models.labels import ExactSum, Labels
from dgmfast.models.noise import Noise, Seed
from dgmfast.models.terms import Encoding, Label, Latent, Terms
from dgmfast.nn import OUTPUTS, ConditionalCategorical, ConditionalGaussian, ConditionalMLP, GaussianMLP, lookup

Z1, Z2 = 0, 1  # noise streams


class CaGeM(LabelModel):
    """The cluster-aware generative model (eqs 4.24–4.29).

    The generative model is p(x|y, z₁) p(z₁|y, z₂) p(y|z₂) p(z₂), and the inference model q(z₁|x) q(y|z₁, x) q(z₂|x, y, z₁).

    Labelled rows train only the two classifiers q(y|z₁, x) and p(y|z₂): their cross-entropies have no gradient to other weights
    (eq. 4.33). The class probabilities are p(y|x) = E Σ_ỹ q(ỹ|z₁, x) p(y|z₂) with z₂ ~ q(z₂|x, ỹ, z₁) (eq. 4.32).

    Args:
        x_dim: Size of x.
        num_classes: Number of labels, or of clusters if there are no labels.
        latent: Sizes of z₁ and z₂. The figure of the latent grid needs a z₂ of size 2.
        hidden1: Widths of the MLPs of z₁ and x.
        hidden2: Widths of the MLPs of z₂ and y.
        activation: A key of `nn.ACTIVATIONS`.
        likelihood: A key of `nn.OUTPUTS`: "bernoulli", "gaussian" or "pixelcnn".
        head: "log_var" or "softplus" (see `nn.GaussianHead`).
        batch_norm: If true, normalise the layers of the MLPs.

    Raises:
        InputError: A setting is unknown or out of range.
    """

    clusters = True

    def __init__(
        self,
        x_dim: int = 784,
        num_classes: int = 10,
        latent: Sequence[int] = (64, 32),
        hidden1: Sequence[int] = (1024, 1024),
        hidden2: Sequence[int] = (512, 512),
        activation: str = "relu",
        likelihood: str = "bernoulli",
        head: str = "log_var",
        batch_norm: bool = True,
    ) -> None:
        super().__init__(num_classes)
        check_widths(x_dim=x_dim, latent=latent, hidden1=hidden1, hidden2=hidden2)
        check_flags(batch_norm=batch_norm)
        if len(latent) != 2:
            raise InputError(f"latent must name the sizes of z1 and z2; got {list(latent)}")
        self.x_dim, self.latent = x_dim, tuple(latent)
        size1, size2 = latent
        layers = (activation, batch_norm)
        self.q_z1 = GaussianMLP(x_dim, hidden1, size1, *layers, head)
        self.q_y = ConditionalCategorical(size1, hidden2, num_classes, *layers, n_context=x_dim)
        self.q_z2 = ConditionalGaussian(size1, hidden2, size2, *layers, head, n_context=x_dim, num_classes=num_classes)
        self.p_y = ConditionalCategorical(size2, hidden2, num_classes, *layers)
        self.p_z1 = ConditionalGaussian(size2, hidden1, size1, *layers, head, num_classes=num_classes)
        self.p_x = ConditionalMLP(size1, hidden1, *layers, num_classes=num_classes)
        self.output = lookup("likelihood", likelihood, OUTPUTS)(self.p_x.n_out, x_dim, head)

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        """The mean and log-variance of q(z₁|x), and the contributions of x to the first layers of q(y|·) and q(z₂|·)."""
        mean, log_var = self.q_z1(x)
        return {"mean": mean, "log_var": log_var, "q_y": self.q_y.context(x), "q_z2": self.q_z2.context(x)}

    def label_log_probs(self, encoding: Encoding, x: Tensor, k: int, noise: Noise) -> Tensor:
        """log q(y|z₁, x), [B, k, Y], at k samples of z₁."""
        z1, _ = noise.gaussian((encoding["mean"], encoding["log_var"]), k, Z1)
        return self.q_y(z1, encoding["q_y"])

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Label = None) -> Terms:
        """Draw z₁, then the label, then z₂, and return the terms of the latents "z1" and "z2"."""
        q1 = encoding["mean"], encoding["log_var"]
        z1, log_q1 = noise.gaussian(q1, k, Z1)
        labels = self.bind(y, self.q_y(z1, encoding["q_y"]), k, noise)
        q2 = self.q_z2(z1, labels, encoding["q_z2"])
        z2, log_q2 = labels.gaussian(noise, q2, k, Z2)
        decoded = self.p_x(z1, labels)
        log_px = self.output.log_prob(decoded, labels.expand(x.unsqueeze(1)))
        q_z1 = q1[0].unsqueeze(1), q1[1].unsqueeze(1)
        first = Latent(labels.expand(z1), labels.expand_term(log_q1), q_z1, self.p_z1(z2, labels))
        latents = {"z1": first, "z2": Latent(z2, log_q2, q2, exact=True)}
        return Terms(decoded, log_px, latents, labels, labels.prior(self.p_y(z2)))

    def supervise(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Tensor) -> tuple[Terms | None, dict[str, Tensor]]:
        """The cross-entropies −log q(y|z₁, x) and −log p(y|x); labelled rows have no bound.

        The cross-entropies train only φ_y and θ_y, the weights of q(y|z₁, x) and p(y|z₂) (eq. 4.33).
        """
        log_qy, log_py = self._classifiers(encoding, x, k, noise)
        return None, {"q_y": -_at(log_qy, y), "p_y": -_at(log_py, y)}

    def _classifiers(self, encoding: Encoding, x: Tensor, k: int, noise: Noise) -> tuple[Tensor, Tensor]:
        """log q(y|z₁, x) [B, k, Y] and log Σ_ỹ q(ỹ|z₁, x) p(y|z₂) [B, k, Y], with z₁ and z₂ treated as constants."""
        with torch.no_grad():
            z1, _ = noise.gaussian((encoding["mean"], encoding["log_var"]), k, Z1)
        log_qy = self.q_y(z1, encoding["q_y"])
        with torch.no_grad():
            labels: Labels = ExactSum().bind(log_qy, k, noise, 0)
            z2, _ = labels.gaussian(noise, self.q_z2(z1, labels, encoding["q_z2"]), k, Z2)
        return log_qy, torch.logsumexp(log_qy.unsqueeze(-1) + self.p_y(z2), 2)

    @torch.no_grad()
    def classify(
        self,
        x: Tensor,
        k: int = 1,
        seed: Seed = None,
        by: str = "cascade",
        first_row: int = 0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Class probabilities, [B, Y]. "cascade" gives p(y|x) of eq. 4.32; any other `by` is that of `LabelModel.classify`."""
        if by != "cascade":
            return super().classify(x, k, seed, by, first_row, generator=generator)
        x = self.rows(x)
        self.check("classify", x, None)
        check_count("classify", "k", k)
        noise = Noise.of("classify", seed, generator, x.device, first_row)
        log_py = self._classifiers(self.encode(x), x, k, noise)[1]
        return (torch.logsumexp(log_py, 1) - math.log(k)).exp()

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        """Draw z₂ from its prior, and y from p(y|z₂) unless it is given.

        With a given y, x comes from p(z₂) p(z₁|y, z₂) p(x|y, z₁).
        """
        return self._decode_z2(self.standard_normal(n, self.latent[1], noise, Z2), noise, y)

    def decode_z2(self, z2: Tensor, noise: Noise, y: Tensor | None = None) -> Tensor:
        """`sample` at given z₂ [n, 1, D₂]: [n, D]. z₁ is drawn, and so is y from p(y|z₂) unless it is given."""
        return self.mean_or_sample(self._decode_z2(z2, noise, y), noise)

    def _decode_z2(self, z2: Tensor, noise: Noise, y: Tensor | None) -> Tensor:
        """The input of the output distribution at given z₂ [n, 1, D₂]."""
        labels = self.sampled_label(self.p_y(z2), noise, y)
        z1, _ = noise.gaussian(self.p_z1(z2, labels), 1, Z1)
        return self.p_x(z1, labels)


def _at(log_probs: Tensor, y: Tensor) -> Tensor:
    """The entries of log_probs [B, k, Y] at the labels y [B]: [B, k]."""
    return log_probs.gather(-1, y.view(-1, 1, 1).expand(-1, log_probs.shape[1], 1)).squeeze(-1)
