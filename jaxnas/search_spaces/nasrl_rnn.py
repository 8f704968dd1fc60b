"""The recurrent space of NAS with RL (Zoph & Le, 2017, https://arxiv.org/abs/1611.01578, 3.4).

A cell is a binary tree over input and hidden state: 8 leaves, 15 nodes, the root is the new hidden
state. A second state is injected into one node and taken from another.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import mutations
from jaxnas.genotypes import Encoded
from jaxnas.networks.recurrent_tree import (ACTIVATIONS, COMBINERS, LEAVES, NODES, FixedTree,
                                            TracedTree, children)
from jaxnas.search_spaces import product

_NODE = re.compile(f"({'|'.join(COMBINERS)}) ({'|'.join(ACTIVATIONS)})", re.ASCII)


@dataclasses.dataclass(frozen=True)
class NASRLRNN(product.IndependentDecisions):
    """Base 8: `arch` [34] int32, all decisions independent.

    Two a node, its combiner (add, multiply) and its activation (identity, tanh, sigmoid, relu),
    for leaves 0 to 7, nodes 8 to 11, 12 and 13, and the root 14; then combiner and activation of
    the injection; the node that gets the old second state; the node whose value before its
    activation becomes the new one. As text, "add sigmoid|...|add tanh 8|12".
    """

    @property
    def name(self) -> str:
        """What result.json calls the space."""
        return "nasrl_rnn"

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[34] choices of every decision."""
        return (len(COMBINERS), len(ACTIVATIONS)) * (NODES + 1) + (NODES, NODES)

    def mutate(self, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Give one uniformly drawn decision another value, uniformly: [L] -> [L]."""
        return mutations.mutate(key, arch, self.num_choices)

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Return the lexicographically smallest arch of the same cell: [L] -> [L].

        Both combiners commute, so that the halves of any node may be exchanged: 128 archs are one
        cell, the leaves' weights in another order.
        """
        old, new = _exchanges()
        nodes = arch[:2 * NODES].reshape(NODES, 2)[old].reshape(len(old), 2 * NODES)
        inject = jnp.broadcast_to(arch[2 * NODES : 2 * NODES + 2], (len(old), 2))
        places = jnp.stack([jnp.asarray(new)[:, arch[-2]], jnp.asarray(new)[:, arch[-1]]], 1)
        archs = jnp.concatenate([nodes, inject, places], 1)

        def narrow(alive, column):
            key = jnp.where(alive, column, NODES)
            return key == key.min(), None

        alive, _ = jax.lax.scan(narrow, jnp.ones(len(old), bool), archs.T)
        return archs[alive.argmax()].astype(jnp.int32)

    def decode(self, arch: jax.Array | np.ndarray) -> str:
        """Write an arch [34] for people. Host only.

        Raises:
          ValueError: a wrong length, or a decision out of range.
        """
        values = product.read_arch(arch, self.num_choices)
        nodes = [f"{COMBINERS[combiner]} {ACTIVATIONS[activation]}"
                 for combiner, activation in zip(values[:-2:2], values[1:-2:2])]
        return "|".join((*nodes[:-1], f"{nodes[-1]} {values[-2]}", str(values[-1])))

    def encode(self, text: str) -> np.ndarray:
        """Read what `decode` wrote, as [34] int32. Host only.

        Raises:
          ValueError: another number of nodes, an unknown word, or an index out of range.
        """
        product.check_text(text)
        parts = text.split("|")
        if len(parts) != NODES + 2:
            raise ValueError(f"an architecture must be {NODES} nodes, the injection and the second "
                             f"state's node with '|' between, got {len(parts)} parts in "
                             f"{text!r:.60}.")
        inject, space, place = parts[NODES].rpartition(" ")
        arch: list[int] = []
        for number, part in enumerate((*parts[:NODES], inject)):
            found = _NODE.fullmatch(part)
            if found is None:
                raise ValueError(f"part {number} must be one of {', '.join(COMBINERS)} and one of "
                                 f"{', '.join(ACTIVATIONS)}, got {part!r:.40}.")
            arch += [COMBINERS.index(found[1]), ACTIVATIONS.index(found[2])]
        for index in (place, parts[-1]):
            if not product.INTEGER.fullmatch(index) or int(index) >= NODES:
                raise ValueError(f"the nodes of the second state must be 0 to {NODES - 1}, got "
                                 f"{index!r:.40}.")
            arch.append(int(index))
        return np.array(arch, np.int32)

    def genotype(self, arch: jax.Array | np.ndarray) -> Encoded:
        """Return what a file holds of an arch [34], for `genotypes.to_json`. Host only."""
        return Encoded(self.name, tuple(np.asarray(arch).tolist()), self.decode(arch))

    def cell(self, arch: jax.Array | np.ndarray, **options) -> FixedTree:
        """Return the fixed cell of an arch [34]; `options` are `FixedTree`'s."""
        return FixedTree(tuple(product.read_arch(arch, self.num_choices)), **options)

    def traced_cell(self, **options) -> TracedTree:
        """Return the one cell for every arch, which takes the arch."""
        return TracedTree(**options)


def _exchanges() -> tuple[np.ndarray, np.ndarray]:
    """Return for all 128 exchanges of halves which old node is at a place, and its inverse."""
    inner = range(LEAVES, NODES)
    old = np.zeros((2 ** len(inner), NODES), np.int32)
    for number in range(len(old)):
        old[number, NODES - 1] = NODES - 1
        for place in reversed(inner):  # from the root down
            node = old[number, place]
            halves = children(node)
            if number >> (place - LEAVES) & 1:
                halves = halves[::-1]
            old[number, list(children(place))] = halves
    return old, np.argsort(old, axis=1).astype(np.int32)
