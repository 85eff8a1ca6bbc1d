"""The PixelCNN (van den Oord et al. 2016): an exact autoregressive model p(x) without latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dgmfast.errors import InputError
from dgmfast.models.base import GenerativeModel
from dgmfast.models.noise import Noise, Seed
from dgmfast.models.terms import Encoding, Label, Terms
from dgmfast.nn import PixelCNNDecoder, image_of


class PixelCNN(GenerativeModel):
    """p(x) = Π_i p(x_i | x_1 … x_{i−1}) over the pixels, and over their colours, in raster order.

    log p(x) is exact. Every bound of the protocol is log p(x) itself, for any number of samples. x holds rows of images in [0,
    1]. The arguments are those of `nn.PixelCNNDecoder`; the defaults are those of FAME's decoder (App. E).

    Args:
        x_dim: Size of x.
        image: (C, H, W) of x; by default a square grey or colour image.
        maps: Number of channels of the hidden layers.
        blocks: Number of residual layers.
        tail: Number of layers after them.
        kernel: Kernel size of all layers except the first.
        first_kernel: Kernel size of the first layer.
        likelihood: "bernoulli", "categorical" or "logistic".
        levels: Number of values of a pixel.

    Raises:
        InputError: A setting is unknown or out of range.
    """

    def __init__(
        self,
        x_dim: int = 784,
        image: Sequence[int] | None = None,
        maps: int = 64,
        blocks: int = 4,
        tail: int = 3,
        kernel: int = 3,
        first_kernel: int = 7,
        likelihood: str = "bernoulli",
        levels: int = 256,
    ) -> None:
        super().__init__()
        self.x_dim, self.latent = x_dim, ()
        self.output: PixelCNNDecoder = PixelCNNDecoder(
            image_of(x_dim, image), 0, maps, blocks, tail, kernel, first_kernel, likelihood, levels
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """The exact log p(x): [B, D] -> [B], in nats.

        Raises:
            InputError: The model does not take x.
        """
        x = self.rows(x)
        self.check("log_prob", x, None)
        return self.output.log_prob(x.new_zeros(x.shape[0], 0), x)

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        """The exact log p(x)."""
        return {"log_px": self.output.log_prob(x.new_zeros(x.shape[0], 0), x)}

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Label = None) -> Terms:
        """Terms without latents, whose log_px is the exact log p(x) for each of the k samples."""
        return Terms(x.new_zeros(x.shape[0], k, 0), encoding["log_px"].unsqueeze(1).expand(-1, k))

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        """An empty input [n, 1, 0] for the output distribution, because there are no latents."""
        return next(self.parameters()).new_zeros(n, 1, 0)

    @torch.no_grad()
    def complete(
        self,
        observed: Tensor,
        keep: Tensor,
        seed: Seed = None,
        temperature: float = 1.0,
        progress: Callable[[int, int], None] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw the pixels of the rows observed [n, D] where `keep` is false, and keep the others: [n, D].

        The sample is from p(x | kept pixels) if the kept pixels precede all others in raster order, such as the top rows.
        Otherwise each pixel is drawn given the pixels before it, which is not that conditional distribution.

        Args:
            observed: [n, D].
            keep: Boolean, [D] or [n, D].
            seed: Seed of the noise; None draws one from `generator`.
            temperature: Divides the logits.
            progress: Called with the number of finished rows of pixels and the total number of rows.
            generator: Source of the seed; by default torch's own generator.

        Raises:
            InputError: The model does not take `observed`, or `keep` has a wrong shape or dtype.
        """
        observed = self.rows(observed)
        self.check("complete", observed, None)
        n, image = observed.shape[0], self.output.image
        try:
            kept = keep.expand(n, self.x_dim).reshape(n, *image)
        except RuntimeError:
            expected = f"[{self.x_dim}] or [{n}, {self.x_dim}]"
            raise InputError(f"complete: keep must be bool of shape {expected}; got {list(keep.shape)}") from None
        none = observed.new_zeros(n, 1, 0)
        noise = Noise.of("complete", seed, generator, observed.device)
        x = self.output.generate(none, noise, observed.reshape(n, *image), kept, temperature, progress)
        return x.squeeze(1)
