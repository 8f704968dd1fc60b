"""Policies: probabilities that sum to one and are met by samples, and an LSTM written twice."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from scipy import stats

from jaxnas import encodings
from jaxnas.networks.controllers import independent_logits, lstm_controller

SMALL = (3, 2, 4)  # 24 archs
UNEQUAL = (1, 5, 2, 3)
# Large initial weights: distributions far from uniform, decisions that depend on each other.
POLICIES = {
    "independent": functools.partial(independent_logits, scale=1.0),
    "lstm": functools.partial(lstm_controller, hidden_size=6, num_layers=2, init_range=3.0),
    "shaped": functools.partial(lstm_controller, hidden_size=5, num_layers=1, init_range=3.0,
                                temperature=0.5, tanh_constant=1.5),
}
plain_policies = pytest.mark.parametrize(
    "make", [POLICIES["independent"], POLICIES["lstm"]], ids=["independent", "lstm"])
every_policy = pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)


def all_archs(num_choices):
    size = encodings.space_size(num_choices)
    return encodings.from_flat_index(jnp.arange(size), num_choices)


def for_archs(function):
    return jax.jit(jax.vmap(function, in_axes=(None, 0)))


def for_keys(sample):
    return jax.jit(jax.vmap(sample, in_axes=(0, None)))


@every_policy
def test_samples_have_the_probabilities_of_log_prob(make):
    policy = make(SMALL)
    params = jax.jit(policy.init)(jax.random.key(1))
    archs = all_archs(SMALL)
    probabilities = np.exp(for_archs(policy.log_prob)(params, archs).sum(-1), dtype=np.float64)
    np.testing.assert_allclose(probabilities.sum(), 1.0, rtol=1e-6)
    assert probabilities.max() > 4 * probabilities.min()  # else the test would show little
    samples = for_keys(policy.sample)(jax.random.split(jax.random.key(2), 20_000), params)
    chex.assert_type(samples, jnp.int32)
    counts = np.bincount(encodings.flat_index(samples, SMALL), minlength=len(archs))
    expected = probabilities / probabilities.sum() * counts.sum()
    assert stats.chisquare(counts, expected).pvalue > 1e-3


@every_policy
def test_entropy_is_that_of_the_distribution(make):
    # E[sum over l of H(l | before)] = H of the joint distribution (chain rule).
    policy = make(SMALL)
    params = jax.jit(policy.init)(jax.random.key(3))
    archs = all_archs(SMALL)
    log_probs = np.asarray(for_archs(policy.log_prob)(params, archs), np.float64).sum(-1)
    entropies = np.asarray(for_archs(policy.entropy)(params, archs), np.float64).sum(-1)
    joint = -np.sum(np.exp(log_probs) * log_probs)
    np.testing.assert_allclose(np.sum(np.exp(log_probs) * entropies), joint, rtol=1e-5)
    assert joint < np.log(24) - 0.02


def test_independent_entropy_matches_scipy():
    policy = independent_logits(UNEQUAL, scale=2.0)
    params = policy.init(jax.random.key(0))
    assert params.shape == (4, 5) and params.dtype == jnp.float32
    expected = [stats.entropy(np.exp(np.asarray(row[:n], np.float64)))
                for row, n in zip(params, UNEQUAL)]
    found = policy.entropy(params, jnp.zeros(4, jnp.int32))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert float(np.std(independent_logits((100,) * 100).init(jax.random.key(0)))) == (
        pytest.approx(1e-3, rel=0.05))


def numpy_lstm(params, arch, num_choices, temperature=1.0, tanh_constant=None):
    """Log-probabilities of an arch, written from the equations, in float64."""
    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    lstm, embeddings, softmax = (np.asarray(params[name], np.float64)
                                 for name in ("lstm", "embeddings", "softmax"))
    layers, size = lstm.shape[0], lstm.shape[1] // 2
    hidden, cell = np.zeros((layers, size)), np.zeros((layers, size))
    found = []
    for l, choice in enumerate(arch):
        x = embeddings[l, 0 if l == 0 else arch[l - 1]]
        for layer in range(layers):
            gates = x @ lstm[layer, :size] + hidden[layer] @ lstm[layer, size:]
            i, f, o, g = (gates[k * size : (k + 1) * size] for k in range(4))
            cell[layer] = sigmoid(f) * cell[layer] + sigmoid(i) * np.tanh(g)
            hidden[layer] = x = sigmoid(o) * np.tanh(cell[layer])
        logits = (x @ softmax[l])[: num_choices[l]] / temperature
        if tanh_constant is not None:
            logits = tanh_constant * np.tanh(logits)
        found.append(logits[choice] - np.log(np.sum(np.exp(logits))))
    return np.array(found)


@pytest.mark.parametrize("name, shaping", [
    ("lstm", {}), ("shaped", {"temperature": 0.5, "tanh_constant": 1.5})])
def test_lstm_of_100_samples_matches_numpy(name, shaping):
    policy = POLICIES[name](UNEQUAL)
    params = jax.jit(policy.init)(jax.random.key(4))
    samples = for_keys(policy.sample)(jax.random.split(jax.random.key(5), 100), params)
    found = for_archs(policy.log_prob)(params, samples)
    expected = [numpy_lstm(params, arch, UNEQUAL, **shaping) for arch in np.asarray(samples)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(found[:, 3]) > 0.1  # the last decision depends on those before it


def test_lstm_starts_uniform_in_its_range():
    policy = lstm_controller((5,) * 6)
    params = jax.jit(policy.init)(jax.random.key(0))
    shapes = {name: value.shape for name, value in params.items()}
    assert shapes == {"lstm": (2, 70, 140), "embeddings": (6, 5, 35), "softmax": (6, 35, 5)}
    chex.assert_type(jax.tree.leaves(params), jnp.float32)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    assert stats.kstest(flat, stats.uniform(-0.08, 0.16).cdf).pvalue > 1e-3
    assert len(np.unique(flat)) > 0.9 * flat.size  # parameters do not share a draw


@plain_policies
def test_absent_choices_are_never_drawn_and_gradients_are_finite(make):
    policy = make(UNEQUAL)
    params = jax.jit(policy.init)(jax.random.key(6))
    samples = for_keys(policy.sample)(jax.random.split(jax.random.key(7), 10_000), params)
    for decision, count in zip(np.asarray(samples).T, UNEQUAL):
        assert set(decision) == set(range(count))

    def score(params, arch):
        return policy.log_prob(params, arch).sum() + policy.entropy(params, arch).sum()

    grads = for_archs(jax.grad(score))(params, all_archs(UNEQUAL))
    chex.assert_tree_all_finite(grads)
    columns = grads if isinstance(params, jax.Array) else grads["softmax"].sum(2)  # [B, L, K]
    absent = np.arange(5) >= np.array(UNEQUAL)[:, None]
    assert not np.any(np.where(absent, columns, 0))
    assert np.all(np.any(columns, axis=0) == (~absent & (np.array(UNEQUAL) > 1)[:, None]))
    absent_choice = for_archs(policy.log_prob)(params, jnp.array([[0, 0, 3, 0]]))
    assert np.exp(absent_choice[0, 2]) == 0


def test_certain_decisions_are_drawn_and_differentiated():
    policy = independent_logits((2, 4))
    params = jnp.array([[-300.0, 300.0, 0, 0], [-300.0, -300.0, 300.0, -300.0]])
    samples = for_keys(policy.sample)(jax.random.split(jax.random.key(0), 1000), params)
    np.testing.assert_array_equal(samples, np.broadcast_to([1, 2], (1000, 2)))
    for function in (policy.log_prob, policy.entropy):
        grads = jax.jit(jax.grad(lambda p: function(p, jnp.array([0, 1])).sum()))(params)
        chex.assert_tree_all_finite(grads)


@plain_policies
def test_programs_do_not_grow_with_the_decisions(make):
    def count(jaxpr):
        inner = (sub for equation in jaxpr.eqns for sub in jaxprs_in_params(equation.params))
        return len(jaxpr.eqns) + sum(map(count, inner))

    def equations(length):
        policy = make((3,) * length)
        key = jax.random.key(0)
        params = jax.eval_shape(policy.init, key)
        sample = jax.make_jaxpr(policy.sample)(key, params)
        log_prob = jax.make_jaxpr(jax.grad(lambda p, a: policy.log_prob(p, a).sum()))(
            params, jnp.zeros(length, jnp.int32))
        return count(sample.jaxpr), count(log_prob.jaxpr)

    assert equations(3) == equations(40) > (10, 10)


@plain_policies
def test_jit_changes_nothing_and_parameters_can_be_batched(make):
    policy = make(SMALL)
    keys = jax.random.split(jax.random.key(8), 3)
    many = jax.jit(jax.vmap(policy.init))(keys)
    archs = jax.jit(jax.vmap(policy.sample))(keys, many)
    log_probs = jax.jit(jax.vmap(policy.log_prob))(many, archs)
    one = jax.tree.map(lambda leaf: leaf[1], many)
    np.testing.assert_array_equal(policy.sample(keys[1], one), archs[1])
    np.testing.assert_allclose(policy.log_prob(one, archs[1]), log_probs[1], rtol=1e-5)


def test_options_can_be_tracers():
    arch, key = jnp.array([2, 1, 3]), jax.random.key(0)

    def one(options):
        policy = lstm_controller(SMALL, hidden_size=4, num_layers=1, **options)
        return policy.log_prob(policy.init(key), arch)

    options = {"init_range": jnp.array([0.5, 2.0]), "temperature": jnp.array([1.0, 3.0]),
               "tanh_constant": jnp.array([2.5, 1.0])}
    found = jax.jit(jax.vmap(one))(options)
    second = jax.jit(functools.partial(one, {"init_range": 2.0, "temperature": 3.0,
                                             "tanh_constant": 1.0}))()
    np.testing.assert_allclose(found[1], second, rtol=1e-5)
    scales = jax.vmap(lambda scale: independent_logits(SMALL, scale=scale).init(key))(
        jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(scales[1], 2 * scales[0], rtol=1e-6)


@pytest.mark.parametrize("make, options, message", [
    (independent_logits, {"num_choices": ()}, "num_choices must be"),
    (lstm_controller, {"num_choices": (3, 0)}, "num_choices must be"),
    (independent_logits, {"num_choices": (2,), "scale": -1.0}, "scale must be 0 or more, got -1"),
    (lstm_controller, {"num_choices": (2,), "hidden_size": 0}, "hidden_size must be above 0"),
    (lstm_controller, {"num_choices": (2,), "num_layers": 0}, "num_layers must be above 0"),
    (lstm_controller, {"num_choices": (2,), "init_range": 0.0}, "init_range must be above 0"),
    (lstm_controller, {"num_choices": (2,), "temperature": float("nan")}, "temperature must be"),
    (lstm_controller, {"num_choices": (2,), "tanh_constant": -1.0}, "tanh_constant must be")])
def test_bad_options_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_batch_is_refused():
    policy = independent_logits(SMALL)
    with pytest.raises(AssertionError, match="shape"):
        policy.log_prob(policy.init(jax.random.key(0)), jnp.zeros((5, 3), jnp.int32))
