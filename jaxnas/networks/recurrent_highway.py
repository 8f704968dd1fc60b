"""The highway cells of DARTS and ENAS: fixed, traced, mixed and with shared weights.

With x the input, h the hidden state before, and [gate, new] = halves of a product with [., 2 H]:

    s_0 = h + sigmoid(gate) (tanh(new) - h)         from x input + h recurrent
    s_i = s_j + sigmoid(gate) (f(new) - s_j)        from s_j nodes_i;  node i = 1 .. N
    output = mean of s_1 .. s_N

as in quark0/darts rnn/model.py (https://arxiv.org/abs/1806.09055) and google-research's
enas_lm/src/child.py (https://arxiv.org/abs/1802.03268), which has the halves in the other order; no
biases. Parameters: input [D, 2 H], recurrent [H, 2 H] (the two are one matrix there), nodes
[N, H, 2 H]. One variational mask multiplies every state before it meets parameters.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas import published
from jaxnas.networks.enas_controller import _uniform
from jaxnas.networks.recurrent import Params, State, Stateless, check_hidden_size

Steps = tuple[tuple[str, int], ...]  # the activation and the source of every node
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType({
    "tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "identity": lambda x: x})
ACTIVATION_NAMES = tuple(ACTIVATIONS)
_EPSILON = 1e-5  # of batch normalisation, PyTorch's default


class _Highway(Stateless):
    """What the four share."""

    hidden_size: int

    @property
    def recurrent(self) -> tuple[str, ...]:
        """Names of the hidden-to-hidden parameters."""
        return ("recurrent", "nodes")

    def _draw(self, key: jax.Array, input_size: int, num_nodes: int,
              init_range: float) -> dict[str, jax.Array]:
        size = self.hidden_size
        shapes = {"input": (input_size, 2 * size), "recurrent": (size, 2 * size),
                  "nodes": (num_nodes, size, 2 * size)}
        return _uniform(key, shapes, init_range)


def _first(params: Params, state: State, projected: jax.Array, mask: jax.Array) -> jax.Array:
    """Return s_0 [B, H]."""
    hidden, = state
    gate, new = jnp.split(projected + (hidden * mask) @ params["recurrent"], 2, axis=-1)
    return hidden + jax.nn.sigmoid(gate) * (jnp.tanh(new) - hidden)


def _gate_and_new(state: jax.Array, mask: jax.Array, kernel: jax.Array) -> list[jax.Array]:
    gate, new = jnp.split((state * mask) @ kernel, 2, axis=-1)
    return [jax.nn.sigmoid(gate), new]


@dataclasses.dataclass(frozen=True)
class FixedHighway(_Highway):
    """The cell of one architecture, a program of its own.

    Attributes:
      steps: [N] (activation, source); source j < i for node i, 0 is s_0.
      hidden_size: H.
      concat: the nodes, 1 .. N, whose mean is the output; None is all.
      init_range: parameters start uniform in [-init_range, init_range).

    Raises:
      ValueError: no node, an unknown activation, a source or node out of range.
    """

    steps: Steps
    hidden_size: int
    concat: tuple[int, ...] | None = None
    init_range: float = 0.04

    def __post_init__(self):
        check_hidden_size(self.hidden_size)
        if not self.steps:
            raise ValueError("steps must hold one (activation, source) at least, got none.")
        for number, (name, source) in enumerate(self.steps, 1):
            if name not in ACTIVATIONS or not 0 <= source < number:
                raise ValueError(
                    f"step {number} must be one of {', '.join(ACTIVATION_NAMES)} and a source in "
                    f"[0, {number - 1}], got {name!r} and {source}.")
        if self.concat is not None and (not self.concat or any(
                not 1 <= node <= len(self.steps) for node in self.concat)):
            raise ValueError(f"concat must be nodes in [1, {len(self.steps)}], one at least, got "
                             f"{self.concat}.")

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters."""
        return self._draw(key, input_size, len(self.steps), self.init_range)

    def step(self, params, state, projected, mask, *inputs):
        """Advance one time step, see `RecurrentCell.step`."""
        states = [_first(params, state, projected, mask)]
        for (name, source), kernel in zip(self.steps, params["nodes"]):
            gate, new = _gate_and_new(states[source], mask, kernel)
            states.append(states[source] + gate * (ACTIVATIONS[name](new) - states[source]))
        kept = range(1, len(states)) if self.concat is None else self.concat
        return (sum(states[node] for node in kept) / len(kept),)


