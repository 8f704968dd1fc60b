"""NAS with RL: encoding, texts, size, canonical order of layers, and costs by closed form."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.networks.chain_layout import FilterChoices, unpack
from jaxnas.search_spaces.nasrl import NASRL

PLAIN = NASRL(5)
STRIDED = NASRL(4, FilterChoices(strides=(1, 2, 3)))
TWO = FilterChoices((3,), (3,), (24, 36))  # only the number of filters is free
# Section 2.3 of the specification: 3x3x24, 5x5x36 and 1x7x48 filters, all skip connections.
TOY = "3x3x24|5x5x36:1|1x7x48:11"
spaces = pytest.mark.parametrize("space", [PLAIN, STRIDED], ids=["plain", "strided"])


@functools.cache
def drawn(space):
    keys = jax.random.split(jax.random.key(0), 1000)
    draw = jax.jit(jax.vmap(lambda key: (
        parent := space.sample(key), space.mutate(jax.random.fold_in(key, 1), parent),
        space.canonical(parent), space.canonical(space.canonical(parent)))))
    return [np.asarray(a) for a in draw(keys)]


def built(network, shape=(32, 32, 3)):
    variables = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_lengths_and_size_of_the_paper():
    assert len(NASRL(15).num_choices) == 150
    assert NASRL(6).size == 64 ** 6 * 2 ** 15 == pytest.approx(2.25e15, rel=0.01)
    assert STRIDED.num_choices[:11] == (4, 4, 3, 3, 4, 4, 4, 3, 3, 4, 2)


@spaces
def test_thousand_archs(space):
    parents, children, canonical, again = drawn(space)
    valid = jax.jit(jax.vmap(space.is_valid))
    assert valid(parents).all() and valid(children).all() and valid(canonical).all()
    np.testing.assert_array_equal((parents != children).sum(1), 1)
    np.testing.assert_array_equal(canonical, again)
    for arch, smallest in zip(parents, canonical):
        np.testing.assert_array_equal(space.encode(space.decode(arch)), arch)
        assert tuple(smallest) <= tuple(arch)
    for arch, smallest in zip(parents[:50], canonical):
        assert space.num_parameters(arch) == space.num_parameters(smallest)


def shuffled(space, arch, order):
    """Renumber the layers of an arch: layer order[i] becomes layer i; None if an edge turns."""
    length, width = space.num_layers, len(space.words)
    own, skips = unpack(arch, length, width)
    skips = skips[np.ix_(order, order)]
    if np.triu(skips).any():
        return None
    return np.concatenate([[*own[layer], *skips[i, :i]] for i, layer in enumerate(order)])


@pytest.mark.parametrize("num_layers, count", [(3, 64), (4, 1024), (5, 300)])
def test_canonical_is_the_smallest_of_all_orders(num_layers, count):
    space = NASRL(num_layers, TWO)
    archs = np.array(list(itertools.product(*map(range, space.num_choices))), np.int32)
    archs = archs[:: len(archs) // count][:count]  # of up to 4 layers all
    canonical = np.asarray(jax.jit(jax.vmap(space.canonical))(archs))
    orders = list(map(np.array, itertools.permutations(range(num_layers))))
    for arch, found in zip(archs, canonical):
        same = (shuffled(space, arch, order) for order in orders)
        assert tuple(found) == min(tuple(other) for other in same if other is not None)
    assert len(np.unique(canonical, axis=0)) < count


def test_shuffled_deep_archs_have_one_canonical_form():
    space, random = NASRL(15), np.random.default_rng(0)
    pairs = []
    for _ in range(300):
        arch = random.integers(0, space.num_choices).astype(np.int32)
        own, skips = unpack(arch, 15, 3)
        sparse = skips * (random.random(skips.shape) < 0.3)
        arch = np.concatenate([[*own[i], *sparse[i, :i]] for i in range(15)])
        order: list[int] = []
        while len(order) < 15:
            ready = [i for i in range(15) if i not in order
                     and set(np.flatnonzero(sparse[i])) <= set(order)]
            order.append(int(random.choice(ready)))
        pairs.append((arch, shuffled(space, arch, np.array(order))))
    first, second = jax.jit(jax.vmap(jax.vmap(space.canonical)))(np.array(pairs)).swapaxes(0, 1)
    np.testing.assert_array_equal(first, second)
    assert (np.array(pairs)[:, 0] != np.array(pairs)[:, 1]).any(1).all()


def test_toy_of_the_specification():
    space = NASRL(3)
    arch = space.encode(TOY)
    np.testing.assert_array_equal(arch, [1, 1, 0, 2, 2, 1, 1, 0, 3, 2, 1, 1])
    assert space.num_parameters(arch) == built(space.network(arch)) == 43_114
    assert float(jax.jit(space.num_parameters)(arch)) == 43_114
    convolutions = 648 + 21_600 + 20_160
    assert space.multiply_adds(arch) == 1024 * convolutions + 480


@spaces
def test_closed_forms_agree_with_networks_and_with_each_other(space):
    parents = drawn(space)[0]
    shape = (16, 9, 2)

    def both(arch):
        return (space.num_parameters(arch, num_classes=7, channels=2),
                space.multiply_adds(arch, num_classes=7, shape=shape))

    traced = jax.jit(jax.vmap(both))(parents)
    host = np.array([both(arch) for arch in parents]).T
    assert host.dtype == np.int64
    np.testing.assert_allclose(traced, host, rtol=1e-6)
    for arch, parameters, multiply_adds in zip(parents[:5], *host):
        network = space.network(arch, num_classes=7)
        costs = [cost for _, cost in network.costs(shape)]
        assert sum(cost.parameters for cost in costs) == parameters == built(network, shape)
        assert sum(cost.multiply_adds for cost in costs) == multiply_adds


def test_texts_of_strides():
    space = NASRL(2, FilterChoices(strides=(1, 2, 3)))
    arch = space.encode("3x5s2x1x24|1x1s1x3x64:1")
    np.testing.assert_array_equal(arch, [1, 2, 1, 0, 0, 0, 0, 0, 2, 3, 1])
    assert space.decode(arch) == "3x5s2x1x24|1x1s1x3x64:1"
    with pytest.raises(ValueError, match="layer 0 must begin like '1x1s1x1x24'"):
        space.encode("3x5x24|1x1s1x3x64:1")


@pytest.mark.parametrize("num_layers", [0, 32, "3"])
def test_bad_numbers_of_layers_are_named(num_layers):
    with pytest.raises(ValueError, match="num_layers must be an integer in"):
        NASRL(num_layers)


@pytest.mark.parametrize("options", [
    {"heights": (2,)}, {"widths": ()}, {"features": (24, 24)}, {"strides": [1]},
    {"features": (0,)}, {"strides": (True,)}])
def test_bad_choices_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        FilterChoices(**options)
