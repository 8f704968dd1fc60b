"""The run of a discrete search on a table: all strategies, blocks of steps, report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import common, table_report, tables
from experiments.strategies import Strategy
from experiments.tables import TableConfig
from jaxnas import genotypes, reporting

FACTS = {"training_code": None, "space_code": True, "method_code": True, "random_search": True,
         "same_pipeline": True, "multiple_runs": True, "tabular_benchmark": True,
         "performance_over_time": True, "same_protocol": True}


def run(config: TableConfig, name: str, system: str, strategies: Mapping[str, Strategy]) -> None:
    """Search with every strategy and all seeds, compare, report.

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
        for strategy in strategies.values():
            strategy.searcher(task.space)
    facts = {"name": task.table.name, "sha256": task.table.sha256,
             "splits": {"architectures": len(task.table.archs)}}
    if config.dry_run:
        print(common.describe(config, dataset=facts, space=task.space.name, metric=task.metric,
                              report_metric=task.report_metric, metrics=sorted(task.table.metrics)))
        return
    with common.validation():
        devices = tables.choose_devices(config)
    programs = common.Programs()
    seeds = {key: tables.make_seeds(key, strategy, task, config, devices, programs)
             for key, strategy in strategies.items()}
    digest = tables.make_digest(task, config, config.evaluations, programs)
    with common.progress(config) as progress:
        if config.compile_only:
            programs.compile_all(progress)
            print(programs.report())
            return
        with common.open_run(config, name, facts, num_devices=len(devices)) as directory, \
                common.Interrupt() as interrupt:
            programs.compile_all(progress)
            _Run(config, name, system, task, devices, programs, seeds, digest, directory, progress,
                 interrupt).finish()


class _Run:
    """One run; `state` is what a checkpoint holds."""

    def __init__(self, config, name, system, task, devices, programs, seeds, digest, directory,
                 progress, interrupt):
        self.config, self.name, self.system, self.task = config, name, system, task
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
            "fitness": {key: np.full(shape, np.nan, np.float32) for key in seeds},
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
                failed = int(np.isnan(fitness[:, : stop - done]).sum())
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
                found = self.digest(self.state["archs"][key], self.state["fitness"][key])
                allowed = found.allowed.copy()
                allowed[:, done:] = False
                evaluated[key] = found._replace(allowed=allowed)
        summary = table_report.summarize(self.task, config, evaluated)
        architecture = reporting.Architecture(self.task.space.name)
        if summary.best_arch is not None:
            value = genotypes.to_json_dict(genotypes.Encoded(
                self.task.space.name, tuple(summary.best_arch.tolist()),
                self.task.space.decode(summary.best_arch)))
            (path / "genotype.json").write_text(json.dumps(value, indent=2) + "\n",
                                                encoding="utf-8")
            architecture = reporting.Architecture(self.task.space.name, value,
                                                  tuple(summary.best_arch.tolist()))
        if complete:
            self._log(evaluated)
            table_report.draw(self.task, config, evaluated, summary, path)
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

    def _log(self, evaluated: Mapping[str, tables.Evaluated]) -> None:
        """Write history.npz, and the evaluations of the first seeds to metrics.jsonl."""
        arrays: dict[str, np.ndarray] = {}
        for key, found in evaluated.items():
            arrays |= {f"{key}_archs": found.archs, f"{key}_fitness": found.fitness,
                       f"{key}_allowed": found.allowed}
        write_npz(self.directory.path / "history.npz", arrays)
        for key, found in evaluated.items():
            for seed in range(min(self.config.log_seeds, self.config.num_seeds)):
                for n in np.flatnonzero(found.allowed[seed]):
                    fitness = float(found.fitness[seed, n])
                    failed = not np.isfinite(fitness)
                    self.directory.metrics.write(
                        "evaluation", arch=found.archs[seed, n].tolist(), strategy=key, seed=seed,
                        fitness=None if failed else fitness, failed=failed,
                        **{name: None if np.isnan(values[seed, n]) else float(values[seed, n])
                           for name, values in found.columns.items()})


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays so that a reader sees a whole file or none."""
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)
