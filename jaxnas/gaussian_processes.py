"""Exact Gaussian-process regression on buffers of a fixed size (Rasmussen & Williams, 2006).

What is not observed yet is masked out, so one program serves any number of observations. The
kernel is the caller's: everything here takes matrices of its values. Chapter 2 and algorithm 2.1 of
http://gaussianprocess.org/gpml.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import jax.scipy.linalg

# Of a kernel's own diagonal, on top of the noise: rounding in float32 leaves eigenvalues this far
# below zero where rows of the matrix are nearly equal.
JITTER = 1e-5


class Factor(NamedTuple):
    """What was observed, as predictions need it; from `factorize`."""

    lower: jax.Array     # [N, N] float32; the Cholesky factor of gram and noise
    whitened: jax.Array  # [N] float32; lower^-1 targets
    weights: jax.Array   # [N] float32; lower^-T whitened: a mean is their sum, weighted by a kernel
    mask: jax.Array      # [N] bool


def posterior(gram: jax.Array, cross: jax.Array, prior: jax.Array, targets: jax.Array,
              mask: jax.Array, *, noise: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean and standard deviation of a zero-mean process at M points (eq. 2.25, 2.26).

    `standardize` the targets first, or far points are predicted as zero. Rows and columns that the
    mask leaves out may hold anything finite or not.

    Args:
      gram: [N, N] float32, symmetric; the kernel between the buffer's points.
      cross: [M, N] float32, the kernel between the points to predict and the buffer's.
      prior: [M] float32, the kernel of every point to predict with itself.
      targets: [N] float32.
      mask: [N] bool, which of the buffer's points were observed; none may be.
      noise: variance of an observation, above 0 and in the targets' unit squared.

    Returns:
      mean [M] and std [M] float32 of the function, without the noise of an observation. Nothing
      observed gives 0 and sqrt(prior). A matrix that is not positive definite, noise and jitter
      added, gives NaN.

    Raises:
      ValueError: noise that is no number above 0.
      AssertionError: shapes that do not fit together.
    """
    return predict(factorize(gram, targets, mask, noise=noise), cross, prior)


def predict(factor: Factor, cross: jax.Array, prior: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return what `posterior` does, of what was factorised once for many calls."""
    chex.assert_shape(cross, (prior.shape[0], factor.mask.shape[0]))
    cross = jnp.where(factor.mask, cross, 0.0)
    solved = jax.scipy.linalg.solve_triangular(factor.lower, cross.T, lower=True)  # [N, M]
    variance = prior - jnp.sum(solved ** 2, axis=0)
    # A maximum with 0 may turn NaN, the sign of a failed factorisation, into certainty.
    return cross @ factor.weights, jnp.sqrt(jnp.where(variance < 0, 0.0, variance))


def log_marginal_likelihood(gram: jax.Array, targets: jax.Array, mask: jax.Array, *,
                            noise: float | jax.Array) -> jax.Array:
    """Return log p(targets | kernel, noise) of what was observed, [] float32 in nats (eq. 2.30).

    Takes and raises what `posterior` does. A kernel's parameters are chosen by its maximum.
    """
    lower, whitened, *_ = factorize(gram, targets, mask, noise=noise)
    # A row that is left out has diagonal 1 and target 0, and adds nothing to either sum.
    half_log_determinant = jnp.sum(jnp.log(jnp.diagonal(lower)))
    count = jnp.sum(mask)
    return (-0.5 * jnp.sum(whitened ** 2) - half_log_determinant
            - 0.5 * count * math.log(2 * math.pi))


def standardize(targets: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Shift and scale what was observed to mean 0 and variance 1.

    Args:
      targets: [N] float32; what the mask leaves out may hold anything.
      mask: [N] bool.

    Returns:
      [N] float32, 0 where masked out; the mean [] and the scale [] that were taken out: 0 and 1
      where nothing was observed, and a scale of 1 where all targets are equal.
    """
    chex.assert_equal_shape([targets, mask])
    count = jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(jnp.where(mask, targets, 0.0)) / count
    centred = jnp.where(mask, targets - mean, 0.0)
    scale = jnp.sqrt(jnp.sum(centred ** 2) / count)
    # The rounding of a mean leaves a scale above 0 where all targets are equal.
    scale = jnp.where(scale > 1e-6 * jnp.abs(mean), scale, 1.0)
    return centred / scale, mean, scale


def factorize(gram: jax.Array, targets: jax.Array, mask: jax.Array, *,
              noise: float | jax.Array) -> Factor:
    """Factorise what was observed; takes and raises what `posterior` does."""
    if isinstance(noise, (int, float)) and not 0 < noise < math.inf:
        raise ValueError(f"noise must be a number above 0, got {noise}.")
    size = mask.shape[0]
    chex.assert_shape(gram, (size, size))
    chex.assert_shape(targets, (size,))
    gram = jnp.where(mask[:, None] & mask, gram, 0.0)
    own = jnp.diagonal(gram)
    matrix = gram + jnp.diag(jnp.where(mask, noise + JITTER * own, 1.0))
    lower = jnp.linalg.cholesky(matrix, symmetrize_input=False)
    targets = jnp.where(mask, targets, 0.0)
    whitened = jax.scipy.linalg.solve_triangular(lower, targets, lower=True)
    weights = jax.scipy.linalg.solve_triangular(lower, whitened, lower=True, trans="T")
    return Factor(lower, whitened, weights, mask)
