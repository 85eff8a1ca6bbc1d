"""The case `image_steps`: a whole training step of PixelCNN and of FAME on binary images of 28 × 28."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases.op_cases import Context
from bench.cases.steps import Step, checker, step_groups
from bench.harness import Contender, Outputs, Settings, measure
from bench.rivals import ops as eager
from bench.rivals.ops import gaussian_kl
from bench.store import Row
from dgmfast import reference
from dgmfast.models import FAME, GenerativeModel, PixelCNN, create
from dgmfast.models.lvae import climb
from dgmfast.nn import PixelCNNDecoder
from dgmfast.objectives import Objective

MODELS = {"pixelcnn": "PixelCNN", "fame": "FAME"}
BATCH = 50  # the batch size of the recipes
# Largest accepted ‖output − float64‖ / ‖float64‖ in float32. FAME applies batch normalisation to maps of 1 × 1 and 2 × 2 and then
# ReLUs, which amplifies rounding: its contenders are off by 0.001 to 0.006, the compiled ones most. In float64 all contenders
# agree to 1e-8, which a test checks.
TOLERANCE = {"pixelcnn": 1e-3, "fame": 1e-2}
QUICK: dict[str, dict[str, Any]] = {
    "pixelcnn": {"maps": 8, "blocks": 1},
    "fame": {"decoder_maps": 8, "blocks": 1, "latent": [4, 3], "maps": [4, 4], "dense": [16, 8]},
}

Conv = Callable[[Tensor, Any, Tensor], Tensor]  # (h, layer, its mask) -> h


def masked(h: Tensor, conv: Any, mask: Tensor) -> Tensor:
    """Multiplies the weight by its mask, as PixelCNN libraries do."""
    return eager.masked_conv2d(conv.weight, conv.bias, h, mask)


def cropped(h: Tensor, conv: Any, mask: Tensor) -> Tensor:
    """Leaves out the kernel rows below the pixel, which are all zero; a layer with unmasked inputs keeps all its rows."""
    form = eager.masked_conv2d if conv.unmasked_inputs else eager.masked_conv2d_padded
    return form(conv.weight, conv.bias, h, mask)


class Eager:
    """A copy of the model whose loss is plain PyTorch. The networks outside the PixelCNN are PyTorch modules in our model too."""

    def __init__(self, model: GenerativeModel, conv: Conv, channels_last: bool = False) -> None:
        self.model, self.conv, self.channels_last = copy.deepcopy(model), conv, channels_last
        net = self.model.output
        assert isinstance(net, PixelCNNDecoder)
        # torch's stubs do not have this overload.
        self.net = net.to(memory_format=torch.channels_last) if channels_last else net  # type: ignore[call-overload]
        self.layers = [(layer, _mask(layer.conv)) for layer in net.layers()]

    def log_px(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = x if condition is None else torch.cat([condition, x], 1)
        h = h.contiguous(memory_format=torch.channels_last) if self.channels_last else h
        for layer, mask in self.layers:
            out = self.conv(F.relu(h) if layer.relu else h, layer.conv, mask)
            h = h + out if layer.residual else out
        return -F.binary_cross_entropy_with_logits(h, x, reduction="none").flatten(1).sum(1)

    def loss(self, x: Tensor, eps: list[Tensor]) -> Tensor:
        """Returns −ELBO averaged over the rows; eps is the noise of z₁ … z_L, [B, D_i] each."""
        image = x.view(-1, *self.net.image)
        if isinstance(self.model, PixelCNN):
            return -self.log_px(image, None).mean()
        model = self.model
        assert isinstance(model, FAME)
        mean, log_var = (q_hat := climb(model.up, model.q, x))[-1]
        z, kl = mean + torch.exp(0.5 * log_var) * eps[-1], gaussian_kl(mean, log_var)
        for i in range(len(q_hat) - 2, -1, -1):
            mean_p, log_var_p = model.p[i](z)
            mean_q, log_var_q = q_hat[i]
            log_var = -torch.logaddexp(-log_var_q, -log_var_p)
            mean = torch.exp(log_var) * (mean_q * torch.exp(-log_var_q) + mean_p * torch.exp(-log_var_p))
            z = mean + torch.exp(0.5 * log_var) * eps[i]
            kl = kl + gaussian_kl(mean, log_var, mean_p, log_var_p)
        condition = model.decoder(z).view(-1, self.net.condition, *self.net.image[1:])
        return (kl - self.log_px(image, condition)).mean()


def _mask(conv: Any) -> Tensor:
    size = (conv.kernel_size[0], conv.kernel_size[1])
    sizes = (conv.out_channels, conv.in_channels, size, conv.colors, conv.unmasked_inputs)
    return reference.causal_mask(conv.mask, *sizes).to(conv.weight)


def eager_step(form: Eager, x: Tensor, eps: list[Tensor], compiled: bool = False) -> Step:
    loss: Callable[[Tensor, list[Tensor]], Tensor] = form.loss
    loss = torch.compile(loss, dynamic=False) if compiled else loss
    parameters = list(form.model.parameters())

    def at(count: int) -> Tensor:
        return loss(x, [torch.randn_like(e) for e in eps] if count else eps)

    return Step(parameters, at, lambda: [p.grad for p in parameters if p.grad is not None])


def our_step(model: GenerativeModel, x: Tensor) -> Step:
    own, objective = copy.deepcopy(model), Objective()
    parameters = list(own.parameters())
    loss = partial(objective.loss, own, x, None, 1.0)
    return Step(parameters, lambda seed: loss(seed)[0], lambda: [p.grad for p in parameters if p.grad is not None])


def noise(model: GenerativeModel, rows: int) -> list[Tensor]:
    """Returns the noise that our step draws with seed 0, in float64."""
    sizes = getattr(model, "latent", ())
    return [reference.standard_normal(rows, 1, size, 0, stream).squeeze(1) for stream, size in enumerate(sizes)]


def float64(model: GenerativeModel, x: Tensor) -> Outputs:
    """Returns the loss and the gradients in float64."""
    exact = Eager(copy.deepcopy(model).double(), masked)
    return eager_step(exact, x.double(), noise(model, len(x)))()


def image_model(name: str, quick: bool) -> GenerativeModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create(name, **(QUICK[name] if quick else {}))


def images(rows: int) -> Tensor:
    """Returns binary images [B, 784] of random pixels whose probability peaks in the middle."""
    generator = torch.Generator().manual_seed(1)
    line = torch.linspace(-2.0, 2.0, 28).square()
    mean = torch.exp(-(line + line.unsqueeze(1))).flatten()
    return (torch.rand(rows, 784, generator=generator) < mean).float()


@dataclass(frozen=True)
class ImageStepCase:
    """Times a training step of one model against its eager forms, two of which are also compiled."""

    model: str
    name: str = "image_steps"

    @property
    def label(self) -> str:
        return MODELS[self.model]

    def groups(self, context: Context) -> list[Row]:
        return step_groups(context, self.name, [f"{self.label}, {BATCH} images"])

    def run(self, context: Context) -> Iterator[list[Row]]:
        torch._dynamo.reset()
        model, x = image_model(self.model, context.quick), images(2 if context.quick else BATCH)
        eps = [e.float() for e in noise(model, len(x))]
        forms = {
            "eager, weight times mask": Eager(model, masked),
            "eager, channels last": Eager(model, masked, channels_last=True),
            "eager, cropped": Eager(model, cropped),
            "eager, cropped, channels last": Eager(model, cropped, channels_last=True),
        }
        contenders = [Contender("ours", our_step(model, x))]
        contenders += [Contender(name, eager_step(form, x, eps)) for name, form in forms.items()]
        if context.compile:
            contenders.append(Contender("compile", eager_step(Eager(model, masked), x, eps, compiled=True)))
            contenders.append(Contender("compile, cropped", eager_step(Eager(model, cropped), x, eps, compiled=True)))
        settings = context.settings if context.quick else Settings(seconds=3.0, min_rounds=7, max_rounds=30, sample_seconds=0.0)
        rows = measure(contenders, [()], checker(float64(model, x), TOLERANCE[self.model]), settings)
        for columns in self.groups(context):
            yield [columns | row for row in rows]
