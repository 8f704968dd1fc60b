"""Parameters and multiply-adds of mobile networks in closed form.

Convolutions and dense layers count, squeeze-excitation's included; normalisation, pooling, sums
and biases are no multiply-adds. Batch normalisation has two parameters a channel.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.networks import mobile_grid
from jaxnas.networks.mobile_grid import MobileGrid
from jaxnas.networks.mobile_stages import MobileModel, Stage, squeezed

Counts = int | np.ndarray | jax.Array
STEM_KERNEL = 3
MAX_INT32 = 2 ** 31 - 1


class Costs(NamedTuple):
    """What a network, or a part of one, costs; integers, or arrays of them.

    Attributes:
      parameters: trainable numbers.
      multiply_adds: for one image.
    """

    parameters: Counts
    multiply_adds: Counts


def model_costs(model: MobileModel, *, num_classes: int = 1000, image_size: int = 224,
                channels: int = 3) -> Costs:
    """Count for a decoded model, on the host.

    Args:
      model: published or decoded.
      num_classes: outputs of the classifier.
      image_size: height and width.
      channels: of the images.

    Raises:
      ValueError: a size that is not positive.
    """
    _check(num_classes, image_size, channels)
    total, size = _stem(model.stem_filters, model.stem_stride, image_size, channels)
    inputs = model.stem_filters
    for stage in model.stages:
        total = _add(total, _stage(stage, inputs, size))
        inputs, size = stage.filters, _halved(size, stage.stride)
    return _add(total, _head(inputs, model.head_filters, size, num_classes))


def grid_costs(grid: MobileGrid, archs: np.ndarray | jax.Array, *, num_classes: int = 1000,
               image_size: int = 224, channels: int = 3) -> Costs:
    """Count for architectures of a grid: [..., 6 S] -> [...] integers.

    A table lookup a stage, traceable, so that a search under jit can have costs as objectives.
    NumPy in, NumPy (int64) out; JAX arrays give int32.

    Raises:
      ValueError: a size that is not positive, another length, or costs that an int32 cannot hold.
    """
    _check(num_classes, image_size, channels)
    if archs.shape[-1] != len(grid.num_choices):
        raise ValueError(f"archs must be [..., {len(grid.num_choices)}], got {archs.shape}.")
    priced: tuple[Any, ...] = _tables(grid, num_classes, image_size, channels)
    on_host = isinstance(archs, np.ndarray)
    if not on_host:
        tables, head, fixed = priced
        largest = (tables.max(-1).sum(-1) + head.max(-1) + fixed).max()
        if largest > MAX_INT32:
            raise ValueError(
                f"costs reach {largest}, more than an int32 holds: give NumPy arrays, or a smaller "
                f"image_size than {image_size}.")
        priced = tuple(jnp.asarray(a, jnp.int32) for a in priced)
    decisions = archs.reshape(*archs.shape[:-1], grid.num_stages, len(mobile_grid.DECISIONS))
    filters = decisions[..., mobile_grid.DECISIONS.index("filters")]
    index = 0 * filters
    for position, count in _priced():
        index = index * count + decisions[..., position]
    # The input width comes from the stage before; of the first it is the stem's, whatever is said.
    before = (filters[..., :-1], 0 * filters[..., :1])
    numpy = np if on_host else jnp
    index = index + numpy.concatenate(before[::-1], -1) * _combinations()
    stages = np.arange(grid.num_stages)
    totals = [table[stages, index].sum(-1) + last[filters[..., -1]] + offset
              for table, last, offset in zip(*priced)]
    return Costs(*totals)


def _check(num_classes: int, image_size: int, channels: int) -> None:
    for name, value in (("num_classes", num_classes), ("image_size", image_size),
                        ("channels", channels)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")


def _priced() -> list[tuple[int, int]]:
    """Return position and choices of the decisions that cost something: all but the skip."""
    return [(position, count) for position, (name, count) in enumerate(
        zip(mobile_grid.DECISIONS, mobile_grid.STAGE_CHOICES)) if name != "skip"]


def _combinations() -> int:
    return math.prod(count for _, count in _priced())


@functools.lru_cache(maxsize=64)
def _tables(grid: MobileGrid, num_classes: int, image_size: int,
            channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return costs [2, S, 3 * combinations] of stages, [2, 3] of the head, [2] of the stem."""
    fixed, size = _stem(grid.stem_filters, grid.stem_stride, image_size, channels)
    choices = len(mobile_grid.MULTIPLIERS)
    tables = np.zeros((2, grid.num_stages, choices, _combinations()), np.int64)
    widths = [[grid.stem_filters] * choices, *grid.widths.tolist()]
    for number, stride in enumerate(grid.strides):
        for before, inputs in enumerate(widths[number]):
            decisions = itertools.product(*(range(count) for _, count in _priced()))
            for index, (operation, kernel, squeeze, filters, layers) in enumerate(decisions):
                name, expansion = mobile_grid.OPERATIONS[operation]
                stage = Stage(name, mobile_grid.KERNELS[kernel], stride, expansion,
                              widths[number + 1][filters], int(grid.depths[number, layers]),
                              mobile_grid.SE_RATIOS[squeeze])
                tables[:, number, before, index] = _stage(stage, inputs, size)
        size = _halved(size, stride)
    head = np.array([_head(width, grid.head_filters, size, num_classes) for width in widths[-1]])
    return tables.reshape(2, grid.num_stages, -1), head.T, np.array(fixed)


def _add(first: Costs, second: Costs) -> Costs:
    return Costs(first.parameters + second.parameters, first.multiply_adds + second.multiply_adds)


def _halved(size: int, stride: int) -> int:
    return -(-size // stride)


def _unit(weights: int, outputs: int, size: int) -> Costs:
    """Count a convolution of so many weights, with BN, on maps of side `size`."""
    return Costs(weights + 2 * outputs, weights * size * size)


def _stem(filters: int, stride: int, image_size: int, channels: int) -> tuple[Costs, int]:
    size = _halved(image_size, stride)
    return _unit(STEM_KERNEL ** 2 * channels * filters, filters, size), size


def _head(inputs: int, filters: int, size: int, num_classes: int) -> Costs:
    classifier = Costs((filters + 1) * num_classes, filters * num_classes)
    return _add(_unit(inputs * filters, filters, size), classifier)


def _stage(stage: Stage, inputs: int, size: int) -> Costs:
    """Count a stage of which the first layer sees `inputs` channels of side `size`."""
    first = _layer(stage, inputs, size, _halved(size, stage.stride))
    size = _halved(size, stage.stride)
    rest = _layer(stage, stage.filters, size, size)
    return Costs(*(one + (stage.repeats - 1) * other for one, other in zip(first, rest)))


def _layer(stage: Stage, inputs: int, size: int, new_size: int) -> Costs:
    area, filters = stage.kernel ** 2, stage.filters
    if stage.operation == "conv":
        width, units = filters, [_unit(area * inputs * filters, filters, new_size)]
    else:
        width = stage.expansion * inputs
        units = [_unit(area * width, width, new_size), _unit(width * filters, filters, new_size)]
        if stage.expansion > 1:
            units.append(_unit(inputs * width, width, size))
    if stage.se_ratio:
        hidden = squeezed(stage.se_ratio, inputs)
        units.append(Costs(2 * width * hidden + hidden + width, 2 * width * hidden))
    return functools.reduce(_add, units)
