"""One compiled program for every architecture of a mobile grid.

The architecture is an array. A layer has one slot of parameters as wide as the grid's widest
choices; narrower choices use the first channels, a 3x3 kernel is the centre of a 5x5 one, an
expansion of 3 uses the first half of the channels of an expansion of 6, and layers that a stage
does not have are the identity. After every BN the channels that an architecture lacks are zero and
their running statistics stay, so that the rest is exactly the fixed network, see `extract`.

Two forms give the same numbers. With F the multiply-adds of a fixed network (344 M on average over
the ImageNet grid at 224 pixels), both compute a layer at the widest widths, and

- "switch" branches on operation, kernel and existence of every layer and runs what was chosen:
  1.4 F on average. This holds **without `vmap`**; a batch of architectures under `vmap` runs every
  branch, 11 F. So map over candidates with `lax.map`, `lax.scan` or devices. The backward pass
  computes a layer again (a third more work), so that only its input is kept.
- "masked" computes one bottleneck of expansion 6 and kernel 5x5 and one dense 5x5 convolution for
  every layer that could be, and masks what is too much: 7.3 F whatever is chosen, and the same
  under `vmap`, where it is the form to take. The backward pass keeps what it needs of the maps
  inside a layer, 6 times as wide as the input, which is all that "switch" keeps. Its program is
  the smaller one and compiles in less time.

One `MobileNetwork` for each candidate costs F and a compilation each. The shared slots are 21.0 M
parameters on the ImageNet grid with 1,000 classes, 11.9 M of them dense 5x5 kernels.

Initial values are drawn for the widest choice, so those of a narrower one are narrower by
sqrt(1.67) at most, of a 3x3 kernel by 5/3, of expansion 3 by sqrt(2) than a fresh network's; the BN
behind every convolution makes the function the same. Derivatives are of first order, reverse mode.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.networks.mobile import (EPSILON, MOMENTUM, ConvNorm, MobileHead, MobileNetwork,
                                    check_images, check_options, is_zero, layer_keys)
from jaxnas.networks.mobile_grid import MobileGrid
from jaxnas.networks.mobile_slots import (ABSENT, FORMS, Arrays, Choice, Norm, Shape,
                                          initial_params, initial_stats, make_slots, run_layer)


class TracedMobileNetwork(nn.Module):
    """Images [N, H, W, C'] and an architecture [6 S] -> logits [N, classes].

    `MobileNetwork` with the architecture as an array: equal to it in value, gradients, running
    statistics, and the layers and units that are dropped. Parameters that the architecture leaves
    unused have gradient zero.

    Attributes:
      grid: the space.
      num_classes, dropout_rate, momentum, epsilon, axis_name, method: as in `MobileNetwork`.
      form: "switch" or "masked", see the top of the file.
    """

    grid: MobileGrid = MobileGrid()
    num_classes: int = 1000
    dropout_rate: float = 0.2
    momentum: float = MOMENTUM
    epsilon: float = EPSILON
    axis_name: str | None = None
    method: str = "shifts"
    form: str = "switch"

    def __post_init__(self) -> None:
        check_options(self.num_classes, self.dropout_rate, self.momentum, self.epsilon, self.method)
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {FORMS}, got {self.form!r}.")
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
          x: [N, H, W, C'].
          arch: [6 S] int32, may be traced; decisions in range.
          train: use batch statistics and update the running ones ("batch_stats" mutable).
          drop_path_rate: as in `MobileNetwork`.

        Returns:
          Logits [N, classes].

        Raises:
          ValueError: arch or x of another shape.
        """
        check_images(x.shape)
        grid, initializing = self.grid, self.is_initializing()
        if arch.shape != (len(grid.num_choices),):
            raise ValueError(f"arch must be [{len(grid.num_choices)}], got {arch.shape}.")
        dropping = train and not is_zero(drop_path_rate)
        key = None
        if dropping or (train and self.dropout_rate):
            key = self.make_rng("drop_path")
        drop_key = key if dropping else None
        norm = Norm(train, self.momentum, self.epsilon, None if initializing else self.axis_name)
        options: dict[str, Any] = {
            "momentum": self.momentum, "epsilon": self.epsilon, "axis_name": self.axis_name}
        x = jax.nn.relu(ConvNorm(grid.stem_filters, 3, grid.stem_stride, method=self.method,
                                 name="stem", **options)(x, train=train))
        inputs: int | jax.Array = grid.stem_filters
        decisions = jnp.asarray(arch, jnp.int32).reshape(grid.num_stages, -1)
        for number, (operation, kernel, squeeze, skip, filters, layers) in enumerate(decisions):
            widest = int(grid.widths[number].max())
            outputs = jnp.asarray(grid.widths[number])[filters]
            depth = jnp.asarray(grid.depths[number])[layers]
            choice = Choice(operation, kernel, squeeze, skip, jnp.asarray(inputs, jnp.int32),
                            outputs)
            shape = Shape(grid.strides[number], x.shape[-1], widest, self.form, self.method, norm)
            repeats = int(grid.depths[number].max())
            slots = make_slots(shape.inputs, widest, repeats)
            params = self.param(f"stage_{number}", lambda key, s=slots: initial_params(key, s))
            stats = self.variable("batch_stats", f"stage_{number}", initial_stats, slots)
            new: Arrays = {}
            first_key = layer_keys(drop_key, number, 0)
            x, new["first"] = run_layer(
                shape, choice, x, params["first"], stats.value["first"], first_key, drop_path_rate)
            if repeats > 1:
                again = choice._replace(inputs=outputs)
                rest = shape._replace(stride=1, inputs=widest)

                def step(x, xs, again=again, depth=depth, rest=rest, number=number):
                    index, params, stats = xs
                    present = again._replace(
                        operation=jnp.where(index < depth, again.operation, ABSENT))
                    layer_key = layer_keys(drop_key, number, index)
                    return run_layer(rest, present, x, params, stats, layer_key, drop_path_rate)

                xs = (jnp.arange(1, repeats), params["rest"], stats.value["rest"])
                x, new["rest"] = lax.scan(step, x, xs)
            if train and not initializing:
                stats.value = new
            inputs = outputs
        head = MobileHead(grid.head_filters, self.num_classes, self.dropout_rate, name="head",
                          **options)
        return head(x, train=train, key=layer_keys(key, grid.num_stages, 0))

    @nn.nowrap  # what is built in a wrapped method becomes a part of the module
    def network(self, arch: Sequence[int] | jax.Array) -> MobileNetwork:
        """Return the fixed network of an architecture [6 S], on the host."""
        return MobileNetwork(
            self.grid.model(jax.device_get(arch)), self.num_classes, self.dropout_rate,
            self.momentum, self.epsilon, self.axis_name, self.method)

    @nn.nowrap
    def extract(self, variables: Mapping[str, Any], arch: Sequence[int] | jax.Array) -> Arrays:
        """Return the variables of `network(arch)` with the same weights.

        Args:
          variables: "params", and "batch_stats" or not, of this module (or a tree of gradients
            of the same structure).
          arch: [6 S] int32, on the host.
        """
        channels = 3
        if "params" in variables:
            channels = variables["params"]["stem"]["kernel"].shape[2]
        network = self.network(arch).clone(axis_name=None)
        wanted = jax.eval_shape(
            lambda key: network.init(key, jnp.zeros((1, 1, 1, channels)), train=False),
            jax.random.key(0))

        def source(collection: str, layer: str) -> Arrays:
            tree = variables[collection]
            if not layer.startswith("stage"):
                return tree[layer]
            _, stage, _, repeat = layer.split("_")
            slots = tree[f"stage_{stage}"]
            if repeat == "0":
                return slots["first"]
            return jax.tree.map(lambda a: a[int(repeat) - 1], slots["rest"])

        return {collection: {layer: _cut(source(collection, layer), shapes)
                             for layer, shapes in wanted[collection].items()}
                for collection in variables}


def _cut(source: Any, wanted: Any) -> Any:
    """Cut arrays to wanted shapes: the first channels, the centre of a kernel."""
    if isinstance(wanted, Mapping):
        return {name: _cut(source[name], shapes) for name, shapes in wanted.items()}
    spatial = 2 if len(wanted.shape) >= 3 else 0
    index = []
    for axis, (have, want) in enumerate(zip(source.shape, wanted.shape)):
        start = (have - want) // 2 if axis < spatial else 0
        index.append(slice(start, start + want))
    return source[tuple(index)]
