"""The fixed networks of NASNet, AmoebaNet, PNAS and ENAS (micro), in CIFAR and ImageNet form.

A stem, three stages of N cells with a reduction cell at the start of the second and the third, and
a classifier; the ImageNet form has two more reduction cells before the first stage (Zoph et al.,
2018, figure 2, https://arxiv.org/abs/1707.07012). A genotype is static: every genotype is a program
of its own.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnas import genotypes
from jaxnas.genotypes import CellGenotype, Genotype
from jaxnas.networks import layer_costs, primitives, windows
from jaxnas.networks.layer_costs import Cost
from jaxnas.networks.operations import MOMENTUM, BatchNorm, Operation, convolve, initializer
from jaxnas.networks.own_operations import OwnOperations, own_names, own_operations
from jaxnas.networks.pair_cells import DROP_PATHS, NASNET, STEMS, STYLES, CellStyle, PairCell, Shape

_HEAD_WIDTHS = (128, 768)  # of the auxiliary head


def scheduled_rate(
    version: str,
    rate: float | jax.Array,
    *,
    cell: int,
    num_cells: int,
    progress: float | jax.Array = 1.0,
) -> float | jax.Array:
    """Return the drop path rate of one cell (section A.7 of https://arxiv.org/abs/1707.07012).

    "v1" is rate * progress, "v2" rate * (cell + 1) / num_cells, "v3" the product of all three, as
    tensorflow/models and tensorflow/tpu call them.

    Args:
      version: "v1", "v2" or "v3".
      rate: of the last cell at the end of training, in [0, 1).
      cell: number of the cell, from 0; stem and reduction cells count.
      num_cells: of the network.
      progress: step / total steps; clipped to [0, 1]. May be traced, like the rate.

    Raises:
      ValueError: for an unknown version.
    """
    if version not in DROP_PATHS:
        raise ValueError(f"drop path version must be one of {DROP_PATHS}, got {version!r}.")
    if version != "v1":
        rate = rate * ((cell + 1) / num_cells)
    if version != "v2":
        if isinstance(progress, (int, float)):
            rate = rate * min(max(progress, 0.0), 1.0)
        else:
            rate = rate * jnp.clip(progress, 0.0, 1.0)
    return rate


class Placement(NamedTuple):
    """One cell of a network. Output 0 is the stem's, output i + 1 that of cell i."""

    genotype: CellGenotype
    features: int
    reduction: bool
    previous: int | None  # output that is the cell's first input; the second is the latest one


class PairNetwork(nn.Module):
    """Images [N, H, W, C'] -> (logits [N, classes], auxiliary logits [N, classes] or None).

    Variables are "params" and "batch_stats"; the "drop_path" random stream is read where
    `drop_path_rate` is not the Python number 0, "dropout" where `dropout` is not. Images may have
    any size that is not too small for the auxiliary head.

    Attributes:
      genotype: the two cells; their concatenated states are stored, and may be inputs.
      style: of the family; None is that of `genotype.space` in `pair_cells.STYLES`, and cells of
        a space of one's own have none there.
      features: F, channels of a node in the first stage; doubled at each reduction.
      cells_per_stage: N. PNAS's reduction cells are among them.
      num_classes: outputs of the classifier.
      auxiliary: whether a second classifier is trained, two thirds up; loss weight 0.4 in the
        papers.
      stem: "cifar" keeps the size of the image; "imagenet" divides it by 8 (224 to 28) by a
        convolution without padding and two reduction cells of F // 4 and F // 2 channels.
      stem_features: channels of the first convolution; None is 3 F ("cifar") or 32 ("imagenet";
        NASNet-A large and PNASNet-5 have 96).
      dropout: rate before the classifier.
      skip_reduction_input: whether the cell after a reduction reads the first input of the
        reduction cell rather than its second (NASNet-A large).
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.
      momentum: of running batch statistics; the papers' ImageNet runs have 0.9997.
      epsilon: of batch normalisation; the papers' ImageNet runs have 1e-3.
      method: of `depthwise`: "shifts" (fast on CPU) or "conv".
      own: operations that are not the library's, see `own_operations`.
    """

    genotype: Genotype
    style: CellStyle | None = None
    features: int = 32
    cells_per_stage: int = 6
    num_classes: int = 10
    auxiliary: bool = False
    stem: str = "cifar"
    stem_features: int | None = None
    dropout: float = 0.0
    skip_reduction_input: bool = False
    axis_name: str | None = None
    momentum: float = MOMENTUM
    epsilon: float = primitives.EPSILON
    method: str = "shifts"
    own: OwnOperations = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "own", own_operations(self.own, widens=True))
        space = self.genotype.space if isinstance(self.genotype, Genotype) else None
        rules = None
        if self.own or isinstance(space, str) and space not in genotypes.CELL_OPERATIONS:
            rules = genotypes.cell_rules(str(space), own_names(self.own))
        genotypes.validate(self.genotype, rules)
        if self.style is None and self.genotype.space not in STYLES:
            raise ValueError(
                f"style must be given for a genotype of the space {self.genotype.space!r}; those "
                f"of {tuple(STYLES)} have one.")
        if self.stem not in STEMS:
            raise ValueError(f"stem must be one of {STEMS}, got {self.stem!r}.")
        lowest = 4 if self.stem == "imagenet" else 2
        for name, value, least in (
            ("features", self.features, lowest), ("cells_per_stage", self.cells_per_stage, 1),
            ("num_classes", self.num_classes, 1), ("stem_features", self.stem_features, 1),
        ):  # fmt: skip
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        drop_path_rate: float | jax.Array = 0.0,
        progress: float | jax.Array = 1.0,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Classify images.

        Args:
          x: [N, H, W, C'].
          train: use batch statistics and update the running ones ("batch_stats" mutable).
          drop_path_rate: of the last cell at the end of training, in [0, 1), may be traced;
            `scheduled_rate` gives each cell its own. Drops operations other than the identity,
            when `train`.
          progress: of training, in [0, 1], may be traced. The default serves callers who multiply
            the rate by it themselves.

        Returns:
          Logits, and those of the auxiliary head if there is one and `train`, else None.

        Raises:
          ValueError: images too small for the ImageNet stem or the auxiliary head.
        """
        if x.ndim != 4:
            raise ValueError(f"x must be [N, H, W, C], got {x.shape}.")
        outputs = [self._stem("stem")(x, train=train)]
        placements = self.placements()
        auxiliary_logits = None
        for number, placement in enumerate(placements):
            rate = drop_path_rate
            if not (isinstance(rate, (int, float)) and rate == 0):
                rate = scheduled_rate(
                    self.family.drop_path, rate, cell=number, num_cells=len(placements),
                    progress=progress)
            previous = None if placement.previous is None else outputs[placement.previous]
            cell = self._cell(placement, f"cell_{number}")
            outputs.append(cell(previous, outputs[-1], train=train, drop_path_rate=rate))
            if self.auxiliary and number == self.auxiliary_cell:
                if train or self.is_initializing():  # its parameters exist however we start
                    auxiliary_logits = self._auxiliary_head("auxiliary_head")(
                        outputs[-1], train=train)
        pooled = jax.nn.relu(outputs[-1]).mean((1, 2))
        pooled = nn.Dropout(self.dropout, name="dropout")(pooled, deterministic=not train)
        logits = _classifier(self.num_classes, pooled.shape[-1], self.family, "head")(pooled)
        return logits, auxiliary_logits if train else None

    @property
    def family(self) -> CellStyle:
        """The style, given or of the genotype's space."""
        return STYLES[self.genotype.space] if self.style is None else self.style

    @nn.nowrap
    def placements(self) -> tuple[Placement, ...]:
        """Return the cells from the stem to the classifier."""
        features, count = self.features, self.cells_per_stage
        plan: list[tuple[bool, int]] = []  # (reduction, features)
        if self.stem == "imagenet":
            plan += [(True, features // 4), (True, features // 2)]
        first = len(plan)
        for stage in range(3):
            width = features * 2**stage
            plan += [(True, width)] if stage else []
            inside = self.family.reductions_inside and stage > 0
            plan += [(False, width)] * (count - inside)
        result = []
        for number, (reduction, width) in enumerate(plan):
            previous = number - 1 if number else 0 if self.stem in self.family.stem_twice else None
            if self.skip_reduction_input and number > first and plan[number - 1][0]:
                previous = number - 2
            cell = self.genotype.reduction if reduction else self.genotype.normal
            result.append(Placement(cell, width, reduction, previous))
        return tuple(result)

    @property
    def auxiliary_cell(self) -> int:
        """The number of the cell whose output the auxiliary head reads."""
        second = [n for n, placement in enumerate(self.placements()) if placement.reduction][-1]
        return second + 1 if self.family.auxiliary_after else second - 1

    @nn.nowrap
    def costs(self, shape: Shape) -> Iterator[tuple[str, Cost]]:
        """Yield the name and the cost of every layer for images of (H, W, C), by closed form.

        Names are those of the parameters, joined by "/".
        """
        stem = self._stem("stem")
        yield "stem", stem.cost(shape)
        shapes = [stem.output_shape(shape)]
        for number, placement in enumerate(self.placements()):
            previous = None if placement.previous is None else shapes[placement.previous]
            cell = self._cell(placement, f"cell_{number}")
            for name, cost in cell.costs(previous, shapes[-1]):
                yield f"cell_{number}/{name}", cost
            shapes.append(cell.output_shape(previous, shapes[-1]))
        if self.auxiliary:
            head = self._auxiliary_head("auxiliary_head")
            yield "auxiliary_head", head.cost(shapes[self.auxiliary_cell + 1])
        yield "head", layer_costs.dense(
            shapes[-1][-1], self.num_classes, self.family.classifier_bias)

    @nn.nowrap
    def _options(self) -> dict[str, Any]:
        return {
            "axis_name": self.axis_name, "momentum": self.momentum, "epsilon": self.epsilon}

    @nn.nowrap
    def _stem(self, name: str) -> "PairStem":
        cifar = self.stem == "cifar"
        features = self.stem_features or (3 * self.features if cifar else 32)
        return PairStem(
            features, 1 if cifar else 2, padding=self.family.padding if cifar else "valid",
            initializer=self.family.initializer, name=name, **self._options())

    @nn.nowrap
    def _cell(self, placement: Placement, name: str) -> PairCell:
        return PairCell(
            placement.genotype, placement.features, self.family, placement.reduction,
            method=self.method, own=self.own, name=name, **self._options())

    @nn.nowrap
    def _auxiliary_head(self, name: str) -> "PairAuxiliaryHead":
        return PairAuxiliaryHead(self.num_classes, self.family, name=name, **self._options())


class PairStem(Operation):
    """3x3 convolution and BN, without ReLU."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C'] to [N, H', W', features]."""
        channels = x.shape[-1]
        shape = (3, 3, channels, self.features)
        kernel = self._kernel("kernel", shape, 9 * channels, 9 * self.features)
        x = convolve(x, kernel, (self.stride, self.stride), padding=self.padding)
        return self._norm()(x, train=train)

    @nn.nowrap
    def output_shape(self, shape: Shape) -> Shape:
        """Return (H, W, C) of the output."""
        height, width = (
            windows.pads(size, 3, self.stride, padding=self.padding)[2] for size in shape[:2])
        return height, width, self.features

    @nn.nowrap
    def cost(self, shape: Shape) -> Cost:
        """Return 9 C' C parameters, each used once a pixel of the output, and those of BN."""
        return layer_costs.convolution(
            9, shape[-1], self.features, self._pixels(shape), self.affine)


class PairAuxiliaryHead(nn.Module):
    """ReLU, 5x5 average pool of stride 3, 1x1 convolution, a wide convolution, dense.

    Attributes:
      num_classes: outputs.
      style: `auxiliary_mean`, `classifier_bias` and `initializer` are read.
      axis_name, momentum, epsilon: as in `operations.Operation`.
    """

    num_classes: int
    style: CellStyle = NASNET
    axis_name: str | None = None
    momentum: float = MOMENTUM
    epsilon: float = primitives.EPSILON

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map feature maps [N, H, W, C] to logits [N, classes].

        Raises:
          ValueError: feature maps smaller than 5x5.
        """
        _, (tall, wide) = self._sizes(x.shape[1:])
        x = windows.avg_pool(jax.nn.relu(x), 5, 3, padding="valid")
        padding = "same" if self.style.auxiliary_mean else "valid"
        for number, (features, kernel_size) in enumerate(
            zip(_HEAD_WIDTHS, ((1, 1), (tall, wide)))
        ):
            taps, channels = math.prod(kernel_size), x.shape[-1]
            initial = initializer(self.style.initializer, taps * channels, taps * features)
            kernel = self.param(f"kernel_{number}", initial, (*kernel_size, channels, features))
            x = convolve(x, kernel, (1, 1), padding=padding)
            norm = BatchNorm(
                True, self.axis_name, self.momentum, self.epsilon, name=f"norm_{number}")
            x = jax.nn.relu(norm(x, train=train))
        return _classifier(self.num_classes, x.shape[-1], self.style, "head")(x.mean((1, 2)))

    @nn.nowrap
    def cost(self, shape: Shape) -> Cost:
        """Return parameters and multiply-adds for an input of (H, W, C), by closed form."""
        pixels, (tall, wide) = self._sizes(shape)
        first, second = _HEAD_WIDTHS
        last = pixels if self.style.auxiliary_mean else 1
        return (
            layer_costs.convolution(1, shape[-1], first, pixels, affine=True)
            + layer_costs.convolution(tall * wide, first, second, last, affine=True)
            + layer_costs.dense(second, self.num_classes, self.style.classifier_bias)
        )

    @nn.nowrap
    def _sizes(self, shape: tuple[int, ...]) -> tuple[int, tuple[int, int]]:
        """Return the pixels of the pooled map, and the size of the wide convolution."""
        if min(shape[:2]) < 5:
            raise ValueError(
                f"the auxiliary head needs feature maps of 5x5 or more, got {shape[0]}x{shape[1]}; "
                "take larger images, or switch it off with auxiliary=False."
            )
        height, width = ((size - 5) // 3 + 1 for size in shape[:2])
        return height * width, (2, 2) if self.style.auxiliary_mean else (height, width)


def _classifier(num_classes: int, channels: int, style: CellStyle, name: str) -> nn.Dense:
    # Not style.initializer: variance 2 / classes, as published, starts at logits of several units.
    initial = primitives.torch_uniform(channels)
    return nn.Dense(
        num_classes, use_bias=style.classifier_bias, kernel_init=initial, bias_init=initial,
        name=name)
