"""Tests of sample_pixels against a full pass per pixel and against exact enumeration, and of its errors."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.op_cases import ISAS

from dgmfast import _C
from dgmfast.errors import InputError
from dgmfast.nn import CausalLayer, MaskedConv2d, PixelOutput, sample_pixels
from dgmfast.nn.pixelcnn_naive import causal_stack, pixelcnn_sample

OUTPUTS = {
    "bernoulli": PixelOutput(),
    "categorical": PixelOutput("categorical", 5),
    "logistic": PixelOutput("logistic", 16),
    "two levels": PixelOutput("logistic", 2),
    "bytes": PixelOutput("categorical", 256),
}
Kernel = int | tuple[int, int]


def stack(
    output: PixelOutput = OUTPUTS["bernoulli"],
    colors: int = 1,
    kernels: Sequence[Kernel] = (7, 3, 3, 1),
    width: int = 18,
    channels: int | None = None,
    unmasked: int = 0,
    residual: Sequence[int] = (1, 2),
    no_relu: Sequence[int] = (0,),
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
) -> list[CausalLayer]:
    """Returns a PixelCNN with random weights, large enough for draws to depend on the earlier pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layers, inputs = [], channels or colors
        for i, kernel in enumerate(kernels):
            last = i + 1 == len(kernels)
            n_in, n_out = inputs + (0 if i else unmasked), output.channels(channels or colors) if last else width
            conv = MaskedConv2d(n_in, n_out, kernel, "B" if i else "A", colors, 0 if i else unmasked, bias)
            with torch.no_grad():
                conv.weight.mul_(3.0)
                if output.kind == "logistic" and last and conv.bias is not None:
                    conv.bias[1::2] -= 1.5
            layers.append(CausalLayer(conv.to(dtype), i not in no_relu, i in residual and not last))
            inputs = n_out
    return layers


def uniforms(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def redrawn(layers: Sequence[CausalLayer], output: PixelOutput, x: torch.Tensor, u: torch.Tensor, **rest: Any) -> torch.Tensor:
    """Draws every pixel again given the pixels before it in x. One pass is enough, because the layers are causal."""
    params = causal_stack(layers, x, rest.get("condition"))
    by_pixel = params.unflatten(1, (x.shape[1], -1)).movedim(2, -1)
    drawn = output.draw(by_pixel.flatten(0, -2), u.flatten(), rest.get("temperature", 1.0))
    return drawn.view(x.shape).to(x)


def assert_same(layers: Sequence[CausalLayer], output: PixelOutput, u: torch.Tensor, **rest: Any) -> torch.Tensor:
    """Asserts that the pixels are those of the naive sampler, and returns them."""
    x = sample_pixels(layers, output, u, **rest)
    expected = pixelcnn_sample(layers, output, u, **rest)
    assert x.dtype == layers[0].conv.weight.dtype and not x.requires_grad
    assert torch.equal(x, expected)
    if x.numel() > 100 and "keep" not in rest:
        assert 0.02 < x.mean() < 0.98 and x.std() > 0.1  # the image must not be constant
    return x


@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("name", OUTPUTS)
def test_pixels_of_the_naive_way(name: str, colors: int, path_device: str) -> None:
    output = OUTPUTS[name]
    layers = stack(output, colors)
    for layer in layers:
        layer.conv.to(path_device)
    x = sample_pixels(layers, output, u := uniforms(3, colors, 5, 7))
    assert x.device.type == path_device
    for layer in layers:
        layer.conv.cpu()
    assert torch.equal(x.cpu(), pixelcnn_sample(layers, output, u))


STACKS: dict[str, dict[str, Any]] = {
    "one layer": {"kernels": (3,), "residual": ()},
    "one pixel sees nothing": {"kernels": (1, 1), "residual": ()},
    "oblong kernels": {"kernels": ((5, 3), (3, 5), (1, 3), (3, 1)), "residual": (2,)},
    "kernels of 7": {"kernels": (7, 7, 7), "residual": ()},
    "larger than the image": {"kernels": (13, (1, 17), 3)},
    "no bias": {"bias": False},
    "no relu": {"no_relu": (0, 1, 2, 3)},
    "relu of x": {"no_relu": ()},
    "no residual": {"residual": ()},
    "many panels": {"width": 99, "kernels": (3, 3, 3)},
    "one map": {"width": 3},
    "two channels, one group": {"channels": 2},
    "four channels, two groups": {"channels": 4, "colors": 2},
}


@pytest.mark.parametrize("name", STACKS)
def test_stacks(name: str) -> None:
    arguments = {"colors": 1} | STACKS[name]
    channels = arguments.get("channels", arguments["colors"])
    for output in (OUTPUTS["bernoulli"], OUTPUTS["categorical"]):
        assert_same(stack(output, **arguments), output, uniforms(2, channels, 6, 5))


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1), (2, 9)])
def test_sizes(size: tuple[int, int]) -> None:
    assert_same(stack(colors=3), OUTPUTS["bernoulli"], uniforms(4, 3, *size))


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 1, 0, 4), (2, 1, 4, 0)])
def test_nothing_to_draw(shape: tuple[int, ...]) -> None:
    assert sample_pixels(stack(dtype=torch.float32), OUTPUTS["bernoulli"], uniforms(*shape)).shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_does_not_depend_on_its_batch(dtype: torch.dtype, path_device: str, threads: None) -> None:
    """An image must be the same bit for bit, however many images are drawn and however many threads share them."""
    output = PixelOutput("logistic", 2**20)  # with this many levels, rounding differences become visible
    layers, u = stack(output, dtype=dtype), uniforms(40, 1, 6, 6)
    torch.set_num_threads(1)
    alone = torch.cat([sample_pixels(layers, output, u[i : i + 1]) for i in range(len(u))])
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for batch in (1, 2, 3, 4, 5, 7, 9, 11, 12, 13, 17, 40):
            assert torch.equal(sample_pixels(layers, output, u[:batch]), alone[:batch])


