"""Tests of linear_bernoulli_log_prob against the layer and its likelihood, also at the edges of blocks and memory limits."""

from __future__ import annotations

import math
import re

import pytest
import torch
from support.op_cases import Tensors, assert_within_tolerance, double, evaluate, has_cpu_kernels, output_weights
from torch import Tensor

from dgmfast import nn as layers
from dgmfast import ops, reference

BLOCK = 2**18  # logits that the CPU holds at a time
KEPT = 2**22  # most logits that a training pass keeps

implementations = pytest.mark.parametrize(
    "log_prob", [ops.linear_bernoulli_log_prob, reference.linear_bernoulli_log_prob], ids=["op", "reference"]
)


def draw(
    leading: tuple[int, ...] = (6,), hidden: int = 9, dim: int = 21, *, x: str = "float", dtype: torch.dtype = torch.float64
) -> Tensors:
    generator = torch.Generator().manual_seed(4)
    shapes = {"h": (*leading, hidden), "weight": (dim, hidden), "bias": (dim,)}
    tensors = {name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}
    pixels = torch.rand(leading[0], dim, generator=generator)
    kinds = {"float": pixels.to(dtype), "bool": pixels < 0.5, "byte": (pixels < 0.5).byte(), "binary": (pixels < 0.5).to(dtype)}
    return tensors | {"x": kinds[x]}


def call(which, **fixed):
    return lambda **t: (which.linear_bernoulli_log_prob(**t, **fixed),)


def assert_right(tensors: Tensors, **fixed: None) -> Tensors:
    """Asserts that values and gradients are within the tolerance rule, and returns them."""
    outputs = call(reference, **fixed)(**tensors)
    weights = output_weights([out.detach() for out in outputs])
    truth = evaluate(call(reference, **fixed), double(tensors), [w.double() for w in weights])
    got, own = (evaluate(call(which, **fixed), tensors, weights) for which in (ops, reference))
    # A gradient is a sum over rows of products with h, and has their rounding error.
    assert_within_tolerance(got, own, truth, least_gradient=8.0)
    return got


