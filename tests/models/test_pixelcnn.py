"""Tests of PixelCNN and FAME: exactness, causality, sampling, the command line and the figures."""

import math

import pytest
import torch
from support.command_line import call, refused
from support.family import make

from dgmfast import data, evaluate, models, plots, recipes, train
from dgmfast.errors import InputError
from dgmfast.evaluate.memory import FEW_NUMBERS, block_shape
from dgmfast.models import Noise
from dgmfast.nn.pixelcnn_naive import pixelcnn_sample
from dgmfast.objectives import Objective

SMALL = {"maps": 6, "blocks": 1, "tail": 2, "first_kernel": 5}


def pixelcnn(image=(1, 3, 4), **settings):
    """Returns a PixelCNN in float64 whose logits vary between pixels."""
    torch.manual_seed(0)
    model = models.create("pixelcnn", x_dim=math.prod(image), image=image, **{**SMALL, **settings}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def every(dim):
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * dim)


@pytest.mark.parametrize("image", [(1, 2, 4), (3, 1, 3), (1, 1, 1), (2, 2, 2)])
def test_log_prob_is_a_distribution_over_all_images(image):
    x = every(math.prod(image)).view(-1, math.prod(image))
    log_px = pixelcnn(image).log_prob(x)
    assert abs(torch.logsumexp(log_px, 0).item()) < 1e-10 and log_px.std() > 0.01


@pytest.mark.parametrize(("likelihood", "levels"), [("categorical", 5), ("logistic", 5)])
def test_levels_are_a_distribution_too(likelihood, levels):
    grid = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    x = torch.cartesian_prod(*[grid] * 4)
    log_px = pixelcnn((1, 2, 2), likelihood=likelihood, levels=levels).log_prob(x)
    assert abs(torch.logsumexp(log_px, 0).item()) < 1e-10


def test_each_pixel_depends_on_those_before_it_alone():
    model, x = pixelcnn(), torch.rand(2, 12, dtype=torch.float64).round()
    logits = model.output.parameters_of(x.new_zeros(2, 0), x.requires_grad_()).flatten(1)
    for i in range(12):
        seen = torch.autograd.grad(logits[:, i].sum(), x, retain_graph=True)[0]
        assert (seen[:, i:] == 0).all() and (i == 0 or (seen[:, :i] != 0).any())


def test_every_bound_is_the_exact_log_probability():
    model, x = pixelcnn(), torch.rand(5, 12, dtype=torch.float64).round()
    exact = model.log_prob(x)
    assert torch.equal(model.log_weights(x, 3), exact.unsqueeze(1).expand(-1, 3))
    elbo = model.elbo(x)
    torch.testing.assert_close(elbo.bound, exact)
    assert elbo.kl == {} and evaluate.kl_units(model, x) == {}
    result = evaluate.log_likelihood(model, x, k=100)
    torch.testing.assert_close(result.log_px, exact)
    assert result.std_error.abs().max() < 1e-6 and not result.dominated().any()
    for objective in (Objective(), Objective(k=4, m=2)):
        torch.testing.assert_close(objective.loss(model, x, None, 0.5, 1)[0], -exact.mean())


@pytest.mark.parametrize(("likelihood", "image"), [("bernoulli", (1, 4, 3)), ("categorical", (3, 2, 2)), ("logistic", (1, 3, 3))])
def test_samples_are_those_of_a_full_pass_per_pixel(likelihood, image):
    model = pixelcnn(image, likelihood=likelihood, levels=7)
    dim = math.prod(image)
    uniforms = Noise(3).uniform(torch.zeros(6, 1, dim, dtype=torch.float64), 3000).view(6, *image)
    expected = pixelcnn_sample(model.output.layers(), model.output.distribution, uniforms)
    assert torch.equal(model.sample(6, seed=3), expected.view(6, dim))
    assert torch.equal(model.sample(3, seed=3), expected.view(6, dim)[:3])
    assert not torch.equal(model.sample(6, seed=4), expected.view(6, dim))
    with torch.no_grad():
        assert model.log_prob(model.sample(6)).isfinite().all()


