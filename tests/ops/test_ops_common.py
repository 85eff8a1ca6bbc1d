"""Tests that hold for every op, over the table of op_cases: values and gradients for every shape, layout and extreme."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.op_cases import (
    BROADCASTING,
    CASES,
    DEVICES,
    FULL,
    ISAS,
    SIZES,
    Case,
    Tensors,
    assert_matches_reference,
    assert_same,
    assert_same_calls,
    double,
    evaluate,
    output_weights,
)

from dgmfast import _C, models, ops

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
every_op = pytest.mark.parametrize("case", FULL, ids=lambda case: case.op)
every_broadcasting_case = pytest.mark.parametrize("case", BROADCASTING, ids=lambda case: case.id)
last_dim_cases = pytest.mark.parametrize("case", [c for c in CASES if c.op != "importance_bound"], ids=lambda case: case.id)


# Values and gradients


@pytest.mark.parametrize("dim", SIZES)
@every_case
def test_matches_the_reference(case: Case, dim: int, path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    assert_matches_reference(case, case.tensors(dim, device=device, dtype=dtype, seed=dim))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_case
def test_instruction_sets_agree(case: Case, dtype: torch.dtype, restored_isa: None) -> None:
    tensors = case.tensors(257, dtype=dtype)
    found = {}
    for isa in ISAS:
        _C.set_isa(isa)
        assert _C.isa() == isa
        found[isa] = evaluate(case.call, tensors)
    for isa in ISAS[1:]:
        for name, value in found[isa].items():
            expected = found["baseline"][name]
            # The paths differ in contracted multiply-adds and in the order of sums. This costs a few roundings, and more after
            # log Σ w at −50.
            torch.testing.assert_close(value, expected, rtol=0, atol=float(100 * torch.finfo(dtype).eps * expected.abs().max()))


@st.composite
def broadcasting(draw: st.DrawFn, case: Case) -> tuple[list[tuple[int, ...]], int]:
    """Draws shapes of the arguments that broadcast: each has some of the common leading dimensions missing and some of size 1."""
    full = draw(st.lists(st.integers(0, 4), min_size=case.ranks[0], max_size=case.ranks[1]))
    dim = draw(st.sampled_from([0, 1, 2, 3, 16, 17, 65, 257]))
    shapes = []
    for _ in case.kinds:
        own = full[draw(st.integers(0, len(full))) :]
        shapes.append([1 if draw(st.booleans()) else size for size in own])
    if all(len(shape) < case.ranks[0] for shape in shapes):
        shapes[draw(st.integers(0, len(shapes) - 1))] = list(full)
    return [(*shape, dim) for shape in shapes], draw(st.integers(0, 2**30))


@pytest.mark.parametrize("device", DEVICES)
@every_broadcasting_case
def test_broadcasts(case: Case, device: str) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(broadcasting(case))
    def check(drawn: tuple[list[tuple[int, ...]], int]) -> None:
        shapes, seed = drawn
        assert_matches_reference(case, case.tensors(shapes=shapes, seed=seed, device=device))

    check()


@every_broadcasting_case
def test_gradient_of_many_broadcast_rows(case: Case, path_device: str) -> None:
    """Sums over 200 broadcast rows must be right; CPU kernels cut them into parts of 64, CUDA kernels into segments."""
    full = (200, 70) if case.ranks[1] == 1 else (5, 40, 70)
    for i, _ in enumerate(case.kinds):
        shapes = [full if j != i else (70,) for j in range(len(case.kinds))]
        assert_matches_reference(case, case.tensors(shapes=shapes, device=path_device))


@pytest.mark.parametrize("leading", [(0,), (1,), (5, 0), (0, 3)])
@last_dim_cases
def test_empty_batch(case: Case, leading: tuple[int, ...], device: str) -> None:
    if not case.ranks[0] <= len(leading) <= case.ranks[1]:
        leading = (leading * 2)[: case.ranks[1]]
    for dim in (0, 4):
        assert_matches_reference(case, case.tensors(dim, leading, device=device))


@every_case
def test_layout_does_not_matter(case: Case, device: str) -> None:
    """Transposed, strided, offset and expanded arguments must give the results and gradients of their contiguous copies."""
    layouts: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        "strided rows": lambda t: (
            torch.stack([t, t], 0).flatten(0, 1)[: len(t)] if t.dim() == 1 else torch.cat([t, t], 0)[: len(t)]
        ),
        "every second": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
        "offset": lambda t: torch.cat([t[..., :1], t], -1)[..., 1:],
        "expanded last": lambda t: t[..., :1].expand(t.shape),
        "expanded first": lambda t: t[:1].expand(t.shape),
        "one number": lambda t: t.flatten()[0].expand(t.shape),
    }
    tensors = case.tensors(18, device=device)
    for which in [*([name] for name in tensors), list(tensors)]:
        for layout in layouts.values():
            strided = {name: layout(t) if name in which else t for name, t in tensors.items()}
            packed = {name: t.contiguous() for name, t in strided.items()}
            weights = output_weights([out.detach() for out in case.call(**packed)])
            expected = evaluate(case.call, packed, weights)
            assert_same_calls(case, evaluate(case.call, strided, weights), expected)
            flipped = [w.movedim(0, -1).contiguous().movedim(-1, 0) if w.dim() else w for w in weights]
            assert_same_calls(case, evaluate(case.call, packed, flipped), expected)
    ones = [torch.ones((), device=device).expand(out.shape) for out in case.call(**tensors)]  # as .sum().backward() passes them
    assert_same_calls(case, evaluate(case.call, tensors, ones), evaluate(case.call, tensors))


@every_broadcasting_case
def test_many_dimensions(case: Case, device: str) -> None:
    """More than 8 leading dimensions that do not merge must work or raise a clear error; those of size 1 do not count."""
    if case.op == "gaussian_sample":
        pytest.skip("gaussian_sample takes at most two leading dimensions")
    for rank in (9, 13):
        tensors = case.tensors(2, [2] * rank, device=device)
        first = case.names[0]
        tensors[first] = tensors[first].permute(*reversed(range(rank)), rank)
        try:
            assert_matches_reference(case, tensors)
        except ValueError as error:
            assert re.match(rf"{case.op}: .*8 leading dimensions.*; got", str(error)), error


@every_broadcasting_case
def test_many_dimensions_of_size_1(case: Case, device: str) -> None:
    """Dimensions of size 1 must merge away; a set of dimensions stored in 32 bits would confuse the third with the 35th."""
    if case.op == "gaussian_sample":
        pytest.skip("gaussian_sample takes at most two leading dimensions")
    shapes = [[1] * 40 + [5] for _ in case.kinds]
    for i, shape in enumerate(shapes):
        shape[3 if i % 2 else 35] = 4 + i % 2
    assert_matches_reference(case, case.tensors(shapes=shapes, device=device))


@every_case
def test_any_number_of_threads(case: Case, path_device: str, threads: None) -> None:
    """Any number of threads must give the same bits, or agree with float64 where a library multiplies matrices."""
    leading = (400, *case.leading[1:])
    tensors = case.tensors(257, leading, device=path_device)
    last = case.names[-1]
    if len(tensors) > 1 and case.has_leading(last):
        tensors[last] = tensors[last][:1]  # one broadcast argument, whose gradient is a sum over rows
    torch.set_num_threads(1)
    expected = evaluate(case.call, tensors)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        if case.has_products:
            assert_matches_reference(case, tensors)
        else:
            assert_same(evaluate(case.call, tensors), expected)


# Extremes


FINITE = {
    "mean": [0.0, 1.5, -100.0, 1e4],
    "log_var": [0.0, -1.5, 20.0, -100.0, 100.0, -1e4, 1e4],
    # The logits have no 0, where the reference has no derivative (see test_bernoulli_log_prob).
    "logits": [0.5, -1.5, 20.0, -100.0, 100.0, -1e4, 1e4],
    "probability": [0.0, 1.0, 0.3],
}
# No |log_var| is above 80: e^−log_var must be normal in float32, because the kernels flush smaller numbers to 0, and 0 · ∞ is
# NaN.
NOT_FINITE = {
    "mean": [0.0, 1.5, -100.0, math.inf, -math.inf, math.nan],
    "log_var": [0.0, -1.5, 80.0, -80.0, math.inf, -math.inf, math.nan],
    "logits": [0.5, -1.5, 100.0, math.inf, -math.inf, math.nan],
    "probability": [0.0, 1.0, 0.3, math.nan],
}
extreme_cases = pytest.mark.parametrize(
    "case",
    [
        c
        for c in CASES
        if c.id not in ("bernoulli_byte", "bernoulli_bool")
        and c.op not in ("importance_bound", "label_linear", "linear_bernoulli_log_prob")
    ],
    ids=lambda c: c.id,
)


def grid(case: Case, values: dict[str, list[float]], dim: int, device: str, dtype: torch.dtype) -> Tensors:
    """Returns every combination of the arguments' values, each as a row of `dim` equal numbers."""
    rows = torch.tensor(list(product(*(values[kind] for kind in case.kinds.values()))), dtype=dtype, device=device)
    shape = (len(rows), *[1] * (case.ranks[0] - 1), dim)
    return {name: rows[:, i].view(-1, *[1] * (len(shape) - 1)).expand(shape) for i, name in enumerate(case.names)}


