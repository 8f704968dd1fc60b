"""Retraining of found architectures, found and random ones alike, with one pair of programs."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import memory
from experiments.programs import Programs
from experiments.searching import random_key
from experiments.settings import DatasetConfig
from jaxnas import data, reporting, training
from jaxnas.data import ImageDataset
from jaxnas.training import TrainState

PROGRAMS = ("retrain_epoch", "test")  # those of a trainer that take a batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrainingConfig(DatasetConfig):
    """The flags of every experiment that trains a found network from scratch."""

    retrain_epochs: int = 6
    """Passes over all training images."""
    retrain_batch_size: int = 64
    """Images of a training step."""
    retrain_lr: float = 0.1
    """Peak learning rate, cosine to 0."""
    retrain_weight_decay: float = 3e-4
    """L2."""
    drop_path_rate: float = 0.0
    """Final rate of the scheduled drop path."""
    cutout_length: int = 0
    """Side of the square that cutout erases."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""


class Trainer(NamedTuple):
    """Compiled pieces of a retraining; a run is (key, inputs): a seed and, if traced, an arch."""

    init: Callable[[jax.Array], TrainState]
    train_epoch: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    # (key, state, epoch, inputs) -> state, {"loss", "accuracy"} [steps]
    test: Callable[..., dict[str, jax.Array]]  # (state, inputs) -> {"loss", "accuracy"}
    state_shape: Any  # of TrainState, for restoring


def make_trainer(
    config: Any,
    network: Any,
    dataset: ImageDataset,
    programs: Programs,
    inputs: tuple[jax.ShapeDtypeStruct, ...] = (),
) -> Trainer:
    """Register the programs that train a network on the whole training part and test it.

    Args:
      config: `RetrainingConfig`.
      network: Flax module, `__call__(x, *inputs, train, drop_path_rate)`.
      dataset: trained on all its training images, tested on its test images.
      programs: compiles what is registered here.
      inputs: shapes of what the network takes after the images: the arch of a `TracedNetwork`.
    """
    size = config.retrain_batch_size
    steps = data.steps_per_epoch(len(dataset.train_labels), size)
    schedule = training.cosine_by_epoch(config.retrain_lr, 0.0, config.retrain_epochs, steps)
    optimizer = training.sgd(
        schedule, momentum=0.9, weight_decay=config.retrain_weight_decay, clip_norm=5.0
    )
    augment = functools.partial(
        data.augment, mean=dataset.mean, std=dataset.std, max_value=dataset.max_value,
        crop_padding=dataset.crop_padding, flip=dataset.flip, cutout_length=config.cutout_length,
    )
    normalize = functools.partial(
        data.normalize, mean=dataset.mean, std=dataset.std, max_value=dataset.max_value
    )
    run_epoch = training.make_train_epoch(
        network.apply, optimizer, augment,
        auxiliary_weight=getattr(config, "auxiliary_weight", 0.0),
        label_smoothing=config.label_smoothing,
    )

    def init(key: jax.Array) -> TrainState:
        image = jax.ShapeDtypeStruct((2, *dataset.image_shape), jnp.float32)
        # lazy: the program draws the parameters and leaves the network out
        variables = network.lazy_init(key, image, *inputs, train=False)
        return training.init_state(variables, optimizer)

    def train_epoch(key, state, epoch, images, labels, *inputs):
        order_key, step_key = jax.random.split(key)
        batches = data.epoch_batches(order_key, epoch, len(labels), size)
        # Scheduled drop path: linear in the epoch, from 0.
        rate = config.drop_path_rate * epoch / config.retrain_epochs if (
            config.drop_path_rate) else 0.0  # a number, for networks that have no path to drop
        return run_epoch(
            step_key, state, images, labels, batches, drop_path_rate=rate, inputs=inputs
        )

    def test(state, images, labels, *inputs):
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return training.evaluate(
            network.apply, variables, images, labels, config.retrain_batch_size,
            normalize_fn=normalize, inputs=inputs,
        )

    train = (jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels))
    held_out = (jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels))
    key = random_key(0)
    shape = jax.eval_shape(init, key)
    init_program = programs.add("retrain_initial_state", jax.jit(init), key)
    epoch_program = programs.add(
        "retrain_epoch", jax.jit(train_epoch), key, shape, jax.ShapeDtypeStruct((), jnp.int32),
        *train, *inputs,
    )
    test_program = programs.add("test", jax.jit(test), shape, *held_out, *inputs)

    return Trainer(
        init_program,
        lambda key, state, epoch, *arch: epoch_program(
            key, state, jnp.int32(epoch), *train, *arch
        ),
        lambda state, *arch: test_program(state, *held_out, *arch),
        shape,
    )


