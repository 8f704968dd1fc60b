"""Windows that slide over images: padding, dense convolution, pooling of any size.

Families differ in where the zeros go. PyTorch's codes pad half a window on each side ("symmetric";
an odd pixel is at the end); TensorFlow's "same" pads as little as gives ceil(size / stride)
windows, the odd pixel at the end: at stride 2 on an even size its windows lie one pixel further on.

Like `primitives`, all are shifts, dots and elementwise code, fast on CPU inside a scan.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.networks import primitives
from jaxnas.networks.depthwise import depthwise

PADDINGS = ("symmetric", "same", "valid")


def pads(
    size: int, kernel: int, stride: int = 1, dilation: int = 1, padding: str = "symmetric"
) -> tuple[int, int, int]:
    """Return the pixels to add before and after one axis, and the number of windows.

    Args:
      size: pixels of the axis.
      kernel: K taps.
      stride: between windows.
      dilation: between taps.
      padding: "symmetric", "same" (TensorFlow's) or "valid" (none).

    Raises:
      ValueError: for an unknown padding, or "valid" windows larger than the image.
    """
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {PADDINGS}, got {padding!r}.")
    reach = dilation * (kernel - 1)  # a window covers reach + 1 pixels
    if padding == "valid":
        if size <= reach:
            raise ValueError(
                f"a window of {reach + 1} pixels without padding needs an image at least as large, "
                f"got {size}; choose larger images."
            )
        return 0, 0, (size - reach - 1) // stride + 1
    windows = math.ceil(size / stride)
    if padding == "symmetric":
        return reach // 2, reach - reach // 2, windows
    total = max((windows - 1) * stride + reach + 1 - size, 0)
    return total // 2, total - total // 2, windows


def _views(
    x: jax.Array,
    axis: int,
    kernel: int,
    stride: int,
    dilation: int,
    padding: str,
    fill: float = 0.0,
) -> list[jax.Array]:
    """Return the K shifted views of one axis, view k holding tap k of every window."""
    before, after, windows = pads(x.shape[axis], kernel, stride, dilation, padding)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (before, after)
    padded = jnp.pad(x, widths, constant_values=fill)
    span = (windows - 1) * stride + 1
    return [
        lax.slice_in_dim(padded, dilation * tap, dilation * tap + span, stride, axis)
        for tap in range(kernel)
    ]


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    *,
    dilation: int = 1,
    padding: str = "symmetric",
) -> jax.Array:
    """Convolve densely with strides.

    `primitives.convolution` for kernels that are not square and for strides; patches times a
    matrix, like that one.

    Args:
      x: [N, H, W, C].
      kernel: [K, J, C, F].
      strides: along H and W.
      dilation: along both.
      padding: one of `PADDINGS`.

    Returns:
      [N, ceil(H / strides[0]), ceil(W / strides[1]), F]; fewer windows where padding is "valid".
    """
    tall, wide = kernel.shape[:2]
    rows = _views(x, 1, tall, strides[0], dilation, padding)
    patches = [
        view for row in rows for view in _views(row, 2, wide, strides[1], dilation, padding)
    ]
    return jnp.concatenate(patches, -1) @ kernel.reshape(-1, kernel.shape[-1])


def convolve_depthwise(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: str = "symmetric",
    method: str = "shifts",
) -> jax.Array:
    """Convolve every channel alone: `depthwise` of one edge, with a choice of padding.

    Args:
      x: [N, H, W, C].
      kernel: [K, K, C], K odd and above 1.
      stride: 1 or 2.
      dilation: 1 or more.
      padding: "symmetric" or "same".
      method: of `depthwise`.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), C].
    """
    # With 2 P + 1 pixels covered, "same" at stride 2 on an even size puts P - 1 zeros before and P
    # after: symmetric windows around pixels 1, 3, 5 ... rather than 0, 2, 4 ... A row of zeros in
    # front moves those to places 2, 4, 6 ..., and the window at place 0 is dropped.
    late = [int(padding == "same" and stride == 2 and size % 2 == 0) for size in x.shape[1:3]]
    if any(late):
        x = jnp.pad(x, ((0, 0), (late[0], 0), (late[1], 0), (0, 0)))
    y = depthwise(x[None], kernel[None], stride=stride, dilation=dilation, method=method)[0]
    return y[:, late[0] :, late[1] :]


def max_pool(x: jax.Array, size: int, stride: int, *, padding: str = "symmetric") -> jax.Array:
    """Take the largest of size x size pixels, padding with -inf.

    Of equal values the first in row-major order takes the gradient, as in `primitives.max_pool`.

    Args:
      x: [N, H, W, C].
      size: of the window.
      stride: between windows.
      padding: one of `PADDINGS`.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), C]; fewer windows where padding is "valid".
    """
    for axis in (2, 1):
        x = primitives.largest(_views(x, axis, size, stride, 1, padding, -jnp.inf))
    return x


def avg_pool(x: jax.Array, size: int, stride: int, *, padding: str = "symmetric") -> jax.Array:
    """Average size x size pixels, over the real ones only; arguments as in `max_pool`."""
    for axis in (2, 1):
        length = x.shape[axis]
        before, _, windows = pads(length, size, stride, 1, padding)
        first = np.arange(windows) * stride - before
        count = np.minimum(first + size, length) - np.maximum(first, 0)
        shape = [1] * x.ndim
        shape[axis] = -1
        total = sum(_views(x, axis, size, stride, 1, padding))
        x = total / jnp.asarray(count.reshape(shape), x.dtype)
    return x
