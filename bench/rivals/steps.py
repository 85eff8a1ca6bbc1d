"""The semi-supervised loss of ADGM and SDGM (App. A eqs 8–13) in plain PyTorch, in two ways with different weight layouts.

`shared` is the loss as a careful user writes it. Terms that do not depend on y are computed once per x, the label adds a row to
the first layer's product, and products of the same input are joined. `repeated` is the loss as public implementations have it.
The batch is repeated for every class, and one-hot codes are joined to the inputs. The networks have ReLUs and any number of
hidden layers; x is binary and p(y) uniform.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.rivals.ops import BLOCK_ELEMENTS, LogProb, bernoulli_log_prob, gaussian_kl
from dgmfast.models import ADGM
from dgmfast.nn import MLP

Parameters = dict[str, Tensor]


class Batch(NamedTuple):
    """Unlabelled rows [U, D], labelled rows [L, D] with y [L], and α, the weight of their cross-entropy."""

    unlabelled: Tensor
    labelled: Tensor
    y: Tensor
    alpha: float


class Eps(NamedTuple):
    """Standard normal noise of a [U, A] and z [U, Y, Z] for the unlabelled rows, and of both for the labelled rows."""

    a: Tensor
    z: Tensor
    labelled_a: Tensor
    labelled_z: Tensor


@dataclass(frozen=True)
class Packed:
    """A parameter that joins several of the model's parameters along a dimension."""

    names: tuple[str, ...]
    dim: int = 0


Layout = dict[str, Packed]


def pack(model: ADGM, layout: Layout) -> Parameters:
    """Returns the model's parameters, copied into the layout."""
    own = dict(model.named_parameters())
    joined = {name: torch.cat([own[n] for n in packed.names], packed.dim) for name, packed in layout.items()}
    return {name: t.detach().clone().requires_grad_() for name, t in joined.items()}


def gradients(model: ADGM, layout: Layout, parameters: Parameters) -> dict[str, Tensor]:
    """Returns the gradients of the packed parameters under the model's names."""
    own = dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    for name, packed in layout.items():
        grad = parameters[name].grad
        assert grad is not None, name
        parts = grad.split([own[n].shape[packed.dim] for n in packed.names], packed.dim)
        found |= dict(zip(packed.names, parts, strict=True))
    return found


def shared_layout(model: ADGM) -> Layout:
    """Joins mean and log-variance into one layer. The first layers of x stay apart, because one wide product was slower."""
    layout = _later_layers(model)
    layout |= {f"q_a.0.{part}": Packed((f"q_a.mlp.0.{part}",)) for part in ("weight", "bias")}
    for net in ("q_y", "q_z"):
        parts = {"x.weight": "context_weight", "x.bias": "bias", "a": "weight"}
        layout |= {f"{net}.{part}": Packed((f"{net}.mlp.{name}",)) for part, name in parts.items()}
    layout["q_z.label"] = Packed(("q_z.mlp.label_weight",))
    for net, path in (("p_a", "p_a.mlp"), ("p_x", "p_x")):
        parts = {"0.weight": "weight", "0.bias": "bias", "label": "label_weight"}
        layout |= {f"{net}.{part}": Packed((f"{path}.{name}",)) for part, name in parts.items()}
    if model.p_x.context_weight is not None:
        layout["p_x.a"] = Packed(("p_x.context_weight",))
    return layout


def repeated_layout(model: ADGM) -> Layout:
    """Has one matrix per layer, which acts on the joined inputs [h, x or a, onehot(y)]."""
    layout = _later_layers(model)
    layout |= {f"q_a.0.{part}": Packed((f"q_a.mlp.0.{part}",)) for part in ("weight", "bias")}
    own = dict(model.named_parameters())
    for net, path in (("q_y", "q_y.mlp"), ("q_z", "q_z.mlp"), ("p_a", "p_a.mlp"), ("p_x", "p_x")):
        parts = [f"{path}.{part}" for part in ("weight", "context_weight", "label_weight")]
        layout[f"{net}.0.weight"] = Packed(tuple(part for part in parts if part in own), 1)
        layout[f"{net}.0.bias"] = Packed((f"{path}.bias",))
    return layout


