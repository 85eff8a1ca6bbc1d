"""Recipes: each experiment as a named, complete setting."""

from dgmfast.recipes.burda import BURDA
from dgmfast.recipes.digits import DIGITS
from dgmfast.recipes.recipe import Recipe, Schedule, unknown
from dgmfast.recipes.registry import get, names, resolve

__all__ = ["BURDA", "DIGITS", "Recipe", "Schedule", "get", "names", "resolve", "unknown"]
