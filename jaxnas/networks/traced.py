"""One compiled program that trains any architecture of the DARTS space.

A network compiled for each genotype (`network.Network`) spends more time in the compiler than in
training when candidates are small or trained briefly. Here the architecture is an argument: a cell
is one loop over its eight edges, whose body branches on the operation. Only the chosen operation
runs, which holds **without `vmap`**: `vmap` of `lax.switch` over architectures runs every branch,
so map over candidates with `lax.map`, `lax.scan` or devices.

A program's compile time is the number of its kernels, so an edge is a loop of two rounds, the two
halves of a separable convolution (all other operations do nothing in the second): a branch for
each operation, which ends before its batch normalisation, and one normalisation for all.

An edge has one slot of parameters, used by whatever operation it holds: all of them draw 1x1
kernels, scales and biases alike (the factorised reduction is the two halves of a 1x1 kernel), and
depthwise kernels of one size too. So a slot's initial values have the distribution that a fresh
`Network` would have. Derivatives are of first order, reverse mode only, see `switching`.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.genotypes import CellGenotype, Edge, Genotype
from jaxnas.networks import primitives
from jaxnas.networks.depthwise import depthwise
from jaxnas.networks.extraction import Arrays, extract_collection, has_norm
from jaxnas.networks.mixed import CONVOLUTIONS, POOLS
from jaxnas.networks.network import Stem, check_image, check_macro
from jaxnas.networks.operations import MOMENTUM
from jaxnas.networks.supernet import reduction_layers
from jaxnas.networks.switching import switch

DARTS_OPERATIONS = (
    "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5",
    "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip
NUM_NODES = 4
_EDGES = 2 * NUM_NODES


class _Shape(NamedTuple):
    """What the program of a cell depends on; cells of equal shape share one."""

    reduction: bool
    reduced: bool      # the cell before was a reduction cell
    channels: tuple[int, int]  # of the two inputs
    features: int


class TracedNetwork(nn.Module):
    """Images [N, H, W, C'] and an architecture [2, 8, 2] -> logits [N, classes].

    `Network` without its auxiliary head, with the architecture as an array: exactly equal to it in
    value, gradients and running statistics, see `extract`. Parameters that the architecture leaves
    unused have gradient zero, and their running statistics stay; weight decay shrinks them.

    Attributes:
      operations: names among `DARTS_OPERATIONS`; what the architecture's indices mean.
      features: C, even.
      layers: L cells; reductions at L // 3 and 2 L // 3.
      num_classes: outputs of the classifier.
      pool_norm: None, or "affine": BN after pooling.
      stem_multiplier: channels of the stem are this times C.
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.
      method: of `depthwise`.
    """

    operations: tuple[str, ...] = DARTS_OPERATIONS
    features: int = 36
    layers: int = 20
    num_classes: int = 10
    pool_norm: str | None = None
    stem_multiplier: int = 3
    axis_name: str | None = None
    method: str = "shifts"

    def __post_init__(self) -> None:
        check_macro(self.features, self.layers, self.num_classes, self.pool_norm)
        unknown = set(self.operations) - set(DARTS_OPERATIONS)
        if unknown or not self.operations or len(set(self.operations)) < len(self.operations):
            raise ValueError(
                f"operations must be different names among {DARTS_OPERATIONS}, got "
                f"{self.operations}."
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        arch: jax.Array,
        *,
        train: bool,
        drop_path_rate: float | jax.Array = 0.0,
    ) -> jax.Array:
        """Classify images.

        Args:
          x: [N, H, W, C'], H and W divisible by 4.
          arch: [2, 8, 2] int32, may be traced; the normal and the reduction cell, rows (index into
            `operations`, source). Rows 2 n and 2 n + 1 belong to node n, their sources are in
            [0, n + 1]; out of range values are clamped to the nearest operation or state.
          train: use batch statistics and update the running ones ("batch_stats" mutable).
          drop_path_rate: as in `Network`.

        Returns:
          Logits [N, classes].

        Raises:
          ValueError: arch or x of another shape.
        """
        check_image(x.shape, 2 ** len(reduction_layers(self.layers)))
        if arch.shape != (2, _EDGES, 2):
            raise ValueError(f"arch must be [2, {_EDGES}, 2], got {arch.shape}.")
        dropping = train and not (
            isinstance(drop_path_rate, (int, float)) and drop_path_rate == 0
        )
        keys = None
        if dropping:
            keys = jax.random.split(self.make_rng("drop_path"), (self.layers, _EDGES))
        width = self.stem_multiplier * self.features
        stem = Stem((width,), axis_name=self.axis_name, name="stem")(x, train=train)
        before, previous = stem, stem
        for first, count, shape in self._groups():
            label = f"cells_{first}"
            params = self.param(label, functools.partial(_initial_params, shape, count))
            stats = self.variable("batch_stats", label, _initial_stats, shape, count)
            run = functools.partial(
                _cell,
                shape=shape,
                edge=functools.partial(
                    _edge,
                    operations=self.operations,
                    pool_norm=self.pool_norm,
                    method=self.method,
                    norm=functools.partial(
                        _norm,
                        train=train,
                        axis_name=None if self.is_initializing() else self.axis_name,
                    ),
                ),
                arch=arch[int(shape.reduction)],
                rate=drop_path_rate if dropping else None,
            )

            def step(carry, variables, run=run):
                before, previous = carry
                output, stats = run(*variables, before, previous)
                return (previous, output), stats

            cell_keys = None if keys is None else keys[first : first + count]
            variables = (params, stats.value, cell_keys)
            if count == 1:  # the two inputs may differ in shape
                variables = jax.tree.map(lambda a: a[0], variables)
                (before, previous), new_stats = step((before, previous), variables)
                new_stats = jax.tree.map(lambda a: a[None], new_stats)
            else:
                (before, previous), new_stats = lax.scan(step, (before, previous), variables)
            if train and not self.is_initializing():
                stats.value = new_stats
        pooled = previous.mean((1, 2))
        initial = primitives.torch_uniform(pooled.shape[-1])
        return nn.Dense(self.num_classes, kernel_init=initial, bias_init=initial, name="head")(
            pooled
        )

    def _groups(self) -> list[tuple[int, int, _Shape]]:
        """Return (first cell, number of cells, shape): runs of cells of one shape."""
        return _cell_groups(self.layers, self.features, self.stem_multiplier)

    def extract(self, variables: Mapping[str, Any], arch: jax.Array) -> dict[str, Any]:
        """Return the variables of `Network(self.decode(arch), ...)` with the same weights.

        Args:
          variables: "params", and "batch_stats" or not, of this module (or a tree of gradients
            of the same structure).
          arch: [2, 8, 2] int32, on the host.
        """
        genotype, groups = self.decode(arch), self._groups()
        return {
            kind: extract_collection(tree, genotype, groups, kind, self.pool_norm)
            for kind, tree in variables.items()
        }

    def decode(self, arch: jax.Array) -> Genotype:
        """Return the genotype of an architecture [2, 8, 2]; all four nodes are concatenated."""
        concat = tuple(range(2, 2 + NUM_NODES))
        normal, reduction = (
            CellGenotype(tuple(Edge(self.operations[o], int(s)) for o, s in cell), concat)
            for cell in np.asarray(arch)
        )
        return Genotype(normal, reduction)


def _cell_groups(layers: int, features: int, multiplier: int) -> list[tuple[int, int, _Shape]]:
    reductions = reduction_layers(layers)
    groups: list[tuple[int, int, _Shape]] = []
    before = previous = multiplier * features
    for layer in range(layers):
        features *= 2 if layer in reductions else 1
        shape = _Shape(
            layer in reductions, layer - 1 in reductions, (before, previous), features
        )
        # A scan carries the two inputs, so they and the output must be of one shape.
        uniform = not shape.reduction and not shape.reduced and before == previous == 4 * features
        if groups and uniform and groups[-1][2] == shape:
            first, count, _ = groups.pop()
            groups.append((first, count + 1, shape))
        else:
            groups.append((layer, 1, shape))
        before, previous = previous, NUM_NODES * features
    return groups


def _initial_params(shape: _Shape, count: int, key: jax.Array) -> Arrays:
    """Return the parameters of `count` cells, stacked."""
    keys = iter(jax.random.split(key, 5))
    features = shape.features

    def uniform(fan_in: int, *dims: int) -> jax.Array:
        return primitives.torch_uniform(fan_in)(next(keys), (count, *dims))

    def affine(*dims: int) -> Arrays:
        dims = (count, *dims, features)
        return {"scale": jnp.ones(dims), "bias": jnp.zeros(dims)}

    first, second = shape.channels
    dims = (2, first, features // 2) if shape.reduced else (first, features)
    return {
        "preprocess_0": {"kernel": uniform(first, *dims), **affine()},
        "preprocess_1": {"kernel": uniform(second, second, features), **affine()},
        "edges": {  # the slots; axis 2 is the first and the second half of a separable convolution
            "depthwise_3": uniform(9, _EDGES, 2, 3, 3, features),
            "depthwise_5": uniform(25, _EDGES, 2, 5, 5, features),
            "pointwise": uniform(features, _EDGES, 2, features, features),
            **affine(_EDGES, 2),
        },
    }


def _initial_stats(shape: _Shape, count: int) -> Arrays:
    def stats(*dims: int) -> Arrays:
        dims = (count, *dims, shape.features)
        return {"mean": jnp.zeros(dims), "var": jnp.ones(dims)}

    return {"preprocess_0": stats(), "preprocess_1": stats(), "edges": stats(_EDGES, 2)}


def _norm(
    x: jax.Array, params: Arrays, stats: Arrays, *, train: bool, axis_name: str | None
) -> tuple[jax.Array, Arrays]:
    """Batch-normalise x [N, H, W, C]; params scale, bias and stats mean, var are [C]."""
    if train:
        mean, variance = (
            a.reshape(-1) for a in primitives.batch_statistics(x, (0, 1, 2), axis_name)
        )
        # Stopped, so that the loops' backward passes carry no zeros for them.
        new = {"mean": lax.stop_gradient(mean), "var": lax.stop_gradient(variance)}
        new = jax.tree.map(lambda old, now: MOMENTUM * old + (1 - MOMENTUM) * now, stats, new)
    else:
        mean, variance, new = stats["mean"], stats["var"], stats
    scale = lax.rsqrt(variance + primitives.EPSILON) * params["scale"]
    return ((x - mean) * scale + params["bias"]).astype(x.dtype), new


def _cell(params, stats, keys, before, previous, *, shape, edge, arch, rate):
    """Run one cell: returns its output [N, H', W', 4 C] and the new running statistics."""
    norm = edge.keywords["norm"]

    def preprocess(x, which):
        kernel = params[which]["kernel"]
        convolve = primitives.pointwise if kernel.ndim == 2 else primitives.factorized_reduce
        return norm(convolve(jax.nn.relu(x), kernel), params[which], stats[which])

    s0, stats_0 = preprocess(before, "preprocess_0")
    s1, stats_1 = preprocess(previous, "preprocess_1")
    inputs, stride = jnp.stack([s0, s1]), 2 if shape.reduction else 1
    size = (inputs.shape[1], *(s // stride for s in inputs.shape[2:4]), shape.features)
    nodes = jnp.zeros((NUM_NODES, *size), inputs.dtype)
    # Of a normal cell the inputs are states like the nodes. Those of a reduction cell are larger:
    # they stay outside of the carried states, and an operation has a branch for either.
    large = inputs if shape.reduction else None
    states = nodes if shape.reduction else jnp.concatenate([inputs, nodes])

    def add_edge(states, xs):
        number, (operation, source), weights, affine, edge_stats, key = xs
        value, edge_stats = edge(weights, affine, edge_stats, large, states, operation, source)
        if rate is not None:
            value = value * _drop_factor(key, value, rate, operation, source, large is None, edge)
        offset = number // 2 + len(states) - NUM_NODES
        return states.at[offset].add(value), edge_stats

    # One array of kernels, one of scales and biases: each array in a loop costs kernels of its own.
    slots, moments = params["edges"], stats["edges"]
    kernels = [slots[n].reshape(_EDGES, 2, -1) for n in ("depthwise_3", "depthwise_5", "pointwise")]
    xs = (
        np.arange(_EDGES, dtype=np.int32),
        (arch[:, 0], arch[:, 1]),
        jnp.concatenate(kernels, -1),
        jnp.stack([slots["scale"], slots["bias"]], 2),
        jnp.stack([moments["mean"], moments["var"]], 2),
        keys,
    )
    states, moments = lax.scan(add_edge, states, xs)
    edge_stats = {"mean": moments[:, :, 0], "var": moments[:, :, 1]}
    output = jnp.concatenate(list(states[-NUM_NODES:]), -1)
    return output, {"preprocess_0": stats_0, "preprocess_1": stats_1, "edges": edge_stats}


def _drop_factor(key, value, rate, operation, source, normal, edge):
    """Return [N, 1, 1, 1]: 0 or 1 / keep an example, 1 where the operation is the identity."""
    skips = np.array([name == "skip_connect" for name in edge.keywords["operations"]])
    identity = jnp.asarray(skips)[operation] & (normal | (source >= 2))
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(key, keep, (value.shape[0], 1, 1, 1))
    return jnp.where(identity, 1.0, jnp.where(kept, 1.0 / keep, 0.0)).astype(value.dtype)


def _edge(weights, affine, stats, large, states, operation, source, *, operations, pool_norm,
          method, norm):  # fmt: skip
    """Run one operation on one state, as two halves of one loop.

    Args:
      weights: [2, 34 C + C C], the kernels of the two halves, see `_kernels`.
      affine, stats: [2, 2, C], scale and bias, running mean and variance, of the two halves.
      large: [2, N, 2 H, 2 W, C] inputs of a reduction cell, or None.
      states: [S, N, H, W, C], nodes, preceded by the inputs where `large` is None.
      operation, source: [] int32.

    Returns:
      [N, H, W, C] and the new statistics.
    """

    def start(name, stride):
        def branch(x, weights):
            if name in POOLS:
                return POOLS[name](x, stride, method=method)
            if name == "skip_connect" and stride == 1:
                return x
            kernels = _kernels(weights, x.shape[-1])
            x = jax.nn.relu(x)
            if name == "skip_connect":
                halves = jnp.stack(jnp.split(kernels["pointwise"], 2, -1))
                return primitives.factorized_reduce(x, halves)
            size, dilation, _ = CONVOLUTIONS[name]
            kernel = kernels[f"depthwise_{size}"][None]
            x = depthwise(x[None], kernel, stride=stride, dilation=dilation, method=method)[0]
            return primitives.pointwise(x, kernels["pointwise"])

        return branch

    def renorm(x, affine, stats):
        params = {"scale": affine[0], "bias": affine[1]}
        x, new = norm(x, params, {"mean": stats[0], "var": stats[1]})
        return x, jnp.stack([new["mean"], new["var"]])

    # Branches: each operation at stride 1, the identity, each operation at stride 2.
    identity = len(operations)
    separable = jnp.array([CONVOLUTIONS.get(n, (0, 0, 0))[2] == 2 for n in operations])
    normalized = [has_norm(name, pool_norm, False) for name in operations] + [False]
    branches = [start(name, 1) for name in (*operations, "skip_connect")]
    operation = jnp.clip(operation, 0, identity - 1)
    first = operation
    if large is None:
        x = lax.dynamic_index_in_dim(states, source, keepdims=False)
        picked: tuple[jax.Array, ...] = ()
    else:
        picked = (lax.dynamic_index_in_dim(large, jnp.minimum(source, 1), keepdims=False),)
        x = lax.dynamic_index_in_dim(states, jnp.maximum(source - 2, 0), keepdims=False)
        branches = [lambda x, weights, _, f=f: f(x, weights) for f in branches] + [
            lambda _, weights, x, f=start(name, 2): f(x, weights) for name in operations
        ]
        normalized += [has_norm(name, pool_norm, True) for name in operations]
        first = jnp.where(source < 2, operation + identity + 1, operation)
    index = jnp.stack([first, jnp.where(separable[operation], operation, identity)])
    renormed = jnp.array(normalized)[index].astype(jnp.int32)

    def half(x, xs):
        index, renormed, weights, affine, stats = xs
        x = switch(index, branches, x, weights, *picked)
        return switch(renormed, [lambda x, _, stats: (x, stats), renorm], x, affine, stats)

    return lax.scan(half, x, (index, renormed, weights, affine, stats))


def _kernels(weights: jax.Array, channels: int) -> Arrays:
    """Cut [34 C + C C] into the kernels of one half of an edge."""
    ends = np.cumsum([9 * channels, 25 * channels])
    three, five, pointwise = jnp.split(weights, ends)
    return {
        "depthwise_3": three.reshape(3, 3, channels),
        "depthwise_5": five.reshape(5, 5, channels),
        "pointwise": pointwise.reshape(channels, channels),
    }
