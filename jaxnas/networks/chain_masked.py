"""One compiled program for every architecture of NAS with RL, by masks.

Every layer of `TracedFilterNetwork` is the largest convolution, on the image and all earlier
layers; masks take away what an architecture lacks. Equal to the fixed network of an arch
(`chain.FilterNetwork`) in value, gradients and running statistics, see `extract`; parameters that
an arch leaves unused have gradient zero, and their running statistics stay.

FLOPs and memory are those of the largest, densest architecture at stride 1, whichever it is: layer
l has K J (C' + l F) F multiply-adds a pixel, K, J and F the largest choices. 15 layers of the
paper's choices are 2e7 a pixel, some 14 times the mean of uniformly drawn architectures. There is
no branch, so that `vmap` over architectures costs no more for each; it makes every convolution a
grouped one. With a `depth`, one program serves chains of every length up to L: layers behind it
are branches not taken, which cost nothing unless under `vmap`.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.networks import primitives
from jaxnas.networks.chain import check_no_drop_path, check_options, dense_convolution, he_normal
from jaxnas.networks.chain_layout import FilterChoices, check_length, check_num_layers, unpack
from jaxnas.networks.chain_traced import initial_affine, initial_moments, normalize
from jaxnas.networks.extraction import Arrays


class TracedFilterNetwork(nn.Module):
    """NAS with RL: images [N, H, W, C'] and an arch [D] -> logits [N, classes].

    With an arch it is `chain.FilterNetwork(arch)`. A layer's slot is one kernel as large as any
    choice, whose rows, columns, inputs and filters are masked; smaller kernels are its centre. Maps
    keep the size of the image, with zeros where a stride has made them smaller. Initial kernels
    have the scale of the largest choice, which BN takes away again.

    Attributes:
      num_layers: L.
      choices: what the integers of an arch mean.
      num_classes: outputs of the classifier.
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.
      method: of `dense_convolution`.
    """

    num_layers: int = 15
    choices: FilterChoices = FilterChoices()
    num_classes: int = 10
    axis_name: str | None = None
    method: str = "conv"

    def __post_init__(self) -> None:
        check_num_layers(self.num_layers)
        check_options(num_classes=self.num_classes, method=self.method)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, arch: jax.Array, depth: jax.Array | None = None, *, train: bool,
        drop_path_rate: float | jax.Array = 0.0
    ) -> jax.Array:
        """Classify images.

        Args:
          x: [N, H, W, C'].
          arch: [D] int32, may be traced; decisions out of range are clamped.
          depth: [] int32 in [1, L], may be traced: only the first layers exist, whose decisions
            begin `arch`; the others are not read. None: all.
          train: use batch statistics and update the running ones ("batch_stats" mutable).
          drop_path_rate: must be the number 0.
        """
        check_no_drop_path(drop_path_rate)
        columns = self.choices.columns
        check_length(arch, self.num_layers, len(columns))
        own, skips = unpack(arch, self.num_layers, len(columns))
        values = [jnp.array(column)[own[:, i]] for i, column in enumerate(columns)]
        strides = values[2:4] if len(values) == 5 else [
            jnp.full(self.num_layers, self.choices.strides[0])] * 2
        norm = functools.partial(
            normalize, train=train, axis_name=None if self.is_initializing() else self.axis_name)
        tall, wide, most = (max(c) for c in (columns[0], columns[1], columns[-1]))
        image = jnp.array(x.shape[1:3])
        maps: list[jax.Array] = []
        sizes: list[jax.Array] = []  # [2], height and width of each map
        for number in range(self.num_layers):
            kernel_shape = (tall, wide, x.shape[-1] + number * most, most)
            initial = he_normal(math.prod(kernel_shape[:3]))
            kernel = self.param(f"kernel_{number}", initial, kernel_shape)
            params = self.param(f"norm_{number}", lambda _: initial_affine(most))
            stats = self.variable("batch_stats", f"norm_{number}", initial_moments, most)

            def layer(kernel, params, stats, maps, sizes, number=number):
                bits = skips[number, :number]
                none = ~jnp.any(bits > 0)
                inputs = jnp.concatenate(
                    [x * none.astype(x.dtype),
                     *(value * bits[i].astype(x.dtype) for i, value in enumerate(maps))], -1)
                size = _largest([image, *sizes], [none, *(bits > 0)])
                kernel = kernel * _centre(tall, values[0][number])[:, None, None, None]
                kernel = kernel * _centre(wide, values[1][number])[:, None, None]
                value = dense_convolution(inputs, kernel.astype(x.dtype), method=self.method)
                mask = None
                if self.choices.strides != (1,):
                    steps = jnp.stack([strides[0][number], strides[1][number]])
                    size = (size + steps - 1) // steps
                    value, mask = _subsample(value, steps, size)
                width = (jnp.arange(most) < values[-1][number]).astype(x.dtype)
                value, new = norm(value, params, stats, mask=mask)
                new = jax.tree.map(lambda now, old: jnp.where(width > 0, now, old), new, stats)
                value = jax.nn.relu(value) * width
                return value if mask is None else value * mask[..., None], new, size

            arguments = kernel, params, stats.value, maps, sizes
            if depth is None:
                value, new, size = layer(*arguments)
            else:
                shape = jax.eval_shape(layer, *arguments)[0]
                value, new, size = jax.lax.cond(
                    number < depth, layer,
                    lambda kernel, params, stats, maps, sizes, shape=shape: (
                        jnp.zeros(shape.shape, shape.dtype), stats, image), *arguments)
            if train and not self.is_initializing():
                stats.value = new
            maps.append(value)
            sizes.append(size)
        if depth is not None:
            skips = jnp.where(jnp.arange(self.num_layers)[:, None] < depth, skips, 0)
        loose = ~jnp.any(skips > 0, axis=0)
        if depth is not None:
            loose &= jnp.arange(self.num_layers) < depth
        pixels = jnp.prod(_largest(sizes, list(loose)))
        pooled = jnp.concatenate(
            [value.sum((1, 2)) * flag.astype(x.dtype) for value, flag in zip(maps, loose)], -1)
        initial = primitives.torch_uniform(pooled.shape[-1])
        head = nn.Dense(self.num_classes, kernel_init=initial, bias_init=initial, name="head")
        return head(pooled / pixels)

    def extract(self, variables: Mapping[str, Any], arch: jax.Array | np.ndarray) -> Arrays:
        """Return the variables of `FilterNetwork(arch, ...)`; arguments as in the macro network.

        An arch of fewer layers than L is the one that was run with that depth.
        """
        layers = self.choices.layers(tuple(np.asarray(arch).tolist()))
        tall, wide, most = (max(self.choices.columns[i]) for i in (0, 1, -1))
        read = {source for layer in layers for source in layer.inputs}
        result = {}
        for kind, tree in variables.items():
            found: Arrays = {}
            for number, layer in enumerate(layers):
                found[f"norm_{number}"] = {
                    name: value[: layer.features] for name, value in tree[f"norm_{number}"].items()}
                if kind != "params":
                    continue
                kernel = tree[f"kernel_{number}"]
                image = kernel.shape[2] - number * most
                rows = [image + source * most + np.arange(layers[source].features)
                        for source in layer.inputs] or [np.arange(image)]
                top, left = (tall - layer.height) // 2, (wide - layer.width) // 2
                found[f"kernel_{number}"] = kernel[
                    top : top + layer.height, left : left + layer.width,
                ][:, :, np.concatenate(rows), : layer.features]
            if "head" in tree:
                rows = [number * most + np.arange(layer.features)
                        for number, layer in enumerate(layers) if number not in read]
                found["head"] = {"kernel": tree["head"]["kernel"][np.concatenate(rows)],
                                 "bias": tree["head"]["bias"]}
            result[kind] = found
        return result


def _largest(sizes: list[jax.Array], chosen: list[jax.Array]) -> jax.Array:
    """Return the largest height and the largest width [2] among the chosen [2]."""
    return jnp.max(jnp.stack([jnp.where(c, s, 0) for s, c in zip(sizes, chosen)]), axis=0)


def _centre(length: int, chosen: jax.Array) -> jax.Array:
    """Return [length], 1 at the `chosen` entries in the middle."""
    return (jnp.abs(jnp.arange(length) - length // 2) <= chosen // 2).astype(jnp.float32)


def _subsample(
    x: jax.Array, steps: jax.Array, size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Keep every steps-th row and column of x [N, H, W, C], at the upper left of zeros.

    Returns:
      [N, H, W, C], and the mask [H, W] of the `size` pixels that are kept.
    """
    rows, columns = (jnp.arange(length) for length in x.shape[1:3])
    x = jnp.take(x, jnp.minimum(rows * steps[0], len(rows) - 1), axis=1)
    x = jnp.take(x, jnp.minimum(columns * steps[1], len(columns) - 1), axis=2)
    mask = (rows[:, None] < size[0]) & (columns < size[1])
    return x * mask[..., None].astype(x.dtype), mask.astype(x.dtype)
