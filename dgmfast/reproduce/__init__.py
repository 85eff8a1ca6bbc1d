"""The thesis's tables: published numbers, the runs that reproduce them, and baselines."""

from dgmfast.reproduce.baselines import BASELINE_TITLES, BASELINES, m1_recipe, run_baseline
from dgmfast.reproduce.published import TABLES
from dgmfast.reproduce.table import Options, reproduce_table

__all__ = ["BASELINES", "BASELINE_TITLES", "TABLES", "Options", "m1_recipe", "reproduce_table", "run_baseline"]
