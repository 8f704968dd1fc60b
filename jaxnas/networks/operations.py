"""The operations of the cell spaces as Linen modules with running batch statistics.

These are what a fixed network is made of (Liu et al., 2019, section 3.1.1 and appendix,
https://arxiv.org/abs/1806.09055; quark0/darts cnn/operations.py): ReLU, convolution, BN in this
order, convolutions without bias, nothing after the last BN. All are dots, shifts and elementwise
code, which stay fast on CPU inside the scan of an epoch (see `primitives`).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnas.networks import primitives
from jaxnas.networks.depthwise import depthwise
from jaxnas.networks.mixed import CONVOLUTIONS, POOLS

MOMENTUM = 0.9  # of the running statistics; PyTorch calls it 0.1
POOL_NORMS = (None, "affine")


class BatchNorm(nn.Module):
    """Batch normalisation: momentum 0.9, epsilon 1e-5, variance in one pass.

    The running variance is the biased one (PyTorch's is n / (n - 1) times that): the only
    deviation from the reference, and of no effect on training.

    Attributes:
      affine: whether to learn a scale and a bias.
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.
    """

    affine: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalise x [..., C] over all axes but the last, by batch or running statistics."""
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=MOMENTUM,
            epsilon=primitives.EPSILON,
            use_bias=self.affine,
            use_scale=self.affine,
            axis_name=self.axis_name,
            use_fast_variance=True,
        )
        nn.share_scope(self, norm)  # parameters lie here, not one level deeper
        return norm(x)


class Operation(nn.Module):
    """What every operation is told: x [N, H, W, C'] -> [N, H / stride, W / stride, features].

    Attributes:
      features: C, channels of the output; except in `ReLUConvBN` and `FactorizedReduce` those of
        the input too.
      stride: 1 or 2.
      affine: whether batch normalisation has a scale and a bias.
      pool_norm: None, or "affine" for a BN after pooling as in khanrc/pt.darts; read by `Pool`.
      axis_name: of synchronised batch statistics, or None.
      method: of `depthwise`: "shifts" or "conv".
    """

    features: int
    stride: int = 1
    affine: bool = True
    pool_norm: str | None = None
    axis_name: str | None = None
    method: str = "shifts"

    def _norm(self, name: str = "norm") -> BatchNorm:
        return BatchNorm(self.affine, self.axis_name, name=name)

    def _block(
        self, x: jax.Array, number: int, size: int, dilation: int, stride: int, train: bool
    ) -> jax.Array:
        """Apply ReLU, depthwise convolution, 1x1 convolution, BN; parameters end in `number`."""
        channels = x.shape[-1]
        uniform = primitives.torch_uniform
        across = self.param(f"depthwise_{number}", uniform(size * size), (size, size, channels))
        along = self.param(f"pointwise_{number}", uniform(channels), (channels, self.features))
        x = depthwise(
            jax.nn.relu(x)[None], across[None], stride=stride, dilation=dilation, method=self.method
        )[0]
        return self._norm(f"norm_{number}")(primitives.pointwise(x, along), train=train)


class SepConv(Operation):
    """Separable convolution, twice: ReLU, KxK depthwise, 1x1, BN; only the first has a stride."""

    kernel_size: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C] to [N, H / stride, W / stride, C]."""
        x = self._block(x, 0, self.kernel_size, 1, self.stride, train)
        return self._block(x, 1, self.kernel_size, 1, 1, train)


class DilConv(Operation):
    """Separable convolution of dilation 2, once: it sees 5x5 (9x9) pixels with 3x3 (5x5) taps."""

    kernel_size: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C] to [N, H / stride, W / stride, C]."""
        return self._block(x, 0, self.kernel_size, 2, self.stride, train)


class ReLUConvBN(Operation):
    """ReLU, 1x1 convolution, BN: how a cell brings its inputs to its width."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C'] to [N, H, W, features]."""
        channels = x.shape[-1]
        shape = (channels, self.features)
        kernel = self.param("kernel", primitives.torch_uniform(channels), shape)
        return self._norm()(primitives.pointwise(jax.nn.relu(x), kernel), train=train)


class FactorizedReduce(Operation):
    """ReLU, two 1x1 convolutions of stride 2, one a pixel off, concatenated; BN."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C'] to [N, H / 2, W / 2, features].

        Raises:
          ValueError: H or W or features is odd.
        """
        channels = x.shape[-1]
        if x.shape[1] % 2 or x.shape[2] % 2 or self.features % 2:
            raise ValueError(
                f"height, width and features must be even to be halved, got {x.shape[1:3]} and "
                f"{self.features}; choose another image size or fewer reductions."
            )
        shape = (2, channels, self.features // 2)
        kernel = self.param("kernel", primitives.torch_uniform(channels), shape)
        return self._norm()(primitives.factorized_reduce(jax.nn.relu(x), kernel), train=train)


class Pool(Operation):
    """3x3 pooling, and BN after it where `pool_norm` says so."""

    kind: str = "max_pool_3x3"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C] to [N, H / stride, W / stride, C]."""
        x = POOLS[self.kind](x, self.stride)
        return x if self.pool_norm is None else self._norm()(x, train=train)


class Identity(Operation):
    """The skip connection of stride 1."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Return x."""
        del train
        return x


class Conv7x1(Operation):
    """ReLU, 1x7 convolution, 7x1 convolution, BN; the stride is split between the two."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C] to [N, H / stride, W / stride, C]."""
        channels = x.shape[-1]
        initial = primitives.torch_uniform(7 * channels)
        row = self.param("kernel_1x7", initial, (1, 7, channels, self.features))
        column = self.param("kernel_7x1", initial, (7, 1, channels, self.features))
        x = convolve(jax.nn.relu(x), row, (1, self.stride))
        return self._norm()(convolve(x, column, (self.stride, 1)), train=train)


def convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """Convolve densely with strides, padding half a kernel on each side.

    `primitives.convolution` for kernels that are not square and for strides; patches times a
    matrix, like that one.

    Args:
      x: [N, H, W, C].
      kernel: [K, J, C, F], K and J odd.
      strides: along H and W.

    Returns:
      [N, ceil(H / strides[0]), ceil(W / strides[1]), F].
    """
    tall, wide = kernel.shape[:2]
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (tall // 2,) * 2, (wide // 2,) * 2, (0, 0)))
    patches = [
        padded[:, row : row + height : strides[0], column : column + width : strides[1]]
        for row in range(tall)
        for column in range(wide)
    ]
    return jnp.concatenate(patches, -1) @ kernel.reshape(-1, kernel.shape[-1])


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


def _pool(name: str) -> Callable[..., Operation]:
    return lambda features, stride=1, **options: Pool(features, stride, kind=name, **options)


def _skip_connect(features: int, stride: int = 1, **options: Any) -> Operation:
    return (Identity if stride == 1 else FactorizedReduce)(features, stride, **options)


# name -> factory(features, stride, **the other attributes of Operation)
OPERATIONS: Mapping[str, Callable[..., Operation]] = MappingProxyType(
    {name: _pool(name) for name in POOLS}
    | {"skip_connect": _skip_connect}
    | {name: _convolution(name) for name in CONVOLUTIONS}
    | {"conv_7x1_1x7": Conv7x1}
)
