"""Flat index, words and one-hot, against NumPy and plain loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import encodings

SHAPES = ((4,), (1,), (2, 3, 5), (1, 7, 1, 2), (5,) * 6, (2,) * 30, (65_536, 32_767),
          (3, 1, 4, 1, 5))


def random_archs(num_choices, count=1000):
    return np.random.default_rng(0).integers(0, num_choices, (count, len(num_choices)), np.int32)


@pytest.mark.parametrize("num_choices", SHAPES, ids=str)
def test_flat_index_is_that_of_numpy(num_choices):
    archs = random_archs(num_choices)
    archs[0], archs[1] = 0, np.array(num_choices) - 1
    index = jax.jit(encodings.flat_index, static_argnums=1)(archs, num_choices)
    assert index.shape == (1000,) and index.dtype == jnp.int32
    np.testing.assert_array_equal(index, np.ravel_multi_index(tuple(archs.T), num_choices))
    assert index[0] == 0 and index[1] == encodings.space_size(num_choices) - 1
    back = jax.jit(encodings.from_flat_index, static_argnums=1)(index, num_choices)
    assert back.dtype == jnp.int32
    np.testing.assert_array_equal(back, archs)


def test_flat_index_numbers_a_whole_space_in_order():
    archs = np.array(list(itertools.product(range(2), range(3), range(4))), np.int32)
    np.testing.assert_array_equal(encodings.flat_index(archs, (2, 3, 4)), np.arange(24))
    np.testing.assert_array_equal(encodings.from_flat_index(np.arange(24), (2, 3, 4)), archs)
    assert encodings.space_size((2, 3, 4)) == 24


def test_leading_axes_are_kept():
    archs = random_archs((2, 3, 5)).reshape(10, 20, 5, 3)
    index = encodings.flat_index(archs, (2, 3, 5))
    assert index.shape == (10, 20, 5)
    np.testing.assert_array_equal(encodings.from_flat_index(index, (2, 3, 5)), archs)
    assert encodings.words(archs, (2, 3, 5)).shape == (10, 20, 5, 1)
    assert encodings.one_hot(archs, (2, 3, 5)).shape == (10, 20, 5, 10)
    assert encodings.flat_index(archs[0, 0, 0], (2, 3, 5)).shape == ()
    np.testing.assert_array_equal(encodings.from_flat_index(7, (2, 3, 5)), [0, 1, 2])


@pytest.mark.parametrize("call", [encodings.flat_index, encodings.from_flat_index])
def test_too_many_architectures_for_an_index(call):
    assert encodings.MAX_FLAT_SIZE == 2 ** 31 - 1
    with pytest.raises(ValueError, match="2147483647 combinations, .*2147483648; .*words"):
        call(np.zeros(31, np.int32), (2,) * 31)


@pytest.mark.parametrize("num_choices, num_words", [
    ((2,) * 30, 1), ((2,) * 31, 2), ((5,) * 40, 4), ((65_536, 65_536, 2), 2), ((1, 1, 3), 1),
    ((3, 65_536, 7, 40_000, 2, 2, 1), 2)], ids=str)
def test_words_are_few_injective_and_ordered(num_choices, num_words):
    archs = random_archs(num_choices)
    archs[::7, 1:] = archs[1::7, 1:][0]   # some that differ in few decisions
    archs[5::9] = archs[6]                # and some that do not differ
    words = np.asarray(jax.jit(encodings.words, static_argnums=1)(archs, num_choices))
    assert words.shape == (1000, num_words) and words.dtype == np.int32 and (words >= 0).all()
    by_arch = sorted(range(1000), key=lambda row: (archs[row].tolist(), row))
    by_words = sorted(range(1000), key=lambda row: (words[row].tolist(), row))
    assert by_arch == by_words
    assert len(np.unique(words, axis=0)) == len(np.unique(archs, axis=0))
    for row, following in zip(by_arch, by_arch[1:]):
        assert (archs[row] == archs[following]).all() == (words[row] == words[following]).all()


@pytest.mark.parametrize("num_choices", [(2, 3, 5), (1, 4, 1), (5,) * 6], ids=str)
def test_one_hot_against_a_loop(num_choices):
    archs = random_archs(num_choices, 50)
    expected = np.zeros((50, sum(num_choices)), np.float32)
    for row, arch in enumerate(archs):
        start = 0
        for value, count in zip(arch, num_choices):
            expected[row, start + value] = 1
            start += count
    encoded = encodings.one_hot(archs, num_choices)
    assert encoded.dtype == jnp.float32
    np.testing.assert_array_equal(encoded, expected)


EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # NAS-Bench-201's
ROUTES = ((3,), (0, 4), (1, 5), (0, 2, 5))  # the same as edges


@pytest.mark.parametrize("absent, count", [(None, 180), (0, 100)])
def test_paths_are_those_of_a_walk(absent, count):
    archs = random_archs((5,) * 6, 50)
    features = np.asarray(jax.jit(
        lambda a: encodings.paths(a, EDGES, (5,) * 6, absent=absent))(archs))
    assert features.shape == (50, count) and set(np.unique(features)) == {0, 1}
    sets = []
    for arch in archs:
        walks = [tuple(arch[list(route)]) for route in ROUTES]
        sets.append({walk for walk in walks if absent is None or absent not in walk})
    np.testing.assert_array_equal(
        features.sum(1), [sum(absent is None or absent not in arch[list(route)]
                              for route in ROUTES) for arch in archs])
    for i, j in itertools.combinations(range(50), 2):
        if sets[i] != sets[j]:  # routes apart, equal features mean equal walks
            assert (features[i] != features[j]).any()


def test_paths_ignore_what_leads_nowhere():
    dead = np.array([[0, 1, 2, 3, 4, 1], [0, 1, 3, 3, 1, 1]], np.int32)  # nothing reaches node 1
    first, second = encodings.paths(jnp.asarray(dead), EDGES, (5,) * 6, absent=0)
    np.testing.assert_array_equal(first, second)


def test_paths_refuse_other_edges():
    with pytest.raises(ValueError, match="edges must be 3 pairs"):
        encodings.paths(jnp.zeros(3, jnp.int32), EDGES, (2,) * 3)
    with pytest.raises(ValueError, match="from < to"):
        encodings.paths(jnp.zeros(1, jnp.int32), ((1, 1),), (2,))
