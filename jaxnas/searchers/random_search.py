"""Random search: the baseline that every other row is printed beside."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnas.base import Searcher, SearchSpace


class RandomSearchState(NamedTuple):
    """Nothing is learnt; only counted."""

    num_evaluated: jax.Array  # [] int32; architectures told so far


def random_search(space: SearchSpace, *, batch_size: int = 1) -> Searcher:
    """Draw every architecture independently from the space, with replacement.

    Args:
      space: gives `sample`.
      batch_size: B.

    Raises:
      ValueError: batch_size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")

    def init(key):
        del key
        return RandomSearchState(jnp.int32(0))

    def ask(key, state):
        del state
        keys = key[None] if batch_size == 1 else jax.random.split(key, batch_size)
        return jax.vmap(space.sample)(keys)

    def tell(key, state, archs, fitness):
        del key, archs, fitness
        return RandomSearchState(state.num_evaluated + batch_size), {}

    return Searcher(init, ask, tell, batch_size)
