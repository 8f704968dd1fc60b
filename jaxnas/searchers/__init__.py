"""Search strategies: one file, one strategy."""

from jaxnas.searchers.acquisition_tree import Proposal, search_tree
from jaxnas.searchers.acquisitions import (Acquisition, expected_improvement, thompson_sampling,
                                           upper_confidence_bound)
from jaxnas.searchers.bilevel import GRADIENTS, BilevelState, bilevel
from jaxnas.searchers.evolution import EvolutionState, regularized_evolution
from jaxnas.searchers.gaussian_process import (GaussianProcessModel, feature_kernel,
                                               gaussian_process, hamming_kernel)
from jaxnas.searchers.islands import islands
from jaxnas.searchers.local_search import LocalSearchState, local_search
from jaxnas.searchers.morphism_search import morphism_search
from jaxnas.searchers.nsga2 import NSGA2State, nsga2
from jaxnas.searchers.policy_gradient import PolicyGradientState
from jaxnas.searchers.ppo import ppo
from jaxnas.searchers.progressive import (GrowingDecisions, GrowingSpace, ProgressiveState,
                                          progressive)
from jaxnas.searchers.random_search import RandomSearchState, random_search
from jaxnas.searchers.reinforce import reinforce
from jaxnas.searchers.surrogate import SurrogateState, bayesian_optimization

__all__ = [
    "Acquisition", "BilevelState", "EvolutionState", "GRADIENTS", "GaussianProcessModel",
    "GrowingDecisions", "GrowingSpace", "LocalSearchState", "NSGA2State", "PolicyGradientState",
    "ProgressiveState", "Proposal", "RandomSearchState", "SurrogateState", "bayesian_optimization",
    "bilevel", "expected_improvement", "feature_kernel", "gaussian_process", "hamming_kernel",
    "islands", "local_search", "morphism_search", "nsga2", "ppo", "progressive", "random_search",
    "regularized_evolution", "reinforce", "search_tree", "thompson_sampling",
    "upper_confidence_bound",
]
