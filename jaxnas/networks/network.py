"""The fixed network of a genotype, for training from scratch (DARTS, section 3.2 and appendix A.2).

Two forms, of CIFAR and of ImageNet (https://arxiv.org/abs/1806.09055; quark0/darts cnn/model.py).
A genotype is static: every genotype is a program of its own. `traced.TracedNetwork` is one program
for all genotypes of a space.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnas import genotypes
from jaxnas.genotypes import CellGenotype, Genotype
from jaxnas.networks import primitives
from jaxnas.networks.operations import (POOL_NORMS, BatchNorm, FactorizedReduce, Identity,
                                        ReLUConvBN, convolve, drop_path, operation_factory)
from jaxnas.networks.own_operations import OwnOperations, own_names, own_operations
from jaxnas.networks.supernet import reduction_layers

SPACE = "darts"  # whose cells these are
STEMS = ("cifar", "imagenet")
_POOL_SIZE = 5  # of the auxiliary head


class Cell(nn.Module):
    """The chosen operations of one cell: two inputs [N, H, W, C'] -> [N, H', W', n C].

    Attributes:
      genotype: two operations a node, and the n states to concatenate.
      features: C, channels of every node.
      reduction: whether the edges from the two inputs have stride 2.
      reduced: whether the cell before was a reduction cell: the first input is twice as large.
      pool_norm, axis_name, method: as in `operations.Operation`.
      own: as in `Network`.
    """

    genotype: CellGenotype
    features: int
    reduction: bool = False
    reduced: bool = False
    pool_norm: str | None = None
    axis_name: str | None = None
    method: str = "shifts"
    own: OwnOperations = ()

    @nn.compact
    def __call__(
        self,
        s0: jax.Array,
        s1: jax.Array,
        *,
        train: bool,
        drop_path_rate: float | jax.Array = 0.0,
    ) -> jax.Array:
        """Return the concatenated states; see `Network` for the arguments."""
        options: dict[str, Any] = {"axis_name": self.axis_name, "method": self.method}
        first = FactorizedReduce if self.reduced else ReLUConvBN
        states = [
            first(self.features, name="preprocess_0", **options)(s0, train=train),
            ReLUConvBN(self.features, name="preprocess_1", **options)(s1, train=train),
        ]
        dropping = train and not (
            isinstance(drop_path_rate, (int, float)) and drop_path_rate == 0
        )
        for node in range(self.genotype.num_nodes):
            total = jnp.zeros((), s0.dtype)
            for edge in (2 * node, 2 * node + 1):
                name, source = self.genotype.edges[edge]
                operation = operation_factory(name, self.own)(
                    self.features,
                    2 if self.reduction and source < 2 else 1,
                    pool_norm=self.pool_norm,
                    name=f"edge_{edge}",
                    **options,
                )
                value = operation(states[source], train=train)
                if dropping and not isinstance(operation, Identity):
                    value = drop_path(self.make_rng("drop_path"), value, drop_path_rate)
                total += value
            states.append(total)
        return jnp.concatenate([states[i] for i in self.genotype.concat], -1)


class AuxiliaryHead(nn.Module):
    """A second classifier two thirds up: 5x5 average pool to 2x2, two convolutions, dense.

    The stride of the pool is `size - 5`: the published 3 for 8x8 and 2 for 7x7 (as khanrc/pt.darts
    writes it), so that the pooled map is always 2x2.

    Attributes:
      num_classes: outputs.
      last_norm: BN after the second convolution; the ImageNet form has none (quark0/darts leaves it
        out to match the runs of the paper).
      axis_name: of synchronised batch statistics, or None.
    """

    num_classes: int
    last_norm: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map feature maps [N, H, W, C] to logits [N, classes].

        Raises:
          ValueError: feature maps smaller than 6x6.
        """
        height, width, channels = x.shape[1:]
        if min(height, width) <= _POOL_SIZE:
            raise ValueError(
                "the auxiliary head needs feature maps of 6x6 or more (CIFAR form: images of 24x24 "
                f"or more), got {height}x{width}; switch it off with auxiliary=False."
            )
        x = jax.nn.relu(x)
        corners = [
            x[:, row : row + _POOL_SIZE, column : column + _POOL_SIZE].mean((1, 2))
            for row in (0, height - _POOL_SIZE)
            for column in (0, width - _POOL_SIZE)
        ]
        x = jnp.stack(corners, 1)  # [N, 4, C], the 2x2 pixels in row-major order
        uniform = primitives.torch_uniform
        kernel = self.param("kernel_0", uniform(channels), (channels, 128))
        norm = BatchNorm(axis_name=self.axis_name, name="norm_0")
        x = jax.nn.relu(norm(primitives.pointwise(x, kernel), train=train))
        kernel = self.param("kernel_1", uniform(4 * 128), (2, 2, 128, 768))
        x = x.reshape(-1, 4 * 128) @ kernel.reshape(4 * 128, 768)  # 2x2 on 2x2, no padding
        if self.last_norm:
            x = BatchNorm(axis_name=self.axis_name, name="norm_1")(x, train=train)
        return _classifier(self.num_classes, 768, "head")(jax.nn.relu(x))


class Stem(nn.Module):
    """The first layers, as a chain of 3x3 convolutions each followed by BN, ReLU between them.

    Attributes:
      widths: output channels of each convolution.
      stride: of every convolution.
      rectify: whether ReLU comes before the first one too.
      axis_name: of synchronised batch statistics, or None.
    """

    widths: tuple[int, ...]
    stride: int = 1
    rectify: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C'] to [N, H / s^n, W / s^n, widths[-1]]."""
        for number, width in enumerate(self.widths):
            if number or self.rectify:
                x = jax.nn.relu(x)
            channels = x.shape[-1]
            initial = primitives.torch_uniform(9 * channels)
            kernel = self.param(f"kernel_{number}", initial, (3, 3, channels, width))
            if self.stride == 1:
                x = primitives.convolution(x, kernel)
            else:
                x = convolve(x, kernel, (self.stride, self.stride))
            x = BatchNorm(axis_name=self.axis_name, name=f"norm_{number}")(x, train=train)
        return x


class Network(nn.Module):
    """Images [N, H, W, C'] -> (logits [N, classes], auxiliary logits [N, classes] or None).

    Variables are "params" and "batch_stats"; the "drop_path" random stream is read where
    `drop_path_rate` is not the Python number 0.

    Attributes:
      genotype: the two cells, of the space "darts".
      features: C, channels of a node in the first cells; doubled at each reduction. Even.
      layers: L cells; reductions at L // 3 and 2 L // 3.
      num_classes: outputs of the classifier.
      auxiliary: whether the second classifier is trained, on the output of cell 2 L // 3.
      stem: "cifar" keeps the size of the image; "imagenet" divides it by 8 (224 to 28).
      pool_norm: None as in quark0/darts, or "affine": BN after pooling, as in khanrc/pt.darts.
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.
      stem_multiplier: channels of the CIFAR stem are this times C.
      method: of `depthwise`: "shifts" (fast on CPU) or "conv".
      own: operations that are not the library's, see `own_operations`.

    Raises:
      GenotypeError: the cells are not valid, or of another space.
      ValueError: another attribute out of range.
    """

    genotype: Genotype
    features: int = 36
    layers: int = 20
    num_classes: int = 10
    auxiliary: bool = False
    stem: str = "cifar"
    pool_norm: str | None = None
    axis_name: str | None = None
    stem_multiplier: int = 3
    method: str = "shifts"
    own: OwnOperations = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "own", own_operations(self.own))
        space = self.genotype.space if isinstance(self.genotype, Genotype) else None
        if isinstance(space, str) and space != SPACE:
            raise genotypes.GenotypeError(
                f"genotype must be of the space {SPACE!r}, got {space!r}; PairNetwork builds the "
                "cells of the others.")
        # Without any, the error says how own operations are given.
        rules = genotypes.cell_rules(SPACE, own_names(self.own)) if self.own else None
        genotypes.validate(self.genotype, rules)
        check_macro(self.features, self.layers, self.num_classes, self.pool_norm)
        if self.stem not in STEMS:
            raise ValueError(f"stem must be one of {STEMS}, got {self.stem!r}.")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, drop_path_rate: float | jax.Array = 0.0
    ) -> tuple[jax.Array, jax.Array | None]:
        """Classify images.

        Args:
          x: [N, H, W, C'], H and W divisible by 4 (ImageNet form: 32).
          train: use batch statistics and update the running ones ("batch_stats" mutable).
          drop_path_rate: in [0, 1), may be traced; schedules are the caller's (0.2 e / E in the
            paper). Drops operations other than the identity, when `train`.

        Returns:
          Logits, and those of the auxiliary head if there is one and `train`, else None.

        Raises:
          ValueError: a size that cannot be halved, or too small for the auxiliary head.
        """
        reductions = reduction_layers(self.layers)
        check_image(x.shape, 2 ** len(reductions) * (8 if self.stem == "imagenet" else 1))
        before, previous = self._stem(x, train)
        reduced, features = self.stem == "imagenet", self.features
        auxiliary_logits = None
        for layer in range(self.layers):
            reduction = layer in reductions
            features *= 2 if reduction else 1
            cell = Cell(
                self.genotype.reduction if reduction else self.genotype.normal,
                features,
                reduction=reduction,
                reduced=reduced,
                pool_norm=self.pool_norm,
                axis_name=self.axis_name,
                method=self.method,
                own=self.own,
                name=f"cell_{layer}",
            )
            output = cell(before, previous, train=train, drop_path_rate=drop_path_rate)
            before, previous, reduced = previous, output, reduction
            if layer == 2 * self.layers // 3 and self.auxiliary:
                if train or self.is_initializing():  # its parameters exist however we start
                    head = AuxiliaryHead(
                        self.num_classes,
                        last_norm=self.stem == "cifar",
                        axis_name=self.axis_name,
                        name="auxiliary_head",
                    )
                    auxiliary_logits = head(previous, train=train)
        pooled = previous.mean((1, 2))
        logits = _classifier(self.num_classes, pooled.shape[-1], "head")(pooled)
        return logits, auxiliary_logits if train else None

    def _stem(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Return the two inputs of the first cell."""

        def chain(*widths: int, name: str, stride: int = 1, rectify: bool = False) -> Stem:
            return Stem(widths, stride, rectify, self.axis_name, name=name)

        features = self.features
        if self.stem == "cifar":
            x = chain(self.stem_multiplier * features, name="stem")(x, train=train)
            return x, x
        first = chain(features // 2, features, name="stem_0", stride=2)(x, train=train)
        second = chain(features, name="stem_1", stride=2, rectify=True)(first, train=train)
        return first, second


def check_macro(features: int, layers: int, num_classes: int, pool_norm: str | None) -> None:
    """Raise ValueError where the sizes of a network make no sense."""
    if features < 2 or features % 2:
        raise ValueError(f"features must be even and 2 or more, got {features}.")
    for name, value in (("layers", layers), ("num_classes", num_classes)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")
    if pool_norm not in POOL_NORMS:
        raise ValueError(f"pool_norm must be one of {POOL_NORMS}, got {pool_norm!r}.")


def check_image(shape: tuple[int, ...], divisor: int) -> None:
    """Raise ValueError unless shape is [N, H, W, C] with H and W divisible by `divisor`."""
    if len(shape) != 4 or shape[1] % divisor or shape[2] % divisor:
        raise ValueError(
            f"x must be [N, H, W, C] with H and W divisible by {divisor}, got {shape}; crop or pad "
            "the images."
        )


def _classifier(num_classes: int, channels: int, name: str) -> nn.Dense:
    initial = primitives.torch_uniform(channels)
    return nn.Dense(num_classes, kernel_init=initial, bias_init=initial, name=name)
