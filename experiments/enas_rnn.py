"""ENAS on text: shared weights, a controller, and the found cell beside random ones, LSTM and GRU.

    python -m experiments.enas_rnn                           # Shakespeare in the package
    python -m experiments.enas_rnn --dataset my.txt             # any UTF-8 text
    python -m experiments.enas_rnn --preset paper --dataset ptb --dry-run  # what it would cost

Published for the Penn Treebank: 55.8 test perplexity (abstract), 56.1 +- 0.1 of the released cell.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments import common, enas_rnn_search, language_run
from experiments.language_controller import POSITIVE, ControllerConfig, check_controller
from experiments.language_retraining import check
from jaxnas import data, reporting
from jaxnas.search_spaces import ENASRNN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ControllerConfig):
    """ENAS: a recurrent cell for language models (https://arxiv.org/abs/1802.03268)."""

    num_nodes: int = 8
    """Nodes of a cell."""
    epochs: int = 15
    """Passes of the shared weights over the training part, each before a turn of the controller."""
    weights_l2: float = 8e-7
    """Of the shared weights that an architecture uses, times the sum of squares."""
    controller_steps: int = 20
    """Steps of the controller in an epoch."""
    derive_samples: int = 50
    """Architectures drawn at the end, of which the best by shared weights is found."""
    derive_tokens: int | None = 8000
    """Tokens of the validation part on which they are compared; None is all."""


PRESETS = {
    "small": Config(),
    # google-research's enas_lm. There the retraining's rates of dropout differ a little from the
    # search's (words 0.125, embedding 0.175, inputs 0.725, hidden 0.225); here they are the same.
    "paper": Config(
        dataset="ptb", level="words", limit=None, epochs=600, batch_size=128, hidden_size=200,
        weights_lr=20.0, clip_norm=0.1, slowness=1.0, dropout_words=0.1, dropout_embedding=0.2,
        dropout_inputs=0.75, dropout_hidden=0.25, dropout_output=0.75, controller_steps=25,
        controller_lr=5e-5, baseline_decay=0.999, derive_samples=100, derive_tokens=None,
        retrain_epochs=3000, retrain_batch_size=64, retrain_hidden_size=800, retrain_lr=20.0,
        activation_penalty=0.7, nonmonotone=10,
    ),
}
SMOKE = Config(
    num_seeds=1, limit=4000, num_nodes=3, epochs=2, batch_size=64, bptt=8, hidden_size=4,
    controller_steps=2, controller_samples=2, controller_size=8, derive_samples=3,
    derive_tokens=1000, retrain_epochs=1, retrain_hidden_size=4, retrain_batch_size=64,
)
SYSTEM = language_run.System("enas_rnn", "ENAS", {
    "ptb": reporting.Published(55.8, None, "ENAS, Penn Treebank, abstract of the paper")})
CURVES = ("train_loss", "reward", "perplexity", "baseline", "entropy")


def run(config: Config) -> None:
    """Search, derive, retrain, compare, report."""
    with common.validation():
        reporting.require_matplotlib()
        space = ENASRNN(config.num_nodes)
        text = data.load_text(config.dataset, level=config.level)
        check(config, text, ("controller_steps", *POSITIVE, "derive_samples"))
        check_controller(config)
        if not config.weights_l2 >= 0:
            raise ValueError(f"weights_l2 must be 0 or more, got {config.weights_l2}.")
        if config.derive_tokens is not None and config.derive_tokens < 1:
            raise ValueError("derive_tokens must be 1 or more, or None for all, got "
                             f"{config.derive_tokens}.")
        programs = common.Programs()
        task = enas_rnn_search.make_task(config, space, text, programs)
        trainers = language_run.make_retrainers(config, space, text, programs, decoder_bias=False)
    facts = language_run.text_facts(config, text)
    if config.dry_run:
        print(common.describe(
            config, dataset=facts, vocabulary_size=len(text.vocabulary.symbols),
            cost=enas_rnn_search.cost(config, text),
            params={name: trainer.parameters for name, trainer in trainers.items()}))
        return

    def make(*surroundings: Any) -> _Run:
        return _Run(config, space, text, programs, trainers, task, *surroundings)

    language_run.start(config, SYSTEM.experiment, facts, programs, make)


class _Run(language_run.LanguageRun):
    """The search by alternating epochs of the shared weights and the controller."""

    def __init__(self, config, space, text, programs, trainers, task, *surroundings):
        self.task = task
        super().__init__(
            config, SYSTEM, space, text, programs, trainers, config.epochs,
            {"search": task.init(), "arch": np.full(task.length, -1, np.int32),
             "history": np.full((config.epochs, len(CURVES)), np.nan, np.float32)}, *surroundings)

    def search(self) -> bool:
        """Run the epochs that are left, and derive."""
        config, state = self.config, self.state
        total = config.epochs
        with self.progress.phase("search", total=total, completed=min(self.step, total)) as bar:
            while self.step < total:
                if self.interrupt.requested:
                    return False
                start = time.perf_counter()
                state["search"], info = self.task.epoch(state["search"], self.step)
                info = {name: float(value) for name, value in info.items()}
                elapsed = time.perf_counter() - start
                self.timer.record(elapsed)
                state["clock"][0] += elapsed
                state["history"][self.step] = [info[name] for name in CURVES]
                self.directory.metrics.write("epoch", epoch=self.step, phase="search", **info)
                self.step += 1
                if self.step == total:
                    self._derive()
                self.save()
                bar.advance(1, f"reward {info['reward']:.3f} entropy {info['entropy']:.2f}")
        return True

    def _derive(self) -> None:
        """Keep the best of what the controller draws, by the shared weights."""
        archs, losses = (np.asarray(part) for part in self.task.derive(self.state["search"]))
        best = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
        self.state["arch"] = archs[best].astype(np.int32)
        self.directory.metrics.write(
            "epoch", epoch=self.step, phase="derive", arch=archs[best].tolist(),
            valid_loss=float(losses[best]), mean_valid_loss=float(losses.mean()),
            unique=len({tuple(arch.tolist()) for arch in archs}))

    def found(self) -> np.ndarray:
        """Return the derived arch, or, before the end, the best that is drawn now."""
        if (self.state["arch"] >= 0).all():
            return self.state["arch"]
        archs, losses = (np.asarray(part) for part in self.task.derive(self.state["search"]))
        return archs[int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))]

    def draw_search(self, path: Path) -> None:
        """Draw the rewards, their baseline, and the controller's entropy."""
        done = min(self.step, self.config.epochs)
        if not done:
            return
        at, values = list(range(1, done + 1)), self.state["history"][:done].T.tolist()
        curves = {name: (at, row) for name, row in zip(CURVES, values)}
        reporting.plot_curves({name: curves[name] for name in ("reward", "baseline")},
                              path / "history", "epoch", "c / perplexity, by shared weights")
        reporting.plot_curves({"entropy": curves["entropy"]}, path / "entropy", "epoch",
                              "entropy of the controller (nats)")


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
