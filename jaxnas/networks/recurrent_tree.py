"""The tree cells of NAS with RL, base 8 (Zoph & Le, 2017, https://arxiv.org/abs/1611.01578, 3.4).

Leaf i of 8 combines x input_i and h recurrent_i; node 8 + k combines nodes 2 k and 2 k + 1, and the
root, node 14, is the new hidden state. A node is activation(combiner(left, right)). One node's
value v becomes activation(combiner(v, c)), c the second state; the new c is the value of one node
before its activation. An arch [34] int32 is laid out as `search_spaces.NASRLRNN` says. Parameters:
input [D, 8 H], recurrent [H, 8 H], no biases, as in TensorFlow's NASCell. The state is (h, c).
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.networks.enas_controller import _uniform
from jaxnas.networks.recurrent import Params, State, Stateless, check_hidden_size
from jaxnas.networks.recurrent_highway import ACTIVATIONS as FUNCTIONS

COMBINERS = ("add", "multiply")
ACTIVATIONS = ("identity", "tanh", "sigmoid", "relu")
LEAVES, NODES = 8, 15
LENGTH = 2 * (NODES + 1) + 2  # of an arch
# The cell found, TensorFlow's NASCell (tf.contrib.rnn), read from its code.
NAS_CELL = (0, 2, 0, 3, 0, 2, 1, 3, 0, 1, 0, 2, 0, 1, 0, 2,  # leaves
            1, 1, 0, 1, 1, 1, 0, 2, 1, 0, 0, 1, 1, 1,        # inner nodes
            0, 1, 8, 12)
_COMBINE = (operator.add, operator.mul)


def children(node: int) -> tuple[int, int]:
    """Return the two nodes that an inner node, 8 to 14, combines."""
    return 2 * (node - LEAVES), 2 * (node - LEAVES) + 1


class _Tree(Stateless):
    """What both share."""

    hidden_size: int
    init_range: float

    @property
    def recurrent(self) -> tuple[str, ...]:
        """Names of the hidden-to-hidden parameters."""
        return ("recurrent",)

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters, uniform in [-init_range, init_range)."""
        wide = LEAVES * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "input": (input_size, wide), "recurrent": (self.hidden_size, wide)}
        return _uniform(key, shapes, self.init_range)

    def initial_state(self, batch_size: int) -> State:
        """Return h and c, zeros [B, H]."""
        return (jnp.zeros((batch_size, self.hidden_size)),) * 2


@dataclasses.dataclass(frozen=True)
class FixedTree(_Tree):
    """The cell of one architecture, a program of its own.

    Attributes:
      arch: [34] integers.
      hidden_size: H.
      init_range: parameters start uniform in [-init_range, init_range).

    Raises:
      ValueError: a wrong length, or a decision out of range.
    """

    arch: tuple[int, ...]
    hidden_size: int
    init_range: float = 0.04

    def __post_init__(self):
        check_hidden_size(self.hidden_size)
        counts = (len(COMBINERS), len(ACTIVATIONS)) * (NODES + 1) + (NODES, NODES)
        if len(self.arch) != LENGTH or any(
                not 0 <= value < count for value, count in zip(self.arch, counts)):
            raise ValueError(f"arch must be {LENGTH} integers, each in [0, choices) of its place, "
                             f"got {self.arch}.")

    def step(self, params, state, projected, mask, *inputs):
        """Advance one time step, see `RecurrentCell.step`."""
        return _grow(params, state, projected, mask, [int(value) for value in self.arch])


@dataclasses.dataclass(frozen=True)
class TracedTree(_Tree):
    """The cell of any architecture as one program; `inputs` is the arch [34] int32.

    Everything a node may be is computed, and one value is kept: elementwise work only.

    Attributes:
      hidden_size: H.
      init_range: as in `FixedTree`.
    """

    hidden_size: int
    init_range: float = 0.04

    def __post_init__(self):
        check_hidden_size(self.hidden_size)

    def step(self, params, state, projected, mask, *inputs):
        """Advance one time step, see `RecurrentCell.step`."""
        arch, = inputs
        return _grow(params, state, projected, mask, [arch[i] for i in range(LENGTH)])


def _grow(params: Params, state: State, projected: jax.Array, mask: jax.Array,
          arch: Sequence[int | jax.Array]) -> State:
    hidden, memory = state
    left = jnp.split(projected, LEAVES, axis=-1)
    right = jnp.split((hidden * mask) @ params["recurrent"], LEAVES, axis=-1)
    place, source = arch[-2:]
    before: list[jax.Array] = []  # values before the activations
    values: list[jax.Array] = []
    for node in range(NODES):
        if node < LEAVES:
            operands = left[node], right[node]
        else:
            first, second = children(node)
            operands = values[first], values[second]
        before.append(_combined(arch[2 * node], *operands))
        value = _activated(arch[2 * node + 1], before[-1])
        if isinstance(place, int):
            if place == node:
                value = _injected(arch, value, memory)
        else:
            value = jnp.where(place == node, _injected(arch, value, memory), value)
        values.append(value)
    return values[-1], _choose(source, [lambda v=v: v for v in before])  # type: ignore[misc]


def _injected(arch: Sequence[int | jax.Array], value: jax.Array, memory: jax.Array) -> jax.Array:
    return _activated(arch[2 * NODES + 1], _combined(arch[2 * NODES], value, memory))


def _combined(which: int | jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    return _choose(which, [lambda f=f: f(left, right) for f in _COMBINE])  # type: ignore[misc]


def _activated(which: int | jax.Array, value: jax.Array) -> jax.Array:
    return _choose(which, [lambda name=name: FUNCTIONS[name](value)  # type: ignore[misc]
                           for name in ACTIVATIONS])


def _choose(which: int | jax.Array, options: Sequence[Callable[[], jax.Array]]) -> jax.Array:
    """Compute the option that is known, or all of them and keep one."""
    if isinstance(which, int):
        return options[which]()
    return lax.select_n(which, *(option() for option in options))
