"""Recipes: each experiment as a named, complete setting."""

from dgmfast.recipes.burda import BURDA
from dgmfast.recipes.digits import DIGITS
from dgmfast.recipes.recipe import OWN_DATA, Recipe, Schedule, unknown
from dgmfast.recipes.registry import get, names, register, resolve

__all__ = ["BURDA", "DIGITS", "OWN_DATA", "Recipe", "Schedule", "get", "names", "register", "resolve", "unknown"]
