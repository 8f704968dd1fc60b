"""The macro space of ENAS (Pham et al., 2018, https://arxiv.org/abs/1802.03268, section 2.3).

Whole networks, layer by layer: one of six operations, and skip connections from earlier layers.
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.networks import chain, layer_costs
from jaxnas.networks.chain import MacroNetwork
from jaxnas.networks.chain_layout import MACRO_OPERATIONS, pool_layers, unpack
from jaxnas.networks.chain_traced import TracedMacroNetwork
from jaxnas.networks.layer_costs import Cost
from jaxnas.search_spaces import chains, product

# Found by ENAS: operation and skip bits of every layer (melodyguan/enas
# scripts/cifar10_macro_final.sh).
PUBLISHED_TEXT = """
0 | 3:0 | 0:10 | 2:001 | 2:0000 | 3:11010 | 2:000001 | 2:0110111 | 1:01110101 | 0:000000000 |
2:0000010000 | 0:10011000011 | 2:010000010110 | 1:0010001110101 | 0:11010100000100 |
2:001000000010101 | 2:0100010011110010 | 2:00001010100101001 | 3:011010000010101000 |
3:0110000000001100001 | 0:10010110001000001100 | 3:010110010110110100100 |
0:1010100000000101001000 | 0:11000111010001010011000"""


@dataclasses.dataclass(frozen=True)
class ENASMacro(chains.Chain):
    """L layers: `arch` [L + L (L - 1) / 2] int32, operation 0, operation 1, its bit, operation 2...

    Operations are indices into `MACRO_OPERATIONS`. An operation reads the map of the layer before
    it; bit i of layer k also takes map i among stem, layer 0, layer 1, ..., so that bit 0 is the
    stem, and the layer just before cannot be skipped to. As text,
    "conv_3x3|sep_conv_5x5:0|conv_3x3:10|...".

    All are independent, and no two are the same network: every layer feeds the next.

    Attributes:
      num_layers: L; 12 in the paper's search, 24 in its final network.

    Raises:
      ValueError: num_layers is not in [1, 64].
    """

    num_layers: int = 12

    def __post_init__(self):
        chains.check_num_layers(self.num_layers)

    @property
    def name(self) -> str:
        """What result.json calls the space."""
        return "enas_macro"

    @property
    def words(self) -> tuple[tuple[str, ...], ...]:
        """[1] the names of the operations."""
        return (MACRO_OPERATIONS,)

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Return the arch [D] itself: no two are the same network."""
        return arch

    def network(self, arch: jax.Array | np.ndarray, **options) -> MacroNetwork:
        """Return the fixed network of an arch [D]; `options` are `MacroNetwork`'s."""
        return MacroNetwork(tuple(product.read_arch(arch, self.num_choices)), **options)

    def traced_network(self, **options) -> TracedMacroNetwork:
        """Return the shared weights of all archs; `options` are `TracedMacroNetwork`'s."""
        return TracedMacroNetwork(self.num_layers, **options)

    def num_parameters(
        self, arch: jax.Array | np.ndarray, *, features: int = 96, form: str = "true",
        num_classes: int = 10, channels: int = 3
    ) -> np.ndarray | jax.Array:
        """Count the parameters of `MacroNetwork`: [D] -> []; traceable.

        Args:
          arch: a NumPy array for an exact integer; a JAX array for float32, exact to 1e-6.
          features: F.
          form: of the network.
          num_classes: outputs of the classifier.
          channels: of the images.

        Raises:
          ValueError: an option of the network is wrong.
        """
        return self._count(0, arch, features, form, num_classes, (1, 1, channels))

    def multiply_adds(
        self, arch: jax.Array | np.ndarray, *, features: int = 96, form: str = "true",
        num_classes: int = 10, shape: tuple[int, int, int] = (32, 32, 3)
    ) -> np.ndarray | jax.Array:
        """Count multiply-adds for one image of (H, W, C), as `num_parameters`: [D] -> []."""
        return self._count(1, arch, features, form, num_classes, shape)

    def _count(self, which, arch, features, form, num_classes, shape):
        chain.check_options(num_classes=num_classes, method="conv", features=features, form=form)
        chains.check_image(num_classes, shape)
        xp, dtype = (np, np.int64) if isinstance(arch, np.ndarray) else (jnp, jnp.float32)
        tables = _tables(self.num_layers, features, form, num_classes, tuple(shape))
        operations, per_skip, fixed = (xp.asarray(table[..., which], dtype) for table in tables)
        own, skips = unpack(arch, self.num_layers, 1)
        layers = operations[np.arange(self.num_layers), own[:, 0]]
        return layers.sum() + (skips.sum(1) * per_skip).sum() + fixed


@functools.lru_cache(maxsize=64)
def _tables(
    num_layers: int, features: int, form: str, num_classes: int, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return parameters and multiply-adds of operations [L, 6, 2], a skip [L, 2], the rest [2]."""
    operations = np.zeros((num_layers, len(MACRO_OPERATIONS), 2), np.int64)
    per_skip = np.zeros((num_layers, 2), np.int64)
    pixels, wide = shape[0] * shape[1], features
    rest = layer_costs.convolution(9, shape[2], features, pixels, affine=True)

    def pair(cost: Cost) -> np.ndarray:
        return np.array([cost.parameters, cost.multiply_adds], np.int64)

    for layer in range(num_layers):
        def cost(operation, skips, wide=wide, pixels=pixels):
            return pair(chain.macro_layer_cost(operation, skips, wide, pixels, form))

        for operation in range(len(MACRO_OPERATIONS)):
            operations[layer, operation] = cost(operation, 0 if layer else None)
        per_skip[layer] = cost(0, 1) - cost(0, 0)
        if layer in pool_layers(num_layers):
            before, pixels = wide, pixels // 4
            wide *= 1 if form == "search" else 2
            reduction = layer_costs.convolution(1, before, wide, pixels, affine=True)
            rest = sum([reduction] * (layer + 2), start=rest)
    return operations, per_skip, pair(rest + layer_costs.dense(wide, num_classes, bias=False))


def _read(text: str) -> tuple[int, ...]:
    return tuple(int(character) for character in text if character.isdigit())


# name -> arch of `ENASMacro(24)`
PUBLISHED: Mapping[str, tuple[int, ...]] = MappingProxyType({"ENAS_MACRO": _read(PUBLISHED_TEXT)})
