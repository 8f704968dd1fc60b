"""Bayesian optimisation of chains that grow: AutoKeras's searcher without its training.

Jin et al., 2019, https://arxiv.org/abs/1806.10282, section 3: a Gaussian process whose kernel is
that of an edit distance, an upper confidence bound, and a tree search over morphisms. Host only:
chains are trees of tuples, whose numbers of layers differ. Only the process itself is compiled,
once for a whole search, on buffers with a mask.

Differences from the released code (0.3.7): targets are standardised, or the process would predict 0
far away; one kernel for training and prediction, see `edit_distances`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import conv_chains, edit_distances, gaussian_processes
from jaxnas.conv_chains import ConvChain, Operation
from jaxnas.searchers.acquisition_tree import Proposal, search_tree
from jaxnas.searchers.acquisitions import upper_confidence_bound

NEIGHBOURS = 8  # of a node, of twice as many tries (released code)

Propose = Callable[[np.random.Generator, Sequence[ConvChain], Sequence[float]], Proposal | None]


@jax.jit
def _upper_bound(gram, cross, targets, mask, noise, beta):
    prior = jnp.ones(len(cross), cross.dtype)
    mean, std = gaussian_processes.posterior(gram, cross, prior, targets, mask, noise=noise)
    best = jnp.max(jnp.where(mask, targets, -jnp.inf))
    return upper_confidence_bound(exploration=beta)(jax.random.key(0), mean, std, best)


def morphism_search(
    *, capacity: int, max_layers: int, max_width: int, fits: Callable[[ConvChain], bool],
    kernels: tuple[int, ...] = conv_chains.KERNELS, beta: float = 2.5, noise: float = 1e-2,
    length_scale: float = 1.0, skip_weight: float = 1.0,
) -> Propose:
    """Return a function that proposes the next chain, and the way to grow it from a known one.

    Args:
      capacity: N, the most chains that will be known.
      max_layers: of a stage.
      max_width: of a layer.
      fits: chain -> whether it may be evaluated (memory, parameters); asked of every candidate.
      kernels: of inserted layers.
      beta: standard deviations that are added to the mean; 2.5 in the paper.
      noise: variance of the standardised fitness, above 0; the released code has 1e-10.
      length_scale: of the kernel, in edits.
      skip_weight: lambda of the edit distance.

    Returns:
      (random, chains, fitness) -> `Proposal` or None, which never is one of the chains. Fitness is
      maximised; NaN is failed: no more than a chain not to propose. `value` is in standard
      deviations of the fitness.

    Raises:
      ValueError: an argument out of range.
    """
    for name, value in (("capacity", capacity), ("max_layers", max_layers),
                        ("max_width", max_width)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")
    for name, number in (("beta", beta), ("skip_weight", skip_weight)):
        if not 0 <= number < np.inf:
            raise ValueError(f"{name} must be 0 or more, got {number}.")
    if not 0 < noise < np.inf or not 0 < length_scale < np.inf:
        raise ValueError(f"noise and length_scale must be above 0, got {noise}, {length_scale}.")

    def matrix(first: Sequence[ConvChain], second: Sequence[ConvChain]) -> np.ndarray:
        return edit_distances.kernel(
            edit_distances.distances(first, second, skip_weight=skip_weight),
            length_scale=length_scale)

    def neighbours(random: np.random.Generator,
                   chain: ConvChain) -> list[tuple[Operation, ConvChain]]:
        return random_neighbours(random, chain, kernels=kernels, max_layers=max_layers,
                                 max_width=max_width, fits=fits)

    def propose(random: np.random.Generator, chains: Sequence[ConvChain],
                fitness: Sequence[float]) -> Proposal | None:
        if len(chains) > capacity:
            raise ValueError(f"capacity must be at least {len(chains)}, the chains known, got "
                             f"{capacity}.")
        values = np.asarray(fitness, float)
        succeeded = np.flatnonzero(np.isfinite(values))
        observed = [chains[number] for number in succeeded.tolist()]
        count = len(observed)
        mask = np.arange(capacity) < count
        targets = np.zeros(capacity, np.float32)
        targets[:count] = values[succeeded]
        standard, mean, scale = map(np.asarray, gaussian_processes.standardize(
            jnp.asarray(targets), jnp.asarray(mask)))
        gram, project = np.eye(capacity, dtype=np.float32), np.eye(count)
        if count:
            gram[:count, :count], project = edit_distances.positive_definite(
                matrix(observed, observed))

        def upper_bound(candidates: list[ConvChain]) -> np.ndarray:
            cross = np.zeros((NEIGHBOURS, capacity), np.float32)
            if count:
                cross[:len(candidates), :count] = matrix(candidates, observed) @ project
            return np.asarray(_upper_bound(gram, cross, standard, mask, noise, beta))[
                :len(candidates)]

        return search_tree(random, chains, ((values - mean) / scale).tolist(),
                           neighbours=neighbours, acquisition=upper_bound)

    return propose


def random_neighbours(
    random: np.random.Generator, chain: ConvChain, *, kernels: tuple[int, ...], max_layers: int,
    max_width: int, fits: Callable[[ConvChain], bool], count: int = NEIGHBOURS,
) -> list[tuple[Operation, ConvChain]]:
    """Draw up to `count` different neighbours that fit, by 2 `count` tries.

    A try draws deeper, wider or a skip, equally likely where possible, and then one such operation.
    """
    by_kind: dict[str, list[Operation]] = {}
    for operation in conv_chains.operations(
            chain, kernels=kernels, max_layers=max_layers, max_width=max_width):
        by_kind.setdefault(type(operation).__name__, []).append(operation)
    found: dict[ConvChain, Operation] = {}
    kinds = list(by_kind)
    for _ in range(2 * count if kinds else 0):
        options = by_kind[kinds[random.integers(len(kinds))]]
        operation = options[random.integers(len(options))]
        child = conv_chains.transform(chain, operation)
        if child not in found and fits(child):
            found[child] = operation
        if len(found) == count:
            break
    return [(operation, child) for child, operation in found.items()]
