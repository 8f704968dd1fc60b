"""ENAS's controller of recurrent cells, against its equations written in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import encodings
from jaxnas.networks.recurrent_controller import enas_rnn_controller
from jaxnas.search_spaces import ENASRNN

NODES, SIZE, CONSTANT, TEMPERATURE = 3, 5, 2.25, 1.5
POLICY = enas_rnn_controller(NODES, hidden_size=SIZE, init_range=2.0, temperature=TEMPERATURE)
SPACE = ENASRNN(NODES)


@pytest.mark.parametrize("nodes", [8, 12])
def test_count(nodes):
    shapes = jax.eval_shape(enas_rnn_controller(nodes).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 41_344


def numpy_log_prob(params, arch):
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    hidden, cell, x = np.zeros(SIZE), np.zeros(SIZE), p["start"]
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    found, anchors = [], [np.zeros(SIZE)]

    def read():
        nonlocal hidden, cell
        i, f, o, g = np.split(np.concatenate([x, hidden]) @ p["lstm"][0], 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)

    for number, (source, activation) in enumerate(np.reshape(arch, (-1, 2)), 1):
        read()
        q = np.array([np.tanh(anchor @ p["attend_earlier"] + hidden @ p["attend_now"])
                      @ p["attend"] for anchor in anchors])
        distance = number - np.arange(number)
        logits = CONSTANT * np.tanh(q / TEMPERATURE) - distance ** 2 / 6
        found.append(logits[source] - np.log(np.exp(logits).sum()))
        x = anchors[source] / (0.1 + number - source)
        anchors.append(hidden)
        read()
        logits = CONSTANT * np.tanh(p["embeddings"] @ hidden / TEMPERATURE)
        found.append(logits[activation] - np.log(np.exp(logits).sum()))
        x = p["embeddings"][activation]
    return found


def test_every_probability_is_that_of_the_equations():
    params = POLICY.init(jax.random.key(1))
    archs = encodings.from_flat_index(jnp.arange(SPACE.size), SPACE.num_choices)
    log_prob, entropy = jax.jit(jax.vmap(
        lambda arch: (POLICY.log_prob(params, arch), POLICY.entropy(params, arch))))(archs)
    for arch, found in list(zip(np.asarray(archs), log_prob))[::7]:
        np.testing.assert_allclose(found, numpy_log_prob(params, arch), atol=2e-4)
    joint = np.asarray(log_prob, np.float64).sum(-1)
    np.testing.assert_allclose(np.exp(joint).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(np.sum(np.exp(joint) * np.asarray(entropy).sum(-1)),
                               -np.sum(np.exp(joint) * joint), rtol=1e-4)


def test_samples_are_valid_and_likely_ones_frequent():
    params = POLICY.init(jax.random.key(1))
    samples = jax.jit(jax.vmap(POLICY.sample, (0, None)))(
        jax.random.split(jax.random.key(2), 5000), params)
    assert samples.dtype == jnp.int32 and jax.vmap(SPACE.is_valid)(samples).all()
    seen = np.mean(np.asarray(samples)[:, 3])
    archs = encodings.from_flat_index(jnp.arange(SPACE.size), SPACE.num_choices)
    probability = np.exp(jax.vmap(POLICY.log_prob, (None, 0))(params, archs).sum(-1))
    np.testing.assert_allclose(seen, np.sum(probability * np.asarray(archs)[:, 3]), atol=0.07)


def test_at_the_start_near_sources_are_preferred():
    policy = enas_rnn_controller()
    params = policy.init(jax.random.key(0))
    archs = jnp.stack([jnp.zeros(16, jnp.int32).at[14].set(source) for source in range(8)])
    last = jax.vmap(policy.log_prob, (None, 0))(params, archs)[:, 14]
    prior = -np.arange(8, 0, -1) ** 2 / 6
    np.testing.assert_allclose(last, prior - np.log(np.exp(prior).sum()), atol=0.01)


@pytest.mark.parametrize("name", ["num_nodes", "hidden_size", "temperature", "distance_scale"])
def test_wrong_options_are_named(name):
    with pytest.raises(ValueError, match=f"{name} must be above 0"):
        enas_rnn_controller(**{name: 0})
