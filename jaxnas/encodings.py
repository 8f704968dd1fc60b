"""Integer encodings of architectures as other things: flat index, one-hot, paths, words.

Array functions on `archs` [..., L] int32 with decision l in [0, num_choices[l]).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MAX_FLAT_SIZE = 2 ** 31 - 1  # of a space whose flat index is an int32


def space_size(num_choices: tuple[int, ...]) -> int:
    """Return the number of combinations of all decisions."""
    return math.prod(num_choices)


def flat_index(archs: jax.Array, num_choices: tuple[int, ...]) -> jax.Array:
    """Number the architectures in lexicographic order: [..., L] -> [...] int32.

    The last decision varies fastest, as in `numpy.ravel_multi_index`.

    Raises:
      ValueError: the space has more than 2 ** 31 - 1 combinations; use `words`.
    """
    return jnp.sum(archs * _strides(num_choices), axis=-1, dtype=jnp.int32)


def from_flat_index(index: jax.Array, num_choices: tuple[int, ...]) -> jax.Array:
    """Invert `flat_index`: [...] integers -> [..., L] int32; raises as it does."""
    # In one operation: jnp.unravel_index takes seconds to compile where decisions are many.
    quotients = jnp.asarray(index, jnp.int32)[..., None] // _strides(num_choices)
    return quotients % np.array(num_choices, np.int32)


def _strides(num_choices: tuple[int, ...]) -> np.ndarray:
    if space_size(num_choices) > MAX_FLAT_SIZE:
        raise ValueError(
            f"a flat index needs at most {MAX_FLAT_SIZE} combinations, num_choices has "
            f"{space_size(num_choices)}; use jaxnas.encodings.words."
        )
    return np.cumprod((1, *num_choices[:0:-1]))[::-1].astype(np.int32)


def words(archs: jax.Array, num_choices: tuple[int, ...]) -> jax.Array:
    """Pack archs of any space into few integers, equal if and only if the archs are.

    Compared word by word they are in lexicographic order.

    Returns:
      [..., W] int32, W as small as whole decisions allow.
    """
    groups: list[list[int]] = [[]]
    for position, count in enumerate(num_choices):
        if groups[-1] and math.prod(num_choices[p] for p in groups[-1]) * count > MAX_FLAT_SIZE:
            groups.append([])
        groups[-1].append(position)
    packed = [flat_index(archs[..., group[0] : group[-1] + 1],
                         num_choices[group[0] : group[-1] + 1]) for group in groups]
    return jnp.stack(packed, axis=-1)


def first_seen(archs: jax.Array, num_choices: tuple[int, ...],
               valid: jax.Array | None = None) -> jax.Array:
    """Tell which rows are of an arch that no earlier row is: [N, L] -> [N] bool.

    Give canonical archs, and isomorphic ones count as one. It costs a sort.

    Args:
      archs: [N, L].
      num_choices: [L].
      valid: [N] bool; rows that are not valid may hold anything, and are not seen. None: all are.
    """
    packed = words(archs, num_choices)
    if valid is not None:
        packed = jnp.where(valid[:, None], packed, MAX_FLAT_SIZE)  # no word is so large
    order = jnp.lexsort(tuple(packed[:, i] for i in reversed(range(packed.shape[1]))))  # stable
    ordered = packed[order]
    new = jnp.any(ordered[1:] != ordered[:-1], axis=-1)
    new = jnp.concatenate([jnp.ones(1, bool), new])
    new = jnp.zeros_like(new).at[order].set(new)
    return new if valid is None else new & valid


def one_hot(archs: jax.Array, num_choices: tuple[int, ...]) -> jax.Array:
    """Encode for a predictor: [..., L] -> [..., sum(num_choices)] float32."""
    starts = np.cumsum((0, *num_choices[:-1]))
    columns = np.repeat(np.arange(len(num_choices)), num_choices)
    values = np.arange(sum(num_choices)) - starts[columns]
    return (archs[..., columns] == values).astype(jnp.float32)


def paths(
    archs: jax.Array, edges: Sequence[tuple[int, int]], num_choices: tuple[int, ...], *,
    absent: int | None = None
) -> jax.Array:
    """Encode cells of labelled edges by their paths: [..., L] -> [..., F] float32, 0 or 1.

    A feature is a sequence of operations from the first node to the last; it is 1 where the cell
    has that path (White et al., 2021, BANANAS, section 3, https://arxiv.org/abs/1910.11858). Cells
    that differ in edges through which nothing passes have the same features.

    Args:
      archs: decision l is the operation on edge l.
      edges: [L] pairs (from, to), from < to; the last node is the largest.
      num_choices: [L].
      absent: the operation that is no connection, which no path has; None: there is none. F is then
        smaller: NAS-Bench-201 has 100 paths of 4 operations, and 180 of 5.

    Raises:
      ValueError: edges of another number than decisions, or one that does not lead on.
    """
    edges = tuple(edges)
    if len(edges) != len(num_choices) or not all(0 <= i < j for i, j in edges):
        raise ValueError(f"edges must be {len(num_choices)} pairs (from, to) with 0 <= from < to, "
                         f"one a decision, got {edges}.")
    chosen = [np.setdiff1d(np.arange(count), [] if absent is None else [absent])
              for count in num_choices]
    here = [(archs[..., edge, None] == chosen[edge]).astype(jnp.float32)
            for edge in range(len(edges))]
    found: list[jax.Array] = []

    def walk(node: int, features: jax.Array | None) -> None:
        for edge, (source, target) in enumerate(edges):
            if source != node:
                continue
            longer = here[edge] if features is None else (
                features[..., None] * here[edge][..., None, :]).reshape(*archs.shape[:-1], -1)
            if target == last:
                found.append(longer)
            else:
                walk(target, longer)

    last = max(target for _, target in edges)
    walk(0, None)
    return jnp.concatenate(found, -1)


class Group(NamedTuple):
    """Architectures that are one network."""

    arch: np.ndarray     # [L] int32, canonical
    members: np.ndarray  # [M] their places among those given, ascending


def group_by_signature(
    archs: jax.Array | np.ndarray, canonical: Callable[[jax.Array], jax.Array]
) -> list[Group]:
    """Put together the archs that are the same network, to evaluate each once. Host only.

    The members of a group may differ in the order of their channels and in which shared weights
    they read: with shared weights, score the group's `arch` for all of them.

    Args:
      archs: [K, L] int32.
      canonical: of the space, [L] -> [L]; called under `jax.vmap`.

    Returns:
      The groups, in the order in which they first appear.

    Raises:
      ValueError: archs of another rank.
    """
    archs = np.asarray(archs)
    if archs.ndim != 2:
        raise ValueError(f"archs must be [K, L], got {list(archs.shape)}.")
    if not len(archs):
        return []
    signatures = np.asarray(jax.jit(jax.vmap(canonical))(archs))
    unique, group = np.unique(signatures, axis=0, return_inverse=True)
    members = [np.flatnonzero(group.reshape(-1) == number) for number in range(len(unique))]
    return [Group(unique[number], members[number])
            for number in sorted(range(len(unique)), key=lambda number: members[number][0])]
