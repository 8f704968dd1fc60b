"""The cells of AmoebaNet and their mutations (Real et al., 2019, https://arxiv.org/abs/1802.01548).

The space of NASNet with fewer operations, in which blocks always add.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import draws, genotypes, mutations
from jaxnas.search_spaces.pair_cells import OPERATION, SOURCE, PairCellSpace

OPERATIONS = genotypes.CELL_OPERATIONS["amoebanet"][:8]  # those after are of AmoebaNet-B, C and D


@dataclasses.dataclass(frozen=True)
class AmoebaNet(PairCellSpace):
    """Normal and reduction cell; `arch` [L] is [2, num_blocks, 4] flattened, L = 40.

    The decisions of a block: first and second source, first and second operation.

    Attributes:
      num_blocks: pairwise combinations of a cell, in 1..6.
      operations: two distinct names or more; the paper's 8. AmoebaNet-B, C and D come from larger
        sets: `genotypes.CELL_OPERATIONS["amoebanet"]` has all.
      identity_rate: how often `mutate` changes nothing, in [0, 1).

    Raises:
      ValueError: as `PairCellSpace`; also for one operation, or a rate out of range.
    """

    operations: tuple[str, ...] = OPERATIONS
    identity_rate: float = 0.05

    name = "amoebanet"
    columns = (SOURCE, SOURCE, OPERATION, OPERATION)

    def __post_init__(self):
        super().__post_init__()
        if len(self.operations) < 2:
            raise ValueError("operations must hold two names or more, or there is no operation "
                             f"mutation, got {self.operations}.")
        if not 0 <= self.identity_rate < 1:
            raise ValueError(f"identity_rate must be in [0, 1), got {self.identity_rate}.")

    def mutate(self, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Apply the identity, a hidden state mutation or an operation mutation: [L] -> [L].

        The last two are equally likely. Either draws, uniformly, a cell, a block and one half of
        its pair; then the one gives the half another source before the block, the other another
        operation, uniformly among the others. (The paper does not say that the new value differs.)
        """
        kind_word, place_word = jax.random.bits(key, (2,))
        identity = int(self.identity_rate * 2 ** 32)
        state_mutations = identity + (2 ** 32 - identity) // 2
        place, rest = draws.take(place_word, 4 * self.num_blocks)  # of [2, num_blocks, 2]
        changes_state = kind_word < np.uint32(state_mutations)
        position = 4 * (place // 2) + place % 2 + jnp.where(changes_state, 0, 2)
        others = jnp.asarray(self.num_choices, jnp.int32)[position] - 1
        step, _ = draws.take(rest, others)
        mutated = mutations.shift(arch, position, step + 1, self.num_choices)
        return jnp.where(kind_word < np.uint32(identity), arch, mutated)
