"""Sampling, mutation, crossover and neighbours of products of independent decisions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnas import mutations

TINY = (2, 3, 1, 2)  # 12 archs
EVEN = (4, 4, 4)     # one count throughout, which has a shorter path through `mutate`
WIDE = (3,) + (40_000,) * 3  # position and value do not fit one word


def all_archs(num_choices):
    return np.array(list(itertools.product(*map(range, num_choices))), np.int32)


def keys(seed, count):
    return jax.random.split(jax.random.key(seed), count)


def children_of(arch, num_choices, count, seed=0):
    mutate = jax.jit(jax.vmap(lambda key: mutations.mutate(key, arch, num_choices)))
    return np.asarray(mutate(keys(seed, count)))


def test_samples_are_uniform():
    archs = jax.jit(jax.vmap(lambda key: mutations.sample(key, TINY)))(keys(0, 12_000))
    assert archs.dtype == jnp.int32 and archs.shape == (12_000, 4)
    counts = np.bincount(np.ravel_multi_index(tuple(np.asarray(archs).T), TINY), minlength=12)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("num_choices", [TINY, EVEN, WIDE, (2,) * 40, (1, 1, 2)], ids=str)
def test_mutation_changes_one_decision(num_choices):
    def pair(key):
        sample_key, mutate_key = jax.random.split(key)
        arch = mutations.sample(sample_key, num_choices)
        return arch, mutations.mutate(mutate_key, arch, num_choices)

    parents, children = map(np.asarray, jax.jit(jax.vmap(pair))(keys(1, 1000)))
    assert children.dtype == np.int32
    np.testing.assert_array_equal((parents != children).sum(1), 1)
    assert (children >= 0).all() and (children < num_choices).all()


@pytest.mark.parametrize("num_choices, parent", [
    ((2, 3, 1, 5), (1, 0, 0, 4)), (EVEN, (0, 3, 1)), ((5, 1, 5), (2, 0, 0))])
def test_mutation_is_uniform_over_positions_then_values(num_choices, parent):
    children = children_of(np.array(parent, np.int32), num_choices, 12_000)
    observed, expected = [], []
    free = [position for position, count in enumerate(num_choices) if count > 1]
    for position in free:
        for value in set(range(num_choices[position])) - {parent[position]}:
            wanted = [*parent[:position], value, *parent[position + 1:]]
            observed.append((children == wanted).all(1).sum())
            expected.append(12_000 / len(free) / (num_choices[position] - 1))
    assert sum(observed) == 12_000
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_mutation_of_many_choices_is_uniform():
    parent = np.array([1, 39_999, 0, 17], np.int32)
    children = children_of(parent, WIDE, 12_000)
    position = (children != parent).argmax(1)
    assert stats.chisquare(np.bincount(position, minlength=4)).pvalue > 1e-3
    moved = (children[:, 1:] - parent[1:]) % 40_000
    steps = moved[moved > 0] - 1  # uniform in [0, 39998]
    assert stats.chisquare(np.bincount(steps * 20 // 39_999, minlength=20)).pvalue > 1e-3


@pytest.mark.parametrize("num_choices", [TINY, (1, 1, 2), (3, 3)], ids=str)
def test_every_arch_is_reachable_from_every_other(num_choices):
    archs = all_archs(num_choices)
    step = jax.jit(jax.vmap(jax.vmap(
        lambda key, arch: mutations.mutate(key, arch, num_choices), (0, None)), (None, 0)))
    children = np.asarray(step(keys(2, 400), archs))
    index = np.ravel_multi_index(tuple(np.moveaxis(children, -1, 0)), num_choices)
    leads_to = [set(row) for row in index.tolist()]
    distance = (archs[:, None] != archs).sum(-1)
    assert leads_to == [set(np.flatnonzero(row == 1).tolist()) for row in distance]
    for start in range(len(archs)):
        reached, frontier = {start}, {start}
        while frontier:
            frontier = set().union(*(leads_to[i] for i in frontier)) - reached
            reached |= frontier
        assert reached == set(range(len(archs)))


@pytest.mark.parametrize("length", [1, 31, 32, 33, 70])
def test_crossover_takes_each_decision_from_either_parent_by_a_fair_coin(length):
    first, second = np.zeros(length, np.int32), np.ones(length, np.int32)
    children = np.asarray(jax.jit(jax.vmap(
        lambda key: mutations.crossover(key, first, second)))(keys(3, 4000)))
    assert children.shape == (4000, length) and children.dtype == np.int32
    assert np.isin(children, (0, 1)).all()
    deviation = 0.5 / 4000 ** 0.5
    assert np.abs(children.mean(0) - 0.5).max() < 5 * deviation
    signs = 2.0 * children - 1
    correlation = signs.T @ signs / 4000 - np.eye(length)
    assert np.abs(correlation).max() < 5 * 2 * deviation  # coins are independent in pairs


def test_crossover_keeps_what_parents_share():
    first, second = np.array([3, 1, 4, 1], np.int32), np.array([3, 5, 4, 2], np.int32)
    children = np.asarray(jax.vmap(lambda key: mutations.crossover(key, first, second))(
        keys(4, 200)))
    assert {tuple(child) for child in children.tolist()} == set(
        itertools.product((3,), (1, 5), (4,), (1, 2)))


@pytest.mark.parametrize("num_choices", [TINY, EVEN, (1, 5), (2, 1, 1, 3)], ids=str)
def test_neighbors_are_all_archs_at_distance_one_without_repeats(num_choices):
    archs, count = all_archs(num_choices), mutations.num_neighbors(num_choices)
    neighbor = jax.jit(jax.vmap(jax.vmap(
        lambda arch, index: mutations.neighbor(arch, index, num_choices), (None, 0)), (0, None)))
    neighbors = np.asarray(neighbor(archs, np.arange(count)))
    assert neighbors.dtype == np.int32
    distance = mutations.edit_distance(archs[:, None], archs[None])
    for row, found in zip(np.asarray(distance), neighbors):
        unique = {tuple(arch) for arch in found.tolist()}
        assert len(unique) == count
        assert unique == {tuple(arch) for arch in archs[row == 1].tolist()}


def test_edit_distance_counts_decisions():
    first, second = np.array([[0, 1, 2], [2, 0, 0]]), np.array([0, 0, 2])
    distance = mutations.edit_distance(first, second)
    np.testing.assert_array_equal(distance, [1, 2])
    assert distance.dtype == jnp.int32
    assert mutations.edit_distance(second, second) == 0


def test_validity_is_the_range_of_every_decision():
    archs = np.array(list(itertools.product(range(-1, 4), repeat=4)), np.int32)
    valid = np.asarray(jax.vmap(lambda arch: mutations.is_valid(arch, TINY))(archs))
    assert valid.sum() == 12
    np.testing.assert_array_equal(archs[valid], all_archs(TINY))


def test_shift_wraps_around():
    arch = np.array([1, 2, 0, 1], np.int32)
    np.testing.assert_array_equal(mutations.shift(arch, 1, 2, TINY), [1, 1, 0, 1])
    np.testing.assert_array_equal(mutations.shift(arch, 0, 1, TINY), [0, 2, 0, 1])


@pytest.mark.parametrize("num_choices", [(), (0,), (3, 65_537), (2, 2.0), (2, "3")])
def test_wrong_numbers_of_choices(num_choices):
    with pytest.raises(ValueError, match=r"integers in \[1, 65536\]"):
        mutations.check_num_choices(num_choices)


def test_nothing_to_mutate():
    np.testing.assert_array_equal(mutations.free_positions(TINY), [0, 1, 3])
    with pytest.raises(ValueError, match="one decision must have two choices"):
        mutations.mutate(jax.random.key(0), np.zeros(2, np.int32), (1, 1))
    mutations.check_num_choices((1, 65_536))