def test_more_images_than_are_drawn_together(monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    layers, u = stack(OUTPUTS["bernoulli"], unmasked=2), uniforms(7, 1, 4, 4)
    rest = {"condition": uniforms(7, 2, 4, 4), "observed": uniforms(7, 1, 4, 4), "keep": uniforms(7, 1, 4, 4) < 0.3}
    whole = assert_same(layers, OUTPUTS["bernoulli"], u, **rest)
    monkeypatch.setattr("dgmfast.nn.pixel_sampling._IMAGES_PER_THREAD", 3)
    torch.set_num_threads(1)
    calls: list[tuple[int, int]] = []
    x = sample_pixels(layers, OUTPUTS["bernoulli"], u, **rest, progress=lambda done, rows: calls.append((done, rows)))
    assert torch.equal(x, whole)
    assert calls == [(i + 1, 12) for i in range(12)]


@pytest.mark.parametrize("name", OUTPUTS)
def test_float32(name: str, path_device: str) -> None:
    """In float32, each draw must be that of float64 given the earlier pixels, unless its uniform is near a threshold.

    The parameters have a relative error of about 1e-6, and rounding crosses a threshold with about that probability. Of the 12544
    draws, 0.01 should differ with two levels, and 3 with 256 levels, where errors of the logits move every threshold.
    """
    output = OUTPUTS[name]
    layers, u = stack(output, dtype=torch.float32, width=64), uniforms(16, 1, 28, 28)
    x = sample_pixels(layers, output, u)
    assert x.dtype == torch.float32
    exact = [CausalLayer(layer.conv.double(), layer.relu, layer.residual) for layer in layers]
    drawn = redrawn(exact, output, x.double(), u)
    assert ((x - drawn).abs() > 1e-6).sum() <= (8 if name == "bytes" else 2)


@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("name", ["bernoulli", "categorical", "logistic"])
def test_temperature(name: str, temperature: float, colors: int) -> None:
    assert_same(stack(OUTPUTS[name], colors), OUTPUTS[name], uniforms(2, colors, 5, 5), temperature=temperature)


def test_low_temperature_takes_the_mode() -> None:
    output = OUTPUTS["categorical"]
    x = sample_pixels(stack(output), output, uniforms(3, 1, 5, 5), temperature=1e-9)
    logits = causal_stack(stack(output), x)
    assert torch.equal((x * 4).long().squeeze(1), logits.argmax(1))


@pytest.mark.parametrize("colors", [1, 3])
def test_condition(colors: int) -> None:
    """The first layer must see the conditioning maps in full, including those at later pixels."""
    layers, u = stack(colors=colors, unmasked=2), uniforms(3, colors, 5, 6)
    condition = torch.randn(3, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = assert_same(layers, OUTPUTS["bernoulli"], u, condition=condition)
    later = condition.clone()
    later[:, :, 3, 3] += 5.0
    assert not torch.equal(x[:, :, :3], sample_pixels(layers, OUTPUTS["bernoulli"], u, condition=later)[:, :, :3])
    with torch.autocast("cpu"):
        assert torch.equal(x, sample_pixels(layers, OUTPUTS["bernoulli"], u, condition=condition))


@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("keep_shape", [(3, 3, 5, 6), (5, 6), (3, 1, 5, 1), (1, 1)])
def test_kept_pixels(keep_shape: tuple[int, ...], colors: int) -> None:
    keep_shape = tuple(min(n, colors) if i == len(keep_shape) - 3 else n for i, n in enumerate(keep_shape))
    keep, u = uniforms(*keep_shape) < 0.4, uniforms(3, colors, 5, 6)
    observed = (u + 0.37) % 1.0  # the values are not levels: observed pixels are copied as they are
    x = assert_same(stack(colors=colors), OUTPUTS["bernoulli"], u, observed=observed, keep=keep)
    kept = keep.expand(x.shape)
    assert torch.equal(x[kept], observed[kept])
    assert bool(((x[~kept] == 0) | (x[~kept] == 1)).all())


def test_own_pixels_observed_change_nothing() -> None:
    """Given the first rows of a drawn image, the same uniforms must draw the rest of it."""
    layers, u = stack(OUTPUTS["logistic"], 3), uniforms(4, 3, 6, 5)
    x = sample_pixels(layers, OUTPUTS["logistic"], u)
    keep = torch.zeros(6, 5, dtype=torch.bool)
    keep[:3] = True
    u = torch.where(keep, 0.5, u)
    assert torch.equal(x, sample_pixels(layers, OUTPUTS["logistic"], u, observed=x, keep=keep))


def test_weights_are_read_when_called() -> None:
    layers, u = stack(), uniforms(2, 1, 5, 5)
    x = assert_same(layers, OUTPUTS["bernoulli"], u)
    with torch.no_grad():
        for layer in layers:
            layer.conv.weight.mul_(-1.0)
    assert not torch.equal(x, assert_same(layers, OUTPUTS["bernoulli"], u))


def test_extreme_parameters() -> None:
    """Extreme parameters must give certain draws, and NaN must give the lowest or the highest level and no other value."""
    for output in OUTPUTS.values():
        (layer,) = stack(output, kernels=(1,), residual=())
        assert layer.conv.bias is not None
        for bias in (1e4, -1e4, math.inf, -math.inf, math.nan):
            with torch.no_grad():
                layer.conv.bias.zero_()[0] = bias
            for u in (0.0, 0.25, 1.0 - 2.0**-53):
                x = sample_pixels([layer], output, torch.full((1, 1, 2, 2), u, dtype=torch.float64))
                assert ((x >= 0) & (x <= 1)).all()
                if math.isfinite(bias) and u == 0.25:
                    assert torch.equal(x, pixelcnn_sample([layer], output, torch.full_like(x, u)))


def images_of(levels: int, *shape: int) -> torch.Tensor:
    """Returns all images [levels^(C·H·W), C, H, W]."""
    grid = torch.tensor(list(itertools.product(range(levels), repeat=math.prod(shape))), dtype=torch.float64)
    return grid.view(-1, *shape) / (levels - 1)


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 1, 1), (2, 1, 2)])
@pytest.mark.parametrize("output", [PixelOutput(), PixelOutput("categorical", 3), PixelOutput("logistic", 3)], ids=str)
def test_probabilities_sum_to_one(output: PixelOutput, shape: tuple[int, int, int]) -> None:
    x = images_of(output.levels, *shape)
    log_px = output.log_prob(causal_stack(stack(output, shape[0]), x), x)
    torch.testing.assert_close(log_px.exp().sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("rows_kept", [0, 1])
def test_frequencies(rows_kept: int, temperature: float) -> None:
    """A chi-square test must accept 20000 drawn 2×2 images against p(x) by enumeration and, given a first row, p(rest | row)."""
    output, layers, count = PixelOutput(), stack(kernels=(3, 3), residual=()), 20000
    x = images_of(2, 1, 2, 2)
    log_px = output.log_prob(causal_stack(layers, x) / temperature, x)
    rest: dict[str, Any] = {}
    if rows_kept:
        observed = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64).expand(count, 1, 2, 2)
        rest = {"observed": observed, "keep": torch.tensor([[True], [False]])}
        log_px = log_px.masked_fill((x[:, :, :1] != observed[0, :, :1]).flatten(1).any(1), -math.inf)
    expected = count * log_px.softmax(0)
    drawn = sample_pixels(layers, output, uniforms(count, 1, 2, 2), temperature=temperature, **rest)
    codes = (drawn.flatten(1) @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)).long()
    counts = torch.bincount(codes, minlength=16).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0 and expected[possible].min() > 5
    chi_square = ((counts - expected).square() / expected)[possible].sum()
    assert chi_square < (37.7 if possible.sum() == 16 else 16.3)  # 0.999 quantiles for 15 and 3 degrees of freedom


