"""Measured latency: how long a compiled program takes here, its compilation apart."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MIN_SECONDS = 2e-3    # of a loop that is timed; a longer one is disturbed more often
MAX_TURNS = 8192


class Latency(NamedTuple):
    """Milliseconds of one call, and what it is a measurement of."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    compile_seconds: float  # trace, lower and compile
    batch_size: int
    device: str             # platform and kind
    min_ms: float           # the fastest call, which other processes disturbed least


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
                   f"{device.platform} {device.device_kind}", min(milliseconds))


def measure_network(network: Any, shape: tuple[int, int, int], *, batch_size: int,
                    repeats: int = 50) -> Latency:
    """Measure the inference of a network with weights that are constants.

    Args:
      network: Flax module, called (images [N, H, W, C], train=False).
      shape: (H, W, C) of an image.
      batch_size: N.
      repeats: as in `measure`.
    """
    images = np.zeros((batch_size, *shape), np.float32)
    variables = jax.device_put(
        constant_variables(lambda key: network.init(key, images, train=False)))
    return measure(lambda variables, images: network.apply(variables, images, train=False),
                   variables, images, batch_size=batch_size, repeats=repeats)


def constant_variables(init: Callable[[jax.Array], Any]) -> Any:
    """Return NumPy variables of the shapes that `init` gives, all 0.01, with nothing compiled.

    Zeros could be faster than other numbers, as numbers that grow without bounds could be slower.
    """
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.01, leaf.dtype), shapes)


def loop(function: Callable[[Any, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """Return (variables, x, turns) -> [] that calls `function(variables, x) -> y` `turns` times.

    Barriers keep the function as it would be compiled alone: a sum that reads y, for one, would be
    fused with what makes y, and took up to three times as long. Every turn depends on the one
    before, so that none can be left out or moved.
    """
    def run(variables: Any, x: jax.Array, turns: jax.Array) -> jax.Array:
        def turn(_, carry):
            x, total = carry
            y = lax.optimization_barrier(function(variables, lax.optimization_barrier(x)))
            small = 1e-30 * y.ravel()[0]
            return x + small, total + small

        return lax.fori_loop(0, turns, turn, (x, jnp.zeros((), x.dtype)))[1]

    return run


def seconds_per_turn(run: Callable[[int], Any], *, repeats: int = 10,
                     clock: Callable[[], float] = time.perf_counter) -> float:
    """Time a loop of one turn and one of many, and return the difference per turn, 0 or more.

    What a call costs but a turn does not, drops out. Of `repeats` timings the fastest counts.

    Args:
      run: turns -> anything; returns when they are done.
      repeats: 1 or more.
      clock: seconds.
    """
    def fastest(turns: int, repeats: int) -> float:
        seconds = []
        for _ in range(repeats):
            start = clock()
            run(turns)
            seconds.append(clock() - start)
        return min(seconds)

    run(1)
    turns, once = 8, fastest(1, 2)
    while (many := fastest(1 + turns, 1)) - once < MIN_SECONDS and turns < MAX_TURNS:
        turns *= 4
    once, many = fastest(1, repeats), min(many, fastest(1 + turns, repeats))
    return max(0.0, (many - once) / turns)
