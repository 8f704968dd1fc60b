"""Islands: each is the searcher alone, and each can have a target of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import fast_keys, search
from jaxnas.objectives import mnasnet_reward
from jaxnas.search_spaces import Product
from jaxnas.searchers import islands, regularized_evolution

SPACE = Product((4,) * 5)
EVOLUTION = regularized_evolution(SPACE, population_size=6, tournament_size=3, batch_size=2)
KEY = fast_keys.key(3)


def test_every_island_is_a_search_of_its_own():
    together = islands(EVOLUTION, 3)
    assert together.batch_size == 6 and together.capacity is None
    assert islands(EVOLUTION._replace(capacity=10), 3).capacity == 30
    ask, tell = jax.jit(together.ask), jax.jit(together.tell)
    ask_one, tell_one = jax.jit(EVOLUTION.ask), jax.jit(EVOLUTION.tell)
    state = jax.jit(together.init)(KEY)
    alone = [EVOLUTION.init(key) for key in jax.random.split(KEY, 3)]
    for step in range(6):
        key = jax.random.fold_in(KEY, step)
        keys = jax.random.split(key, 3)
        archs = ask(key, state)
        fitness = archs.sum(-1).astype(jnp.float32)
        state, info = tell(key, state, archs, fitness)
        bests = []
        for island in range(3):
            rows = slice(island, None, 3)
            np.testing.assert_array_equal(archs[rows], ask_one(keys[island], alone[island]))
            alone[island], one = tell_one(keys[island], alone[island], archs[rows], fitness[rows])
            bests.append(float(one["population_best"]))
        np.testing.assert_allclose(info["population_best"], np.mean(bests))
    assert len({np.asarray(archs[row]).tobytes() for row in range(3)}) > 1


def test_every_island_has_a_target_of_its_own():
    # Accuracy grows with latency, both from 1 to 16: up to a target the reward is the accuracy, and
    # above it falls about as target ** 2 / latency. Its only optimum is at the target.
    def evaluate(key, archs):
        size = 1.0 + archs.sum(-1)
        return {"accuracy": size ** 0.99, "latency": size}

    targets = np.array([4.0, 8.0, 12.0], np.float32)
    together = islands(EVOLUTION, 3)
    objective = mnasnet_reward(
        "accuracy", "latency", target=np.tile(targets, 2), exponent=(0.0, -2.0))
    history = jax.jit(lambda key: search.run(
        key, together, evaluate, objective, num_steps=100))(KEY)
    fitness = np.asarray(history.fitness).reshape(100, 2, 3)
    latency = np.asarray(history.metrics["latency"]).reshape(100, 2, 3)
    for island, target in enumerate(targets):
        best = fitness[..., island].argmax()
        assert latency[..., island].ravel()[best] == target


def test_no_islands_are_refused():
    with pytest.raises(ValueError, match="count must be 1 or more, got 0"):
        islands(EVOLUTION, 0)
