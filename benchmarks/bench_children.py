"""How many candidates an hour are trained from scratch: a population at once, or one by one?

    python -m benchmarks.bench_children                          # 16 children, tiny networks
    python -m benchmarks.bench_children --networks nasrl --size small --devices 2

The baseline, "one_by_one", calls a program for one child from a Python loop; "sequential" trains
the population one after the other inside one program, "vmap" all members side by side. Every form
is compiled once, apart, and the runs alternate; a run is the whole population.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from jaxnas import parallel
from jaxnas.evaluators import Examples, Recipe, member_keys, train_children
from jaxnas.evaluators.populations import compile_population
from jaxnas.networks.chain_layout import FilterChoices
from jaxnas.networks.nasbench201 import NASBench201Network
from jaxnas.search_spaces.nasbench201 import NASBench201
from jaxnas.search_spaces.nasnet import NASNet
from jaxnas.search_spaces.nasrl import NASRL

FORMS = ("one_by_one", "sequential", "vmap")
SIZES = {  # batch, pixels, channels, features, cells a stage, layers of nasrl
    "smoke": (4, 8, 1, 2, 1, 1),
    "tiny": (32, 8, 1, 4, 1, 4),
    "small": (64, 32, 3, 16, 2, 8),
}


def nasbench201(features: int, cells: int, layers: int, method: str) -> tuple[Any, Any, Callable]:
    """Return the space, the network that weights its operations, and what it takes of an arch."""
    del layers, method
    return NASBench201(), NASBench201Network(features=features, cells=cells), lambda arch: {
        "weights": jax.nn.one_hot(arch, 5)}


def nasrl(features: int, cells: int, layers: int, method: str) -> tuple[Any, Any, Callable]:
    """Return the same of a chain by masks."""
    del cells
    choices = FilterChoices((1, 3), (1, 3), (features, 2 * features))
    space = NASRL(layers, choices)
    return space, space.traced_network(method=method), lambda arch: {"arch": arch}


def nasnet(features: int, cells: int, layers: int, method: str) -> tuple[Any, Any, Callable]:
    """Return the same of cells of two blocks that switch between operations."""
    del layers
    space = NASNet(num_blocks=2)
    return space, space.traced_network(
        features=features, cells_per_stage=cells, method=method), lambda arch: {
            "arch": space.rows(arch)}


NETWORKS = {"nasbench201": nasbench201, "nasrl": nasrl, "nasnet": nasnet}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every form of every network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["nasbench201", "nasrl"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="batches an epoch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--method", choices=("shifts", "conv"), default="shifts",
                        help="of the convolutions, where the network has a choice")
    parser.add_argument("--devices", type=int, help="of the forms with a population; default one")
    options = parser.parse_args(arguments)
    for name in ("population", "epochs", "steps", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(options, name)}.")
    devices = None if options.devices is None else parallel.available_devices(options.devices)
    batch, pixels, channels, *widths = SIZES[options.size]
    count = options.population
    pool = batch * (options.steps + 1)  # one batch more, for validation
    images = jax.random.randint(
        jax.random.key(0), (pool, pixels, pixels, channels), 0, 256).astype(jnp.uint8)
    rows = jnp.arange(pool, dtype=jnp.int32)
    examples = Examples(images, rows % 10, rows[batch:], rows[:batch])
    recipe = Recipe(epochs=options.epochs, batch_size=batch, learning_rate=0.01)
    for name in options.networks:
        space, network, inputs = NETWORKS[name](*widths, options.method)
        archs = np.asarray(jax.vmap(space.sample)(jax.random.split(jax.random.key(1), count)))
        keys = member_keys(jax.random.key(2), jnp.asarray(archs))
        runs, rest = {}, {}
        for form in options.forms:
            alone = form == "one_by_one"
            trainer = train_children(
                network, recipe, inputs=inputs, augment=lambda key, x: x / 255.0,
                normalize=lambda x: x / 255.0, form="sequential" if alone else form)
            start = time.perf_counter()
            population = compile_population(
                trainer, 1 if alone else count, archs.shape[1:], examples,
                devices=None if alone else devices)
            seconds = time.perf_counter() - start
            rest[form] = population.memory, seconds

            def run(population=population, alone=alone):
                if not alone:
                    return population.run(keys, archs, np.ones(count, bool))
                return [population.run(keys[i:i + 1], archs[i:i + 1], np.ones(1, bool))
                        for i in range(count)]

            runs[form] = run
        for form, (seconds, _) in common.interleave(runs, options.repeats).items():
            memory, compiling = rest[form]
            common.record("children", {
                "size": options.size, "network": name, "form": form, "population": count,
                "method": options.method, "epochs": options.epochs, "steps": options.steps,
                "devices": 1 if form == "one_by_one" or devices is None else len(devices),
                "children_per_hour": float(f"{3600 * count / np.median(seconds):.4g}"),
                "required_bytes": memory.required,
            }, common.timing(seconds, 0.0, compiling))


if __name__ == "__main__":
    main()
