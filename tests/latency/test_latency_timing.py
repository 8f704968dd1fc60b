"""Loops on a clock that the test moves, and what measuring compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.latency import timing
from jaxnas.networks.nasbench201 import ReLUConv


class Clock:
    """A call takes `call` seconds and every turn `turn` more; now and then something disturbs."""

    def __init__(self, call, turn, disturbed_every=0):
        self.now, self.call, self.turn = 0.0, call, turn
        self.runs, self.disturbed_every = [], disturbed_every

    def __call__(self):
        return self.now

    def run(self, turns):
        self.runs.append(turns)
        self.now += self.call + turns * self.turn
        if self.disturbed_every and len(self.runs) % self.disturbed_every == 0:
            self.now += 100.0


@pytest.mark.parametrize("turn", [1e-6, 1e-4, 0.02])
@pytest.mark.parametrize("disturbed_every", [0, 3])
def test_a_turn_is_what_more_turns_take_more(turn, disturbed_every):
    clock = Clock(0.3, turn, disturbed_every)
    found = timing.seconds_per_turn(clock.run, clock=clock)
    np.testing.assert_allclose(found, turn, rtol=1e-6)
    assert max(clock.runs) <= 1 + timing.MAX_TURNS


def test_nothing_takes_no_negative_time():
    clock = Clock(1.0, 0.0)
    assert timing.seconds_per_turn(clock.run, clock=clock) == 0.0
    assert max(clock.runs) == 1 + timing.MAX_TURNS


def test_every_turn_of_the_loop_runs():
    x = jnp.full((2, 2, 2, 3), 2.0)
    total = jax.jit(timing.loop(lambda variables, x: variables * x))(
        jnp.float32(1e30), x, jnp.int32(3))
    np.testing.assert_allclose(total, 2 + 4 + 8, rtol=1e-5)  # each turn doubles all numbers


def test_a_network_is_measured_with_constants():
    network = ReLUConv(4, 3)
    found = timing.measure_network(network, (4, 4, 2), batch_size=3, repeats=4)
    assert 0 < found.min_ms <= found.p10_ms <= found.median_ms and found.batch_size == 3
    variables = timing.constant_variables(
        lambda key: network.init(key, np.zeros((1, 4, 4, 2)), train=False))
    assert set(variables) == {"params", "batch_stats"}
    assert all((leaf == np.float32(0.01)).all() for leaf in jax.tree.leaves(variables))
