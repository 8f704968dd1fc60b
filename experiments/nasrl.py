"""NAS with reinforcement learning on images: a controller designs convolutional networks.

    python -m experiments.nasrl                        # digits, 2 cores: minutes
    python -m experiments.nasrl --preset paper --dry-run   # CIFAR-10, what it would cost
    python -m experiments.nasrl --store trials.sqlite  # children shared with other runs
    python -m experiments.nasrl --workers 4            # the children of a batch, side by side

REINFORCE with a moving baseline; the reward is the cube of the best of the last 5 validation
accuracies. Networks get deeper during the search. One program serves all depths: it is told how
many of its layers exist, and passes over the others. The controller is one all along: it
makes the decisions of the final depth, of which a stage uses, and learns from, those of its first
layers. What is found is the best network of the final depth. The paper then tunes the learning
rate, weight decay and batch normalisation of its best networks; here nothing is tuned.

Published for CIFAR-10: 94.50 % (15 layers), 96.35 % (39 layers, more filters), from memory.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import child_run, child_search, common
from experiments.child_search import ChildConfig, Stage, System
from experiments.strategies import positive
from jaxnas import objectives, reporting
from jaxnas.base import Policy, PyTree
from jaxnas.costs import Cost
from jaxnas.data import ImageDataset
from jaxnas.evaluators import Recipe
from jaxnas.genotypes import Encoded
from jaxnas.networks.chain_layout import FilterChoices
from jaxnas.networks.enas_controller import nasrl_controller
from jaxnas.search_spaces import NASRL
from jaxnas.searchers import random_search, reinforce


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ChildConfig):
    """NAS with reinforcement learning (https://arxiv.org/abs/1611.01578)."""

    evaluations: int = 48
    """Children of the search, shared equally by the depths; as many of random search."""
    first_layers: int = 2
    """Depth of the first networks."""
    more_layers: int = 2
    """Layers more in each stage; the paper adds 2 every 1,600 children."""
    layers: int = 4
    """Depth of the last networks."""
    kernels: tuple[int, ...] = (1, 3)
    """Heights and widths of filters, among 1, 3, 5 and 7."""
    filters: tuple[int, ...] = (4, 6, 8, 12)
    """Of the children, for the choices that genotype.json calls 24, 36, 48 and 64."""
    retrain_filters: tuple[int, ...] = (8, 12, 16, 24)
    """Of the retrained networks, likewise."""
    method: str = "shifts"
    """Of the convolutions: shifts for CPUs, conv for accelerators."""
    controller_lr: float = 0.02
    """Learning rate of the controller's Adam."""
    controller_batch: int = 4
    """Children of one gradient."""
    baseline_decay: float = 0.8
    """Momentum of the baseline; the paper does not give it."""
    entropy_weight: float = 0.0
    """Of the entropy bonus, in reward per nat."""
    valid_fraction: float = 0.2
    recipe: Recipe = Recipe(epochs=4, batch_size=32, learning_rate=0.05, clip_norm=5.0)
    retrain_epochs: int = 6


PRESETS = {
    "small": Config(),
    "paper": Config(
        dataset="cifar10", evaluations=12800, first_layers=6, layers=20, kernels=(1, 3, 5, 7),
        filters=(24, 36, 48, 64), retrain_filters=(24, 36, 48, 64), method="conv",
        controller_lr=6e-4, controller_batch=8, baseline_decay=0.95, population=8,
        valid_fraction=0.1, recipe=Recipe(), retrain_epochs=300, retrain_weight_decay=1e-4),
}
SMOKE = Config(
    num_seeds=2, evaluations=4, first_layers=1, more_layers=1, layers=2, filters=(2, 3, 4, 5),
    retrain_filters=(2, 3, 4, 5), controller_batch=2, limit=160,
    recipe=Recipe(epochs=1, batch_size=64), retrain_epochs=1, retrain_batch_size=512)
PUBLISHED = {"cifar10": reporting.Published(
    96.35, None, "NAS with RL, 39 layers with more filters; the abstract's 3.65 % error")}
KERNELS = FilterChoices().heights


class _Chains(NamedTuple):
    """The networks of one depth: as decisions, as children, and as genotype.json has them."""

    space: NASRL      # of the children
    final: NASRL      # with the filters of the retraining
    readable: NASRL   # with the paper's choices

    def translate(self, arch: np.ndarray) -> np.ndarray:
        """Write an arch [D] of `space` as one of `readable`."""
        arch = np.array(arch)
        sizes = np.array([KERNELS.index(size) for size in self.space.choices.heights])
        starts = [3 * layer + layer * (layer - 1) // 2 for layer in range(self.space.num_layers)]
        for start in starts:
            arch[start:start + 2] = sizes[arch[start:start + 2]]
        return arch

    def decode(self, arch: np.ndarray) -> Encoded:
        """Return what genotype.json holds."""
        readable = self.translate(arch)
        return Encoded("nasrl", tuple(readable.tolist()), self.readable.decode(readable))

    def cost(self, shape: tuple[int, int, int], num_classes: int, arch: np.ndarray) -> Cost:
        """Return what the retrained network of an arch costs."""
        arch = np.asarray(arch)
        return Cost(
            int(self.final.num_parameters(arch, num_classes=num_classes, channels=shape[2])),
            int(self.final.multiply_adds(arch, num_classes=num_classes, shape=shape)))


def prefix_policy(policy: Policy, length: int) -> Policy:
    """Use the first `length` decisions of a policy that makes its decisions in order.

    Those behind are drawn as 0; they have no part in log-probabilities, entropies or gradients.
    """
    def keep(values: jax.Array) -> jax.Array:
        return jnp.where(np.arange(values.shape[-1]) < length, values, 0)

    def sample(key: jax.Array, params: PyTree) -> jax.Array:
        return keep(policy.sample(key, params))

    return Policy(policy.init, sample,
                  lambda params, arch: keep(policy.log_prob(params, arch)),
                  lambda params, arch: keep(policy.entropy(params, arch)))


def depths(config: Config) -> list[int]:
    """Return the depth of every stage.

    Raises:
      ValueError: they do not lead from the first to the last.
    """
    if not 1 <= config.first_layers <= config.layers or config.more_layers < 1 or (
            (config.layers - config.first_layers) % config.more_layers):
        raise ValueError(
            "layers must be first_layers plus a multiple of more_layers, got "
            f"{config.layers}, {config.first_layers} and {config.more_layers}.")
    return list(range(config.first_layers, config.layers + 1, config.more_layers))


def _chains(config: Config, layers: int) -> _Chains:
    if not config.kernels or not set(config.kernels) <= set(KERNELS):
        raise ValueError(f"kernels must be among {KERNELS}, got {config.kernels}.")
    for name in ("filters", "retrain_filters"):
        if len(getattr(config, name)) != 4:
            raise ValueError(f"{name} must be 4 numbers, got {getattr(config, name)}.")
    child, final = (NASRL(layers, FilterChoices(config.kernels, config.kernels, features))
                    for features in (config.filters, config.retrain_filters))
    return _Chains(child, final, NASRL(layers))


def make_system(config: Config, dataset: ImageDataset) -> System:
    """Return the stages and networks of a configuration.

    Raises:
      ValueError: a setting is out of range.
    """
    if config.drop_path_rate or config.recipe.drop_path_rate:
        raise ValueError("networks of NAS with RL have no paths to drop; set both drop path rates "
                         "to 0.")
    layers, batch = depths(config), config.controller_batch
    chains = [_chains(config, depth) for depth in layers]
    if batch < 1:
        raise ValueError(f"controller_batch must be 1 or more, got {batch}.")
    steps = child_search.steps(config.evaluations, batch * len(layers),
                               "controller_batch times the number of depths")
    controller = nasrl_controller(config.layers, chains[-1].space.choices.counts)
    options: dict[str, Any] = {"num_classes": dataset.num_classes, "method": config.method}
    shape, last = dataset.image_shape, chains[-1]
    network = last.space.traced_network(**options)
    program_choices = (*last.space.num_choices, config.layers + 1)

    def stage(depth: int, kind: _Chains) -> Stage:
        length = len(kind.space.num_choices)
        largest = np.array(kind.space.num_choices) - 1  # what the masked network computes for all

        def given(archs: np.ndarray) -> np.ndarray:  # what is behind the depth is not read
            behind = np.zeros((len(archs), len(program_choices) - 1 - length), archs.dtype)
            return np.concatenate([archs, behind, np.full_like(archs[:, :1], depth)], 1)

        return Stage(
            f"nasrl_{depth}_layers", kind.space, network,
            lambda given: {"arch": given[:-1], "depth": given[-1]},
            reinforce(prefix_policy(controller, length), batch_size=batch,
                      optimizer=optax.adam(positive("controller_lr", config.controller_lr)),
                      baseline_decay=config.baseline_decay, baseline_init="first",
                      baseline_first=False, entropy_weight=config.entropy_weight),
            random_search(kind.space, batch_size=batch), steps,
            lambda: float(kind.space.multiply_adds(
                largest, num_classes=dataset.num_classes, shape=shape)), program_choices, given)

    return System(
        "nasrl", "NASRL", tuple(map(stage, layers, chains)),
        objectives.power("valid_accuracy", 3), last.final.traced_network(**options), jnp.asarray,
        functools.partial(last.cost, shape, dataset.num_classes), last.decode, PUBLISHED)


def run(config: Config) -> None:
    """Search, retrain, compare, report."""
    child_run.run(config, make_system)


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