def test_a_low_temperature_draws_the_most_probable_pixels():
    model = pixelcnn()
    cold = model.sample(4, seed=0, temperature=1e-6)
    assert (cold == cold[0]).all()
    mean = model.output.mean(cold.new_zeros(4, 0), cold)
    assert torch.equal((mean > 0.5).double(), cold)
    with pytest.raises(InputError, match="temperature must be positive"):
        model.sample(1, temperature=0.0)
    with pytest.raises(InputError, match="temperature is of autoregressive pixels"):
        make("vae").sample(1, temperature=0.5)


def test_completion_keeps_what_is_given_and_draws_the_exact_conditional():
    model, rows = pixelcnn((1, 2, 3)), 20000
    keep = torch.tensor([True, True, True, True, False, False])
    x = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64).expand(rows, 6)
    drawn = model.complete(x, keep, seed=1)
    assert torch.equal(drawn[:, keep], x[:, keep])
    ends = every(2)
    candidates = torch.cat([x[:4, :4], ends], 1)
    probability = torch.softmax(model.log_prob(candidates), 0)
    share = (drawn[:, 4:].unsqueeze(1) == ends).all(2).double().mean(0)
    assert ((share - probability).abs() < 4.5 * (probability * (1 - probability) / rows).sqrt()).all()
    assert not torch.equal(model.complete(x[:9], keep, seed=2), drawn[:9])


@pytest.mark.parametrize("keep", [torch.ones(7).bool(), torch.ones(1, 1, 12).bool(), torch.ones(2, 12).bool(), torch.ones(12)])
def test_what_to_keep_is_checked(keep):
    with pytest.raises(InputError, match="keep must be bool"):
        models.create("pixelcnn", x_dim=12, image=(1, 3, 4)).complete(torch.zeros(3, 12), keep)


@pytest.mark.parametrize("name", ["pixelcnn", "fame", "fame-noconcat"])
def test_no_rows(name):
    model = (models.create("pixelcnn", x_dim=6, image=(1, 2, 3), maps=4).double() if name == "pixelcnn" else make(name)).eval()
    none = torch.zeros(0, model.x_dim, dtype=torch.float64)
    assert model.sample(0).shape == model.reconstruct(none).shape == none.shape
    assert model.log_weights(none, 3).shape == (0, 3)
    if name == "pixelcnn":
        assert model.complete(none, torch.ones(model.x_dim).bool()).shape == none.shape


def test_the_widest_layer_may_be_the_last():
    output = models.create("pixelcnn", x_dim=12, image=(1, 3, 4), maps=4, likelihood="categorical", levels=9).output
    assert output.row_numbers == 9 * 12


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"image": (1, 2, 2)}, r"image must be \(C, H, W\) of 12 numbers"),
        ({"image": 5}, r"image must be \(C, H, W\); got 5"),
        ({"image": None, "x_dim": 14}, "x_dim must be of a square grey or colour image"),
        ({"likelihood": "poisson"}, "likelihood must be one of bernoulli, categorical, logistic"),
        ({"tail": 0}, "tail must be a whole number of at least 1"),
        ({"maps": 2.5}, "maps must be a whole number"),
        ({"kernel": 2}, "kernel must be odd"),
        ({"first_kernel": 3.0}, "first_kernel must be odd"),
        ({"image": (1, 3, 4.5)}, r"image must be \(C, H, W\); got \(1, 3, 4.5\)"),
        ({"image": (3, 2, 2), "maps": 4}, "colors must divide"),
        ({"likelihood": "categorical", "levels": 1}, "levels must be a whole number of at least 2"),
        ({"likelihood": "categorical", "levels": 2.5}, "levels must be a whole number of at least 2"),
    ],
)
def test_settings_that_are_refused(settings, told):
    with pytest.raises(InputError, match=told):
        models.create("pixelcnn", **{"x_dim": 12, "image": (1, 3, 4), **settings})


def test_the_shape_of_square_images_follows_from_their_size():
    assert models.create("pixelcnn", x_dim=64).output.image == (1, 8, 8)
    assert models.create("pixelcnn", x_dim=3 * 16, maps=6).output.image == (3, 4, 4)


