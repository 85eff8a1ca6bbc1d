"""Tests of the Gaussian ops' arguments that broadcast over the last dimension: numbers, 0-dimensional tensors, [..., 1]."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from support.op_cases import CASES, Case, Tensors, assert_within_tolerance, double, evaluate, output_weights

from dgmfast import _C, ops

CASES = [case for case in CASES if case.op.startswith("gaussian_") and len(case.kinds) > 1]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)

DIM = 7


def shrunk(tensors: Tensors, which: tuple[str, ...], shape: str) -> Tensors:
    """Returns the tensors with those of `which` cut to shape [], [1] or [..., 1]."""
    cut = {"[]": lambda t: t.flatten()[0], "[1]": lambda t: t.flatten()[:1], "[..., 1]": lambda t: t[..., :1]}[shape]
    return {name: cut(t).clone() if name in which else t for name, t in tensors.items()}


def spread(tensors: Tensors) -> Tensors:
    return {name: t.expand(*t.shape[:-1], DIM) for name, t in tensors.items()}


def assert_matches(case: Case, tensors: Tensors) -> None:
    """Asserts values and gradients against the float64 reference of the expanded tensors."""

    def reference(**given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return case.reference(**spread(given))

    weights = output_weights([out.detach() for out in reference(**tensors)])
    truth = evaluate(reference, double(tensors), [w.double() for w in weights])
    assert_within_tolerance(evaluate(case.call, tensors, weights), evaluate(reference, tensors, weights), truth)


@pytest.mark.parametrize("shape", ["[]", "[1]", "[..., 1]"])
@every_case
def test_tensors(case: Case, shape: str, device: str) -> None:
    """Every choice of arguments may be small; their gradients must be sums over what they broadcast to."""
    for small in product([False, True], repeat=len(case.names)):
        which = tuple(name for name, is_small in zip(case.names, small, strict=True) if is_small)
        if len(which) < len(case.names):
            assert_matches(case, shrunk(case.tensors(DIM, device=device), which, shape))


@every_case
def test_numbers(case: Case, device: str) -> None:
    for name, number in product(case.names, (0.5, -2, 0.0)):
        tensors = case.tensors(DIM, device=device)
        rest = {n: t for n, t in tensors.items() if n != name}
        full = torch.full((DIM,), float(number), device=device)
        found, expected = case.call(**rest, **{name: number}), case.call(**(tensors | {name: full}))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(TypeError, match=rf"^{case.op}: {case.names[0]} must be a tensor; got float$"):
        case.call(**dict.fromkeys(case.names, 0.5))


@every_case
def test_one_dimension(case: Case, device: str) -> None:
    """With D = 1, a size of 1 must be D itself, and nothing must be summed."""
    tensors = case.tensors(1, device=device)
    first, *others = case.names
    found = case.call(**shrunk(tensors, tuple(others), "[]"))
    assert all(torch.equal(a, b) for a, b in zip(found, case.call(**spread_to(tensors, others)), strict=True))
    assert found[0].shape[: tensors[first].dim() - 1] == tensors[first].shape[:-1]


def spread_to(tensors: Tensors, names: list[str]) -> Tensors:
    return {name: t.flatten()[:1] if name in names else t for name, t in tensors.items()}


@every_case
def test_sizes_that_do_not_fit_are_refused(case: Case, device: str) -> None:
    first, *others = case.names
    for other in others:
        tensors = case.tensors(3, device=device) | {other: torch.zeros(5, device=device)}
        with pytest.raises(ValueError, match=rf"^{case.op}: {other} must have the last dimension of {first}, .*3\]; got \[5\]$"):
            case.call(**tensors)
        with pytest.raises(TypeError, match=rf"^{case.op}: {other} must have the dtype of {first}, float32; got float64$"):
            case.call(**(case.tensors(3, device=device) | {other: torch.zeros((), dtype=torch.float64, device=device)}))


@pytest.mark.skipif(_C.cuda_on_host, reason="the kernels of such a build have 16-bit dtypes")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_case
def test_half_on_the_cpu(case: Case, dtype: torch.dtype) -> None:
    """The gradient of a small argument must be summed in float32 and rounded once."""
    *_, last = case.names
    tensors = shrunk(case.tensors(DIM, dtype=dtype), (last,), "[]")
    got, wide = evaluate(case.call, tensors), evaluate(case.call, {name: t.float() for name, t in tensors.items()})
    for name, value in got.items():
        assert value.dtype == dtype and torch.equal(value, wide[name].to(dtype)), name
    numbers = {name: t for name, t in tensors.items() if name != last} | {last: 0.3}
    wide_numbers = {name: t.float() if isinstance(t, torch.Tensor) else t for name, t in numbers.items()}
    for a, b in zip(case.call(**numbers), case.call(**wide_numbers), strict=True):
        assert torch.equal(a, b.to(dtype))


@every_case
def test_compile(case: Case, device: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda tensors: case.call(**tensors), fullgraph=True, backend="aot_eager")
    for shape in ("[]", "[1]", "[..., 1]"):
        tensors = shrunk(case.tensors(DIM, device=device), (case.names[-1],), shape)
        found, expected = evaluate(lambda **t: compiled(t), tensors), evaluate(case.call, tensors)
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name])
    rest = {name: t for name, t in case.tensors(DIM, device=device).items() if name != case.names[-1]}
    for number in (0.5, 0.25, -1.0):
        given = rest | {case.names[-1]: number}
        assert all(torch.equal(a, b) for a, b in zip(compiled(given), case.call(**given), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    mean = torch.randn(3, DIM).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        found = ops.gaussian_kl(mean, 0.5)
    assert found.dtype == torch.float32 and torch.equal(found, ops.gaussian_kl(mean.float(), torch.full((DIM,), 0.5)))
