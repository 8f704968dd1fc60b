"""Data parallelism: the same step on every device of one host or of several, joined by an axis.

A step is written over the axis `AXIS` and does not know who runs it: it calls
`jax.lax.pmean(grads, AXIS)`, and `mapped(step, devices)` maps it over states made by `replicate`
and batches made by `shard_batch` and `place`: `jax.pmap` on the devices of one host, and
`jax.shard_map` over a mesh of the devices of several. Both take leaves [D, ...], a slice a device,
and give the same bits; pmap stays for one host, where no mesh is needed.

Gradients on different numbers of devices agree to rounding, not bit for bit (sums are taken in
another order), so an exact resumption needs the same number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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


def global_devices(count: int | None = None) -> list[jax.Device]:
    """Return the first `count` devices of every process, in the order of the processes.

    With one process these are `available_devices`; with P of them (`jaxnas.distributed`), D are
    P * count.

    Args:
      count: of each process; None for all.

    Raises:
      ValueError: a process has fewer, or None is given and they have different numbers.
    """
    found = [device for device in jax.devices() if device.process_index != jax.process_index()]
    own = available_devices(count)
    devices = []
    for process in range(jax.process_count()):
        theirs = own if process == jax.process_index() else [
            device for device in found if device.process_index == process]
        if len(theirs) < len(own) or (count is None and len(theirs) != len(own)):
            raise ValueError(f"every process needs {len(own)} devices, process {process} has "
                             f"{len(theirs)}: make as many visible to each.")
        devices += theirs[:len(own)]
    return devices


def sharding(devices: Sequence[jax.Device]) -> NamedSharding:
    """Return how a leaf [D, ...] lies on D devices: one slice on each."""
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec(AXIS))


def mapped(function: Callable[..., Any], devices: Sequence[jax.Device]) -> Callable[..., Any]:
    """Compile a function over the axis `AXIS` for leaves [D, ...], a slice on each of D devices.

    Args:
      function: pure, from trees of arrays to trees of arrays.
      devices: D devices, of this process alone (`jax.pmap`) or of several (`shard_mapped`).
    """
    if all(device.process_index == jax.process_index() for device in devices):
        return jax.pmap(function, axis_name=AXIS, devices=devices)
    return shard_mapped(function, devices)


def shard_mapped(function: Callable[..., Any],
                 devices: Sequence[jax.Device]) -> Callable[..., Any]:
    """Do what `jax.pmap` does by `jax.shard_map`, on devices of any processes; see `mapped`."""
    placement = sharding(devices)

    @functools.wraps(function)  # names the program
    def on_slices(*args: Any) -> Any:
        results = function(*jax.tree.map(lambda leaf: leaf[0], args))
        return jax.tree.map(lambda leaf: leaf[None], results)

    # Unchecked, as in pmap: a collective is its own transpose, so the gradient of a loss with
    # collectives in it is that of the sum over devices, of which a step takes the mean.
    return jax.jit(jax.shard_map(
        on_slices, mesh=placement.mesh, in_specs=placement.spec, out_specs=placement.spec,
        check_vma=False))


def replicate(tree: Tree, devices: Sequence[jax.Device]) -> Tree:
    """Return `tree` with a leading axis [D], one copy on each device.

    Args:
      tree: a pytree of arrays, random keys and Python numbers.
      devices: D devices, as from `available_devices` or `global_devices`; with several processes
        each gives the same tree.
    """
    placement = sharding(devices)
    own = [device for device in devices if device.process_index == jax.process_index()]

    def copy(leaf: jax.Array) -> jax.Array:
        leaf = jax.numpy.asarray(leaf)
        # One copy a device; stacking first would hold all D on one.
        copies = [jax.device_put(leaf[None], device) for device in own]
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


def host_copy(tree: Tree) -> Tree:
    """Return one copy of a tree [D, ...] that is equal on all devices, as NumPy arrays.

    It takes no program and no other process; random keys are not taken.
    """
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0))[0], tree)


def place(shards: Tree, devices: Sequence[jax.Device]) -> Tree:
    """Put slices on the devices of this process: [d, ...] -> [D, ...], D of all processes.

    Args:
      shards: leaves [d, ...], as from `shard_batch` with the d devices here; with several
        processes each gives its own, process 0 the first.
      devices: D devices, as from `global_devices`.
    """
    placement = sharding(devices)
    if placement.is_fully_addressable:
        return jax.device_put(shards, placement)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(placement, leaf), shards)


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
