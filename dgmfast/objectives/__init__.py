"""Objectives: the bounds that training maximises, and gradient estimators for the importance-weighted ones."""

from dgmfast.objectives.objective import Labelled, Objective

__all__ = ["Labelled", "Objective"]
