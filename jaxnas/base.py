"""The words that the layers share: shape letters, protocols, and what an optimiser is made of.

Shape letters: B architectures asked, P population, L decisions, E edges of a cell, O operations,
K kernel size or inner steps; images are x [N, H, W, C].
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

PyTree = Any  # nested containers of arrays; JAX has no narrower name for it
Batch = PyTree
Info = dict[str, jax.Array]


class LossFunction(Protocol):
    """A scalar loss of weights and architecture parameters on one batch.

    The batch is any pytree. Whatever is random in the loss (dropout, drop path, Gumbel noise) must
    take its key from the batch, so that every evaluation on one batch sees the same draw.
    """

    def __call__(self, weights: PyTree, alphas: PyTree, batch: Batch) -> jax.Array: ...


class BilevelOptimizer(NamedTuple):
    """A bilevel method as pure functions, in the manner of Optax.

    Attributes:
      init: (weights, alphas) -> state.
      update: (state, train_batch, valid_batch) -> (state, info): one alpha step, then the weights'.
      gradient: (state, train_batch, valid_batch) -> (valid_loss, gradient of the alphas).
    """

    init: Callable[[PyTree, PyTree], PyTree]
    update: Callable[[PyTree, Batch, Batch], tuple[PyTree, Info]]
    gradient: Callable[[PyTree, Batch, Batch], tuple[jax.Array, PyTree]]
