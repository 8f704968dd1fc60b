"""AmoebaNet on images: regularised evolution of a normal and a reduction cell.

    python -m experiments.amoebanet                     # digits, 2 cores: minutes
    python -m experiments.amoebanet --preset paper --dry-run   # CIFAR-10, what it would cost
    python -m experiments.amoebanet --store trials.sqlite   # children shared with other runs
    python -m experiments.amoebanet --children 5 --workers 5    # trained by processes side by side

A tournament's winner gets one mutation and the oldest member dies. The mutations are those of the
paper: identity (0.05), another hidden state, another operation. The paper's population evolved
asynchronously on 450 workers; here one child after the other, or `--children` of them at once.
The retraining has no auxiliary head, see `experiments.nasnet`.

Published for CIFAR-10: AmoebaNet-A (N=6, F=36) 96.66 +- 0.06 %, from memory.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from experiments import child_run, child_search, common, pair_search
from experiments.child_search import System
from experiments.strategies import Evolution
from jaxnas import reporting
from jaxnas.data import ImageDataset
from jaxnas.evaluators import Recipe
from jaxnas.search_spaces import AmoebaNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pair_search.PairConfig):
    """AmoebaNet (https://arxiv.org/abs/1802.01548)."""

    operations: tuple[str, ...] = pair_search.FEW
    strategy: Annotated[Evolution, tyro.conf.arg(name="")] = Evolution(
        population_size=10, tournament_size=3)


PRESETS = {
    "small": Config(),
    "paper": Config(
        dataset="cifar10", evaluations=20000, num_blocks=5, operations=(), features=24,
        cells_per_stage=3, retrain_features=36, retrain_cells_per_stage=6, method="conv",
        valid_fraction=0.1,
        recipe=Recipe(epochs=25, batch_size=128, learning_rate=0.024, schedule="cosine",
                      nesterov=False, weight_decay=5e-4, clip_norm=5.0, score="last"),
        strategy=Evolution(population_size=100, tournament_size=25),
        retrain_epochs=600, retrain_batch_size=128, retrain_lr=0.024, retrain_weight_decay=5e-4,
        drop_path_rate=0.3),
}
SMOKE = Config(
    num_seeds=2, evaluations=4, num_blocks=1, features=2, retrain_features=2, limit=160,
    operations=("skip_connect", "avg_pool_3x3", "sep_conv_3x3"),
    strategy=Evolution(population_size=2, tournament_size=2),
    recipe=Recipe(epochs=1, batch_size=64), retrain_epochs=1, retrain_batch_size=512)
PUBLISHED = {"cifar10": reporting.Published(96.66, 0.06, "AmoebaNet-A (6, 36), from memory")}


def make_system(config: Config, dataset: ImageDataset) -> System:
    """Return the stage and the networks of a configuration.

    Raises:
      ValueError: a setting is out of range.
    """
    space = AmoebaNet(config.num_blocks, config.operations or AmoebaNet().operations)
    searcher = config.strategy.searcher(space)
    steps = child_search.steps(config.evaluations, searcher.batch_size, "children")
    return pair_search.make_system(config, dataset, space, searcher, steps, "AmoebaNet", PUBLISHED)


def run(config: Config) -> None:
    """Search, retrain, compare, report."""
    child_run.run(config, make_system)


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
