"""M2, the semi-supervised VAE (thesis §4.1; Kingma et al. 2014)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dgmfast.models.checks import check_flags, check_widths
from dgmfast.models.label_model import LabelModel
from dgmfast.models.noise import Noise
from dgmfast.models.terms import Encoding, Label, Latent, Terms
from dgmfast.nn import OUTPUTS, ConditionalCategorical, ConditionalGaussian, ConditionalMLP, glorot, lookup


class M2(LabelModel):
    """M2, the semi-supervised VAE: p(y) p(z) p(x|y, z) with q(y|x) q(z|x, y) (eqs 4.5–4.9).

    Args:
        x_dim: Size of x.
        num_classes: Number of labels, Y.
        latent: Size of z.
        hidden: Widths of every MLP.
        activation: A key of `nn.ACTIVATIONS`.
        likelihood: A key of `nn.OUTPUTS`: "bernoulli", "gaussian" or "pixelcnn".
        head: "log_var" or "softplus" (see `nn.GaussianHead`).
        batch_norm: If true, normalise the layers of the MLPs.
        class_prior: p(y), see `LabelModel`.

    Raises:
        InputError: A setting is unknown or out of range.
    """

    def __init__(
        self,
        x_dim: int = 784,
        num_classes: int = 10,
        latent: int = 100,
        hidden: Sequence[int] = (500, 500),
        activation: str = "relu",
        likelihood: str = "bernoulli",
        head: str = "log_var",
        batch_norm: bool = False,
        class_prior: str | Sequence[float] = "uniform",
    ) -> None:
        super().__init__(num_classes, class_prior)
        check_widths(x_dim=x_dim, latent=latent, hidden=hidden)
        check_flags(batch_norm=batch_norm)
        self.x_dim, self.latent = x_dim, latent
        self.q_y = ConditionalCategorical(x_dim, hidden, num_classes, activation, batch_norm)
        self.q_z = ConditionalGaussian(x_dim, hidden, latent, activation, batch_norm, head, num_classes=num_classes)
        self.p_x = ConditionalMLP(latent, hidden, activation, batch_norm, num_classes=num_classes)
        self.output = lookup("likelihood", likelihood, OUTPUTS)(self.p_x.n_out, x_dim, head)
        glorot(self)

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        """x itself, and log q(y|x)."""
        return {"x": x, "log_qy": self.q_y(x)}

    def label_log_probs(self, encoding: Encoding, x: Tensor, k: int, noise: Noise) -> Tensor:
        """log q(y|x), [B, 1, Y]. It does not depend on a latent."""
        return encoding["log_qy"].unsqueeze(1)

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Label = None) -> Terms:
        """Draw the label and z, and return the terms of the latent "z"."""
        log_qy = encoding["log_qy"].unsqueeze(1)
        labels = self.bind(y, log_qy, k, noise)
        x = x.unsqueeze(1)
        q = self.q_z(x, labels)
        z, log_q = labels.gaussian(noise, q, k, stream=0)
        decoded = self.p_x(z, labels)
        log_px = self.output.log_prob(decoded, labels.expand(x))
        latents = {"z": Latent(z, log_q, q, exact=True)}
        return Terms(decoded, log_px, latents, labels, labels.prior(self.log_py()), self.cross_entropies(y, labels, q_y=log_qy))

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        """Draw z and y from the prior, and return the input of the output distribution."""
        z = self.standard_normal(n, self.latent, noise, stream=0)
        return self.p_x(z, self.sampled_label(self.log_py().expand(n, 1, -1), noise, y))
