"""The operations of the cell spaces as Linen modules with running batch statistics.

These are what a fixed network is made of: ReLU, convolution, BN in this order, convolutions without
bias, nothing after the last BN. The defaults are those of DARTS (Liu et al., 2019, section 3.1.1
and appendix, https://arxiv.org/abs/1806.09055; quark0/darts cnn/operations.py); what NASNet,
AmoebaNet, PNAS and ENAS do differently is an attribute, and `pair_cells.CellStyle` holds the
choices of each. All are dots, shifts and elementwise code, which stay fast on CPU inside the scan
of an epoch (see `primitives`).
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnas.networks import layer_costs, primitives, windows
from jaxnas.networks.layer_costs import Cost
from jaxnas.networks.layers import INITIALIZERS, MOMENTUM, BatchNorm, Operation, initializer
from jaxnas.networks.mixed import CONVOLUTIONS, POOLS
from jaxnas.networks.own_operations import OwnOperations
from jaxnas.networks.windows import convolve

__all__ = [
    "INITIALIZERS", "MOMENTUM", "OPERATIONS", "POOL_NORMS", "BatchNorm", "Conv", "DilConv",
    "FactorizedReduce", "Identity", "Operation", "Pool", "ReLUConvBN", "SepConv", "convolve",
    "drop_path", "initializer", "operation_factory",
]

POOL_NORMS = (None, "affine")
UNEVEN = (None, "split", "zero")


class SepConv(Operation):
    """Separable convolution, twice: ReLU, KxK depthwise, 1x1, BN; only the first has a stride.

    Attributes:
      kernel_size: K, odd.
      dilation: of both; 2 in the dilated separable convolutions of AmoebaNet.
    """

    kernel_size: int = 3
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C'] to [N, H / stride, W / stride, features]."""
        x = self._block(x, 0, self.kernel_size, self.dilation, self.stride, train)
        return self._block(x, 1, self.kernel_size, self.dilation, 1, train)

    @nn.nowrap
    def cost(self, shape: tuple[int, int, int]) -> Cost:
        """Return the cost of two blocks of K^2 C' + C' C parameters, each used once a pixel."""
        taps, pixels = self.kernel_size**2, self._pixels(shape)
        first, second = (
            layer_costs.separable(taps, channels, self.features, pixels, self.affine)
            for channels in (shape[-1], self.features)
        )
        return first + second


class DilConv(Operation):
    """Separable convolution of dilation 2, once: it sees 5x5 (9x9) pixels with 3x3 (5x5) taps."""

    kernel_size: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C'] to [N, H / stride, W / stride, features]."""
        return self._block(x, 0, self.kernel_size, 2, self.stride, train)

    @nn.nowrap
    def cost(self, shape: tuple[int, int, int]) -> Cost:
        """Return K^2 C' + C' C parameters, each used once a pixel, and those of BN."""
        return layer_costs.separable(
            self.kernel_size**2, shape[-1], self.features, self._pixels(shape), self.affine)


class ReLUConvBN(Operation):
    """ReLU, 1x1 convolution, BN: how a cell brings its inputs to its width.

    Attributes:
      rectify: whether the ReLU is there.
    """

    rectify: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C'] to [N, H / stride, W / stride, features]."""
        x = x[:, :: self.stride, :: self.stride]
        x = jax.nn.relu(x) if self.rectify else x
        return self._norm()(self._pointwise(x), train=train)

    @nn.nowrap
    def cost(self, shape: tuple[int, int, int]) -> Cost:
        """Return C' C parameters, each used once a pixel, and those of BN."""
        pixels = self._pixels(shape)
        return layer_costs.convolution(1, shape[-1], self.features, pixels, self.affine)


