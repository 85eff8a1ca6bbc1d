"""The cases `steps` and `classes`: a training step of ADGM and SDGM, and the cost of a step as the number of classes grows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from bench.cases.op_cases import Context
from bench.harness import Contender, Inputs, Outputs, Settings, Verdict, measure, relative_error
from bench.report.targets import STEP
from bench.rivals import steps as eager_steps
from bench.rivals.ops import bernoulli_log_prob_pointwise
from bench.rivals.steps import Batch, Eps, Layout, Parameters
from bench.store import Row
from dgmfast import reference
from dgmfast.models import ADGM, Noise, SparseSum, create
from dgmfast.models.adgm import A, Z
from dgmfast.models.label_model import LABEL_STREAM
from dgmfast.objectives import Labelled, Objective

MODELS = {"adgm": "ADGM", "sdgm": "SDGM"}
CLASSES = (2, 5, 10, 20, 50, 100, 200)
EXACT, REPEATED = "exact sum", "repeated batch"  # contenders besides ours
SURE = 0.98  # q(y|a, x) of the most probable label
# Largest accepted ‖output − float64‖ / ‖float64‖. It allows for ReLUs whose input is within rounding of zero, which may come out
# on either side.
TOLERANCE = 1e-3
# Limits of time and memory. A contender beyond them is not run.
MAX_SECONDS, MAX_BYTES = 10.0, 4 * 2**30


@dataclass(frozen=True)
class Size:
    """The sizes of the networks and of the batch. The defaults are those of App. A §4."""

    x_dim: int = 784
    hidden: tuple[int, ...] = (500, 500)
    latent: int = 100  # size of a and of z
    classes: int = 10
    unlabelled: int = 100
    labelled: int = 100


QUICK = Size(x_dim=50, hidden=(40, 40), latent=10, classes=5, unlabelled=20, labelled=20)


def step_model(name: str, size: Size) -> ADGM:
    """Returns a model with random weights whose classifier gives one label of every row about SURE and shares the rest evenly.

    No classifier of the same mean confidence keeps more labels in a sparse sum.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"x_dim": size.x_dim, "hidden": size.hidden, "latent": size.latent, "auxiliary": size.latent}
        model = create(name, num_classes=size.classes, **sizes)
    assert isinstance(model, ADGM)
    with torch.no_grad():
        model.q_y.logits.weight.mul_(0.1)
        model.q_y.logits.bias[1] = math.log(SURE / (1.0 - SURE) * (size.classes - 1))
    return model


def step_batch(size: Size) -> Batch:
    """Returns binary rows and labels that run through the classes in turn."""
    generator = torch.Generator().manual_seed(1)
    mean = torch.rand(size.x_dim, generator=generator)
    x = (torch.rand(size.unlabelled + size.labelled, size.x_dim, generator=generator) < mean).float()
    alpha = 0.1 * (size.unlabelled + size.labelled) / size.labelled
    return Batch(x[: size.unlabelled], x[size.unlabelled :], torch.arange(size.labelled) % size.classes, alpha)


class Step:
    """A training step: zeroes the gradients, computes the loss, runs backward and takes a step of fused Adam.

    The first call uses the same noise as the float64 check and returns the loss and the gradients. Every later call is the same
    step with new noise. The learning rate is zero: the step costs the same and the parameters do not move.
    """

    def __init__(
        self, parameters: Sequence[Tensor], loss: Callable[[int], Tensor], gradients: Callable[[], Sequence[Tensor]]
    ) -> None:
        self.optimizer = torch.optim.Adam(list(parameters), lr=0.0, fused=True)
        self.loss, self.gradients, self.count = loss, gradients, 0

    def __call__(self, inputs: Inputs = ()) -> Outputs:
        self.optimizer.zero_grad()
        loss = self.loss(self.count)
        loss.backward()
        self.optimizer.step()
        self.count += 1
        return (loss.detach(), *(self.gradients() if self.count == 1 else ()))


