"""DARTS on text: search a recurrent cell, derive it, retrain it beside random cells, LSTM and GRU.

    python -m experiments.darts_rnn                          # Shakespeare in the package
    python -m experiments.darts_rnn --gradient hessian_vector    # the exact second order
    python -m experiments.darts_rnn --dataset my.txt            # any UTF-8 text
    python -m experiments.darts_rnn --preset penn --dataset ptb  # a folder with the Penn Treebank

Published for the Penn Treebank: 55.7 test perplexity, second order, 23M parameters.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments import common, darts_rnn_parts, language_run, searching
from experiments.language_retraining import LanguageConfig, check
from jaxnas import data, reporting
from jaxnas.search_spaces import DARTSRNN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LanguageConfig):
    """DARTS: a recurrent cell for language models (https://arxiv.org/abs/1806.09055)."""

    num_nodes: int = 8
    """Nodes of a cell."""
    gradient: Literal["first_order", "unrolled", "hessian_vector", "finite_difference"] = (
        "first_order"
    )
    """Of the alphas; hessian_vector and unrolled are the exact second order in two forms."""
    weight_decay: float = 5e-7
    """Of the search's weights, L2."""
    alphas_lr: float = 0.01
    """Learning rate of the alphas' Adam."""
    alphas_weight_decay: float = 1e-3
    """Of the alphas, L2."""
    checkpoint_steps: int = 50
    """Steps between checkpoints of the search."""


PRESETS = {
    "small": Config(),
    "second_order": Config(gradient="hessian_vector"),
    "penn": Config(
        dataset="ptb", level="words", limit=None, gradient="hessian_vector", epochs=50,
        batch_size=256, hidden_size=300, weights_lr=20.0, alphas_lr=3e-3, dropout_embedding=0.2,
        dropout_inputs=0.75, dropout_hidden=0.25, dropout_output=0.75, dropout_words=0.1,
        checkpoint_steps=100, retrain_epochs=8000, retrain_batch_size=64, retrain_hidden_size=850,
        retrain_lr=20.0,
    ),
}
SMOKE = Config(
    num_seeds=1, limit=4000, num_nodes=3, epochs=1, batch_size=64, bptt=8, hidden_size=4,
    checkpoint_steps=3, retrain_epochs=1, retrain_hidden_size=4, retrain_batch_size=64,
)
SYSTEM = language_run.System("darts_rnn", "DARTS", {
    "ptb": reporting.Published(55.7, None, "DARTS (second order), Penn Treebank")})


def run(config: Config) -> None:
    """Search, derive, retrain, compare, report."""
    with common.validation():
        reporting.require_matplotlib()
        space = DARTSRNN(config.num_nodes)
        text = data.load_text(config.dataset, level=config.level)
        check(config, text, ("checkpoint_steps", "alphas_lr"))
        programs = common.Programs()
        trainers = language_run.make_retrainers(config, space, text, programs)
    facts = language_run.text_facts(config, text)
    if config.dry_run:
        print(common.describe(config, dataset=facts,
                              vocabulary_size=len(text.vocabulary.symbols)))
        return
    task = darts_rnn_parts.make_task(config, space, text, programs)

    def make(*surroundings: Any) -> _Run:
        return _Run(config, space, text, programs, trainers, task, *surroundings)

    language_run.start(config, SYSTEM.experiment, facts, programs, make)


class _Run(language_run.LanguageRun):
    """The search by alternating steps of the alphas and the weights."""

    def __init__(self, config, space, text, programs, trainers, task, *surroundings):
        self.task, self.relaxed = task, space
        search = task.init()
        history = np.zeros((config.epochs + 1, *space.alphas_shape), np.float32)
        history[0] = space.weights(search.alphas)
        super().__init__(
            config, SYSTEM, space, text, programs, trainers, task.total_steps,
            {"search": search, "hidden": task.hidden, "history": history}, *surroundings)

    def search(self) -> bool:
        """Take the steps that are left."""
        config, task, state = self.config, self.task, self.state
        total = task.total_steps
        with self.progress.phase("search", total=total, completed=min(self.step, total)) as bar:
            while self.step < total:
                if self.interrupt.requested:
                    return False
                start = time.perf_counter()
                train, valid, state["hidden"] = task.batches(
                    state["search"], state["hidden"], self.step)
                state["search"], info = task.optimizer.update(state["search"], train, valid)
                info = {name: float(value) for name, value in info.items()}
                elapsed = time.perf_counter() - start
                self.timer.record(elapsed)
                state["clock"][0] += elapsed
                if not np.isfinite(list(info.values())).all():
                    self.directory.metrics.write("event", event="diverged", step=self.step)
                    raise FloatingPointError(
                        f"the loss is not finite at search step {self.step}: {info}; lower "
                        "weights_lr or clip_norm. The last checkpoint is from before.")
                self.directory.metrics.write("step", step=self.step, step_seconds=elapsed, **info)
                self.step += 1
                bar.advance(1, f"train {info['train_loss']:.3f} valid {info['valid_loss']:.3f}")
                if self.step in task.epoch_ends:
                    epoch = task.epoch_ends.index(self.step) + 1
                    alphas = state["search"].alphas
                    state["history"][epoch] = self.relaxed.weights(alphas)
                    self.directory.metrics.write(
                        "epoch", epoch=epoch, phase="search",
                        alphas_entropy_bits=searching.entropy(alphas),
                        arch=np.asarray(self.relaxed.discretize(alphas)).tolist())
                if self.step % config.checkpoint_steps == 0 or self.step == total:
                    self.save()
        return True

    def found(self) -> np.ndarray:
        """Derive the arch of the alphas."""
        return np.asarray(self.relaxed.discretize(self.state["search"].alphas))

    def draw_search(self, path: Path) -> None:
        """Draw the probabilities of the activations, and the losses."""
        done = sum(end <= self.step for end in self.task.epoch_ends)
        means = self.state["history"][:done + 1].mean(1)  # [T, O]
        reporting.plot_curves(
            {name: (list(range(done + 1)), means[:, column].tolist())
             for column, name in enumerate(self.space.activations)},
            path / "alphas", "epoch", "mean probability of an activation")
        steps: list[dict[str, Any]] = [
            row for row in reporting.read_metrics(path / "metrics.jsonl") if row["kind"] == "step"]
        if steps:
            at = [row["step"] for row in steps]
            reporting.plot_curves(
                {"weights' part": (at, [row["train_loss"] for row in steps]),
                 "alphas' part": (at, [row["valid_loss"] for row in steps])},
                path / "history", "search step", "loss of the search network (nats)")


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
