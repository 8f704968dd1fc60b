"""3x3 pooling of the relaxed cells, with gradients that compile to vectorised loops.

Plain autodiff turns the gradient of a shifted view into a pad. XLA's CPU backend fuses such pads
with all that is added to them, the gradients of the convolutions beside the pool above all, and the
loop that results tests the bounds of every element: measured on a reduction cell, five times slower
than separate loops. Here the gradient is, as the pool itself, a sum of views of one padded array.

An average is linear, a maximum is linear once it is known which element it takes. A linear map and
its transpose are each other's derivative, so reverse mode of any order stays inside them. Forward
mode of a `custom_vjp` is refused by JAX: `forward_mode=True` has one derivative in forward mode,
and then those in reverse; `method="conv"` is `primitives`' form, which has all.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.networks import primitives


def max_pool(
    x: jax.Array, stride: int, *, method: str = "shifts", forward_mode: bool = False
) -> jax.Array:
    """Pool as `primitives.max_pool` does, ties included: [..., H, W, C] -> [..., H', W', C]."""
    if method != "shifts":
        return primitives.max_pool(x, stride)
    for axis in (x.ndim - 2, x.ndim - 3):
        fixed = lax.stop_gradient(x)
        first, second, third = _views(fixed, axis, stride, -jnp.inf)
        # where in its window the element stands; of equal ones the first
        place = jnp.where(
            first >= jnp.maximum(second, third), 0, jnp.where(second >= third, 1, 2)
        ).astype(jnp.int8)
        take, _ = _selections(x.shape[axis], stride, axis, x.ndim)
        x = primitives.forward_first(take, x, place) if forward_mode else take(x, place)
    return x


def avg_pool(
    x: jax.Array, stride: int, *, method: str = "shifts", forward_mode: bool = False
) -> jax.Array:
    """Pool as `primitives.avg_pool` does: [..., H, W, C] -> [..., H', W', C]."""
    if method != "shifts":
        return primitives.avg_pool(x, stride)
    for axis in (x.ndim - 2, x.ndim - 3):
        average, _ = _averages(x.shape[axis], stride, axis, x.ndim)
        x = primitives.forward_first(average, x) if forward_mode else average(x)
    return x


def _views(x: jax.Array, axis: int, stride: int, fill: float) -> list[jax.Array]:
    """Return the three elements of every window along an axis: one before, at, one after."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (1, 1)
    padded = jnp.pad(x, pads, constant_values=fill)
    return [
        lax.slice_in_dim(padded, offset, offset + x.shape[axis], stride, axis)
        for offset in range(3)
    ]


def _sum(values: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, values)


def _spread(x: jax.Array, axis: int, length: int, stride: int, fill: float) -> jax.Array:
    """Put back along an axis what the stride skipped, as `fill`."""
    if stride == 1:
        return x
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (0, length - (x.shape[axis] - 1) * stride - 1, stride - 1)
    return lax.pad(x, jnp.asarray(fill, x.dtype), config)


@functools.cache
def _selections(length: int, stride: int, axis: int, ndim: int):
    """Build y[i] = x[s i + place[i] - 1] and its transpose, along one axis of that length."""
    del ndim  # of the arguments: a function for each shape, as they remember their traces

    @jax.custom_vjp
    def take(x: jax.Array, place: jax.Array) -> jax.Array:
        first, second, third = _views(x, axis, stride, 0.0)
        return jnp.where(place == 0, first, jnp.where(place == 1, second, third))

    @jax.custom_vjp
    def give(grads: jax.Array, place: jax.Array) -> jax.Array:
        grads = _spread(grads, axis, length, stride, 0)
        place = _spread(place, axis, length, stride, 3)  # 3: nowhere
        # What the window one before gave to its last element, and so on.
        given = zip(_views(grads, axis, 1, 0), _views(place, axis, 1, 3), (2, 1, 0))
        return _sum([jnp.where(where == wanted, value, 0) for value, where, wanted in given])

    def no_gradient(place: jax.Array) -> np.ndarray:
        return np.zeros(place.shape, jax.dtypes.float0)

    # As in `depthwise`: JAX 0.10 mixes up residuals that are the arguments themselves where a scan
    # is differentiated twice, and then gives wrong numbers without a word.
    take.defvjp(lambda x, place: (take(x, place), lax.optimization_barrier(place)),
                lambda place, grads: (give(grads, place), no_gradient(place)))
    give.defvjp(lambda grads, place: (give(grads, place), lax.optimization_barrier(place)),
                lambda place, x: (take(x, place), no_gradient(place)))
    return take, give


@functools.cache
def _averages(length: int, stride: int, axis: int, ndim: int):
    """Build the average of three along one axis, of the real elements only, and its transpose."""
    position = np.arange(0, length, stride)
    count = np.minimum(position + 1, length - 1) - np.maximum(position - 1, 0) + 1
    share = np.expand_dims(1 / count, [i for i in range(ndim) if i != axis])

    @jax.custom_vjp
    def average(x: jax.Array) -> jax.Array:
        return _sum(_views(x, axis, stride, 0)) * share.astype(x.dtype)

    @jax.custom_vjp
    def give(grads: jax.Array) -> jax.Array:
        grads = _spread(grads * share.astype(grads.dtype), axis, length, stride, 0)
        return _sum(_views(grads, axis, 1, 0))

    average.defvjp(lambda x: (average(x), None), lambda _, grads: (give(grads),))
    give.defvjp(lambda grads: (give(grads), None), lambda _, x: (average(x),))
    return average, give
