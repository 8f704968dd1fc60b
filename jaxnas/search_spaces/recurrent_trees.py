"""What the highway cells of DARTS and ENAS share: a tree of nodes, each with one activation.

Node i = 1 .. N reads one earlier state, 0 .. i - 1, of which 0 is made of the input and the hidden
state. The cell's output is the mean of all nodes, so that their numbers do not matter.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import mutations
from jaxnas.genotypes import Encoded
from jaxnas.networks.recurrent_highway import ACTIVATION_NAMES, FixedHighway, Steps
from jaxnas.search_spaces import product

MAX_NODES = 16
MAX_ORDERS = 32  # of nodes, followed at once by `canonical`


class IsTree(product.HasChoices, Protocol):
    """What a space of such cells gives."""

    @property
    def num_nodes(self) -> int:
        """N."""
        ...

    @property
    def name(self) -> str:
        """What result.json calls the space."""
        ...

    @property
    def choices(self) -> tuple[str, ...]:
        """[A] the activations that a node may have."""
        ...

    @property
    def source_first(self) -> bool:
        """Whether a row of an arch is (source, activation) rather than (activation, source)."""
        ...

    def split(self, arch: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return activations and sources, [N] int32 each, of an arch [2 N]."""
        ...

    def decode(self, arch: jax.Array | np.ndarray) -> str:
        """Write an arch."""
        ...

    def steps(self, arch: jax.Array | np.ndarray) -> Steps:
        """Return names and sources."""
        ...


