"""Draws images from a stack of causal convolutions (a PixelCNN), pixel by pixel."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmfast import _C
from dgmfast.errors import InputError
from dgmfast.nn.masked_conv import CausalLayer, MaskedConv2d, call_layers
from dgmfast.nn.pixel_output import PixelOutput
from dgmfast.nn.pixelcnn_naive import pixels_by_passes
from dgmfast.nn.plain import is_plain

# Images that a thread draws together: enough of them to reuse the weights, few enough for the processor's cache.
_IMAGES_PER_THREAD = 16


@torch.no_grad()
def sample_pixels(
    layers: Sequence[CausalLayer],
    output: PixelOutput,
    uniforms: Tensor,
    condition: Tensor | None = None,
    observed: Tensor | None = None,
    keep: Tensor | None = None,
    temperature: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draw images [N, C, H, W] from a PixelCNN, pixel by pixel in raster order, and channel by channel within a pixel.

    The layers are applied one after the other. The outputs of the last one are the parameters of `output` at each pixel. Every
    activation is computed once, so that an image costs one pass through the network in total. The weights are read at each call.
    The images do not depend on the number of threads or on the other images of the batch.

    If a layer is not a plain MaskedConv2d (it has a hook or a parametrisation, or is of another class), all layers are called for
    each pixel and channel, which is slow; a warning says so. These layers must not let an output see later pixels.

    With `keep`, the pixels of `observed` where `keep` is true are left as they are. If they come first in raster order (for
    example, the top rows), the others are drawn from the exact conditional distribution. For any other mask, a pixel is drawn
    given the pixels before it, kept or drawn, but not given the kept pixels after it. That is not the conditional distribution
    given all kept pixels.

    Args:
        layers: The first with mask A, the others with mask B, all with the same number of colors; float32 or float64. If they are
            on CUDA, their weights are copied to the CPU, and the images are drawn there and then moved to the device. Layers that
            are called stay on their device.
        output: The distribution of a pixel.
        uniforms: [N, C, H, W] float64 in [0, 1), one number per draw.
        condition: [N, u, H, W], the inputs that the first layer sees unmasked.
        observed: [N, C, H, W].
        keep: Boolean, broadcasts to the shape of observed.
        temperature: Divides the logits, and multiplies the scale of logistic pixels.
        progress: Called with the number of finished rows and the total number of rows. Images are drawn in chunks, and the rows
            of each chunk are counted separately.

    Returns:
        [N, C, H, W] in [0, 1], with the dtype and the device of the layers.

    Raises:
        InputError: The layers are not causal or do not fit together, or an argument has a wrong shape, dtype or value.
    """
    changed = [f"layer {i}" for i, layer in enumerate(layers) if not is_plain(layer.conv, MaskedConv2d, "weight", "bias")]
    first = _check_layers(layers, output, uniforms) if all(isinstance(layer.conv, MaskedConv2d) for layer in layers) else None
    if changed or first is None:
        unmasked = None if first is None else first.unmasked_inputs
        stack = nn.ModuleList(layer.conv for layer in layers)

        def network(x: Tensor, condition: Tensor | None) -> Tensor:
            return call_layers(layers, x if condition is None else torch.cat([condition, x], 1))

        return sample_by_calls(
            network, stack, changed[0], output, uniforms, condition, observed, keep, temperature, progress, unmasked
        )
    _check_temperature(temperature)
    condition, observed, keep = _check_maps(first.weight, first.unmasked_inputs, uniforms, condition, observed, keep)
    device, weight = first.weight.device, first.weight
    weights = [_resolved(layer.conv.weight)[:, layer.conv.unmasked_inputs :] for layer in layers]
    biases = [_bias(layer.conv) for layer in layers]
    relu, residual = [layer.relu for layer in layers], [layer.residual for layer in layers]
    uniforms = _resolved(uniforms)

    total, height = len(uniforms), uniforms.shape[2]
    chunks = -(-total // (_IMAGES_PER_THREAD * torch.get_num_threads()))
    images = []
    for i in range(chunks):
        chunk = slice(total * i // chunks, total * (i + 1) // chunks)
        contexts = [_context(first, condition[chunk], biases[0]), *biases[1:]] if condition is not None else biases
        kept = [None if t is None else t[chunk] for t in (observed, keep)]
        sampler = _C.PixelCNNSampler(
            weights, contexts, relu, residual, first.colors, output.kind, output.levels, temperature, uniforms[chunk], *kept
        )
        for row in range(height):
            sampler.rows(row, row + 1)
            if progress is not None:
                progress(i * height + row + 1, chunks * height)
        images.append(sampler.image)
    return torch.cat(images).to(device) if images else weight.new_zeros(uniforms.shape)


def sample_by_calls(
    network: Callable[[Tensor, Tensor | None], Tensor],
    module: nn.Module,
    changed: str,
    output: PixelOutput,
    uniforms: Tensor,
    condition: Tensor | None = None,
    observed: Tensor | None = None,
    keep: Tensor | None = None,
    temperature: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    unmasked: int | None = None,
) -> Tensor:
    """`sample_pixels` for any causal network(x, condition), with a full pass for each pixel and channel, which is slow.

    Args:
        network: Maps x and the condition to the parameters of all pixels, [N, C·P, H, W].
        module: Holds the network's parameters; the first one gives the dtype and the device.
        changed: The name of the part that prevents the fast sampler, for the warning.
        unmasked: Number of channels of `condition`, or None if it is not known.
    """
    _check_uniforms(uniforms)
    _check_temperature(temperature)
    like = next(module.parameters())
    unmasked = unmasked if unmasked is not None else 0 if condition is None else condition.shape[1]
    condition, observed, keep = _check_maps(like, unmasked, uniforms, condition, observed, keep)
    condition, observed, keep = (None if t is None else t.to(like.device) for t in (condition, observed, keep))
    warnings.warn(
        f"sample: the network is called for every pixel, which is slow, because {changed} is not as it was made: it has a hook "
        "or a parametrisation, or is of another class",
        stacklevel=3,
    )
    count = output.channels(uniforms.shape[1])

    def parameters(x: Tensor) -> Tensor:
        params = network(x, condition)
        if params.shape != (len(x), count, *x.shape[2:]):
            expected = f"[{len(x)}, {count}, {x.shape[2]}, {x.shape[3]}], the parameters of {output.kind} pixels"
            raise InputError(f"the last layer must have outputs {expected}; got {list(params.shape)}")
        return params

    return pixels_by_passes(parameters, like, output, uniforms.to(like.device), observed, keep, temperature, progress)


def _resolved(t: Tensor) -> Tensor:
    """t on the CPU, without the lazy negative bit of torch, which the extension does not read."""
    return t.detach().cpu().resolve_neg()


def _bias(conv: MaskedConv2d) -> Tensor:
    """The bias of a layer on the CPU, or zeros if it has none."""
    return torch.zeros(conv.out_channels, dtype=conv.weight.dtype) if conv.bias is None else _resolved(conv.bias)


def _context(conv: MaskedConv2d, condition: Tensor, bias: Tensor) -> Tensor:
    """The contribution of the unmasked inputs and the bias to the first layer, [N, O, H, W]."""
    weight = _resolved(conv.weight)[:, : conv.unmasked_inputs]
    padding = (conv.kernel_size[0] // 2, conv.kernel_size[1] // 2)
    with torch.autocast("cpu", enabled=False):
        return F.conv2d(condition, weight, bias, padding=padding)


def _check_layers(layers: Sequence[CausalLayer], output: PixelOutput, uniforms: Tensor) -> MaskedConv2d:
    """Check that the layers are causal and fit together, and return the convolution of the first one."""
    if not layers:
        raise InputError("layers must hold at least one layer; got none")
    _check_uniforms(uniforms)
    first, inputs = layers[0].conv, uniforms.shape[1]
    if first.weight.dtype not in (torch.float32, torch.float64):
        raise InputError(f"layers must be float32 or float64; got {first.weight.dtype}")
    for i, layer in enumerate(layers):
        conv = layer.conv
        if conv.mask != ("B" if i else "A"):
            raise InputError(f"the first layer must have mask A and the others B; got {conv.mask} in layer {i}")
        if conv.colors != first.colors:
            raise InputError(f"the layers must have one number of colors, {first.colors}; got {conv.colors} in layer {i}")
        if i and conv.unmasked_inputs:
            raise InputError(f"the first layer alone may have unmasked_inputs; got {conv.unmasked_inputs} in layer {i}")
        if conv.in_channels - conv.unmasked_inputs != inputs:
            got = conv.in_channels - conv.unmasked_inputs
            raise InputError(f"layer {i} must have {inputs} masked inputs, the channels before it; got {got}")
        if layer.residual and (i == 0 or conv.out_channels != inputs):
            raise InputError(
                "residual needs a layer after the first with as many outputs as inputs; "
                f"got layer {i} of {inputs} inputs and {conv.out_channels} outputs"
            )
        if conv.weight.dtype != first.weight.dtype or conv.weight.device != first.weight.device:
            raise InputError(
                f"the layers must have one dtype and device, {first.weight.dtype} on {first.weight.device}; "
                f"got {conv.weight.dtype} on {conv.weight.device} in layer {i}"
            )
        inputs = conv.out_channels
    if inputs != output.channels(uniforms.shape[1]):
        expected = output.channels(uniforms.shape[1])
        raise InputError(f"the last layer must have {expected} outputs, the parameters of {output.kind} pixels; got {inputs}")
    return first


def _check_uniforms(uniforms: Tensor) -> None:
    if uniforms.dim() != 4 or uniforms.dtype != torch.float64:
        raise InputError(f"uniforms must be float64 of shape [N, C, H, W]; got {uniforms.dtype} {list(uniforms.shape)}")
    if uniforms.numel() and not bool(((uniforms >= 0) & (uniforms < 1)).all()):
        raise InputError("uniforms must lie in [0, 1); got other values")


def _check_temperature(temperature: float) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise InputError(f"temperature must be positive and finite; got {temperature}")


def _check_maps(
    weight: Tensor, unmasked: int, uniforms: Tensor, condition: Tensor | None, observed: Tensor | None, keep: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Check condition, observed and keep, and return them on the CPU, in the dtype of the layers and in full shape.

    `weight` is the weight of the first layer, and `unmasked` the number of its unmasked inputs.
    """
    count, _, height, width = uniforms.shape
    expected = [count, unmasked, height, width]
    if (condition is None) != (unmasked == 0) or (condition is not None and list(condition.shape) != expected):
        wanted = f"of shape {expected}, the unmasked_inputs of the first layer" if unmasked else "None"
        raise InputError(f"condition must be {wanted}; got {None if condition is None else list(condition.shape)}")
    if condition is not None:
        condition = _resolved(condition).to(weight.dtype)
    if (observed is None) != (keep is None):
        raise InputError(f"observed and keep go together; got {'keep' if observed is None else 'observed'} alone")
    if observed is None or keep is None:
        return condition, None, None
    if observed.shape != uniforms.shape:
        raise InputError(f"observed must have the shape of uniforms, {list(uniforms.shape)}; got {list(observed.shape)}")
    if keep.dtype != torch.bool:
        raise InputError(f"keep must be bool; got {keep.dtype}")
    try:
        keep = keep.expand(uniforms.shape)
    except RuntimeError:
        raise InputError(f"keep must broadcast to {list(uniforms.shape)}; got {list(keep.shape)}") from None
    return condition, _resolved(observed).to(weight.dtype), keep.cpu()
