"""Tests of label_linear against the layer on [x, onehot(y)]: its values, activations, bias per row and errors."""

from __future__ import annotations

import math
import re

import pytest
import torch
from support.op_cases import assert_within_tolerance, double, evaluate
from torch import Tensor
from torch.nn import functional as F

from dgmfast import nn as layers
from dgmfast import ops, reference
from dgmfast.errors import InputError

NAMES = [None, "identity", "relu", "leaky_relu", "tanh", "softplus", "elu"]
every_activation = pytest.mark.parametrize("activation", NAMES)
implementations = pytest.mark.parametrize("label_linear", [ops.label_linear, reference.label_linear], ids=["op", "reference"])


def draw(
    leading: tuple[int, ...] = (6,), inputs: int = 9, hidden: int = 21, labels: int = 10, *, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    shapes = {"x": (*leading, inputs), "weight": (hidden, inputs), "label_weight": (hidden, labels), "bias": (hidden,)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


def repeated(x: Tensor, weight: Tensor, label_weight: Tensor, bias: Tensor, activation: str | None) -> Tensor:
    """Computes the layer on the repeated batch, as models without label_linear do."""
    labels = label_weight.shape[1]
    onehot = torch.eye(labels, dtype=x.dtype, device=x.device).expand(*x.shape[:-1], labels, labels)
    xy = torch.cat([x.unsqueeze(-2).expand(*x.shape[:-1], labels, x.shape[-1]), onehot], -1)
    return layers.ACTIVATIONS[activation or "identity"]()(F.linear(xy, torch.cat([weight, label_weight], 1), bias))


@implementations
@every_activation
def test_is_the_layer_on_x_and_onehot(label_linear, activation: str | None, device: str) -> None:
    for leading in ((), (6,), (2, 3)):
        tensors = {name: t.to(device) for name, t in draw(leading).items()}
        out = label_linear(**tensors, activation=activation)
        assert out.shape == (*leading, 10, 21)
        expected = evaluate(lambda **t: (repeated(**t, activation=activation),), tensors)
        found = evaluate(lambda **t: (label_linear(**t, activation=activation),), tensors)
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name])


def test_every_name_of_the_layers() -> None:
    assert set(layers.ACTIVATIONS) == set(NAMES) - {None} == set(reference.ACTIVATIONS) - {None}


@every_activation
def test_activations_as_torch(activation: str | None, path_dtype: tuple[str, torch.dtype]) -> None:
    """Values and slopes must match torch from −∞ to ∞: at kinks, near 0, at softplus's threshold and in both tails."""
    device, dtype = path_dtype
    points = [0.0, -0.0, 1e-6, 1e-3, 0.1, 0.7, 1.0, 3.0, 9.0, 15.0, 19.9, 20.1, 40.0, 100.0, 1e4, math.inf]
    pre = torch.tensor([sign * point for point in points for sign in (1, -1)], device=device, dtype=dtype)
    label_weight = pre.view(-1, 1).clone().requires_grad_()
    out = ops.label_linear(torch.zeros(1, 1).to(pre), torch.zeros(len(pre), 1).to(pre), label_weight, activation=activation)
    (slope,) = torch.autograd.grad(out.sum(), label_weight)
    leaf = pre.double().requires_grad_()
    exact = reference.ACTIVATIONS[activation](leaf)
    (exact_slope,) = torch.autograd.grad(exact.sum(), leaf)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.flatten().double(), exact.detach(), rtol=4 * eps, atol=2 * torch.finfo(dtype).tiny)
    # A slope 1 − out² or 1 + out near 0 has the rounding error of its output.
    torch.testing.assert_close(slope.flatten().double(), exact_slope, rtol=4 * eps, atol=4 * eps)


@every_activation
def test_small_outputs_keep_their_digits(activation: str | None, path_dtype: tuple[str, torch.dtype]) -> None:
    """tanh and elu of tiny numbers must return these numbers, and in the lower tail softplus's slope must be its value."""
    device, dtype = path_dtype
    if activation == "softplus":
        pre = torch.linspace(-40.0, -12.0, 37, device=device, dtype=dtype)
    else:
        smallest = -30 if dtype != torch.float16 else -4  # below this, float16 itself has few digits
        pre = -torch.logspace(smallest, -3, 37, device=device, dtype=dtype)
    label_weight = pre.view(-1, 1).clone().requires_grad_()
    out = ops.label_linear(torch.zeros(1, 1).to(pre), torch.zeros(len(pre), 1).to(pre), label_weight, activation=activation)
    exact = reference.ACTIVATIONS[activation](pre.double())
    step = torch.finfo(dtype).tiny * torch.finfo(dtype).eps  # below the smallest normal number, digits are lost
    torch.testing.assert_close(out.flatten().double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=step)
    if activation == "softplus":
        (slope,) = torch.autograd.grad(out.sum(), label_weight)
        torch.testing.assert_close(
            slope.flatten().double(), torch.sigmoid(pre.double()), rtol=8 * torch.finfo(dtype).eps, atol=step
        )


