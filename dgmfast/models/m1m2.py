"""M1+M2, the stacked semi-supervised model (thesis §4.1; Kingma et al. 2014)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dgmfast.errors import InputError
from dgmfast.models.checks import check_widths
from dgmfast.models.label_model import LabelModel
from dgmfast.models.noise import Noise
from dgmfast.models.terms import Encoding, Label, Latent, Terms
from dgmfast.models.vae import VAE
from dgmfast.nn import ConditionalCategorical, ConditionalGaussian, OutputDistribution, glorot

Z1, Z2 = 0, 1  # noise streams


class M1M2(LabelModel):
    """M1+M2: p(y) p(z₂) p(z₁|y, z₂) p(x|z₁) with q(z₁|x) q(y|z₁) q(z₂|z₁, y) (eqs 4.5–4.9).

    M1, a VAE with the prior N(0, I), is trained alone in the first `pretrain_epochs` epochs. Then M1 is frozen, and M2 is trained
    on samples of M1's z₁; M2's marginal p(z₁) replaces M1's prior. With pretrain_epochs = 0 both are trained together, which did
    not converge in the thesis. The other arguments are those of `M2`.

    Args:
        latent: Sizes of z₁ and z₂.
        hidden1: Widths of the MLPs of M1.
        hidden2: Widths of the MLPs of M2.
        pretrain_epochs: Number of epochs in which M1 is trained alone.

    Raises:
        InputError: A setting is unknown or out of range.
    """

    def __init__(
        self,
        x_dim: int = 784,
        num_classes: int = 10,
        latent: Sequence[int] = (50, 50),
        hidden1: Sequence[int] = (600, 600),
        hidden2: Sequence[int] = (500,),
        pretrain_epochs: int = 100,
        activation: str = "softplus",
        likelihood: str = "bernoulli",
        head: str = "log_var",
        batch_norm: bool = False,
        class_prior: str | Sequence[float] = "uniform",
    ) -> None:
        super().__init__(num_classes, class_prior)
        check_widths(x_dim=x_dim, latent=latent, hidden1=hidden1, hidden2=hidden2)
        if len(latent) != 2 or type(pretrain_epochs) is not int or pretrain_epochs < 0:
            got = f"{list(latent)} and {pretrain_epochs!r}"
            raise InputError(f"latent must name two sizes, and pretrain_epochs be a whole number of at least 0; got {got}")
        self.x_dim, self.latent, self.pretrain_epochs = x_dim, tuple(latent), pretrain_epochs
        layers = (activation, batch_norm)
        self.m1 = VAE(x_dim, latent[:1], (tuple(hidden1),), activation, likelihood, head, batch_norm)
        self.q_y = ConditionalCategorical(latent[0], hidden2, num_classes, *layers)
        self.q_z2 = ConditionalGaussian(latent[0], hidden2, latent[1], *layers, head, num_classes=num_classes)
        self.p_z1 = ConditionalGaussian(latent[1], hidden2, latent[0], *layers, head, num_classes=num_classes)
        self.pretraining = False
        glorot(self)

    @property
    def output(self) -> OutputDistribution:  # type: ignore[override]
        """M1's p(x|z₁)."""
        return self.m1.output

    def begin_epoch(self, epoch: int) -> None:
        """Make M1 trainable in the first `pretrain_epochs` epochs (0-based), and M2 afterwards."""
        self.pretraining = epoch < self.pretrain_epochs
        for part in (self.q_y, self.q_z2, self.p_z1):
            part.requires_grad_(not self.pretraining)
        self.m1.requires_grad_(self.pretraining or self.pretrain_epochs == 0)

    @property
    def ignores_labels(self) -> bool:
        """True while M1 is trained."""
        return self.pretraining

    def train(self, mode: bool = True) -> M1M2:
        """Set training mode, but leave a frozen M1 in evaluation mode."""
        super().train(mode)
        if self.pretrain_epochs and not self.pretraining:
            self.m1.eval()  # a frozen M1 keeps its running batch statistics
        return self

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        """The encoding of M1: the mean and log-variance of q(z₁|x)."""
        return self.m1.encode(x)

    def label_log_probs(self, encoding: Encoding, x: Tensor, k: int, noise: Noise) -> Tensor:
        """log q(y|z₁), [B, k, Y], at k samples of z₁."""
        return self.q_y(noise.gaussian((encoding["mean"], encoding["log_var"]), k, Z1)[0])

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Label = None) -> Terms:
        """Draw z₁, then the label, then z₂, and return their terms. While M1 is trained, return the terms of M1 alone."""
        if self.pretraining:
            return self.m1.draw(encoding, x, k, noise)
        terms = self.m1.draw(encoding, x, k, noise)
        first = terms.latents.pop("z1")
        log_qy = self.q_y(first.z)
        labels = self.bind(y, log_qy, k, noise)
        q = self.q_z2(first.z, labels)
        z2, log_q2 = labels.gaussian(noise, q, k, Z2)
        z1 = Latent(labels.expand(first.z), labels.expand_term(first.log_q), first.q, self.p_z1(z2, labels))
        latents = {"z1": z1, "z2": Latent(z2, log_q2, q, exact=True)}
        log_px, log_py = labels.expand_term(terms.log_px), labels.prior(self.log_py())
        return Terms(terms.decoding, log_px, latents, labels, log_py, self.cross_entropies(y, labels, q_y=log_qy))

    def fused(self, device: torch.device) -> list[nn.Module]:
        """The modules that `draw` does not call on this device in evaluation (see nn.decode)."""
        return self.m1.fused(device)

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        """Draw z₂, y and z₁ from the prior, and return the decoder's output for z₁."""
        z2 = self.standard_normal(n, self.latent[1], noise, Z2)
        labels = self.sampled_label(self.log_py().expand(n, 1, -1), noise, y)
        z1, _ = noise.gaussian(self.p_z1(z2, labels), 1, Z1)
        return self.m1.decoder(z1)
