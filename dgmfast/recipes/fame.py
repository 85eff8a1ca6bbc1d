"""FAME, and its decoder alone (thesis §5.2; App. E)."""

from __future__ import annotations

from typing import Any

from dgmfast.objectives import Objective
from dgmfast.recipes.family import OTHER_OMNIGLOT
from dgmfast.recipes.recipe import Recipe

# App. E §3: Adam 3e-4, K = 1, β from 0.3 to 1 in 200 epochs. It gives neither the batch size nor the number of epochs.
SETTINGS: dict[str, Any] = {"learning_rate": 3e-4, "batch_size": 50, "epochs": 400, "eval_every": 5}
WARM_UP = Objective(warmup_epochs=200, warmup_start=0.3)


def _fame(name: str, data: str, note: str, **model: Any) -> Recipe:
    return Recipe(name, {"name": "fame", **model}, data, objective=WARM_UP, note=note, **SETTINGS)


FAME = (
    _fame("fame-mnist", "mnist", "L_5000 -77.82, L_1 -80.11; KL 10.85 nats in all, 5.04 of z5"),
    _fame("fame-mnist-static", "mnist-static", "L_5000 -79.30"),
    _fame("fame-omniglot", "omniglot", f"L_5000 -82.54, L_1 -86.62, KL of z5 3.67 nats; {OTHER_OMNIGLOT}"),
    _fame("fame-noconcat-mnist", "mnist", "L_5000 -78.73; KL 12.29 nats in all", concatenate=False),
    Recipe(
        "pixelcnn-mnist",
        {"name": "pixelcnn"},
        "mnist",
        note="FAME's decoder without latents: what z adds to it; log p(x) is exact. No published number.",
        **{**SETTINGS, "learning_rate": 1e-3, "epochs": 100},
    ),
    # Thesis §7 proposes this model; no number was published for it.
    Recipe(
        "sdgm-fame-mnist-100",
        {"name": "sdgm", "hidden": [500, 500], "latent": 100, "auxiliary": 100, "likelihood": "pixelcnn"},
        "mnist",
        objective=Objective(label_sum="sparse"),
        labels=100,
        labelled_batch=50,
        note="The SDGM with FAME's decoder as p(x|a, y, z): autoregressive pixels that see an image of a, y and z.",
        **{**SETTINGS, "batch_size": 100, "epochs": 200},
    ),
)