def evaluate_without_overflow(case: Case, tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Evaluates the reference in `dtype`, or for 16 bits in float32 as the op does, because intermediate results overflow."""
    wider = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    return {name: t.to(dtype) for name, t in evaluate(case.reference, {n: t.to(wider) for n, t in tensors.items()}).items()}


def largest_term(case: Case, tensors: Tensors) -> torch.Tensor:
    """Returns the size of the largest term of each result, [rows] in float64; an op may have a few roundings of it."""
    terms = [torch.ones(len(tensors[case.names[0]]), dtype=torch.float64)]
    for name, kind in case.kinds.items():
        value = tensors[name].double().flatten(1)[:, 0].cpu()
        terms += [value.abs()] if kind == "mean" else []
        terms += (
            [7.0 * torch.exp(0.5 * value)] if case.op == "gaussian_sample" and kind == "log_var" else []
        )  # 7 is above the largest normal
    return torch.stack(torch.broadcast_tensors(*terms)).amax(0)


@pytest.mark.parametrize("dim", [1, 19])
@extreme_cases
def test_extreme_values(case: Case, dim: int, path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    tensors = grid(case, FINITE, dim, device, dtype)
    got, own = evaluate(case.call, tensors), evaluate_without_overflow(case, tensors, dtype)
    truth = evaluate(case.reference, double(tensors))
    size = largest_term(case, tensors)
    for name, value in got.items():
        # Each row has equal numbers, so the first is enough; with noise they differ, and all are compared.
        value, rounded, exact = (
            t[name].double().cpu().flatten(1) if t[name].dim() > 1 else t[name].double().cpu()[:, None] for t in (got, own, truth)
        )
        finite = rounded.isfinite() & exact.isfinite()
        assert torch.equal(finite, value.isfinite() & exact.isfinite()), name
        if name.startswith("output"):
            assert torch.equal(value[rounded.isinf()], rounded[rounded.isinf()]), name
        scale = torch.maximum(exact.abs(), size[:, None])
        allowed = 2.0 * (rounded - exact).abs() + 32 * dim**0.5 * torch.finfo(dtype).eps * scale
        assert bool(((value - exact).abs() <= allowed)[finite].all()), name


@pytest.mark.parametrize("dim", [1, 19])
@extreme_cases
def test_not_finite_values_propagate(case: Case, dim: int, path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    tensors = grid(case, NOT_FINITE, dim, device, dtype)
    reference = evaluate_without_overflow(case, tensors, dtype)
    for i, got in enumerate(case.call(**tensors)):
        expected = reference[f"output {i}"]
        wrong = (got.isnan() != expected.isnan()) | ((got.isinf() | expected.isinf()) & ~got.isnan() & (got != expected))
        rows = wrong.flatten(1).any(1) if wrong.dim() > 1 else wrong
        first = {name: t.flatten(1)[rows][:1, 0].tolist() for name, t in tensors.items()}
        assert not rows.any(), (
            f"{int(rows.sum())} of {len(rows)} rows, the first {first}: {got[rows][:1]} and {expected[rows][:1]}"
        )


@every_case
def test_nan_stays_in_its_row(case: Case, device: str) -> None:
    for spoilt in case.floating:
        tensors = case.tensors(70, (5, *case.leading[1:]), device=device)
        clean, clean_reference = evaluate(case.call, tensors), evaluate(case.reference, tensors)
        middle = tensors[spoilt].shape[-1] // 2
        tensors[spoilt][(2, ..., middle) if tensors[spoilt].dim() > 1 else middle] = math.nan
        reference = evaluate(case.reference, tensors)
        for name, value in evaluate(case.call, tensors).items():
            assert torch.equal(value.isnan(), reference[name].isnan()), f"{spoilt}: {name}"
            keep = ~value.isnan()
            if case.op == "label_linear":  # torch's relu has a gradient at NaN, which is not that of the clean number
                keep &= reference[name] == clean_reference[name]
            assert_same_calls(case, {name: value[keep]}, {name: clean[name][keep]})


@every_op
def test_python_threads(case: Case, device: str) -> None:
    """Concurrent calls must not disturb each other, because the extension releases the interpreter's lock."""
    tensors = case.tensors(257, (60, *case.leading[1:]), device=device)
    expected, found = evaluate(case.call, tensors), []
    workers = [threading.Thread(target=lambda: found.extend(evaluate(case.call, tensors) for _ in range(5))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 20
    for result in found:
        assert_same_calls(case, result, expected)


def negative_view(t: torch.Tensor) -> torch.Tensor:
    """Returns t as the imaginary part of a conjugate, whose memory holds −t."""
    view = torch.complex(torch.zeros_like(t), -t).conj().imag
    assert view.is_neg() and torch.equal(view, t)
    return view


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_case
def test_negative_bit_views(case: Case, dtype: torch.dtype, device: str) -> None:
    """Views whose memory holds negated values must give the results and gradients of ordinary tensors."""
    tensors = case.tensors(18, device=device, dtype=dtype)
    weights = output_weights([out.detach() for out in case.call(**tensors)])
    expected = evaluate(case.call, tensors, weights)
    for name in case.floating:
        assert_same_calls(case, evaluate(case.call, {**tensors, name: negative_view(tensors[name])}, weights), expected)
    assert_same_calls(case, evaluate(case.call, tensors, [negative_view(w) for w in weights]), expected)


def test_negative_bit_views_of_the_other_ops_and_of_the_sampler(device: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    log_w = drawn(4, 6)
    for got, expected in zip(ops.importance_state(negative_view(log_w)), ops.importance_state(log_w), strict=True):
        assert torch.equal(got, expected)
    image, weight, bias = drawn(2, 3, 5, 5), drawn(6, 3, 3, 3), drawn(6)
    truth = ops.masked_conv2d(image.double(), weight.double(), bias.double(), "A")
    got = ops.masked_conv2d(negative_view(image), negative_view(weight), negative_view(bias), "A")
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-5)
    z, x = drawn(4, 3), drawn(4, 7).sigmoid()
    layers = [drawn(5, 3), drawn(7, 5)], [drawn(5), drawn(7)]
    views = tuple([negative_view(t) for t in some] for some in layers)
    expected = ops.mlp_bernoulli_log_prob(z, *layers, x, "tanh")
    torch.testing.assert_close(
        ops.mlp_bernoulli_log_prob(negative_view(z), *views, negative_view(x), "tanh"), expected, rtol=1e-5, atol=1e-5
    )
    torch.manual_seed(0)
    net = models.create("pixelcnn", x_dim=6, image=(1, 2, 3), maps=2, blocks=1, tail=2, first_kernel=3).eval()
    rows, keep = torch.ones(3, 6), torch.arange(6) < 3
    expected = net.complete(rows, keep, seed=1)
    assert torch.equal(net.complete(negative_view(rows), keep, seed=1), expected) and bool((expected[:, :3] == 1.0).all())
    with torch.no_grad():
        for module in net.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                module.register_parameter(name, torch.nn.Parameter(negative_view(parameter.detach())))
    assert torch.equal(net.complete(rows, keep, seed=1), expected)
