"""The shared weights of ENAS micro: a bank for every block, side and kernel, indexed by the source.

Two architectures that read the same source by the same operation at the same place share those
weights, and no others of that edge (Pham et al., 2018, https://arxiv.org/abs/1802.03268, section
2.4; the released code's `micro_child.py`). `pair_traced.TracedPairNetwork` has weights for each
edge whatever it reads, and the strided cells of the final network; here is the search network:

- Stride 1 everywhere: a factorised reduction halves the last map before a reduction cell, which
  then is a cell as the others, of the other architecture and of twice the channels.
- A cell returns F channels: its loose ends pass ReLU and a 1x1 convolution that has a slice of
  weights for every state, of which those of the loose ends are taken, and BN.
- BN takes the statistics of the batch, in training as in validation; there are no running ones.

So the cells of a stage are one program, a scan over their stacked weights, and a network of any
depth compiles three of them. A cell is a scan over its 2 B edges, an edge one of two rounds, the
halves of a separable convolution, as in `traced`; the edges' weights are taken from the banks
before the scan, and their gradients put back after it.

Cost, in multiply-adds a pixel of a cell: **without `vmap`** those of the 2 B operations chosen, 2 F
(F + 9) or 2 F (F + 25) for convolutions and none else, and (B + 2) F F for the output, of whatever
states. `vmap` over architectures runs every operation of every edge: map over candidates with
`lax.map`, `lax.scan` or devices. Memory for the backward pass: of a cell about 4 maps an edge and 2
a state. Derivatives are of first order, reverse mode.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.genotypes import CELL_OPERATIONS
from jaxnas.networks import primitives
from jaxnas.networks.chain import check_no_drop_path, check_options, he_normal
from jaxnas.networks.depthwise import depthwise
from jaxnas.networks.extraction import Arrays
from jaxnas.networks.mixed import POOLS
from jaxnas.networks.network import check_image
from jaxnas.networks.switching import switch

MICRO_OPERATIONS = CELL_OPERATIONS["enas_micro"]
_KERNELS = {"sep_conv_3x3": 3, "sep_conv_5x5": 5}  # taps along an axis
_STAGES = 3
_STEM_WIDTHS = 3  # channels of the stem are this times F


class SharedMicroNetwork(nn.Module):
    """ENAS micro, search: images [N, H, W, C'] and an arch -> logits [N, classes].

    Variables are "params" alone: there are no running statistics. Parameters that an arch leaves
    unused have gradient zero, see `used`. Initial weights are N(0, 2 / fan_in), the output's with
    the fan-in of all states (the released code draws banks with the number of their entries as the
    fan-in, which BN after each undoes in value). There is no auxiliary head: the released code
    leaves its own untrained.

    Attributes:
      operations: different names among `MICRO_OPERATIONS`, a separable convolution among them; what
        indices mean.
      num_blocks: B.
      features: F of the first stage; 2 F and 4 F are the others'.
      cells_per_stage: normal cells of a stage; a reduction cell leads the second and the third. The
        released code's L is three times this.
      num_classes: outputs of the classifier, which has no bias.
      dropout_rate: before the classifier, read from the "dropout" random stream.
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.
      method: of `depthwise`.
      unroll: whether to compile each cell of a stage by itself.
    """

    operations: tuple[str, ...] = MICRO_OPERATIONS
    num_blocks: int = 5
    features: int = 20
    cells_per_stage: int = 2
    num_classes: int = 10
    dropout_rate: float = 0.0
    axis_name: str | None = None
    method: str = "shifts"
    unroll: bool = False

    def __post_init__(self) -> None:
        names = self.operations
        if len(set(names)) < len(names) or not set(names) <= set(MICRO_OPERATIONS):
            raise ValueError(
                f"operations must be different names among {MICRO_OPERATIONS}, got {names}.")
        if not self._sizes:
            raise ValueError(f"operations must have one of {tuple(_KERNELS)}, else there are no "
                             f"weights to share, got {names}.")
        for name in ("num_blocks", "features", "cells_per_stage"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        check_options(num_classes=self.num_classes, method=self.method,
                      dropout_rate=self.dropout_rate)
        super().__post_init__()

    @property
    def _sizes(self) -> tuple[int, ...]:
        """Kernels that have a bank."""
        return tuple(_KERNELS[name] for name in self.operations if name in _KERNELS)

    @nn.compact
    def __call__(
        self, x: jax.Array, arch: jax.Array, *, train: bool,
        drop_path_rate: float | jax.Array = 0.0
    ) -> jax.Array:
        """Classify images.

        Args:
          x: [N, H, W, C'], H and W divisible by 4.
          arch: [8 B] int32 as `ENASMicro` has it, or the same as [2, B, 4]: the normal and the
            reduction cell, of a block (source, operation, source, operation). It is not
            `TracedPairNetwork`'s [2, B, 4], where the sources come first. May be traced; what is
            out of range is clamped.
          train: whether to drop out; nothing else differs.
          drop_path_rate: must be the number 0, the search drops no paths.

        Raises:
          ValueError: arch or x of another shape, or a rate.
        """
        check_no_drop_path(drop_path_rate)
        check_image(x.shape, 2 ** (_STAGES - 1))
        stages = self._rows(arch)
        width, axis_name = self.features, None if self.is_initializing() else self.axis_name
        norm = functools.partial(_normalize, axis_name=axis_name)

        def layer(name: str, x: jax.Array, *dims: int) -> jax.Array:
            """Apply a 1x1 convolution [C, K] or a factorised reduction [2, C, K / 2], and BN."""
            params = self.param(name, functools.partial(_initial_layer, dims))
            apply = primitives.pointwise if len(dims) == 2 else primitives.factorized_reduce
            return norm(apply(x, params["kernel"]), params)

        wide = _STEM_WIDTHS * width
        stem = self.param("stem", functools.partial(_initial_layer, (3, 3, x.shape[-1], wide)))
        current = norm(primitives.convolution(x, stem["kernel"]), stem)
        for number, rows in enumerate(stages):
            if number == 0:
                # The stem is wider than a cell: each that reads it has a convolution of its own.
                reads = 2 if self.cells_per_stage == 1 else 3
                rectified = jax.nn.relu(current)
                inputs = [layer(f"calibrate_{i}", rectified, wide, width) for i in range(reads)]
                before, current, after = inputs[0], inputs[1], inputs[-1]
            else:
                halves = 2, width, width
                before = layer(f"reduce_{number}_before", jax.nn.relu(current), *halves)
                current = after = layer(f"reduce_{number}", current, *halves)
                width *= 2
            params = self.param(f"stage_{number}", functools.partial(
                _initial_stage, self._sizes, self.num_blocks, len(rows), width))
            run = functools.partial(_cell, operations=self.operations, method=self.method,
                                    norm=norm)

            def step(carry, xs, run=run):
                before, current, after = carry
                output = run(*xs, before, current)
                return (after, output, output), None

            # `after` is what the next cell reads as the output of the cell before the last: it is
            # `current`, unless that is the stem.
            (_, current, _), _ = lax.scan(step, (before, current, after), (params, rows),
                                          unroll=len(rows) if self.unroll else 1)
        pooled = jax.nn.relu(current).mean((1, 2))
        pooled = nn.Dropout(self.dropout_rate, deterministic=not train)(pooled)
        return nn.Dense(self.num_classes, use_bias=False, kernel_init=he_normal(width),
                        name="head")(pooled)

    def used(self, params: Arrays, arch: jax.Array) -> Arrays:
        """Return which parameters an arch uses; a `used_fn` of `evaluators.weight_sharing`.

        Args:
          params: "params" of this module, arrays or shapes.
          arch: as in a call; may be traced.

        Returns:
          The structure of `params`; leaves bool, of the same rank, each axis as long or 1.

        Raises:
          ValueError: arch of another shape.
        """
        masks = jax.tree.map(lambda leaf: jnp.ones((1,) * leaf.ndim, bool), params)

        def spread(chosen: jax.Array, leaf: Any) -> jax.Array:
            return chosen.reshape(*chosen.shape, *(1,) * (leaf.ndim - chosen.ndim))

        for number, rows in enumerate(self._rows(arch)):
            stage = params[f"stage_{number}"]
            taken, loose = jax.vmap(self._used)(rows)  # [n, K, T], [n, B + 2]
            mask = {name: spread(taken, stage[name]) for name in ("pointwise", "scale", "bias")}
            for place, size in enumerate(self._sizes):
                name = f"depthwise_{size}"
                mask[name] = spread(taken[:, place], stage[name])
            kernel = {"kernel": spread(loose, stage["output"]["kernel"])}
            masks[f"stage_{number}"] = mask | {
                "output": masks[f"stage_{number}"]["output"] | kernel}
        return masks

    def _used(self, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return of one cell the entries of the banks [K, T] and the states [B + 2] in use."""
        choice = _choices(rows, self.operations)
        count = int(_starts(self.num_blocks)[-1])
        wanted = (choice["entry"][:, None, None] == np.arange(count)) & (
            choice["kernel"][:, None, None] == np.arange(len(self._sizes))[:, None])
        return (wanted & choice["separable"][:, None, None]).any(0), choice["loose"]

    def _rows(self, arch: jax.Array) -> list[jax.Array]:
        """Return the cells of the stages, each [n, B, 4]."""
        blocks = self.num_blocks
        if arch.shape not in ((8 * blocks,), (2, blocks, 4)):
            raise ValueError(f"arch must be [{8 * blocks}] or [2, {blocks}, 4], got "
                             f"{list(arch.shape)}; check num_blocks.")
        normal, reduction = jnp.reshape(arch, (2, blocks, 4))
        normals = jnp.broadcast_to(normal, (self.cells_per_stage, blocks, 4))
        later = jnp.concatenate([reduction[None], normals])
        return [normals] + [later] * (_STAGES - 1)


def _starts(num_blocks: int) -> np.ndarray:
    """Return where the entries of the edges begin in a bank, and where they end: [2 B + 1]."""
    return np.cumsum([0, *(block + 2 for block in range(num_blocks) for _ in range(2))])


def _choices(rows: jax.Array, operations: tuple[str, ...]) -> dict[str, jax.Array]:
    """Read a cell [B, 4]: of its edges [2 B] what they read and do, and its loose ends [B + 2].

    The edges of a block are neighbours; "entry" and "kernel" say where in the banks an edge's
    weights are, if its operation is "separable".
    """
    blocks = len(rows)
    highest = np.arange(blocks)[:, None] + 1
    starts = jnp.asarray(_starts(blocks)[:-1])
    source = jnp.clip(rows[:, ::2], 0, highest).reshape(-1)
    operation = jnp.clip(rows[:, 1::2], 0, len(operations) - 1).reshape(-1)
    separable = np.array([name in _KERNELS for name in operations])
    kernel = np.where(separable, np.cumsum(separable) - 1, 0)
    return {
        "source": source, "operation": operation, "entry": starts + source,
        "kernel": jnp.asarray(kernel)[operation], "separable": jnp.asarray(separable)[operation],
        "loose": ~(source[:, None] == np.arange(blocks + 2)).any(0),
    }


def _affine(*dims: int) -> Arrays:
    return {"scale": jnp.ones(dims), "bias": jnp.zeros(dims)}


def _initial_layer(dims: tuple[int, ...], key: jax.Array) -> Arrays:
    """Return a convolution [.., C, K] and its BN; a factorised reduction's is [2, C, K / 2]."""
    reduction = len(dims) == 3
    fan_in = dims[1] if reduction else int(np.prod(dims[:-1]))
    return {"kernel": he_normal(fan_in)(key, dims), **_affine(dims[-1] * (1 + reduction))}


def _initial_stage(
    sizes: tuple[int, ...], num_blocks: int, count: int, features: int, key: jax.Array
) -> Arrays:
    """Return the weights of `count` cells, stacked.

    Of T = B (B + 3) entries, one for each edge and source, and K kernels; axes of 2 are the halves
    of a separable convolution.
    """
    *keys, pointwise, output = jax.random.split(key, len(sizes) + 2)
    entries, kernels, states = int(_starts(num_blocks)[-1]), len(sizes), num_blocks + 2
    depthwises = {
        f"depthwise_{size}": he_normal(size * size)(
            key, (count, entries, 2, size, size, features))
        for key, size in zip(keys, sizes)}
    return depthwises | {
        "pointwise": he_normal(features)(
            pointwise, (count, kernels, entries, 2, features, features)),
        **_affine(count, kernels, entries, 2, features),
        "output": {
            "kernel": he_normal(states * features)(output, (count, states, features, features)),
            **_affine(count, features)},
    }


def _normalize(x: jax.Array, params: Arrays, *, axis_name: str | None) -> jax.Array:
    """Batch-normalise x [N, H, W, C] by its own statistics; scale and bias are [C]."""
    x, dtype = primitives.normalize(x, axis_name=axis_name), x.dtype
    return (x * params["scale"] + params["bias"]).astype(dtype)


def _cell(params, rows, before, current, *, operations, method, norm):
    """Run one cell [B, 4] on two maps [N, H, W, F]: returns one such."""
    choice = _choices(rows, operations)
    entry, kernel, edges = choice["entry"], choice["kernel"], 2 * len(rows)
    sizes = [_KERNELS[name] for name in operations if name in _KERNELS]
    # One array of weights, one of scales and biases: each in a loop costs kernels of its own.
    picked = [params[f"depthwise_{size}"][entry] for size in sizes]
    picked.append(params["pointwise"][kernel, entry])
    xs = (
        np.arange(edges) // 2 + 2, choice["source"], choice["operation"],
        jnp.concatenate([weights.reshape(edges, 2, -1) for weights in picked], -1),
        jnp.stack([params["scale"][kernel, entry], params["bias"][kernel, entry]], 2),
    )
    nodes = jnp.zeros((len(rows), *current.shape), current.dtype)
    states = jnp.concatenate([jnp.stack([before, current]), nodes])

    def add_edge(states, xs):
        node, source, operation, weights, affine = xs
        x = lax.dynamic_index_in_dim(states, source, keepdims=False)
        value = _edge(x, operation, weights, affine, operations=operations, method=method,
                      norm=norm)
        return states.at[node].add(value), None

    states, _ = lax.scan(add_edge, states, xs)
    # The slices of states that are read inside the cell meet zeros, as if they were not there.
    loose = choice["loose"][:, None, None, None, None]
    maps = jnp.concatenate(list(jnp.where(loose, jax.nn.relu(states), 0)), -1)
    output = params["output"]
    features = current.shape[-1]
    return norm(maps @ output["kernel"].reshape(-1, features), output)


def _edge(x, operation, weights, affine, *, operations, method, norm):
    """Run one operation on x [N, H, W, F], as two halves of one loop.

    Args:
      operation: [] int32.
      weights: [2, P], of either half the depthwise kernels of all sizes and a pointwise one.
      affine: [2, 2, F], scales and biases of the halves.
    """
    features = x.shape[-1]
    sizes = [_KERNELS[name] for name in operations if name in _KERNELS]
    ends = np.cumsum([size * size * features for size in sizes])

    def branch(name):
        def run(x, weights):
            if name in POOLS:
                return POOLS[name](x, 1, method=method)
            if name == "skip_connect":
                return x
            *depthwises, pointwise = jnp.split(weights, ends)
            size = _KERNELS[name]
            kernel = depthwises[sizes.index(size)].reshape(1, size, size, features)
            x = depthwise(jax.nn.relu(x)[None], kernel, method=method)[0]
            return primitives.pointwise(x, pointwise.reshape(features, features))

        return run

    def renorm(x, affine):
        return norm(x, {"scale": affine[0], "bias": affine[1]})

    branches = [branch(name) for name in (*operations, "skip_connect")]
    separable = jnp.asarray(np.array([name in _KERNELS for name in operations]))[operation]
    index = jnp.stack([operation, jnp.where(separable, operation, len(operations))])

    def half(x, xs):
        index, weights, affine = xs
        x = switch(index, branches, x, weights)
        x = switch(separable.astype(jnp.int32), [lambda x, affine: x, renorm], x, affine)
        return x, None

    return lax.scan(half, x, (index, weights, affine))[0]
