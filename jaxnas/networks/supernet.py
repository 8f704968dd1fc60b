"""The search network: stem, mixed cells, head (DARTS, section 2 and appendix A.1).

Batch normalisation uses the statistics of the batch at hand and keeps no running ones: the function
is pure, and a supernet's running statistics mean nothing once the alphas have moved.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnas.networks import primitives
from jaxnas.networks.mixed import MixedCell
from jaxnas.networks.own_operations import OwnOperations, own_operations


def reduction_layers(num_layers: int) -> tuple[int, ...]:
    """Return the layers that halve the image: at one third and at two thirds of the depth."""
    return tuple(sorted({num_layers // 3, 2 * num_layers // 3}))


class Preprocess(nn.Module):
    """ReLU, 1x1 convolution (or factorised reduction), BN without affine."""

    features: int
    reduce: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        shape = (2, channels, self.features // 2) if self.reduce else (channels, self.features)
        kernel = self.param("kernel", primitives.torch_uniform(channels), shape)
        return preprocess(x, kernel, self.axis_name)


def preprocess(x: jax.Array, kernel: jax.Array, axis_name: str | None) -> jax.Array:
    """Bring a cell's input [N, H, W, C'] to the cell's width; the kernel's rank says how."""
    convolve = primitives.pointwise if kernel.ndim == 2 else primitives.factorized_reduce
    return primitives.normalize(convolve(jax.nn.relu(x), kernel), axis_name=axis_name)


class _Stage(nn.Module):
    """One normal cell in the loop over the cells of a stage.

    All that differs in shape between the cells of a stage is what they read. So the loop carries
    the first input already preprocessed, and looks one cell ahead: cell k prepares the first input
    of cell k + 1 from the output of cell k - 1.
    """

    cell: dict

    @nn.compact
    def __call__(self, carry, kernels, weights):
        ready, _, previous = carry
        kernel, next_kernel = kernels
        axis_name = self.cell["axis_name"]
        output = MixedCell(**self.cell, name="cell")(
            ready, preprocess(previous, kernel, axis_name), weights
        )
        missing = previous.shape[-1] - output.shape[-1]  # a stem wider than a cell
        output = jnp.pad(output, ((0, 0), (0, 0), (0, 0), (0, missing)))
        return (preprocess(previous, next_kernel, axis_name), previous, output), None


class Supernet(nn.Module):
    """Image [N, H, W, C'] and weights [2, E, O] (normal, reduction) -> logits [N, classes].

    H and W must be divisible by 4 (each of the two reductions halves them).

    Attributes:
      operations: O names; the order of the weights' last axis.
      features: C, channels of the first cells; doubled at each reduction. Even.
      num_layers: L cells, 3 or more; reductions at L // 3 and 2 L // 3.
      num_classes: outputs of the classifier.
      num_nodes: intermediate nodes a cell.
      stem_multiplier: channels of the stem are this times C.
      scan_cells: loop over the normal cells of a stage, which makes the program's size and its
        compile time independent of the depth. False unrolls the loop; parameters stay the same.
      scan_edges, remat, forward_mode, method: as in `MixedCell`.
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.
      own: operations among them that are not the library's, see `own_operations`.

    Raises:
      ValueError: an own operation breaks the rules, or is not in `operations`.
    """

    operations: tuple[str, ...]
    features: int = 16
    num_layers: int = 8
    num_classes: int = 10
    num_nodes: int = 4
    stem_multiplier: int = 3
    scan_cells: bool = True
    scan_edges: bool = True
    remat: bool = False
    forward_mode: bool = False
    method: str = "shifts"
    axis_name: str | None = None
    own: OwnOperations = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "own", own_operations(self.own, among=self.operations))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, weights: jax.Array) -> jax.Array:
        reductions = reduction_layers(self.num_layers)
        if self.num_layers < 3 or self.features % 2:
            raise ValueError(
                f"num_layers must be 3 or more and features even, got {self.num_layers} and "
                f"{self.features}."
            )
        if x.ndim != 4 or x.shape[1] % 4 or x.shape[2] % 4:
            raise ValueError(f"x must be [N, H, W, C], H and W divisible by 4, got {x.shape}.")

        width = self.stem_multiplier * self.features
        shape = (3, 3, x.shape[-1], width)
        kernel = self.param("stem_kernel", primitives.torch_uniform(9 * x.shape[-1]), shape)
        scale = self.param("stem_scale", nn.initializers.ones, (width,))
        bias = self.param("stem_bias", nn.initializers.zeros, (width,))
        stem = primitives.normalize(primitives.convolution(x, kernel), axis_name=self.axis_name)
        stem = stem * scale + bias

        before, previous, reduced = stem, stem, False  # outputs of cells k - 2 and k - 1
        features, layer = self.features, 0
        for end in (*reductions, self.num_layers):
            if end > layer:
                before, previous = self._stage(before, previous, reduced, weights[0], layer, end)
                layer, reduced = end, False
            if end in reductions:
                features *= 2
                s0 = self._preprocess(layer, 0, features, reduced)(before)
                s1 = self._preprocess(layer, 1, features)(previous)
                cell = MixedCell(**self._cell(features, True), name=f"reduction_{layer}")
                before, previous = previous, cell(s0, s1, weights[1])
                layer, reduced = layer + 1, True
        pooled = previous.mean((1, 2))
        initial = primitives.torch_uniform(pooled.shape[-1])
        return nn.Dense(self.num_classes, kernel_init=initial, bias_init=initial, name="head")(
            pooled
        )

    def _cell(self, features: int, reduction: bool) -> dict:
        return {
            "features": features,
            "operations": self.operations,
            "num_nodes": self.num_nodes,
            "reduction": reduction,
            "scan_edges": self.scan_edges,
            "remat": self.remat,
            "forward_mode": self.forward_mode,
            "axis_name": self.axis_name,
            "method": self.method,
            "own": self.own,
        }

    def _preprocess(self, layer: int, which: int, features: int, reduce: bool = False):
        name = f"preprocess_{layer}_{which}"
        return Preprocess(features, reduce, self.axis_name, name=name)

    def _stage(self, before, previous, reduced, weights, first: int, end: int):
        """Run the normal cells `first` to `end - 1`, all of one width and resolution."""
        features = self.features * 2 ** sum(k < first for k in reduction_layers(self.num_layers))
        outputs = self.num_nodes * features
        ready = self._preprocess(first, 0, features, reduced)(before)

        # The first cell may read fewer or more channels than the others (the stem's): pad.
        inputs = max(outputs, previous.shape[-1])

        def kernel(layer: int, which: int, channels: int) -> jax.Array:
            name = f"preprocess_{layer}_{which}_kernel"
            value = self.param(name, primitives.torch_uniform(channels), (channels, features))
            return jnp.pad(value, ((0, inputs - channels), (0, 0)))

        def pad(x: jax.Array) -> jax.Array:
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, inputs - x.shape[-1])))

        channels = previous.shape[-1]
        cells = range(first, end)
        second = [kernel(k, 1, channels if k == first else outputs) for k in cells]
        ahead = [kernel(k + 1, 0, channels if k == first else outputs) for k in cells[:-1]]
        ahead.append(jnp.zeros_like(second[-1]))  # nobody reads what the last cell prepares
        scan = nn.scan(
            _Stage,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=((0, 0), nn.broadcast),
            length=len(cells),
            unroll=1 if self.scan_cells else len(cells),
        )
        stage = scan(self._cell(features, False), name=f"normal_{first}")
        carry = (ready, pad(previous), pad(previous))
        kernels = (jnp.stack(second), jnp.stack(ahead))
        (_, before, previous), _ = stage(carry, kernels, weights)
        before = before[..., : channels if len(cells) == 1 else outputs]
        return before, previous[..., :outputs]
