"""The table of cases for the checks common to all ops, and the tolerance rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from dgmfast import _C, ops, reference

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def dtypes_of(device: str) -> list[torch.dtype]:
    """Returns the dtypes that the kernels of a device accept; test_half_on_cpu.py has the others."""
    return [torch.float32, torch.float64] + ([torch.bfloat16, torch.float16] if device == "cuda" or _C.cuda_on_host else [])


def has_cpu_kernels(device: str) -> bool:
    """True if the device's kernels are the CPU's own, and not CUDA's or emulated ones, which promise less of their bits."""
    return device == "cpu" and not _C.cuda_on_host


def skip_reference_in_16_bits(implementation: Callable[..., object], dtype: torch.dtype) -> None:
    """Skips a test of the reference in bfloat16 or float16, in which it rounds every intermediate result."""
    if implementation.__module__ == reference.__name__ and dtype.itemsize == 2:
        pytest.skip("the reference rounds its intermediate results to 16 bits")


def available_isas() -> list[str]:
    """Returns the instruction sets that this processor can run."""
    active, available = _C.isa(), []
    for name in ("baseline",) if _C.cuda_on_host else ("baseline", "avx2", "avx512"):
        try:
            _C.set_isa(name)
        except ValueError:
            continue
        available.append(name)
    _C.set_isa(active)
    return available


ISAS = available_isas()
PATHS = ISAS + [device for device in DEVICES if device != "cpu"]  # every kernel: one per instruction set, and CUDA's

# These are around the widths of vectors (4 to 16), the noise's groups of 64, and blocks of 256 columns and of 4096 summands.
SIZES = [1, 3, 17, 63, 64, 65, 255, 256, 257, 784, 4097]

# How the float64 values of each kind of argument are drawn, on the CPU.
DRAWS: dict[str, Callable[[Sequence[int], torch.Generator], Tensor]] = {
    "mean": lambda shape, g: 2.0 * torch.randn(shape, generator=g, dtype=torch.float64),
    "log_var": lambda shape, g: 1.5 * torch.randn(shape, generator=g, dtype=torch.float64),
    "logits": lambda shape, g: 4.0 * torch.randn(shape, generator=g, dtype=torch.float64),
    "log_w": lambda shape, g: 3.0 * torch.randn(shape, generator=g, dtype=torch.float64) - 50.0,
    "probability": lambda shape, g: torch.rand(shape, generator=g, dtype=torch.float64),
    "byte": lambda shape, g: torch.randint(0, 2, shape, generator=g, dtype=torch.uint8),
    "bool": lambda shape, g: torch.randint(0, 2, shape, generator=g, dtype=torch.bool),
}

Tensors = dict[str, Tensor]


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


# The tensor arguments in the order of the schema, for ops that may leave some out.
SLOTS = {
    "gaussian_kl": ["mean_q", "log_var_q", "mean_p", "log_var_p"],
    "gaussian_log_prob": ["x", "mean", "log_var"],
    "label_linear": ["x", "weight", "label_weight", "bias"],
    "linear_bernoulli_log_prob": ["h", "weight", "bias", "x"],
}

# Most arguments have the shape [..., dim], with the leading dimensions and the dim of the case. The arguments below have another
# shape: `...` stands for the leading dimensions, "dim" for the dim of the case, and "rows" for its first leading dimension.
Shape = tuple[object, ...]
USUAL_SHAPE: Shape = (..., "dim")
SHAPES: dict[str, dict[str, Shape]] = {
    "label_linear": {"x": (..., 3), "weight": ("dim", 3), "label_weight": ("dim", 7)},
    "linear_bernoulli_log_prob": {"h": (..., 3), "weight": ("dim", 3), "bias": ("dim",), "x": ("rows", "dim")},
}


