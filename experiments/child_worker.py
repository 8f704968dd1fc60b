"""Children trained by worker processes: what one begins with, and the farm of a run."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import child_search, common, settings
from experiments.child_search import ChildConfig, MakeTrain, Stage, System
from experiments.child_trials import Train
from jaxnas import evaluators, farms, trial_json
from jaxnas.data import ImageDataset
from jaxnas.evaluators import Examples
from jaxnas.farms import Evaluate, Job, SupervisedFarm, Work


def compile_stages(
    system: System, config: ChildConfig, dataset: ImageDataset, examples: Examples,
    make_train: MakeTrain, on_stage: Callable[[Stage, bool], None] = lambda stage, new: None,
) -> list[Train]:
    """Compile the training of every stage's children, once where stages share a program.

    Args:
      on_stage: called after each, with whether it was compiled.
    """
    made: list[tuple[Stage, Train]] = []
    for stage in system.stages:
        same = [train for other, train in made if stage.shares(other)]
        made.append((stage, same[0] if same else make_train(stage, config, dataset, examples)))
        on_stage(stage, not same)
    return [functools.partial(_train, *pair) for pair in made]


def _train(stage: Stage, train: Train, archs: np.ndarray) -> Sequence[Mapping[str, Any]]:
    return train(stage.given(archs))


def work(config: ChildConfig, make_system: Callable[..., System], make_train: MakeTrain) -> Work:
    """Return what a run's workers do; arguments as of `child_run.run`.

    Raises:
      ValueError: a worker cannot import one of the functions, or population is given.
    """
    if config.population:
        raise ValueError("population must be 0 with workers, each of which trains one child at a "
                         f"time, got {config.population}.")
    # A worker uses one device, and measures and writes nothing.
    alone = dataclasses.replace(config, devices=1, population=1, compile_only=True, resume=None)
    return Work("experiments.child_worker:make", {
        "config_class": farms.name_of(type(config)), "make_system": farms.name_of(make_system),
        "make_train": farms.name_of(make_train), "config": common.to_json(alone)})


def make(options: Mapping[str, Any]) -> Evaluate:
    """Read the data and compile, in a worker; `options` are of `work`."""
    common.enable_compilation_cache()
    config = settings.from_json(
        farms.load(options["config_class"]), options["config"], "the config of a worker")
    dataset, split = child_search.load(config)
    system: System = farms.load(options["make_system"])(config, dataset)
    trains = compile_stages(system, config, dataset, evaluators.examples(dataset, split),
                            farms.load(options["make_train"]))
    kinds = [child_search.identity(stage, config, dataset) for stage in system.stages]
    by_kind = {(kind.space, trial_json.canonical_json(kind.recipe)): train
               for kind, train in zip(kinds, trains)}

    def evaluate(job: Job) -> Mapping[str, Any]:
        train = by_kind.get((job.space, trial_json.canonical_json(job.recipe)))
        if train is None:
            raise ValueError("this worker trains other children than those of the run: use the "
                             "same versions, data and platform everywhere.")
        return train(np.array([job.arch], np.int32))[0]

    return evaluate


def start_farm(config: ChildConfig, work: Work, store: Path, logs: Path) -> SupervisedFarm:
    """Start the workers of a run; on GPUs each has one.

    Args:
      config: says how many, and of which farm.
      work: from `work`.
      store: path of the trial store.
      logs: a folder for what local workers write.

    Raises:
      InputError: the farm is not installed, or the store is none.
    """
    on_gpus = jax.default_backend() == "gpu"
    try:
        if config.farm == "ray":
            here = {name: value for name, value in os.environ.items()
                    if name.startswith(("JAX", "XLA_"))}
            return farms.ray_farm(work, store, workers=config.workers, num_gpus=float(on_gpus),
                                  environment=here)
        # The process of the run holds a part of the first GPU, too.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
            map(str, range(jax.local_device_count())))
        environments = [{"CUDA_VISIBLE_DEVICES": gpu, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
                        for gpu in visible.split(",")] if on_gpus else []
        return farms.local_farm(work, store, workers=config.workers, environments=environments,
                                logs=logs)
    except (ImportError, trial_json.TrialError) as error:
        raise common.InputError(" ".join(str(error).split())) from error


def wait_ready(farm: SupervisedFarm, stop: Callable[[], bool]) -> None:
    """Wait until a worker has compiled, or until `stop`.

    Raises:
      InputError: no worker can begin.
    """
    try:
        while not (farm.wait_ready(0.5) or stop()):
            pass
    except farms.FarmError as error:
        raise common.InputError(" ".join(str(error).split())) from error
