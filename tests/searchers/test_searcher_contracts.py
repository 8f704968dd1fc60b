"""What holds for every searcher on every space."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import checkpoints, fast_keys, mutations, objectives, search
from jaxnas.networks.controllers import independent_logits
from jaxnas.search_spaces import NASBench101, NASBench201, Product
from jaxnas.searchers import (GrowingDecisions, bayesian_optimization, gaussian_process,
                              hamming_kernel, islands, local_search, nsga2, ppo, progressive,
                              random_search, regularized_evolution, reinforce)

SPACES = {"product": Product((2, 3, 1, 4)), "nasbench201": NASBench201(),
          "nasbench101": NASBench101()}


def process(space):
    return gaussian_process(hamming_kernel(space.num_choices), length_scales=(0.4,), noises=(0.1,))


SEARCHERS = {
    "random": lambda space: random_search(space, batch_size=2),
    "evolution": lambda space: regularized_evolution(
        space, population_size=6, tournament_size=2, batch_size=3),
    "nsga2": lambda space: nsga2(space, population_size=6, batch_size=3),
    "islands": lambda space: islands(regularized_evolution(
        space, population_size=4, tournament_size=2, batch_size=2), 2),
    "local": local_search,
    "reinforce": lambda space: reinforce(
        independent_logits(space.num_choices), optimizer=optax.adam(0.1), batch_size=3),
    "ppo": lambda space: ppo(
        independent_logits(space.num_choices), optimizer=optax.adam(0.1), batch_size=4,
        num_epochs=2),
    "bayesian": lambda space: bayesian_optimization(
        space, capacity=21, surrogate=process(space), num_initial=6, num_random=6, num_parents=2,
        num_mutants=2, batch_size=3),
    "progressive": lambda space: progressive(
        GrowingDecisions(space), process(space), capacity=21, beam_size=4, batch_size=3)}
OF_FRONTS = ("nsga2",)  # their fitness is [B, M]
KEYS = [fast_keys.key(seed) for seed in range(9)]


def types_of(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)


@pytest.mark.parametrize("space_name", SPACES)
@pytest.mark.parametrize("name", SEARCHERS)
def test_contract(name, space_name, tmp_path):
    space = SPACES[space_name]
    searcher = SEARCHERS[name](space)

    def ask_and_tell(key, state, failed):
        ask_key, tell_key = jax.random.split(key)
        archs = searcher.ask(ask_key, state)
        valid = jax.vmap(space.is_valid)(archs)
        in_range = jax.vmap(lambda arch: mutations.is_valid(arch, space.num_choices))(archs)
        fitness = jnp.where(failed, jnp.nan, archs.mean(-1))
        if name in OF_FRONTS:
            fitness = jnp.stack([fitness, -archs[:, 0].astype(jnp.float32)], axis=-1)
        return archs, valid, in_range, *searcher.tell(tell_key, state, archs, fitness)

    step = jax.jit(chex.assert_max_traces(ask_and_tell, n=1))
    init = jax.jit(searcher.init)
    state = init(KEYS[0])
    start = jax.device_get(state)
    # three batches, of which the second fails altogether, then three again
    for key, failed in zip(KEYS[1:7], (False, True, False, True, False, False)):
        archs, valid, in_range, new, info = step(key, state, failed)
        chex.assert_shape(archs, (searcher.batch_size, len(space.num_choices)))
        assert archs.dtype == jnp.int32 and in_range.all()
        if name not in ("local", "reinforce", "ppo") or space_name != "nasbench101":
            # what asks decision by decision meets what no such cell is; it counts as failed
            assert valid.all()
        assert types_of(new) == types_of(state)
        chex.assert_shape(list(info.values()), ())
        chex.assert_trees_all_equal(step(key, state, failed)[3], new)
        assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(jax.device_get(new)))
        if name in ("reinforce", "ppo") and failed:
            chex.assert_trees_all_equal(new, state)
        state = new
    chex.assert_trees_all_equal(init(KEYS[0]), start)
    checkpoints.save(tmp_path, 6, state, {})
    restored = checkpoints.restore(tmp_path, start).state
    chex.assert_trees_all_equal(step(KEYS[7], restored, False), step(KEYS[7], state, False))


EASY, TARGET = Product((4,) * 8), np.array([3, 1, 0, 2, 2, 0, 1, 3], np.int32)


@functools.lru_cache
def best_of(name):
    """Return the best fitness of 16 searches of 400 evaluations; the optimum is 1."""
    searcher = {
        "random": lambda: random_search(EASY),
        "evolution": lambda: regularized_evolution(EASY, population_size=20, tournament_size=5),
        "local": lambda: local_search(EASY),
        "nsga2": lambda: nsga2(EASY, num_objectives=1, population_size=20),
        "reinforce": lambda: reinforce(
            independent_logits(EASY.num_choices), optimizer=optax.adam(0.1), batch_size=4),
        "ppo": lambda: ppo(
            independent_logits(EASY.num_choices), optimizer=optax.adam(0.1), batch_size=10)}[name]()

    def evaluate(key, archs):
        return {"matches": jnp.mean(archs == TARGET, axis=-1)}

    objective = objectives.maximize("matches")
    if name in OF_FRONTS:
        objective = objectives.vector(objective)
    history = jax.jit(jax.vmap(lambda key: search.run(
        key, searcher, evaluate, objective,
        num_steps=400 // searcher.batch_size)))(jax.random.split(KEYS[8], 16))
    return np.asarray(history.fitness).reshape(16, -1).max(axis=1)


@pytest.mark.parametrize("name", ["evolution", "local", "nsga2", "reinforce", "ppo"])
def test_every_searcher_beats_random_search(name):
    by_chance = best_of("random")
    assert 0.7 < by_chance.mean() < 0.8  # six matches of eight, expected 1.7 times in 400
    found = best_of(name)
    assert found.mean() > by_chance.mean() + 0.15
    assert (found > by_chance).mean() >= 14 / 16 and found.max() == 1
