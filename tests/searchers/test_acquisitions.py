"""Acquisitions against closed forms, numerical integrals and frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxnas.searchers import expected_improvement, thompson_sampling, upper_confidence_bound

KEY = jax.random.key(0)


def test_expected_improvement_by_hand():
    # At the incumbent the normal's half expectation, std / sqrt(2 pi); a certain gain is itself.
    score = expected_improvement()(KEY, jnp.array([1.0, 3.0, 0.0]), jnp.array([2.0, 0.0, 0.0]),
                                   jnp.float32(1.0))
    np.testing.assert_allclose(score, [2 / np.sqrt(2 * np.pi), 2.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("mean, std, best, margin", [(0.3, 0.5, 1.0, 0.0), (2.0, 1.5, 1.0, 0.25)])
def test_expected_improvement_is_the_integral(mean, std, best, margin):
    expected, _ = integrate.quad(
        lambda f: (f - best - margin) * stats.norm.pdf(f, mean, std), best + margin, 20)
    score = expected_improvement(margin=margin)(
        KEY, jnp.array([mean]), jnp.array([std]), jnp.float32(best))
    np.testing.assert_allclose(score, [expected], rtol=1e-5)


def test_expected_improvement_far_below_is_not_negative():
    score = expected_improvement()(KEY, jnp.linspace(-30, 0, 31), jnp.full(31, 1.0), jnp.float32(1))
    assert (score >= 0).all() and (np.diff(score) >= 0).all() and np.isfinite(score).all()


def test_upper_confidence_bound():
    mean, std = jnp.array([1.0, 2.0]), jnp.array([3.0, 0.5])
    np.testing.assert_allclose(upper_confidence_bound(exploration=2.0)(KEY, mean, std, 0), [7, 3])
    np.testing.assert_array_equal(upper_confidence_bound(exploration=0)(KEY, mean, std, 0), mean)
    with pytest.raises(ValueError, match="exploration must be 0 or more, got -1"):
        upper_confidence_bound(exploration=-1)


def test_thompson_sampling_chooses_as_often_as_it_is_best():
    mean, std = jnp.array([0.0, 1.0]), jnp.array([1.0, 1.0])
    draw = thompson_sampling()
    chosen = jax.vmap(lambda key: jnp.argmax(draw(key, mean, std, 0)))(jax.random.split(KEY, 4000))
    # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2) = 0.760; five standard errors are 0.034
    assert abs(float(chosen.mean()) - stats.norm.cdf(1 / np.sqrt(2))) < 0.034
