"""Trees of arrays that differ in shape, of which a traced number picks one.

Branches of `lax.switch` take the same operands and their derivatives return one of every operand:
with a tree of weights for each of O operations that makes O^2 arrays of zeros. Cut from one vector
by the number of the branch, the weights are one operand, and the derivative is one array.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.networks.extraction import Arrays


class Packing:
    """Trees of arrays, one an operation, end to end in a vector; the largest is the last.

    Attributes:
      size: numbers of the largest.
    """

    def __init__(self, trees: list[Arrays]) -> None:
        self._trees = trees  # of shapes
        sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees]
        self._order = sorted(range(len(trees)), key=sizes.__getitem__)
        self._offsets = np.zeros(len(trees), np.int32)
        self._offsets[self._order[1:]] = np.cumsum([sizes[i] for i in self._order])[:-1]
        self.size = max(sizes)

    def join(self, trees: list[Arrays], edges: int) -> jax.Array:
        """Return [edges, total] of stacked trees."""
        leaves = [leaf.reshape(edges, -1) for number in self._order
                  for leaf in jax.tree.leaves(trees[number])]
        return jnp.concatenate(leaves, 1) if leaves else jnp.zeros((edges, 0))

    def split(self, flat: jax.Array) -> list[Arrays]:
        """Return the stacked trees that `join` joined."""
        def one(row):
            return [self.cut(row[offset:], number) for number, offset in enumerate(self._offsets)]
        return jax.vmap(one)(flat)

    def take(self, row: jax.Array, number: jax.Array) -> jax.Array:
        """Return [size], which begins with the numbers of one tree."""
        return lax.dynamic_slice(row, (jnp.asarray(self._offsets)[number],), (self.size,))

    def put(self, row: jax.Array, number: jax.Array, piece: jax.Array) -> jax.Array:
        """Write back what `take` took."""
        return lax.dynamic_update_slice(row, piece, (jnp.asarray(self._offsets)[number],))

    def cut(self, piece: jax.Array, number: int) -> Arrays:
        """Return tree `number`, which begins the piece."""
        leaves, structure = jax.tree.flatten(self._trees[number])
        ends = np.cumsum([0, *(leaf.size for leaf in leaves)])
        return jax.tree.unflatten(structure, [
            piece[start:end].reshape(leaf.shape)
            for start, end, leaf in zip(ends[:-1], ends[1:], leaves)])

    def fill(self, piece: jax.Array, tree: Arrays) -> jax.Array:
        """Replace the beginning of a piece by a tree."""
        leaves = [leaf.reshape(-1).astype(piece.dtype) for leaf in jax.tree.leaves(tree)]
        size = sum(leaf.size for leaf in leaves)
        return jnp.concatenate([*leaves, piece[size:]])
