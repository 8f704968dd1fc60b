"""Batches are a pure function of (key, step) and cover every image."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import data

KEY = jax.random.key(5)


def test_epoch_permutation_covers_everything_and_changes():
    orders = np.stack([data.epoch_permutation(KEY, epoch, 101) for epoch in range(4)])
    assert orders.dtype == np.int32
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(101), (4, 1)))
    assert len({tuple(order) for order in orders}) == 4


def test_epoch_batches_equal_batch_indices_under_jit():
    n, batch_size = 23, 5
    steps = data.steps_per_epoch(n, batch_size)
    assert steps == 4
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def one(step):
        return data.batch_indices(KEY, step, n, batch_size)

    for epoch in range(3):
        batches = data.epoch_batches(KEY, epoch, n, batch_size)
        chex.assert_shape(batches, (steps, batch_size))
        assert batches.dtype == jnp.int32
        assert len(np.unique(batches)) == steps * batch_size
        for i in range(steps):
            step = jnp.int32(epoch * steps + i)
            np.testing.assert_array_equal(batches[i], one(step))
            np.testing.assert_array_equal(
                batches[i], data.batch_indices(KEY, int(step), n, batch_size))


def test_the_dropped_remainder_changes_with_the_epoch():
    seen = [set(np.ravel(data.epoch_batches(KEY, epoch, 11, 4)).tolist()) for epoch in range(20)]
    assert set.union(*seen) == set(range(11)) and len(set(map(frozenset, seen))) > 10


def test_epoch_batches_scan_with_a_traced_epoch():
    def epoch_sum(total, epoch):
        batches = data.epoch_batches(KEY, epoch, 12, 4)
        return total + batches.sum(), None

    total, _ = jax.jit(lambda: jax.lax.scan(epoch_sum, 0, jnp.arange(3)))()
    assert int(total) == 3 * 66


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_batch_size_out_of_range(batch_size):
    for function in (data.epoch_batches, data.batch_indices):
        with pytest.raises(ValueError, match=r"batch_size must be in \[1, 10\]"):
            function(KEY, 0, 10, batch_size)
