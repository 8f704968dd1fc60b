"""What the operations of all cell spaces share: batch normalisation, initialisers, attributes."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax

from jaxnas.networks import primitives
from jaxnas.networks.layer_costs import Cost
from jaxnas.networks.windows import convolve_depthwise

MOMENTUM = 0.9  # of the running statistics; PyTorch calls it 0.1
INITIALIZERS = ("torch", "fan_in", "fan_out")


def initializer(kind: str, fan_in: int, fan_out: int) -> Callable[..., jax.Array]:
    """Return an initialiser of convolutions.

    Args:
      kind: "torch", U(-1/sqrt(fan_in), 1/sqrt(fan_in)); "fan_in" (He et al., 2015,
        https://arxiv.org/abs/1502.01852) or "fan_out", N(0, 2 / fan).
      fan_in: products that an output sums.
      fan_out: products that an input takes part in.

    Raises:
      ValueError: for another kind.
    """
    if kind not in INITIALIZERS:
        raise ValueError(f"initializer must be one of {INITIALIZERS}, got {kind!r}.")
    if kind == "torch":
        return primitives.torch_uniform(fan_in)
    fan = fan_in if kind == "fan_in" else fan_out
    return nn.initializers.normal(math.sqrt(2 / max(fan, 1)))  # 0: half of one feature, no entries


class BatchNorm(nn.Module):
    """Batch normalisation, variance in one pass.

    The running variance is the biased one (PyTorch's is n / (n - 1) times that): the only
    deviation from the reference, and of no effect on training.

    Attributes:
      affine: whether to learn a scale and a bias.
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.
      momentum: of the running statistics.
      epsilon: added to the variance.
    """

    affine: bool = True
    axis_name: str | None = None
    momentum: float = MOMENTUM
    epsilon: float = primitives.EPSILON

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalise x [..., C] over all axes but the last, by batch or running statistics."""
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            use_bias=self.affine,
            use_scale=self.affine,
            axis_name=self.axis_name,
            use_fast_variance=True,
        )
        nn.share_scope(self, norm)  # parameters lie here, not one level deeper
        return norm(x)


class Operation(nn.Module):
    """What every operation is told: x [N, H, W, C'] -> [N, H / stride, W / stride, features].

    An operation of one's own is a derived class with `__call__(x, *, train)` and `cost`; what it
    must keep to is in `own_operations`.

    Attributes:
      features: C, channels of the output.
      stride: 1 or 2.
      affine: whether batch normalisation has a scale and a bias.
      pool_norm: None, or "affine" for a BN after pooling as in khanrc/pt.darts; read by `Pool`.
      axis_name: of synchronised batch statistics, or None.
      method: of `depthwise`: "shifts" or "conv".
      padding: "symmetric" as in PyTorch, or "same" as in TensorFlow; see `windows`.
      momentum: of the running batch statistics.
      epsilon: of batch normalisation.
      initializer: of the convolutions, one of `INITIALIZERS`.
    """

    features: int
    stride: int = 1
    affine: bool = True
    pool_norm: str | None = None
    axis_name: str | None = None
    method: str = "shifts"
    padding: str = "symmetric"
    momentum: float = MOMENTUM
    epsilon: float = primitives.EPSILON
    initializer: str = "torch"

    @nn.nowrap
    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return (H, W, C) of the output for those of the input."""
        height, width, _ = shape
        return math.ceil(height / self.stride), math.ceil(width / self.stride), self.features

    @nn.nowrap
    def cost(self, shape: tuple[int, int, int]) -> Cost:
        """Return parameters and multiply-adds for an input of (H, W, C), by closed form."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say what it costs; give it a method cost(shape)."
        )

    @nn.nowrap
    def _pixels(self, shape: tuple[int, int, int]) -> int:
        return math.prod(self.output_shape(shape)[:2])

    def _norm(self, name: str = "norm") -> BatchNorm:
        return BatchNorm(self.affine, self.axis_name, self.momentum, self.epsilon, name=name)

    def _kernel(
        self, name: str, shape: tuple[int, ...], fan_in: int, fan_out: int
    ) -> jax.Array:
        return self.param(name, initializer(self.initializer, fan_in, fan_out), shape)

    def _pointwise(self, x: jax.Array, name: str = "kernel") -> jax.Array:
        """Apply a 1x1 convolution."""
        fans = (x.shape[-1], self.features)
        return primitives.pointwise(x, self._kernel(name, fans, *fans))

    def _block(
        self, x: jax.Array, number: int, size: int, dilation: int, stride: int, train: bool
    ) -> jax.Array:
        """Apply ReLU, depthwise convolution, 1x1 convolution, BN; parameters end in `number`."""
        channels = x.shape[-1]
        across = self._kernel(
            f"depthwise_{number}", (size, size, channels), size * size, size * size)
        x = convolve_depthwise(
            jax.nn.relu(x), across, stride=stride, dilation=dilation, padding=self.padding,
            method=self.method)
        x = self._pointwise(x, f"pointwise_{number}")
        return self._norm(f"norm_{number}")(x, train=train)
