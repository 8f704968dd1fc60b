"""Search strategies: one file, one strategy."""

from jaxnas.searchers.bilevel import GRADIENTS, BilevelState, bilevel

__all__ = ["GRADIENTS", "BilevelState", "bilevel"]
