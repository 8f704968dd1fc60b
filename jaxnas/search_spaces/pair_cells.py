"""Cells of blocks that add two operations on two earlier states: what such spaces share.

NASNet, AmoebaNet, PNASNet, ENAS micro and DARTS search the same graphs: block b reads two of the
b + 2 states before it (0 and 1 are the outputs of the cells k-2 and k-1, block b makes state b + 2)
and adds what two operations make of them. They differ in the operations, in which decisions stand
where, and in which states are concatenated. (Zoph et al., 2018, https://arxiv.org/abs/1707.07012)

A space of one's own is a class of the same kind, with its own name and the style of its networks:

    @dataclasses.dataclass(frozen=True)
    class Mine(PairCellSpace):
        operations: tuple[str, ...] = ("skip_connect", "sep_conv_3x3", "blur")
        own: OwnOperations = (("blur", Blur),)   # if any is not the library's
        name = "mine"
        columns = (SOURCE, SOURCE, OPERATION, OPERATION)
        style = CellStyle(...)
"""

import dataclasses
import functools
import itertools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import mutations
from jaxnas.genotypes import (CELLS, CellGenotype, CellRules, Edge, Genotype, GenotypeError,
                              cell_rules, validate)
from jaxnas.networks.own_operations import OwnOperations, own_names, own_operations
from jaxnas.networks.pair_cells import CellStyle
from jaxnas.networks.pair_network import PairNetwork
from jaxnas.networks.pair_traced import TracedPairNetwork, cell_rows
from jaxnas.search_spaces import product

SOURCE, OPERATION, CONSTANT = "source", "operation", "constant"  # what a column decides
MAX_BLOCKS = 6  # `canonical` tries every order of them: 720


