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
    """p(y) p(z₂) p(z₁|y, z₂) p(x|z₁) with q(z₁|x) q(y|z₁) q(z₂|z₁, y) (eqs 4.5–4.9).

    M1, a VAE with the prior N(0, I), trains alone in the first `pretrain_epochs` epochs; then it is frozen, and M2 trains on
    samples of its z₁: M2's marginal takes the place of M1's prior. With pretrain_epochs = 0 both train together, which did not
    converge in the thesis.

    latent: the sizes of z₁ and z₂. hidden1, hidden2: the widths of the MLPs of M1 and of M2. Others as for M2.
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
        self.pretraining = epoch < self.pretrain_epochs
        for part in (self.q_y, self.q_z2, self.p_z1):
            part.requires_grad_(not self.pretraining)
        self.m1.requires_grad_(self.pretraining or self.pretrain_epochs == 0)

    @property
    def ignores_labels(self) -> bool:
        return self.pretraining

    def train(self, mode: bool = True) -> M1M2:
        super().train(mode)
        if self.pretrain_epochs and not self.pretraining:
            self.m1.eval()  # frozen, with its batch statistics
        return self

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        return self.m1.encode(x)

    def label_log_probs(self, encoding: Encoding, x: Tensor, k: int, noise: Noise) -> Tensor:
        return self.q_y(noise.gaussian((encoding["mean"], encoding["log_var"]), k, Z1)[0])

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Label = None) -> Terms:
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
        return self.m1.fused(device)

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        z2 = self.standard_normal(n, self.latent[1], noise, Z2)
        labels = self.sampled_label(self.log_py().expand(n, 1, -1), noise, y)
        z1, _ = noise.gaussian(self.p_z1(z2, labels), 1, Z1)
        return self.m1.decoder(z1)
