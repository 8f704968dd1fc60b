"""What a search on a table found: metrics beside random and published ones, text, curves."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.tables import Evaluated, TableConfig, Task
from jaxnas import reporting
from jaxnas.search_spaces import NASBench201
from jaxnas.search_spaces.nasbench201 import EDGES, OPERATIONS

RANDOM = "random"
LEVEL = 0.05  # of significance, for all pairs together

# NAS-Bench-201, table 5: CIFAR-10 test accuracy at 12,000 s of simulated time, 500 runs.
_SECOND_HAND = "NAS-Bench-201 paper as others quote it; 12,000 s, about 112 evaluations"
_MEMORY = "NAS-Bench-201 paper, from memory; 12,000 s, about 112 evaluations"
PUBLISHED = {
    "random": reporting.Published(93.70, 0.36, _MEMORY),
    "evolution": reporting.Published(93.92, 0.30, _MEMORY),
    "reinforce": reporting.Published(93.85, 0.37, _SECOND_HAND),
}
PUBLISHED_METRICS = ("cifar10_valid_accuracy_e12", "cifar10_test_accuracy_e200")


class Summary(NamedTuple):
    """What goes into result.json, and onto the terminal."""

    metrics: dict[str, reporting.Metric]
    evaluations: reporting.Evaluations
    best_arch: np.ndarray | None  # [L]
    extra: dict[str, Any]
    text: str


def short_name(metric: str) -> str:
    """Return the name in result.json: test_accuracy and valid_accuracy whatever the data set."""
    for name in ("test_accuracy", "valid_accuracy"):
        if name in metric:
            return name
    return metric


def is_minimized(task: Task, metric: str) -> bool:
    """Tell whether small values of a metric are good: as searched for, else by its name."""
    return task.sign < 0 if metric == task.metric else reporting.smaller_is_better(metric)


def optimum(task: Task, metric: str) -> float:
    """Return the best value in the table."""
    values = task.table.metric(metric)
    return float(np.nanmin(values) if is_minimized(task, metric) else np.nanmax(values))


def final_values(found: Evaluated, metric: str) -> np.ndarray:
    """Return [S] the metric of every seed's best evaluation within the budget; NaN: none."""
    last = np.maximum(found.allowed.sum(1) - 1, 0)
    rows = np.arange(len(last))
    best = found.best[rows, last]
    values = found.columns[metric][rows, best]
    ok = found.allowed.any(1) & np.isfinite(found.fitness[rows, best])
    return np.where(ok, values, np.nan)


def summarize(task: Task, config: TableConfig, evaluated: Mapping[str, Evaluated]) -> Summary:
    """Compare the strategies; what is "found" is what searched best, judged by the search metric.

    Args:
      task: the table.
      config: of the run.
      evaluated: strategy -> what its seeds evaluated; those without a result are left out.
    """
    names = list(dict.fromkeys([task.report_metric, task.metric]))
    values = {key: {name: final_values(found, name) for name in names}
              for key, found in evaluated.items()}
    values = {key: columns for key, columns in values.items()
              if np.isfinite(columns[task.metric]).any()}
    allowed = [found.allowed for found in evaluated.values()]
    counts = reporting.Evaluations(
        int(sum(a.sum() for a in allowed)),
        int(sum((f.new & f.allowed).sum() for f in evaluated.values())),
        int(sum((np.isnan(f.fitness) & f.allowed).sum() for f in evaluated.values())))
    extra: dict[str, Any] = {"metric": task.metric, "report_metric": task.report_metric,
                             "minimize": task.sign < 0}
    if not values:
        return Summary({}, counts, None, extra,
                       f"no evaluation of {counts.total} succeeded: none is in the table, or "
                       f"{task.metric} is missing there.")
    found = max(values, key=lambda key: (key != RANDOM or len(values) == 1, task.sign * float(
        np.nanmean(values[key][task.metric]))))
    published = PUBLISHED if (task.metric, task.report_metric) == PUBLISHED_METRICS and (
        config.table == "nasbench201") else {}
    metrics = {}
    for name in names:
        finite = values[found][name][np.isfinite(values[found][name])]
        if not finite.size:  # the table may lack the report metric of what was found
            continue
        baseline = values[RANDOM][name] if RANDOM in values and found != RANDOM else None
        baseline = None if baseline is None else baseline[np.isfinite(baseline)]
        key = short_name(name) if len({*map(short_name, names)}) == len(names) else name
        metrics[key] = reporting.Metric(
            reporting.summarize(finite),
            reporting.summarize(baseline) if baseline is not None and baseline.size else None,
            optimum=optimum(task, name),
            published=published.get(found) if name == task.report_metric else None)
    extra["found"] = found
    extra["strategies"] = {
        key: _row(task, evaluated[key], columns, published.get(key))
        for key, columns in values.items()}
    extra["comparisons"] = compare(task, {
        key: columns[task.report_metric] for key, columns in values.items()})
    return Summary(metrics, counts, best_arch(task, evaluated[found]), extra,
                   describe(task, config, extra))


def _row(task: Task, found: Evaluated, columns: Mapping[str, np.ndarray],
         published: reporting.Published | None) -> dict[str, Any]:
    per_seed = found.allowed.sum(1)
    finite = {name: v[np.isfinite(v)] for name, v in columns.items()}
    row: dict[str, Any] = {
        name: {"mean": float(v.mean()), "std": float(v.std(ddof=int(len(v) > 1)))}
        for name, v in finite.items() if v.size}
    row["evaluations_mean"] = float(per_seed.mean())
    row["unique_mean"] = float((found.new & found.allowed).sum(1).mean())
    row["seeds_without_result"] = int(np.isnan(columns[task.metric]).sum())
    reached = columns[task.metric] == optimum(task, task.metric)
    row["share_at_optimum"] = float(reached.mean())
    if published is not None:
        row["published"] = {"mean": published.mean, "std": published.std,
                            "source": published.source}
    return row


