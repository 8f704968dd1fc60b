"""The cells of NAS-Bench-NLP (Klyuchnikov et al., 2020, https://arxiv.org/abs/2006.07116).

A recipe is a graph of named nodes over the input x and the states h_prev_k; nodes h_new_k are the
new states, and h_new_0 is the output. An operation "linear" has a matrix for each of its inputs and
one bias, "blend" of (z, a, b) is z a + (1 - z) b, the others have no parameters. Built so, the 345
cells of the table trained on WikiText-2 have the numbers of parameters that it gives.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnas.networks.enas_controller import _uniform
from jaxnas.networks.recurrent import State, Stateless, check_hidden_size

OPERATIONS: Mapping[str, tuple[int, ...]] = {  # how many inputs each may have
    "linear": (1, 2, 3), "blend": (3,), "elementwise_prod": (2, 3), "elementwise_sum": (2, 3),
    "activation_tanh": (1,), "activation_sigm": (1,), "activation_leaky_relu": (1,)}
_NEW = re.compile("h_new_[0-9]+", re.ASCII)  # not h_new_1_act, for one
_PREVIOUS = re.compile("h_prev_[0-9]+", re.ASCII)


class Node(NamedTuple):
    """One node of a recipe."""

    name: str
    operation: str           # of OPERATIONS
    inputs: tuple[str, ...]  # "x", "h_prev_k" or names of nodes


def read_recipe(recipe: Mapping[str, Mapping[str, object]]) -> tuple[Node, ...]:
    """Read a recipe as the table has it, and sort it: every node after those that it reads.

    Args:
      recipe: name -> {"op": operation, "input": names}.

    Raises:
      ValueError: an unknown operation or input, a wrong number of inputs, a cycle, states that are
        not h_new_0 .. h_new_k, or one that is read and never written.
    """
    nodes = {}
    for name, row in recipe.items():
        operation, inputs = row.get("op"), row.get("input")
        if not isinstance(operation, str) or operation not in OPERATIONS:
            raise ValueError(f"the op of {name!r:.40} must be one of {', '.join(OPERATIONS)}, got "
                             f"{operation!r:.40}.")
        if not isinstance(inputs, Sequence) or isinstance(inputs, str) or (
                len(inputs) not in OPERATIONS[operation]):
            raise ValueError(f"the input of {name!r:.40}, {operation}, must be a list of "
                             f"{' or '.join(map(str, OPERATIONS[operation]))} names, got "
                             f"{inputs!r:.60}.")
        nodes[name] = Node(name, operation, tuple(inputs))
    written = {name for name in nodes if _NEW.fullmatch(name)}
    if not written or written != {f"h_new_{number}" for number in range(len(written))}:
        raise ValueError(f"new states must be h_new_0, h_new_1 and so on, got {sorted(written)}.")
    known = {"x", *(f"h_prev_{number}" for number in range(len(written)))}
    reserved = [name for name in nodes if name == "x" or _PREVIOUS.fullmatch(name)]
    unknown = sorted({str(name) for node in nodes.values() for name in node.inputs}
                     - known - set(nodes))
    if reserved or unknown:
        raise ValueError("inputs must be x, a written state's h_prev_k or a node, and no node "
                         f"named like one of the first two, got {[*reserved, *unknown]}.")
    ordered: list[Node] = []
    while len(ordered) < len(nodes):
        ready = [node for name, node in nodes.items()
                 if name not in known and known.issuperset(node.inputs)]
        if not ready:
            raise ValueError("nodes must not read each other in a circle, got one among "
                             f"{sorted(set(nodes) - known)}.")
        ordered += ready
        known.update(node.name for node in ready)
    return tuple(ordered)


@dataclasses.dataclass(frozen=True)
class RecipeCell(Stateless):
    """The cell of one recipe, a program of its own.

    Parameters, for the E inputs x, the F other inputs and the G nodes of operation linear, in the
    order of `nodes`: input [D, E H], if E > 0, recurrent [F, H, H], if F > 0, bias [G H]; uniform
    in +- 1 / sqrt(H), as PyTorch has it. One mask multiplies every input but x of a linear node.

    Attributes:
      nodes: as `read_recipe` returns them.
      hidden_size: H, of all states.
    """

    nodes: tuple[Node, ...]
    hidden_size: int

    def __post_init__(self):
        check_hidden_size(self.hidden_size)
        if not any(node.name == "h_new_0" for node in self.nodes):
            raise ValueError("nodes must be what read_recipe returns, got none named h_new_0.")

    @property
    def num_states(self) -> int:
        """States h_new_k."""
        return sum(_NEW.fullmatch(node.name) is not None for node in self.nodes)

    @property
    def recurrent(self) -> tuple[str, ...]:
        """Names of the hidden-to-hidden parameters."""
        return ("recurrent",) if any(_sources(node)[1] for node in self.nodes) else ()

    def init(self, key: jax.Array, input_size: int) -> dict[str, jax.Array]:
        """Draw the parameters."""
        size = self.hidden_size
        linear = [_sources(node) for node in self.nodes if node.operation == "linear"]
        from_input = sum(count for count, _ in linear)
        hidden = sum(count for _, count in linear)
        shapes: dict[str, tuple[int, ...]] = {}
        if from_input:
            shapes["input"] = (input_size, from_input * size)
        if hidden:
            shapes["recurrent"] = (hidden, size, size)
        if linear:
            shapes["bias"] = (len(linear) * size,)
        return _uniform(key, shapes, size ** -0.5) if shapes else {}

    def initial_state(self, batch_size: int) -> State:
        """Return zeros [B, H] for every state."""
        return (jnp.zeros((batch_size, self.hidden_size)),) * self.num_states

    def project(self, params, x):
        """Return x times "input" and, for nodes that read x as it is, x: [T, B, E H (+ D)]."""
        parts = [x @ params["input"]] if "input" in params else []
        return jnp.concatenate([*parts, x], axis=-1)

    def step(self, params, state, projected, mask, *inputs):
        """Advance one time step, see `RecurrentCell.step`.

        Raises:
          ValueError: a node without parameters reads x, and D is not H.
        """
        size = self.hidden_size
        split = params["input"].shape[1] if "input" in params else 0
        values = {f"h_prev_{number}": value for number, value in enumerate(state)}
        values["x"] = projected[:, split:]
        columns = iter(jnp.split(projected[:, :split], split // size, -1) if split else ())
        matrices = iter(params.get("recurrent", ()))
        biases = iter(params["bias"].reshape(-1, size) if "bias" in params else ())
        for node in self.nodes:
            if node.operation == "linear":
                value = next(biases)
                for name in node.inputs:
                    value = value + (next(columns) if name == "x"
                                     else (values[name] * mask) @ next(matrices))
            else:
                read = [values[name] for name in node.inputs]
                if any(operand.shape[-1] != size for operand in read):
                    raise ValueError(f"{node.name} reads x as it is, so that inputs must have "
                                     f"hidden_size={size}, got {values['x'].shape[-1]}.")
                value = _apply(node.operation, read)
            values[node.name] = value
        return tuple(values[f"h_new_{number}"] for number in range(len(state)))


def _sources(node: Node) -> tuple[int, int]:
    """Return how often a node multiplies x, and how often others, by a matrix."""
    if node.operation != "linear":
        return 0, 0
    from_input = node.inputs.count("x")
    return from_input, len(node.inputs) - from_input


def _apply(operation: str, read: list[jax.Array]) -> jax.Array:
    if operation == "blend":
        return read[0] * read[1] + (1 - read[0]) * read[2]
    if operation == "elementwise_prod":
        return jnp.prod(jnp.stack(read), axis=0)
    if operation == "elementwise_sum":
        return sum(read[1:], read[0])
    if operation == "activation_tanh":
        return jnp.tanh(read[0])
    if operation == "activation_sigm":
        return jax.nn.sigmoid(read[0])
    return jax.nn.leaky_relu(read[0], 0.01)  # PyTorch's default slope
