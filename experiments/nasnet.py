"""NASNet on images: PPO over a normal and a reduction cell, searched small and stacked large.

    python -m experiments.nasnet                        # digits, 2 cores: minutes
    python -m experiments.nasnet --preset paper --dry-run   # CIFAR-10, what it would cost
    python -m experiments.nasnet --workers 4            # the 8 children of a batch, 4 side by side
    python -m experiments.retrain --genotype runs/nasnet/<time>/genotype.json --preset paper

The reward is the validation accuracy of a child. The paper retrains its best 250 children for
longer; here the best one is taken. The retraining has no auxiliary head: one program serves all
architectures, found and random; `experiments.retrain` builds the network of one, with the head.

Published for CIFAR-10: NASNet-A (6 @ 768) 97.35 % with cutout.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from experiments import child_run, child_search, common, pair_search
from experiments.child_search import System
from experiments.strategies import PPO
from jaxnas import reporting
from jaxnas.data import ImageDataset
from jaxnas.evaluators import Recipe
from jaxnas.search_spaces import NASNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pair_search.PairConfig):
    """NASNet (https://arxiv.org/abs/1707.07012)."""

    operations: tuple[str, ...] = pair_search.FEW
    strategy: Annotated[PPO, tyro.conf.arg(name="")] = PPO(
        policy="lstm", learning_rate=0.01, batch_size=8)


PRESETS = {
    "small": Config(),
    "paper": Config(
        dataset="cifar10", evaluations=20000, num_blocks=5, operations=(), features=32,
        cells_per_stage=2, retrain_features=32, retrain_cells_per_stage=6, method="conv",
        valid_fraction=0.1,
        # The paper does not give the children's optimiser: that of the final training, shorter.
        recipe=Recipe(epochs=20, batch_size=32, learning_rate=0.025, schedule="cosine",
                      nesterov=False, weight_decay=5e-4, clip_norm=5.0, drop_path_rate=0.0,
                      score="last"),
        strategy=PPO(policy="lstm", learning_rate=3.5e-4, batch_size=20, num_epochs=4,
                     clip_range=0.2, baseline_decay=0.95, entropy_weight=1e-5),
        retrain_epochs=600, retrain_batch_size=32, retrain_lr=0.025, retrain_weight_decay=5e-4,
        drop_path_rate=0.4, cutout_length=16),
}
SMOKE = Config(
    num_seeds=2, evaluations=4, num_blocks=1, features=2, retrain_features=2, limit=160,
    operations=("skip_connect", "avg_pool_3x3", "sep_conv_3x3"),
    strategy=PPO(policy="lstm", batch_size=2), recipe=Recipe(epochs=1, batch_size=64),
    retrain_epochs=1, retrain_batch_size=512)
PUBLISHED = {"cifar10": reporting.Published(
    97.35, None, "NASNet-A (6 @ 768) with cutout; 2.65 % error in the abstract of ENAS")}


def make_system(config: Config, dataset: ImageDataset) -> System:
    """Return the stage and the networks of a configuration.

    Raises:
      ValueError: a setting is out of range.
    """
    space = NASNet(config.num_blocks, config.operations or NASNet().operations)
    searcher = config.strategy.searcher(space)
    steps = child_search.steps(config.evaluations, searcher.batch_size, "batch_size")
    return pair_search.make_system(config, dataset, space, searcher, steps, "NASNet", PUBLISHED)


def run(config: Config) -> None:
    """Search, retrain, compare, report."""
    child_run.run(config, make_system)


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