def _later_layers(model: ADGM) -> Layout:
    layout: Layout = {}
    assert isinstance(model.q_a.mlp, MLP)
    depth = len(model.q_a.mlp) // 2
    for part in ("weight", "bias"):
        for i in range(1, depth):
            layout[f"q_a.{i}.{part}"] = Packed((f"q_a.mlp.{2 * i}.{part}",))
            for net, path in (("q_y", "q_y.mlp"), ("q_z", "q_z.mlp"), ("p_a", "p_a.mlp"), ("p_x", "p_x")):
                layout[f"{net}.{i}.{part}"] = Packed((f"{path}.rest.{2 * i - 2}.{part}",))
        for net in ("q_a", "q_z", "p_a"):
            layout[f"{net}.head.{part}"] = Packed((f"{net}.gaussian.mean.{part}", f"{net}.gaussian.scale.{part}"))
        layout[f"q_y.head.{part}"] = Packed((f"q_y.logits.{part}",))
        layout[f"p_x.head.{part}"] = Packed((f"output.logits.{part}",))
    return layout


def _linear(p: Parameters, layer: str, h: Tensor) -> Tensor:
    return F.linear(h, p[f"{layer}.weight"], p[f"{layer}.bias"])


def _head(p: Parameters, net: str, h: Tensor) -> Tensor:
    """Applies everything after the first hidden layer's product h, starting with its ReLU, in place."""
    h, i = F.relu(h, inplace=True), 1
    while f"{net}.{i}.weight" in p:
        h, i = F.relu(_linear(p, f"{net}.{i}", h), inplace=True), i + 1
    return _linear(p, f"{net}.head", h)


def _draw(mean: Tensor, log_var: Tensor, eps: Tensor) -> Tensor:
    return torch.addcmul(mean, torch.exp(0.5 * log_var), eps)


def _log_density(distance: Tensor, log_var: Tensor) -> Tensor:
    """Returns log N without −½ D log 2π, which p(a|·) and q(a|x) have in common."""
    return -0.5 * (log_var + distance.square() * torch.exp(-log_var)).sum(-1)


def _log_q(eps: Tensor, log_var: Tensor) -> Tensor:
    return -0.5 * (eps.square() + log_var).sum(-1)


