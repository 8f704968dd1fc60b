"""Controllers with attention: probabilities that sum to one, and the macro one written twice."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxnas import encodings
from jaxnas.networks import chain_layout
from jaxnas.networks.enas_controller import (enas_macro_controller, enas_micro_controller,
                                             nasrl_controller)

MICRO = (2, 5, 2, 5) * 2
# Large initial weights: distributions far from uniform, decisions that depend on each other.
WIDE = {"init_range": 2.0, "hidden_size": 5}
POLICIES = {
    "macro": (enas_macro_controller(3, **WIDE), chain_layout.num_choices(3, (6,))),
    "nasrl": (nasrl_controller(3, (2, 3), **WIDE), chain_layout.num_choices(3, (2, 3))),
    "micro": (enas_micro_controller(1, **WIDE, temperature=0.5, tanh_constant=4.0), MICRO),
}
every_policy = pytest.mark.parametrize("policy, counts", POLICIES.values(), ids=POLICIES)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("policy, expected", [
    (enas_macro_controller(), 41_856), (enas_macro_controller(24), 41_856),
    (enas_micro_controller(), 41_733),
    (nasrl_controller(), 2 * 70 * 140 + 2 * 15 * 3 * 4 * 35 + 2 * 35 ** 2 + 2 * 35)])
def test_counts(policy, expected):
    assert size(jax.eval_shape(policy.init, jax.random.key(0))) == expected


@every_policy
def test_probabilities_sum_to_one_and_samples_have_them(policy, counts):
    params = jax.jit(policy.init)(jax.random.key(1))
    archs = encodings.from_flat_index(jnp.arange(encodings.space_size(counts)), counts)
    log_prob, entropy = jax.jit(jax.vmap(
        lambda arch: (policy.log_prob(params, arch), policy.entropy(params, arch))))(archs)
    assert log_prob.shape == entropy.shape == archs.shape
    joint = np.asarray(log_prob, np.float64).sum(-1)
    probabilities = np.exp(joint)
    np.testing.assert_allclose(probabilities.sum(), 1.0, rtol=1e-5)
    # E[sum over l of H(l | before)] = H of the joint distribution (chain rule).
    expected = np.sum(probabilities * np.asarray(entropy, np.float64).sum(-1))
    np.testing.assert_allclose(expected, -np.sum(probabilities * joint), rtol=1e-5)
    assert expected < 0.97 * np.log(len(archs))
    samples = jax.jit(jax.vmap(policy.sample, (0, None)))(
        jax.random.split(jax.random.key(2), 20_000), params)
    chex.assert_type(samples, jnp.int32)
    seen = np.bincount(encodings.flat_index(samples, counts), minlength=len(archs))
    order = np.argsort(probabilities)  # in 100 groups of much the same probability each
    seen, wanted = (np.array([part.sum() for part in np.array_split(a[order], 100)])
                    for a in (seen, probabilities / probabilities.sum() * 20_000))
    likely = wanted > 5
    assert likely.sum() > 20
    seen, wanted = (np.append(a[likely], a[~likely].sum() + 1e-9) for a in (seen, wanted))
    assert stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 1e-3


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _numpy_macro(params, arch, num_layers, constant=1.5):
    """Log-probabilities of an arch in the order of its decisions, from the equations."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    (kernel,) = p["lstm"]
    width = p["start"].size
    hidden, cell, x = np.zeros(width), np.zeros(width), p["start"]
    decisions, found, anchors = iter(arch), [], []

    def read():
        nonlocal hidden, cell
        i, f, o, g = np.split(np.concatenate([x, hidden]) @ kernel, 4)
        cell = _sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)
        hidden = _sigmoid(o) * np.tanh(cell)

    for layer in range(num_layers):
        read()
        logits = constant * np.tanh(hidden @ p["softmax"])
        operation = next(decisions)
        found.append(logits[operation] - np.log(np.exp(logits).sum()))
        x = p["embeddings"][operation]
        read()
        total, count = np.zeros(width), 1
        for anchor in anchors:
            q = np.tanh(anchor @ p["attend_earlier"] + hidden @ p["attend_now"]) @ p["attend"]
            logits = constant * np.tanh(np.array([-q, q]))
            bit = next(decisions)
            found.append(logits[bit] - np.log(np.exp(logits).sum()))
            total, count = total + bit * anchor, count + bit
        anchors.append(hidden)
        x = total / count if layer else p["start"]
    return found


