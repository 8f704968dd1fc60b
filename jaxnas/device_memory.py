"""What a compiled program needs of a device's memory, and what the device has."""

from __future__ import annotations

from typing import NamedTuple

import jax


class ProgramBytes(NamedTuple):
    """Bytes that a program takes on one device."""

    argument: int
    output: int
    temporary: int  # at the peak

    @property
    def beside_arguments(self) -> int:
        """What must be free when the arguments lie there already."""
        return self.output + self.temporary


def program_bytes(compiled: jax.stages.Compiled) -> ProgramBytes:
    """Ask XLA what a compiled program needs; zeros where the platform does not say."""
    try:
        memory = compiled.memory_analysis()
    except (NotImplementedError, RuntimeError):  # what backends without an answer raise
        memory = None
    return ProgramBytes(*(int(getattr(memory, f"{part}_size_in_bytes", 0))
                          for part in ("argument", "output", "temp")))


def free_bytes(device: jax.Device) -> int | None:
    """Return the free memory of a device, of the host for a CPU; None if nobody says."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    if device.platform != "cpu":
        return None
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):  # what the kernel would give, caches included
                    return 1024 * int(line.split()[1])
    except OSError:  # not Linux
        pass
    return None


def mebibytes(count: int) -> str:
    """Write a number of bytes for people."""
    return f"{count / 2 ** 20:,.1f} MiB"
