"""One compiled program for every architecture of NASNet, AmoebaNet, PNAS and ENAS micro.

A network compiled for each genotype (`pair_network.PairNetwork`) spends more time in the compiler
than in training when candidates are small or trained briefly. `TracedPairNetwork` takes the
architecture as an array, and has weights of every operation for every edge: those of ENAS's shared
network, but for each edge and not for each of its sources.

What the forms cost, with B blocks (2 B edges), O operations, S states that a cell may concatenate
(B + 2, in PNAS B), n <= S that it does, C channels and M pixels of a cell, P_o parameters and F_o
multiply-adds of operation o, and K candidates:

- **One candidate at a time** (a call, `lax.map` or `lax.scan` over candidates): the operations of
  the candidate alone, sum of F_o over its 2 B edges, forward, and once more in the backward pass.
  On top, two 1x1 convolutions a cell read S C channels rather than n C: 2 (S - n) C^2 M more
  multiply-adds. Memory for gradients: parameters and their gradient 2 B sum_o P_o, of every
  operation; activations 2 B M C a cell, the inputs of the edges (of a reduction cell, whose inputs
  are four times larger, 10 B M C), and inside one operation what that one needs.
- **`jax.vmap` over candidates** makes a selection of every branch: each edge costs sum_o F_o,
  about O times as much (of reduction cells 2 O: an operation on an input and on a node), and the
  edges' weights are gathered to K copies of the largest P_o. It is for small maps on devices that
  a single candidate leaves idle. Activations are K times those above.
- **Grouping** (`encodings.group_by_signature`, of any space) evaluates what is the same network
  once: K becomes the number of distinct canonical architectures. Groups may then be given to either
  form, or to one program each (`PairNetwork`), which has the fewest FLOPs, S = n, and one
  compilation a group.

Derivatives are of first order, reverse mode.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.genotypes import CellGenotype, CellRules, Edge, Genotype, cell_rules
from jaxnas.networks import primitives
from jaxnas.networks.extraction import Arrays
from jaxnas.networks.operations import MOMENTUM
from jaxnas.networks.own_operations import OwnOperations, own_names, own_operations
from jaxnas.networks.pair_cells import STYLES, CellStyle
from jaxnas.networks.pair_network import PairNetwork, Placement, _classifier, scheduled_rate
from jaxnas.networks.pair_slots import INPUTS, Map, SlotCell, Source


def cell_rows(arch: jax.Array, *, num_blocks: int, columns: tuple[str, ...]) -> jax.Array:
    """Write an arch of any pair-cell space in one layout: [L] -> [2, B, 4] int32. Can be traced.

    Args:
      arch: [cells, B, columns] flattened; of one cell if the space has one for both strides.
      num_blocks: B, the space's.
      columns: the space's: what a block decides, two "source" and two "operation" among them.

    Returns:
      The normal and the reduction cell; of a block (source, source, operation, operation).

    Raises:
      ValueError: other columns, or an arch of another length.
    """
    order = [[i for i, column in enumerate(columns) if column == kind]
             for kind in ("source", "operation")]
    if [len(part) for part in order] != [2, 2]:
        raise ValueError(f"columns must have two 'source' and two 'operation', got {columns}.")
    cell = num_blocks * len(columns)
    if arch.shape not in ((cell,), (2 * cell,)):
        raise ValueError(f"arch must be [{cell}] or [{2 * cell}], got {list(arch.shape)}.")
    rows = jnp.reshape(arch, (-1, num_blocks, len(columns)))[..., np.array(sum(order, []))]
    return jnp.broadcast_to(rows, (2, num_blocks, 4)).astype(jnp.int32)


class TracedPairNetwork(nn.Module):
    """Images [N, H, W, C'] and an architecture [2, B, 4] -> logits [N, classes].

    `PairNetwork` without its auxiliary head, with the architecture as an array: equal to it in
    value, gradients and running statistics, see `extract`. Parameters that the architecture leaves
    unused have gradient zero, and their running statistics stay; weight decay shrinks them. Initial
    weights have the distribution of a fresh `PairNetwork`'s, except that where the scale depends on
    the channels read (ENAS's 1x1 convolutions of a cell's inputs, all factorised by the fan-in, and
    the classifier) it is that of S states.

    Attributes:
      space: of the genotypes, a key of `pair_cells.STYLES`, or any other name with a style.
      operations: names that the space's cells may hold, see `genotypes.cell_rules`; what indices
        mean. Empty is all of them.
      num_blocks: B.
      style, features, cells_per_stage, num_classes, stem, stem_features, dropout, axis_name,
        momentum, epsilon, method, own: as in `PairNetwork`.
      concat_inputs: whether inputs that no block reads are concatenated; None is True but for the
        spaces of the library that have it otherwise.
    """

    space: str
    operations: tuple[str, ...] = ()
    num_blocks: int = 5
    style: CellStyle | None = None
    features: int = 32
    cells_per_stage: int = 6
    num_classes: int = 10
    stem: str = "cifar"
    stem_features: int | None = None
    dropout: float = 0.0
    axis_name: str | None = None
    momentum: float = MOMENTUM
    epsilon: float = primitives.EPSILON
    method: str = "shifts"
    own: OwnOperations = ()
    concat_inputs: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "own", own_operations(self.own, widens=True))
        if self.space not in STYLES and self.style is None:
            raise ValueError(f"space must be one of {tuple(STYLES)}, or style be given, got "
                             f"{self.space!r}.")
        allowed, names = self._rules.operations, self.operation_names
        if len(set(names)) < len(names) or not set(names) <= set(allowed):
            raise ValueError(
                f"operations must be different names among {allowed}, got {self.operations}.")
        if self.num_blocks < 1:
            raise ValueError(f"num_blocks must be 1 or more, got {self.num_blocks}.")
        self.fixed(np.zeros((2, self.num_blocks, 4), np.int32))  # checks the other attributes
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        arch: jax.Array,
        *,
        train: bool,
        drop_path_rate: float | jax.Array = 0.0,
        progress: float | jax.Array = 1.0,
    ) -> jax.Array:
        """Classify images.

        Args:
          x: [N, H, W, C'], large enough that the last reduction halves something.
          arch: [2, B, 4] int32, may be traced; the normal and the reduction cell, rows (source,
            source, index into `operations`, index), see `cell_rows`. Values out of range are
            clamped to the nearest state or operation.
          train: use batch statistics and update the running ones ("batch_stats" mutable).
          drop_path_rate, progress: as in `PairNetwork`.

        Raises:
          ValueError: arch or x of another shape.
        """
        if arch.shape != (2, self.num_blocks, 4):
            raise ValueError(f"arch must be [2, {self.num_blocks}, 4], got {list(arch.shape)}.")
        if x.ndim != 4:
            raise ValueError(f"x must be [N, H, W, C], got {list(x.shape)}.")
        fixed = self.fixed(np.zeros(arch.shape, np.int32))
        placements, cells = fixed.placements(), self._cells()
        stem = Map(fixed._stem("stem")(x, train=train), None)
        halvings = sum(placement.reduction for placement in placements)
        if max(stem.value.shape[1:3]) <= 2 ** (halvings - 1):
            raise ValueError(f"the cells halve the image {halvings} times, which leaves nothing of "
                             f"{x.shape[1]}x{x.shape[2]} pixels; take larger images.")
        dropping = train and not (
            isinstance(drop_path_rate, (int, float)) and drop_path_rate == 0)
        rates = keys = None
        if dropping:
            rates = jnp.stack([jnp.asarray(scheduled_rate(
                fixed.family.drop_path, drop_path_rate, cell=number, num_cells=len(placements),
                progress=progress), jnp.float32) for number in range(len(placements))])
            keys = jax.random.split(self.make_rng("drop_path"), len(placements))
        previous, current = stem, stem
        for first, count in _runs(cells):
            cell, label = cells[first], f"cells_{first}"
            # Flax traces the initialiser at every call to compare shapes: seconds, for all these.
            params: Any = self.get_variable("params", label)
            if params is None:
                params = self.param(label, functools.partial(_initial, cell, count))
            stats = self.variable("batch_stats", label, _initial_stats, cell, count)

            def step(carry, xs, cell=cell):
                (previous, current), (params, stats, rate, key) = carry, xs
                output, stats = cell.run(
                    params, stats, None if cell.previous is None else previous, current,
                    arch[int(cell.reduction)], train=train, rate=rate, key=key)
                return (current, output), stats

            if self.is_initializing():  # the layers have drawn theirs: shapes are all it takes
                for _ in range(count):
                    previous, current = current, cell.blank(current)
                continue
            part = slice(first, first + count)
            xs = (params, stats.value, *(None if a is None else a[part] for a in (rates, keys)))
            if count == 1:  # the two inputs may differ in shape
                (previous, current), new = step((previous, current),
                                                jax.tree.map(lambda a: a[0], xs))
                new = jax.tree.map(lambda a: a[None], new)
            else:
                (previous, current), new = lax.scan(step, (previous, current), xs)
            if train:
                stats.value = new
        pooled = jax.nn.relu(current.value).mean((1, 2))
        pooled = nn.Dropout(self.dropout, name="dropout")(pooled, deterministic=not train)
        return _classifier(self.num_classes, pooled.shape[-1], fixed.family, "head")(pooled)

    @property
    def operation_names(self) -> tuple[str, ...]:
        """What the indices of operations mean."""
        return tuple(self.operations) or self._rules.operations

    @property
    def _rules(self) -> CellRules:
        return cell_rules(self.space, own_names(self.own), concat_inputs=self.concat_inputs)

    @nn.nowrap
    def decode(self, arch: jax.Array | np.ndarray) -> Genotype:
        """Return the genotype of an architecture [2, B, 4]. Host only."""
        first, cells = 0 if self._rules.concat_inputs else INPUTS, []
        for rows in np.asarray(arch).tolist():
            edges = tuple(Edge(self.operation_names[row[half + 2]], row[half])
                          for row in rows for half in (0, 1))
            read = {edge.source for edge in edges}
            concat = tuple(s for s in range(first, len(rows) + INPUTS) if s not in read)
            cells.append(CellGenotype(edges, concat))
        return Genotype(cells[0], cells[1], self.space)

    @nn.nowrap
    def fixed(self, arch: jax.Array | np.ndarray) -> PairNetwork:
        """Return the fixed network of an architecture [2, B, 4]. Host only."""
        return PairNetwork(
            self.decode(arch), self.style, self.features, self.cells_per_stage, self.num_classes,
            stem=self.stem, stem_features=self.stem_features, dropout=self.dropout,
            axis_name=self.axis_name, momentum=self.momentum, epsilon=self.epsilon,
            method=self.method, own=self.own, parent=None)

    @nn.nowrap
    def extract(self, variables: Mapping[str, Any], arch: jax.Array | np.ndarray) -> Arrays:
        """Return the variables of `self.fixed(arch)` with the same weights. Host only.

        Args:
          variables: "params", and "batch_stats" or not, of this module (or a tree of gradients of
            the same structure).
          arch: [2, B, 4] int32.
        """
        placements = self.fixed(arch).placements()
        cells = self._cells()
        return {kind: self._extract(tree, placements, cells) for kind, tree in variables.items()}

    @nn.nowrap
    def _cells(self) -> list[SlotCell]:
        """Return the cells from the stem to the classifier."""
        fixed = self.fixed(np.zeros((2, self.num_blocks, 4), np.int32))
        options = fixed._options() | {
            "method": self.method, "padding": fixed.family.padding,
            "initializer": fixed.family.initializer}
        cifar = self.stem == "cifar"
        outputs = [Source(0, self.stem_features or (3 * self.features if cifar else 32))]
        cells = []
        for placement in fixed.placements():
            previous = None if placement.previous is None else outputs[placement.previous]
            cells.append(SlotCell(
                self.operation_names, self.num_blocks, self._rules.concat_inputs,
                placement.features, placement.reduction, previous, outputs[-1], fixed.family,
                tuple(options.items()), self.own))
            outputs.append(cells[-1].output)
        return cells

    @nn.nowrap
    def _extract(
        self, tree: Arrays, placements: tuple[Placement, ...], cells: list[SlotCell]
    ) -> Arrays:
        found: Arrays = {name: tree[name] for name in ("stem", "head") if name in tree}
        loose: list[list[int] | None] = [None]  # of every output, the states it concatenates
        first = 0 if self._rules.concat_inputs else INPUTS
        for start, count in _runs(cells):
            for number in range(count):
                cell, placement = cells[start + number], placements[start + number]
                slots = jax.tree.map(lambda a, n=number: a[n], tree[f"cells_{start}"])
                sources = (loose[placement.previous or 0], loose[-1])
                found[f"cell_{start + number}"] = _extract_cell(
                    slots, placement.genotype, cell, sources)
                loose.append([state - first for state in placement.genotype.concat])
        if "head" in found:
            last = loose[-1] or []
            found["head"] = found["head"] | {
                "kernel": _rows(found["head"]["kernel"], cells[-1].output, last)}
        return found


def _extract_cell(
    slots: Arrays, genotype: CellGenotype, cell: SlotCell, sources: tuple[list[int] | None, ...]
) -> Arrays:
    found: Arrays = {}
    for layers, loose, source in zip(
            cell.input_layers, sources, (cell.previous or cell.current, cell.current)):
        for name, (_, _, unless) in layers.items():
            if unless is not None and loose is not None and len(loose) == unless:
                continue
            entry = slots[name]
            if name != "current_1" and loose is not None and "kernel" in entry:
                entry = entry | {"kernel": _rows(entry["kernel"], source, loose)}
            found[name] = entry
    for position, (name, state) in enumerate(genotype.edges):
        slot = "wide" if state == 0 and cell.wide is not None else "edges"
        identity = name == "skip_connect" and slot == "edges" and (
            state >= INPUTS or not cell.reduction)
        if name in slots.get(slot, {}) and not identity:
            found[f"edge_{position}"] = jax.tree.map(lambda a: a[position], slots[slot][name])
    return found | {f"output_{state}": slots[f"output_{state}"]
                    for state in cell.output_layers if state in genotype.concat}


def _rows(kernel: jax.Array, source: Source, loose: list[int]) -> jax.Array:
    """Keep the rows of the states that are concatenated: [S C, F] -> [n C, F]."""
    rows = kernel.reshape(source.states, source.width, -1)
    return rows[np.array(loose)].reshape(len(loose) * source.width, -1)


def _runs(cells: list[SlotCell]) -> list[tuple[int, int]]:
    """Return (first cell, cells): equal cells whose inputs are shaped like their output."""
    runs: list[tuple[int, int]] = []
    for number, cell in enumerate(cells):
        uniform = cell.previous == cell.current == cell.output
        if runs and uniform and cells[number - 1] == cell:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs


def _initial(cell: SlotCell, count: int, key: jax.Array) -> Arrays:
    """Return the parameters of `count` cells, stacked."""
    return jax.vmap(cell.init)(jax.random.split(key, count))


def _initial_stats(cell: SlotCell, count: int) -> Arrays:
    """Return the running statistics of `count` cells, stacked."""
    return jax.tree.map(
        lambda a: jnp.broadcast_to(a, (count, *a.shape)), cell.initial_stats())
