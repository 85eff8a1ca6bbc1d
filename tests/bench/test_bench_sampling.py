"""Tests of the sampling benchmark: contenders must draw what float64 draws, and one that does not must be refused."""

from __future__ import annotations

import pytest
import torch

from bench import harness
from bench.cases.op_cases import Context
from bench.cases.sampling import SamplingCase, benchmark_layers, checker
from bench.report import ratios
from bench.rivals import pixelcnn as pixelcnn_eager
from dgmfast.nn import PixelOutput, sample_pixels

CPU = Context("cpu", 1, "default", harness.QUICK, compile=False, quick=True)


def test_quick_run(threads: None) -> None:
    torch.set_num_threads(1)
    groups = list(SamplingCase().run(CPU))
    assert [{row["contender"] for row in rows} for rows in groups] == [
        {"ours", "cached in PyTorch"},
        {"ours", "cached in PyTorch", "full pass per pixel"},
    ]
    for row in (row for rows in groups for row in rows):
        assert row["status"] == "ok" and row["error"] <= row["tolerance"] and row["median_s"] > 0, row
        assert row["contender"] == "ours" or ratios.rival_of(row["contender"])
    assert not SamplingCase().groups(Context("cuda", 1, "default", harness.QUICK))


@pytest.mark.parametrize("draw", [pixelcnn_eager.cached, pixelcnn_eager.full_passes])
def test_the_rivals_draw_the_same(draw: pixelcnn_eager.Draw) -> None:
    layers, uniforms = benchmark_layers(), torch.rand(3, 1, 9, 7, dtype=torch.float64)
    assert torch.equal(draw(layers, uniforms), sample_pixels(layers, PixelOutput(), uniforms))


def test_a_wrong_pixel_is_found() -> None:
    layers, uniforms = benchmark_layers(), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    x, check = sample_pixels(layers, PixelOutput(), uniforms), checker(layers)
    assert check((uniforms,), (x,)).passed
    x[1, 0, 5, 2] = 1 - x[1, 0, 5, 2]
    assert not check((uniforms,), (x,)).passed
    with pytest.raises(ValueError, match="nearly constant"):
        check((uniforms,), (torch.ones_like(x),))
