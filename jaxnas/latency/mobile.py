"""Predicted latency of every architecture of a mobile grid, from layers measured alone.

A unit is a layer: operation, kernel, expansion, squeeze-excitation, stride, widths and resolution.
Skips are units of their own, since they add to whatever the layer is; so are the three heads. The
stem, which all networks have, is in the constant.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import encodings
from jaxnas.latency import tables
from jaxnas.latency.tables import Calibration, LatencyTable, Shape, Unit
from jaxnas.networks import mobile_grid, mobile_stages, primitives
from jaxnas.networks.mobile import MobileHead, MobileLayer, MobileNetwork
from jaxnas.networks.mobile_grid import MobileGrid
from jaxnas.networks.mobile_stages import MobileModel, Stage

NUM_CALIBRATIONS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class MobileLatency:
    """Milliseconds of architectures of a grid: `predicted(archs [..., 6 S]) -> [...]` float32.

    A gather a stage and a sum, traceable, so that a search under jit can have it as an objective.

    Attributes:
      stages: [S, 3, 432] float32, by the stage's input width and its flat decisions.
      heads: [3] float32, by the last stage's width.
      table: of the units.
    """

    stages: np.ndarray
    heads: np.ndarray
    table: LatencyTable

    def __call__(self, archs: jax.Array | np.ndarray) -> jax.Array:
        """Predict: archs [..., 6 S] -> [...] float32 milliseconds of one batch.

        Raises:
          ValueError: archs of another length.
        """
        count, length = len(self.stages), len(mobile_grid.DECISIONS)
        if archs.shape[-1] != count * length:
            raise ValueError(f"archs must be [..., {count * length}], got {archs.shape}.")
        decisions = jnp.asarray(archs, jnp.int32).reshape(*archs.shape[:-1], count, length)
        filters = decisions[..., mobile_grid.DECISIONS.index("filters")]
        # The input of the first stage is the stem's, whatever is said.
        before = jnp.concatenate([jnp.zeros_like(filters[..., :1]), filters[..., :-1]], -1)
        index = encodings.flat_index(decisions, mobile_grid.STAGE_CHOICES)
        stages = jnp.asarray(self.stages)[np.arange(count), before, index].sum(-1)
        return stages + jnp.asarray(self.heads)[filters[..., -1]] + self.table.overhead_ms


def mobile_latency(
    grid: MobileGrid, image_shape: Shape, *, num_classes: int, batch_size: int,
    directory: Path | None, seed: int = 0, method: str = "shifts",
    load_or_build: Callable[..., LatencyTable] = tables.load_or_build,
    on_unit: Callable[[str], None] = lambda name: None,
) -> MobileLatency:
    """Measure the layers of a grid on this device, or read what was measured.

    Args:
      grid: of the space.
      image_shape: (H, W, C).
      num_classes: outputs of the classifier.
      batch_size: images of a call.
      directory: of the tables; None keeps nothing.
      seed: of the whole networks that fit the constant.
      method: of the convolutions, see `MobileNetwork`.
      load_or_build: `tables.load_or_build`, or what gives a table without measuring.
      on_unit: as in `tables.build`.

    Raises:
      LatencyTableError, OSError: as `tables.load_or_build`.
    """
    generator = np.random.default_rng(seed)
    archs = generator.integers(grid.num_choices, size=(NUM_CALIBRATIONS, len(grid.num_choices)))
    networks = []
    for arch in archs:
        network = MobileNetwork(grid.model(arch), num_classes=num_classes, method=method)
        networks.append(Calibration(
            network, image_shape, mobile_counts(network.model, image_shape, num_classes)))
    table = load_or_build(
        "mnasnet", mobile_units(grid, image_shape, num_classes=num_classes, method=method),
        networks, batch_size=batch_size, directory=directory, on_unit=on_unit)
    return price(grid, image_shape, num_classes, table)


def mobile_units(
    grid: MobileGrid, image_shape: Shape, *, num_classes: int, method: str = "shifts"
) -> list[Unit]:
    """Return the units of all networks of a grid; arguments as in `mobile_latency`."""
    units: dict[str, Unit] = {}
    for number, before, _, decisions in _every_stage(grid):
        stage = _stage(grid, number, decisions)
        for layer, shape, skips in _layers(stage, _input(grid, number, before, image_shape)):
            bare = layer._replace(repeats=1, skip="none")
            name = _layer_name(layer, shape)
            units.setdefault(name, tables.unit_of(name, MobileLayer(bare, method=method), shape))
            if skips:
                name = _skip_name(layer.skip, shape)  # its output has the same
                units.setdefault(name, Unit(name, shape, _SKIPS[layer.skip]))
    for choice in range(len(mobile_grid.MULTIPLIERS)):
        head, shape = MobileHead(grid.head_filters, num_classes, 0.0), _input(
            grid, grid.num_stages, choice, image_shape)
        name = _head_name(grid.head_filters, num_classes, shape)
        units[name] = tables.unit_of(name, head, shape, key=None)
    return list(units.values())


def mobile_counts(model: MobileModel, image_shape: Shape, num_classes: int) -> Counter[str]:
    """Return how often a decoded network has each unit; arguments as in `mobile_latency`."""
    counts: Counter[str] = Counter()
    shape = _divided(image_shape, model.stem_stride, model.stem_filters)
    for stage in model.stages:
        counts += _stage_counts(stage, shape)
        shape = _divided(shape, stage.stride, stage.filters)
    counts[_head_name(model.head_filters, num_classes, shape)] += 1
    return counts


def price(grid: MobileGrid, image_shape: Shape, num_classes: int,
          table: LatencyTable) -> MobileLatency:
    """Return the prediction from a table that has the units of a grid."""
    choices = len(mobile_grid.MULTIPLIERS)
    stages = np.zeros((grid.num_stages, choices, encodings.space_size(mobile_grid.STAGE_CHOICES)))
    for number, before, index, decisions in _every_stage(grid):
        counts = _stage_counts(_stage(grid, number, decisions),
                               _input(grid, number, before, image_shape))
        stages[number, before, index] = tables.units_ms(table.milliseconds, counts)
    heads = [table.milliseconds[_head_name(
        grid.head_filters, num_classes, _input(grid, grid.num_stages, choice, image_shape))]
        for choice in range(choices)]
    return MobileLatency(stages.astype(np.float32), np.array(heads, np.float32), table)


_SKIPS: dict[str, Callable[[Any, jax.Array], jax.Array]] = {
    "identity": lambda variables, x: x + x,
    "pool": lambda variables, x: x + primitives.avg_pool(x, 1),
}


def _every_stage(grid: MobileGrid) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
    """Yield (stage, choice of the input width, flat index of the decisions, decisions).

    The first stage has one input width, that of the stem, under every choice.
    """
    for number in range(grid.num_stages):
        for before in range(len(mobile_grid.MULTIPLIERS)):
            every = itertools.product(*map(range, mobile_grid.STAGE_CHOICES))
            for index, decisions in enumerate(every):
                yield number, before, index, decisions


def _stage(grid: MobileGrid, number: int, decisions: tuple[int, ...]) -> Stage:
    operation, kernel, squeeze, skip, filters, layers = decisions
    name, expansion = mobile_grid.OPERATIONS[operation]
    return Stage(name, mobile_grid.KERNELS[kernel], grid.strides[number], expansion,
                 int(grid.widths[number, filters]), int(grid.depths[number, layers]),
                 mobile_grid.SE_RATIOS[squeeze], mobile_stages.SKIPS[skip])


def _input(grid: MobileGrid, number: int, before: int, image_shape: Shape) -> Shape:
    """Return what stage `number`, or the head, reads where the stage before has a width."""
    filters = grid.stem_filters if number == 0 else int(grid.widths[number - 1, before])
    shape = image_shape
    for stride in (grid.stem_stride, *grid.strides[:number]):
        shape = _divided(shape, stride, filters)
    return shape


def _divided(shape: Shape, stride: int, filters: int) -> Shape:
    return -(-shape[0] // stride), -(-shape[1] // stride), filters


def _layers(stage: Stage, shape: Shape) -> Iterator[tuple[Stage, Shape, bool]]:
    """Yield (layer, shape of its input, whether it has a skip) of a stage, the first once."""
    for repeat in range(stage.repeats):
        layer = stage if repeat == 0 else stage._replace(stride=1)
        has = stage.skip != "none" and mobile_stages.has_skip(layer.stride, shape[2], stage.filters)
        yield layer, shape, has
        shape = _divided(shape, layer.stride, stage.filters)


def _stage_counts(stage: Stage, shape: Shape) -> Counter[str]:
    counts: Counter[str] = Counter()
    for layer, inputs, skips in _layers(stage, shape):
        counts[_layer_name(layer, inputs)] += 1
        if skips:
            counts[_skip_name(layer.skip, inputs)] += 1
    return counts


def _at(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _layer_name(layer: Stage, shape: Shape) -> str:
    return (f"{layer.operation}_k{layer.kernel}_s{layer.stride}_e{layer.expansion}"
            f"_o{layer.filters}_se{layer.se_ratio:g}_at_{_at(shape)}")


def _skip_name(skip: str, shape: Shape) -> str:
    return f"skip_{skip}_at_{_at(shape)}"


def _head_name(features: int, num_classes: int, shape: Shape) -> str:
    return f"head_{features}_{num_classes}_at_{_at(shape)}"
