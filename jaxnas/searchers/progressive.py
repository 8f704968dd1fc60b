"""Progressive search from small cells to large ones (Liu et al., 2018, PNAS, algorithm 1).

https://arxiv.org/abs/1712.00559. Which cells are smallest and what they grow into is the space's to
say; `GrowingDecisions` makes any product of decisions such a space.
"""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxnas import mutations
from jaxnas.base import Searcher, SearchSpace, Surrogate
from jaxnas.searchers import observations

SCORED_AT_ONCE = 2048  # expansions, of several parents: a bound of memory


class GrowingSpace(Protocol):
    """Architectures of sizes 1, 2, ... `num_sizes`, all as arch [L] int32 of one length."""

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[L] choices of every decision."""
        ...

    @property
    def num_sizes(self) -> int:
        """The largest size."""
        ...

    def smallest(self) -> tuple[jax.Array, jax.Array]:
        """Return the architectures of size 1 that grow into different ones, as `expand` does."""
        ...

    def expand(self, arch: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the architectures one larger than an arch [L], as [E, L], and which are any, [E].

        Can be traced. Two that grow into the same architectures are equal, or one of them is none.
        """
        ...

    def network(self, arch: jax.Array) -> jax.Array:
        """Return one and the same arch [L] for all that are the same network."""
        ...

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw an arch [L] of the largest size, or of any."""
        ...


class ProgressiveState(NamedTuple):
    """Where a search stands; Q rows hold a beam or the smallest architectures."""

    observed: observations.Observations
    queue: jax.Array        # [Q, L] int32; to be asked for
    queue_size: jax.Array   # [] int32; -1: there is nothing left to expand
    position: jax.Array     # [] int32; rows of the queue that were asked for
    parents: jax.Array      # [Q, L] int32; what is expanded next
    parents_size: jax.Array  # [] int32
    size: jax.Array         # [] int32; of the architectures in the queue


def progressive(space: GrowingSpace, surrogate: Surrogate, *, capacity: int, beam_size: int = 256,
                level_size: int | None = None, batch_size: int = 1) -> Searcher:
    """Evaluate all architectures of size 1, then of every size those that a surrogate finds best.

    A level is a queue of distinct networks, asked for B at a time: all of size 1 in random order,
    then the `level_size` best by prediction of all expansions of the level before, best first. At a
    level's end the surrogate is fitted anew to the normal scores of everything observed (in the
    paper to accuracies), all expansions of the beam are scored by one loop over its members, and
    what was observed or occurs twice is left out. When the largest size is reached the search goes
    on with the next best of the same expansions, which the paper does not.

    What is expanded next are the `beam_size` best by the same prediction. In PNAS's space, with as
    many in a level, these are what was asked for, as in the paper. Elsewhere an expansion may be a
    network that is known (an edge of NAS-Bench-201 that leads nowhere yet): it is expanded but not
    asked for. A budget that is small for a space has a smaller level than beam.

    A queue that ends inside a batch leaves it to random architectures: let B divide the number of
    the smallest and of a level. The state is [capacity, L] and a level's memory
    beam_size * E * L integers.

    Args:
      space: see `GrowingSpace`.
      surrogate: its mean alone is used.
      capacity: evaluations that the search will make; what is told beyond them is not learnt from.
      beam_size: K, architectures of a level that are expanded; 256 in the paper. Of the first all.
      level_size: those that are asked for, of every level but the first; None: K, as in the paper.
      batch_size: B.

    Returns:
      A searcher whose info is `best`, the largest fitness so far, and `size`, the size of what is
      asked for next.

    Raises:
      ValueError: a number is out of range.
    """
    level_size = beam_size if level_size is None else level_size
    for name, value in (("beam_size", beam_size), ("level_size", level_size),
                        ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")
    observations.check_capacity(capacity, batch_size)
    smallest = jax.eval_shape(space.smallest)[1].size
    length = len(space.num_choices)
    expansions = jax.eval_shape(space.expand, jax.ShapeDtypeStruct((length,), jnp.int32))[1].size
    rows = max(beam_size, level_size, smallest)
    parents_at_once = min(max(1, SCORED_AT_ONCE // expansions), rows)
    rows = -(-rows // parents_at_once) * parents_at_once

    def pad(archs):
        return jnp.zeros((rows, length), jnp.int32).at[:len(archs)].set(archs)

    def init(key):
        archs, valid = space.smallest()
        archs = jax.random.permutation(key, jnp.concatenate([archs, valid[:, None]], 1))
        archs, valid = archs[:, :length], archs[:, length] > 0
        networks = jax.vmap(space.network)(archs)
        new = observations.is_new(
            observations.empty(0, length), networks, space.num_choices, valid)
        front = lambda rows, chosen: pad(rows[jnp.argsort(~chosen, stable=True)])
        return ProgressiveState(
            observations.empty(capacity, length), front(networks, new), new.sum(dtype=jnp.int32),
            jnp.int32(0), front(archs, valid), valid.sum(dtype=jnp.int32), jnp.int32(1))

    def ask(key, state):
        places = state.position + jnp.arange(batch_size)
        queued = state.queue[jnp.minimum(places, rows - 1)]
        drawn = jax.vmap(space.sample)(jax.random.split(key, batch_size))
        return jnp.where((places < state.queue_size)[:, None], queued, drawn)

    def best_rows(archs, scores, allowed, count):
        """Return [Q, L] archs of the largest scores, and how many of them are allowed."""
        count = min(count, len(archs))
        _, chosen = jax.lax.top_k(jnp.where(allowed, jnp.maximum(scores, -1e30), -jnp.inf), count)
        return pad(archs[chosen]), jnp.minimum(allowed.sum(), count).astype(jnp.int32)

    def widen(key, state):
        """Score the expansions of all parents, and queue the best that are new."""
        observed = state.observed
        targets = observations.normal_scores(observed.fitness, observed.mask)
        model = surrogate.fit(key, observed.archs, targets, observed.mask)

        def expand(parent):
            archs, valid = space.expand(parent)
            networks = jax.vmap(space.network)(archs)
            return archs, networks, valid, surrogate.predict(model, networks)[0]

        archs, networks, valid, scores = jax.tree.map(
            lambda leaf: leaf.reshape(-1, *leaf.shape[2:]),
            jax.lax.map(expand, state.parents, batch_size=parents_at_once))
        scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)  # a model that failed
        exists = jnp.repeat(jnp.arange(rows) < state.parents_size, len(valid) // rows)
        different = observations.is_new(
            observations.empty(0, length), archs, space.num_choices, valid & exists)
        new = observations.is_new(observed, networks, space.num_choices, different)
        queue, queue_size = best_rows(archs, scores, new, level_size)
        beam, beam_rows = best_rows(archs, scores, different, beam_size)
        nothing_left = (queue_size == 0) & (state.size == space.num_sizes)
        size = jnp.minimum(state.size + 1, space.num_sizes)
        grows = size < space.num_sizes  # those of the largest size are expanded no more
        return state._replace(
            queue=queue, queue_size=jnp.where(nothing_left, -1, queue_size), position=jnp.int32(0),
            parents=jnp.where(grows, beam, state.parents),
            parents_size=jnp.where(grows, beam_rows, state.parents_size), size=size)

    def tell(key, state, archs, fitness):
        networks = jax.vmap(space.network)(archs)
        state = state._replace(
            observed=observations.add(state.observed, networks, fitness),
            position=jnp.minimum(state.position + batch_size, state.queue_size))
        # A loop, for a level may hold nothing new, and no `lax.cond`, which would fit in every step
        # of a batch of searches, see `conditionals`. One key is enough: levels have different data.
        state = jax.lax.while_loop(
            lambda state: (state.position >= state.queue_size) & (state.queue_size >= 0),
            lambda state: widen(key, state), state)
        return state, {"best": state.observed.fitness.max(), "size": state.size}

    return Searcher(init, ask, tell, batch_size, capacity)


@dataclasses.dataclass(frozen=True)
class GrowingDecisions:
    """Architectures of a space by size: the number of decisions that are not the base's.

    An expansion gives one more decision another value. On NAS-Bench-201, with "none" as its
    operation 0, that is one more edge; PNAS's cells grow by a block, with which this has in common
    that small architectures are met, and learnt from, before large ones.

    Attributes:
      space: of independent decisions, or one that says which are valid.
      base: [L] the architecture of size 0, which is not evaluated; empty: zeros.

    Raises:
      ValueError: a base of another length or out of range, or no decision of two choices.
    """

    space: SearchSpace
    base: tuple[int, ...] = ()

    def __post_init__(self):
        counts = self.num_choices
        mutations.free_positions(counts)  # raises if there is none
        base = self.base or (0,) * len(counts)
        if len(base) != len(counts) or not all(
                0 <= value < count for value, count in zip(base, counts)):
            raise ValueError(f"base must be one of the choices of every decision, num_choices is "
                             f"{counts}, got {base}.")
        object.__setattr__(self, "base", base)

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[L] choices of every decision."""
        return self.space.num_choices

    @property
    def num_sizes(self) -> int:
        """The decisions with two choices or more."""
        return len(mutations.free_positions(self.num_choices))

    def smallest(self) -> tuple[jax.Array, jax.Array]:
        """Return the archs that differ from the base in one decision: [S, L], and which are any."""
        return self.expand(jnp.array(self.base, jnp.int32))

    def expand(self, arch: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Give one more decision another value: [L] -> [E, L], [E]; E is the sum of choices - 1."""
        numbers = jnp.arange(mutations.num_neighbors(self.num_choices))
        archs = jax.vmap(lambda number: mutations.neighbor(arch, number, self.num_choices))(numbers)
        base = jnp.array(self.base, jnp.int32)
        # The neighbour has one decision more that is not the base's.
        larger = (archs != base).sum(-1) > (arch != base).sum()
        return archs, larger & jax.vmap(self.space.is_valid)(archs)

    def network(self, arch: jax.Array) -> jax.Array:
        """Return the space's canonical arch: [L] -> [L]."""
        return self.space.canonical(arch)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw an arch [L] of any size."""
        return self.space.sample(key)
