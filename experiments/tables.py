"""Discrete search on a table: what to search, for whom, within which budget; and its programs.

Strategies and seeds are independent, so one program a strategy runs all seeds at once, and a table
of any size is one gather inside it.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.programs import Program, Programs
from experiments.settings import CommonConfig, InputError
from experiments.strategies import Strategy
from jaxnas import data, fast_keys, histories, objectives, parallel, search
from jaxnas.base import Evaluator, Objective, Searcher, SearchSpace
from jaxnas.data import Table, TableError
from jaxnas.evaluators import tabular
from jaxnas.search_spaces import NASBench101, NASBench201, NASBenchMacro, NATSSize, Product

METRIC = "metric"  # name of the evaluator's only column


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSettings(CommonConfig):
    """What every search of a table has."""

    MIN_DEVICES: ClassVar[int] = 0

    table: str = "nasbench201"
    """nasbench201, nasbench_macro, an .npz of archs [N, L] and metrics [N], or NATS-Bench files."""
    metric: str = ""
    """What is searched for; default the table's own, or the only one."""
    report_metric: str = ""
    """What the result is judged by; default the table's own, or the metric."""
    minimize: bool = False
    """Search for small values of the metric."""
    evaluations: int = 112
    """Of every seed. 112 fill the 12,000 s of NAS-Bench-201's searches; see experiments.compare."""
    mutation: Literal["node", "edge"] = "node"
    """On NAS-Bench-201: choose a node, then one of its edges, as its authors do; or any edge."""
    num_seeds: int = 500
    """Independent searches, all at once."""
    devices: int = 0
    """Devices that share the seeds; 0: all, and on a CPU one a core."""
    block: int = 1000
    """Evaluations of every seed between two checkpoints."""
    log_seeds: int = 1
    """Seeds whose evaluations are written to metrics.jsonl; history.npz holds all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("evaluations", 1), ("block", 1), ("log_seeds", 0)):
            if getattr(self, name) < low:
                raise InputError(f"{name} must be >= {low}, got {getattr(self, name)}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableConfig(TableSettings):
    """What every search for one architecture has besides: budgets."""

    unique_evaluations: int = 0
    """Stop a seed at so many different networks; 0: no such limit."""
    cost_metric: str = ""
    """Metric that every evaluation costs, such as cifar10_estimated_seconds_e12."""
    cost_budget: float = 0.0
    """Stop a seed before the sum of its costs exceeds this; 0: no such limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unique_evaluations < 0:
            raise InputError(f"unique_evaluations must be >= 0, got {self.unique_evaluations}.")
        if not 0 <= self.cost_budget < float("inf"):
            raise InputError(f"cost_budget must be 0 or more, got {self.cost_budget}.")
        if bool(self.cost_metric) != (self.cost_budget > 0):
            raise InputError("cost_metric and cost_budget go together: give both or neither.")


class Task(NamedTuple):
    """A table as something to search."""

    table: Table
    space: SearchSpace
    metric: str
    report_metric: str
    evaluator: Evaluator  # sees the metric only
    sign: float           # fitness = sign * metric


def load_task(config: TableSettings) -> Task:
    """Load the table and find its space.

    Raises:
      ValueError: one sentence: no such table or metric, or one that cannot be used.
    """
    table = data.load_table(config.table, metric=config.metric or None,
                            report_metric=config.report_metric or None)
    if max(table.num_choices) < 2:
        raise TableError(f"{table.source}: one decision must have two choices, or there is nothing "
                         f"to search; num_choices is {list(table.num_choices)}.")
    metric, report = table.default_metric, table.default_report_metric
    evaluator = tabular(table.archs, {METRIC: table.metric(metric)}, table.num_choices)
    return Task(table, make_space(config, table), metric, report, evaluator,
                -1.0 if config.minimize else 1.0)


def make_space(config: TableSettings, table: Table) -> SearchSpace:
    """Return the space that a table's architectures belong to; `Product` if it is nobody's."""
    known: dict[str, SearchSpace] = {
        "nasbench201": NASBench201(mutation=config.mutation), "nasbench_macro": NASBenchMacro()}
    if config.table in known:
        return known[config.table]
    if Path(config.table).is_dir():  # official records say which of the two they are
        return NASBench201(mutation=config.mutation) if len(table.num_choices) == 6 else NATSSize()
    if table.num_choices == NASBench101().num_choices and "nasbench101" in Path(config.table).stem:
        return NASBench101()
    return Product(num_choices=table.num_choices, name=table.name)


