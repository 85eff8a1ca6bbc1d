"""Tests of bfloat16 and float16 on the CPU: the ops compute in float32 and round the outputs and gradients to the dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support import mlp_decoder
from support.op_cases import CASES, Case, Tensors, as_tuple, assert_matches_reference, evaluate, output_weights

from dgmfast import _C, ops, reference

pytestmark = pytest.mark.skipif(_C.cuda_on_host, reason="the kernels of such a build have 16-bit dtypes")

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype).removeprefix("torch."))

Call = Callable[..., tuple[torch.Tensor, ...]]


def convolution(**tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (ops.masked_conv2d(**tensors, mask="A"),)


def decoder(**tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (mlp_decoder.value(tensors, "tanh"),)


def image(dtype: torch.dtype) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 3, 6, 5), "weight": (4, 3, 3, 3), "bias": (4,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def assert_rounded_from_float32(call: Call, tensors: Tensors, returned: torch.dtype, **tolerance: float) -> None:
    """Asserts that outputs and gradients equal those of the same numbers in float32, rounded."""
    wide = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    weights = [w.to(returned) for w in output_weights([out.detach() for out in call(**wide)])]
    found = evaluate(call, tensors, weights)
    expected = evaluate(call, wide, [w.float() for w in weights])
    for name, value in found.items():
        dtype = returned if name.startswith("output") else next(t.dtype for t in tensors.values() if t.is_floating_point())
        assert value.dtype == dtype, name
        torch.testing.assert_close(value, expected[name].to(dtype), **({"rtol": 0.0, "atol": 0.0} | tolerance))


def returned(case: Case, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if case.op == "linear_bernoulli_log_prob" else dtype


@halves
@pytest.mark.parametrize("dim", [1, 17, 784])
@every_case
def test_matches_the_reference(case: Case, dim: int, dtype: torch.dtype) -> None:
    assert_matches_reference(case, case.tensors(dim, dtype=dtype, seed=dim))


@halves
@every_case
def test_rounds_the_results_of_float32(case: Case, dtype: torch.dtype) -> None:
    # A library multiplies matrices in an order of its own: a rounding more.
    tolerance = {"rtol": 2.0 * torch.finfo(dtype).eps, "atol": 1e-4} if case.has_products else {}
    assert_rounded_from_float32(case.call, case.tensors(70, dtype=dtype), returned(case, dtype), **tolerance)


@halves
def test_the_other_ops(dtype: torch.dtype) -> None:
    tolerance = {"rtol": 2.0 * torch.finfo(dtype).eps, "atol": 1e-4}
    assert_rounded_from_float32(convolution, image(dtype), dtype, **tolerance)
    assert_rounded_from_float32(decoder, mlp_decoder.draw(dtype=dtype), torch.float32, **tolerance)
    log_w = torch.randn(3, 7).to(dtype)
    state = ops.importance_state(log_w)
    assert state.dtype == torch.float64 and torch.equal(state, ops.importance_state(log_w.float()))
    assert torch.equal(ops.importance_state(log_w, state), ops.importance_state(log_w.float(), state))
    assert torch.equal(ops.ImportanceState().update(log_w).values, state)
    torch.testing.assert_close(state, reference.importance_state(log_w))


@halves
@every_case
def test_compile(case: Case, dtype: torch.dtype) -> None:
    """A compiled function must be one graph and give the eager results and gradients."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda tensors: case.call(**tensors), fullgraph=True, backend="aot_eager")
    tensors = case.tensors(6, (4, *case.leading[1:]), dtype=dtype)
    found, expected = evaluate(lambda **t: as_tuple(compiled(t)), tensors), evaluate(case.call, tensors)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])


@halves
def test_compile_the_other_ops(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    calls = [(convolution, image(dtype)), (decoder, mlp_decoder.draw(dtype=dtype))]
    for call, tensors in calls:
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        found, expected = evaluate(compiled, tensors), evaluate(call, tensors)
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name])
    log_w = torch.randn(3, 7).to(dtype)
    compiled = torch.compile(ops.importance_state, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(log_w), ops.importance_state(log_w))


@halves
@pytest.mark.parametrize("case", [case for case in CASES if len(case.floating) > 1], ids=lambda case: case.id)
def test_compiled_autocast(case: Case, dtype: torch.dtype) -> None:
    """Under autocast, compiled ops must return float32 for 16-bit and for mixed arguments, as the eager ones do."""
    torch._dynamo.reset()
    exact = case.tensors()
    rounded = case.tensors(dtype=dtype)
    for tensors in (rounded, exact | {case.names[0]: rounded[case.names[0]]}):
        compiled = torch.compile(lambda given: case.call(**given), fullgraph=True, backend="aot_eager")
        with torch.autocast("cpu", dtype=dtype):
            found, expected = compiled(tensors), case.call(**tensors)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a, b)


@halves
def test_mixed_dtypes_are_refused_under_compile(dtype: torch.dtype) -> None:
    compiled = torch.compile(lambda a, b: ops.gaussian_kl(a, b), backend="aot_eager")
    for a, b in ((dtype, torch.float32), (torch.float32, dtype)):
        with pytest.raises(Exception, match="log_var_q must have the dtype of mean_q"):
            compiled(torch.zeros(2, 3, dtype=a), torch.zeros(2, 3, dtype=b))
