"""Predictions of cells against walks over the graphs, and the expectation against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import latency
from jaxnas.latency import cells
from jaxnas.latency.tables import LatencyTable
from jaxnas.networks import nasbench201
from jaxnas.networks.mixed import edge_index
from jaxnas.search_spaces import DARTS, NASBench201

OVERHEAD = 0.25
DARTS_SHAPE = (16, 16, 3)


def fake(price, title, count):
    """A `load_or_build` in which a unit takes `price(unit)` ms."""
    def load_or_build(name, units, calibrations, **options):
        assert name == title and len(units) == count
        known = {unit.name: price(unit) for unit in units}
        assert len(known) == count
        assert all(part in known for _, _, counts in calibrations for part in counts)
        return LatencyTable(known, OVERHEAD)
    return load_or_build


def random_price():
    generator, prices = np.random.default_rng(0), {}
    return lambda unit: prices.setdefault(unit.name, generator.exponential())


@functools.cache
def nasbench201_predicted():
    return latency.nasbench201_latency(
        (8, 8, 1), features=2, cells=3, batch_size=1, directory=None,
        load_or_build=fake(random_price(), "nasbench201", 12))


@functools.cache
def darts_predicted(layers=3):
    # Seven operations at each of five places: three resolutions of stride 1, two halvings.
    return latency.darts_latency(
        DARTS().choices, 4, DARTS_SHAPE, features=2, layers=layers, num_classes=10, batch_size=1,
        directory=None, load_or_build=fake(random_price(), "darts", 7 * 5))


def walk(arch, known):
    """Sum over the edges that join input and output, by searching the graph both ways."""
    edges = [(i, j, op) for (i, j), op in zip(nasbench201.EDGES, arch) if op]
    fed, used = {0}, {3}
    for _ in range(4):
        fed |= {j for i, j, _ in edges if i in fed}
        used |= {i for i, j, _ in edges if j in used}
    total = OVERHEAD
    for source, target, op in edges:
        if source in fed and target in used:
            for stage in range(3):
                size = 8 >> stage
                name = f"{nasbench201.OPERATIONS[op]}_at_{size}x{size}x{2 << stage}"
                total += 3 * known[name]
    return total


def test_nasbench201_is_the_sum_over_edges_in_use():
    found = nasbench201_predicted()
    archs = np.stack(np.unravel_index(np.arange(0, 5 ** 6, 7), (5,) * 6), -1).astype(np.int32)
    expected = [walk(arch, found.table.milliseconds) for arch in archs.tolist()]
    np.testing.assert_allclose(jax.jit(found.nasbench201)(archs), expected, rtol=1e-5)
    space = NASBench201()
    connected = np.asarray(jax.jit(space.is_connected)(archs))
    cut = np.array(expected)[~connected]
    np.testing.assert_array_equal(cut, OVERHEAD)


@pytest.mark.parametrize("layers", [3, 8])
def test_derived_cells_are_sums_over_their_edges(layers):
    space, found = DARTS(), darts_predicted(layers)
    archs = jax.jit(jax.vmap(space.sample))(jax.random.split(jax.random.key(0), 30))
    known = found.table.milliseconds
    expected = []
    for arch in np.asarray(archs):
        genotype, total = space.decode(arch), OVERHEAD
        size, features = 16, 2
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            features *= 2 if reduction else 1
            cell = genotype.reduction if reduction else genotype.normal
            inner = size // 2 if reduction else size
            for name, source in cell.edges:
                at = size if source < 2 else inner
                stride = 2 if reduction and source < 2 else 1
                total += known[f"{name}_s{stride}_at_{at}x{at}x{features}"]
            size = inner
        expected.append(total)
    np.testing.assert_allclose(jax.jit(found.derived)(archs), expected, rtol=1e-5)


def one_hot(space, arch):
    """Probabilities [2, E, O] of certain edges; those that are not derived are certainly none."""
    weights = np.zeros(space.alphas_shape, np.float32)
    weights[..., 0] = 1
    for cell, rows in zip(weights, arch.reshape(2, -1, 2)):
        for row, (operation, source) in enumerate(rows):
            edge = edge_index(row // 2, source)
            cell[edge, 0], cell[edge, 1 + operation] = 0, 1
    return jnp.asarray(weights)


def test_expected_latency_of_certain_cells_is_that_of_the_derived_ones():
    space, found = DARTS(), darts_predicted()

    @jax.jit
    def compare(weights, arch):
        alphas = 60 * weights  # of which the softmax is certain too
        return (found.expected(weights[..., 1:]), found.derived(arch),
                found.expected(space.weights(alphas)[..., 1:]),
                found.derived(space.discretize(alphas)))

    for arch in np.asarray(jax.vmap(space.sample)(jax.random.split(jax.random.key(1), 20))):
        values = compare(one_hot(space, arch), arch)
        np.testing.assert_allclose(values, values[1], rtol=1e-5)
        assert values[1] > OVERHEAD


def test_expected_latency_of_equal_probabilities_is_the_mean_of_random_cells():
    space, found = DARTS(), darts_predicted()
    expected = OVERHEAD + sum(
        2 * found.edges[:, edge_index(node, 0):edge_index(node, 0) + node + 2].mean((1, 2)).sum()
        for node in range(4))
    uniform = jnp.full((2, 14, 7), 1 / 8)
    np.testing.assert_allclose(jax.jit(found.expected)(uniform), expected, rtol=1e-5)
    keys = jax.random.split(jax.random.key(2), 4000)
    means = np.asarray(jax.jit(lambda keys: found.derived(jax.vmap(space.sample)(keys)))(keys))
    error = means.std() / np.sqrt(len(means))
    assert abs(means.mean() - expected) < 5 * error


def test_none_on_every_edge_alike_changes_nothing():
    space, found = DARTS(), darts_predicted()
    alphas = jax.random.normal(jax.random.key(3), space.alphas_shape)
    weights, expected = space.weights(alphas)[..., 1:], jax.jit(found.expected)
    np.testing.assert_allclose(expected(weights), expected(0.3 * weights), rtol=1e-5)
    assert expected(jnp.zeros((2, 14, 7))) == OVERHEAD


def test_gradient_of_the_expectation_agrees_with_differences():
    space, found = DARTS(), darts_predicted()
    alphas = jax.random.normal(jax.random.key(4), space.alphas_shape)
    direction = jax.random.normal(jax.random.key(5), space.alphas_shape)

    @jax.jit
    def expected(alphas):
        return found.expected(space.weights(alphas)[..., 1:])

    step = 1e-2
    numeric = (expected(alphas + step * direction) - expected(alphas - step * direction)) / (
        2 * step)
    exact = jnp.sum(jax.grad(expected)(alphas) * direction)
    np.testing.assert_allclose(exact, numeric, rtol=2e-2)


def test_places_halve_and_double():
    found = list(cells.places((32, 32, 3), 16, 8))
    assert [place.reduction for place in found] == [False, False, True, False, False, True,
                                                    False, False]
    assert found[2] == (True, (32, 32, 32), (16, 16, 32))
    assert found[7] == (False, (8, 8, 64), (8, 8, 64))
