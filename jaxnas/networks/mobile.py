"""The fixed network of a mobile model: inverted bottlenecks with squeeze-excitation in stages.

Tan et al., 2019, https://arxiv.org/abs/1807.11626, as in the authors' released code: convolution,
BN, ReLU in this order, the last 1x1 convolution of a layer without ReLU, plain ReLU everywhere
(not ReLU6), padding "SAME" of TensorFlow, which at stride 2 and even sizes pads more below and to
the right.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.networks import mobile_stages, primitives
from jaxnas.networks.depthwise import METHODS, depthwise
from jaxnas.networks.mobile_stages import MobileModel, Stage
from jaxnas.networks.operations import convolve, drop_path

MOMENTUM = 0.99  # of the running statistics, and epsilon, as released for MnasNet
EPSILON = 1e-3


def depthwise_same(x: jax.Array, kernel: jax.Array, *, stride: int, method: str) -> jax.Array:
    """Convolve every channel, padded as "SAME": x [N, H, W, C], kernel [K, K, C], stride 1 or 2."""
    x, offsets = _shift(x, stride)
    y = depthwise(x[None], kernel[None], stride=stride, method=method)[0]
    return y[:, offsets[0] :, offsets[1] :]


def convolve_same(x: jax.Array, kernel: jax.Array, *, stride: int, method: str) -> jax.Array:
    """Convolve densely, padded as "SAME": x [N, H, W, C], kernel [K, K, C, F] or, 1x1, [C, F].

    Method "shifts" is patches times a matrix (K * K times the memory of x; fast on CPU, inside
    loops too), "conv" is `lax.conv_general_dilated`.
    """
    if kernel.ndim == 2:
        return primitives.pointwise(x, kernel)
    if method == "conv":
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x, offsets = _shift(x, stride)
    return convolve(x, kernel, (stride, stride))[:, offsets[0] :, offsets[1] :]


def _shift(x: jax.Array, stride: int) -> tuple[jax.Array, list[int]]:
    """Make symmetric padding do what "SAME" does.

    At stride 2 and an even size, "SAME" pads one pixel less before than after. A row of zeros more
    before lets symmetric padding see one output more, and all others where "SAME" has them.
    """
    offsets = [int(stride == 2 and length % 2 == 0) for length in x.shape[1:3]]
    if any(offsets):
        x = jnp.pad(x, ((0, 0), (offsets[0], 0), (offsets[1], 0), (0, 0)))
    return x, offsets


def kernel_init(fan_out: int):
    """Return the initialiser of convolutions, N(0, 2 / fan_out)."""
    return nn.initializers.normal((2 / fan_out) ** 0.5)


class ConvNorm(nn.Module):
    """A convolution without bias, and BN; parameters "kernel" and "norm".

    The kernel is drawn from N(0, 2 / fan_out), fan_out = K * K * features, or K * K if depthwise,
    where every channel has one filter.

    Attributes:
      features: output channels; those of the input if depthwise.
      kernel: its odd side; a 1x1 kernel is stored as a matrix.
      stride: 1 or 2.
      is_depthwise: one filter a channel.
      momentum, epsilon: of the BN.
      axis_name: of synchronised batch statistics, or None.
      method: of `depthwise`.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    is_depthwise: bool = False
    momentum: float = MOMENTUM
    epsilon: float = EPSILON
    axis_name: str | None = None
    method: str = "shifts"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C'] to [N, ceil(H / stride), ceil(W / stride), features]."""
        square = (self.kernel, self.kernel)
        area = self.kernel * self.kernel
        if self.is_depthwise:
            weights = self.param("kernel", kernel_init(area), (*square, self.features))
            x = depthwise_same(x, weights, stride=self.stride, method=self.method)
        else:
            shape = (*(square if self.kernel > 1 else ()), x.shape[-1], self.features)
            weights = self.param("kernel", kernel_init(area * self.features), shape)
            x = convolve_same(x, weights, stride=self.stride, method=self.method)
        return nn.BatchNorm(
            use_running_average=not train, momentum=self.momentum, epsilon=self.epsilon,
            axis_name=self.axis_name, use_fast_variance=True, name="norm")(x)


