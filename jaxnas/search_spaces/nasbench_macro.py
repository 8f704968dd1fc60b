"""The chain of blocks of NAS-Bench-Macro (Su et al., 2021, https://arxiv.org/abs/2103.11922).

Three stages of 2, 3 and 3 layers; the first layer of a stage changes the width and halves the image
(for Identity, by a convolution of its own), so only the layers after it can be nothing at all.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import mutations
from jaxnas.search_spaces import product

OPERATIONS = ("Identity", "MB3_K3", "MB6_K5")  # MobileNetV2 blocks: expansion and kernel
NUM_LAYERS = 8
# Layers of one shape that follow each other, of two members: stages start at layers 0, 2 and 5.
INTERCHANGEABLE = ((3, 4), (6, 7))


@dataclasses.dataclass(frozen=True)
class NASBenchMacro(product.IndependentDecisions):
    """Eight layers: `arch` [8] int32 is the operation of each, an index into `OPERATIONS`.

    As text, the benchmark's eight digits, "22212220".

    An Identity that keeps the shape is no layer, and where it stands among layers of the same shape
    makes no difference. Only layers 3 and 4, and 6 and 7, are such neighbours, so that 6,561 archs
    are 3 * 3 * 3 * 7 * 3 * 7 = 3,969 networks. The benchmark's table has this many triples of
    accuracies, and two archs share one if and only if this rule makes them the same.
    """

    @property
    def name(self) -> str:
        """What result.json calls the space."""
        return "nasbench_macro"

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[8] choices of every decision."""
        return (len(OPERATIONS),) * NUM_LAYERS

    def mutate(self, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Give one uniformly drawn layer another operation, uniformly: [8] -> [8]."""
        return mutations.mutate(key, arch, self.num_choices)

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Put Identity first among layers of one shape: [8] -> [8], the smallest of the class."""
        swapped = np.arange(NUM_LAYERS)
        late = np.zeros(NUM_LAYERS, np.int32)  # of either layer of a pair, the second one
        for first, second in INTERCHANGEABLE:
            swapped[[first, second]] = second, first
            late[[first, second]] = second
        is_pair = swapped != np.arange(NUM_LAYERS)
        return jnp.where(is_pair & (arch[late] == 0), arch[swapped], arch)

    def decode(self, arch: jax.Array | np.ndarray) -> str:
        """Write an arch [8] as eight digits. Host only.

        Raises:
          ValueError: a wrong length, or a decision out of range.
        """
        return "".join(map(str, product.read_arch(arch, self.num_choices)))

    def encode(self, text: str) -> np.ndarray:
        """Read eight digits as [8] int32. Host only.

        Raises:
          ValueError: not eight digits of 0, 1 and 2.
        """
        return product.read_integers(text, "", (range(len(OPERATIONS)),) * NUM_LAYERS)
