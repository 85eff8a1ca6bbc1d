"""Recipes by name."""

from __future__ import annotations

from pathlib import Path

from dgmfast.errors import InputError
from dgmfast.models import MODELS, find
from dgmfast.plugins import load_plugins
from dgmfast.recipes.burda import BURDA
from dgmfast.recipes.digits import DIGITS
from dgmfast.recipes.fame import FAME
from dgmfast.recipes.family import FAMILY
from dgmfast.recipes.recipe import Recipe, unknown

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*DIGITS, *BURDA, *FAMILY, *FAME)}


def register(recipe: Recipe) -> Recipe:
    """Make a recipe available under its name, also on the command line (see models.register).

    Raises:
        InputError: The name is that of another recipe or of a model.
    """
    if recipe.name in MODELS or RECIPES.get(recipe.name, recipe) != recipe:
        raise InputError(f"register: {recipe.name!r} must be a new name; it is that of another recipe or of a model")
    RECIPES[recipe.name] = recipe
    return recipe


def names() -> list[str]:
    """The names of the recipes that `get` returns."""
    return list(RECIPES)


def get(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        InputError: There is no such recipe. The message suggests the most similar names.
    """
    if name not in RECIPES:
        load_plugins()
    if name not in RECIPES:
        raise InputError(unknown("recipe", name, RECIPES))
    return RECIPES[name]


def resolve(name: str, data: str | None = None) -> Recipe:
    """The recipe called `name`, or the model called `name` with its defaults.

    `data` replaces the recipe's data set. A model needs it.

    Raises:
        InputError: Neither a recipe nor a model has that name, or a model is named without data.
    """
    if name not in RECIPES and find(name) is None:
        load_plugins()
    if name in RECIPES:
        return RECIPES[name] if data is None else RECIPES[name].override({"data": data})
    if name not in MODELS:
        raise InputError(unknown("recipe or model", name, [*RECIPES, *MODELS]))
    if data is None:
        raise InputError(f"the model {name!r} needs a data set to train on: name one with --data")
    short = Path(data).stem if "/" in data or "." in data else data
    return Recipe(name=f"{name}-on-{short}", model={"name": name}, data=data)
