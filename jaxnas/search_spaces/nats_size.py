"""The size space of NATS-Bench (Dong et al., 2021, https://arxiv.org/abs/2009.00437).

The best cell of the topology space, in a network whose five widths are searched.
"""

import dataclasses

import jax
import numpy as np

from jaxnas import mutations
from jaxnas.search_spaces import product

CHANNELS = range(8, 65, 8)


@dataclasses.dataclass(frozen=True)
class NATSSize(product.IndependentDecisions):
    """Five widths: `arch` [5] int32 is the index of each in 8, 16 ... 64 channels.

    In order: stem and first stage, residual block, second stage, residual block, third stage. As
    text, the benchmark's "16:8:64:24:48".
    """

    @property
    def name(self) -> str:
        """What result.json calls the space."""
        return "nats_size"

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[5] choices of every decision."""
        return (len(CHANNELS),) * 5

    def mutate(self, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Give one uniformly drawn layer another width, uniformly: [5] -> [5]."""
        return mutations.mutate(key, arch, self.num_choices)

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Return the arch [5] itself: no two are the same network."""
        return arch

    def decode(self, arch: jax.Array | np.ndarray) -> str:
        """Write an arch [5] as its channels, "16:8:64:24:48". Host only.

        Raises:
          ValueError: a wrong length, or a decision out of range.
        """
        return ":".join(str(CHANNELS[i]) for i in product.read_arch(arch, self.num_choices))

    def encode(self, text: str) -> np.ndarray:
        """Read "16:8:64:24:48" as [5] int32. Host only.

        Raises:
          ValueError: not five widths, or one that is not a multiple of 8 from 8 to 64.
        """
        return product.read_integers(text, ":", (CHANNELS,) * 5)
