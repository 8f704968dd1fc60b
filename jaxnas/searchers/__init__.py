"""Search strategies: one file, one strategy."""

from jaxnas.searchers.bilevel import GRADIENTS, BilevelState, bilevel
from jaxnas.searchers.evolution import EvolutionState, regularized_evolution
from jaxnas.searchers.local_search import LocalSearchState, local_search
from jaxnas.searchers.policy_gradient import PolicyGradientState
from jaxnas.searchers.ppo import ppo
from jaxnas.searchers.random_search import RandomSearchState, random_search
from jaxnas.searchers.reinforce import reinforce

__all__ = [
    "GRADIENTS", "BilevelState", "EvolutionState", "LocalSearchState", "PolicyGradientState",
    "RandomSearchState", "bilevel", "local_search", "ppo", "random_search",
    "regularized_evolution", "reinforce",
]
