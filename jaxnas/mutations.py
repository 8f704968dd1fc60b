"""Sampling, mutation, crossover and neighbourhoods of products of independent decisions.

Array functions on one `arch` [L] int32 whose decision l is in [0, num_choices[l]); use `jax.vmap`
for many. A space whose decisions constrain each other has rules of its own.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import draws

NumChoices = tuple[int, ...]


def check_num_choices(num_choices: NumChoices) -> None:
    """Raise a `ValueError` unless there is a decision, and every one has 1 to 65,536 choices."""
    if not num_choices or any(
        not isinstance(n, int) or not 1 <= n <= 1 << draws.SPENT_BITS for n in num_choices
    ):
        raise ValueError(
            "num_choices must be a tuple of one or more integers in [1, 65536], got "
            f"{num_choices}."
        )


def sample(key: jax.Array, num_choices: NumChoices) -> jax.Array:
    """Draw an arch [L] int32 uniformly."""
    return jnp.stack(draws.indices(key, num_choices))


def is_valid(arch: jax.Array, num_choices: NumChoices) -> jax.Array:
    """Tell whether every decision is in range, as [] bool."""
    return jnp.all((arch >= 0) & (arch < jnp.array(num_choices)))


def mutate(key: jax.Array, arch: jax.Array, num_choices: NumChoices) -> jax.Array:
    """Change one decision, uniform among those with a choice, to another value, uniformly.

    Raises:
      ValueError: no decision has two choices.
    """
    positions = free_positions(num_choices)
    widest = max(num_choices) - 1
    words = jax.random.bits(key, (len(draws.words_for((len(positions), widest))),))
    which, rest = draws.take(words[0], len(positions))
    position, others = which, jnp.int32(widest)
    if len(set(num_choices)) > 1:  # else, as usual, no lookups
        position = jnp.asarray(positions, jnp.int32)[which]
        others = jnp.asarray(num_choices, jnp.int32)[position] - 1
    step, _ = draws.take(rest if words.size == 1 else words[1], others)
    return shift(arch, position, step + 1, num_choices)


def shift(arch: jax.Array, position: jax.Array, step: jax.Array,
          num_choices: NumChoices) -> jax.Array:
    """Add `step`, in [0, choices), to the decision at `position`, round the end: [L] -> [L]."""
    counts = np.asarray(num_choices, np.int32)
    moved = arch + step
    moved = jnp.where(moved >= counts, moved - counts, moved)  # a modulo would divide
    return jnp.where(np.arange(len(num_choices)) == position, moved, arch)


def crossover(key: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """Take every decision from one of two archs [L], each with probability 1/2."""
    length = first.shape[-1]
    words = jax.random.bits(key, ((length + 31) // 32,))
    positions = np.arange(length)
    from_first = (words[positions // 32] >> (positions % 32).astype(np.uint32)) & 1
    return jnp.where(from_first == 1, first, second)


def num_neighbors(num_choices: NumChoices) -> int:
    """Return how many archs differ from one in exactly one decision."""
    return sum(n - 1 for n in num_choices)


def neighbor(arch: jax.Array, index: jax.Array, num_choices: NumChoices) -> jax.Array:
    """Return the `index`-th arch [L] that differs from `arch` in exactly one decision.

    Args:
      arch: [L] int32.
      index: [] integer in [0, num_neighbors); decisions in order, for each its other values.
      num_choices: [L].
    """
    position = np.repeat(np.arange(len(num_choices)), [n - 1 for n in num_choices])
    step = np.concatenate([np.arange(1, n) for n in num_choices])
    return shift(arch, jnp.asarray(position)[index], jnp.asarray(step)[index], num_choices)


def edit_distance(first: jax.Array, second: jax.Array) -> jax.Array:
    """Count the decisions in which two archs differ: [..., L], [..., L] -> [...] int32."""
    return jnp.sum(first != second, axis=-1).astype(jnp.int32)


def free_positions(num_choices: NumChoices) -> np.ndarray:
    """Return the decisions that have two choices or more.

    Raises:
      ValueError: there is none, so that nothing can be mutated.
    """
    positions = np.flatnonzero(np.asarray(num_choices) > 1)
    if not positions.size:
        raise ValueError(f"one decision must have two choices, got {num_choices=}.")
    return positions