def test_macro_of_100_samples_matches_numpy():
    policy = enas_macro_controller(5, **WIDE)
    params = jax.jit(policy.init)(jax.random.key(4))
    samples = jax.jit(jax.vmap(policy.sample, (0, None)))(
        jax.random.split(jax.random.key(5), 100), params)
    found = jax.jit(jax.vmap(policy.log_prob, (None, 0)))(params, samples)
    expected = [_numpy_macro(params, arch, 5) for arch in np.asarray(samples)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(found[:, -1]) > 0.1


def test_micro_starts_as_released():
    """With hidden contributions of zero, operations have the probabilities of the biases alone."""
    policy = enas_micro_controller(init_range=1e-6)
    params = jax.jit(policy.init)(jax.random.key(0))
    arch = jnp.zeros(40, jnp.int32).at[1::4].set(2)  # first operation an average, second separable
    found = np.exp(jax.jit(policy.log_prob)(params, arch)).reshape(2, 5, 4)
    np.testing.assert_allclose(found[0, :, 1], 0.1231, atol=1e-4)
    np.testing.assert_allclose(found[0, :, 3], 0.3153, atol=1e-4)
    np.testing.assert_allclose(found[1, :, 1], 0.1638, atol=1e-4)
    np.testing.assert_allclose(found[1, :, 3], 0.2543, atol=1e-4)
    for column in (0, 2):
        np.testing.assert_allclose(found[:, :, column], [1 / np.arange(2, 7)] * 2, rtol=1e-4)


def test_micro_blocks_depend_on_what_was_drawn_before():
    policy = enas_micro_controller(2, **WIDE)
    params = jax.jit(policy.init)(jax.random.key(3))
    arch = jnp.zeros(16, jnp.int32)
    # Where a second block reads something else, the first block: inputs have zeros for anchors.
    values = np.where(np.isin(np.arange(16) % 8, (4, 6)), 2, 1)
    changed = jax.vmap(lambda place, value: arch.at[place].set(value))(np.arange(16), values)
    log_prob = jax.jit(jax.vmap(policy.log_prob, (None, 0)))(params, changed)
    base = np.asarray(jax.jit(policy.log_prob)(params, arch))
    drawn = [4 * block + column for block in range(4) for column in (0, 2, 1, 3)]
    for number, place in enumerate(drawn):
        moved = np.abs(log_prob[place] - base) > 1e-6
        assert not moved[drawn[:number]].any(), place
        if place % 8 not in (0, 2) and number < 15:
            assert moved[drawn[number + 1]], place


@every_policy
def test_gradients_are_finite_and_reach_all_that_matters(policy, counts):
    params = jax.jit(policy.init)(jax.random.key(6))
    samples = jax.jit(jax.vmap(policy.sample, (0, None)))(
        jax.random.split(jax.random.key(7), 8), params)
    score = lambda p, a: policy.log_prob(p, a).sum() + policy.entropy(p, a).sum()  # noqa: E731
    grads = jax.jit(jax.vmap(jax.grad(score), (None, 0)))(params, samples)
    chex.assert_tree_all_finite(grads)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_reinforce_learns_to_choose_operation_0():
    policy = enas_macro_controller(4, hidden_size=16)
    optimizer = optax.adam(0.02)
    own = chain_layout.positions(4, 1)[0][:, 0]

    def update(carry, key):
        params, state, baseline = carry
        archs = jax.vmap(policy.sample, (0, None))(jax.random.split(key, 20), params)
        rewards = jnp.mean(archs[:, own] == 0, axis=1)
        baseline = 0.9 * baseline + 0.1 * rewards.mean()

        def loss(params):
            log_probs = jax.vmap(policy.log_prob, (None, 0))(params, archs).sum(-1)
            return -jnp.mean(log_probs * (rewards - baseline))

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state, baseline), rewards.mean()

    @jax.jit
    def train(key):
        params = policy.init(key)
        return jax.lax.scan(update, (params, optimizer.init(params), 0.0),
                            jax.random.split(key, 400))[1]

    rewards = train(jax.random.key(0))
    # The tanh bounds logits to 1.5: at most exp(3) / (exp(3) + 5) = 0.80 of a decision.
    assert rewards[:10].mean() < 0.3 and rewards[-50:].mean() > 0.72


@pytest.mark.parametrize("make, options", [
    (enas_macro_controller, {"num_layers": 0}), (enas_macro_controller, {"tanh_constant": 0.0}),
    (enas_micro_controller, {"num_blocks": 0}), (enas_micro_controller, {"temperature": -1.0}),
    (nasrl_controller, {"counts": ()}), (nasrl_controller, {"lstm_layers": 0}),
    (nasrl_controller, {"init_range": float("nan")})])
def test_bad_options_are_named(make, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be above 0"):
        make(**options)


def test_options_can_be_tracers():
    key, arch = jax.random.key(0), jnp.zeros(3, jnp.int32)

    def one(constant):
        policy = enas_macro_controller(2, hidden_size=4, tanh_constant=constant, init_range=2.0)
        return policy.log_prob(policy.init(key), arch)

    found = jax.jit(jax.vmap(one))(jnp.array([0.5, 2.0]))
    np.testing.assert_allclose(found[1], jax.jit(functools.partial(one, 2.0))(), rtol=1e-5)
