"""The loop of a discrete search over a farm: several evaluations at once, told in some order.

    searcher = searchers.regularized_evolution(space)
    job = lambda arch: farms.Job(space.name, canonical(arch), {"epochs": 3})
    with farms.local_farm(work, "trials.sqlite", workers=4) as farm:
        state = asynchronous.init(key, searcher, in_flight=4)
        state, history = asynchronous.run(
            state, searcher, farm, objectives.maximize("accuracy"), job=job,
            metrics=("accuracy",), num_steps=100)

`in_flight` steps are on their way at once, whatever the number of workers. In which order results
are told is one of

| order | told | the history depends on |
| --- | --- | --- |
| "asked" | step t before t + 1; workers idle while a slow one is waited for | key, in_flight |
| "finished" | what is finished; nobody waits for the slowest | the order of finishing too |
| `history.steps` of a run | as there: replays it bit for bit | what it is given |

All three hold for random search, evolution, NSGA-II, REINFORCE, PPO, Bayesian optimisation and
PNAS; `pending` says what they are asked meanwhile. PNAS waits at the end of a level in any order.
With in_flight=1 the history is that of `search.run_on_host`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import pending, search
from jaxnas.base import Info, Metrics, Objective, PyTree, Searcher
from jaxnas.farms import Farm, Job
from jaxnas.trials import Trial

ORDERS = ("asked", "finished")
POLL_SECONDS = 0.5  # between two questions whether to stop


class AsynchronousState(NamedTuple):
    """A search between two results; a checkpoint of it is all that a resumption needs.

    W is `in_flight`. What is on its way is submitted again by a run that goes on; the store of the
    farm knows what has finished meanwhile.
    """

    key: jax.Array       # of the whole search; never changes
    asked: jax.Array     # [] int32; steps asked for
    searcher: PyTree     # the searcher's own state, of what was told
    steps: jax.Array     # [W] int32; steps on their way, -1 where there is none
    archs: jax.Array     # [W, B, L] int32; what was asked in them


class AsynchronousHistory(NamedTuple):
    """What was told, in the order of telling: T steps of B architectures each."""

    archs: jax.Array    # [T, B, L] int32
    fitness: jax.Array  # [T, B] or [T, B, M] float32; NaN: failed
    metrics: Metrics    # name -> [T, B]
    info: Info          # name -> [T], from the searcher
    steps: jax.Array    # [T] int32; which question it answers: 0, 1, ... in the order of asking


def init(key: jax.Array, searcher: Searcher, *, in_flight: int) -> AsynchronousState:
    """Begin a search.

    Args:
      key: decides everything that is random in it.
      searcher: of steps of B.
      in_flight: W, steps on their way at once, B evaluations each; usually the workers of the farm
        divided by B. For evolution well below the size of the population.

    Raises:
      ValueError: in_flight is below 1.
      TypeError: the searcher cannot be asked while evaluations are pending, see `pending`.
    """
    if in_flight < 1:
        raise ValueError(f"in_flight must be 1 or more, got {in_flight}.")

    def begin(key: jax.Array) -> AsynchronousState:
        inner = searcher.init(jax.random.fold_in(key, 0))
        if in_flight > 1:
            pending.ahead(inner, pending.Pending(jnp.int32(0), lambda state: state))
        archs = jax.eval_shape(searcher.ask, key, inner)
        return AsynchronousState(key, jnp.int32(0), inner, jnp.full(in_flight, -1, jnp.int32),
                                 jnp.zeros((in_flight, *archs.shape), jnp.int32))

    return jax.jit(begin)(key)


def run(
    state: AsynchronousState, searcher: Searcher, farm: Farm, objective: Objective, *,
    job: Callable[[np.ndarray], Job], metrics: Sequence[str], num_steps: int,
    order: str | Sequence[int] | np.ndarray = "asked",
    on_step: Callable[[AsynchronousState, AsynchronousHistory], bool | None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[AsynchronousState, AsynchronousHistory | None]:
    """Take up to `num_steps` steps: ask, submit, and tell what the farm gives back.

    Args:
      state: from `init`, or from a checkpoint, with nothing but this search on the farm.
      searcher: its `ask` and `tell` are compiled, once each.
      farm: does the jobs. A job's metrics must depend on the job alone.
      objective: metrics -> fitness.
      job: arch [L] int32 of NumPy, as asked -> what to evaluate, in canonical form.
      metrics: names of those that the objective or the reader wants; all are NaN of a failed trial.
      num_steps: steps to tell, at most. What is asked ends with them, so that a run that was told
        to end is not the beginning of a longer one: for that, `stop` or `on_step`.
      order: "asked", "finished", or the steps of a history, for a replay of it with the same key
        and in_flight.
      on_step: called after every telling with the new state and its history (T = 1), to record and
        to save; returning True stops the search with what is on its way in the state.
      stop: asked while waiting; True stops the search likewise.

    Returns:
      The state, and the history of what was told here; None if that is nothing.

    Raises:
      ValueError: num_steps or order is none; a trial that succeeded lacks a metric; a replay meets
        a step that cannot be on its way.
      FarmError: of the farm.
    """
    _check_num_steps(state, searcher, num_steps)
    script: list[int] | None = None
    if not isinstance(order, str):
        script = [int(step) for step in order]
        if len(script) < num_steps:
            raise ValueError(f"order must hold num_steps = {num_steps} steps at least for a "
                             f"replay, got {len(script)}.")
    elif order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS} or the steps of a history, got {order!r}.")
    ask, tell = _programs(searcher)
    window = _Window(farm, job, tuple(metrics), state)
    end = int(state.asked) - len(window.open) + num_steps  # steps told by then
    taken: list[AsynchronousHistory] = []
    while len(taken) < num_steps:
        while int(state.asked) < end and len(window.open) < len(state.steps):
            asked, slot, can_ask = ask(state)
            if not can_ask:
                break
            state = asked
            window.submit(int(slot), state)
        slot = window.wait(script[len(taken)] if script is not None else str(order), stop)
        if slot is None:
            break
        step, found = window.take(slot)
        fitness = objective(found)
        state, archs, info = tell(state, slot, fitness)
        row = AsynchronousHistory(archs, fitness, found, info, jnp.int32(step))
        taken.append(jax.tree.map(lambda leaf: np.asarray(leaf)[None], row))
        if on_step is not None and on_step(state, taken[-1]):
            break
    if not taken:
        return state, None
    return state, jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)), *taken)


def _check_num_steps(state: AsynchronousState, searcher: Searcher, num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be 1 or more, got {num_steps}.")
    told = int(state.asked) - int(np.sum(np.asarray(state.steps) >= 0))
    evaluations = (told + num_steps) * searcher.batch_size
    if searcher.capacity is not None and evaluations > searcher.capacity:
        raise ValueError(f"the searcher's capacity must be at least {evaluations}, the evaluations "
                         f"of num_steps and those before, got {searcher.capacity}.")


@functools.lru_cache(maxsize=16)  # a search that goes on in this process compiles nothing
def _programs(searcher: Searcher) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def told_failed(state: AsynchronousState, inner: PyTree) -> PyTree:
        def one(carry: PyTree, row: tuple[jax.Array, jax.Array]) -> tuple[PyTree, None]:
            step, archs = row
            key = search.step_keys(state.key, jnp.maximum(step, 0))[2]
            lied, _ = searcher.tell(key, carry, archs, jnp.full(len(archs), jnp.nan))
            return jax.tree.map(lambda new, old: jnp.where(step >= 0, new, old), lied, carry), None

        return jax.lax.scan(one, inner, (state.steps, state.archs))[0]

    @jax.jit
    def ask(state: AsynchronousState) -> tuple[AsynchronousState, jax.Array, jax.Array]:
        slot = jnp.argmin(state.steps)  # a free one, -1
        inner, can_ask = state.searcher, jnp.bool_(True)
        if len(state.steps) > 1:
            count = searcher.batch_size * jnp.sum(state.steps >= 0, dtype=jnp.int32)
            inner, can_ask = pending.ahead(
                inner, pending.Pending(count, functools.partial(told_failed, state)))
        archs = searcher.ask(search.step_keys(state.key, state.asked)[0], inner)
        return state._replace(asked=state.asked + 1, steps=state.steps.at[slot].set(state.asked),
                              archs=state.archs.at[slot].set(archs)), slot, can_ask

    @jax.jit
    def tell(state: AsynchronousState, slot: jax.Array, fitness: jax.Array,
             ) -> tuple[AsynchronousState, jax.Array, Info]:
        key = search.step_keys(state.key, state.steps[slot])[2]
        archs = state.archs[slot]
        inner, info = searcher.tell(key, state.searcher, archs, fitness)
        return state._replace(searcher=inner, steps=state.steps.at[slot].set(-1)), archs, info

    return ask, tell


class _Window:
    """What is on its way, by slot."""

    def __init__(self, farm: Farm, job: Callable[[np.ndarray], Job], metrics: tuple[str, ...],
                 state: AsynchronousState) -> None:
        self._farm, self._job, self._metrics = farm, job, metrics
        self.open: dict[int, int] = {}  # slot -> step
        self._tickets: dict[int, tuple[int, int]] = {}  # -> slot, member
        self._trials: dict[int, dict[int, Trial]] = {}  # slot -> member -> trial
        self._complete: list[int] = []  # slots, in the order of finishing
        steps = np.asarray(state.steps)
        for slot in np.argsort(steps).tolist():
            if steps[slot] >= 0:
                self.submit(slot, state)

    def submit(self, slot: int, state: AsynchronousState) -> None:
        self.open[slot], self._trials[slot] = int(np.asarray(state.steps)[slot]), {}
        for member, arch in enumerate(np.asarray(state.archs)[slot]):
            self._tickets[self._farm.submit(self._job(arch))] = slot, member

    def wait(self, order: str | int, stop: Callable[[], bool]) -> int | None:
        """Return the slot to tell next, when it is complete; None: stopped."""
        wanted: int | None = None
        if order != "finished":
            step = min(self.open.values()) if order == "asked" else order
            slots = [slot for slot, number in self.open.items() if number == step]
            if not slots:
                raise ValueError(f"step {step} of the replayed order is not on its way: replay "
                                 "with the key, in_flight and searcher of the history.")
            wanted = slots[0]
        while not (self._complete if wanted is None else wanted in self._complete):
            if stop():
                return None
            result = self._farm.next(POLL_SECONDS)
            if result is not None and result.ticket in self._tickets:
                slot, member = self._tickets.pop(result.ticket)
                self._trials[slot][member] = result.trial
                if len(self._trials[slot]) == self._size(slot):
                    self._complete.append(slot)
        return self._complete[0] if wanted is None else wanted

    def _size(self, slot: int) -> int:
        return len(self._trials[slot]) + sum(one == slot for one, _ in self._tickets.values())

    def take(self, slot: int) -> tuple[int, Metrics]:
        """Close a slot: its step, and the metrics [B] of its architectures."""
        self._complete.remove(slot)
        found = self._trials.pop(slot)
        rows = [_metrics(found[member], self._metrics) for member in range(len(found))]
        return self.open.pop(slot), {
            name: jnp.asarray(np.array([row[name] for row in rows], np.float32))
            for name in self._metrics}


def _metrics(trial: Trial, names: tuple[str, ...]) -> dict[str, float]:
    if trial.failed:
        return dict.fromkeys(names, math.nan)
    for name in names:
        if not isinstance(trial.metrics.get(name), (int, float)):
            raise ValueError(f"the trial {list(trial.arch)} of {trial.space} has no number "
                             f"{name!r}, only {sorted(trial.metrics)}: name what the work returns.")
    return {name: float(trial.metrics[name]) for name in names}  # type: ignore[arg-type]
