"""Networks that are a chain of layers with skip connections: NAS with RL, and ENAS macro.

Architectures are static here, a program each; `chain_traced` has one program for all of them.
`chain_layout` says what an architecture's integers are.

What the papers leave open: NAS with RL (https://arxiv.org/abs/1611.01578) published no code, and
says neither in which order convolution, BN and ReLU come (taken: this one) nor how the last maps
become a vector (taken: their average) nor where the zeros go that bring a small map to the size of
a large one (taken: below and right, so that strided pixels stay aligned at the upper left).
"""

import math
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.networks import layer_costs, primitives
from jaxnas.networks.chain_layout import (MACRO_OPERATIONS, MACRO_SIZES, FilterChoices, check_arch,
                                          loose_ends, pool_layers, unpack)
from jaxnas.networks.depthwise import METHODS, depthwise
from jaxnas.networks.layer_costs import Cost
from jaxnas.networks.network import Stem, check_image
from jaxnas.networks.operations import BatchNorm, FactorizedReduce, convolve, initializer

MACRO_FORMS = ("true", "compat", "search")


def he_normal(fan_in: int) -> Callable[..., jax.Array]:
    """Return the initialiser N(0, 2 / fan_in) of https://arxiv.org/abs/1502.01852."""
    return initializer("fan_in", fan_in, fan_in)


def dense_convolution(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int] = (1, 1), *, method: str
) -> jax.Array:
    """Convolve densely, padding half a kernel: [N, H, W, C], [K, J, C, F] -> [N, H', W', F].

    Args:
      x: [N, H, W, C].
      kernel: K and J odd.
      strides: along H and W; H' = ceil(H / strides[0]).
      method: "shifts" is patches times a matrix, K J times the memory of x but fast in loops on
        CPU; "conv" is `lax.conv_general_dilated`.
    """
    if method == "shifts":
        return convolve(x, kernel, strides)
    pads = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


class FilterNetwork(nn.Module):
    """NAS with RL: images [N, H, W, C'] -> logits [N, classes].

    A layer concatenates what it reads, or takes the image if it reads nothing; convolution without
    bias, BN, ReLU. The layers that nobody reads are concatenated, averaged and classified. Maps of
    different sizes are filled with zeros, below and right, to the largest height and width.

    Attributes:
      arch: [D] static, see `FilterChoices` and the module.
      choices: what its integers mean.
      num_classes: outputs of the classifier.
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.
      method: of `dense_convolution`.
    """

    arch: tuple[int, ...]
    choices: FilterChoices = FilterChoices()
    num_classes: int = 10
    axis_name: str | None = None
    method: str = "conv"

    def __post_init__(self) -> None:
        check_arch(self.arch, self.choices.counts)
        check_options(num_classes=self.num_classes, method=self.method)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, drop_path_rate: float | jax.Array = 0.0
    ) -> jax.Array:
        """Classify images [N, H, W, C']; `drop_path_rate` must be the number 0."""
        check_no_drop_path(drop_path_rate)
        layers = self.choices.layers(self.arch)
        maps: list[jax.Array] = []
        for number, layer in enumerate(layers):
            inputs = join([maps[source] for source in layer.inputs]) if layer.inputs else x
            shape = (layer.height, layer.width, inputs.shape[-1], layer.features)
            kernel = self.param(f"kernel_{number}", he_normal(math.prod(shape[:3])), shape)
            value = dense_convolution(inputs, kernel, layer.strides, method=self.method)
            norm = BatchNorm(axis_name=self.axis_name, name=f"norm_{number}")
            maps.append(jax.nn.relu(norm(value, train=train)))
        pooled = join([maps[number] for number in loose_ends(layers)]).mean((1, 2))
        initial = primitives.torch_uniform(pooled.shape[-1])
        head = nn.Dense(self.num_classes, kernel_init=initial, bias_init=initial, name="head")
        return head(pooled)

    @nn.nowrap
    def costs(self, shape: tuple[int, int, int]) -> Iterator[tuple[str, Cost]]:
        """Yield the name and the cost of every layer for images of (H, W, C), by closed form."""
        layers = self.choices.layers(self.arch)
        sizes: list[tuple[int, int]] = []
        for number, layer in enumerate(layers):
            read = [sizes[source] for source in layer.inputs] or [shape[:2]]
            size = [math.ceil(max(lengths) / stride)
                    for lengths, stride in zip(zip(*read), layer.strides)]
            sizes.append((size[0], size[1]))
            channels = sum(layers[source].features for source in layer.inputs) or shape[2]
            yield f"layer_{number}", layer_costs.convolution(
                layer.height * layer.width, channels, layer.features, math.prod(size), affine=True)
        channels = sum(layers[number].features for number in loose_ends(layers))
        yield "head", layer_costs.dense(channels, self.num_classes)