@dataclasses.dataclass(frozen=True)
class TracedHighway(_Highway):
    """The cell of any architecture as one program; `inputs` are activations and sources [N] int32.

    All activations are computed, and one is kept: elementwise work only, the products are those of
    the fixed cell.

    Attributes:
      num_nodes: N.
      activations: names, in the order of their indices.
      hidden_size: H.
      init_range: as in `FixedHighway`.
    """

    num_nodes: int
    activations: tuple[str, ...]
    hidden_size: int
    init_range: float = 0.04

    def __post_init__(self):
        check_hidden_size(self.hidden_size)

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters."""
        return self._draw(key, input_size, self.num_nodes, self.init_range)

    def step(self, params, state, projected, mask, *inputs):
        """Advance one time step, see `RecurrentCell.step`."""
        activation, source = inputs
        states = [_first(params, state, projected, mask)]
        for node in range(self.num_nodes):
            before = states[0] if node == 0 else lax.select_n(source[node], *states)
            gate, new = _gate_and_new(before, mask, params["nodes"][node])
            new = lax.select_n(activation[node], *(ACTIVATIONS[name](new)
                                                   for name in self.activations))
            states.append(before + gate * (new - before))
        return (sum(states[1:]) / self.num_nodes,)


@dataclasses.dataclass(frozen=True)
class SharedHighway(TracedHighway):
    """ENAS's shared weights: a matrix for every node, activation and source; `inputs` as above.

    nodes is [E, A, H, 2 H], row i (i - 1) / 2 + j for node i reading state j, E = N (N + 1) / 2.
    Only what an architecture uses has a gradient other than zero.
    """

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters."""
        size, edges = self.hidden_size, math.comb(self.num_nodes + 1, 2)
        shapes = {"input": (input_size, 2 * size), "recurrent": (size, 2 * size),
                  "nodes": (edges, len(self.activations), size, 2 * size)}
        return _uniform(key, shapes, self.init_range)

    def select(self, params: Params, *inputs: jax.Array) -> Params:
        """Return the parameters of a `TracedHighway` that the architecture uses."""
        activation, source = inputs
        first = np.arange(self.num_nodes) * np.arange(1, self.num_nodes + 1) // 2
        return {**params, "nodes": params["nodes"][first + source, activation]}


@dataclasses.dataclass(frozen=True)
class MixedHighway(_Highway):
    """DARTS's search cell: every node reads all states before it, through all activations.

    `inputs` is `weights` [E, O]: row i (i - 1) / 2 + j for the edge from s_j to s_i, softmaxes of
    alphas; "none" keeps its mass and contributes nothing. The edges into a node share its matrix.
    s_0 and all nodes are normalised by the statistics of the batch, without scale and bias, in
    training and evaluation alike: there are no running statistics (the reference code evaluates
    with running ones).

    Attributes:
      num_nodes: N.
      activations: O names, the columns of weights.
      hidden_size: H.
      batch_norm: whether states are normalised, over the B sequences.
      init_range: as in `FixedHighway`.
    """

    num_nodes: int
    activations: tuple[str, ...]
    hidden_size: int
    batch_norm: bool = True
    init_range: float = 0.04

    def __post_init__(self):
        check_hidden_size(self.hidden_size)

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters."""
        return self._draw(key, input_size, self.num_nodes, self.init_range)

    def step(self, params, state, projected, mask, *inputs):
        """Advance one time step, see `RecurrentCell.step`."""
        weights, = inputs
        columns = [(column, ACTIVATIONS[name]) for column, name in enumerate(self.activations)
                   if name != "none"]
        states = self._normalize(_first(params, state, projected, mask))[None]
        row = 0
        for node in range(self.num_nodes):
            gate, new = _gate_and_new(states, mask, params["nodes"][node])
            edges = weights[row : row + node + 1, :, None, None]
            # sum over f of w_f (s + gate (f(new) - s)), the terms in s taken together
            kept = sum(edges[:, column] for column, _ in columns)
            mixed = sum(edges[:, column] * function(new) for column, function in columns)
            total = jnp.sum(kept * (1 - gate) * states + gate * mixed, axis=0)
            states = jnp.concatenate([states, self._normalize(total)[None]])
            row += node + 1
        return (states[1:].mean(0),)

    def _normalize(self, state: jax.Array) -> jax.Array:
        if not self.batch_norm:
            return state
        return (state - state.mean(0)) * lax.rsqrt(state.var(0) + _EPSILON)


def published_cell(name: str, hidden_size: int, **options) -> FixedHighway:
    """Return a published cell of `published.RECURRENT_TEXT` by name, such as "DARTS_RNN_V2".

    Raises:
      ValueError: an unknown name.
    """
    if name not in published.RECURRENT_TEXT:
        raise ValueError(f"there is no recurrent cell {name!r}; choose one of "
                         f"{', '.join(published.RECURRENT_TEXT)}.")
    text, concat = published.RECURRENT_TEXT[name]
    nodes = [node.split() for node in text.split("|")]
    steps = tuple((activation, int(source)) for activation, source in nodes)
    return FixedHighway(steps, hidden_size, concat=concat, **options)
