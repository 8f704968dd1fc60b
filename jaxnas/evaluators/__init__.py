"""Evaluators: one file, one estimation strategy."""

from jaxnas.evaluators.tabular import tabular

__all__ = ["tabular"]