class FactorizedReduce(Operation):
    """ReLU, two 1x1 convolutions of stride 2, one a pixel off, concatenated; BN.

    Attributes:
      rectify: whether the ReLU is there.
      uneven: what odd sizes and features do. None refuses them, and the parameter is
        [2, C', features / 2]. Else the image off by a pixel gets a row and a column of zeros at its
        end, and of odd features "split" gives one more to the second half, "zero" appends a channel
        of zeros; the parameter is [C', features], of "zero" without the odd feature.
    """

    rectify: bool = True
    uneven: str | None = None

    def __post_init__(self) -> None:
        if self.uneven not in UNEVEN:
            raise ValueError(f"uneven must be one of {UNEVEN}, got {self.uneven!r}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C'] to [N, H / 2, W / 2, features].

        Raises:
          ValueError: H or W or features is odd, and `uneven` is None.
        """
        channels = x.shape[-1]
        x = jax.nn.relu(x) if self.rectify else x
        if self.uneven is not None:
            fans = (channels, self._convolved)
            kernel = self._kernel("kernel", fans, *fans)
            half = self.features // 2
            later = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
            y = [x[:, ::2, ::2] @ kernel[:, :half], later[:, ::2, ::2] @ kernel[:, half:]]
            if self._convolved < self.features:
                y.append(jnp.zeros((*y[0].shape[:-1], 1), y[0].dtype))
            return self._norm()(jnp.concatenate(y, -1), train=train)
        if x.shape[1] % 2 or x.shape[2] % 2 or self.features % 2:
            raise ValueError(
                f"height, width and features must be even to be halved, got {x.shape[1:3]} and "
                f"{self.features}; choose another image size or fewer reductions."
            )
        shape = (2, channels, self.features // 2)
        kernel = self._kernel("kernel", shape, channels, self.features)
        return self._norm()(primitives.factorized_reduce(x, kernel), train=train)

    @nn.nowrap
    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return (H / 2, W / 2, features), rounded up."""
        return math.ceil(shape[0] / 2), math.ceil(shape[1] / 2), self.features

    @nn.nowrap
    def cost(self, shape: tuple[int, int, int]) -> Cost:
        """Return C' C parameters, each used once a pixel of the output, and those of BN."""
        kernels = layer_costs.convolution(1, shape[-1], self._convolved, self._pixels(shape))
        return kernels + Cost(2 * self.features * self.affine)

    @property
    def _convolved(self) -> int:
        return self.features - self.features % 2 * (self.uneven == "zero")


class Pool(Operation):
    """Pooling, and BN after it where `pool_norm` says so.

    Where the input has another number of channels, a 1x1 convolution and its BN follow.

    Attributes:
      kind: "max_pool_KxK" or "avg_pool_KxK"; averages leave padding out.
    """

    kind: str = "max_pool_3x3"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C'] to [N, H / stride, W / stride, features]."""
        if self.kind in POOLS and self.padding == "symmetric":
            x = POOLS[self.kind](x, self.stride, method=self.method)
        else:
            pool = windows.max_pool if self.kind.startswith("max") else windows.avg_pool
            x = pool(x, int(self.kind[-1]), self.stride, padding=self.padding)
        if self._projects(x.shape[-1]):
            x = self._norm("norm_projection")(self._pointwise(x), train=train)
        return x if self.pool_norm is None else self._norm()(x, train=train)

    @nn.nowrap
    def cost(self, shape: tuple[int, int, int]) -> Cost:
        """Return the cost of the 1x1 convolution, and the parameters of BN; pooling is free."""
        norm = Cost(2 * self.features if self.affine and self.pool_norm is not None else 0)
        if not self._projects(shape[-1]):
            return norm
        pixels = self._pixels(shape)
        return norm + layer_costs.convolution(
            1, shape[-1], self.features, pixels, self.affine)

    @nn.nowrap
    def _projects(self, channels: int) -> bool:
        return channels != self.features


class Identity(Operation):
    """The skip connection of stride 1."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return x."""
        del train
        return x

    @nn.nowrap
    def cost(self, shape: tuple[int, int, int]) -> Cost:
        """Return nothing."""
        del shape
        return Cost()


class Conv(Operation):
    """ReLU, dense convolutions one after another, BN.

    Attributes:
      kernels: (K, J) of each; the stride of H is taken by the last, of W by the first.
      dilation: of all.
      inner_norm: whether BN and ReLU lie between them too (DARTS's 1x7 then 7x1 has none).
      bottleneck: R, channels between a first and a last 1x1 convolution, which then surround the
        others, each with BN, ReLU before the next; 0 is no such pair.
    """

    kernels: tuple[tuple[int, int], ...] = ((3, 3),)
    dilation: int = 1
    inner_norm: bool = True
    bottleneck: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C'] to [N, H / stride, W / stride, features]."""
        x = jax.nn.relu(x)
        last = len(self._convolutions) - 1
        for number, ((tall, wide), name, strides, features) in enumerate(self._convolutions):
            taps, channels = tall * wide, x.shape[-1]
            kernel = self._kernel(
                f"kernel_{name}", (tall, wide, channels, features), taps * channels,
                taps * features)
            x = convolve(x, kernel, strides, dilation=self.dilation, padding=self.padding)
            if number == last:
                x = self._norm()(x, train=train)
            elif self.inner_norm:
                x = jax.nn.relu(self._norm(f"norm_{name}")(x, train=train))
        return x

    @nn.nowrap
    def cost(self, shape: tuple[int, int, int]) -> Cost:
        """Return K J C' C parameters a kernel, each used once a pixel, and those of BN."""
        total, (height, width, channels) = Cost(), shape
        last = len(self._convolutions) - 1
        for number, ((tall, wide), _, strides, features) in enumerate(self._convolutions):
            height, width = math.ceil(height / strides[0]), math.ceil(width / strides[1])
            affine = self.affine and (self.inner_norm or number == last)
            total += layer_costs.convolution(
                tall * wide, channels, features, height * width, affine)
            channels = features
        return total

    @property
    def _convolutions(self) -> list[tuple[tuple[int, int], str, tuple[int, int], int]]:
        """Size, name, strides and features of every convolution, in order."""
        width, last = self.bottleneck or self.features, len(self.kernels) - 1
        middle = [
            (
                (tall, wide), f"{tall}x{wide}",
                (self.stride if number == last else 1, self.stride if number == 0 else 1), width,
            )
            for number, (tall, wide) in enumerate(self.kernels)
        ]
        if not self.bottleneck:
            return middle
        first, final = ((1, 1), "in", (1, 1), width), ((1, 1), "out", (1, 1), self.features)
        return [first, *middle, final]


def drop_path(key: jax.Array, x: jax.Array, rate: float | jax.Array) -> jax.Array:
    """Zero whole examples with probability `rate`, and scale the others to keep the mean.

    Larsson et al., 2017, https://arxiv.org/abs/1605.07648, as in quark0/darts: one draw a sample.

    Args:
      key: consumed.
      x: [N, ...].
      rate: in [0, 1), may be traced.
    """
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(key, keep, (x.shape[0],))
    factor = jnp.where(kept, 1.0 / keep, 0.0).astype(x.dtype)
    return x * factor.reshape(-1, *[1] * (x.ndim - 1))


def _convolution(name: str) -> Callable[..., Operation]:
    size, _, blocks = CONVOLUTIONS[name]
    kind = SepConv if blocks == 2 else DilConv
    return lambda features, stride=1, **options: kind(
        features, stride, kernel_size=size, **options
    )


def _dilated_separable(size: int) -> Callable[..., Operation]:
    return lambda features, stride=1, dilation=2, **options: SepConv(
        features, stride, kernel_size=size, dilation=dilation, **options
    )


def _pool(name: str) -> Callable[..., Operation]:
    return lambda features, stride=1, **options: Pool(features, stride, kind=name, **options)


def _conv(*kernels: tuple[int, int], inner_norm: bool = True) -> Callable[..., Operation]:
    return lambda features, stride=1, **options: Conv(
        features, stride, kernels=kernels, inner_norm=inner_norm, **options
    )


def _skip_connect(features: int, stride: int = 1, **options: Any) -> Operation:
    return (Identity if stride == 1 else FactorizedReduce)(features, stride, **options)


# name -> factory(features, stride, **the other attributes of Operation)
OPERATIONS: Mapping[str, Callable[..., Operation]] = MappingProxyType(
    {name: _pool(name) for name in (*POOLS, "max_pool_2x2", "max_pool_5x5", "max_pool_7x7")}
    | {"skip_connect": _skip_connect}
    | {name: _convolution(name) for name in CONVOLUTIONS}
    | {f"dil_sep_conv_{size}x{size}": _dilated_separable(size) for size in (3, 5)}
    | {
        "conv_1x1": _conv((1, 1)),
        "conv_3x3": _conv((3, 3)),
        "conv_1x3_3x1": _conv((1, 3), (3, 1)),
        "conv_1x7_7x1": _conv((1, 7), (7, 1)),
        "conv_7x1_1x7": _conv((1, 7), (7, 1), inner_norm=False),  # the name in quark0/darts
    }
)


def operation_factory(name: str, own: OwnOperations = ()) -> Callable[..., Operation]:
    """Return factory(features, stride, **the other attributes of Operation) of an operation.

    Args:
      name: a key of `OPERATIONS`, or of an own operation.
      own: as in `own_operations`.

    Raises:
      ValueError: for another name.
    """
    known: dict[str, Callable[..., Operation]] = {**OPERATIONS, **dict(own)}
    if name not in known:
        raise ValueError(f"operation must be one of {tuple(known)}, got {name!r}.")
    return known[name]