def our_step(model: ADGM, batch: Batch, label_sum: str, tau: float = Objective.tau) -> Step:
    """Returns a step that calls `Objective.loss` as the training loop does; the n-th call has the seed n."""
    own, objective = copy.deepcopy(model), Objective(label_sum=label_sum, tau=tau)
    labelled = Labelled(batch.labelled, batch.y, batch.alpha, first_row=len(batch.unlabelled))

    def loss(seed: int) -> Tensor:
        return objective.loss(own, batch.unlabelled, None, 1.0, seed, labelled=labelled)[0]

    named = dict(own.named_parameters())
    return Step(list(named.values()), loss, lambda: [p.grad for p in named.values() if p.grad is not None])


Loss = Callable[[Parameters, Batch, Eps], Tensor]


def eager_step(model: ADGM, batch: Batch, eps: Eps, layout: Layout, loss: Loss) -> Step:
    """Returns a rival's step; the first call uses `eps`, and every later call draws new noise with torch.randn."""
    parameters = eager_steps.pack(model, layout)

    def at(count: int) -> Tensor:
        return loss(parameters, batch, Eps(*map(torch.randn_like, eps)) if count else eps)

    def gradients() -> list[Tensor]:
        found = eager_steps.gradients(model, layout, parameters)
        return [found[name] for name, _ in model.named_parameters()]

    return Step(list(parameters.values()), at, gradients)


def first_noise(model: ADGM, batch: Batch) -> Eps:
    """Returns the noise that our step draws with seed 0, in float64, from `reference`."""
    count, labelled, classes, width = len(batch.unlabelled), len(batch.labelled), model.num_classes, model.latent
    auxiliary = model.q_z.mlp.weight.shape[1]
    return Eps(
        reference.standard_normal(count, 1, auxiliary, 0, A).squeeze(1),
        reference.standard_normal(count, classes, width, 0, Z),
        reference.standard_normal(labelled, 1, auxiliary, 0, A, first_row=count).squeeze(1),
        reference.standard_normal(labelled, 1, width, 0, Z, first_row=count).squeeze(1),
    )


def repeated_noise(eps: Eps) -> Eps:
    """Returns the noise for the repeated batch, with the same a for every copy of a row."""
    return eps._replace(a=eps.a.unsqueeze(1).repeat(1, eps.z.shape[1], 1))


def float64(model: ADGM, batch: Batch, eps: Eps, rows: int = 10) -> Outputs:
    """Returns the loss and gradients of the exact sum in float64, from the repeated batch, `rows` unlabelled rows at a time."""

    def bound(p: Parameters, x: Tensor) -> Iterator[Tensor]:
        noise = repeated_noise(eps)
        for part, a, z in zip(*(t.split(rows) for t in (x, noise.a, noise.z)), strict=True):
            yield eager_steps.repeated_bound(p, part, a, z).sum() / len(x)

    return _float64(model, batch, eps, bound)


def float64_sparse(model: ADGM, batch: Batch, eps: Eps, tau: float) -> tuple[Outputs, int]:
    """Returns loss and gradients of the sparse sum in float64, for the labels and noise of ours, and the number of labels."""
    kept: list[int] = []

    def bound(p: Parameters, x: Tensor) -> Iterator[Tensor]:
        with torch.no_grad():
            log_q = eager_steps.log_probs(p, x, eager_steps.auxiliary(p, x, eps.a)[0]).unsqueeze(1)
        labels = SparseSum(tau).bind(log_q, 1, Noise(0), LABEL_STREAM)
        rows, y = labels.sample, labels.y  # type: ignore[attr-defined]
        kept.append(len(y))
        zeros = x.new_zeros(len(y), eps.z.shape[2])
        eps_z, _ = labels.gaussian(Noise(0), (zeros, zeros), 1, Z)
        yield eager_steps.kept_bound(p, x, eps.a, eps_z, rows, y, tau).mean()

    return _float64(model, batch, eps, bound), kept[0]


