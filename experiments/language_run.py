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
from experiments.language_retraining import (GROUPS, MODELS, LanguageConfig, Retrainer,
                                             make_retrainer, retrained_models)
from experiments.programs import Programs
from jaxnas import data, genotypes, reporting
from jaxnas.recurrent_training import bits, perplexity, should_average
from jaxnas.search_spaces import DARTSRNN, ENASRNN

Space = DARTSRNN | ENASRNN
FACTS = {"training_code": True, "space_code": True, "method_code": True, "random_search": True,
         "same_pipeline": True, "multiple_runs": True}


class System(NamedTuple):
    """What a report says of a search."""

    experiment: str                               # module in `experiments`
    name: str                                     # as in the literature
    published: Mapping[str, reporting.Published]  # text -> test perplexity of words


def text_facts(config: LanguageConfig, text: data.TextDataset) -> dict[str, Any]:
    """Return what a run directory says of the text."""
    return {"name": text.name, "sha256": text.sha256, "splits": {
        "train": len(text.train[:config.limit]), "valid": len(text.valid), "test": len(text.test)}}


def make_retrainers(config: LanguageConfig, space: Space, text: data.TextDataset,
                    programs: Programs, *, decoder_bias: bool = True) -> dict[str, Retrainer]:
    """Register the programs of all retrainings: for cells, LSTM and GRU."""
    shape = jax.ShapeDtypeStruct((space.num_nodes,), jnp.int32)
    models = retrained_models(config, space, len(text.vocabulary.symbols),
                              decoder_bias=decoder_bias)
    return {name: make_retrainer(config, name, model, text, programs,
                                 (shape, shape) if name == "cell" else ())
            for name, model in models.items()}