def best_arch(task: Task, found: Evaluated) -> np.ndarray:
    """Return [L] the architecture that a user takes home: of all seeds the best evaluation."""
    fitness = np.where(found.allowed & np.isfinite(found.fitness), found.fitness, -np.inf)
    seed, number = np.unravel_index(int(fitness.argmax()), fitness.shape)
    return found.archs[seed, number].astype(np.int32)


def compare(task: Task, values: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Test every pair of strategies for a difference of means (Welch), corrected after Holm.

    Args:
      task: the table.
      values: strategy -> [S] final values, one a seed.

    Returns:
      One object a pair: first, second, difference of the means, p_value (corrected), significant
      at 5 % for all pairs together. Pairs with fewer than two seeds, or no spread, are left out.
    """
    pairs: list[dict[str, Any]] = []
    for first, second in itertools.combinations(values, 2):
        a, b = (v[np.isfinite(v)] for v in (values[first], values[second]))
        if min(len(a), len(b)) > 1 and a.std() + b.std() > 0:
            # From moments: of samples, scipy warns where one of the two has no spread at all.
            p = float(stats.ttest_ind_from_stats(
                a.mean(), a.std(ddof=1), len(a), b.mean(), b.std(ddof=1), len(b),
                equal_var=False).pvalue)
            pairs.append({"first": first, "second": second,
                          "difference": float(a.mean() - b.mean()), "p_value": p})
    corrected = 0.0
    for rank, pair in enumerate(sorted(pairs, key=lambda pair: pair["p_value"])):
        corrected = max(corrected, min(1.0, pair["p_value"] * (len(pairs) - rank)))
        pair["p_value"] = corrected
        pair["significant"] = corrected < LEVEL
    return pairs


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of equally many cells as lines with columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
            for row in rows]


def describe(task: Task, config: TableConfig, extra: Mapping[str, Any]) -> str:
    """Return the table and the sentences that end a run on the terminal."""
    names = list(dict.fromkeys([task.metric, task.report_metric]))
    rows = [["strategy", *names, "evaluations", "unique", "published"]]
    for key, row in extra["strategies"].items():
        cells = [f"{row[n]['mean']:.2f} +- {row[n]['std']:.2f}" if n in row else "-" for n in names]
        told = row.get("published")
        rows.append([key, *cells, f"{row['evaluations_mean']:.0f}", f"{row['unique_mean']:.0f}",
                     f"{told['mean']:.2f} +- {told['std']:.2f}" if told else "-"])
    rows.append(["optimum", *(f"{optimum(task, n):.2f}" for n in names), "-", "-", "-"])
    lines = align(rows)
    lines.append(f"mean and standard deviation of {config.num_seeds} seeds; the better, the "
                 f"{'smaller' if is_minimized(task, task.report_metric) else 'larger'}")
    for pair in extra["comparisons"]:
        verdict = "differ" if pair["significant"] else "do not differ significantly"
        lines.append(f"{pair['first']} and {pair['second']} {verdict} in {task.report_metric}: "
                     f"{pair['difference']:+.3f} (Welch, Holm: p = {pair['p_value']:.2g})")
    for source in dict.fromkeys(row["published"]["source"] for row in extra["strategies"].values()
                                if "published" in row):
        lines.append(f"published: {source}")
    return "\n".join(lines)


def regret(task: Task, found: Evaluated, metric: str) -> np.ndarray:
    """Return [S, N] how far the best so far is from the table's best; the last value stays."""
    allowed = found.allowed.sum(1)
    steps = np.minimum(np.arange(found.best.shape[1]), np.maximum(allowed - 1, 0)[:, None])
    best = np.take_along_axis(found.best, steps, 1)
    values = np.take_along_axis(found.columns[metric], best, 1)
    distance = values - optimum(task, metric)
    return distance if is_minimized(task, metric) else -distance


def draw(task: Task, config: TableConfig, evaluated: Mapping[str, Evaluated], summary: Summary,
         path: Path) -> None:
    """Draw the seeds' mean regret in both metrics with quartiles, final values, and the cell."""
    for metric, stem in ((task.report_metric, "regret"), (task.metric, "search_regret")):
        curves: dict[str, Any] = {}
        bands: dict[str, Any] = {}
        for key, found in evaluated.items():
            values = regret(task, found, metric)
            known = np.isfinite(values).any(0)  # not before the first seed had a success
            if known.any():
                values = values[:, known]
                curves[key] = (np.flatnonzero(known) + 1, np.nanmean(values, 0))
                bands[key] = tuple(np.nanquantile(values, (0.25, 0.75), axis=0))
        if curves:
            reporting.plot_curves(
                curves, path / stem, "evaluations", f"regret, {metric}", bands,
                log=any((mean > 0).any() for _, mean in curves.values()))
    published = None if summary.extra.get("found") not in PUBLISHED else next(
        (m.published for m in summary.metrics.values() if m.published is not None), None)
    groups = {key: v[np.isfinite(v)] for key, v in (
        (key, final_values(found, task.report_metric)) for key, found in evaluated.items())}
    groups = {key: v for key, v in groups.items() if v.size}
    if groups:
        reporting.plot_groups(
            groups, path / "final", task.report_metric, optimum(task, task.report_metric),
            None if published is None else (published.mean, published.std))
    if isinstance(task.space, NASBench201) and summary.best_arch is not None:
        edges = [(i, j, OPERATIONS[op]) for (i, j), op in zip(EDGES, summary.best_arch)]
        reporting.draw_dag(edges, path / "cell", f"{summary.extra['found']} on {task.table.name}")
