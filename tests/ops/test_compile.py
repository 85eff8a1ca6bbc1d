"""Tests of the ops under opcheck, torch.compile, export, fake tensors, autocast, copying and pickling."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from support.op_cases import BROADCASTING, CASES, FULL, SLOTS, Case, Tensors, as_tuple, assert_same_calls, evaluate
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dgmfast import models, ops
from dgmfast.ops import ImportanceState

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
every_op = pytest.mark.parametrize("case", FULL, ids=lambda case: case.op)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    """Removes the compiled code of other tests."""
    torch._dynamo.reset()


# torch.library.opcheck: schema, autograd registration, fake tensors, and AOT dispatch with static and dynamic shapes


def backward_arguments(case: Case, tensors: Tensors, wanted: list[bool]) -> tuple[object, ...]:
    outputs = case.call(**tensors)
    grads = tuple(torch.randn_like(out) for out in outputs)
    return (*grads, *case.backward_positional(tensors, outputs, wanted))


@every_case
def test_opcheck_forward(case: Case, device: str) -> None:
    op = getattr(torch.ops.dgmfast, case.op).default
    torch.library.opcheck(op, case.positional(case.tensors(device=device)))
    leaves = {n: t.requires_grad_(t.is_floating_point()) for n, t in case.tensors(device=device, dtype=torch.float64).items()}
    torch.library.opcheck(op, case.positional(leaves))


@every_op
def test_opcheck_broadcast_and_strided(case: Case, device: str) -> None:
    tensors = case.tensors(6, (4, *case.leading[1:]), device=device)
    last = case.names[-1]
    tensors[last] = tensors[last][..., :1].expand_as(tensors[last])  # a stride of 0
    if case in BROADCASTING:
        tensors[case.names[0]] = tensors[case.names[0]][:1]
    leaves = {n: t.detach().requires_grad_() for n, t in tensors.items()}
    torch.library.opcheck(getattr(torch.ops.dgmfast, case.op).default, case.positional(leaves))


@every_case
def test_opcheck_backward(case: Case, device: str) -> None:
    tensors = case.tensors(device=device)
    op = getattr(torch.ops.dgmfast, f"{case.op}_backward").default
    wanted = [name in case.floating for name in SLOTS.get(case.op, case.names)]
    torch.library.opcheck(op, backward_arguments(case, tensors, wanted))
    torch.library.opcheck(op, backward_arguments(case, tensors, [w and i > 0 for i, w in enumerate(wanted)]))


def test_opcheck_importance_state(device: str) -> None:
    log_w = torch.randn(3, 7, device=device)
    op = torch.ops.dgmfast.importance_state.default
    torch.library.opcheck(op, (log_w,))
    torch.library.opcheck(op, (log_w, ops.importance_state(log_w)))


@every_op
def test_seed_tensor_opcheck(case: Case, device: str) -> None:
    if case.op != "gaussian_sample":
        pytest.skip("takes no seed")
    seeded = Case("seeded", case.op, case.kinds, {"k": 2, "seed": torch.tensor(5, device=device)}, (3,), (1, 1))
    tensors = seeded.tensors(device=device)
    torch.library.opcheck(torch.ops.dgmfast.gaussian_sample.default, seeded.positional(tensors))
    torch.library.opcheck(torch.ops.dgmfast.gaussian_sample_backward.default, backward_arguments(seeded, tensors, [True, True]))


# Meta and fake tensors


def signature(outputs: tuple[Tensor, ...]) -> list[tuple[object, ...]]:
    return [(tuple(out.shape), out.dtype, out.stride()) for out in outputs]


@every_case
def test_meta_and_fake_tensors(case: Case, device_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = device_dtype
    tensors = case.tensors(6, (4, *case.leading[1:]), device=device, dtype=dtype)
    expected = signature(case.call(**tensors))
    found = case.call(**{name: t.to("meta") for name, t in tensors.items()})
    assert signature(found) == expected
    assert all(out.is_meta for out in found)
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(t) for name, t in tensors.items()}
        found = case.call(**fakes)
        assert signature(found) == expected
        assert all(out.device.type == device for out in found)


def test_meta_importance_state() -> None:
    state = ops.importance_state(torch.zeros(3, 4, 7, device="meta"))
    assert (state.shape, state.dtype, state.is_meta) == ((3, 4, 5), torch.float64, True)
    assert ops.importance_state(torch.zeros(3, 4, 7, device="meta"), state).shape == (3, 4, 5)


# torch.compile


def loss_of(case: Case):
    """Returns a function of the tensors with work before and after the op, which a compiler can fuse."""

    def loss(tensors: Tensors) -> tuple[Tensor, ...]:
        first = case.names[0]
        outputs = as_tuple(getattr(ops, case.op)(**{**tensors, first: tensors[first] * 1.5}, **case.kwargs))
        return (*outputs, sum((out * 0.5).sin().sum() for out in outputs))

    return loss


def assert_compiled_matches(case: Case, compiled, tensors: Tensors) -> None:
    def run(function):
        return lambda **leaves: function(leaves)[-1:]

    expected, found = evaluate(run(loss_of(case)), tensors), evaluate(run(compiled), tensors)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


@every_case
def test_compile(case: Case, device: str) -> None:
    """Forward and backward must be one graph and equal eager; another shape must add one graph with dynamic shapes."""
    compiled = torch.compile(loss_of(case), fullgraph=True, backend="aot_eager")
    assert_compiled_matches(case, compiled, case.tensors(6, (4, *case.leading[1:]), device=device))
    with torch.no_grad():
        tensors = case.tensors(6, (4, *case.leading[1:]), device=device)
        assert_same_calls(case, dict(enumerate(compiled(tensors)[:-1])), dict(enumerate(loss_of(case)(tensors)[:-1])))


@every_op
def test_compile_dynamic(case: Case, device: str) -> None:
    """One graph must serve every shape."""
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss_of(case), fullgraph=True, backend=graphs, dynamic=True)
    for rows, dim in ((4, 6), (5, 17), (9, 70)):
        assert_compiled_matches(case, compiled, case.tensors(dim, (rows, *case.leading[1:]), device=device))
    assert graphs.frame_count == 1


def test_compile_with_a_new_seed_each_step(device: str) -> None:
    """Integer seeds must compile only twice, because the second makes them symbols; seeds in a tensor must compile only once."""
    mean, log_var = torch.randn(3, 5, device=device), torch.randn(3, 5, device=device)
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=graphs)
    def draw(mean: Tensor, log_var: Tensor, seed: int | Tensor, first_row: int) -> Tensor:
        return ops.gaussian_sample(mean, log_var, 2, seed=seed, first_row=first_row)[0] + 1.0

    for step, limit in ((5, 1), (6, 2), (70, 2), (-3, 3), (2**40, 3)):
        assert torch.equal(draw(mean, log_var, step, 0), ops.gaussian_sample(mean, log_var, 2, seed=step)[0] + 1.0)
        assert graphs.frame_count <= limit, f"compiled {graphs.frame_count} times by seed {step}"
    before = graphs.frame_count
    for step in (5, 6, 70, -3):
        seed = torch.tensor(step, device=device)
        assert torch.equal(draw(mean, log_var, seed, 0), ops.gaussian_sample(mean, log_var, 2, seed=step)[0] + 1.0)
    assert graphs.frame_count == before + 1


def test_compile_importance_state(device: str) -> None:
    log_w = torch.randn(3, 40, device=device)

    def estimates(log_w: Tensor) -> tuple[Tensor, Tensor]:
        state = ImportanceState().update(log_w[:, :10]).update(log_w[:, 10:])
        return state.log_px, state.std_error

    found = torch.compile(estimates, fullgraph=True, backend="aot_eager")(log_w)
    assert all(torch.equal(a, b) for a, b in zip(found, estimates(log_w), strict=True))


def test_compiled_second_derivative_raises(device: str) -> None:
    mean = torch.randn(3, 5, device=device, requires_grad=True)
    compiled = torch.compile(lambda m: ops.gaussian_kl(m, m).sum(), backend="aot_eager")
    with pytest.raises((RuntimeError, NotImplementedError)):
        (first,) = torch.autograd.grad(compiled(mean), mean, create_graph=True)
        torch.autograd.grad(first.sum(), mean)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
@every_op
def test_inductor(case: Case, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cuda":
        pytest.importorskip("triton")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled = torch.compile(loss_of(case), fullgraph=True)
    assert_compiled_matches(case, compiled, case.tensors(6, (4, *case.leading[1:]), device=device))
    assert any(tmp_path.iterdir())  # the cache shows that something was compiled


# torch.export, autocast, copies


class Wrapped(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        first, *rest = tensors
        named = dict(zip(self.case.names, (first * self.scale, *rest), strict=True))
        return as_tuple(getattr(ops, self.case.op)(**named, **self.case.kwargs))


@every_op
def test_export(case: Case, device: str) -> None:
    module = Wrapped(case).to(device)
    tensors = tuple(case.tensors(6, (4, *case.leading[1:]), device=device).values())
    rows = torch.export.Dim("rows")
    shapes = tuple({0: rows} if case.has_rows(name) else {} for name in case.names)
    program = torch.export.export(module, tensors, dynamic_shapes=(shapes,))
    assert any(f"dgmfast.{case.op}" in str(node.target) for node in program.graph.nodes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for count in (4, 7):
        tensors = tuple(case.tensors(6, (count, *case.leading[1:]), device=device).values())
        for a, b in zip(loaded(*tensors), module(*tensors), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_case
def test_autocast(case: Case, dtype: torch.dtype, device: str) -> None:
    """16-bit arguments, alone or with float32 ones, must give float32 results, and gradients in the dtype of each argument.

    On CUDA the products of a layer are in 16 bits, as in torch's own layers.
    """
    layer = case.op in ("label_linear", "linear_bernoulli_log_prob") and device == "cuda"
    computed = dtype if layer else torch.float32
    returned = computed if case.op == "label_linear" else torch.float32
    exact = case.tensors(device=device)
    rounded = {name: t.to(dtype) if t.is_floating_point() else t for name, t in exact.items()}
    mixed = exact | {case.names[0]: rounded[case.names[0]]}
    for tensors in (rounded, mixed, exact):
        leaves = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in tensors.items()}
        with torch.autocast(device, dtype=dtype):
            outputs = case.call(**leaves)
        assert all(out.dtype == returned for out in outputs)
        expected = case.call(**{n: t.to(computed) if t.is_floating_point() else t for n, t in tensors.items()})
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
        sum(out.sum() for out in outputs).backward()
        assert all(t.grad.dtype == t.dtype for t in leaves.values() if t.requires_grad)
    with torch.autocast(device, dtype=dtype):
        outputs = case.call(**case.tensors(device=device, dtype=torch.float64))
        assert all(out.dtype == torch.float64 for out in outputs)
        if len(case.floating) > 1:  # autocast does not let float64 and float32 be mixed
            with pytest.raises(TypeError, match=case.op):
                case.call(**(exact | {case.floating[-1]: exact[case.floating[-1]].double()}))
        with pytest.raises(TypeError, match=case.op):
            case.call(**(exact | {case.floating[0]: exact[case.floating[0]].int()}))


def test_autocast_importance_state(device: str) -> None:
    log_w = torch.randn(3, 7, device=device).bfloat16()
    with torch.autocast(device, dtype=torch.bfloat16):
        state = ops.importance_state(log_w)
    assert torch.equal(state, ops.importance_state(log_w.float()))


def small_model(device: str) -> nn.Module:
    torch.manual_seed(0)
    return models.create("vae", x_dim=12, latent=(3, 2), hidden=((7,), (5,))).to(device)


def test_model_copies_and_pickles(device: str) -> None:
    model = small_model(device)
    x = torch.rand(4, 12, device=device).round()
    expected = model.log_weights(x, 5, seed=3)
    expected.sum().backward()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        other.zero_grad()
        found = other.log_weights(x, 5, seed=3)
        assert torch.equal(found, expected)
        found.sum().backward()
        for (name, a), b in zip(other.named_parameters(), model.parameters(), strict=True):
            assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad), name


def test_model_compiles_and_autocasts(device: str) -> None:
    model = small_model(device)
    x = torch.rand(4, 12, device=device).round()
    compiled = torch.compile(lambda x: model.elbo(x, seed=1).bound, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model.elbo(x, seed=1).bound)
    with torch.autocast(device, dtype=torch.bfloat16):
        bound = model.elbo(x, seed=1).bound
    assert bound.dtype == torch.float32
    torch.testing.assert_close(bound, model.elbo(x, seed=1).bound, rtol=0.05, atol=0.2)
