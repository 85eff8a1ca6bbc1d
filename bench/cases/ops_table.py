"""The table of ops: ours, the eager forms, torch.distributions, and the truth in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bench.harness import Inputs
from bench.rivals import decoder as eager_decoder
from bench.rivals import distributions
from bench.rivals import ops as eager
from dgmfast import ops, reference

Function = Callable[..., Any]


@dataclass(frozen=True)
class Op:
    """One op with one choice of its optional arguments.

    plain: the differentiable form, for autograd and torch.compile.
    compiled: a form that the compiler makes faster than `plain`, if there is one.
    forward, by_hand: further eager forms, of the forward pass alone and with a backward pass written by hand.
    repeated: the form that repeats the batch for every label.
    product: the matrix product alone, written to memory, with which an op that fuses it is compared.
    gradients: the number of leading inputs that are differentiated; 0 for a statistic.
    """

    name: str
    draw: Callable[[tuple[int, ...], torch.Generator], Inputs]
    ours: Function
    plain: Function
    truth: Function | None = None
    compiled: Function | None = None
    forward: Mapping[str, Function] = field(default_factory=dict)
    by_hand: Mapping[str, Function] = field(default_factory=dict)
    distributions: Function | None = None
    repeated: Function | None = None
    product: Function | None = None
    gradients: int = 0
    variant: str = ""


def _normal(shape: tuple[int, ...], generator: torch.Generator, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=generator)


def _gaussian(kinds: str) -> Callable[[tuple[int, ...], torch.Generator], Inputs]:
    """Returns a function that draws means (m) with standard deviation 1 and log-variances (v) with standard deviation ½."""
    return lambda shape, generator: tuple(_normal(shape, generator, 1.0 if kind == "m" else 0.5) for kind in kinds)


def _logits(shape: tuple[int, ...], generator: torch.Generator) -> Inputs:
    return _normal(shape, generator, 3.0), (torch.rand(shape, generator=generator) < 0.3).float()


def _log_weights(shape: tuple[int, ...], generator: torch.Generator) -> Inputs:
    return (_normal(shape, generator, 3.0) - 90.0,)


KL = Op(
    "gaussian_kl",
    _gaussian("mvmv"),
    ops.gaussian_kl,
    eager.gaussian_kl,
    reference.gaussian_kl,
    forward={"in place": eager.gaussian_kl_forward, "row blocks": eager.by_row_blocks(eager.gaussian_kl_forward)},
    by_hand={"by hand": eager.GaussianKL.apply},
    distributions=distributions.gaussian_kl,
    gradients=4,
)
KL_TO_STANDARD = Op(
    "gaussian_kl",
    _gaussian("mv"),
    ops.gaussian_kl,
    eager.gaussian_kl,
    reference.gaussian_kl,
    forward={"in place": eager.gaussian_kl_forward, "row blocks": eager.by_row_blocks(eager.gaussian_kl_forward)},
    by_hand={"by hand": eager.GaussianKLToStandard.apply},
    distributions=distributions.gaussian_kl,
    gradients=2,
    variant="to N(0,I)",
)
LOG_PROB = Op(
    "gaussian_log_prob",
    _gaussian("mmv"),
    ops.gaussian_log_prob,
    eager.gaussian_log_prob,
    reference.gaussian_log_prob,
    forward={"in place": eager.gaussian_log_prob_forward, "row blocks": eager.by_row_blocks(eager.gaussian_log_prob_forward)},
    by_hand={"by hand": eager.GaussianLogProb.apply},
    distributions=distributions.gaussian_log_prob,
    gradients=3,
)
STANDARD_LOG_PROB = Op(
    "gaussian_log_prob",
    _gaussian("m"),
    ops.gaussian_log_prob,
    eager.gaussian_log_prob,
    reference.gaussian_log_prob,
    forward={"in place": eager.gaussian_log_prob_forward},
    by_hand={"by hand": eager.StandardLogProb.apply},
    distributions=distributions.gaussian_log_prob,
    gradients=1,
    variant="of N(0,I)",
)
MERGE = Op(
    "gaussian_merge",
    _gaussian("mvmv"),
    ops.gaussian_merge,
    eager.gaussian_merge,
    reference.gaussian_merge,
    forward={"in place": eager.gaussian_merge_forward},
    by_hand={"by hand": eager.GaussianMerge.apply},
    gradients=4,
)
BERNOULLI = Op(
    "bernoulli_log_prob",
    _logits,
    ops.bernoulli_log_prob,
    eager.bernoulli_log_prob,
    reference.bernoulli_log_prob,
    compiled=eager.bernoulli_log_prob_pointwise,
    forward={
        "in place": eager.bernoulli_log_prob_forward,
        "row blocks": eager.by_row_blocks(eager.bernoulli_log_prob_forward),
    },
    by_hand={"by hand": eager.BernoulliLogProb.apply},
    distributions=distributions.bernoulli_log_prob,
    gradients=1,
)
BOUND = Op(
    "importance_bound",
    _log_weights,
    ops.importance_bound,
    eager.importance_bound,
    reference.importance_bound,
    forward={"log_softmax": eager.importance_bound_log_softmax},
    by_hand={"log_softmax": eager.importance_bound_log_softmax, "by hand": eager.ImportanceBound.apply},
    gradients=1,
)
STATE = Op(
    "importance_state",
    _log_weights,
    ops.importance_state,
    eager.importance_state,
    reference.importance_state,
    forward={"float64": eager.importance_state_double},
)


def _labels(shape: tuple[int, ...], generator: torch.Generator) -> Inputs:
    return _normal(shape, generator, 3.0), _normal(shape, generator, 3.0) - 90.0


LABELS = Op(
    "marginalize_labels",
    _labels,
    ops.marginalize_labels,
    eager.marginalize_labels,
    reference.marginalize_labels,
    forward={"in place": eager.marginalize_labels_forward},
    by_hand={"by hand": eager.MarginalizeLabels.apply},
    gradients=2,
)


def label_linear_op(hidden: int, labels: int) -> Op:
    """Returns a model's first layer on (x, y), evaluated for every label."""

    def draw(shape: tuple[int, ...], generator: torch.Generator) -> Inputs:
        sizes = (shape, (hidden, shape[-1]), (hidden, labels), (hidden,))
        scales = (1.0, shape[-1] ** -0.5, 0.5, 0.5)
        return tuple(_normal(size, generator, scale) for size, scale in zip(sizes, scales, strict=True))

    return Op(
        "label_linear",
        draw,
        partial(ops.label_linear, activation="tanh"),
        eager.label_linear,
        partial(reference.label_linear, activation="tanh"),
        forward={"in place": eager.label_linear_forward},
        by_hand={"by hand": eager.LabelLinear.apply},
        repeated=eager.label_linear_repeated,
        gradients=4,
        variant=f"to {hidden}, {labels} classes",
    )


