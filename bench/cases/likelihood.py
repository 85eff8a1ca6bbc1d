"""The case L_K: time per image and peak memory of log p(x) with thousands of importance samples, for a VAE 784-200-200-50."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench import cuda
from bench.cases.op_cases import FORWARD, TRAINING, Context
from bench.harness import Check, Contender, Inputs, Outputs, Settings, Verdict, cpu_sampler, measure
from bench.rivals import likelihood as eager_likelihood
from bench.rivals import ops as eager
from bench.rivals import peers
from bench.store import Row
from dgmfast import evaluate, reference
from dgmfast.models import VAE
from dgmfast.nn import BernoulliOutput

LABEL = "784-200-200-50"
CHUNKS = {"cpu": (125, 250, 500, 1000), "cuda": (20000, 100000, 400000)}
PEER_CHUNKS = (100, 500, 5000)  # pythae draws 100 samples at a time by default; Pyro draws all 5000 at once
CHECKED = 8  # number of images that are compared with float64


def benchmark_vae(device: str) -> VAE:
    """Returns the thesis's VAE with random weights; the time does not depend on the weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VAE()
        with torch.no_grad():
            # The posterior stays near the prior, so the importance weights vary little and the check against float64 is strict.
            next(model.decoder.parameters()).mul_(0.2)
    return model.to(device).eval()


def images(count: int, device: str) -> Tensor:
    """Returns binary images [count, 784]."""
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(count, 784, generator=generator) < torch.rand(784, generator=generator)).float().to(device)


@dataclass(frozen=True)
class LikelihoodCase:
    """Times L_K of the benchmark's VAE: ours, eager and compiled PyTorch and other libraries, each rival at its best chunk."""

    k: int = 5000
    name: str = "L_5000"

    def groups(self, context: Context) -> list[Row]:
        shape = LABEL if not context.quick else f"{LABEL} K={self.samples(context)}"
        columns = {"case": self.name, "shape": shape, "mode": FORWARD, "dtype": "float32"}
        return [context.columns() | columns]

    def samples(self, context: Context) -> int:
        return 500 if context.quick else self.k

    def run(self, context: Context) -> Iterator[list[Row]]:
        torch._dynamo.reset()
        cpu = context.device == "cpu"
        count = (2 if context.quick else 8) if cpu else (256 if context.quick else 10000)
        model, x, k = benchmark_vae(context.device), images(count, context.device), self.samples(context)
        exact, sampled = checkers(model, x, k)
        contenders = _contenders(model, x, k, context, exact)
        few = Settings(seconds=0.0 if context.quick else 3.0, min_rounds=3, max_rounds=9, sample_seconds=0.0)
        sampler = cpu_sampler if cpu else cuda.uncaptured_sampler
        with torch.no_grad():
            rows = measure(contenders, [(x,)], sampled, few, sampler)
        for columns in self.groups(context):
            yield [columns | {"k": k} | row for row in rows]


def _contenders(model: VAE, x: Tensor, k: int, context: Context, exact: Check) -> list[Contender]:
    kind = "cpu" if context.device == "cpu" else "cuda"
    chunks = CHUNKS[kind][1:2] if context.quick else CHUNKS[kind]

    def ours(inputs: Inputs) -> Outputs:
        return (evaluate.log_likelihood(model, inputs[0], k=k).log_px,)

    plain = partial(eager_likelihood.eager_log_likelihood, model)
    found = [Contender("ours", ours, units=len(x), check=exact), _at_best_chunk("eager", plain, x, k, chunks)]
    if kind == "cpu" and context.threads > 1:
        threaded = partial(eager_likelihood.threaded_log_likelihood, model)
        found.append(_at_best_chunk("eager, threads of Python", threaded, x, k, chunks))
    if context.compile:
        weights = partial(eager_likelihood.vae_log_weights, log_px=eager.bernoulli_log_prob_pointwise)
        compiled = torch.compile(weights, fullgraph=True, dynamic=False)
        found.append(_at_best_chunk("compile", partial(plain, log_weights=compiled), x, k, chunks))
    for name, make in peers.PEERS.items():
        try:
            log_px = make(model)
        except ImportError:
            found.append(Contender(name, None, "not installed: pip install pythae pyro-ppl"))
            continue
        few = x[: 2 if kind == "cpu" else 8]
        found.append(_at_best_chunk(name, lambda x, k, chunk, f=log_px: f(x, k, chunk), few, k, PEER_CHUNKS))
    return found


