"""A user's script. `make lint` checks its types, and tests/test_typed.py runs it."""

from typing import assert_type

import torch
from torch import Tensor

from dgmfast import evaluate, models, ops, reference
from dgmfast.evaluate import LogLikelihood
from dgmfast.models import GenerativeModel
from dgmfast.objectives import Objective

x = torch.zeros(4, 6)
z, log_q = ops.gaussian_sample(x, x, k=3)
assert_type(z, Tensor)
assert_type(ops.gaussian_kl(x, x), Tensor)
assert_type(ops.importance_bound(ops.gaussian_log_prob(z) - log_q), Tensor)
assert_type(reference.gaussian_log_prob(x, x, x), Tensor)

model = models.create("vae", x_dim=6, latent=(2,), hidden=((3,),))
assert_type(model, GenerativeModel)
bound = model.elbo(x, k=2).bound
assert_type(bound, Tensor)
assert_type(Objective(k=5).loss(model, x)[0], Tensor)
result = evaluate.log_likelihood(model, x, k=4)
assert_type(result, LogLikelihood)
assert_type(result.mean("log_px"), tuple[float, float])
