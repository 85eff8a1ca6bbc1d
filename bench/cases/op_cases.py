"""The cases of single ops: an op at a shape, forward and forward+backward, against every contender."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import cuda
from bench.cases import ops_table
from bench.cases.ops_table import Function, Op
from bench.harness import (
    Call,
    Check,
    Contender,
    Inputs,
    MakeSampler,
    Outputs,
    Settings,
    Verdict,
    cpu_sampler,
    measure,
    relative_error,
)
from bench.rivals.ops import rows_of_block
from bench.store import Row
from dgmfast import reference

FORWARD, TRAINING = "forward", "forward+backward"
# Largest ‖output − float64‖ / ‖float64‖ that rounding explains. A contender beyond it counts as wrong.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Context:
    """The settings with which one process runs the cases."""

    device: str
    threads: int
    malloc: str  # "default", or "tuned" by GLIBC_TUNABLES
    settings: Settings
    compile: bool = True
    quick: bool = False

    def columns(self) -> Row:
        return {"threads": self.threads, "malloc": self.malloc, "captured": False}


@dataclass(frozen=True)
class OpCase:
    """Times one op at one shape and dtype."""

    op: Op
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        return self.op.name

    @property
    def label(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{size} {self.op.variant}" if self.op.variant else size

    def groups(self, context: Context) -> list[Row]:
        """Returns the columns of each group that `run` measures together, in the order of `run`."""
        modes = [FORWARD, TRAINING] if self.op.gradients else [FORWARD]
        captured = [False, True] if context.device != "cpu" else [False]
        dtype = str(self.dtype).removeprefix("torch.")
        shared = context.columns() | {"case": self.name, "shape": self.label, "dtype": dtype}
        return [shared | {"mode": mode, "captured": replay} for mode in modes for replay in captured]

    def run(self, context: Context) -> Iterator[list[Row]]:
        """Yields the rows of each group."""
        for columns in self.groups(context):
            # Past its recompile limit a compiled function silently runs eager.
            torch._dynamo.reset()
            training = columns["mode"] == TRAINING
            inputs = self._inputs(context, training)
            check = checker(self.op, training)
            sampler: MakeSampler = cpu_sampler
            if context.device != "cpu":
                sampler = cuda.captured_sampler(check) if columns["captured"] else cuda.uncaptured_sampler
            contenders = contenders_of(self.op, training, context)
            if len(inputs[0][0]) <= rows_of_block(inputs[0][0]):
                contenders = [c for c in contenders if c.name != "eager, row blocks"]
            with torch.set_grad_enabled(training):
                rows = measure(contenders, inputs, check, context.settings, sampler)
                size = traffic(self.op, inputs[0], training)
            yield [columns | {"bytes": size} | row for row in rows]

    def _inputs(self, context: Context, training: bool) -> list[Inputs]:
        generator = torch.Generator().manual_seed(0)
        drawn = [t.to(context.device, self.dtype) for t in self.op.draw(self.shape, generator)]
        count = 1 if context.device == "cpu" else cuda.copies_needed(tuple(drawn))
        differentiated = self.op.gradients if training else 0
        return [tuple(t.clone().requires_grad_(i < differentiated) for i, t in enumerate(drawn)) for _ in range(count)]


def as_tuple(outputs: Tensor | Sequence[Tensor]) -> Outputs:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def forward_call(function: Function) -> Call:
    """Returns a call that maps inputs to outputs."""
    return lambda inputs: as_tuple(function(*inputs))


def training_call(function: Function, differentiated: int) -> Call:
    """Returns a call from inputs to outputs and the gradients of Σ weight · output, without the cost of a sum()."""
    weights: list[Tensor] = []

    def call(inputs: Inputs) -> Outputs:
        outputs = as_tuple(function(*inputs))
        if not weights:
            weights.extend(output_weights(output) for output in outputs)
        return (*outputs, *torch.autograd.grad(outputs, inputs[:differentiated], weights))

    return call


def output_weights(output: Tensor) -> Tensor:
    """Returns fixed weights in [½, 1½) for an output, the same for every contender and dtype."""
    weights = 0.5 + torch.rand(output.shape, generator=torch.Generator().manual_seed(1))
    return weights.to(output.device, output.dtype)


def contenders_of(op: Op, training: bool, context: Context) -> list[Contender]:
    """Returns ours and every rival, in the order in which they take turns."""
    rivals: dict[str, Function] = {"eager": op.plain}
    rivals |= {f"eager, {name}": f for name, f in (op.by_hand if training else op.forward).items()}
    if op.distributions is not None:
        rivals["torch.distributions"] = op.distributions
    if op.repeated is not None:
        rivals["repeated batch"] = op.repeated
    if context.compile:
        if op.repeated is not None:
            rivals["compiled repeated batch"] = _compiled(op.repeated)
        rivals["compile"] = _compiled(op.compiled or op.plain)
        rivals["ours, compiled"] = _compiled(op.ours)
    make: Callable[[Function], Call] = (lambda f: training_call(f, op.gradients)) if training else forward_call
    contenders = [Contender(name, make(function)) for name, function in ({"ours": op.ours} | rivals).items()]
    if op.product is not None and not training:  # the product is only part of the work, so its outputs are not compared
        contenders.append(Contender("plain product", forward_call(op.product), check=lambda inputs, outputs: Verdict(0.0, 0.0)))
    return contenders


def _compiled(function: Function) -> Function:
    return torch.compile(function, fullgraph=True, dynamic=False)


def traffic(op: Op, inputs: Inputs, training: bool) -> int:
    """Returns the bytes that any implementation must move: inputs once per pass, outputs once and gradients once."""
    with torch.no_grad():
        outputs = as_tuple(op.ours(*inputs))
    read, written = _bytes(inputs), _bytes(outputs)
    # The backward pass reads the inputs and the gradients of the outputs.
    return read + written + (read + written + _bytes(inputs[: op.gradients]) if training else 0)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def checker(op: Op, training: bool) -> Check:
    """Returns a check of outputs, and of gradients when training, against float64; draws are checked by density and moments."""
    if op.truth is None:
        return lambda inputs, outputs: check_draws(inputs, outputs, training)
    truth: dict[int, Outputs] = {}

    def check(inputs: Inputs, outputs: Outputs) -> Verdict:
        if id(inputs) not in truth:
            truth[id(inputs)] = _float64(op, inputs, training)
        # The columns of a statistic differ by orders of magnitude, so each is compared separately.
        columns = [t.unbind(-1) if op.name == "importance_state" else (t,) for t in outputs]
        expected = [t.unbind(-1) if op.name == "importance_state" else (t,) for t in truth[id(inputs)]]
        error = relative_error([t for c in columns for t in c], [t for c in expected for t in c])
        return Verdict(error, TOLERANCE[inputs[0].dtype])

    return check


def _float64(op: Op, inputs: Inputs, training: bool) -> Outputs:
    assert op.truth is not None
    doubled = tuple(t.detach().double().requires_grad_(training and i < op.gradients) for i, t in enumerate(inputs))
    call = training_call(op.truth, op.gradients) if training else forward_call(op.truth)
    return tuple(t.detach() for t in call(doubled))


def check_draws(inputs: Inputs, outputs: Outputs, training: bool) -> Verdict:
    """Checks draws z [B, k, D] with log_q [B, k]: the density, the gradients given the noise, and the moments of the noise."""
    mean, log_var = (t.detach().double().unsqueeze(1) for t in inputs)
    z, log_q = (t.detach().double() for t in outputs[:2])
    std = torch.exp(0.5 * log_var)
    eps = (z - mean) / std
    expected = [reference.gaussian_log_prob(z, mean, log_var)]
    if training:
        weights = [output_weights(t).double() for t in outputs[:2]]
        d_log_var = 0.5 * ((weights[0] * eps * std).sum(1) - weights[1].sum(1, keepdim=True))
        expected += [weights[0].sum(1), d_log_var]
    error = relative_error([log_q, *outputs[2:]], expected)
    # The mean and the variance must be within six standard errors of 0 and 1.
    count = eps.numel()
    moments = max(abs(float(eps.mean())) * math.sqrt(count), abs(float(eps.square().mean() - 1.0)) * math.sqrt(count / 2.0))
    tolerance = TOLERANCE[inputs[0].dtype]
    return Verdict(max(error, tolerance * moments / 6.0), tolerance)


def op_cases(device: str, quick: bool = False) -> list[OpCase]:
    """Returns the cases of `targets.py` and a few more."""
    small, large, images, decoded = (100, 64), (10000, 784), (100, 784), (20000, 784)
    table = ops_table
    cases = [
        *(OpCase(op, shape) for op in (table.KL, table.LOG_PROB) for shape in (large, small)),
        *(OpCase(table.BERNOULLI, shape) for shape in (large, images)),
        OpCase(table.BOUND, (100, 5000)),
        OpCase(table.linear_bernoulli_op(200), decoded),
        OpCase(table.linear_bernoulli_op(200), images),
        OpCase(table.mlp_bernoulli_op(50, 200, 200), decoded),
        OpCase(table.label_linear_op(500, 10), images),
        *(OpCase(op, shape) for op in (table.KL_TO_STANDARD, table.STANDARD_LOG_PROB) for shape in (large, small)),
        *(OpCase(table.sample_op(k), shape) for shape, k in (((100, 64), 1), ((100, 50), 50), ((1, 50), 5000))),
        *(OpCase(table.MERGE, shape) for shape in (large, small)),
        OpCase(table.STATE, (100, 5000)),
        *(OpCase(table.LABELS, shape) for shape in ((100, 10), (10000, 10))),
        *(OpCase(table.masked_conv2d_op(64, 3, "B", channels_last=last), (16, 64, 28, 28)) for last in (False, True)),
        OpCase(table.masked_conv2d_op(64, 7, "A", x_gradient=False), (16, 1, 28, 28)),
    ]
    if device != "cpu" and not quick:
        wide = (100000, 784)
        cases += [OpCase(op, wide) for op in (table.KL, table.LOG_PROB, table.BERNOULLI)]
        cases += [OpCase(op, wide, torch.bfloat16) for op in (table.KL, table.LOG_PROB, table.BERNOULLI)]
    if quick:
        cases = [case for case in cases if case.shape not in (large, decoded) or case.op is table.KL]
    return cases
