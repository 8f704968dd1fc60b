"""What searches for a front found: shares of the true hypervolume, networks at targets, plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import pareto_fronts, table_report
from experiments.pareto_fronts import Found, Problem, Truth
from experiments.table_report import RANDOM, Summary
from jaxnas import reporting

SHARE, REPORT_SHARE = "hypervolume_percent", "report_hypervolume_percent"


def summarize(problem: Problem, counts: np.ndarray, budgets: Sequence[int],
              found: Mapping[str, Found]) -> Summary:
    """Compare the strategies; what is "found" is the largest share of the true hypervolume.

    The network of genotype.json is the found strategy's most accurate one within the middle
    target, of all seeds; or within the next target that any seed met.

    Args:
      problem: the table and its true fronts.
      counts: [C] after how many evaluations `Found.shares` were measured.
      budgets: which of them are compared; the last is the whole search.
      found: strategy -> what its seeds evaluated.
    """
    evaluations = reporting.Evaluations(
        int(sum(f.allowed.sum() for f in found.values())),
        int(sum((f.new & f.allowed).sum() for f in found.values())),
        int(sum((_failed(f) & f.allowed).sum() for f in found.values())))
    extra: dict[str, Any] = {"metric": problem.task.metric, "cost_metric": problem.cost,
                             "report_metric": problem.task.report_metric}
    if not any((~_failed(f) & f.allowed).any() for f in found.values()):
        return Summary({}, evaluations, None, extra,
                       f"no evaluation of {evaluations.total} succeeded.")
    measures = {SHARE: problem.search}
    if problem.task.report_metric != problem.task.metric:
        measures[REPORT_SHARE] = problem.report
    extra["truth"] = {name: _facts(problem, truth) for name, truth in measures.items()}
    shares = {n: {name: {key: values(f, name)[:, column(counts, n)] for key, f in found.items()}
                  for name in measures} for n in budgets}
    last = shares[budgets[-1]]
    best = max(found, key=lambda key: (key != RANDOM or len(found) == 1, last[SHARE][key].mean()))
    extra["found"] = best
    extra["budgets"] = {str(n): {key: {name: _spread(per[key]) for name, per in shares[n].items()}
                                 for key in found} for n in budgets}
    extra["comparisons"] = {str(n): table_report.compare(problem.task, shares[n][SHARE])
                            for n in budgets}
    extra["targets"] = [_target(problem, found, best, float(t)) for t in problem.targets]
    baseline = RANDOM if RANDOM in found and best != RANDOM else None
    metrics = {name: reporting.Metric(
        reporting.summarize(last[name][best]),
        reporting.summarize(last[name][baseline]) if baseline else None, optimum=100.0)
        for name in measures}
    middle = len(problem.targets) // 2
    networks = [target["network"] for target in extra["targets"]]
    chosen = next((n for n in networks[middle:] + networks[:middle] if n is not None), None)
    arch = None if chosen is None else np.array(chosen["arch"], np.int32)
    return Summary(metrics, evaluations, arch, extra, describe(problem, budgets, extra))


def values(found: Found, name: str) -> np.ndarray:
    """Return [S, C] the shares of a name."""
    return found.shares if name == SHARE else found.report_shares


def column(counts: np.ndarray, budget: int) -> int:
    """Return which of the counts a budget is."""
    return int(np.searchsorted(counts, budget))


def _failed(found: Found) -> np.ndarray:
    return ~np.all([np.isfinite(values) for values in found.columns.values()], axis=0)


def _spread(array: np.ndarray) -> dict[str, float]:
    return {"mean": float(array.mean()), "std": float(array.std(ddof=int(len(array) > 1)))}


def _facts(problem: Problem, truth: Truth) -> dict[str, Any]:
    return {"metric": truth.metric, "size": len(truth.front), "hypervolume": truth.volume,
            "reference": {truth.metric: float(truth.sign * truth.reference[0]),
                          problem.cost: float(-truth.reference[1])}}


def _target(problem: Problem, found: Mapping[str, Found], best: str,
            target: float) -> dict[str, Any]:
    """Return what every strategy has within a target, and the network of the best of its seeds."""
    metrics = list(dict.fromkeys([problem.task.metric, problem.task.report_metric]))
    row: dict[str, Any] = {"target": target, "strategies": {}, "network": None}
    optimum = pareto_fronts.true_best(problem, problem.search, target)
    row["optimum"] = None if optimum is None else {
        name: _number(problem.task.table.metric(name)[optimum]) for name in [*metrics,
                                                                             problem.cost]}
    for key, one in found.items():
        chosen = pareto_fronts.within(problem, one, target)
        met = chosen >= 0
        rows = np.flatnonzero(met)
        entry: dict[str, Any] = {"seeds_without_result": int((~met).sum())}
        for name in metrics:
            reached = one.columns[name][rows, chosen[rows]]
            if np.isfinite(reached).any():
                entry[name] = _spread(reached[np.isfinite(reached)].astype(np.float64))
        row["strategies"][key] = entry
        if key == best and rows.size:
            value = problem.search.sign * one.columns[problem.search.metric][rows, chosen[rows]]
            seed = rows[value.argmax()]
            row["network"] = _network(problem, one, int(seed), int(chosen[seed]))
    return row


def _network(problem: Problem, found: Found, seed: int, number: int) -> dict[str, Any]:
    arch = found.archs[seed, number].astype(np.int32)
    return {"arch": arch.tolist(), "text": str(problem.task.space.decode(arch)),
            **{name: _number(column[seed, number]) for name, column in found.columns.items()}}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def describe(problem: Problem, budgets: Sequence[int], extra: Mapping[str, Any]) -> str:
    """Return the tables and the sentences that end a run on the terminal."""
    lines = []
    for name, facts in extra["truth"].items():
        reference = ", ".join(f"{key} {value:.4g}" for key, value in facts["reference"].items())
        lines.append(f"{name}: percent of the hypervolume of the {facts['size']} networks on the "
                     f"true front of {facts['metric']} and {problem.cost}, above {reference}")
        rows = [["strategy", *(f"{n} evaluations" for n in budgets)]]
        for key in extra["budgets"][str(budgets[0])]:
            spreads = [extra["budgets"][str(n)][key][name] for n in budgets]
            rows.append([key, *(f"{s['mean']:.2f} +- {s['std']:.2f}" for s in spreads)])
        lines += table_report.align(rows)
    for n in budgets:
        for pair in extra["comparisons"][str(n)]:
            if RANDOM in (pair["first"], pair["second"]):
                verdict = "differ" if pair["significant"] else "do not differ significantly"
                lines.append(
                    f"{pair['first']} and {pair['second']} {verdict} after {n} evaluations: "
                    f"{pair['difference']:+.2f} (Welch, Holm: p = {pair['p_value']:.2g})")
    lines.append(f"{problem.task.metric} within a cost: mean and standard deviation of the seeds, "
                 f"and the best network of all seeds of {extra['found']}")
    lines += table_report.align([target_header(problem, extra), *target_rows(problem, extra)])
    if "mnasnet_ppo" not in extra["budgets"][str(budgets[0])]:
        lines.append("MnasNet's reward was left out: it needs a metric that is maximised and never "
                     "below 0.")
    return "\n".join(lines)


def target_header(problem: Problem, extra: Mapping[str, Any]) -> list[str]:
    """Return the columns of the table of targets."""
    strategies = extra["targets"][0]["strategies"]
    names = [problem.cost, *dict.fromkeys([problem.task.metric, problem.task.report_metric])]
    return [f"{problem.cost} <=", *strategies, "optimum",
            *(f"{name} of {extra['found']}" for name in names), "network"]


def target_rows(problem: Problem, extra: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of targets: the metric of every strategy, and the network found."""
    metric = problem.task.metric
    names = [problem.cost, *dict.fromkeys([metric, problem.task.report_metric])]
    rows = []
    for target in extra["targets"]:
        cells = [f"{entry[metric]['mean']:.2f} +- {entry[metric]['std']:.2f}"
                 if metric in entry else "-" for entry in target["strategies"].values()]
        optimum, network = target["optimum"], target["network"]
        rows.append([
            f"{target['target']:.4g}", *cells,
            "-" if optimum is None else f"{optimum[metric]:.2f}",
            *(["-"] * (1 + len(names)) if network is None else [
                *("-" if network[name] is None else f"{network[name]:.4g}" for name in names),
                network["text"]])])
    return rows


