"""Each experiment as a named, complete setting."""

from dgmfast.recipes._burda import BURDA
from dgmfast.recipes._digits import DIGITS
from dgmfast.recipes._recipe import Recipe, Schedule
from dgmfast.recipes._registry import get, names, one_of

__all__ = ["BURDA", "DIGITS", "Recipe", "Schedule", "get", "names", "one_of"]
