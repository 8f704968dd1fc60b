"""NSGA-II, evolution of a whole front (Deb et al., 2002, https://doi.org/10.1109/4235.996017)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnas import draws, pareto
from jaxnas.base import Searcher, SearchSpace


class NSGA2State(NamedTuple):
    """The population, the best first: by front, then the less crowded."""

    archs: jax.Array    # [P, L] int32
    fitness: jax.Array  # [P, M] float32; -inf until evaluated, and for a failure
    num_evaluated: jax.Array  # [] int32; architectures told so far


def nsga2(space: SearchSpace, *, num_objectives: int = 2, population_size: int = 20,
          batch_size: int | None = None, crossover_rate: float = 0.9,
          mutation_rate: float = 1.0) -> Searcher:
    """Non-dominated sorting, crowding, binary tournaments, and survival of the best of all.

    The first `population_size` architectures are random. Then each child has two parents, each the
    better of two members drawn at random: the one on the earlier front, or on the same front the
    less crowded. Of members and children together the best `population_size` survive.

    Deviations from the paper: variation is that of the space (`crossover`, then one `mutate`)
    instead of operators on bits or reals. An architecture that is in the population already, as
    the same canonical arch, ranks behind everything else that did not fail and so drops out first:
    copies have no distance between them, and in a small space they would fill the front.

    Args:
      space: gives `sample`, `mutate`, `crossover` and `canonical`.
      num_objectives: M; fitness is [B, M] and every column is maximised, see `objectives.vector`.
        A row with a value that is not finite has failed.
      population_size: P, the paper's N.
      batch_size: B, children of one generation, at most P; default P as published. 1 replaces the
        worst member by one child at a time.
      crossover_rate: probability in [0, 1] that a child mixes its parents; else it has one.
      mutation_rate: probability in [0, 1] that a child is mutated.

    Returns:
      A searcher whose info is `front_size` (members on the first front, without copies) and
      `num_copies` (members that are copies).

    Raises:
      ValueError: a size or a rate is out of range.
    """
    batch = population_size if batch_size is None else batch_size
    if not 2 <= population_size <= 1 << draws.SPENT_BITS:
        raise ValueError(
            f"population_size must be in [2, {1 << draws.SPENT_BITS}], got {population_size}.")
    if not 1 <= batch <= population_size:
        raise ValueError(f"batch_size must be in [1, {population_size}], got {batch}.")
    if num_objectives < 1:
        raise ValueError(f"num_objectives must be 1 or more, got {num_objectives}.")
    for name, rate in (("crossover_rate", crossover_rate), ("mutation_rate", mutation_rate)):
        if isinstance(rate, (int, float)) and not 0 <= rate <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {rate}.")

    def init(key):
        archs = jax.vmap(space.sample)(jax.random.split(key, population_size))
        lowest = jnp.full((population_size, num_objectives), -jnp.inf, jnp.float32)
        return NSGA2State(archs, lowest, jnp.int32(0))

    def child(key, state):
        select_key, cross_key, mutate_key, rate_key = jax.random.split(key, 4)
        drawn = draws.indices(select_key, (population_size,) * 4)
        # The population is in order of the crowded comparison: the smaller index wins.
        first, second = (state.archs[jnp.minimum(a, b)] for a, b in (drawn[:2], drawn[2:]))
        cross, mutate = jax.random.uniform(rate_key, (2,)) < jnp.array(
            [crossover_rate, mutation_rate])
        arch = jnp.where(cross, space.crossover(cross_key, first, second), first)
        return jnp.where(mutate, space.mutate(mutate_key, arch), arch)

    def ask(key, state):
        child_key, founder_key = jax.random.split(key)
        children = jax.vmap(child, (0, None))(jax.random.split(child_key, batch), state)
        founders = jax.vmap(space.sample)(jax.random.split(founder_key, batch))
        founding = state.num_evaluated + jnp.arange(batch) < population_size
        return jnp.where(founding[:, None], founders, children)

    def tell(key, state, archs, fitness):
        del key  # deterministic
        if fitness.shape != (batch, num_objectives):
            raise ValueError(
                f"fitness must be [{batch}, {num_objectives}], got {list(fitness.shape)}; give "
                "one objective a column, see objectives.vector.")
        archs = jnp.concatenate([state.archs, archs])
        fitness = jnp.concatenate([state.fitness, fitness])
        known = pareto.counted(fitness)
        fitness = jnp.where(known[:, None], fitness, -jnp.inf)  # a failure never wins
        copies = _copies(jax.vmap(space.canonical)(archs), known)
        rank = pareto.ranks(fitness, ~copies)
        worst = len(rank)
        crowding = pareto.crowding_distance(fitness, rank)
        order = jnp.lexsort((-crowding, jnp.where(known & copies, worst - 1, rank)))
        best = order[:population_size]
        state = NSGA2State(archs[best], fitness[best], state.num_evaluated + batch)
        return state, {"front_size": jnp.sum(rank[best] == 0).astype(jnp.int32),
                       "num_copies": jnp.sum((known & copies)[best]).astype(jnp.int32)}

    return Searcher(init, ask, tell, batch)


def _copies(archs, known):
    """Tell which rows repeat an earlier one that did not fail: [N, L], [N] -> [N] bool."""
    equal = jnp.all(archs[:, None] == archs[None], axis=-1)
    earlier = jnp.tri(len(archs), k=-1, dtype=bool) & known
    return jnp.any(equal & earlier, axis=1)