def draw(problem: Problem, counts: np.ndarray, budgets: Sequence[int],
         found: Mapping[str, Found], summary: Summary, path: Path) -> None:
    """Draw the front over time, shares over evaluations and at the end, and write front.json."""
    if "found" not in summary.extra:
        return
    curves: dict[str, Any] = {}
    bands: dict[str, Any] = {}
    for key, one in found.items():
        missing = 100 - one.shares
        curves[key] = (counts, missing.mean(0))
        bands[key] = tuple(np.quantile(missing, (0.25, 0.75), axis=0))
    reporting.plot_curves(curves, path / "hypervolume", "evaluations",
                          "percent of the true hypervolume not found", bands,
                          log=any((mean > 0).any() for _, mean in curves.values()))
    reporting.plot_groups({key: one.shares[:, -1].tolist() for key, one in found.items()},
                          path / "final", "percent of the true hypervolume", 100.0)
    one = found[summary.extra["found"]]
    truth = np.stack([-problem.search.front[:, 1],
                      problem.search.sign * problem.search.front[:, 0]], axis=-1)
    points = np.stack([one.columns[problem.cost][0], one.columns[problem.search.metric][0]], -1)
    known = np.isfinite(points).all(1)
    if not known.any():  # of the first seed, which is the one that is drawn
        return
    stages = {}
    for n in budgets:
        rows = stage(problem, one, n)
        if rows.size:
            stages[f"{n} evaluations"] = points[rows]
    y_range = shown_range(problem, points[known], truth)
    reporting.plot_fronts(
        stages, path / "front", problem.cost, problem.search.metric,
        dominated=points[known & ~one.on_front[0]], true_front=truth, y_range=y_range)
    reporting.write_front(path, _page(problem, one, summary, points, known, truth, y_range))