@pytest.mark.parametrize("likelihood", ["bernoulli", "logistic"])
def test_untrained_pixels_can_start_at_the_mean(likelihood):
    model = models.create("pixelcnn", x_dim=16, likelihood=likelihood, **SMALL)
    last = model.output.tail[-1]
    torch.nn.init.zeros_(last.weight)
    model.init_output_mean(torch.full((16,), 0.2))
    assert (model.reconstruct(torch.zeros(2, 16)) - 0.2).abs().max() < 1e-6


def test_fame_without_an_input_is_what_the_decoder_makes_of_zeros():
    model, x = make("fame"), torch.rand(4, 6, dtype=torch.float64).round()
    h = model.draw(model.encode(x), x, 1, Noise(2)).decoded
    torch.testing.assert_close(model.masked_reconstruct(x, "x", 2), model.output.mean(h, torch.zeros_like(x[:, None])).squeeze(1))
    expected = model.output.mean(torch.zeros_like(h), x.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(model.masked_reconstruct(x, "z", 2), expected)
    assert torch.equal(model.masked_reconstruct(x, "z", 2), model.masked_reconstruct(x, "z", 3))
    assert not torch.equal(model.masked_reconstruct(x, "x", 2), model.masked_reconstruct(x, "x", 3))
    with pytest.raises(InputError, match="without must be z or x"):
        model.masked_reconstruct(x, "y")


def test_fame_draws_its_pixels_given_z():
    """For one seed, the image of z must be the same, and the pixels must be those of the naive sampler given that image."""
    model = make("fame")
    h = model.prior(5, Noise(1))
    uniforms = Noise(1).uniform(torch.zeros(5, 1, 6, dtype=torch.float64), 3000).view(5, 1, 2, 3)
    expected = pixelcnn_sample(
        model.output.layers(), model.output.distribution, uniforms, h.view(5, model.output.condition, 2, 3)
    )
    assert torch.equal(model.sample(5, seed=1), expected.view(5, 6))


def test_fame_without_concatenation_takes_one_pass():
    model = make("fame-noconcat")
    x = torch.rand(3, 6, dtype=torch.float64).round()
    assert torch.equal(
        model.reconstruct(x, seed=0), model.output.mean(model.draw(model.encode(x), x, 1, Noise(0)).decoded).squeeze(1)
    )
    drawn = model.sample(4, seed=0)
    assert ((drawn > 0) & (drawn < 1)).all()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"maps": (2,)}, "latent, maps and dense must have one entry per layer"),
        ({"maps": 2}, "latent, maps and dense must have one entry per layer"),
        ({"dense": (2, 0)}, "dense must be a positive whole number"),
        ({"concatenate": 1}, "concatenate must be true or false"),
        ({"condition": 0, "concatenate": False}, "condition must be at least 1"),
        ({"kernel": 2, "concatenate": False}, "kernel must be odd"),
    ],
)
def test_fame_settings_that_are_refused(settings, told):
    with pytest.raises(InputError, match=told):
        make("fame", **settings)


@pytest.mark.parametrize("name", ["sdgm", "lvae-label", "vae", "cagem"])
def test_any_model_may_have_a_pixelcnn_as_its_output(name):
    model = models.create(name, x_dim=16, likelihood="pixelcnn", **({"num_classes": 3} if name not in ("vae",) else {}))
    x = (torch.rand(4, 16) < 0.4).float()
    loss, _ = Objective().loss(model, x, None, 1.0, 0)
    loss.backward()
    assert all(p.grad is not None for p in model.output.parameters())
    model.eval()
    assert set(model.sample(3).unique().tolist()) <= {0.0, 1.0}
    terms = model.draw(model.encode(x), x, 2, Noise(0))
    if name != "vae":  # every label has its own feature maps, and all labels see the same pixels
        assert terms.log_px.shape == (4, 2, 3)
        for c in range(3):
            torch.testing.assert_close(model.output.log_prob(terms.decoded[:, :, c], x.unsqueeze(1)), terms.log_px[:, :, c])
    if name == "sdgm":
        assert Objective(label_sum="sparse").loss(model, x, None, 1.0, 0)[0].isfinite()


