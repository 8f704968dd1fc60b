"""Disjoint, stratified splits of the training part; the test part is never touched.

Bi-level search trains the weights on one half and the alphas on the other (DARTS, section 3.1,
https://arxiv.org/abs/1806.09055).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxnas.data.dataset import ImageDataset


class Splits(NamedTuple):
    """Indices into `train_images` for a bi-level search; disjoint, in random order."""

    weights: np.ndarray  # [N1] int32; minimise the training loss
    alphas: np.ndarray  # [N2] int32; minimise the validation loss


class Validation(NamedTuple):
    """Indices into `train_images` for training a found network; disjoint, in random order."""

    train: np.ndarray  # [N1] int32
    valid: np.ndarray  # [N2] int32


def split_search(
    dataset: ImageDataset, *, alphas_fraction: float = 0.5, seed: int = 0, limit: int | None = None
) -> Splits:
    """Split the training part between the weights and the alphas.

    Args:
      dataset: only its training labels are read.
      alphas_fraction: share of the images the alphas see, in (0, 1); 0.5 as in DARTS.
      seed: the same seed gives the same split.
      limit: use only this many training images, drawn class by class in proportion; default all.

    Raises:
      ValueError: an argument out of range, or so few images that a class is missing in a part.
    """
    rng = np.random.default_rng(seed)
    indices = _limited(dataset.train_labels, limit, rng)
    alphas, weights = _split(dataset, indices, "alphas_fraction", alphas_fraction, rng)
    return Splits(weights, alphas)


def split_validation(
    dataset: ImageDataset, *, fraction: float = 0.1, seed: int = 0, limit: int | None = None
) -> Validation:
    """Hold out `fraction` of the training part for validation; arguments as in `split_search`.

    Raises:
      ValueError: an argument out of range, or so few images that a class is missing in a part.
    """
    rng = np.random.default_rng(seed)
    indices = _limited(dataset.train_labels, limit, rng)
    valid, train = _split(dataset, indices, "fraction", fraction, rng)
    return Validation(train, valid)


def stratified(
    labels: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` positions of labels [N] without replacement, in proportion in every class.

    Returns:
      (drawn [count], rest [N - count]), int32, both in random order. A class's share is rounded
      down or up, by the largest remainders, so that the sum is exact.
    """
    labels = np.asarray(labels)
    sizes = np.bincount(labels)
    shares = sizes * (count / len(labels))
    quotas = np.floor(shares + 1e-9).astype(int)
    order = np.argsort(-(shares - quotas), kind="stable")
    quotas[order[:count - quotas.sum()]] += 1
    drawn = np.zeros(len(labels), bool)
    for label, quota in enumerate(quotas):
        drawn[rng.permutation(np.flatnonzero(labels == label))[:quota]] = True
    drawn_indices = rng.permutation(np.flatnonzero(drawn))
    rest_indices = rng.permutation(np.flatnonzero(~drawn))
    return drawn_indices.astype(np.int32), rest_indices.astype(np.int32)


def _limited(labels: np.ndarray, limit: int | None, rng: np.random.Generator) -> np.ndarray:
    if limit is None:
        return np.arange(len(labels), dtype=np.int32)
    if not 2 <= limit <= len(labels):
        raise ValueError(f"limit must be in [2, {len(labels)}], the training images, got {limit}.")
    return stratified(labels, limit, rng)[0]


def _split(
    dataset: ImageDataset, indices: np.ndarray, name: str, fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return (about fraction * N, the rest) of the indices, every class in both."""
    if not 0 < fraction < 1:
        raise ValueError(f"{name} must be in (0, 1), got {fraction}.")
    labels = dataset.train_labels[indices]
    parts = stratified(labels, round(fraction * len(indices)), rng)
    for part in parts:
        missing = np.setdiff1d(np.arange(dataset.num_classes), labels[part])
        if len(missing):
            raise ValueError(
                f"{name}={fraction} of {len(indices)} images leaves a part without class "
                f"{missing[0]}; use more images or a fraction nearer to 0.5."
            )
    return indices[parts[0]], indices[parts[1]]
