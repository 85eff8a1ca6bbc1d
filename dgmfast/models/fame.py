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

    Upwards d_n = CNN(d_{n−1}) on feature maps that shrink by strides; q̂(z_n) = N(Linear(Dense(d_n)), softplus(Dense(d_n))).
    Downwards p(z_n|z_{n+1}) by a dense layer to maps, a transposed convolution and such a head, merged with q̂ as in the LVAE.
    p(x|z₁): a dense layer, a transposed convolution and a convolution to an image of `condition` channels, which the PixelCNN
    sees in full beside x's preceding pixels. concatenate: whether it sees x ("FAME no concatenation": its layers without masks,
    so that a sample takes one pass).

    The thesis lost its table of convolutions. Ours, for 28 × 28: two 3 × 3 convolutions per layer, the first of stride 2, so that
    the maps have sides 14, 7, 4, 2, 1 and `maps` channels; the dense layers have `dense` units, those of the LVAE.
    decoder_maps, blocks, tail, kernel, first_kernel, likelihood and levels: the PixelCNN's (dgmfast.nn.PixelCNNDecoder).
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
        # (channels, height, width) of x and of every d_n
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
        """`reconstruct` with one input of the PixelCNN zero (App. E Fig. 3): "z", the image from z₁, or "x"; [B, D]."""
        if without not in ("z", "x"):
            raise InputError(f"masked_reconstruct: without must be z or x; got {without!r}")
        decoded = self._posterior("masked_reconstruct", x, None, seed, generator).decoded
        seen = x.unsqueeze(1)
        return self.output.mean(decoded * 0.0, seen).squeeze(1) if without == "z" else self.output.mean(decoded).squeeze(1)


class DenseGaussian(nn.Module):
    """N(Linear(h), softplus(Linear(h))) of h = Dense(maps), flattened: [..., n_in] -> (mean, log_var) [..., n_out]."""

    def __init__(self, n_in: int, dense: int, n_out: int, activation: str, batch_norm: bool, head: str) -> None:
        super().__init__()
        self.mlp: nn.Module = MLP(n_in, [dense], activation, batch_norm)
        self.gaussian = GaussianHead(dense, n_out, head)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.gaussian(self.mlp(h))
        return mean, log_var


class ConvGaussian(DenseGaussian):
    """The same of maps that a transposed convolution makes: p(z_n | z_{n+1}), [..., n_in] -> (mean, log_var) [..., n_out]."""

    def __init__(
        self, n_in: int, small: tuple[int, int, int], large: tuple[int, int, int], dense: int, n_out: int, **layers: Any
    ) -> None:
        down = ConvDown(n_in, small, large, layers["activation"], layers["batch_norm"])
        super().__init__(down.n_out, dense, n_out, **layers)
        self.mlp = nn.Sequential(down, self.mlp)
