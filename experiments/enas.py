"""ENAS on images: share weights, train a controller on them, derive, retrain beside random ones.

    python -m experiments.enas --space macro          # whole networks, digits, 2 cores: minutes
    python -m experiments.enas --space micro          # cells
    python -m experiments.enas --preset paper --space micro   # CIFAR-10 as published, on a GPU
    python -m experiments.enas --dataset images.npz   # your own: x_train, y_train, x_test, y_test

Published for CIFAR-10: 4.23 % test error (macro), 3.54 % (micro, 2.89 % with cutout). The authors'
own remark holds here too: random architectures, retrained alike, are nearly as good. On digits (2
busy CPU cores, one run each, 3 seeds, found against random): macro 94.7 +- 0.7 and 92.2 +- 1.1 % in
3 minutes, micro 95.4 +- 1.1 and 96.2 +- 1.1 % in 6, of which compiling took 2; Kendall's tau of the
two ways to score 9 architectures 0.03 and 0.11, no better than chance.

What differs from the released code (https://github.com/melodyguan/enas). Unused weights stay as
they are (`--update all` is as released). Macro is scored by statistics of the batch (`--statistics
running` is as released). The micro search drops no paths and has no auxiliary head. Found and
random networks are retrained in one program for all: those of macro as children of the search
network; `experiments.retrain --genotype <run>/genotype.json` trains its final form, of other shape.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments import common, enas_search, retraining
from experiments.enas_run import Run
from jaxnas import data, reporting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(retraining.RetrainingConfig):
    """ENAS: architecture search with shared weights (https://arxiv.org/abs/1802.03268)."""

    num_seeds: int = 3
    """Retrainings of the found network, and random networks retrained likewise."""
    space: Literal["macro", "micro"] = "macro"
    """Whole networks layer by layer, or two cells."""
    layers: int = 6
    """Layers (macro; below 3 no reductions), or normal cells, a multiple of 3 (micro)."""
    blocks: int = 3
    """Blocks of a cell (micro)."""
    features: int = 8
    """Channels of the network with shared weights; in micro, of its first stage."""
    epochs: int = 150
    """Passes of the shared weights over their images, a turn of the controller after each."""
    batch_size: int = 32
    """Images of a step, and of a validation minibatch if there are as many."""
    valid_fraction: float = 0.25
    """Share of the training images that scores architectures."""
    limit: int | None = None
    """At most so many training images for the search."""
    weights_lr: float = 0.1
    """Peak learning rate of the shared weights."""
    weights_lr_min: float = 0.0005
    """Learning rate at the end of a period."""
    restart_period: int = 0
    """Epochs of the first cosine, each later one twice as long; 0 is one over all epochs."""
    weights_l2: float = 2.5e-4
    """Times the sum of squares of all weights in use (without a half, as published)."""
    momentum: float = 0.9
    """Nesterov's, of the shared weights."""
    clip_norm: float | None = 5.0
    """Bound on the norm of the shared weights' gradient; None as released."""
    dropout: float = 0.0
    """Before the classifier of the shared network, in training."""
    archs_per_step: int = 1
    """Architectures whose gradients a step of the shared weights averages; M of the paper."""
    update: Literal["used", "all"] = "used"
    """Whether decay and momentum move weights that no sampled architecture uses."""
    statistics: Literal["batch", "running"] = "batch"
    """Of batch normalisation when an architecture is scored."""
    controller_steps: int = 5
    """Updates of the controller after every epoch."""
    controller_samples: int = 20
    """Architectures of an update."""
    controller_lr: float = 0.0035
    """Of the controller's Adam (b1 = 0, eps = 1e-3)."""
    hidden_size: int = 64
    """Of the controller's LSTM."""
    baseline_decay: float = 0.99
    """Momentum of the reward's moving average."""
    entropy_weight: float = 1e-4
    """Of the controller's entropy in nats."""
    skip_target: float = 0.4
    """Share of skip connections that is not punished (macro)."""
    skip_weight: float = 0.8
    """Of the divergence from it."""
    derive_samples: int = 20
    """Architectures drawn from the trained controller, of which the best is taken."""
    derive_on: Literal["split", "minibatch"] = "split"
    """What they are scored on: all validation images, or one minibatch as published."""
    ranked: int = 8
    """Random architectures that are scored and trained alone, for Kendall's tau."""
    checkpoint_epochs: int = 5
    """Epochs between checkpoints of the search."""
    retrain_features: int = 8
    """Channels of the retrained network."""
    retrain_layers: int = 3
    """Its normal cells, a multiple of 3 (micro); in macro an architecture has its layers."""


_MACRO_PAPER = Config(
    dataset="cifar10", layers=12, features=36, epochs=310, batch_size=128, valid_fraction=0.1,
    weights_lr=0.05, weights_lr_min=0.0005, restart_period=10, weights_l2=2.5e-4, clip_norm=None,
    dropout=0.1, controller_steps=50, controller_samples=20, controller_lr=0.001,
    derive_on="minibatch", derive_samples=10, checkpoint_epochs=1, retrain_epochs=310,
    retrain_batch_size=100, retrain_lr=0.05, retrain_weight_decay=4e-4, retrain_features=96,
)
_MICRO = Config(
    space="micro", layers=3, blocks=3, features=8, epochs=100, weights_l2=1e-4,
    controller_samples=10, retrain_epochs=6,
)
PRESETS = {
    "macro": {"small": Config(retrain_epochs=10), "paper": _MACRO_PAPER},
    "micro": {
        "small": _MICRO,
        "paper": dataclasses.replace(
            _MACRO_PAPER, space="micro", layers=6, blocks=5, features=20, epochs=150,
            batch_size=160, weights_l2=1e-4, controller_steps=30, controller_samples=10,
            controller_lr=0.0035, retrain_epochs=630, retrain_batch_size=144, retrain_features=36,
            retrain_layers=15, drop_path_rate=0.4),
    },
}
_TINY: dict[str, Any] = {
    "num_seeds": 2, "epochs": 2, "batch_size": 16, "features": 2, "blocks": 1, "limit": 96,
    "controller_steps": 2, "controller_samples": 3, "derive_samples": 3, "ranked": 2,
    "hidden_size": 8, "retrain_epochs": 1, "retrain_features": 2, "retrain_batch_size": 512,
}
SMOKE = {"macro": Config(layers=2, **_TINY), "micro": Config(space="micro", layers=3, **_TINY)}
FACTS = {"training_code": True, "space_code": True, "method_code": True, "random_search": True,
         "same_pipeline": True, "multiple_runs": True}


def run(config: Config) -> None:
    """Search, derive, retrain, compare, report."""
    with common.validation():
        reporting.require_matplotlib()
        dataset = data.load(config.dataset, data_dir=config.data_dir)
        splits = data.split_validation(
            dataset, fraction=config.valid_fraction, seed=config.seed, limit=config.limit)
        enas_search.check_search(config, dataset, splits)
        retraining.check_retraining(config, dataset)
        space = enas_search.make_space(config)
        network = enas_search.make_retrained_network(config, space, dataset.num_classes)
    sizes = {name: len(rows) for name, rows in splits._asdict().items()}
    facts = common.dataset_facts(dataset, {**sizes, "test": len(dataset.test_labels)})
    programs = common.Programs()
    num_random = max(config.ranked, config.num_seeds)
    task = enas_search.make_task(config, space, dataset, splits, num_random, programs)
    if config.dry_run:
        print(common.describe(
            config, dataset=facts, shared_parameters=_count(task.shapes.shared.params),
            controller_parameters=_count(task.shapes.controller.params),
            programs={name: _shapes(output()) for name, output in task.outputs.items()}))
        return
    arch = jax.ShapeDtypeStruct((len(space.num_choices),), jnp.int32)
    trainer = retraining.make_trainer(config, network, dataset, programs, (arch,))
    with common.progress(config) as progress:
        if config.compile_only:
            programs.compile_all(progress)
            print(programs.report())
            return
        with common.open_run(config, "enas", facts) as directory, \
                common.Interrupt() as interrupt:
            programs.compile_all(progress)
            Run(config, space, network, dataset, programs, task, trainer, directory, progress,
                interrupt, num_random).finish(FACTS)


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _shapes(outputs: Any) -> dict[str, Any]:
    """Return how many arrays and numbers a program gives back."""
    leaves = jax.tree.leaves(outputs)
    return {"arrays": len(leaves), "numbers": _count(outputs)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the presets of the space that the flags name; return the exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--space", default="macro")
    try:
        found, _ = parser.parse_known_args(list(sys.argv[1:] if argv is None else argv))
        space = found.space if found.space in PRESETS else "macro"
    except argparse.ArgumentError:  # refused with a sentence where all flags are read
        space = "macro"
    return common.main(Config, PRESETS[space], SMOKE[space], run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
