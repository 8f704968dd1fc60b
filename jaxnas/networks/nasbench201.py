"""The network of NAS-Bench-201: fixed, and one for every cell (https://arxiv.org/abs/2001.00326).

Stem, three stages of N equal cells with a residual block of stride 2 before the second and the
third, BN, ReLU, average pooling, classifier. The cells of a stage are one loop, so that neither
the program nor its compile time grows with N.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnas.networks import primitives
from jaxnas.networks.chain import check_no_drop_path
from jaxnas.networks.operations import BatchNorm, convolve

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # source, target
_KERNELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}


class ReLUConv(nn.Module):
    """ReLU, convolution without bias, BN.

    Attributes:
      features: output channels.
      kernel_size: 1 or 3.
      stride: 1 or 2.
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.
    """

    features: int
    kernel_size: int
    stride: int = 1
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C] to [N, H / stride, W / stride, features]."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        fan_in = self.kernel_size ** 2 * x.shape[-1]
        kernel = self.param("kernel", primitives.torch_uniform(fan_in), shape)
        y = convolve(jax.nn.relu(x), kernel, (self.stride, self.stride))
        return BatchNorm(axis_name=self.axis_name, name="norm")(y, train=train)


class NASBench201Cell(nn.Module):
    """Four nodes; an operation on each edge, a node sums its edges; [N, H, W, C] -> the same.

    Attributes:
      arch: [6] static, an index into OPERATIONS for each of EDGES; None: all, weighted.
      axis_name: as in `ReLUConv`.
    """

    arch: tuple[int, ...] | None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, weights: jax.Array | None, train: bool) -> jax.Array:
        nodes = [x] + [jnp.zeros_like(x)] * max(target for _, target in EDGES)
        for edge, (source, target) in enumerate(EDGES):
            chosen = range(len(OPERATIONS)) if self.arch is None else (self.arch[edge],)
            for operation in chosen:
                if OPERATIONS[operation] != "none":
                    value = self._operation(edge, OPERATIONS[operation], nodes[source], train)
                    if weights is not None:
                        value = weights[edge, operation] * value
                    nodes[target] = nodes[target] + value
        return nodes[-1]

    def _operation(self, edge: int, name: str, x: jax.Array, train: bool) -> jax.Array:
        if name == "skip_connect":
            return x
        if name == "avg_pool_3x3":
            return primitives.avg_pool(x, 1)
        return ReLUConv(x.shape[-1], _KERNELS[name], axis_name=self.axis_name,
                        name=f"edge_{edge}_{name}")(x, train=train)


class _Step(nn.Module):
    """One turn of the loop over the cells of a stage."""

    arch: tuple[int, ...] | None
    train: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, weights: jax.Array | None) -> tuple[jax.Array, None]:
        cell = NASBench201Cell(self.arch, self.axis_name)
        nn.share_scope(self, cell)
        return cell(x, weights, self.train), None


class Residual(nn.Module):
    """The block between two stages: halves the image, doubles the width; BN in the branch only."""

    features: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map [N, H, W, C], H and W even, to [N, H / 2, W / 2, features]."""
        branch = ReLUConv(self.features, 3, 2, self.axis_name, name="convolution_0")(x, train=train)
        branch = ReLUConv(self.features, 3, 1, self.axis_name, name="convolution_1")(
            branch, train=train)
        batch, height, width, channels = x.shape
        halved = x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        initial = primitives.torch_uniform(channels)
        return branch + halved @ self.param("shortcut", initial, (channels, self.features))


class NASBench201Network(nn.Module):
    """Images [N, H, W, C'] -> logits [N, classes]; H and W divisible by 4.

    With a static `arch` every architecture is a program of its own. With `arch=None` one program
    serves all: it computes every operation of every edge and sums them by `weights` [6, 5], one-hot
    rows for one architecture (equal to its fixed network with the same parameters), softmax rows
    for a relaxation. It costs what the five operations cost together, in FLOPs and in memory for
    activations: on 3x3 convolutions everywhere 1.1 times, on average 3.4 times the fixed network;
    under `vmap` over one-hot weights a population shares its parameters and its program.

    Attributes:
      arch: [6] operations of `EDGES`, or None.
      features: C of the first stage.
      cells: N of a stage.
      num_classes: outputs of the classifier.
      axis_name: mapped axis over which batch statistics are synchronised; None is per replica.

    Raises:
      ValueError: an option is out of range.
    """

    arch: tuple[int, ...] | None = None
    features: int = 16
    cells: int = 5
    num_classes: int = 10
    axis_name: str | None = None

    def __post_init__(self) -> None:
        if self.arch is not None and (len(self.arch) != len(EDGES) or any(
                not 0 <= value < len(OPERATIONS) for value in self.arch)):
            raise ValueError(f"arch must be {len(EDGES)} integers in [0, {len(OPERATIONS) - 1}], "
                             f"got {self.arch}.")
        for name in ("features", "cells", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, drop_path_rate: float | jax.Array = 0.0,
                 weights: jax.Array | None = None) -> jax.Array:
        """Classify.

        Args:
          x: [N, H, W, C'].
          train: use batch statistics and update the running ones ("batch_stats" mutable).
          drop_path_rate: must be 0; the benchmark drops no paths.
          weights: [6, 5] float32, with `arch=None` only.

        Raises:
          ValueError: a drop path rate, weights without `arch=None` or the reverse, or a size that
            is not halved twice.
        """
        check_no_drop_path(drop_path_rate)
        if (weights is None) == (self.arch is None):
            raise ValueError("weights [6, 5] must be given if and only if arch is None.")
        if x.shape[1] % 4 or x.shape[2] % 4:
            raise ValueError(f"height and width must be divisible by 4, got {x.shape[1:3]}.")
        kernel = self.param("stem", primitives.torch_uniform(9 * x.shape[-1]),
                            (3, 3, x.shape[-1], self.features))
        x = convolve(x, kernel, (1, 1))
        x = BatchNorm(axis_name=self.axis_name, name="stem_norm")(x, train=train)
        for stage in range(3):
            if stage:
                block = Residual(self.features * 2 ** stage, self.axis_name, name=f"block_{stage}")
                x = block(x, train=train)
            loop = nn.scan(_Step, variable_axes={"params": 0, "batch_stats": 0},
                           split_rngs={"params": True}, in_axes=nn.broadcast, length=self.cells)
            x, _ = loop(self.arch, train, self.axis_name, name=f"stage_{stage}")(x, weights)
        x = jax.nn.relu(BatchNorm(axis_name=self.axis_name, name="last_norm")(x, train=train))
        initial = primitives.torch_uniform(x.shape[-1])
        return nn.Dense(self.num_classes, kernel_init=initial, bias_init=initial, name="head")(
            x.mean((1, 2)))


def extract(variables: Mapping[str, Any], arch: tuple[int, ...]) -> dict[str, Any]:
    """Return the fixed network's variables from those of the network for every arch.

    Args:
      variables: of `NASBench201Network(arch=None)`; or gradients of that form.
      arch: [6] static.
    """
    kept = {f"edge_{edge}_{OPERATIONS[operation]}" for edge, operation in enumerate(arch)}

    def take(tree: Mapping[str, Any]) -> dict[str, Any]:
        return {name: take(value) if isinstance(value, Mapping) else value
                for name, value in tree.items()
                if not name.startswith("edge_") or name in kept}

    # A stage in which no cell has parameters is no entry of the fixed network.
    return {name: {key: value for key, value in take(tree).items()
                   if not isinstance(value, Mapping) or value}
            for name, tree in variables.items()}