@pytest.mark.parametrize(
    ("x_leading", "bias_leading"),
    [
        ((4, 3), (4, 1)),  # one further input per row, beside k samples
        ((4, 1), (4, 3)),  # the reverse: the product of x is not repeated
        ((4, 3), (3,)),
        ((3,), (4, 1)),
        ((), (5,)),
        ((2, 1, 3), (1, 4, 1)),
        ((0, 3), (1, 3)),
    ],
)
def test_bias_per_row(x_leading: tuple[int, ...], bias_leading: tuple[int, ...], path_dtype: tuple[str, torch.dtype]) -> None:
    """A bias per row must broadcast both ways, and its gradient must be summed to its own shape."""
    device, dtype = path_dtype
    tensors = draw(x_leading, dtype=dtype)
    tensors["bias"] = torch.randn(*bias_leading, 21, generator=torch.Generator().manual_seed(1)).to(dtype)
    tensors = {name: t.to(device) for name, t in tensors.items()}
    leading = torch.broadcast_shapes(x_leading, bias_leading)
    out = ops.label_linear(**tensors, activation="tanh")
    assert out.shape == (*leading, 10, 21)
    weights = [torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)]
    run = {
        which: evaluate(lambda which=which, **t: (which.label_linear(**t, activation="tanh"),), tensors, weights)
        for which in (ops, reference)
    }
    truth = evaluate(
        lambda **t: (reference.label_linear(**t, activation="tanh"),), double(tensors), [w.double() for w in weights]
    )
    assert run[ops]["gradient of bias"].shape == (*bias_leading, 21)
    assert_within_tolerance(run[ops], run[reference], truth, least_gradient=4.0)


def test_a_bias_per_row_does_not_repeat_x(device: str) -> None:
    """With x [B, 1, I] and a bias [B, k, H], the product must have B rows and not B · k."""
    tensors = {name: t.to(device).requires_grad_() for name, t in draw((4, 1)).items()}
    tensors["bias"] = torch.zeros(4, 50, 21, dtype=torch.float64, device=device, requires_grad=True)
    with torch.profiler.profile(record_shapes=True) as profile:
        ops.label_linear(**tensors, activation="relu").sum().backward()
    products = [event.input_shapes for event in profile.events() if event.name in ("aten::mm", "aten::addmm")]
    assert len(products) == 3
    assert not any(200 in shape for shapes in products for shape in shapes)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("hidden", [1, 127, 128, 129, 300])
def test_sums_over_rows(rows: int, hidden: int, path_dtype: tuple[str, torch.dtype]) -> None:
    """Sums over rows must be right at the edges of the CPU kernel's blocks of 64 rows by 128 columns, for each gradient alone."""
    device, dtype = path_dtype
    tensors = {name: t.to(device) for name, t in draw((rows,), 3, hidden, 4, dtype=dtype).items()}
    call = {which: lambda which=which, **t: (which.label_linear(**t, activation="tanh"),) for which in (ops, reference)}
    got, own = (evaluate(call[which], tensors) for which in (ops, reference))
    assert_within_tolerance(got, own, evaluate(call[reference], double(tensors)), least_gradient=4.0)
    for name in tensors:
        leaves = {n: t.clone().requires_grad_(n == name) for n, t in tensors.items()}
        ops.label_linear(**leaves, activation="tanh").sum().backward()
        assert torch.equal(leaves[name].grad, got[f"gradient of {name}"]), name


def test_threads_do_not_change_a_bit_of_the_sums(threads: None) -> None:
    tensors = draw((1000,), 3, 300, 10, dtype=torch.float32)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        label_weight = tensors["label_weight"].clone().requires_grad_()
        out = ops.label_linear(tensors["x"].round(), tensors["weight"].round(), label_weight, None, "tanh")
        found.append(torch.autograd.grad(out.sum(), label_weight)[0])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("labels", [0, 1, 100])
def test_numbers_of_labels(labels: int, device: str) -> None:
    tensors = {name: t.to(device) for name, t in draw(labels=labels).items()}
    found, expected = (
        evaluate(lambda which=which, **t: (which.label_linear(**t, activation="elu"),), tensors) for which in (ops, reference)
    )
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])


