"""What a history of evaluations says: the best so far, what was new, what a budget allows.

Functions of one search's N evaluations in order, [N] or [N, L]; `jax.vmap` them over seeds.
Of a `search.History` with one architecture a step, they are rows such as `fitness[:, 0]`.
"""

import jax
import jax.numpy as jnp

from jaxnas.encodings import first_seen

__all__ = ["first_seen", "incumbents", "within_budget"]


def incumbents(fitness: jax.Array) -> jax.Array:
    """Return, for every evaluation, which one so far is the best: [N] -> [N] int32.

    The first of equals counts, and a NaN never wins; before anything succeeded it is the first.
    """
    fitness = jnp.where(jnp.isnan(fitness), -jnp.inf, fitness)
    numbers = jnp.arange(fitness.shape[0], dtype=jnp.int32)

    def better(first, second):
        wins = second[0] > first[0]
        return tuple(jnp.where(wins, b, a) for a, b in zip(first, second))

    return jax.lax.associative_scan(better, (fitness, numbers))[1]


def within_budget(*, new: jax.Array | None = None, unique: float | jax.Array | None = None,
                  cost: jax.Array | None = None,
                  budget: float | jax.Array | None = None) -> jax.Array:
    """Tell which evaluations a budget allows, a prefix of them: [N] bool.

    Looking up what is known already is free under a budget of unique evaluations.

    Args:
      new: [N] bool, from `first_seen`.
      unique: evaluations of new archs that are allowed.
      cost: [N] of every evaluation, in any unit, such as seconds of training; NaN counts nothing.
      budget: the sum of `cost` that is allowed; the evaluation that would exceed it is not made.

    Raises:
      ValueError: neither budget is whole.
    """
    if (new is None or unique is None) and (cost is None or budget is None):
        raise ValueError("within_budget needs new and unique, or cost and budget.")
    allowed = []
    if new is not None and unique is not None:
        allowed.append(jnp.cumsum(new) <= unique)
    if cost is not None and budget is not None:
        # Sums of many floats are rounded, each in its own way: without the maximum one may fall.
        allowed.append(jax.lax.cummax(jnp.cumsum(jnp.nan_to_num(cost))) <= budget)
    return jnp.all(jnp.stack(allowed), axis=0)
