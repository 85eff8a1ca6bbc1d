"""Tests of log_likelihood: constant memory, bit-equal results for any chunk size, and correct standard errors."""

import math
import os
import subprocess
import sys

import pytest
import torch
from support.vae import DEVICES, TWO_LAYERS, binary, log_px_by_quadrature, make

from dgmfast import evaluate
from dgmfast.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:log_likelihood. a few samples dominate")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("k", [1, 7, 512, 513, 1300])
@pytest.mark.parametrize("extra", [{}, {"likelihood": "gaussian", "head": "softplus"}])
def test_equals_the_direct_formula(device, k, extra):
    model, x = make(device, **TWO_LAYERS, **extra), binary(5, 12, device)
    result = evaluate.log_likelihood(model, x, k=k, seed=3)
    log_w = model.log_weights(x, k, seed=3).double()
    weights = torch.softmax(log_w, 1)
    torch.testing.assert_close(result.log_px, torch.logsumexp(log_w, 1) - math.log(k), atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(result.elbo, log_w.mean(1), atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(result.ess, 1 / weights.square().sum(1), atol=1e-4, rtol=1e-4)
    if k > 1:
        error = ((weights.square().sum(1) - 1 / k) * k / (k - 1)).sqrt()
        torch.testing.assert_close(result.std_error, error, atol=1e-5, rtol=1e-4)
    else:
        assert result.std_error.isinf().all()
    assert result.k == k and result.log_px.dtype == torch.float64 and result.log_px.shape == (5,)


@pytest.mark.parametrize("device", DEVICES)
def test_bit_equal_at_any_chunk_and_any_batch_around_a_row(device):
    model, x = make(device, **TWO_LAYERS), binary(700, 12, device)
    results = [evaluate.log_likelihood(model, x, k=130, seed=1, chunk=chunk) for chunk in (None, 1, 600, 10**7)]
    assert all(torch.equal(results[0].log_px, other.log_px) for other in results[1:])
    assert torch.equal(evaluate.log_likelihood(model, x[:3], k=130, seed=1).log_px, results[0].log_px[:3])


def test_each_row_is_encoded_once_whatever_k_and_chunk(monkeypatch):
    model, x, seen = make(**TWO_LAYERS), binary(700, 12), []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda part, y=None: (seen.append(part), encode(part, y))[1])
    for k, chunk, padded in ((1, None, 1024), (600, 1, 704)):
        seen.clear()
        evaluate.log_likelihood(model, x, k=k, chunk=chunk)
        assert [len(part) for part in seen] == [64] * (padded // 64) and torch.equal(torch.cat(seen)[:700], x)


@pytest.mark.parametrize("error", [AttributeError, ValueError, OSError])
def test_a_system_that_does_not_tell_its_free_memory(error, monkeypatch):
    model, x = make(**TWO_LAYERS), binary(5, 12)
    expected = evaluate.log_likelihood(model, x, k=600).log_px

    def silent(name: str) -> int:
        raise error(name)

    monkeypatch.setattr(os, "sysconf", silent)
    assert torch.equal(evaluate.log_likelihood(model, x, k=600).log_px, expected)


def test_thread_counts_agree_to_the_promised_tolerance():
    model, x = make(**TWO_LAYERS), binary(40, 12)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(evaluate.log_likelihood(model, x, k=600).log_px)
    finally:
        torch.set_num_threads(threads)
    assert ((results[0] - results[1]).abs() <= 1e-6 * results[0].abs() + 1e-5).all()


def test_meets_the_integral_within_its_error_bars():
    model, x = make(latent=(1,), hidden=((8,),)).double(), binary(8, 12, dtype=torch.float64)
    result = evaluate.log_likelihood(model, x, k=4000)
    truth = log_px_by_quadrature(model, x)
    assert ((result.log_px - truth).abs() < 4 * result.std_error + 1e-9).all()


def test_standard_error_is_the_spread_of_repeated_runs():
    model, x = make(seed=2, **TWO_LAYERS), binary(4, 12)
    runs = [evaluate.log_likelihood(model, x, k=200, seed=seed) for seed in range(200)]
    spread = torch.stack([r.log_px for r in runs]).std(0)
    claimed = torch.stack([r.std_error for r in runs]).mean(0)
    torch.testing.assert_close(claimed, spread, rtol=0.25, atol=0)


def test_evaluation_mode_is_used_and_restored():
    model, x = make(batch_norm=True, **TWO_LAYERS), binary(20, 12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = evaluate.log_likelihood(model, x, k=20)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(evaluate.log_likelihood(model.eval(), x, k=20).log_px, first.log_px) and not model.training


def test_no_rows_give_no_results():
    result = evaluate.log_likelihood(make(**TWO_LAYERS), torch.zeros(0, 12), k=10)
    assert result.log_px.shape == result.std_error.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"y": torch.zeros(5, dtype=torch.int64)}, "y must be None, because VAE takes no labels"),
    ],
)
def test_refuses_in_one_sentence(arguments, words):
    with pytest.raises(InputError, match=words):
        evaluate.log_likelihood(make(**TWO_LAYERS), binary(5, 12), **arguments)


def test_refuses_wrong_data():
    model, x = make(**TWO_LAYERS), binary(5, 12)
    for bad in (x[0], x[:, :11], x.to(torch.uint8)):
        with pytest.raises(InputError, match=r"x must be floating, of shape \[N, 12\]"):
            evaluate.log_likelihood(model, bad)
    x[3, 2] = math.nan
    with pytest.raises(InputError, match="row 3"):
        evaluate.log_likelihood(model, x)


def test_a_non_finite_weight_names_its_row_and_term():
    model, x = make(**TWO_LAYERS), binary(5, 12)
    with torch.no_grad():
        model.output.logits.bias[0] = math.nan
    with pytest.raises(InputError, match=r"row 0 .*log p\(x\|z\)"):
        evaluate.log_likelihood(model, x, k=10)


def test_memory_does_not_grow_with_k():
    """The peak memory of a process at K = 20 000 must be near that at K = 500."""
    script = (
        "import resource, sys, torch; from dgmfast import evaluate, models; torch.manual_seed(0);"
        "m = models.create('vae'); x = (torch.rand(2, 784) < 0.5).float();"
        "evaluate.log_likelihood(m, x, k=int(sys.argv[1]));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peak = [int(subprocess.check_output([sys.executable, "-c", script, str(k)], cwd="/")) for k in (500, 20000)]
    assert peak[1] < peak[0] + 8 * 1024  # in KiB; a single [2, 20000, 784] tensor of logits would take 122 500


def test_mean_over_the_set():
    result = evaluate.log_likelihood(make(**TWO_LAYERS), binary(9, 12), k=20)
    mean, error = result.mean("log_px")
    assert mean == pytest.approx(result.log_px.mean().item()) and error == pytest.approx(result.log_px.std().item() / 3)


def test_active_units_are_those_above_the_threshold():
    """A unit must count as active if its mean KL over the rows is above 0.01 nat."""
    units = {"z1": torch.tensor([0.5, 0.01, 0.011]), "z2": torch.tensor([-0.2, 0.0])}
    assert evaluate.active_units(units) == {"z1": 2, "z2": 0}
    assert evaluate.active_units(units, 0.1) == {"z1": 1, "z2": 0}
