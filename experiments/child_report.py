"""What a search that trains children will cost, and what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import child_search, common, drawing, retraining
from experiments.child_search import GROUPS, ChildConfig, System
from jaxnas import genotypes, reporting
from jaxnas.data import ImageDataset, Validation

FACTS: dict[str, str | bool | None] = {
    "training_code": True, "space_code": True, "method_code": True, "random_search": True,
    "same_pipeline": True, "performance_over_time": True, "same_protocol": True,
    "multiple_runs": "each network retrained with several seeds, of one search a --seed"}
FLOPS = 1e13  # a second: 10 TFLOP/s, an assumption, what a modern GPU may sustain on small maps
# Programs that are compiled within a second each, and not kept apart.
SMALL_PROGRAMS = ("initial_search_state", "ask", "tell", "canonical", "member_keys", "scores",
                  "random_networks")


def check_shapes(system: System, dataset: ImageDataset) -> tuple[dict[str, int], int]:
    """Trace the initial weights of all networks, computing nothing.

    Returns:
      The parameters of each stage's network by stage, and of the retrained one. These networks
      hold the weights of all architectures.

    Raises:
      ValueError: the images do not fit a network.
    """
    children = {}
    for stage in system.stages:
        arch = jax.ShapeDtypeStruct((len(stage.program_choices),), jnp.int32)
        children[stage.name] = _parameters(
            stage.network, dataset, **jax.eval_shape(lambda a, s=stage: dict(s.inputs(a)), arch))
    example = system.final_inputs(np.zeros(len(system.stages[-1].space.num_choices), np.int32))
    final = _parameters(system.final, dataset,
                        jax.ShapeDtypeStruct(example.shape, example.dtype))
    return children, final


def _parameters(network: Any, dataset: ImageDataset, *inputs: Any, **named: Any) -> int:
    image = jax.ShapeDtypeStruct((2, *dataset.image_shape), jnp.float32)
    shapes = jax.eval_shape(lambda: network.lazy_init(
        jax.random.key(0, impl="rbg"), image, *inputs, train=False, **named))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def estimate(system: System, config: ChildConfig, dataset: ImageDataset,
             split: Validation) -> dict[str, Any]:
    """Return what `--dry-run` prints beside the configuration.

    Multiply-adds of a training step are three times those of a forward pass, of which each is two
    floating point operations; the time is that at `FLOPS` a second, an assumption.
    """
    parameters, final = check_shapes(system, dataset)
    recipe, count = config.recipe, len(GROUPS)
    images = recipe.epochs * (3 * len(split.train) + len(split.valid))
    children = {stage.name: stage.steps * stage.searcher.batch_size for stage in system.stages}
    search = sum(count * children[stage.name] * images * 2 * stage.multiply_adds()
                 for stage in system.stages)
    space = system.stages[-1].space
    archs = np.asarray(jax.vmap(space.sample)(jax.random.split(jax.random.key(0), 8)))
    costs = [system.final_cost(arch) for arch in archs]
    runs = (count + 1) * config.num_seeds
    retrained = runs * 2 * np.mean([cost.multiply_adds for cost in costs]) * (
        3 * config.retrain_epochs * len(dataset.train_labels) + len(dataset.test_labels))
    return {
        "children_parameters": parameters, "retrained_parameters": final,
        "mean_parameters_of_a_retrained_architecture": float(
            np.mean([cost.parameters for cost in costs])),
        "children": {**children, "groups": list(GROUPS)}, "retrainings": runs,
        "programs": [*(f"children_{stage.name}" for number, stage in enumerate(system.stages)
                       if not any(map(stage.shares, system.stages[:number]))),
                     retraining.PROGRAM],
        "small_programs": list(SMALL_PROGRAMS),
        "identity": {stage.name: dict(child_search.identity(stage, config, dataset).recipe)
                     for stage in system.stages},
        "estimate": {"search_flops": float(search), "retraining_flops": float(retrained),
                     "assumed_flops_a_second": FLOPS,
                     "gpu_hours": float((search + retrained) / FLOPS / 3600)},
    }


def mean_multiply_adds(stage_space: Any, cost: Any, count: int = 8) -> float:
    """Return the mean multiply-adds of `count` random archs; cost: arch [L] -> Cost."""
    archs = jax.vmap(stage_space.sample)(jax.random.split(jax.random.key(0), count))
    return float(np.mean([cost(arch).multiply_adds for arch in np.asarray(archs)]))


def write(run: Any, complete: bool) -> None:
    """Write result, genotype, drawings, checklist and page of a `child_run` run, and say it."""
    system, config, path = run.system, run.config, run.path
    space, count = system.stages[-1].space, config.num_seeds
    winners = {group: run.winner(group) for group in GROUPS}
    architecture = reporting.Architecture(space.name)
    if winners["found"] is not None:
        readable = system.decode(winners["found"])
        value = genotypes.to_json_dict(readable)
        (path / "genotype.json").write_text(genotypes.to_json(readable), encoding="utf-8")
        architecture = reporting.Architecture(
            space.name, value, tuple(winners["found"].tolist()))
        drawing.draw(readable, path / "architecture", f"{system.title} on {run.dataset.name}")
    accuracies = dict(zip((*GROUPS, "random_networks"), run.state["accuracies"].reshape(-1, count)))
    groups = {name: values[np.isfinite(values)].tolist() for name, values in accuracies.items()}
    metrics = _metrics(run, winners, groups)
    extra, text = _verdict(run, groups)
    if complete and system.conclude is not None:
        concluded = system.conclude(run)
        metrics, extra = {**metrics, **concluded.metrics}, {**extra, **concluded.extra}
        text += "\n" + concluded.text
    rows = [row for group in GROUPS for row in run.rows[group]]
    clock = {name: float(value) for name, value in run.state["clock"].items()}
    result = reporting.Result(
        complete=complete, experiment=system.experiment, system=system.title,
        architecture=architecture, metrics=metrics,
        evaluations=reporting.Evaluations(
            len(rows), len({(row["stage"], *row["canonical"]) for row in rows}),
            sum(row["failed"] for row in rows)),
        compilations=len(run.seconds) + run.programs.count,
        seconds=reporting.Seconds(
            sum(run.seconds.values()) + run.programs.seconds, clock["search"], clock["retrain"],
            run.directory.metrics.seconds),
        step_seconds=run.timer.summary(), seed=config.seed,
        device=common.device_facts(config.devices),
        programs=(*run.seconds, *run.programs.names), extra=extra)
    _draw(run, path, groups)
    run.directory.write_result(result)
    reporting.write_checklist(path, FACTS)
    reporting.write_report(path)
    if complete:
        print(text)
        print(path / "report.html")


def _metrics(run: Any, winners: dict[str, np.ndarray | None],
             groups: dict[str, list[float]]) -> dict[str, reporting.Metric]:
    metrics = {}
    if groups["found"]:
        metrics["test_accuracy"] = reporting.Metric(
            reporting.summarize(groups["found"]),
            reporting.summarize(groups["random"]) if groups["random"] else None,
            published=run.system.published.get(run.dataset.name))
    best = {group: [row["valid_accuracy"] for row in run.rows[group] if not row["failed"]]
            for group in GROUPS}
    if best["found"]:
        metrics["valid_accuracy"] = reporting.Metric(
            reporting.summarize([max(best["found"])]),
            reporting.summarize([max(best["random"])]) if best["random"] else None)
    costs = {group: None if arch is None else run.system.final_cost(arch)
             for group, arch in winners.items()}
    for name, field in (("params", "parameters"), ("multiply_adds", "multiply_adds")):
        found, random = (None if cost is None else reporting.summarize([getattr(cost, field)])
                         for cost in costs.values())
        if found is not None:
            metrics[name] = reporting.Metric(found, random)
    return metrics


def _verdict(run: Any, groups: dict[str, list[float]]) -> tuple[dict[str, Any], str]:
    """Return what result.json holds besides, and the sentences for the terminal."""
    extra: dict[str, Any] = {
        "found_by": "best fitness of the search, of the last stage's networks",
        "random_by": "best fitness of a random search of as many children, by the same programs",
        "children": {group: len(run.rows[group]) for group in GROUPS},
        "children_trained_by_this_process": run.searches.trained,
        "small_programs": list(SMALL_PROGRAMS), "compile_seconds": dict(run.seconds)}
    names = {"found": "the found network", "random": "random search's best network",
             "random_networks": "random networks"}
    lines = []
    for name, values in groups.items():
        if values:
            summary = reporting.summarize(values)
            extra[f"{name}_test_accuracy"] = summary
            lines.append(f"test accuracy of {names[name]}, {len(values)} retrainings: "
                         f"{summary['mean']:.2f} +- {summary['std']:.2f} %")
    if groups["found"] and groups["random_networks"]:
        found, random = (float(np.mean(groups[name])) for name in ("found", "random_networks"))
        extra["not_worse_than_random_networks"] = bool(found >= random)
        lines.append(retraining.verdict(found, random))
    return extra, "\n".join(lines)


def _draw(run: Any, path: Path, groups: dict[str, list[float]]) -> None:
    names = {"found": run.system.title, "random": "random search"}
    curves = {}
    for group in GROUPS:
        values = [np.nan if row["valid_accuracy"] is None else row["valid_accuracy"]
                  for row in run.rows[group]]
        if np.isfinite(values).any():
            best = np.fmax.accumulate(values)
            curves[names[group]] = (list(range(1, len(best) + 1)), best.tolist())
    if curves:
        reporting.plot_curves(curves, path / "history", "children trained",
                              "best validation accuracy so far (%)")
    if all(groups.values()):
        reporting.plot_groups({name.replace("_", " "): values for name, values in groups.items()},
                              path / "accuracy", "test accuracy (%)")
