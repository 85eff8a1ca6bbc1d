"""The case `sampling`: time per image of a PixelCNN, against a full pass per pixel and against a cached sampler in PyTorch."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cases.op_cases import FORWARD, Context
from bench.harness import Check, Contender, Inputs, Outputs, Settings, Verdict, measure, summarise
from bench.rivals import pixelcnn as pixelcnn_eager
from bench.store import Row
from dgmfast.nn import CausalLayer, MaskedConv2d, PixelOutput, sample_pixels
from dgmfast.nn.pixelcnn_naive import causal_stack

SIZE, MAPS, DEPTH, RESIDUAL = 28, 64, 7, range(2, 6)
FULL_PASS_BATCH = 16  # The full pass per pixel is timed once, at this batch size, because it takes most of a minute.
# In float32, rounding changes a draw whose uniform nearly meets a threshold. About one draw in 10^5 may differ.
ALLOWED = 1e-5


def benchmark_layers() -> list[CausalLayer]:
    """Returns a 7×7 layer with mask A and seven 3×3 layers with mask B, of 64 maps and random weights, four of them residual."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [CausalLayer(MaskedConv2d(1, MAPS, 7, "A"))]
        for i in range(1, DEPTH + 1):
            conv = MaskedConv2d(MAPS, MAPS if i < DEPTH else 1, 3, "B")
            layers.append(CausalLayer(conv, relu=True, residual=i in RESIDUAL))
        with torch.no_grad():
            for layer in layers:
                layer.conv.weight.mul_(2.0)  # every pixel then depends visibly on those before it
    return layers


def checker(layers: Sequence[CausalLayer]) -> Check:
    """Returns a check of the share of pixels that float64 draws differently given the pixels before them, from one pass."""
    exact = [CausalLayer(copy.deepcopy(layer.conv).double(), layer.relu, layer.residual) for layer in layers]

    def check(inputs: Inputs, outputs: Outputs) -> Verdict:
        x = outputs[0].double()
        with torch.no_grad():
            logits = causal_stack(exact, x)
        expected = PixelOutput().draw(logits.flatten().unsqueeze(1), inputs[0].flatten()).view(x.shape)
        if not 0.05 < float(x.mean()) < 0.95:
            raise ValueError("the images are nearly constant: nothing would be checked")
        return Verdict(float((x != expected).double().mean()), ALLOWED)

    return check


@dataclass(frozen=True)
class SamplingCase:
    """Times sampling of binary images in float32, per image."""

    name: str = "sampling"
    batches: tuple[int, ...] = (1, 16, 64)

    def groups(self, context: Context) -> list[Row]:
        if context.device != "cpu":
            return []
        size = 10 if context.quick else SIZE
        columns = {"case": self.name, "mode": FORWARD, "dtype": "float32"}
        return [
            context.columns() | columns | {"shape": f"PixelCNN {size}x{size}, batch {batch}", "batch": batch}
            for batch in self.batches[: 2 if context.quick else None]
        ]

    def run(self, context: Context) -> Iterator[list[Row]]:
        layers = benchmark_layers()
        check = checker(layers)
        few = Settings(seconds=0.0 if context.quick else 2.0, min_rounds=3, max_rounds=15, sample_seconds=0.0)
        for columns in self.groups(context):
            batch, size = int(columns["batch"]), 10 if context.quick else SIZE
            uniforms = torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            contenders = [
                Contender("ours", lambda inputs: (sample_pixels(layers, PixelOutput(), inputs[0]),), units=batch),
                Contender("cached in PyTorch", lambda inputs: (pixelcnn_eager.cached(layers, inputs[0]),), units=batch),
            ]
            rows = measure(contenders, [(uniforms,)], check, few)
            if batch == FULL_PASS_BATCH and context.malloc == "default":
                rows.append(_full_pass(layers, uniforms, check))
            yield [columns | row for row in rows]


def _full_pass(layers: Sequence[CausalLayer], uniforms: Tensor, check: Check) -> Row:
    """Times one full pass per pixel and checks the images that it drew."""
    pixelcnn_eager.full_passes(layers, uniforms[:, :, :2, :2])
    start = time.perf_counter()
    x = pixelcnn_eager.full_passes(layers, uniforms)
    seconds = time.perf_counter() - start
    verdict = check((uniforms,), (x,))
    row: Row = {"contender": "full pass per pixel", "note": "timed once", "units": len(uniforms)}
    row |= {"status": "ok" if verdict.passed else "wrong", "error": verdict.error, "tolerance": verdict.tolerance}
    return row | (summarise([seconds / len(uniforms)]) if verdict.passed else {})
