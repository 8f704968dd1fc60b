"""Measured latency: how long a compiled program takes here, its compilation apart."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Latency(NamedTuple):
    """Milliseconds of one call, and what it is a measurement of."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    compile_seconds: float  # trace, lower and compile
    batch_size: int
    device: str             # platform and kind


def measure(function: Callable[..., Any], *args: Any, batch_size: int, warmup: int = 3,
            repeats: int = 20) -> Latency:
    """Compile `function` for its arguments and time single calls, each waited for.

    Args:
      function: traceable; what it returns must depend on what is to be measured.
      *args: arrays.
      batch_size: of the images among them; recorded only.
      warmup: calls before the first that counts.
      repeats: calls that count, 1 or more.

    Raises:
      ValueError: repeats is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}.")
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    for _ in range(warmup):
        jax.block_until_ready(compiled(*args))
    milliseconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        milliseconds.append(1e3 * (time.perf_counter() - start))
    p10, median, p90 = np.percentile(milliseconds, [10, 50, 90])
    device = jax.devices()[0]
    return Latency(float(median), float(p10), float(p90), compile_seconds, batch_size,
                   f"{device.platform} {device.device_kind}")
