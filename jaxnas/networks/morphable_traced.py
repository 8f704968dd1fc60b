"""One compiled program for every chain of a bounded set: what a morphism search trains with.

`TracedMorphableNetwork` has a slot for every layer and every skip that there may be; masks take
away channels, and switches leave out layers. Equal to the fixed network of an arch
(`morphable.MorphableNetwork`) in value, gradients and running statistics, see `extract` and
`insert`; parameters that an arch leaves unused have gradient zero, their running statistics stay.

Cost: a layer that is absent and a smaller kernel are left out, forwards and backwards, and so is
the sum over skips into a layer that has none; widths are masked, so every layer costs what the
widest would. Under `vmap` over architectures everything is run.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas import conv_chains
from jaxnas.conv_chains import ConvChain
from jaxnas.networks import primitives
from jaxnas.networks.chain import check_no_drop_path, check_options, dense_convolution, he_normal
from jaxnas.networks.chain_traced import initial_affine, initial_moments, normalize
from jaxnas.networks.extraction import Arrays
from jaxnas.networks.morphable import check_size, pool
from jaxnas.networks.morphable_slots import MorphableSlots
from jaxnas.networks.switching import switch

CONCAT = 1 + conv_chains.KINDS.index("concat")


class TracedMorphableNetwork(nn.Module):
    """Chains that grow: images [N, H, W, C'] and an arch [L] -> logits [N, classes].

    Attributes:
      slots: bounds, and what the integers of an arch mean.
      image_channels: C', at most the largest width.
      num_classes: outputs of the classifier.
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.
      method: of `chain.dense_convolution`.
    """

    slots: MorphableSlots = MorphableSlots()
    image_channels: int = 3
    num_classes: int = 10
    axis_name: str | None = None
    method: str = "shifts"

    def __post_init__(self) -> None:
        check_options(num_classes=self.num_classes, method=self.method)
        if not 1 <= self.image_channels <= max(self.slots.widths):
            raise ValueError(f"image_channels must be in [1, {max(self.slots.widths)}], the "
                             f"largest width, got {self.image_channels}.")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, arch: jax.Array, *, train: bool,
        drop_path_rate: float | jax.Array = 0.0
    ) -> jax.Array:
        """Classify images.

        Args:
          x: [N, H, W, C'].
          arch: [L] int32, may be traced.
          train: use batch statistics and update the running ones ("batch_stats" mutable).
          drop_path_rate: must be the number 0.

        Raises:
          ValueError: arch or x of a shape that does not fit.
        """
        check_no_drop_path(drop_path_rate)
        slots, layers = self.slots, self.slots.max_layers
        check_size(x.shape[1:3], slots.num_stages)
        if arch.shape != (len(slots.num_choices),):
            raise ValueError(f"arch must be [{len(slots.num_choices)}], got {arch.shape}.")
        widest, channels = max(slots.widths), self.image_channels
        if x.shape[-1] != channels:
            raise ValueError(f"images must have {channels} channels, got {x.shape[-1]}; set "
                             "image_channels.")
        found = slots.unpack(arch)
        present = found.kernel < slots.absent
        kind = jnp.where(present[:, None] & present, found.kind, 0)
        masks = (jnp.arange(widest) < jnp.array(slots.widths)[found.width][:, None]).astype(x.dtype)
        norm = functools.partial(
            normalize, train=train, axis_name=None if self.is_initializing() else self.axis_name)
        update = train and not self.is_initializing()
        step = functools.partial(_layer, norm=norm, kernels=slots.kernels, method=self.method)
        x = jnp.pad(x, ((0, 0),) * 3 + ((0, widest - channels),))
        mask = (jnp.arange(widest) < channels).astype(x.dtype)
        cache = jnp.zeros((0, *x.shape), x.dtype)  # [slots so far, N, H, W, F]
        for stage in range(slots.num_stages):
            label, here = f"stage_{stage}", slice(stage * layers, (stage + 1) * layers)
            params = self.param(label, functools.partial(_params, slots, stage))
            stats = self.variable("batch_stats", label, initial_moments, layers, widest)
            cache = jnp.concatenate([cache, jnp.zeros((layers, *x.shape), x.dtype)])
            (x, mask, cache), new = lax.scan(
                step, (x, mask, cache),
                (params, stats.value, np.arange(here.start, here.stop), found.kernel[here],
                 masks[here], kind[here, :here.stop]))
            if update:
                stats.value = new
            x, cache = pool(x), jax.vmap(pool)(cache)
        affine = self.param("norm_head", lambda _: initial_affine(widest))
        moments = self.variable("batch_stats", "norm_head", initial_moments, widest)
        x, new = norm(jax.nn.relu(x), affine, moments.value)
        if update:
            moments.value = _where(mask > 0, new, moments.value)
        initial = primitives.torch_uniform(widest)
        head = nn.Dense(self.num_classes, kernel_init=initial, bias_init=initial, name="head")
        return head((x * mask).mean((1, 2)))

    def extract(self, variables: Mapping[str, Any], arch: jax.Array | np.ndarray) -> Arrays:
        """Return the variables of `MorphableNetwork(slots.chain(arch))` with the same weights.

        Args:
          variables: "params", and "batch_stats" or not, of this module (or a tree of gradients of
            the same structure).
          arch: [L] int32, canonical, on the host.
        """
        chain = self.slots.chain(np.asarray(arch))
        return {kind: self._copy(chain, tree, None, kind) for kind, tree in variables.items()}

    def insert(self, variables: Mapping[str, Any], chain: ConvChain) -> Arrays:
        """Return variables of this module that hold those of a fixed network; the rest is zero.

        Args:
          variables: "params", and "batch_stats" or not, of `MorphableNetwork(chain)`, or a tree of
            the same structure, such as a momentum.
          chain: within the slots.

        Raises:
          ValueError: the chain is out of bounds.
        """
        self.slots.arch(chain)
        shapes = _shapes(self)
        result = {}
        for kind, tree in variables.items():
            dtype = jax.tree.leaves(tree)[0].dtype
            target = jax.tree.map(lambda a, d=dtype: np.zeros(a.shape, d), shapes[kind])
            self._copy(chain, target, tree, kind)
            result[kind] = target
        return result

    def _copy(self, chain: ConvChain, slots: Arrays, fixed: Arrays | None, kind: str) -> Arrays:
        """Go through all pieces of a chain: read them of `slots`, or write those of `fixed` there.

        Returns:
          The pieces as the fixed network names them.
        """
        largest = max(self.slots.kernels)
        found: Arrays = {}
        names = ("scale", "bias") if kind == "params" else ("mean", "var")

        def piece(name: str, tree: Arrays, key: str, place: tuple[Any, ...], *inner: str) -> None:
            if fixed is not None:
                value: Any = fixed[name]
                for part in inner:
                    value = value[part]
                tree[key][place] = np.asarray(value)
            elif inner:
                found.setdefault(name, {})[inner[0]] = tree[key][place]
            else:
                found[name] = tree[key][place]

        places, layers = self.slots.places(chain), chain.layers
        for number, (layer, slot) in enumerate(zip(layers, places)):
            stage, row = divmod(slot, self.slots.max_layers)
            tree, out = slots[f"stage_{stage}"], slice(layer.width)
            before = slice(layers[number - 1].width if number else self.image_channels)
            norm = tree if kind != "params" else tree["norm"]
            for name in names:
                piece(f"norm_{number}", norm, name, (row, before), name)
            if kind != "params":
                continue
            taps = slice((largest - layer.kernel) // 2, (largest + layer.kernel) // 2)
            piece(f"kernel_{number}", tree, "kernel", (row, taps, taps, before, out))
            piece(f"bias_{number}", tree, "bias", (row, out))
            skips = chain.into(number)
            if any(skip.kind == "concat" for skip in skips):
                piece(f"main_{number}", tree, "main", (row, out, out))
            for skip in skips:
                piece(f"skip_{skip.source}_{number}", tree, "skip",
                      (row, places[skip.source], slice(layers[skip.source].width), out))
        last = slice(layers[-1].width)
        for name in names:
            piece("norm_head", slots["norm_head"], name, (last,), name)
        if kind == "params":
            piece("head", slots["head"], "kernel", (last,), "kernel")
            piece("head", slots["head"], "bias", (slice(None),), "bias")
        return found


@functools.lru_cache(maxsize=16)
def _shapes(network: TracedMorphableNetwork) -> Arrays:
    """Return the shapes of the variables."""
    slots = network.slots
    image = jax.ShapeDtypeStruct(
        (1, *(2**slots.num_stages,) * 2, network.image_channels), jnp.float32)
    arch = jax.ShapeDtypeStruct((len(slots.num_choices),), jnp.int32)
    return jax.eval_shape(
        lambda: network.lazy_init(jax.random.key(0), image, arch, train=False))


def _params(slots: MorphableSlots, stage: int, key: jax.Array) -> Arrays:
    """Return the weights of a stage's layers, stacked."""
    layers, size, widest = slots.max_layers, max(slots.kernels), max(slots.widths)
    keys = jax.random.split(key, 3)
    sources = (stage + 1) * layers  # slots up to the end of this stage
    return {
        "kernel": he_normal(size * size * widest)(keys[0], (layers, size, size, widest, widest)),
        "main": he_normal(widest)(keys[1], (layers, widest, widest)),
        "skip": he_normal(widest)(keys[2], (layers, sources, widest, widest)),
        "bias": jnp.zeros((layers, widest)),
        "norm": initial_affine(layers, widest),
    }


def _layer(carry, xs, *, norm, kernels, method):
    """Run the layer of one slot: returns its output, width and the maps, and new statistics."""
    x, before, cache = carry  # [N, H, W, F], [F], [slots, N, H, W, F]
    params, stats, number, kernel, mask, kind = xs
    present = kernel < len(kernels)
    inputs = jnp.where(number == 0, x, jax.nn.relu(x))
    z, moments = norm(inputs, params["norm"], stats)
    z = z * before  # BN gives channels that are not there its bias
    largest = max(kernels)

    def convolve(size):
        edge = (largest - size) // 2
        return lambda z, kernel: dense_convolution(
            z, kernel[edge:edge + size, edge:edge + size], method=method)

    def nothing(z, kernel):
        del kernel
        return jnp.zeros_like(z)

    y = switch(kernel, [*map(convolve, kernels), nothing], z, params["kernel"].astype(x.dtype))
    y = y * mask
    y = switch(jnp.any(kind == CONCAT).astype(jnp.int32),
               [lambda y, main: y, lambda y, main: y @ main], y, params["main"].astype(x.dtype))
    y = switch(jnp.any(kind > 0).astype(jnp.int32),
               [lambda chosen, y, cache, skip: y, _add_skips], y, cache,
               params["skip"].astype(x.dtype), integers=kind > 0)
    y = (y + params["bias"].astype(x.dtype)) * mask
    x = jnp.where(present, y, x)
    cache = lax.dynamic_update_index_in_dim(cache, x, number, 0)
    stats = _where(present & (before > 0), moments, stats)
    return (x, jnp.where(present, mask, before), cache), stats


def _add_skips(chosen, y, cache, skip):
    """Add the 1x1 convolutions [D, F, F] of the chosen [D] maps [D, N, H, W, F] to y."""
    weights = skip * chosen.astype(skip.dtype)[:, None, None]
    return y + jnp.einsum("dnhwc,dcf->nhwf", jax.nn.relu(cache), weights)


def _where(flags, new, old):
    return jax.tree.map(lambda a, b: jnp.where(flags, a, b), new, old)
