"""Random search: uniform, independent, with replacement."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnas import encodings, fast_keys, objectives, search
from jaxnas.search_spaces import Product
from jaxnas.searchers import random_search

SPACE = Product((3, 2, 4))


@pytest.mark.parametrize("make, batch_size", [(fast_keys.key, 1), (jax.random.key, 4)])
def test_evaluations_are_uniform_and_independent(make, batch_size):
    searcher = random_search(SPACE, batch_size=batch_size)
    history = jax.jit(lambda key: search.run(
        key, searcher, lambda key, archs: {"a": jnp.nan * archs[:, 0]}, objectives.maximize("a"),
        num_steps=24_000 // batch_size))(make(0))
    chex.assert_shape(history.archs, (24_000 // batch_size, batch_size, 3))
    assert history.info == {}
    index = np.asarray(encodings.flat_index(history.archs.reshape(-1, 3), SPACE.num_choices))
    assert stats.chisquare(np.bincount(index, minlength=24)).pvalue > 1e-3
    pairs = index[:-1] * 24 + index[1:]  # with replacement: the next one may be the same
    assert stats.chisquare(np.bincount(pairs, minlength=576)).pvalue > 1e-3


def test_only_evaluations_are_counted():
    searcher = random_search(SPACE, batch_size=3)
    state = searcher.init(None)
    archs = searcher.ask(jax.random.key(0), state)
    for _ in range(2):
        state, info = searcher.tell(None, state, archs, jnp.array([1.0, jnp.nan, 2.0]))
    assert state.num_evaluated == 6 and state.num_evaluated.dtype == jnp.int32 and not info
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        random_search(SPACE, batch_size=0)
