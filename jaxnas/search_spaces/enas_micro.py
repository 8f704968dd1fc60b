"""The micro space of ENAS (Pham et al., 2018, https://arxiv.org/abs/1802.03268)."""

import dataclasses

import jax

from jaxnas import genotypes, mutations
from jaxnas.search_spaces.pair_cells import OPERATION, SOURCE, PairCellSpace

OPERATIONS = genotypes.CELL_OPERATIONS["enas_micro"]  # numbered as melodyguan/enas does


@dataclasses.dataclass(frozen=True)
class ENASMicro(PairCellSpace):
    """Normal and reduction cell; `arch` [L] is [2, num_blocks, 4] flattened, L = 40.

    The decisions of a block as the released code stores them: first source, first operation,
    second source, second operation. (Its controller draws the sources first.)

    Attributes:
      num_blocks: blocks of a cell, in 1..6.
      operations: distinct names; the paper's 5.

    Raises:
      ValueError: as `PairCellSpace`.
    """

    operations: tuple[str, ...] = OPERATIONS

    name = "enas_micro"
    columns = (SOURCE, OPERATION, SOURCE, OPERATION)

    def mutate(self, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Give one decision another value, both uniformly: [L] -> [L]."""
        return mutations.mutate(key, arch, self.num_choices)
