"""One layer of a mobile grid with the decisions as arrays: its slot of parameters, and its program.

See `mobile_traced` for the ideas and for what the two forms cost.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnas.networks import mobile_grid, mobile_stages, primitives
from jaxnas.networks.mobile import convolve_same, depthwise_same, kernel_init
from jaxnas.networks.operations import drop_path
from jaxnas.networks.switching import switch

Arrays = dict[str, Any]  # a tree of arrays with string keys
FORMS = ("switch", "masked")
ABSENT = len(mobile_grid.OPERATIONS)  # the operation of a layer that does not exist
_EXPANSIONS = tuple(expansion for _, expansion in mobile_grid.OPERATIONS)
_WIDEST = max(_EXPANSIONS)
_KERNEL = max(mobile_grid.KERNELS)
_SE_RATIO = max(mobile_grid.SE_RATIOS)
_IDENTITY, _NO_SKIP = (mobile_stages.SKIPS.index(name) for name in ("identity", "none"))


class Choice(NamedTuple):
    """The decisions of a layer, [] int32 each; widths are in channels."""

    operation: jax.Array  # ABSENT: none
    kernel: jax.Array
    squeeze: jax.Array
    skip: jax.Array
    inputs: jax.Array
    outputs: jax.Array


class Norm(NamedTuple):
    """How batch normalisation is done."""

    train: bool
    momentum: float
    epsilon: float
    axis_name: str | None


class Shape(NamedTuple):
    """What is static of a layer."""

    stride: int
    inputs: int   # widest
    outputs: int  # widest
    form: str
    method: str
    norm: Norm


class Unit(NamedTuple):
    """Shape of a kernel, its fan-out, and whether a BN (or else a bias) follows."""

    shape: tuple[int, ...]
    fan_out: int
    has_norm: bool = True


def make_slots(inputs: int, outputs: int, repeats: int) -> dict[str, Arrays]:
    """Return the units of the first layer and, if any, of the rest, with the number of each."""

    def layer(inputs: int) -> Arrays:
        wide, area = _WIDEST * inputs, _KERNEL * _KERNEL
        hidden = mobile_stages.squeezed(_SE_RATIO, inputs)

        def squeeze(channels: int) -> Arrays:
            return {"reduce": Unit((channels, hidden), hidden, False),
                    "restore": Unit((hidden, channels), channels, False)}

        return {
            "expand": Unit((inputs, wide), wide),
            "depthwise": Unit((_KERNEL, _KERNEL, wide), area),
            "squeeze": squeeze(wide),
            "project": Unit((wide, outputs), outputs),
            "conv": Unit((_KERNEL, _KERNEL, inputs, outputs), area * outputs),
            "conv_squeeze": squeeze(outputs),
        }

    slots: dict[str, Arrays] = {"first": layer(inputs)}
    if repeats > 1:  # stacked, for a loop
        slots["rest"] = _map_units(
            lambda unit: unit._replace(shape=(repeats - 1, *unit.shape)), layer(outputs))
    return slots


def _map_units(function: Callable[[Unit], Any], units: Any) -> Any:
    return jax.tree.map(function, units, is_leaf=lambda unit: isinstance(unit, Unit))


def _channel_shape(unit: Unit, stacked: bool) -> tuple[int, ...]:
    return (unit.shape[0], unit.shape[-1]) if stacked else (unit.shape[-1],)


def initial_params(key: jax.Array, slots: dict[str, Arrays]) -> Arrays:
    params: Arrays = {}
    for part, units in slots.items():
        leaves, tree = jax.tree.flatten(units, is_leaf=lambda unit: isinstance(unit, Unit))
        key, *keys = jax.random.split(key, len(leaves) + 1)

        def initial(key: jax.Array, unit: Unit, stacked: bool = part == "rest") -> Arrays:
            shape = _channel_shape(unit, stacked)
            kernel = {"kernel": kernel_init(unit.fan_out)(key, unit.shape)}
            if unit.has_norm:
                return kernel | {"norm": {"scale": jnp.ones(shape), "bias": jnp.zeros(shape)}}
            return kernel | {"bias": jnp.zeros(shape)}

        params[part] = jax.tree.unflatten(tree, list(map(initial, keys, leaves)))
    return params


def initial_stats(slots: dict[str, Arrays]) -> Arrays:
    stats: Arrays = {}
    for part, units in slots.items():
        stats[part] = {}
        for name, unit in units.items():
            if isinstance(unit, Unit):
                shape = _channel_shape(unit, part == "rest")
                stats[part][name] = {"norm": {"mean": jnp.zeros(shape), "var": jnp.ones(shape)}}
    return stats


def run_layer(
    shape: Shape, choice: Choice, x: jax.Array, params: Arrays, stats: Arrays,
    key: jax.Array | None, drop_path_rate: float | jax.Array,
) -> tuple[jax.Array, Arrays]:
    """Run one slot on x [N, H, W, inputs]; returns [N, H', W', outputs] and the statistics.

    Channels from `choice.inputs` on are zero in x, those from `choice.outputs` on in the output.
    """
    absent = choice.operation == ABSENT
    if shape.form == "switch":
        branches: list[Callable] = [lambda choice, *arrays: _dense(shape, choice, *arrays)]
        branches += [
            lambda choice, *arrays, e=e: _bottleneck(shape, e, choice.inputs * e, choice, *arrays)
            for e in _EXPANSIONS[1:]
        ] + [lambda _, x, params, stats: (_zeros(shape, x), stats)]
        y, stats = switch(choice.operation, branches, x, params, stats, integers=choice)
    else:
        # What is not chosen gets no channels, hence is zero and leaves its statistics alone.
        is_dense = choice.operation == 0
        dense = choice._replace(outputs=jnp.where(is_dense, choice.outputs, 0))
        other = choice._replace(outputs=jnp.where(is_dense | absent, 0, choice.outputs))
        expansion = jnp.asarray((0, *_EXPANSIONS[1:], 0))[choice.operation]
        y, dense_stats = _dense(shape, dense, x, params, stats)
        z, stats = _bottleneck(
            shape, _WIDEST, choice.inputs * expansion, other, x, params, stats)
        y, stats = y + z, stats | {"conv": dense_stats["conv"]}
    if shape.stride > 1:
        return y, stats
    fits = choice.inputs == choice.outputs
    skip = jnp.where(fits, choice.skip, _NO_SKIP)
    if key is not None:
        y = jnp.where(skip == _NO_SKIP, y, drop_path(key, y, drop_path_rate))
    skip = jnp.where(absent, _IDENTITY, skip)
    # Of inputs that fit, the channels beyond the narrower of the two widths are zero.
    x = x[..., : shape.outputs]
    x = jnp.pad(x, ((0, 0),) * 3 + ((0, shape.outputs - x.shape[-1]),))
    if shape.form == "switch":
        paths = [lambda _, x: primitives.avg_pool(x, 1), lambda _, x: x,
                 lambda _, x: jnp.zeros_like(x)]
        return y + switch(skip, paths, x, integers=choice), stats
    pooled = jnp.where(skip == _IDENTITY, x, primitives.avg_pool(x, 1))
    return y + jnp.where(skip == _NO_SKIP, 0, pooled), stats


def _zeros(shape: Shape, x: jax.Array) -> jax.Array:
    size = [-(-length // shape.stride) for length in x.shape[1:3]]
    return jnp.zeros((x.shape[0], *size, shape.outputs), x.dtype)


def _dense(shape, choice, x, params, stats):
    """Convolution, BN, ReLU, squeeze-excitation."""
    def run(x, kernel):
        return convolve_same(x, kernel, stride=shape.stride, method=shape.method)

    y = _spatial(shape, run, choice, x, params["conv"]["kernel"])
    y, conv = _normalize(shape.norm, y, params["conv"], stats["conv"], choice.outputs)
    y = _squeeze(choice, jax.nn.relu(y), params["conv_squeeze"])
    return y, stats | {"conv": conv}


def _bottleneck(shape, expansion, wide, choice, x, params, stats):
    """Expansion, depthwise convolution, squeeze-excitation, projection.

    Args:
      shape: static.
      expansion: the first `expansion * shape.inputs` channels are computed.
      wide: [] int32, of which this many are there; if `choice.inputs`, without a 1x1 convolution.
      choice, x, params, stats: of the layer.
    """
    width, new = expansion * shape.inputs, dict(stats)
    y = x
    if expansion > 1:
        expands = wide > choice.inputs  # always true where the expansion is known
        y = primitives.pointwise(x, params["expand"]["kernel"][:, :width])
        y, new["expand"] = _normalize(
            shape.norm, y, params["expand"], stats["expand"], jnp.where(expands, wide, 0))
        y = jax.nn.relu(y)
        if shape.form == "masked":
            y = jnp.where(expands, y, jnp.pad(x, ((0, 0),) * 3 + ((0, width - x.shape[-1]),)))

    def run(x, kernel):
        return depthwise_same(x, kernel, stride=shape.stride, method=shape.method)

    y = _spatial(shape, run, choice, y, params["depthwise"]["kernel"][..., :width])
    y, new["depthwise"] = _normalize(shape.norm, y, params["depthwise"], stats["depthwise"], wide)
    y = _squeeze(choice, jax.nn.relu(y), params["squeeze"])
    y = primitives.pointwise(y, params["project"]["kernel"][:width])
    y, new["project"] = _normalize(
        shape.norm, y, params["project"], stats["project"], choice.outputs)
    return y, new


def _spatial(shape, run, choice, x, kernel):
    """Convolve with the centre of a 5x5 kernel, or with all of it."""
    if shape.form == "masked":
        offset = jnp.abs(jnp.arange(_KERNEL) - _KERNEL // 2)
        radius = jnp.maximum(offset[:, None], offset[None])
        inside = radius <= jnp.asarray(mobile_grid.KERNELS)[choice.kernel] // 2
        inside = inside.reshape(_KERNEL, _KERNEL, *[1] * (kernel.ndim - 2))
        return run(x, jnp.where(inside, kernel, 0))

    def centre(size: int) -> Callable:
        margin = (_KERNEL - size) // 2
        return lambda _, x, kernel: run(
            x, kernel[margin : margin + size, margin : margin + size])

    return switch(choice.kernel, [centre(size) for size in mobile_grid.KERNELS], x, kernel,
                  integers=choice)


def _squeeze(choice, x, params):
    """Scale channels, or, where there is no squeeze-excitation, multiply by 1."""
    inputs = choice.inputs.astype(jnp.float32)
    hidden = jnp.maximum(1, (inputs * _SE_RATIO).astype(jnp.int32))
    reduce, restore = params["reduce"], params["restore"]
    channels = x.shape[-1]
    y = jax.nn.relu(x.mean((1, 2)) @ reduce["kernel"][:channels] + reduce["bias"])
    y = jnp.where(jnp.arange(y.shape[-1]) < hidden, y, 0)
    y = jax.nn.sigmoid(y @ restore["kernel"][:, :channels] + restore["bias"][:channels])
    return x * jnp.where(choice.squeeze == 1, y, 1)[:, None, None]


def _normalize(norm, x, params, stats, channels):
    """Batch-normalise the first `channels` of x, whose others become zero; {"norm": statistics}."""
    width = x.shape[-1]
    there = jnp.arange(width) < channels
    old = {name: stats["norm"][name][:width] for name in ("mean", "var")}
    new = stats
    if norm.train:
        mean, variance = (
            a.reshape(-1) for a in primitives.batch_statistics(x, (0, 1, 2), norm.axis_name))
        now = {"mean": lax.stop_gradient(mean), "var": lax.stop_gradient(variance)}
        new = {"norm": {
            name: stats["norm"][name].at[:width].set(jnp.where(
                there, norm.momentum * old[name] + (1 - norm.momentum) * now[name], old[name]))
            for name in old}}
    else:
        mean, variance = old["mean"], old["var"]
    scale = lax.rsqrt(variance + norm.epsilon) * params["norm"]["scale"][:width]
    y = (x - mean) * scale + params["norm"]["bias"][:width]
    return jnp.where(there, y, 0).astype(x.dtype), new
