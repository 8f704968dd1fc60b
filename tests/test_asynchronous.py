"""Searches over a farm: the same history for any number of workers, replays, resumption."""

import functools
import heapq
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import asynchronous, farms, objectives, pending, search, trials
from jaxnas.base import Surrogate
from jaxnas.networks.controllers import independent_logits
from jaxnas.search_spaces import Product
from jaxnas.searchers import (GrowingDecisions, NSGA2State, bayesian_optimization, local_search,
                              progressive, random_search, regularized_evolution, reinforce)

SPACE = Product((3,) * 5)
KEY = jax.random.key(3)
OBJECTIVE = objectives.maximize("value")
NUM_STEPS, IN_FLIGHT = 24, 4
FITTED = Surrogate(  # ridge regression on one-hot decisions
    lambda key, archs, fitness, mask: _ridge(archs, fitness, mask),
    lambda model, archs: (_one_hot(archs) @ model, jnp.ones(len(archs))))


def _one_hot(archs):
    return jax.nn.one_hot(archs, 3).reshape(len(archs), -1)


def _ridge(archs, fitness, mask):
    x = _one_hot(archs) * mask[:, None]
    return jnp.linalg.solve(x.T @ x + jnp.eye(15), x.T @ (fitness * mask))


SEARCHERS = {
    "random": random_search(SPACE),
    # 64 entrants of 8: the best is nearly always among them
    "evolution": regularized_evolution(SPACE, population_size=8, tournament_size=64),
    "reinforce": reinforce(independent_logits(SPACE.num_choices), optimizer=optax.adam(0.1)),
    "bayesian": bayesian_optimization(SPACE, capacity=NUM_STEPS, surrogate=FITTED, num_initial=6,
                                      num_random=20, num_parents=2, num_mutants=4),
    "pnas": progressive(GrowingDecisions(SPACE), FITTED, capacity=NUM_STEPS, beam_size=4),
}
SLOW = ("bayesian",)  # compiles for 2 s
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SEARCHERS]


def value(arch):
    """A function of an architecture with one optimum, and failures."""
    total = sum((l + 1) * int(choice) for l, choice in enumerate(arch))
    return float("nan") if total % 7 == 3 else float(total)


def job(arch):
    return farms.Job("toy", tuple(arch.tolist()), {"seed": 0})


class InstantFarm:
    """A farm without processes whose jobs take a time that a generator draws."""

    def __init__(self, workers, seed=0):
        self.workers, self._draw = workers, np.random.default_rng(seed)
        self._queue, self._running, self._now, self.submitted = [], [], 0.0, []

    def submit(self, job):
        ticket = len(self.submitted)
        self.submitted.append(job)
        self._queue.append(ticket)
        return ticket

    def next(self, timeout=None):
        while self._queue and len(self._running) < self.workers:
            heapq.heappush(self._running, (self._now + self._draw.random(), self._queue.pop(0)))
        if not self._running:
            return None
        self._now, ticket = heapq.heappop(self._running)
        arch = self.submitted[ticket].arch
        found = value(arch)
        failed = found != found
        metrics = {} if failed else {"value": found}
        return farms.Result(
            ticket, trials.Trial("toy", arch, {}, metrics, failed, None, 0.0, 1, 0.0), 0, False)


def run(searcher, farm, in_flight=IN_FLIGHT, num_steps=NUM_STEPS, state=None, **options):
    state = asynchronous.init(KEY, searcher, in_flight=in_flight) if state is None else state
    return asynchronous.run(state, searcher, farm, OBJECTIVE, job=job, metrics=("value",),
                            num_steps=num_steps, **options)


def assert_same(first, second):
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        one, other = (jax.random.key_data(leaf) if jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key) else leaf for leaf in (one, other))
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def asked():
    """Return a searcher's last state and its history in order of asking, run once."""
    return functools.cache(lambda name: run(SEARCHERS[name], InstantFarm(2)))