class BernoulliLogProb(torch.autograd.Function):
    """Computes log p(x|·) of logits [B, Y, D] and x [B, 1, D] in blocks of rows, with the backward pass written by hand."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(logits, x)
        out = logits.new_empty(logits.shape[:-1])
        for part in _blocks(logits):
            inner = torch.matmul(logits[part], x[part].transpose(-1, -2)).squeeze(-1)
            out[part] = inner.sub_(F.softplus(logits[part]).sum(-1))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, x = ctx.saved_tensors
        d_logits = torch.empty_like(logits)
        for part in _blocks(logits):
            block = d_logits[part]
            torch.sigmoid(logits[part], out=block)
            torch.sub(x[part], block, out=block).mul_(grads[0][part].unsqueeze(-1))
        return d_logits, None


def _blocks(logits: Tensor) -> Iterable[slice]:
    rows = max(1, BLOCK_ELEMENTS // logits[0].numel())
    return (slice(first, first + rows) for first in range(0, len(logits), rows))


def bernoulli_log_prob_by_hand(logits: Tensor, x: Tensor) -> Tensor:
    if logits.dim() == 2:
        return BernoulliLogProb.apply(logits.unsqueeze(1), x.unsqueeze(1)).squeeze(1)
    return BernoulliLogProb.apply(logits, x)


def shared(p: Parameters, batch: Batch, eps: Eps, log_px: LogProb = bernoulli_log_prob, joined: bool = False) -> Tensor:
    """Computes the loss with every product that does not depend on y taken once per x.

    joined: whether the U·Y + L pairs of row and label go through the networks together, or first the U·Y pairs and then the L.
    """
    count, x = len(batch.unlabelled), torch.cat([batch.unlabelled, batch.labelled])
    eps_a = torch.cat([eps.a, eps.labelled_a])
    mean, log_var = _head(p, "q_a", _linear(p, "q_a.0", x)).chunk(2, 1)
    a = _draw(mean, log_var, eps_a)
    log_qa = _log_q(eps_a, log_var)
    log_qy = F.log_softmax(_head(p, "q_y", torch.addmm(_linear(p, "q_y.x", x), a, p["q_y.a"].t())), -1)
    for_z = torch.addmm(_linear(p, "q_z.x", x), a, p["q_z.a"].t())
    of_pairs = _joined_pairs if joined else _separate_pairs
    values, labelled_value = of_pairs(p, batch, eps, a, for_z, log_px)
    log_py = -math.log(log_qy.shape[1])
    log_q, log_q_labelled = log_qy.split([count, len(batch.y)])
    log_qa, log_qa_labelled = log_qa.split([count, len(batch.y)])
    bound = (log_q.exp() * (values - log_q)).sum(-1) - log_qa + log_py
    entropy = F.nll_loss(log_q_labelled, batch.y)
    return -bound.mean() - (labelled_value - log_qa_labelled).mean() - log_py + batch.alpha * entropy


def _separate_pairs(p: Parameters, batch: Batch, eps: Eps, a: Tensor, for_z: Tensor, log_px: LogProb) -> tuple[Tensor, Tensor]:
    """Returns log p(x, a, z|y)/q(z|·) of every unlabelled row and label [U, Y], and of the labelled rows [L]."""

    def value(x: Tensor, a: Tensor, h: Tensor, eps_z: Tensor, rows: dict[str, Tensor]) -> Tensor:
        mean, log_var = _head(p, "q_z", h + rows["q_z"]).chunk(2, -1)
        z = _draw(mean, log_var, eps_z)
        mean_a, log_var_a = _head(p, "p_a", _linear(p, "p_a.0", z).add_(rows["p_a"])).chunk(2, -1)
        decoder = _linear(p, "p_x.0", z).add_(rows["p_x"])
        if "p_x.a" in p:
            decoder.add_(F.linear(a, p["p_x.a"]))
        return log_px(_head(p, "p_x", decoder), x) - gaussian_kl(mean, log_var) + _log_density(a - mean_a, log_var_a)

    count = len(batch.unlabelled)
    every = {net: p[f"{net}.label"].t() for net in ("q_z", "p_a", "p_x")}
    given = {net: F.embedding(batch.y, rows) for net, rows in every.items()}
    unlabelled = value(batch.unlabelled.unsqueeze(1), a[:count].unsqueeze(1), for_z[:count].unsqueeze(1), eps.z, every)
    return unlabelled, value(batch.labelled, a[count:], for_z[count:], eps.labelled_z, given)


def _joined_pairs(p: Parameters, batch: Batch, eps: Eps, a: Tensor, for_z: Tensor, log_px: LogProb) -> tuple[Tensor, Tensor]:
    """Returns the same values with all pairs in one batch; the label's row is a small product with its one-hot code."""
    count, classes = eps.z.shape[:2]
    every = torch.eye(classes, dtype=a.dtype, device=a.device).repeat(count, 1)
    onehot = torch.cat([every, F.one_hot(batch.y, classes).to(a.dtype)])

    def pairs(t: Tensor) -> Tensor:
        return torch.cat([t[:count].unsqueeze(1).expand(-1, classes, -1).reshape(count * classes, -1), t[count:]])

    def with_label(net: str, h: Tensor) -> Tensor:
        return torch.addmm(h, onehot, p[f"{net}.label"].t())

    mean, log_var = _head(p, "q_z", with_label("q_z", pairs(for_z))).chunk(2, 1)
    z = _draw(mean, log_var, torch.cat([eps.z.flatten(0, 1), eps.labelled_z]))
    mean_a, log_var_a = _head(p, "p_a", with_label("p_a", _linear(p, "p_a.0", z))).chunk(2, 1)
    decoder = with_label("p_x", _linear(p, "p_x.0", z))
    if "p_x.a" in p:
        decoder.add_(pairs(F.linear(a, p["p_x.a"])))
    logits, labelled_logits = _head(p, "p_x", decoder).split([count * classes, len(batch.y)])
    rest = _log_density(pairs(a) - mean_a, log_var_a) - gaussian_kl(mean, log_var)
    rest, labelled_rest = rest.split([count * classes, len(batch.y)])
    values = log_px(logits.view(count, classes, -1), batch.unlabelled.unsqueeze(1)) + rest.view(count, classes)
    return values, log_px(labelled_logits.unsqueeze(1), batch.labelled.unsqueeze(1)).squeeze(1) + labelled_rest


def repeated(p: Parameters, batch: Batch, eps: Eps, log_px: LogProb = bernoulli_log_prob) -> Tensor:
    """Computes the loss on a batch repeated for every class; eps.a is [U, Y, A], so every copy of a row draws its own a."""
    return supervised(p, batch, eps, log_px) - repeated_bound(p, batch.unlabelled, eps.a, eps.z, log_px).mean()


