"""Retraining of found architectures, found and random ones alike, with one program for all."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
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

PROGRAM = "retrain"


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
    """A compiled retraining; a run is (key, inputs): a seed and, if traced, an arch.

    Attributes:
      train_epoch: (key, state, epoch, *inputs) -> state, {"loss" [steps], "accuracy" [steps],
        "test_loss" [], "test_accuracy" []}, accuracies in [0, 1]. Epoch 0 draws the initial
        weights, whatever state it is given; only the last one tests, the others have NaN there.
      empty: a state of zeros, for epoch 0 and as the form of what is restored.
    """

    train_epoch: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    empty: TrainState


def make_trainer(
    config: Any,
    network: Any,
    dataset: ImageDataset,
    programs: Programs,
    inputs: tuple[jax.ShapeDtypeStruct, ...] = (),
) -> Trainer:
    """Register the program that trains a network on the whole training part and tests it.

    One program draws the weights, trains and tests, by branches that an epoch's number takes: there
    is one compilation, and a branch that is not taken costs nothing when it runs.

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

    def test(state: TrainState, images: jax.Array, labels: jax.Array, *inputs: jax.Array):
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        tested = training.evaluate(
            network.apply, variables, images, labels, size, normalize_fn=normalize, inputs=inputs)
        return {f"test_{name}": tested[name] for name in ("loss", "accuracy")}

    def train_epoch(key, state, epoch, train, held_out, *inputs):
        init_key, train_key = (jax.random.fold_in(key, i) for i in range(2))
        state = jax.lax.cond(epoch == 0, lambda: init(init_key), lambda: state)
        order_key, step_key = jax.random.split(train_key)
        batches = data.epoch_batches(order_key, epoch, len(train[1]), size)
        # Scheduled drop path: linear in the epoch, from 0.
        rate = config.drop_path_rate * epoch / config.retrain_epochs if (
            config.drop_path_rate) else 0.0  # a number, for networks that have no path to drop
        state, info = run_epoch(
            step_key, state, *train, batches, drop_path_rate=rate, inputs=inputs)
        tests = functools.partial(test, state, *held_out, *inputs)
        shapes = jax.eval_shape(tests)
        tested = jax.lax.cond(
            epoch == config.retrain_epochs - 1, tests,
            lambda: jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes))
        return state, info | tested

    parts = tuple(
        (jnp.asarray(images), jnp.asarray(labels)) for images, labels in (
            (dataset.train_images, dataset.train_labels),
            (dataset.test_images, dataset.test_labels)))
    key = random_key(0)
    shape = jax.eval_shape(init, key)
    program = programs.add(PROGRAM, jax.jit(train_epoch), key, shape,
                           jax.ShapeDtypeStruct((), jnp.int32), *parts, *inputs)
    return Trainer(
        lambda key, state, epoch, *inputs: program(key, state, jnp.int32(epoch), *parts, *inputs),
        training.zeros(shape))


class Retraining(NamedTuple):
    """One network to train from scratch and test."""

    group: str
    number: int          # in metrics.jsonl
    seed: int            # equal seeds: equal initial weights, order of images and augmentation
    arch: np.ndarray | str         # [L], as metrics.jsonl has it, or a name
    inputs: tuple[jax.Array, ...]  # the architecture as the network takes it


class Epoch(NamedTuple):
    """An epoch of a retraining that has just ended."""

    seconds: float
    steps: int      # 0: left out, the network had diverged


def train_all(
    trainer: Trainer, runs: Sequence[Retraining], state: dict[str, Any], key: jax.Array, *,
    epochs: int, done: int, metrics: reporting.MetricsWriter, progress: reporting.Progress,
    stop: Callable[[], bool], on_epoch: Callable[[Epoch], None],
) -> bool:
    """Train networks one after the other, an epoch at a time, each tested after its last.

    Args:
      trainer: of `make_trainer`.
      runs: R networks.
      state: its "train" (a `TrainState`) and "accuracies" [R] (percent, NaN before the test) are
        kept up to date; `on_epoch` saves them. A network whose loss is no longer finite has failed:
        its accuracy is 0, its weights are forgotten, and its later epochs are left out.
      key: of everything random.
      epochs: of each network.
      done: epochs of all networks together that `state` has behind it.
      metrics: gets "epoch" and "evaluation" lines.
      progress: gets a phase.
      stop: asked before an epoch; True ends the training.
      on_epoch: called after every epoch.

    Returns:
      Whether it went to the end.
    """
    total = len(runs) * epochs
    with progress.phase("retrain", total=total, completed=done) as bar:
        for position in range(done, total):
            if stop():
                return False
            number, epoch = divmod(position, epochs)
            run, last = runs[number], epoch == epochs - 1
            start, steps = time.perf_counter(), 0
            facts = {"phase": "retrain", "run": run.number, "group": run.group}
            failed, text = not np.isnan(state["accuracies"][number]), "diverged"
            if not failed:  # in an earlier epoch
                trained, info = trainer.train_epoch(
                    jax.random.fold_in(key, run.seed), state["train"], epoch, *run.inputs)
                loss, test_loss = float(info["loss"].mean()), float(info["test_loss"])
                steps, text = len(info["loss"]), f"loss {loss:.3f}"
                metrics.write("epoch", epoch=epoch, loss=loss,
                              train_accuracy=100 * float(info["accuracy"].mean()), **facts)
                failed = not np.isfinite(loss) or last and not np.isfinite(test_loss)
                if failed:
                    metrics.write("event", event="diverged", epoch=epoch, **facts)
                state["train"] = trainer.empty if failed else trained
                if failed or last:
                    state["accuracies"][number] = (
                        0.0 if failed else 100 * float(info["test_accuracy"]))
            if last:
                accuracy = float(state["accuracies"][number])
                metrics.write(
                    "evaluation", arch=run.arch if isinstance(run.arch, str) else run.arch.tolist(),
                    test_accuracy=accuracy, test_loss=None if failed else test_loss,
                    fitness=None if failed else accuracy, failed=failed, budget=epochs,
                    budget_unit="epochs", **facts)
            on_epoch(Epoch(time.perf_counter() - start, steps))
            bar.advance(1, f"{run.group} {run.seed} {text}")
    return True


def verdict(found: float, random: float) -> str:
    """Say plainly whether the found network is as good as the mean of random ones (accuracies)."""
    return (f"The found network is {'not worse' if found >= random else 'WORSE'} than the mean of "
            f"random networks at equal cost: {found:.2f} against {random:.2f} %.")


def check_memory(config: Any, programs: Programs) -> None:
    """Check that the program of `make_trainer`, compiled, fits into memory.

    Raises:
      InputError: see `memory.check_batch`.
    """
    memory.check_batch(programs, "retrain_batch_size", config.retrain_batch_size, (PROGRAM,))


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
