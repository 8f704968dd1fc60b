"""What the benchmarks read off a program: all-reduces, as often as its loops run them."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import collectives, scaling_model
from benchmarks.collectives import Collectives


def compiled(function, shape):
    mapped = jax.pmap(function, axis_name="d", devices=jax.local_devices()[:2])
    return mapped.lower(jnp.ones((2, *shape))).compile().as_text()


def test_loops_count_as_often_as_they_run():
    def function(x):
        def turn(carry, weight):
            def inner(carry, _):
                return jax.lax.pmean(jnp.sin(carry * weight), "d"), None
            return jax.lax.scan(inner, carry, None, length=3)[0], None

        carry, _ = jax.lax.scan(turn, x, jnp.arange(5.0))
        return jax.lax.psum(carry @ carry.T, "d")

    # 15 of [3, 4] and one of [3, 3], in float32
    assert collectives.all_reduces(compiled(function, (3, 4))) == Collectives(16, 15 * 48 + 36)


def test_a_conditional_counts_as_its_largest_branch():
    def function(x):
        return jax.lax.cond(x.sum() > 0, lambda x: jax.lax.psum(jnp.sin(x), "d"), jnp.cos, x)

    assert collectives.all_reduces(compiled(function, (8,))) == Collectives(1, 32)


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        collectives.all_reduces("nothing")


def test_the_model_at_its_limits():
    search = scaling_model.Search(
        compute_seconds=1.0, all_reduce_bytes=1e9, bandwidth=1e9, all_reduces=0,
        checkpoint_seconds=1e-12, restart_seconds=0.0)
    assert scaling_model.efficiency(search, 1) == pytest.approx(1.0)
    assert scaling_model.all_reduce_seconds(search, 2) == 1.0  # each sends and receives half, twice
    assert scaling_model.efficiency(search, 2) == pytest.approx(0.5)
    farm = scaling_model.Farm(trial_seconds=3600.0, hours_between_failures=1e12,
                              transaction_seconds=0.0005, tell_seconds=0.0001)
    assert scaling_model.trials_per_hour(farm, 8) == pytest.approx(8.0)
    # two writes of half a millisecond a trial, one at a time; 10^6 workers' heartbeats fill it
    assert scaling_model.trials_per_hour(
        scaling_model.Farm(trial_seconds=1e-6, transaction_seconds=0.0005, tell_seconds=1e-9,
                           heartbeat_seconds=1e12), 8) == pytest.approx(3.6e6)
    assert scaling_model.trials_per_hour(farm, 10**6) == 0.0
