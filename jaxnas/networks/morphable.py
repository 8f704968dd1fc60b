"""The network of a `conv_chains.ConvChain`; `morphable_traced` has one program for all of them.

AutoKeras's network (https://arxiv.org/abs/1806.10282; released code 0.3.7, nn/generator.py) with
what makes every morphism exact: ReLU and batch normalisation stand before the pooled average too,
so that whatever a layer gives is read through a ReLU; and the first layer has no ReLU, which would
cut the image. The dense layer and the dropout before the classifier are left out.
"""

from collections.abc import Iterator

import flax.linen as nn
import jax

from jaxnas import conv_chains
from jaxnas.conv_chains import ConvChain
from jaxnas.networks import layer_costs, primitives, windows
from jaxnas.networks.chain import check_no_drop_path, check_options, dense_convolution, he_normal
from jaxnas.networks.layer_costs import Cost
from jaxnas.networks.layers import BatchNorm


class MorphableNetwork(nn.Module):
    """A chain that can grow: images [N, H, W, C'] -> logits [N, classes].

    Layer n: ReLU (not in layer 0), BN, convolution "kernel_n" [K, K, C, F]; if a "concat" ends
    here, 1x1 "main_n" [F, F]; plus, for every skip, the ReLU of its source, pooled, times
    "skip_source_n" [C, F]; plus "bias_n" [F]. Stages end in a 2x2 maximum, which commutes with
    ReLU. Then ReLU, BN "norm_head", average, classifier "head".

    Attributes:
      chain: the genotype, static.
      num_classes: outputs of the classifier.
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.
      method: of `chain.dense_convolution`.
    """

    chain: ConvChain
    num_classes: int = 10
    axis_name: str | None = None
    method: str = "shifts"

    def __post_init__(self) -> None:
        conv_chains.check(self.chain)
        check_options(num_classes=self.num_classes, method=self.method)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, drop_path_rate: float | jax.Array = 0.0
    ) -> jax.Array:
        """Classify images [N, H, W, C'], H and W at least 2 ** stages; no paths to drop."""
        check_no_drop_path(drop_path_rate)
        chain = self.chain
        check_size(x.shape[1:3], len(chain.stages))
        maps: list[jax.Array] = []  # the outputs of layers, at the size of the present stage
        stage = 0
        for number, layer in enumerate(chain.layers):
            if chain.stage_of[number] != stage:
                stage += 1
                maps = [pool(value) for value in maps]
            inputs = jax.nn.relu(maps[-1]) if maps else x
            maps.append(self._layer(number, layer, inputs, maps, train))
        last = jax.nn.relu(pool(maps[-1]))
        norm = BatchNorm(axis_name=self.axis_name, name="norm_head")
        pooled = norm(last, train=train).mean((1, 2))
        initial = primitives.torch_uniform(pooled.shape[-1])
        return nn.Dense(self.num_classes, kernel_init=initial, bias_init=initial, name="head")(
            pooled)

    def _layer(self, number, layer, inputs, maps, train):
        norm = BatchNorm(axis_name=self.axis_name, name=f"norm_{number}")
        size, width, channels = layer.kernel, layer.width, inputs.shape[-1]
        kernel = self.param(f"kernel_{number}", he_normal(size * size * channels),
                            (size, size, channels, width))
        y = dense_convolution(norm(inputs, train=train), kernel, method=self.method)
        skips = self.chain.into(number)
        if any(skip.kind == "concat" for skip in skips):
            y = y @ self.param(f"main_{number}", he_normal(width), (width, width))
        for skip in skips:
            source = maps[skip.source]
            shape = source.shape[-1], width
            name = f"skip_{skip.source}_{number}"
            y += jax.nn.relu(source) @ self.param(name, he_normal(shape[0]), shape)
        return y + self.param(f"bias_{number}", nn.initializers.zeros, (width,))

    @nn.nowrap
    def costs(self, shape: tuple[int, int, int]) -> Iterator[tuple[str, Cost]]:
        """Yield the name and the cost of every layer for images of (H, W, C), by closed form.

        Raises:
          ValueError: the image is too small for the stages.
        """
        chain, channels = self.chain, shape[2]
        height, width = check_size(shape[:2], len(chain.stages))
        stage = 0
        for number, layer in enumerate(chain.layers):
            if chain.stage_of[number] != stage:
                stage += 1
                height, width = height // 2, width // 2
            pixels, features = height * width, layer.width
            skips = chain.into(number)
            cost = layer_costs.convolution(layer.kernel**2, channels, features, pixels)
            cost += Cost(2 * channels + features)  # BN before, bias
            if any(skip.kind == "concat" for skip in skips):
                cost += layer_costs.convolution(1, features, features, pixels)
            for skip in skips:
                cost += layer_costs.convolution(
                    1, chain.layers[skip.source].width, features, pixels)
            yield f"layer_{number}", cost
            channels = features
        yield "head", layer_costs.dense(channels, self.num_classes) + Cost(2 * channels)


def pool(x: jax.Array) -> jax.Array:
    """Take the maximum of 2x2 pixels: [N, H, W, C] -> [N, H // 2, W // 2, C]."""
    return windows.max_pool(x, 2, 2, padding="valid")


def check_size(size: tuple[int, ...], num_stages: int) -> tuple[int, int]:
    """Return the height and width of images.

    Raises:
      ValueError: the stages' pools leave nothing of them.
    """
    height, width = size
    if min(size) < 2**num_stages:
        raise ValueError(f"images must be at least {2**num_stages} pixels high and wide for "
                         f"{num_stages} stages, got {height}x{width}.")
    return height, width
