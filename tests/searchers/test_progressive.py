"""Progressive search: levels, beams, growth, against brute force and PNAS's counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import fast_keys, objectives, search
from jaxnas.base import Surrogate
from jaxnas.search_spaces import PNAS, GrowingPNAS, NASBench201, Product
from jaxnas.searchers import GrowingDecisions, progressive

KEY = fast_keys.key(0)
# Predicts the number of ones and twos: the fit is not used.
KNOWN = Surrogate(lambda key, archs, fitness, mask: jnp.float32(0),
                  lambda model, archs: (jnp.sum(archs, -1) / 1.0, jnp.zeros(len(archs))))


def run(space, num_steps, surrogate=KNOWN, metric=lambda archs: jnp.sum(archs, -1), **options):
    searcher = progressive(space, surrogate, **options)
    return jax.jit(lambda key: search.run(
        key, searcher, lambda key, archs: {"f": metric(archs).astype(jnp.float32)},
        objectives.maximize("f"), num_steps=num_steps))(KEY)


def sizes_of(archs):
    return (np.asarray(archs) != 0).sum(-1)


def test_levels_of_a_product_are_the_best_of_each_size():
    space = GrowingDecisions(Product((3,) * 4))
    assert space.num_sizes == 4 and space.smallest()[1].sum() == 8
    history = run(space, 8 + 3 * 5, capacity=23, beam_size=5)
    archs = np.asarray(history.archs)[:, 0]
    np.testing.assert_array_equal(sizes_of(archs), [1] * 8 + [2] * 5 + [3] * 5 + [4] * 5)
    # Of size 2: 24 architectures, of which the 6 best are two twos.
    for start, size in ((8, 2), (13, 3), (18, 4)):
        values = archs[start:start + 5].sum(-1)
        assert values[0] == 2 * size and (np.diff(values) <= 0).all()
    assert len(np.unique(archs, axis=0)) == 23
    sizes = np.asarray(history.info["size"])  # of what is asked for next
    np.testing.assert_array_equal(sizes[[6, 7, 12, 17, 22]], [1, 2, 3, 4, 4])


def test_the_last_level_goes_on_and_then_draws():
    space = GrowingDecisions(Product((2,) * 3))
    history = run(space, 12, capacity=12, beam_size=2)
    archs = np.asarray(history.archs)[:, 0]
    # 3 of one, 2 of two, 1 of three; then nothing is left to expand
    np.testing.assert_array_equal(sizes_of(archs[:6]), [1, 1, 1, 2, 2, 3])
    assert history.info["size"][-1] == 3


def test_known_networks_are_expanded_and_not_asked_for():
    cells = NASBench201()
    space = GrowingDecisions(cells)
    assert space.smallest()[1].sum() == 24  # of which 20 lead nowhere
    history = run(space, 60, capacity=60, beam_size=40, level_size=10)
    archs = np.asarray(history.archs)[:, 0]
    networks = np.asarray(jax.vmap(cells.canonical)(archs))
    assert len(np.unique(networks, axis=0)) == 60
    assert history.info["size"][-1] == 6 and (sizes_of(archs) == 6).any()


def test_batches_and_failures():
    space = GrowingDecisions(Product((4,) * 4))
    history = run(space, 9, capacity=36, beam_size=8, batch_size=4,
                  metric=lambda archs: jnp.where(archs[:, 0] == 2, jnp.nan, archs.sum(-1)))
    sizes = sizes_of(history.archs)
    expected = np.repeat([1, 2, 3, 4], [3, 2, 2, 2])
    np.testing.assert_array_equal(sizes, np.stack([expected] * 4, -1))
    assert np.isfinite(np.asarray(history.info["best"])).all()


def test_pnas_levels_are_the_best_of_all_expansions_of_the_beam():
    # Brute force on the host: expand, canonicalise, leave out equals, rank.
    growing = GrowingPNAS(PNAS(num_blocks=3, operations=PNAS().operations[:2]))
    weights = jnp.asarray(np.random.default_rng(0).normal(size=12), jnp.float32)
    score = Surrogate(KNOWN.fit, lambda model, archs: (archs @ weights, jnp.zeros(len(archs))))
    history = run(growing, 10 + 2 * 6, surrogate=score, capacity=22, beam_size=6,
                  metric=lambda archs: archs @ weights)
    archs = np.asarray(history.archs)[:, 0]
    assert len(np.unique(archs[:10], axis=0)) == 10
    parents = archs[:10]
    for start, blocks in ((10, 2), (16, 3)):
        small, large = growing.space(blocks - 1), growing.space(blocks)
        expanded = np.asarray(small.expand(parents[:, :4 * blocks - 4])).reshape(-1, 4 * blocks)
        unique = np.unique(jax.vmap(large.canonical)(jnp.asarray(expanded)), axis=0)
        values = growing.pad(unique) @ np.asarray(weights)
        level = archs[start:start + 6]
        best = growing.pad(unique[np.argsort(-values)[:6]])
        np.testing.assert_array_equal(level, best)
        parents = level


def test_published_budget():
    # 136 cells of one block and 4 * 256 more are 1,160.
    growing = GrowingPNAS()
    searcher = progressive(growing, KNOWN, capacity=1160, beam_size=256, batch_size=8)
    state = jax.eval_shape(searcher.init, KEY)
    assert state.queue.shape == (256, 20) and state.observed.archs.shape == (1160, 20)
    assert growing.num_smallest == len(growing.smallest()[0]) == 136 and 136 % 8 == 256 % 8 == 0


@pytest.mark.parametrize("options, message", [
    ({"beam_size": 0}, "beam_size must be 1 or more"),
    ({"level_size": 0}, "level_size must be 1 or more"),
    ({"capacity": 0}, "capacity must be the number of evaluations")])
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        progressive(GrowingDecisions(Product((3,) * 4)), KNOWN, **{"capacity": 50, **options})


def test_draws_where_nothing_grows():
    class Nothing(Product):
        def is_valid(self, arch):
            return jnp.sum(arch) > 1

        def sample(self, key):
            return jnp.ones(2, jnp.int32)

    history = run(GrowingDecisions(Nothing((2, 2))), 3, capacity=3)
    np.testing.assert_array_equal(history.archs, np.ones((3, 1, 2)))


def test_refuses_a_base_outside():
    with pytest.raises(ValueError, match="base must be one of the choices"):
        GrowingDecisions(Product((3, 2)), base=(0, 2))
