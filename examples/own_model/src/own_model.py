"""A model, a likelihood and a recipe outside dgmfast."""

import torch

from dgmfast import models, nn, recipes
from dgmfast.models import GenerativeModel, Latent, Terms


@nn.register_output("poisson")
class PoissonOutput(torch.nn.Module):
    """p(x|h) = Π_d Poisson(x_d; exp(W h + b)_d), of counts x."""

    support = (0.0, float("inf"))
    autoregressive = False

    def __init__(self, n_in, x_dim, head="log_var"):
        super().__init__()
        self.log_rate = torch.nn.Linear(n_in, x_dim)

    def log_prob(self, h, x):
        log_rate = self.log_rate(h)
        return (x * log_rate - log_rate.exp() - torch.lgamma(x + 1.0)).sum(-1)

    def mean(self, h, x=None):
        return self.log_rate(h).exp()

    def sample(self, h, noise, temperature=1.0, progress=None):
        return torch.poisson(self.mean(h))

    @torch.no_grad()
    def init_mean(self, mean):
        self.log_rate.bias.copy_(mean.clamp(min=1e-3).log())


@models.register("counts")
class Counts(GenerativeModel):
    """p(z) = N(0, I), p(x|z) = Poisson(exp(W z + b)); q(z|x) has one hidden layer on log(1 + x)."""

    def __init__(self, x_dim=12, latent=4, hidden=(32,)):
        super().__init__()
        self.x_dim, self.latent = x_dim, latent
        self.q_z = nn.GaussianMLP(x_dim, hidden, latent, "tanh")
        self.output = PoissonOutput(latent, x_dim)

    def encode(self, x, y=None):
        mean, log_var = self.q_z(torch.log1p(x))
        return {"mean": mean, "log_var": log_var}

    def draw(self, encoding, x, k, noise, y=None):
        q = encoding["mean"], encoding["log_var"]
        z, log_q = noise.gaussian(q, k, stream=0)
        latent = Latent(z, log_q, (q[0].unsqueeze(1), q[1].unsqueeze(1)), exact=True)
        return Terms(z, self.output.log_prob(z, x.unsqueeze(1)), {"z": latent})

    def prior(self, n, noise, y=None):
        return self.standard_normal(n, self.latent, noise, stream=0)


recipes.register(
    recipes.Recipe(
        name="counts-demo",
        model={"name": "counts"},
        data="counts.npy",
        data_options={"normalize": False},
        start_at_mean=True,
        epochs=5,
        note="A Poisson model of counts, from examples/own_model.",
    )
)
