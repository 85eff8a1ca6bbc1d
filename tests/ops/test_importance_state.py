"""Tests of importance_state and ImportanceState against the direct formulas in float64, however the weights are cut."""

from __future__ import annotations

import copy
import math
import pickle
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.op_cases import DEVICES, ISAS, SIZES

from dgmfast import _C, ops, reference
from dgmfast.ops import ImportanceState

INFINITY = math.inf
ESTIMATES = ("log_px", "elbo", "ess", "std_error")


def draw(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float64, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    return (spread * torch.randn(shape, generator=generator, dtype=torch.float64) - 90.0).to(device, dtype)


def direct(log_w: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the estimates by their definitions, for weights that do not overflow."""
    log_w = log_w.double()
    k, top = log_w.shape[-1], log_w.amax(-1, keepdim=True)
    w = (log_w - top).exp()
    variance_of_mean = w.var(-1) / k  # by the delta method, s.e.(log m) = s.e.(m) / m
    return {
        "log_px": w.mean(-1).log() + top.squeeze(-1),
        "elbo": log_w.mean(-1),
        "ess": w.sum(-1) ** 2 / (w**2).sum(-1),
        "std_error": variance_of_mean.sqrt() / w.mean(-1),
    }


def assert_estimates(state: ImportanceState, log_w: torch.Tensor, rtol: float = 1e-11) -> None:
    for name, expected in direct(log_w).items():
        value = getattr(state, name)
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, expected, rtol=rtol, atol=1e-12)
    assert state.count == log_w.shape[-1]


@pytest.mark.parametrize("k", [2, *SIZES[1:]])
def test_estimates_are_the_formulas(k: int, path_dtype: tuple[str, torch.dtype]) -> None:
    """The estimates must be the float64 formulas of the given weights, in any dtype, with no further rounding."""
    device, dtype = path_dtype
    log_w = draw(3, k, device=device, dtype=dtype)
    assert_estimates(ImportanceState().update(log_w), log_w)
    torch.testing.assert_close(ops.importance_state(log_w), reference.importance_state(log_w), rtol=1e-13, atol=0.0)


def test_one_weight(path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    log_w = draw(4, 1, device=device, dtype=dtype)
    state = ImportanceState().update(log_w)
    assert torch.equal(state.log_px, log_w[:, 0].double())
    assert torch.equal(state.elbo, log_w[:, 0].double())
    assert torch.equal(state.ess, torch.ones_like(state.ess))
    assert torch.equal(state.std_error, torch.full_like(state.ess, INFINITY))


def test_equal_weights(device: str) -> None:
    state = ImportanceState().update(torch.full((2, 777), -1234.5, device=device))
    assert torch.equal(state.log_px, torch.full_like(state.log_px, -1234.5))
    assert torch.equal(state.ess, torch.full_like(state.ess, 777.0))
    assert bool((state.std_error < 1e-8).all())


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=8), seed=st.integers(0, 1000), spread=st.sampled_from([0.1, 3.0, 300.0]))
def test_blocks_are_the_whole(device: str, cuts: list[int], seed: int, spread: float) -> None:
    """Blocks of any size, also empty, must give the estimates of the whole by update and by merge, and the same bits again."""
    generator = torch.Generator().manual_seed(seed)
    log_w = (spread * torch.randn(2, 300, generator=generator)).to(device)
    edges = [0, *sorted(cuts), 300]
    blocks = [log_w[:, a:b] for a, b in pairwise(edges)]
    updated = ImportanceState()
    parts = []
    for block in blocks:
        updated.update(block)
        parts.append(ImportanceState().update(block))
    forward, backward = parts[0], parts[-1]
    for part in parts[1:]:
        forward = forward.merge(part)
    for part in reversed(parts[:-1]):
        backward = part.merge(backward)
    again = ImportanceState()
    for block in blocks:
        again.update(block)
    assert torch.equal(updated.values, again.values)
    for state in (updated, forward, backward):
        assert_estimates(state, log_w, rtol=1e-9)


def test_threads_and_paths(threads: None, restored_isa: None) -> None:
    log_w = draw(500, 301, dtype=torch.float32)
    found = {}
    for isa in ISAS:
        _C.set_isa(isa)
        for n in (1, 2):
            torch.set_num_threads(n)
            found[isa, n] = ops.importance_state(log_w, ops.importance_state(log_w[:, :100]))
        assert torch.equal(found[isa, 1], found[isa, 2])
        torch.testing.assert_close(found[isa, 1], found["baseline", 1], rtol=1e-13, atol=0.0)


SPECIAL = {
    "no weight": ([-INFINITY] * 3, -INFINITY, -INFINITY),
    "one weight": ([-INFINITY, -2.0, -INFINITY], -2.0 - math.log(3.0), -INFINITY),
    "infinite weight": ([0.0, INFINITY, 0.0], INFINITY, INFINITY),
    "infinite weights": ([INFINITY] * 3, INFINITY, INFINITY),
    "not a number": ([0.0, math.nan, 0.0], math.nan, math.nan),
    "not a number, and infinite": ([math.nan, INFINITY, 0.0], math.nan, math.nan),
    "not a number, and none": ([math.nan, -INFINITY, -INFINITY], math.nan, math.nan),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_weights(name: str, path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    weights, log_px, elbo = SPECIAL[name]
    log_w = torch.tensor([weights], device=device, dtype=dtype)
    at_once = ImportanceState().update(log_w)
    one_by_one, merged = ImportanceState(), ImportanceState()
    for j in range(3):
        one_by_one.update(log_w[:, j : j + 1])
        merged = merged.merge(ImportanceState().update(log_w[:, j : j + 1]))
    for state in (at_once, one_by_one, merged):
        torch.testing.assert_close(state.log_px, torch.full_like(state.log_px, log_px), equal_nan=True)
        torch.testing.assert_close(state.elbo, torch.full_like(state.elbo, elbo), equal_nan=True)
    if name == "one weight":
        for state in (at_once, one_by_one, merged):
            assert state.ess.item() == 1.0
            # Two of the three weights are 0, so the standard error of the mean is the mean itself.
            torch.testing.assert_close(state.std_error, torch.ones_like(state.std_error))


def test_huge_range_of_weights(device: str) -> None:
    """Weights 10 000 nats apart must give exact estimates, whether the largest comes first, last or in between."""
    for order in ([-1e4, 0.0, 1e4], [1e4, 0.0, -1e4], [0.0, 1e4, -1e4]):
        state = ImportanceState()
        for value in order:
            state.update(torch.tensor([[value]], device=device))
        torch.testing.assert_close(state.log_px.item(), 1e4 - math.log(3.0))
        assert state.ess.item() == 1.0
        assert state.elbo.item() == 0.0


def test_standard_error_is_the_spread_of_repeated_runs(device: str) -> None:
    """The mean standard error of 2000 rows must be the standard deviation of their log_px."""
    log_w = draw(2000, 400, device=device, spread=0.7)
    state = ImportanceState().update(log_w)
    ratio = float(state.std_error.square().mean().sqrt() / state.log_px.std())
    # The standard deviation of 2000 numbers has an error of 1.6 %, the delta method one of about 1 / 400.
    assert 0.93 < ratio < 1.07
    truth = -90.0 + 0.7**2 / 2
    assert abs(float(state.log_px.mean()) - truth) < 0.01


def test_shapes_and_layouts(device: str) -> None:
    log_w = draw(3, 4, 50, device=device)
    state = ops.importance_state(log_w)
    assert state.shape == (3, 4, 5)
    assert torch.equal(ops.importance_state(log_w[0, 0]), state[0, 0])
    assert torch.equal(ops.importance_state(log_w.transpose(0, 2).contiguous().transpose(0, 2)), state)
    assert torch.equal(
        ops.importance_state(log_w.flip(-1)[..., ::2].contiguous()), ops.importance_state(log_w.flip(-1)[..., ::2])
    )
    constant = draw(3, 4, 1, device=device)
    assert torch.equal(ops.importance_state(constant.expand(3, 4, 9)), ops.importance_state(constant.repeat(1, 1, 9)))
    strided = torch.stack([state, state], -1)[..., 0]
    assert torch.equal(ops.importance_state(log_w, strided), ops.importance_state(log_w, state))
    assert torch.equal(
        ops.importance_state(log_w.movedim(0, 1), state.movedim(0, 1)), ops.importance_state(log_w, state).movedim(0, 1)
    )
    for shape in ((0, 7), (3, 0, 7)):
        assert ops.importance_state(torch.zeros(shape, device=device)).shape == (*shape[:-1], 5)
    nothing = torch.zeros(3, 4, 0, device=device, dtype=torch.float64)
    assert torch.equal(ops.importance_state(nothing, state), state)  # without weights the state stays the same
    assert torch.equal(ops.importance_state(log_w, ops.importance_state(nothing)), state)


def test_weights_and_state_are_only_read(device: str) -> None:
    log_w = draw(3, 50, device=device)
    before = ops.importance_state(log_w)
    copies = log_w.clone(), before.clone()
    ops.importance_state(log_w, before)
    assert torch.equal(log_w, copies[0])
    assert torch.equal(before, copies[1])
    state = ImportanceState().update(log_w)
    kept, values = state.values, state.values.clone()
    state.update(log_w)
    assert torch.equal(kept, values)


def test_a_gradient_raises(device: str) -> None:
    log_w = draw(3, 5, device=device).requires_grad_()
    with pytest.raises((RuntimeError, NotImplementedError), match="importance_state"):
        ops.importance_state(log_w).sum().backward()
    state = ImportanceState().update(log_w)  # statistics of the weights are detached
    assert not state.log_px.requires_grad
    with torch.no_grad():
        assert torch.equal(ops.importance_state(log_w), state.values)


def test_a_tangent_raises(device: str) -> None:
    log_w = draw(3, 5, device=device)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(log_w, torch.ones_like(log_w))
        with pytest.raises((RuntimeError, NotImplementedError), match="importance_state"):
            ops.importance_state(dual)


def test_copies(device: str) -> None:
    state = ImportanceState().update(draw(3, 5, device=device))
    for other in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert torch.equal(other.values, state.values)
        other.update(draw(3, 5, device=device))
        assert other.count == 10
    assert state.count == 5


BAD_WEIGHTS = [
    ([1.0], TypeError, r"importance_state: log_w must be a tensor; got list"),
    (
        torch.zeros(3, 5, dtype=torch.int64),
        TypeError,
        r"importance_state: log_w must be float32, float64, bfloat16 or float16; got int64",
    ),
    (torch.zeros(()), ValueError, r"importance_state: log_w must have shape \[\.\.\., [DK]\]; got a 0-dimensional tensor"),
]


@pytest.mark.parametrize(("log_w", "expected", "message"), BAD_WEIGHTS)
def test_bad_weights(log_w: object, expected: type[Exception], message: str) -> None:
    for call in (ops.importance_state, ImportanceState().update):
        with pytest.raises(Exception) as caught:
            call(log_w)
        assert type(caught.value) is expected, repr(caught.value)
        assert re.fullmatch(message, str(caught.value)), str(caught.value)


BAD_STATES = [
    ([0.0] * 5, TypeError, r"importance_state: state must be a tensor; got list"),
    (torch.zeros(3, 5), TypeError, r"importance_state: state must be float64; got (Float|float32)"),
    (
        torch.zeros(2, 5).double(),
        ValueError,
        r"importance_state: state must have the leading dimensions .*, \[3, 5\]; got \[2, 5\]",
    ),
    (
        torch.zeros(3, 4).double(),
        ValueError,
        r"importance_state: state must have the leading dimensions .*, \[3, 5\]; got \[3, 4\]",
    ),
    (torch.zeros(5).double(), ValueError, r"importance_state: state must have the leading dimensions .*, \[3, 5\]; got \[5\]"),
    (
        torch.zeros(3, 5, device="meta").double(),
        ValueError,
        r"importance_state: state must be on the device of log_w, cpu; got meta",
    ),
]


@pytest.mark.parametrize(("state", "expected", "message"), BAD_STATES)
def test_bad_state(state: object, expected: type[Exception], message: str) -> None:
    with pytest.raises(Exception) as caught:
        ops.importance_state(torch.zeros(3, 7), state)
    assert type(caught.value) is expected, repr(caught.value)
    assert re.fullmatch(message, str(caught.value)), str(caught.value)


def test_a_failed_update_changes_nothing(device: str) -> None:
    log_w = draw(3, 5, device=device)
    state = ImportanceState().update(log_w)
    values = state.values.clone()
    for bad in (log_w[:2], log_w.to(torch.int64), log_w.to("meta")):
        with pytest.raises((ValueError, TypeError)):
            state.update(bad)
        assert torch.equal(state.values, values)
        assert state.count == 5


def test_no_weights_yet(device: str) -> None:
    state = ImportanceState()
    assert state.count == 0
    for name in ESTIMATES:
        with pytest.raises(ValueError, match="ImportanceState: no weights yet; call update first"):
            getattr(state, name)
    other = ImportanceState().update(draw(3, 5, device=device))
    for merged in (state.merge(other), other.merge(state)):
        assert torch.equal(merged.log_px, other.log_px)
    assert state.merge(ImportanceState()).count == 0


def test_bad_merge(device: str) -> None:
    state = ImportanceState().update(draw(3, 5, device=device))
    with pytest.raises(ValueError, match=r"merge: the states must be of the same rows, \[3\]; got \[2\]"):
        state.merge(ImportanceState().update(draw(2, 5, device=device)))
    with pytest.raises(TypeError, match="ImportanceState"):
        state.merge(3)


@pytest.mark.parametrize("implementation", [ops.importance_state, reference.importance_state])
def test_infinite_weights_are_counted(implementation, path_device: str) -> None:
    """Each weight of e^∞ must count as 1 relative to the largest, and all other weights as 0."""
    log_w = torch.tensor([[math.inf, 0.0, math.inf], [-math.inf, -math.inf, -math.inf]], device=path_device)
    for state in (implementation(log_w), implementation(log_w[:, 1:], implementation(log_w[:, :1]))):
        assert state[0, :3].tolist() == [math.inf, 2.0, 2.0] and state[1, :3].tolist() == [-math.inf, 0.0, 0.0]


def test_the_reference_adds_to_a_state(device: str) -> None:
    log_w = 30.0 * torch.randn(4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).to(device)
    whole = reference.importance_state(log_w)
    for split in (0, 1, 5, 12):
        parts = reference.importance_state(log_w[:, split:], reference.importance_state(log_w[:, :split]))
        torch.testing.assert_close(parts, whole, rtol=1e-13, atol=0.0)
        expected = ops.importance_state(log_w[:, split:], ops.importance_state(log_w[:, :split]))
        torch.testing.assert_close(parts, expected, rtol=1e-13, atol=0.0)
