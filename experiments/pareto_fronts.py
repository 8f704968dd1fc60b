"""A table with two objectives: its true front, and what share of it a search has found.

The hypervolume of a set is the area that it dominates above a reference point, here the worst value
of each objective on the true front (its nadir), so that every point counts that lies within the
front's ranges. Where the front has two points or fewer the reference is the worst of the table.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import tables
from experiments.programs import Programs
from experiments.tables import Task
from jaxnas import histories, pareto
from jaxnas.evaluators import tabular

COST = "cost"    # the evaluator's second column
QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of all costs in the table: the targets by default
CURVE_POINTS = 25


class Truth(NamedTuple):
    """One metric against the cost, over the whole table; points are (sign * metric, -cost)."""

    metric: str
    sign: float            # -1 for a metric that is minimised
    rows: np.ndarray       # [F] of the table, on the front, the cheapest first
    front: np.ndarray      # [F, 2] float32, their points in ascending order of the metric
    reference: np.ndarray  # [2] float32
    volume: float          # hypervolume of the front


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is searched for, and the answers, which are enumerated when first asked for.

    Attributes:
      task: the table; its evaluator has the metric and the cost.
      cost: the metric to be minimised besides.
      targets: [K] costs at which a network is wanted, in ascending order.
      report_sign: -1 if the report metric is minimised, else 1.
    """

    task: Task
    cost: str
    targets: np.ndarray
    report_sign: float

    @functools.cached_property
    def search(self) -> Truth:
        """The front in the metric that the search sees."""
        return _truth(self, self.task.metric, self.task.sign)

    @functools.cached_property
    def report(self) -> Truth:
        """The front in the metric that results are reported in."""
        return _truth(self, self.task.report_metric, self.report_sign)


class Found(NamedTuple):
    """What all seeds of one strategy evaluated, and how good its fronts are; N evaluations each."""

    archs: np.ndarray    # [S, N, L] integers
    fitness: np.ndarray  # [S, N] or [S, N, 2] float32
    allowed: np.ndarray  # [S, N] bool; evaluated so far
    new: np.ndarray      # [S, N] bool; a network not evaluated before in this seed
    columns: dict[str, np.ndarray]  # metric, report metric and cost -> [S, N]
    on_front: np.ndarray  # [S, N] bool; on the front of this seed's evaluations
    shares: np.ndarray   # [S, C] float64, percent of the true hypervolume after C evaluations
    report_shares: np.ndarray  # [S, C] the same of the found front, judged by the report metric


def make_problem(task: Task, cost: str, targets: tuple[float, ...], report_sign: float) -> Problem:
    """Make a problem of a table; nothing is compiled.

    Args:
      task: the table and its metrics.
      cost: the metric to be minimised besides.
      targets: costs at which a network is wanted; empty: `QUANTILES` of the table's costs.
      report_sign: -1 if the report metric is better when smaller, else 1.

    Raises:
      ValueError: no such metric, one objective twice, costs that are not above 0, or networks of
        which none is better than the worst in both objectives.
    """
    table = task.table
    costs = table.metric(cost)
    if cost in (task.metric, task.report_metric):
        raise ValueError(f"the cost metric must differ from what is searched for and reported, got "
                         f"{cost} for both.")
    if np.nanmin(costs) <= 0:
        raise ValueError(f"{cost} must be above 0 everywhere, its smallest value is "
                         f"{np.nanmin(costs)}; MnasNet's reward takes its ratio to a target.")
    evaluator = tabular(table.archs, {tables.METRIC: table.metric(task.metric), COST: costs},
                        table.num_choices)
    problem = Problem(task._replace(evaluator=evaluator), cost,
                      np.array(targets or np.nanquantile(costs, QUANTILES)), report_sign)
    for metric, sign in ((task.metric, task.sign), (task.report_metric, report_sign)):
        points = _points(problem, metric, sign)
        known = points[np.isfinite(points).all(1)]
        if not (len(known) and (known > known.min(0)).all(1).any()):
            raise ValueError(f"{table.source}: no architecture is better than the worst in both "
                             f"{metric} and {cost}; there is no front to search for.")
    return problem


def _points(problem: Problem, metric: str, sign: float) -> np.ndarray:
    table = problem.task.table
    values = [sign * table.metric(metric), -table.metric(problem.cost)]
    return np.stack(values, axis=-1).astype(np.float32)


