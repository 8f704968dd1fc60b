"""A table of what parts of networks take on this device, measured once and kept in a file.

A part runs in a loop of its own program; its entry is the difference between many turns and one,
less what the loop itself takes. A network is predicted as the sum of its parts and a constant,
fitted on whole networks: what a call costs, and the parts that all networks have.

    {"format": "jaxnas.latency", "version": 1, "key": {...}, "milliseconds": {"part": 0.1, ...},
     "overhead_ms": 0.2, "checks": [[0.9, 1.1], ...]}

The key says of which device, versions, batch and networks the numbers are. A file is written whole
or not at all; one that cannot be read is an error and is not overwritten.
"""

import concurrent.futures
import functools
import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from jaxnas import __version__
from jaxnas.latency.timing import constant_variables, loop, measure_network, seconds_per_turn

FORMAT, VERSION = "jaxnas.latency", 1
MAX_BYTES = 16 * 1024 * 1024

Shape = tuple[int, int, int]  # H, W, C


class LatencyTableError(ValueError):
    """A file is no latency table, or not the one that was asked for."""


class Unit(NamedTuple):
    """A part of networks that is measured alone."""

    name: str     # in the table
    shape: Shape  # of its input
    function: Callable[[Any, jax.Array], jax.Array]  # (variables, x [N, H, W, C]) -> array
    init: Callable[[jax.Array, jax.Array], Any] = lambda key, x: {}  # (key, x) -> variables


class Calibration(NamedTuple):
    """A whole network, measured to fit the constant of the predictions."""

    network: Any            # Flax module, called (images, train=False)
    shape: Shape            # of an image
    counts: Mapping[str, int]  # unit -> how often the network has it


class LatencyTable(NamedTuple):
    """Milliseconds of units; `predict` sums them."""

    milliseconds: Mapping[str, float]
    overhead_ms: float                            # of every network
    checks: tuple[tuple[float, float], ...] = ()  # of the calibrations: sum of units, measured
    programs: int = 0                             # compiled to make it; 0 if it was read

    def predict(self, counts: Mapping[str, int]) -> float:
        """Return the milliseconds of a network with so many of each unit."""
        return self.overhead_ms + units_ms(self.milliseconds, counts)


def unit_of(name: str, module: Any, shape: Shape, **options: Any) -> Unit:
    """Return the unit of a Flax module, called (x, train=False, **options)."""
    def apply(variables: Any, x: jax.Array) -> jax.Array:
        return module.apply(variables, x, train=False, **options)

    return Unit(name, shape, apply, lambda key, x: module.init(key, x, train=False, **options))


def units_ms(milliseconds: Mapping[str, float], counts: Mapping[str, int]) -> float:
    """Return the sum of units."""
    return math.fsum(count * milliseconds[name] for name, count in counts.items())


