"""Optuna drives a searcher over a space: its studies, storages and dashboards, our search.

    space = AmoebaNet()
    sampler = JaxnasSampler(space, regularized_evolution(space, population_size=20), seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def objective(trial):
        arch = suggest_arch(trial, space)   # [L] int32
        return accuracy(arch)

    study.optimize(objective, n_trials=100)

Needs `pip install 'jaxnas[optuna]'`. A class needs its base when it is defined, and so this file is
the one that imports Optuna at once, and the folder does not re-export it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from jaxnas import search
from jaxnas.base import Searcher, SearchSpace
from jaxnas.integrations import parameters

SLOT = "jaxnas:slot"  # of a trial's system attributes: [step, place in the batch]


class JaxnasSampler(BaseSampler):
    """Ask and tell of a searcher as an Optuna sampler.

    The architectures are those of `search.run(jax.random.key(seed), ...)` with the same fitness,
    and with `n_jobs=1` in the same order. A trial that failed or was pruned is told as NaN. In a
    direction "minimize" the fitness is the negative value. A study of M directions needs a searcher
    of M objectives, such as `nsga2`.

    A study in a storage is gone on with by a new sampler of the same space, searcher and seed: it
    tells the finished trials again, and hands those that a dead process left out once more. Two
    processes at once on one study would both do so; threads (`n_jobs`) may share a sampler, where
    one that is ahead waits for the rest of its batch.

    Enqueued trials are run but not told, for the searcher did not ask for them. Parameters that are
    no decisions of the space are drawn by `others`.
    """

    def __init__(self, space: SearchSpace, searcher: Searcher, *, seed: int = 0,
                 others: BaseSampler | None = None) -> None:
        """Prepare; nothing is compiled before the first trial.

        Args:
          space: whose decisions become categorical parameters.
          searcher: of that space. If it asks for longer archs, their first L decisions count: a
            controller may draw more layers than the networks of a stage have.
          seed: of the search, 0 or more.
          others: for parameters that are no decisions; by default Optuna's random sampler.

        Raises:
          ValueError: the searcher asks for architectures that are shorter than the space's.
        """
        key = jax.random.key(seed)
        self._space, self._searcher = space, searcher
        self._state_shape = jax.eval_shape(searcher.init, key)
        self._archs_shape = jax.eval_shape(searcher.ask, key, self._state_shape)
        length = len(space.num_choices)
        if self._archs_shape.shape[-1] < length:
            raise ValueError(
                f"the searcher must ask for archs of {length} decisions as {space.name} has, got "
                f"{self._archs_shape.shape[-1]}: make it for this space.")
        self._key, self._others = key, others or RandomSampler(seed=seed)
        self._distributions: dict[str, BaseDistribution] = {
            decision.name: CategoricalDistribution(decision.choices)
            for decision in parameters.decisions(space)}
        self._ask, self._tell = jax.jit(searcher.ask), jax.jit(searcher.tell)
        self._changed = threading.Condition()
        self._state: search.SearchState | None = None
        self._study_name = ""
        self._archs = np.zeros(self._archs_shape.shape, np.int32)  # [B, L] of this step
        self._fitness: dict[int, Any] = {}       # place in the batch -> what it was told
        self._running: dict[int, tuple[int, int]] = {}  # trial -> place in the batch, thread

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial,
                                    ) -> dict[str, BaseDistribution]:
        """Return the decisions of the space.

        Raises:
          ValueError: the searcher does not take as many objectives as the study has.
        """
        del trial
        if self._state is None:
            self._check_objectives(len(study.directions))
        return dict(self._distributions)

    def sample_relative(self, study: Study, trial: FrozenTrial,
                        search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Return the next architecture by name.

        Raises:
          ValueError: the study was made with another searcher or seed, or belongs to another
            sampler already.
          RuntimeError: this thread has the whole batch and has told nothing of it, or the
            searcher's capacity is used up.
        """
        if set(search_space) & set(trial.system_attrs.get("fixed_params", {})):
            return {}  # enqueued
        with self._changed:
            self._attach(study)
            place = self._next_place()
            self._running[trial.number] = place, threading.get_ident()
            assert self._state is not None
            # As Optuna's own samplers: there is no public way to a trial that is being made.
            study._storage.set_trial_system_attr(
                trial._trial_id, SLOT, [int(self._state.step), place])
            return self._asked(place)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        """Draw a parameter that is no decision."""
        return self._others.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState,
                    values: Sequence[float] | None) -> None:
        """Tell the searcher, once all of a batch are done."""
        with self._changed:
            if trial.number not in self._running:
                return
            place, _ = self._running.pop(trial.number)
            self._record(place, _fitness(study, state, values))
            self._changed.notify_all()

    def reseed_rng(self) -> None:
        """Reseed what draws other parameters; the search stays that of its seed."""
        self._others.reseed_rng()

    def _check_objectives(self, count: int) -> None:
        batch = self._archs_shape.shape[:1]
        fitness = jax.ShapeDtypeStruct(batch if count == 1 else (*batch, count), jnp.float32)
        try:
            told, _ = jax.eval_shape(self._searcher.tell, self._key, self._state_shape,
                                     self._archs_shape, fitness)
            fits = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), told) == jax.tree.map(
                lambda leaf: (leaf.shape, leaf.dtype), self._state_shape)
        except (TypeError, ValueError, AssertionError, IndexError):
            fits = False
        if not fits:
            raise ValueError(
                f"the study has {count} objectives, which this searcher does not take: use nsga2 "
                "with as many for several, any other searcher for one.")

    def _attach(self, study: Study) -> None:
        """Begin the search, and tell again what the study has."""
        if self._state is not None:
            if study.study_name != self._study_name:
                raise ValueError(f"this sampler belongs to the study {self._study_name!r}: make "
                                 "another one for each study.")
            return
        told: dict[tuple[int, int], FrozenTrial] = {}
        for trial in study.get_trials(deepcopy=False):
            slot = trial.system_attrs.get(SLOT)
            if slot is not None and trial.state.is_finished():
                told.setdefault((slot[0], slot[1]), trial)
        self._study_name = study.study_name
        self._state = search.init(self._key, self._searcher)
        self._draw()
        # Within a step any order will do, and a step is complete before the next one is asked.
        for (step, place), trial in sorted(told.items()):
            asked = self._asked(place)
            if step != int(self._state.step) or any(
                    asked[name] != value for name, value in trial.params.items() if name in asked):
                self._state = None
                raise ValueError(
                    f"trial {trial.number} of the study {study.study_name!r} is not what this "
                    "searcher asks for: use the searcher and seed that the study was begun with.")
            self._record(place, _fitness(study, trial.state, trial.values))

    def _next_place(self) -> int:
        while True:
            held = {place for place, _ in self._running.values()}
            free = [place for place in range(len(self._archs))
                    if place not in held and place not in self._fitness]
            if free:
                self._check_capacity()
                return free[0]
            own = threading.get_ident()
            if all(thread == own for _, thread in self._running.values()):
                raise RuntimeError(
                    f"all {len(self._archs)} architectures of this step are being evaluated: tell "
                    "one of these trials before asking for another.")
            self._changed.wait()

    def _check_capacity(self) -> None:
        capacity, batch = self._searcher.capacity, len(self._archs)
        assert self._state is not None
        if capacity is not None and (int(self._state.step) + 1) * batch > capacity:
            raise RuntimeError(f"the searcher's capacity of {capacity} evaluations is used up: "
                               "make it with a larger one.")

    def _draw(self) -> None:
        assert self._state is not None
        key = search.step_keys(self._state.key, self._state.step)[0]
        self._archs = np.asarray(self._ask(key, self._state.searcher))
        self._fitness = {}

    def _asked(self, place: int) -> dict[str, str]:
        return parameters.choices(self._space, self._archs[place, :len(self._distributions)])

    def _record(self, place: int, fitness: np.ndarray) -> None:
        self._fitness[place] = fitness
        state = self._state
        if state is None or len(self._fitness) < len(self._archs):
            return
        key = search.step_keys(state.key, state.step)[2]
        fitness = np.stack([self._fitness[place] for place in range(len(self._archs))])
        inner, _ = self._tell(key, state.searcher, jnp.asarray(self._archs), jnp.asarray(fitness))
        self._state = state._replace(step=state.step + 1, searcher=inner)
        self._draw()


def _fitness(study: Study, state: TrialState, values: Sequence[float] | None) -> np.ndarray:
    """Return the fitness of a trial, [] or [M] float32, to be maximised; NaN: failed or pruned."""
    signs = np.array([-1.0 if direction == StudyDirection.MINIMIZE else 1.0
                      for direction in study.directions])
    done = state == TrialState.COMPLETE and values is not None
    fitness = (signs * np.array(values) if done else np.full(len(signs), np.nan)).astype(np.float32)
    return fitness[0] if len(signs) == 1 else fitness


def suggest_arch(trial: Any, space: SearchSpace) -> np.ndarray:
    """Suggest all decisions of a space in an objective, and return the arch [L] int32.

    Args:
      trial: of Optuna, with any sampler. Samplers other than `JaxnasSampler` know nothing of what
        `space.is_valid` demands.
      space: to be searched.
    """
    return parameters.read_choices(space, {
        decision.name: trial.suggest_categorical(decision.name, decision.choices)
        for decision in parameters.decisions(space)})
