"""L_K by other libraries, with our weights in their models. The libraries are optional and imported only when asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dgmfast.models import VAE
from dgmfast.nn import BernoulliOutput

# (x [N, D], k, samples at a time) -> log p(x) [N]
Peer = Callable[[Tensor, int, int], Tensor]


def pythae(model: VAE) -> Peer:
    """Calls pythae's own get_nll image by image; it encodes each image again for every batch of samples."""
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.q = model.q[0]

        def forward(self, x: Tensor) -> Any:
            mean, log_var = self.q(x)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.decoder, self.output = model.decoder, model.output

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.output.mean(self.decoder(z)))

    config = VAEConfig(input_dim=(model.x_dim,), latent_dim=model.latent[0], reconstruction_loss="bce")
    theirs = PythaeVAE(config, encoder=Encoder(), decoder=Decoder()).to(next(model.parameters()).device).eval()

    @torch.no_grad()
    def log_px(x: Tensor, k: int, chunk: int) -> Tensor:
        # In spite of its name, get_nll returns the mean log p(x) over the images it is given.
        return torch.tensor([float(theirs.get_nll(row, n_samples=k, batch_size=min(k, chunk))) for row in x.split(1)])

    return log_px


def pyro(model: VAE) -> Peer:
    """Calls Pyro's vectorized_importance_weights image by image, with `chunk` samples at a time."""
    import pyro as library
    from pyro import distributions as dist
    from pyro.infer.importance import vectorized_importance_weights

    library.enable_validation(False)
    device = next(model.parameters()).device
    zeros, ones = torch.zeros(model.latent[0], device=device), torch.ones(model.latent[0], device=device)

    def joint(x: Tensor) -> None:
        with library.plate("data", len(x), dim=-1):
            z = library.sample("z", dist.Normal(zeros, ones).to_event(1))
            assert isinstance(model.output, BernoulliOutput)
            logits = model.output.logits(model.decoder(z))
            library.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        mean, log_var = model.q[0](x)
        with library.plate("data", len(x), dim=-1):
            library.sample("z", dist.Normal(mean, torch.exp(0.5 * log_var)).to_event(1))

    @torch.no_grad()
    def log_px(x: Tensor, k: int, chunk: int) -> Tensor:
        bounds = []
        for row in x.split(1):
            sizes = [min(chunk, k - done) for done in range(0, k, chunk)]
            weights = [vectorized_importance_weights(joint, guide, row, num_samples=n, max_plate_nesting=1)[0] for n in sizes]
            bounds.append(torch.logsumexp(torch.cat([w.reshape(-1) for w in weights]), 0) - math.log(k))
        return torch.stack(bounds)

    return log_px


PEERS: dict[str, Callable[[VAE], Peer]] = {"pythae": pythae, "Pyro": pyro}
