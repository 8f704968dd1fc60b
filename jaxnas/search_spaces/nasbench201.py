"""The cells of NAS-Bench-201 (Dong & Yang, 2020, https://arxiv.org/abs/2001.00326).

Four nodes, an operation on each edge i < j; a node sums its edges. NATS-Bench calls the same cells
its topology space.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import draws, encodings, mutations
from jaxnas.networks.nasbench201 import EDGES, OPERATIONS
from jaxnas.search_spaces import product

MUTATIONS = ("edge", "node")
RULES = ("skip", "zero", "sum")
ZERO = "#"  # sorts before all else, on which the benchmark's number of classes depends
CHANNELS = (16, 32, 64)  # of the three stages
CELLS = 5                # of a stage


@dataclasses.dataclass(frozen=True)
class NASBench201(product.IndependentDecisions):
    """One cell: `arch` [6] int32 is the operation, an index into `OPERATIONS`, on edges `EDGES`.

    As text, the benchmark's string, "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", in which
    the number is the source and the part between two plus signs is a target.

    Attributes:
      mutation: what `mutate` draws first. "edge": one of the 6 edges, uniformly. "node": as the
        benchmark's scripts do, one of the 3 targets, then one of its edges, so that edge 0-1 is
        drawn three times as often as each of those into node 3. Either then draws another
        operation, uniformly.

    Raises:
      ValueError: for an unknown mutation.
    """

    mutation: str = "edge"

    def __post_init__(self):
        if self.mutation not in MUTATIONS:
            raise ValueError(f"mutation must be one of {MUTATIONS}, got {self.mutation!r}.")

    @property
    def name(self) -> str:
        """What result.json calls the space."""
        return "nasbench201"

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[6] choices of every decision."""
        return (len(OPERATIONS),) * len(EDGES)

    def mutate(self, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Put another operation on one edge, drawn as `mutation` says: [6] -> [6]."""
        if self.mutation == "edge":
            return mutations.mutate(key, arch, self.num_choices)
        node, word = draws.take(jax.random.bits(key), 3)
        source, word = draws.take(word, node + 1)
        step, _ = draws.take(word, len(OPERATIONS) - 1)
        edge = node * (node + 1) // 2 + source
        return mutations.shift(arch, edge, step + 1, self.num_choices)

    def is_connected(self, arch: jax.Array) -> jax.Array:
        """Tell whether a path without "none" joins input and output: [..., 6] -> [...] bool.

        341 of the 15,625 cells have none; their networks see nothing of the image.
        """
        e01, e02, e12, e03, e13, e23 = jnp.moveaxis(arch != 0, -1, 0)
        return e03 | (e01 & e13) | ((e02 | (e01 & e12)) & e23)

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Return the lexicographically smallest isomorphic cell: [6] -> [6].

        There are 6,466, the benchmark's number of unique cells: `equivalence_classes("zero")`.
        """
        representative = jnp.asarray(equivalence_classes("zero"))
        index = encodings.flat_index(arch, self.num_choices)
        return encodings.from_flat_index(representative[index], self.num_choices)

    def decode(self, arch: jax.Array | np.ndarray) -> str:
        """Write an arch [6] as the benchmark's string. Host only.

        Raises:
          ValueError: a wrong length, or a decision out of range.
        """
        nodes: list[list[str]] = [[], [], []]
        for operation, (source, target) in zip(product.read_arch(arch, self.num_choices), EDGES):
            nodes[target - 1].append(f"{OPERATIONS[operation]}~{source}")
        return "+".join(f"|{'|'.join(edges)}|" for edges in nodes)

    def encode(self, text: str) -> np.ndarray:
        """Read the benchmark's string as [6] int32. Host only.

        Raises:
          ValueError: it is not exactly such a string.
        """
        product.check_text(text)
        nodes = text.split("+")
        if len(nodes) != 3:
            raise ValueError(f"a cell must be 3 nodes with '+' between, got {text!r:.60}.")
        arch = []
        for target, node in enumerate(nodes, start=1):
            edges = node.split("|")
            if len(edges) != target + 2 or edges[0] or edges[-1]:
                raise ValueError(f"node {target} must be {target} edges 'operation~source', each "
                                 f"between bars, got {node!r:.60}.")
            for source, edge in enumerate(edges[1:-1]):
                name, _, number = edge.partition("~")
                if name not in OPERATIONS or number != str(source):
                    raise ValueError(f"edge {source} of node {target} must be one of {OPERATIONS}, "
                                     f"then '~{source}', got {edge!r:.40}.")
                arch.append(OPERATIONS.index(name))
        return np.array(arch, np.int32)

    def num_parameters(self, arch: jax.Array | np.ndarray, *,
                       num_classes: int = 10) -> jax.Array | np.ndarray:
        """Count the weights of the benchmark's network of a cell: [..., 6] -> [...] integers.

        Three stages of five cells with 16, 32 and 64 channels; only convolutions depend on the
        cell, on whatever edge they are. NumPy in, NumPy out.
        """
        widths = sum(c * c for c in CHANNELS)
        norm = 2 * sum(CHANNELS)
        stem = 27 * 16 + 2 * 16
        down = sum(9 * i * o + 9 * o * o + i * o + 4 * o for i, o in zip(CHANNELS, CHANNELS[1:]))
        head = 2 * 64 + (64 + 1) * num_classes
        return (stem + down + head + CELLS * (widths + norm) * _count(arch, "nor_conv_1x1")
                + CELLS * (9 * widths + norm) * _count(arch, "nor_conv_3x3"))

    def flops(self, arch: jax.Array | np.ndarray, *, num_classes: int = 10,
              image_size: int = 32) -> jax.Array | np.ndarray:
        """Count multiply-adds for one image as the benchmark does: [..., 6] -> [...] integers.

        Convolutions and the last layer count, normalisation, pooling and sums do not.

        Args:
          arch: [..., 6].
          num_classes: 10, 100 or, for ImageNet16-120, 120.
          image_size: height and width, a multiple of 4: 32 for CIFAR, 16 for ImageNet16-120.

        Raises:
          ValueError: the image cannot be halved twice.
        """
        if image_size < 4 or image_size % 4:
            raise ValueError(f"image_size must be a multiple of 4, got {image_size}.")
        areas = [(image_size >> stage) ** 2 for stage in range(3)]
        stem = 27 * 16 * areas[0]
        down = sum((9 * i * o + 9 * o * o + i * o) * area
                   for i, o, area in zip(CHANNELS, CHANNELS[1:], areas[1:]))
        head = (64 + 1) * num_classes
        conv = CELLS * sum(c * c * area for c, area in zip(CHANNELS, areas))
        return (stem + down + head + conv * _count(arch, "nor_conv_1x1")
                + 9 * conv * _count(arch, "nor_conv_3x3"))


def _count(arch: jax.Array | np.ndarray, operation: str) -> jax.Array | np.ndarray:
    return (arch == OPERATIONS.index(operation)).sum(-1)


@functools.cache
def equivalence_classes(rule: str = "zero") -> np.ndarray:
    """Return of every cell the first that is isomorphic: [15625] int32, by flat index. Host only.

    Cells are compared as the benchmark compares them, by the text of the output as an expression
    in the input. Equal texts are equal networks. The converse fails for some sums of sums, which
    the texts bracket in the order that sorting happens to give: if all sums were flattened, rule
    "zero" would leave 5,755 classes.

    Args:
      rule: what makes texts equal. "skip": a skip connection is its source, and summands have no
        order (12,751 classes). "zero", the published number of unique cells: besides, "none", and
        any operation on a node whose only edge is "none", are the same zero (6,466). "sum":
        besides, zeros are left out of sums, and a sum of nothing is zero (5,390).

    Raises:
      ValueError: for an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, got {rule!r}.")
    archs = np.stack(np.unravel_index(np.arange(5 ** 6), (5,) * 6), axis=-1)
    first: dict[str, int] = {}
    classes = np.array([first.setdefault(_expression(arch, rule), index)
                        for index, arch in enumerate(archs.tolist())], np.int32)
    classes.setflags(write=False)
    return classes


def _expression(arch: list[int], rule: str) -> str:
    nodes = ["x"]
    for target in (1, 2, 3):
        summands = []
        for operation, edge in zip(arch, EDGES):
            if edge[1] == target:
                value = nodes[edge[0]]
                if rule != "skip" and (operation == 0 or value == ZERO):
                    value = ZERO
                elif operation != 1:
                    value = f"({value})@{OPERATIONS[operation]}"
                if rule != "sum" or value != ZERO:
                    summands.append(value)
        nodes.append("+".join(sorted(summands)) or ZERO)
    return nodes[3]
