"""One run of `experiments.autokeras`: its loops, what it saves, what it reports."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import autokeras_search, child_trials, common, retraining, searching
from experiments.autokeras_search import Bound, Search, Trained
from experiments.drawing import draw
from jaxnas import costs, genotypes, reporting
from jaxnas.conv_chains import ConvChain
from jaxnas.networks import MorphableNetwork
from jaxnas.search_spaces import morphable_cnn

TABLE = "Jin et al., 2019, https://arxiv.org/abs/1806.10282, table 1, 12 h on one GTX 1080 Ti"
PUBLISHED = {name: reporting.Published(100 - error, None, f"AutoKeras, {TABLE}")
             for name, error in (("mnist", 0.55), ("cifar10", 11.44), ("fashion_mnist", 7.42))}
RANDOM_ERROR = {"mnist": 1.79, "cifar10": 16.86, "fashion_mnist": 11.36}  # of the same table
FACTS: dict[str, str | bool | None] = {
    "training_code": True, "space_code": True, "method_code": True, "random_search": True,
    "same_pipeline": True, "performance_over_time": True, "same_protocol": True,
    "multiple_runs": "num_seeds searches of each kind, each best network retrained once"}
SMALL_PROGRAMS = ("upper_bound", "random_architectures")  # within a second each, not kept apart
TITLES = {"inherited": "inherited weights", "unchanged": "first network trained on",
          "fresh": "drawn weights", "random": "random search",
          "random_networks": "random networks"}


class Run:
    """What is carried is `state`, saved after every trial and every epoch of retraining.

    `step` counts trials, seed by seed and group by group, and then epochs of retraining.
    """

    def __init__(self, config, space, dataset, programs, children, trainer, store, directory,
                 progress, interrupt):
        self.config, self.space, self.dataset = config, space, dataset
        self.programs, self.children, self.trainer = programs, children, trainer
        self.directory, self.progress, self.interrupt = directory, progress, interrupt
        self.timer = common.StepTimer()
        self.groups = autokeras_search.groups(config)
        self.bound = Bound(config.max_parameters, dataset.image_shape, dataset.num_classes)
        self.searches = {
            (seed, group): Search(config, children, self.bound, group, seed, store, directory.path,
                                  lambda: interrupt.requested)
            for seed in range(config.num_seeds) for group in self.groups}
        self.search_steps = len(self.searches) * config.trials
        self.rows: dict[tuple[int, str], list[dict[str, Any]]] = {
            key: [] for key in self.searches}
        self.state: dict[str, Any] = {
            "train": trainer.empty,
            "accuracies": np.full((len(self.groups) + 1) * config.num_seeds, np.nan, np.float32),
            "clock": {name: np.zeros((), np.float64) for name in ("search", "retrain")},
            "bound": np.array(self.bound.parameters, np.int64),
        }
        self.step = 0
        restored = directory.restore(self._saved(directory.resumed_step or 0))
        if restored is not None:
            self.step, self.state = restored.step, self.state | restored.state
            for name in ("accuracies", "clock", "bound"):
                self.state[name] = jax.tree.map(np.array, self.state[name])
            self.bound.parameters = int(self.state["bound"])
            for row in reporting.read_metrics(directory.path / "metrics.jsonl"):
                if row["kind"] == "evaluation" and row.get("phase") == "search":
                    self._remember(row)

    def _saved(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint after `step` holds: no large network before there is one."""
        return {name: value for name, value in self.state.items()
                if name != "train" or step > self.search_steps}

    def _save(self) -> None:
        self.state["bound"] = np.array(self.bound.parameters, np.int64)
        self.directory.save(self.step, self._saved(self.step))

    def _remember(self, row: Mapping[str, Any]) -> None:
        """Put a row of metrics.jsonl, of before a resumption, where a trial leaves it."""
        key = (int(row["seed"]), str(row["group"]))
        self.rows[key].append(dict(row))
        chain = self.space.slots.chain(np.array(row["arch"]))
        accuracy = np.nan if row["failed"] else float(row["valid_accuracy"])
        trials = self.searches[key].trials
        trials.append(Trained(chain, accuracy, str(row["lineage"]), len(trials)))

    def finish(self) -> None:
        """Go on from `step` to the end, or to an interruption."""
        done = self._search() and self._retrain()
        if not done:
            self._save()
        self._report(done)

    def _search(self) -> bool:
        trials = self.config.trials
        with self.progress.phase("search", total=self.search_steps,
                                 completed=min(self.step, self.search_steps)) as bar:
            for number, (key, search) in enumerate(self.searches.items()):
                end = (number + 1) * trials
                while self.step < end:
                    if self.interrupt.requested:
                        return False
                    before = self.step
                    start = time.perf_counter()
                    try:
                        found = self._trial(key, search)
                    except child_trials.Stopped:
                        return False
                    self.step = self.step + 1 if found else end
                    self.state["clock"]["search"] += time.perf_counter() - start
                    self._save()
                    best = max((row["valid_accuracy"] for row in self.rows[key]
                                if not row["failed"]), default=0.0)
                    bar.advance(self.step - before, f"{TITLES[key[1]]} {key[0]}: {best:.2f} %")
        return True

    def _trial(self, key: tuple[int, str], search: Search) -> bool:
        """Find and train one child; False if nothing is left within the bounds."""
        seed, group = key
        events = self.directory.metrics
        while True:
            start = time.perf_counter()
            candidate = search.candidate()
            proposed = time.perf_counter() - start
            if candidate is None:
                events.write("event", event="exhausted", group=group, seed=seed,
                             max_parameters=self.bound.parameters)
                return False
            reason = autokeras_search.has_room(self.children, self.bound, candidate.chain)
            if not reason:
                try:
                    child = search.evaluate(candidate)
                    break
                except jax.errors.JaxRuntimeError as error:
                    if not autokeras_search.is_out_of_memory(error):
                        raise
                    self.bound.shrink(candidate.chain)
                    reason = "the device ran out of memory"
            events.write("event", event="does not fit", group=group, seed=seed, reason=reason,
                         max_parameters=self.bound.parameters)
            if not search.trials:
                raise common.InputError(
                    f"the first network does not fit: {reason}; lower recipe.batch_size or width.")
        self.timer.record(child.seconds)
        arch = self.space.slots.arch(candidate.chain).tolist()
        metrics = {name: child.metrics.get(name) for name in (
            "valid_accuracy", "valid_loss", "train_loss")}
        earlier = 0  # epochs that the weights have behind them
        if group in autokeras_search.CARRIED and candidate.father is not None:
            earlier = self.rows[key][candidate.father]["weights_epochs"]
        row = {"phase": "search", "group": group, "seed": seed, "number": len(search.trials) - 1,
               "arch": arch, "chain": str(candidate.chain), "father": candidate.father,
               "operations": [[type(o).__name__.lower(), *o] for o in candidate.operations],
               "lineage": candidate.lineage, "parameters": self._cost(candidate.chain).parameters,
               "fitness": metrics["valid_accuracy"], "failed": child.failed, **metrics,
               "proposal_seconds": proposed, "cost_seconds": child.seconds,
               "weights_epochs": self.config.recipe.epochs + earlier,
               "budget": self.config.recipe.epochs, "budget_unit": "epochs"}
        if child.failed:
            row |= dict.fromkeys(("fitness", *metrics))
        events.write("evaluation", **row)
        self.rows[key].append(row)
        return True

    def _cost(self, chain: ConvChain) -> costs.Cost:
        return costs.cost(MorphableNetwork(chain, self.dataset.num_classes),
                          self.dataset.image_shape)

    def winner(self, seed: int, group: str) -> dict[str, Any] | None:
        """Return the row of the best child of a search; None: none succeeded."""
        rows = [row for row in self.rows[seed, group] if not row["failed"]]
        return max(rows, key=lambda row: row["valid_accuracy"], default=None)

    def _retrain(self) -> bool:
        config, runs = self.config, []
        for group in self.groups:
            for seed in range(config.num_seeds):
                best = self.winner(seed, group)
                if best is None:
                    raise FloatingPointError(
                        f"no child of the search with {TITLES[group]} succeeded, so that there is "
                        "nothing to retrain: lower recipe.learning_rate, or raise trials.")
                arch = np.array(best["arch"], np.int32)
                runs.append(retraining.Retraining(group, seed, seed, arch, (jnp.asarray(arch),)))
        for seed in range(config.num_seeds):
            # one beyond those of the random searches
            chain = autokeras_search.random_chain(
                config, self.space, seed, config.trials, self.bound)
            if chain is None:
                raise FloatingPointError("no random network is within max_parameters; raise it.")
            arch = self.space.slots.arch(chain)
            runs.append(retraining.Retraining(
                "random_networks", seed, seed, arch, (jnp.asarray(arch),)))

        def on_epoch(epoch: retraining.Epoch) -> None:
            self.step += 1
            self.state["clock"]["retrain"] += epoch.seconds
            self._save()

        return retraining.train_all(
            self.trainer, runs, self.state,
            jax.random.fold_in(searching.random_key(config.seed), 3),
            epochs=config.retrain_epochs, done=self.step - self.search_steps,
            metrics=self.directory.metrics, progress=self.progress,
            stop=lambda: self.interrupt.requested, on_epoch=on_epoch)

    def _report(self, complete: bool) -> None:
        path = self.directory.path
        first = self.groups[0]
        best = max((row for seed in range(self.config.num_seeds)
                    if (row := self.winner(seed, first)) is not None),
                   key=lambda row: row["valid_accuracy"], default=None)
        architecture = reporting.Architecture(self.space.name)
        if best is not None:
            chain = self.space.slots.chain(np.array(best["arch"]))
            genotype = morphable_cnn.encoded(chain)
            (path / "genotype.json").write_text(genotypes.to_json(genotype), encoding="utf-8")
            architecture = reporting.Architecture(
                self.space.name, genotypes.to_json_dict(genotype), tuple(best["arch"]))
            draw(genotype, path / "architecture", f"AutoKeras on {self.dataset.name}")
        tested = {name: values[np.isfinite(values)].tolist() for name, values in zip(
            (*self.groups, "random_networks"),
            self.state["accuracies"].reshape(-1, self.config.num_seeds))}
        trained = {group: [
            self.searches[seed, group].test(row["number"])
            for seed in range(self.config.num_seeds)
            if (row := self.winner(seed, group)) is not None]
            for group in self.groups if complete and group in autokeras_search.CARRIED}
        curves = self._curves()
        rows = [row for found in self.rows.values() for row in found]
        clock = {name: float(value) for name, value in self.state["clock"].items()}
        result = reporting.Result(
            complete=complete, experiment="autokeras", system="AutoKeras",
            architecture=architecture, metrics=self._metrics(tested, curves),
            evaluations=reporting.Evaluations(
                len(rows), len({row["chain"] for row in rows}),
                sum(row["failed"] for row in rows)),
            compilations=self.programs.count,
            seconds=reporting.Seconds(self.programs.seconds, clock["search"], clock["retrain"],
                                      self.directory.metrics.seconds),
            step_seconds=self.timer.summary(), seed=self.config.seed,
            device=common.device_facts(self.config.devices), programs=self.programs.names,
            extra=self._extra(tested, trained, curves, rows))
        self._draw(path, tested, curves)
        self.directory.write_result(result)
        reporting.write_checklist(path, FACTS)
        reporting.write_report(path)
        if complete:
            print(self._text(tested, trained, curves))
            print(path / "report.html")

    def _curves(self) -> dict[str, np.ndarray]:
        """Return the best validation accuracy after each trial, [seeds, trials], by group."""
        found = {}
        for group in self.groups:
            rows = [self.rows[seed, group] for seed in range(self.config.num_seeds)]
            longest = max(map(len, rows))
            values = np.full((len(rows), longest), np.nan)
            for number, one in enumerate(rows):
                values[number, :len(one)] = [
                    np.nan if row["failed"] else row["valid_accuracy"] for row in one]
            if np.isfinite(values).any():
                found[group] = np.fmax.accumulate(values, 1)
        return found

    def _metrics(self, tested: Mapping[str, list[float]], curves: Mapping[str, np.ndarray],
                 ) -> dict[str, reporting.Metric]:
        metrics, first = {}, self.groups[0]
        if tested[first]:
            metrics["test_accuracy"] = reporting.Metric(
                reporting.summarize(tested[first]),
                reporting.summarize(tested["random"]) if tested["random"] else None,
                published=PUBLISHED.get(self.dataset.name))
        if first in curves:
            metrics["valid_accuracy"] = reporting.Metric(
                _last(curves[first]), _last(curves["random"]) if "random" in curves else None)
        winners = {group: [row for seed in range(self.config.num_seeds)
                           if (row := self.winner(seed, group)) is not None]
                   for group in (first, "random")}
        if winners[first]:
            sizes = {group: reporting.summarize([float(row["parameters"]) for row in found])
                     for group, found in winners.items() if found}
            metrics["params"] = reporting.Metric(sizes[first], sizes.get("random"))
        return metrics

    def _extra(self, tested, trained, curves, rows) -> dict[str, object]:
        proposals = [row["proposal_seconds"] for row in rows if row["father"] is not None]
        return {
            "groups": list(self.groups),
            "best_valid_accuracy_by_trial": {
                group: {"mean": np.nanmean(values, 0).tolist(), "last": _last(values)}
                for group, values in curves.items()},
            "test_accuracy_by_group": {
                name: reporting.summarize(values) for name, values in tested.items() if values},
            "test_accuracy_of_the_best_childs_weights": {
                name: reporting.summarize(values) for name, values in trained.items() if values},
            "children": {group: sum(len(self.rows[seed, group])
                                    for seed in range(self.config.num_seeds))
                         for group in self.groups},
            "children_trained_by_this_process": self.children.trained,
            "epochs_in_the_best_childs_weights": {
                group: [row["weights_epochs"] for seed in range(self.config.num_seeds)
                        if (row := self.winner(seed, group)) is not None]
                for group in self.groups},
            "median_proposal_seconds": float(np.median(proposals)) if proposals else None,
            "max_parameters": self.bound.parameters, "small_programs": list(SMALL_PROGRAMS),
            "published_random_search_error": RANDOM_ERROR.get(self.dataset.name)}

    def _text(self, tested, trained, curves) -> str:
        lines = [f"best validation accuracy after {values.shape[1]} trials, {TITLES[group]}: "
                 f"{_spread(_last(values))}" for group, values in curves.items()]
        lines += [f"test accuracy of the best child's weights as the search left them, "
                  f"{TITLES[name]}: {_spread(reporting.summarize(values))}"
                  for name, values in trained.items()]
        lines += [f"test accuracy, {len(values)} retrainings, {TITLES[name]}: "
                  f"{_spread(reporting.summarize(values))}" for name, values in tested.items()]
        lines.append(retraining.verdict(float(np.mean(tested[self.groups[0]])),
                                        float(np.mean(tested["random_networks"]))))
        published = PUBLISHED.get(self.dataset.name)
        if published is not None:
            error = 100 - float(np.mean(tested[self.groups[0]]))
            lines.append(f"test error {error:.2f} %; published {100 - published.mean:.2f} %, of "
                         f"random search {RANDOM_ERROR[self.dataset.name]} % ({TABLE})")
        return "\n".join(lines)

    def _draw(self, path: Path, tested, curves) -> None:
        if curves:
            reporting.plot_curves(
                {TITLES[group]: (list(range(1, values.shape[1] + 1)),
                                 np.nanmean(values, 0).tolist())
                 for group, values in curves.items()},
                path / "history", "trials", "best validation accuracy so far (%), mean of seeds")
        if all(tested.values()):
            reporting.plot_groups({TITLES[name]: values for name, values in tested.items()},
                                  path / "accuracy", "test accuracy (%)")


def _last(values: np.ndarray) -> reporting.Summary:
    """Summarise the last column of best values, [seeds, trials]."""
    last = np.fmax.reduce(values, 1)
    return reporting.summarize(last[np.isfinite(last)].tolist())


def _spread(summary: reporting.Summary) -> str:
    return f"{summary['mean']:.2f} +- {summary['std']:.2f} %"
