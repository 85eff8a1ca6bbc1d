"""The skip deep generative model (thesis §4.5; App. A)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dgmfast.models.adgm import ADGM, A, Z
from dgmfast.models.labels import Labels
from dgmfast.models.noise import Noise
from dgmfast.nn import ConditionalMLP


class SDGM(ADGM):
    """The skip deep generative model: p(y) p(z) p(a|z, y) p(x|a, y, z) (App. A eqs 22–25).

    It is the ADGM whose x also depends on a. The arguments are those of `ADGM`, except deterministic, and auxiliary_sees_x, with
    which p(a|z, y, x) p(x|a, y, z) would be cyclic.
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
        class_prior: str | Sequence[float] = "uniform",
    ) -> None:
        super().__init__(
            x_dim, num_classes, latent, auxiliary, hidden, activation, likelihood, head, batch_norm, class_prior=class_prior
        )

    def _decoder(self, latent: int, auxiliary: int, hidden: Sequence[int], layers: tuple[str, bool]) -> ConditionalMLP:
        return ConditionalMLP(latent, hidden, *layers, n_context=auxiliary, num_classes=self.num_classes)

    def _decode(self, z: Tensor, labels: Labels, a: Tensor) -> Tensor:
        return self.p_x(z, labels, self.p_x.context(a))

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        """Draw z, y and a from the prior, and return the input of the output distribution."""
        z = self.standard_normal(n, self.latent, noise, Z)
        labels = self.sampled_label(self.log_py().expand(n, 1, -1), noise, y)
        assert self.p_a is not None
        a, _ = noise.gaussian(self.p_a(z, labels), 1, A)
        return self._decode(z, labels, a)
