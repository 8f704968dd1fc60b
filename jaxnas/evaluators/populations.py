"""A population of children compiled for the devices there are, refused if it does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import parallel
from jaxnas.device_memory import free_bytes, mebibytes, program_bytes
from jaxnas.evaluators.children import ChildTrainer, Examples, state_bytes


class PopulationTooLarge(ValueError):
    """The memory of a device does not hold it; `largest` is the population that fits, or 0."""

    def __init__(self, message: str, largest: int) -> None:
        super().__init__(message)
        self.largest = largest


class Memory(NamedTuple):
    """Bytes on one device, the examples apart, which lie there before."""

    state: int     # closed form: states and gradients of the members that live at once
    required: int  # temporaries and outputs of the compiled program, 0 if XLA does not say
    available: int | None  # free when it was asked; None if nobody says


class Population(NamedTuple):
    """A compiled program for up to `size` children.

    Attributes:
      run: (keys [size], archs [size, L], active [size] bool) -> curves, see `ChildTrainer.train`.
      size: members; those that are not active fill it up.
      memory: what it needs, and what there was.
    """

    run: Callable[[jax.Array, np.ndarray, np.ndarray], dict[str, jax.Array]]
    size: int
    memory: Memory


def compile_population(
    trainer: ChildTrainer, size: int, arch_shape: tuple[int, ...], examples: Examples, *,
    devices: Sequence[jax.Device] | None = None, available_bytes: int | None = None,
) -> Population:
    """Compile the training of `size` children, once, and check that it fits before it runs.

    Args:
      trainer: of `children.train_children`.
      size: B, 1 or more; need not be a multiple of the devices.
      arch_shape: of one architecture.
      examples: bound to the program, copied to every device.
      devices: where, a share of the members on each; None: the default device.
      available_bytes: of every device; None: `device_memory.free_bytes`.

    Raises:
      ValueError: size is below 1, or no device.
      PopulationTooLarge: it does not fit, and the largest that does is named; nothing is run.
        States and gradients are counted before anything is compiled; if they alone are too much,
        the number named is a bound.
    """
    if size < 1:
        raise ValueError(f"the population must be 1 or more, got {size}.")
    count = 1 if devices is None else len(devices)
    if not count:
        raise ValueError("devices must hold one at least, got none; None is the default device.")
    share = -(-size // count)
    device = jax.local_devices()[0] if devices is None else devices[0]
    one = state_bytes(trainer, arch_shape, examples)
    state = one * share if trainer.form == "vmap" else one
    placed = jax.device_put(examples, device) if devices is None or count == 1 else (
        parallel.replicate(examples, devices))
    available = available_bytes
    if available is None:
        available = free_bytes(device)
        if available is not None and device.platform == "cpu":
            available //= count  # simulated devices share the host's memory
    if available is not None and state > available:
        most = count * (available // one) if trainer.form == "vmap" else 0
        raise _too_large(size, most, state, available, device, "states and gradients alone")

    def compile_share(members: int) -> tuple[jax.stages.Compiled, int]:
        compiled = _compile(trainer, members, arch_shape, placed, count, device, devices)
        return compiled, program_bytes(compiled).beside_arguments

    compiled, required = compile_share(share)
    if available is not None and required > available:
        most = _largest_share(trainer, share, required, available, compile_share)
        raise _too_large(size, count * most, required, available, device, "the compiled program")

    real = (np.arange(count * share) < size).reshape(count, share)

    def run(keys: jax.Array, archs: np.ndarray, active: np.ndarray) -> dict[str, jax.Array]:
        members = (keys, np.asarray(archs, np.int32), np.asarray(active, bool))
        if count > 1:
            keys, archs, active = parallel.shard_rows(members, count)
            active = active & real  # rows that fill the last devices up are not trained again
            return parallel.merge_rows(compiled(keys, archs, placed, active), size)
        keys, archs, active = jax.device_put(members, device)
        return compiled(keys, archs, placed, active)

    return Population(run, size, Memory(state, required, available))


def _compile(
    trainer: ChildTrainer, share: int, arch_shape: tuple[int, ...], placed: Examples, count: int,
    device: jax.Device, devices: Sequence[jax.Device] | None,
) -> jax.stages.Compiled:
    """Compile the training of `share` members on each of `count` devices."""
    shape = (count, share) if count > 1 else (share,)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape))
    archs = jax.ShapeDtypeStruct((*shape, *arch_shape), jnp.int32)
    active = jax.ShapeDtypeStruct(shape, bool)
    if count > 1:
        mapped = jax.pmap(trainer.train, axis_name=parallel.AXIS, devices=devices)
        return mapped.lower(keys, archs, placed, active).compile()
    where = jax.sharding.SingleDeviceSharding(device)
    jitted = jax.jit(trainer.train, in_shardings=where, out_shardings=where)
    return jitted.lower(keys, archs, placed, active).compile()


def _largest_share(
    trainer: ChildTrainer, share: int, required: int, available: int,
    compile_share: Callable[[int], tuple[jax.stages.Compiled, int]],
) -> int:
    """Return how many members fit on a device, or 0: a line through two programs, then compiled.

    Only a refusal pays for these compilations. One after the other the members' number hardly
    counts, so that one is as good as none.
    """
    if trainer.form == "sequential" or share == 1:
        return 0
    first = compile_share(1)[1]
    slope = max(1, (required - first) // (share - 1))
    most = min(share - 1, 1 + (available - first) // slope) if first <= available else 0
    while most > 1 and compile_share(most)[1] > available:
        most -= 1
    return most


def _too_large(size: int, most: int, required: int, available: int, device: jax.Device,
               what: str) -> PopulationTooLarge:
    need = (f"{what} of {size} need {mebibytes(required)} on each and a {device.platform} device "
            f"has {mebibytes(available)} free")
    if most:
        return PopulationTooLarge(
            f"the population must be at most {most}, got {size}: {need}; ask for {most} at once, "
            "or use form='sequential'.", most)
    return PopulationTooLarge(
        f"not even one child at a time fits: {need}; use a smaller network or batch_size.", 0)
