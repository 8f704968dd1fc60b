"""Search spaces: one file, one section of a paper."""

from jaxnas.search_spaces.darts import DARTS

__all__ = ["DARTS"]
