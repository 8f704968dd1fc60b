"""The convolutional space of DARTS (Liu et al., 2019, https://arxiv.org/abs/1806.09055).

A network repeats a normal and a reduction cell. A cell has two inputs and four nodes; a node sums
two edges from earlier states, each with one of seven operations, and the nodes are concatenated.

Its architectures have three forms: relaxed `alphas` [2, 14, 8] for gradients, `arch` [32] int32 for
everything discrete, and a `Genotype` for people, files and fixed networks.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import genotypes
from jaxnas.genotypes import CellGenotype, Edge, Genotype
from jaxnas.networks.mixed import MIXABLE, edge_index, num_edges
from jaxnas.networks.network import Network
from jaxnas.networks.supernet import Supernet
from jaxnas.networks.traced import TracedNetwork

OPERATIONS = (  # the order of the reference code; another order permutes the columns of alphas
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
SELECTIONS = ("softmax", "raw")


@dataclasses.dataclass(frozen=True)
class DARTS:
    """Normal and reduction cell; `arch` [L] is [2, 2 * num_nodes, 2] flattened, L = 32.

    Row 2 i + k of a cell is the k-th edge of node i: (operation, source), the operation an index
    into `choices`, the source a state 0 .. i + 1 (0 and 1 are the inputs). The two sources of a
    node differ.

    Attributes:
      num_nodes: intermediate nodes of a cell.
      operations: O names, the columns of alphas. "none" takes part in the relaxation only.

    Raises:
      ValueError: for an unknown or repeated operation, nothing but "none", or no node.
    """

    num_nodes: int = 4
    operations: tuple[str, ...] = OPERATIONS

    def __post_init__(self):
        unknown = [name for name in self.operations if name not in MIXABLE]
        if unknown or len(set(self.operations)) < len(self.operations) or not self.choices:
            raise ValueError(
                f"operations must be distinct names among {MIXABLE}, with one that is not 'none', "
                f"got {self.operations}."
            )
        if self.num_nodes < 1:
            raise ValueError(f"num_nodes must be 1 or more, got {self.num_nodes}.")

    @property
    def choices(self) -> tuple[str, ...]:
        """The operations that a derived cell may have."""
        return tuple(name for name in self.operations if name != "none")

    @property
    def alphas_shape(self) -> tuple[int, int, int]:
        """[2, E, O]: normal and reduction cell, edges, operations."""
        return (2, num_edges(self.num_nodes), len(self.operations))

    @property
    def num_decisions(self) -> int:
        """L, the length of an arch."""
        return 8 * self.num_nodes

    @property
    def size(self) -> int:
        """Cells of one kind, edges of a node unordered; an architecture has two such cells."""
        edges = len(self.choices) ** 2
        return math.prod(math.comb(node + 2, 2) * edges for node in range(self.num_nodes))

    def init_alphas(self, key: jax.Array) -> jax.Array:
        """Draw alphas [2, E, O] float32 near zero, 1e-3 N(0, 1): every operation weighs alike."""
        return 1e-3 * jax.random.normal(key, self.alphas_shape)

    def weights(self, alphas: jax.Array) -> jax.Array:
        """Relax: softmax over all O operations, none included; [..., O] -> [..., O]."""
        return jax.nn.softmax(alphas, axis=-1)

    def discretize(self, alphas: jax.Array, *, selection: str = "softmax") -> jax.Array:
        """Derive an arch [L] int32: of each node the two strongest edges, of each the best choice.

        An edge is as strong as its strongest operation other than none; ties go to the lower
        source; the stronger edge stands first. Traceable.

        Args:
          alphas: [2, E, O].
          selection: "softmax" compares probabilities, in which the mass of none counts (section
            2.4 of the paper); "raw" compares alphas, as pt.darts does, though they are not
            comparable between edges.

        Raises:
          ValueError: for an unknown selection or a wrong shape.
        """
        if selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {SELECTIONS}, got {selection!r}.")
        if alphas.shape != self.alphas_shape:
            raise ValueError(f"alphas must be {self.alphas_shape}, got {alphas.shape}.")
        values = self.weights(alphas) if selection == "softmax" else alphas
        kept = np.array([i for i, name in enumerate(self.operations) if name != "none"])
        values = values[..., kept]
        best, strength = values.argmax(-1), values.max(-1)  # [2, E]
        rows = []
        for node in range(self.num_nodes):
            first = edge_index(node, 0)
            edges = slice(first, first + node + 2)
            source = jnp.argsort(-strength[:, edges], axis=-1, stable=True)[:, :2]
            operation = jnp.take_along_axis(best[:, edges], source, axis=-1)
            rows.append(jnp.stack([operation, source], -1))  # [2, 2, 2]
        return jnp.concatenate(rows, 1).reshape(-1).astype(jnp.int32)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw an arch [L] int32 uniformly: two different sources a node, any choice an edge."""
        operation_key, source_key = jax.random.split(key)
        operations = jax.random.randint(
            operation_key, (2, 2 * self.num_nodes), 0, len(self.choices)
        )
        sources = []
        for node, node_key in enumerate(jax.random.split(source_key, self.num_nodes)):
            first_key, second_key = jax.random.split(node_key)
            first = jax.random.randint(first_key, (2,), 0, node + 2)
            step = jax.random.randint(second_key, (2,), 1, node + 2)
            sources.append(jnp.stack([first, (first + step) % (node + 2)], -1))
        rows = jnp.stack([operations, jnp.concatenate(sources, -1)], -1)
        return rows.reshape(-1).astype(jnp.int32)

    def decode(self, arch: jax.Array | np.ndarray) -> Genotype:
        """Read an arch [L]. Host only.

        Raises:
          GenotypeError: for a wrong length, or an operation or source out of range.
        """
        values = np.asarray(arch)
        if values.shape != (self.num_decisions,) or values.dtype.kind not in "iu":
            raise genotypes.GenotypeError(
                f"arch must be {self.num_decisions} integers, got {values.dtype} {values.shape}."
            )
        cells = []
        for rows in values.reshape(2, -1, 2).tolist():
            for operation, _ in rows:
                if not 0 <= operation < len(self.choices):
                    raise genotypes.GenotypeError(
                        f"operation must be in [0, {len(self.choices) - 1}], got {operation}."
                    )
            edges = tuple(Edge(self.choices[operation], source) for operation, source in rows)
            cells.append(CellGenotype(edges, tuple(range(2, 2 + self.num_nodes))))
        return genotypes.validate(Genotype(*cells))

    def encode(self, genotype: Genotype) -> np.ndarray:
        """Write a genotype as an arch [L] int32. Host only.

        Raises:
          GenotypeError: if it is not of this space: other operations, nodes or concatenation.
        """
        rows = []
        for name, cell in zip(Genotype._fields, genotypes.validate(genotype)):
            if cell.concat != tuple(range(2, 2 + self.num_nodes)):
                raise genotypes.GenotypeError(
                    f"{name} must have {self.num_nodes} nodes, all concatenated, got "
                    f"{cell.num_nodes} nodes and concat {cell.concat}."
                )
            for edge in cell.edges:
                if edge.operation not in self.choices:
                    raise genotypes.GenotypeError(
                        f"{name}: operations must be among {self.choices}, got {edge.operation!r}."
                    )
                rows.append((self.choices.index(edge.operation), edge.source))
        return np.array(rows, np.int32).reshape(-1)

    def supernet(self, **options) -> Supernet:
        """Return the search network; `options` are `Supernet`'s."""
        return Supernet(operations=self.operations, num_nodes=self.num_nodes, **options)

    def network(self, genotype: Genotype, **options) -> Network:
        """Return the fixed network of a genotype; `options` are `Network`'s."""
        return Network(genotype=genotype, **options)

    def traced_network(self, **options) -> TracedNetwork:
        """Return the one network for every arch, which takes `arch.reshape(2, -1, 2)`."""
        return TracedNetwork(operations=self.choices, **options)