def _at_best_chunk(name: str, log_px: Callable[..., Tensor], x: Tensor, k: int, chunks: tuple[int, ...]) -> Contender:
    """Returns a contender with the chunk that is fastest on a few images, which are enough to fill the largest chunk."""
    few = x[: max(2, max(chunks) // k)]

    def seconds(chunk: int) -> float:
        times = []
        for _ in range(2):
            start = time.perf_counter()
            log_px(few, k=k, chunk=chunk)[-1].item()  # .item() waits for the GPU
            times.append(time.perf_counter() - start)
        return min(times)

    try:
        best = min(chunks, key=seconds) if len(chunks) > 1 else chunks[0]
    except Exception as error:  # `measure` reports a contender that cannot run
        return Contender(name, _raise(error), units=len(x))
    return Contender(name, lambda inputs: (log_px(x, k=k, chunk=best),), f"chunk of {best}", units=len(x))


def _raise(error: Exception) -> Callable[[Inputs], Outputs]:
    def call(_: Inputs) -> Outputs:
        raise error

    return call


def checkers(model: VAE, x: Tensor, k: int) -> tuple[Check, Check]:
    """Returns two checks against float64 with our noise: ours must agree to rounding, the others to the sampling error."""
    truth, std_error = float64_bound(model, x[:CHECKED], k)

    def verdict(outputs: Outputs, allowed: Tensor) -> Verdict:
        distance = (outputs[0][:CHECKED].detach().double().to(truth) - truth[: len(outputs[0])]).abs()
        allowed = allowed[: len(distance)]
        worst = int((distance / allowed).argmax())
        return Verdict(float(distance[worst]), float(allowed[worst]))

    # Both estimates have a sampling error. The factor is 8 because a few heavy weights make the estimated error too small.
    allowed = 8.0 * 2**0.5 * std_error + 1e-3
    return lambda _, outputs: verdict(outputs, torch.full_like(allowed, 1e-3)), lambda _, outputs: verdict(outputs, allowed)


@torch.no_grad()
def float64_bound(model: VAE, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns L_K of x and its standard error, [N] each, in float64, from `reference` alone and with the noise of seed 0."""
    exact, x = copy.deepcopy(model).double(), x.double()
    encoding = exact.encode(x)
    bounds, errors = [], []
    for i, (row, mean, log_var) in enumerate(zip(x, encoding["mean"], encoding["log_var"], strict=True)):
        z, log_q = reference.gaussian_sample(mean[None], log_var[None], k, seed=0, first_row=i)
        assert isinstance(exact.output, BernoulliOutput)
        logits = exact.output.logits(exact.decoder(z))
        log_w = reference.bernoulli_log_prob(logits, row) + reference.gaussian_log_prob(z) - log_q
        _, total, squares, _, _ = reference.importance_state(log_w)[0].unbind()
        bounds.append(reference.importance_bound(log_w)[0])
        errors.append((squares / total.square() - 1.0 / k).clamp(min=0).sqrt())
    return torch.stack(bounds), torch.stack(errors)


@dataclass(frozen=True)
class MemoryCase:
    """Measures peak memory and time as K grows, each in its own process, of L_K or of a training step on L_K."""

    name: str = "memory"
    ks: tuple[int, ...] = (50, 500, 5000, 50000)
    contenders: tuple[str, ...] = ("ours", "eager")
    mode: str = FORWARD

    def groups(self, context: Context) -> list[Row]:
        if context.malloc != "default":
            return []
        columns = {"case": self.name, "mode": self.mode, "dtype": "float32"}
        return [context.columns() | columns | {"shape": f"K={k}"} for k in (self.ks[:2] if context.quick else self.ks)]

    def run(self, context: Context) -> Iterator[list[Row]]:
        for columns in self.groups(context):
            rows = []
            for contender in self.contenders:
                k = str(columns["shape"]).removeprefix("K=")
                command = [
                    sys.executable,
                    "-m",
                    "bench.cases.memory",
                    self.name,
                    contender,
                    k,
                    context.device,
                    str(context.threads),
                ]
                done = subprocess.run(command, capture_output=True, text=True)
                row: Row = {"contender": contender, "status": "ok" if done.returncode == 0 else "failed"}
                row |= json.loads(done.stdout) if done.returncode == 0 else {"note": done.stderr.strip()[-300:]}
                rows.append(columns | row)
            yield rows


# "all at once" holds every sample of every row, which takes several gigabytes for 20 images at K = 5000.
TRAINING_MEMORY = MemoryCase("training_memory", (50, 500, 5000), ("ours", "all at once"), TRAINING)
