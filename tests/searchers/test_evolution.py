"""Regularised evolution against a plain loop with the same random choices, and on the paper's toy.
"""

import collections
import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import draws, fast_keys, objectives, search
from jaxnas.search_spaces import Product
from jaxnas.searchers import EvolutionState, random_search, regularized_evolution

SPACE = Product((3, 1, 4, 2, 5))
POPULATION, TOURNAMENT, STEPS = 12, 4, 90
KEY = fast_keys.key(1)


def evaluate(key, archs):
    """Score archs by their sum, in few values so that there are ties; a fifth fails."""
    failed = jax.random.bernoulli(key, 0.2, archs.shape[:1])
    return {"score": jnp.where(failed, jnp.nan, archs.sum(-1).astype(jnp.float32) // 2)}


@functools.lru_cache
def history_of(removal, batch_size):
    searcher = regularized_evolution(
        SPACE, population_size=POPULATION, tournament_size=TOURNAMENT, batch_size=batch_size,
        removal=removal)
    return jax.device_get(jax.jit(lambda key: search.run(
        key, searcher, evaluate, objectives.maximize("score"), num_steps=STEPS))(KEY))


@jax.jit
def founders_of(key):
    keys = jax.random.split(jax.random.fold_in(key, 0), POPULATION)
    return jax.vmap(SPACE.sample)(keys)


@functools.partial(jax.jit, static_argnums=1)
def choices_of(key, batch_size):
    """Return what each child draws: entrants [T, B, S], and its mutation of any parent."""
    def of_step(step):
        key_of_step = search.step_keys(key, step)[0]
        keys = key_of_step[None] if batch_size == 1 else jax.random.split(key_of_step, batch_size)
        select_keys, mutate_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        entrants = jax.vmap(lambda key: jnp.stack(
            draws.indices(key, (POPULATION,) * TOURNAMENT)))(select_keys)
        return entrants, mutate_keys

    return jax.vmap(of_step)(jnp.arange(STEPS))


mutate = jax.jit(SPACE.mutate)


@pytest.mark.parametrize("removal, batch_size", [("oldest", 1), ("worst", 1), ("oldest", 4)])
def test_it_is_the_plain_loop(removal, batch_size):
    history = history_of(removal, batch_size)
    entrants, mutate_keys = choices_of(KEY, batch_size)
    entrants = np.asarray(entrants)
    founders = collections.deque(np.asarray(founders_of(KEY)).tolist())
    places = [None] * POPULATION   # (arch, fitness) by place; a newcomer takes the place it frees
    by_age = collections.deque()   # places, the oldest first
    parents_failed = 0
    for step in range(STEPS):
        asked = []
        for number in range(batch_size):
            if founders:
                asked.append(founders.popleft())
                continue
            rivals = [places[place] for place in entrants[step, number]]
            parent, fitness = max(rivals, key=lambda member: member[1])  # the first of equals
            if fitness == -np.inf:
                parents_failed += 1
                assert all(rival[1] == -np.inf for rival in rivals)
            asked.append(mutate(mutate_keys[step, number], np.array(parent, np.int32)).tolist())
        assert asked == history.archs[step].tolist()
        for arch, fitness in zip(asked, history.fitness[step].tolist()):
            if None in places:
                place = places.index(None)
            elif removal == "oldest":
                place = by_age.popleft()
            else:
                place = min(range(POPULATION), key=lambda place: places[place][1])
                by_age.remove(place)
            places[place] = arch, -np.inf if np.isnan(fitness) else fitness
            by_age.append(place)
        alive = [member[1] for member in places if member and member[1] > -np.inf]
        assert history.info["population_best"][step] == max(alive, default=-np.inf)
        np.testing.assert_allclose(
            history.info["population_mean"][step], np.mean(alive) if alive else np.nan, rtol=1e-5)
    assert len(by_age) == POPULATION and parents_failed < 0.05 * STEPS * batch_size
    assert np.isnan(history.fitness).mean() > 0.1


@pytest.mark.parametrize("batch_size", [1, 4])
def test_children_differ_in_one_decision_from_one_of_the_youngest(batch_size):
    archs = history_of("oldest", batch_size).archs.reshape(-1, 5)
    np.testing.assert_array_equal(archs[:POPULATION], founders_of(KEY))
    for number in range(POPULATION, len(archs)):
        batch = number // batch_size * batch_size  # the population before this batch
        members = archs[batch - POPULATION : batch]
        assert ((members != archs[number]).sum(1) == 1).any()


def told(searcher, state, *steps):
    for archs, fitness in steps:
        state, info = searcher.tell(None, state, jnp.array(archs, jnp.int32), jnp.array(fitness))
    return state, info


def test_the_oldest_leaves_and_the_worst_leaves():
    population = EvolutionState(jnp.array([[0], [1], [2], [3]], jnp.int32),
                                jnp.array([5.0, 1.0, -jnp.inf, 2.0]), jnp.int32(4))
    oldest = regularized_evolution(Product((9,)), population_size=4, tournament_size=2)
    state, _ = told(oldest, population, ([[7]], [0.5]))
    assert state.archs[:, 0].tolist() == [7, 1, 2, 3]  # however fit it was
    state, info = told(oldest, state, ([[8]], [jnp.nan]))
    assert state.archs[:, 0].tolist() == [7, 8, 2, 3]
    assert state.fitness.tolist() == [0.5, -np.inf, -np.inf, 2.0]
    assert (info["population_best"], info["population_mean"]) == (2.0, 1.25)
    worst = regularized_evolution(
        Product((9,)), population_size=4, tournament_size=2, removal="worst", batch_size=2)
    state, _ = told(worst, population, ([[7], [8]], [9.0, jnp.nan]))
    assert state.archs[:, 0].tolist() == [0, 8, 7, 3]
    assert state.fitness.tolist() == [5.0, -np.inf, 9.0, 2.0]
    assert state.num_evaluated == 6


def test_a_failure_is_no_parent_unless_all_have_failed():
    # 40 entrants of 4 miss one member once in 100,000 times.
    space = Product((2,) * 12)
    searcher = regularized_evolution(space, population_size=4, tournament_size=40)
    archs = jnp.array([[0] * 12, [1] * 12, [0, 1] * 6, [1, 1, 0] * 4], jnp.int32)
    ask = jax.jit(jax.vmap(searcher.ask, (0, None)))
    keys = jax.random.split(KEY, 200)

    def parents(fitness):
        state = EvolutionState(archs, jnp.array(fitness, jnp.float32), jnp.int32(40))
        distance = (ask(keys, state) != archs).sum(-1)  # [200, 4]
        assert ((distance == 1).sum(1) == 1).all()
        return np.bincount(np.asarray(distance == 1).argmax(1), minlength=4)

    inf = np.inf
    assert parents([-inf, -inf, -7.0, -inf]).tolist() == [0, 0, 200, 0]
    assert parents([1.0, 2.0, 0.0, -inf]).tolist() == [0, 200, 0, 0]
    assert parents([-inf] * 4).min() > 25  # the first entrant: uniform


# The toy of the authors' notebook: strings of 100 bits, fitness the fraction of ones with noise
# N(0, 0.01), 1,000 evaluations, P = 100. Means over 20 runs and their ranges are those of plain
# Python versions of it (60 runs for the range of "worst"); here, too, 20 runs.
BITS = types.SimpleNamespace(  # as Product((2,) * 100), which takes five times longer to compile
    sample=lambda key: jax.random.bernoulli(key, 0.5, (100,)).astype(jnp.int32),
    mutate=lambda key, arch: arch ^ (jnp.arange(100) == jax.random.randint(key, (), 0, 100)))


def fraction_of_ones(key, archs):
    true = archs.mean(-1)
    noise = 0.01 * jax.random.normal(key, true.shape)
    return {"noisy": jnp.clip(true + noise, 0, 1), "true": true}


def toy(searcher):
    """Return the mean of the last 100 and the best of all, each [20], of the true values."""
    run = jax.jit(jax.vmap(lambda key: search.run(
        key, searcher, fraction_of_ones, objectives.maximize("noisy"), num_steps=1000)))
    true = np.asarray(run(jax.random.split(KEY, 20)).metrics["true"])[..., 0]
    return true[:, -100:].mean(1), true.max(1)


@pytest.mark.parametrize("tournament_size, removal, last, last_range, best, best_range", [
    (10, "oldest", 0.871, (0.81, 0.92), 0.902, (0.86, 0.95)),
    (10, "worst", 0.865, (0.81, 0.92), 0.895, (0.84, 0.96)),
    (25, "oldest", 0.929, (0.90, 0.96), 0.956, (0.93, 0.99)),
    (2, "oldest", 0.688, (0.66, 0.73), 0.734, (0.69, 0.78))])
def test_the_notebooks_toy(tournament_size, removal, last, last_range, best, best_range):
    found_last, found_best = toy(regularized_evolution(
        BITS, population_size=100, tournament_size=tournament_size, removal=removal))
    assert abs(found_last.mean() - last) < 0.015 and abs(found_best.mean() - best) < 0.02
    margin = 0.02  # ranges of 20 runs are themselves random
    for values, (low, high) in ((found_last, last_range), (found_best, best_range)):
        assert low - margin < values.min() and values.max() < high + margin


def test_a_tournament_of_one_selects_nothing():
    last, best = toy(regularized_evolution(BITS, population_size=100, tournament_size=1))
    assert abs(last.mean() - 0.5) < 0.02 and best.mean() < 0.66  # children are like their parents
    assert last.std() > 0.008  # it drifts: independent archs would give 0.005


def test_the_notebooks_toy_by_random_search():
    last, best = toy(random_search(BITS))
    assert abs(last.mean() - 0.5) < 0.005
    assert 0.63 <= best.min() and best.max() <= 0.70 and abs(best.mean() - 0.66) < 0.01


def test_published_settings_and_a_tournament_above_the_population():
    searcher = regularized_evolution(SPACE)
    assert searcher.batch_size == 1
    state = jax.eval_shape(searcher.init, KEY)
    chex.assert_shape(state.archs, (100, 5))
    assert regularized_evolution(SPACE, population_size=2, tournament_size=5).batch_size == 1


@pytest.mark.parametrize("options, message", [
    ({"population_size": 0}, r"population_size must be in \[1, 65536\], got 0"),
    ({"population_size": 70_000}, r"population_size must be in \[1, 65536\], got 70000"),
    ({"tournament_size": 0}, "tournament_size must be 1 or more, got 0"),
    ({"batch_size": 0}, "batch_size must divide population_size, got 0 and 100"),
    ({"batch_size": 30}, "batch_size must divide population_size, got 30 and 100"),
    ({"removal": "best"}, r"removal must be one of \('oldest', 'worst'\), got 'best'")])
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        regularized_evolution(SPACE, **options)
