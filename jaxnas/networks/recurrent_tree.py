"""The tree cells of NAS with RL (Zoph & Le, 2017, https://arxiv.org/abs/1611.01578, 3.4).

A binary tree of n leaves, the paper's "base number" 8, has 2 n - 1 nodes. Leaf i combines x input_i
and h recurrent_i; node n + k combines nodes 2 k and 2 k + 1, and the root, the last, is the new
hidden state. A node is activation(combiner(left, right)). One node's value v becomes
activation(combiner(v, c)), c the second state; the new c is the value of one node before its
activation. An arch [4 n + 2] int32 is laid out as `search_spaces.NASRLRNN` says. Parameters:
input [D, n H], recurrent [H, n H], no biases, as in TensorFlow's NASCell. The state is (h, c).
"""

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.networks.enas_controller import _uniform
from jaxnas.networks.recurrent import Params, State, Stateless, check_hidden_size
from jaxnas.networks.recurrent_highway import ACTIVATIONS as FUNCTIONS

COMBINERS = ("add", "multiply")
ACTIVATIONS = ("identity", "tanh", "sigmoid", "relu")
NUM_LEAVES = (2, 4, 8)
# The cell found, TensorFlow's NASCell (tf.contrib.rnn), read from its code.
NAS_CELL = (0, 2, 0, 3, 0, 2, 1, 3, 0, 1, 0, 2, 0, 1, 0, 2,  # leaves
            1, 1, 0, 1, 1, 1, 0, 2, 1, 0, 0, 1, 1, 1,        # inner nodes
            0, 1, 8, 12)
_COMBINE = (operator.add, operator.mul)


def check_leaves(num_leaves: int) -> None:
    """Raise a `ValueError` unless n is one of `NUM_LEAVES`."""
    if num_leaves not in NUM_LEAVES:
        raise ValueError(f"num_leaves must be one of {NUM_LEAVES}, got {num_leaves!r}.")


def choices(num_leaves: int) -> tuple[int, ...]:
    """Return the [4 n + 2] numbers of choices of an arch's decisions."""
    nodes = 2 * num_leaves - 1
    return (len(COMBINERS), len(ACTIVATIONS)) * (nodes + 1) + (nodes, nodes)


class _Tree(Stateless):
    """What both share."""

    hidden_size: int
    num_leaves: int
    init_range: float | None

    @property
    def recurrent(self) -> tuple[str, ...]:
        """Names of the hidden-to-hidden parameters."""
        return ("recurrent",)

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters, uniform in [-init_range, init_range)."""
        wide = self.num_leaves * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "input": (input_size, wide), "recurrent": (self.hidden_size, wide)}
        bound = self.hidden_size ** -0.5 if self.init_range is None else self.init_range
        return _uniform(key, shapes, bound)

    def initial_state(self, batch_size: int) -> State:
        """Return h and c, zeros [B, H]."""
        return (jnp.zeros((batch_size, self.hidden_size)),) * 2


@dataclasses.dataclass(frozen=True)
class FixedTree(_Tree):
    """The cell of one architecture, a program of its own.

    Attributes:
      arch: [4 n + 2] integers.
      hidden_size: H.
      init_range: parameters start uniform in [-init_range, init_range); None is 1 / sqrt(H), as of
        LSTM and GRU. Products of nodes must not start near 0: of 0.04, NASCell (H = 24) stayed at
        the loss of the characters' frequencies, 3.3 nats, for 142 updates.

    Raises:
      ValueError: a wrong length, or a decision out of range.
    """

    arch: tuple[int, ...]
    hidden_size: int
    init_range: float | None = None

    def __post_init__(self):
        check_hidden_size(self.hidden_size)
        lengths = [4 * leaves + 2 for leaves in NUM_LEAVES]
        if len(self.arch) not in lengths or any(
                not 0 <= value < count
                for value, count in zip(self.arch, choices(self.num_leaves))):
            raise ValueError(f"arch must be as many integers as one of {lengths}, each in "
                             f"[0, choices) of its place, got {self.arch}.")

    @property
    def num_leaves(self) -> int:  # type: ignore[override]
        """Leaves of the tree, n."""
        return (len(self.arch) - 2) // 4

    def step(self, params: Params, state: State, projected: jax.Array, mask: jax.Array,
             *inputs: jax.Array) -> State:
        """Advance one time step, see `RecurrentCell.step`."""
        arch = [int(value) for value in self.arch]
        hidden, memory = state
        left = jnp.split(projected, self.num_leaves, axis=-1)
        right = jnp.split((hidden * mask) @ params["recurrent"], self.num_leaves, axis=-1)
        operands, before, values = list(zip(left, right)), [], []
        for node in range(2 * self.num_leaves - 1):
            before.append(_COMBINE[arch[2 * node]](*operands[node]))
            value = FUNCTIONS[ACTIVATIONS[arch[2 * node + 1]]](before[-1])
            if node == arch[-2]:
                value = FUNCTIONS[ACTIVATIONS[arch[-3]]](_COMBINE[arch[-4]](value, memory))
            values.append(value)
            if node % 2:
                operands.append((values[node - 1], value))
        return values[-1], before[arch[-1]]


@dataclasses.dataclass(frozen=True)
class TracedTree(_Tree):
    """The cell of any architecture as one program; `inputs` is the arch [4 n + 2] int32.

    Everything a node may be is computed, and one value is kept: elementwise work only. The nodes of
    a level are computed together, which compiles in a third of the time of one after the other.

    Attributes:
      hidden_size: H.
      num_leaves: n, one of `NUM_LEAVES`.
      init_range: as in `FixedTree`.
    """

    hidden_size: int
    num_leaves: int = 8
    init_range: float | None = None

    def __post_init__(self):
        check_hidden_size(self.hidden_size)
        check_leaves(self.num_leaves)

    def step(self, params: Params, state: State, projected: jax.Array, mask: jax.Array,
             *inputs: jax.Array) -> State:
        """Advance one time step, see `RecurrentCell.step`."""
        arch, = inputs
        hidden, memory = state
        combiners, activations, place = arch[:-2:2], arch[1:-2:2], arch[-2]
        leaves = (-1, self.num_leaves, self.hidden_size)
        left = projected.reshape(leaves)  # [B, nodes, H]
        right = ((hidden * mask) @ params["recurrent"]).reshape(leaves)
        first, before = 0, []
        while True:
            count = left.shape[1]
            nodes = slice(first, first + count)
            before.append(_combined(combiners[nodes], left, right))
            values = _activated(activations[nodes], before[-1])
            injected = _activated(
                activations[-1:], _combined(combiners[-1:], values, memory[:, None]))
            here = first + np.arange(count) == place
            values = jnp.where(here[:, None], injected, values)
            if count == 1:
                return values[:, 0], jnp.take(jnp.concatenate(before, 1), arch[-1], axis=1)
            left, right, first = values[:, ::2], values[:, 1::2], first + count


def _combined(which: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.where(which[:, None] == COMBINERS.index("add"), left + right, left * right)


def _activated(which: jax.Array, values: jax.Array) -> jax.Array:
    return lax.select_n(jnp.broadcast_to(which[:, None], values.shape),
                        *(FUNCTIONS[name](values) for name in ACTIVATIONS))