def build(units: Sequence[Unit], calibrations: Sequence[Calibration], *, batch_size: int,
          on_unit: Callable[[str], None] = lambda name: None) -> LatencyTable:
    """Measure all units and calibrations here. Host only.

    One program a unit, one a shape of inputs for the loop itself, one a calibration.

    Args:
      units: of distinct names.
      calibrations: 1 or more.
      batch_size: N of every input, 1 or more.
      on_unit: told each unit or calibration that has been measured.

    Raises:
      ValueError: batch_size is below 1, or there is no calibration.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
    if not calibrations:
        raise ValueError("calibrations must be one network or more, got none.")
    shapes = sorted({unit.shape for unit in units})
    idle = {shape: Unit(f"idle_at_{shape}", shape, _identity) for shape in shapes}
    seconds = dict(_measure_units([*idle.values(), *units], batch_size, on_unit))
    milliseconds = {
        unit.name: 1e3 * max(0.0, seconds[unit.name] - seconds[idle[unit.shape].name])
        for unit in units}
    checks = []
    for number, (network, shape, counts) in enumerate(calibrations):
        measured = measure_network(network, shape, batch_size=batch_size)
        checks.append((units_ms(milliseconds, counts), measured.min_ms))
        on_unit(f"network {number + 1}")
    return LatencyTable(milliseconds, fit_overhead(checks), tuple(checks),
                        len(seconds) + len(calibrations))


def _init(unit: Unit, x: Any, key: jax.Array) -> Any:
    return unit.init(key, x)


def _identity(variables: Any, x: jax.Array) -> jax.Array:
    del variables
    return x


def fit_overhead(checks: Sequence[tuple[float, float]]) -> float:
    """Return the mean of measured less summed milliseconds, 0 at least.

    It is the constant of least squares among those that a call could cost.
    """
    return max(0.0, math.fsum(measured - summed for summed, measured in checks) / len(checks))


def _measure_units(units, batch_size, on_unit):
    """Yield (name, seconds); a few are compiled at once, and measured when all are."""
    cores = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(cores) as threads:
        for first in range(0, len(units), 4 * cores):
            prepared = []
            for unit in units[first:first + 4 * cores]:
                x = np.zeros((batch_size, *unit.shape), np.float32)
                values = constant_variables(functools.partial(_init, unit, x))
                variables, x = jax.device_put((values, x))
                lowered = jax.jit(loop(unit.function)).lower(variables, x, jnp.int32(1))
                prepared.append((unit, variables, x, threads.submit(lowered.compile)))
            for *_, program in prepared:  # none is timed while others compile
                program.result()
            for unit, variables, x, program in prepared:
                run = program.result()
                yield unit.name, seconds_per_turn(
                    lambda turns: jax.block_until_ready(run(variables, x, jnp.int32(turns))))
                on_unit(unit.name)


def device_key() -> dict[str, Any]:
    """Return what says on which machine, and with which versions, something was measured."""
    device = jax.devices()[0]
    return {"platform": device.platform, "device": device.device_kind,
            "machine": platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__,
            "jaxlib": jaxlib.__version__, "jaxnas": __version__}


def load_or_build(
    title: str, units: Sequence[Unit], calibrations: Sequence[Calibration], *, batch_size: int,
    directory: Path | None, build: Callable[..., LatencyTable] = build,
    on_unit: Callable[[str], None] = lambda name: None,
) -> LatencyTable:
    """Read the table of these units, or measure it and keep it.

    Args:
      title: of the networks; letters, digits and "_".
      units, calibrations, batch_size, on_unit: as in `build`; the names of the units, the batch
        and the device are the key under which the table is kept.
      directory: where tables are; made if absent. None keeps nothing.
      build: measures; tests measure nothing.

    Raises:
      LatencyTableError: the file cannot be read, or is not of this key.
      OSError: it cannot be written.
    """
    names = sorted(unit.name for unit in units)
    networks = [(repr(network), sorted(counts.items())) for network, _, counts in calibrations]
    key = {**device_key(), "title": title, "batch_size": batch_size,
           "image_shapes": [list(shape) for _, shape, _ in calibrations],
           "networks": _digest([names, networks])}
    path = None
    if directory is not None:
        path = directory / f"{title}_{_digest(key)[:16]}.json"
        if path.exists():
            return read(path, key, names)
    table = build(units, calibrations, batch_size=batch_size, on_unit=on_unit)
    if path is not None:
        write(path, key, table)
    return table


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write(path: Path, key: Mapping[str, Any], table: LatencyTable) -> None:
    """Write a table so that a reader sees all of it or nothing; folders are made."""
    value = {"format": FORMAT, "version": VERSION, "key": dict(key),
             "milliseconds": dict(table.milliseconds), "overhead_ms": table.overhead_ms,
             "checks": [list(check) for check in table.checks]}
    text = json.dumps(value, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".latency-", suffix=".json")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read(path: Path, key: Mapping[str, Any], names: Sequence[str]) -> LatencyTable:
    """Read a table.

    Args:
      path: of the file.
      key: that it must have.
      names: of the units that it must have, and no others.

    Raises:
      LatencyTableError: it cannot be read, is damaged, or is of another key or other units.
    """
    def fail(why: str) -> LatencyTableError:
        return LatencyTableError(f"{path} is no latency table of this device and these networks "
                                 f"({why}); delete it, so that it is measured again.")

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
        value = json.loads(text) if len(text) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise fail(f"it cannot be read: {str(error):.80}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise fail(f"its format is not {FORMAT!r}")
    if value.get("version") != VERSION:
        raise fail(f"its version is not {VERSION}")
    if value.get("key") != dict(key):
        raise fail("it was measured elsewhere, or with other versions or settings")
    found, checks = value.get("milliseconds"), value.get("checks")
    if not isinstance(found, dict) or sorted(found) != sorted(names):
        raise fail("it has other parts")
    if not isinstance(checks, list) or any(
            not isinstance(check, list) or len(check) != 2 for check in checks):
        raise fail("its checks are no pairs")
    numbers = [*found.values(), value.get("overhead_ms"), *(one for pair in checks for one in pair)]
    for number in numbers:
        if type(number) not in (int, float) or not math.isfinite(number):
            raise fail(f"{number!r:.40} is no number of milliseconds")
    if min(found.values(), default=0) < 0:
        raise fail("a part takes less than no time")
    return LatencyTable({name: float(ms) for name, ms in found.items()},
                        float(value["overhead_ms"]), tuple((a, b) for a, b in checks))
