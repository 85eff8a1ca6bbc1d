"""How a label enters a model: it is observed, summed over exactly, or summed over by an estimate.

A tensor of a draw that does not depend on the label is [B, k, ...]. A `Labels` object defines the shape of a labelled tensor, and
how to take the mean over the label:

- an observed or sampled label: [B, k, ...], one label per row and sample;
- the exact sum: [B, k, Y, ...], every label for every sample;
- the sparse sum: [N, ...], the N kept triples (row, sample, label) (see `SparseSum`);
- the Gumbel-softmax relaxation: [B, k, ...], with a soft label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dgmfast import ops
from dgmfast.errors import InputError
from dgmfast.models.noise import Gaussian, Noise
from dgmfast.nn import activate

# Added to the stream if samples are numbered by kept triples, so that their noise differs from that of samples numbered by rows.
KEPT = 2000


class Labels:
    """The label of one draw.

    `log_qy` is the normalised log q(y | latents, x), [B, k, Y], unless the label is observed.
    """

    log_qy: Tensor
    # True if labelled tensors hold different numbers of entries per sample, which would distort the statistics of batch norm.
    joins_rows = False

    def expand(self, t: Tensor) -> Tensor:
        """Reshape a label-free [B, k, D] so that it broadcasts against labelled vectors."""
        return t

    def expand_term(self, t: Tensor) -> Tensor:
        """Reshape a term of the bound, label-free [B, k] or labelled, so that it adds to labelled terms."""
        return t

    def linear(self, h: Tensor, weight: Tensor, label_weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        """act(W h + U onehot(y) + bias), for h label-free or labelled, [..., I]; bias is [H], or [B, 1, H] per row."""
        raise NotImplementedError

    def gaussian(self, noise: Noise, q: Gaussian, k: int, stream: int) -> tuple[Tensor, Tensor]:
        """Draw k samples per row of a labelled Gaussian, and compute their log q. q is given for 1 or for k samples."""
        mean, log_var = q
        shape = (mean.shape[0], k, mean.shape[-1])
        return noise.gaussian((mean.expand(shape), log_var.expand(shape)), 1, stream)

    def prior(self, log_py: Tensor) -> Tensor:
        """log p(y) of the labels of this draw, from log p of all labels: [Y], label-free [B, k, Y], or labelled [B, k, Y, Y]."""
        raise NotImplementedError

    def mean(self, term: Tensor) -> Tensor:
        """The mean over the label, Σ_y q(y|·) term_y, [B, k]."""
        return term

    def kl(self, log_py: Tensor) -> Tensor:
        """The cost of the label, [B, k] in nats: −log p(y) if it is observed, otherwise KL(q(y|·) ‖ p(y|·))."""
        raise NotImplementedError

    def bound(self, value: Tensor, log_py: Tensor, beta: float) -> Tensor:
        """The mean over the label of value − β KL, [B, k] in nats (eqs 4.7 and 4.20)."""
        return self.mean(value) - beta * self.kl(log_py)

    def log_weights(self, log_w: Tensor, log_py: Tensor, beta: float) -> Tensor:
        """log w^β including the label, [B, k], from log w^β without it.

        Raises:
            InputError: This estimate of the label sum cannot be used inside a logarithm.
        """
        raise InputError(f"{type(self).__name__} is no estimate inside a logarithm: take the exact sum where K > 1")


class Observed(Labels):
    """A known label y [B]."""

    def __init__(self, y: Tensor) -> None:
        self.y = y.unsqueeze(1)  # [B, 1]

    def linear(self, h: Tensor, weight: Tensor, label_weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        return activate(activation, F.linear(h, weight) + (F.embedding(self.y, label_weight.t()) + bias))

    def prior(self, log_py: Tensor) -> Tensor:
        return log_py[self.y] if log_py.dim() == 1 else _pick(log_py, self.y)

    def kl(self, log_py: Tensor) -> Tensor:
        return -log_py

    def log_weights(self, log_w: Tensor, log_py: Tensor, beta: float) -> Tensor:
        return log_w + (log_py if beta == 1.0 else beta * log_py)


class SampledLabels(Observed):
    """A label y [B, k], drawn from q(y|·)."""

    def __init__(self, log_qy: Tensor, y: Tensor) -> None:
        self.log_qy, self.y = log_qy, y
        self.log_q = _pick(log_qy, y)

    def kl(self, log_py: Tensor) -> Tensor:
        return self.log_q - log_py

    def log_weights(self, log_w: Tensor, log_py: Tensor, beta: float) -> Tensor:
        return log_w + beta * (log_py - self.log_q)


class EnumeratedLabels(Labels):
    """All labels for every sample."""

    def __init__(self, log_qy: Tensor) -> None:
        self.log_qy = log_qy

    def expand(self, t: Tensor) -> Tensor:
        return t.unsqueeze(2)

    def expand_term(self, t: Tensor) -> Tensor:
        return t.unsqueeze(2) if t.dim() == 2 else t

    def linear(self, h: Tensor, weight: Tensor, label_weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        if h.dim() == 3:
            return ops.label_linear(h, weight, label_weight, bias, None if activation == "identity" else activation)
        # h already depends on the label: one product, plus the column of U that belongs to the label.
        return activate(activation, F.linear(h, weight) + (label_weight.t() + (bias if bias.dim() == 1 else bias.unsqueeze(2))))

    def gaussian(self, noise: Noise, q: Gaussian, k: int, stream: int) -> tuple[Tensor, Tensor]:
        mean, log_var = q  # [B, 1 or k, Y, D]
        n, _, classes, width = mean.shape
        mean, log_var = (t.expand(n, k, classes, width).flatten(1, 2) for t in (mean, log_var))
        z, log_q = replace(noise, first_sample=noise.first_sample * classes).gaussian((mean, log_var), 1, stream)
        return z.unflatten(1, (k, classes)), log_q.unflatten(1, (k, classes))

    def prior(self, log_py: Tensor) -> Tensor:
        return log_py.diagonal(dim1=-2, dim2=-1) if log_py.dim() == 4 else log_py

    def mean(self, term: Tensor) -> Tensor:
        return term if term.dim() == 2 else (self.log_qy.exp() * term).sum(-1)

    def kl(self, log_py: Tensor) -> Tensor:
        return -ops.marginalize_labels(self.log_qy, log_py)

    def bound(self, value: Tensor, log_py: Tensor, beta: float) -> Tensor:
        # Σ_y q_y (v_y + β log p(y) − β log q_y)
        if beta == 1.0:
            return ops.marginalize_labels(self.log_qy, value + log_py)
        return ops.marginalize_labels(self.log_qy, value + beta * log_py + (1.0 - beta) * self.log_qy)

    def log_weights(self, log_w: Tensor, log_py: Tensor, beta: float) -> Tensor:
        # log Σ_y q_y (w_y / q_y)^β. At β = 1, q(y|·) cancels.
        log_w = log_w + (log_py if beta == 1.0 else beta * log_py + (1.0 - beta) * self.log_qy)
        # importance_bound plus log Y is the log of the sum; its gradient is 0 where no label has a weight.
        return ops.importance_bound(log_w) + math.log(log_w.shape[-1])


class SparseLabels(Labels):
    """The triples that a sparse sum keeps.

    `sample` [N] indexes the B·k samples, `y` [N] is the label, and `weight` [N] is the weight of the triple in the sum.
    """

    joins_rows = True

    def __init__(self, log_qy: Tensor, keep: Tensor, probability: Tensor, best: Tensor) -> None:
        self.log_qy = log_qy
        self.b, self.k, self.classes = log_qy.shape
        flat = keep.view(-1, self.classes)
        self.sample, self.y = flat.nonzero(as_tuple=True)
        # The most probable label is the baseline: every other kept label has weight q/p, and the most probable one has the
        # rest, so that the weights of a sample sum to 1. Only kept triples are divided, because a dropped one may have p = 0.
        q, p = (t.reshape(-1, self.classes)[self.sample, self.y] for t in (log_qy, probability))
        weight = q.exp() / p
        is_best = self.y == best.view(-1)[self.sample]
        others = weight.masked_fill(is_best, 0.0)
        rest = 1.0 - others.new_zeros(self.b * self.k).index_add(0, self.sample, others)
        self.weight = torch.where(is_best, rest[self.sample], others)

    def expand(self, t: Tensor) -> Tensor:
        """Label-free [B, 1 or k, D] -> [N, D]."""
        rows = self.sample if t.shape[1] == self.k else self.sample // self.k
        return t.flatten(0, 1)[rows]

    def expand_term(self, t: Tensor) -> Tensor:
        return self.expand(t) if t.dim() == 2 else t

    def linear(self, h: Tensor, weight: Tensor, label_weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        product = F.linear(h, weight)
        per_sample = h.dim() == 3  # h is label-free: one product per sample
        total = self.expand(product + bias) if per_sample else product + (bias if bias.dim() == 1 else self.expand(bias))
        return activate(activation, total + F.embedding(self.y, label_weight.t()))

    def gaussian(self, noise: Noise, q: Gaussian, k: int, stream: int) -> tuple[Tensor, Tensor]:
        mean, log_var = (t.unsqueeze(1) for t in q)
        z, log_q = replace(noise, first_row=noise.first_row * self.k * self.classes).gaussian((mean, log_var), 1, stream + KEPT)
        return z.squeeze(1), log_q.squeeze(1)

    def prior(self, log_py: Tensor) -> Tensor:
        if log_py.dim() == 2:
            raise InputError("the sparse sum needs a p(y|·) whose parents do not depend on y: take the exact sum")
        return log_py  # log p of all labels: its mean and the entropy are exact

    def mean(self, term: Tensor) -> Tensor:
        if term.dim() == 2:
            return term
        return term.new_zeros(self.b * self.k).index_add(0, self.sample, self.weight * term).view(self.b, self.k)

    def kl(self, log_py: Tensor) -> Tensor:
        return -ops.marginalize_labels(self.log_qy, log_py)


class RelaxedLabels(Labels):
    """A soft label y [B, k, Y] in the simplex, drawn from the Gumbel-softmax distribution around q(y|·)."""

    def __init__(self, log_qy: Tensor, y: Tensor) -> None:
        self.log_qy, self.y = log_qy, y

    def linear(self, h: Tensor, weight: Tensor, label_weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        return activate(activation, F.linear(h, weight) + F.linear(self.y, label_weight) + bias)

    def prior(self, log_py: Tensor) -> Tensor:
        return log_py  # if the parents of p(y|·) depend on the label, the soft label was used for them

    def kl(self, log_py: Tensor) -> Tensor:
        return -ops.marginalize_labels(self.log_qy, log_py)


class LabelEstimator:
    """How the sum over a label that is not given is computed."""

    def bind(self, log_qy: Tensor, k: int, noise: Noise, stream: int) -> Labels:
        """The labels of one draw, given log q(y|·) [B, 1 or k, Y]."""
        raise NotImplementedError


@dataclass(frozen=True)
class ExactSum(LabelEstimator):
    """The exact sum over all labels. Models use it if no y is given."""

    def bind(self, log_qy: Tensor, k: int, noise: Noise, stream: int) -> Labels:
        """All labels, for each of the k samples."""
        return EnumeratedLabels(log_qy.expand(-1, k, -1))


@dataclass(frozen=True)
class SampledLabel(LabelEstimator):
    """One label y ~ q(y|·) per sample. Most publications report L_K in this form.

    It has no gradient to q(y|·). `bind` therefore raises InputError if q(y|·) needs a gradient.
    """

    def bind(self, log_qy: Tensor, k: int, noise: Noise, stream: int) -> Labels:
        """One label per sample, drawn from q(y|·).

        Raises:
            InputError: q(y|·) needs a gradient.
        """
        if torch.is_grad_enabled() and log_qy.requires_grad:
            raise InputError("a sampled label has no gradient to q(y|x): train with the exact, sparse or gumbel sum")
        log_qy = log_qy.expand(-1, k, -1)
        u = noise.uniform(log_qy[..., :1], stream)
        y = (log_qy.double().exp().cumsum(-1) < u).sum(-1).clamp(max=log_qy.shape[-1] - 1)
        return SampledLabels(log_qy, y)


@dataclass(frozen=True)
class SparseSum(LabelEstimator):
    """A sum over a few labels: unbiased in value and gradient, with at most 1 + 1/τ labels on average for any number of labels.

    The most probable label is always kept. Any other label is kept with probability min(1, q_y/τ), and weighted by the inverse of
    that probability.

    Args:
        tau: τ, above 0.

    Raises:
        InputError: tau is not above 0.
    """

    tau: float = 0.25

    def __post_init__(self) -> None:
        if not self.tau > 0.0:
            raise InputError(f"tau must be above 0; got {self.tau}")

    def bind(self, log_qy: Tensor, k: int, noise: Noise, stream: int) -> Labels:
        """The kept labels of each sample."""
        log_qy = log_qy.expand(-1, k, -1)
        with torch.no_grad():
            probability = (log_qy.exp() / self.tau).clamp(max=1.0)
            best = log_qy.argmax(-1, keepdim=True)
            keep = noise.uniform(log_qy, stream) < probability
            keep.scatter_(-1, best, True)
        return SparseLabels(log_qy, keep, probability, best)


@dataclass(frozen=True)
class GumbelSoftmax(LabelEstimator):
    """A relaxed label, softmax((log q + Gumbel noise)/temperature) (Jang et al. 2017). It is biased; the entropy stays exact.

    Args:
        temperature: Above 0.

    Raises:
        InputError: The temperature is not above 0.
    """

    temperature: float = 0.5

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise InputError(f"temperature must be above 0; got {self.temperature}")

    def bind(self, log_qy: Tensor, k: int, noise: Noise, stream: int) -> Labels:
        """A soft label for each of the k samples."""
        log_qy = log_qy.expand(-1, k, -1)
        gumbel = -torch.log(-torch.log(noise.uniform(log_qy, stream)))
        return RelaxedLabels(log_qy, torch.softmax((log_qy + gumbel.to(log_qy.dtype)) / self.temperature, -1))


LABEL_SUMS: dict[str, type[LabelEstimator]] = {
    "exact": ExactSum,
    "sparse": SparseSum,
    "gumbel": GumbelSoftmax,
    "sampled": SampledLabel,
}


def _pick(log_probs: Tensor, y: Tensor) -> Tensor:
    """The entries of log_probs [B, k, Y] at the labels y [B, 1 or k]: [B, k]."""
    return log_probs.gather(-1, y.expand(log_probs.shape[:2]).unsqueeze(-1)).squeeze(-1)