@dataclasses.dataclass(frozen=True)
class PairCellSpace(product.IndependentDecisions):
    """All of a space but its name, its operations and its columns; a mutation that others replace.

    `arch` [L] int32 is [cells, num_blocks, columns] flattened. People see a `Genotype`.

    Attributes:
      num_blocks: B, blocks of a cell, in 1..6.
      operations: distinct names among `genotypes.CELL_OPERATIONS` of the space; in a space of
        another name, among all of the library. Own ones are allowed in either.
      own: those that are not the library's: name -> class, see `networks.own_operations`.

    Raises:
      ValueError: for another number of blocks, an unknown or repeated operation, or an own one that
        breaks the rules of `own_operations` or is not in `operations`.
    """

    num_blocks: int = 5
    operations: tuple[str, ...] = ()
    own: OwnOperations = dataclasses.field(default=(), kw_only=True)

    name: ClassVar[str]                 # what result.json and a genotype call the space
    columns: ClassVar[tuple[str, ...]]  # of a block: two SOURCE, two OPERATION, CONSTANT or not
    num_cells: ClassVar[int] = 2        # 1 where one cell is used with either stride
    concat_inputs: ClassVar[bool] = True  # whether inputs that nobody reads are concatenated too
    style: ClassVar[CellStyle | None] = None  # of the networks; None is the library's of that name

    def __post_init__(self):
        if not isinstance(self.num_blocks, int) or not 1 <= self.num_blocks <= MAX_BLOCKS:
            raise ValueError(f"num_blocks must be in [1, {MAX_BLOCKS}], got {self.num_blocks}.")
        own = own_operations(self.own, among=self.operations, widens=True)
        object.__setattr__(self, "own", own)
        if not hasattr(type(self), "name") or not hasattr(type(self), "columns"):
            raise ValueError(f"{type(self).__name__} must have the class attributes name and "
                             "columns.")
        counts = [self.columns.count(kind) for kind in (SOURCE, OPERATION, CONSTANT)]
        if counts[:2] != [2, 2] or sum(counts) < len(self.columns):
            raise ValueError(f"columns must be two {SOURCE!r}, two {OPERATION!r}, and any "
                             f"{CONSTANT!r}, got {self.columns}.")
        allowed = self.rules.operations
        if (not isinstance(self.operations, tuple) or not self.operations
                or len(set(self.operations)) < len(self.operations)
                or not set(self.operations) <= set(allowed)):
            raise ValueError(f"operations must be a tuple of distinct names among {allowed}, "
                             f"got {self.operations}.")

    @property
    def rules(self) -> CellRules:
        """What its cells may hold, for reading, writing and drawing them."""
        return cell_rules(self.name, own_names(self.own), concat_inputs=self.concat_inputs)

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[L] choices of every decision; block b has b + 2 sources."""
        cell = [{SOURCE: block + 2, OPERATION: len(self.operations), CONSTANT: 1}[column]
                for block in range(self.num_blocks) for column in self.columns]
        return tuple(cell) * self.num_cells

    def mutate(self, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Give one decision of several choices another value, all uniformly: [L] -> [L]."""
        return mutations.mutate(key, arch, self.num_choices)

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Return the lexicographically smallest arch of the same graphs: [L] -> [L].

        The halves of a block may be exchanged, and blocks renumbered; see `canonical_cell`.
        """
        cells = arch.reshape(self.num_cells, self.num_blocks, len(self.columns))
        canonical = functools.partial(canonical_cell, columns=self.columns,
                                      num_operations=len(self.operations))
        return jax.vmap(canonical)(cells).reshape(-1)

    def decode(self, arch: jax.Array | np.ndarray) -> Genotype:
        """Read an arch [L] as cells that concatenate all states that no block reads. Host only.

        Raises:
          ValueError: a wrong length, or a decision out of range.
        """
        values = np.array(product.read_arch(arch, self.num_choices))
        sources, operations = (np.flatnonzero(np.array(self.columns) == kind)
                               for kind in (SOURCE, OPERATION))
        cells = []
        for rows in values.reshape(self.num_cells, self.num_blocks, -1):
            edges = tuple(
                Edge(self.operations[operation], source) for operation, source in
                zip(rows[:, operations].reshape(-1).tolist(), rows[:, sources].reshape(-1).tolist())
            )
            cells.append(CellGenotype(edges, self.loose_ends(edges)))
        return validate(Genotype(cells[0], cells[-1], self.name), self.rules)

    def encode(self, genotype: Genotype, *, ignore_concat: bool = False) -> np.ndarray:
        """Write a genotype as an arch [L] int32. Host only.

        Args:
          genotype: of this space.
          ignore_concat: published cells may concatenate other states than `decode` does; with True
            this is lost, with False refused.

        Raises:
          GenotypeError: it is of another space, or has other operations, blocks or concatenation,
            or two different cells where the space has one.
        """
        space = genotype.space if isinstance(genotype, Genotype) else self.name
        if space != self.name:
            raise GenotypeError(f"space must be {self.name!r}, got {space!r}.")
        genotype = validate(genotype, self.rules)
        if self.num_cells == 1 and genotype.normal != genotype.reduction:
            raise GenotypeError(f"space {self.name!r} has one cell for both strides, but normal "
                                "and reduction differ.")
        arch: list[int] = []
        for name, cell in list(zip(CELLS, (genotype.normal, genotype.reduction)))[:self.num_cells]:
            loose = self.loose_ends(cell.edges)
            if cell.num_nodes != self.num_blocks:
                raise GenotypeError(f"{name} must have {self.num_blocks} nodes, got "
                                    f"{cell.num_nodes}.")
            if cell.concat != loose and not ignore_concat:
                raise GenotypeError(f"{name}.concat must be {loose}, all that no node reads, got "
                                    f"{cell.concat}; ignore_concat=True forgets it.")
            for first, second in zip(cell.edges[::2], cell.edges[1::2]):
                for edge in (first, second):
                    if edge.operation not in self.operations:
                        raise GenotypeError(f"{name}: operations must be among {self.operations}, "
                                            f"got {edge.operation!r}.")
                halves = iter((first.source, second.source)), iter(
                    map(self.operations.index, (first.operation, second.operation)))
                arch += [0 if column == CONSTANT else next(halves[column == OPERATION])
                         for column in self.columns]
        return np.array(arch, np.int32)

    def network(self, genotype: Genotype, **options) -> PairNetwork:
        """Return the fixed network of a genotype; `options` are `PairNetwork`'s."""
        return PairNetwork(genotype, **{"style": self.style, "own": self.own, **options})

    def traced_network(self, **options) -> TracedPairNetwork:
        """Return the one network for every arch, which takes `rows(arch)`.

        Args:
          **options: `TracedPairNetwork`'s.
        """
        return TracedPairNetwork(self.name, self.operations, self.num_blocks, **{
            "style": self.style, "own": self.own, "concat_inputs": self.concat_inputs, **options})

    def rows(self, arch: jax.Array) -> jax.Array:
        """Write an arch [L] as `traced_network` takes it: [2, B, 4] int32, see `cell_rows`."""
        return cell_rows(arch, num_blocks=self.num_blocks, columns=self.columns)

    def loose_ends(self, edges: tuple[Edge, ...]) -> tuple[int, ...]:
        """Return the states to concatenate: those no block reads, inputs among them or not."""
        read = {edge.source for edge in edges}
        return tuple(state for state in range(0 if self.concat_inputs else 2, len(edges) // 2 + 2)
                     if state not in read)


def canonical_cell(rows: jax.Array, *, columns: tuple[str, ...], num_operations: int) -> jax.Array:
    """Return the lexicographically smallest cell with the same graph: [B, C] -> [B, C] int32.

    Two cells get the same answer if and only if exchanging the halves of blocks and renumbering
    blocks, sources before those who read them, makes one the other; they are then one network
    whose channels are in another order. All B! orders are tried.

    Args:
      rows: a valid cell, one row a block.
      columns: what the C columns are; CONSTANT ones are 0.
      num_operations: choices of an OPERATION.

    Raises:
      ValueError: more than 6 blocks.
    """
    num_blocks = rows.shape[0]
    if num_blocks > MAX_BLOCKS:
        raise ValueError(f"a canonical form is found for at most {MAX_BLOCKS} blocks, "
                         f"got {num_blocks}.")
    radix = {SOURCE: num_blocks + 2, OPERATION: num_operations, CONSTANT: 1}
    counts = [radix[column] for column in columns]
    strides = [math.prod(counts[i + 1:]) for i in range(len(counts))]
    sources, operations = ([i for i, column in enumerate(columns) if column == kind]
                           for kind in (SOURCE, OPERATION))
    orders, labels = _orders(num_blocks)

    moved = rows[orders]  # [B!, B, C]
    label_rows = np.arange(len(orders))[:, None, None] * labels.shape[1]
    renamed = jnp.asarray(labels.reshape(-1))[label_rows + moved[..., np.array(sources)]]
    possible = jnp.all(renamed < np.arange(num_blocks)[:, None] + 2, axis=(1, 2))

    def code(first: int, second: int) -> jax.Array:  # [B!, B], in the order of the decisions
        left, right = (renamed[..., half] * strides[source]
                       + moved[..., operations[half]] * strides[operation]
                       for half, source, operation in zip((first, second), sources, operations))
        return left + right

    codes = jnp.minimum(code(0, 1), code(1, 0))
    chosen = []
    for block in range(num_blocks):
        smallest = jnp.min(jnp.where(possible, codes[:, block], np.iinfo(np.int32).max))
        possible &= codes[:, block] == smallest
        chosen.append(smallest)
    smallest_codes = jnp.stack(chosen)[:, None]
    return (smallest_codes // np.array(strides, np.int32) % np.array(counts, np.int32)).astype(
        jnp.int32)


@functools.cache
def _orders(num_blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the orders [B!, B] of old blocks, and of each the new names [B!, B + 2] of states."""
    orders = np.array(list(itertools.permutations(range(num_blocks))), np.int32)
    labels = np.zeros((len(orders), num_blocks + 2), np.int32)
    labels[:, 1] = 1
    np.put_along_axis(labels, orders + 2, np.arange(2, num_blocks + 2, dtype=np.int32)[None], 1)
    orders.setflags(write=False)
    labels.setflags(write=False)
    return orders, labels
