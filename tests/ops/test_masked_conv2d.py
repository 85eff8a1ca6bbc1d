"""Tests of masked_conv2d against conv2d with a masked weight, in every layout and shape, and of the inputs that it reads."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from support.op_cases import (
    DEVICES,
    ISAS,
    assert_same,
    assert_within_tolerance,
    double,
    evaluate,
    has_cpu_kernels,
    output_weights,
)
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional as F

from dgmfast import _C, ops, reference
from dgmfast.reference import causal_mask

Tensors = dict[str, Tensor]
Options = dict[str, object]

# N, I, H, W, O, kernel, options
SHAPES: list[tuple[int, int, int, int, int, tuple[int, int], Options]] = [
    (2, 3, 7, 9, 6, (3, 3), {"mask": "B", "colors": 3}),
    (3, 3, 7, 9, 6, (3, 3), {"mask": "A", "colors": 3}),
    (2, 5, 6, 4, 4, (3, 3), {"mask": "A"}),
    (2, 1, 28, 28, 17, (7, 7), {"mask": "A"}),
    (1, 20, 28, 28, 19, (3, 3), {"mask": "B"}),
    (5, 4, 1, 1, 4, (3, 3), {"mask": "B"}),
    (2, 3, 1, 13, 2, (1, 3), {"mask": "B"}),
    (2, 3, 13, 1, 2, (5, 3), {"mask": "B"}),
    (2, 64, 5, 6, 1, (1, 1), {"mask": "B"}),
    (2, 3, 5, 6, 3, (1, 1), {"mask": "A", "colors": 3}),
    (2, 3, 5, 6, 3, (1, 1), {"mask": "A"}),  # reads no input
    (1, 2, 3, 2, 5, (7, 7), {"mask": "B"}),  # the kernel is larger than the image
    (2, 8, 6, 5, 12, (5, 3), {"mask": "A", "colors": 3, "unmasked_inputs": 2}),
    (2, 5, 6, 5, 7, (3, 5), {"mask": "B", "unmasked_inputs": 1}),
    (2, 5, 6, 5, 7, (3, 3), {"mask": "A", "unmasked_inputs": 5}),  # this is an ordinary convolution
    (1, 2, 45, 50, 3, (3, 3), {"mask": "B"}),  # more positions than the kernels take at a time
    (40, 2, 4, 4, 2, (3, 3), {"mask": "B"}),  # more images than partial sums
    (1, 70, 9, 11, 66, (3, 3), {"mask": "B", "colors": 2}),  # a long list of taps, taken in portions
]


def name_of(shape: tuple) -> str:
    return "-".join(map(str, [*shape[:5], *shape[5], *shape[6].values()]))


shapes = pytest.mark.parametrize("shape", SHAPES, ids=name_of)
masks = pytest.mark.parametrize("mask", ["A", "B"])
FULL = SHAPES[12]


def draw(shape: tuple, dtype: torch.dtype = torch.float64, device: str = "cpu", bias: bool = True) -> tuple[Tensors, Options]:
    n, i, h, w, o, kernel, options = shape
    generator = torch.Generator().manual_seed(sum(shape[:5]))
    sizes = {"x": (n, i, h, w), "weight": (o, i, *kernel)} | ({"bias": (o,)} if bias else {})
    return {
        name: torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype) for name, s in sizes.items()
    }, options


def run(which: object, tensors: Tensors, options: Options, weights: list[Tensor] | None = None) -> Tensors:
    return evaluate(lambda **t: (which.masked_conv2d(**t, **options),), tensors, weights)


def backward_op(tensors: Tensors, options: Options, grad: Tensor, wanted: list[bool]) -> tuple:
    full = {"mask": "B", "colors": 1, "unmasked_inputs": 0} | options
    return (grad, tensors["x"], tensors["weight"], *full.values(), wanted)


# Values and gradients


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@shapes
def test_matches_the_reference(shape: tuple, bias: bool, path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    tensors, options = draw(shape, dtype, device, bias)
    weights = output_weights([reference.masked_conv2d(**tensors, **options)])
    truth = run(reference, double(tensors), options, [w.double() for w in weights])
    own = run(reference, tensors, options, weights)
    assert_within_tolerance(run(ops, tensors, options, weights), own, truth, log_size=32.0)


@shapes
def test_is_conv2d_of_the_masked_weight(shape: tuple, device: str) -> None:
    """The op and the reference must equal conv2d with the weight masked by an explicit loop."""
    (tensors, options), kernel = draw(shape, device=device), shape[5]
    full = {"mask": "B", "colors": 1, "unmasked_inputs": 0} | options
    masked = tensors["weight"].clone()
    inputs = (masked.shape[1] - full["unmasked_inputs"]) // full["colors"]
    for o, i, row, column in product(*map(range, masked.shape)):
        after = (row, column) > (kernel[0] // 2, kernel[1] // 2)
        if (row, column) == (kernel[0] // 2, kernel[1] // 2):
            later = o * full["colors"] // len(masked) - (i - full["unmasked_inputs"]) // inputs if inputs else 0
            after = later < (0 if full["mask"] == "B" else 1)
        if i >= full["unmasked_inputs"] and after:
            masked[o, i, row, column] = 0.0
    expected = F.conv2d(tensors["x"], masked, tensors["bias"], padding=(kernel[0] // 2, kernel[1] // 2))
    for which in (ops, reference):
        torch.testing.assert_close(which.masked_conv2d(**tensors, **options), expected, rtol=1e-12, atol=1e-12)


@shapes
def test_gradcheck(shape: tuple, path_device: str) -> None:
    _, i, h, w, o, _, options = shape
    if i * o * h * w > 5000:
        pytest.skip("too large for finite differences")
    tensors, _ = draw(shape, device=path_device)
    leaves = tuple(t.requires_grad_() for t in tensors.values())
    assert torch.autograd.gradcheck(lambda *args: ops.masked_conv2d(*args, **options), leaves, fast_mode=i * o * h * w > 500)


def test_every_subset_of_requires_grad(device: str) -> None:
    tensors, options = draw(FULL, torch.float32, device)
    full = run(ops, tensors, options)
    for subset in product([False, True], repeat=3):
        leaves = {n: t.clone().requires_grad_(wanted) for (n, t), wanted in zip(tensors.items(), subset, strict=True)}
        out = ops.masked_conv2d(**leaves, **options)
        assert out.requires_grad == any(subset) and torch.equal(out, full["output 0"])
        if any(subset):
            out.sum().backward()
        for (name, leaf), wanted in zip(leaves.items(), subset, strict=True):
            assert (leaf.grad is not None) == wanted, name
            # For the bias alone, torch computes the sums.
            assert leaf.grad is None or torch.allclose(leaf.grad, full[f"gradient of {name}"], rtol=1e-5, atol=1e-5), name


def test_second_derivative_raises(device: str) -> None:
    tensors, options = draw(FULL, device=device)
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    out = ops.masked_conv2d(**leaves, **options).square().sum()
    first = torch.autograd.grad(out, list(leaves.values()), create_graph=True)
    for gradient in first:
        with pytest.raises(RuntimeError, match=r"masked_conv2d: the second derivative is not implemented"):
            torch.autograd.grad(gradient.sum() + leaves["x"].square().sum(), leaves["x"], retain_graph=True)


@pytest.mark.parametrize("size", [(0, 3, 5, 6), (2, 3, 0, 6), (2, 3, 5, 0)])
def test_empty(size: tuple[int, ...], device: str) -> None:
    tensors = {"x": torch.ones(size, device=device), "weight": torch.ones(4, 3, 3, 3, device=device), "bias": torch.ones(4)}
    tensors["bias"] = tensors["bias"].to(device)
    found = run(ops, tensors, {})
    assert found["output 0"].shape == (size[0], 4, *size[2:])
    for name in tensors:
        assert torch.equal(found[f"gradient of {name}"], torch.zeros_like(tensors[name]))


def test_without_channels(device: str) -> None:
    x, bias = torch.ones(2, 0, 3, 4, device=device), torch.arange(5.0, device=device)
    out = ops.masked_conv2d(x, torch.ones(5, 0, 3, 3, device=device), bias)
    assert torch.equal(out, bias.view(1, 5, 1, 1).expand(2, 5, 3, 4))
    assert ops.masked_conv2d(torch.ones(2, 3, 3, 4), torch.ones(0, 3, 3, 3)).shape == (2, 0, 3, 4)


# Layouts

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "every second": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    "offset": lambda t: torch.cat([t[..., :1], t], -1)[..., 1:],
    "expanded first": lambda t: t[:1].expand(t.shape),
    "one number": lambda t: t.flatten()[0].expand(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [SHAPES[3], SHAPES[12], SHAPES[17]], ids=name_of)
def test_layout_does_not_matter(shape: tuple, layout: str, path_device: str) -> None:
    """Any layout of the arguments or the incoming gradient must give the same bits as contiguous copies."""
    tensors, options = draw(shape, torch.float32, path_device)
    for which in [*([name] for name in tensors), list(tensors)]:
        strided = {name: LAYOUTS[layout](t) if name in which else t for name, t in tensors.items()}
        packed = {name: t.contiguous() for name, t in strided.items()}
        weights = output_weights([ops.masked_conv2d(**packed, **options)])
        expected = run(ops, packed, options, weights)
        assert_same(run(ops, strided, options, weights), expected)
        laid_out = [LAYOUTS[layout](w) for w in weights]
        assert_same(run(ops, packed, options, laid_out), run(ops, packed, options, [w.contiguous() for w in laid_out]))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_follows_x(memory_format: torch.memory_format, device: str) -> None:
    tensors, options = draw(FULL, torch.float32, device)
    leaf = tensors["x"].contiguous(memory_format=memory_format).requires_grad_()
    out = ops.masked_conv2d(leaf, tensors["weight"], None, **options)
    assert out.is_contiguous(memory_format=memory_format)
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    assert grad.is_contiguous(memory_format=memory_format)


def test_threads_do_not_matter(path_device: str, threads: None) -> None:
    for shape in (SHAPES[3], SHAPES[16], SHAPES[17]):
        tensors, options = draw(shape, torch.float32, path_device)
        torch.set_num_threads(1)
        expected = run(ops, tensors, options)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert_same(run(ops, tensors, options), expected)


# Which inputs are read


def seen_from(
    output: tuple[int, int, int], tensors: Tensors, options: Options, call: Callable[..., Tensor] = ops.masked_conv2d
) -> Tensor:
    """Returns [I, H, W]: where an output (channel, row, column) of the first image has a derivative other than zero."""
    x = tensors["x"].clone().requires_grad_()
    channel, row, column = output
    (grad,) = torch.autograd.grad(call(x, tensors["weight"], **options)[0, channel, row, column], x)
    return grad[0] != 0.0


@masks
@pytest.mark.parametrize(("colors", "unmasked"), [(1, 0), (3, 0), (1, 2), (3, 2)])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (5, 3), (7, 7)], ids=str)
def test_sees_exactly_what_precedes(mask: str, colors: int, unmasked: int, kernel: tuple[int, int], path_device: str) -> None:
    height, width, inputs, outputs = 5, 6, unmasked + 6, 9
    options: Options = {"mask": mask, "colors": colors, "unmasked_inputs": unmasked}
    tensors, _ = draw((1, inputs, height, width, outputs, kernel, options), torch.float32, path_device)
    for row, column, o in product((0, 2, 4), (0, 3, 5), (0, 2, 3, 8)):
        expected = torch.zeros(inputs, height, width, dtype=torch.bool)
        for i, r, c in product(range(inputs), range(height), range(width)):
            if abs(r - row) > kernel[0] // 2 or abs(c - column) > kernel[1] // 2:
                continue
            group, own = (i - unmasked) * colors // 6, o * colors // outputs
            before = (r, c) < (row, column) or ((r, c) == (row, column) and (group < own or (mask == "B" and group == own)))
            expected[i, r, c] = i < unmasked or before
        assert torch.equal(seen_from((o, row, column), tensors, options).cpu(), expected), (o, row, column)


@masks
def test_nothing_that_follows_is_read(mask: str, path_device: str) -> None:
    """Infinity or NaN at later pixels must not change any bit; conv2d(x, weight · mask) would multiply them by zero."""
    options: Options = {"mask": mask, "colors": 3}
    tensors, _ = draw((2, 6, 6, 7, 9, (3, 5), options), torch.float32, path_device, bias=False)
    out = ops.masked_conv2d(**tensors, **options)
    for value in (math.nan, math.inf):
        spoilt = tensors["x"].clone()
        spoilt[:, :, 3, 4:] = value
        spoilt[:, :, 4:] = value
        found = ops.masked_conv2d(spoilt, tensors["weight"], **options)
        assert torch.equal(found[:, :, :3], out[:, :, :3]) and torch.equal(found[:, :, 3, :4], out[:, :, 3, :4])
        if has_cpu_kernels(path_device):  # CUDA's tiles of channels multiply later colours by zero, as conv2d does
            first = ops.masked_conv2d(
                torch.where(torch.arange(6).view(-1, 1, 1) < 2, tensors["x"], spoilt),
                **{k: v for k, v in tensors.items() if k != "x"},
                **options,
            )
            assert torch.equal(first[:, :3, 3, 4], ops.masked_conv2d(**tensors, **options)[:, :3, 3, 4])


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@shapes
def test_masked_weights_are_ignored(shape: tuple, value: float, path_device: str) -> None:
    tensors, options = draw(shape, torch.float32, path_device)
    full = {"mask": "B", "colors": 1, "unmasked_inputs": 0} | options
    weight = tensors["weight"]
    taps = causal_mask(full["mask"], *weight.shape[:2], shape[5], full["colors"], full["unmasked_inputs"]).to(path_device) > 0
    spoilt = tensors | {"weight": weight.where(taps, value)}
    clean = run(ops, tensors, options)
    assert_same(run(ops, spoilt, options), clean)
    gradient = clean["gradient of weight"]
    assert bool((gradient[~taps] == 0.0).all()) and not gradient[~taps].signbit().any()


# Tracing and casting


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[5], FULL], ids=name_of)
def test_opcheck(shape: tuple, channels_last: bool, device: str) -> None:
    tensors, options = draw(shape, torch.float32, device)
    if channels_last:
        tensors["x"] = tensors["x"].contiguous(memory_format=torch.channels_last)
    grad = torch.ones_like(ops.masked_conv2d(**tensors, **options))
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    opcheck(torch.ops.dgmfast.masked_conv2d.default, tuple(leaves.values()), options)
    opcheck(torch.ops.dgmfast.masked_conv2d.default, tuple(leaves.values())[:2], options)
    for wanted in ([True] * 3, [False, True, False], [True, False, True]):
        detached = {name: t.detach() for name, t in leaves.items()}
        opcheck(torch.ops.dgmfast.masked_conv2d_backward.default, backward_op(detached, options, grad, wanted))


def test_compile(device: str) -> None:
    """The compiled op must equal eager while shapes change."""
    options = FULL[6]
    compiled = torch.compile(
        lambda **t: ops.masked_conv2d(**t, **options).sin(), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for n, height in ((2, 6), (3, 9)):
        tensors, _ = draw((n, FULL[1], height, *FULL[3:]), torch.float32, device)
        found = evaluate(lambda **t: (compiled(**t),), tensors)
        expected = evaluate(lambda **t: (ops.masked_conv2d(**t, **options).sin(),), tensors)
        assert_same(found, expected)


@pytest.mark.slow
def test_inductor(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cuda":
        pytest.importorskip("triton")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    tensors, options = draw(SHAPES[0], torch.float32, device)
    compiled = torch.compile(lambda **t: F.relu(ops.masked_conv2d(**t, **options)), fullgraph=True)
    found = evaluate(lambda **t: (compiled(**t),), tensors)
    expected = evaluate(lambda **t: (F.relu(ops.masked_conv2d(**t, **options)),), tensors)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
    assert any(tmp_path.iterdir())  # the cache shows that something was compiled


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, device: str) -> None:
    """Autocast must give float32 on the CPU and 16 bits on CUDA, like torch, and gradients in the arguments' dtypes."""
    exact, options = draw(FULL, torch.float32, device)
    computed = dtype if device == "cuda" else torch.float32
    for tensors in (exact, {name: t.to(dtype) for name, t in exact.items()}, exact | {"x": exact["x"].to(dtype)}):
        leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        with torch.autocast(device, dtype=dtype):
            out = ops.masked_conv2d(**leaves, **options)
        assert out.dtype == computed
        assert torch.equal(out, ops.masked_conv2d(**{n: t.to(computed) for n, t in tensors.items()}, **options))
        out.sum().backward()
        assert all(t.grad.dtype == t.dtype for t in leaves.values())
    with torch.autocast(device, dtype=dtype):
        assert ops.masked_conv2d(**double(exact), **options).dtype == torch.float64


