"""The cells of NAS-Bench-101 (Ying et al., 2019, https://arxiv.org/abs/1902.09635).

A directed acyclic graph of up to 7 vertices and 9 edges; vertex 0 is the input, the last one the
output, the others are operations. A vertex that is on no path from input to output is dead: the
network does not have it, and edges at it do not count.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import encodings, mutations
from jaxnas.search_spaces import product

OPERATIONS = ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3")
NUM_VERTICES = 7
MAX_EDGES = 9
EDGES = tuple(itertools.combinations(range(NUM_VERTICES), 2))  # i < j, row by row
MUTATIONS = ("decision", "released")
STEM_CHANNELS = 128
STACKS, MODULES = 3, 3    # each stack doubles the channels of the one before
MAX_ATTEMPTS = 256        # of a draw; valid ones succeed within 10, see `_draw_valid`
MAX_TEXT = 4096           # characters; a cell takes 300

Cell = tuple[np.ndarray, tuple[int, ...]]  # matrix [V, V], operations of the V - 2 inner vertices


@dataclasses.dataclass(frozen=True)
class NASBench101:
    """One cell: `arch` [26] int32, 21 edges and then 5 operations.

    The first 21 decisions are the entries i < j of the adjacency matrix, row by row; the last 5
    are the operations of vertices 1 to 5, indices into `OPERATIONS`. Smaller cells have dead
    vertices. As text, the two arguments of the benchmark's ModelSpec, a matrix and operations:
    '{"matrix": [[0, 1, ...], ...], "ops": ["input", "maxpool3x3", ..., "output"]}'.

    Many archs are the same network: the published 423,624 are what `canonical` tells apart.

    Attributes:
      mutation: "decision" changes one of the 26 decisions, uniformly; "released" is the authors'
        baseline, which flips each edge with probability 1/7 and changes each operation with
        probability 1/5, and so leaves 1% of archs as they are. Both repeat until the result is
        valid, and may change dead vertices only.

    Raises:
      ValueError: for an unknown mutation.
    """

    mutation: str = "decision"

    def __post_init__(self):
        if self.mutation not in MUTATIONS:
            raise ValueError(f"mutation must be one of {MUTATIONS}, got {self.mutation!r}.")

    @property
    def name(self) -> str:
        """What result.json calls the space."""
        return "nasbench101"

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[26] choices of every decision."""
        return (2,) * len(EDGES) + (len(OPERATIONS),) * (NUM_VERTICES - 2)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw a valid arch [26] int32: uniform decisions, again until valid (73% are)."""
        def draw(key):
            edge_key, operation_key = jax.random.split(key)
            edges = _coins(edge_key, len(EDGES))
            operations = mutations.sample(operation_key, self.num_choices[len(EDGES):])
            return jnp.concatenate([edges, operations])

        return self._draw_valid(key, draw)

    def mutate(self, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Change a valid arch [26] as `mutation` says, until the result is valid: [26]."""
        num_choices = np.array(self.num_choices, np.int32)
        rates = np.where(num_choices == 2, 1 / NUM_VERTICES, 1 / (NUM_VERTICES - 2))

        def draw(key):
            if self.mutation == "decision":
                return mutations.mutate(key, arch, self.num_choices)
            rate_key, step_key = jax.random.split(key)
            changed = jax.random.uniform(rate_key, rates.shape) < rates
            step = 1 + jnp.where(num_choices == 3, _coins(step_key, len(rates)), 0)
            return jnp.where(changed, (arch + step) % num_choices, arch)

        return self._draw_valid(key, draw)

    def crossover(self, key: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        """Take every decision from either arch, or all from the first if that is not valid."""
        child = mutations.crossover(key, first, second)
        return jnp.where(self.is_valid(child), child, first)

    def is_valid(self, arch: jax.Array) -> jax.Array:
        """Tell whether [26] integers are a cell, as [] bool.

        Input and output are connected, and at most 9 edges are left when dead vertices are gone:
        the benchmark counts after pruning, so that an arch may have more.
        """
        num_edges = prune(arch)[: len(EDGES)].sum()
        return mutations.is_valid(arch, self.num_choices) & (num_edges >= 1) & (
            num_edges <= MAX_EDGES)

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Return the lexicographically smallest isomorphic arch without dead parts: [26] -> [26].

        All 120 orders of the inner vertices are tried; those in which every edge still leads
        upwards are encodings of the same cell. Two archs get the same answer if and only if their
        pruned graphs are isomorphic.
        """
        weights, reversed_edges = relabelings()
        pruned = prune(arch)
        indices = weights @ pruned
        downwards = reversed_edges @ pruned[: len(EDGES)]  # number of edges
        smallest = jnp.min(jnp.where(downwards > 0, np.iinfo(np.int32).max, indices))
        return encodings.from_flat_index(smallest, self.num_choices)

    def decode(self, arch: jax.Array | np.ndarray) -> str:
        """Write an arch [26] as JSON, dead vertices included. Host only.

        Raises:
          ValueError: a wrong length, or a decision out of range.
        """
        values = product.read_arch(arch, self.num_choices)
        matrix, operations = _unpack(values)
        names = ["input", *(OPERATIONS[operation] for operation in operations), "output"]
        return json.dumps({"matrix": matrix.tolist(), "ops": names})

    def encode(self, text: str) -> np.ndarray:
        """Read JSON as [26] int32. Host only.

        A cell of 2 to 6 vertices is accepted too; dead vertices are added before its output.

        Raises:
          ValueError: it is no such JSON, no upper triangular matrix of 0 and 1, or no valid cell.
        """
        matrix, names = _parse(text)
        operations = tuple(OPERATIONS.index(name) for name in names[1:-1])
        kept = [*range(len(names) - 1), NUM_VERTICES - 1]
        full = np.zeros((NUM_VERTICES, NUM_VERTICES), np.int32)
        full[np.ix_(kept, kept)] = matrix
        inner = operations + (0,) * (NUM_VERTICES - len(names))
        arch = np.array([*(full[edge] for edge in EDGES), *inner], np.int32)
        self._live(arch)
        return arch

    def spec_hash(self, arch: jax.Array | np.ndarray) -> str:
        """Return the benchmark's name of a cell [26], an MD5 in hexadecimal. Host only.

        Equal for isomorphic cells, as every vertex is hashed with the sorted hashes of its
        neighbours, as often as there are vertices.

        Raises:
          ValueError: the arch is not valid.
        """
        matrix, operations = self._live(arch)
        labels = [-1, *operations, -2]
        hashes = [_md5(str(vertex)) for vertex in zip(
            matrix.sum(1).tolist(), matrix.sum(0).tolist(), labels)]
        for _ in labels:
            hashes = [
                _md5("|".join(("".join(sorted(itertools.compress(hashes, matrix[:, vertex]))),
                               "".join(sorted(itertools.compress(hashes, matrix[vertex]))),
                               hashes[vertex])))
                for vertex in range(len(labels))]
        return _md5(str(sorted(hashes)))

    def num_parameters(self, arch: jax.Array | np.ndarray, *, num_classes: int = 10) -> int:
        """Count the weights of the benchmark's network of a cell [26]. Host only.

        A stem of 128 channels, then 3 stacks of 3 cells with 128, 256 and 512 channels. Every
        edge from the input is a 1x1 convolution; every convolution has a normalisation.

        Raises:
          ValueError: the arch is not valid.
        """
        matrix, operations = self._live(arch)
        inputs, total = STEM_CHANNELS, _convolution(3, 3, STEM_CHANNELS)
        for stack in range(STACKS):
            outputs = STEM_CHANNELS << stack
            for _ in range(MODULES):
                channels = vertex_channels(matrix, inputs, outputs)
                total += sum(_convolution(1, inputs, channels[vertex])
                             for vertex in np.flatnonzero(matrix[0]))
                for width, operation in zip(channels[1:], operations):
                    if operation < 2:
                        total += _convolution(3 if operation == 0 else 1, width, width)
                inputs = outputs
        return total + (inputs + 1) * num_classes

    def _draw_valid(self, key: jax.Array, draw: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Draw until valid; an invalid parent, from which nothing may lead back, ends it too."""
        def attempt(state):
            key, _, attempts = state
            key, draw_key = jax.random.split(key)
            return key, draw(draw_key), attempts + 1

        def unfinished(state):
            _, arch, attempts = state
            return ~self.is_valid(arch) & (attempts < MAX_ATTEMPTS)

        none_yet = jnp.full(len(self.num_choices), -1, jnp.int32)
        return jax.lax.while_loop(unfinished, attempt, (key, none_yet, jnp.int32(0)))[1]

    def _live(self, arch: jax.Array | np.ndarray) -> Cell:
        """Return what of a valid arch is not dead."""
        matrix, operations = _unpack(product.read_arch(arch, self.num_choices))
        paths = np.linalg.matrix_power(np.eye(NUM_VERTICES, dtype=np.int64) + matrix, NUM_VERTICES)
        live = np.flatnonzero(paths[0] * paths[:, -1])
        if not live.size:
            raise ValueError("a cell must have a path from its input to its output, got none.")
        matrix = matrix[np.ix_(live, live)]
        if matrix.sum() > MAX_EDGES:
            raise ValueError(f"a cell must have at most {MAX_EDGES} edges between vertices on paths"
                             f" from input to output, got {matrix.sum()}.")
        return matrix, tuple(operations[vertex - 1] for vertex in live[1:-1].tolist())


def adjacency(arch: jax.Array) -> jax.Array:
    """Return the matrix of an arch [26]: [7, 7] int32, upper triangular, 1 where i leads to j."""
    place = np.full((NUM_VERTICES, NUM_VERTICES), len(EDGES))
    for position, edge in enumerate(EDGES):
        place[edge] = position
    return jnp.append(arch[: len(EDGES)], 0)[place]


def prune(arch: jax.Array) -> jax.Array:
    """Set all that is dead to 0: [26] -> [26]; nothing is left if the output is not reached."""
    source, target = np.array(EDGES).T
    leads_to = arch[: len(EDGES)] << target  # sets of vertices as bits: small matrices are slow
    targets = [leads_to[source == vertex].sum() for vertex in range(NUM_VERTICES - 1)]
    after_input, before_output = jnp.int32(1), jnp.int32(1 << NUM_VERTICES - 1)
    for vertex, reached in enumerate(targets):
        after_input |= reached * (after_input >> vertex & 1)
    for vertex, reached in reversed(list(enumerate(targets))):
        before_output |= ((reached & before_output) != 0).astype(jnp.int32) << vertex
    live = (after_input & before_output) >> np.arange(NUM_VERTICES) & 1
    return arch * jnp.concatenate([live[source] * live[target], live[1:-1]])


def adjacency_encoding(arch: jax.Array) -> jax.Array:
    """Encode for a predictor: [..., 26] -> [..., 36] float32, 21 edges and 5 one-hot operations."""
    operations = encodings.one_hot(arch[..., len(EDGES):], (len(OPERATIONS),) * 5)
    return jnp.concatenate([arch[..., : len(EDGES)].astype(jnp.float32), operations], axis=-1)


def path_encoding(arch: jax.Array) -> jax.Array:
    """Tell which sequences of operations lead from input to output: [26] -> [364] float32.

    White et al., 2021 (BANANAS, https://arxiv.org/abs/1910.11858). Paths through 0,
    1 ... 5 vertices, those of one length in lexicographic order: 1 + 3 + 9 + ... + 243 entries.
    """
    matrix = adjacency(arch)
    is_operation = encodings.one_hot(arch[len(EDGES):, None], (len(OPERATIONS),)).astype(jnp.int32)
    arrived = matrix[0][:, None]  # [vertex, sequence of operations between it and the input]
    entries = [arrived[-1]]
    for _ in range(NUM_VERTICES - 2):
        left = arrived[1:-1, :, None] * is_operation[:, None, :]
        arrived = jnp.minimum(matrix[1:-1].T @ left.reshape(NUM_VERTICES - 2, -1), 1)
        entries.append(arrived[-1])
    return jnp.concatenate(entries).astype(jnp.float32)


@functools.cache
def relabelings() -> tuple[np.ndarray, np.ndarray]:
    """Return what the 120 orders of the inner vertices do to a flat index.

    Returns:
      weights [120, 26] int32, which make the flat index of the relabelled arch of an arch; and
      [120, 21] int32, 1 for the edges that the order turns downwards.
    """
    num_choices = NASBench101().num_choices
    strides = np.cumprod((1, *num_choices[:0:-1]))[::-1]
    weights, reversed_edges = [], []
    for order in itertools.permutations(range(1, NUM_VERTICES - 1)):
        label = (0, *order, NUM_VERTICES - 1)
        moved = [(label[i], label[j]) for i, j in EDGES]
        edge_positions = [EDGES.index((min(edge), max(edge))) for edge in moved]
        weights.append(strides[edge_positions + [len(EDGES) + vertex - 1 for vertex in order]])
        reversed_edges.append([i > j for i, j in moved])
    return np.array(weights, np.int32), np.array(reversed_edges, np.int32)


def vertex_channels(matrix: np.ndarray, inputs: int, outputs: int) -> list[int]:
    """Return the channels of every vertex of a pruned cell.

    The output concatenates the inner vertices that lead to it, which share its channels, the first
    ones taking what does not divide; any other vertex is as wide as the widest it leads to.

    Args:
      matrix: [V, V], upper triangular, all vertices on paths from input to output.
      inputs: channels of the input.
      outputs: channels of the output.
    """
    last = len(matrix) - 1
    channels = [inputs, *[0] * (last - 1), outputs]
    joined = np.flatnonzero(matrix[1:, -1]) + 1
    for rank, vertex in enumerate(joined.tolist()):
        channels[vertex] = outputs // len(joined) + (rank < outputs % len(joined))
    for vertex in range(last - 1, 0, -1):
        if not matrix[vertex, last]:
            channels[vertex] = max(channels[target] for target in np.flatnonzero(matrix[vertex]))
    return channels


def _coins(key: jax.Array, count: int) -> jax.Array:
    """Draw up to 32 fair bits out of one word: [count] int32."""
    return (jax.random.bits(key) >> np.arange(count, dtype=np.uint32) & 1).astype(jnp.int32)


def _convolution(size: int, inputs: int, outputs: int) -> int:
    return size * size * inputs * outputs + 2 * outputs


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _unpack(values: list[int]) -> Cell:
    matrix = np.zeros((NUM_VERTICES, NUM_VERTICES), np.int64)
    for edge, value in zip(EDGES, values):
        matrix[edge] = value
    return matrix, tuple(values[len(EDGES):])


def _parse(text: str) -> tuple[list[list[int]], list[str]]:
    """Read and check all of a cell's JSON but its being connected and small."""
    product.check_text(text)
    if len(text) > MAX_TEXT:
        raise ValueError(f"a cell takes at most {MAX_TEXT} characters, got {len(text)}.")
    try:
        pairs = json.loads(text, object_pairs_hook=lambda pairs: pairs)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"a cell must be JSON: {error}; got {text!r:.60}.") from None
    if (not isinstance(pairs, list) or not text.lstrip().startswith("{")
            or sorted(name for name, _ in pairs) != ["matrix", "ops"]):
        raise ValueError(f"a cell must be one object of 'matrix' and 'ops', got {text!r:.60}.")
    fields = dict(pairs)
    names, rows = fields["ops"], fields["matrix"]
    if (not isinstance(names, list) or not 2 <= len(names) <= NUM_VERTICES
            or names[0] != "input" or names[-1] != "output"
            or any(name not in OPERATIONS for name in names[1:-1])):
        raise ValueError(f"'ops' must be 'input', up to {NUM_VERTICES - 2} of {OPERATIONS}, and "
                         f"'output', got {names!r:.80}.")
    if not isinstance(rows, list) or len(rows) != len(names) or any(
            not isinstance(row, list) or len(row) != len(names) for row in rows):
        raise ValueError(f"'matrix' must be {len(names)} rows of {len(names)} numbers, as many as "
                         f"'ops', got {rows!r:.80}.")
    for i, row in enumerate(rows):
        for j, entry in enumerate(row):
            if type(entry) is not int or not 0 <= entry <= (i < j):  # True and 1.0 are no entries
                raise ValueError(f"'matrix' must be upper triangular, of 0 and 1, got {entry!r:.20}"
                                 f" in row {i}, column {j}.")
    return rows, names
