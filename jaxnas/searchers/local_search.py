"""Local search, the honest baseline (White et al., 2021, https://arxiv.org/abs/2005.02960)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import mutations
from jaxnas.base import Searcher, SearchSpace

MOVES = ("best", "first")


class LocalSearchState(NamedTuple):
    """Where the search stands, and how much of the neighbourhood it has seen."""

    arch: jax.Array          # [L] int32; the centre
    fitness: jax.Array       # [] float32; of the centre, -inf until evaluated
    best_arch: jax.Array     # [L] int32; best neighbour so far
    best_fitness: jax.Array  # [] float32
    seen: jax.Array          # [] int32; neighbours evaluated; -1: not even the centre
    start: jax.Array         # [] int32; neighbour k is number (start + k * stride) mod their count
    stride: jax.Array        # [] int32
    restarts: jax.Array      # [] int32


def local_search(space: SearchSpace, *, move: str = "best") -> Searcher:
    """Evaluate the archs that differ from the centre in one decision, move, and start again.

    At a local optimum, where no neighbour is better, the search starts from a new random arch.
    Neighbours are met in a random order; those that the space does not hold fail.

    Args:
      space: gives `sample` and `num_choices`.
      move: "best" sees all neighbours and moves to the best, as published; "first" moves to the
        first that is better than the centre.

    Returns:
      A searcher with batch_size 1; its info is `centre_fitness` and `restarts`.

    Raises:
      ValueError: an unknown move, or a space in which nothing can be changed.
    """
    if move not in MOVES:
        raise ValueError(f"move must be one of {MOVES}, got {move!r}.")
    mutations.free_positions(space.num_choices)  # raises if there is none
    count = mutations.num_neighbors(space.num_choices)
    largest = min(count, (2 ** 31 - 1) // count - 1)  # start + seen * stride stays an int32
    strides = np.array([n for n in range(1, largest + 1) if math.gcd(n, count) == 1], np.int32)

    def order(key):
        start_key, stride_key = jax.random.split(key)
        stride = jax.random.choice(stride_key, jnp.asarray(strides))
        return jax.random.randint(start_key, (), 0, count), stride

    def init(key):
        sample_key, order_key = jax.random.split(key)
        arch = space.sample(sample_key)
        lowest = jnp.float32(-jnp.inf)
        start, stride = order(order_key)
        return LocalSearchState(
            arch, lowest, arch, lowest, jnp.int32(-1), start, stride, jnp.int32(0))

    def ask(key, state):
        del key  # the order was drawn when the centre was chosen
        number = (state.start + state.seen * state.stride) % count
        neighbor = mutations.neighbor(state.arch, number, space.num_choices)
        return jnp.where(state.seen < 0, state.arch, neighbor)[None]

    def tell(key, state, archs, fitness):
        arch, value = archs[0], jnp.where(jnp.isnan(fitness[0]), -jnp.inf, fitness[0])
        centre = state.seen < 0
        value_of_centre = jnp.where(centre, value, state.fitness)
        better = ~centre & (value > state.best_fitness)
        best_arch = jnp.where(better, arch, state.best_arch)
        best_fitness = jnp.where(better, value, state.best_fitness)
        seen = state.seen + 1
        improved = best_fitness > value_of_centre
        done = seen >= count
        moves = improved if move == "first" else improved & done
        restarts = done & ~improved
        sample_key, order_key = jax.random.split(key)
        start, stride = order(order_key)
        fresh = moves | restarts
        lowest = jnp.float32(-jnp.inf)
        new = LocalSearchState(
            arch=jnp.where(moves, best_arch,
                           jnp.where(restarts, space.sample(sample_key), state.arch)),
            fitness=jnp.where(moves, best_fitness, jnp.where(restarts, lowest, value_of_centre)),
            best_arch=best_arch, best_fitness=jnp.where(fresh, lowest, best_fitness),
            seen=jnp.where(moves, 0, jnp.where(restarts, -1, seen)),
            start=jnp.where(fresh, start, state.start),
            stride=jnp.where(fresh, stride, state.stride),
            restarts=state.restarts + restarts)
        return new, {"centre_fitness": value_of_centre, "restarts": new.restarts}

    return Searcher(init, ask, tell, 1)
