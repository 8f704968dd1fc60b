"""Exact Gaussian processes against NumPy in float64, by hand, and with what is masked out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import gaussian_processes

RNG = np.random.default_rng(0)
POINTS, OTHERS = RNG.normal(size=(6, 2)), RNG.normal(size=(4, 2))
TARGETS = np.sin(POINTS.sum(-1))
posterior = jax.jit(gaussian_processes.posterior)
likelihood = jax.jit(gaussian_processes.log_marginal_likelihood)


def kernel(first, second):
    return np.exp(-0.5 * ((first[:, None] - second[None]) ** 2).sum(-1))


def exact(gram, cross, prior, targets, noise):
    """Equations 2.25, 2.26 and 2.30, by inverses in float64."""
    noisy = gram + (noise + gaussian_processes.JITTER) * np.eye(len(gram))
    inverse = np.linalg.inv(noisy)
    mean = cross @ inverse @ targets
    variance = prior - np.einsum("mn,nk,mk->m", cross, inverse, cross)
    evidence = -0.5 * (targets @ inverse @ targets + np.linalg.slogdet(noisy)[1]
                       + len(targets) * np.log(2 * np.pi))
    return mean, np.sqrt(variance), evidence


@pytest.mark.parametrize("noise", [0.01, 1.0])
@pytest.mark.parametrize("padding", [0, 5])
def test_equals_the_formula_for_any_padding(noise, padding):
    gram, cross, prior = kernel(POINTS, POINTS), kernel(OTHERS, POINTS), np.ones(4)
    expected = exact(gram, cross, prior, TARGETS, noise)
    order = RNG.permutation(6 + padding)  # what is masked out stands anywhere, and is NaN

    def pad(array, *axes):
        for axis in axes:
            width = [(0, padding if axis == a else 0) for a in range(array.ndim)]
            array = np.take(np.pad(array, width, constant_values=np.nan), order, axis)
        return jnp.asarray(array, jnp.float32)

    mask = jnp.asarray(order < 6)
    padded, targets = pad(gram, 0, 1), pad(TARGETS, 0)
    mean, std = posterior(padded, pad(cross, 1), jnp.ones(4), targets, mask, noise=noise)
    np.testing.assert_allclose(mean, expected[0], atol=2e-5)
    np.testing.assert_allclose(std, expected[1], atol=2e-4)
    np.testing.assert_allclose(likelihood(padded, targets, mask, noise=noise), expected[2],
                               rtol=1e-4)


def test_one_observation_by_hand():
    # k = 1, k* = 1/2, y = 2, noise 1 (jitter aside): mean 0.5 * 2 / 2, variance 1 - 0.25 / 2.
    mean, std = posterior(jnp.ones((1, 1)), jnp.full((1, 1), 0.5), jnp.ones(1), jnp.full(1, 2.0),
                          jnp.ones(1, bool), noise=1.0)
    np.testing.assert_allclose(mean, [0.5], rtol=1e-5)
    np.testing.assert_allclose(std, [np.sqrt(0.875)], rtol=1e-5)


def test_nothing_observed_is_the_prior():
    empty = jnp.zeros(3, bool)
    nan = jnp.full(3, jnp.nan)
    mean, std = posterior(jnp.full((3, 3), jnp.nan), jnp.full((2, 3), jnp.nan),
                          jnp.array([1.0, 4.0]), nan, empty, noise=0.1)
    np.testing.assert_array_equal(mean, [0, 0])
    np.testing.assert_array_equal(std, [1, 2])
    assert likelihood(jnp.ones((3, 3)), nan, empty, noise=0.1) == 0
    values, centre, scale = gaussian_processes.standardize(nan, empty)
    assert (values == 0).all() and (centre, scale) == (0, 1)


def test_interpolates_equal_points_in_float32():
    gram = jnp.ones((100, 100))  # rank one: rounding makes its smallest eigenvalues negative
    mean, std = posterior(gram, jnp.ones((1, 100)), jnp.ones(1), jnp.ones(100),
                          jnp.ones(100, bool), noise=1e-10)
    np.testing.assert_allclose(mean, [1.0], rtol=1e-4)
    assert 0 <= std[0] < 0.02


def test_a_matrix_that_is_no_kernel_gives_nan():
    gram = jnp.array([[1.0, 2.0], [2.0, 1.0]])
    mean, std = posterior(gram, gram[:1], jnp.ones(1), jnp.ones(2), jnp.ones(2, bool), noise=1e-3)
    assert np.isnan(mean[0]) and np.isnan(std[0])


def test_standardize():
    values, mean, scale = gaussian_processes.standardize(
        jnp.array([1.0, np.nan, 5.0]), jnp.array([True, False, True]))
    np.testing.assert_allclose(values, [-1, 0, 1])
    assert (mean, scale) == (3, 2)
    equal, mean, scale = gaussian_processes.standardize(jnp.full(3, 0.1), jnp.ones(3, bool))
    np.testing.assert_allclose(equal, 0, atol=1e-6)
    assert scale == 1


def test_vectorises_over_processes_and_kernels():
    scales = jnp.array([0.5, 1.0, 2.0])
    gram = jnp.asarray(kernel(POINTS, POINTS), jnp.float32)
    evidence = jax.jit(jax.vmap(lambda scale: gaussian_processes.log_marginal_likelihood(
        gram ** (1 / scale ** 2), jnp.asarray(TARGETS, jnp.float32), jnp.ones(6, bool),
        noise=0.1)))(scales)
    expected = [exact(kernel(POINTS / scale, POINTS / scale), np.zeros((0, 6)), np.zeros(0),
                      TARGETS, 0.1)[2] for scale in (0.5, 1.0, 2.0)]
    np.testing.assert_allclose(evidence, expected, rtol=1e-4)


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_noise(noise):
    with pytest.raises(ValueError, match="noise must be a number above 0"):
        gaussian_processes.posterior(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones(1), jnp.ones(1),
                                     jnp.ones(1, bool), noise=noise)
