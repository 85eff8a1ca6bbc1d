"""Feature map variational auto-encoders (thesis §5.2; App. E)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dgmfast.errors import InputError
from dgmfast.models.checks import check_flags, check_widths
from dgmfast.models.lvae import Ladder
from dgmfast.models.noise import Seed
from dgmfast.nn import MLP, ConvDown, ConvUp, GaussianHead, OverRows, PixelCNNDecoder, image_of


class FAME(Ladder):
    """The LVAE with convolutions between its latents and a PixelCNN as p(x|z₁, x_<i) (App. E eqs 7–9).

    Upwards, d_n = CNN(d_{n−1}) on feature maps that shrink by strides, and q̂(z_n) = N(Linear(Dense(d_n)), softplus(Dense(d_n))).
    Downwards, p(z_n|z_{n+1}) is a dense layer to feature maps, a transposed convolution and such a Gaussian head; it is merged
    with q̂ as in the LVAE. p(x|z₁) is a dense layer, a transposed convolution and a convolution to an image of `condition`
    channels. The PixelCNN sees all of this image, and the preceding pixels of x.

    The table of convolutions is missing from the thesis. This implementation uses two 3 × 3 convolutions per layer, the first
    with stride 2; for 28 × 28 images the maps then have sides 14, 7, 4, 2 and 1. The dense layers have the widths of the LVAE.

    Args:
        x_dim: Size of x.
        image: (C, H, W) of x; by default a square grey or colour image.
        latent: Sizes of z₁ … z_L.
        maps: Number of channels of the feature maps, per layer.
        dense: Width of the dense layer, per layer.
        activation: A key of `nn.ACTIVATIONS`.
        head: "log_var" or "softplus" (see `nn.GaussianHead`).
        batch_norm: If true, normalise all layers except the heads, the last convolution and the PixelCNN.
        concatenate: If false, the PixelCNN does not see x ("FAME no concatenation"). Its layers then have no masks, and a sample
            takes one pass.
        condition: Number of channels of the image that the PixelCNN sees.
        decoder_maps: The `maps` of the PixelCNN (see `nn.PixelCNNDecoder`, also for the arguments below).
        blocks: Number of residual layers of the PixelCNN.
        tail: Number of layers after them.
        kernel: Kernel size of the PixelCNN.
        first_kernel: Kernel size of its first layer.
        likelihood: "bernoulli", "categorical" or "logistic".
        levels: Number of values of a pixel.

    Raises:
        InputError: A setting is unknown or out of range.
    """

    def __init__(
        self,
        x_dim: int = 784,
        image: Sequence[int] | None = None,
        latent: Sequence[int] = (64, 32, 16, 8, 4),
        maps: Sequence[int] = (32, 64, 64, 64, 64),
        dense: Sequence[int] = (512, 256, 128, 64, 32),
        activation: str = "relu",
        head: str = "softplus",
        batch_norm: bool = True,
        concatenate: bool = True,
        condition: int = 1,
        decoder_maps: int = 64,
        blocks: int = 4,
        tail: int = 3,
        kernel: int = 3,
        first_kernel: int = 7,
        likelihood: str = "bernoulli",
        levels: int = 256,
    ) -> None:
        super().__init__()
        check_widths(latent=latent, maps=maps, dense=dense)
        if any(isinstance(sizes, int) for sizes in (latent, maps, dense)) or not len(latent) == len(maps) == len(dense):
            raise InputError(f"latent, maps and dense must have one entry per layer; got {latent!r}, {maps!r} and {dense!r}")
        check_flags(batch_norm=batch_norm, concatenate=concatenate)
        self.x_dim, self.latent = x_dim, tuple(latent)
        layers: dict[str, Any] = {"activation": activation, "batch_norm": batch_norm}
        heads = {**layers, "head": head}
        shape = image_of(x_dim, image)
        # (channels, height, width) of x and of every d_n.
        shapes = [shape]
        for channels in maps:
            _, height, width = shapes[-1]
            shapes.append((channels, (height + 1) // 2, (width + 1) // 2))

        self.up, self.q, self.p = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, size in enumerate(latent):
            up = ConvUp(shapes[i], shapes[i + 1], **layers)
            self.up.append(up)
            self.q.append(DenseGaussian(up.n_out, dense[i], size, **heads))
            if i:
                self.p.append(ConvGaussian(size, shapes[i + 1], shapes[i], dense[i - 1], latent[i - 1], **heads))
        upsampled = ConvDown(latent[0], shapes[1], (maps[0], *shape[1:]), **layers)
        to_image = nn.Conv2d(maps[0], condition, 3, padding=1)
        self.decoder = nn.Sequential(upsampled, OverRows((maps[0], *shape[1:]), to_image))
        self.output = PixelCNNDecoder(
            shape, condition, decoder_maps, blocks, tail, kernel, first_kernel, likelihood, levels, autoregressive=concatenate
        )

    @torch.no_grad()
    def masked_reconstruct(
        self, x: Tensor, without: str, seed: Seed = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """`reconstruct` with one input of the PixelCNN set to zero, [B, D] (App. E Fig. 3).

        Args:
            x: [B, D].
            without: The input to set to zero: "z", the image from z₁, or "x".
            seed: Seed of the noise; None draws one from `generator`.
            generator: Source of the seed; by default torch's own generator.

        Raises:
            InputError: `without` is unknown, or the model does not take x.
        """
        if without not in ("z", "x"):
            raise InputError(f"masked_reconstruct: without must be z or x; got {without!r}")
        x = self.rows(x)
        decoded = self._posterior("masked_reconstruct", x, None, seed, generator).decoded
        seen = x.unsqueeze(1)
        return self.output.mean(decoded * 0.0, seen).squeeze(1) if without == "z" else self.output.mean(decoded).squeeze(1)


class DenseGaussian(nn.Module):
    """N(Linear(h), softplus(Linear(h))) with h = Dense(maps) for flattened maps: [..., n_in] -> (mean, log_var) [..., n_out]."""

    def __init__(self, n_in: int, dense: int, n_out: int, activation: str, batch_norm: bool, head: str) -> None:
        super().__init__()
        self.mlp: nn.Module = MLP(n_in, [dense], activation, batch_norm)
        self.gaussian = GaussianHead(dense, n_out, head)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """[..., n_in] -> (mean, log_var), each [..., n_out]."""
        mean, log_var = self.gaussian(self.mlp(h))
        return mean, log_var


class ConvGaussian(DenseGaussian):
    """p(z_n | z_{n+1}): a transposed convolution to maps, then DenseGaussian: [..., n_in] -> (mean, log_var) [..., n_out]."""

    def __init__(
        self, n_in: int, small: tuple[int, int, int], large: tuple[int, int, int], dense: int, n_out: int, **layers: Any
    ) -> None:
        down = ConvDown(n_in, small, large, layers["activation"], layers["batch_norm"])
        super().__init__(down.n_out, dense, n_out, **layers)
        self.mlp = nn.Sequential(down, self.mlp)
