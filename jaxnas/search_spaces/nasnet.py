"""The cells of NASNet (Zoph et al., 2018, https://arxiv.org/abs/1707.07012)."""

import dataclasses

from jaxnas import genotypes
from jaxnas.search_spaces.pair_cells import CONSTANT, OPERATION, SOURCE, PairCellSpace

# As the paper lists them, from memory: no released code names the ones no NASNet uses.
OPERATIONS = genotypes.CELL_OPERATIONS["nasnet"]


@dataclasses.dataclass(frozen=True)
class NASNet(PairCellSpace):
    """Normal and reduction cell; `arch` [L] is [2, num_blocks, 5] flattened, L = 50.

    The five decisions of a block, in the paper's order: first and second source, first and second
    operation, and how to combine the two. The paper may add or concatenate; all published NASNets
    add, and so do ours: the fifth decision has one choice.

    Attributes:
      num_blocks: B of the paper, in 1..6.
      operations: distinct names; the paper's 13.

    Raises:
      ValueError: as `PairCellSpace`.
    """

    operations: tuple[str, ...] = OPERATIONS

    name = "nasnet"
    columns = (SOURCE, SOURCE, OPERATION, OPERATION, CONSTANT)