def replaced(i: int, conv: MaskedConv2d, **flags: bool) -> list[CausalLayer]:
    layers = stack(residual=())
    layers[i] = CausalLayer(conv, **flags)
    return layers


U = uniforms(2, 1, 4, 4)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": ({"layers": []}, "layers must hold at least one layer"),
    "first mask": ({"layers": replaced(0, MaskedConv2d(1, 18, 3, "B").double())}, "mask A and the others B; got B in layer 0"),
    "second mask": ({"layers": replaced(1, MaskedConv2d(18, 18, 3, "A").double())}, "mask A and the others B; got A in layer 1"),
    "colors": ({"layers": replaced(1, MaskedConv2d(18, 18, 3, "B", 2).double())}, "one number of colors, 1; got 2 in layer 1"),
    "unmasked": (
        {"layers": replaced(1, MaskedConv2d(18, 18, 3, "B", 1, 4).double())},
        "the first layer alone .* got 4 in layer 1",
    ),
    "channels": ({"layers": replaced(1, MaskedConv2d(17, 18, 3).double())}, "layer 1 must have 18 masked inputs, .* got 17"),
    "residual": ({"layers": replaced(1, MaskedConv2d(18, 17, 3).double(), residual=True)}, "residual needs .* 18 inputs and 17"),
    "first residual": ({"layers": replaced(0, MaskedConv2d(1, 1, 3, "A").double(), residual=True)}, "residual needs .* layer 0"),
    "outputs": ({"output": OUTPUTS["bytes"]}, "the last layer must have 256 outputs, .* categorical pixels; got 1"),
    "dtypes": ({"layers": replaced(1, MaskedConv2d(18, 18, 3))}, "one dtype and device, torch.float64 on cpu; got torch.float32"),
    "dtype": ({"layers": stack(dtype=torch.float16)}, "layers must be float32 or float64; got torch.float16"),
    "uniforms' dtype": ({"uniforms": U.float()}, r"uniforms must be float64 .* got torch.float32 \[2, 1, 4, 4\]"),
    "uniforms' shape": ({"uniforms": U[0]}, r"shape \[N, C, H, W\]; got torch.float64 \[1, 4, 4\]"),
    "uniforms' range": ({"uniforms": U + 0.5}, r"uniforms must lie in \[0, 1\)"),
    "uniforms' channels": ({"uniforms": uniforms(2, 3, 4, 4)}, "layer 0 must have 3 masked inputs"),
    "temperature": ({"temperature": 0.0}, "temperature must be positive and finite; got 0"),
    "infinite": ({"temperature": math.inf}, "temperature must be positive and finite; got inf"),
    "condition": ({"condition": U}, r"condition must be None; got \[2, 1, 4, 4\]"),
    "no condition": ({"layers": stack(unmasked=2)}, r"condition must be of shape \[2, 2, 4, 4\], .* got None"),
    "few maps": ({"layers": stack(unmasked=2), "condition": U}, r"condition must be of shape \[2, 2, 4, 4\]"),
    "observed alone": ({"observed": U}, "observed and keep go together; got observed alone"),
    "keep alone": ({"keep": U < 1}, "observed and keep go together; got keep alone"),
    "observed": ({"observed": U[:1], "keep": U < 1}, r"observed must have the shape of uniforms, .* got \[1, 1, 4, 4\]"),
    "keep's dtype": ({"observed": U, "keep": U}, "keep must be bool; got torch.float64"),
    "keep's shape": ({"observed": U, "keep": torch.ones(3, 4) < 2}, r"keep must broadcast to .* got \[3, 4\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    changed, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        sample_pixels(**({"layers": stack(), "output": OUTPUTS["bernoulli"], "uniforms": U} | changed))


def engine(**changed: Any) -> Any:
    weights, biases = [torch.zeros(2, 1, 3, 3), torch.zeros(1, 2, 3, 3)], [torch.zeros(2), torch.zeros(1)]
    arguments = {"weights": weights, "contexts": biases, "relu": [False, True], "residual": [False, False], "colors": 1}
    arguments |= {"kind": "bernoulli", "levels": 2, "temperature": 1.0, "uniforms": U}
    return _C.PixelCNNSampler(**(arguments | changed))


ENGINE_WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": "normal"}, "kind must be bernoulli, categorical or logistic; got 'normal'"),
    "levels": ({"levels": 1}, "levels must be at least 2; got 1"),
    "temperature": ({"temperature": math.nan}, "temperature must be positive; got nan"),
    "uniforms": ({"uniforms": U[0]}, "uniforms must have shape [N, C, H, W]; got [1, 4, 4]"),
    "colors": ({"colors": 0}, "colors must be positive; got 0"),
    "odd colors": ({"colors": 2}, "colors must divide the channels of weights[0]"),
    "depth": ({"weights": [], "contexts": [], "relu": [], "residual": []}, "weights must hold at least one layer; got none"),
    "counts": ({"relu": [True]}, "one entry per layer, 2; got 2, 1 and 2"),
    "even kernel": ({"weights": [torch.zeros(2, 1, 2, 3), torch.zeros(1, 2, 3, 3)]}, "weights[0] must have shape [O, 1, kh, kw]"),
    "inputs": ({"weights": [torch.zeros(2, 1, 3, 3), torch.zeros(1, 3, 3, 3)]}, "weights[1] must have shape [O, 2, kh, kw]"),
    "context": ({"contexts": [torch.zeros(2, 2, 4, 3), torch.zeros(1)]}, "contexts[0] must have shape [2] or [N, 2, H, W]"),
    "residual": ({"residual": [False, True]}, "residual needs a layer after the first with as many outputs as inputs"),
    "outputs": ({"kind": "logistic"}, "the last of weights must have 2 outputs, the parameters of logistic pixels; got 1"),
    "one of two": ({"keep": U < 1}, "observed and keep go together"),
    "keep": ({"keep": U[:1] < 1, "observed": U.float()}, "keep must have the shape of uniforms, [2, 1, 4, 4]; got [1, 1, 4, 4]"),
}


