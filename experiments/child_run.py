"""One run of a search that trains children: compile, search, search at random, retrain, report."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import child_report, child_search, child_worker, common, retraining, searching
from experiments.child_search import CLOCKS, GROUPS, ChildConfig, MakeTrain, Searches, Stage, System
from experiments.child_trials import Train
from jaxnas import evaluators, reporting, search, trials
from jaxnas.farms import SupervisedFarm

RETRAINED = (*GROUPS, "random_networks")  # the best of each search, and networks drawn at random


def run(config: ChildConfig, make_system: Any, make_train: MakeTrain = child_search.make_train,
        ) -> None:
    """Search, retrain, compare, report.

    Args:
      config: of the experiment.
      make_system: (config, dataset) -> System; a ValueError there is bad input.
      make_train: how a stage's children are trained; tests have a cheaper way.

    Raises:
      InputError: anything wrong with the input, before anything is compiled.
    """
    with common.validation():
        dataset, split = child_search.load(config)
        system: System = make_system(config, dataset)
        work = child_worker.work(config, make_system, make_train) if config.workers else None
        child_report.check_shapes(system, dataset)
    facts = common.dataset_facts(dataset, {
        "train": len(split.train), "valid": len(split.valid),
        "retrain": len(dataset.train_labels), "test": len(dataset.test_labels)})
    if config.dry_run:
        print(common.describe(config, dataset=facts,
                              **child_report.estimate(system, config, dataset, split)))
        return
    programs = common.Programs()
    last = system.stages[-1]
    example = system.final_inputs(np.zeros(len(last.space.num_choices), np.int32))
    trainer = retraining.make_trainer(config, system.final, dataset, programs, (
        jax.ShapeDtypeStruct(example.shape, example.dtype),))
    farm: SupervisedFarm | None = None
    with common.progress(config) as progress, contextlib.ExitStack() as stack:
        if not config.compile_only:
            directory = stack.enter_context(common.open_run(config, system.experiment, facts))
            interrupt = stack.enter_context(common.Interrupt())
            store = stack.enter_context(open_store(config.store or (
                directory.path / "trials.sqlite")))
            if work is not None:
                farm = stack.enter_context(child_worker.start_farm(
                    config, work, config.store or directory.path / "trials.sqlite",
                    directory.path / "workers"))
        seconds: dict[str, float] = {}
        trains: list[Train] = []
        start = time.perf_counter()
        if farm is None:
            with progress.phase("compile children", total=len(system.stages)) as bar:
                def on_stage(stage: Stage, new: bool) -> None:
                    if new:
                        before = sum(seconds.values())
                        seconds[f"children_{stage.name}"] = time.perf_counter() - start - before
                    bar.advance(1, f"{sum(seconds.values()):.1f} s")

                try:
                    trains = child_worker.compile_stages(
                        system, config, dataset, evaluators.examples(dataset, split), make_train,
                        on_stage)
                except evaluators.PopulationTooLarge as error:
                    raise common.InputError(" ".join(str(error).split())) from error
        programs.compile_all(progress)  # meanwhile the workers compile the children's program
        if farm is not None:
            with progress.phase("compile children in workers"):
                child_worker.wait_ready(farm, lambda: interrupt.requested)
                seconds["children"] = time.perf_counter() - start - programs.seconds
        if config.compile_only:
            for name, value in seconds.items():
                print(f"{name}: compiled in {value:.2f} s")
            print(programs.report())
            return
        retraining.check_memory(config, programs)
        kinds = [child_search.identity(stage, config, dataset) for stage in system.stages]
        searches = Searches(system, config, kinds, trains, store, progress,
                            lambda: interrupt.requested, farm=farm)
        _Run(config, system, dataset, programs, seconds, searches, trainer, directory, progress,
             interrupt).finish()


def open_store(path: Path) -> trials.Store:
    """Open a store of trials; a failure is bad input."""
    try:
        return trials.open_store(path)
    except trials.TrialError as error:
        raise common.InputError(" ".join(str(error).split())) from error


class _Run:
    """One run: what is carried is `state`, saved after every step."""

    def __init__(self, config, system, dataset, programs, seconds, searches, trainer, directory,
                 progress, interrupt):
        self.config, self.system, self.dataset = config, system, dataset
        self.programs, self.seconds, self.searches = programs, seconds, searches
        self.trainer, self.directory = trainer, directory
        self.progress, self.interrupt = progress, interrupt
        self.timer = common.StepTimer()
        self.state: dict[str, Any] = {
            "search": searches.state,
            "train": trainer.empty,
            "accuracies": np.full(len(RETRAINED) * config.num_seeds, np.nan, np.float32),
            "clock": {name: np.zeros((), np.float64) for name in CLOCKS},
        }
        self.step = 0  # steps of the searches and then retraining epochs, all counted as one
        self.rows: dict[str, list[dict[str, Any]]] = {group: [] for group in GROUPS}
        restored = directory.restore(self._saved(directory.resumed_step or 0))
        if restored is not None:
            self.step, self.state = restored.step, self.state | restored.state
            for name in ("accuracies", "clock"):
                self.state[name] = jax.tree.map(np.array, self.state[name])
            searches.state = dict(self.state["search"])
            for row in reporting.read_metrics(directory.path / "metrics.jsonl"):
                if row["kind"] == "evaluation" and row.get("phase") == "search":
                    self.rows[str(row["group"])].append(row)

    def finish(self) -> None:
        """Go on from `step` to the end, or to an interruption."""
        done = all(self._search(group) for group in GROUPS) and self._retrain()
        if not done:
            self._save()
        child_report.write(self, complete=done)

    @property
    def _search_steps(self) -> int:
        return len(GROUPS) * self.searches.steps

    def _saved(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint after `step` holds: no large network before there is one."""
        return {name: value for name, value in self.state.items()
                if name != "train" or step > self._search_steps}

    def _save(self) -> None:
        self.state["search"] = dict(self.searches.state)
        self.directory.save(self.step, self._saved(self.step))

    def _search(self, group: str) -> bool:
        start = time.perf_counter()

        def on_step(rows: list[dict[str, Any]], history: search.History) -> None:
            nonlocal start
            now = time.perf_counter()
            self.timer.record(now - start)
            self.state["clock"]["search"] += now - start
            start = now
            for row in rows:
                self.directory.metrics.write(
                    "evaluation", **row, number=len(self.rows[group]))
                self.rows[group].append(row)
            self.directory.metrics.write(
                "step", phase="search", group=group, stage=rows[-1]["stage"],
                children=len(self.rows[group]),
                **{name: float(value[0]) for name, value in history.info.items()})
            self.step += 1
            self._save()

        return self.searches.run(group, self.rows[group], on_step)

    def winner(self, group: str) -> np.ndarray | None:
        """Return the best arch [L] of the last stage, in canonical form; None: none succeeded.

        Equal fitness goes to the earlier one. Networks of earlier stages are of another kind.
        """
        rows = [row for row in self.rows[group]
                if row["stage"] == self.system.stages[-1].name and not row["failed"]]
        if not rows:
            return None
        return np.array(max(rows, key=lambda row: row["fitness"])["canonical"], np.int32)

    def archs(self) -> dict[str, list[np.ndarray]]:
        """Return what is retrained: num_seeds archs a group."""
        count = self.config.num_seeds
        found: dict[str, list[np.ndarray]] = {}
        for group in GROUPS:
            best = self.winner(group)
            if best is None:
                raise FloatingPointError(
                    f"no child of the {group} search succeeded, so that there is nothing to "
                    "retrain: lower recipe.learning_rate, or raise evaluations.")
            found[group] = [best] * count
        keys = jax.random.split(jax.random.fold_in(jax.random.key(self.config.seed), 2), count)
        space = self.system.stages[-1].space
        drawn = jax.jit(jax.vmap(lambda key: space.canonical(space.sample(key))))(keys)
        return found | {"random_networks": list(np.asarray(drawn))}

    def _retrain(self) -> bool:
        config = self.config
        runs = [retraining.Retraining(group, number, number, arch,
                                      (self.system.final_inputs(arch),))
                for group, archs in self.archs().items() for number, arch in enumerate(archs)]

        def on_epoch(epoch: retraining.Epoch) -> None:
            self.step += 1
            self.state["clock"]["retrain"] += epoch.seconds
            self._save()

        return retraining.train_all(
            self.trainer, runs, self.state,
            jax.random.fold_in(searching.random_key(config.seed), 3),
            epochs=config.retrain_epochs, done=self.step - self._search_steps,
            metrics=self.directory.metrics, progress=self.progress,
            stop=lambda: self.interrupt.requested, on_epoch=on_epoch)

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path
