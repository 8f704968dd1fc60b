"""Recurrent cells as pure functions, their loop over time, and LSTM and GRU to compare with.

A cell is a frozen dataclass. Its state is a tuple of arrays [B, H], the first of which is its
output. What a cell computes of its input alone is done for all time steps at once, before the loop;
nothing but the hidden-to-hidden part is in it. Shape letters: T time steps, B sequences, D size of
an input, H of the hidden state.
"""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.networks.enas_controller import _uniform

Params = Mapping[str, jax.Array]
State = tuple[jax.Array, ...]


class RecurrentCell(Protocol):
    """A recurrent cell; `inputs` is its architecture, if it takes one as arrays."""

    @property
    def hidden_size(self) -> int:
        """H."""
        ...

    @property
    def recurrent(self) -> tuple[str, ...]:
        """Names of the parameters that multiply hidden states, for weight drop."""
        ...

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters, float32."""
        ...

    def initial_state(self, batch_size: int) -> State:
        """Return zeros [B, H]."""
        ...

    def select(self, params: Params, *inputs: jax.Array) -> Params:
        """Return the parameters that the architecture uses, once before the loop."""
        ...

    def project(self, params: Params, x: jax.Array) -> jax.Array:
        """Return all that depends on the input alone: [T, B, D] -> [T, B, K]."""
        ...

    def step(self, params: Params, state: State, projected: jax.Array, mask: jax.Array,
             *inputs: jax.Array) -> State:
        """Advance one time step.

        Args:
          params: what `select` returned.
          state: before the step, [B, H] each.
          projected: [B, K].
          mask: [B, H] or 1.0, multiplies hidden states before they meet parameters.
          inputs: the architecture.
        """
        ...


class Stateless:
    """What most cells share: one state, no choice among parameters."""

    def initial_state(self: RecurrentCell, batch_size: int) -> State:
        """Return zeros [B, H]."""
        return (jnp.zeros((batch_size, self.hidden_size)),)

    def select(self, params: Params, *inputs: jax.Array) -> Params:
        """Return all parameters."""
        del inputs
        return params

    def project(self, params: Params, x: jax.Array) -> jax.Array:
        """Return x times "input", plus "bias" if there is one: [T, B, D] -> [T, B, K]."""
        projected = x @ params["input"]
        return projected + params["bias"] if "bias" in params else projected


def unroll(
    cell: RecurrentCell,
    params: Params,
    x: jax.Array,
    state: State,
    *,
    inputs: tuple[jax.Array, ...] = (),
    input_mask: jax.Array | float = 1.0,
    hidden_mask: jax.Array | float = 1.0,
    length: jax.Array | None = None,
    remat: bool = False,
) -> tuple[State, jax.Array]:
    """Run a cell over time as one scan; both masks are the same at every step.

    Args:
      cell: any.
      params: of the cell, as `init` drew them.
      x: [T, B, D].
      state: before the first step.
      inputs: the architecture, for a cell that takes one.
      input_mask: [B, D], of variational dropout (Gal & Ghahramani, 2016,
        https://arxiv.org/abs/1512.05287); 1.0 is none.
      hidden_mask: [B, H], likewise.
      length: [] int32, time steps that count; the state does not change after them, and outputs
        there mean nothing. None is all T.
      remat: recompute a step in the backward pass: the memory of states only.

    Returns:
      The state after the last step that counts, and the outputs [T, B, H].
    """
    params = cell.select(params, *inputs)
    projected = cell.project(params, x * input_mask)
    mask = jnp.asarray(hidden_mask, x.dtype)

    def step(state: State, xs: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
        time, now = xs
        new = cell.step(params, state, now, mask, *inputs)
        output = new[0]
        if length is not None:
            new = jax.tree.map(lambda a, b: jnp.where(time < length, a, b), new, state)
        return new, output

    body = jax.checkpoint(step) if remat else step
    return lax.scan(body, state, (jnp.arange(len(x)), projected))


def check_hidden_size(hidden_size: int) -> None:
    """Raise a `ValueError` unless it is a positive integer."""
    if type(hidden_size) is not int or hidden_size < 1:
        raise ValueError(f"hidden_size must be an integer of 1 or more, got {hidden_size!r}.")


@dataclasses.dataclass(frozen=True)
class _Gated(Stateless):
    """What LSTM and GRU share."""

    hidden_size: int

    def __post_init__(self):
        check_hidden_size(self.hidden_size)

    @property
    def recurrent(self) -> tuple[str, ...]:
        """Names of the hidden-to-hidden parameters."""
        return ("recurrent",)


@dataclasses.dataclass(frozen=True)
class LSTM(_Gated):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997), gates i, f, g, o, one bias each.

    Parameters: input [D, 4 H], recurrent [H, 4 H], bias [4 H]; uniform in +- 1 / sqrt(H), as
    PyTorch has it. The state is (h, c).
    """

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters."""
        size = self.hidden_size
        shapes = {"input": (input_size, 4 * size), "recurrent": (size, 4 * size),
                  "bias": (4 * size,)}
        return _uniform(key, shapes, size ** -0.5)

    def initial_state(self, batch_size: int) -> State:
        """Return h and c, zeros [B, H]."""
        return (jnp.zeros((batch_size, self.hidden_size)),) * 2

    def step(self, params, state, projected, mask, *inputs):
        """Advance one time step, see `RecurrentCell.step`."""
        hidden, memory = state
        i, f, g, o = jnp.split(projected + (hidden * mask) @ params["recurrent"], 4, axis=-1)
        memory = jax.nn.sigmoid(f) * memory + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(memory), memory


@dataclasses.dataclass(frozen=True)
class GRU(_Gated):
    """Gated recurrent unit (Cho et al., 2014, https://arxiv.org/abs/1406.1078), gates r, z, n.

    The reset gate acts after the product, as in cuDNN. Parameters: input [D, 3 H], recurrent
    [H, 3 H], bias [3 H] and reset_bias [H], of the candidate's hidden part; drawn as the LSTM's.
    """

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters."""
        size = self.hidden_size
        shapes = {"input": (input_size, 3 * size), "recurrent": (size, 3 * size),
                  "bias": (3 * size,), "reset_bias": (size,)}
        return _uniform(key, shapes, size ** -0.5)

    def step(self, params, state, projected, mask, *inputs):
        """Advance one time step, see `RecurrentCell.step`."""
        hidden, = state
        from_input = jnp.split(projected, 3, axis=-1)
        from_hidden = jnp.split((hidden * mask) @ params["recurrent"], 3, axis=-1)
        reset, keep = (jax.nn.sigmoid(a + b) for a, b in zip(from_input[:2], from_hidden[:2]))
        new = jnp.tanh(from_input[2] + reset * (from_hidden[2] + params["reset_bias"]))
        return ((1 - keep) * new + keep * hidden,)
