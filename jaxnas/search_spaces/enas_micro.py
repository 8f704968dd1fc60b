"""The micro space of ENAS (Pham et al., 2018, https://arxiv.org/abs/1802.03268)."""

import dataclasses

from jaxnas import genotypes
from jaxnas.networks.micro_shared import SharedMicroNetwork
from jaxnas.networks.own_operations import own_names
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

    def shared_network(self, **options) -> SharedMicroNetwork:
        """Return the search network of the paper, which takes an arch [L] as it is (not `rows`).

        Args:
          **options: `SharedMicroNetwork`'s.

        Raises:
          ValueError: the space has operations of its own or no convolution; use `traced_network`.
        """
        if self.own:
            raise ValueError("the shared network has no weights for own operations, got "
                             f"{own_names(self.own)}; use traced_network.")
        return SharedMicroNetwork(self.operations, self.num_blocks, **options)
