"""A run of a search of recurrent cells: search, retrain, compare, report."""

from __future__ import annotations

import abc
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, language_drawing, searching
from experiments.language_retraining import (MODELS, CellSpace, LanguageConfig, Retrainer,
                                             make_retrainer, retrained_models)
from experiments.programs import Programs
from jaxnas import data, genotypes, reporting
from jaxnas.recurrent_training import bits, perplexity, should_average

FACTS: Mapping[str, str | bool | None] = {
    "training_code": True, "space_code": True, "method_code": True, "random_search": True,
    "same_pipeline": True, "multiple_runs": True}
RIVALS = {"random": "the mean of random cells", "random_search": "random search's best cell"}


class System(NamedTuple):
    """What a report says of a search."""

    experiment: str                               # module in `experiments`
    name: str                                     # as in the literature
    published: Mapping[str, reporting.Published]  # text -> test perplexity of words
    published_bits: Mapping[str, reporting.Published] = {}  # likewise, bits per character


def text_facts(config: LanguageConfig, text: data.TextDataset) -> dict[str, Any]:
    """Return what a run directory says of the text."""
    return {"name": text.name, "sha256": text.sha256, "splits": {
        "train": len(text.train[:config.limit]), "valid": len(text.valid), "test": len(text.test)}}


def make_retrainers(config: LanguageConfig, space: CellSpace, text: data.TextDataset,
                    programs: Programs, **options: Any) -> dict[str, Retrainer]:
    """Register the programs of all retrainings: for cells, LSTM and GRU.

    `options` are those of `retrained_models`.
    """
    arch = jax.ShapeDtypeStruct((len(space.num_choices),), jnp.int32)
    inputs = jax.eval_shape(space.split, arch)
    models = retrained_models(config, space, len(text.vocabulary.symbols), **options)
    return {name: make_retrainer(config, name, model, text, programs,
                                 inputs if name == "cell" else ())
            for name, model in models.items()}


