"""The recurrent space of NAS with RL (Zoph & Le, 2017, https://arxiv.org/abs/1611.01578, 3.4).

A cell is a binary tree over input and hidden state, whose root is the new hidden state. A second
state is injected into one node and taken from another.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import mutations
from jaxnas.genotypes import Encoded
from jaxnas.networks import recurrent_tree
from jaxnas.networks.recurrent_tree import ACTIVATIONS, COMBINERS, FixedTree, TracedTree
from jaxnas.search_spaces import product

_NODE = re.compile(f"({'|'.join(COMBINERS)}) ({'|'.join(ACTIVATIONS)})", re.ASCII)


@dataclasses.dataclass(frozen=True)
class NASRLRNN(product.IndependentDecisions):
    """Trees of n leaves: `arch` [4 n + 2] int32, all decisions independent.

    Two a node, its combiner (add, multiply) and its activation (identity, tanh, sigmoid, relu),
    for the leaves, the nodes of every level above them and the root; then combiner and activation
    of the injection; the node that gets the old second state; the node whose value before its
    activation becomes the new one. As text, "add sigmoid|...|add tanh 8|12".

    Attributes:
      num_leaves: n, 2, 4 or 8 (the paper's); there are 2 n - 1 nodes.

    Raises:
      ValueError: another number of leaves.
    """

    num_leaves: int = 8

    def __post_init__(self):
        recurrent_tree.check_leaves(self.num_leaves)

    @property
    def name(self) -> str:
        """What result.json calls the space."""
        return "nasrl_rnn" if self.num_leaves == 8 else f"nasrl_rnn_{self.num_leaves}_leaves"

    @property
    def num_nodes(self) -> int:
        """2 n - 1."""
        return 2 * self.num_leaves - 1

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[4 n + 2] choices of every decision."""
        return recurrent_tree.choices(self.num_leaves)

    def split(self, arch: jax.Array) -> tuple[jax.Array, ...]:
        """Return what the traced cell takes of an arch [L]: all of it."""
        return (arch,)

    def mutate(self, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Give one uniformly drawn decision another value, uniformly: [L] -> [L]."""
        return mutations.mutate(key, arch, self.num_choices)

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Return the lexicographically smallest arch of the same cell: [L] -> [L].

        Both combiners commute, so that the halves of any node may be exchanged: 2^(n - 1) archs are
        one cell, the leaves' weights in another order.
        """
        old, new = _exchanges(self.num_leaves)
        count = self.num_nodes
        nodes = arch[:2 * count].reshape(count, 2)[old].reshape(len(old), 2 * count)
        inject = jnp.broadcast_to(arch[2 * count : 2 * count + 2], (len(old), 2))
        places = jnp.stack([jnp.asarray(new)[:, arch[-2]], jnp.asarray(new)[:, arch[-1]]], 1)
        archs = jnp.concatenate([nodes, inject, places], 1)

        def narrow(alive, column):
            key = jnp.where(alive, column, count)
            return key == key.min(), None

        alive, _ = jax.lax.scan(narrow, jnp.ones(len(old), bool), archs.T)
        return archs[alive.argmax()].astype(jnp.int32)

    def decode(self, arch: jax.Array | np.ndarray) -> str:
        """Write an arch [L] for people. Host only.

        Raises:
          ValueError: a wrong length, or a decision out of range.
        """
        values = product.read_arch(arch, self.num_choices)
        nodes = [f"{COMBINERS[combiner]} {ACTIVATIONS[activation]}"
                 for combiner, activation in zip(values[:-2:2], values[1:-2:2])]
        return "|".join((*nodes[:-1], f"{nodes[-1]} {values[-2]}", str(values[-1])))

    def encode(self, text: str) -> np.ndarray:
        """Read what `decode` wrote, as [L] int32. Host only.

        Raises:
          ValueError: another number of nodes, an unknown word, or an index out of range.
        """
        product.check_text(text)
        parts = text.split("|")
        if len(parts) != self.num_nodes + 2:
            raise ValueError(f"an architecture must be {self.num_nodes} nodes, the injection and "
                             f"the second state's node with '|' between, got {len(parts)} parts in "
                             f"{text!r:.60}.")
        inject, space, place = parts[self.num_nodes].rpartition(" ")
        arch: list[int] = []
        for number, part in enumerate((*parts[:self.num_nodes], inject)):
            found = _NODE.fullmatch(part)
            if found is None:
                raise ValueError(f"part {number} must be one of {', '.join(COMBINERS)} and one of "
                                 f"{', '.join(ACTIVATIONS)}, got {part!r:.40}.")
            arch += [COMBINERS.index(found[1]), ACTIVATIONS.index(found[2])]
        for index in (place, parts[-1]):
            if not product.INTEGER.fullmatch(index) or int(index) >= self.num_nodes:
                raise ValueError("the nodes of the second state must be 0 to "
                                 f"{self.num_nodes - 1}, got {index!r:.40}.")
            arch.append(int(index))
        return np.array(arch, np.int32)

    def genotype(self, arch: jax.Array | np.ndarray) -> Encoded:
        """Return what a file holds of an arch [L], for `genotypes.to_json`. Host only."""
        return Encoded(self.name, tuple(np.asarray(arch).tolist()), self.decode(arch))

    def cell(self, arch: jax.Array | np.ndarray, **options) -> FixedTree:
        """Return the fixed cell of an arch [L]; `options` are `FixedTree`'s."""
        return FixedTree(tuple(product.read_arch(arch, self.num_choices)), **options)

    def traced_cell(self, **options) -> TracedTree:
        """Return the one cell for every arch; `options` are `TracedTree`'s."""
        return TracedTree(**{"num_leaves": self.num_leaves, **options})


@functools.cache
def _exchanges(leaves: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for all exchanges of halves which old node is at a place, and its inverse."""
    inner = range(leaves, 2 * leaves - 1)
    old = np.zeros((2 ** len(inner), 2 * leaves - 1), np.int32)
    for number in range(len(old)):
        old[number, -1] = 2 * leaves - 2
        for place in reversed(inner):  # from the root down
            first = 2 * (old[number, place] - leaves)
            turned = number >> (place - leaves) & 1
            here = 2 * (place - leaves)
            old[number, [here, here + 1]] = first + turned, first + 1 - turned
    return old, np.argsort(old, axis=1).astype(np.int32)