@pytest.mark.parametrize("name", ["evolution", *(pytest.param(name, marks=pytest.mark.slow)
                                                 for name in SEARCHERS if name != "evolution")])
def test_one_in_flight_is_the_loop_on_the_host(name):
    searcher = SEARCHERS[name]
    _, history = run(searcher, InstantFarm(1), in_flight=1)
    _, expected = search.run_on_host(
        jax.jit(functools.partial(search.init, searcher=searcher))(KEY), searcher,
        lambda key, archs: {"value": [value(arch) for arch in archs]}, OBJECTIVE,
        num_steps=NUM_STEPS)
    assert_same(history[:4], tuple(expected))
    np.testing.assert_array_equal(history.steps, np.arange(NUM_STEPS))


@pytest.mark.parametrize("name", NAMES)
def test_order_of_asking_does_not_depend_on_the_workers(name, asked):
    state, history = asked(name)
    again = run(SEARCHERS[name], InstantFarm(4, seed=5))
    assert_same(again, (state, history))
    np.testing.assert_array_equal(history.steps, np.arange(NUM_STEPS))


@pytest.mark.parametrize("name", NAMES)
def test_order_of_finishing_is_replayed(name):
    searcher = SEARCHERS[name]
    state, history = run(searcher, InstantFarm(4, seed=1), order="finished")
    steps = np.asarray(history.steps)
    assert sorted(steps) == list(range(NUM_STEPS)) and (np.diff(steps) < 0).any()
    assert_same(run(searcher, InstantFarm(1), order=steps), (state, history))


def test_founders_are_asked_once_and_children_have_parents_that_finished(asked):
    history = jax.tree.map(np.asarray, asked("evolution")[1])
    archs, fitness = history.archs[:, 0], history.fitness[:, 0]
    founders = SEARCHERS["evolution"].init(jax.random.fold_in(KEY, 0)).archs
    np.testing.assert_array_equal(archs[:8], founders)
    for child in range(8, NUM_STEPS):  # asked when all but the three before it were told
        alive = slice(max(0, child - 3 - 8), child - 3)
        ages = np.flatnonzero(~np.isnan(fitness[alive])) + alive.start
        best = archs[ages][fitness[ages] == fitness[ages].max()]
        assert ((archs[child] != best).sum(-1) == 1).any()


@pytest.mark.slow
def test_bayesian_optimisation_asks_for_nothing_twice(asked):
    archs = np.asarray(asked("bayesian")[1].archs[:, 0])
    assert len(np.unique(archs, axis=0)) == NUM_STEPS


def test_a_level_of_pnas_ends_before_the_next_begins(asked):
    searcher, farm = SEARCHERS["pnas"], InstantFarm(4)
    told = []

    def on_step(state, history):
        told.append(int(history.steps[0]))
        if len(told) < 10:  # the ten of one decision are asked, and nothing more
            assert len(farm.submitted) <= 10

    _, history = run(searcher, farm, order="finished", on_step=on_step)
    sizes = (np.asarray(history.archs)[:, 0] != 0).sum(-1)
    np.testing.assert_array_equal(sizes, [1] * 10 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 2)
    # what was asked in the first levels does not depend on the order of finishing in them, but for
    # the rounding of a fit
    first, second = (np.unique(np.asarray(one.archs)[:14, 0], axis=0)
                     for one in (history, asked("pnas")[1]))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", ["evolution", pytest.param("bayesian", marks=pytest.mark.slow)])
def test_a_resumed_search_goes_on_as_if_it_had_not_stopped(name, asked):
    searcher, parts = SEARCHERS[name], []
    state = None
    for stop_at in (5, 11, NUM_STEPS):
        told = stop_at - sum(len(part.steps) for part in parts)
        count = iter(range(1, NUM_STEPS))
        state, part = run(searcher, InstantFarm(3), state=state,
                          num_steps=NUM_STEPS - (stop_at - told),
                          on_step=lambda *_: next(count) == told)
        parts.append(part)
        state = jax.tree.map(lambda leaf: leaf, state)
    history = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    assert_same((state, history), asked(name))


