"""Pareto fronts: worked examples, closed-form volumes, brute force on random points."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import pareto

MNASNET = np.array([(0.7, -50), (0.75, -80), (0.74, -90), (0.7, -40)], np.float32)
KEYS = range(6)
ranks, non_dominated, front = map(jax.jit, (pareto.ranks, pareto.non_dominated, pareto.front))
crowding, volume = jax.jit(pareto.crowding_distance), jax.jit(pareto.hypervolume)


def random_points(seed, num_objectives, num_rows=40):
    """Small integers, so that ties and equal rows abound; a tenth failed; and a mask."""
    generator = np.random.default_rng(seed)
    points = generator.integers(0, (4, 9, 30)[seed % 3], (num_rows, num_objectives))
    points = points.astype(np.float32)
    points[generator.random(points.shape) < 0.05] = np.nan
    points[generator.random(points.shape) < 0.02] = np.inf
    return points, generator.random(num_rows) < 0.8


def beats(first, second):
    return all(a >= b for a, b in zip(first, second)) and any(
        a > b for a, b in zip(first, second))


def brute_ranks(points, mask):
    left = {i for i in range(len(points)) if mask[i] and np.isfinite(points[i]).all()}
    rank = np.full(len(points), len(points))
    for number in itertools.count():
        if not left:
            return rank
        now = {i for i in left if not any(beats(points[j], points[i]) for j in left)}
        rank[list(now)] = number
        left -= now


def brute_volume(points, reference, mask):
    """Count the unit cubes that some point covers; integers only."""
    rows = points[mask & np.isfinite(points).all(1)]
    top = int(max([0, *(rows.max(0, initial=0) - reference)]))
    grid = np.stack(np.meshgrid(*[np.arange(top)] * points.shape[1], indexing="ij"), -1) + reference
    covered = np.zeros(grid.shape[:-1], bool)
    for row in rows:
        covered |= (grid < row).all(-1)
    return covered.sum()


def test_the_worked_front_of_mnasnet():
    found = front(MNASNET)
    np.testing.assert_array_equal(
        MNASNET[found.indices[:found.size]], np.array([(0.7, -40), (0.75, -80)], np.float32))
    np.testing.assert_array_equal(non_dominated(MNASNET), [False, True, False, True])
    np.testing.assert_array_equal(ranks(MNASNET), [1, 0, 1, 0])


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4])
def test_fronts_against_brute_force(num_objectives):
    for seed in KEYS:
        points, mask = random_points(seed, num_objectives)
        expected = brute_ranks(points, mask)
        np.testing.assert_array_equal(ranks(points, mask), expected)
        np.testing.assert_array_equal(non_dominated(points, mask), expected == 0)
        found = front(points, mask)
        rows = points[np.asarray(found.indices)[:int(found.size)]]
        np.testing.assert_array_equal(rows, np.unique(points[expected == 0], axis=0))
        assert sorted(found.indices.tolist()) == list(range(len(points)))


def test_of_equal_rows_the_first_is_on_the_front():
    points = np.array([(0, 0), (1, 2), (2, 1), (1, 2), (2, 1)], np.float32)
    found = front(points)
    assert found.indices[:found.size].tolist() == [1, 2]


def test_failures_and_empty_fronts():
    points = np.array([(np.nan, 9), (1, 1), (np.inf, 1), (0, -np.inf)], np.float32)
    np.testing.assert_array_equal(non_dominated(points), [False, True, False, False])
    np.testing.assert_array_equal(ranks(points), [4, 0, 4, 4])
    none = np.zeros(4, bool)
    assert not non_dominated(points, none).any()
    assert int(front(points, none).size) == 0
    assert float(volume(points, np.zeros(2), none)) == 0
    rank = ranks(points, none)
    np.testing.assert_array_equal(crowding(points, rank), np.zeros(4))


# ---- crowding ------------------------------------------------------------------------------------


def test_crowding_by_hand():
    # One front: (0, 10), (1, 6), (4, 5), (10, 0), ranges 10 and 10; another: two rows.
    points = np.array([(4, 5), (10, 0), (0, 10), (1, 6), (0, 1), (1, 0)], np.float32)
    rank = ranks(points)
    np.testing.assert_array_equal(rank, [0, 0, 0, 0, 1, 1])
    np.testing.assert_allclose(
        crowding(points, rank),
        [9 / 10 + 6 / 10, np.inf, np.inf, 4 / 10 + 5 / 10, np.inf, np.inf], rtol=1e-6)


def brute_crowding(points, rank):
    distance = np.zeros(len(points))
    for number in set(rank.tolist()) - {len(points)}:
        rows = np.flatnonzero(rank == number)
        for values in points.T:
            ordered = rows[np.argsort(values[rows], kind="stable")]
            span = values[ordered[-1]] - values[ordered[0]]
            distance[ordered[[0, -1]]] = np.inf
            for before, row, after in zip(ordered, ordered[1:], ordered[2:]):
                distance[row] += (values[after] - values[before]) / span if span else 0
    return distance


@pytest.mark.parametrize("num_objectives", [2, 3])
def test_crowding_against_brute_force(num_objectives):
    for seed in KEYS:
        points, mask = random_points(seed, num_objectives)
        rank = brute_ranks(points, mask)
        np.testing.assert_allclose(
            crowding(points, rank), brute_crowding(points, rank), rtol=1e-5)


# ---- hypervolume ---------------------------------------------------------------------------------


def test_volumes_in_closed_form():
    assert float(volume(jnp.array([[3.0], [7.0], [-5.0]]), jnp.array([1.0]))) == 6
    # A staircase (i, n - i) from the origin: 1 + ... + (n - 1).
    n = 30
    stairs = np.array([(i, n - i) for i in range(n + 1)], np.float32)
    assert float(volume(stairs[::-1], np.zeros(2, np.float32))) == n * (n - 1) / 2
    # Inclusion and exclusion of three boxes 3 x 1 x 1 along the axes: 9 - 3 + 1.
    boxes = np.array([(3, 1, 1), (1, 3, 1), (1, 1, 3)], np.float32)
    assert float(volume(boxes, np.zeros(3, np.float32))) == 7
    # Below the reference in one objective: nothing.
    assert float(volume(boxes, np.array([0, 0, 5], np.float32))) == 0
    # MnasNet's example above (0.6, -100): 0.1 * 60 + 0.05 * 20
    found = volume(MNASNET, np.array([0.6, -100], np.float32))
    np.testing.assert_allclose(found, 7.0, rtol=1e-5)


def test_the_volume_under_a_circle():
    angle = np.linspace(0, np.pi / 2, 4001)
    points = np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)
    found = volume(points, np.zeros(2, np.float32))
    np.testing.assert_allclose(found, np.pi / 4, atol=5e-4)


@pytest.mark.parametrize("num_objectives", [1, 2, 3])
def test_volumes_against_counted_cubes(num_objectives):
    for seed in KEYS:
        points, mask = random_points(seed, num_objectives, num_rows=12)
        for reference in (np.zeros(num_objectives), np.arange(num_objectives) + 1.0):
            expected = brute_volume(points, reference, mask)
            np.testing.assert_allclose(
                volume(points, reference.astype(np.float32), mask), expected, rtol=1e-6)


def test_seeds_are_a_vmap():
    both = [random_points(seed, 2) for seed in KEYS]
    points, masks = (np.stack(part) for part in zip(*both))
    mapped = jax.jit(jax.vmap(lambda p, m: (
        ranks(p, m), volume(p, jnp.zeros(2), m), front(p, m).size)))
    for row, (p, m) in enumerate(both):
        rank, area, count = (part[row] for part in mapped(points, masks))
        np.testing.assert_array_equal(rank, brute_ranks(p, m))
        np.testing.assert_allclose(area, brute_volume(p, np.zeros(2), m), rtol=1e-6)
        assert count == len(np.unique(p[brute_ranks(p, m) == 0], axis=0))


@pytest.mark.parametrize("call, message", [
    (lambda: pareto.ranks(jnp.zeros(3)), r"points must be \[N >= 1, M >= 1\], got \[3\]"),
    (lambda: pareto.front(jnp.zeros((0, 2))), r"got \[0, 2\]"),
    (lambda: pareto.non_dominated(jnp.zeros((3, 2)), jnp.ones(2, bool)), r"mask must be \[3\]"),
    (lambda: pareto.hypervolume(jnp.zeros((3, 4)), jnp.zeros(4)), "1 to 3 objectives, got 4"),
    (lambda: pareto.hypervolume(jnp.zeros((3, 2)), jnp.zeros(3)), r"reference must be \[2\]"),
])
def test_bad_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
