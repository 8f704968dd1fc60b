"""One compiled program for every architecture of ENAS macro: the shared weights.

`TracedMacroNetwork` is the one-shot network of ENAS (https://arxiv.org/abs/1802.03268): a layer has
weights for each of its six operations. Equal to the fixed network of an arch (`chain.MacroNetwork`,
form "search") in value, gradients and running statistics, see `extract`; parameters that an arch
leaves unused have gradient zero, and their running statistics stay.

Cost, in multiply-adds a pixel of a layer: F F for the 1x1 convolution of the operation chosen, and,
**without `vmap`**, those of the operation: 9, 25 (dense) or about 1 F F (separable), none for
pools; 7 F F on average. `vmap` over architectures runs all six operations and selects, 37 F F; the
1x1 convolutions and BN stay the chosen one's. So map over candidates with `lax.map`, `lax.scan` or
devices. Skip connections are summed over all earlier maps, chosen or not: reads, few FLOPs.
Memory for the backward pass: all maps, and of a layer the input and the output of its operation,
which is run again; `method="shifts"` besides has 9 or 25 copies of one layer's input while it runs.
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

from jaxnas.networks import primitives
from jaxnas.networks.chain import check_no_drop_path, check_options, dense_convolution, he_normal
from jaxnas.networks.chain_layout import (MACRO_OPERATIONS, MACRO_SIZES, check_length,
                                          check_num_layers, pool_layers, unpack)
from jaxnas.networks.depthwise import depthwise
from jaxnas.networks.extraction import Arrays
from jaxnas.networks.network import Stem, check_image
from jaxnas.networks.operations import MOMENTUM
from jaxnas.networks.switching import switch

_CONVOLUTIONS = len(MACRO_SIZES)  # of MACRO_OPERATIONS the first ones; pools follow


class TracedMacroNetwork(nn.Module):
    """ENAS macro: images [N, H, W, C'] and an arch [D] -> logits [N, classes].

    With an arch it is `chain.MacroNetwork(arch, form="search")`. Score children by the statistics
    of the batch (`train=True`, dropping the new ones): the running ones are a mixture of all
    children's, to which the released code owes its noisy validation.

    Attributes:
      num_layers: L.
      features: F, width everywhere, even.
      num_classes: outputs of the classifier.
      dropout_rate: before the classifier, read from the "dropout" random stream.
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.
      method: of `dense_convolution` and `depthwise`.
    """

    num_layers: int = 12
    features: int = 36
    num_classes: int = 10
    dropout_rate: float = 0.0
    axis_name: str | None = None
    method: str = "shifts"

    def __post_init__(self) -> None:
        check_num_layers(self.num_layers)
        check_options(num_classes=self.num_classes, method=self.method, features=self.features,
                      dropout_rate=self.dropout_rate)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, arch: jax.Array, *, train: bool,
        drop_path_rate: float | jax.Array = 0.0
    ) -> jax.Array:
        """Classify images.

        Args:
          x: [N, H, W, C'], H and W divisible by 4.
          arch: [D] int32, may be traced; operations out of range are clamped.
          train: use batch statistics and update the running ones ("batch_stats" mutable).
          drop_path_rate: must be the number 0.

        Raises:
          ValueError: arch or x of another shape.
        """
        check_no_drop_path(drop_path_rate)
        check_image(x.shape, 2 ** len(pool_layers(self.num_layers)))
        check_length(arch, self.num_layers, 1)
        operations, skips = unpack(arch, self.num_layers, 1)
        operations = jnp.clip(operations[:, 0], 0, len(MACRO_OPERATIONS) - 1)
        norm = functools.partial(
            normalize, train=train, axis_name=None if self.is_initializing() else self.axis_name)
        update = train and not self.is_initializing()
        stem = Stem((self.features,), axis_name=self.axis_name, name="stem")(x, train=train)
        cache = stem[None]  # [maps, N, H, W, F]
        for first, count in _groups(self.num_layers):
            label, last = f"layers_{first}", first + count - 1
            make_params = functools.partial(_layer_params, self.features, count, first > 0)
            params = self.param(label, make_params)
            stats = self.variable("batch_stats", label, _layer_stats, self.features, count,
                                  first > 0)
            room = jnp.zeros((last + 2 - len(cache), *cache.shape[1:]), cache.dtype)

            def step(cache, xs):
                params, stats, number, operation, bits = xs
                value, stats = _macro_layer(params, stats, cache, number, operation, bits,
                                            norm=norm, method=self.method)
                return lax.dynamic_update_index_in_dim(cache, value, number + 1, 0), stats

            chosen = slice(first, last + 1)
            # Bits of maps that are still to come are zero in every arch.
            bits = jnp.pad(skips[chosen], ((0, 0), (0, 2)))[:, : last + 2].astype(cache.dtype)
            cache, new = lax.scan(
                step, jnp.concatenate([cache, room]),
                (params, stats.value, np.arange(first, last + 1), operations[chosen], bits))
            if update:
                stats.value = new
            if last in pool_layers(self.num_layers):
                cache = self._reduce(cache, last, norm, update)
        pooled = cache[-1].mean((1, 2))
        pooled = nn.Dropout(self.dropout_rate, deterministic=not train)(pooled)
        initial = he_normal(self.features)
        return nn.Dense(self.num_classes, use_bias=False, kernel_init=initial, name="head")(pooled)

    def _reduce(self, cache: jax.Array, layer: int, norm: Any, update: bool) -> jax.Array:
        """Halve all maps at once, each by weights of its own."""
        label, (count, width) = f"reduce_{layer}", (len(cache), self.features)

        def make_params(key):
            kernel = he_normal(width)(key, (count, 2, width, width // 2))
            return {"kernel": kernel, "norm": initial_affine(count, width)}

        params = self.param(label, make_params)
        stats = self.variable("batch_stats", label, lambda: {"norm": initial_moments(count, width)})

        def one(x, kernel, affine, moments):
            return norm(primitives.factorized_reduce(x, kernel), affine, moments)

        cache, new = jax.vmap(one)(cache, params["kernel"], params["norm"], stats.value["norm"])
        if update:
            stats.value = {"norm": new}
        return cache

    def extract(self, variables: Mapping[str, Any], arch: jax.Array | np.ndarray) -> Arrays:
        """Return the variables of `MacroNetwork(arch, form="search", ...)` with the same weights.

        Args:
          variables: "params", and "batch_stats" or not, of this module (or a tree of gradients of
            the same structure).
          arch: [D] int32, on the host.
        """
        operations = unpack(np.asarray(arch), self.num_layers, 1)[0][:, 0]
        return {kind: self._extract(tree, operations, kind == "params")
                for kind, tree in variables.items()}

    def _extract(self, tree: Arrays, operations: np.ndarray, params: bool) -> Arrays:
        found: Arrays = {name: tree[name] for name in ("stem", "head") if name in tree}
        for first, count in _groups(self.num_layers):
            for number in range(count):
                layer = jax.tree.map(lambda a, n=number: a[n], tree[f"layers_{first}"])
                chosen = int(operations[first + number])
                slots = {name: jax.tree.map(lambda a: a[chosen], layer[name])
                         for name in ("kernel_0", "norm_0") if name in layer}
                if chosen < _CONVOLUTIONS:
                    name = MACRO_OPERATIONS[chosen]
                    slots["norm_1"] = jax.tree.map(lambda a: a[chosen], layer["norm_1"])
                    if params and name.startswith("sep"):
                        slots["depthwise_1"] = layer[f"depthwise_{name}"]
                        slots["pointwise_1"] = layer[f"pointwise_{name}"]
                    elif params:
                        slots["kernel_1"] = layer[f"kernel_{name}"]
                if "skip_norm" in layer:
                    slots["skip_norm"] = layer["skip_norm"]
                found[f"layer_{first + number}"] = slots
        for layer in pool_layers(self.num_layers):
            for number in range(layer + 2):
                found[f"reduce_{layer}_{number}"] = jax.tree.map(
                    lambda a: a[number], tree[f"reduce_{layer}"])
        return found


def _groups(num_layers: int) -> list[tuple[int, int]]:
    """Return (first layer, layers) of the loops: layer 0, which has no skip stage, and stages."""
    ends = sorted({1, *(layer + 1 for layer in pool_layers(num_layers)), num_layers})
    return [(start, end - start) for start, end in zip([0, *ends], ends)]


def initial_affine(*dims: int) -> Arrays:
    return {"scale": jnp.ones(dims), "bias": jnp.zeros(dims)}


def initial_moments(*dims: int) -> Arrays:
    return {"mean": jnp.zeros(dims), "var": jnp.ones(dims)}


def _norm_dims(features: int, count: int, skips: bool) -> dict[str, tuple[int, ...]]:
    dims: dict[str, tuple[int, ...]] = {
        "norm_0": (count, len(MACRO_OPERATIONS), features),
        "norm_1": (count, _CONVOLUTIONS, features),
    }
    return dims | ({"skip_norm": (count, features)} if skips else {})


def _layer_stats(features: int, count: int, skips: bool) -> Arrays:
    return {name: initial_moments(*dims)
            for name, dims in _norm_dims(features, count, skips).items()}


def _layer_params(features: int, count: int, skips: bool, key: jax.Array) -> Arrays:
    """Return the weights of `count` layers, stacked."""
    shapes: dict[str, tuple[int, ...]] = {
        "kernel_0": (len(MACRO_OPERATIONS), features, features)}
    for name, size in zip(MACRO_OPERATIONS, MACRO_SIZES):
        if name.startswith("sep"):
            shapes[f"depthwise_{name}"] = (size, size, features)
            shapes[f"pointwise_{name}"] = (features, features)
        else:
            shapes[f"kernel_{name}"] = (size, size, features, features)
    params: Arrays = {}
    for key, (name, shape) in zip(jax.random.split(key, len(shapes)), shapes.items()):
        taps = 1 if len(shape) < 3 or name == "kernel_0" else shape[0] * shape[1]
        fan_in = taps if name.startswith("depthwise") else taps * features
        params[name] = he_normal(fan_in)(key, (count, *shape))
    return params | {name: initial_affine(*dims)
                     for name, dims in _norm_dims(features, count, skips).items()}


def _macro_layer(params, stats, cache, number, operation, bits, *, norm, method):
    """Run one layer: returns its map [N, H, W, F] and the new running statistics.

    Args:
      cache: [maps, N, H, W, F], of which map `number` is the layer's input.
      bits: [maps], 1 for those to add.
    """
    def pick(tree, index):
        return jax.tree.map(lambda a: a[index], tree)

    def put(tree, index, new):
        return jax.tree.map(lambda a, b: a.at[index].set(b), tree, new)

    def branch(name):
        if name.endswith("pool_3x3"):
            pool = primitives.avg_pool if name.startswith("avg") else primitives.max_pool
            return lambda x, weights: pool(x, 1)
        if name.startswith("sep"):
            return lambda x, weights: primitives.pointwise(
                depthwise(x[None], weights[f"depthwise_{name}"][None], method=method)[0],
                weights[f"pointwise_{name}"])
        return lambda x, weights: dense_convolution(x, weights[f"kernel_{name}"], method=method)

    new = dict(stats)
    x = lax.dynamic_index_in_dim(cache, number, keepdims=False) @ params["kernel_0"][operation]
    x, moments = norm(x, pick(params["norm_0"], operation), pick(stats["norm_0"], operation))
    new["norm_0"] = put(stats["norm_0"], operation, moments)
    weights = {name: value for name, value in params.items()
               if name.startswith(("kernel_c", "depthwise", "pointwise"))}
    x = switch(operation, [branch(name) for name in MACRO_OPERATIONS], jax.nn.relu(x), weights)
    convolved, slot = operation < _CONVOLUTIONS, jnp.minimum(operation, _CONVOLUTIONS - 1)
    old = pick(stats["norm_1"], slot)
    y, moments = norm(x, pick(params["norm_1"], slot), old)
    x = jnp.where(convolved, jax.nn.relu(y), x)
    moments = jax.tree.map(lambda a, b: jnp.where(convolved, a, b), moments, old)
    new["norm_1"] = put(stats["norm_1"], slot, moments)
    if "skip_norm" in params:
        x = x + jnp.tensordot(bits, cache, 1)
        x, new["skip_norm"] = norm(x, params["skip_norm"], stats["skip_norm"])
    return x, new


def normalize(x, params, stats, *, train, axis_name, mask=None):
    """Batch-normalise x [N, H, W, C]; returns it and the new running statistics.

    Args:
      params: scale and bias, [C].
      stats: mean and var, [C].
      mask: [H, W], 1 where pixels count and x may be other than 0; None where all do.
    """
    new = stats
    if train:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        share = 1.0 if mask is None else mask.mean()
        sums = wide.mean((0, 1, 2)) / share, (wide * wide).mean((0, 1, 2)) / share
        mean, square = sums if axis_name is None else lax.pmean(sums, axis_name)
        variance = jnp.maximum(square - mean * mean, 0)
        # Stopped, so that the loops' backward passes carry no zeros for them.
        now = {"mean": lax.stop_gradient(mean), "var": lax.stop_gradient(variance)}
        new = jax.tree.map(lambda old, now: MOMENTUM * old + (1 - MOMENTUM) * now, stats, now)
    else:
        mean, variance = stats["mean"], stats["var"]
    scale = lax.rsqrt(variance + primitives.EPSILON) * params["scale"]
    return ((x - mean) * scale + params["bias"]).astype(x.dtype), new
