"""Tests of gaussian_sample: the numbers are standard normal and depend only on their coordinates."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from support.noise import noise
from support.op_cases import DEVICES, ISAS, dtypes_of, has_cpu_kernels
from torch import Tensor

from dgmfast import _C, ops, reference

# Known answers for philox4x32-10, published with Random123 (Salmon et al. 2011): counter, key, result.
PHILOX = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def arguments(rows: int, dim: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    mean, log_var = (torch.randn(rows, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    return mean.to(device, dtype), log_var.to(device, dtype)


# The generator


@pytest.mark.parametrize(("counter", "key", "expected"), PHILOX)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    low, high = words(key)
    found = reference.philox_4x32(tuple(torch.tensor(word) for word in words(counter)), (high << 32) | low)
    assert [int(word) for word in found] == words(expected)
    assert list(philox(tuple(words(counter)), low, high)) == words(expected)


def philox(counter: tuple[int, ...], low: int, high: int) -> tuple[int, ...]:
    """Computes Philox-4x32-10 with Python integers."""
    mask = 2**32 - 1
    a, b, c, d = counter
    for _ in range(10):
        x, y = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (y >> 32) ^ b ^ low, y & mask, (x >> 32) ^ d ^ high, x & mask
        low, high = (low + 0x9E3779B9) & mask, (high + 0xBB67AE85) & mask
    return a, b, c, d


def normal(seed: int, stream: int, row: int, sample: int, d: int) -> float:
    """Computes the normal of one coordinate with Python floats, from the description in csrc/math/philox.h."""
    key = seed % 2**64
    found = philox((d // 64 * 16 + d % 16, sample, row, stream), key % 2**32, key >> 32)
    pair, turn = found[d % 64 // 32 * 2 :][:2]
    distance = (pair % 2**31 + 0.5) / 2**32
    radius = math.sqrt(-2.0 * (math.log(distance) if pair >= 2**31 else math.log1p(-distance)))
    angle = 2.0 * math.pi * turn / 2**32
    return radius * (math.sin(angle) if d % 32 >= 16 else math.cos(angle))


SEEDS = [0, 1, -1, 42, -(2**63), 2**63 - 1, 0x1234_5678_9ABC_DEF0]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_coordinate_has_its_draw(seed: int, path_device: str) -> None:
    """Draws at negative and huge seeds and at the last rows, samples and streams must equal those computed one at a time."""
    key = {"seed": seed, "stream": 2**32 - 1, "first_row": 2**32 - 2, "first_sample": 2**32 - 3}
    drawn = noise(2, 3, 131, path_device, **key).cpu()
    expected = [
        [[normal(seed, 2**32 - 1, 2**32 - 2 + row, 2**32 - 3 + j, d) for d in range(131)] for j in range(3)] for row in range(2)
    ]
    torch.testing.assert_close(drawn, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=2e-15)
    torch.testing.assert_close(reference.standard_normal(2, 3, 131, **key), drawn, rtol=1e-14, atol=2e-15)


@pytest.mark.parametrize("seed", SEEDS)
def test_seed_as_tensor(seed: int, path_device: str) -> None:
    mean, log_var = (t.requires_grad_() for t in arguments(3, 70, path_device))
    tensor = torch.tensor(seed, device=path_device)
    expected = ops.gaussian_sample(mean, log_var, 2, seed=seed)
    found = ops.gaussian_sample(mean, log_var, 2, seed=tensor)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    gradients = [torch.autograd.grad(z.square().sum() + log_q.sum(), (mean, log_var)) for z, log_q in (found, expected)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert tensor.item() == seed


def test_a_seed_that_changes_before_the_backward_pass(device: str) -> None:
    """A seed tensor changed before the backward pass must raise, because the pass would draw other noise."""
    mean, log_var = (t.requires_grad_() for t in arguments(3, 7, device))
    seed = torch.tensor(5, device=device)
    z, _ = ops.gaussian_sample(mean, log_var, seed=seed)
    seed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


# Chunks, threads and paths


@pytest.mark.parametrize("dim", [1, 15, 16, 63, 64, 65, 200, 257])
def test_chunks_of_rows_and_samples(dim: int, path_dtype: tuple[str, torch.dtype]) -> None:
    """z, log_q and, on a CPU, both gradients must be the same bits however rows and samples are cut into chunks."""
    device, dtype = path_dtype
    rows, samples = 7, 5
    mean, log_var = (t.requires_grad_() for t in arguments(rows, dim, device, dtype))
    key = {"seed": 77, "stream": 2}
    z, log_q = ops.gaussian_sample(mean, log_var, samples, **key)
    for cut in ([0, 1, 7], [0, 3, 4, 7], list(range(8))):
        for split in ([0, 5], [0, 2, 3, 5]):
            for a, b in pairwise(cut):
                for i, j in pairwise(split):
                    chunk = ops.gaussian_sample(mean[a:b], log_var[a:b], j - i, first_row=a, first_sample=i, **key)
                    assert torch.equal(chunk[0], z[a:b, i:j])
                    assert torch.equal(chunk[1], log_q[a:b, i:j])
    whole = torch.autograd.grad(z.square().sum() + log_q.sum(), (mean, log_var))
    parts = [ops.gaussian_sample(mean[a : a + 1], log_var[a : a + 1], samples, first_row=a, **key) for a in range(rows)]
    cut_up = torch.autograd.grad(sum(z.square().sum() + log_q.sum() for z, log_q in parts), (mean, log_var))
    if has_cpu_kernels(device):
        assert all(torch.equal(a, b) for a, b in zip(whole, cut_up, strict=True))
    else:  # CUDA shares the sum over the samples between more threads where there are fewer rows.
        eps = samples * torch.finfo(dtype).eps
        for a, b in zip(whole, cut_up, strict=True):
            torch.testing.assert_close(a, b, rtol=eps, atol=eps * float(a.abs().max()))


@pytest.mark.parametrize("dim", [1, 64, 65])
def test_one_mean_per_sample_draws_the_same(dim: int, path_dtype: tuple[str, torch.dtype]) -> None:
    """With equal means, one sample of [B, K, D] must be K samples of [B, D]."""
    device, dtype = path_dtype
    mean, log_var = arguments(6, dim, device, dtype)
    key = {"seed": 1, "stream": 9, "first_row": 3, "first_sample": 4}
    expected = ops.gaussian_sample(mean, log_var, 4, **key)
    for repeated in (mean.unsqueeze(1).expand(6, 4, dim), mean.unsqueeze(1).repeat(1, 4, 1)):
        found = ops.gaussian_sample(repeated, log_var.unsqueeze(1), **key)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_threads(path_device: str, threads: None) -> None:
    mean, log_var = (t.requires_grad_() for t in arguments(400, 65, path_device))
    found = []
    for n in (1, 2):
        torch.set_num_threads(n)
        z, log_q = ops.gaussian_sample(mean, log_var, 3, seed=5)
        found.append((z, log_q, *torch.autograd.grad(z.square().sum() + log_q.sum(), (mean, log_var))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_paths_dtypes_and_devices_draw_the_same(restored_isa: None) -> None:
    """Instruction sets, dtypes and devices must agree to float rounding; the largest normal is 6.8."""
    truth = reference.standard_normal(40, 5, 130, seed=3)
    for isa in ISAS:
        _C.set_isa(isa)
        for dtype in dtypes_of("cpu"):
            error = (noise(40, 5, 130, dtype=dtype, seed=3).double() - truth).abs()
            assert float(error.max()) < 10 * torch.finfo(dtype).eps, (isa, dtype)
    for device in DEVICES[1:]:
        for dtype in dtypes_of(device):
            error = (noise(40, 5, 130, device, dtype, seed=3).double().cpu() - truth).abs()
            assert float(error.max()) < 10 * torch.finfo(dtype).eps, (device, dtype)


# The density and the pathwise gradient


def test_log_q_is_the_density_at_z(path_dtype: tuple[str, torch.dtype]) -> None:
    device, dtype = path_dtype
    if dtype in (torch.bfloat16, torch.float16):
        pytest.skip("(z − mean) e^{−log_var / 2} keeps nothing of the noise in 16 bits")
    mean, log_var = arguments(5, 90, device, dtype)
    z, log_q = ops.gaussian_sample(mean, log_var, 6, seed=2)
    expected = ops.gaussian_log_prob(z, mean.unsqueeze(1), log_var.unsqueeze(1))
    torch.testing.assert_close(log_q, expected, rtol=30 * torch.finfo(dtype).eps, atol=0.0)


def test_pathwise_gradient(path_device: str) -> None:
    """The gradient must be that of (z, log q) with the noise as a constant, and with log q as the density at z."""
    mean, log_var = (t.requires_grad_() for t in arguments(4, 67, path_device, torch.float64))
    weights = torch.randn(67, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(path_device)

    def gradients(z: Tensor, log_q: Tensor) -> tuple[Tensor, ...]:
        loss = (torch.tanh(z) * weights).sum() + (log_q * torch.arange(1.0, 4.0, device=path_device)).sum()
        return torch.autograd.grad(loss, (mean, log_var), retain_graph=True)

    eps = noise(4, 3, 67, path_device, seed=8)
    by_hand = mean.unsqueeze(1) + (0.5 * log_var).exp().unsqueeze(1) * eps
    density = ops.gaussian_log_prob(by_hand, mean.unsqueeze(1), log_var.unsqueeze(1))
    expected = gradients(by_hand, density)
    z, log_q = ops.gaussian_sample(mean, log_var, 3, seed=8)
    for found in (gradients(z, log_q), gradients(z, ops.gaussian_log_prob(z, mean.unsqueeze(1), log_var.unsqueeze(1)))):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
    only_log_q = torch.autograd.grad(ops.gaussian_sample(mean, log_var, 3, seed=8)[1].sum(), (mean, log_var))
    assert torch.equal(only_log_q[0], torch.zeros_like(mean))
    assert torch.equal(only_log_q[1], torch.full_like(log_var, -1.5))  # −½ per sample


@pytest.mark.skipif("cuda" not in DEVICES, reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("dtype", dtypes_of("cuda"))
def test_cuda_graph_draws_afresh_at_each_replay(dtype: torch.dtype) -> None:
    """A CUDA graph of forward and backward must draw anew when the seed tensor changes between replays."""
    seed = torch.tensor(0, device="cuda")
    mean, log_var = (t.requires_grad_() for t in arguments(37, 130, "cuda", dtype))

    def step() -> tuple[Tensor, ...]:
        z, log_q = ops.gaussian_sample(mean, log_var, 4, seed=seed, stream=1)
        log_p = ops.gaussian_log_prob(z) + ops.bernoulli_log_prob(z, (z > 0).to(torch.uint8))
        kl = ops.gaussian_kl(*ops.gaussian_merge(mean, log_var, log_var, mean))
        loss = ops.importance_bound(log_p - log_q).float().sum() - kl.float().sum()
        return z.detach(), *torch.autograd.grad(loss, (mean, log_var)), ops.importance_state(log_q.detach())

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    drawn = []
    for value in (3, -7, 2**62):
        seed.fill_(value)
        graph.replay()
        drawn.append([t.clone() for t in captured])
        assert all(torch.equal(a, b) for a, b in zip(drawn[-1], step(), strict=True))
    assert not torch.equal(drawn[0][0], drawn[1][0])


# torch's generators


def test_a_generator_is_advanced_and_can_be_set_back(device: str) -> None:
    """Two calls must differ, the same state must repeat a call, and torch's own generator must stay as it was."""
    mean, log_var = arguments(3, 5, device)
    generator = torch.Generator(device).manual_seed(4)
    before, global_state = generator.get_state(), torch.get_rng_state()
    first, second = (ops.gaussian_sample(mean, log_var, 2, generator=generator)[0] for _ in range(2))
    assert not torch.equal(first, second)
    generator.set_state(before)
    assert torch.equal(ops.gaussian_sample(mean, log_var, 2, generator=generator)[0], first)
    assert torch.equal(torch.get_rng_state(), global_state)
    of_another_device = torch.Generator("cpu").manual_seed(4)
    assert ops.gaussian_sample(mean, log_var, generator=of_another_device)[0].device == mean.device


def test_torch_manual_seed_repeats_a_call(device: str) -> None:
    mean, log_var = arguments(3, 5, device)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(ops.gaussian_sample(mean, log_var)[0])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"generator": 3}, TypeError, "generator must be a torch.Generator; got int"),
        ({"generator": torch.Generator(), "seed": 1}, ValueError, "seed or generator must be None; got both"),
    ],
)
def test_wrong_generators(keywords: dict[str, object], error: type[Exception], message: str) -> None:
    mean, log_var = arguments(3, 5)
    with pytest.raises(error) as caught:
        ops.gaussian_sample(mean, log_var, **keywords)
    assert str(caught.value) == f"gaussian_sample: {message}"