def _truth(problem: Problem, metric: str, sign: float) -> Truth:
    points = _points(problem, metric, sign)
    rows = front_rows(points)
    front = points[rows]
    known = np.isfinite(points).all(1)
    reference = (front if len(front) > 2 else points[known]).min(0)
    volume = float(jax.jit(pareto.hypervolume)(front, reference))
    return Truth(metric, sign, rows, front, reference, volume)


def front_rows(points: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Return which of the points [N, 2] are on the front, in ascending order of the first column.
    """
    found = jax.device_get(jax.jit(pareto.front)(points, mask))
    return found.indices[:found.size]


def curve_counts(num_evaluations: int, budgets: tuple[int, ...]) -> np.ndarray:
    """Return [C] numbers of evaluations after which fronts are measured, the budgets included."""
    grid = np.geomspace(1, num_evaluations, CURVE_POINTS).round().astype(int)
    return np.unique([*grid, *budgets, num_evaluations])


def make_digest(problem: Problem, counts: np.ndarray, num_seeds: int, num_evaluations: int,
                programs: Programs) -> Callable[[np.ndarray, np.ndarray, int], Found]:
    """Register the program that measures the fronts of all seeds.

    Returns:
      (archs [S, N, L], fitness, done) -> `Found`; of every seed the first `done` evaluations were
      made.
    """
    task, table = problem.task, problem.task.table
    truths = (problem.search, problem.report)
    names = list(dict.fromkeys([truth.metric for truth in truths] + [problem.cost]))
    lookup = tabular(table.archs, {name: table.metric(name) for name in names}, table.num_choices)

    def digest(archs: jax.Array, done: jax.Array) -> tuple[Any, ...]:
        archs = archs.astype(jnp.int32)
        columns = lookup(jax.random.key(0), archs)
        made = jnp.arange(num_evaluations) < done
        new = histories.first_seen(jax.vmap(task.space.canonical)(archs), table.num_choices)
        searched, reported = (
            jnp.stack([truth.sign * columns[truth.metric], -columns[problem.cost]], axis=-1)
            for truth in truths)

        def measure(count: jax.Array) -> tuple[jax.Array, jax.Array]:
            front = pareto.non_dominated(searched, made & (jnp.arange(num_evaluations) < count))
            first, second = (jnp.asarray(truth.reference) for truth in truths)
            return (pareto.hypervolume(searched, first, front),
                    pareto.hypervolume(reported, second, front))

        volumes = jax.lax.map(measure, jnp.asarray(counts))
        shares = [100 * volume / truth.volume for volume, truth in zip(volumes, truths)]
        return made, new, columns, pareto.non_dominated(searched, made), *shares

    small = np.min_scalar_type(-max(table.num_choices))
    program = programs.add(
        "digest", jax.jit(jax.vmap(digest, (0, None))),
        jax.ShapeDtypeStruct((num_seeds, num_evaluations, len(table.num_choices)), small),
        jax.ShapeDtypeStruct((), jnp.int32))

    def call(archs: np.ndarray, fitness: np.ndarray, done: int) -> Found:
        found = Found(archs, fitness, *jax.device_get(program(archs, np.int32(done))))
        return found._replace(shares=found.shares.astype(np.float64),  # or p-values underflow
                              report_shares=found.report_shares.astype(np.float64))

    return call


def within(problem: Problem, found: Found, target: float) -> np.ndarray:
    """Return [S] which evaluation of every seed has the best metric at a cost up to a target.

    -1 for a seed without one.
    """
    value = problem.search.sign * found.columns[problem.search.metric]
    allowed = found.allowed & (found.columns[problem.cost] <= target) & np.isfinite(value)
    best = np.where(allowed, value, -np.inf).argmax(1)
    return np.where(allowed.any(1), best, -1)


def true_best(problem: Problem, truth: Truth, target: float) -> int | None:
    """Return the row of the table with the best metric at a cost up to a target; None: none is."""
    affordable = np.flatnonzero(-truth.front[:, 1] <= np.float32(target))
    # the front ascends in the metric and in the cost: the last that is affordable
    return int(truth.rows[affordable[-1]]) if affordable.size else None
