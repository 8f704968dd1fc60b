"""The run of a discrete search on a table: all strategies, blocks of steps, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import common, table_report, tables
from experiments.programs import Programs
from experiments.run import write_npz
from experiments.strategies import Strategy
from experiments.tables import TableConfig, TableSettings, Task
from jaxnas import genotypes, reporting
from jaxnas.base import Objective

FACTS = {"training_code": None, "space_code": True, "method_code": True, "random_search": True,
         "same_pipeline": True, "multiple_runs": True, "tabular_benchmark": True,
         "performance_over_time": True, "same_protocol": True}


class Question(NamedTuple):
    """What is asked of the strategies, and how what they evaluated is judged.

    What `digest` returns has `archs`, `fitness`, `allowed` and `columns` as `tables.Evaluated`.
    """

    task: Task
    facts: Mapping[str, Any]            # for a dry run
    objectives: Mapping[str, Objective]  # of every strategy
    digest: Callable[[Programs], Callable[[np.ndarray, np.ndarray, int], Any]]  # registers programs
    summarize: Callable[[Mapping[str, Any]], table_report.Summary]     # of strategy -> digest
    draw: Callable[[Mapping[str, Any], table_report.Summary, Path], None]  # into a run directory


def run(config: TableConfig, name: str, system: str, strategies: Mapping[str, Strategy]) -> None:
    """Search for the best architecture with every strategy and all seeds, compare, report.

    Args:
      config: what to search and how much.
      name: of the experiment.
      system: of the published system, for the report.
      strategies: name -> settings; "random" is the baseline, the first other one what is found.

    Raises:
      InputError: anything wrong with the input, before anything is compiled.
    """
    with common.validation():
        reporting.require_matplotlib()
        task = tables.load_task(config)
        if config.cost_metric:
            task.table.metric(config.cost_metric)
    answer(config, name, system, strategies, Question(
        task, {"metric": task.metric, "report_metric": task.report_metric},
        dict.fromkeys(strategies, tables.single_objective(task)),
        lambda programs: tables.make_digest(task, config, config.evaluations, programs),
        lambda found: table_report.summarize(task, config, found),
        lambda found, summary, path: table_report.draw(task, config, found, summary, path)))


def answer(config: TableSettings, name: str, system: str, strategies: Mapping[str, Strategy],
           question: Question) -> None:
    """Search with every strategy and all seeds, and answer a question; see `run`."""
    task = question.task
    with common.validation():
        for strategy in strategies.values():
            strategy.searcher(task.space)
    facts = {"name": task.table.name, "sha256": task.table.sha256,
             "splits": {"architectures": len(task.table.archs)}}
    if config.dry_run:
        print(common.describe(config, dataset=facts, space=task.space.name, **question.facts,
                              metrics=sorted(task.table.metrics)))
        return
    with common.validation():
        devices = tables.choose_devices(config)
    programs = common.Programs()
    seeds = {key: tables.make_seeds(key, strategy, task, question.objectives[key], config, devices,
                                    programs)
             for key, strategy in strategies.items()}
    digest = question.digest(programs)
    with common.progress(config) as progress:
        if config.compile_only:
            programs.compile_all(progress)
            print(programs.report())
            return
        with common.open_run(config, name, facts, num_devices=len(devices)) as directory, \
                common.Interrupt() as interrupt:
            programs.compile_all(progress)
            _Run(config, name, system, question, devices, programs, seeds, digest, directory,
                 progress, interrupt).finish()


class _Run:
    """One run; `state` is what a checkpoint holds."""

    def __init__(self, config, name, system, question, devices, programs, seeds, digest, directory,
                 progress, interrupt):
        self.config, self.name, self.system, self.question = config, name, system, question
        task = question.task
        self.devices, self.programs, self.seeds = devices, programs, seeds
        self.digest, self.directory = digest, directory
        self.progress, self.interrupt = progress, interrupt
        self.timer = common.StepTimer()
        shape = (config.num_seeds, config.evaluations)
        num_decisions = len(task.table.num_choices)
        small = np.min_scalar_type(-max(task.table.num_choices))
        self.state: dict[str, Any] = {
            "search": {key: part.init(tables.seed_keys(config, key, devices))
                       for key, part in seeds.items()},
            "archs": {key: np.zeros((*shape, num_decisions), small) for key in seeds},
            "fitness": {key: np.full((*shape, *part.objectives), np.nan, np.float32)
                        for key, part in seeds.items()},
            "done": {key: np.zeros((), np.int64) for key in seeds},  # evaluations of a seed
            "clock": np.zeros((), np.float64),  # seconds of search so far
        }
        restored = directory.restore(self.state)
        self.step = 0  # blocks, of all strategies
        if restored is not None:
            self.step = restored.step
            self.state = {**restored.state, **{
                key: jax.tree.map(np.array, restored.state[key])
                for key in ("archs", "fitness", "done", "clock")}}

    def finish(self) -> None:
        """Go on to the end, or to an interruption."""
        complete = all([self._search(key) for key in self.seeds])
        self._report(complete)

    def _search(self, key: str) -> bool:
        """Run one strategy to its end; False if it was interrupted."""
        part, config, state = self.seeds[key], self.config, self.state
        total = config.evaluations
        done = int(state["done"][key])
        with self.progress.phase(key, total=total, completed=done) as bar:
            while done < total:
                if self.interrupt.requested:
                    return False
                start = time.perf_counter()
                search_state, archs, fitness = part.advance(state["search"][key])
                archs, fitness = (tables.merge_seeds(x, config.num_seeds) for x in (archs, fitness))
                elapsed = time.perf_counter() - start
                self.timer.record(elapsed, part.num_steps)
                stop = min(total, done + fitness.shape[1])
                state["search"][key] = search_state
                state["archs"][key][:, done:stop] = archs[:, : stop - done]
                state["fitness"][key][:, done:stop] = fitness[:, : stop - done]
                state["clock"] += elapsed
                failed = int(failures(fitness[:, : stop - done]).sum())
                bar.advance(stop - done, f"{config.num_seeds} seeds")
                done = stop
                state["done"][key][...] = done
                self.step += 1
                self.directory.metrics.write(
                    "step", strategy=key, evaluations=done, seeds=config.num_seeds,
                    step_seconds=elapsed / part.num_steps, failed=failed)
                self.directory.save(self.step, state)
        return True

    def _report(self, complete: bool) -> None:
        config, path = self.config, self.directory.path
        if not complete:
            self.directory.save(self.step, self.state)
        evaluated = {}
        for key in self.seeds:
            done = int(self.state["done"][key])
            if done:
                evaluated[key] = self.digest(
                    self.state["archs"][key], self.state["fitness"][key], done)
        summary = self.question.summarize(evaluated)
        space = self.question.task.space
        architecture = reporting.Architecture(space.name)
        if summary.best_arch is not None:
            value = genotypes.to_json_dict(genotypes.Encoded(
                space.name, tuple(summary.best_arch.tolist()), space.decode(summary.best_arch)))
            (path / "genotype.json").write_text(json.dumps(value, indent=2) + "\n",
                                                encoding="utf-8")
            architecture = reporting.Architecture(space.name, value,
                                                  tuple(summary.best_arch.tolist()))
        if complete:
            self._log(evaluated)
            self.question.draw(evaluated, summary, path)
        result = reporting.Result(
            complete=complete, experiment=self.name, system=self.system,
            architecture=architecture, metrics=summary.metrics, evaluations=summary.evaluations,
            compilations=self.programs.count,
            seconds=reporting.Seconds(self.programs.seconds, float(self.state["clock"]), 0.0,
                                      self.directory.metrics.seconds),
            step_seconds=self.timer.summary(), seed=config.seed,
            device=common.device_facts(len(self.devices)), programs=self.programs.names,
            paths={"history": "history.npz"} if complete else {}, extra=summary.extra,
        )
        self.directory.write_result(result)
        reporting.write_checklist(path, FACTS)
        reporting.write_report(path)
        if complete:
            print(summary.text)
            print(path / "report.html")

    def _log(self, evaluated: Mapping[str, Any]) -> None:
        """Write history.npz, and the evaluations of the first seeds to metrics.jsonl."""
        arrays: dict[str, np.ndarray] = {}
        for key, found in evaluated.items():
            arrays |= {f"{key}_archs": found.archs, f"{key}_fitness": found.fitness,
                       f"{key}_allowed": found.allowed}
        write_npz(self.directory.path / "history.npz", arrays)
        for key, found in evaluated.items():
            failures_of = failures(found.fitness)
            for seed in range(min(self.config.log_seeds, self.config.num_seeds)):
                failed = failures_of[seed]
                for n in np.flatnonzero(found.allowed[seed]):
                    self.directory.metrics.write(
                        "evaluation", arch=found.archs[seed, n].tolist(), strategy=key, seed=seed,
                        fitness=None if failed[n] else found.fitness[seed, n].tolist(),
                        failed=bool(failed[n]),
                        **{name: None if np.isnan(values[seed, n]) else float(values[seed, n])
                           for name, values in found.columns.items()})


def failures(fitness: np.ndarray) -> np.ndarray:
    """Tell which evaluations failed: [S, N], or [S, N, M] of a search for a front -> [S, N]."""
    return ~np.isfinite(fitness.reshape(*fitness.shape[:2], -1)).all(-1)
