"""Random indices from few random bits: where search is cheap, bits are a large part of its cost.

A 32-bit word stands for a fraction of 1. `take(word, n)` spends log2(n) of its bits on an index in
[0, n) and returns what remains of the fraction, from which the next index is taken. An index taken
when the words before it spent b bits is uniform up to a relative error of n * 2 ** (b - 32), so
`words_for` allows 16 spent bits a word: the error stays below n / 65,536.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

SPENT_BITS = 16  # of a word, at most


def take(word: jax.Array, count: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Take an index out of a random word.

    Args:
      word: uint32, any shape.
      count: choices, in [1, 65536]; broadcasts against `word`.

    Returns:
      index, int32 in [0, count), the integer part of count * word / 2 ** 32; and the uint32 word
      of what is left, its fractional part.
    """
    count = jnp.asarray(count, jnp.uint32)
    low = (word & 0xFFFF) * count   # the product of 32 and 16 bits, in halves of 16
    high = (word >> 16) * count + (low >> 16)
    return (high >> 16).astype(jnp.int32), (high << 16) | (low & 0xFFFF)


def words_for(counts: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Group draws so that each group is taken out of one word.

    Args:
      counts: choices of every draw, each in [1, 65536].

    Returns:
      Groups of positions in `counts`, in order; the product of a group's counts is at most 2 ** 16.

    Raises:
      ValueError: a count is out of range.
    """
    groups: list[list[int]] = []
    product = 1
    for position, count in enumerate(counts):
        if not 1 <= count <= 1 << SPENT_BITS:
            raise ValueError(f"choices must be in [1, {1 << SPENT_BITS}], got {count}.")
        if not groups or product * count > 1 << SPENT_BITS:
            groups.append([])
            product = 1
        groups[-1].append(position)
        product *= count
    return tuple(map(tuple, groups))


def indices(key: jax.Array, counts: Sequence[int]) -> list[jax.Array]:
    """Draw one independent index for every count, each [] int32 in [0, counts[i]).

    A list and not an array: what concatenates does not vectorise, and few draws are used as one.

    Raises:
      ValueError: no counts, or one that is not in [1, 65536].
    """
    groups = words_for(counts)
    if not groups:
        raise ValueError("counts must hold one number of choices at least.")
    words = jax.random.bits(key, (len(groups),))
    drawn = []
    for word, group in zip(words, groups):
        for position in group:
            index, word = take(word, counts[position])
            drawn.append(index)
    return drawn
