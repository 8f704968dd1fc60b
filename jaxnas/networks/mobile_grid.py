"""The grid of MnasNet's factorised hierarchical space, of any number of stages.

Position, stride, base width and base depth of every stage are given, as MobileNetV2 has them; six
decisions a stage are searched (Tan et al., 2019, section 4.1, https://arxiv.org/abs/1807.11626).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxnas.networks.mobile_stages import SKIPS, MobileModel, Stage, check_sizes

# With four operations a stage has the paper's 432 choices; published stages have both expansions.
OPERATIONS = (("conv", 1), ("mbconv", 1), ("mbconv", 3), ("mbconv", 6))  # name, expansion
KERNELS = (3, 5)
SE_RATIOS = (0.0, 0.25)
MULTIPLIERS = (0.75, 1.0, 1.25)  # of the base width
LAYER_STEPS = (0, 1, -1)         # added to the base depth
DECISIONS = ("operation", "kernel", "squeeze", "skip", "filters", "layers")  # of a stage, in order
STAGE_CHOICES = tuple(map(len, (OPERATIONS, KERNELS, SE_RATIOS, SKIPS, MULTIPLIERS, LAYER_STEPS)))


@dataclasses.dataclass(frozen=True)
class MobileGrid:
    """What is fixed around the decisions; `arch` is [S, 6] flattened, see `DECISIONS`.

    A stage has one layer at least, so where the base depth is 1 the choices 0 and -1 agree. Widths
    are rounded to integers and to no coarser steps.

    Attributes:
      filters: [S] base widths.
      layers: [S] base depths.
      strides: [S] of the first layers, 1 or 2.
      stem_filters: channels of the first convolution.
      stem_stride: 2 as published, 1 for small images.
      head_filters: channels of the last convolution.

    Raises:
      ValueError: tuples of different lengths, or sizes that make no sense.
    """

    filters: tuple[int, ...] = (16, 24, 32, 64, 96, 160, 320)
    layers: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    stem_filters: int = 32
    stem_stride: int = 2
    head_filters: int = 1280

    def __post_init__(self):
        check_sizes(self.stem_filters, self.stem_stride, self.head_filters)
        if not len(self.filters) == len(self.layers) == len(self.strides) >= 1:
            raise ValueError(
                "filters, layers and strides must be of one length, 1 or more, got "
                f"{len(self.filters)}, {len(self.layers)} and {len(self.strides)}.")
        for name in ("filters", "layers"):
            values = getattr(self, name)
            if any(not isinstance(value, int) or value < 1 for value in values):
                raise ValueError(f"{name} must be integers of 1 or more, got {values}.")
        if any(stride not in (1, 2) for stride in self.strides):
            raise ValueError(f"strides must be 1 or 2, got {self.strides}.")

    @property
    def num_stages(self) -> int:
        """S."""
        return len(self.filters)

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[6 S] choices of every decision."""
        return STAGE_CHOICES * self.num_stages

    @property
    def widths(self) -> np.ndarray:
        """[S, 3] int32, the output channels of a stage under every multiplier."""
        products = np.outer(self.filters, MULTIPLIERS)
        return np.maximum(1, np.floor(products + 0.5)).astype(np.int32)

    @property
    def depths(self) -> np.ndarray:
        """[S, 3] int32, the layers of a stage under every step."""
        return np.maximum(1, np.add.outer(self.layers, LAYER_STEPS)).astype(np.int32)

    def model(self, arch: Sequence[int] | np.ndarray) -> MobileModel:
        """Decode an arch [6 S] of the host.

        Raises:
          ValueError: a wrong length, or a decision out of range.
        """
        values = np.asarray(arch)
        choices = np.array(self.num_choices)
        if values.shape != choices.shape or values.dtype.kind not in "iu":
            raise ValueError(f"arch must be {len(choices)} integers, got {values.dtype} "
                             f"{values.shape}.")
        if (values < 0).any() or (values >= choices).any():
            wrong = int(np.argmax((values < 0) | (values >= choices)))
            raise ValueError(f"arch[{wrong}] must be in [0, {choices[wrong] - 1}], got "
                             f"{values[wrong]}.")
        stages = []
        for number, (operation, kernel, squeeze, skip, filters, layers) in enumerate(
            values.reshape(-1, len(DECISIONS)).tolist()
        ):
            name, expansion = OPERATIONS[operation]
            stages.append(Stage(
                name, KERNELS[kernel], self.strides[number], expansion,
                int(self.widths[number, filters]), int(self.depths[number, layers]),
                SE_RATIOS[squeeze], SKIPS[skip]))
        return MobileModel(tuple(stages), self.stem_filters, self.stem_stride, self.head_filters)


def small_images(
    *,
    filters: tuple[int, ...] = (8, 12, 16, 32, 48, 80, 160),
    layers: tuple[int, ...] = (1, 2, 2, 2, 2, 2, 1),
    strides: tuple[int, ...] = (1, 1, 2, 1, 1, 2, 1),
    stem_filters: int = 16,
    head_filters: int = 320,
) -> MobileGrid:
    """Return a grid of ours for images of 28x28 or 32x32: half as wide, divided by 4, not by 32.

    No published one exists. The stem keeps the size, and the maps have three: 32, 16, 8 or
    28, 14, 7.
    """
    return MobileGrid(filters, layers, strides, stem_filters, 1, head_filters)
