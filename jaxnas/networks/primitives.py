"""What every operation of the cell spaces is made of, as pure functions of arrays.

They use only dots, shifts and elementwise code: on CPU the gradients of `lax.conv` inside
`lax.scan` are some 40 times slower than outside, and all our loops are scans.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

EPSILON = 1e-5  # of every batch normalisation in the DARTS family


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def forward_first(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Call a function of reverse mode, to be differentiated once in forward mode before that.

    A `custom_vjp` has no forward mode in JAX; along tangents this is calls of the function again.

    Args:
      function: linear in each of the arrays, those of integers aside.
      *arrays: its arguments.
    """
    return function(*arrays)


@forward_first.defjvp
def _along(function, primals, tangents):
    parts = [function(*primals[:place], tangent, *primals[place + 1:])
             for place, tangent in enumerate(tangents) if tangent.dtype != jax.dtypes.float0]
    return function(*primals), functools.reduce(jnp.add, parts)


def torch_uniform(fan_in: int):
    """Return the default initialiser of the reference code, U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, tuple(shape), dtype, -bound, bound)

    return init


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve 1x1: x [..., C], kernel [C, K] -> [..., K]; or x [E or 1, ...], kernel [E, C, K]."""
    if kernel.ndim == 2:
        return x @ kernel
    edges, channels, features = kernel.shape
    flat = jnp.broadcast_to(x, (edges, *x.shape[1:])).reshape(edges, -1, channels)
    return (flat @ kernel).reshape(edges, *x.shape[1:-1], features)


def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve densely, stride 1, same size: x [N, H, W, C], kernel [K, K, C, F], K odd.

    Written as patches times a matrix, for stems: few channels in, and no gradient to the image.
    """
    size = kernel.shape[0]
    pad = (size - 1) // 2
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    patches = [
        padded[:, row : row + height, column : column + width]
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(patches, -1) @ kernel.reshape(-1, kernel.shape[-1])


def factorized_reduce(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Halve height and width without losing pixels: two 1x1 convolutions, one a pixel off.

    Args:
      x: [N, H, W, C], H and W even; ReLU is the caller's.
      kernel: [2, C, F / 2], or [E, 2, C, F / 2] for E edges that share x.

    Returns:
      [N, H / 2, W / 2, F], or [E, N, H / 2, W / 2, F].
    """
    even, odd = x[:, ::2, ::2], x[:, 1::2, 1::2]
    if kernel.ndim == 3:
        return jnp.concatenate([even @ kernel[0], odd @ kernel[1]], -1)
    halves = (pointwise(even[None], kernel[:, 0]), pointwise(odd[None], kernel[:, 1]))
    return jnp.concatenate(halves, -1)


def batch_statistics(
    x: jax.Array, axes: Sequence[int], axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return mean and biased variance over `axes` (kept as 1) in one pass, in float32 or wider.

    With `axis_name` the moments are averaged over the devices of that axis (synchronised BN).
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = x.mean(axes, keepdims=True)
    square = (x * x).mean(axes, keepdims=True)
    if axis_name is not None:
        mean, square = lax.pmean((mean, square), axis_name)
    # E[x^2] - E[x]^2 may round below zero where the variance is tiny against the mean
    return mean, jnp.maximum(square - mean * mean, 0)


def normalize(
    x: jax.Array, axes: Sequence[int] = (0, 1, 2), axis_name: str | None = None
) -> jax.Array:
    """Batch-normalise without affine parameters, by the statistics of this batch."""
    mean, variance = batch_statistics(x, axes, axis_name)
    return ((x - mean) * lax.rsqrt(variance + EPSILON)).astype(x.dtype)


def max_pool(x: jax.Array, stride: int) -> jax.Array:
    """Pool 3x3, padding 1 with -inf: [..., H, W, C] -> [..., ceil(H / s), ceil(W / s), C].

    Of equal values the first in row-major order takes the gradient, as in PyTorch.
    """

    def along(x: jax.Array, axis: int) -> jax.Array:
        length = x.shape[axis]
        pads = [(0, 0)] * x.ndim
        pads[axis] = (1, 1)
        padded = jnp.pad(x, pads, constant_values=-jnp.inf)
        return largest([
            lax.slice_in_dim(padded, offset, offset + length, stride, axis) for offset in range(3)
        ])

    return along(along(x, x.ndim - 2), x.ndim - 3)


def largest(views: Sequence[jax.Array]) -> jax.Array:
    """Return the largest of up to 127 arrays, elementwise; of equal ones the first is taken.

    Where it stands is found first, and then taken. A chain of `where(x >= y, x, y)` has the same
    gradient on paper, but of networks that pool a pooled map twice XLA's CPU compiler (jaxlib 0.10,
    `xla_backend_optimization_level=0`) gave one that was off by 1e-3; differences of their loss
    agree with this form.
    """
    best, *others = (lax.stop_gradient(view) for view in views)
    place = jnp.zeros(best.shape, jnp.int8)
    for number, other in enumerate(others, start=1):
        place = jnp.where(other > best, jnp.int8(number), place)
        best = jnp.maximum(best, other)
    taken, *others = views
    for number, other in enumerate(others, start=1):
        taken = jnp.where(place == number, other, taken)
    return taken


def avg_pool(x: jax.Array, stride: int) -> jax.Array:
    """Average 3x3, padding 1, over the real cells only (`count_include_pad=False`)."""

    def along(x: jax.Array, axis: int) -> jax.Array:
        length = x.shape[axis]
        pads = [(0, 0)] * x.ndim
        pads[axis] = (1, 1)
        padded = jnp.pad(x, pads)
        total = sum(
            lax.slice_in_dim(padded, offset, offset + length, stride, axis) for offset in range(3)
        )
        position = jnp.arange(0, length, stride)
        count = jnp.minimum(position + 1, length - 1) - jnp.maximum(position - 1, 0) + 1
        shape = [1] * x.ndim
        shape[axis] = -1
        return total / count.reshape(shape).astype(x.dtype)

    return along(along(x, x.ndim - 2), x.ndim - 3)
