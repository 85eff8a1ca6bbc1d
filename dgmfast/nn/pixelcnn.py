"""The PixelCNN as an output distribution p(x|c) over images (van den Oord et al. 2016; thesis §5.2, App. E)."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dgmfast.errors import InputError
from dgmfast.nn.masked_conv import CausalLayer, MaskedConv2d, call_layers, odd_size
from dgmfast.nn.pixel_output import KINDS, PixelOutput
from dgmfast.nn.pixel_sampling import sample_by_calls, sample_pixels
from dgmfast.nn.plain import is_plain

OUTPUT_STREAM = 3000  # The noise stream from which x is drawn.


def image_of(x_dim: int, image: Sequence[int] | None = None) -> tuple[int, int, int]:
    """The image shape (C, H, W) of rows with x_dim numbers: `image` if it is given, else a square grey or colour image.

    Raises:
        InputError: `image` does not have x_dim numbers, or x_dim is not the size of a square image.
    """
    if image is not None:
        try:
            shape = tuple(operator.index(size) for size in image)
        except (TypeError, ValueError) as error:
            raise InputError(f"image must be (C, H, W); got {image!r}") from error
        if len(shape) != 3 or min(shape) < 1 or math.prod(shape) != x_dim:
            raise InputError(f"image must be (C, H, W) of {x_dim} numbers, x_dim; got {image!r}")
        return shape[0], shape[1], shape[2]
    for channels in (1, 3):
        side = math.isqrt(x_dim // channels)
        if channels * side * side == x_dim:
            return channels, side, side
    raise InputError(f"x_dim must be of a square grey or colour image, or image be (C, H, W), where a model has it; got {x_dim}")


class PixelCNNDecoder(nn.Module):
    """p(x|c) = Π_i p(x_i | x_1 … x_{i−1}, c) over the pixels, and over their colours, in raster order.

    The layers are one mask-A convolution; then `blocks` residual layers h + conv(relu(h)) with mask B; then `tail` more mask-B
    convolutions of relu(h), the last of which gives the parameters of the pixels. c is an image of `condition` channels, and
    every pixel sees all of it.

    Args:
        image: (C, H, W).
        condition: Number of channels of c; 0 for none.
        maps: Number of channels of the hidden layers, a multiple of C.
        blocks: Number of residual layers.
        tail: Number of layers after them, at least 1.
        kernel: Odd kernel size of all layers except the first.
        first_kernel: Odd kernel size of the first layer.
        likelihood: "bernoulli"; "categorical" over the `levels` values v/(levels − 1); or "logistic", a logistic distribution
            discretised to these values (Salimans et al. 2017).
        levels: Number of values of a pixel, unless the likelihood is "bernoulli".
        autoregressive: If false, no pixel sees x: the same layers, without masks, see c alone.

    Raises:
        InputError: An argument is out of range, or pixels see neither x nor a condition.
    """

    support: tuple[float, float] | None = (0.0, 1.0)

    def __init__(
        self,
        image: tuple[int, int, int],
        condition: int = 0,
        maps: int = 64,
        blocks: int = 4,
        tail: int = 3,
        kernel: int = 3,
        first_kernel: int = 7,
        likelihood: str = "bernoulli",
        levels: int = 256,
        autoregressive: bool = True,
    ) -> None:
        super().__init__()
        for name, value, least in (("maps", maps, 1), ("blocks", blocks, 0), ("tail", tail, 1), ("condition", condition, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"{name} must be a whole number of at least {least}; got {value!r}")
        if not autoregressive and not condition:
            raise InputError("condition must be at least 1 channel where pixels do not see each other; got 0")
        self.image, self.condition, self.autoregressive = image, condition, autoregressive
        if likelihood not in KINDS:
            raise InputError(f"likelihood must be one of {', '.join(KINDS)}; got {likelihood!r}")
        self.distribution = PixelOutput(likelihood, 2 if likelihood == "bernoulli" else levels)
        colors, out = image[0], self.distribution.channels(image[0])
        size, first_size = odd_size("kernel", kernel), odd_size("first_kernel", first_kernel)
        # The numbers of the widest layer for one row; evaluate.memory reads them.
        self.row_numbers = max(maps, out) * image[1] * image[2]

        def conv(n_in: int, n_out: int, size: tuple[int, int], mask: str = "B") -> Any:
            if autoregressive:
                return MaskedConv2d(n_in, n_out, size, mask, colors, condition if mask == "A" else 0)
            return nn.Conv2d(n_in, n_out, size, padding=(size[0] // 2, size[1] // 2))

        self.first = conv(condition + (colors if autoregressive else 0), maps, first_size, "A")
        self.blocks = nn.ModuleList(conv(maps, maps, size) for _ in range(blocks))
        self.tail = nn.ModuleList(conv(maps, out if i == tail - 1 else maps, size) for i in range(tail))

    def layers(self) -> list[CausalLayer]:
        """The layers that `forward` applies, in order."""
        blocks: list[Any] = list(self.blocks)
        tail: list[Any] = list(self.tail)
        residual = [CausalLayer(conv, relu=True, residual=True) for conv in blocks]
        return [CausalLayer(self.first), *residual, *(CausalLayer(conv, relu=True) for conv in tail)]

    def forward(self, c: Tensor, x: Tensor) -> Tensor:
        """The parameters of every pixel, [N, C·P, H, W], given c [N, condition, H, W] and the pixels of x before it.

        x is [N, C, H, W].
        """
        h = torch.cat([c, x], 1) if self.autoregressive else c
        return call_layers(self.layers(), h)

    def parameters_of(self, c: Tensor, x: Tensor) -> Tensor:
        """The same for flat rows c [..., condition·H·W] and x [..., D], whose leading dimensions broadcast."""
        _, height, width = self.image
        maps = c.reshape(math.prod(c.shape[:-1]), self.condition, height, width)
        return self(maps, self._images(c, x))

    def log_prob(self, c: Tensor, x: Tensor) -> Tensor:
        """log p(x|c) in nats: c [..., condition·H·W] and x [..., D], whose leading dimensions broadcast -> [...]."""
        return self.distribution.log_prob(self.parameters_of(c, x), self._images(c, x)).view(c.shape[:-1])

    def _images(self, c: Tensor, x: Tensor) -> Tensor:
        """x, repeated for the rows of c, as images [N, C, H, W]."""
        return x.expand(*c.shape[:-1], -1).reshape(math.prod(c.shape[:-1]), *self.image)

    def mean(self, c: Tensor, x: Tensor | None = None) -> Tensor:
        """The mean of every pixel given c and the preceding pixels of x (zeros if x is None), [..., D]."""
        x = c.new_zeros(math.prod(self.image)) if x is None else x
        return self.distribution.mean(self.parameters_of(c, x)).view(*c.shape[:-1], math.prod(self.image))

    def sample(
        self, h: Tensor, noise: Any, temperature: float = 1.0, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Draw x ~ p(x|h) once for each row of h [n, 1, condition·H·W]: [n, 1, D]. See `OutputDistribution.sample`."""
        return self.generate(h, noise, temperature=temperature, progress=progress)

    @torch.no_grad()
    def generate(
        self,
        c: Tensor,
        noise: Any,
        observed: Tensor | None = None,
        keep: Tensor | None = None,
        temperature: float = 1.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draw x ~ p(x|c) once for each row of c [n, 1, condition·H·W], with the noise of models.Noise: [n, 1, D].

        The pixels must be autoregressive. They are drawn one by one by the cached sampler; see `sample_pixels` for the other
        arguments. If this module or a part of it was modified (see `is_plain`), the module is called for each pixel instead,
        which is slow.
        """
        n = c.shape[0]
        uniforms = noise.uniform(c.new_zeros(n, 1, math.prod(self.image)), OUTPUT_STREAM).view(n, *self.image)
        maps = c.reshape(n, self.condition, *self.image[1:]) if self.condition else None
        draws = (self.distribution, uniforms, maps, observed, keep, temperature, progress)
        if changed := self._changed():

            def network(x: Tensor, condition: Tensor | None) -> Tensor:
                params: Tensor = self(x.new_zeros(n, 0, *x.shape[2:]) if condition is None else condition, x)
                return params

            x = sample_by_calls(network, self, changed, *draws, unmasked=self.condition)
        else:
            x = sample_pixels(self.layers(), *draws)
        return x.view(n, 1, math.prod(self.image))

    def _changed(self) -> str | None:
        """The name of a part that was modified (see `is_plain`), or None if there is none."""
        if not (is_plain(self, PixelCNNDecoder) or is_plain(self, PixelCNNOutput)):
            return type(self).__name__
        for name, part in self.named_children():
            if isinstance(part, nn.ModuleList) and not is_plain(part, nn.ModuleList):
                return name
        convs = [
            ("first", self.first),
            *((f"{name}.{i}", m) for name in ("blocks", "tail") for i, m in enumerate(getattr(self, name))),
        ]
        return next((name for name, conv in convs if not is_plain(conv, MaskedConv2d, "weight", "bias")), None)

    @torch.no_grad()
    def init_mean(self, mean: Tensor) -> None:
        """Set the last bias so that untrained pixels all have the mean value of `mean` [D]. Categorical pixels do not change."""
        last: Any = self.tail[-1]
        bias: Tensor = last.bias
        level = mean.mean().clamp(1e-3, 1.0 - 1e-3)
        if self.distribution.kind == "bernoulli":
            bias.fill_(torch.logit(level))
        elif self.distribution.kind == "logistic":
            bias.view(-1, 2)[:, 0] = 2.0 * level - 1.0


class PixelCNNOutput(PixelCNNDecoder):
    """p(x|h) as a PixelCNN: a linear layer turns h into an image of one channel, which every pixel sees.

    Args:
        n_in: Size of h.
        x_dim: Size of x, that of a square grey or colour image.
        head: Ignored; it exists because the Gaussian output has it.
    """

    def __init__(self, n_in: int, x_dim: int, head: str = "log_var") -> None:
        super().__init__(image_of(x_dim), condition=1)
        self.to_image = nn.Linear(n_in, math.prod(self.image[1:]))

    def parameters_of(self, c: Tensor, x: Tensor) -> Tensor:
        """The parameters of every pixel, [N, C·P, H, W], given h [..., n_in] and x [..., D]; leading dimensions broadcast."""
        return super().parameters_of(self.to_image(c), x)

    def generate(self, c: Tensor, noise: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Draw x ~ p(x|h) once for each row of h [n, 1, n_in]: [n, 1, D]. See `PixelCNNDecoder.generate`."""
        return super().generate(self.to_image(c), noise, *args, **kwargs)
