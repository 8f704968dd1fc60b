"""Incumbents, first evaluations and budgets, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import histories

SMALL, LARGE = (2, 3, 2), (7,) * 40
RUNS, N = 40, 60


@pytest.fixture(scope="module")
def fitness():
    """[RUNS, N] with ties, failures and infinities."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 8, (RUNS, N)).astype(np.float32)
    values[:, 5:] += rng.random((RUNS, N - 5)) < 0.5
    values[rng.random((RUNS, N)) < 0.3] = np.nan
    values[1], values[2, :-1] = np.nan, np.nan
    values[3] = -np.inf
    values[4, 30], values[5, 40] = np.inf, -np.inf
    return values


@pytest.fixture(scope="module")
def new():
    """[RUNS, N] bool, evaluations of something new."""
    return np.random.default_rng(1).random((RUNS, N)) < 0.5


def test_incumbents_are_those_of_a_loop(fitness):
    found = jax.jit(jax.vmap(histories.incumbents))(fitness)
    assert found.dtype == jnp.int32
    for row, numbers in zip(fitness, np.asarray(found)):
        best, expected = 0, []
        for number, value in enumerate(row):
            if not np.isnan(value) and (np.isnan(row[best]) or value > row[best]):
                # before there is a success, -inf is no better than a failure
                best = number if value > -np.inf else best
            expected.append(best)
        np.testing.assert_array_equal(numbers, expected)


def test_incumbents_by_hand():
    nan = np.nan
    found = jax.jit(histories.incumbents)(np.array([nan, 2.0, nan, 2.0, 1.0, 3.0, 3.0, nan]))
    np.testing.assert_array_equal(found, [0, 1, 1, 1, 1, 5, 5, 5])
    np.testing.assert_array_equal(histories.incumbents(jnp.array([nan])), [0])


@pytest.mark.parametrize("num_choices", [SMALL, LARGE], ids=["small", "large"])
def test_first_seen_is_that_of_a_set(num_choices):
    rng = np.random.default_rng(2)
    pool = rng.integers(0, num_choices, (25, len(num_choices)), dtype=np.int32)
    pool[1] = pool[0]
    pool[1, -1] ^= 1  # neighbours in order
    archs = pool[rng.integers(0, 25, (RUNS, N))]
    archs[0] = pool[0]
    found = jax.jit(jax.vmap(lambda archs: histories.first_seen(archs, num_choices)))(archs)
    for row, flags in zip(archs.tolist(), np.asarray(found)):
        seen, expected = set(), []
        for arch in map(tuple, row):
            expected.append(arch not in seen)
            seen.add(arch)
        np.testing.assert_array_equal(flags, expected)
    assert histories.first_seen(archs[0, :1], num_choices).tolist() == [True]


def test_a_budget_of_unique_evaluations_is_a_prefix(new):
    budgets = np.array([0, 1, 7, 30, N])
    masks = np.asarray(jax.jit(jax.vmap(
        lambda new, unique: histories.within_budget(new=new, unique=unique),
        (None, 0)))(new[0], budgets))
    for budget, mask in zip(budgets, masks):
        made, expected = 0, []
        for flag in new[0]:
            if made + flag > budget:
                break
            made += flag
            expected.append(True)  # what is known is free
        np.testing.assert_array_equal(mask, expected + [False] * (N - len(expected)))


def test_a_budget_of_cost_is_a_prefix_and_nothing_exceeds_it(new):
    rng = np.random.default_rng(3)
    cost = rng.integers(0, 20, N).astype(np.float32)  # sums are exact
    cost[rng.random(N) < 0.2] = np.nan
    for budget in (-1, 0, 9, 100, np.nansum(cost) - 1, np.nansum(cost)):
        spent, allowed = 0.0, 0
        for value in np.nan_to_num(cost):
            if spent + value > budget:
                break
            spent, allowed = spent + value, allowed + 1
        mask = histories.within_budget(cost=cost, budget=budget)
        np.testing.assert_array_equal(mask, np.arange(N) < allowed)
        both = histories.within_budget(new=new[0], unique=11, cost=cost, budget=budget)
        alone = histories.within_budget(new=new[0], unique=11)
        np.testing.assert_array_equal(both, mask & alone)


def test_rounding_leaves_no_gap():
    rng = np.random.default_rng(4)
    cost = rng.uniform(0, 1000, (50, 1000)).astype(np.float32)
    cost[rng.random(cost.shape) < 0.3] = np.nan
    spent = np.nancumsum(cost.astype(np.float64), axis=1)
    budgets = spent[:, 300:800:20].astype(np.float32)
    masks = np.asarray(jax.jit(jax.vmap(jax.vmap(
        lambda cost, budget: histories.within_budget(cost=cost, budget=budget), (None, 0))))(
            cost, budgets))
    assert not (masks[..., 1:] & ~masks[..., :-1]).any()
    made = masks.sum(-1)
    assert (np.take_along_axis(spent, made - 1, 1) <= budgets + 0.5).all()
    assert (np.take_along_axis(spent, made, 1) >= budgets - 0.5).all()


@pytest.mark.parametrize("options", [
    {}, {"new": np.ones(3, bool)}, {"unique": 3}, {"cost": np.ones(3)}, {"budget": 1.0},
    {"new": np.ones(3, bool), "budget": 1.0}])
def test_half_a_budget_is_refused(options):
    with pytest.raises(ValueError, match="needs new and unique, or cost and budget"):
        histories.within_budget(**options)