@pytest.mark.parametrize("name", ENGINE_WRONG)
def test_errors_of_the_engine(name: str) -> None:
    """The C++ sampler must check its own arguments, whoever calls it."""
    changed, message = ENGINE_WRONG[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        engine(**changed)


def test_rows_come_in_order() -> None:
    sampler = engine()
    sampler.rows(0, 2)
    for begin, end in ((0, 1), (3, 4), (2, 5), (2, 1)):
        with pytest.raises(ValueError, match=f"rows must go on at 2 and end within 4; got {begin} to {end}"):
            sampler.rows(begin, end)
    sampler.rows(2, 4)
    assert torch.equal(sampler.image, (U < 0.5).float())
    for wrong in ({"uniforms": U.float()}, {"weights": [torch.zeros(2, 1, 3, 3), torch.zeros(1, 2, 3, 3).double()]}):
        with pytest.raises(TypeError, match="must be"):
            engine(**wrong)


def test_every_instruction_set_draws_the_same(restored_isa: None) -> None:
    layers, u = stack(OUTPUTS["bytes"], 3), uniforms(2, 3, 6, 6)
    drawn = []
    for isa in ISAS:
        _C.set_isa(isa)
        drawn.append(sample_pixels(layers, OUTPUTS["bytes"], u))
    assert all(torch.equal(x, drawn[0]) for x in drawn)
