"""Tiny models of the family for tests, and a second implementation of their densities on torch.distributions.

`factors` implements every model again from the thesis, on plain concatenated inputs [h, x, onehot(y)] and without `dgmfast.ops`.
The tests compare the models' bounds with it and integrate it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal
from torch.nn import functional as F

from dgmfast import models
from dgmfast.models import ADGM, AVAE, M1M2, M2, SDGM, CaGeM, GenerativeModel
from dgmfast.models.fame import DenseGaussian
from dgmfast.models.lvae import Ladder
from dgmfast.models.vae import HierarchicalVAE
from dgmfast.nn import (
    ACTIVATIONS,
    ConditionalCategorical,
    ConditionalGaussian,
    ConditionalMLP,
    GaussianHead,
    GaussianMLP,
    PixelCNNDecoder,
)

D, Y = 6, 3
LATENT2 = {"latent": (3, 2), "hidden": ((6, 5), (4,))}
PLAIN = {"batch_norm": False, "activation": "tanh"}
LABEL = {"num_classes": Y, "class_prior": "learned", "activation": "tanh"}
ADGM_LIKE = {**LABEL, "latent": 3, "auxiliary": 2, "hidden": (5, 4)}
FAME_LIKE = {
    **{"image": (1, 2, 3), "latent": (3, 2), "maps": (2, 3), "dense": (5, 4), **PLAIN},
    **{"decoder_maps": 3, "blocks": 1, "tail": 2, "first_kernel": 3},
}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "vae": ("vae", {"latent": (3,), "hidden": ((5,),)}),
    "vae-2": ("vae", LATENT2),
    "lvae": ("lvae", {**LATENT2, **PLAIN, "norm_heads": False}),
    "avae": ("avae", {"latent": (3,), "hidden": ((5,),), "auxiliary": (2,), **PLAIN}),
    "avae-2": ("avae", {**LATENT2, "auxiliary": (2, 1), **PLAIN}),
    "avae-uninformed": ("avae", {**LATENT2, **PLAIN, "uninformed": True}),
    "m2": ("m2", {**LABEL, "latent": 3, "hidden": (5, 4)}),
    "adgm": ("adgm", ADGM_LIKE),
    "adgm-x": ("adgm", {**ADGM_LIKE, "auxiliary_sees_x": True}),
    "adgm-deterministic": ("adgm", {**ADGM_LIKE, "deterministic": True}),
    "sdgm": ("sdgm", ADGM_LIKE),
    "m1m2": ("m1m2", {**LABEL, "latent": (3, 2), "hidden1": (6,), "hidden2": (5,), "pretrain_epochs": 0}),
    "fame": ("fame", FAME_LIKE),
    "fame-noconcat": ("fame", {**FAME_LIKE, "concatenate": False}),
    "cagem": ("cagem", {"num_classes": Y, "latent": (3, 2), "hidden1": (6, 5), "hidden2": (5, 4), **PLAIN}),
}
LABELLED = [variant for variant, (_, settings) in TINY.items() if "num_classes" in settings]
UNLABELLED = [variant for variant in TINY if variant not in LABELLED]
LADDER = ["lvae", "fame", "fame-noconcat"]  # q of these models merges with p
BATCH_NORM = [variant for variant in TINY if variant != "vae"]  # each model once; the VAE with two layers


def make(variant: str, seed: int = 0, scale: float = 1.0, **overrides: Any) -> GenerativeModel:
    """Returns a tiny model in float64 with random parameters and batch statistics."""
    name, settings = TINY[variant]
    model = models.create(name, **{"x_dim": D, **settings, **overrides}).double()
    generator = torch.Generator().manual_seed(seed)

    def normal(t: Tensor, factor: float) -> Tensor:
        return factor * torch.randn(t.shape, generator=generator, dtype=t.dtype)

    with torch.no_grad():
        for p in model.parameters():
            p.copy_(normal(p, scale / math.sqrt(p.shape[1]) if p.dim() == 2 else 0.3))
        for layer in norms(model):
            layer.weight += 1.0
            layer.running_mean.copy_(normal(layer.running_mean, 0.1))
            layer.running_var.copy_(normal(layer.running_var, 0.1).exp())
    return model


def norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def zero(model: GenerativeModel) -> GenerativeModel:
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def is_inference(name: str) -> bool:
    """Returns whether a module or parameter of this name belongs to q."""
    return name.removeprefix("m1.").startswith("q")


def widen(model: GenerativeModel, by: float) -> GenerativeModel:
    """Adds to the linear log-variance of every Gaussian of q, so that the importance weights have a finite variance."""
    for name, head in model.named_modules():
        if isinstance(head, GaussianHead) and is_inference(name):
            head.scale.bias.data += by
    return model


def binary(rows: int, dim: int = D) -> Tensor:
    return (torch.rand(rows, dim, generator=torch.Generator().manual_seed(rows * dim)) < 0.4).double()


def labels(rows: int) -> Tensor:
    """Returns labels that run through the classes, beginning with the second."""
    return (torch.arange(rows) + 1) % Y


def within(difference: Tensor, dim: int, errors: float = 4.0) -> Tensor:
    """Returns whether the mean of independent draws along `dim` is zero within `errors` standard errors."""
    return difference.mean(dim).abs() <= errors * difference.std(dim) / math.sqrt(difference.shape[dim]) + 1e-12


def difference_quotients(value: Callable[[], Tensor], parameters: list[Tensor], step: float = 1e-4) -> Iterator[Tensor]:
    """Yields the fourth-order central finite differences of value() in every element of each parameter."""
    for parameter in parameters:
        flat, slopes = parameter.data.view(-1), []
        for i, start in enumerate(flat.tolist()):
            slope = 0.0
            for shift, weight in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
                flat[i] = start + shift * step
                with torch.no_grad():
                    slope += weight / step * float(value())
            flat[i] = start
            slopes.append(slope)
        yield torch.tensor(slopes, dtype=parameter.dtype).view(parameter.shape)


Factors = dict[str, Distribution]


def join(*parts: Tensor | None) -> Tensor:
    given = [part for part in parts if part is not None]
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in given))
    return torch.cat([part.expand(*shape, -1) for part in given], -1)


def network(net: ConditionalMLP, h: Tensor, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    """Applies the layers of `net` to the concatenation of its inputs."""
    weight = torch.cat([w for w in (net.weight, net.context_weight, net.label_weight) if w is not None], 1)
    hidden = F.linear(join(h, x, y), weight, net.bias)
    return net.rest(ACTIVATIONS[net.activation]()(hidden if net.norm is None else net.norm(hidden)))


def normal(head: GaussianHead, h: Tensor) -> Independent:
    spread = head.scale(h)
    variance = spread.exp() if head.head == "log_var" else F.softplus(spread)
    return Independent(Normal(head.mean(h), variance.sqrt()), 1)


def standard(z: Tensor) -> Independent:
    return Independent(Normal(torch.zeros_like(z), torch.ones_like(z)), 1)


def gaussian(
    net: GaussianMLP | ConditionalGaussian | DenseGaussian, h: Tensor, x: Tensor | None = None, y: Tensor | None = None
) -> Independent:
    return normal(net.gaussian, network(net.mlp, h, x, y) if isinstance(net, ConditionalGaussian) else net.mlp(h))


def categorical(net: ConditionalCategorical, h: Tensor, x: Tensor | None = None) -> Categorical:
    return Categorical(logits=net.logits(network(net.mlp, h, x)))


class Pixels(Distribution):
    """Bernoulli pixels whose logits are plain convolutions of c [..., condition·H·W] and of the earlier pixels of x.

    The mean is taken at the given x.
    """

    def __init__(self, net: PixelCNNDecoder, c: Tensor, x: Tensor) -> None:
        super().__init__(c.shape[:-1], torch.Size([math.prod(net.image)]), validate_args=False)
        self.net, self.c, self.x = net, c, x

    def log_prob(self, x: Tensor) -> Tensor:
        return Independent(Bernoulli(logits=self._logits(x)), 1).log_prob(x)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self._logits(self.x))

    def _logits(self, x: Tensor) -> Tensor:
        net, shape = self.net, torch.broadcast_shapes(self.c.shape[:-1], x.shape[:-1])
        rows = math.prod(shape)
        x = x.expand(*shape, -1).reshape(rows, *net.image)
        h = self.c.expand(*shape, -1).reshape(rows, net.condition, *net.image[1:])
        h = torch.cat([h, x], 1) if net.autoregressive else h
        h = self._conv(net.first, h, "A")
        for conv in net.blocks:
            h = h + self._conv(conv, torch.relu(h), "B")
        for conv in net.tail:
            h = self._conv(conv, torch.relu(h), "B")
        return h.view(*shape, -1)

    def _conv(self, conv: nn.Conv2d, h: Tensor, mask: str) -> Tensor:
        weight, size = conv.weight.clone(), conv.kernel_size[0]
        if self.net.autoregressive:
            masked = weight[:, self.net.condition if mask == "A" else 0 :].flatten(2)
            masked[:, :, size * size // 2 + (mask == "B") :] = 0.0
        return F.conv2d(h, weight, conv.bias, padding=size // 2)


def output(model: GenerativeModel, h: Tensor, x: Tensor) -> Distribution:
    if isinstance(model.output, PixelCNNDecoder):
        return Pixels(model.output, h, x)
    return Independent(Bernoulli(logits=model.output.logits(h)), 1)


def merge(q: Independent, p: Independent) -> Independent:
    precision = q.variance.reciprocal() + p.variance.reciprocal()
    return Independent(Normal((q.mean / q.variance + p.mean / p.variance) / precision, precision.rsqrt()), 1)


@singledispatch
def factors(model: GenerativeModel, x: Tensor, v: dict[str, Tensor], y: Tensor) -> tuple[Factors, Factors]:
    """Returns the factors of p and q by their variables, at x [B, 1, D], latents v [B, k, ·] and a one-hot y [B, 1, Y]."""
    raise NotImplementedError(type(model))


@factors.register
def _(model: HierarchicalVAE, x: Tensor, v: dict[str, Tensor], y: Tensor) -> tuple[Factors, Factors]:
    z = [x, *(v[f"z{i + 1}"] for i in range(len(model.latent)))]
    p = {f"z{i}": gaussian(net, z[i + 1]) for i, net in enumerate(model.p, start=1)}
    p |= {f"z{len(model.latent)}": standard(z[-1]), "x": output(model, model.decoder(z[1]), x)}
    if not isinstance(model, Ladder):
        return p, {f"z{i}": gaussian(net, z[i - 1]) for i, net in enumerate(model.q, start=1)}
    q, d = {}, x
    for i, (up, head) in enumerate(zip(model.up, model.q, strict=True), start=1):
        d = up(d)
        q_hat = gaussian(head, d) if isinstance(head, DenseGaussian) else normal(head, d)
        q[f"z{i}"] = q_hat if i == len(model.latent) else merge(q_hat, p[f"z{i}"])
    return p, q


@factors.register
def _(model: AVAE, x: Tensor, v: dict[str, Tensor], y: Tensor) -> tuple[Factors, Factors]:
    depth = len(model.latent)
    z, a = ([v[f"{name}{i + 1}"] for i in range(depth)] for name in "za")
    q = {"a1": gaussian(model.q_a[0], x), "z1": gaussian(model.q_z[0], a[0], x)}
    for i in range(1, depth):
        q[f"a{i + 1}"] = gaussian(model.q_a[i], a[i - 1], x)
        q[f"z{i + 1}"] = gaussian(model.q_z[i], join(a[i], z[i - 1]))
    p = {f"z{i + 1}": gaussian(net, z[i + 1]) for i, net in enumerate(model.p_z)}
    p |= {f"z{depth}": standard(z[-1]), "x": output(model, model.decoder(z[0]), x)}
    for i in range(depth):
        p[f"a{i + 1}"] = standard(a[i]) if model.uninformed else gaussian(model.p_a[i], join(*z[i:]))
    return p, q


@factors.register
def _(model: M2, x: Tensor, v: dict[str, Tensor], y: Tensor) -> tuple[Factors, Factors]:
    p = {
        "z": standard(v["z"]),
        "y": Categorical(logits=model.prior_logits),
        "x": output(model, network(model.p_x, v["z"], y=y), x),
    }
    return p, {"y": categorical(model.q_y, x), "z": gaussian(model.q_z, x, y=y)}


@factors.register
def _(model: ADGM, x: Tensor, v: dict[str, Tensor], y: Tensor) -> tuple[Factors, Factors]:
    q_a, z = gaussian(model.q_a, x), v["z"]
    a = q_a.mean if model.deterministic else v["a"]
    q = {"y": categorical(model.q_y, a, x), "z": gaussian(model.q_z, a, x, y)}
    h = network(model.p_x, z, a, y) if isinstance(model, SDGM) else network(model.p_x, z, y=y)
    p = {"z": standard(z), "y": Categorical(logits=model.prior_logits), "x": output(model, h, x)}
    if model.deterministic:
        return p, q
    sees_x = model.p_a.mlp.context_weight is not None
    return {**p, "a": gaussian(model.p_a, z, x if sees_x else None, y)}, {**q, "a": q_a}


@factors.register
def _(model: M1M2, x: Tensor, v: dict[str, Tensor], y: Tensor) -> tuple[Factors, Factors]:
    z1, z2 = v["z1"], v["z2"]
    q = {"z1": gaussian(model.m1.q[0], x), "y": categorical(model.q_y, z1), "z2": gaussian(model.q_z2, z1, y=y)}
    p = {"z2": standard(z2), "y": Categorical(logits=model.prior_logits), "z1": gaussian(model.p_z1, z2, y=y)}
    return {**p, "x": output(model, model.m1.decoder(z1), x)}, q


@factors.register
def _(model: CaGeM, x: Tensor, v: dict[str, Tensor], y: Tensor) -> tuple[Factors, Factors]:
    z1, z2 = v["z1"], v["z2"]
    q = {"z1": gaussian(model.q_z1, x), "y": categorical(model.q_y, z1, x), "z2": gaussian(model.q_z2, z1, x, y)}
    p = {"z2": standard(z2), "y": categorical(model.p_y, z2), "z1": gaussian(model.p_z1, z2, y=y)}
    return {**p, "x": output(model, network(model.p_x, z1, y=y), x)}, q


def densities(
    model: GenerativeModel, x: Tensor, v: dict[str, Tensor], y: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor], Factors, Factors]:
    """Returns log p and log q by variable, [B, k] each, and the factors, at x [B, D], v [B, k, ·] and labels y [B]."""
    p, q = factors(model, x.unsqueeze(1), v, F.one_hot(y, Y).to(x.dtype).unsqueeze(1))
    values = {**v, "x": x.unsqueeze(1), "y": y.unsqueeze(1)}
    return *({name: f.log_prob(values[name]) for name, f in group.items()} for group in (p, q)), p, q