def linear_bernoulli_op(hidden: int) -> Op:
    """Returns a decoder's last layer together with its likelihood."""

    def draw(shape: tuple[int, ...], generator: torch.Generator) -> Inputs:
        weight, bias = _normal((shape[-1], hidden), generator, 3.0 * hidden**-0.5), _normal(shape[-1:], generator)
        h = torch.tanh(_normal((shape[0], hidden), generator))
        return h, weight, bias, (torch.rand(shape, generator=generator) < 0.3).float()

    return Op(
        "linear_bernoulli_log_prob",
        draw,
        ops.linear_bernoulli_log_prob,
        eager_decoder.linear_bernoulli_log_prob,
        reference.linear_bernoulli_log_prob,
        compiled=eager_decoder.linear_bernoulli_log_prob_pointwise,
        forward={"row blocks": eager_decoder.linear_bernoulli_log_prob_blocks},
        by_hand={"by hand": eager_decoder.LinearBernoulliLogProb.apply},
        product=lambda h, weight, bias, x: torch.nn.functional.linear(h, weight, bias),
        gradients=3,
        variant=f"from {hidden}",
    )


def mlp_bernoulli_op(n_in: int, *hidden: int) -> Op:
    """Returns a whole decoder together with its likelihood, without gradients, as evaluation uses it."""

    def draw(shape: tuple[int, ...], generator: torch.Generator) -> Inputs:
        widths = (n_in, *hidden, shape[-1])
        layers: list[Tensor] = []
        for inputs, outputs in pairwise(widths):
            scale = (3.0 if len(layers) == 2 * len(hidden) else 1.0) * inputs**-0.5
            layers += [_normal((outputs, inputs), generator, scale), _normal((outputs,), generator)]
        x = (torch.rand(shape, generator=generator) < 0.3).float()
        return _normal((shape[0], n_in), generator), *layers, x

    def of_lists(form: Function) -> Function:
        return lambda h, *rest: form(h, rest[:-1:2], rest[1:-1:2], rest[-1], "tanh")

    return Op(
        "mlp_bernoulli_log_prob",
        draw,
        of_lists(ops.mlp_bernoulli_log_prob),
        eager_decoder.mlp_bernoulli_log_prob,
        of_lists(reference.mlp_bernoulli_log_prob),
        compiled=partial(eager_decoder.mlp_bernoulli_log_prob, last=eager_decoder.linear_bernoulli_log_prob_pointwise),
        forward={"row blocks": eager_decoder.mlp_bernoulli_log_prob_blocks},
        variant="from " + "-".join(map(str, (n_in, *hidden))),
    )