@dataclass(frozen=True)
class Case:
    """One op with one choice of optional arguments."""

    id: str
    op: str
    kinds: dict[str, str]  # tensor argument -> kind; optional arguments that are not listed are left out
    kwargs: dict[str, object] = field(default_factory=dict)
    leading: tuple[int, ...] = (3,)  # the usual leading dimensions
    ranks: tuple[int, int] = (0, 4)  # the smallest and largest number of leading dimensions

    @property
    def names(self) -> list[str]:
        return list(self.kinds)

    @property
    def floating(self) -> list[str]:
        return [name for name, kind in self.kinds.items() if kind not in ("byte", "bool")]

    @property
    def has_products(self) -> bool:
        """Whether a library multiplies matrices. Its bits depend on the processor, the layout and the number of threads."""
        return self.op in ("label_linear", "linear_bernoulli_log_prob")

    def symbolic_shape(self, name: str) -> Shape:
        return SHAPES.get(self.op, {}).get(name, USUAL_SHAPE)

    def has_leading(self, name: str) -> bool:
        """Returns whether an argument has leading dimensions, which broadcast."""
        return ... in self.symbolic_shape(name)

    def has_rows(self, name: str) -> bool:
        """Returns whether an argument has the first leading dimension."""
        return self.has_leading(name) or "rows" in self.symbolic_shape(name)

    def shape(self, name: str, leading: Sequence[int], dim: int, rows: int) -> tuple[int, ...]:
        """Returns the shape of an argument; `rows` is the first leading dimension of the case."""
        sizes: dict[object, tuple[int, ...]] = {...: tuple(leading), "dim": (dim,), "rows": (rows,)}
        return sum((sizes.get(size, (size,)) for size in self.symbolic_shape(name)), ())

    def call(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        return as_tuple(getattr(ops, self.op)(**tensors, **self.kwargs))

    def reference(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        return as_tuple(getattr(reference, self.op)(**tensors, **self.kwargs))

    def tensors(
        self,
        dim: int = 5,
        leading: Sequence[int] | None = None,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        shapes: Sequence[Sequence[int]] | None = None,
    ) -> Tensors:
        """Returns random arguments with the leading dimensions `leading` and `dim`, or with one entry of `shapes` each."""
        generator = torch.Generator().manual_seed(seed)
        usual = (*(self.leading if leading is None else leading), dim)
        rows = (*(usual if shapes is None else shapes[0]),)[0]
        drawn = {}
        for i, (name, kind) in enumerate(self.kinds.items()):
            *own_leading, own_dim = usual if shapes is None else shapes[i]
            value = DRAWS[kind](self.shape(name, own_leading, own_dim, rows), generator)
            drawn[name] = value.to(device, dtype if value.is_floating_point() else None)
        return drawn

    def positional(self, tensors: Tensors) -> tuple[object, ...]:
        """Returns the arguments in the order of the schema of torch.ops.dgmfast.<op>."""
        if self.op == "gaussian_sample":
            keys = {"k": 1, "seed": 0, "seed_tensor": None, "stream": 0, "first_row": 0, "first_sample": 0} | self.kwargs
            if isinstance(keys["seed"], Tensor):
                keys["seed_tensor"], keys["seed"] = keys["seed"], 0
            return (*tensors.values(), *keys.values())
        slots = SLOTS.get(self.op, self.names)
        return (*(tensors.get(name) for name in slots), *self.kwargs.values())

    def backward_positional(self, tensors: Tensors, outputs: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[object, ...]:
        """Returns the arguments that follow the outputs' gradients in the schema of torch.ops.dgmfast.<op>_backward."""
        arguments = self.positional(tensors)
        if self.op == "importance_bound":
            return (arguments[0], self.kwargs.get("dim", -1))
        if self.op == "label_linear":
            return (outputs[0], *arguments[:4], self.kwargs.get("activation"), list(wanted))
        if self.op == "linear_bernoulli_log_prob":
            return (*arguments, None, list(wanted))
        return (*arguments, list(wanted))


KL = {"mean_q": "mean", "log_var_q": "log_var", "mean_p": "mean", "log_var_p": "log_var"}
LOG_PROB = {"x": "mean", "mean": "mean", "log_var": "log_var"}
SAMPLE = {"mean": "mean", "log_var": "log_var"}
WEIGHTS = {"log_w": "log_w"}
LAYER = {"x": "mean", "weight": "mean", "label_weight": "mean", "bias": "mean"}
DECODER = {"h": "mean", "weight": "mean", "bias": "mean", "x": "probability"}
ACTIVATIONS = ("relu", "leaky_relu", "tanh", "softplus", "elu")
KEY = {"seed": 0x1234_5678_9ABC, "stream": 3}


def _without(kinds: dict[str, str], *left_out: str) -> dict[str, str]:
    return {name: kind for name, kind in kinds.items() if name not in left_out}


CASES = [
    Case("kl", "gaussian_kl", KL),
    Case("kl_no_mean_p", "gaussian_kl", _without(KL, "mean_p")),
    Case("kl_no_log_var_p", "gaussian_kl", _without(KL, "log_var_p")),
    Case("kl_standard", "gaussian_kl", _without(KL, "mean_p", "log_var_p")),
    Case("log_prob", "gaussian_log_prob", LOG_PROB),
    Case("log_prob_no_mean", "gaussian_log_prob", _without(LOG_PROB, "mean")),
    Case("log_prob_no_log_var", "gaussian_log_prob", _without(LOG_PROB, "log_var")),
    Case("log_prob_standard", "gaussian_log_prob", _without(LOG_PROB, "mean", "log_var")),
    Case("sample", "gaussian_sample", SAMPLE, KEY, (3,), (1, 1)),
    Case("sample_k", "gaussian_sample", SAMPLE, {"k": 3, **KEY}, (2,), (1, 1)),
    Case("sample_each", "gaussian_sample", SAMPLE, {**KEY, "first_row": 5, "first_sample": 9}, (2, 3), (2, 2)),
    Case("merge", "gaussian_merge", KL),
    Case("bernoulli", "bernoulli_log_prob", {"logits": "logits", "x": "probability"}),
    Case("bernoulli_byte", "bernoulli_log_prob", {"logits": "logits", "x": "byte"}),
    Case("bernoulli_bool", "bernoulli_log_prob", {"logits": "logits", "x": "bool"}),
    Case("decoder", "linear_bernoulli_log_prob", DECODER, leading=(3,), ranks=(1, 1)),
    Case("decoder_k", "linear_bernoulli_log_prob", DECODER, leading=(3, 2), ranks=(2, 2)),
    Case("decoder_byte", "linear_bernoulli_log_prob", DECODER | {"x": "byte"}, leading=(3, 2), ranks=(2, 2)),
    Case("bound", "importance_bound", WEIGHTS),
    Case("bound_dim0", "importance_bound", WEIGHTS, {"dim": 0}, (3,), (1, 4)),
    Case("bound_dim1", "importance_bound", WEIGHTS, {"dim": 1}, (2, 3), (2, 4)),
    Case("labels", "marginalize_labels", {"logits": "logits", "values": "mean"}),
    Case("layer", "label_linear", _without(LAYER, "bias")),
    *(Case(f"layer_{name}", "label_linear", LAYER, {"activation": name}) for name in ACTIVATIONS),
]
# One case per op, with all its arguments.
FULL = [
    case
    for case in CASES
    if case.id in ("kl", "log_prob", "sample_k", "merge", "bernoulli", "decoder_k", "bound", "labels", "layer_tanh")
]
# The cases with several arguments [..., D], which broadcast.
BROADCASTING = [case for case in CASES if len(case.kinds) > 1 and case.op != "linear_bernoulli_log_prob"]


def evaluate(function: Callable[..., tuple[Tensor, ...]], tensors: Tensors, weights: Sequence[Tensor] | None = None) -> Tensors:
    """Returns the outputs by number, and by argument the gradients of Σ weights · outputs; without weights, those of the sum."""
    leaves = {name: t.detach().requires_grad_(t.is_floating_point()) for name, t in tensors.items()}
    outputs = function(**leaves)
    if weights is None:
        weights = [torch.ones_like(out) for out in outputs]
    wanted = {name: t for name, t in leaves.items() if t.requires_grad}
    grads = torch.autograd.grad(outputs, list(wanted.values()), list(weights))
    found = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
    return found | {f"gradient of {name}": grad for name, grad in zip(wanted, grads, strict=True)}


def output_weights(outputs: Sequence[Tensor], seed: int = 1) -> list[Tensor]:
    """Returns random weights for the outputs, which reveal a backward pass that ignores its incoming gradient."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(out.shape, generator=generator).to(out) for out in outputs]


def double(tensors: Tensors) -> Tensors:
    return {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}


def assert_same_calls(case: Case, got: Tensors, expected: Tensors) -> None:
    """Asserts equal bits or, where a library multiplies matrices, equality to the rounding of sums of a few hundred terms."""
    if not case.has_products:
        return assert_same(got, expected)
    assert got.keys() == expected.keys()
    for name, value in got.items():
        size = max(1.0, float(expected[name].nan_to_num(0.0).abs().max())) if value.numel() else 1.0
        tolerance = 256.0 * torch.finfo(value.dtype).eps * size
        torch.testing.assert_close(value, expected[name], rtol=0.0, atol=tolerance, equal_nan=True)


def assert_same(got: Tensors, expected: Tensors) -> None:
    """Asserts equal bits, with NaN in the same places."""
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert value.shape == expected[name].shape, name
        assert torch.equal(value.nan_to_num(123.0), expected[name].nan_to_num(123.0)), name


# Roundings that an op may have beyond twice the error of the reference. Its exp and log are right to 2 ulp where torch's are
# right to 1, and it sums a row in another order. In float64 the reference is its own truth, and is rounded as often as the op.
FLOOR = {torch.float64: 64.0, torch.float32: 8.0, torch.bfloat16: 2.0, torch.float16: 2.0}


def assert_within_tolerance(
    got: Tensors, own: Tensors, truth: Tensors, log_size: float = 0.0, least_gradient: float = 0.0
) -> None:
    """Asserts the rule: error against float64 ≤ 2 × the reference's own error in this dtype, plus a few roundings.

    A rounding is relative to the largest value and, for outputs, at least to 1 nat, because outputs sum numbers near 1. A
    gradient that is the exponential of a logarithm of size `log_size` has the rounding of that logarithm. A gradient that is
    computed from an output of size 1 has the rounding of that output, which is relative to the size `least_gradient`.
    """
    assert got.keys() == truth.keys()
    for name, value in got.items():
        exact, rounded = truth[name].cpu(), own[name]
        assert value.shape == exact.shape and value.dtype == rounded.dtype, f"{name}: {value.shape} {value.dtype}"
        if not value.numel():
            continue
        error = (value.cpu().double() - exact).abs().max()
        own_error = (rounded.cpu().double() - exact).abs().max()
        size = exact.abs().max()
        roundings = (
            FLOOR[value.dtype] * size.clamp(min=1.0)
            if name.startswith("output")
            else (FLOOR[value.dtype] + log_size) * size.clamp(min=least_gradient)
        )
        allowed = 2.0 * own_error + roundings * torch.finfo(value.dtype).eps
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g} (reference {own_error:.3g})"


def assert_matches_reference(case: Case, tensors: Tensors) -> None:
    """Asserts that values and gradients match the float64 reference of the same (rounded) arguments."""
    outputs = [out.detach() for out in case.reference(**tensors)]
    weights = output_weights(outputs)
    truth = evaluate(case.reference, double(tensors), [w.double() for w in weights])
    log_size = float(outputs[0].abs().max()) if case.op == "importance_bound" and outputs[0].numel() else 0.0
    got, own = evaluate(case.call, tensors, weights), evaluate(case.reference, tensors, weights)
    # The derivative 1 − out² of tanh is multiplied by the arguments.
    sizes = [float(t.abs().max()) for t in tensors.values() if t.numel()] if case.op == "label_linear" else []
    assert_within_tolerance(got, own, truth, log_size, least_gradient=max(sizes, default=0.0))
