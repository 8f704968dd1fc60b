"""The bound in the gradient against closed forms; the repair against all exchanges."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas.latency import bound_latency, repair
from jaxnas.searchers import bilevel


def linear(costs):
    return lambda alphas: jnp.sum(jnp.asarray(costs) * alphas)


def test_the_multiplier_climbs_with_the_excess():
    costs, alphas = np.array([2.0, 6.0], np.float32), jnp.array([1.0, 1.0])
    bound = bound_latency(linear(costs), 4.0, rate=0.5)  # 8 of 4: an excess of 1
    state = bound.init(alphas)
    assert state.multiplier == 0
    for step in range(1, 4):
        updates, state = bound.update(jnp.array([10.0, 0.0]), state, alphas)
        np.testing.assert_allclose(state.multiplier, 0.5 * step)
        np.testing.assert_allclose(updates, [10 + 0.5 * step * 0.5, 0.5 * step * 1.5])
    # Within the bound it falls by half the distance, 1/2, and ends at 0.
    for expected in (1.25, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        updates, state = bound.update(jnp.zeros(2), state, alphas / 4)
        np.testing.assert_allclose(state.multiplier, expected, atol=1e-6)
    np.testing.assert_array_equal(updates, [0, 0])


def test_it_finds_the_best_point_within_the_bound():
    # max -(a - 3)^2 - (b - 3)^2 with a + 2 b <= 4: the projection (2, 1) of (3, 3), lambda = 8.
    def loss(alphas):
        return jnp.sum((alphas - 3.0) ** 2)

    optimizer = optax.chain(bound_latency(linear([1.0, 2.0]), 4.0, rate=0.5), optax.sgd(0.05))

    def step(carry, _):
        alphas, state = carry
        updates, state = optimizer.update(jax.grad(loss)(alphas), state, alphas)
        return (optax.apply_updates(alphas, updates), state), None

    start = jnp.zeros(2)
    (alphas, state), _ = jax.jit(lambda: jax.lax.scan(
        step, (start, optimizer.init(start)), length=2000))()
    np.testing.assert_allclose(alphas, [2.2, 1.4], atol=0.9)
    np.testing.assert_allclose(alphas @ np.array([1.0, 2.0]), 4.0, atol=1e-2)
    np.testing.assert_allclose(alphas, 3 - np.array([1.0, 2.0]), atol=1e-2)
    np.testing.assert_allclose(state[0].multiplier, 8.0, rtol=1e-2)


@pytest.mark.parametrize("gradient, scale", [
    ("first_order", 0.0), ("unrolled", 0.1), ("hessian_vector", 0.1)])
def test_the_exact_second_order_stays_exact(gradient, scale):
    # train |w - a|^2 / 2, valid |w - 7|^2 / 2, sgd(0.1): d valid(w') / d a = 0.1 (w' - 7), and the
    # term adds multiplier * costs / limit, multiplier = rate * excess.
    def loss(weights, alphas, batch):
        return 0.5 * jnp.sum((weights - batch["pull"] * alphas - batch["target"]) ** 2)

    train, valid = {"pull": 1.0, "target": 0.0}, {"pull": 0.0, "target": 7.0}
    costs = np.array([2.0, 6.0], np.float32)
    outer = optax.chain(bound_latency(linear(costs), 4.0, rate=0.5), optax.sgd(1.0))
    optimizer = bilevel(loss, optax.sgd(0.1), outer, gradient=gradient)
    weights, alphas = jnp.array([1.0, 2.0]), jnp.array([3.0, 5.0])
    state, info = optimizer.update(optimizer.init(weights, alphas), train, valid)
    multiplier = 0.5 * (36 / 4 - 1)
    expected = alphas - scale * (weights - 0.1 * (weights - alphas) - 7) - multiplier * costs / 4
    np.testing.assert_allclose(state.alphas, expected, rtol=1e-5)
    # The weights step on their own loss, at the new alphas, and the losses are reported bare.
    np.testing.assert_allclose(state.weights, weights - 0.1 * (weights - state.alphas), rtol=1e-5)
    np.testing.assert_allclose(info["train_loss"], 0.5 * np.sum((weights - state.alphas) ** 2),
                               rtol=1e-5)


def test_wrong_arguments():
    for options in ({"limit_ms": 0.0}, {"limit_ms": 1.0, "rate": -1.0}):
        with pytest.raises(ValueError, match="must be above 0"):
            bound_latency(linear([1.0]), **options)
    bound = bound_latency(linear([1.0]), 1.0)
    with pytest.raises(ValueError, match="needs the alphas"):
        bound.update(jnp.zeros(1), bound.init(jnp.zeros(1)))


STRENGTHS = np.array([[5.0, 4.0, 0.0], [5.0, 4.9, 1.0]])
EDGES = np.array([[10.0, 4.0, 1.0], [10.0, 9.0, 1.0]])


@pytest.mark.parametrize("budget, expected, exchanges", [
    (20.0, [0, 0], 0),   # within the budget nothing is exchanged
    (19.0, [0, 1], 1),   # 0.1 / 1 = 0.1 a millisecond is the least
    (15.0, [1, 1], 2),   # then 1 / 6
    (5.0, [1, 2], 3),    # then 3.9 / 8 against 4 / 3
    (2.0, [2, 2], 4), (1.0, [2, 2], 4)])  # what is fastest is all that there is
def test_repair_takes_the_cheapest_exchange_first(budget, expected, exchanges):
    found, count = repair(np.zeros(2, int), STRENGTHS, EDGES, budget, np.arange(2))
    assert (found.tolist(), count) == (expected, exchanges)


def test_repair_keeps_the_budget_wherever_something_does():
    generator = np.random.default_rng(0)
    losses = []
    for _ in range(50):
        strengths, edges = generator.normal(size=(5, 4)), generator.exponential(size=(5, 4))
        edge_of = generator.choice(5, 3, replace=False)
        arch = strengths[edge_of].argmax(-1)
        budget = generator.uniform(0.2, 3.0)
        found, _ = repair(arch, strengths, edges, budget, edge_of)
        spent = edges[edge_of, found].sum()
        fits = {choice: strengths[edge_of, list(choice)].sum()
                for choice in itertools.product(range(4), repeat=3)
                if edges[edge_of, list(choice)].sum() <= budget}
        assert (spent <= budget) == bool(fits)
        if fits:
            losses.append(max(fits.values()) - strengths[edge_of, found].sum())
        else:
            np.testing.assert_allclose(spent, edges[edge_of].min(-1).sum())
    assert min(losses) >= -1e-9 and np.median(losses) < 0.2  # greedy, and mostly the best