@pytest.mark.slow
def test_batches_are_told_whole():
    searcher = reinforce(independent_logits(SPACE.num_choices), optimizer=optax.adam(0.1),
                         batch_size=3)
    _, history = run(searcher, InstantFarm(5), in_flight=3, num_steps=8, order="finished")
    assert history.archs.shape == (8, 3, 5)
    expected = [[value(arch) for arch in batch] for batch in np.asarray(history.archs)]
    np.testing.assert_array_equal(history.fitness, expected)


def test_stopping_keeps_what_is_on_its_way():
    searcher = SEARCHERS["random"]
    looks = iter([False] * 6 + [True] * 9)
    state, history = run(searcher, InstantFarm(2), stop=lambda: next(looks))
    assert len(history.steps) < 8 and (np.asarray(state.steps) >= 0).sum() >= IN_FLIGHT - 1
    state, history = run(searcher, InstantFarm(2), stop=lambda: True)
    assert history is None and int(state.asked) == IN_FLIGHT


def test_bad_input_is_refused():
    random = SEARCHERS["random"]
    with pytest.raises(ValueError, match="in_flight must be 1 or more"):
        asynchronous.init(KEY, random, in_flight=0)
    with pytest.raises(TypeError, match="LocalSearchState cannot be asked"):
        asynchronous.init(KEY, local_search(SPACE), in_flight=2)
    for options, message in (
            ({"num_steps": 0}, "num_steps must be 1"), ({"order": "any"}, "order must be one of"),
            ({"order": [0]}, "24 steps at least"), ({"order": [7] * 24}, "step 7 of the replayed")):
        with pytest.raises(ValueError, match=message):
            run(random, InstantFarm(1), **options)
    limited = random._replace(capacity=24)
    with pytest.raises(ValueError, match="capacity must be at least 25"):
        run(limited, InstantFarm(1), num_steps=25)
    with pytest.raises(ValueError, match="no number 'accuracy', only"):
        asynchronous.run(asynchronous.init(KEY, random, in_flight=2), random, InstantFarm(1),
                         OBJECTIVE, job=job, metrics=("accuracy",), num_steps=24)


def test_founders_of_nsga2_are_counted():
    state = NSGA2State(jnp.zeros((4, 5), jnp.int32), jnp.zeros((4, 2)), jnp.int32(0))
    waiting, can_ask = pending.ahead(state, pending.Pending(jnp.int32(4), lambda state: state))
    assert can_ask and waiting.num_evaluated == 4 and state.num_evaluated == 0


# Real processes; the evaluation imports no jax.


def carried(tmp_path, monkeypatch, workers, **options):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "farms"))
    work = farms.Work("farm_gate:make", {"notes": str(tmp_path / "notes"), "pause": 0.02})
    with farms.local_farm(work, tmp_path / f"{workers}.sqlite", workers=workers) as farm:
        searcher = SEARCHERS["evolution"]
        return asynchronous.run(
            asynchronous.init(KEY, searcher, in_flight=IN_FLIGHT), searcher, farm,
            objectives.maximize("number"), job=job, metrics=("number",), num_steps=16, **options)


def test_processes_give_the_same_history_for_1_2_and_4(tmp_path, monkeypatch):
    histories = [carried(tmp_path, monkeypatch, workers)[1] for workers in (1, 2, 4)]
    assert_same(histories[0], histories[1])
    assert_same(histories[0], histories[2])
    np.testing.assert_array_equal(histories[0].fitness, histories[0].archs[:, :, 0])


def test_processes_are_replayed(tmp_path, monkeypatch):
    state, history = carried(tmp_path, monkeypatch, 4, order="finished")
    assert_same(carried(tmp_path, monkeypatch, 2, order=np.asarray(history.steps)),
                (state, history))
