"""Indices from few random bits: exact arithmetic, range, uniformity, independence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnas import draws

COUNTS = (1, 2, 3, 5, 7, 255, 256, 257, 1000, 65_535, 65_536)


def bits(seed, count):
    return np.asarray(jax.random.bits(jax.random.key(seed), (count,)))


@pytest.mark.parametrize("count", COUNTS)
def test_take_is_the_integer_and_fractional_part_of_the_product(count):
    edges = [0, 1, 2 ** 16 - 1, 2 ** 16, 2 ** 31, 2 ** 32 - 2 ** 16, 2 ** 32 - 1]
    words = np.concatenate([np.array(edges, np.uint32), bits(0, 1000)])
    index, rest = draws.take(jnp.asarray(words), count)
    products = words.astype(np.uint64) * np.uint64(count)  # 48 bits at most
    assert index.dtype == jnp.int32 and rest.dtype == jnp.uint32
    np.testing.assert_array_equal(index, products >> np.uint64(32))
    np.testing.assert_array_equal(rest, products & np.uint64(2 ** 32 - 1))
    assert (index >= 0).all() and (index < count).all()


def test_take_broadcasts_traced_counts():
    words, counts = bits(1, 1000), np.arange(1000) % 60 + 1
    index, _ = jax.jit(draws.take)(words, counts)
    np.testing.assert_array_equal(index, words.astype(np.uint64) * counts.astype(np.uint64) >> 32)


@pytest.mark.parametrize("count", [2, 3, 5, 60])
def test_take_is_uniform(count):
    index, _ = draws.take(jnp.asarray(bits(2, 60_000)), count)
    assert stats.chisquare(np.bincount(index, minlength=count)).pvalue > 1e-3


def test_indices_of_one_word_are_jointly_uniform():
    word, places = jnp.asarray(bits(3, 60_000)), []
    for count in (5, 7, 3, 4):
        index, word = draws.take(word, count)
        places.append(np.asarray(index))
    joint = np.ravel_multi_index(places, (5, 7, 3, 4))
    assert stats.chisquare(np.bincount(joint, minlength=420)).pvalue > 1e-3


@pytest.mark.parametrize("counts, groups", [
    ((), ()), ((7,), ((0,),)), ((65_536, 1), ((0, 1),)), ((65_536, 2), ((0,), (1,))),
    ((2,) * 17, (tuple(range(16)), (16,))), ((256, 256, 2), ((0, 1), (2,))),
    ((300, 300, 2), ((0,), (1, 2))), ((1, 1, 1), ((0, 1, 2),))])
def test_groups_by_hand(counts, groups):
    assert draws.words_for(counts) == groups


def test_groups_keep_order_and_are_as_long_as_they_may_be():
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts = (2 ** rng.uniform(0, 16, rng.integers(1, 30))).astype(int).tolist()
        groups = draws.words_for(counts)
        assert [position for group in groups for position in group] == list(range(len(counts)))
        products = [np.prod([counts[position] for position in group]) for group in groups]
        assert max(products) <= 2 ** 16
        for product, following in zip(products, groups[1:]):
            assert product * counts[following[0]] > 2 ** 16


def test_indices_are_in_range_uniform_and_independent():
    counts = (3, 1, 5, 65_536, 2)  # three words
    drawn = jax.jit(jax.vmap(lambda key: jnp.stack(draws.indices(key, counts))))(
        jax.random.split(jax.random.key(0), 30_000))
    assert drawn.shape == (30_000, 5) and drawn.dtype == jnp.int32
    drawn = np.asarray(drawn)
    assert (drawn >= 0).all() and (drawn < counts).all()
    few = np.ravel_multi_index(
        (drawn[:, 0], drawn[:, 2], drawn[:, 3] >> 14, drawn[:, 3] & 1, drawn[:, 4]),
        (3, 5, 4, 2, 2))
    assert stats.chisquare(np.bincount(few, minlength=240)).pvalue > 1e-3


@pytest.mark.parametrize("counts, message", [
    ((), "at least"), ((2, 0), "got 0"), ((-1,), "got -1"), ((65_537,), "got 65537")])
def test_errors(counts, message):
    with pytest.raises(ValueError, match=message):
        draws.indices(jax.random.key(0), counts)
