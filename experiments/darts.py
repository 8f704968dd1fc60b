"""DARTS on images: search a cell, derive it, retrain it beside random cells.

    python -m experiments.darts                       # digits, first order, 2 cores: minutes
    python -m experiments.darts --gradient hessian_vector    # the exact second order
    python -m experiments.darts --preset paper        # CIFAR-10 as published, on a GPU
    python -m experiments.darts --dataset images.npz  # your own: x_train, y_train, x_test, y_test
    python -m experiments.darts --max-latency 2       # milliseconds of the found network, here
    srun python -m experiments.darts --devices 8      # the devices of several hosts

Published for CIFAR-10 (spec. of the paper's table 1): 2.76 +- 0.09 % test error (second order).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from experiments import common, memory, retraining, searching
from experiments.darts_latency import LatencyBound
from experiments.darts_run import Run
from jaxnas import data, reporting
from jaxnas.precision import Precision
from jaxnas.search_spaces import DARTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(retraining.RetrainingConfig, common.DistributedConfig):
    """DARTS: differentiable architecture search (https://arxiv.org/abs/1806.09055)."""

    num_seeds: int = 3
    """Retrainings of the found cell, and random cells retrained likewise."""
    gradient: Literal["first_order", "unrolled", "hessian_vector", "finite_difference"] = (
        "first_order"
    )
    """Of the alphas; hessian_vector and unrolled are the exact second order in two forms."""
    epochs: int = 3
    """Passes of the search over the weights' half of the training images."""
    batch_size: int = 64
    """Images of a search step, at each of the two levels."""
    features: int = 4
    """Channels of the first cells of the search network."""
    layers: int = 3
    """Cells of the search network."""
    weights_lr: float = 0.1
    """Peak learning rate of the weights."""
    weights_lr_min: float = 0.001
    """Final learning rate of the weights."""
    momentum: float = 0.9
    """Of the weights' SGD."""
    weight_decay: float = 3e-4
    """Of the weights, L2."""
    clip_norm: float = 5.0
    """Bound on the norm of the weights' gradient."""
    alphas_lr: float = 0.03
    """Learning rate of the alphas' Adam."""
    alphas_weight_decay: float = 1e-3
    """Of the alphas, L2."""
    alphas_fraction: float = 0.5
    """Share of the training images that trains the alphas."""
    limit: int | None = None
    """At most so many training images for the search."""
    selection: Literal["softmax", "raw"] = "softmax"
    """Whether edges are compared by probabilities or by alphas."""
    batch_norm: Literal["sync", "replica"] = "sync"
    """With several devices: statistics of the whole batch, or of each device's share."""
    scan_cells: bool = True
    """Loop over equal cells (compiles faster) instead of unrolling them."""
    scan_edges: bool = True
    """Loop over the edges of a cell (compiles much faster) instead of unrolling them."""
    remat: bool = True
    """Recompute an edge's operations in the backward pass: less memory."""
    precision: Precision = "float32"
    """Of the search network's arithmetic; weights, alphas and gradients stay float32. bfloat16 is
    for accelerators: slower on CPU."""
    share_programs: bool = True
    """First order: one gradient program for both levels; compiles less, does more work."""
    checkpoint_steps: int = 20
    """Steps between checkpoints of the search."""
    retrain_features: int = 8
    """Channels of the first cells of the retrained network."""
    retrain_layers: int = 3
    """Cells of the retrained network."""
    max_latency: float | None = None
    """Bound on the retrained network's inference on this device, milliseconds of a batch."""
    latency_batch_size: int = 16
    """Images of that batch."""
    latency_rate: float = 0.1
    """Of the ascent of the bound's multiplier, a search step."""


PRESETS = {
    "small": Config(),
    "second_order": Config(gradient="hessian_vector"),
    "fashion": Config(
        dataset="fashion_mnist", epochs=5, batch_size=64, features=8, layers=5, weights_lr=0.025,
        alphas_lr=1e-3, retrain_epochs=20, retrain_features=16, retrain_layers=8, limit=4000,
        retrain_lr=0.025, cutout_length=8, drop_path_rate=0.1,
    ),
    "paper": Config(
        dataset="cifar10", gradient="hessian_vector", epochs=50, batch_size=64, features=16,
        layers=8, weights_lr=0.025, alphas_lr=3e-4, checkpoint_steps=390, retrain_epochs=600,
        retrain_batch_size=96,
        retrain_features=36, retrain_layers=20, retrain_lr=0.025, drop_path_rate=0.2,
        cutout_length=16,
    ),
}
SMOKE = Config(
    num_seeds=2, epochs=1, batch_size=16, features=2, limit=96, checkpoint_steps=2,
    retrain_epochs=1, retrain_features=2, retrain_batch_size=512,
)
FACTS = {"training_code": True, "space_code": True, "method_code": True, "random_search": True,
         "same_pipeline": True, "multiple_runs": True}


def run(config: Config) -> None:
    """Search, derive, retrain, compare, report."""
    space = DARTS()
    with common.validation():
        reporting.require_matplotlib()
        dataset = data.load(config.dataset, data_dir=config.data_dir)
        splits = data.split_search(
            dataset, alphas_fraction=config.alphas_fraction, seed=config.seed, limit=config.limit
        )
        searching.check_search(config, dataset, splits)
        retraining.check_retraining(config, dataset)
        network = space.traced_network(
            features=config.retrain_features, layers=config.retrain_layers,
            num_classes=dataset.num_classes,
        )
        bound = None
        if config.max_latency is not None and config.cluster() is not None:
            raise ValueError("max_latency is measured on one device, and every process would have "
                             "its own figures: leave it out, or search with one process.")
        if config.max_latency is not None and not config.dry_run:
            bound = LatencyBound(config, space, dataset)
    sizes = {name: len(rows) for name, rows in splits._asdict().items()}
    facts = common.dataset_facts(dataset, {**sizes, "test": len(dataset.test_labels)})
    if config.dry_run:
        supernet = searching.make_supernet(config, space, dataset)
        shapes = jax.eval_shape(lambda: searching.initial_weights(
            supernet, space, dataset, searching.random_key(0)))
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        print(common.describe(config, dataset=facts, supernet_parameters=count))
        return
    programs = common.Programs()
    task = searching.make_task(config, space, dataset, splits, programs,
                               None if bound is None else bound.transformation())
    arch_shape = jax.ShapeDtypeStruct((2, 2 * space.num_nodes, 2), jnp.int32)
    first = jax.process_index() == 0  # it retrains alone; the others have no use for the program
    trainer = retraining.make_trainer(
        config, network, dataset, programs if first else common.Programs(), (arch_shape,))
    with common.progress(config) as progress:
        if config.compile_only:
            programs.compile_all(progress)
            if first:
                print(programs.report())
            return
        with common.open_run(config, "darts", facts,
                             num_devices=config.all_devices) as directory, \
                common.Interrupt() as interrupt:
            programs.compile_all(progress)
            retraining.check_memory(config, programs)
            memory.check_batch(
                programs, "batch_size", config.batch_size,
                set(programs.names) - {retraining.PROGRAM}, devices=config.all_devices)
            Run(config, space, dataset, programs, task, trainer, directory, progress,
                interrupt, bound).finish(FACTS)


if __name__ == "__main__":
    raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