def join(maps: list[jax.Array]) -> jax.Array:
    """Concatenate [N, H_i, W_i, C_i], with zeros below and right, to [N, max H, max W, sum C]."""
    height, width = (max(value.shape[axis] for value in maps) for axis in (1, 2))
    return jnp.concatenate([
        jnp.pad(value, ((0, 0), (0, height - value.shape[1]), (0, width - value.shape[2]), (0, 0)))
        for value in maps
    ], -1)


class _MacroLayer(nn.Module):
    """One layer of ENAS macro; `sources` are the earlier maps that a skip connection reads."""

    operation: int
    features: int
    sources: tuple[int, ...] | None  # None in layer 0, which has no skip stage
    form: str
    axis_name: str | None
    method: str

    @nn.compact
    def __call__(self, cache: list[jax.Array], *, train: bool) -> jax.Array:
        def norm(name: str, x: jax.Array) -> jax.Array:
            return BatchNorm(axis_name=self.axis_name, name=name)(x, train=train)

        def kernel(name: str, *shape: int) -> jax.Array:
            return self.param(name, he_normal(math.prod(shape[:-1])), shape)

        final, width = self.form != "search", self.features
        x = jax.nn.relu(cache[-1]) if final else cache[-1]
        x = jax.nn.relu(norm("norm_0", x @ kernel("kernel_0", x.shape[-1], width)))
        name = MACRO_OPERATIONS[self.operation]
        if name == "avg_pool_3x3":
            x = primitives.avg_pool(x, 1)
        elif name == "max_pool_3x3":
            x = primitives.max_pool(x, 1)
        else:
            size = MACRO_SIZES[self.operation]
            if name.startswith("sep") and self.form != "compat":
                across = self.param("depthwise_1", he_normal(size * size), (size, size, width))
                x = depthwise(x[None], across[None], method=self.method)[0]
                x = x @ kernel("pointwise_1", width, width)
            else:
                x = dense_convolution(x, kernel("kernel_1", size, size, width, width),
                                      method=self.method)
            x = norm("norm_1", x)
            x = x if final else jax.nn.relu(x)
        if self.sources is None:
            return x
        skips = [cache[source] for source in self.sources]
        if final:
            x = jax.nn.relu(jnp.concatenate([*skips, x], -1))
            return norm("skip_norm", x @ kernel("skip_kernel", x.shape[-1], width))
        return norm("skip_norm", sum(skips, start=x))


