"""PNAS on images: from cells of one block to large ones, a surrogate choosing what is trained.

    python -m experiments.pnas                        # digits, 2 cores: minutes
    python -m experiments.pnas --preset paper --dry-run   # CIFAR-10, what it would cost
    python -m experiments.pnas --store trials.sqlite  # children shared with other runs
    python -m experiments.pnas --batch-size 4 --workers 4   # trained by processes side by side

All cells of one block are trained, then of every size the K best by the prediction of an ensemble
of five networks, fitted anew at the end of each level; `--evaluations` less the cells of one block,
divided by the other sizes, is K. One program trains the cells of all sizes. Random search trains as
many cells of every size. The best of the last level is retrained; the retraining has no auxiliary
head, see `experiments.nasnet`. On a table: `experiments.pnas_table`, since a table has other flags
and nothing to train.

Published for CIFAR-10: PNASNet-5 (N=3, F=48) 96.59 +- 0.09 %, from memory.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments import child_run, common, pair_search
from experiments.child_search import Conclusion, Stage, System
from experiments.strategies import SurrogateName, make_surrogate
from jaxnas import reporting
from jaxnas.data import ImageDataset
from jaxnas.evaluators import Recipe
from jaxnas.networks.predictors import block_layout
from jaxnas.search_spaces import PNAS, GrowingPNAS
from jaxnas.searchers import progressive, random_search


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pair_search.PairConfig):
    """PNAS (https://arxiv.org/abs/1712.00559)."""

    evaluations: int = 60
    """All cells of one block and K of every other size; the paper has 136 + 4 * 256."""
    operations: tuple[str, ...] = ("skip_connect", "avg_pool_3x3", "max_pool_3x3", "sep_conv_3x3")
    batch_size: int = 1
    """Children asked for at once; divides the cells of one block and K."""
    surrogate: SurrogateName = "mlp"
    """Ensemble of MLPs or LSTMs, or a Gaussian process."""
    embedding_size: int = 20
    """Of a source or an operation; the paper has 100."""
    hidden_size: int = 50
    """Of the surrogate's networks; the paper has 100."""
    fit_steps: int = 200
    """Of Adam, in every fit."""


PRESETS = {
    "small": Config(),
    "paper": Config(
        dataset="cifar10", num_blocks=5, operations=(), features=24, cells_per_stage=2,
        retrain_features=48, retrain_cells_per_stage=3, method="conv", valid_fraction=0.1,
        evaluations=1160, batch_size=8, embedding_size=100, hidden_size=100, fit_steps=500,
        # Of the children's training the paper gives N, F, epochs and the cosine, from memory.
        recipe=Recipe(epochs=20, batch_size=128, learning_rate=0.01, schedule="cosine",
                      weight_decay=5e-4, clip_norm=5.0, score="last"),
        retrain_epochs=600, retrain_batch_size=128, retrain_lr=0.025, retrain_weight_decay=5e-4,
        drop_path_rate=0.4),
}
SMOKE = Config(
    num_seeds=2, num_blocks=2, features=2, retrain_features=2, limit=160, evaluations=5,
    operations=("skip_connect",), recipe=Recipe(epochs=1, batch_size=64), fit_steps=5,
    retrain_epochs=1, retrain_batch_size=512)
PUBLISHED = {"cifar10": reporting.Published(96.59, 0.09, "PNASNet-5 (3, 48), from memory")}


def make_system(config: Config, dataset: ImageDataset) -> System:
    """Return the stages, one a size, and the networks of a configuration.

    Raises:
      ValueError: a setting is out of range.
    """
    space = PNAS(config.num_blocks, config.operations or PNAS().operations)
    growing = GrowingPNAS(space)
    levels = level_sizes(config, growing)
    surrogate = make_surrogate(
        config.surrogate, block_layout(growing.num_choices, growing.columns, growing.absent),
        embedding_size=config.embedding_size, hidden_size=config.hidden_size,
        num_steps=config.fit_steps)
    searcher = progressive(growing, surrogate, capacity=sum(levels), beam_size=levels[-1],
                           batch_size=config.batch_size)
    system = pair_search.make_system(config, dataset, space, searcher, 1, "PNAS", PUBLISHED)
    network = growing.traced_network(
        features=config.features, cells_per_stage=config.cells_per_stage,
        num_classes=dataset.num_classes, method=config.method)

    def stage(num_blocks: int, count: int) -> Stage:
        cells = growing.space(num_blocks)
        return Stage(
            f"pnas_{num_blocks}_blocks", cells, network, lambda arch: {"arch": growing.rows(arch)},
            searcher, random_search(cells, batch_size=config.batch_size),
            count // config.batch_size, system.stages[0].multiply_adds, growing.num_choices,
            growing.pad)

    stages = tuple(stage(number, count) for number, count in enumerate(levels, start=1))
    return system._replace(experiment="pnas", stages=stages, conclude=functools.partial(
        conclude, [stage.name for stage in stages]))


def level_sizes(config: Config, growing: GrowingPNAS) -> list[int]:
    """Return the children of every size.

    Raises:
      ValueError: evaluations are no whole number of them, or more than there may be.
    """
    first, larger, batch = growing.num_smallest, growing.num_sizes - 1, config.batch_size
    beam, rest = divmod(config.evaluations - first, max(1, larger))
    # So many cells of two blocks there are at least. Of K cells of b - 1 blocks any can be expanded
    # by `first` blocks that read the inputs, and what comes out came from b cells at most.
    most = first * (first + 1) // 2 if first >= growing.num_sizes else 0
    if rest or not (1 <= beam <= most if larger else beam == 0):
        raise ValueError(
            f"evaluations must be {first} + K * {larger}, all cells of one block and K of every "
            f"other number of blocks, K in [1, {most}], got {config.evaluations}.")
    levels = [first] + [beam] * larger
    if batch < 1 or any(count % batch for count in levels):
        raise ValueError(f"batch_size must divide {first}, the cells of one block, and {beam}, "
                         f"those of every other size, got {batch}.")
    return levels


def conclude(names: list[str], run: Any) -> Conclusion:
    """Report level by level what both searches trained."""
    levels, lines = {}, ["validation accuracy of the children, PNAS and random search:"]
    for name in names:
        levels[name] = {group: _level([row for row in rows if row["stage"] == name])
                        for group, rows in run.rows.items()}
        lines.append(f"  {name}: " + ", ".join(
            f"mean {level['mean']:.2f}, best {level['best']:.2f} % of {level['children']}"
            for level in levels[name].values()))
    return Conclusion({}, {"levels": levels}, "\n".join(lines))


def _level(rows: list[dict[str, Any]]) -> dict[str, float]:
    values = np.array([row["valid_accuracy"] for row in rows if not row["failed"]] or [np.nan])
    return {"children": len(rows), "failed": sum(row["failed"] for row in rows),
            "mean": float(values.mean()), "best": float(values.max())}


def run(config: Config) -> None:
    """Search, retrain, compare, report."""
    child_run.run(config, make_system)


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
