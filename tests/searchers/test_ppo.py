"""PPO: its first epoch is REINFORCE's step, its clipping is worked by hand."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import mutations
from jaxnas.networks.controllers import independent_logits, lstm_controller
from jaxnas.searchers.ppo import ppo
from jaxnas.searchers.reinforce import reinforce

KEY = jax.random.key(0)
SMALL = (3, 2, 4)
POLICIES = {"independent": independent_logits(SMALL, scale=1.0),
            "lstm": lstm_controller(SMALL, hidden_size=4, num_layers=1, init_range=2.0)}
ARCHS = jnp.array([[0, 1, 3], [2, 0, 0], [1, 1, 2], [2, 1, 1], [0, 0, 3]], jnp.int32)
FITNESS = jnp.array([0.3, 0.9, 0.1, 0.6, 0.5])


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("options", [
    {"baseline_init": "zero", "baseline_first": True, "baseline_decay": 0.6},
    {"baseline_init": "first", "baseline_first": False, "entropy_weight": 0.3}])
def test_first_epoch_is_reinforce(policy, options):
    def step(make, **more):
        searcher = make(policy, optimizer=optax.sgd(1.0), **options, **more)
        state = searcher.init(KEY)
        return state, *searcher.tell(KEY, state, ARCHS, FITNESS)

    @jax.jit
    def both():
        return step(reinforce), step(ppo, num_epochs=1, clip_range=0.1)

    (before, expected, expected_info), (_, found, info) = both()
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close({name: info[name] for name in expected_info}, expected_info)
    assert info["clipped"] == 0
    assert max(np.abs(new - old).max() for new, old in zip(
        *map(jax.tree.leaves, (found.params, before.params)))) > 0.01


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def tell_from_zero(num_choices, archs, fitness, *, logits=None, **options):
    """Return logits and info after one batch without a baseline, entropy term or rate."""
    policy = independent_logits(num_choices, scale=0.0)
    searcher = ppo(policy, optimizer=optax.sgd(1.0), baseline_init="zero", baseline_decay=1.0,
                   **{"entropy_weight": 0.0} | options)
    state = searcher.init(KEY)
    if logits is not None:
        state = state._replace(params=jnp.asarray(logits))
    tell = jax.jit(functools.partial(searcher.tell, KEY))
    state, info = tell(state, jnp.asarray(archs, jnp.int32), jnp.asarray(fitness))
    return np.asarray(state.params), info


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_gradient_is_zero_beyond_the_range(advantage):
    # Epoch 1 moves the logits by A (1/2, -1/2); then rho = 2 sigmoid(A): 1.46 for A = 1, beyond
    # 1.2, and 0.54 for A = -1, below 0.8. Nothing moves any more, unless the range is wide.
    first = np.array([[advantage / 2, -advantage / 2]])
    for num_epochs in (1, 3):
        logits, info = tell_from_zero((2,), [[0]], [advantage], num_epochs=num_epochs)
        np.testing.assert_allclose(logits, first, rtol=1e-6)
    assert info["clipped"] == 1
    chance = sigmoid(advantage)  # of choice 0; d rho / d logits = rho (1 - chance) (1, -1)
    second = first + 2 * chance * advantage * (1 - chance) * np.array([1, -1])
    logits, info = tell_from_zero((2,), [[0]], [advantage], num_epochs=2, clip_range=0.5)
    np.testing.assert_allclose(logits, second, rtol=1e-6)
    assert info["clipped"] == 0


def test_two_archs_by_hand():
    # Choice 0 with A = 1, choice 1 with A = 3. Epoch 1 moves the logits by the mean of (1/2, -1/2)
    # and (-3/2, 3/2) to (-1/2, 1/2): rho_0 = 2 sigmoid(-1) = 0.54, rho_1 = 1.46. The second is
    # clipped (A > 0, rho > 1.2); the first is not, though it is out of range: min() takes rho A.
    chance = sigmoid(-1.0)
    second = 0.5 * 2 * chance * 1.0 * (1 - chance) * np.array([1, -1])
    logits, info = tell_from_zero((2,), [[0], [1]], [1.0, 3.0], num_epochs=2)
    np.testing.assert_allclose(logits, [np.array([-0.5, 0.5]) + second], rtol=1e-6)
    assert info["clipped"] == 1  # both ratios are out of range


def test_ratios_are_clipped_decision_by_decision():
    # Decision 0 is even and clipped after one epoch; decision 1 has chance sigmoid(6) = 0.9975,
    # its ratio stays near 1 and it goes on.
    start = np.array([[0.0, 0.0], [3.0, -3.0]], np.float32)
    once, _ = tell_from_zero((2, 2), [[0, 0]], [1.0], logits=start, num_epochs=1)
    twice, info = tell_from_zero((2, 2), [[0, 0]], [1.0], logits=start, num_epochs=2)
    np.testing.assert_allclose(once[0], (0.5, -0.5), rtol=1e-6)
    np.testing.assert_array_equal(once[0], twice[0])
    np.testing.assert_allclose(once[1, 0] - start[1, 0], 1 - sigmoid(6.0), rtol=1e-3)
    old, new = sigmoid(6.0), sigmoid(once[1, 0] - once[1, 1])
    np.testing.assert_allclose(twice[1, 0] - once[1, 0], new / old * (1 - new), rtol=1e-3)
    assert info["clipped"] == 0.5


def test_the_entropy_is_true():
    # Two even choices: the gradient of the entropy is zero, that of -p log p of a choice is not.
    logits, info = tell_from_zero((2,), [[0], [0]], [0.0, 0.0], entropy_weight=1.0)
    np.testing.assert_allclose(logits, 0.0, atol=1e-6)
    np.testing.assert_allclose(info["entropy"], np.log(2), rtol=1e-6)


def test_failures_leave_no_trace():
    searcher = ppo(POLICIES["lstm"], optimizer=optax.adam(0.1), num_epochs=2, entropy_weight=0.1)
    tell = jax.jit(functools.partial(searcher.tell, KEY))
    state = jax.jit(searcher.init)(KEY)
    failed = jnp.full(4, jnp.nan)
    nothing, info = tell(state, ARCHS[:4], failed)
    chex.assert_trees_all_equal(nothing, state)
    chex.assert_tree_all_finite(info)
    for _ in range(2):  # a fresh state, then one with moments
        all_told, info = tell(state, ARCHS[:4], jnp.array([1.0, jnp.nan, 3.0, jnp.nan]))
        few_told, few_info = tell(state, ARCHS[:4:2], jnp.array([1.0, 3.0]))
        chex.assert_trees_all_close(all_told, few_told, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(info["clipped"], few_info["clipped"], rtol=1e-6)
        chex.assert_tree_all_finite((all_told, info))
        assert jnp.any(all_told.params["lstm"] != state.params["lstm"])
        state = all_told
    chex.assert_trees_all_equal(tell(state, ARCHS[:4], failed)[0], state)


NUM_CHOICES, TARGET = (4,) * 8, jnp.array([3, 1, 0, 2, 2, 0, 1, 3])


def search(searcher, key, num_steps):
    """Return the final state, and the fitness [num_steps, B] of all that was evaluated."""
    init_key, key = jax.random.split(key)

    def step(state, key):
        archs = searcher.ask(key, state)
        fitness = jnp.mean(archs == TARGET, axis=-1)
        return searcher.tell(key, state, archs, fitness)[0], fitness

    return jax.lax.scan(step, searcher.init(init_key), jax.random.split(key, num_steps))


@pytest.mark.parametrize("policy, rate", [
    (independent_logits(NUM_CHOICES), 0.1),
    (lstm_controller(NUM_CHOICES, hidden_size=16, num_layers=1), 0.02)],
    ids=["independent", "lstm"])
def test_it_learns_what_random_search_does_not_find(policy, rate):
    searcher = ppo(policy, optimizer=optax.adam(rate))
    keys = jax.random.split(jax.random.key(3), 16)
    _, fitness = jax.jit(jax.vmap(lambda key: search(searcher, key, 20)))(keys)
    fitness = fitness.reshape(16, 400)
    sample = jax.vmap(lambda key: mutations.sample(key, NUM_CHOICES))
    random_archs = jax.jit(sample)(jax.random.split(jax.random.key(9), 16 * 400))
    best_of_random = jnp.mean(random_archs == TARGET, -1).reshape(16, 400).max(-1).mean()  # 0.76
    assert fitness[:, :20].mean() < 0.35  # 1/4 by chance
    assert fitness[:, -20:].mean() > best_of_random + 0.1
    assert fitness.max(-1).mean() > best_of_random + 0.2


def test_one_trace_and_jit_changes_nothing_but_rounding():
    searcher = ppo(POLICIES["independent"], optimizer=optax.adam(0.1), batch_size=3)
    keys = jax.random.split(jax.random.key(5), 4)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(key, state):
        archs = searcher.ask(key, state)
        chex.assert_shape(archs, (searcher.batch_size, 3))
        return archs, *searcher.tell(key, state, archs, archs.mean(-1))

    first = state = jax.jit(searcher.init)(KEY)
    for key in keys:
        archs, state, info = step(key, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(first, state)
    assert jax.tree.map(lambda leaf: leaf.weak_type, first) == (
        jax.tree.map(lambda leaf: leaf.weak_type, state))
    assert info.keys() == {"baseline", "advantage", "entropy", "clipped"}
    chex.assert_shape(list(info.values()), ())
    archs, after, info = step(keys[0], state)
    eager = searcher.tell(KEY, state, archs, archs.mean(-1))
    chex.assert_trees_all_close(eager, (after, info), rtol=1e-4, atol=1e-5)


def test_hyper_parameters_can_be_tracers():
    def final(rate, clip_range):
        searcher = ppo(independent_logits(NUM_CHOICES), optimizer=optax.adam(rate), batch_size=4,
                       clip_range=clip_range)
        return search(searcher, KEY, 5)[0]

    values = jnp.array([[0.01, 0.2], [0.3, 0.05]])
    together = jax.jit(jax.vmap(final))(*values.T)
    for index, row in enumerate(values.tolist()):
        alone = jax.jit(lambda: final(*row))()
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf: leaf[index], together), alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options, message", [
    ({"clip_range": 0.0}, "clip_range must be above 0, got 0.0"),
    ({"num_epochs": 0}, "num_epochs must be 1 or more, got 0"),
    ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
    ({"baseline_decay": -0.1}, r"baseline_decay must be in \[0, 1\], got -0.1")])
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ppo(POLICIES["independent"], optimizer=optax.sgd(1.0), **options)
