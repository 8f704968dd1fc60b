"""A Gaussian process over architectures as a surrogate of their fitness.

Kernels are functions of two batches of architectures and one length scale; the length scale and the
noise are those of a grid under which the observations are most likely (Snoek et al., 2012,
https://arxiv.org/abs/1206.2944, maximise the same likelihood by gradients).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import encodings, gaussian_processes
from jaxnas.base import Surrogate

# (archs [N, L], archs [M, L], length scale []) -> [N, M], positive definite, 1 for equal archs
Kernel = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class GaussianProcessModel(NamedTuple):
    """A fitted process; predictions are scale * (standardised prediction) + mean."""

    archs: jax.Array         # [N, L] int32
    factor: gaussian_processes.Factor
    length_scale: jax.Array  # []
    noise: jax.Array         # [] variance of an observation, of the standardised fitness
    mean: jax.Array          # []
    scale: jax.Array         # []


def hamming_kernel(num_choices: tuple[int, ...]) -> Kernel:
    """Return exp(-d / (L length_scale)), d of the L decisions being different.

    A product of positive definite kernels, one a decision: all choices of one are equally far
    apart.
    """
    def kernel(first: jax.Array, second: jax.Array, length_scale: jax.Array) -> jax.Array:
        # Inner products of one-hots: [N, M] and nothing larger.
        equal = encodings.one_hot(first, num_choices) @ encodings.one_hot(second, num_choices).T
        return jnp.exp((equal - len(num_choices)) / (len(num_choices) * length_scale))

    return kernel


def feature_kernel(features: Callable[[jax.Array], jax.Array]) -> Kernel:
    """Return exp(-d / (2 length_scale^2)), d the mean squared difference of F features.

    Args:
      features: archs [..., L] -> [..., F], such as a path or adjacency encoding or a count of
        parameters; of comparable size.
    """
    def kernel(first: jax.Array, second: jax.Array, length_scale: jax.Array) -> jax.Array:
        left, right = features(first), features(second)
        squares = jnp.sum(left ** 2, -1)[:, None] + jnp.sum(right ** 2, -1) - 2 * left @ right.T
        distance = jnp.maximum(squares, 0.0) / left.shape[-1]
        return jnp.exp(-distance / (2 * length_scale ** 2))

    return kernel


def gaussian_process(kernel: Kernel, *,
                     length_scales: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6),
                     noises: Sequence[float] = (0.01, 0.1, 0.4)) -> Surrogate:
    """Fit an exact Gaussian process to standardised fitness.

    Fitting costs G factorisations of [N, N], G the size of the grid, whatever part of the N rows is
    in use.

    Args:
      kernel: of architectures; `hamming_kernel(space.num_choices)` knows nothing else of a space.
      length_scales: to choose from, each above 0.
      noises: variances of an observation to choose from, in units of the fitness' variance.

    Raises:
      ValueError: an empty grid, or a value in it that is not above 0.
    """
    for name, values in (("length_scales", length_scales), ("noises", noises)):
        if not len(values) or not all(0 < value < float("inf") for value in values):
            raise ValueError(f"{name} must be one or more numbers above 0, got {tuple(values)}.")
    grid = np.array([(length, noise) for length in length_scales for noise in noises], np.float32)

    def fit(key, archs, fitness, mask):
        del key  # deterministic
        targets, mean, scale = gaussian_processes.standardize(fitness, mask)

        def evidence(point):
            value = gaussian_processes.log_marginal_likelihood(
                kernel(archs, archs, point[0]), targets, mask, noise=point[1])
            return jnp.where(jnp.isnan(value), -jnp.inf, value)

        # One after the other: a batch of factorisations is no faster on a CPU, and takes G times
        # the memory.
        length_scale, noise = jnp.asarray(grid)[jnp.argmax(jax.lax.map(evidence, grid))]
        factor = gaussian_processes.factorize(
            kernel(archs, archs, length_scale), targets, mask, noise=noise)
        return GaussianProcessModel(archs, factor, length_scale, noise, mean, scale)

    def predict(model, archs):
        cross = kernel(archs, model.archs, model.length_scale)
        prior = jnp.ones(archs.shape[0])
        mean, std = gaussian_processes.predict(model.factor, cross, prior)
        return model.mean + model.scale * mean, model.scale * std

    return Surrogate(fit, predict)