def test_a_mesh_of_z2_shows_draws_of_autoregressive_pixels():
    model = models.create("cagem", x_dim=16, likelihood="pixelcnn", num_classes=3)
    shown = model.decode_z2(torch.zeros(2, 1, model.latent[1]), Noise(0))
    assert not models.create("potential").autoregressive  # a potential has no output
    assert model.autoregressive and shown.shape == (2, 16) and bool(((shown == 0) | (shown == 1)).all())


TINY_RECIPES = {
    "pixelcnn-mnist": {"model.maps": 4, "model.blocks": 1},
    "fame-mnist": {
        "model.decoder_maps": 4,
        "model.blocks": 1,
        "model.latent": [3, 2],
        "model.maps": [4, 4],
        "model.dense": [8, 8],
    },
}


@pytest.fixture(scope="module", params=TINY_RECIPES)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / request.param
    recipe = recipes.get(request.param).override({**TINY_RECIPES[request.param], "data": "digits", "epochs": 2, "eval_every": 1})
    train.fit(recipe, folder, progress=False, figures=False)
    return folder


def test_recipes_train_evaluate_sample_and_draw(run, tmp_path, capsys):
    call("evaluate", run, "--iw", "20", "--limit", "30", "--no-progress")
    assert (run / "evaluation.json").exists()
    call("sample", run, "--n", "9", "--npz", tmp_path / "x.npz", "--temperature", "0.7", "--no-progress")
    call("figures", run)
    names = {path.name for path in (run / "figures").iterdir()}
    assert {"samples.png", "reconstructions.png", "training_curve.png"} <= names
    assert ("completions.png" in names) == ("pixelcnn" in run.name) and ("masking_study.png" in names) == ("fame" in run.name)


def test_a_killed_run_resumes_to_the_same_parameters(run, tmp_path):
    recipe = recipes.get(run.name).override({**TINY_RECIPES[run.name], "data": "digits", "epochs": 1, "eval_every": 1})
    train.fit(recipe, tmp_path / "half", progress=False, figures=False)
    resumed = train.resume(tmp_path / "half", {"epochs": 2}, progress=False, figures=False)
    whole = train.resume(run, progress=False, figures=False)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_wide_feature_maps_stream_in_small_blocks():
    """Blocks must be small for FAME's decoder, because a usual block would hold hundreds of megabytes."""

    rows, samples = block_shape(models.create("fame"), 5000, torch.device("cpu"))
    assert rows * samples * 64 * 784 <= 2**21
    assert block_shape(models.create("vae"), 5000, torch.device("cpu"))[1] == 1250


def test_wide_feature_maps_are_encoded_in_small_parts(monkeypatch):
    """Rows must be encoded in small parts, because 512 colour images with 256 levels would take gigabytes."""

    model = models.create("pixelcnn", x_dim=12, image=(1, 3, 4), maps=4, blocks=0, tail=1)
    monkeypatch.setitem(FEW_NUMBERS, "cpu", 8 * model.output.row_numbers)
    rows, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda x, y: rows.append(len(x)) or encode(x, y))
    x = (torch.rand(20, 12) < 0.4).float()
    torch.testing.assert_close(evaluate.log_likelihood(model, x, k=1).log_px.float(), model.log_prob(x))
    assert set(rows) == {8}


def test_figures_refuse_other_models(tmp_path):
    x = torch.zeros(2, 6, dtype=torch.float64)
    with pytest.raises(InputError, match="masking_study: expected a FAME"):
        plots.masking_study(make("fame-noconcat"), x, tmp_path / "a.png", (1, 2, 3))
    with pytest.raises(InputError, match="completions: expected a PixelCNN"):
        plots.completions(make("vae"), x, tmp_path / "a.png", (1, 2, 3))


def test_a_temperature_on_the_command_line_must_be_positive(run):
    assert "temperature" in refused("sample", run, "--n", "1", "--temperature", "-1", "--no-progress")


def test_grey_levels_train_without_binarisation(tmp_path):
    digits = data.load("digits")
    recipe = recipes.get("pixelcnn-mnist").override(
        {"data": "digits", "model.likelihood": "categorical", "model.levels": 17, "binarize": False, "epochs": 1, "model.maps": 4}
    )
    model = train.fit(recipe, tmp_path / "run", dataset=digits, progress=False, figures=False)
    assert model.log_prob(digits.test.x[:3]).isfinite().all()
