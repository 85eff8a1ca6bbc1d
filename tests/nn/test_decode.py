"""Tests of nn.decode: the fused Bernoulli decoder must equal its modules, and must not be used where it would not."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from dgmfast import evaluate, models
from dgmfast.models import VAE
from dgmfast.nn import MLP, MOST_LAYERS, BernoulliOutput, RowBatchNorm, decode, fused_layers

CPU = torch.device("cpu")
ACTIVATIONS = ["tanh", "relu", "leaky_relu", "softplus", "elu", "identity"]


def draw(activation: str = "elu", batch_norm: bool = False, hidden: tuple[int, ...] = (7, 6)) -> tuple[MLP, BernoulliOutput]:
    """Returns a decoder in evaluation mode whose batch normalisation has random statistics and parameters."""
    torch.manual_seed(0)
    decoder, output = MLP(5, hidden, activation, batch_norm), BernoulliOutput(hidden[-1] if hidden else 5, 20)
    for norm in decoder.modules():
        if isinstance(norm, RowBatchNorm):
            for t in (norm.running_var, norm.weight):
                t.data.uniform_(0.3, 3.0)
            for t in (norm.running_mean, norm.bias):
                t.data.normal_()
    return decoder.eval(), output.eval()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, 5, generator=generator), torch.rand(3, 1, 20, generator=generator).round()


def in_turn(decoder: nn.Module, output: BernoulliOutput) -> Tensor:
    """Returns log p(x|h) with the layers called one after the other."""
    h, x = inputs()
    with torch.no_grad():
        for layer in decoder.children():
            h = layer(h)
        logits = output.logits(h)
        return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def values(decoder: nn.Module, output: BernoulliOutput) -> tuple[Tensor, Tensor]:
    """Returns log p(x|h) from `decode`, as in evaluation, and from the layers in turn."""
    z, x = inputs()
    with torch.no_grad():
        return decode(decoder, output, z, x)[1], in_turn(decoder, output)


@pytest.mark.parametrize("hidden", [(), (9,), (7, 6)])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_is_what_the_modules_are(activation: str, batch_norm: bool, hidden: tuple[int, ...]) -> None:
    decoder, output = draw(activation, batch_norm, hidden)
    assert fused_layers(decoder, output, CPU) is not None
    found, expected = values(decoder, output)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    z, x = inputs()
    with torch.no_grad():
        made, _ = decode(decoder, output, z, x)
    assert callable(made)
    torch.testing.assert_close(made(), decoder(z), rtol=1e-5, atol=1e-5)
    assert not made().requires_grad
    assert isinstance(decode(decoder, output, z, x)[0], Tensor)  # with gradients enabled, the layers were called


def _other_slope(decoder: MLP, output: BernoulliOutput) -> None:
    decoder[-1] = nn.ELU(0.3)


def _dropout(decoder: MLP, output: BernoulliOutput) -> None:
    decoder.append(nn.Dropout())


def _batch_statistics(decoder: MLP, output: BernoulliOutput) -> None:
    decoder.train()


def _no_affine(decoder: MLP, output: BernoulliOutput) -> None:
    decoder[1] = RowBatchNorm(7, affine=False).eval()


def _logits_without_bias(decoder: MLP, output: BernoulliOutput) -> None:
    output.logits = nn.Linear(6, 20, bias=False)


def _own_forward(decoder: MLP, output: BernoulliOutput) -> None:
    class Doubled(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return 2.0 * super().forward(x)

    decoder.__class__ = Doubled


def _patched_forward(decoder: MLP, output: BernoulliOutput) -> None:
    plain = decoder.forward
    decoder.forward = lambda x: 2.0 * plain(x)  # type: ignore[method-assign]


def _patched_log_prob(decoder: MLP, output: BernoulliOutput) -> None:
    plain = output.log_prob
    output.log_prob = lambda h, x: 2.0 * plain(h, x)  # type: ignore[method-assign]


def _own_log_prob(decoder: MLP, output: BernoulliOutput) -> None:
    class Doubled(BernoulliOutput):
        def log_prob(self, h: Tensor, x: Tensor) -> Tensor:
            return 2.0 * super().log_prob(h, x)

    output.__class__ = Doubled


def _own_norm(decoder: MLP, output: BernoulliOutput) -> None:
    class Doubled(RowBatchNorm):
        def forward(self, x: Tensor) -> Tensor:
            return 2.0 * super().forward(x)

    decoder[1].__class__ = Doubled


def _weight_norm(decoder: MLP, output: BernoulliOutput) -> None:
    parametrizations.weight_norm(decoder[0])
    decoder[0].parametrizations.weight.original0.data.mul_(2.0)


def _hook_of_the_decoder(decoder: MLP, output: BernoulliOutput) -> None:
    decoder.register_forward_hook(lambda module, arguments, h: 2.0 * h)


def _hook_of_the_logits(decoder: MLP, output: BernoulliOutput) -> None:
    output.logits.register_forward_pre_hook(lambda module, arguments: (2.0 * arguments[0],))


def _hook_of_a_layer(decoder: MLP, output: BernoulliOutput) -> None:
    decoder[0].register_forward_hook(lambda module, arguments, h: 2.0 * h)


def _hook_of_an_activation(decoder: MLP, output: BernoulliOutput) -> None:
    decoder[2].register_forward_hook(lambda module, arguments, kwargs, h: 2.0 * h, with_kwargs=True, always_call=True)


def _hook_of_the_norm(decoder: MLP, output: BernoulliOutput) -> None:
    decoder[1].register_forward_pre_hook(lambda module, arguments: (2.0 * arguments[0],))


def _adapter(decoder: MLP, output: BernoulliOutput) -> None:
    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2.0 * super().forward(x)

    output.logits.__class__ = Adapted


def _spectral_norm(decoder: MLP, output: BernoulliOutput) -> None:
    nn.utils.spectral_norm(output.logits).eval()


def _pruned(decoder: MLP, output: BernoulliOutput) -> None:
    prune.l1_unstructured(decoder[3], "weight", amount=0.5)


def _pruned_then_trained(decoder: MLP, output: BernoulliOutput) -> None:
    prune.l1_unstructured(decoder[3], "weight", amount=0.5)
    decoder[3].weight_orig.data.mul_(2.0)


OF_LAYERS: list[Callable[[MLP, BernoulliOutput], None]] = [
    *(_other_slope, _dropout, _batch_statistics, _no_affine, _logits_without_bias, _own_norm, _weight_norm, _spectral_norm),
    *(_hook_of_the_logits, _hook_of_a_layer, _hook_of_an_activation, _hook_of_the_norm, _adapter, _pruned, _pruned_then_trained),
]
OF_CONTAINERS: list[Callable[[MLP, BernoulliOutput], None]] = [
    *(_own_forward, _patched_forward, _own_log_prob, _patched_log_prob, _hook_of_the_decoder),
]


@pytest.mark.parametrize("change", [*OF_LAYERS, *OF_CONTAINERS], ids=lambda change: change.__name__[1:])
def test_what_was_changed_is_called(change: Callable[[MLP, BernoulliOutput], None]) -> None:
    decoder, output = draw(batch_norm=True)
    plain = values(decoder, output)[0]
    change(decoder, output)
    assert fused_layers(decoder, output, CPU) is None
    torch.manual_seed(0)  # for dropout
    z, x = inputs()
    with torch.no_grad():
        found = decode(decoder, output, z, x)[1]
    torch.manual_seed(0)
    with torch.no_grad():
        expected = in_turn(decoder, output) if change in OF_LAYERS else output.log_prob(decoder(z), x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, plain, rtol=1e-3)  # the change must have an effect


def test_a_global_hook_sees_the_decoder() -> None:
    decoder, output = draw()
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        with torch.no_grad():
            decode(decoder, output, *inputs())
    finally:
        handle.remove()
    assert decoder in seen


def test_a_decoder_deeper_than_the_op() -> None:
    decoder, output = draw(hidden=(4,) * MOST_LAYERS)
    torch.testing.assert_close(*values(decoder, output))
    decoder, output = draw(hidden=(4,) * (MOST_LAYERS - 1))
    assert fused_layers(decoder, output, CPU) is not None
    torch.testing.assert_close(*values(decoder, output), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vae", "lvae", "avae"])
def test_terms_decode_as_they_were_drawn(name: str) -> None:
    """`decoded` must keep the state of the draw: it has no gradient, and later changes of the model do not affect it."""
    sizes = {"hidden": ((6, 6), (5, 5)), "latent": (3, 2)}
    model = models.create(name, x_dim=9, **sizes).eval()
    x = torch.rand(4, 9).round()
    with torch.no_grad():
        terms = model.draw(model.encode(x), x, 2, models.Noise(0))
        expected = model.decoder(next(z for n, z in terms.latents.items() if n == "z1").z)
    again = pickle.loads(pickle.dumps(terms))
    model.train()
    for drawn in (terms, again):
        assert drawn.decoded is drawn.decoded and not drawn.decoded.requires_grad
        torch.testing.assert_close(drawn.decoded, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(terms.decoded, again.decoded)


def test_the_modules_without_memory_are_named() -> None:
    """`fused` must name the modules that evaluation skips; there are none after a change of one, or on another device."""
    plain, nested = models.create("vae", hidden=((6,),)), models.create("m1m2", hidden1=(6,), hidden2=(5,))
    assert {plain.decoder, plain.output.logits} <= set(plain.fused(CPU))
    assert {nested.m1.decoder, nested.output.logits} <= set(nested.fused(CPU))
    assert plain.fused(torch.device("cuda")) == [] and models.create("adgm").fused(CPU) == []
    _hook_of_the_decoder(plain.decoder, plain.output)
    assert plain.fused(CPU) == []


def test_blocks_do_not_depend_on_the_mode() -> None:
    """log p(x) must be evaluated the same way in training mode, in which a decoder with batch norm cannot be one op."""
    model = models.create("lvae", x_dim=6, latent=(3, 2), hidden=((5,), (4,)))
    x = torch.rand(7, 6).round()
    model.train()
    trained = evaluate.log_likelihood(model, x, k=300)
    assert model.training
    model.eval()
    assert torch.equal(evaluate.log_likelihood(model, x, k=300).log_px, trained.log_px)


def test_a_model_without_an_output_is_evaluated() -> None:
    """A user's own p(x|·) must be evaluated, whatever decoder the model has besides."""

    class Own(VAE):
        def draw(self, encoding, x, k, noise, y=None):  # type: ignore[no-untyped-def]
            terms = super().draw(encoding, x, k, noise, y)
            return models.Terms(terms.decoded, -terms.latents["z1"].z.square().sum(-1), terms.latents)

        def fused(self, device: torch.device) -> list[nn.Module]:
            return []

    model = Own(x_dim=4, latent=(2,), hidden=((3,),))
    assert evaluate.log_likelihood(model, torch.zeros(2, 4), k=20).log_px.isfinite().all()
