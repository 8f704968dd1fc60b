"""How many evaluations a second does a discrete search make, beside a loop in Python?

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.bench_searchers   # minutes
    python -m benchmarks.bench_searchers --questions seeds --searchers evolution

NAS-Bench-201, validation accuracy after 12 epochs. What is measured is what the experiments run:
seeds by `vmap`, cut over devices by `pmap`, history of architectures (bytes) and fitness returned.
The loops of `benchmarks.python_searchers` run on one core; they and ours are measured in turn, and
a ratio is the median over the turns, so that the load of the machine is the same for both. What a
core does for one evaluation, `core_nanoseconds_per_evaluation`, is CPU time and hardly depends on
the load; `ratio_of_a_core` is that of a loop over ours.

Questions: every searcher with fast keys and JAX's own; growth with seeds; growth with the budget.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import common, python_searchers
from jaxnas import data, fast_keys, objectives, parallel, search
from jaxnas.base import Evaluator, Searcher
from jaxnas.evaluators import tabular
from jaxnas.networks.controllers import independent_logits
from jaxnas.search_spaces import NASBench201
from jaxnas.searchers import local_search, ppo, random_search, regularized_evolution, reinforce

QUESTIONS = ("searchers", "seeds", "budget")
KEYS = {"fast": fast_keys.key, "threefry": jax.random.key}


class Case(NamedTuple):
    """One form of ours."""

    keys: str
    devices: int
    seeds: int
    evaluations: int


def make_searcher(name: str, space: NASBench201) -> Searcher:
    """Build a searcher with the settings of `python_searchers`."""
    policy = independent_logits(space.num_choices)
    return {
        "random": lambda: random_search(space),
        "evolution": lambda: regularized_evolution(
            space, population_size=python_searchers.POPULATION,
            tournament_size=python_searchers.TOURNAMENT),
        "local": lambda: local_search(space),
        "reinforce": lambda: reinforce(policy, optimizer=optax.adam(0.01)),
        "ppo": lambda: ppo(policy, optimizer=optax.adam(0.03), batch_size=10),
    }[name]()


def make_search(searcher: Searcher, evaluator: Evaluator,
                evaluations: int) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Return the search of one seed: key -> archs [N, L] int8, fitness [N]."""
    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        history = search.run(key, searcher, evaluator, objectives.maximize("valid"),
                             num_steps=evaluations // searcher.batch_size)
        archs = history.archs.astype(jnp.int8)
        return archs.reshape(-1, archs.shape[-1]), history.fitness.reshape(-1)

    return one


def compile_case(case: Case, one: Callable) -> tuple[Callable[[], Any], float, float]:
    """Compile one case; return a call of it and the seconds of lowering and compiling."""
    devices = jax.local_devices()[: case.devices]
    keys = jax.random.split(KEYS[case.keys](0), case.seeds)
    keys = jax.device_put(parallel.shard_rows(keys, len(devices)), parallel.sharding(devices))
    compiled, lower, seconds = common.compile_timed(
        jax.pmap(jax.vmap(one), axis_name=parallel.AXIS, devices=devices), keys)
    return lambda: compiled(keys), lower, seconds


def loop(function: Callable, tables: python_searchers.Tables, num_seeds: int,
         evaluations: int) -> Callable[[], None]:
    """Return a call that runs a Python baseline for some seeds."""
    rng = random.Random(0)

    def call() -> None:
        for _ in range(num_seeds):
            function(rng, tables, evaluations)

    return call


def measure(question: str, name: str, cases: Iterable[Case], tables: python_searchers.Tables,
            evaluator: Evaluator, *, repeats: int, baseline_evaluations: int) -> None:
    """Measure cases of one searcher and its baselines in turn; print a line for each."""
    searcher = make_searcher(name, NASBench201(mutation="edge"))
    runs: dict[Any, Callable[[], Any]] = {}
    made: dict[Any, tuple[int, float, float]] = {}  # evaluations of a run, seconds
    baselines = python_searchers.BASELINES[name]
    for case in cases:
        one = make_search(searcher, evaluator, case.evaluations)
        runs[case], lower, compile_seconds = compile_case(case, one)
        made[case] = (case.seeds * case.evaluations, lower, compile_seconds)
    per_seed = min(200, baseline_evaluations)
    for style, function in baselines.items():
        count = max(1, baseline_evaluations // per_seed)
        runs[style] = loop(function, tables, count, per_seed)
        made[style] = (count * per_seed, 0.0, 0.0)
    seconds = common.interleave(runs, repeats)
    rates = {key: made[key][0] / seconds[key][0] for key in runs}
    costs = {key: 1e9 * seconds[key][1] / made[key][0] for key in runs}  # nanoseconds of a core
    for key in runs:
        row: dict[str, Any] = {"question": question, "searcher": name}
        if isinstance(key, Case):
            _, fitness = runs[key]()
            row |= {"code": "jaxnas", **key._asdict()}
            row["mean_best"] = round(float(np.mean(np.asarray(fitness).max(-1))), 3)
            row["ratio"] = {style: _round(np.median(rates[key] / rates[style]))
                            for style in baselines}
            row["ratio_of_a_core"] = {style: _round(np.median(costs[style] / costs[key]))
                                      for style in baselines}
        else:
            row["code"] = f"python {key}"
        row["evaluations_per_second"] = _round(np.median(rates[key]))
        row["core_nanoseconds_per_evaluation"] = _round(np.median(costs[key]))
        common.record("searchers", row, common.timing(seconds[key][0], *made[key][1:]))


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def start(cores: int) -> list[int]:
    """Give every core a device of its own; return the numbers of devices to measure."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", cores)
    return sorted({1, min(cores, jax.local_device_count())})


def main(argv: Sequence[str] | None = None) -> None:
    """Answer the questions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=QUESTIONS)
    parser.add_argument("--searchers", nargs="+", choices=list(python_searchers.BASELINES),
                        default=list(python_searchers.BASELINES))
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it works")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        parser.error("--repeats must be 1 or more.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = start(cores or 1)
    table = data.load_table("nasbench201")
    metric = table.dense("cifar10_valid_accuracy_e12")
    tables = python_searchers.make_tables(metric)
    evaluator = tabular(table.archs, {"valid": table.metric("cifar10_valid_accuracy_e12")},
                        table.num_choices)
    seeds, budgets, baseline = [1, 16, 256, 1024, 4096], [100, 1000, 10_000], 20_000
    num_seeds, evaluations, repeats = 512, 200, options.repeats
    if options.smoke:
        seeds, budgets, baseline = [1, 2], [20], 20
        num_seeds, evaluations, repeats = 4, 20, 1
    ladders: dict[str, list[Case]] = {
        "searchers": [Case(keys, count, num_seeds, evaluations)
                      for keys in KEYS for count in counts],
        "seeds": [Case("fast", count, number, evaluations)
                  for number in seeds for count in counts if count <= number],
        "budget": [Case("fast", count, num_seeds, number)
                   for number in budgets for count in counts],
    }
    for question in options.questions:
        for name in options.searchers:
            if question != "searchers" and name != "evolution" and len(options.searchers) > 1:
                continue  # growth is that of the scan; of others only if asked for alone
            measure(question, name, ladders[question], tables, evaluator, repeats=repeats,
                    baseline_evaluations=baseline)


if __name__ == "__main__":
    main()
