"""Tests of mlp_bernoulli_log_prob, whose lists do not fit the table of op_cases: the checks common to all ops, and its tiles."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch._dynamo.testing
import torch.autograd.forward_ad as forward_ad
from support.mlp_decoder import OP, arguments, draw, value
from support.op_cases import ISAS, Tensors, assert_within_tolerance, double, evaluate, has_cpu_kernels, output_weights
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dgmfast import _C, ops, reference

NAMES = [None, "identity", "relu", "leaky_relu", "tanh", "softplus", "elu"]
FLOATS = [torch.float32, torch.float64]
ROWS = [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65, 100, 500]  # around the widths of vectors and tiles
WIDTHS = [0, 1, 3, 5, 6, 7, 11, 12, 13, 119, 120, 121, 241]  # around multiples of the number of outputs summed together

every_activation = pytest.mark.parametrize("activation", NAMES)
every_float = pytest.mark.parametrize("dtype", FLOATS)
COMPILER = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")


def call(which: ModuleType, activation: str | None = None) -> Callable[..., tuple[Tensor, ...]]:
    return lambda **tensors: (value(tensors, activation, which),)


def assert_right(tensors: Tensors, activation: str | None) -> None:
    """Asserts that the values, with and without gradients wanted, and every gradient are within the tolerance rule."""
    weights = output_weights([value(tensors, activation, reference)])
    truth = evaluate(call(reference, activation), double(tensors), [w.double() for w in weights])
    got, own = (evaluate(call(which, activation), tensors, weights) for which in (ops, reference))
    if tensors["h"].dtype not in FLOATS:
        assert_within_16_bits(got, own, truth, tensors, activation, weights[0])
        return
    for found in (got, got | {"output 0": value(tensors, activation)}):
        # A gradient is a sum over rows of products, and has their rounding error.
        assert_within_tolerance(found, own, truth, least_gradient=max(8.0, weights[0].numel() ** 0.5))


def assert_within_16_bits(
    got: Tensors, own: Tensors, truth: Tensors, tensors: Tensors, activation: str | None, weights: Tensor
) -> None:
    """Asserts that the errors are within what rounding every layer to 16 bits can make of them.

    A rounding of a unit reaches the result through the absolute weights of the layers above it. The network of absolute values
    therefore bounds the error of each output; its gradients, times the largest unit, bound those of the gradients. A ReLU whose
    input rounds to the other side of zero changes its slope by 1, so its gradients are bounded by those of that network alone.
    """
    leaves = {name: t.detach().double().abs().requires_grad_() for name, t in tensors.items() if name != "x"}
    h, largest = leaves["h"], [1.0]
    layers = len(leaves) // 2
    for i in range(layers):
        h = h @ leaves[f"w{i}"].T + leaves[f"b{i}"] + 1.0  # every activation is at most |a| + log 2
        largest.append(float(h.max()) if h.numel() else 0.0)
    sizes = h.sum(-1)
    slopes = torch.autograd.grad((sizes * weights.double().abs()).sum(), list(leaves.values()))
    roundings = (layers + 2) * torch.finfo(tensors["h"].dtype).eps
    factor = 1.0 if activation in ("relu", "leaky_relu") else roundings * (1.0 + max(largest))
    bounds = {f"gradient of {name}": factor * slope for name, slope in zip(leaves, slopes, strict=True)}
    bounds["output 0"] = roundings * sizes
    for name, bound in bounds.items():
        error = (got[name].double() - truth[name]).abs()
        allowed = bound + 2.0 * (own[name].double() - truth[name]).abs() + 2.0 * roundings * truth[name].abs()
        assert (error <= allowed).all(), f"{name}: error {error.max():.3g}"


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, restored_isa: None) -> None:
    """Each instruction set of this processor, for promises that hold only on CPUs."""
    if not has_cpu_kernels("cpu"):
        pytest.skip("the kernels are CUDA's")
    _C.set_isa(request.param)


@pytest.mark.parametrize("leading", [*((n,) for n in ROWS), (500, 1), (1, 500), (3, 5), (40, 7), (5, 33), (0,), (0, 3), (3, 0)])
def test_rows(leading: tuple[int, ...], path_dtype: tuple[str, torch.dtype]) -> None:
    """Any number of rows must be right; tiles may hold samples of several rows, and rows may need several tiles."""
    rng = random.Random(str(leading))
    for activation, most in product(NAMES, (3, 5)):
        widths, x = tuple(rng.choices(WIDTHS, k=rng.randint(2, most))), rng.choice(["float", "bool", "byte"])
        assert_right(draw(leading, widths, x=x, dtype=path_dtype[1], device=path_dtype[0]), activation)


@pytest.mark.parametrize("width", [*WIDTHS, 784, 1025, 4097])
def test_widths(width: int, path_dtype: tuple[str, torch.dtype]) -> None:
    """Any width of h, of hidden layers and of x, in up to 16 layers, must be right, also beyond the first-level cache."""
    shapes = [(4, width), (4, 5, width), *((width,) * n for n in (2, 3, 5, 17) if width < (100 if n == 17 else 784))]
    shapes += [(width, 4), (width, 5, 4), (4, width, 5), (4, 5, width, 3)]
    for widths in shapes:
        assert_right(draw((3, 13), widths, dtype=path_dtype[1], device=path_dtype[0]), "softplus")


def test_one_layer_is_linear_bernoulli_log_prob(path_dtype: tuple[str, torch.dtype]) -> None:
    for leading, widths in (((33,), (9, 21)), ((5, 7), (20, 784))):
        tensors = draw(leading, widths, dtype=path_dtype[1], device=path_dtype[0])
        torch.testing.assert_close(value(tensors), ops.linear_bernoulli_log_prob(*tensors.values()))
        assert torch.equal(value(tensors, "tanh"), value(tensors))  # the last layer has no activation
        found = evaluate(call(ops), tensors)
        for name, t in evaluate(lambda **leaves: (ops.linear_bernoulli_log_prob(*leaves.values()),), tensors).items():
            assert torch.equal(found[name], t)


@every_float
@every_activation
def test_instruction_sets_agree(activation: str | None, dtype: torch.dtype, restored_isa: None) -> None:
    tensors, found = draw((5, 33), (20, 121, 50, 257), dtype=dtype), []
    for isa in ISAS:
        _C.set_isa(isa)
        found.append(value(tensors, activation))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=float(100 * torch.finfo(dtype).eps * found[0].abs().max()))


@every_float
@every_activation
def test_activations_keep_their_digits(activation: str | None, dtype: torch.dtype, path_device: str) -> None:
    """Activations must keep their digits at kinks, near 0, at softplus's threshold and in both tails.

    Tiny activations are scaled up to logits of size 1.
    """
    zero, one = torch.zeros(1, dtype=dtype, device=path_device), torch.ones(1, 1, dtype=dtype, device=path_device)
    rounding = 8 * torch.finfo(dtype).eps
    for point in (0.0, 1e-30, 1e-6, 1e-3, 0.1, 0.7, 1.0, 3.0, 9.0, 15.0, 19.9, 20.1, 40.0, 100.0, 1e4):
        for pre in (point * one, -point * one):
            size = float(reference.ACTIVATIONS[activation](pre.double()).abs())
            scale = min(1.0 / size, 1e30) if 0.0 < size < 1.0 else 1.0
            x = torch.cat([0.0 * one, one])
            tensors = {"h": pre.expand(2, 1), "w0": one, "b0": zero, "w1": scale * one, "b1": zero, "x": x}
            exact = value(double(tensors), activation, reference)
            torch.testing.assert_close(value(tensors, activation).double(), exact, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_extreme_logits(activation: str | None, path_dtype: tuple[str, torch.dtype]) -> None:
    """A certain pixel must cost nothing if right and its logit if wrong; here l = relu(l) − relu(−l) = ½ (l − (−l))."""
    device, dtype = path_dtype
    large = 1e4 if dtype in FLOATS else 8192.0
    h, w0 = (torch.tensor(column, device=device, dtype=dtype).view(-1, 1) for column in ([large, -large] * 2, [1.0, -1.0]))
    for dim in (1, 100, 784):
        x = torch.tensor([[1.0], [0.0], [0.0], [1.0]], device=device, dtype=dtype).expand(-1, dim)
        w1 = (1.0 if activation else 0.5) * w0.t().repeat(dim, 1)
        tensors = {"h": h, "w0": w0, "b0": w0.new_zeros(2), "w1": w1, "b1": w0.new_zeros(dim), "x": x}
        expected = dim * torch.tensor([0.0, 0.0, -large, -large], device=device, dtype=torch.float64)
        found = evaluate(call(ops, activation), tensors)
        for out in (value(tensors, activation), found["output 0"]):
            torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=0.0)
        truth = evaluate(call(reference, activation), double(tensors))
        for name, t in found.items():
            assert (t.isfinite() | (truth[name].abs() > torch.finfo(dtype).max)).all(), name


def test_sure_pixels_cost_no_digits(path_dtype: tuple[str, torch.dtype]) -> None:
    """For a decoder that is certain and right, the error must be relative to the result, some 40 nats, not to Σ |logits|, 7e5."""
    tensors = draw((5, 4), (9, 50, 784), x="bool", dtype=path_dtype[1], device=path_dtype[0])
    tensors["x"] = tensors["x"][:1].expand(5, -1)
    tensors["b1"][40:] += 1e3 * (2.0 * tensors["x"][0, 40:].to(path_dtype[1]) - 1.0)
    assert bool((value(tensors, "tanh") + 40.0).abs().max() < 30.0)
    assert_right(tensors, "tanh")


@every_activation
def test_not_finite_values_stay_in_their_rows(activation: str | None, path_device: str) -> None:
    """Values that are not finite must affect only their own rows, as in the reference: tanh of ∞ is 1, and of NaN is NaN."""
    for dtype, leading in product(FLOATS, ((45,), (5, 9))):
        tensors = draw(leading, (9, 13, 25), dtype=dtype, device=path_device)
        clean = value(tensors, activation)
        for name, number in (("h", math.nan), ("h", math.inf), ("h", -math.inf), ("x", math.nan)):
            spoilt = tensors | {name: tensors[name].clone()}
            spoilt[name].flatten(0, -2)[22 if name == "h" else 2, 3] = number
            rows = torch.zeros_like(clean, dtype=torch.bool)
            (rows.view(-1)[22] if name == "h" else rows[2]).fill_(True)
            found, expected = (value(spoilt, activation, which) for which in (ops, reference))
            assert not math.isnan(number) or bool(expected[rows].isnan().all())
            torch.testing.assert_close(found[rows], expected[rows], equal_nan=True)
            assert torch.equal(found[~rows], clean[~rows])


@every_float
@every_activation
def test_a_row_depends_on_nothing_else(activation: str | None, dtype: torch.dtype, isa: None, threads: None) -> None:
    """A row must not depend on other rows, its place, the number of samples or threads, or concurrent calls."""
    tensors = draw((20, 15), (9, 25, 13, 121), dtype=dtype)

    def given(h: Tensor, x: Tensor) -> Tensor:
        return value(tensors | {"h": h, "x": x}, activation)

    samples, pixels = tensors["h"], tensors["x"]
    expected = given(samples, pixels)
    h, x, flat = samples.flatten(0, 1), pixels.repeat_interleave(15, 0), expected.flatten()
    assert len(flat.unique()) > 250
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0)).tolist()
    parts = [slice(0, 300), slice(3, 20), slice(5, 38), slice(17, 300), *(slice(i, i + 1) for i in range(0, 300, 13))]
    assert torch.equal(given(h[order], x[order]), flat[order])
    for rows in parts:
        assert torch.equal(given(h[rows], x[rows]), flat[rows])
    for k in (1, 2, 7, 8):
        assert torch.equal(given(samples[:, k:], pixels), expected[:, k:])
        assert torch.equal(given(samples[:k, :k], pixels[:k]), expected[:k, :k])
    one_x = given(h, x[:1].expand(300, -1))
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert torch.equal(given(h.repeat(11, 1), x.repeat(11, 1)), flat.repeat(11))
        assert torch.equal(given(h.repeat(11, 1).unsqueeze(0), x[:1]), one_x.repeat(11).unsqueeze(0))
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, flat) for found in pool.map(lambda _: given(h, x), range(20)))


@pytest.mark.parametrize("x", ["float", "bool", "byte"])
def test_layout_does_not_matter(x: str, isa: None) -> None:
    """Any strides, and views with the negative bit, must give the same bits as contiguous copies."""
    layouts: list[Callable[[Tensor], Tensor]] = [
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: t.transpose(0, t.dim() // 2).contiguous().transpose(0, t.dim() // 2),  # h as [K, B, H]
        lambda t: torch.stack([t, t + t], -1).flatten(-2)[..., ::2],
        lambda t: torch.stack([t, t + t], 1).flatten(0, 1)[::2],
        lambda t: torch.cat([t[..., :1], t], -1)[..., 1:],
        lambda t: t[..., :1].expand(t.shape),
        lambda t: t[:1].expand(t.shape),
        lambda t: t.flatten()[0].expand(t.shape),
        lambda t: torch.complex(t, t).conj().imag if t.is_floating_point() else t,
    ]
    for dtype, leading in product(FLOATS, ((33,), (5, 7))):
        tensors = draw(leading, x=x, dtype=dtype)
        for which, layout in product([*([name] for name in tensors), list(tensors)], layouts):
            strided = {name: layout(t) if name in which else t for name, t in tensors.items()}
            packed = {name: t.contiguous().resolve_neg() for name, t in strided.items()}
            assert torch.equal(value(strided, "tanh"), value(packed, "tanh"))


@pytest.mark.parametrize("leading", [(20000,), (400, 50)])
def test_holds_neither_logits_nor_activations(leading: tuple[int, ...]) -> None:
    tensors = {name: t.requires_grad_() for name, t in draw(leading, (4, 300, 784)).items()}
    if not has_cpu_kernels("cpu"):
        pytest.skip("the kernels are CUDA's, which go layer by layer")
    largest = []
    for which in (ops, reference):
        with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
            value(tensors, "relu", which)
        largest.append(max(abs(event.cpu_memory_usage) for event in profile.events()))
    assert largest[0] < 0.02 * 4 * 20000 * 784 < largest[1]


@pytest.mark.parametrize("leading", [(3,), (2, 3)])
@every_activation
def test_gradcheck_and_each_gradient_alone(activation: str | None, leading: tuple[int, ...], path_device: str) -> None:
    tensors = draw(leading, (3, 4, 5, 2), dtype=torch.float64, device=path_device)
    function = call(ops, activation)
    full = evaluate(function, tensors)
    leaves = [t.clone().requires_grad_() for t in tensors.values()]
    assert torch.autograd.gradcheck(lambda *leaves: function(**dict(zip(tensors, leaves, strict=True))), leaves)
    for wanted in tensors:
        alone = {name: t.clone().requires_grad_(name == wanted) for name, t in tensors.items()}
        out = value(alone, activation)
        out.sum().backward()
        torch.testing.assert_close(out.detach(), full["output 0"], rtol=1e-12, atol=1e-12)
        assert [name for name, leaf in alone.items() if leaf.grad is not None] == [wanted]
        torch.testing.assert_close(alone[wanted].grad, full[f"gradient of {wanted}"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("leading", [(300,), (2, 700)])
def test_no_graph_without_gradients(leading: tuple[int, ...], device: str, threads: None) -> None:
    """Without gradients, leaves and inference-mode tensors must give the same bits without a graph, and must only be read."""
    torch.set_num_threads(2)
    tensors = draw(leading, (5, 7, 6, 784), device=device)
    expected, leaves = value(tensors, "elu"), {name: t.clone().requires_grad_() for name, t in tensors.items()}
    assert value(leaves, "elu").requires_grad and not expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for found in (value(leaves, "elu"), value({name: t.clone() for name, t in tensors.items()}, "elu")):
                assert not found.requires_grad and torch.equal(found, expected)
    assert all(torch.equal(leaves[name].detach(), t) for name, t in draw(leading, (5, 7, 6, 784), device=device).items())


def test_second_derivative_raises(device: str) -> None:
    """A second derivative must raise and never be a silent zero."""
    leaves = {n: t.requires_grad_() for n, t in draw((5, 3), (3, 4, 5, 6), dtype=torch.float64, device=device).items()}
    inputs = list(leaves.values())
    message = r"^(label_linear|linear_bernoulli_log_prob): the second derivative is not implemented; use dgmfast\.reference\."
    for more in (0.0, sum((leaf**3).sum() for leaf in inputs)):
        out = value(leaves, "softplus")
        for gradient in torch.autograd.grad((out**2).sum() + more, inputs, create_graph=True):
            with pytest.raises(NotImplementedError, match=message):
                torch.autograd.grad(gradient.sum(), inputs, retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("name", list(draw()))
def test_forward_mode_raises(name: str, device: str) -> None:
    """Forward mode must raise, with gradients on or off, and never drop a tangent."""
    tensors = draw(device=device)

    def total(changed: Tensor) -> Tensor:
        return value(tensors | {name: changed}, "tanh").sum()

    for context in (torch.enable_grad, torch.no_grad):
        with context(), forward_ad.dual_level():
            dual = forward_ad.make_dual(tensors[name], torch.ones_like(tensors[name]))
            with pytest.raises(NotImplementedError, match="forward-mode derivatives are not implemented"):
                total(dual)


def test_vmap_without_gradients(device: str) -> None:
    """Without gradients, vmap must work over all arguments at once and over h alone."""
    batches = [draw(device=device), {name: t.flip(0) for name, t in draw(device=device).items()}]
    names = list(batches[0])
    stacked = [torch.stack([batch[name] for batch in batches]) for name in names]
    found = torch.func.vmap(lambda *tensors: value(dict(zip(names, tensors, strict=True)), "tanh"))(*stacked)
    torch.testing.assert_close(found, torch.stack([value(batch, "tanh") for batch in batches]))
    found = torch.func.vmap(lambda h: value(batches[0] | {"h": h}, "tanh"))(stacked[0])
    torch.testing.assert_close(found, torch.stack([value(batches[0] | {"h": batch["h"]}, "tanh") for batch in batches]))


@pytest.mark.parametrize(("leading", "x"), [((4,), "float"), ((3, 2), "byte")])
def test_opcheck(leading: tuple[int, ...], x: str, device: str) -> None:
    torch._dynamo.reset()
    op, tensors = torch.ops.dgmfast.mlp_bernoulli_log_prob.default, draw(leading, x=x, device=device)
    torch.library.opcheck(op, arguments(tensors, "tanh"))
    for wanted in (double(tensors), {name: t[..., :1].expand_as(t) for name, t in tensors.items()}):
        torch.library.opcheck(op, arguments({n: t.detach().requires_grad_(t.is_floating_point()) for n, t in wanted.items()}))


@pytest.mark.parametrize("leading", [(4,), (4, 3), (0, 3), (3, 0)])
def test_meta_and_fake_tensors(leading: tuple[int, ...], device_dtype: tuple[str, torch.dtype]) -> None:
    tensors = draw(leading, dtype=device_dtype[1], device=device_dtype[0])
    with FakeTensorMode() as mode:
        fake = value({name: mode.from_tensor(t) for name, t in tensors.items()}, "relu")
    meta, real = value({name: t.to("meta") for name, t in tensors.items()}, "relu"), value(tensors, "relu")
    assert meta.is_meta and fake.device.type == device_dtype[0]
    for out in (meta, fake):
        assert (out.shape, out.dtype, out.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize(
    ("backend", "dynamic"), [("aot_eager", None), ("aot_eager", True), pytest.param("inductor", None, marks=COMPILER)]
)
def test_compile(backend: str, dynamic: bool | None, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There must be one graph without gradients and one with; dynamic graphs must serve every shape."""
    if backend == "inductor" and device == "cuda":
        pytest.importorskip("triton")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend(backend)

    def within(tensors: Tensors) -> tuple[Tensor, Tensor]:  # work before and after the op, which a compiler can fuse
        out = value(tensors | {"h": tensors["h"] * 1.5}, "tanh")
        return out, (out * 0.5).sin().sum()

    compiled = torch.compile(within, fullgraph=True, backend=graphs, dynamic=dynamic)
    for rows, dim in ((4, 6), (5, 17), (9, 70))[: 3 if dynamic else 1]:
        tensors = draw((rows, 3), (9, 13, dim), device=device)
        torch.testing.assert_close(compiled(tensors)[0], within(tensors)[0])
        # With inductor, training compiles only the two other ops of the training pass, which have their own tests.
        if backend != "inductor":
            found, expected = (evaluate(lambda f=f, **t: f(t)[1:], tensors) for f in (compiled, within))
            for name, t in found.items():
                torch.testing.assert_close(t, expected[name], rtol=1e-5, atol=1e-5)
    assert graphs.frame_count == (1 if backend == "inductor" else 2)
    assert all(any(OP in str(node.target) for node in graph.graph.nodes) for graph in graphs.graphs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_a_cpu(dtype: torch.dtype) -> None:
    """16-bit arguments, alone or with float32 ones, must be converted to float32; each gradient has its argument's dtype."""

    def under_autocast(**tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", dtype=dtype):
            return call(ops, "tanh")(**tensors)

    exact = draw()
    rounded = {name: t.to(dtype) for name, t in exact.items()}
    for given in (exact, rounded, *(exact | {name: rounded[name]} for name in exact)):
        single = {name: t.float() for name, t in given.items()}
        out = under_autocast(**given)[0]
        assert out.dtype == torch.float32 and torch.equal(out, value(single, "tanh"))
        found, expected = evaluate(under_autocast, given), evaluate(call(ops, "tanh"), single)
        torch.testing.assert_close(found["output 0"], expected["output 0"])
        for name, t in given.items():
            torch.testing.assert_close(found[f"gradient of {name}"], expected[f"gradient of {name}"].to(t.dtype))
    assert under_autocast(**double(exact))[0].dtype == torch.float64
    for wrong in (exact | {"w1": exact["w1"].double()}, exact | {"h": exact["h"].int()}):
        with pytest.raises(TypeError, match=OP):
            under_autocast(**wrong)