@pytest.mark.parametrize("x", ["float", "bool", "byte"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("leading", [(0,), (1,), (5,), (0, 3), (3, 0), (1, 1), (7, 1), (1, 7), (5, 3)])
def test_shapes(leading: tuple[int, ...], with_bias: bool, x: str, path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    for hidden, dim in ((9, 21), (1, 1), (0, 5), (3, 0)):
        tensors = {name: t.to(device) for name, t in draw(leading, hidden, dim, x=x, dtype=dtype).items()}
        fixed: dict[str, None] = {}
        if not with_bias:
            del tensors["bias"]
            fixed = {"bias": None}
        assert assert_right(tensors, **fixed)["output 0"].shape == leading


@implementations
def test_is_the_layer_and_its_likelihood(log_prob, device: str) -> None:
    tensors = {name: t.to(device) for name, t in draw((4, 3), x="binary").items()}
    logits = torch.nn.functional.linear(*(tensors[name] for name in ("h", "weight", "bias")))
    bernoulli = torch.distributions.Bernoulli(logits=logits)
    expected = bernoulli.log_prob(tensors["x"].unsqueeze(1)).sum(-1)
    torch.testing.assert_close(log_prob(**tensors), expected)


# The rows of one block, and one more or fewer; blocks of whole rows, and of part of one row's samples.
@pytest.mark.parametrize(
    "leading",
    [
        (63,),
        (64,),
        (65,),
        (129,),
        (577,),
        (64, 1),
        (1, 63),
        (1, 64),
        (1, 65),
        (1, 193),
        (3, 65),
        (5, 21),
        (5, 33),
        (70, 2),
        (2, 0),
    ],
)
def test_edges_of_blocks(leading: tuple[int, ...], device: str) -> None:
    """Values and gradients must be right at the edges of blocks, which have 64 rows at D = 4096."""
    tensors = {name: t.to(device) for name, t in draw(leading, 3, BLOCK // 64, dtype=torch.float32).items()}
    got = assert_right(tensors)
    flat = {name: t if name in ("weight", "bias") else t.clone() for name, t in tensors.items()}
    for i in range(0, leading[0], 17):  # each row alone
        row = {name: t[i : i + 1] if name in ("h", "x") else t for name, t in flat.items()}
        torch.testing.assert_close(ops.linear_bernoulli_log_prob(**row), got["output 0"][i : i + 1], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("leading", [(1024,), (1025,), (2, 512), (1, 1025)])
def test_both_sides_of_the_memory_rule(leading: tuple[int, ...], device: str) -> None:
    """Up to 4 Mi logits must be kept for the backward pass, and more must be computed again, with the same gradients."""
    tensors = {name: t.to(device) for name, t in draw(leading, 4, KEPT // 1024, dtype=torch.float32).items()}
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    with torch.profiler.profile() as profile:
        out = ops.linear_bernoulli_log_prob(**leaves)
    kept = any(event.name == "dgmfast::linear_bernoulli_log_prob_with_logits" for event in profile.events())
    assert kept == (math.prod(leading) <= 1024)
    weights = output_weights([out.detach()])
    got = torch.autograd.grad(out, list(leaves.values()), weights, retain_graph=True)
    twice = torch.autograd.grad(out, list(leaves.values()), weights)
    assert all(torch.equal(a, b) for a, b in zip(got, twice, strict=True))
    saved, logits = torch.ops.dgmfast.linear_bernoulli_log_prob_with_logits(**tensors)
    assert torch.equal(out, saved) and logits.shape == (*leading, 4096)
    for given in (logits, None):
        again = torch.ops.dgmfast.linear_bernoulli_log_prob_backward(weights[0], *tensors.values(), given, [True] * 4)
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def test_large_training_passes_hold_no_logits(device: str) -> None:
    """The largest allocation must be one block per thread, which is 2 % of the logits here."""
    tensors = {name: t.to(device) for name, t in draw((20000,), 4, 784, dtype=torch.float32).items()}
    leaves = {name: t.requires_grad_(name != "x") for name, t in tensors.items()}
    with torch.profiler.profile(profile_memory=True) as profile:
        ops.linear_bernoulli_log_prob(**leaves).sum().backward()
    largest = max(abs(event.cpu_memory_usage) + abs(event.device_memory_usage) for event in profile.events())
    assert largest < (0.02 if has_cpu_kernels(device) else 0.3) * 4 * 20000 * 784


@implementations
def test_extreme_logits(log_prob, path_dtype: tuple[str, torch.dtype]) -> None:
    """A certain pixel must cost nothing if right and its logit if wrong; Σ x l apart from Σ softplus(l) would lose digits."""
    device, dtype = path_dtype
    large = 1e4 if dtype in (torch.float32, torch.float64) else 8192.0
    h = torch.tensor([[large], [-large], [large], [-large], [0.0]], device=device, dtype=dtype)
    for dim in (1, 100, 784):
        weight = torch.ones(dim, 1, device=device, dtype=dtype)
        x = torch.tensor([[1.0], [0.0], [0.0], [1.0], [1.0]], device=device, dtype=dtype).expand(-1, dim)
        expected = dim * torch.tensor([0.0, 0.0, -large, -large, -math.log(2.0)], device=device, dtype=torch.float64)
        leaves = [t.clone().requires_grad_() for t in (h, weight)]
        out = log_prob(*leaves, None, x)
        torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=0.0)
        grads = torch.autograd.grad(out.sum(), leaves)
        slopes = torch.tensor([0.0, 0.0, -1.0, 1.0, 0.5], device=device, dtype=torch.float64)
        torch.testing.assert_close(grads[0].double().flatten(), dim * slopes, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
        assert all(bool(grad.isfinite().all()) for grad in grads)


def test_large_logits_of_both_signs(path_dtype: tuple[str, torch.dtype]) -> None:
    """For a decoder that is certain of most pixels, the error must be relative to the result, not to the sum of the logits."""
    device, dtype = path_dtype
    tensors = {name: t.to(device) for name, t in draw((5, 4), 50, 784, x="binary").items()}
    tensors["bias"] = tensors["bias"] + 2e3 * (2.0 * tensors["x"][0] - 1.0)  # right for row 0
    assert_right({name: t.to(dtype) for name, t in tensors.items()})


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("leading", [(300,), (1, 1500), (40, 50)])
def test_any_number_of_threads_is_right(leading: tuple[int, ...], count: int, threads: None) -> None:
    """Any number of threads must agree with float64; each number makes the matrix libraries cut products differently."""
    torch.set_num_threads(count)
    assert_right(draw(leading, 30, 784, dtype=torch.float32))


def test_a_row_does_not_see_the_others(device: str) -> None:
    tensors = {name: t.to(device) for name, t in draw((40, 50), 30, 784, dtype=torch.float32).items()}
    others = {name: t.clone() for name, t in tensors.items()}
    others["h"][7:], others["x"][7:] = math.nan, math.inf
    found = ops.linear_bernoulli_log_prob(**others)
    assert found[7:].isnan().all()
    tolerance = float(_rounding(tensors)[:7].max())
    truth = reference.linear_bernoulli_log_prob(**double(tensors))
    torch.testing.assert_close(found[:7].double(), truth[:7], rtol=0.0, atol=tolerance)


def _rounding(tensors: Tensors) -> Tensor:
    """Bounds the float32 rounding of each log p(x|h): H + 1 roundings of |h| |W| per product, then the sum of D terms."""
    logits = torch.nn.functional.linear(tensors["h"].abs(), tensors["weight"].abs(), tensors["bias"].abs()).double()
    return torch.finfo(torch.float32).eps * (tensors["h"].shape[-1] + 1 + logits.shape[-1] ** 0.5) * logits.sum(-1)


def test_the_gradient_of_x_is_the_sum_of_its_samples_logits(device: str) -> None:
    tensors = {name: t.to(device) for name, t in draw((4, 3)).items()}
    x = tensors.pop("x").requires_grad_()
    out = ops.linear_bernoulli_log_prob(**tensors, x=x)
    weights = torch.rand(4, 3, dtype=torch.float64, device=device)
    (gradient,) = torch.autograd.grad(out, x, weights)
    logits = torch.nn.functional.linear(*tensors.values())
    torch.testing.assert_close(gradient, (weights.unsqueeze(-1) * logits).sum(1))


def test_parameters_in_worker_threads(threads: None) -> None:
    """Leaves that require a gradient, and tensors of inference mode, must not reach autograd in the op's worker threads."""
    torch.set_num_threads(2)
    tensors = draw((2, 700), 5, 784, dtype=torch.float32)
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    expected = ops.linear_bernoulli_log_prob(**tensors)
    with torch.inference_mode():
        assert torch.equal(ops.linear_bernoulli_log_prob(**{name: t.clone() for name, t in tensors.items()}), expected)
    with torch.no_grad():
        assert torch.equal(ops.linear_bernoulli_log_prob(**leaves), expected)
    assert torch.equal(ops.linear_bernoulli_log_prob(**leaves).detach(), expected)


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("h", torch.ones(9), ValueError, r"h must have shape \[B, H\] or \[B, K, H\]; got \[9\]"),
        ("h", torch.ones(6, 1, 1, 9), ValueError, r"h must have shape \[B, H\] or \[B, K, H\]; got \[6, 1, 1, 9\]"),
        ("h", torch.ones(6, 8), ValueError, r"weight must have shape \[D, H\] with H of h, 8; got \[21, 9\]"),
        ("weight", torch.ones(9, 21), ValueError, r"weight must have shape \[D, H\] with H of h, 9; got \[9, 21\]"),
        ("weight", torch.ones(9), ValueError, r"weight must have shape \[D, H\] with H of h, 9; got \[9\]"),
        ("bias", torch.ones(1), ValueError, r"bias must have shape \[D\] with D of weight, 21; got \[1\]"),
        ("bias", torch.ones(6, 21), ValueError, r"bias must have shape \[D\] with D of weight, 21; got \[6, 21\]"),
        ("x", torch.ones(1, 21), ValueError, r"x must have shape \[B, D\] with B of h and D of weight, \[6, 21\]; got \[1, 21\]"),
        ("x", torch.ones(6, 1), ValueError, r"x must have shape \[B, D\] with B of h and D of weight, \[6, 21\]; got \[6, 1\]"),
        ("x", torch.ones(6, 1, 21), ValueError, r"x must have shape .*, \[6, 21\]; got \[6, 1, 21\]"),
        ("x", torch.ones(6, 21).long(), TypeError, r"x must have the dtype of h, float32; got int64"),
        ("bias", [1.0], TypeError, r"bias must be a tensor; got list"),
        ("x", None, TypeError, r"x must be a tensor; got NoneType"),
    ],
)
def test_errors(argument: str, value: object, error: type[Exception], message: str, device: str) -> None:
    arguments: dict[str, object] = {name: t.to(device) for name, t in draw(dtype=torch.float32).items()}
    arguments[argument] = value.to(device) if isinstance(value, Tensor) else value
    with pytest.raises(error) as caught:
        ops.linear_bernoulli_log_prob(**arguments)
    assert re.fullmatch(f"linear_bernoulli_log_prob: {message}", str(caught.value)), str(caught.value)
    assert type(caught.value) is error


def test_the_output_layer_broadcasts_any_x() -> None:
    """The layer must broadcast an x that has samples of its own or fewer dimensions than h, where the op cannot be used."""
    torch.manual_seed(0)
    output = layers.BernoulliOutput(4, 11)
    h = torch.randn(5, 3, 4)
    for shape in ((5, 3, 11), (1, 3, 11), (3, 11), (11,), (1, 1, 11)):
        x = torch.rand(shape)
        torch.testing.assert_close(output.log_prob(h, x), reference.bernoulli_log_prob(output.logits(h), x))


def test_the_inner_op(device: str) -> None:
    """The inner op must have no derivative and say so, and must accept a missing bias."""
    tensors = {name: t.to(device) for name, t in draw((3, 2)).items()} | {"bias": None}
    inner, outer = (getattr(torch.ops.dgmfast, f"linear_bernoulli_log_prob{tail}").default for tail in ("_with_logits", ""))
    for op in (inner, outer):
        torch.library.opcheck(op, tuple(tensors.values()))
    out, logits = inner(**tensors)
    backward = torch.ops.dgmfast.linear_bernoulli_log_prob_backward.default
    for given in (logits, None):
        arguments = (torch.ones_like(out), *tensors.values(), given, [True] * 4)
        torch.library.opcheck(backward, arguments)
        assert [g.numel() for g in backward(*arguments)] == [54, 189, 0, 63]
    with pytest.raises(ValueError, match=r"logits must have the output's shape, \[3, 2, 21\]"):
        backward(torch.ones_like(out), *tensors.values(), logits[..., 1:], [True] * 4)
    with pytest.raises(NotImplementedError, match="use linear_bernoulli_log_prob"):
        inner(**(tensors | {"h": tensors["h"].requires_grad_()}))


@pytest.mark.parametrize("leading", [(5,), (5, 3), (5, 3, 2)])
def test_the_output_layer_goes_through_it(leading: tuple[int, ...]) -> None:
    """The output layer must use the op for any dimensions between rows and features, such as samples and labels."""
    torch.manual_seed(0)
    output = layers.BernoulliOutput(4, 11)
    h, x = torch.randn(*leading, 4), torch.rand(5, 11).round()
    shaped = x.view(5, *[1] * (len(leading) - 1), 11)
    expected = evaluate(lambda h, x: (reference.bernoulli_log_prob(output.logits(h), x),), {"h": h, "x": shaped})
    found = evaluate(lambda h, x: (output.log_prob(h, x),), {"h": h, "x": shaped})
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
    assert output.log_prob(h[:0], shaped[:0]).shape == (0, *leading[1:])
    assert list(output.state_dict()) == ["logits.weight", "logits.bias"]