def choose_devices(config: TableSettings) -> list[jax.Device]:
    """Return the devices that share the seeds.

    On a CPU every core becomes a device of its own, since a table's lookups run on one thread.

    Raises:
      ValueError: there are fewer than asked for.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wanted = config.devices or max(1, min(cores or 1, config.num_seeds))
    # A batched LAPACK kernel waits in a thread of XLA's pool for others of the same pool: with no
    # more threads than devices all of them may wait for ever (seen with jaxlib 0.10.2).
    os.environ.setdefault("PJRT_NPROC", str(4 * wanted))
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        try:
            jax.config.update("jax_num_cpu_devices", wanted)
        except RuntimeError:  # JAX has started already: what there is must do
            pass
    found = jax.local_device_count()
    return parallel.available_devices(config.devices or min(wanted, found) if (
        jax.default_backend() == "cpu") else config.devices or min(found, config.num_seeds))


class Seeds(NamedTuple):
    """The programs with which all seeds of one strategy take some steps."""

    searcher: Searcher
    num_steps: int     # of one call of `advance`
    objectives: tuple[int, ...]  # () or (M,): what fitness has besides its axes below
    init: Program      # keys [D, S/D] -> states
    advance: Program   # states -> states, archs [D, S/D, T, B, L] and fitness [D, S/D, T, B]


def single_objective(task: Task) -> Objective:
    """Return the objective of a task that has its metric alone."""
    return (objectives.maximize if task.sign > 0 else objectives.minimize)(METRIC)


def make_seeds(name: str, strategy: Strategy, task: Task, objective: Objective,
               config: TableSettings, devices: list[jax.Device], programs: Programs) -> Seeds:
    """Build the programs of one strategy and register them; nothing is compiled."""
    searcher = strategy.searcher(task.space)
    batch = jax.ShapeDtypeStruct((searcher.batch_size, len(task.table.num_choices)), jnp.int32)
    fitness = jax.eval_shape(
        lambda archs: objective(task.evaluator(jax.random.key(0), archs)), batch)
    steps = -(-config.evaluations // searcher.batch_size)
    blocks = max(1, -(-steps * searcher.batch_size // config.block))
    num_steps = -(-steps // blocks)
    small = np.min_scalar_type(-max(task.table.num_choices))  # archs in a byte if that holds them

    def init(key: jax.Array) -> search.SearchState:
        return search.init(key, searcher)

    def advance(state: search.SearchState) -> tuple[Any, ...]:
        state, history = search.advance(
            state, searcher, task.evaluator, objective, num_steps=num_steps)
        return state, history.archs.astype(small), history.fitness

    mapped_init = jax.pmap(jax.vmap(init), axis_name=parallel.AXIS, devices=devices)
    mapped = jax.pmap(jax.vmap(advance), axis_name=parallel.AXIS, devices=devices)
    example = seed_keys(config, name, devices)
    keys = jax.ShapeDtypeStruct(example.shape, example.dtype, sharding=example.sharding)
    states = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype,
                                          sharding=parallel.sharding(devices)),
        jax.eval_shape(mapped_init, keys))
    return Seeds(searcher, num_steps, fitness.shape[1:],
                 programs.add(f"{name}_init", mapped_init, keys),
                 programs.add(name, mapped, states))


def seed_keys(config: TableSettings, name: str, devices: list[jax.Device]) -> jax.Array:
    """Return the keys of all seeds [D, S/D]; of one strategy they depend on nothing but the seed.

    Seed n has the same key however many seeds there are, and strategies differ in theirs.
    """
    root = jax.random.fold_in(fast_keys.key(config.seed), zlib.crc32(name.encode()))
    keys = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))(root, jnp.arange(config.num_seeds))
    return jax.device_put(parallel.shard_rows(keys, len(devices)), parallel.sharding(devices))


class Evaluated(NamedTuple):
    """What all seeds of one strategy evaluated, on the host; S seeds, N evaluations each."""

    archs: np.ndarray    # [S, N, L] integers
    fitness: np.ndarray  # [S, N] float32
    allowed: np.ndarray  # [S, N] bool; within the budget, a prefix of every row
    new: np.ndarray      # [S, N] bool; a network not evaluated before in this seed
    best: np.ndarray     # [S, N] int32; which evaluation was the best so far
    columns: dict[str, np.ndarray]  # metric name -> [S, N] of what was evaluated


def make_digest(task: Task, config: TableConfig, num_evaluations: int, programs: Programs) -> Any:
    """Register the program that looks everything up that a report needs.

    Returns:
      (archs [S, N, L], fitness [S, N], done) -> `Evaluated`; of every seed the first `done`
      evaluations were made.
    """
    names = list(dict.fromkeys([task.metric, task.report_metric, *filter(None, [
        config.cost_metric])]))
    table = task.table
    lookup = tabular(table.archs, {name: table.metric(name) for name in names}, table.num_choices)

    def digest(archs: jax.Array, fitness: jax.Array) -> tuple[Any, ...]:
        archs = archs.astype(jnp.int32)
        columns = lookup(jax.random.key(0), archs)
        new = histories.first_seen(jax.vmap(task.space.canonical)(archs), table.num_choices)
        allowed = jnp.ones(fitness.shape, bool)
        if config.unique_evaluations:
            allowed &= histories.within_budget(new=new, unique=config.unique_evaluations)
        if config.cost_metric:
            allowed &= histories.within_budget(cost=columns[config.cost_metric],
                                               budget=config.cost_budget)
        best = histories.incumbents(jnp.where(allowed, fitness, jnp.nan))
        return allowed, new, best, columns

    small = np.min_scalar_type(-max(table.num_choices))
    shape = (config.num_seeds, num_evaluations)
    program = programs.add(
        "digest", jax.jit(jax.vmap(digest)),
        jax.ShapeDtypeStruct((*shape, len(table.num_choices)), small),
        jax.ShapeDtypeStruct(shape, jnp.float32))

    def call(archs: np.ndarray, fitness: np.ndarray, done: int) -> Evaluated:
        allowed, new, best, columns = jax.device_get(program(archs, fitness))
        allowed = allowed & (np.arange(num_evaluations) < done)
        return Evaluated(archs, fitness, allowed, new, best, columns)

    return call


def merge_seeds(array: jax.Array, num_seeds: int) -> np.ndarray:
    """Fetch [D, S/D, T, B, ...] as [S, T * B, ...]."""
    rows = parallel.merge_rows(np.asarray(array), num_seeds)
    return rows.reshape(num_seeds, -1, *rows.shape[3:])