def sample_op(k: int) -> Op:
    """Returns gaussian_sample with k draws per row."""
    # A new seed per call would make no difference: the rivals continue the stream of their generators.
    return Op(
        "gaussian_sample",
        _gaussian("mv"),
        partial(ops.gaussian_sample, k=k, seed=1),
        partial(eager.gaussian_sample, k=k),
        forward={"in place": partial(eager.gaussian_sample_forward, k=k)},
        by_hand={"by hand": lambda mean, log_var: eager.GaussianSample.apply(mean, log_var, k)},
        distributions=partial(distributions.gaussian_sample, k=k),
        gradients=2,
        variant=f"k={k}",
    )


def masked_conv2d_op(outputs: int, kernel: int, mask: str, x_gradient: bool = True, channels_last: bool = False) -> Op:
    """Returns a PixelCNN layer on images [N, I, H, W]; the first layer sees the data, so it needs no gradient of its input."""

    def taps(inputs: int) -> Tensor:
        return reference.causal_mask(mask, outputs, inputs, (kernel, kernel))

    def draw(shape: tuple[int, ...], generator: torch.Generator) -> Inputs:
        weight = _normal((outputs, shape[1], kernel, kernel), generator, shape[1] ** -0.5 / kernel)
        x = _normal(shape, generator)
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        return weight, _normal((outputs,), generator), x

    def rival(form: Function) -> Function:
        masks: dict[tuple[Any, ...], Tensor] = {}

        def call(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
            key = (x.shape[1], x.device, x.dtype)
            if key not in masks:
                masks[key] = taps(x.shape[1]).to(x)
            return form(weight, bias, x, taps=masks[key])

        return call

    rivals = {
        "cropped": rival(eager.masked_conv2d_cropped),
        "cropped, padded": rival(eager.masked_conv2d_padded),
        "channels last": rival(eager.in_channels_last(eager.masked_conv2d)),
        "cropped, channels last": rival(eager.in_channels_last(eager.masked_conv2d_padded)),
    }
    variant = f"to {outputs}, {kernel}x{kernel} {mask}" + ("" if x_gradient else ", no gradient of x")
    return Op(
        "masked_conv2d",
        draw,
        lambda weight, bias, x: ops.masked_conv2d(x, weight, bias, mask),
        rival(eager.masked_conv2d),
        lambda weight, bias, x: reference.masked_conv2d(x, weight, bias, mask),
        forward=rivals,
        by_hand=rivals,
        gradients=3 if x_gradient else 2,
        variant=variant + (", channels last" if channels_last else ""),
    )