@every_activation
def test_nan_and_infinity_stay_where_they_are(activation: str | None, path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    tensors = {name: t.to(device) for name, t in draw(dtype=dtype).items()}
    for value in (math.nan, math.inf, -math.inf):
        tensors["label_weight"][5, 3] = value
        out = ops.label_linear(**tensors, activation=activation)
        exact = reference.ACTIVATIONS[activation](torch.tensor(value))
        torch.testing.assert_close(out[:, 3, 5], exact.to(out).expand(6), equal_nan=True)
        out[:, 3, 5] = 0.0
        assert bool(out.isfinite().all())


def test_no_parameters_of_the_layer_need_a_gradient(device: str) -> None:
    """A frozen layer must pass a gradient on to x."""
    tensors = {name: t.to(device) for name, t in draw().items()}
    x = tensors.pop("x").requires_grad_()
    (gradient,) = torch.autograd.grad(ops.label_linear(x, **tensors, activation="softplus").sum(), x)
    (expected,) = torch.autograd.grad(reference.label_linear(x, **tensors, activation="softplus").sum(), x)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("weight", torch.ones(21, 8), ValueError, r"weight must have shape \[H, I\] with I of x, 9; got \[21, 8\]"),
        ("weight", torch.ones(21), ValueError, r"weight must have shape \[H, I\] with I of x, 9; got \[21\]"),
        ("x", torch.ones(6, 8), ValueError, r"weight must have shape \[H, I\] with I of x, 8; got \[21, 9\]"),
        ("label_weight", torch.ones(10, 21), ValueError, r"label_weight must .* H of weight, 21; got \[10, 21\]"),
        ("label_weight", torch.ones(2, 21, 10), ValueError, r"label_weight must .* H of weight, 21; got \[2, 21, 10\]"),
        ("bias", torch.ones(1), ValueError, r"bias must have shape \[\.\.\., H\] with H of weight, 21; got \[1\]"),
        ("bias", torch.ones(5, 21), ValueError, r"bias must broadcast over its leading dimensions .*, \[6\]; got \[5, 21\]"),
        ("activation", "gelu", ValueError, r"activation must be None, .*tanh.*; got 'gelu'"),
        ("activation", "", ValueError, r"activation must be None, .*tanh.*; got ''"),
        ("activation", torch.tanh, TypeError, r"activation must be None or a string; got builtin_function_or_method"),
        ("activation", 1, TypeError, r"activation must be None or a string; got int"),
    ],
)
def test_errors(argument: str, value: object, error: type[Exception], message: str, device: str) -> None:
    arguments = {name: t.to(device) for name, t in draw(dtype=torch.float32).items()} | {"activation": "tanh"}
    arguments[argument] = value.to(device) if isinstance(value, Tensor) else value
    with pytest.raises(error) as caught:
        ops.label_linear(**arguments)
    assert re.fullmatch(f"label_linear: {message}", str(caught.value)), str(caught.value)
    assert type(caught.value) is error


def test_backward_op_without_a_bias(device: str) -> None:
    """The backward op must return no gradient for a bias that was not given, although one is asked for."""
    tensors = {name: t.to(device) for name, t in draw().items()}
    x, weight, label_weight, _ = tensors.values()
    out = ops.label_linear(x, weight, label_weight)
    backward = torch.ops.dgmfast.label_linear_backward
    for where in (device, "meta"):
        arguments = [t.to(where) for t in (out, out, x, weight, label_weight)]
        grads = backward(*arguments, None, None, [True] * 4)
        assert [tuple(g.shape) for g in grads] == [tuple(t.shape) for t in (x, weight, label_weight)] + [(0,)]


def test_the_layer_is_a_linear_layer_on_the_joint_input():
    torch.manual_seed(0)
    layer = layers.LabelLinear(5, 4, 3, "relu")
    x, weight = torch.randn(2, 5), torch.cat([layer.weight, layer.label_weight], 1)
    for label, one_hot in enumerate(torch.eye(3)):
        joint = F.linear(torch.cat([x, one_hot.expand(2, -1)], 1), weight, layer.bias)
        torch.testing.assert_close(layer(x)[:, label], joint.relu())
    layer(x).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    with pytest.raises(InputError, match="activation must be one of"):
        layers.LabelLinear(5, 4, 3, "sine")


def test_the_gradient_of_tanh_is_as_exact_as_torchs(path_device: str) -> None:
    """The gradient 1 − out² must be within 2.5 roundings of the exact gradient.

    The output is right to 1.5 roundings, which adds 2 |out| · 1.5 roundings to those of the square and the difference.
    """
    x = torch.linspace(-6.0, 6.0, 5001, device=path_device).unsqueeze(1).requires_grad_()
    one, zero = torch.ones(1, 1, device=path_device), torch.zeros(1, 1, device=path_device)
    (found,) = torch.autograd.grad(ops.label_linear(x, one, zero, None, "tanh").sum(), x)
    exact = 1.0 - torch.tanh(x.detach().double()).square()
    assert float((found.double() - exact).abs().max()) < 2.5 * torch.finfo(torch.float32).eps
