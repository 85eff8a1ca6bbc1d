"""The ladder VAE with CaGeM's discrete variable, which thesis §7 proposes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dgmfast import ops
from dgmfast.models.checks import check_sizes
from dgmfast.models.label_model import LabelModel
from dgmfast.models.lvae import climb, upward_layers
from dgmfast.models.noise import Noise
from dgmfast.models.terms import Encoding, Label, Latent, Terms
from dgmfast.nn import OUTPUTS, ConditionalCategorical, ConditionalGaussian, ConditionalMLP, lookup


class LabelLVAE(LabelModel):
    """The ladder VAE with a label y below its top latent.

    The generative model is p(z_L) p(y|z_L) Π_{i<L} p(z_i|z_{i+1}, y) p(x|z₁, y). The inference model is q(z_L|x) q(y|z_L, x),
    followed by the LVAE's merges for the layers below.

    All labels share the sample of z_L. Each label has its own downward pass, in which every layer's KL is exact. The other
    arguments are those of `LVAE`.

    Args:
        num_classes: Number of labels, or of clusters if there are no labels.
    """

    clusters = True

    def __init__(
        self,
        x_dim: int = 784,
        num_classes: int = 10,
        latent: Sequence[int] = (64, 32),
        hidden: Sequence[Sequence[int]] = ((512, 512), (256, 256)),
        activation: str = "leaky_relu",
        likelihood: str = "bernoulli",
        head: str = "softplus",
        batch_norm: bool = True,
    ) -> None:
        super().__init__(num_classes)
        check_sizes(x_dim, latent, hidden)
        self.x_dim, self.latent = x_dim, tuple(latent)
        layers: dict[str, Any] = {"activation": activation, "batch_norm": batch_norm}
        self.up, self.q = upward_layers(x_dim, latent, hidden, head=head, norm_head=batch_norm, **layers)
        self.p = nn.ModuleList()
        for i in range(1, len(latent)):
            self.p.append(
                ConditionalGaussian(latent[i], hidden[i][::-1], latent[i - 1], head=head, num_classes=num_classes, **layers)
            )
        self.q_y = ConditionalCategorical(latent[-1], hidden[-1], num_classes, n_context=x_dim, **layers)
        self.p_y = ConditionalCategorical(latent[-1], hidden[-1], num_classes, **layers)
        self.p_x = ConditionalMLP(latent[0], hidden[0][::-1], num_classes=num_classes, **layers)
        self.output = lookup("likelihood", likelihood, OUTPUTS)(self.p_x.n_out, x_dim, head)

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        """The mean and log-variance of each q̂(z_n), and the contribution of x to the first layer of q(y|·)."""
        encoding = {"q_y": self.q_y.context(x)}
        for i, (mean, log_var) in enumerate(climb(self.up, self.q, x), start=1):
            encoding[f"mean{i}"], encoding[f"log_var{i}"] = mean.unsqueeze(1), log_var.unsqueeze(1)
        return encoding

    def _top(self, encoding: Encoding, k: int, noise: Noise) -> Latent:
        """The latent z_L with its sample."""
        top = len(self.latent)
        q = encoding[f"mean{top}"], encoding[f"log_var{top}"]
        return Latent(*noise.gaussian((q[0].squeeze(1), q[1].squeeze(1)), k, stream=top - 1), q, exact=True)

    def label_log_probs(self, encoding: Encoding, x: Tensor, k: int, noise: Noise) -> Tensor:
        """log q(y|z_L, x), [B, k, Y], at k samples of z_L."""
        return self.q_y(self._top(encoding, k, noise).z, encoding["q_y"])

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Label = None) -> Terms:
        """Draw z_L, then the label, then the lower latents from the top down, and return their terms."""
        latents = [self._top(encoding, k, noise)]
        z = latents[0].z
        log_qy, log_py = self.q_y(z, encoding["q_y"]), self.p_y(z)
        labels = self.bind(y, log_qy, k, noise)
        for i in range(len(self.p), 0, -1):
            p = self.p[i - 1](z, labels)
            q = ops.gaussian_merge(labels.expand(encoding[f"mean{i}"]), labels.expand(encoding[f"log_var{i}"]), *p)
            z, log_q = labels.gaussian(noise, q, k, stream=i - 1)
            latents.append(Latent(z, log_q, q, p, exact=True))
        decoded = self.p_x(z, labels)
        log_px = self.output.log_prob(decoded, labels.expand(x.unsqueeze(1)))
        named = {f"z{i + 1}": latent for i, latent in enumerate(reversed(latents))}
        return Terms(decoded, log_px, named, labels, labels.prior(log_py), self.cross_entropies(y, labels, q_y=log_qy))

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        """Draw z_L, y and the lower latents from the prior, and return the input of the output distribution."""
        z = self.standard_normal(n, self.latent[-1], noise, stream=len(self.p))
        labels = self.sampled_label(self.p_y(z), noise, y)
        for i in range(len(self.p), 0, -1):
            z, _ = noise.gaussian(self.p[i - 1](z, labels), 1, stream=i - 1)
        return self.p_x(z, labels)
