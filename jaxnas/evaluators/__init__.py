"""Evaluators: one file, one estimation strategy."""

from jaxnas.evaluators.children import (ChildTrainer, Examples, default_form, examples, member_keys,
                                        train_children)
from jaxnas.evaluators.from_scratch import from_scratch
from jaxnas.evaluators.populations import Memory, Population, PopulationTooLarge, compile_population
from jaxnas.evaluators.recipes import Recipe
from jaxnas.evaluators.tabular import tabular
from jaxnas.evaluators.weight_sharing import WeightSharing, weight_sharing

__all__ = [
    "ChildTrainer", "Examples", "Memory", "Population", "PopulationTooLarge", "Recipe",
    "WeightSharing", "compile_population", "default_form", "examples", "from_scratch",
    "member_keys", "tabular", "train_children", "weight_sharing",
]
