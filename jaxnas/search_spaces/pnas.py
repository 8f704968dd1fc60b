"""The cells of progressive search (Liu et al., 2018, PNAS, https://arxiv.org/abs/1712.00559)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import encodings, genotypes
from jaxnas.search_spaces import product
from jaxnas.search_spaces.pair_cells import OPERATION, SOURCE, PairCellSpace

# From memory of the paper: of a repository's defaults one differs, a plain 3x3 convolution, which
# is the last that a genotype of this space may have.
OPERATIONS = genotypes.CELL_OPERATIONS["pnas"][:8]


@dataclasses.dataclass(frozen=True)
class PNAS(PairCellSpace):
    """One cell, used with stride 1 and 2; `arch` [L] is [num_blocks, 4] flattened, L = 20.

    The decisions of a block: first source, first operation, second source, second operation.
    Unlike NASNet's, a cell concatenates blocks only, those no other block reads. Progressive search
    goes through the spaces of 1, 2, ... blocks; `expand` leads from one to the next.

    Attributes:
      num_blocks: B of the paper, in 1..6.
      operations: distinct names; the paper's 8.

    Raises:
      ValueError: as `PairCellSpace`.
    """

    operations: tuple[str, ...] = OPERATIONS

    name = "pnas"
    columns = (SOURCE, OPERATION, SOURCE, OPERATION)
    num_cells = 1
    concat_inputs = False

    @property
    def num_expansions(self) -> int:
        """Blocks that a cell can be expanded by: (B + 2)^2 O^2, halves ordered."""
        return ((self.num_blocks + 2) * len(self.operations)) ** 2

    def expand(self, archs: jax.Array) -> jax.Array:
        """Add every possible block to every cell: [N, 4 B] -> [N, num_expansions, 4 (B + 1)].

        What comes out are archs of the space of B + 1 blocks, the same networks among them more
        than once: each block with its halves exchanged, and what `canonical` there finds besides.
        """
        sources, operations = self.num_blocks + 2, len(self.operations)
        block = encodings.from_flat_index(
            jnp.arange(self.num_expansions), (sources, operations, sources, operations))
        shape = (archs.shape[0], self.num_expansions)
        return jnp.concatenate([
            jnp.broadcast_to(archs[:, None], (*shape, archs.shape[1])).astype(jnp.int32),
            jnp.broadcast_to(block, (*shape, 4))], axis=-1)

    def expression(self, arch: jax.Array | np.ndarray) -> str:
        """Write all blocks of an arch [L] as sorted expressions in the inputs. Host only.

        This is the coarser key by which cells were counted elsewhere: it also joins cells in which
        one of two equal blocks is read twice with those in which each is read once, though these
        are different networks. Up to two blocks it tells apart what `canonical` does.

        Raises:
          ValueError: a wrong length, or a decision out of range.
        """
        states = ["0", "1"]
        rows = np.reshape(product.read_arch(arch, self.num_choices), (-1, 4)).tolist()
        for first, first_operation, second, second_operation in rows:
            halves = sorted([f"{first_operation}({states[first]})",
                             f"{second_operation}({states[second]})"])
            states.append("+".join(halves))
        return " ".join(sorted(states[2:]))
