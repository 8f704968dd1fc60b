"""Children that several searches share: looked up in a store of trials, else claimed and trained.

A child is claimed before it is trained and finished as soon as its metrics are known, so that a
crash costs what was in flight, and a search that is run again finds everything that it had. Where
another process has the claim, others are trained first; then this one waits for the metrics, or
takes the child over if that process is gone. With a farm, its workers claim and train.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments import common
from jaxnas.farms import Farm, Heart, Job, not_finite
from jaxnas.trials import Busy, Claimed, LeaseLost, Store, Trial

LEASE_SECONDS = 600.0  # of a process that hangs; one that is gone loses its claims at once
BEAT_SECONDS = 60.0
POLL_SECONDS = 0.5

# archs [B, L] int32, 1 <= B <= population -> what is stored of each: name -> number or [n] numbers
Train = Callable[[np.ndarray], Sequence[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FarmConfig(common.CommonConfig):
    """Who trains children."""

    workers: int = 0
    """Processes that train the children of one batch side by side, one each; 0: this one alone."""
    farm: Literal["local", "ray"] = "local"
    """Of the workers: processes of this machine, or Ray actors (needs jaxnas[ray])."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 0:
            raise common.InputError(f"workers must be >= 0, got {self.workers}.")
        if self.farm != "local" and not self.workers:
            raise common.InputError(f"--farm {self.farm} needs --workers of 1 or more.")


class Stopped(Exception):
    """The user asked to stop between two children; those that were finished are in the store."""


class Kind(NamedTuple):
    """What, beside the architecture, identifies a child."""

    space: str                  # name of the search space
    recipe: Mapping[str, Any]   # JSON: everything else that changes its metrics


class Child(NamedTuple):
    """One trained child."""

    metrics: Mapping[str, float]  # numbers only; curves stay in the store
    seconds: float                # of its training, by whomever
    failed: bool


def _never() -> bool:
    return False


def _nothing(child: Child) -> None:
    del child


class SharedTrials:
    """Evaluates architectures of one kind, each once in the whole store."""

    def __init__(
        self, store: Store, kind: Kind, train: Train, *, population: int = 1,
        stop: Callable[[], bool] = _never, on_child: Callable[[Child], None] = _nothing,
        lease_seconds: float = LEASE_SECONDS, poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
          store: open, perhaps in other processes too.
          kind: of the children.
          train: trains up to `population` of them.
          population: children that one call trains, 1 or more.
          stop: asked before every training and while waiting; True raises `Stopped`.
          on_child: called once for every architecture of `evaluate`.
          lease_seconds: of a claim; renewed every tenth of it.
          poll_seconds: between two looks at what another process trains.

        Raises:
          ValueError: population is below 1.
        """
        if population < 1:
            raise ValueError(f"population must be 1 or more, got {population}.")
        self._store, self._kind, self._train = store, kind, train
        self._population, self._stop, self._on_child = population, stop, on_child
        self._lease, self._poll = lease_seconds, poll_seconds
        self.trained = 0  # children that this object has trained

    def evaluate(self, archs: np.ndarray) -> list[Child]:
        """Return the child of every architecture; archs [B, L] int32 in canonical form.

        Raises:
          Stopped: see `stop`.
        """
        keys = [tuple(arch) for arch in np.asarray(archs).tolist()]
        found: dict[tuple[int, ...], Child] = {}
        waiting = list(dict.fromkeys(keys))
        while waiting:
            claims: dict[tuple[int, ...], Claimed] = {}
            try:
                for arch in waiting:
                    if len(claims) == self._population:
                        break  # the rest stays free for others
                    outcome = self._claim(arch)
                    if isinstance(outcome, Trial):
                        found[arch] = _child(outcome)
                    elif isinstance(outcome, Claimed):
                        claims[arch] = outcome
                if claims or any(arch not in found for arch in waiting):
                    if self._stop():
                        raise Stopped
                if claims:
                    found |= self._train_claimed(claims)
            finally:
                for claimed in claims.values():
                    self._store.release(claimed)  # those finished are left alone
            left = [arch for arch in waiting if arch not in found]
            if left and not claims:
                time.sleep(self._poll)
            for arch in waiting:
                if arch in found:
                    for _ in range(keys.count(arch)):
                        self._on_child(found[arch])
            waiting = left
        return [found[key] for key in keys]

    def _claim(self, arch: tuple[int, ...]) -> Trial | Claimed | Busy:
        return self._store.claim(
            self._kind.space, arch, self._kind.recipe, lease_seconds=self._lease)

    def _train_claimed(self, claims: Mapping[tuple[int, ...], Claimed],
                       ) -> dict[tuple[int, ...], Child]:
        start = time.perf_counter()
        with Heart(self._store, min(BEAT_SECONDS, self._lease / 10), held=claims.values()):
            rows = self._train(np.array(list(claims), np.int32))
        seconds = (time.perf_counter() - start) / len(claims)
        self.trained += len(claims)
        found = {}
        for (arch, claimed), row in zip(claims.items(), rows, strict=True):
            error = not_finite(_numbers(row))
            try:
                trial = self._store.finish(
                    claimed, row, seconds=seconds, failed=error is not None, error=error)
            except LeaseLost:  # somebody was faster: everybody has the same metrics
                known = self._store.lookup(self._kind.space, arch, self._kind.recipe)
                if known is None:
                    raise
                trial = known
            found[arch] = _child(trial)
        return found


class FarmTrials:
    """Evaluates architectures of one kind by a farm, each once in the whole store."""

    def __init__(self, farm: Farm, kind: Kind, *, stop: Callable[[], bool] = _never,
                 on_child: Callable[[Child], None] = _nothing) -> None:
        """Prepare.

        Args:
          farm: whose workers train such children; nobody else gives it jobs.
          kind, on_child: as of `SharedTrials`.
          stop: asked while waiting; True raises `Stopped`, and what is in flight is lost when the
            farm is closed.
        """
        self._farm, self._kind, self._stop, self._on_child = farm, kind, stop, on_child
        self.trained = 0  # children that the farm has trained for this object

    def evaluate(self, archs: np.ndarray) -> list[Child]:
        """Return the child of every architecture; archs [B, L] int32 in canonical form.

        Raises:
          Stopped: see `stop`.
          FarmError: no worker can begin.
        """
        keys = [tuple(arch) for arch in np.asarray(archs).tolist()]
        tickets = {self._farm.submit(Job(self._kind.space, arch, self._kind.recipe)): arch
                   for arch in dict.fromkeys(keys)}
        found: dict[tuple[int, ...], Child] = {}
        while tickets:
            if self._stop():
                raise Stopped
            if (result := self._farm.next(POLL_SECONDS)) is not None:
                arch = tickets.pop(result.ticket)
                found[arch] = _child(result.trial)
                self.trained += not result.known
                for _ in range(keys.count(arch)):
                    self._on_child(found[arch])
        return [found[key] for key in keys]


def _child(trial: Trial) -> Child:
    return Child(_numbers(trial.metrics), trial.seconds, trial.failed)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Leave out what is a curve."""
    return {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
