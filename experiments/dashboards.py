"""Runs in other people's dashboards: TensorBoard and optuna-dashboard.

  python -m experiments.dashboards tensorboard runs        # all runs below; or run directories
  tensorboard --logdir runs

  python -m experiments.dashboards optuna runs/amoebanet/20261126-101500
  python -m experiments.dashboards optuna RUN --metrics valid_accuracy parameters
  python -m experiments.dashboards optuna RUN --store trials.sqlite   # all of a shared store
  optuna-dashboard sqlite:///optuna.sqlite3

Both may be repeated while a search goes on: TensorBoard's events are written anew, and a study gets
the evaluations that it has not. A run that was started with --tensorboard writes its own events.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import common
from experiments.child_run import open_store
from experiments.dashboard_spaces import Spaces, find
from experiments.settings import read_config
from jaxnas import checkpoints, integrations, reporting, trial_json
from jaxnas.base import SearchSpace
from jaxnas.integrations import Evaluation, Events
from jaxnas.integrations.optuna_export import Direction

Runs = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR...")]


@dataclasses.dataclass(frozen=True)
class TensorBoard:
    """Write the events of runs into their folders `tensorboard`."""

    runs: Runs
    """Run directories, or folders above them."""


@dataclasses.dataclass(frozen=True)
class Optuna:
    """Add the evaluations of runs to Optuna studies, one for each search of a run."""

    runs: Runs
    """Run directories, or folders above them."""
    storage: str = "sqlite:///optuna.sqlite3"
    """Where the studies are; the URL of a database."""
    metrics: tuple[str, ...] = ()
    """What the values are; default fitness, and of a store valid_accuracy."""
    minimize: tuple[str, ...] = ()
    """Those of them that are better small; others are by their names, such as latency_ms."""
    store: Path | None = None
    """Trial store whose trials of the runs' spaces are added too, one study for each recipe."""

    def __post_init__(self) -> None:
        unknown = set(self.minimize) - set(self.metrics)
        if unknown:
            raise common.InputError(f"minimize must name some of metrics, got {min(unknown)!r}.")
        if self.store is not None and not self.store.is_file():
            raise common.InputError(f"--store {self.store} is no file; give a trials.sqlite.")


@dataclasses.dataclass(frozen=True)
class Config:
    """Show runs in TensorBoard or optuna-dashboard."""

    command: Annotated[
        Annotated[TensorBoard, tyro.conf.subcommand("tensorboard")]
        | Annotated[Optuna, tyro.conf.subcommand("optuna")], tyro.conf.arg(name="")]


def run(config: Config) -> None:
    """Do what the subcommand says.

    Raises:
      InputError: a package or a run is missing, or a study is of another run.
    """
    command = config.command
    with common.validation():
        if isinstance(command, TensorBoard):
            integrations.require_tensorboard()
            write_events(list(find_runs(command.runs)))
        else:
            integrations.require_optuna()
            export_runs(command, list(find_runs(command.runs)))


def find_runs(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the run directories that paths are, or that are below them.

    Raises:
      InputError: a path is none and has none below it.
    """
    if not paths:
        raise common.InputError("give the directory of a run, or a folder above runs.")
    for path in paths:
        found = [path] if (path / "config.json").is_file() else sorted(
            config.parent for config in path.rglob("config.json")
            if (config.parent / "metrics.jsonl").is_file())
        if not found:
            raise common.InputError(f"{path} is no run directory and has none below it: give the "
                                    "directory that an experiment printed.")
        yield from found


def write_events(runs: Iterable[Path]) -> None:
    """Write the events of runs, and their drawings.

    Raises:
      InputError: a run is going on and writes its events itself.
    """
    for path in runs:
        if read_config(path).get("config", {}).get("tensorboard"):
            try:
                with checkpoints.lock(path / "checkpoints"):
                    pass
            except checkpoints.CheckpointError as error:
                raise common.InputError(f"{path} is going on and writes its events itself "
                                        f"({error})") from error
        with Events(path) as events:
            events.add_drawings()
        print(path / integrations.FOLDER)


def export_runs(command: Optuna, runs: Iterable[Path]) -> None:
    """Add what runs and a store evaluated to studies, and print one line a study.

    Raises:
      InputError: see `find`; or no part of a run has the metrics.
      ValueError: a study is there with other objectives or of another run.
    """
    import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.get_storage(command.storage)
    spaces: dict[str, SearchSpace] = {}
    for path in runs:
        experiment, found = find(path)
        spaces |= {space.name: space for space in (*found.stages.values(), found.last)}
        _export_run(command, storage, path, experiment, found)
    if command.store is not None:
        _export_store(command, storage, command.store, spaces)
    print(f"optuna-dashboard {command.storage}")


def _export_run(command: Optuna, storage: Any, path: Path, experiment: str,
                spaces: Spaces) -> None:
    metrics = command.metrics or ("fitness",)
    sha256 = hashlib.sha256((path / "config.json").read_bytes()).hexdigest()
    others: set[str] = set()
    exported = False
    for part, evaluations in integrations.run_evaluations(path).items():
        names = {name for evaluation in evaluations for name in evaluation.metrics}
        if set(metrics) <= names:
            exported = True
            _add(evaluations, spaces.of(part.stage), storage,
                 f"{experiment}/{path.resolve().name} {part.name}", _directions(command, metrics),
                 {"config_sha256": sha256})
        others |= names
    if not exported:
        raise common.InputError(
            f"{path} has no evaluations with {' and '.join(metrics)}"
            + (f"; --metrics may be of {', '.join(sorted(others))}." if others else "."))


def _export_store(command: Optuna, storage: Any, path: Path,
                  spaces: Mapping[str, SearchSpace]) -> None:
    metrics = command.metrics or ("valid_accuracy",)
    with open_store(path) as store:
        for name, space in spaces.items():
            recipes = {trial_json.canonical_json(trial.recipe): trial.recipe
                       for trial in store.trials(name)}
            for text, recipe in recipes.items():
                sha256 = trial_json.sha256(text)
                _add(integrations.stored_evaluations(store, name, recipe), space, storage,
                     f"{path.stem}/{name} {sha256[:8]}", _directions(command, metrics),
                     {"recipe_sha256": sha256, "recipe": recipe})


def _add(evaluations: Iterable[Evaluation], space: SearchSpace, storage: Any, name: str,
         directions: Mapping[str, Direction], facts: Mapping[str, Any]) -> None:
    done = integrations.export_evaluations(evaluations, space, storage, name, directions,
                                           facts={"space": space.name, **facts})
    foreign = f", {done.foreign} of another space left out" if done.foreign else ""
    print(f"{name}: {done.added} added, {done.known} known{foreign}")


def _directions(command: Optuna, metrics: tuple[str, ...]) -> dict[str, Direction]:
    return {name: "minimize" if name in command.minimize or reporting.smaller_is_better(name)
            else "maximize" for name in metrics}


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit code: 0, 2 for bad input."""
    return common.main_plain(Config, run, "dashboards", argv)


if __name__ == "__main__":
    sys.exit(main())
