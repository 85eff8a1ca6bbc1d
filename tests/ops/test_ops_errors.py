"""Tests of bad input: one line of the documented type must name the op, the argument, what was expected and what came."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from support.op_cases import CASES, DEVICES, FULL, Case

from dgmfast import _C, ops

every_op = pytest.mark.parametrize("case", FULL, ids=lambda case: case.op)
several_arguments = pytest.mark.parametrize("case", [case for case in FULL if len(case.kinds) > 1], ids=lambda case: case.op)
alike_arguments = pytest.mark.parametrize(
    "case", [case for case in FULL if len(case.kinds) > 1 and all(map(case.has_leading, case.names))], ids=lambda case: case.op
)

GAUSSIANS = ("gaussian_kl", "gaussian_log_prob", "gaussian_sample", "gaussian_merge")  # whose last dimension broadcasts


def assert_raises(expected: type[Exception], message: str, call: Callable[[], object]) -> None:
    """Asserts that `call` raises exactly the type `expected`, with a message that matches `message` in full."""
    with pytest.raises(Exception) as caught:
        call()
    assert type(caught.value) is expected, f"{type(caught.value).__name__}: {caught.value}"
    assert re.fullmatch(message, str(caught.value)), str(caught.value)


def spoil(case: Case, name: str, value: object, device: str) -> Callable[[], object]:
    """Returns a call with one argument replaced."""
    tensors = case.tensors(device=device) | {name: value}
    return lambda: case.call(**tensors)


@every_op
def test_not_a_tensor(case: Case, device: str) -> None:
    for name in case.names:
        for value in ([1.0], "x", {}, *(() if case.op in GAUSSIANS else (2.5,))):
            message = rf"{case.op}: {name} must be a tensor; got {type(value).__name__}"
            assert_raises(TypeError, message, spoil(case, name, value, device))
    message = rf"{case.op}: {case.names[0]} must be a tensor; got NoneType"
    assert_raises(TypeError, message, spoil(case, case.names[0], None, device))


@every_op
def test_dtype(case: Case, device: str) -> None:
    first = case.names[0]
    shape = (*case.leading, 5)
    for dtype in (torch.int64, torch.int32, torch.bool, torch.complex64, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        everywhere = {n: torch.ones(shape, dtype=dtype, device=device) for n in case.names}
        if not dtype.is_floating_point:
            message = rf"{case.op}: {first} must be float32, float64, bfloat16 or float16; got {name}"
            assert_raises(TypeError, message, lambda everywhere=everywhere: case.call(**everywhere))
        for other in case.names[1:]:
            if case.op.endswith("bernoulli_log_prob") and other == "x" and dtype == torch.bool:
                continue
            message = rf"{case.op}: {other} must have the dtype of {first}, float32; got {name}"
            assert_raises(TypeError, message, spoil(case, other, torch.ones(shape, dtype=dtype, device=device), device))
    for other in case.names[1:]:
        message = rf"{case.op}: {other} must have the dtype of {first}, float32; got float64"
        assert_raises(TypeError, message, spoil(case, other, torch.ones(shape, device=device).double(), device))
        for dtype in (torch.bfloat16, torch.float16):
            message = rf"{case.op}: {other} must have the dtype of {first}, {str(dtype).removeprefix('torch.')}; got float32"
            mixed = case.tensors(device=device, dtype=dtype) | {other: case.tensors(device=device)[other]}
            assert_raises(TypeError, message, lambda mixed=mixed: case.call(**mixed))


@alike_arguments
def test_shape(case: Case, device: str) -> None:
    first, shape = case.names[0], (*case.leading, 5)
    expected = re.escape(str(list(shape)))
    for other in case.names[1:]:
        for dim in (4, 0) if case.op in GAUSSIANS else (4, 1, 0):
            got = torch.ones((*case.leading, dim), device=device)
            message = (
                rf"{case.op}: {other} must have the last dimension of {first}, {expected}; got {re.escape(str(list(got.shape)))}"
            )
            assert_raises(ValueError, message, spoil(case, other, got, device))
        got = torch.ones((case.leading[0] + 2, *case.leading[1:], 5), device=device)
        lead, came = (re.escape(str(list(sizes))) for sizes in (case.leading, got.shape))
        message = rf"{case.op}: {other} must broadcast over its leading dimensions .*{lead}; got {came}"
        assert_raises(ValueError, message, spoil(case, other, got, device))


@pytest.mark.parametrize("case", [case for case in FULL if case.op not in GAUSSIANS], ids=lambda case: case.op)
def test_no_dimension(case: Case, device: str) -> None:
    for name in case.names:
        message = rf"{case.op}: {name} must have (shape \[\.\.\., [DKI]\]|at least one dimension); got a 0-dimensional tensor"
        if case.op == "label_linear" and name != "x":
            message = rf"label_linear: {name} must have shape \[.*\] with .*; got \[\]"
        if case.op == "linear_bernoulli_log_prob":
            message = rf"linear_bernoulli_log_prob: {name} must have shape \[.*\]( or \[.*\]| with .*); got \[\]"
        assert_raises(ValueError, message, spoil(case, name, torch.ones((), device=device), device))


@several_arguments
def test_two_devices(case: Case, device: str) -> None:
    first = case.names[0]
    here = str(torch.ones(1, device=device).device)
    for elsewhere in ["meta", *(other for other in DEVICES if other != device)]:
        for other in case.names[1:]:
            value = case.tensors(device=device)[other].to(elsewhere)
            message = rf"{case.op}: {other} must be on the device of {first}, {here}; got {elsewhere}(:\d)?"
            assert_raises(ValueError, message, spoil(case, other, value, device))
        value = case.tensors(device=device)[first].to(elsewhere)
        message = rf"{case.op}: {case.names[1]} must be on the device of {first}, {elsewhere}(:\d)?; got {here}"
        assert_raises(ValueError, message, spoil(case, first, value, device))


@every_op
def test_backward_checks_too(case: Case, device: str) -> None:
    """The backward op, which anyone can call through torch.ops, must refuse a gradient that lacks the output's shape or dtype."""
    tensors = case.tensors(device=device)
    outputs = case.call(**tensors)
    arguments = case.backward_positional(tensors, outputs, [True] * len(case.names))
    backward = getattr(torch.ops.dgmfast, f"{case.op}_backward").default
    for i, out in enumerate(outputs):
        # The wrong gradients are too large rather than too small, so that nothing is read beyond their end.
        for wrong in (torch.cat([out, out]), out.double()):
            grads = [wrong if j == i else torch.ones_like(o) for j, o in enumerate(outputs)]
            with pytest.raises((ValueError, TypeError)):
                backward(*grads, *arguments)