# Errors


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, r"x must be a tensor; got list"),
        ({"weight": None}, TypeError, r"weight must be a tensor; got NoneType"),
        ({"bias": 1.0}, TypeError, r"bias must be a tensor; got float"),
        ({"mask": 1}, TypeError, r"mask must be a string; got int"),
        ({"mask": None}, TypeError, r"mask must be a string; got NoneType"),
        ({"colors": 1.5}, TypeError, r"colors must be an int; got float"),
        ({"unmasked_inputs": "a"}, TypeError, r"unmasked_inputs must be an int; got str"),
        ({"x": torch.ones(8, 6, 5)}, ValueError, r"x must have shape \[N, I, H, W\]; got \[8, 6, 5\]"),
        (
            {"x": torch.ones(2, 7, 6, 5)},
            ValueError,
            r"weight must have shape \[O, I, kh, kw\] with I of x, 7; got .*",
        ),
        ({"weight": torch.ones(12, 8, 3)}, ValueError, r"weight must have shape .* with I of x, 8; got \[12, 8, 3\]"),
        ({"weight": torch.ones(12, 8, 4, 3)}, ValueError, r"weight must have odd kh and kw .*; got \[12, 8, 4, 3\]"),
        ({"weight": torch.ones(12, 8, 3, 0)}, ValueError, r"weight must have odd kh and kw .*; got \[12, 8, 3, 0\]"),
        ({"bias": torch.ones(11)}, ValueError, r"bias must have shape \[O\] with O of weight, 12; got \[11\]"),
        ({"bias": torch.ones(12, 1)}, ValueError, r"bias must have shape \[O\] with O of weight, 12; got \[12, 1\]"),
        ({"mask": "C"}, ValueError, r"mask must be A or B; got 'C'"),
        ({"mask": ""}, ValueError, r"mask must be A or B; got ''"),
        ({"unmasked_inputs": -1}, ValueError, r"unmasked_inputs must lie in 0\.\.8, the inputs of weight; got -1"),
        ({"unmasked_inputs": 9}, ValueError, r"unmasked_inputs must lie in 0\.\.8, the inputs of weight; got 9"),
        ({"colors": 0}, ValueError, r"colors must divide the masked inputs of weight, 6, and its outputs, 12; got 0"),
        ({"colors": 4}, ValueError, r"colors must divide the masked inputs of weight, 6, and its outputs, 12; got 4"),
        ({"x": torch.ones(2, 8, 6, 5).int()}, TypeError, r"x must be float32.*; got int32"),
        ({"weight": torch.ones(12, 8, 5, 3).double()}, TypeError, r"weight must have the dtype of x, float32; got float64"),
        ({"bias": torch.ones(12).double()}, TypeError, r"bias must have the dtype of x, float32; got float64"),
    ],
)
def test_errors(change: dict[str, object], error: type[Exception], message: str, device: str) -> None:
    tensors, options = draw(FULL, torch.float32, device)
    arguments = tensors | options | {n: v.to(device) if isinstance(v, Tensor) else v for n, v in change.items()}
    with pytest.raises(error) as caught:
        ops.masked_conv2d(**arguments)
    assert type(caught.value) is error and re.fullmatch(f"masked_conv2d: {message}", str(caught.value)), str(caught.value)


