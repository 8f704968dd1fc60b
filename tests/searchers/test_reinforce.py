"""REINFORCE: its expectation against an exact gradient, its steps against hand-worked ones."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import encodings, mutations
from jaxnas.networks.controllers import independent_logits, lstm_controller
from jaxnas.searchers.reinforce import reinforce

SMALL = (3, 2)
KEY = jax.random.key(0)
POLICIES = {"independent": independent_logits(SMALL, scale=1.0),
            "lstm": lstm_controller(SMALL, hidden_size=3, num_layers=1, init_range=2.0)}


def reward(archs):
    return jnp.array([1.0, 3.0, 2.0, 0.5, 2.5, 4.0])[encodings.flat_index(archs, SMALL)]


@pytest.mark.parametrize("name, baseline, options, factor", [
    ("independent", 0.0, {"baseline_decay": 1.0}, 1.0),  # no baseline
    ("independent", 2.0, {"baseline_first": False}, 1.0),
    ("independent", 2.0, {"baseline_first": True, "baseline_decay": 0.6}, 1 - 0.4 / 4),
    ("independent", 0.0, {"baseline_init": "first"}, 1 - 1 / 4),
    ("lstm", 0.0, {"baseline_decay": 1.0}, 1.0),
    ("lstm", 2.0, {"baseline_first": True, "baseline_decay": 0.6}, 1 - 0.4 / 4)])
def test_mean_step_is_the_exact_gradient(name, baseline, options, factor):
    # With sgd(1) a step is the estimate itself. Its expectation is `factor` times the gradient of
    # E[R], which is a sum over all archs; B = 4.
    policy = POLICIES[name]
    searcher = reinforce(policy, optimizer=optax.sgd(1.0), batch_size=4, **options)
    archs = encodings.from_flat_index(jnp.arange(6), SMALL)

    def expected_reward(params):
        log_probs = jax.vmap(policy.log_prob, in_axes=(None, 0))(params, archs).sum(-1)
        return jnp.sum(jnp.exp(log_probs) * reward(archs))

    @jax.jit
    def run(keys):
        state = searcher.init(jax.random.key(1))._replace(baseline=jnp.float32(baseline))

        def step(key):
            asked = searcher.ask(key, state)
            after, _ = searcher.tell(KEY, state, asked, reward(asked))
            return jax.tree.map(jnp.subtract, after.params, state.params)

        steps = jax.tree.leaves(jax.vmap(step)(keys))
        return jax.tree.leaves(jax.grad(expected_reward)(state.params)), steps

    exact, steps = run(jax.random.split(jax.random.key(2), 8000))
    exact = np.concatenate([np.ravel(leaf) for leaf in exact]) * factor
    steps = np.concatenate([leaf.reshape(8000, -1) for leaf in steps], axis=1)
    error = steps.std(axis=0) / np.sqrt(len(steps))
    used = error > 1e-7
    np.testing.assert_allclose(exact[~used], 0, atol=1e-6)
    deviations = (steps.mean(axis=0) - exact)[used] / error[used]
    assert np.abs(deviations).max() < 4
    # A gradient without the factor, or of the other sign, would be found out.
    assert np.linalg.norm(exact) > 20 * np.median(error[used])


def test_two_steps_by_hand():
    # One decision, two equal choices: d log P(0) / d logits = (1/2, -1/2).
    policy = independent_logits((2,), scale=0.0)

    def steps(**options):
        """Return the logits after fitness 10, and after 20 from equal logits again; infos."""
        searcher = reinforce(policy, optimizer=optax.sgd(1.0), **options)
        state, found = searcher.init(KEY), []
        for fitness in (10.0, 20.0):
            state = state._replace(params=jnp.zeros((1, 2)))
            state, info = searcher.tell(
                KEY, state, jnp.zeros((1, 1), jnp.int32), jnp.array([fitness]))
            found.append((state.params[0], info))
        return found

    cases = (
        # b: 0.9 * 0 + 0.1 * 10 = 1, then 0.9 * 1 + 0.1 * 20 = 2.9
        ({}, (9, 17.1), (1, 2.9)),
        ({"baseline_first": False}, (10, 19), (1, 2.9)),
        # b starts at 10: 0.9 * 10 + 0.1 * 20 = 11
        ({"baseline_init": "first"}, (0, 9), (10, 11)),
        ({"baseline_init": "first", "baseline_first": False}, (0, 10), (10, 11)))
    results = jax.jit(lambda: [steps(**options) for options, *_ in cases])()
    for result, (_, advantages, baselines) in zip(results, cases):
        for (logits, info), advantage, baseline in zip(result, advantages, baselines):
            np.testing.assert_allclose(logits, (advantage / 2, -advantage / 2), rtol=1e-6)
            np.testing.assert_allclose(info["advantage"], advantage, rtol=1e-6)
            np.testing.assert_allclose(info["baseline"], baseline, rtol=1e-6)
            np.testing.assert_allclose(info["entropy"], np.log(2), rtol=1e-6)


def test_entropy_weight_adds_the_entropy_gradient():
    policy = POLICIES["independent"]
    archs = encodings.from_flat_index(jnp.arange(4), SMALL)

    def step(weight):
        searcher = reinforce(policy, optimizer=optax.sgd(1.0), entropy_weight=weight)
        state = searcher.init(KEY)
        return searcher.tell(KEY, state, archs, reward(archs))[0].params, state.params

    (with_entropy, params), (without, _) = jax.jit(lambda: (step(0.3), step(0.0)))()
    logits = [np.asarray(row[:n], np.float64) for row, n in zip(params, SMALL)]
    expected = np.zeros((2, 3))
    for l, row in enumerate(logits):  # dH / dlogit_k = -p_k (log p_k + H)
        log_p = row - np.log(np.exp(row).sum())
        p = np.exp(log_p)
        expected[l, : len(row)] = -p * (log_p - np.sum(p * log_p))
    np.testing.assert_allclose(with_entropy - without, 0.3 * expected, atol=1e-6)


@pytest.mark.parametrize("options", [
    {}, {"baseline_init": "first", "baseline_first": False, "entropy_weight": 0.1}])
def test_failures_leave_no_trace(options):
    searcher = reinforce(POLICIES["lstm"], optimizer=optax.adam(0.1), batch_size=4, **options)
    tell = jax.jit(functools.partial(searcher.tell, KEY))
    archs = jnp.array([[0, 0], [2, 1], [1, 0], [1, 1]], jnp.int32)
    state = jax.jit(searcher.init)(KEY)
    failed = jnp.array([jnp.nan, jnp.nan, jnp.inf, -jnp.inf])
    nothing, info = tell(state, archs, failed)
    chex.assert_trees_all_equal(nothing, state)
    chex.assert_tree_all_finite(info)
    for _ in range(2):  # a fresh state, then one with moments
        all_told, info = tell(state, archs, jnp.array([1.0, jnp.nan, 3.0, -jnp.inf]))
        few_told, _ = tell(state, archs[::2], jnp.array([1.0, 3.0]))
        chex.assert_trees_all_close(all_told, few_told, rtol=1e-5, atol=1e-7)
        assert all_told.num_evaluated == state.num_evaluated + 2
        chex.assert_tree_all_finite((all_told, info))
        assert jnp.any(all_told.params["lstm"] != state.params["lstm"])
        state = all_told
    chex.assert_trees_all_equal(tell(state, archs, failed)[0], state)


NUM_CHOICES, TARGET = (4,) * 8, jnp.array([3, 1, 0, 2, 2, 0, 1, 3])


def search(searcher, key, num_steps, fitness=lambda archs: jnp.mean(archs == TARGET, axis=-1)):
    """Return the final state, and the fitness [num_steps, B] of all that was evaluated."""
    init_key, key = jax.random.split(key)

    def step(state, key):
        archs = searcher.ask(key, state)
        values = fitness(archs)
        return searcher.tell(key, state, archs, values)[0], values

    return jax.lax.scan(step, searcher.init(init_key), jax.random.split(key, num_steps))


def random_best(num_seeds, budget):
    keys = jax.random.split(jax.random.key(9), num_seeds * budget)
    archs = jax.jit(jax.vmap(lambda key: mutations.sample(key, NUM_CHOICES)))(keys)
    return jnp.mean(archs == TARGET, axis=-1).reshape(num_seeds, budget).max(-1)


@pytest.mark.parametrize("policy, rate, batch_size", [
    (independent_logits(NUM_CHOICES), 0.1, 1),
    (lstm_controller(NUM_CHOICES, hidden_size=16, num_layers=1), 0.02, 8),
], ids=["independent", "lstm"])
def test_it_learns_what_random_search_does_not_find(policy, rate, batch_size):
    searcher = reinforce(policy, optimizer=optax.adam(rate), batch_size=batch_size)
    keys = jax.random.split(jax.random.key(3), 16)
    num_steps = 400 // batch_size
    _, fitness = jax.jit(jax.vmap(lambda key: search(searcher, key, num_steps)))(keys)
    fitness = fitness.reshape(16, -1)
    best_of_random = random_best(16, 400).mean()  # 0.76
    assert fitness[:, :8].mean() < 0.35  # 1/4 by chance
    assert fitness[:, -20:].mean() > best_of_random + 0.1
    assert fitness.max(-1).mean() > best_of_random + 0.2


def test_one_trace_and_jit_changes_nothing_but_rounding():
    searcher = reinforce(POLICIES["independent"], optimizer=optax.adam(0.1), batch_size=3)
    keys = jax.random.split(jax.random.key(5), 4)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(key, state):
        archs = searcher.ask(key, state)
        chex.assert_shape(archs, (searcher.batch_size, 2))
        return archs, *searcher.tell(key, state, archs, reward(archs))

    first = state = jax.jit(searcher.init)(KEY)
    for key in keys:
        archs, state, info = step(key, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(first, state)
    assert jax.tree.map(lambda leaf: leaf.weak_type, first) == (
        jax.tree.map(lambda leaf: leaf.weak_type, state))
    assert info.keys() == {"baseline", "advantage", "entropy"}
    chex.assert_shape(list(info.values()), ())
    eager_archs = searcher.ask(keys[0], state)
    np.testing.assert_array_equal(eager_archs, step(keys[0], state)[0])
    eager_state, eager_info = searcher.tell(KEY, state, eager_archs, reward(eager_archs))
    _, state, info = step(keys[0], state)
    # Adam divides by the gradient's own size, so rounding shows where a gradient is nearly zero.
    chex.assert_trees_all_close((eager_state, eager_info), (state, info), rtol=1e-4, atol=1e-5)


def test_hyper_parameters_can_be_tracers():
    def final(rate, decay, weight):
        searcher = reinforce(independent_logits(NUM_CHOICES), optimizer=optax.adam(rate),
                             batch_size=2, baseline_decay=decay, entropy_weight=weight)
        return search(searcher, KEY, 10)[0]

    values = jnp.array([[0.01, 0.9, 0.0], [0.1, 0.5, 0.2]])
    together = jax.jit(jax.vmap(final))(*values.T)
    for index, row in enumerate(values.tolist()):
        alone = jax.jit(lambda: final(*row))()
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf: leaf[index], together), alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options, message", [
    ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
    ({"baseline_decay": 1.5}, r"baseline_decay must be in \[0, 1\], got 1.5"),
    ({"baseline_init": "mean"}, "baseline_init must be one of .*'first'.*got 'mean'"),
    ({"entropy_weight": -1.0}, "entropy_weight must be 0 or more, got -1")])
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        reinforce(POLICIES["independent"], optimizer=optax.sgd(1.0), **options)
