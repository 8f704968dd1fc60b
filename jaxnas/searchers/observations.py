"""What sequential model-based searchers remember: every network evaluated, in a fixed buffer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from jaxnas import encodings


class Observations(NamedTuple):
    """Evaluated networks, in the order of evaluation; N is the capacity."""

    archs: jax.Array    # [N, L] int32, canonical; 0 where there is none yet
    fitness: jax.Array  # [N] float32; -inf of a failure, and where there is none yet
    num_evaluated: jax.Array  # [] int32; so far, which may exceed N

    @property
    def mask(self) -> jax.Array:
        """[N] bool: which rows are in use."""
        return jnp.arange(self.fitness.shape[0]) < self.num_evaluated


def empty(capacity: int, num_decisions: int) -> Observations:
    """Return a buffer of no observations."""
    return Observations(jnp.zeros((capacity, num_decisions), jnp.int32),
                        jnp.full(capacity, -jnp.inf, jnp.float32), jnp.int32(0))


def check_capacity(capacity: int, batch_size: int) -> None:
    """Raise a `ValueError` unless a buffer has room for one batch."""
    if capacity < batch_size:
        raise ValueError("capacity must be the number of evaluations that will be made, batch_size "
                         f"= {batch_size} or more, got {capacity}.")


def add(observations: Observations, archs: jax.Array, fitness: jax.Array) -> Observations:
    """Append archs [B, L] and fitness [B], NaN as -inf; what is beyond the capacity is lost."""
    fitness = jnp.where(jnp.isnan(fitness), -jnp.inf, fitness).astype(jnp.float32)
    rows = observations.num_evaluated + jnp.arange(archs.shape[0])
    return Observations(observations.archs.at[rows].set(archs, mode="drop"),
                        observations.fitness.at[rows].set(fitness, mode="drop"),
                        observations.num_evaluated + archs.shape[0])


def is_new(observations: Observations, archs: jax.Array, num_choices: tuple[int, ...],
           valid: jax.Array | None = None) -> jax.Array:
    """Tell which archs are neither observed nor among the ones before them: [M, L] -> [M] bool.

    Args:
      observations: of canonical archs.
      archs: canonical.
      num_choices: [L].
      valid: [M] bool, see `encodings.first_seen`.
    """
    valid = jnp.ones(archs.shape[0], bool) if valid is None else valid
    rows = jnp.concatenate([observations.archs, archs])
    valid = jnp.concatenate([observations.mask, valid])
    return encodings.first_seen(rows, num_choices, valid)[observations.mask.size:]


def normal_scores(fitness: jax.Array, mask: jax.Array) -> jax.Array:
    """Replace fitness by what a normal sample would have at its rank: [N], [N] bool -> [N].

    Searchers need an order only. Accuracies have a long tail of failures and bad networks, of which
    a model of the fitness itself would mostly tell how bad they are (Salinas et al., 2020, take the
    same scores, https://arxiv.org/abs/1909.13595). A failure, -inf, ranks last; equals share the
    middle of their ranks. 0 where masked out.
    """
    # Comparisons of all pairs fuse into two sums, which compile faster than a sort and searches.
    below = jnp.sum(mask & (fitness < fitness[:, None]), axis=-1)
    equal = jnp.sum(mask & (fitness == fitness[:, None]), axis=-1)
    quantile = (below + 0.5 * equal) / jnp.maximum(jnp.sum(mask), 1)
    return norm.ppf(jnp.where(mask, quantile, 0.5)).astype(jnp.float32)
