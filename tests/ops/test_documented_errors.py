"""Tests that no error is larger than docs/ops.md states."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from support.op_cases import FULL, ISAS, double, evaluate, output_weights

from dgmfast import _C, ops, reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ops.md"
ROUNDING = torch.finfo(torch.float32).eps


def stated() -> dict[str, tuple[float, float]]:
    """Returns the largest errors that the page states for each op, forward and backward, in roundings."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+|–) \| ([\d.]+|–) \|$", PAGE.read_text(), re.M)
    return {op: (float(forward), 0.0 if backward == "–" else float(backward)) for op, forward, backward in rows}


def masked_conv2d_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (4, 16, 20, 20), "weight": (16, 16, 3, 3), "bias": (16,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def mlp_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"h": (8, 64, 20), "w1": (200, 20), "w2": (784, 200), "b1": (200,), "b2": (784,)}
    drawn = {name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    return {**drawn, "x": torch.rand(8, 784, generator=generator).round()}


def mlp(module, *, h, w1, w2, b1, b2, x):
    return (module.mlp_bernoulli_log_prob(h, [w1, w2], [b1, b2], x, "tanh"),)


def measured(op: str) -> tuple[float, float]:
    """Returns the largest errors of outputs and of gradients against float64, in roundings of the largest value (at least 1)."""
    if op == "mlp_bernoulli_log_prob":
        tensors, call, truth = mlp_inputs(), lambda **t: mlp(ops, **t), lambda **t: mlp(reference, **t)
    elif op == "masked_conv2d":
        tensors = masked_conv2d_inputs()
        call, truth = (lambda **t: (ops.masked_conv2d(**t),)), (lambda **t: (reference.masked_conv2d(**t),))
    else:
        case = next(case for case in FULL if case.op == op)
        leading = (100, 10) if op == "linear_bernoulli_log_prob" else (100,)
        tensors, call, truth = case.tensors(784, leading), case.call, case.reference
    weights = output_weights([out.detach() for out in truth(**tensors)])
    got, exact = evaluate(call, tensors, weights), evaluate(truth, double(tensors), [w.double() for w in weights])
    worst = {"output": 0.0, "gradient": 0.0}
    for name, value in exact.items():
        error = (got[name].double() - value).abs().max() / value.abs().max().clamp(min=1.0) / ROUNDING
        kind = name.split()[0]
        worst[kind] = max(worst[kind], float(error))
    return worst["output"], worst["gradient"]


def test_every_op_with_a_gradient_is_stated() -> None:
    assert set(stated()) == set(ops.__all__) - {"ImportanceState", "importance_state", "from_normal", "to_normal"}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", stated())
def test_no_error_is_larger(op: str, isa: str) -> None:
    before = _C.isa()
    _C.set_isa(isa)
    try:
        found = measured(op)
    finally:
        _C.set_isa(before)
    assert found[0] <= stated()[op][0] and found[1] <= stated()[op][1], found
