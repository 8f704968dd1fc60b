"""Cells whose nodes add two operations, as NASNet, AmoebaNet, PNAS and ENAS build them.

All four have the cells of a `CellGenotype`; what a cell does with inputs of another size, which
layers an operation has and where its padding goes differs, and `CellStyle` names every difference.
Sources: Zoph et al., 2018 (https://arxiv.org/abs/1707.07012), Real et al., 2019
(https://arxiv.org/abs/1802.01548), Liu et al., 2018 (https://arxiv.org/abs/1712.00559), Pham et
al., 2018 (https://arxiv.org/abs/1802.03268), and the code that each published.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnas.genotypes import CellGenotype
from jaxnas.networks import primitives
from jaxnas.networks.layer_costs import Cost
from jaxnas.networks.operations import (INITIALIZERS, MOMENTUM, UNEVEN, Conv, FactorizedReduce,
                                        Identity, Operation, ReLUConvBN, drop_path,
                                        operation_factory)
from jaxnas.networks.own_operations import OwnOperations
from jaxnas.networks.windows import PADDINGS

Shape = tuple[int, int, int]  # H, W, C
STEMS = ("cifar", "imagenet")
DROP_PATHS = ("v1", "v2", "v3")
_IDENTITIES = ("convolution", "factorized")


@dataclasses.dataclass(frozen=True)
class CellStyle:
    """What the families do differently with the same genotype; see `NASNET` and its neighbours.

    Attributes:
      stem_twice: stems that the first cell reads as both its inputs, like two cells. After others
        it has no previous cell, and its input stands in for that one, not brought to width.
      project_twice: whether the current input, if of another width, is brought to the width of the
        cell before the 1x1 convolution that it always passes.
      identity: what "skip_connect" is where size or width change: "convolution", ReLU, 1x1
        convolution of the stride and BN; "factorized", `FactorizedReduce` without ReLU.
      uneven: what `FactorizedReduce` does to odd features: "split" or "zero".
      bottleneck: whether dense convolutions that are not 1x1 work on a quarter of the channels
        (1x3 then 3x1: on three eighths), between two 1x1 convolutions.
      dense_dilation: whether "dil_conv_3x3" is a dense convolution, or a separable one as in DARTS.
      separable_dilation: of the "dil_sep_conv" operations.
      padding: of strided windows, "same" (TensorFlow's) or "symmetric".
      initializer: of the convolutions, one of `operations.INITIALIZERS`.
      reductions_inside: whether a reduction cell is the first of the N cells of its stage, or comes
        before them.
      auxiliary_after: whether the auxiliary head reads the cell after the second reduction, or the
        cell before it.
      auxiliary_mean: whether that head ends in a 2x2 convolution and a mean over pixels, or in one
        convolution over the whole map.
      classifier_bias: whether the classifiers have a bias.
      drop_path: "v1", a rate that grows with time; "v2", with depth; "v3", with both.
    """

    stem_twice: tuple[str, ...] = ()
    project_twice: bool = False
    identity: str = "convolution"
    uneven: str = "split"
    bottleneck: bool = False
    dense_dilation: bool = True
    separable_dilation: int = 2
    padding: str = "same"
    initializer: str = "fan_out"
    reductions_inside: bool = False
    auxiliary_after: bool = False
    auxiliary_mean: bool = False
    classifier_bias: bool = True
    drop_path: str = "v3"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("identity", _IDENTITIES), ("uneven", UNEVEN[1:]), ("padding", PADDINGS[:2]),
            ("initializer", INITIALIZERS), ("drop_path", DROP_PATHS),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        if not set(self.stem_twice) <= set(STEMS):
            raise ValueError(f"stem_twice must be among {STEMS}, got {self.stem_twice}.")
        if self.separable_dilation < 1:
            raise ValueError(
                f"separable_dilation must be 1 or more, got {self.separable_dilation}.")


NASNET = CellStyle()  # tensorflow/models nasnet.py, nasnet_utils.py
# tensorflow/tpu amoeba_net. That code reads "dil2_sep5_2" as two separable convolutions without
# dilation; as the paper has them dilated, so have we: separable_dilation=1 is the released network.
# Only "zero" gives the parameter counts of its mobile networks, of odd width in the stem.
AMOEBANET = CellStyle(uneven="zero", bottleneck=True, drop_path="v1")
# chenxi116/PNASNet.TF; the CIFAR network, of which there is no code, has 3.2M parameters this way
PNAS = CellStyle(stem_twice=("cifar",), reductions_inside=True)
ENAS_MICRO = CellStyle(  # melodyguan/enas micro_child.py, its networks with a fixed architecture
    stem_twice=STEMS, project_twice=True, identity="factorized", initializer="fan_in",
    auxiliary_after=True, auxiliary_mean=True, classifier_bias=False)

# Space of a genotype -> how that family builds it.
STYLES: Mapping[str, CellStyle] = MappingProxyType({
    "nasnet": NASNET, "amoebanet": AMOEBANET, "pnas": PNAS, "enas_micro": ENAS_MICRO})


class CellParts(NamedTuple):
    """The layers of one cell, and the shapes of its states."""

    inputs: tuple[tuple[Operation, ...], tuple[Operation, ...]]  # of previous and current, in order
    edges: tuple[Operation, ...]          # one an edge of the genotype
    outputs: tuple[Operation | None, ...]  # one a concatenated state; None passes it untouched
    shapes: tuple[Shape, ...]             # of the states: two inputs as brought to width, the nodes


class PairCell(nn.Module):
    """The operations of one cell: two inputs [N, H, W, C'] -> [N, H', W', n C].

    Parameters are in "previous_0", "current_0", "current_1" (inputs brought to size and width),
    "edge_<i>" and "output_<state>" (states brought to size and width for the concatenation).

    Attributes:
      genotype: two operations a node, and the n states to concatenate.
      features: C, channels of every node.
      style: of the family.
      reduction: whether the edges from the two inputs have stride 2.
      axis_name, method, momentum, epsilon: as in `operations.Operation`.
      own: operations that are not the library's, see `own_operations`.
    """

    genotype: CellGenotype
    features: int
    style: CellStyle = NASNET
    reduction: bool = False
    axis_name: str | None = None
    method: str = "shifts"
    momentum: float = MOMENTUM
    epsilon: float = primitives.EPSILON
    own: OwnOperations = ()

    @nn.compact
    def __call__(
        self,
        previous: jax.Array | None,
        current: jax.Array,
        *,
        train: bool,
        drop_path_rate: float | jax.Array = 0.0,
    ) -> jax.Array:
        """Return the concatenated states.

        Args:
          previous: output of the cell before the previous one, of the size of `current` or twice
            it; None where there is no such cell.
          current: output of the previous cell.
          train: use batch statistics and update the running ones.
          drop_path_rate: of this cell, in [0, 1), may be traced; the number 0 draws nothing.
        """
        parts = self.parts(None if previous is None else _shape(previous), _shape(current))
        states = [current if previous is None else previous, current]
        for which, layers in enumerate(parts.inputs):
            for layer in layers:
                states[which] = layer(states[which], train=train)
        dropping = train and not (
            isinstance(drop_path_rate, (int, float)) and drop_path_rate == 0
        )
        for node in range(self.genotype.num_nodes):
            values = []
            for edge in (2 * node, 2 * node + 1):
                name, source = self.genotype.edges[edge]
                value = parts.edges[edge](states[source], train=train)
                if dropping and name != "skip_connect":
                    value = drop_path(self.make_rng("drop_path"), value, drop_path_rate)
                values.append(value)
            states.append(values[0] + values[1])
        outputs = [
            states[state] if layer is None else layer(states[state], train=train)
            for state, layer in zip(self.genotype.concat, parts.outputs)
        ]
        return jnp.concatenate(outputs, -1)

    @nn.nowrap
    def parts(self, previous: Shape | None, current: Shape) -> CellParts:
        """Return the layers for inputs of these shapes; previous as in `__call__`."""
        options: dict[str, Any] = {
            "axis_name": self.axis_name, "method": self.method, "momentum": self.momentum,
            "epsilon": self.epsilon, "padding": self.style.padding,
            "initializer": self.style.initializer,
        }
        features, stride = self.features, 2 if self.reduction else 1
        first: tuple[Operation, ...] = ()
        if previous is None:
            previous = current
        elif previous[:2] != current[:2]:
            first = (FactorizedReduce(
                features, uneven=self.style.uneven, name="previous_0", **options),)
        elif previous[2] != features:
            first = (ReLUConvBN(features, name="previous_0", **options),)
        twice = self.style.project_twice and current[2] != features
        second: tuple[Operation, ...] = tuple(
            ReLUConvBN(features, name=f"current_{number}", **options)
            for number in range(1 + twice))
        shapes = [(*current[:2], features if first else previous[2]), (*current[:2], features)]
        edges: list[Operation] = []
        for node in range(self.genotype.num_nodes):
            for edge in (2 * node, 2 * node + 1):
                name, source = self.genotype.edges[edge]
                edges.append(style_operation(
                    name, self.style, features, stride if source < 2 else 1,
                    channels=shapes[source][2], own=self.own, name=f"edge_{edge}", **options))
            shapes.append(edges[-1].output_shape(shapes[source]))
        outputs: list[Operation | None] = []
        for state in self.genotype.concat:
            name = f"output_{state}"
            if shapes[state][:2] != shapes[-1][:2]:
                outputs.append(FactorizedReduce(
                    features, rectify=False, uneven=self.style.uneven, name=name, **options))
            elif shapes[state][2] != features:
                outputs.append(ReLUConvBN(features, rectify=False, name=name, **options))
            else:
                outputs.append(None)
        return CellParts((first, second), tuple(edges), tuple(outputs), tuple(shapes))

    @nn.nowrap
    def output_shape(self, previous: Shape | None, current: Shape) -> Shape:
        """Return (H, W, C) of the output."""
        height, width, _ = self.parts(previous, current).shapes[-1]
        return height, width, self.features * len(self.genotype.concat)

    @nn.nowrap
    def costs(self, previous: Shape | None, current: Shape) -> Iterator[tuple[str, Cost]]:
        """Yield the name and the cost of every layer, by closed form."""
        parts = self.parts(previous, current)
        for shape, layers in zip((previous or current, current), parts.inputs):
            for layer in layers:
                yield str(layer.name), layer.cost(shape)
                shape = layer.output_shape(shape)
        for (_, source), layer in zip(self.genotype.edges, parts.edges):
            yield str(layer.name), layer.cost(parts.shapes[source])
        for state, output in zip(self.genotype.concat, parts.outputs):
            if output is not None:
                yield str(output.name), output.cost(parts.shapes[state])


def _shape(x: jax.Array) -> Shape:
    _, height, width, channels = x.shape
    return height, width, channels


def style_operation(
    operation: str,
    style: CellStyle,
    features: int,
    stride: int = 1,
    *,
    channels: int,
    own: OwnOperations = (),
    **options: Any,
) -> Operation:
    """Return an operation as a family builds it.

    Args:
      operation: a key of `OPERATIONS`, or of an own operation, which every family builds alike.
      style: of the family.
      features: channels of the output.
      stride: 1 or 2.
      channels: of the input.
      own: as in `own_operations`.
      **options: the other attributes of `Operation`.

    Raises:
      ValueError: for another name.
    """
    factory = operation_factory(operation, own)
    if operation == "skip_connect":
        if stride == 1 and channels == features:
            return Identity(features, **options)
        if stride == 1 or style.identity == "convolution":
            return ReLUConvBN(features, stride, **options)
        return FactorizedReduce(
            features, stride, rectify=False, uneven=style.uneven, **options)
    if operation in dict(own):
        return factory(features, stride, **options)
    if operation == "dil_conv_3x3" and style.dense_dilation:
        width = features // 4 if style.bottleneck else 0
        return Conv(features, stride, dilation=2, bottleneck=width, **options)
    if operation.startswith("dil_sep_conv"):
        options["dilation"] = style.separable_dilation
    if style.bottleneck and operation in ("conv_3x3", "conv_1x7_7x1", "conv_1x3_3x1"):
        options["bottleneck"] = 3 * features // 8 if operation == "conv_1x3_3x1" else features // 4
    return factory(features, stride, **options)