class SqueezeExcitation(nn.Module):
    """Scale channels by what the whole image says of them (Hu et al., 2018, 1709.01507).

    Attributes:
      features: channels of the squeeze.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [N, H, W, C] to itself times [N, 1, 1, C] in (0, 1)."""
        channels = x.shape[-1]

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, kernel_init=kernel_init(features), name=name)

        hidden = jax.nn.relu(dense(self.features, "reduce")(x.mean((1, 2))))
        return x * jax.nn.sigmoid(dense(channels, "restore")(hidden))[:, None, None]


class MobileLayer(nn.Module):
    """One layer of a stage.

    A dense convolution ("conv", whose order the paper does not give) is convolution, BN, ReLU,
    squeeze-excitation, and then the skip.

    Attributes:
      stage: what the layer is; its `repeats` are not read.
      momentum, epsilon, axis_name, method: as in `ConvNorm`.
    """

    stage: Stage
    momentum: float = MOMENTUM
    epsilon: float = EPSILON
    axis_name: str | None = None
    method: str = "shifts"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, key: jax.Array | None = None,
        drop_path_rate: float | jax.Array = 0.0,
    ) -> jax.Array:
        """Map [N, H, W, C'] to [N, ceil(H / stride), ceil(W / stride), filters].

        Args:
          x: [N, H, W, C'].
          train: whether BN uses the statistics of the batch.
          key: for dropping the layer where it has a skip; None for no dropping.
          drop_path_rate: in [0, 1).
        """
        stage, inputs = self.stage, x.shape[-1]

        def unit(features: int, name: str, **options) -> ConvNorm:
            return ConvNorm(features, momentum=self.momentum, epsilon=self.epsilon,
                            axis_name=self.axis_name, method=self.method, name=name, **options)

        def squeeze(x: jax.Array, name: str) -> jax.Array:
            if not stage.se_ratio:
                return x
            return SqueezeExcitation(mobile_stages.squeezed(stage.se_ratio, inputs), name=name)(x)

        y = x
        if stage.operation == "conv":
            y = unit(stage.filters, "conv", kernel=stage.kernel, stride=stage.stride)(
                y, train=train)
            y = squeeze(jax.nn.relu(y), "conv_squeeze")
        else:
            width = stage.expansion * inputs
            if stage.expansion > 1:
                y = jax.nn.relu(unit(width, "expand")(y, train=train))
            across = unit(width, "depthwise", kernel=stage.kernel, stride=stage.stride,
                          is_depthwise=True)
            y = squeeze(jax.nn.relu(across(y, train=train)), "squeeze")
            y = unit(stage.filters, "project")(y, train=train)
        if stage.skip == "none" or not mobile_stages.has_skip(stage.stride, inputs, stage.filters):
            return y
        if key is not None:
            y = drop_path(key, y, drop_path_rate)
        return y + (x if stage.skip == "identity" else primitives.avg_pool(x, 1))


class MobileHead(nn.Module):
    """1x1 convolution, BN, ReLU, global average, dropout, dense.

    The dense kernel is uniform within 1 / sqrt(num_classes), its bias zero.

    Attributes:
      features: channels of the convolution.
      num_classes: outputs.
      dropout_rate: in [0, 1).
      momentum, epsilon, axis_name: as in `ConvNorm`.
    """

    features: int
    num_classes: int
    dropout_rate: float
    momentum: float = MOMENTUM
    epsilon: float = EPSILON
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, key: jax.Array | None) -> jax.Array:
        """Map [N, H, W, C] to logits [N, classes]; drops where there is a key."""
        unit = ConvNorm(self.features, momentum=self.momentum, epsilon=self.epsilon,
                        axis_name=self.axis_name, name="conv")
        x = jax.nn.relu(unit(x, train=train)).mean((1, 2))
        if key is not None and self.dropout_rate:
            kept = jax.random.bernoulli(key, 1 - self.dropout_rate, x.shape)
            x = jnp.where(kept, x / (1 - self.dropout_rate), 0)
        initial = primitives.torch_uniform(self.num_classes)
        return nn.Dense(self.num_classes, kernel_init=initial, name="classifier")(x)


