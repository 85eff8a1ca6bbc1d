"""Tests of the derivatives of every op: gradcheck, subsets of arguments, and errors for derivatives that are not supported."""

from __future__ import annotations

import re
from itertools import product

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from support.op_cases import CASES, FULL, Case, assert_same, assert_same_calls, double, evaluate

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
every_op = pytest.mark.parametrize("case", FULL, ids=lambda case: case.op)

TANGENT = r"jvp is not implemented|forward AD"


@every_case
def test_gradcheck(case: Case, path_device: str) -> None:
    tensors = case.tensors(3, device=path_device, dtype=torch.float64)
    for leading in [case.leading] if len(tensors) == 1 else [case.leading, None]:
        shapes = [(*case.leading, 3)] * len(tensors) if leading else [(*case.leading, 3), *[(3,)] * (len(tensors) - 1)]
        inputs = case.tensors(shapes=shapes, device=path_device, dtype=torch.float64)
        leaves = tuple(t.requires_grad_(t.is_floating_point()) for t in inputs.values())
        assert torch.autograd.gradcheck(lambda *args: case.call(**dict(zip(case.names, args, strict=True))), leaves)


@every_case
def test_every_subset_of_requires_grad(case: Case, device: str) -> None:
    tensors = case.tensors(7, device=device)
    full = evaluate(case.call, tensors)
    for subset in product([False, True], repeat=len(case.floating)):
        wanted = dict(zip(case.floating, subset, strict=True))
        leaves = {name: t.clone().requires_grad_(wanted.get(name, False)) for name, t in tensors.items()}
        outputs = case.call(**leaves)
        assert all(out.requires_grad == any(subset) for out in outputs)
        found = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
        if any(subset):
            sum(out.sum() for out in outputs).backward()
        for name, leaf in leaves.items():
            assert (leaf.grad is not None) == wanted.get(name, False), name
            if leaf.grad is not None:
                found[f"gradient of {name}"] = leaf.grad
        assert_same_calls(case, found, {name: full[name] for name in found})


@every_case
def test_no_graph_without_gradients(case: Case, device: str) -> None:
    leaves = {n: t.requires_grad_(t.is_floating_point()) for n, t in case.tensors(device=device).items()}
    before = {name: t.detach().clone() for name, t in leaves.items()}
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            outputs = case.call(**leaves)
        assert not any(out.requires_grad for out in outputs)
        again = [out.detach() for out in case.call(**leaves)]
        assert_same_calls(case, dict(enumerate(outputs)), dict(enumerate(again)))
    assert_same({n: t.detach() for n, t in leaves.items()}, before)  # inputs are only read


@every_case
def test_each_output_alone(case: Case, device: str) -> None:
    """A gradient through one output, once or twice, must be right; through a graph whose input has changed it must raise."""
    tensors = case.tensors(device=device)
    expected = evaluate(case.reference, double(tensors))
    total = {name: torch.zeros_like(value) for name, value in expected.items() if "gradient" in name}
    leaves = {n: t.requires_grad_(t.is_floating_point()) for n, t in tensors.items()}
    for i in range(len(case.call(**leaves))):
        out = case.call(**leaves)[i]
        once, twice = (torch.autograd.grad(out.sum(), [leaves[n] for n in case.floating], retain_graph=True) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
        for name, grad in zip(case.floating, once, strict=True):
            total[f"gradient of {name}"] += grad
    for name, value in total.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)
    out = case.call(**leaves)[0]
    with torch.no_grad():
        leaves[case.floating[-1]].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@every_case
def test_second_derivative_raises(case: Case, device: str) -> None:
    """A second derivative, alone, mixed with others, or in the incoming gradient, must raise and never be a silent zero."""
    leaves = {n: t.requires_grad_(t.is_floating_point()) for n, t in case.tensors(device=device, dtype=torch.float64).items()}
    inputs = [leaves[name] for name in case.floating]
    message = rf"^{case.op}: the second derivative is not implemented; use dgmfast\.reference\.{case.op}"
    outputs = case.call(**leaves)
    bound = sum((out**2).sum() for out in outputs)
    mixed = bound + sum((leaf**3).sum() for leaf in inputs)
    expected = evaluate(lambda **t: (sum((o**2).sum() for o in case.reference(**t)),), {n: t.detach() for n, t in leaves.items()})
    for loss in (bound, mixed):
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        if loss is bound:
            for name, grad in zip(case.floating, first, strict=True):
                torch.testing.assert_close(grad.detach(), expected[f"gradient of {name}"])
        for grad in first:
            with pytest.raises(NotImplementedError, match=message):
                torch.autograd.grad(grad.sum(), inputs, retain_graph=True, allow_unused=True)
        with pytest.raises(NotImplementedError, match=message):
            sum((g**2).sum() for g in first).backward()
    incoming = [torch.ones_like(out, requires_grad=True) for out in outputs]
    first = torch.autograd.grad(case.call(**leaves), inputs, incoming, create_graph=True)
    with pytest.raises(NotImplementedError, match=message):
        torch.autograd.grad(first[0].sum(), incoming, allow_unused=True)


@every_op
def test_forward_mode_raises(case: Case, device: str) -> None:
    """Forward mode must raise, with gradients on and off, and never drop a tangent."""
    for spoilt in case.floating:
        for context in (torch.enable_grad(), torch.no_grad()):
            with context, forward_ad.dual_level():
                tensors = case.tensors(device=device)
                tensors[spoilt] = forward_ad.make_dual(tensors[spoilt], torch.ones_like(tensors[spoilt]))
                message = f"{case.op}: forward-mode derivatives are not implemented; use dgmfast.reference.{case.op} where they"
                with pytest.raises(NotImplementedError, match=re.escape(message)):
                    case.call(**tensors)


@every_op
def test_forward_over_reverse_raises(case: Case, device: str) -> None:
    """A tangent of the incoming gradient, in which the gradient is linear, must raise and not be dropped."""
    leaves = {n: t.requires_grad_() for n, t in case.tensors(device=device).items()}
    outputs = case.call(**leaves)
    with forward_ad.dual_level():
        incoming = [forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out)) for out in outputs]
        with pytest.raises((RuntimeError, NotImplementedError), match=TANGENT):
            torch.autograd.grad(outputs, list(leaves.values()), incoming)


@every_case
def test_vmap_without_gradients(case: Case, device: str) -> None:
    batches = [case.tensors(device=device, seed=seed) for seed in range(3)]
    stacked = {name: torch.stack([batch[name] for batch in batches], 1) for name in case.names}
    found = torch.func.vmap(lambda tensors: case.call(**tensors), in_dims=1)(stacked)
    for i, out in enumerate(found):
        assert torch.equal(out, torch.stack([case.call(**batch)[i] for batch in batches]))
    shared = {name: batches[0][name] for name in case.names[1:]}
    found = torch.func.vmap(lambda t: case.call(**{case.names[0]: t, **shared}))(torch.stack([b[case.names[0]] for b in batches]))
    assert torch.equal(found[0][0], case.call(**batches[0])[0])
