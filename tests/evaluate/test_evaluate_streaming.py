"""Tests of log_likelihood beyond the estimate: the K-curve, k̂ and its warning, tolerances, and running out of memory."""

import math
import re
import threading
import warnings

import pytest
import torch
from support.family import LABELLED
from support.family import binary as family_binary
from support.family import make as make_family
from support.vae import DEVICES, TWO_LAYERS, binary, make

from dgmfast import evaluate, models
from dgmfast.errors import InputError
from dgmfast.evaluate import ImportanceSampling, streaming
from dgmfast.evaluate.memory import block_shape
from dgmfast.models import SampledLabel

pytestmark = pytest.mark.filterwarnings("ignore:log_likelihood. a few samples dominate")


def within_rounding(found, expected):
    return bool(((found - expected).abs() <= 1e-6 * expected.abs() + 1e-5).all())


# ---------------------------------------------------------------- the curve


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("k", "points"), [(1, [1]), (9, [1, 9]), (10, [1, 10]), (1300, [1, 10, 100, 1000, 1300])])
def test_each_point_of_the_curve_is_a_run_with_that_k(k, points, device):
    model, x = make(device, **TWO_LAYERS), binary(5, 12, device)
    result = evaluate.log_likelihood(model, x, k=k, seed=3)
    assert list(result.curve) == points and torch.equal(result.curve[k], result.log_px)
    for point, log_px in result.curve.items():
        assert within_rounding(log_px, evaluate.log_likelihood(model, x, k=point, seed=3).log_px)
    assert torch.equal(result.k_used, torch.full((5,), k, device=device))


def test_the_curve_does_not_depend_on_the_chunk():
    model, x = make(**TWO_LAYERS), binary(40, 12)
    results = [evaluate.log_likelihood(model, x, k=1300, chunk=chunk) for chunk in (None, 1, 10**7)]
    for other in results[1:]:
        assert all(torch.equal(other.curve[k], log_px) for k, log_px in results[0].curve.items())
        assert torch.equal(other.pareto_k, results[0].pareto_k)


def test_a_million_samples():
    """A million samples of a model whose prior is its posterior, so that every weight is p(x), must give log p(x)."""
    model, x = make(latent=(1,), hidden=((2,),)), binary(1, 12)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    result = evaluate.log_likelihood(model, x, k=1_000_000)
    torch.testing.assert_close(result.log_px, torch.full((1,), 12 * math.log(0.5), dtype=torch.float64), rtol=1e-6, atol=0.0)
    assert list(result.curve) == [10**i for i in range(7)] and result.ess.item() == pytest.approx(1e6, rel=1e-6)


@pytest.mark.parametrize("variant", LABELLED)
@pytest.mark.parametrize("y", [None, SampledLabel()])
def test_models_with_a_label_have_a_curve_too(variant, y):
    model, x = make_family(variant), family_binary(3)
    result = evaluate.log_likelihood(model, x, 30, y=y)
    for point, log_px in result.curve.items():
        assert within_rounding(log_px, evaluate.log_likelihood(model, x, point, y=y).log_px)


# ---------------------------------------------------------------- dominated rows


def shifted(spread: float):
    """Returns a model in which log w = log p(z) − log q(z) + constant is normal with this standard deviation."""
    model = make(latent=(1,), hidden=((4,),))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.q[0].gaussian.mean.bias.fill_(spread)
    return model


def test_warns_of_dominated_rows_in_one_sentence():
    x = binary(6, 12)
    with pytest.warns(
        UserWarning, match=r"a few samples dominate 6 of 6 rows .*: take a larger k, or .* the bound L_400"
    ) as told:
        result = evaluate.log_likelihood(shifted(4.0), x, k=400)
    assert len(told) == 1 and result.dominated().all() and (result.pareto_k > 0.7).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not evaluate.log_likelihood(shifted(0.1), x, k=400).dominated().any()
        evaluate.log_likelihood(shifted(4.0), x, k=24)  # below 25 samples L_K is meant as a bound, so nothing is warned


