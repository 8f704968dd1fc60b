"""MnasNet on images: PPO over stages of mobile layers, for accuracy and for latency on this device.

    python -m experiments.mnasnet                       # digits, 2 cores: minutes
    python -m experiments.mnasnet --latency-target 1.5 --hard
    python -m experiments.mnasnet --preset paper --dry-run  # what it would cost

The reward is ACC (LAT / T)^w. LAT is predicted from a table of layers that are measured on this
device, each alone, before the first search and kept for the next. The networks that are compared
are measured whole at the end, all with the same weights, batch and repeats. Children and retrained
networks have the same widths. The paper retrains its best 15 networks; here the best one is taken.

The default grid is a small one of ours, two stages for images of 8x8; the paper's has seven, for
224x224, which `--preset paper` divides to fit 32x32.

Published for ImageNet: MnasNet-A1 75.2 % top-1, 78 ms on a Pixel 1.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro

from experiments import child_report, child_run, child_search, common
from experiments.child_search import ChildConfig, Stage, System
from experiments.mnasnet_latency import Prices, conclude
from experiments.strategies import PPO
from jaxnas import objectives, reporting
from jaxnas.costs import Cost
from jaxnas.data import ImageDataset
from jaxnas.evaluators import Recipe
from jaxnas.genotypes import Encoded
from jaxnas.networks import mobile_grid
from jaxnas.networks.mobile_grid import MobileGrid
from jaxnas.search_spaces import MnasNet
from jaxnas.searchers import random_search


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ChildConfig):
    """MnasNet: platform-aware architecture search (https://arxiv.org/abs/1807.11626)."""

    evaluations: int = 40
    """Children of the search, and as many of random search."""
    latency_target: float | None = None
    """T, milliseconds of a batch; default three quarters of a random network's median."""
    exponent: float = -0.07
    """w of the reward, 0 or less: what latency is worth, within the target and above it."""
    hard: bool = False
    """Accuracy alone within the target, and accuracy times T / LAT above it."""
    latency_batch_size: int = 16
    """Images of the batch whose latency counts; 1 is a phone's."""
    grid_filters: tuple[int, ...] = (8, 16)
    """Base widths of the stages."""
    grid_layers: tuple[int, ...] = (2, 2)
    """Base depths of the stages."""
    grid_strides: tuple[int, ...] = (1, 2)
    """Of the first layer of each stage, 1 or 2."""
    stem_filters: int = 8
    """Channels of the first convolution."""
    head_filters: int = 64
    """Channels of the last convolution."""
    batch_norm_momentum: float = 0.9
    """Of the running statistics; the published 0.99 needs hundreds of steps to forget its start."""
    method: str = "shifts"
    """Of the convolutions: shifts for CPUs, conv for accelerators."""
    form: Literal["auto", "sequential", "vmap"] = "sequential"
    """Side by side, every operation of every layer would run."""
    valid_fraction: float = 0.2
    strategy: Annotated[PPO, tyro.conf.arg(name="")] = PPO(
        policy="lstm", learning_rate=0.01, batch_size=8)
    recipe: Recipe = Recipe(epochs=3, batch_size=64, learning_rate=0.1, schedule="cosine",
                            clip_norm=5.0, score="last")
    retrain_epochs: int = 6


_GRID = mobile_grid.small_images()
PRESETS = {
    "small": Config(),
    # The paper searches on ImageNet with its own recipe; this is its search on CIFAR-10.
    "paper": Config(
        dataset="cifar10", evaluations=8000, grid_filters=_GRID.filters, grid_layers=_GRID.layers,
        grid_strides=_GRID.strides, stem_filters=_GRID.stem_filters,
        head_filters=_GRID.head_filters, method="conv", batch_norm_momentum=0.99,
        latency_batch_size=1, valid_fraction=0.1,
        recipe=Recipe(epochs=5, batch_size=128, learning_rate=0.1, schedule="cosine",
                      weight_decay=1e-5, clip_norm=5.0, score="last"),
        strategy=PPO(policy="lstm", learning_rate=3.5e-4, batch_size=20),
        retrain_epochs=350, retrain_batch_size=128, retrain_weight_decay=1e-5,
        label_smoothing=0.1),
}
SMOKE = Config(
    num_seeds=2, evaluations=4, grid_filters=(1,), grid_layers=(1,), grid_strides=(1,),
    stem_filters=1, head_filters=4, limit=160, latency_batch_size=2,
    strategy=PPO(policy="lstm", batch_size=2), recipe=Recipe(epochs=1, batch_size=64),
    retrain_epochs=1, retrain_batch_size=512)
PUBLISHED = {"imagenet2012": reporting.Published(
    75.2, None, "MnasNet-A1, top-1, README of the authors' code")}


def make_system(config: Config, dataset: ImageDataset) -> System:
    """Return the stage and the networks of a configuration, and measure the layers if need be.

    Raises:
      ValueError: a setting is out of range, or the file of the layers' latencies is damaged.
    """
    if config.drop_path_rate or config.recipe.drop_path_rate:
        raise ValueError("MnasNet drops no paths; set both drop path rates to 0.")
    if config.latency_batch_size < 1:
        raise ValueError(f"latency_batch_size must be 1 or more, got {config.latency_batch_size}.")
    space = MnasNet(MobileGrid(
        config.grid_filters, config.grid_layers, config.grid_strides, config.stem_filters, 1,
        config.head_filters))
    searcher = config.strategy.searcher(space)
    steps = child_search.steps(config.evaluations, searcher.batch_size, "batch_size")
    exponent = objectives.HARD if config.hard else (config.exponent, config.exponent)
    objectives.mnasnet_reward("", "", target=config.latency_target or 1.0, exponent=exponent)
    network = space.traced_network(num_classes=dataset.num_classes, method=config.method,
                                   dropout_rate=0.0, momentum=config.batch_norm_momentum)
    prices = Prices(space, dataset, config)
    if not (config.dry_run or config.compile_only):
        prices.prepare()  # before anything else is compiled
    counts: dict[str, Any] = {"num_classes": dataset.num_classes}
    shape = dataset.image_shape

    def cost(arch: np.ndarray) -> Cost:
        arch = np.asarray(arch)
        return Cost(int(space.num_parameters(arch, channels=shape[2], **counts)),
                    int(space.multiply_adds(arch, image_size=shape[0], channels=shape[2],
                                            **counts)))

    def decode(arch: np.ndarray) -> Encoded:
        return Encoded("mnasnet", tuple(np.asarray(arch).tolist()), space.decode(arch))

    def reward(metrics: dict[str, Any]) -> Any:
        return objectives.mnasnet_reward("valid_accuracy", "latency_ms", target=prices.target,
                                         exponent=exponent)(metrics)

    stage = Stage(
        "mnasnet", space, network, lambda arch: {"arch": arch}, searcher,
        random_search(space, batch_size=searcher.batch_size), steps,
        lambda: child_report.mean_multiply_adds(space, cost))
    return System(
        "mnasnet", "MnasNet", (stage,), reward, network, jnp.asarray, cost, decode, PUBLISHED,
        prices.metrics, lambda run: conclude(run, prices))


def run(config: Config) -> None:
    """Search, retrain, measure, compare, report."""
    child_run.run(config, make_system)


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
