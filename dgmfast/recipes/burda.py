"""The VAE and IWAE of Burda, Grosse and Salakhutdinov (2015), whose numbers are the IWAE rows of the thesis's tables."""

from __future__ import annotations

from typing import Any

from dgmfast.objectives import Objective
from dgmfast.recipes.recipe import BURDA_EPOCHS, Recipe, Schedule

ONE_LAYER: dict[str, Any] = {"name": "vae", "latent": [50], "hidden": [[200, 200]], "activation": "tanh"}
TWO_LAYERS: dict[str, Any] = {"name": "vae", "latent": [100, 50], "hidden": [[200, 200], [100, 100]], "activation": "tanh"}

SOURCE = "Settings of Burda, Grosse and Salakhutdinov (2015), Importance Weighted Autoencoders"
OTHER_OMNIGLOT = "their chardata.mat has another split and resampling, so numbers here are near, not equal, to theirs"


def _recipe(name: str, model: dict[str, Any], data: str, k: int, published: str) -> Recipe:
    return Recipe(
        name=name,
        model=model,
        data=data,
        objective=Objective(k=k),
        learning_rate=1e-3,
        eps=1e-4,
        schedule=Schedule("burda"),
        batch_size=20,
        epochs=BURDA_EPOCHS,
        start_at_mean=True,
        eval_every=5,
        note=f"{SOURCE}; {published}.",
    )


BURDA = (
    _recipe("vae-mnist", ONE_LAYER, "mnist", 1, "L_5000 -86.76 nats on the test set"),
    _recipe("iwae-mnist", ONE_LAYER, "mnist", 50, "L_5000 -84.78 nats on the test set"),
    _recipe("vae2-mnist", TWO_LAYERS, "mnist", 1, "L_5000 -85.33 nats on the test set"),
    _recipe("iwae2-mnist", TWO_LAYERS, "mnist", 50, "L_5000 -82.90 nats on the test set"),
    _recipe("vae-omniglot", ONE_LAYER, "omniglot", 1, f"the thesis quotes no number for it; {OTHER_OMNIGLOT}"),
    _recipe("iwae2-omniglot", TWO_LAYERS, "omniglot", 50, f"L_5000 -103.38 nats on the test set; {OTHER_OMNIGLOT}"),
)