class Retraining(NamedTuple):
    """One network to train from scratch and test."""

    group: str
    number: int          # in metrics.jsonl
    seed: int            # equal seeds: equal initial weights, order of images and augmentation
    arch: np.ndarray     # [L], as metrics.jsonl has it
    inputs: jax.Array    # the architecture as the network takes it


class Epoch(NamedTuple):
    """An epoch of a retraining that has just ended."""

    text: str       # for a progress bar
    seconds: float
    last: bool      # of its network, which has been tested


def train_all(
    trainer: Trainer, runs: Sequence[Retraining], state: dict[str, Any], key: jax.Array, *,
    epochs: int, done: int, metrics: reporting.MetricsWriter, stop: Callable[[], bool],
) -> Iterator[Epoch]:
    """Train networks one after the other, an epoch at a time, each tested after its last.

    Args:
      trainer: of `make_trainer`.
      runs: R networks.
      state: its "train" (a `TrainState`) and "accuracies" [R] (percent; of a network that diverged
        too) are kept up to date; the caller saves them.
      key: of everything random.
      epochs: of each network.
      done: epochs of all networks together that `state` has behind it.
      metrics: gets "epoch" and "evaluation" lines.
      stop: asked before an epoch; True ends the iteration.

    Yields:
      What the epoch was, after it.
    """
    for position in range(done, len(runs) * epochs):
        if stop():
            return
        number, epoch = divmod(position, epochs)
        run, last = runs[number], epoch == epochs - 1
        run_key = jax.random.fold_in(key, run.seed)
        facts = {"phase": "retrain", "run": run.number, "group": run.group}
        start = time.perf_counter()
        if epoch == 0:
            state["train"] = trainer.init(jax.random.fold_in(run_key, 0))
        state["train"], info = trainer.train_epoch(
            jax.random.fold_in(run_key, 1), state["train"], epoch, run.inputs)
        loss = float(info["loss"].mean())
        metrics.write("epoch", epoch=epoch, loss=loss,
                      train_accuracy=100 * float(info["accuracy"].mean()), **facts)
        if last:
            tested = trainer.test(state["train"], run.inputs)
            accuracy, test_loss = 100 * float(tested["accuracy"]), float(tested["loss"])
            state["accuracies"][number] = accuracy
            metrics.write(
                "evaluation", arch=run.arch.tolist(), test_accuracy=accuracy, test_loss=test_loss,
                fitness=accuracy, failed=not np.isfinite(test_loss), budget=epochs,
                budget_unit="epochs", **facts)
        yield Epoch(f"{run.group} {run.seed} loss {loss:.3f}", time.perf_counter() - start, last)


def verdict(found: float, random: float) -> str:
    """Say plainly whether the found network is as good as the mean of random ones (accuracies)."""
    return (f"The found network is {'not worse' if found >= random else 'WORSE'} than the mean of "
            f"random networks at equal cost: {found:.2f} against {random:.2f} %.")


def check_memory(config: Any, programs: Programs) -> None:
    """Check that the programs of `make_trainer`, compiled, fit into memory.

    Raises:
      InputError: see `memory.check_batch`.
    """
    memory.check_batch(programs, "retrain_batch_size", config.retrain_batch_size, PROGRAMS)


def check_retraining(config: Any, dataset: ImageDataset) -> None:
    """Check the `retrain_*` options before anything is compiled.

    Raises:
      ValueError: one sentence.
    """
    if not 1 <= config.retrain_batch_size <= len(dataset.train_labels):
        raise ValueError(
            f"retrain_batch_size must be in [1, {len(dataset.train_labels)}], the training images "
            f"of {dataset.name}, got {config.retrain_batch_size}."
        )
    if config.retrain_epochs < 1 or not config.retrain_lr > 0:
        raise ValueError(
            f"retrain_epochs must be 1 or more and retrain_lr above 0, got "
            f"{config.retrain_epochs} and {config.retrain_lr}."
        )
    if not 0 <= config.drop_path_rate < 1:
        raise ValueError(f"drop_path_rate must be in [0, 1), got {config.drop_path_rate}.")
    if config.cutout_length < 0:
        raise ValueError(f"cutout_length must be 0 or more, got {config.cutout_length}.")