SAMPLE = {"mean": torch.zeros(3, 5), "log_var": torch.zeros(3, 5)}


@pytest.mark.parametrize(
    ("keywords", "expected", "message"),
    [
        ({"k": 0}, ValueError, r"k must be at least 1; got 0"),
        ({"k": -3}, ValueError, r"k must be at least 1; got -3"),
        ({"k": 1.5}, TypeError, r"k must be an int.*; got 1\.5"),
        ({"k": None}, TypeError, r"k must be an int.*; got None"),
        ({"stream": -1}, ValueError, r"stream must lie in \[0, 2\^32\).*; got -1"),
        ({"stream": 2**32}, ValueError, r"stream must lie in \[0, 2\^32\).*; got 4294967296"),
        ({"stream": 2**63 - 1}, ValueError, r"stream must lie in \[0, 2\^32\).*; got 9223372036854775807"),
        ({"stream": "a"}, TypeError, r"stream must be an int.*; got 'a'"),
        ({"first_row": -1}, ValueError, r"first_row must lie in \[0, 2\^32\).*; got -1"),
        (
            {"first_row": 2**32 - 2},
            ValueError,
            r"first_row must lie in \[0, 2\^32\).*; got 4294967294",
        ),  # the third row is out of range
        ({"first_row": 2**63 - 1}, ValueError, r"first_row must lie in \[0, 2\^32\).*; got 9223372036854775807"),
        ({"first_row": 2.0}, TypeError, r"first_row must be an int.*; got 2\.0"),
        ({"first_sample": -(2**40)}, ValueError, r"first_sample must lie in \[0, 2\^32\).*; got -1099511627776"),
        ({"first_sample": 2**32 - 1, "k": 2}, ValueError, r"first_sample must lie in \[0, 2\^32\).*; got 4294967295"),
        ({"first_sample": 2**63 - 1}, ValueError, r"first_sample must lie in \[0, 2\^32\).*; got 9223372036854775807"),
        ({"seed": 1.5}, TypeError, r"seed must be an int.*or an int64 tensor; got 1\.5"),
        ({"seed": 2**63}, TypeError, r"seed must be an int.*or an int64 tensor; got 9223372036854775808"),
        ({"seed": torch.tensor(1.0)}, TypeError, r"seed must be an int or a 0-dimensional int64 tensor; got .*"),
        ({"seed": torch.tensor(1, dtype=torch.int32)}, TypeError, r"seed must be an int or a 0-dimensional int64 tensor; got .*"),
        ({"seed": torch.tensor([1])}, TypeError, r"seed must be an int or a 0-dimensional int64 tensor; got .* \[1\]"),
        ({"seed": torch.tensor(1, device="meta")}, ValueError, r"seed must be on the device of mean, cpu; got meta"),
    ],
)
def test_gaussian_sample(keywords: dict[str, object], expected: type[Exception], message: str) -> None:
    assert_raises(expected, f"gaussian_sample: {message}", lambda: ops.gaussian_sample(**SAMPLE, **{"seed": 0, **keywords}))


