"""Depthwise convolution as three bilinear maps, each the derivative of the others.

`lax.conv` with one group a channel is 20 to 50 times slower on CPU than the same sum written as
`K * K` shifted multiply-adds, which XLA fuses into one loop. Plain autodiff of that form is slow in
turn (a pad and a pass over memory a tap), so its derivatives are given: with

    forward        y = F(x, w)      y[i] = sum_k x[s i + d k] w[k]
    input gradient x' = X(y', w)    x'[s i + d k] += y'[i] w[k]
    kernel gradient w' = W(x, y')   w'[k] = sum_i x[s i + d k] y'[i]

every derivative of F, X and W is again F, X or W, so reverse mode of any order stays within these
three loops. Forward mode (`jax.jvp`) of a `custom_vjp` is refused by JAX. `forward_mode=True` has
one derivative in forward mode, and then those in reverse; `method="conv"`, which is `lax.conv`, has
all.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.networks import primitives

METHODS = ("shifts", "conv")


def depthwise(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, dilation: int = 1, method: str = "shifts",
    forward_mode: bool = False,
) -> jax.Array:
    """Convolve every channel with a kernel of its own, for `E` edges at once.

    Padding is symmetric, `dilation * (K - 1) // 2`, as in the reference implementations (XLA's
    "SAME" pads differently at stride 2).

    Args:
      x: [E, N, H, W, C], or [1, N, H, W, C] for one input shared by all edges.
      kernel: [E, K, K, C], K odd.
      stride: 1 or more.
      dilation: 1 or more.
      method: "shifts" (fast on CPU) or "conv" (`lax.conv_general_dilated` with C groups).
      forward_mode: of "shifts", see above.

    Returns:
      [E, N, ceil(H / stride), ceil(W / stride), C], of x's dtype.

    Raises:
      ValueError: for an unknown method, an even kernel, or shapes that do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    edges, size, _, channels = kernel.shape
    if size % 2 == 0 or kernel.shape[2] != size:
        raise ValueError(f"kernel must be [E, K, K, C] with K odd, got {kernel.shape}.")
    if x.ndim != 5 or x.shape[0] not in (1, edges) or x.shape[-1] != channels:
        raise ValueError(f"x must be [1 or {edges}, N, H, W, {channels}], got {x.shape}.")
    if method == "conv":
        return _grouped_convolution(x, kernel, stride, dilation)
    forward, _, _ = _bilinear_maps(size, stride, dilation, x.shape[2:4], x.shape[0] != edges)
    return primitives.forward_first(forward, x, kernel) if forward_mode else forward(x, kernel)


def _grouped_convolution(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    edges, size, _, channels = kernel.shape
    pad = dilation * (size - 1) // 2
    x = jnp.broadcast_to(x, (edges, *x.shape[1:]))
    x = jnp.moveaxis(x, 0, 3).reshape(*x.shape[1:4], edges * channels)
    y = lax.conv_general_dilated(
        x,
        jnp.moveaxis(kernel, 0, 2).reshape(size, size, 1, edges * channels),
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=edges * channels,
    )
    return jnp.moveaxis(y.reshape(*y.shape[:3], edges, channels), 3, 0)


@functools.cache
def _bilinear_maps(size: int, stride: int, dilation: int, shape: tuple[int, int], shared: bool):
    """Build F, X and W for kernels of `size`, images of `shape` (H, W); `shared`: x is [1, ...].

    Each is jitted, so that it is traced once however often a network calls it.
    """
    height, width = shape
    pad = dilation * (size - 1) // 2
    offsets = range(0, dilation * size, dilation)

    def wide(x: jax.Array) -> jax.Array:
        """Return what adds up without losing the digits of a narrow type."""
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def windows(x: jax.Array, stride: int) -> list[jax.Array]:
        """Return the K * K shifted views of the padded input, each [.., N, H', W', C]."""
        x = jnp.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0)))
        return [
            x[:, :, row : row + height : stride, column : column + width : stride]
            for row in offsets
            for column in offsets
        ]

    def correlate(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
        taps = wide(kernel).reshape(kernel.shape[0], size * size, 1, 1, 1, kernel.shape[-1])
        products = [wide(view) * taps[:, k] for k, view in enumerate(windows(x, stride))]
        return functools.reduce(jnp.add, products).astype(x.dtype)

    @jax.custom_vjp
    @jax.jit
    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return correlate(x, kernel, stride)

    @jax.custom_vjp
    @jax.jit
    def input_gradient(grads: jax.Array, kernel: jax.Array) -> jax.Array:
        if stride > 1:  # put the zeros back that the stride skipped
            tail = [length - ((length - 1) // stride * stride + 1) for length in shape]
            spread = [(0, tail[0], stride - 1), (0, tail[1], stride - 1)]
            zero = jnp.zeros((), grads.dtype)
            grads = lax.pad(grads, zero, [(0, 0, 0), (0, 0, 0), *spread, (0, 0, 0)])
        flipped = kernel[:, ::-1, ::-1]
        if not shared:
            return correlate(grads, flipped, 1)

        # A sum over the edges would be fused with the taps, which are then computed element by
        # element, 30 times slower; a loop over the edges keeps the fast form, in a small program.
        def add_edge(total, edge):
            return total + wide(correlate(edge[0][None], edge[1][None], 1)), None

        zero = jnp.zeros_like(wide(grads[:1]))
        return lax.scan(add_edge, zero, (grads, flipped))[0].astype(grads.dtype)

    @jax.custom_vjp
    @jax.jit
    def kernel_gradient(x: jax.Array, grads: jax.Array) -> jax.Array:
        # One variadic reduction over rows instead of one reduction a tap: it compiles three times
        # faster. The sum over examples and columns stays outside: short sums round less.
        products = [wide(view) * wide(grads) for view in windows(x, stride)]
        zeros = [jnp.zeros((), products[0].dtype)] * len(products)  # K * K of [E, N, H', W', C]
        sums = lax.reduce(
            products, zeros, lambda a, b: [p + q for p, q in zip(a, b)], dimensions=(2, 3)
        )
        per_example = jnp.stack(sums, 1)  # [E, K * K, N, C]
        sums = per_example.sum(2).astype(grads.dtype)
        return sums.reshape(grads.shape[0], size, size, grads.shape[-1])

    def keep(function):
        # Residuals that are the arguments themselves are mixed up by JAX 0.10 where a scan is
        # differentiated twice; what comes out of a barrier is not forwarded.
        return lambda *arguments: (function(*arguments), lax.optimization_barrier(arguments))

    forward.defvjp(
        keep(forward),
        lambda saved, y: (input_gradient(y, saved[1]), kernel_gradient(saved[0], y)),
    )
    input_gradient.defvjp(
        keep(input_gradient),
        lambda saved, x: (forward(x, saved[1]), kernel_gradient(x, saved[0])),
    )
    kernel_gradient.defvjp(
        keep(kernel_gradient),
        lambda saved, kernel: (input_gradient(saved[1], kernel), forward(saved[0], kernel)),
    )
    return forward, input_gradient, kernel_gradient
