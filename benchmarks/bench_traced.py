"""One program for all candidates, or one compiled for each? Seconds to compile and to train.

    python -m benchmarks.bench_traced                     # 1 and 10 candidates, tiny networks
    python -m benchmarks.bench_traced --hundred --size small --spaces amoebanet

A candidate is trained for `--steps` steps of SGD. "traced" compiles once, "vmap" once for a number
of candidates that it trains side by side, "fixed", the baseline, once a candidate. Every number of
candidates is measured, none extrapolated (the first ten of a hundred are those of ten); there is no
compilation cache. `total_seconds` is compilation and training of all candidates together.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from jaxnas import training
from jaxnas.networks.pair_traced import TracedPairNetwork, cell_rows
from jaxnas.search_spaces.amoebanet import AmoebaNet
from jaxnas.search_spaces.enas_micro import ENASMicro
from jaxnas.search_spaces.nasnet import NASNet
from jaxnas.search_spaces.pnas import PNAS

SPACES: dict[str, Callable[..., Any]] = {
    "nasnet": NASNet, "amoebanet": AmoebaNet, "pnas": PNAS, "enas_micro": ENASMicro}
FORMS = ("traced", "vmap", "fixed")
SIZES = {  # batch, pixels, channels, features, cells a stage, blocks
    "smoke": (2, 8, 1, 2, 1, 1),
    "tiny": (32, 8, 1, 4, 1, 5),
    "small": (64, 32, 3, 16, 2, 5),
}
RATE = 0.05


def train_step(apply: Callable[..., Any], images: jax.Array, labels: jax.Array) -> Callable:
    """Return (variables, *arch) -> variables after one step of SGD."""

    def step(variables, *arch):
        def loss(params):
            output, new = apply(
                variables | {"params": params}, images, *arch, train=True, mutable=["batch_stats"])
            logits = output[0] if isinstance(output, tuple) else output
            return training.cross_entropy(logits, labels), new["batch_stats"]

        gradients, stats = jax.grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda a, b: a - RATE * b, variables["params"], gradients)
        return {"params": params, "batch_stats": stats}

    return step


def draw(network: Any, *inputs: Any) -> Any:
    """Draw variables on the host: an initialisation would be one more program to compile."""
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs, train=False))
    numbers = np.random.default_rng(0)

    def one(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.ones(leaf.shape)
        return jnp.asarray(0.1 * numbers.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(one, dict(shapes))


def run_form(
    form: str, network: TracedPairNetwork, variables: Any, rows: np.ndarray, counts: list[int],
    data: tuple[jax.Array, jax.Array], steps: int,
) -> Iterator[tuple[int, np.ndarray, float, float]]:
    """Compile and train candidates, yielding whenever a number of `counts` is reached.

    What is yielded: the number, seconds a step [R], seconds of lowering and of compilation, all
    since the first candidate. A step is one of one candidate, but of "vmap" one of all.
    """
    def train(step, *arguments):
        variables, *arch = arguments
        jax.block_until_ready(step(variables, *arch))  # warm up
        for _ in range(steps):
            start = time.perf_counter()
            variables = jax.block_until_ready(step(variables, *arch))
            yield time.perf_counter() - start

    if form == "vmap":
        for count in counts:
            copies = jax.tree.map(lambda a, n=count: jnp.broadcast_to(a, (n, *a.shape)), variables)
            step = jax.jit(jax.vmap(train_step(network.apply, *data)))
            compiled, lower, compiling = common.compile_timed(step, copies, rows[:count])
            yield count, np.array([*train(compiled, copies, rows[:count])]), lower, compiling
        return
    seconds: list[float] = []
    lower = compiling = 0.0
    last: Callable[..., Any] | None = None
    for number, row in enumerate(rows[:counts[-1]]):
        arguments = (variables, row) if form == "traced" else (network.extract(variables, row),)
        if form == "fixed" or last is None:
            apply = network.apply if form == "traced" else network.fixed(row).apply
            last, *more = common.compile_timed(jax.jit(train_step(apply, *data)), *arguments)
            lower, compiling = lower + more[0], compiling + more[1]
        seconds += train(last, *arguments)
        if number + 1 in counts:
            yield number + 1, np.array(seconds), lower, compiling


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every form for every number of candidates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=["amoebanet"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["traced", "fixed"])
    parser.add_argument("--candidates", nargs="+", type=int, default=[1, 10])
    parser.add_argument("--hundred", action="store_true", help="measure 100 candidates too")
    parser.add_argument("--steps", type=int, default=5, help="steps of training a candidate")
    parser.add_argument("--operations", nargs="+", help="a subset of the space's")
    parser.add_argument("--method", choices=("shifts", "conv"), default="shifts")
    options = parser.parse_args(arguments)
    for name, values in (("--candidates", options.candidates), ("--steps", [options.steps])):
        if min(values) < 1:
            parser.error(f"{name} must be 1 or more, got {min(values)}.")
    batch, pixels, channels, features, cells, blocks = SIZES[options.size]
    images = jax.random.normal(jax.random.key(0), (batch, pixels, pixels, channels))
    data = images, jnp.arange(batch) % 10
    for name in options.spaces:
        chosen = {"operations": tuple(options.operations)} if options.operations else {}
        space = SPACES[name](num_blocks=blocks, **chosen)
        network = TracedPairNetwork(
            name, space.operations, blocks, features=features, cells_per_stage=cells,
            method=options.method)
        counts = sorted({*options.candidates, *([100] if options.hundred else [])})
        archs = jax.vmap(space.sample)(jax.random.split(jax.random.key(1), counts[-1]))
        rows = np.asarray(jax.vmap(
            lambda arch: cell_rows(arch, num_blocks=blocks, columns=space.columns))(archs))
        variables = draw(network, images, rows[0])
        for form in options.forms:
            for count, seconds, lower, compiling in run_form(
                    form, network, variables, rows, counts, data, options.steps):
                common.record("traced", {
                    "size": options.size, "space": name, "form": form, "candidates": count,
                    "steps": options.steps, "method": options.method,
                    "total_seconds": float(f"{lower + compiling + seconds.sum():.4g}"),
                }, common.timing(seconds, lower, compiling))


if __name__ == "__main__":
    main()
