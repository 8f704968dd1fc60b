"""The recurrent space of DARTS (Liu et al., 2019, https://arxiv.org/abs/1806.09055, section 3.1.2).

A cell has N nodes; each reads one earlier state through one activation, and the mean of all nodes
is the hidden state. As in quark0/darts rnn/, "none" takes part in the relaxation only.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.networks.recurrent_highway import MixedHighway, TracedHighway
from jaxnas.search_spaces.recurrent_trees import RecurrentTree, check_tree

ACTIVATIONS = ("none", "tanh", "relu", "sigmoid", "identity")  # of the reference code, in order


@dataclasses.dataclass(frozen=True)
class DARTSRNN(RecurrentTree):
    """N nodes: `arch` [L] is [N, 2] flattened, rows (activation, source), L = 16.

    An activation is an index into `choices`; sources are 0 .. i - 1 for node i = 1 .. N, and 0 is
    the state made of input and hidden state. Relaxed, row i (i - 1) / 2 + j of `alphas` [E, O] is
    the edge from state j to node i: E = 36. As text, "relu 0|relu 1|tanh 2".

    Attributes:
      num_nodes: N.
      activations: O names, the columns of alphas.

    Raises:
      ValueError: num_nodes is not in [1, 16]; an unknown or repeated activation, or only "none".
    """

    num_nodes: int = 8
    activations: tuple[str, ...] = ACTIVATIONS

    def __post_init__(self):
        if self.activations.count("none") > 1:
            raise ValueError(f"activations must be distinct, got {self.activations}.")
        check_tree(self.num_nodes, self.choices)

    @property
    def name(self) -> str:
        """What result.json calls the space."""
        return "darts_rnn"

    @property
    def choices(self) -> tuple[str, ...]:
        """The activations that a derived cell may have."""
        return tuple(name for name in self.activations if name != "none")

    @property
    def source_first(self) -> bool:
        """Rows are (activation, source)."""
        return False

    @property
    def alphas_shape(self) -> tuple[int, int]:
        """[E, O]: edges and activations."""
        return (math.comb(self.num_nodes + 1, 2), len(self.activations))

    def init_alphas(self, key: jax.Array) -> jax.Array:
        """Draw alphas [E, O] float32 near zero, 1e-3 N(0, 1)."""
        return 1e-3 * jax.random.normal(key, self.alphas_shape)

    def weights(self, alphas: jax.Array) -> jax.Array:
        """Relax: softmax over all O activations, none included; [..., O] -> [..., O]."""
        return jax.nn.softmax(alphas, axis=-1)

    def discretize(self, alphas: jax.Array) -> jax.Array:
        """Derive an arch [L] int32: of each node the strongest edge, and its best activation.

        An edge is as strong as its most probable activation other than none; ties go to the lower
        source. Traceable.

        Raises:
          ValueError: alphas are not [E, O].
        """
        if alphas.shape != self.alphas_shape:
            raise ValueError(f"alphas must be {self.alphas_shape}, got {alphas.shape}.")
        kept = np.array([i for i, name in enumerate(self.activations) if name != "none"])
        values = self.weights(alphas)[:, kept]
        best, strength = values.argmax(-1), values.max(-1)  # [E]
        rows = []
        for node in range(self.num_nodes):
            first = node * (node + 1) // 2
            source = strength[first : first + node + 1].argmax()
            rows.append(jnp.stack([best[first + source], source]))
        return jnp.concatenate(rows).astype(jnp.int32)

    def one_hot(self, arch: jax.Array) -> jax.Array:
        """Return the weights [E, O] with which the mixed cell is the cell of an arch [L]."""
        activation, source = self.split(arch)
        node = np.repeat(np.arange(self.num_nodes), np.arange(1, self.num_nodes + 1))
        sources = np.concatenate([np.arange(i + 1) for i in range(self.num_nodes)])
        columns = np.array([self.activations.index(name) for name in self.choices])
        rows = jax.nn.one_hot(jnp.asarray(columns)[activation], len(self.activations))
        return rows[node] * (source[node] == sources)[:, None]

    def mixed_cell(self, **options) -> MixedHighway:
        """Return the search cell, which takes `weights` [E, O]; `options` are `MixedHighway`'s."""
        return MixedHighway(self.num_nodes, self.activations, **options)

    def traced_cell(self, **options) -> TracedHighway:
        """Return the one cell for every arch, which takes `split(arch)`."""
        return TracedHighway(self.num_nodes, self.choices, **options)
