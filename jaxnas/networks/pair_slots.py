"""One cell of `pair_traced.TracedPairNetwork`: all operations on every edge, the chosen one runs.

A cell is a loop over its edges, whose body branches over operations and over what an edge may read:
a state of the cell's size, an input to be halved, a stem of another width. The weights of an edge
lie end to end in one vector, from which the body cuts a piece as long as the largest operation's:
so the branches, and their derivatives, pass one array whatever they hold.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.networks.extraction import Arrays
from jaxnas.networks.operations import FactorizedReduce, Operation, ReLUConvBN
from jaxnas.networks.own_operations import OwnOperations
from jaxnas.networks.packing import Packing
from jaxnas.networks.pair_cells import CellStyle, style_operation
from jaxnas.networks.switching import switch

INPUTS = 2  # states before the first block


class Map(NamedTuple):
    """What a cell hands on."""

    value: jax.Array         # [N, H, W, S C], the states that are not concatenated zero
    loose: jax.Array | None  # [S] bool, those that are; None of a stem, which has one state


@dataclasses.dataclass(frozen=True)
class Source:
    """The static side of a `Map`.

    Attributes:
      halvings: of the image so far.
      width: C, channels of a state.
      states: S; None is a stem.
    """

    halvings: int
    width: int
    states: int | None = None

    @property
    def channels(self) -> int:
        """Of the map."""
        return self.width * (self.states or 1)


class InputLayer(NamedTuple):
    """A layer that brings an input to size or width."""

    layer: Operation
    channels: int       # of its input
    unless: int | None  # the number of states concatenated in the input with which there is none


@dataclasses.dataclass(frozen=True)
class SlotCell:
    """A cell [N, H, W, C'], [N, H, W, C''] -> [N, H', W', S C] of any architecture.

    Attributes:
      operations: that edges choose from.
      num_blocks: B.
      concat_inputs: whether inputs that no block reads are concatenated: S = B + 2, else B.
      features: C.
      reduction: whether edges from the inputs have stride 2.
      previous: as `PairCell` reads it, None where there is none.
      current: output of the cell before.
      style: of the family.
      options: of every `Operation`.
      own: operations that are not the library's.
    """

    operations: tuple[str, ...]
    num_blocks: int
    concat_inputs: bool
    features: int
    reduction: bool
    previous: Source | None
    current: Source
    style: CellStyle
    options: tuple[tuple[str, Any], ...] = ()
    own: OwnOperations = ()

    @property
    def output(self) -> Source:
        """Of what is returned."""
        return Source(self.current.halvings + self.reduction, self.features,
                      self.num_blocks + INPUTS * self.concat_inputs)

    @property
    def wide(self) -> int | None:
        """Channels of state 0 where they are not C: a stem that passes untouched."""
        channels = self.current.channels
        return channels if self.previous is None and channels != self.features else None

    @property
    def input_layers(self) -> tuple[dict[str, InputLayer], dict[str, InputLayer]]:
        """The layers of the two inputs, in order; as in `PairCell.parts`."""
        make, features = functools.partial(self._layer, features=self.features), self.features

        def unless(source: Source) -> int | None:
            count, rest = divmod(features, source.width)
            return None if rest or count > (source.states or 0) else count

        first: dict[str, InputLayer] = {}
        previous, current = self.previous, self.current
        if previous is None:
            pass
        elif previous.halvings != current.halvings:
            layer = make(FactorizedReduce, uneven=self.style.uneven)
            first["previous_0"] = InputLayer(layer, previous.channels, None)
        elif previous.states is not None or previous.channels != features:
            first["previous_0"] = InputLayer(make(ReLUConvBN), previous.channels, unless(previous))
        second = {"current_0": InputLayer(make(ReLUConvBN), current.channels, None)}
        if self.style.project_twice and (
                current.states is not None or current.channels != features):
            second["current_1"] = InputLayer(make(ReLUConvBN), features, unless(current))
        return first, second

    @property
    def output_layers(self) -> dict[int, tuple[Operation, int]]:
        """State -> the layer that brings it to size or width when concatenated, its channels."""
        layers: dict[int, tuple[Operation, int]] = {}
        for state in range(INPUTS if self.concat_inputs else 0):
            channels = self.features if state or self.wide is None else self.wide
            options = {"features": self.features, "rectify": False}
            if self.reduction:
                layer = self._layer(FactorizedReduce, uneven=self.style.uneven, **options)
            elif channels != self.features:
                layer = self._layer(ReLUConvBN, **options)
            else:
                continue
            layers[state] = layer, channels
        return layers

    def edge_layers(self, channels: int, stride: int) -> tuple[Operation, ...]:
        """Return the operations for an input of so many channels, halved or not."""
        return tuple(
            style_operation(name, self.style, self.features, stride, channels=channels,
                            own=self.own, parent=None, **dict(self.options))
            for name in self.operations)

    def slots(self) -> dict[str, tuple[tuple[Operation, ...], int]]:
        """Return name -> operations and channels of the sets of weights that every edge has.

        An edge has the same weights for an input and for a node: only the identity, which needs
        them to halve an input, has none for a node.
        """
        stride = 2 if self.reduction else 1
        found = {"edges": (self.edge_layers(self.features, stride), self.features)}
        if self.wide is not None:
            found["wide"] = self.edge_layers(self.wide, stride), self.wide
        return found

    def init(self, key: jax.Array) -> Arrays:
        """Draw the parameters of a cell; those of edges are stacked [2 B, ...]."""
        params: Arrays = {}
        layers = self._layers()
        for key, (name, (layer, channels)) in zip(jax.random.split(key, len(layers)),
                                                  layers.items()):
            params[name] = _init(layer, channels, key)["params"]
        for slot, (operations, channels) in self.slots().items():
            params[slot] = {}
            for number, (name, layer) in enumerate(zip(self.operations, operations)):
                if shapes(layer, channels)["params"]:
                    keys = jax.random.split(jax.random.fold_in(key, number), 2 * self.num_blocks)
                    draw = functools.partial(_init, layer, channels)
                    params[slot][name] = jax.vmap(draw)(keys)["params"]
        return params

    def initial_stats(self) -> Arrays:
        """Return running means of zero and variances of one, stacked like the parameters."""
        def moments(layer, channels, *stacked):
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: (jnp.ones if path[-1].key == "var" else jnp.zeros)(
                    (*stacked, *leaf.shape)), shapes(layer, channels)["batch_stats"])

        stats = {name: moments(*layer) for name, layer in self._layers().items()}
        for slot, (operations, channels) in self.slots().items():
            stats[slot] = {
                name: moments(layer, channels, 2 * self.num_blocks)
                for name, layer in zip(self.operations, operations)
                if shapes(layer, channels)["batch_stats"]}
        return stats

    def blank(self, current: Map) -> Map:
        """Return zeros of the shape of the output."""
        batch, *size, _ = current.value.shape
        halve, output = 2 if self.reduction else 1, self.output
        size = [math.ceil(pixels / halve) for pixels in size]
        value = jnp.zeros((batch, *size, output.channels), current.value.dtype)
        return Map(value, jnp.zeros(output.states or 1, bool))

    def run(
        self, params: Arrays, stats: Arrays, previous: Map | None, current: Map, rows: jax.Array,
        *, train: bool, rate: jax.Array | None = None, key: jax.Array | None = None,
    ) -> tuple[Map, Arrays]:
        """Run the cell.

        Args:
          params, stats: as `init` draws them.
          previous, current: its inputs; previous None as the attribute.
          rows: [B, 4] int32, two sources and two operations a block; clamped to what there is.
          train: use batch statistics and update the running ones.
          rate: [] of drop path, or None.
          key: consumed where there is a rate.
        """
        stats = lax.stop_gradient(stats)
        new = dict(stats)

        def layer(name, layer, x, needed, otherwise):
            value, new[name] = _when(needed, layer, params[name], stats[name], x, otherwise, train)
            return value

        inputs = []
        for source, layers in zip((previous or current, current), self.input_layers):
            value = source.value
            for name, (operation, _, unless) in layers.items():
                needed, otherwise = None, value
                if unless is not None:
                    assert source.loose is not None
                    needed = source.loose.sum() != unless
                    if name == "previous_0":
                        otherwise = _compact(source, unless)
                value = layer(name, operation, value, needed, otherwise)
            inputs.append(value)
        highest = np.arange(self.num_blocks)[:, None] + INPUTS - 1
        sources = jnp.clip(rows[:, :2], 0, highest).reshape(-1)
        chosen = jnp.clip(rows[:, 2:], 0, len(self.operations) - 1).reshape(-1)
        states, edge_stats = self._edges(params, stats, inputs, sources, chosen, train, rate, key)
        new |= edge_stats
        everything = np.arange(self.num_blocks + INPUTS)
        loose = ~(sources[:, None] == everything).any(0)
        outputs = list(states)
        if self.concat_inputs:
            nodes, outputs = outputs[-self.num_blocks:], list(inputs)
            for state, (operation, _) in self.output_layers.items():
                name = f"output_{state}"
                outputs[state] = layer(name, operation, inputs[state], loose[state],
                                       jnp.zeros_like(nodes[0]))
            outputs += nodes
        loose = loose[-self.output.states:]  # type: ignore[operator]
        outputs = outputs[-len(loose):]
        masked = [jnp.where(loose[number], value, 0) for number, value in enumerate(outputs)]
        return Map(jnp.concatenate(masked, -1), loose), new

    def _edges(self, params, stats, inputs, sources, chosen, train, rate, key):
        """Return the states [B + 2 or, of a reduction cell, B, N, H', W', C], and statistics."""
        count, size = len(self.operations), inputs[1].shape
        halve = 2 if self.reduction else 1
        size = (size[0], *(math.ceil(s / halve) for s in size[1:3]), self.features)
        states = jnp.zeros((self.num_blocks, *size), inputs[1].dtype)
        usual = inputs[1:] if self.wide is not None else inputs  # inputs of C channels
        if not self.reduction:
            missing = [states[0]] * (INPUTS - len(usual))
            states = jnp.concatenate([jnp.stack(missing + usual), states])
        offset = self.num_blocks + INPUTS - len(states)  # number of the first of the states
        packs, flat, moments = {}, {}, {}
        for slot, (layers, channels) in self.slots().items():
            trees = [shapes(layer, channels) for layer in layers]
            packs[slot] = [Packing([t[kind] for t in trees]) for kind in ("params", "batch_stats")]
            flat[slot], moments[slot] = (
                pack.join([tree.get(slot, {}).get(name, {}) for name in self.operations],
                          2 * self.num_blocks)
                for pack, tree in zip(packs[slot], (params, stats)))

        # Kinds of edges: from a state of the cell's size; halving an input; from a wide stem.
        kinds = [("edges", self.edge_layers(self.features, 1), 0)]
        if self.reduction:
            kinds.append(("edges", self.edge_layers(self.features, 2), 1))
        if self.wide is not None:
            kinds.append(("wide", self.edge_layers(self.wide, halve), len(kinds)))
        branches = [
            self._branch(layer, slot, number, operand, packs, train)
            for slot, layers, operand in kinds for number, layer in enumerate(layers)]
        skips = np.array([name == "skip_connect" for name in self.operations])
        keys = None if rate is None else jax.random.split(key, 2 * self.num_blocks)

        def add_edge(states, xs):
            number, source, operation, flat, moments, key = xs
            kind = jnp.int32(0)
            operands = [_pick(states, source - offset)]
            if self.reduction:
                kind = jnp.where(source < INPUTS, 1, kind)
                operands.append(_pick(jnp.stack(usual), source - (INPUTS - len(usual))))
            if self.wide is not None:
                kind = jnp.where(source == 0, len(kinds) - 1, kind)
                operands.append(inputs[0])
            weights = {n: pack[0].take(flat[n], operation) for n, pack in packs.items()}
            old = {n: pack[1].take(moments[n], operation) for n, pack in packs.items()}
            value, now = switch(kind * count + operation, branches, operands, weights, old)
            if rate is not None:
                keep = 1.0 - jnp.asarray(rate, jnp.float32)
                kept = jax.random.bernoulli(key, keep, (size[0], 1, 1, 1))
                factor = jnp.where(kept, 1.0 / keep, 0.0)
                value = value * jnp.where(
                    jnp.asarray(skips)[operation], 1.0, factor).astype(value.dtype)
            moments = {n: pack[1].put(moments[n], operation, now[n]) for n, pack in packs.items()}
            return states.at[number // 2 + INPUTS - offset].add(value), moments

        xs = (np.arange(2 * self.num_blocks), sources, chosen, flat, moments, keys)
        states, moments = lax.scan(add_edge, states, xs)
        found = {slot: dict(zip(self.operations, packs[slot][1].split(moments[slot])))
                 for slot in packs}
        return states, {slot: {name: found[slot][name] for name in tree}
                        for slot, tree in stats.items() if slot in found}

    def _branch(self, layer, slot, number, operand, packs, train) -> Callable:
        """Return (operands, weights, stats) -> (value, stats) of one operation."""
        params_pack, stats_pack = packs[slot]

        def branch(operands, weights, stats):
            value, new = _apply(
                layer, operands[operand], params_pack.cut(weights[slot], number),
                stats_pack.cut(stats[slot], number), train)
            return value, stats | {slot: stats_pack.fill(stats[slot], new)}

        return branch

    def _layers(self) -> dict[str, tuple[Operation, int]]:
        """Return the layers that are no edges, and the channels of their inputs."""
        found = {name: (layer.layer, layer.channels) for part in self.input_layers
                 for name, layer in part.items()}
        return found | {
            f"output_{state}": layer for state, layer in self.output_layers.items()}

    def _layer(self, kind: Callable[..., Operation], features: int, **options: Any) -> Operation:
        return kind(features, parent=None, **options, **dict(self.options))


@functools.cache
def shapes(layer: Operation, channels: int) -> Arrays:
    """Return the shapes of a layer's "params" and "batch_stats"; the dtypes are not meant."""
    return jax.eval_shape(functools.partial(_init, layer, channels), jax.random.key(0))


def _init(layer: Operation, channels: int, key: jax.Array) -> Arrays:
    layer = layer.clone(axis_name=None)
    variables = layer.init(key, jnp.zeros((1, 2, 2, channels)), train=False)
    return {kind: dict(variables.get(kind, {})) for kind in ("params", "batch_stats")}


def _apply(layer: Operation, x: jax.Array, params: Arrays, stats: Arrays, train: bool):
    """Return the value and the new statistics, which pass no gradient."""
    value, new = layer.apply(
        {"params": params, "batch_stats": stats}, x, train=train, mutable=["batch_stats"])
    return value, lax.stop_gradient(dict(new.get("batch_stats", stats)))


def _when(needed, layer, params, stats, x, otherwise, train):
    """Apply a layer where `needed` ([] bool, or None for always), else return `otherwise`."""
    if needed is None:
        return _apply(layer, x, params, stats, train)

    def applied(x, otherwise, params, stats):
        return _apply(layer, x, params, stats, train)

    def passed(x, otherwise, params, stats):
        return otherwise, stats

    return switch(needed.astype(jnp.int32), [passed, applied], x, otherwise, params, stats)


def _compact(source: Map, count: int) -> jax.Array:
    """Return the first `count` concatenated states alone: [N, H, W, count C]."""
    *size, channels = source.value.shape
    assert source.loose is not None
    order = jnp.argsort(~source.loose, stable=True)[:count]
    states = source.value.reshape(*size, len(source.loose), channels // len(source.loose))
    return states[..., order, :].reshape(*size, -1)


def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(values, jnp.clip(index, 0, len(values) - 1), keepdims=False)