def _float64(model: ADGM, batch: Batch, eps: Eps, bound: Callable[[Parameters, Tensor], Iterator[Tensor]]) -> Outputs:
    """Returns the loss whose unlabelled part is minus the sum of `bound`'s values, and its gradients in the model's order."""
    exact, layout = copy.deepcopy(model).double(), eager_steps.repeated_layout(model)
    p = eager_steps.pack(exact, layout)
    batch = batch._replace(unlabelled=batch.unlabelled.double(), labelled=batch.labelled.double())
    loss = eager_steps.supervised(p, batch, eps)
    loss.backward()
    total = loss.detach()
    for part in bound(p, batch.unlabelled):
        (-part).backward()
        total = total - part.detach()
    found = eager_steps.gradients(exact, layout, p)
    return (total, *(found[name] for name, _ in model.named_parameters()))


def checker(truth: Outputs, tolerance: float = TOLERANCE) -> Callable[[Inputs, Outputs], Verdict]:
    return lambda _, outputs: Verdict(relative_error(outputs, truth), tolerance)


def multiplications(size: Size, model: str, pairs: float) -> float:
    """Counts the multiplications of a step that repeats nothing: forward, and backward to everything except x.

    pairs: the number of (unlabelled row, label) pairs that the sum visits.
    """
    first, noise, rows, pairs = size.hidden[0], size.latent, size.unlabelled + size.labelled, pairs + size.labelled

    def later(n_out: int) -> int:
        widths = (*size.hidden, n_out)
        return sum(a * b for a, b in pairwise(widths))

    per_row = 3 * (later(2 * noise) + later(size.classes)) + 2 * 3 * size.x_dim * first  # q(a|x) and q(y|a, x); x in all three q
    per_row += 3 * noise * first * (3 if model == "sdgm" else 2)  # a in q(y|a, x), q(z|a, y, x) and, in the SDGM, p(x|a, y, z)
    # The networks are q(z|·), p(a|·) and p(x|·); z is an input of two of them.
    per_pair = 3 * (2 * later(2 * noise) + later(size.x_dim) + 2 * noise * first)
    return float(rows * per_row + pairs * per_pair)


def contenders_of(model: ADGM, batch: Batch, eps: Eps, context: Context) -> Iterator[Contender]:
    """Yields ours and every rival of the exact sum."""
    eps = Eps(*(t.float() for t in eps))
    shared, repeated = eager_steps.shared_layout(model), eager_steps.repeated_layout(model)
    yield Contender("ours", our_step(model, batch, "exact"))
    by_hand, pointwise = eager_steps.bernoulli_log_prob_by_hand, bernoulli_log_prob_pointwise
    forms: dict[str, Loss] = {
        "eager": eager_steps.shared,
        "eager, joined pairs": partial(eager_steps.shared, joined=True),
        "eager, joined pairs, by hand": partial(eager_steps.shared, log_px=by_hand, joined=True),
    }
    if context.compile:
        forms["compile"] = _compiled(partial(eager_steps.shared, log_px=pointwise))
        forms["compile, joined pairs"] = _compiled(partial(eager_steps.shared, log_px=pointwise, joined=True))
    for name, loss in forms.items():
        yield Contender(name, eager_step(model, batch, eps, shared, loss))
    yield Contender(REPEATED, eager_step(model, batch, repeated_noise(eps), repeated, eager_steps.repeated))
    if context.compile:
        compiled = _compiled(partial(eager_steps.repeated, log_px=pointwise))
        yield Contender("compiled repeated batch", eager_step(model, batch, repeated_noise(eps), repeated, compiled))


def _compiled(loss: Loss) -> Loss:
    return torch.compile(loss, fullgraph=True, dynamic=False)


def step_groups(context: Context, case: str, shapes: Sequence[str]) -> list[Row]:
    """Returns the columns of training steps, one row per shape. Steps are timed on a CPU only."""
    if context.device != "cpu":
        return []
    return [context.columns() | {"case": case, "mode": STEP, "dtype": "float32", "shape": shape} for shape in shapes]