class MobileNetwork(nn.Module):
    """Images [N, H, W, C'] -> logits [N, classes].

    Variables are "params" and "batch_stats". Dropout and drop path both read the "drop_path" random
    stream, the one that `training` gives; they are read when `train` and a rate is not the Python
    number 0. H and W may be any: sizes are rounded up when halved.

    Attributes:
      model: one of `mobile_stages.PUBLISHED`, or decoded by `MobileGrid.model`.
      num_classes: outputs of the classifier.
      dropout_rate: before the classifier, in [0, 1).
      momentum: of the running batch statistics.
      epsilon: of the batch normalisation.
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.
      method: of the convolutions: "shifts" (fast on CPU) or "conv" (`lax.conv`).
    """

    model: MobileModel
    num_classes: int = 1000
    dropout_rate: float = 0.2
    momentum: float = MOMENTUM
    epsilon: float = EPSILON
    axis_name: str | None = None
    method: str = "shifts"

    def __post_init__(self) -> None:
        mobile_stages.validate(self.model)
        check_options(self.num_classes, self.dropout_rate, self.momentum, self.epsilon, self.method)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, drop_path_rate: float | jax.Array = 0.0
    ) -> jax.Array:
        """Classify images.

        Args:
          x: [N, H, W, C'].
          train: use batch statistics and update the running ones ("batch_stats" mutable).
          drop_path_rate: in [0, 1), may be traced; the probability that a layer that has a skip is
            nothing but its skip, for an example. Schedules are the caller's; MnasNet has none.

        Returns:
          Logits [N, classes].

        Raises:
          ValueError: x of another rank.
        """
        check_images(x.shape)
        dropping = train and not is_zero(drop_path_rate)
        key = None
        if dropping or (train and self.dropout_rate):
            key = self.make_rng("drop_path")
        options: dict[str, Any] = {
            "momentum": self.momentum, "epsilon": self.epsilon, "axis_name": self.axis_name}
        stem = ConvNorm(self.model.stem_filters, 3, self.model.stem_stride, method=self.method,
                        name="stem", **options)
        x = jax.nn.relu(stem(x, train=train))
        for number, stage in enumerate(self.model.stages):
            for repeat in range(stage.repeats):
                layer = MobileLayer(
                    stage if repeat == 0 else stage._replace(stride=1),
                    method=self.method, name=f"stage_{number}_layer_{repeat}", **options)
                layer_key = layer_keys(key if dropping else None, number, repeat)
                x = layer(x, train=train, key=layer_key, drop_path_rate=drop_path_rate)
        head = MobileHead(self.model.head_filters, self.num_classes, self.dropout_rate,
                          name="head", **options)
        return head(x, train=train, key=layer_keys(key, len(self.model.stages), 0))


def layer_keys(
    key: jax.Array | None, stage: int | jax.Array, layer: int | jax.Array
) -> jax.Array | None:
    """Return the key of one layer, None of None; the head counts as the stage after the last."""
    return key if key is None else jax.random.fold_in(jax.random.fold_in(key, stage), layer)


def is_zero(rate: float | jax.Array) -> bool:
    """Tell whether a rate is the Python number 0, so that no random numbers are needed."""
    return isinstance(rate, (int, float)) and rate == 0


def check_options(
    num_classes: int, dropout_rate: float, momentum: float, epsilon: float, method: str
) -> None:
    """Raise a `ValueError` where the options of a network make no sense."""
    if num_classes < 1:
        raise ValueError(f"num_classes must be 1 or more, got {num_classes}.")
    for name, value in (("dropout_rate", dropout_rate), ("momentum", momentum)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}.")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}.")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")


def check_images(shape: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless images are [N, H, W, C]."""
    if len(shape) != 4:
        raise ValueError(f"x must be [N, H, W, C], got {shape}.")