def test_without_a_fit_the_largest_weight_decides():
    each = torch.zeros(3, dtype=torch.float64)
    largest = torch.tensor([0.4, 0.6, 0.6])
    k_used, pareto_k = torch.tensor([100, 100, 24]), torch.full((3,), math.nan)
    result = evaluate.LogLikelihood(each, each, each, each, 100, k_used, pareto_k, largest, {100: each})
    assert result.dominated().tolist() == [False, True, False]


def test_the_largest_weight_is_a_share():
    model, x = make(**TWO_LAYERS), binary(4, 12)
    log_w = model.log_weights(x, 300, seed=2).double()
    expected = torch.softmax(log_w, 1).amax(1)
    torch.testing.assert_close(evaluate.log_likelihood(model, x, 300, seed=2).largest, expected, rtol=1e-4, atol=0.0)


# ---------------------------------------------------------------- a tolerance


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_stops_at_the_first_step_below_the_tolerance(device):
    model, x = make(device, seed=2, **TWO_LAYERS), binary(70, 12, device)
    by_k = {k: evaluate.log_likelihood(model, x, k) for k in (250, 500, 750, 1000)}
    tolerance = by_k[500].std_error.quantile(0.5).item()  # a value between the errors of two rows
    result = evaluate.log_likelihood(model, x, 1000, tolerance=tolerance)
    for row, used in enumerate(result.k_used.tolist()):
        stops = [k for k in by_k if by_k[k].std_error[row] < tolerance]
        assert used == min([*stops, 1000])
        alone = by_k[used]
        for name in ("log_px", "elbo", "std_error"):
            assert getattr(result, name)[row].item() == pytest.approx(getattr(alone, name)[row].item(), rel=1e-5, abs=1e-5)
        assert result.ess[row].item() == pytest.approx(alone.ess[row].item(), rel=1e-3)
        assert result.pareto_k[row].item() == pytest.approx(alone.pareto_k[row].item(), abs=1e-2)
    assert len(result.k_used.unique()) > 2, "the case has rows that stop and rows that do not"
    assert torch.equal(result.curve[1000], result.log_px) and within_rounding(result.curve[100], by_k[500].curve[100])


def test_a_row_stops_by_itself_alone():
    model, x = make(seed=2, **TWO_LAYERS), binary(70, 12)
    whole = evaluate.log_likelihood(model, x, 2000, tolerance=0.05, chunk=1)
    part = evaluate.log_likelihood(model, x[:9], 2000, tolerance=0.05)
    assert torch.equal(part.log_px, whole.log_px[:9]) and torch.equal(part.k_used, whole.k_used[:9])
    assert torch.equal(part.pareto_k, whole.pareto_k[:9])


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan, math.inf])
def test_refuses_a_tolerance(tolerance):
    with pytest.raises(InputError, match=f"tolerance must be a positive number of nats; got {tolerance}"):
        evaluate.log_likelihood(make(**TWO_LAYERS), binary(5, 12), 10, tolerance=tolerance)


# ---------------------------------------------------------------- without memory

ERRORS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "Linux": RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    "Windows": RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: not enough memory: you tried"),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_halves_what_does_not_fit_and_says_so_once(error, monkeypatch):
    model, x = make(**TWO_LAYERS), binary(5, 12)
    expected = evaluate.log_likelihood(model, x, 1300)
    draw, drawn = model.draw, []

    def small(encoding, x, k, *others):
        drawn.append(k)
        if k > 300:
            raise error
        return draw(encoding, x, k, *others)

    monkeypatch.setattr(model, "draw", small)
    with pytest.warns(UserWarning, match="out of memory with 1300 samples drawn at once: halved") as told:
        result = evaluate.log_likelihood(model, x, 1300)
    assert sum("out of memory" in str(warning.message) for warning in told) == 1
    assert drawn[:3] == [1300, 650, 325] and drawn.count(1300) == 1 and max(drawn[3:]) == 163
    for name in ("log_px", "elbo"):
        assert within_rounding(getattr(result, name), getattr(expected, name))
    assert within_rounding(result.curve[100], expected.curve[100]) and model.training


