"""The factorised hierarchical space of MnasNet (https://arxiv.org/abs/1807.11626).

Tan et al., 2019: every stage of a network has an operation of its own, and all layers of a stage
are equal. The published MnasNet-A1, B1 and small have widths off this grid (112 and 192 channels);
they are in `jaxnas.networks.mobile_stages.PUBLISHED`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import encodings, mutations
from jaxnas.networks import mobile_grid
from jaxnas.networks.mobile import MobileNetwork
from jaxnas.networks.mobile_grid import MobileGrid
from jaxnas.networks.mobile_stages import SKIPS, MobileModel
from jaxnas.networks.mobile_traced import TracedMobileNetwork
from jaxnas.search_spaces import mnasnet_costs, product

# The words of a stage's six decisions, in order.
WORDS = (
    tuple(name if name == "conv" else f"{name}{expansion}"
          for name, expansion in mobile_grid.OPERATIONS),
    tuple(f"k{kernel}" for kernel in mobile_grid.KERNELS),
    tuple(f"se{ratio:g}" for ratio in mobile_grid.SE_RATIOS),
    SKIPS,
    tuple(f"x{multiplier:g}" for multiplier in mobile_grid.MULTIPLIERS),
    tuple(f"n{step:+d}" for step in mobile_grid.LAYER_STEPS),
)


@dataclasses.dataclass(frozen=True)
class MnasNet:
    """Six decisions for each of S stages: `arch` [6 S] int32 is [S, 6] flattened.

    They are operation (dense convolution, depthwise-separable, inverted bottleneck of expansion 3
    or 6), kernel (3, 5), squeeze-excitation (none, 0.25), skip (pool, identity, none), width (0.75,
    1, 1.25 of the base) and depth (the base, one more, one less). As text, S words with bars
    between, each like "mbconv6_k5_se0.25_identity_x1.25_n+1".

    Two deviations from what the paper says or leaves open: a stage keeps one layer at least, and a
    pooled skip is the 3x3 average of the input, where an identity skip could be.

    Attributes:
      grid: position, stride, base width and base depth of the stages. The default is the paper's,
        for images of 224x224; `mobile_grid.small_images()` is for 28x28 and 32x32.
    """

    grid: MobileGrid = MobileGrid()

    @property
    def name(self) -> str:
        """What result.json calls the space."""
        return "mnasnet"

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[6 S] choices of every decision."""
        return self.grid.num_choices

    @property
    def size(self) -> int:
        """Number of architectures, 432 ** S; fewer networks, see `canonical`."""
        return encodings.space_size(self.num_choices)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw an arch [6 S] int32 uniformly."""
        return mutations.sample(key, self.num_choices)

    def mutate(self, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Give one uniformly drawn decision another value, uniformly: [6 S] -> [6 S]."""
        return mutations.mutate(key, arch, self.num_choices)

    def crossover(self, key: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        """Take every decision from either arch with probability 1/2: [6 S], [6 S] -> [6 S]."""
        return mutations.crossover(key, first, second)

    def is_valid(self, arch: jax.Array) -> jax.Array:
        """Tell whether every decision of [6 S] integers is in range, as [] bool."""
        return mutations.is_valid(arch, self.num_choices)

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Return the smallest arch of the same network: [6 S] -> [6 S].

        Widths and depths that agree after rounding are one; the skip of a stage is 0 where none of
        its layers has stride 1 and equal widths.
        """
        grid = self.grid
        operation, kernel, squeeze, skip, filters, layers = jnp.moveaxis(
            arch.reshape(grid.num_stages, -1), -1, 0)
        stages = np.arange(grid.num_stages)
        filters = jnp.asarray(_first_equal(grid.widths))[stages, filters]
        layers = jnp.asarray(_first_equal(grid.depths))[stages, layers]
        outputs = jnp.asarray(grid.widths)[stages, filters]
        inputs = jnp.concatenate([jnp.full(1, grid.stem_filters, outputs.dtype), outputs[:-1]])
        first_has = (np.array(grid.strides) == 1) & (inputs == outputs)
        skips = first_has | (jnp.asarray(grid.depths)[stages, layers] > 1)
        decisions = (operation, kernel, squeeze, jnp.where(skips, skip, 0), filters, layers)
        return jnp.stack(decisions, -1).reshape(-1).astype(jnp.int32)

    def decode(self, arch: jax.Array | np.ndarray) -> str:
        """Write an arch [6 S] for people. Host only.

        Raises:
          ValueError: a wrong length, or a decision out of range.
        """
        values = np.array(product.read_arch(arch, self.num_choices)).reshape(-1, len(WORDS))
        return "|".join("_".join(words[value] for words, value in zip(WORDS, stage))
                        for stage in values)

    def encode(self, text: str) -> np.ndarray:
        """Read what `decode` wrote, as [6 S] int32. Host only.

        Raises:
          ValueError: another number of stages or words, or an unknown word.
        """
        product.check_text(text)
        stages = text.split("|")
        if len(stages) != self.grid.num_stages:
            raise ValueError(f"an architecture must be {self.grid.num_stages} stages with '|' "
                             f"between, got {len(stages)} in {text!r:.60}.")
        arch = []
        for number, stage in enumerate(stages):
            given = stage.split("_")
            if len(given) != len(WORDS):
                raise ValueError(f"stage {number} must be {len(WORDS)} words with '_' between, got "
                                 f"{len(given)} in {stage!r:.60}.")
            for decision, words, word in zip(mobile_grid.DECISIONS, WORDS, given):
                if word not in words:
                    raise ValueError(f"{decision} of stage {number} must be one of {words}, got "
                                     f"{word!r:.40}.")
                arch.append(words.index(word))
        return np.array(arch, np.int32)

    def model(self, arch: jax.Array | np.ndarray) -> MobileModel:
        """Return the stages of an arch [6 S]. Host only; raises as `decode`."""
        return self.grid.model(product.read_arch(arch, self.num_choices))

    def network(self, arch: jax.Array | np.ndarray, **options) -> MobileNetwork:
        """Return the fixed network of an arch [6 S]; `options` are `MobileNetwork`'s."""
        return MobileNetwork(self.model(arch), **options)

    def traced_network(self, **options) -> TracedMobileNetwork:
        """Return the one network for every arch; `options` are `TracedMobileNetwork`'s."""
        return TracedMobileNetwork(self.grid, **options)

    def num_parameters(self, arch: jax.Array | np.ndarray, *, num_classes: int = 1000,
                       channels: int = 3) -> mnasnet_costs.Counts:
        """Count trainable parameters: [..., 6 S] -> [...] integers; traceable.

        Args:
          arch: [..., 6 S].
          num_classes: outputs of the classifier.
          channels: of the images.
        """
        return mnasnet_costs.grid_costs(
            self.grid, arch, num_classes=num_classes, image_size=1, channels=channels).parameters

    def multiply_adds(self, arch: jax.Array | np.ndarray, *, num_classes: int = 1000,
                      image_size: int = 224, channels: int = 3) -> mnasnet_costs.Counts:
        """Count multiply-adds for one image: [..., 6 S] -> [...] integers; traceable.

        Args:
          arch: [..., 6 S].
          num_classes: outputs of the classifier.
          image_size: height and width.
          channels: of the images.

        Raises:
          ValueError: costs that an int32 cannot hold, if `arch` is a JAX array.
        """
        return mnasnet_costs.grid_costs(
            self.grid, arch, num_classes=num_classes, image_size=image_size,
            channels=channels).multiply_adds


def _first_equal(values: np.ndarray) -> np.ndarray:
    """Return for every value [S, 3] the first index in its row of that value."""
    return (values[:, :, None] == values[:, None]).argmax(-1).astype(np.int32)
