"""Evaluation by training every candidate from scratch, a population at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from jaxnas.evaluators.children import CURVES, ChildTrainer, Examples, member_keys
from jaxnas.evaluators.populations import compile_population

METRICS = (*CURVES, "diverged_epoch")

Lookup = Callable[[np.ndarray], Mapping[str, float] | None]
Record = Callable[[np.ndarray, dict[str, float], dict[str, np.ndarray]], None]


def from_scratch(
    trainer: ChildTrainer, examples: Examples, num_choices: tuple[int, ...], *, population: int,
    seed: int = 0, canonical: Callable[[jax.Array], jax.Array] | None = None,
    accepts: Callable[[np.ndarray], bool] | None = None,
    lookup: Lookup | None = None, record: Record | None = None,
    devices: Sequence[jax.Device] | None = None, available_bytes: int | None = None,
) -> Callable[[jax.Array, np.ndarray], dict[str, np.ndarray]]:
    """Return an evaluator for `search.run_on_host` that trains children.

    What is trained is the canonical form of what is asked, with randomness from (seed, canonical
    architecture) alone. So a duplicate has the result of the first, and a lookup is as good as a
    training. The key of the evaluation is not used. The program is compiled here, once for the
    whole search: fewer candidates fill up with idle ones, which in the sequential form cost almost
    nothing, and more are trained in several turns.

    Args:
      trainer: of `children.train_children`.
      examples: the data.
      num_choices: [L] of the space.
      population: children that one call of the program trains, 1 or more.
      seed: of all trainings.
      canonical: of the space, [L] -> [L], traced; None: every architecture is its own.
      accepts: canonical arch [L] -> whether to train it, for instance by its multiply-adds; one
        that is refused has failed alone (NaN), and is neither looked up nor recorded.
      lookup: canonical arch [L] -> the metrics that `record` was given for it, {} for a failure, or
        None: train it.
      record: (canonical arch [L], metrics, curves {name: [epochs]}) after a training, failed ones
        (NaN) too.
      devices, available_bytes: as in `compile_population`.

    Returns:
      (key, archs [B, L] int32) -> {"valid_accuracy", "valid_loss", "train_loss", "diverged_epoch"}
      [B] float32. "valid_accuracy" is the recipe's score, in percent; the losses are those of the
      last epoch; NaN if it failed. "diverged_epoch" is -1 for a child that did not diverge.

    Raises:
      ValueError: population is below 1, or too large, see `compile_population`. The evaluator:
        archs of another shape or out of range, or a lookup without one of the metrics.
    """
    length = len(num_choices)
    compiled = compile_population(trainer, population, (length,), examples, devices=devices,
                                  available_bytes=available_bytes)
    canonicalize = None if canonical is None else jax.jit(jax.vmap(canonical))
    draw_keys = jax.jit(lambda archs: member_keys(jax.random.key(seed), archs))

    def canonical_forms(archs: np.ndarray) -> np.ndarray:
        if canonicalize is None:
            return archs
        return np.concatenate([np.asarray(canonicalize(_filled(part, population)))[:len(part)]
                               for part in _parts(archs, population)])

    def train(archs: np.ndarray) -> list[dict[str, float]]:
        filled = _filled(archs, population)
        result = compiled.run(draw_keys(filled), filled, np.arange(population) < len(archs))
        # of all, idle ones too, so that nothing is compiled for another number
        scores = trainer.recipe.scores(result["valid_accuracy"])
        curves = {name: np.asarray(result[name]) for name in CURVES}
        columns = {name: curve[:, -1] for name, curve in curves.items()} | {
            "valid_accuracy": np.asarray(scores),
            "diverged_epoch": np.asarray(result["diverged_epoch"])}
        rows = [{name: float(columns[name][member]) for name in METRICS}
                for member in range(len(archs))]
        if record is not None:
            for member, (arch, row) in enumerate(zip(archs, rows)):
                record(arch, row, {name: curve[member] for name, curve in curves.items()})
        return rows

    def evaluate(key: jax.Array, archs: np.ndarray) -> dict[str, np.ndarray]:
        del key  # of the step, on which a training must not depend
        unique, places = np.unique(
            canonical_forms(_checked(archs, num_choices)), axis=0, return_inverse=True)
        known: list[Mapping[str, float] | None] = [
            {} if accepts is not None and not accepts(arch) else
            None if lookup is None else lookup(arch) for arch in unique]
        waiting = [member for member, row in enumerate(known) if row is None]
        for part in _parts(np.array(waiting, int), population):
            for member, row in zip(part.tolist(), train(unique[part])):
                known[member] = row
        return {name: np.array([_value(known[place], name) for place in places.reshape(-1)],
                               np.float32) for name in METRICS}

    return evaluate


def _checked(archs: np.ndarray, num_choices: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(archs)
    if values.ndim != 2 or values.shape[1] != len(num_choices) or not len(values) or (
            values.dtype.kind not in "iu"):
        raise ValueError(f"archs must be integers [B, {len(num_choices)}] with B of 1 or more, "
                         f"got {values.dtype} {list(values.shape)}.")
    if (values < 0).any() or (values >= np.asarray(num_choices)).any():
        raise ValueError(f"decision l of archs must be in [0, {num_choices}[l]).")
    return values.astype(np.int32)


def _parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut rows into parts of `size` and a rest."""
    return [rows[first:first + size] for first in range(0, len(rows), size)]


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Repeat rows up to `size`, so that a program has one shape."""
    return rows[np.arange(size) % len(rows)]


def _value(row: Mapping[str, float] | None, name: str) -> float:
    if not row:
        return float("nan")
    if name not in row:
        raise ValueError(f"lookup must return {METRICS}, or {{}} for a failure, got "
                         f"{tuple(row)}; store what record was given.")
    return row[name]
