"""Predicted latency of cells with an operation on every edge: NAS-Bench-201 and DARTS.

A unit is an operation at a width, a resolution and a stride. An edge with an operation costs the
sum over all cells of the network, so that a table [edges, operations] predicts any architecture
(Wu et al., 2019, equation 4, https://arxiv.org/abs/1812.03443). What all networks of a skeleton
have (stem, preprocessing of a cell's inputs, residual blocks, classifier) is in the constant.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.genotypes import CellGenotype, Edge, Genotype
from jaxnas.latency import tables
from jaxnas.latency.tables import Calibration, LatencyTable, Shape, Unit
from jaxnas.networks import nasbench201, primitives
from jaxnas.networks.mixed import edge_index, num_edges
from jaxnas.networks.nasbench201 import NASBench201Network, ReLUConv
from jaxnas.networks.network import Network
from jaxnas.networks.operations import Identity, operation_factory
from jaxnas.networks.supernet import reduction_layers

NUM_CALIBRATIONS = 4
STAGES = 3  # of NAS-Bench-201

LoadOrBuild = Callable[..., LatencyTable]


@dataclasses.dataclass(frozen=True, eq=False)
class EdgeLatency:
    """Milliseconds of architectures that put operations on edges.

    Attributes:
      edges: [..., O] float32, of an operation on an edge, in all cells together.
      table: of the units.
    """

    edges: np.ndarray
    table: LatencyTable

    def nasbench201(self, archs: jax.Array | np.ndarray) -> jax.Array:
        """Predict cells of NAS-Bench-201: archs [..., 6] -> [...] float32; traceable.

        An edge counts if a path joins its source to the input, and its target to the output: the
        compiler leaves out the rest.
        """
        some = jnp.asarray(archs) != nasbench201.OPERATIONS.index("none")
        e01, e02, e12, e03, e13, e23 = jnp.moveaxis(some, -1, 0)
        fed_2 = e02 | (e01 & e12)
        used_1 = e13 | (e12 & e23)
        counts = jnp.stack([used_1, e23, e01 & e23, jnp.ones_like(e03), e01, fed_2], -1)
        edges = jnp.asarray(self.edges)[np.arange(len(self.edges)), jnp.asarray(archs)]
        return jnp.where(counts & some, edges, 0).sum(-1) + self.table.overhead_ms

    def derived(self, archs: jax.Array | np.ndarray) -> jax.Array:
        """Predict derived cells of DARTS: archs [..., 8 N] -> [...] float32; traceable.

        Operations are counted without "none", as `DARTS.discretize` does.
        """
        rows = jnp.asarray(archs).reshape(*archs.shape[:-1], 2, -1, 2)  # operation, source
        first = np.array([edge_index(row // 2, 0) for row in range(rows.shape[-2])])
        cells = np.arange(2)[:, None]
        chosen = jnp.asarray(self.edges)[cells, first + rows[..., 1], rows[..., 0]]
        return chosen.sum((-2, -1)) + self.table.overhead_ms

    def expected(self, probabilities: jax.Array) -> jax.Array:
        """Return the expected latency of derived cells of DARTS: [2, E, O] -> [] float32.

        A derived node has two edges. So a node counts twice the mean over all operations of all
        its edges but "none", weighted by their probabilities: the latency of what is derived where
        two edges have one operation each and the others none, that of random cells where all is
        equally probable, and never less because "none" is probable, which no derived cell holds.
        Differentiable; a node of which every edge is certainly none counts nothing.

        Args:
          probabilities: [2, E, O] without the column of "none"; rows need not sum to 1.
        """
        cells = jnp.arange(probabilities.shape[1])
        total = jnp.float32(self.table.overhead_ms)
        node = 0
        while (first := edge_index(node, 0)) < len(cells):
            weights = probabilities[:, first:first + node + 2]
            edges = jnp.asarray(self.edges)[:, first:first + node + 2]
            mass = weights.sum((1, 2))
            mean = (weights * edges).sum((1, 2)) / jnp.maximum(mass, 1e-12)
            total += 2 * mean.sum()
            node += 1
        return total


def nasbench201_latency(
    image_shape: Shape, *, features: int = 16, cells: int = 5, num_classes: int = 10,
    batch_size: int, directory: Path | None, seed: int = 0,
    load_or_build: LoadOrBuild = tables.load_or_build,
    on_unit: Callable[[str], None] = lambda name: None,
) -> EdgeLatency:
    """Measure the operations of NAS-Bench-201 on this device, or read what was measured.

    Args:
      image_shape: (H, W, C), H and W divisible by 4.
      features, cells, num_classes: as in `NASBench201Network`.
      batch_size, directory, seed, load_or_build, on_unit: as in `mobile_latency`.

    Raises:
      LatencyTableError, OSError: as `tables.load_or_build`.
    """
    operations = nasbench201.OPERATIONS
    units: dict[tuple[int, str], Unit] = {}
    for stage in range(STAGES):
        width = features * 2 ** stage
        shape = (image_shape[0] >> stage, image_shape[1] >> stage, width)
        for name in operations[1:]:
            units[stage, name] = _nasbench201_unit(name, shape)
    generator = np.random.default_rng(seed)
    networks = []
    for _ in range(NUM_CALIBRATIONS):
        arch = generator.integers(1, len(operations), len(nasbench201.EDGES))  # every edge counts
        counts: Counter[str] = Counter()
        for stage in range(STAGES):
            for operation in arch:
                counts[units[stage, operations[operation]].name] += cells
        network = NASBench201Network(tuple(arch.tolist()), features, cells, num_classes)
        networks.append(Calibration(network, image_shape, counts))
    table = load_or_build("nasbench201", list(units.values()), networks, batch_size=batch_size,
                          directory=directory, on_unit=on_unit)
    row = [0.0] + [cells * sum(table.milliseconds[units[stage, name].name]
                               for stage in range(STAGES)) for name in operations[1:]]
    return EdgeLatency(np.array([row] * len(nasbench201.EDGES), np.float32), table)


def _nasbench201_unit(name: str, shape: Shape) -> Unit:
    title = f"{name}_at_{'x'.join(map(str, shape))}"
    if name == "skip_connect":
        return Unit(title, shape, lambda variables, x: x + x)
    if name == "avg_pool_3x3":
        return Unit(title, shape, lambda variables, x: primitives.avg_pool(x, 1))
    return tables.unit_of(title, ReLUConv(shape[2], int(name[-1])), shape)


class Place(NamedTuple):
    """Where a cell of DARTS computes."""

    reduction: bool
    inputs: Shape   # after preprocessing
    outputs: Shape  # of the nodes


def places(image_shape: Shape, features: int, layers: int) -> Iterator[Place]:
    """Yield the cells of the CIFAR form of `networks.Network`, in order."""
    height, width = image_shape[:2]
    for layer in range(layers):
        reduction = layer in reduction_layers(layers)
        features *= 2 if reduction else 1
        inputs = (height, width, features)
        if reduction:
            height, width = -(-height // 2), -(-width // 2)
        yield Place(reduction, inputs, (height, width, features))


def darts_latency(
    operations: tuple[str, ...], num_nodes: int, image_shape: Shape, *, features: int,
    layers: int, num_classes: int, batch_size: int, directory: Path | None, seed: int = 0,
    load_or_build: LoadOrBuild = tables.load_or_build,
    on_unit: Callable[[str], None] = lambda name: None,
) -> EdgeLatency:
    """Measure the operations of DARTS in a skeleton, or read what was measured.

    Args:
      operations: O names that a derived cell may hold, so without "none".
      num_nodes: of a cell.
      image_shape: (H, W, C), H and W divisible by 4.
      features, layers, num_classes: of the skeleton, as in `Network`, without auxiliary head.
      batch_size, directory, seed, load_or_build, on_unit: as in `mobile_latency`.

    Raises:
      LatencyTableError, OSError: as `tables.load_or_build`.
    """
    def stride(place: Place, source: int) -> int:
        return 2 if place.reduction and source < 2 else 1

    def unit(name: str, place: Place, source: int) -> Unit:
        shape = place.inputs if source < 2 else place.outputs
        step = stride(place, source)
        title = f"{name}_s{step}_at_{'x'.join(map(str, shape))}"
        operation = operation_factory(name)(shape[2], step)
        if isinstance(operation, Identity):  # costs its part of a node's sum
            return Unit(title, shape, lambda variables, x: x + x)
        return tables.unit_of(title, operation, shape)

    cells = list(places(image_shape, features, layers))
    units = {found.name: found for place in cells for name in operations
             for found in (unit(name, place, 0), unit(name, place, num_nodes + 1))}
    generator = np.random.default_rng(seed)

    def drawn() -> Calibration:
        normal, reduction = (
            CellGenotype(tuple(Edge(operations[generator.integers(len(operations))], int(source))
                               for node in range(num_nodes)
                               for source in generator.choice(node + 2, 2, replace=False)),
                         tuple(range(2, 2 + num_nodes))) for _ in range(2))
        genotype = Genotype(normal, reduction)
        counts = Counter(
            unit(name, place, source).name for place in cells for name, source in (
                genotype.reduction if place.reduction else genotype.normal).edges)
        return Calibration(Network(genotype, features, layers, num_classes), image_shape, counts)

    table = load_or_build(
        "darts", list(units.values()), [drawn() for _ in range(NUM_CALIBRATIONS)],
        batch_size=batch_size, directory=directory, on_unit=on_unit)
    edges = np.zeros((2, num_edges(num_nodes), len(operations)))
    for place in cells:
        for node in range(num_nodes):
            for source in range(node + 2):
                edges[int(place.reduction), edge_index(node, source)] += [
                    table.milliseconds[unit(name, place, source).name] for name in operations]
    return EdgeLatency(edges.astype(np.float32), table)