class LanguageRun(abc.ABC):
    """One run: what is carried is `state`, saved whole at every checkpoint.

    Attributes:
      state: what a search puts there, and of the retrainings "train", "valid", "losses"; "clock".
      step: of the search, and then retraining epochs, all counted as one.
    """

    def __init__(
        self, config: Any, system: System, space: Space, text: data.TextDataset,
        programs: Programs, trainers: dict[str, Retrainer], search_steps: int,
        search_state: dict[str, Any], directory: Any, progress: Any, interrupt: common.Interrupt,
    ) -> None:
        self.config, self.system, self.space, self.text = config, system, space, text
        self.programs, self.trainers, self.search_steps = programs, trainers, search_steps
        self.directory, self.progress, self.interrupt = directory, progress, interrupt
        self.timer = common.StepTimer()
        runs = len(GROUPS) * config.num_seeds
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
        restored = directory.restore(self.state)
        if restored is not None:
            self.step, self.state = restored.step, dict(restored.state)
            for name in arrays:
                self.state[name] = np.array(self.state[name])

    @abc.abstractmethod
    def search(self) -> bool:
        """Go on from `step` to the end of the search; False is an interruption."""

    @abc.abstractmethod
    def found(self) -> np.ndarray:
        """Return the arch [L] int32 that the search has found so far."""

    @abc.abstractmethod
    def draw_search(self, path: Path) -> None:
        """Draw the history of the search into a folder."""

    def finish(self) -> None:
        """Go on from `step` to the end, or to an interruption."""
        done = self.search() and self._retrain()
        if not done:
            self.directory.save(self.step, self.state)
        self._report(complete=done)

    def archs(self) -> np.ndarray:
        """Return [2 * num_seeds, L]: the found arch for every seed, then the random ones."""
        key = jax.random.fold_in(searching.random_key(self.config.seed), 2)
        keys = jax.random.split(key, self.config.num_seeds)
        random = [np.asarray(self.space.sample(key)) for key in keys]
        return np.stack([*[self.found()] * self.config.num_seeds, *random])

    def _retrain(self) -> bool:
        config, state, base = self.config, self.state, self.search_steps
        archs, per_run = self.archs(), config.retrain_epochs
        total = len(state["losses"]) * per_run
        with self.progress.phase("retrain", total=total, completed=self.step - base) as bar:
            while self.step - base < total:
                if self.interrupt.requested:
                    return False
                number, epoch = divmod(self.step - base, per_run)
                group, seed = GROUPS[number // config.num_seeds], number % config.num_seeds
                model = MODELS[group]
                arch = archs[number] if model == "cell" else None
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
                self.directory.save(self.step, state)
                bar.advance(1, f"{group} {seed} valid {info['valid_loss']:.3f}")
        return True

    def _finished(self) -> np.ndarray:
        """Return the test losses of the runs that have ended, NaN for others."""
        ended = max(0, self.step - self.search_steps) // self.config.retrain_epochs
        losses = self.state["losses"]
        return np.where(np.arange(len(losses)) < ended, losses, np.nan)

    def _groups(self) -> dict[str, list[float]]:
        """Return the finite test results of every group, in the unit of the level."""
        unit = bits if self.config.level == "characters" else perplexity
        losses = self._finished().reshape(len(GROUPS), -1)
        return {group: [unit(float(loss)) for loss in row if np.isfinite(loss)]
                for group, row in zip(GROUPS, losses)}

    def _report(self, complete: bool) -> None:
        config, path, system = self.config, self.directory.path, self.system
        archs, groups = self.archs(), self._groups()
        genotype = self.space.genotype(archs[0])
        (path / "genotype.json").write_text(genotypes.to_json(genotype), encoding="utf-8")
        words = config.level == "words"
        name, label = ("test_perplexity", "test perplexity") if words else (
            "test_bits_per_character", "bits per character")
        metrics = {}
        if groups["found"]:
            metrics[name] = reporting.Metric(
                reporting.summarize(groups["found"]),
                reporting.summarize(groups["random"]) if groups["random"] else None,
                published=system.published.get(self.text.name) if words else None)
        sizes = {group: float(self.trainers[MODELS[group]].parameters) for group in GROUPS}
        metrics["params"] = reporting.Metric(reporting.summarize([sizes["found"]]),
                                             reporting.summarize([sizes["random"]]))
        finite = [arch for arch, loss in zip(archs, self._finished()) if np.isfinite(loss)]
        search, retrain = (float(value) for value in self.state["clock"])
        baselines = {group: {name: reporting.summarize(groups[group]), "params": sizes[group]}
                     for group in ("LSTM", "GRU") if groups[group]}
        result = reporting.Result(
            complete=complete, experiment=system.experiment, system=system.name,
            architecture=reporting.Architecture(
                self.space.name, genotypes.to_json_dict(genotype), archs[0].tolist()),
            metrics=metrics,
            evaluations=reporting.Evaluations(
                len(finite), len({tuple(arch.tolist()) for arch in finite}), 0),
            compilations=self.programs.count,
            seconds=reporting.Seconds(self.programs.seconds, search, retrain,
                                      self.directory.metrics.seconds),
            step_seconds=self.timer.summary(), seed=config.seed,
            device=common.device_facts(1), programs=self.programs.names,
            extra={"baselines": baselines} if baselines else {})
        language_drawing.draw_tree(self.space.steps(archs[0]), path / "cell",
                                   f"{system.name} on {self.text.name}")
        self.draw_search(path)
        if all(groups.values()):
            reporting.plot_groups(groups, path / "accuracy", label)
        self.directory.write_result(result)
        reporting.write_checklist(path, FACTS)
        reporting.write_report(path)
        if complete:
            self._print(groups, sizes, label)
            print(path / "report.html")

    def _print(self, groups: dict[str, list[float]], sizes: dict[str, float],
               label: str) -> None:
        for group, values in groups.items():
            summary = reporting.summarize(values) if values else None
            print(f"{label} of {len(values)} {group} networks, {sizes[group]:.0f} parameters: "
                  + (f"{summary['mean']:.3f} +- {summary['std']:.3f}" if summary else "none"))
        if groups["found"] and groups["random"]:
            found, random = (float(np.mean(groups[group])) for group in ("found", "random"))
            print(f"The found cell is {'not worse' if found <= random else 'WORSE'} than the "
                  f"mean of random cells at equal cost: {found:.3f} against {random:.3f}.")
        for text, published in self.system.published.items():
            print(f"Published for the text {text}: {published.mean} test perplexity "
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