@dataclass(frozen=True)
class StepCase:
    """Times a training step of one model: the exact sum and the sparse sum against every rival, measured together."""

    model: str
    name: str = "steps"

    @property
    def label(self) -> str:
        return MODELS[self.model]

    def groups(self, context: Context) -> list[Row]:
        classes = _size(context).classes
        return step_groups(context, self.name, [f"{self.label}, {how} sum, {classes} classes" for how in ("exact", "sparse")])

    def run(self, context: Context) -> Iterator[list[Row]]:
        torch._dynamo.reset()
        size = _size(context)
        model, batch = step_model(self.model, size), step_batch(size)
        eps = first_noise(model, batch)
        sparse, kept = _sparse(model, batch, eps)
        contenders = [*contenders_of(model, batch, eps, context), sparse]
        settings = context.settings if context.quick else Settings(seconds=2.0, max_rounds=60, sample_seconds=0.0)
        *exact, ours = measure(contenders, [()], checker(float64(model, batch, eps)), settings)
        mine, *rivals = exact
        flops = [2 * multiplications(size, self.model, pairs) for pairs in (size.unlabelled * size.classes, kept)]
        groups = [exact, [ours | {"contender": "ours"}, mine | {"contender": EXACT}, *rivals]]
        for columns, group, count in zip(self.groups(context), groups, flops, strict=True):
            yield [columns | {"flops": count} | row for row in group]


def _sparse(model: ADGM, batch: Batch, eps: Eps) -> tuple[Contender, int]:
    truth, kept = float64_sparse(model, batch, eps, Objective.tau)
    note = f"{kept / len(batch.unlabelled):.2f} labels a row, the most probable with {SURE}"
    return Contender("ours, sparse", our_step(model, batch, "sparse"), note, check=checker(truth)), kept


def _size(context: Context) -> Size:
    return QUICK if context.quick else Size()


@dataclass(frozen=True)
class ClassesCase:
    """Times a step of the ADGM as the number of classes grows: the sparse sum, the exact sum and the repeated batch."""

    model: str = "adgm"
    name: str = "classes"

    @property
    def label(self) -> str:
        return MODELS[self.model]

    def groups(self, context: Context) -> list[Row]:
        classes = CLASSES[:2] if context.quick else CLASSES
        rows = step_groups(context, self.name, [f"{self.label}, sparse sum, {count} classes" for count in classes])
        return [row | {"classes": count} for row, count in zip(rows, classes, strict=False)]

    def run(self, context: Context) -> Iterator[list[Row]]:
        settings = context.settings if context.quick else Settings(seconds=2.0, min_rounds=5, max_rounds=60, sample_seconds=0.0)
        seconds, before = 0.0, 1
        for columns in self.groups(context):
            size = replace(_size(context), classes=columns["classes"])
            model, batch = step_model(self.model, size), step_batch(size)
            eps = first_noise(model, batch)
            sparse, kept = _sparse(model, batch, eps)
            contenders = [replace(sparse, name="ours"), Contender(EXACT, our_step(model, batch, "exact"))]
            reason = too_much(size, seconds * size.classes / before)
            if not reason:
                noise, layout = repeated_noise(Eps(*(t.float() for t in eps))), eager_steps.repeated_layout(model)
                contenders.append(Contender(REPEATED, eager_step(model, batch, noise, layout, eager_steps.repeated)))
            rows = measure(contenders, [()], checker(float64(model, batch, eps)), settings)
            if reason:
                rows.append({"contender": REPEATED, "status": "skipped", "note": reason, "units": 1})
            seconds, before = rows[-1].get("median_s", seconds), size.classes
            flops = {"flops": 2 * multiplications(size, self.model, kept)}
            flops["exact_flops"] = 2 * multiplications(size, self.model, size.unlabelled * size.classes)
            yield [columns | flops | row for row in rows]


def too_much(size: Size, seconds: float) -> str:
    """Returns why a step on the repeated batch is not run, or ""; `seconds` is its estimated time."""
    if seconds > MAX_SECONDS:
        return f"would take about {seconds:.0f} s a step"
    # The numbers held per pair: x and the joined inputs, hidden layers and heads of four networks, logits and the temporaries of
    # their loss.
    floats = 7 * size.x_dim + 4 * sum(size.hidden) + 12 * size.latent + 3 * size.classes
    needed = 4 * floats * (size.unlabelled * size.classes + size.labelled)
    return f"would take about {needed / 2**30:.1f} GiB" if needed > MAX_BYTES else ""
