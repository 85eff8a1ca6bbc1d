"""Tests of the inputs that mlp_bernoulli_log_prob refuses, in one sentence that names the argument."""

from __future__ import annotations

import re

import pytest
import torch
from support.mlp_decoder import OP, arguments, draw, value
from torch import Tensor

from dgmfast import ops


def assert_refused(error: type[Exception], message: str, h: object, *others: object) -> None:
    """Asserts that the op refuses the arguments in one sentence, whether or not a gradient is wanted."""
    wanted = [h.detach().requires_grad_()] if isinstance(h, Tensor) and h.is_floating_point() else []
    for given in (h, *wanted):
        with pytest.raises(error) as caught:
            ops.mlp_bernoulli_log_prob(given, *others)  # type: ignore[arg-type]
        assert type(caught.value) is error and re.fullmatch(f"{OP}: {message}", str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("argument", "message", "shapes"),
    [
        ("h", r"h must have shape \[.*\] or \[.*\]", [(), (9,), (6, 1, 1, 9)]),
        ("w0", r"weights\[0\] must have shape .*9", [(13, 8), (9, 13), (13,), (), (1, 13, 9)]),
        ("w1", r"weights\[1\] must have shape .*13", [(21, 12), (13, 21), (13,), (), (6, 21, 13)]),
        ("b0", r"biases\[0\] must have shape .*13", [(1,), (12,), (13, 1), ()]),
        ("b1", r"biases\[1\] must have shape .*21", [(1,), (22,), (6, 21), ()]),
        ("x", r"x must have shape .*\[6, 21\]", [(1, 21), (7, 21), (6, 1), (6, 1, 21), (21,), ()]),
    ],
)
def test_wrong_shapes(argument: str, message: str, shapes: list[tuple[int, ...]], device: str) -> None:
    for shape in shapes:
        tensors = draw((6,), device=device) | {argument: torch.ones(shape, device=device)}
        assert_refused(ValueError, f"{message}.*; got {re.escape(str(list(shape)))}", *arguments(tensors, "tanh"))


@pytest.mark.parametrize("argument", list(draw()))
def test_wrong_tensors(argument: str, device: str) -> None:
    """Values that are no tensors, and tensors of another dtype or device than h, must be refused."""
    label = {"w": rf"weights\[{argument[1:]}\]", "b": rf"biases\[{argument[1:]}\]"}.get(argument[0], argument)
    tensors = draw(device=device)

    def refused(error: type[Exception], message: str, wrong: object) -> None:
        assert_refused(error, f"{label} must {message}", *arguments(tensors | {argument: wrong}, "tanh"))  # type: ignore[arg-type]

    for wrong in ([1.0], 2.5, "x", None):
        refused(TypeError, f"be a tensor; got {type(wrong).__name__}", wrong)
    others = [torch.float64, torch.float16, torch.bfloat16] if argument != "h" else []
    for dtype in (torch.int64, torch.complex64, *others):
        expected = "be float32, float64, bfloat16 or float16" if argument == "h" else "have the dtype of h, float32"
        refused(TypeError, f"{expected}; got {str(dtype).removeprefix('torch.')}", tensors[argument].to(dtype))
    if argument != "h":
        refused(ValueError, r"be on the device of h, \S*; got meta", tensors[argument].to("meta"))
    with pytest.raises(NotImplementedError, match=OP):
        value(tensors | {argument: tensors[argument].to_sparse()})


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"weights": [], "biases": []}, ValueError, "weights must .*16.*; got .*0.*"),
        ({"weights": [torch.ones(9, 9)] * 17, "biases": [torch.ones(9)] * 17}, ValueError, "weights must .*16.*; got .*17.*"),
        ({"biases": []}, ValueError, "biases must .*2.*; got .*0.*"),
        ({"biases": [torch.ones(13)]}, ValueError, "biases must .*2.*; got .*1.*"),
        ({"biases": (torch.ones(13), torch.ones(21), torch.ones(21))}, ValueError, "biases must .*2.*; got .*3.*"),
        ({"weights": None}, TypeError, "weights must be a list of tensors; got NoneType"),
        ({"biases": 3}, TypeError, "biases must be a list of tensors; got int"),
        ({"activation": "gelu"}, ValueError, "activation must be None, .*tanh.*; got 'gelu'"),
        ({"activation": ""}, ValueError, "activation must be None, .*tanh.*; got ''"),
        ({"activation": 3}, TypeError, "activation must be None or a string; got int"),
        ({"activation": torch.tanh}, TypeError, "activation must be None or a string; got builtin_function_or_method"),
    ],
)
def test_wrong_lists_and_activations(wrong: dict[str, object], error: type[Exception], message: str) -> None:
    given: dict[str, object] = dict(zip(("h", "weights", "biases", "x", "activation"), arguments(draw()), strict=True))
    assert_refused(error, message, *(given | wrong).values())