class MacroNetwork(nn.Module):
    """ENAS macro: images [N, H, W, C'] -> logits [N, classes].

    A stem, then L layers (Pham et al., 2018, https://arxiv.org/abs/1802.03268, section 2.3, as in
    melodyguan/enas src/cifar10/general_child.py). The operation of layer k reads the map before
    it; its skip bit i reads map i of stem, layer 0, layer 1, ..., so bit 0 is the stem. Each
    map is halved after layers L // 3 - 1 and 2 (L // 3) - 1. The classifier has no bias.

    Forms:
      "true": the final network. Both reductions double the width. ReLU, 1x1, BN, ReLU, operation
        (convolutions: BN); then the chosen maps and this one are concatenated; ReLU, 1x1, BN.
      "compat": the same with dense instead of separable convolutions, as the released
        `_fixed_layer` has it. (That one has no pools; here they are those of "true".)
      "search": one child of the shared weights. One width everywhere; 1x1, BN, ReLU, operation
        (convolutions: BN, ReLU); the chosen maps and this one are added; BN.

    Attributes:
      arch: [L + L (L - 1) / 2] static: operation of layer 0, operation and bit of layer 1, ...
      features: F, width of the stem, even.
      form: see above.
      num_classes: outputs of the classifier.
      dropout_rate: before the classifier, read from the "dropout" random stream.
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.
      method: of `dense_convolution` and `depthwise`.
    """

    arch: tuple[int, ...]
    features: int = 96
    form: str = "true"
    num_classes: int = 10
    dropout_rate: float = 0.0
    axis_name: str | None = None
    method: str = "shifts"

    def __post_init__(self) -> None:
        check_arch(self.arch, (len(MACRO_OPERATIONS),))
        check_options(num_classes=self.num_classes, method=self.method, features=self.features,
                      dropout_rate=self.dropout_rate, form=self.form)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, drop_path_rate: float | jax.Array = 0.0
    ) -> jax.Array:
        """Classify images [N, H, W, C'], H and W divisible by 4; `drop_path_rate` must be 0."""
        check_no_drop_path(drop_path_rate)
        layers = check_arch(self.arch, (len(MACRO_OPERATIONS),))
        operations, skips = unpack(np.array(self.arch), layers, 1)
        check_image(x.shape, 2 ** len(pool_layers(layers)))
        features = self.features
        cache = [Stem((features,), axis_name=self.axis_name, name="stem")(x, train=train)]
        for number in range(layers):
            sources = tuple(np.flatnonzero(skips[number]).tolist()) if number else None
            layer = _MacroLayer(int(operations[number, 0]), features, sources, self.form,
                                self.axis_name, self.method, name=f"layer_{number}")
            cache.append(layer(cache, train=train))
            if number in pool_layers(layers):
                features *= 1 if self.form == "search" else 2
                cache = [
                    self._reduce(features, name=f"reduce_{number}_{i}")(value, train=train)
                    for i, value in enumerate(cache)
                ]
        pooled = cache[-1].mean((1, 2))
        pooled = nn.Dropout(self.dropout_rate, deterministic=not train)(pooled)
        initial = he_normal(features)
        head = nn.Dense(self.num_classes, use_bias=False, kernel_init=initial, name="head")
        return head(pooled)

    @nn.nowrap
    def costs(self, shape: tuple[int, int, int]) -> Iterator[tuple[str, Cost]]:
        """Yield the name and the cost of every layer for images of (H, W, C), by closed form."""
        layers = check_arch(self.arch, (len(MACRO_OPERATIONS),))
        operations, skips = unpack(np.array(self.arch), layers, 1)
        features, pixels = self.features, shape[0] * shape[1]
        yield "stem", layer_costs.convolution(9, shape[2], features, pixels, affine=True)
        for number in range(layers):
            yield f"layer_{number}", macro_layer_cost(
                int(operations[number, 0]), int(skips[number].sum()) if number else None,
                features, pixels, self.form)
            if number in pool_layers(layers):
                before, pixels = features, pixels // 4
                features *= 1 if self.form == "search" else 2
                for i in range(number + 2):
                    yield f"reduce_{number}_{i}", layer_costs.convolution(
                        1, before, features, pixels, affine=True)
        yield "head", layer_costs.dense(features, self.num_classes, bias=False)

    @nn.nowrap
    def _reduce(self, features: int, name: str) -> FactorizedReduce:
        return FactorizedReduce(features, axis_name=self.axis_name, initializer="fan_in",
                                rectify=False, name=name)


def macro_layer_cost(
    operation: int, num_skips: int | None, features: int, pixels: int, form: str
) -> Cost:
    """Return the cost of a layer of ENAS macro; `num_skips` is None for layer 0."""
    cost = layer_costs.convolution(1, features, features, pixels, affine=True)
    name = MACRO_OPERATIONS[operation]
    if operation < len(MACRO_SIZES):
        separable = name.startswith("sep") and form != "compat"
        kind = layer_costs.separable if separable else layer_costs.convolution
        cost += kind(MACRO_SIZES[operation]**2, features, features, pixels, affine=True)
    if num_skips is None:
        return cost
    if form == "search":
        return cost + Cost(2 * features)
    return cost + layer_costs.convolution(
        1, (num_skips + 1) * features, features, pixels, affine=True)


def check_options(
    *, num_classes: int, method: str, features: int = 2, dropout_rate: float = 0.0,
    form: str = MACRO_FORMS[0]
) -> None:
    """Raise ValueError where an option of a chain makes no sense."""
    if num_classes < 1:
        raise ValueError(f"num_classes must be 1 or more, got {num_classes}.")
    if features < 2 or features % 2:
        raise ValueError(f"features must be even and 2 or more, got {features}.")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate must be in [0, 1), got {dropout_rate}.")
    for name, value, allowed in (("method", method, METHODS), ("form", form, MACRO_FORMS)):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")


def check_no_drop_path(rate: float | jax.Array) -> None:
    """Raise ValueError unless the rate is the Python number 0."""
    if not isinstance(rate, (int, float)) or rate != 0:
        raise ValueError(
            f"drop_path_rate must be 0: this network has no paths to drop, got {rate}.")
