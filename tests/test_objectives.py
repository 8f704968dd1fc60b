"""Objectives: closed forms, and a failure stays one."""

import jax
import numpy as np

from jaxnas import objectives

METRICS = {"accuracy": np.array([90.0, np.nan, 50.0], np.float32),
           "latency": np.array([2.0, 3.0, np.nan], np.float32)}


def test_objectives():
    np.testing.assert_array_equal(objectives.maximize("accuracy")(METRICS), METRICS["accuracy"])
    np.testing.assert_array_equal(objectives.minimize("latency")(METRICS), [-2.0, -3.0, np.nan])
    # NASRL's reward: the accuracy as a fraction, cubed
    np.testing.assert_allclose(
        objectives.power("accuracy", 3)(METRICS), [0.729, np.nan, 0.125], rtol=1e-6)


def test_an_exponent_can_be_a_tracer():
    shaped = jax.vmap(lambda exponent: objectives.power("accuracy", exponent)(METRICS))(
        np.array([1.0, 2.0]))
    np.testing.assert_allclose(
        shaped, [[0.9, np.nan, 0.5], [0.81, np.nan, 0.25]], rtol=1e-6)
