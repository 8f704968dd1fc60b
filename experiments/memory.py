"""Refuse a batch that does not fit into the device's memory, before anything runs."""

from __future__ import annotations

from collections.abc import Container

import jax

from experiments.programs import Programs
from experiments.settings import InputError
from jaxnas.device_memory import free_bytes, mebibytes


def check_batch(programs: Programs, flag: str, batch_size: int, names: Container[str], *,
                devices: int = 1, available_bytes: int | None = None) -> None:
    """Compare what compiled programs need, beside their arguments, with what the device has free.

    Call it when the data lie on the device. What grows with a batch are a program's temporaries,
    nearly in proportion; the advice that the error gives rests on that.

    Args:
      programs: compiled; on a device they run one after the other.
      flag: which setting decides the batch, for the error.
      batch_size: its value, over all devices.
      names: of the programs that take such a batch.
      devices: over how many devices a batch is divided; the advice is a multiple.
      available_bytes: free on a device; None asks it (for a CPU: the host's available memory).

    Raises:
      InputError: a program does not fit; the largest batch that would is named.
    """
    available = free_bytes(jax.local_devices()[0]) if available_bytes is None else available_bytes
    if available is None:
        return
    largest, blamed, blamed_needs = batch_size, "", 0
    for cost in programs.costs():
        needs = cost.memory.beside_arguments
        if cost.name not in names or needs <= available:
            continue
        room = max(0, available - cost.memory.output)
        fits = int(batch_size * room / max(1, cost.memory.temporary)) // devices * devices
        if fits < largest:
            largest, blamed = fits, cost.name
            blamed_needs = needs
    if not blamed:
        return
    advice = (f"the largest {flag} that fits is about {largest}" if largest
              else "not even one image a device fits: make the network smaller")
    raise InputError(f"{flag}={batch_size} does not fit: {blamed} needs {mebibytes(blamed_needs)} "
                     f"of the {mebibytes(available)} that are free; {advice}.")
