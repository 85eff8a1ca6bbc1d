"""The one protocol that every model implements.

A model is a joint p(x, latents[, y]) with an inference model q(latents[, y] | x). It splits its work in two:

- `encode(x, y)` computes, once per x, all that depends on x (and y) alone, as a dict of tensors with leading dimension B;
- `draw(encoding, x, k, noise, y)` draws k joint samples of the latents for each row and returns the `Terms` of the bounds.

Everything else (importance weights, ELBO, streaming log-likelihood, training) is written once, on those two.
Latents may form a hierarchy (each draws from its own noise stream). A label is observed (y is a tensor), or summed over as a
`LabelEstimator` says (y is one, or None for the exact sum). Encoders see x flat, [B, D], and reshape it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dgmfast.errors import InputError, check_count
from dgmfast.models.labels import LabelEstimator, SampledLabel
from dgmfast.models.noise import Noise, Seed
from dgmfast.models.terms import Elbo, Encoding, Label, Terms
from dgmfast.nn import OutputDistribution


class GenerativeModel(nn.Module):
    """Base of all models; subclasses give `encode`, `draw` and `prior`, and an `output`, the distribution p(x|·).

    num_classes: Y, where the model has a label. The methods that take x and y raise InputError for an x that is not [B, x_dim] of
    the parameters' dtype and device, is not finite, or lies outside the support of p(x | latents), [0, 1] for Bernoulli pixels;
    and for a y that is not [B] int64 or that the model does not take. Values are not looked at while a function is compiled,
    exported or captured.

    Methods that draw take a seed or a generator. With a seed they give the same result at every call. Without one, each call
    draws new noise from `generator`, by default torch's own of the model's device, which torch.manual_seed sets.
    """

    x_dim: int
    num_classes: int | None = None
    output: OutputDistribution

    def encode(self, x: Tensor, y: Label = None) -> Encoding:
        """All that depends on x [B, D] (and y [B]) alone, computed once.

        In semi-supervised training without batch norm, labelled and unlabelled rows are encoded together, with the y of the
        latter: a model that trains so looks at y in `draw`.
        """
        raise abstract_method(self, "encode")

    def draw(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Label = None) -> Terms:
        """k joint samples of the latents per row, and the terms of the bounds at them."""
        raise abstract_method(self, "draw")

    def prior(self, n: int, noise: Noise, y: Tensor | None = None) -> Tensor:
        """What the output distribution takes, [n, 1, ...], with the latents drawn from the prior."""
        raise abstract_method(self, "prior")

    def standard_normal(self, n: int, size: int, noise: Noise, stream: int) -> Tensor:
        """z ~ N(0, I), [n, 1, size]."""
        zeros = next(self.parameters()).new_zeros(n, size)
        return noise.gaussian((zeros, zeros), 1, stream)[0]

    def fused(self, device: torch.device) -> list[nn.Module]:
        """The modules that `draw` does not call on a device in evaluation, because one op does their work (nn.decode)."""
        return []

    def init_output_mean(self, mean: Tensor) -> None:
        """Set the biases of the untrained p(x | latents) so that its mean is about `mean` [D]."""
        self.output.init_mean(mean)

    def begin_epoch(self, epoch: int) -> None:
        """Called before every training epoch (0-based): for models that train in stages, whose other parameters it freezes."""

    @property
    def ignores_labels(self) -> bool:
        """True while labels are ignored, as in M1's training before M2's."""
        return self.num_classes is None

    def supervise(self, encoding: Encoding, x: Tensor, k: int, noise: Noise, y: Tensor) -> tuple[Terms | None, dict[str, Tensor]]:
        """What labelled rows add to the loss: the terms of L(x, y), and the classifiers' cross-entropies [B, k] (eq. 4.10)."""
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

        The error counts rows from `first_row`.
        """
        if not x.numel() or not _readable(x):
            return
        low, high = getattr(getattr(self, "output", None), "support", None) or (-math.inf, math.inf)  # a potential has no output
        least, most = x.detach().aminmax()  # NaN where x has one
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
        """log p(x, latents) − log q(latents | x) for k draws of the latents: [B, D] -> [B, k] nats (eq. 3.31)."""
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
        """The bound of each row and its terms, [B] nats, averaged over k draws (eqs 3.11, 3.30; β: eq. 5.5)."""
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
    ) -> Tensor:
        """n draws from the model, [n, D]: the mean of p(x | latents), or x itself, pixel by pixel, where that is autoregressive.

        temperature: divides the logits of autoregressive pixels. progress: told the rows of pixels that are done, and of all.
        """
        check_count("sample", "n", n, 0)
        device = next(self.parameters()).device
        self.check_labels("sample", y, n, device)
        if temperature != 1.0 and not self.autoregressive:
            raise InputError(f"sample: temperature is of autoregressive pixels, and must be 1 without; got {temperature}")
        noise = Noise.of("sample", seed, generator, device)
        return self.mean_or_sample(self.prior(n, noise, y), noise, temperature, progress)

    @property
    def autoregressive(self) -> bool:
        """Whether p(x | latents) draws a pixel given those before it."""
        output: OutputDistribution | None = getattr(self, "output", None)  # A potential has none.
        return output is not None and output.autoregressive

    def mean_or_sample(
        self, h: Tensor, noise: Noise, temperature: float = 1.0, progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """What `sample` shows of p(x|h), h [n, 1, ...]: its mean, or a draw where pixels depend on each other; [n, D]."""
        if self.autoregressive:
            return self.output.sample(h, noise, temperature, progress).squeeze(1)
        return self.output.mean(h).squeeze(1)

    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, y: Tensor | None = None, seed: Seed = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean of p(x | latents), [B, D], with the latents (and a label that is not given) drawn once from q.

        Of an autoregressive one: of each pixel, given the latents and the pixels of x before it.
        """
        return self.output.mean(self._posterior("reconstruct", x, y, seed, generator).decoded, x.unsqueeze(1)).squeeze(1)

    @torch.no_grad()
    def latent_means(
        self, x: Tensor, y: Tensor | None = None, seed: Seed = None, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """The mean of q for each latent, [B, D_i], given one draw of its parents (and of a label that is not given)."""
        terms = self._posterior("latent_means", x, y, seed, generator)
        return {name: latent.q[0].squeeze(1) for name, latent in terms.latents.items()}

    def _posterior(self, caller: str, x: Tensor, y: Tensor | None, seed: Seed, generator: torch.Generator | None) -> Terms:
        self.check(caller, x, y)
        label: Label = SampledLabel() if y is None and self.num_classes else y
        return self.draw(self.encode(x, label), x, 1, Noise.of(caller, seed, generator, x.device), label)


def _readable(t: Tensor) -> bool:
    """Whether the values of t can be looked at here: not on meta, nor while a function is compiled, exported or captured."""
    if t.device.type == "meta" or torch.compiler.is_compiling():
        return False
    return not (t.is_cuda and torch.cuda.is_current_stream_capturing())


def abstract_method(model: GenerativeModel, method: str) -> TypeError:
    return TypeError(f"{type(model).__name__} does not define {method}, which every model must")
