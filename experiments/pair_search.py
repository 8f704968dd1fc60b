"""What the searches of two cells share: search with few and narrow cells, retrain with more."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import child_report
from experiments.child_search import ChildConfig, Stage, System
from jaxnas import costs, objectives, reporting
from jaxnas.base import Searcher
from jaxnas.costs import Cost
from jaxnas.data import ImageDataset
from jaxnas.evaluators import Recipe
from jaxnas.search_spaces import PairCellSpace
from jaxnas.searchers import random_search


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairConfig(ChildConfig):
    """What the searches of a normal and a reduction cell have."""

    num_blocks: int = 2
    """Blocks of a cell; the papers have 5."""
    operations: tuple[str, ...] = ()
    """That cells may hold; default all of the paper."""
    features: int = 4
    """Channels of the children's first cells: F."""
    cells_per_stage: int = 1
    """Normal cells of a child before, between and after its two reduction cells: N."""
    retrain_features: int = 8
    """F of the retrained networks."""
    retrain_cells_per_stage: int = 1
    """N of the retrained networks."""
    form: Literal["auto", "sequential", "vmap"] = "sequential"
    """As for every search of children; side by side, every operation would run on every edge."""
    method: str = "shifts"
    """Of the convolutions: shifts for CPUs, conv for accelerators."""
    valid_fraction: float = 0.2
    recipe: Recipe = Recipe(epochs=3, batch_size=64, learning_rate=0.1, schedule="cosine",
                            clip_norm=5.0, score="last")
    retrain_epochs: int = 6


# Of the small presets: a few of every sort, since a program holds, and compiles, all of them.
FEW = ("skip_connect", "avg_pool_3x3", "max_pool_3x3", "sep_conv_3x3", "sep_conv_5x5")


def make_system(
    config: Any, dataset: ImageDataset, space: PairCellSpace, searcher: Searcher, steps: int,
    title: str, published: dict[str, reporting.Published],
) -> System:
    """Return the one stage and the networks of a search of two cells.

    Args:
      config: `PairConfig`.
      dataset: decides classes and shape.
      space: of the cells.
      searcher: over the space.
      steps: of the searcher.
      title: the system's name.
      published: data set -> test accuracy.

    Raises:
      ValueError: a setting is out of range.
    """
    def network(features: int, cells: int) -> Any:
        return space.traced_network(features=features, cells_per_stage=cells,
                                    num_classes=dataset.num_classes, method=config.method)

    child = network(config.features, config.cells_per_stage)
    final = network(config.retrain_features, config.retrain_cells_per_stage)
    shape = dataset.image_shape

    def rows(arch: np.ndarray) -> jax.Array:
        return space.rows(jnp.asarray(arch))

    def cost(module: Any, arch: np.ndarray) -> Cost:
        return costs.cost(module.fixed(np.asarray(rows(arch))), shape)

    stage = Stage(
        space.name, space, child, lambda arch: {"arch": space.rows(arch)}, searcher,
        random_search(space, batch_size=searcher.batch_size), steps,
        lambda: child_report.mean_multiply_adds(space, lambda arch: cost(child, arch)))
    return System(
        space.name, title, (stage,), objectives.maximize("valid_accuracy"), final, rows,
        lambda arch: cost(final, arch), space.decode, published)