def test_halves_the_encoder_s_rows_too(monkeypatch):
    model, x = make(**TWO_LAYERS), binary(700, 12)
    expected = evaluate.log_likelihood(model, x, 7)
    encode = model.encode

    def small(part, y=None):
        if len(part) > 20:
            raise ERRORS["Linux"]
        return encode(part, y)

    monkeypatch.setattr(model, "encode", small)
    with pytest.warns(UserWarning, match="out of memory with 64 rows encoded at once: halved"):
        assert within_rounding(evaluate.log_likelihood(model, x, 7).log_px, expected.log_px)


@pytest.mark.parametrize("error", [ERRORS["Linux"], RuntimeError("a bug"), KeyboardInterrupt("Ctrl-C")])
def test_other_errors_and_no_memory_at_all_come_through(error, monkeypatch):
    model = make(**TWO_LAYERS)

    def broken(*arguments):
        raise error

    monkeypatch.setattr(model, "draw", broken)
    with warnings.catch_warnings(), pytest.raises(type(error), match=re.escape(str(error))):
        warnings.simplefilter("ignore")
        evaluate.log_likelihood(model, binary(5, 12), 20)
    assert model.training


def test_rows_that_are_done_are_not_done_again():
    """A restart from any block of rows must give the bits of the uninterrupted evaluation."""
    model, x = make(**TWO_LAYERS), binary(530, 12)
    sampling = ImportanceSampling(40, 1, streaming.curve_points(40))
    whole = streaming.RowResults()
    streaming.stream(model, x, None, sampling, whole)
    size, _ = block_shape(model, 40, x.device)
    states, pareto_k = whole.tensors(3, x.device)
    for done in (size, 512, 530):
        rows, advanced = streaming.RowResults([states[:done]], [pareto_k[:done]]), []
        streaming.stream(model, x, None, sampling, rows, advance=advanced.append)
        again, shapes = rows.tensors(3, x.device)
        assert sum(advanced) == (530 - done) * 40
        assert torch.equal(again, states) and torch.equal(shapes, pareto_k)


@pytest.fixture
def threads():
    """Sets the number of threads, and restores it after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("tolerance", [None, 0.2])
def test_the_number_of_threads_changes_no_bit(threads, rows, tolerance):
    """The number of threads must not change any bit: one thread works on each block, and the weights merge in order."""
    torch.manual_seed(0)
    model, x = models.create("vae", x_dim=20, latent=(3,), hidden=((30, 30),)), torch.rand(rows, 20).round()
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(evaluate.log_likelihood(model, x, k=9000, tolerance=tolerance))
        assert torch.get_num_threads() == count
    for result in results[1:]:
        for name in ("log_px", "ess", "std_error", "pareto_k", "k_used"):
            assert torch.equal(getattr(result, name), getattr(results[0], name)), name


def test_threads_of_later_pools_have_the_number_of_before(threads):
    """A worker's own thread count must not become that of threads started later."""
    threads(2)
    evaluate.log_likelihood(models.create("vae", x_dim=4, latent=(2,), hidden=((3,),)), torch.zeros(2, 4), k=100)
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [2]


def test_an_error_in_a_thread_is_the_callers(threads):
    threads(2)
    model = models.create("vae", x_dim=4, latent=(2,), hidden=((3,),))
    model.draw = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        evaluate.log_likelihood(model, torch.zeros(2, 4), k=100)
    assert model.training and torch.get_num_threads() == 2


def test_autocast_reaches_the_work(threads):
    threads(2)
    seen = []
    model = models.create("vae", x_dim=4, latent=(2,), hidden=((3,),))
    model.decoder.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        evaluate.log_likelihood(model, torch.zeros(2, 4), k=100)
    assert seen and all(seen)
