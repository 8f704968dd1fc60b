"""Bayesian optimisation: memory of what was asked, the model, what is promising, both phases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnas import fast_keys, objectives, search
from jaxnas.base import Surrogate
from jaxnas.search_spaces import NASBench201, Product
from jaxnas.searchers import (GrowingDecisions, bayesian_optimization, feature_kernel,
                              gaussian_process, hamming_kernel, observations, progressive,
                              random_search, upper_confidence_bound)
from jaxnas.searchers.conditionals import only_if

KEY = fast_keys.key(0)
SPACE = Product((3,) * 4)
ARCHS = np.stack(np.unravel_index(np.arange(81), (3,) * 4), -1).astype(np.int32)


def test_kernels_are_positive_definite_and_one_on_the_diagonal():
    for kernel in (hamming_kernel((3,) * 4), feature_kernel(lambda archs: archs / 2.0)):
        gram = np.asarray(kernel(ARCHS, ARCHS, jnp.float32(0.4)), np.float64)
        np.testing.assert_allclose(np.diagonal(gram), 1, rtol=1e-6)
        np.testing.assert_allclose(gram, gram.T)
        assert np.linalg.eigvalsh(gram).min() > -1e-5
    # three of four decisions differ
    value = hamming_kernel((3,) * 4)(ARCHS[:1], jnp.array([[0, 1, 2, 1]]), jnp.float32(0.5))
    np.testing.assert_allclose(value, [[np.exp(-3 / (4 * 0.5))]], rtol=1e-6)


def test_process_learns_from_half_of_a_space():
    fitness = (ARCHS @ np.array([4.0, 2.0, 1.0, 0.0])).astype(np.float32) * 10 + 50
    order = np.random.default_rng(0).permutation(81)
    mask = np.zeros(81, bool)
    mask[:40] = True
    surrogate = gaussian_process(hamming_kernel((3,) * 4))
    model = jax.jit(surrogate.fit)(KEY, jnp.asarray(ARCHS[order]), jnp.asarray(
        np.where(mask, fitness[order], np.nan), jnp.float32), jnp.asarray(mask))
    mean, std = jax.jit(surrogate.predict)(model, jnp.asarray(ARCHS[order]))
    assert stats.spearmanr(mean[40:], fitness[order][40:])[0] > 0.9
    np.testing.assert_allclose(mean[:40], fitness[order][:40], atol=12)  # of a range of 140
    assert np.asarray(std)[:40].mean() < np.asarray(std)[40:].mean() and (std > 0).all()
    with pytest.raises(ValueError, match="noises must be one or more numbers above 0"):
        gaussian_process(hamming_kernel((3,) * 4), noises=(0.0,))


def test_normal_scores():
    fitness = jnp.array([3.0, 9.9, -jnp.inf, 1.0, 3.0, jnp.nan])
    mask = jnp.array([True, False, True, True, True, False])
    scores = observations.normal_scores(fitness, mask)
    # ranks of -inf, 1, 3, 3 of four: quantiles 1/8, 3/8, 3/4, 3/4
    expected = stats.norm.ppf([0.75, 0.5, 0.125, 0.375, 0.75, 0.5])
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert (observations.normal_scores(fitness, jnp.zeros(6, bool)) == 0).all()


def test_memory():
    memory = observations.empty(3, 4)
    memory = observations.add(memory, jnp.asarray(ARCHS[5:7]), jnp.array([1.0, jnp.nan]))
    np.testing.assert_array_equal(memory.fitness, [1.0, -np.inf, -np.inf])
    np.testing.assert_array_equal(memory.mask, [True, True, False])
    rows = jnp.asarray(ARCHS[[0, 5, 8, 8, 9]])  # the empty row is no observation of 0-0-0-0
    new = observations.is_new(memory, rows, SPACE.num_choices,
                              jnp.array([True, True, True, True, False]))
    np.testing.assert_array_equal(new, [True, False, True, False, False])
    full = observations.add(memory, jnp.asarray(ARCHS[10:12]), jnp.array([2.0, 3.0]))
    assert full.num_evaluated == 4 and full.fitness[2] == 2.0  # the fourth has no room


def test_only_if_computes_for_the_rows_that_need_it():
    run = jax.jit(jax.vmap(lambda x: only_if(x > 0, lambda: 1 / x, jnp.float32(-1))))
    np.testing.assert_allclose(run(jnp.array([2.0, 0.0, 4.0])), [0.5, -1, 0.25])


def test_everything_is_asked_once_until_nothing_is_left():
    space = Product((2, 2, 3))  # 12
    searcher = bayesian_optimization(space, capacity=14, num_initial=4, num_random=80,
                                     num_parents=2, num_mutants=4)
    history = jax.jit(lambda key: search.run(
        key, searcher, lambda key, archs: {"f": jnp.sum(archs, -1, dtype=jnp.float32)},
        objectives.maximize("f"), num_steps=14))(KEY)
    flat = np.asarray(history.archs)[:, 0] @ np.array([6, 3, 1])
    assert len(set(flat[:12].tolist())) == 12
    assert history.info["best"][-1] == 4 and history.info["observed"][-1] == 14


def test_batches_hold_different_networks_of_a_redundant_space():
    space = NASBench201()
    searcher = bayesian_optimization(
        space, capacity=60, num_initial=12, batch_size=6, num_parents=3, num_mutants=4,
        acquisition=upper_confidence_bound())
    history = jax.jit(lambda key: search.run(
        key, searcher, lambda key, archs: {"f": jnp.where(
            archs[:, 0] == 1, jnp.nan, (archs == 3).sum(-1).astype(jnp.float32))},
        objectives.maximize("f"), num_steps=10))(KEY)
    archs = np.asarray(history.archs).reshape(60, 6)
    assert len(np.unique(jax.vmap(space.canonical)(archs), axis=0)) == 60
    failed = np.isnan(np.asarray(history.fitness))
    assert failed[:2].any() and failed[5:].mean() < failed[:2].mean()  # it learns what fails


def test_maximises_the_acquisition_over_the_candidates():
    # A surrogate that knows the answer: whatever is best among the candidates must be asked for.
    known = Surrogate(lambda key, archs, fitness, mask: jnp.float32(0),
                      lambda model, archs: (jnp.sum(archs, -1) / 1.0, jnp.zeros(len(archs))))
    searcher = bayesian_optimization(SPACE, capacity=10, surrogate=known, num_initial=2,
                                     num_random=400, acquisition=upper_confidence_bound())
    history = jax.jit(lambda key: search.run(
        key, searcher, lambda key, archs: {"f": jnp.zeros(len(archs))}, objectives.maximize("f"),
        num_steps=7))(KEY)
    sums = np.asarray(history.archs)[2:, 0].sum(-1)
    assert sorted(sums.tolist(), reverse=True) == sums.tolist() and sums[0] == 8  # 2-2-2-2


@pytest.mark.parametrize("name", ["bayesian", "progressive"])
def test_beats_random_search_at_60_evaluations(name):
    space, target = Product((4,) * 8), np.array([3, 1, 0, 2, 2, 0, 1, 3], np.int32)
    surrogate = gaussian_process(hamming_kernel(space.num_choices), length_scales=(0.4,),
                                 noises=(0.1,))
    searchers = {
        "random": random_search(space, batch_size=6),
        "bayesian": bayesian_optimization(space, capacity=60, surrogate=surrogate, num_initial=12,
                                          batch_size=6),
        # 24 of size 1, then 6 of every size
        "progressive": progressive(GrowingDecisions(space), surrogate, capacity=60, beam_size=50,
                                   level_size=6, batch_size=6)}

    def best(searcher):
        history = jax.jit(jax.vmap(lambda key: search.run(
            key, searcher, lambda key, archs: {"f": jnp.mean(archs == target, axis=-1)},
            objectives.maximize("f"), num_steps=10)))(jax.random.split(KEY, 8))
        return np.asarray(history.fitness).max(axis=(1, 2))

    by_chance, found = best(searchers["random"]), best(searchers[name])
    assert 0.5 < by_chance.mean() < 0.75 and found.mean() > by_chance.mean() + 0.1
    assert (found >= by_chance).all()


@pytest.mark.parametrize("options, message", [
    ({"capacity": 0}, "capacity must be the number of evaluations"),
    ({"num_initial": 1}, "num_initial must be 2 or more"),
    ({"num_mutants": 3}, "num_mutants must be even"),
    ({"batch_size": 200, "capacity": 500}, "num_random must be at least batch_size")])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        bayesian_optimization(SPACE, **{"capacity": 50, **options})


def test_a_search_that_has_no_room_is_refused_before_it_compiles():
    searcher = bayesian_optimization(SPACE, capacity=9)
    with pytest.raises(ValueError, match="capacity must be at least 10"):
        search.run(KEY, searcher, None, None, num_steps=10)
