"""NAS with reinforcement learning on text: a controller designs recurrent cells.

    python -m experiments.nasrl_rnn                          # Shakespeare in the package
    python -m experiments.nasrl_rnn --dataset my.txt            # any UTF-8 text
    python -m experiments.nasrl_rnn --store trials.sqlite       # children shared with other runs
    python -m experiments.nasrl_rnn --preset paper --dataset ptb --dry-run  # what it would cost

REINFORCE with a moving baseline; the reward of a cell is c / perplexity^2, c = 80, of a language
model that is trained from scratch with it. One program trains all of them. What is found is the
cell with the lowest validation perplexity. The paper then tunes learning rate, initial weights,
dropout and decay; here nothing is tuned, and all cells are retrained by the recipe of DARTS.

Published for the Penn Treebank, both abstract: 62.4 test perplexity of words, 54M parameters, and
1.214 bits per character.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax

from experiments import child_report, child_search, common, language_run
from experiments.child_run import open_store
from experiments.child_search import GROUPS, ChildrenConfig, Measured, Searches
from experiments.language_controller import (POSITIVE, ControllerConfig, check_controller,
                                             inverse_perplexity)
from experiments.language_drawing import draw_binary_tree
from experiments.language_retraining import MODELS, check
from experiments.nasrl_rnn_children import (NAMES, child_parts, identity, make_children,
                                            worst_if_failed)
from jaxnas import data, reporting, search
from jaxnas.base import Objective, Searcher
from jaxnas.data import TextDataset
from jaxnas.networks import lstm_controller
from jaxnas.networks.recurrent_tree import ACTIVATIONS, COMBINERS
from jaxnas.search_spaces import NASRLRNN
from jaxnas.searchers import random_search, reinforce


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ControllerConfig, ChildrenConfig):
    """NAS with RL: a recurrent cell for language models (https://arxiv.org/abs/1611.01578)."""

    num_leaves: int = 8
    """Of the cell's tree: 2, 4, or 8 as published."""
    num_layers: int = 1
    """Cells on top of each other, of children and of the retrained models."""
    limit: int | None = 50_000
    evaluations: int = 48
    """Children of the search, and as many of the random search beside it."""
    epochs: int = 1
    """Passes of a child over its part of the training text."""
    child_tokens: int | None = 50_000
    """At most so many tokens of the training part for the children."""
    child_valid_tokens: int | None = 10_000
    """At most so many tokens of the validation part that children are judged by."""
    batch_size: int = 16
    """Texts side by side in the training of a child."""
    bptt: int = 20
    """Tokens of a window."""
    hidden_size: int = 24
    """Of a child, embedding and cell."""
    controller_samples: int = 6
    """Architectures of a step."""
    controller_size: int = 35
    """Of the controller's LSTM, which has two layers."""
    controller_lr: float = 0.02
    """Learning rate of the controller's Adam."""
    entropy_weight: float = 0.0
    """Of the controller's entropy bonus, in reward per nat; the paper has none."""
    baseline_decay: float = 0.8
    """Of the moving mean of rewards; the paper does not give it."""
    retrain_epochs: int = 3
    retrain_hidden_size: int = 32


PRESETS = {
    "small": Config(),
    # Known are two layers, 35 epochs, 10 children a step and the controller's rate. The number of
    # children is the image search's; all else is of the medium LSTM of Zaremba et al. or DARTS's.
    "paper": Config(
        dataset="ptb", level="words", limit=None, num_layers=2, evaluations=12800, epochs=35,
        child_tokens=None, child_valid_tokens=None, batch_size=20, bptt=35, hidden_size=650,
        weights_lr=20.0, dropout_embedding=0.2, dropout_inputs=0.75, dropout_hidden=0.25,
        dropout_output=0.75, dropout_words=0.1, controller_samples=10, controller_lr=5e-4,
        baseline_decay=0.95, retrain_epochs=1000, retrain_batch_size=20, retrain_hidden_size=850,
        retrain_lr=20.0),
}
SMOKE = Config(
    num_seeds=1, limit=4000, num_leaves=2, evaluations=4, epochs=2, child_tokens=2000,
    child_valid_tokens=1000, batch_size=32, bptt=8, hidden_size=4, controller_samples=2,
    controller_size=8, retrain_epochs=1, retrain_hidden_size=4, retrain_batch_size=64)
SYSTEM = language_run.System(
    "nasrl_rnn", "NASRL",
    {"ptb": reporting.Published(62.4, None, "NAS with RL, 54M parameters, Penn Treebank, "
                                            "abstract of the paper")},
    {"ptb": reporting.Published(1.214, None, "NAS with RL, characters of the Penn Treebank, "
                                             "abstract of the paper")})


class Stage(NamedTuple):
    """The only one of the search, see `child_search.AnyStage`."""

    name: str
    space: NASRLRNN
    searcher: Searcher
    baseline: Searcher
    steps: int


class Task(NamedTuple):
    """What is searched, see `child_search.AnySystem`."""

    stages: tuple[Stage, ...]
    objective: Objective

    @staticmethod
    def costs(archs: np.ndarray) -> dict[str, Any]:
        """Return no further metrics."""
        del archs
        return {}


def make_task(config: Config, space: NASRLRNN) -> Task:
    """Return the search of a configuration.

    Raises:
      ValueError: a setting is out of range.
    """
    batch = config.controller_samples
    steps = child_search.steps(config.evaluations, batch, "controller_samples")
    searcher = reinforce(
        lstm_controller(space.num_choices, hidden_size=config.controller_size),
        optimizer=optax.adam(config.controller_lr), batch_size=batch,
        baseline_decay=config.baseline_decay, baseline_init="first", baseline_first=False,
        entropy_weight=config.entropy_weight)
    stage = Stage(space.name, space, searcher, random_search(space, batch_size=batch), steps)
    return Task((stage,), worst_if_failed(inverse_perplexity(config.reward_scale, 2)))


def cost(config: Config, text: TextDataset) -> dict[str, int]:
    """Count what a run does, in tokens read, for `--dry-run`."""
    train, valid = (part.size for part in child_parts(config, text))
    retrained = len(text.train[:config.limit]) + len(text.valid) + len(text.test)
    return {"children": len(GROUPS) * config.evaluations,
            "tokens_of_children": len(GROUPS) * config.evaluations * config.epochs
            * (train + valid),
            "tokens_of_retraining": (len(_Run.models) * config.num_seeds * config.retrain_epochs
                                     * retrained)}


def run(config: Config) -> None:
    """Search, search at random, retrain, compare, report."""
    with contextlib.ExitStack() as stack:
        with common.validation():
            reporting.require_matplotlib()
            space = NASRLRNN(config.num_leaves)
            text = data.load_text(config.dataset, level=config.level)
            check(config, text, (*POSITIVE, "num_layers"))
            check_controller(config)
            child_search.check_children(config)
            for name in ("child_tokens", "child_valid_tokens"):
                value = getattr(config, name)
                if value is not None and value < 2:
                    raise ValueError(f"{name} must be 2 or more, or None for all, got {value}.")
            task = make_task(config, space)
            programs = common.Programs()
            train = make_children(config, space, text, programs)
            trainers = language_run.make_retrainers(config, space, text, programs,
                                                    num_layers=config.num_layers)
        facts = language_run.text_facts(config, text)
        if config.dry_run:
            print(common.describe(
                config, dataset=facts, vocabulary_size=len(text.vocabulary.symbols),
                cost=cost(config, text), identity=identity(config, space, text).recipe,
                params={name: trainer.parameters for name, trainer in trainers.items()}))
            return
        shared = None if config.store is None or config.compile_only else stack.enter_context(
            open_store(config.store))

        def make(directory: Any, progress: Any, interrupt: common.Interrupt) -> _Run:
            store = shared or stack.enter_context(open_store(directory.path / "trials.sqlite"))
            searches = Searches(
                task, config, [identity(config, space, text)], [train], store, progress,
                lambda: interrupt.requested,
                Measured(NAMES, "perplexity", " perplexity", np.nanmin, config.epochs))
            return _Run(config, space, text, programs, trainers, searches, directory, progress,
                        interrupt)

        language_run.start(config, SYSTEM.experiment, facts, programs, make)


class _Run(language_run.LanguageRun):
    """The search by the controller, then a random search of as many children."""

    models = {"found": "cell", "random_search": "cell",
              **{group: model for group, model in MODELS.items() if group != "found"}}
    rival = "random_search"
    facts = {**language_run.FACTS, "performance_over_time": True, "same_protocol": True,
             "multiple_runs": child_report.FACTS["multiple_runs"]}

    def __init__(self, config, space, text, programs, trainers, searches, *surroundings):
        self.searches = searches
        super().__init__(config, SYSTEM, space, text, programs, trainers,
                         len(GROUPS) * searches.steps, {"search": searches.state}, *surroundings)
        searches.state = dict(self.state["search"])
        self.rows: dict[str, list[dict[str, Any]]] = {group: [] for group in GROUPS}
        if self.step:
            for row in reporting.read_metrics(self.directory.path / "metrics.jsonl"):
                if row["kind"] == "evaluation" and row.get("phase") == "search":
                    self.rows[str(row["group"])].append(row)

    def search(self) -> bool:
        """Take the steps that are left."""
        if not all(self._search(group) for group in GROUPS):
            return False
        for group in GROUPS:
            if self.winner(group) is None:
                raise FloatingPointError(
                    f"no child of the {group} search succeeded, so that there is nothing to "
                    "retrain: lower weights_lr, or raise evaluations.")
        return True

    def _search(self, group: str) -> bool:
        rows, start = self.rows[group], time.perf_counter()

        def on_step(children: list[dict[str, Any]], history: search.History) -> None:
            nonlocal start
            now = time.perf_counter()
            self.timer.record(now - start)
            self.state["clock"][0] += now - start
            start = now
            for row in children:
                self.directory.metrics.write("evaluation", **row, number=len(rows))
                rows.append(row)
            self.directory.metrics.write(
                "step", phase="search", group=group, children=len(rows),
                **{name: float(value[0]) for name, value in history.info.items()})
            self.step += 1
            self.state["search"] = dict(self.searches.state)
            self.save()

        return self.searches.run(group, rows, on_step)

    def winner(self, group: str) -> np.ndarray | None:
        """Return the arch [L] with the lowest perplexity, the earliest; None: none succeeded."""
        rows = [row for row in self.rows[group] if not row["failed"]]
        if not rows:
            return None
        return np.array(min(rows, key=lambda row: row["perplexity"])["canonical"], np.int32)

    def found(self) -> np.ndarray | None:
        """Return the best arch of the controller."""
        return self.winner("found")

    def archs(self) -> dict[str, list[np.ndarray]]:
        """Return what is retrained, random search's best cell beside."""
        best = self.winner("random")
        return super().archs() | {
            "random_search": [] if best is None else [best] * self.config.num_seeds}

    def evaluations(self) -> reporting.Evaluations:
        """Count the children."""
        rows = [row for group in GROUPS for row in self.rows[group]]
        return reporting.Evaluations(len(rows), len({tuple(row["canonical"]) for row in rows}),
                                     sum(bool(row["failed"]) for row in rows))

    def extra(self) -> dict[str, Any]:
        """Return what result.json says of the searches."""
        best = {group: [row["perplexity"] for row in rows if not row["failed"]]
                for group, rows in self.rows.items()}
        return {"children": {group: len(rows) for group, rows in self.rows.items()},
                "children_trained_by_this_process": self.searches.trained,
                "valid_perplexity": {group: {"best": min(found), "mean": float(np.mean(found))}
                                     for group, found in best.items() if found},
                "small_programs": ["initial_search_state", "ask", "tell", "canonical"]}

    def draw_cell(self, arch: np.ndarray, path: Path, title: str) -> None:
        """Draw the tree."""
        values = arch.tolist()
        nodes = [(COMBINERS[combiner], ACTIVATIONS[activation])
                 for combiner, activation in zip(values[:-2:2], values[1:-2:2])]
        draw_binary_tree(nodes[:-1], nodes[-1], values[-2], values[-1], path / "cell", title)

    def draw_search(self, path: Path) -> None:
        """Draw the best perplexities over children, and the controller's entropy."""
        curves = {}
        for group, name in zip(GROUPS, (SYSTEM.name, "random search")):
            found = [np.nan if row["failed"] else row["perplexity"] for row in self.rows[group]]
            if np.isfinite(found).any():
                best = np.fmin.accumulate(found)
                curves[name] = (list(range(1, len(best) + 1)), best.tolist())
        if curves:
            reporting.plot_curves(curves, path / "history", "children trained",
                                  "best validation perplexity so far")
        steps: list[dict[str, Any]] = [
            row for row in reporting.read_metrics(path / "metrics.jsonl")
            if row["kind"] == "step" and row["group"] == "found"]
        if steps:
            at, entropies = ([row[name] for row in steps] for name in ("children", "entropy"))
            reporting.plot_curves({"entropy": (at, entropies)}, path / "entropy",
                                  "children trained", "entropy of the controller (nats)")


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