def stage(problem: Problem, found: Found, count: int) -> np.ndarray:
    """Return which evaluations of the first seed are its front after `count`, cheapest first."""
    searched = np.stack([problem.search.sign * found.columns[problem.search.metric][0],
                         -found.columns[problem.cost][0]], axis=-1)
    return pareto_fronts.front_rows(searched, np.arange(len(searched)) < count)


def shown_range(problem: Problem, points: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return the range of the metric that is worth drawing: the better nine tenths, and a margin.

    Untrainable networks, which may be on the front for being cheap, would flatten all others.
    """
    best = truth[:, 1].max() if problem.search.sign > 0 else truth[:, 1].min()
    worst = float(np.quantile(points[:, 1], 0.1 if problem.search.sign > 0 else 0.9))
    low, high = sorted((float(best), worst))
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _page(problem: Problem, found: Found, summary: Summary, points: np.ndarray, known: np.ndarray,
          truth: np.ndarray, y_range: tuple[float, float]) -> dict[str, Any]:
    """Return front.json of the first seed: each network once, dominated ones up to a limit."""
    rows = np.flatnonzero(known & found.new[0])
    rows = np.union1d(rows, np.flatnonzero(found.on_front[0]))
    rows = rows[np.argsort(~found.on_front[0][rows], kind="stable")][:reporting.MAX_NETWORKS]
    networks = []
    for n in rows:
        network = _network(problem, found, 0, int(n))
        facts = ", ".join(f"{name} {network[name]:.4g}" for name in found.columns
                          if network[name] is not None)
        networks.append({"x": float(points[n, 0]), "y": float(points[n, 1]),
                         "front": bool(found.on_front[0][n]),
                         "text": f"{network['text']}\n{facts}\nevaluation {n + 1}"})
    costs = np.concatenate([points[known, 0], truth[:, 0]])
    margin = 0.03 * float(np.ptp(costs)) or 1.0
    return {"x_label": problem.cost, "y_label": problem.search.metric, "networks": networks,
            "true_front": truth.tolist(), "y_range": list(y_range),
            "x_range": [float(costs.min()) - margin, float(costs.max()) + margin],
            "header": target_header(problem, summary.extra),
            "rows": target_rows(problem, summary.extra)}