class LanguageRun(abc.ABC):
    """One run: what is carried is `state`, saved at every checkpoint.

    Attributes:
      models: group that is retrained -> its kind of model.
      rival: the group beside what was found in result.json.
      state: what a search puts there, and of the retrainings "train", "valid", "losses"; "clock".
      step: of the search, and then retraining epochs, all counted as one.
    """

    models: Mapping[str, str] = MODELS
    rival = "random"
    facts: Mapping[str, str | bool | None] = FACTS

    def __init__(
        self, config: Any, system: System, space: Any, text: data.TextDataset,
        programs: Programs, trainers: dict[str, Retrainer], search_steps: int,
        search_state: dict[str, Any], directory: Any, progress: Any, interrupt: common.Interrupt,
    ) -> None:
        self.config, self.system, self.space, self.text = config, system, space, text
        self.programs, self.trainers, self.search_steps = programs, trainers, search_steps
        self.directory, self.progress, self.interrupt = directory, progress, interrupt
        self.timer = common.StepTimer()
        runs = len(self.models) * config.num_seeds
        self.state: dict[str, Any] = {
            **search_state,
            "train": {name: trainer.empty for name, trainer in trainers.items()},
            "valid": np.full((runs, config.retrain_epochs), np.nan, np.float32),
            # Of the test part, nats, at the epoch that was best on the validation part.
            "losses": np.full(runs, np.nan, np.float32),
            "clock": np.zeros(2, np.float32),  # seconds of search and of retraining so far
        }
        self.step = 0
        arrays = [name for name, value in self.state.items() if isinstance(value, np.ndarray)]
        restored = directory.restore(self._saved(directory.resumed_step or 0))
        if restored is not None:
            self.step, self.state = restored.step, self.state | restored.state
            for name in arrays:
                self.state[name] = np.array(self.state[name])

    @abc.abstractmethod
    def search(self) -> bool:
        """Go on from `step` to the end of the search; False is an interruption."""

    @abc.abstractmethod
    def found(self) -> np.ndarray | None:
        """Return the arch [L] int32 that the search has found so far; None: none yet."""

    @abc.abstractmethod
    def draw_search(self, path: Path) -> None:
        """Draw the history of the search into a folder."""

    def finish(self) -> None:
        """Go on from `step` to the end, or to an interruption."""
        done = self.search() and self._retrain()
        if not done:
            self.save()
        self._report(complete=done)

    def save(self) -> None:
        """Write a checkpoint."""
        self.directory.save(self.step, self._saved(self.step))

    def _saved(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint after `step` holds: no retrained model before there is one."""
        return {name: value for name, value in self.state.items()
                if name != "train" or step > self.search_steps}

    def evaluations(self) -> reporting.Evaluations:
        """Count what was trained from scratch; here the cells that are retrained."""
        return self.directory.retrained(
            {group for group, model in self.models.items() if model == "cell"})

    def extra(self) -> dict[str, Any]:
        """Return what result.json holds besides."""
        return {}

    def draw_cell(self, arch: np.ndarray, path: Path, title: str) -> None:
        """Draw a cell [L] into a folder."""
        language_drawing.draw_tree(self.space.steps(arch), path / "cell", title)

    def random_archs(self) -> list[np.ndarray]:
        """Return an arch [L] drawn at random for every seed."""
        key = jax.random.fold_in(searching.random_key(self.config.seed), 2)
        keys = jax.random.split(key, self.config.num_seeds)
        return [np.asarray(self.space.sample(key)) for key in keys]

    def archs(self) -> dict[str, list[np.ndarray]]:
        """Return the archs [L] that are retrained, one a seed, of every group of cells."""
        found = self.found()
        return {"found": [] if found is None else [found] * self.config.num_seeds,
                "random": self.random_archs()}

    def _retrain(self) -> bool:
        config, state, base = self.config, self.state, self.search_steps
        archs, per_run, groups = self.archs(), config.retrain_epochs, tuple(self.models)
        total = len(state["losses"]) * per_run
        with self.progress.phase("retrain", total=total, completed=self.step - base) as bar:
            while self.step - base < total:
                if self.interrupt.requested:
                    return False
                number, epoch = divmod(self.step - base, per_run)
                group, seed = groups[number // config.num_seeds], number % config.num_seeds
                model = self.models[group]
                arch = archs[group][seed] if model == "cell" else None
                inputs = () if arch is None else self.space.split(jnp.asarray(arch))
                earlier = [loss for loss in state["valid"][number, :epoch].tolist()
                           if math.isfinite(loss)]
                average = bool(earlier) and should_average(earlier, config.nonmonotone)
                key = jax.random.fold_in(searching.random_key(config.seed), 3 + seed)
                start = time.perf_counter()
                state["train"][model], losses = self.trainers[model].epoch(
                    key, state["train"][model], epoch, average, *inputs)
                info = {name: float(value) for name, value in losses.items()}
                state["clock"][1] += time.perf_counter() - start
                state["valid"][number, epoch] = info["valid_loss"]
                if not earlier or info["valid_loss"] < min(earlier):
                    state["losses"][number] = info["test_loss"]
                facts = {"phase": "retrain", "run": number, "group": group}
                self.directory.metrics.write("epoch", epoch=epoch, loss=info["loss"],
                                             valid_loss=info["valid_loss"], **facts)
                if epoch == per_run - 1:
                    loss = float(state["losses"][number])
                    self.directory.metrics.write(
                        "evaluation", arch=group if arch is None else arch.tolist(),
                        test_loss=loss, fitness=-loss, failed=not np.isfinite(loss),
                        budget=per_run, budget_unit="epochs", **facts)
                self.step += 1
                self.save()
                bar.advance(1, f"{group} {seed} valid {info['valid_loss']:.3f}")
        return True

    def _finished(self) -> dict[str, np.ndarray]:
        """Return the test losses [num_seeds] of every group, NaN for runs that have not ended."""
        ended = max(0, self.step - self.search_steps) // self.config.retrain_epochs
        losses = self.state["losses"]
        kept = np.where(np.arange(len(losses)) < ended, losses, np.nan)
        return dict(zip(self.models, kept.reshape(len(self.models), -1)))

    def _groups(self, unit: Callable[[float], float]) -> dict[str, list[float]]:
        """Return the finite test results of every group, of `bits` or `perplexity`."""
        return {group: [unit(float(loss)) for loss in row if np.isfinite(loss)]
                for group, row in self._finished().items()}

    def _report(self, complete: bool) -> None:
        config, path, system = self.config, self.directory.path, self.system
        arch = self.found()
        architecture = reporting.Architecture(self.space.name)
        if arch is not None:
            genotype = self.space.genotype(arch)
            (path / "genotype.json").write_text(genotypes.to_json(genotype), encoding="utf-8")
            architecture = reporting.Architecture(
                self.space.name, genotypes.to_json_dict(genotype), arch.tolist())
            self.draw_cell(arch, path, f"{system.name} on {self.text.name}")
        words = config.level == "words"
        units: dict[str, Callable[[float], float]] = {"test_perplexity": perplexity}
        if not words:
            units = {"test_bits_per_character": bits, **units}
        name, label = next(iter(units)), "test perplexity" if words else "bits per character"
        published = (system.published if words else system.published_bits).get(self.text.name)
        groups = self._groups(units[name])
        metrics = {}
        for metric, unit in units.items():
            values = self._groups(unit)
            if values["found"]:
                metrics[metric] = reporting.Metric(
                    reporting.summarize(values["found"]),
                    reporting.summarize(values[self.rival]) if values[self.rival] else None,
                    published=published if metric == name else None)
        sizes = {group: float(self.trainers[model].parameters)
                 for group, model in self.models.items()}
        metrics["params"] = reporting.Metric(reporting.summarize([sizes["found"]]),
                                             reporting.summarize([sizes["random"]]))
        search, retrain = (float(value) for value in self.state["clock"])
        baselines = {group: {name: reporting.summarize(values), "params": sizes[group]}
                     for group, values in groups.items()
                     if group not in ("found", self.rival) and values}
        result = reporting.Result(
            complete=complete, experiment=system.experiment, system=system.name,
            architecture=architecture, metrics=metrics, evaluations=self.evaluations(),
            compilations=self.programs.count,
            seconds=reporting.Seconds(self.programs.seconds, search, retrain,
                                      self.directory.metrics.seconds),
            step_seconds=self.timer.summary(), seed=config.seed,
            device=common.device_facts(1), programs=self.programs.names,
            extra={**({"baselines": baselines} if baselines else {}), **self.extra()})
        self.draw_search(path)
        if all(groups.values()):
            reporting.plot_groups({group.replace("_", " "): values
                                   for group, values in groups.items()}, path / "accuracy", label)
        self.directory.write_result(result)
        reporting.write_checklist(path, self.facts)
        reporting.write_report(path)
        if complete:
            self._print(groups, sizes, label)
            print(path / "report.html")

    def _print(self, groups: dict[str, list[float]], sizes: dict[str, float],
               label: str) -> None:
        for group, values in groups.items():
            summary = reporting.summarize(values) if values else None
            print(f"{label} of {len(values)} {group.replace('_', ' ')} networks, "
                  f"{sizes[group]:.0f} parameters: "
                  + (f"{summary['mean']:.3f} +- {summary['std']:.3f}" if summary else "none"))
        for group in dict.fromkeys(("random", self.rival)):
            if groups["found"] and groups[group]:
                found, other = (float(np.mean(groups[name])) for name in ("found", group))
                print(f"The found cell is {'not worse' if found <= other else 'WORSE'} than "
                      f"{RIVALS[group]} at equal cost: {found:.3f} against {other:.3f}.")
        for results, unit in ((self.system.published, "test perplexity"),
                              (self.system.published_bits, "bits per character")):
            for text, published in results.items():
                print(f"Published for the text {text}: {published.mean} {unit} "
                      f"({published.source}).")


def start(config: LanguageConfig, experiment: str, facts: dict[str, Any], programs: Programs,
          make: Callable[..., LanguageRun]) -> None:
    """Compile, and run unless the configuration asks for compilation only.

    Args:
      config: any.
      experiment: module in `experiments`.
      facts: of the text.
      programs: all of them.
      make: (directory, progress, interrupt) -> the run; called when all is compiled.
    """
    with common.progress(config) as progress:
        if config.compile_only:
            programs.compile_all(progress)
            print(programs.report())
            return
        with common.open_run(config, experiment, facts) as directory, \
                common.Interrupt() as interrupt:
            programs.compile_all(progress)
            make(directory, progress, interrupt).finish()
