"""Objectives: closed forms, and a failure stays one."""

import math

import jax
import numpy as np
import pytest

from jaxnas import objectives
from jaxnas.objectives import HARD, constrained, maximize, minimize, mnasnet_reward, vector

METRICS = {"accuracy": np.array([90.0, np.nan, 50.0], np.float32),
           "latency": np.array([2.0, 3.0, np.nan], np.float32)}


def of(*rows):
    """Metrics of (accuracy, latency) pairs."""
    accuracy, latency = np.array(rows, np.float32).T
    return {"accuracy": accuracy, "latency": latency}


def test_objectives():
    np.testing.assert_array_equal(maximize("accuracy")(METRICS), METRICS["accuracy"])
    np.testing.assert_array_equal(minimize("latency")(METRICS), [-2.0, -3.0, np.nan])
    # NASRL's reward: the accuracy as a fraction, cubed
    np.testing.assert_allclose(
        objectives.power("accuracy", 3)(METRICS), [0.729, np.nan, 0.125], rtol=1e-6)


def test_an_exponent_can_be_a_tracer():
    shaped = jax.vmap(lambda exponent: objectives.power("accuracy", exponent)(METRICS))(
        np.array([1.0, 2.0]))
    np.testing.assert_allclose(
        shaped, [[0.9, np.nan, 0.5], [0.81, np.nan, 0.25]], rtol=1e-6)


def test_weighted():
    fitness = objectives.weighted({"accuracy": 1.0, "latency": -10.0})(METRICS)
    np.testing.assert_allclose(fitness, [70.0, np.nan, np.nan])
    assert np.isnan(objectives.weighted({"accuracy": 0.0})(METRICS)[1])


# ---- MnasNet -------------------------------------------------------------------------------------


def test_the_soft_reward_by_hand():
    reward = mnasnet_reward("accuracy", "latency", target=75.0)
    found = np.asarray(reward(of((0.75, 84.0), (0.75, 75.0), (75.0, 84.0))))
    assert found[0] == pytest.approx(0.7441, abs=5e-5)
    assert found[0] == pytest.approx(0.75 * 1.12 ** -0.07, rel=1e-6)
    assert found[1] == pytest.approx(0.75, rel=1e-6)
    assert found[2] == pytest.approx(100 * found[0], rel=1e-6)  # a percentage stays one


@pytest.mark.parametrize("exponent", [-0.07, 0.0, -1.0, HARD, (-0.2, -3.0)])
def test_at_the_target_the_reward_is_the_accuracy(exponent):
    reward = mnasnet_reward("accuracy", "latency", target=12.5, exponent=exponent)
    np.testing.assert_allclose(reward(of((0.6, 12.5))), [0.6], rtol=1e-6)


def test_the_exponent_trades_twice_the_latency_for_five_percent():
    reward = mnasnet_reward("accuracy", "latency", target=75.0, exponent=-math.log2(1.05))
    slow, fast = reward(of((0.7 * 1.05, 160.0), (0.7, 80.0)))
    np.testing.assert_allclose(slow, fast, rtol=1e-6)


def test_the_soft_reward_falls_with_latency_and_the_hard_one_above_the_target_only():
    latency = np.linspace(5.0, 200.0, 40)
    rows = of(*((0.7, value) for value in latency))
    assert (np.diff(mnasnet_reward("accuracy", "latency", target=75.0)(rows)) < 0).all()
    hard = np.asarray(mnasnet_reward("accuracy", "latency", target=75.0, exponent=HARD)(rows))
    np.testing.assert_allclose(hard, 0.7 * np.minimum(1, 75.0 / latency), rtol=1e-6)
    assert (hard[latency <= 75] == np.float32(0.7)).all()


@pytest.mark.parametrize("exponent", [-0.07, HARD])
def test_a_failed_metric_or_an_impossible_cost_fails(exponent):
    reward = mnasnet_reward("accuracy", "latency", target=75.0, exponent=exponent)
    found = reward(of((0.7, np.nan), (np.nan, 50.0), (0.7, 0.0), (0.7, -1.0)))
    assert np.isnan(found).all()


def test_targets_can_be_a_vmap():
    rows = of((0.7, 60.0), (0.75, 90.0))
    swept = jax.vmap(lambda target: mnasnet_reward("accuracy", "latency", target=target)(rows))(
        np.array([50.0, 100.0], np.float32))
    expected = [mnasnet_reward("accuracy", "latency", target=t)(rows) for t in (50.0, 100.0)]
    np.testing.assert_allclose(swept, expected, rtol=1e-6)


# ---- bounds and vectors --------------------------------------------------------------------------


def test_what_breaks_a_bound_fails():
    rows = of((0.9, 80.0), (0.7, 75.0), (0.8, 20.0), (0.6, np.nan), (np.nan, 30.0))
    nan = np.nan
    for bounds, expected in (({"maximum": 75.0}, [nan, 0.7, 0.8, nan, nan]),
                             ({"minimum": 50.0}, [0.9, 0.7, nan, nan, nan]),
                             ({"minimum": 50.0, "maximum": 75.0}, [nan, 0.7, nan, nan, nan])):
        found = constrained(maximize("accuracy"), "latency", **bounds)(rows)
        np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_a_vector_of_objectives():
    rows = of((0.9, 80.0), (0.7, 75.0))
    both = vector(maximize("accuracy"), minimize("latency"))
    np.testing.assert_array_equal(both(rows), np.array([[0.9, -80.0], [0.7, -75.0]], np.float32))
    bounded = constrained(both, "latency", maximum=75.0)(rows)
    np.testing.assert_array_equal(bounded, np.array([[np.nan] * 2, [0.7, -75.0]], np.float32))
    assert vector(maximize("accuracy"))(rows).shape == (2, 1)


@pytest.mark.parametrize("make, message", [
    (lambda: mnasnet_reward("a", "b", target=0), "target must be above 0 and finite, got 0"),
    (lambda: mnasnet_reward("a", "b", target=math.inf), "target must be above 0"),
    (lambda: mnasnet_reward("a", "b", target=math.nan), "target must be above 0"),
    (lambda: mnasnet_reward("a", "b", target=1.0, exponent=0.07), "alpha must be 0 or less"),
    (lambda: mnasnet_reward("a", "b", target=1.0, exponent=(0.0, math.nan)), "beta must be 0"),
    (lambda: constrained(maximize("a"), "b"), "needs a maximum or a minimum of b"),
    (lambda: constrained(maximize("a"), "b", maximum=math.nan), "minimum <= maximum"),
    (lambda: constrained(maximize("a"), "b", minimum=2.0, maximum=1.0), "got 2.0 and 1.0"),
    (lambda: objectives.weighted({}), "at least one metric"),
    (lambda: objectives.weighted({"a": math.inf}), "weight of a must be finite"),
    (vector, "at least one objective"),
])
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
