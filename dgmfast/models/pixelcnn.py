"""The PixelCNN (van den Oord et al. 2016): an exact, autoregressive p(x) without latents."""

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
    """p(x) = Π_i p(x_i | x_1 … x_{i−1}) over the pixels, and their colours, in raster order; exact, with no latents.

    x: rows of an image (C, H, W), `image`, in [0, 1]; by default a square one of x_dim numbers. maps, blocks, tail, kernel,
    first_kernel, likelihood and levels: the layers and the distribution of a pixel (dgmfast.nn.PixelCNNDecoder); the defaults are
    those of FAME's decoder (App. E). Every bound of the protocol is log p(x) itself, whatever the number of samples.
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
        """log p(x), exact: [B, D] -> [B] nats."""
        self.check("log_prob", x, None)
        return self.output.log_prob(x.new_zeros(x.shape[0], 0), x)

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        return {"log_px": self.output.log_prob(x.new_zeros(x.shape[0], 0), x)}

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Label = None) -> Terms:
        return Terms(x.new_zeros(x.shape[0], k, 0), encoding["log_px"].unsqueeze(1).expand(-1, k))

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
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
        """Draw the pixels of the rows observed [n, D] where keep, bool [D] or [n, D], is false: [n, D].

        Exact, x ~ p(x | observed), where what is kept comes before the rest in raster order, such as the top rows; else the rest
        is drawn in raster order given what precedes it, which is not that conditional. temperature: divides the logits.
        """
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
