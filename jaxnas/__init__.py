"""jaxnas: neural architecture search in JAX.

A search is a space (`jaxnas.search_spaces`), a searcher (`jaxnas.searchers`) and an evaluator
(`jaxnas.evaluators`); the complete systems are in `experiments`.
"""

__version__ = "0.1.0"
