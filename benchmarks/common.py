"""Measure functions: compile time apart from run time, device named, one JSON line."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Timing(NamedTuple):
    """Seconds."""

    lower: float    # trace and lower, which no cache saves
    compile: float
    median: float
    p10: float
    p90: float
    p25: float
    p75: float


def compile_timed(jitted: Callable, *args: Any) -> tuple[Callable, float, float]:
    """Compile what `jax.jit` or `jax.pmap` returned; return it and the seconds as in `Timing`."""
    start = time.perf_counter()
    lowered = jitted.lower(*args)  # type: ignore[attr-defined]
    middle = time.perf_counter()
    compiled = lowered.compile()
    return compiled, middle - start, time.perf_counter() - middle


def interleave(runs: Mapping[Any, Callable[[], Any]],
               repeats: int) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    """Run all of them once to warm up, then in turn `repeats` times, so that they share the load.

    Returns:
      name -> seconds [repeats], and seconds of all cores together [repeats], in which what other
      processes do hardly counts.
    """
    seconds: dict[Any, list[tuple[float, float]]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            if repeat:
                seconds[name].append((time.perf_counter() - start,
                                      time.process_time() - start_cpu))
    return {name: tuple(np.array(values).T) for name, values in seconds.items()}


def timing(seconds: np.ndarray, lower: float = 0.0, compile: float = 0.0) -> Timing:
    """Summarise repeats [R]."""
    p10, p25, median, p75, p90 = map(float, np.percentile(seconds, [10, 25, 50, 75, 90]))
    return Timing(lower, compile, median, p10, p90, p25, p75)


def measure(function: Callable, *args: Any, repeats: int = 5) -> Timing:
    """Compile `function` for `args`, run it once to warm up, then `repeats` times."""
    compiled, lower, compile_seconds = compile_timed(jax.jit(function), *args)
    seconds, _ = interleave({"": lambda: compiled(*args)}, repeats)[""]
    return timing(seconds, lower, compile_seconds)


def record(benchmark: str, row: dict[str, Any], timing: Timing) -> None:
    """Print one JSON line with the device, the load of the machine and the versions."""
    device = jax.devices()[0]
    print(json.dumps({
        "benchmark": benchmark, **row,
        "seconds": {name: float(f"{value:.4g}") for name, value in timing._asdict().items()},
        "device": f"{device.platform} {device.device_kind}", "machine": platform.machine(),
        "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2),
        "malloc": os.environ.get("GLIBC_TUNABLES", ""), "jax": jax.__version__,
    }), flush=True)
