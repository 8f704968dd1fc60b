"""Regularised evolution (Real et al., 2019, https://arxiv.org/abs/1802.01548)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnas import draws
from jaxnas.base import Searcher, SearchSpace

REMOVALS = ("oldest", "worst")


class EvolutionState(NamedTuple):
    """The population: a ring buffer in order of age, if the oldest die."""

    archs: jax.Array    # [P, L] int32
    fitness: jax.Array  # [P] float32; -inf until evaluated, and for a failure
    num_evaluated: jax.Array  # [] int32; architectures told so far


def regularized_evolution(space: SearchSpace, *, population_size: int = 100,
                          tournament_size: int = 25, batch_size: int = 1,
                          removal: str = "oldest") -> Searcher:
    """Tournament selection, one mutation, death of the oldest (algorithm 1).

    The first `population_size` architectures are random. Then each child is a mutation of the
    fittest of `tournament_size` members, drawn with replacement as in the authors' notebook, and
    takes the place of the oldest member, however fit that is.

    Published settings: population 100, tournament 25 (AmoebaNet on CIFAR-10); 10 and 3
    (NAS-Bench-201, with `NASBench201(mutation="node")`).

    Args:
      space: gives `sample` and `mutate`.
      population_size: P, members alive.
      tournament_size: S in the paper; 1 selects nothing. May exceed P.
      batch_size: B, children of one population; 1 is the published algorithm. It divides P, so
        that founders and children never share a batch.
      removal: "oldest" regularises; "worst" is the usual evolution that the paper compares with.

    Returns:
      A searcher whose info is `population_best` and `population_mean` (of members that did not
      fail; -inf and NaN before there is one).

    Raises:
      ValueError: a size is out of range, or an unknown removal.
    """
    if not 1 <= population_size <= 1 << draws.SPENT_BITS:
        raise ValueError(
            f"population_size must be in [1, {1 << draws.SPENT_BITS}], got {population_size}."
        )
    if tournament_size < 1:
        raise ValueError(f"tournament_size must be 1 or more, got {tournament_size}.")
    if batch_size < 1 or population_size % batch_size:
        raise ValueError(
            f"batch_size must divide population_size, got {batch_size} and {population_size}."
        )
    if removal not in REMOVALS:
        raise ValueError(f"removal must be one of {REMOVALS}, got {removal!r}.")

    def init(key):
        founders = jax.vmap(space.sample)(jax.random.split(key, population_size))
        lowest = jnp.full(population_size, -jnp.inf, jnp.float32)  # strongly typed, as after tell
        return EvolutionState(founders, lowest, jnp.int32(0))

    def member(array, index):  # an index that was drawn needs no check
        return array.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)

    def child(key, state):
        select_key, mutate_key = jax.random.split(key)
        winner, *others = draws.indices(select_key, (population_size,) * tournament_size)
        best = member(state.fitness, winner)
        for entrant in others:
            fitness = member(state.fitness, entrant)
            winner = jnp.where(fitness > best, entrant, winner)
            best = jnp.maximum(fitness, best)
        return space.mutate(mutate_key, member(state.archs, winner))

    def ask(key, state):
        keys = key[None] if batch_size == 1 else jax.random.split(key, batch_size)
        children = jax.vmap(child, (0, None))(keys, state)
        start = state.num_evaluated % population_size
        founders = jax.lax.dynamic_slice_in_dim(state.archs, start, batch_size)
        return jnp.where(state.num_evaluated < population_size, founders, children)

    def replace_oldest(state, archs, fitness):
        start = state.num_evaluated % population_size
        return (jax.lax.dynamic_update_slice_in_dim(state.archs, archs, start, 0),
                jax.lax.dynamic_update_slice_in_dim(state.fitness, fitness, start, 0))

    def replace_worst(state, archs, fitness):
        worst = jnp.argsort(state.fitness)[:batch_size]
        founding = state.num_evaluated + jnp.arange(batch_size)
        slots = jnp.where(state.num_evaluated < population_size, founding, worst)
        return state.archs.at[slots].set(archs), state.fitness.at[slots].set(fitness)

    replace = replace_oldest if removal == "oldest" else replace_worst

    def tell(key, state, archs, fitness):
        del key  # deterministic
        fitness = jnp.where(jnp.isnan(fitness), -jnp.inf, fitness)  # a failure never wins
        members, values = replace(state, archs, fitness)
        state = EvolutionState(members, values, state.num_evaluated + batch_size)
        alive = jnp.isfinite(state.fitness)
        mean = jnp.mean(state.fitness, where=alive)
        return state, {"population_best": state.fitness.max(), "population_mean": mean}

    return Searcher(init, ask, tell, batch_size)
