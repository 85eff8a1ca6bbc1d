"""Small experiments on scikit-learn's digits, for the demo and for a first try. They need no files."""

from __future__ import annotations

from dgmfast.objectives import Objective
from dgmfast.recipes.recipe import Recipe, Schedule

_NOTE = "Scikit-learn's 8 x 8 digits: a quick check, with no published number to compare with."


def _recipe(name: str, k: int) -> Recipe:
    return Recipe(
        name=name,
        model={"name": "vae", "latent": [10], "hidden": [[100, 100]], "activation": "tanh"},
        data="digits",
        objective=Objective(k=k),
        learning_rate=3e-3,
        eps=1e-4,
        schedule=Schedule("step", factor=0.5, every=30),
        batch_size=50,
        epochs=100,
        start_at_mean=True,
        eval_every=5,
        note=_NOTE,
    )


DIGITS = (_recipe("vae-digits", 1), _recipe("iwae-digits", 50))
