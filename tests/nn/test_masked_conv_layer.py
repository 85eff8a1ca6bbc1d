"""Tests of nn.MaskedConv2d: state dicts of other libraries, hidden weights during training, and errors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dgmfast import nn
from dgmfast.errors import InputError
from dgmfast.reference import causal_mask


def test_the_layer_loads_an_ordinary_masked_convolution(device: str) -> None:
    """The layer must load weight and bias with values at hidden taps, and the mask that other libraries store as a buffer."""
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(6, 9, (5, 3), padding=(2, 1)).to(device)
    taps = causal_mask("A", 9, 6, (5, 3), 3).to(device)
    layer = nn.MaskedConv2d(6, 9, (5, 3), "A", 3).to(device)
    layer.load_state_dict(plain.state_dict() | {"mask": taps})
    assert set(layer.state_dict()) == {"weight", "bias"}
    x = torch.randn(2, 6, 7, 8, device=device)
    torch.testing.assert_close(layer(x), F.conv2d(x, plain.weight * taps, plain.bias, padding=(2, 1)), rtol=1e-5, atol=1e-5)
    assert bool((layer.weight[taps == 0] == 0.0).all())
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask", ["A", "B"])
def test_hidden_weights_stay_zero_under_training(mask: str, device: str) -> None:
    torch.manual_seed(0)
    layer = nn.MaskedConv2d(3, 6, 3, mask, 3).to(device)
    taps = causal_mask(mask, 6, 3, (3, 3), 3).to(device)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    x = torch.randn(4, 3, 8, 8, device=device)
    for _ in range(5):
        optimizer.zero_grad()
        (layer(x).square().sum() - layer(x).sum()).backward()
        optimizer.step()
    assert bool((layer.weight[taps == 0] == 0.0).all())
    assert bool((layer.weight != before)[taps > 0].all())


def test_the_layer_takes_a_device_and_a_dtype() -> None:
    layer = nn.MaskedConv2d(2, 4, [3, 5], device="meta", dtype=torch.float64)
    assert layer.weight.device.type == "meta" and layer.weight.dtype == torch.float64
    assert layer.to_empty(device="cpu")(torch.zeros(1, 2, 4, 4, dtype=torch.float64)).shape == (1, 4, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd and positive; got 4"),
        ({"kernel_size": (3, -1)}, r"kernel_size must be odd and positive; got \(3, -1\)"),
        ({"kernel_size": 3.0}, "kernel_size must be odd and positive; got 3.0"),
        ({"kernel_size": True}, "kernel_size must be odd and positive; got True"),
        ({"mask": "C"}, "mask must be A or B; got 'C'"),
        ({"unmasked_inputs": 7}, r"unmasked_inputs must lie in 0\.\.6, the input channels; got 7"),
        ({"colors": 4}, "colors must divide the 6 masked input and 9 output channels; got 4"),
    ],
)
def test_errors_of_the_layer(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        nn.MaskedConv2d(**({"in_channels": 6, "out_channels": 9, "kernel_size": 3} | change))
