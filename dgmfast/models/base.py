"""The protocol that every model implements.

A model is a joint distribution p(x, latents[, y]) with an inference model q(latents[, y] | x). Its work is split into two
methods:

- `encode(x, y)` computes everything that depends on x (and y) alone, once per x, as a dict of tensors with leading dimension B;
- `draw(encoding, x, k, noise, y)` draws k joint samples of the latents for each row and returns the `Terms` of the bounds.

Everything else (importance weights, the ELBO, the streaming log-likelihood, training) is written once, on top of these two. The
latents may form a hierarchy; each of them draws from its own noise stream. A label is either observed (y is a tensor), or summed
over as a `LabelEstimator` prescribes (y is the estimator, or None for the exact sum). Encoders receive x flat, [B, D], and
reshape it if they need to.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from dgmfast.errors import InputError, check_count
from dgmfast.models.labels import LabelEstimator, SampledLabel
from dgmfast.models.noise import Noise, Seed
from dgmfast.models.terms import Elbo, Encoding, Label, Terms
from dgmfast.nn import OutputDistribution


class GenerativeModel(nn.Module):
    """Base class of all models. Subclasses define `encode`, `draw` and `prior`, and an `output`, the distribution p(x | latents).

    `x_dim` is the size of x, and `num_classes` is the number of labels Y, or None if the model has no label.

    The methods that take x and y raise InputError unless x is [B, x_dim] with the dtype and device of the parameters, is finite
    and lies in the support of p(x | latents) ([0, 1] for Bernoulli pixels), and y is [B] int64 and the model takes labels. Values
    are not checked while a function is compiled, exported or captured in a CUDA graph.

    The methods that draw take a seed or a generator. With a seed, every call gives the same result. Without one, each call draws
    new noise from `generator`, by default torch's own generator of the model's device, which torch.manual_seed sets.
    """

    x_dim: int
    num_classes: int | None = None
    output: OutputDistribution

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        """Keep the arguments, from which a run folder can make the model again (see `settings`)."""
        model = super().__new__(cls)
        model.__dict__["_arguments"] = arguments, named
        return model

    def settings(self) -> dict[str, Any]:
        """The arguments with which the model was made, by name. Those that were left out are not in it."""
        arguments, named = self.__dict__["_arguments"]
        return dict(inspect.signature(type(self)).bind(*arguments, **named).arguments)

    def forward(
        self,
        x: Tensor,
        y: Label = None,
        beta: float = 1.0,
        k: int = 1,
        seed: Seed = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Elbo:
        """The same as `elbo`."""
        return self.elbo(x, y, beta, k, seed, generator=generator)

    def rows(self, x: Tensor) -> Tensor:
        """x as rows [B, x_dim]; images [B, C, H, W] and [B, H, W] are flattened."""
        flat = isinstance(x, Tensor) and x.dim() > 2 and math.prod(x.shape[1:]) == self.x_dim
        return x.flatten(1) if flat else x

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        """Compute everything that depends on x [B, D] (and y [B]) alone, once per x.

        In semi-supervised training without batch norm, labelled and unlabelled rows are encoded together, and y is that of the
        unlabelled rows. A model that is trained this way must therefore use y only in `draw`.
        """
        raise abstract_method(self, "encode")

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Label = None) -> Terms:
        """Draw k joint samples of the latents per row, and return the terms of the bounds at these samples."""
        raise abstract_method(self, "draw")

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        """Draw n samples of the latents from the prior, and return the input of the output distribution, [n, 1, ...]."""
        raise abstract_method(self, "prior")

    def standard_normal(self, n: int, size: int, noise: Noise, stream: int) -> Tensor:
        """Draw z ~ N(0, I), [n, 1, size]."""
        zeros = next(self.parameters()).new_zeros(n, size)
        return noise.gaussian((zeros, zeros), 1, stream)[0]

    def fused(self, device: torch.device) -> list[nn.Module]:
        """The modules that `draw` does not call on this device in evaluation, because one op does their work (see nn.decode)."""
        return []

    def init_output_mean(self, mean: Tensor) -> None:
        """Set the biases of the untrained p(x | latents) so that its mean is about `mean` [D]."""
        self.output.init_mean(mean)

    def begin_epoch(self, epoch: int) -> None:
        """Hook that runs before every training epoch (0-based).

        Models that train in stages use it to freeze the parameters of the other stages.
        """

    @property
    def ignores_labels(self) -> bool:
        """True while labels are ignored, as in M1's pre-training."""
        return self.num_classes is None

    def supervise(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Tensor) -> tuple[Terms | None, dict[str, Tensor]]:
        """The contribution of labelled rows to the loss.

        Returns:
            The terms of L(x, y), or None if the model has none, and the cross-entropies of the classifiers, each [B, k] in nats
            (eq. 4.10).
        """
        terms = self.draw(encoding, x, k, noise, y)
        return terms, terms.cross_entropy

    def check(self, caller: str, x: Tensor, y: Label) -> None:
        """Raise InputError, beginning with `caller`, unless the model takes x and y."""
        if not isinstance(x, Tensor):
            raise InputError(f"{caller}: x must be a tensor of shape [N, {self.x_dim}]; got {type(x).__name__}")
        if x.dim() != 2 or x.shape[1] != self.x_dim or not x.is_floating_point():
            raise InputError(f"{caller}: x must be floating, of shape [N, {self.x_dim}]; got {x.dtype} {list(x.shape)}")
        parameter = next(self.parameters())
        if x.device != parameter.device or (x.dtype != parameter.dtype and not torch.is_autocast_enabled(x.device.type)):
            raise InputError(
                f"{caller}: x must be {parameter.dtype} on {parameter.device}, like the model; got {x.dtype} on {x.device}"
            )
        self.check_values(caller, x)
        self.check_labels(caller, y, x.shape[0], x.device)

    def check_values(self, caller: str, x: Tensor, first_row: int = 0) -> None:
        """Raise InputError, beginning with `caller`, unless x [B, D] is finite and in the support of p(x | latents).

        The row in the message is counted from `first_row`.
        """
        if not x.numel() or not _readable(x):
            return
        # A Potential has no output.
        low, high = getattr(getattr(self, "output", None), "support", None) or (-math.inf, math.inf)
        least, most = x.detach().aminmax()  # NaN if x contains a NaN
        if low <= least and most <= high and most - least < math.inf:
            return
        wrong = ~x.detach().isfinite() | (x.detach() < low) | (x.detach() > high)
        row, column = wrong.nonzero()[0].tolist()
        expected = "be finite" if low == -math.inf else f"lie in [{low:g}, {high:g}], the support of {type(self.output).__name__}"
        raise InputError(f"{caller}: x must {expected}; got {x[row, column].item():g} in row {first_row + row}")

    def check_labels(self, caller: str, y: Label, n: int, device: torch.device) -> None:
        """Raise InputError, beginning with `caller`, unless the model takes y for n rows."""
        if y is None:
            return
        if self.num_classes is None:
            got = list(y.shape) if isinstance(y, Tensor) else y
            raise InputError(f"{caller}: y must be None, because {type(self).__name__} takes no labels; got {got}")
        if isinstance(y, LabelEstimator):
            return
        if not isinstance(y, Tensor):
            raise InputError(f"{caller}: y must be labels or a LabelEstimator; got {y!r}")
        if y.shape != (n,) or y.dtype != torch.int64 or y.device != device:
            raise InputError(f"{caller}: y must be int64 [{n}] on {device}; got {y.dtype} {list(y.shape)} on {y.device}")
        if _readable(y) and (wrong := (y < 0) | (y >= self.num_classes)).any():
            row = int(wrong.nonzero()[0])
            raise InputError(f"{caller}: y must lie in 0..{self.num_classes - 1}; got {int(y[row])} in row {row}")

    def log_weights(
        self,
        x: Tensor,
        k: int = 1,
        y: Label = None,
        seed: Seed = None,
        first_row: int = 0,
        first_sample: int = 0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The log importance weights log p(x, latents) − log q(latents | x) for k samples of the latents (eq. 3.31).

        Args:
            x: [B, D].
            k: Number of samples per row.
            y: [B] labels, a LabelEstimator, or None for the exact sum over the label.
            seed: Seed of the noise; None draws one from `generator`.
            first_row: Coordinate of the first row in the noise.
            first_sample: Coordinate of the first sample in the noise.
            generator: Source of the seed; by default torch's own generator.

        Returns:
            [B, k], in nats.

        Raises:
            InputError: The model does not take x or y, or k is below 1.
        """
        x = self.rows(x)
        self.check("log_weights", x, y)
        check_count("log_weights", "k", k)
        noise = Noise.of("log_weights", seed, generator, x.device, first_row, first_sample)
        return self.draw(self.encode(x, y), x, k, noise, y).log_weights()

    def elbo(
        self,
        x: Tensor,
        y: Label = None,
        beta: float = 1.0,
        k: int = 1,
        seed: Seed = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Elbo:
        """The evidence lower bound of each row and its terms, [B] in nats, averaged over k samples (eqs 3.11 and 3.30).

        Args:
            x: [B, D].
            y: [B] labels, a LabelEstimator, or None for the exact sum over the label.
            beta: Weight of the KL terms (eq. 5.5).
            k: Number of samples per row.
            seed: Seed of the noise; None draws one from `generator`.
            generator: Source of the seed; by default torch's own generator.

        Raises:
            InputError: The model does not take x or y, or k is below 1.
        """
        x = self.rows(x)
        self.check("elbo", x, y)
        check_count("elbo", "k", k)
        terms = self.draw(self.encode(x, y), x, k, Noise.of("elbo", seed, generator, x.device), y)
        kl = {name: value.mean(1) for name, value in terms.kl_terms().items()}
        return Elbo(terms.bound(beta).mean(1), terms.reconstruction().mean(1), kl)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        seed: Seed = None,
        temperature: float = 1.0,
        progress: Callable[[int, int], None] | None = None,
        *,
        generator: torch.Generator | None = None,
        draw_x: bool = False,
    ) -> Tensor:
        """Draw n samples from the model, [n, D]: the mean of p(x | latents), or x drawn pixel by pixel if p is autoregressive.

        Args:
            n: Number of samples.
            y: [n] labels, or None to draw them from the prior.
            seed: Seed of the noise; None draws one from `generator`.
            temperature: Divides the logits of autoregressive pixels; must be 1 for other models.
            progress: Called with the number of finished rows of pixels and the total number of rows.
            generator: Source of the seed; by default torch's own generator.
            draw_x: If true, draw x from p(x | latents) instead of giving its mean. Autoregressive pixels are always drawn.

        Raises:
            InputError: n is negative, the model does not take y, or the temperature is not 1 for a model without autoregressive
                pixels.
        """
        check_count("sample", "n", n, 0)
        device = next(self.parameters()).device
        self.check_labels("sample", y, n, device)
        if temperature != 1.0 and not self.autoregressive:
            raise InputError(f"sample: temperature is of autoregressive pixels, and must be 1 without; got {temperature}")
        noise = Noise.of("sample", seed, generator, device)
        h = self.prior(n, noise, y)
        if draw_x:
            return self.output.sample(h, noise, temperature, progress).squeeze(1)
        return self.mean_or_sample(h, noise, temperature, progress)

    @property
    def autoregressive(self) -> bool:
        """True if p(x | latents) draws each pixel given the pixels before it."""
        output: OutputDistribution | None = getattr(self, "output", None)  # A Potential has no output.
        return output is not None and output.autoregressive

    def mean_or_sample(
        self, h: Tensor, noise: Noise, temperature: float = 1.0, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """The image that `sample` returns for p(x|h), h [n, 1, ...]: its mean, or a sample if p is autoregressive; [n, D]."""
        if self.autoregressive:
            return self.output.sample(h, noise, temperature, progress).squeeze(1)
        return self.output.mean(h).squeeze(1)

    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, y: Tensor | None = None, seed: Seed = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean of p(x | latents), of the shape of x, with the latents (and the label, unless y is given) drawn once from q.

        If p is autoregressive, it is the mean of each pixel given the latents and the pixels of x before it.

        Raises:
            InputError: The model does not take x or y.
        """
        rows = self.rows(x)
        decoded = self._posterior("reconstruct", rows, y, seed, generator).decoded
        return self.output.mean(decoded, rows.unsqueeze(1)).squeeze(1).view(x.shape)

    @torch.no_grad()
    def latent_means(
        self, x: Tensor, y: Tensor | None = None, seed: Seed = None, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The mean of q for each latent, [B, D_i], given one sample of its parents (and of the label, unless y is given).

        Raises:
            InputError: The model does not take x or y.
        """
        terms = self._posterior("latent_means", self.rows(x), y, seed, generator)
        return {name: latent.q[0].squeeze(1) for name, latent in terms.latents.items()}

    def _posterior(self, caller: str, x: Tensor, y: Tensor | None, seed: Seed, generator: torch.Generator | None) -> Terms:
        """Check x and y, and draw one sample of the latents per row."""
        self.check(caller, x, y)
        label: Label = SampledLabel() if y is None and self.num_classes else y
        return self.draw(self.encode(x, label), x, 1, Noise.of(caller, seed, generator, x.device), label)


def _readable(t: Tensor) -> bool:
    """True if the values of t can be read here: t is not on meta, and no function is being compiled, exported or captured."""
    if t.device.type == "meta" or torch.compiler.is_compiling():
        return False
    return not (t.is_cuda and torch.cuda.is_current_stream_capturing())


def abstract_method(model: GenerativeModel, method: str) -> TypeError:
    """Return the TypeError for a method that a subclass must define but does not."""
    return TypeError(f"{type(model).__name__} does not define {method}, which every model must")