def supervised(p: Parameters, batch: Batch, eps: Eps, log_px: LogProb = bernoulli_log_prob) -> Tensor:
    """Returns what the labelled rows add to the loss."""
    onehot = F.one_hot(batch.y, eps.z.shape[1]).to(batch.labelled.dtype)
    value, a = row_bound(p, batch.labelled, onehot, eps.labelled_a, eps.labelled_z, log_px)
    return batch.alpha * F.nll_loss(log_probs(p, batch.labelled, a), batch.y) - value.mean()


def repeated_bound(p: Parameters, x: Tensor, eps_a: Tensor, eps_z: Tensor, log_px: LogProb = bernoulli_log_prob) -> Tensor:
    """Returns U(x) of unlabelled rows, [U]; q(y|a, x) takes the a of a row's first copy."""
    count, classes = eps_z.shape[:2]
    onehot = torch.eye(classes, dtype=x.dtype, device=x.device).repeat(count, 1)
    values, a = row_bound(p, x.repeat_interleave(classes, 0), onehot, eps_a.flatten(0, 1), eps_z.flatten(0, 1), log_px)
    log_q = log_probs(p, x, a[::classes])
    return (log_q.exp() * (values.view(count, classes) - log_q)).sum(-1)


def kept_bound(p: Parameters, x: Tensor, eps_a: Tensor, eps_z: Tensor, rows: Tensor, y: Tensor, tau: float) -> Tensor:
    """Returns the sparse estimate of U(x), [U], from the kept pairs of row and label, whose noise is eps_z [N, Z]."""
    log_q = log_probs(p, x, auxiliary(p, x, eps_a)[0])
    onehot = F.one_hot(y, log_q.shape[1]).to(x.dtype)
    values, _ = row_bound(p, x[rows], onehot, eps_a[rows], eps_z)
    others = torch.zeros_like(log_q)
    others[rows, y] = (log_q.exp() / (log_q.detach().exp() / tau).clamp(max=1.0))[rows, y]
    best = log_q.argmax(1, keepdim=True)
    others = others.scatter(1, best, 0.0)
    weights = others.scatter_add(1, best, 1.0 - others.sum(1, keepdim=True))
    table = torch.zeros_like(log_q).index_put((rows, y), values)
    return (weights * table).sum(1) - (log_q.exp() * log_q).sum(1)


def row_bound(
    p: Parameters, x: Tensor, onehot: Tensor, eps_a: Tensor, eps_z: Tensor, log_px: LogProb = bernoulli_log_prob
) -> tuple[Tensor, Tensor]:
    """Returns L(x, y) of every row [N], with all networks run on all rows, and the a that was drawn [N, A]."""
    a, log_var_a = auxiliary(p, x, eps_a)
    mean, log_var = _head(p, "q_z", _linear(p, "q_z.0", torch.cat([a, x, onehot], 1))).chunk(2, 1)
    z = _draw(mean, log_var, eps_z)
    mean_pa, log_var_pa = _head(p, "p_a", _linear(p, "p_a.0", torch.cat([z, onehot], 1))).chunk(2, 1)
    skips = p["p_x.0.weight"].shape[1] > z.shape[1] + onehot.shape[1]  # only the SDGM has p(x|a, y, z)
    logits = _head(p, "p_x", _linear(p, "p_x.0", torch.cat([z, a, onehot] if skips else [z, onehot], 1)))
    value = log_px(logits, x) - gaussian_kl(mean, log_var)
    value = value + _log_density(a - mean_pa, log_var_pa) - _log_q(eps_a, log_var_a)
    return value - math.log(onehot.shape[1]), a


def auxiliary(p: Parameters, x: Tensor, eps_a: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a ~ q(a|x) and the log-variance of q, both [N, A]."""
    mean, log_var = _head(p, "q_a", _linear(p, "q_a.0", x)).chunk(2, 1)
    return _draw(mean, log_var, eps_a), log_var


def log_probs(p: Parameters, x: Tensor, a: Tensor) -> Tensor:
    """Returns log q(y|a, x), [N, Y]."""
    return F.log_softmax(_head(p, "q_y", _linear(p, "q_y.0", torch.cat([a, x], 1))), -1)
