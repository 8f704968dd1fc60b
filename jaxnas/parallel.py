"""Data parallelism on one host: the same step on every device, joined by a named axis.

A step is written over the axis `AXIS` and does not know who runs it: it calls
`jax.lax.pmean(grads, AXIS)`, and `jax.pmap(step, axis_name=AXIS, devices=devices)` maps it over
states made by `replicate` and batches made by `shard_batch`.

Gradients on different numbers of devices agree to rounding, not bit for bit (sums are taken in
another order), so an exact resumption needs the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"

Tree = TypeVar("Tree")


def available_devices(count: int | None = None) -> list[jax.Device]:
    """Return the first `count` devices of this process, in `jax.pmap`'s order.

    Args:
      count: 1 to the number of devices here; None for all.

    Raises:
      ValueError: there are fewer; the message says how to get more.
    """
    devices = jax.local_devices()
    if count is None:
        return devices
    if not 1 <= count <= len(devices):
        platform = devices[0].platform
        if count < 1:
            remedy = "ask for one at least"
        elif platform == "cpu":
            remedy = (f"simulate them with XLA_FLAGS=--xla_force_host_platform_device_count={count}"
                      " in the environment")
        else:
            remedy = "make more of them visible with CUDA_VISIBLE_DEVICES"
        raise ValueError(f"devices must be in [1, {len(devices)}], the {platform} devices found "
                         f"here, got {count}; {remedy}.")
    return devices[:count]


def sharding(devices: Sequence[jax.Device]) -> NamedSharding:
    """Return how a leaf [D, ...] lies on D devices: one slice on each."""
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))


def replicate(tree: Tree, devices: Sequence[jax.Device]) -> Tree:
    """Return `tree` with a leading axis [D], one copy on each device.

    Args:
      tree: a pytree of arrays, random keys and Python numbers.
      devices: D devices, as from `available_devices`.
    """
    placement = sharding(devices)

    def copy(leaf: jax.Array) -> jax.Array:
        leaf = jax.numpy.asarray(leaf)
        # One copy a device; stacking first would hold all D on one.
        copies = [jax.device_put(leaf[None], device) for device in devices]
        shape = (len(devices), *leaf.shape)
        return jax.make_array_from_single_device_arrays(shape, placement, copies)

    return jax.tree.map(copy, tree)


def unreplicate(tree: Tree) -> Tree:
    """Return the first device's copy of a tree [D, ...] that is equal on all devices.

    Nothing is gathered: the copy stays on its device.
    """
    def first(leaf: jax.Array) -> jax.Array:
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
            shard = leaf.addressable_data(0)
            if shard.ndim == leaf.ndim:
                return shard[0]
        return leaf[0]

    return jax.tree.map(first, tree)


def shard_batch(tree: Tree, count: int) -> Tree:
    """Cut every leaf [N, ...] into [count, N / count, ...].

    Args:
      tree: a pytree of NumPy or JAX arrays with the same first axis.
      count: devices; it must divide N.

    Raises:
      ValueError: it does not, naming the batch sizes that do, or a leaf is a scalar.
    """
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}.")

    def cut(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 0:
            raise ValueError("a batch must have a first axis to shard, got a scalar.")
        size = leaf.shape[0]
        if size % count:
            lower = size - size % count
            choices = " or ".join(str(n) for n in (lower, lower + count) if n)
            raise ValueError(f"batch_size must be a multiple of devices={count}, got {size}; "
                             f"use {choices}.")
        return leaf.reshape(count, size // count, *leaf.shape[1:])

    return jax.tree.map(cut, tree)


def shard_rows(tree: Tree, count: int) -> Tree:
    """Cut every leaf [N, ...] into [count, ceil(N / count), ...], first rows filling the last.

    For rows that are independent of each other, such as seeds; `merge_rows` undoes it.

    Args:
      tree: a pytree of NumPy or JAX arrays with the same first axis.
      count: devices, 1 or more.
    """
    def cut(leaf: jax.Array) -> jax.Array:
        share = -(-leaf.shape[0] // count)
        rows = np.arange(share * count) % leaf.shape[0]
        return leaf[rows].reshape(count, share, *leaf.shape[1:])

    return jax.tree.map(cut, tree)


def merge_rows(tree: Tree, num_rows: int) -> Tree:
    """Join leaves [D, M, ...] into [num_rows, ...], dropping the rows that filled the last."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num_rows], tree)