@pytest.mark.parametrize(("shape", "k"), [((5,), 1), ((1, 1, 3, 5), 1), ((2, 3, 5), 2), ((1, 1, 1, 2, 5), 4)])
def test_gaussian_sample_rank(shape: tuple[int, ...], k: int, device: str) -> None:
    mean = torch.zeros(shape, device=device)
    came = re.escape(str(list(shape)))
    message = rf"gaussian_sample: mean must have shape \[B, D\], or \[B, K, D\] with k = 1; got {came} with k = {k}"
    assert_raises(ValueError, message, lambda: ops.gaussian_sample(mean, mean, k, seed=0))


@pytest.mark.parametrize(
    ("shape", "dim", "expected", "message"),
    [
        ((3, 5), 2, IndexError, r"dim must be in \[-2, 1\]; got 2"),
        ((3, 5), -3, IndexError, r"dim must be in \[-2, 1\]; got -3"),
        ((3, 0), -1, ValueError, r"log_w must have at least one sample along dim -1; got shape \[3, 0\]"),
        ((0, 3), 0, ValueError, r"log_w must have at least one sample along dim 0; got shape \[0, 3\]"),
        ((3, 5), 1.0, TypeError, r"dim must be an int; got float"),
        ((3, 5), None, TypeError, r"dim must be an int; got NoneType"),
        ((3, 5), 2**63, (IndexError, TypeError), r"dim must be .*; got .*"),
    ],
)
def test_importance_bound(shape: tuple[int, ...], dim: object, expected: type[Exception], message: str, device: str) -> None:
    with pytest.raises(Exception) as caught:
        ops.importance_bound(torch.zeros(shape, device=device), dim)
    assert type(caught.value) in (expected if isinstance(expected, tuple) else (expected,))
    assert re.fullmatch(f"importance_bound: {message}", str(caught.value)), str(caught.value)


def test_unknown_instruction_set(restored_isa: None) -> None:
    before = _C.isa()
    with pytest.raises(ValueError, match="must be baseline, avx2 or avx512; got sse9"):
        _C.set_isa("sse9")
    assert _C.isa() == before


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_sparse_tensors_are_refused(case: Case) -> None:
    with pytest.raises((NotImplementedError, TypeError, ValueError), match=case.op):
        case.call(**{name: t.to_sparse() for name, t in case.tensors().items()})


def test_a_gradient_of_an_argument_that_was_left_out() -> None:
    """The backward ops must refuse to return a gradient of an argument that was left out, on the CPU and on Meta."""
    for device in ("cpu", "meta"):
        x, grad = torch.zeros(3, 4, device=device), torch.zeros(3, device=device)
        calls = {
            "gaussian_kl": lambda x=x, grad=grad: torch.ops.dgmfast.gaussian_kl_backward(grad, x, x, None, None, [True] * 4),
            "gaussian_log_prob": lambda x=x, grad=grad: torch.ops.dgmfast.gaussian_log_prob_backward(
                grad, x, None, x, [True] * 3
            ),
        }
        for op, call in calls.items():
            with pytest.raises(ValueError, match=rf"{op}_backward: wanted must be false for argument \d, which was left out"):
                call()
