"""The auxiliary deep generative model (thesis §4.4; App. A)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dgmfast.models.checks import check_flags, check_widths
from dgmfast.models.label_model import LabelModel
from dgmfast.models.labels import Labels
from dgmfast.models.noise import Noise
from dgmfast.models.terms import Encoding, Label, Latent, Terms
from dgmfast.nn import OUTPUTS, ConditionalCategorical, ConditionalGaussian, ConditionalMLP, GaussianMLP, glorot, lookup

A, Z = 0, 1  # noise streams


class ADGM(LabelModel):
    """The auxiliary deep generative model (eqs 4.20–4.22; App. A eqs 6–9).

    The generative model is p(y) p(z) p(a|z, y) p(x|y, z), and the inference model q(a|x) q(y|a, x) q(z|a, y, x). Both q(y|a, x)
    and q(z|a, y, x) use the same sample of a.

    Args:
        x_dim: Size of x.
        num_classes: Number of labels, Y.
        latent: Size of z.
        auxiliary: Size of a.
        hidden: Widths of every MLP.
        activation: A key of `nn.ACTIVATIONS`.
        likelihood: A key of `nn.OUTPUTS`: "bernoulli", "gaussian" or "pixelcnn".
        head: "log_var" or "softplus" (see `nn.GaussianHead`).
        batch_norm: If true, normalise the layers of the MLPs.
        auxiliary_sees_x: If true, use p(a|z, y, x) as in the theory of App. A, instead of p(a|z, y) as in its experiments.
        deterministic: If true, a is the mean of q(a|x), without noise and without terms in the bound (the ablation of App. A Fig.
            5).
        class_prior: p(y), see `LabelModel`.

    Raises:
        InputError: A setting is unknown or out of range.
    """

    def __init__(
        self,
        x_dim: int = 784,
        num_classes: int = 10,
        latent: int = 100,
        auxiliary: int = 100,
        hidden: Sequence[int] = (500, 500),
        activation: str = "relu",
        likelihood: str = "bernoulli",
        head: str = "log_var",
        batch_norm: bool = False,
        auxiliary_sees_x: bool = False,
        deterministic: bool = False,
        class_prior: str | Sequence[float] = "uniform",
    ) -> None:
        super().__init__(num_classes, class_prior)
        check_widths(x_dim=x_dim, latent=latent, auxiliary=auxiliary, hidden=hidden)
        check_flags(auxiliary_sees_x=auxiliary_sees_x, deterministic=deterministic, batch_norm=batch_norm)
        self.x_dim, self.latent, self.deterministic = x_dim, latent, deterministic
        layers = (activation, batch_norm)
        seen = x_dim if auxiliary_sees_x else 0
        self.q_a = GaussianMLP(x_dim, hidden, auxiliary, *layers, head)
        self.q_y = ConditionalCategorical(auxiliary, hidden, num_classes, *layers, n_context=x_dim)
        self.q_z = ConditionalGaussian(auxiliary, hidden, latent, *layers, head, n_context=x_dim, num_classes=num_classes)
        self.p_a: ConditionalGaussian | None = None
        if not deterministic:
            self.p_a = ConditionalGaussian(latent, hidden, auxiliary, *layers, head, n_context=seen, num_classes=num_classes)
        else:
            self.q_a.gaussian.scale.requires_grad_(False)  # only the mean is used
        self.sees_x = bool(seen) and not deterministic
        self.p_x = self._decoder(latent, auxiliary, hidden, layers)
        self.output = lookup("likelihood", likelihood, OUTPUTS)(self.p_x.n_out, x_dim, head)
        glorot(self)

    def _decoder(self, latent: int, auxiliary: int, hidden: Sequence[int], layers: tuple[str, bool]) -> ConditionalMLP:
        """The network of p(x|y, z)."""
        return ConditionalMLP(latent, hidden, *layers, num_classes=self.num_classes)

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        """The mean and log-variance of q(a|x), and the contributions of x to the first layers of q(y|·) and q(z|·).

        With auxiliary_sees_x, the contribution to p(a|·) too.
        """
        mean, log_var = self.q_a(x)
        encoding = {"mean": mean, "log_var": log_var, "q_y": self.q_y.context(x), "q_z": self.q_z.context(x)}
        return {**encoding, "p_a": self.p_a.context(x)} if self.p_a is not None and self.sees_x else encoding

    def _auxiliary(self, encoding: Encoding, k: int, noise: Noise) -> tuple[Tensor, dict[str, Latent]]:
        """Draw a ~ q(a|x), [B, k, A], and return it with its latent, whose p(a|·) `draw` adds later."""
        mean, log_var = encoding["mean"], encoding["log_var"]
        if self.deterministic:
            return mean.unsqueeze(1).expand(-1, k, -1), {}
        a, log_q = noise.gaussian((mean, log_var), k, A)
        return a, {"a": Latent(a, log_q, (mean.unsqueeze(1), log_var.unsqueeze(1)))}

    def label_log_probs(self, encoding: Encoding, x: Tensor, k: int, noise: Noise) -> Tensor:
        """log q(y|a, x), [B, k, Y], at k samples of a."""
        return self.q_y(self._auxiliary(encoding, k, noise)[0], encoding["q_y"])

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Label = None) -> Terms:
        """Draw a, then the label, then z, and return the terms of the latents "a" and "z"."""
        a, latents = self._auxiliary(encoding, k, noise)
        log_qy = self.q_y(a, encoding["q_y"])
        labels = self.bind(y, log_qy, k, noise)
        q = self.q_z(a, labels, encoding["q_z"])
        z, log_q = labels.gaussian(noise, q, k, Z)
        latents["z"] = Latent(z, log_q, q, exact=True)
        if self.p_a is not None:
            auxiliary = latents["a"]
            auxiliary.p = self.p_a(z, labels, encoding.get("p_a"))
            auxiliary.z, auxiliary.log_q = labels.expand(a), labels.expand_term(auxiliary.log_q)
        decoded = self._decode(z, labels, a)
        log_px = self.output.log_prob(decoded, labels.expand(x.unsqueeze(1)))
        return Terms(decoded, log_px, latents, labels, labels.prior(self.log_py()), self.cross_entropies(y, labels, q_y=log_qy))

    def _decode(self, z: Tensor, labels: Labels, a: Tensor) -> Tensor:
        """The input of the output distribution."""
        return self.p_x(z, labels)

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        """Draw z and y from the prior, and return the input of the output distribution."""
        z = self.standard_normal(n, self.latent, noise, Z)
        return self.p_x(z, self.sampled_label(self.log_py().expand(n, 1, -1), noise, y))
