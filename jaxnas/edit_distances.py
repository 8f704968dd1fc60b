"""How far two chains of layers are apart in morphisms, and a kernel of it for Gaussian processes.

The edit distance of AutoKeras (Jin et al., 2019, https://arxiv.org/abs/1806.10282, section 3.1,
eq. 4 to 9) on `conv_chains.ConvChain`s: layers are matched in order, skips as a bipartite graph.
Host only.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize

from jaxnas.conv_chains import ConvChain, Layer, Skip

Stages = tuple[tuple[Layer, ...], ...]

MIN_EIGENVALUE = 1e-6  # of a kernel matrix after `positive_definite`


def distance(first: ConvChain, second: ConvChain, *, skip_weight: float = 1.0) -> float:
    """Return d = D_l + lambda D_s (eq. 5), a metric; 0 only for chains that are equal.

    Args:
      first, second: any two.
      skip_weight: lambda, above 0.
    """
    return layer_distance(first, second) + skip_weight * skip_distance(first.skips, second.skips)


def layer_distance(first: ConvChain, second: ConvChain) -> float:
    """Return D_l (eq. 6): the cheapest matching of layers that keeps their order.

    A[i, j] = min(A[i-1, j] + 1, A[i, j-1] + 1, A[i-1, j-1] + d_l). The paper prints max, which
    would be no distance; where eq. 6 matches every layer of the shorter chain, its recursion may
    leave out one of either for 2. d_l is |w_a - w_b| / max(w_a, w_b) of the widths, as the paper
    has it, or that of the kernels if it is larger: else chains that differ in kernels would be at
    distance 0. (The released code averages over filters, kernel and stride, so that a doubled width
    is 1/6.) Pools stand between stages and match only each other: two convolutions of different
    stages are matched across none.
    """
    return _matched(*sorted((first.stages, second.stages)))


def skip_distance(first: Sequence[Skip], second: Sequence[Skip]) -> float:
    """Return D_s (eq. 7): the cheapest assignment of skips, and 1 for each that is left over.

    d_s = (|u_a - u_b| + |delta_a - delta_b|) / (max(u_a, u_b) + max(delta_a, delta_b)) with u the
    layer where a skip starts and delta how far it reaches, and 1 if the kinds differ (eq. 8).
    """
    return _assigned(*sorted((tuple(first), tuple(second))))


def distances(first: Sequence[ConvChain], second: Sequence[ConvChain] | None = None, *,
              skip_weight: float = 1.0) -> np.ndarray:
    """Return the distances of all pairs, [N, M] float64; None is `first` again."""
    if second is not None:
        return np.array([[distance(a, b, skip_weight=skip_weight) for b in second]
                         for a in first]).reshape(len(first), len(second))
    found = np.zeros((len(first), len(first)))
    for i, chain in enumerate(first):
        for j in range(i):
            found[i, j] = found[j, i] = distance(chain, first[j], skip_weight=skip_weight)
    return found


def kernel(values: np.ndarray, *, length_scale: float = 1.0) -> np.ndarray:
    """Return exp(-(d / l)^2) of distances [N, M], elementwise; 1 at distance 0.

    The paper embeds d in a Euclidean space first (Bourgain), for which this is a valid kernel; the
    released code does so for what it trains on and not for what it predicts. Here d is taken as it
    is for both, and `positive_definite` mends what that leaves.

    Raises:
      ValueError: length_scale is not above 0.
    """
    if not length_scale > 0:
        raise ValueError(f"length_scale must be above 0, got {length_scale}.")
    return np.exp(-(values / length_scale)**2)


class Corrected(NamedTuple):
    """A kernel matrix without negative eigenvalues, and the map that made it so."""

    gram: np.ndarray     # [N, N], symmetric, eigenvalues of at least MIN_EIGENVALUE
    project: np.ndarray  # [N, N]; rows of the kernel [M, N] times it are corrected alike


def positive_definite(gram: np.ndarray) -> Corrected:
    """Clip the negative eigenvalues of a kernel matrix, as one linear map of its rows.

    With K = U diag(e) U', clipping is K P with P = U diag(e > 0) U', so that a new point's kernel
    row k becomes k P: the row of a point of the training set is the row of the clipped matrix
    (Chen et al., 2009, Similarity-based classification, section 4.1.2,
    https://www.jmlr.org/papers/v10/chen09a.html). `MIN_EIGENVALUE` is then added where the matrix
    is singular.

    Args:
      gram: [N, N], symmetric.
    """
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    kept = values > 0
    project = (vectors * kept) @ vectors.T
    clipped = (vectors * np.maximum(values, MIN_EIGENVALUE)) @ vectors.T
    return Corrected((clipped + clipped.T) / 2, project)


@functools.lru_cache(maxsize=1 << 16)  # a search asks for chains that differ in skips only
def _matched(first: Stages, second: Stages) -> float:
    """Return D_l; Python's lists, which are faster than arrays for a dozen of layers."""
    rows, columns = _sequence(first), _sequence(second)
    above: list[float] = list(range(len(columns) + 1))
    for number, row in enumerate(rows, 1):
        here: list[float] = [number]
        for j, column in enumerate(columns):
            here.append(min(above[j + 1] + 1, here[j] + 1, above[j] + _layer(row, column)))
        above = here
    return float(above[-1])


def _sequence(stages: Stages) -> list[Layer | None]:
    """Return layers in order, None for a pool."""
    return [layer for stage in stages for layer in (*stage, None)]


@functools.lru_cache(maxsize=1 << 12)
def _layer(first: Layer | None, second: Layer | None) -> float:
    """Return d_l."""
    if first is None or second is None:
        return float(first is not second)
    return max(abs(a - b) / max(a, b) for a, b in zip(first, second))


@functools.lru_cache(maxsize=1 << 16)
def _assigned(first: tuple[Skip, ...], second: tuple[Skip, ...]) -> float:
    """Return D_s."""
    left = abs(len(first) - len(second))
    if not first or not second:
        return float(left)
    costs = np.array([[_skip(a, b) for b in second] for a in first])
    return float(costs[scipy.optimize.linear_sum_assignment(costs)].sum() + left)


def _skip(first: Skip, second: Skip) -> float:
    """Return d_s."""
    if first.kind != second.kind:
        return 1.0
    reaches = first.target - first.source, second.target - second.source
    apart = abs(first.source - second.source) + abs(reaches[0] - reaches[1])
    return apart / (max(first.source, second.source) + max(reaches))