def test_two_devices(device: str) -> None:
    tensors, options = draw(FULL, torch.float32, device)
    for elsewhere in ["meta", *(other for other in DEVICES if other != device)]:
        for name in ("weight", "bias"):
            with pytest.raises(
                ValueError, match=rf"masked_conv2d: {name} must be on the device of x, {device}.*; got {elsewhere}"
            ):
                ops.masked_conv2d(**(tensors | {name: tensors[name].to(elsewhere)}), **options)


def test_backward_checks_too(device: str) -> None:
    tensors, options = draw(FULL, torch.float32, device)
    out = ops.masked_conv2d(**tensors, **options)
    for wrong in (torch.cat([out, out]), out.double(), out[:, :6]):
        with pytest.raises((ValueError, TypeError)):
            torch.ops.dgmfast.masked_conv2d_backward(*backward_op(tensors, options, wrong, [True] * 3))


def test_instruction_sets_agree(restored_isa: None) -> None:
    for shape in SHAPES:
        tensors, options = draw(shape)
        found = {}
        for isa in ISAS:
            _C.set_isa(isa)
            found[isa] = run(ops, tensors, options)
        for isa in ISAS[1:]:
            for name, value in found[isa].items():
                torch.testing.assert_close(value, found["baseline"][name], rtol=1e-12, atol=1e-12)
