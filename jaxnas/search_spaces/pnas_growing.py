"""PNAS's cells of 1, 2, ... B blocks as architectures of one length, for progressive search.

Liu et al., 2018, https://arxiv.org/abs/1712.00559, sections 3.1 and 3.2.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.networks.layer_costs import Cost
from jaxnas.networks.layers import Operation
from jaxnas.networks.pair_traced import TracedPairNetwork
from jaxnas.search_spaces.pair_cells import OPERATION, canonical_cell
from jaxnas.search_spaces.pnas import PNAS

ABSENT = "absent"


class Absent(Operation):
    """Zeros [N, H / stride, W / stride, features]: both halves of a block that is missing."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return zeros."""
        del train
        height, width, features = self.output_shape(x.shape[1:])  # type: ignore[arg-type]
        return jnp.zeros((x.shape[0], height, width, features), x.dtype)

    def cost(self, shape: tuple[int, int, int]) -> Cost:
        """Return nothing."""
        del shape
        return Cost(0, 0)


@dataclasses.dataclass(frozen=True)
class GrowingPNAS:
    """Cells of at most B blocks; `arch` [4 B] is that of `PNAS`, and blocks that are missing.

    A missing block is (0, O, 0, O): its operation is one more than there are. Missing blocks are
    the last, so that the first 4 b decisions of a cell of b blocks are an arch of the space of b
    blocks, and a cell of B blocks is an arch of `largest`.

    Attributes:
      largest: the space of B blocks.
    """

    largest: PNAS = PNAS()

    @property
    def absent(self) -> int:
        """O, the operation of a missing block."""
        return len(self.largest.operations)

    @property
    def columns(self) -> tuple[str, ...]:
        """What the decisions of a block are."""
        return self.largest.columns

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[4 B] choices of every decision."""
        columns = self.columns * self.num_sizes
        return tuple(count + (column == OPERATION)
                     for count, column in zip(self.largest.num_choices, columns))

    @property
    def num_sizes(self) -> int:
        """B."""
        return self.largest.num_blocks

    def space(self, num_blocks: int) -> PNAS:
        """Return the space of cells of so many blocks."""
        return dataclasses.replace(self.largest, num_blocks=num_blocks)

    def pad(self, archs: np.ndarray) -> np.ndarray:
        """Write archs [N, 4 b] of the space of b blocks as archs [N, 4 B] of this one."""
        archs = np.asarray(archs, np.int32)
        missing = np.tile((0, self.absent, 0, self.absent),
                          (len(archs), self.num_sizes - archs.shape[1] // 4))
        return np.concatenate([archs, missing], 1).astype(np.int32)

    def traced_network(self, **options) -> TracedPairNetwork:
        """Return one network for cells of every size, which takes `rows(arch)`.

        A missing block makes zeros that are concatenated like other states. So the network of a
        cell of B blocks is that of `PNAS`, and one of a smaller cell is, but that its cells bring
        their earlier input to width by a 1x1 convolution even where they read one state only.

        Args:
          **options: `TracedPairNetwork`'s.
        """
        return self._with_absent.traced_network(**options)

    def rows(self, arch: jax.Array) -> jax.Array:
        """Write an arch [4 B] as `traced_network` takes it: [2, B, 4] int32."""
        return self._with_absent.rows(arch)

    @property
    def _with_absent(self) -> PNAS:
        space = self.largest
        return dataclasses.replace(
            space, operations=(*space.operations, ABSENT), own={**dict(space.own), ABSENT: Absent})

    @property
    def num_smallest(self) -> int:
        """S, distinct cells of one block; 136 with 8 operations."""
        return self.absent * (2 * self.absent + 1)

    def smallest(self) -> tuple[jax.Array, jax.Array]:
        """Return all distinct cells of one block: [S, 4 B] int32, and that they are any, [S]."""
        count = 2 * self.absent  # (source, operation): a block is an unordered pair of them
        first, second = np.triu_indices(count)
        archs = self.pad(np.stack([first // self.absent, first % self.absent,
                                   second // self.absent, second % self.absent], -1))
        return jnp.asarray(archs), jnp.ones(len(archs), bool)

    def expand(self, arch: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Add every possible block to a cell: [4 B] -> canonical [E, 4 B], and which are any, [E].

        E is that of the largest cells, n (n + 1) / 2 with n = (B + 1) O: the halves of a block have
        no order. Of a smaller cell those with states that it does not have are none, of a cell of B
        blocks all.
        """
        rows = arch.reshape(-1, 4)
        size = jnp.sum(rows[:, 1] != self.absent)
        first, second = np.triu_indices((self.num_sizes + 1) * self.absent)
        blocks = np.stack([first // self.absent, first % self.absent,
                           second // self.absent, second % self.absent], -1).astype(np.int32)
        new = jnp.arange(self.num_sizes)[:, None] == size  # [B, 1]
        cells = jnp.where(new, jnp.asarray(blocks)[:, None], rows)  # [E, B, 4]
        valid = (size < self.num_sizes) & (blocks[:, 2] < size + 2)  # the second is not before
        return jax.vmap(self.canonical)(cells.reshape(len(blocks), -1)), valid

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Return one and the same arch for all of the same graph: [4 B] -> [4 B].

        Of cells of B blocks it is that of `PNAS.canonical`. Missing blocks are sorted among the
        others like blocks of one more operation, and then moved to the end.
        """
        rows = canonical_cell(arch.reshape(-1, 4), columns=self.columns,
                              num_operations=self.absent + 1)
        missing = rows[:, 1] == self.absent
        order = jnp.argsort(missing, stable=True)
        # State s >= 2 is block s - 2, which moves up by the missing ones before it.
        shift = jnp.concatenate([jnp.zeros(2, jnp.int32), jnp.cumsum(missing, dtype=jnp.int32)])
        sources = rows[:, (0, 2)]
        rows = rows.at[:, (0, 2)].set(sources - shift[sources])
        return rows[order].reshape(-1)

    def network(self, arch: jax.Array) -> jax.Array:
        """Return an arch [4 B] as it is: what is asked for is canonical already."""
        return arch

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw a cell of B blocks, canonical: [4 B]."""
        return self.canonical(self.largest.sample(key))
