"""Measure a jitted function: compile time apart from run time, device named, one JSON line."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
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


def measure(function: Callable, *args: Any, repeats: int = 5) -> Timing:
    """Compile `function` for `args`, run it once to warm up, then `repeats` times."""
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*args)
    lower = time.perf_counter() - start
    start = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(*args))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        seconds.append(time.perf_counter() - start)
    p10, median, p90 = np.percentile(seconds, [10, 50, 90])
    return Timing(lower, compile_seconds, float(median), float(p10), float(p90))


def record(benchmark: str, row: dict[str, Any], timing: Timing) -> None:
    """Print one JSON line with the device and the versions."""
    device = jax.devices()[0]
    print(json.dumps({
        "benchmark": benchmark, **row,
        "seconds": {name: round(value, 4) for name, value in timing._asdict().items()},
        "device": f"{device.platform} {device.device_kind}", "machine": platform.machine(),
        "jax": jax.__version__,
    }), flush=True)
