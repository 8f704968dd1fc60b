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

from jaxnas import draws, genotypes, mutations
from jaxnas.genotypes import CellGenotype, Edge, Genotype
from jaxnas.networks.mixed import MIXABLE, edge_index, num_edges
from jaxnas.networks.network import Network
from jaxnas.networks.own_operations import OwnOperations, own_names, own_operations
from jaxnas.networks.supernet import Supernet
from jaxnas.networks.traced import TracedNetwork
from jaxnas.search_spaces import pair_cells, product
from jaxnas.search_spaces.pair_cells import OPERATION, SOURCE

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
      own: those among them that are not the library's: name -> class, see
        `networks.own_operations`.

    Raises:
      ValueError: for an unknown or repeated operation, nothing but "none", an own operation that is
        not in `operations` or breaks the rules of `own_operations`, or no node.
    """

    num_nodes: int = 4
    operations: tuple[str, ...] = OPERATIONS
    own: OwnOperations = ()

    def __post_init__(self):
        object.__setattr__(self, "own", own_operations(self.own, among=self.operations))
        allowed = (*MIXABLE, *own_names(self.own))
        unknown = [name for name in self.operations if name not in allowed]
        if unknown or len(set(self.operations)) < len(self.operations) or not self.choices:
            raise ValueError(
                f"operations must be distinct names among {allowed}, with one that is not 'none', "
                f"got {self.operations}."
            )
        if self.num_nodes < 1:
            raise ValueError(f"num_nodes must be 1 or more, got {self.num_nodes}.")

    @property
    def name(self) -> str:
        """What result.json and a genotype call the space."""
        return "darts"

    @property
    def rules(self) -> genotypes.CellRules:
        """What its cells may hold, for reading, writing and drawing them."""
        return genotypes.cell_rules(self.name, own_names(self.own))

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
    def num_choices(self) -> tuple[int, ...]:
        """[L] choices of every decision; that two sources differ is not in it."""
        cell = [count for node in range(self.num_nodes)
                for count in (len(self.choices), node + 2) * 2]
        return tuple(cell) * 2

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

    def mutate(self, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Give one decision another value, so that sources still differ: [L] -> [L].

        The decision is drawn uniformly among those that can change alone, which the sources of the
        first node cannot; the value uniformly among the others.

        Raises:
          ValueError: no decision can change: one node, one operation.
        """
        counts = np.array(self.num_choices)
        is_source = np.arange(len(counts)) % 2 == 1
        others = counts - np.where(is_source, 2, 1)
        positions = mutations.free_positions(tuple((others + 1).tolist()))
        word, other_word = jax.random.bits(key, (2,))
        which, _ = draws.take(word, len(positions))
        position = jnp.asarray(positions, jnp.int32)[which]
        value, _ = draws.take(other_word, jnp.asarray(others, jnp.int32)[position])
        # Sources stand at 1 and 3 of the four decisions of a node.
        old, beside = arch[position], arch[position ^ 2]
        skipped = jnp.where(jnp.asarray(is_source)[position], jnp.stack([old, beside]),
                            jnp.stack([old, jnp.int32(np.iinfo(np.int32).max)]))
        value += value >= skipped.min()
        value += value >= skipped.max()
        return jnp.where(np.arange(len(counts)) == position, value, arch).astype(jnp.int32)

    def crossover(self, key: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        """Take every operation, and both sources of every node, from either arch: [L], [L] -> [L].

        Each with probability 1/2; the sources of a node stay together, so that they differ.
        """
        positions = np.arange(self.num_decisions)
        together = np.where(positions % 4 == 3, positions - 2, positions)
        coins = jax.random.bits(key, (self.num_decisions,), "uint8")[together] & 1
        return jnp.where(coins == 1, first, second)

    def is_valid(self, arch: jax.Array) -> jax.Array:
        """Tell whether [L] integers are in range and the sources of each node differ: [] bool."""
        sources = arch.reshape(-1, 2, 2)[..., 1]
        return mutations.is_valid(arch, self.num_choices) & jnp.all(sources[:, 0] != sources[:, 1])

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Return the lexicographically smallest arch of the same graphs: [L] -> [L].

        The edges of a node may be exchanged, and nodes renumbered.

        Raises:
          ValueError: more than 6 nodes.
        """
        def cell(rows):
            return pair_cells.canonical_cell(rows, columns=(OPERATION, SOURCE) * 2,
                                             num_operations=len(self.choices))

        return jax.vmap(cell)(arch.reshape(2, self.num_nodes, 4)).reshape(-1)

    def decode(self, arch: jax.Array | np.ndarray) -> Genotype:
        """Read an arch [L]. Host only.

        Raises:
          GenotypeError: for a wrong length, an operation or source out of range, or a node that
            reads one state twice.
        """
        try:
            values = np.array(product.read_arch(arch, self.num_choices))
        except ValueError as error:
            raise genotypes.GenotypeError(str(error)) from None
        cells = []
        for name, rows in zip(genotypes.CELLS, values.reshape(2, -1, 2).tolist()):
            edges = tuple(Edge(self.choices[operation], source) for operation, source in rows)
            _check_sources(name, edges)
            cells.append(CellGenotype(edges, tuple(range(2, 2 + self.num_nodes))))
        return genotypes.validate(Genotype(cells[0], cells[1]), self.rules)

    def encode(self, genotype: Genotype) -> np.ndarray:
        """Write a genotype as an arch [L] int32. Host only.

        Raises:
          GenotypeError: if it is not of this space: other operations, nodes or concatenation, or a
            node that reads one state twice.
        """
        space = genotype.space if isinstance(genotype, Genotype) else self.name
        if space != self.name:
            raise genotypes.GenotypeError(f"space must be {self.name!r}, got {space!r}.")
        genotype = genotypes.validate(genotype, self.rules)
        rows = []
        for name, cell in zip(genotypes.CELLS, (genotype.normal, genotype.reduction)):
            every_node = tuple(range(2, 2 + self.num_nodes))
            if cell.num_nodes != self.num_nodes or cell.concat != every_node:
                raise genotypes.GenotypeError(
                    f"{name} must have {self.num_nodes} nodes, all concatenated, got "
                    f"{cell.num_nodes} nodes and concat {cell.concat}."
                )
            _check_sources(name, cell.edges)
            for edge in cell.edges:
                if edge.operation not in self.choices:
                    raise genotypes.GenotypeError(
                        f"{name}: operations must be among {self.choices}, got {edge.operation!r}."
                    )
                rows.append((self.choices.index(edge.operation), edge.source))
        return np.array(rows, np.int32).reshape(-1)

    def supernet(self, **options) -> Supernet:
        """Return the search network; `options` are `Supernet`'s."""
        return Supernet(operations=self.operations, num_nodes=self.num_nodes,
                        **{"own": self.own, **options})

    def network(self, genotype: Genotype, **options) -> Network:
        """Return the fixed network of a genotype; `options` are `Network`'s."""
        return Network(genotype=genotype, **{"own": self.own, **options})

    def traced_network(self, **options) -> TracedNetwork:
        """Return the one network for every arch, which takes `arch.reshape(2, -1, 2)`.

        Raises:
          ValueError: the space has own operations: one set of weights serves whatever operation an
            edge holds, which theirs would not fit.
        """
        if self.own:
            raise ValueError(
                f"the traced network of DARTS has no own operations, got {own_names(self.own)}; "
                "build network(genotype) of each, or search a PairCellSpace.")
        return TracedNetwork(operations=self.choices, **options)


def _check_sources(name: str, edges: tuple[Edge, ...]) -> None:
    for node, (first, second) in enumerate(zip(edges[::2], edges[1::2])):
        if first.source == second.source:
            raise genotypes.GenotypeError(
                f"{name}: the two sources of node {node} must differ, got {first.source} twice."
            )