class RecurrentTree(product.IndependentDecisions):
    """N nodes; `arch` is [N, 2] flattened, L = 2 N. As text, "tanh 0|relu 1|identity 1"."""

    @property
    def num_choices(self: IsTree) -> tuple[int, ...]:
        """[L] choices of every decision; all are independent."""
        rows = [(len(self.choices), node + 1) for node in range(self.num_nodes)]
        return tuple(count for row in rows for count in (row[::-1] if self.source_first else row))

    def split(self: IsTree, arch: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return activations (indices into `choices`) and sources, [N] each, of an arch [L]."""
        rows = arch.reshape(self.num_nodes, 2)
        first, second = rows[:, 0], rows[:, 1]
        return (second, first) if self.source_first else (first, second)

    def mutate(self: IsTree, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Give one decision that has a choice another value, uniformly: [L] -> [L]."""
        return mutations.mutate(key, arch, self.num_choices)

    def canonical(self: IsTree, arch: jax.Array) -> jax.Array:
        """Return the lexicographically smallest arch with the nodes in any order: [L] -> [L].

        Such archs are one cell whose weights have other places; under weights that are shared by
        place they score differently. Next is always, of the nodes whose source is placed, the one
        with the smallest row. Where several have it, up to 32 orders are followed, which is exact
        for 8 nodes, and likely but not certain for more.
        """
        activation, source = self.split(arch)
        length = self.num_nodes
        number = np.arange(length)
        codes = _codes(activation, source)
        same = ((codes == codes[:, None]) & (source == source[:, None])
                & (activation == activation[:, None]) & (number < number[:, None]))
        none = jnp.iinfo(jnp.int32).max
        reads = jax.nn.one_hot(source, length + 1, dtype=jnp.int32)  # [N, states]

        def place(carry, position):
            alive, placed, names, rows = carry  # names [orders, states]: new numbers, -1 if none
            source_names = names @ reads.T      # [orders, N]
            chosen = alive[:, None] & ~placed & (source_names >= 0)
            labels = jnp.broadcast_to(activation, chosen.shape)
            keys = (source_names, labels) if self.source_first else (labels, source_names)
            for key in keys:
                key = jnp.where(chosen, key, none)
                chosen &= key == key.min()
            chosen &= ~jnp.any(chosen[:, None] & same, axis=2)  # like subtrees: the first of them
            order = jnp.where(chosen, np.arange(chosen.size).reshape(chosen.shape), none).ravel()
            best = jnp.argsort(order)[:MAX_ORDERS]
            parent, node = best // length, best % length
            hit = number == node[:, None]
            placed = placed[parent] | hit
            row = jnp.stack([key.ravel()[best[0]] for key in keys])
            names = jnp.where(jnp.pad(hit, ((0, 0), (1, 0))), position + 1, names[parent])
            rows = jnp.where(number[:, None] == position, row, rows)
            return (order[best] != none, placed, names, rows), None

        names = jnp.full((MAX_ORDERS, length + 1), -1, jnp.int32).at[:, 0].set(0)
        start = (np.arange(MAX_ORDERS) == 0, jnp.zeros((MAX_ORDERS, length), bool), names,
                 jnp.zeros((length, 2), jnp.int32))
        return jax.lax.scan(place, start, number)[0][3].reshape(-1).astype(jnp.int32)

    def decode(self: IsTree, arch: jax.Array | np.ndarray) -> str:
        """Write an arch [L] for people. Host only.

        Raises:
          ValueError: a wrong length, or a decision out of range.
        """
        return "|".join(f"{name} {source}" for name, source in self.steps(arch))

    def encode(self: IsTree, text: str) -> np.ndarray:
        """Read what `decode` wrote, as [L] int32. Host only.

        Raises:
          ValueError: another number of nodes, an unknown activation, or a source out of range.
        """
        product.check_text(text)
        nodes = text.split("|")
        if len(nodes) != self.num_nodes:
            raise ValueError(f"an architecture must be {self.num_nodes} nodes with '|' between, "
                             f"got {len(nodes)} in {text!r:.60}.")
        arch = []
        for number, node in enumerate(nodes):
            name, _, source = node.partition(" ")
            if name not in self.choices:
                raise ValueError(f"the activation of node {number + 1} must be one of "
                                 f"{', '.join(self.choices)}, got {name!r:.40}.")
            if not product.INTEGER.fullmatch(source) or int(source) > number:
                raise ValueError(f"the source of node {number + 1} must be 0 to {number}, got "
                                 f"{source!r:.40}.")
            row = [self.choices.index(name), int(source)]
            arch.extend(row[::-1] if self.source_first else row)
        return np.array(arch, np.int32)

    def steps(self: IsTree, arch: jax.Array | np.ndarray) -> Steps:
        """Return the (activation, source) of every node of an arch [L]. Host only.

        Raises:
          ValueError: as `decode`.
        """
        values = np.array(product.read_arch(arch, self.num_choices))
        activations, sources = self.split(values)  # type: ignore[arg-type]
        return tuple((self.choices[activation], int(source))
                     for activation, source in zip(activations, sources))

    def genotype(self: IsTree, arch: jax.Array | np.ndarray) -> Encoded:
        """Return what a file holds of an arch [L], for `genotypes.to_json`. Host only."""
        return Encoded(self.name, tuple(np.asarray(arch).tolist()), self.decode(arch))

    def cell(self: IsTree, arch: jax.Array | np.ndarray, **options) -> FixedHighway:
        """Return the fixed cell of an arch [L]; `options` are `FixedHighway`'s."""
        return FixedHighway(self.steps(arch), **options)


def check_tree(num_nodes: int, activations: tuple[str, ...]) -> None:
    """Raise a `ValueError` unless there are 1 to 16 nodes, and known, distinct activations."""
    if type(num_nodes) is not int or not 1 <= num_nodes <= MAX_NODES:
        raise ValueError(f"num_nodes must be an integer in [1, {MAX_NODES}], got {num_nodes!r}.")
    unknown = [name for name in activations if name not in ACTIVATION_NAMES]
    if unknown or not activations or len(set(activations)) < len(activations):
        raise ValueError(f"activations must be distinct names among {ACTIVATION_NAMES}, one at "
                         f"least, got {activations}.")


def _codes(activation: jax.Array, source: jax.Array) -> jax.Array:
    """Hash of every node [N] uint32 what hangs on it, whatever the numbers of those nodes."""
    reads = (source == np.arange(1, len(source) + 1)[:, None]).astype(jnp.uint32)  # [parent, child]
    start = _mix(activation.astype(jnp.uint32) + 1)

    def refine(codes, _):
        return _mix(start + 3 * (reads @ _mix(codes + 5))), None

    return jax.lax.scan(refine, start, length=len(source))[0]


def _mix(x: jax.Array) -> jax.Array:  # the finaliser of MurmurHash3
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
