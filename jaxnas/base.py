"""The words that the layers share: shape letters, protocols, and what an optimiser is made of.

Shape letters: B architectures asked, P population, L decisions, M objectives, E edges of a cell,
O operations, K kernel size or inner steps; images are x [N, H, W, C].

A discrete search is a search space, a searcher and an evaluator, which never see each other; what
they share is `archs` [B, L] int32. Fitness is maximised, and NaN means that an evaluation failed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

PyTree = Any  # nested containers of arrays; JAX has no narrower name for it
Batch = PyTree
Info = dict[str, jax.Array]
Metrics = dict[str, jax.Array]  # name -> [B] float32
Readable = Any  # what people see of an architecture: text, or the genotypes.Genotype of two cells


class SearchSpace(Protocol):
    """Architectures as integers: `arch` is [L] int32, decision l in [0, num_choices[l]).

    A space is a frozen dataclass. `sample`, `mutate`, `crossover`, `is_valid` and `canonical` take
    one architecture, can be traced, and are vectorised by `jax.vmap`; `decode` and `encode` are for
    the host. What `sample`, `mutate` and `crossover` return is valid if what they got was.

    What people read and files hold is text, except where an architecture is two cells of nodes that
    add two edges (DARTS, NASNet, AmoebaNet, PNAS, ENAS micro): there it is a `genotypes.Genotype`,
    from which fixed networks are built. `genotypes.Encoded` puts all others into a file.
    """

    @property
    def name(self) -> str:
        """What result.json calls the space."""
        ...

    @property
    def num_choices(self) -> tuple[int, ...]:
        """[L] choices of every decision."""
        ...

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw a valid arch [L] int32."""
        ...

    def mutate(self, key: jax.Array, arch: jax.Array) -> jax.Array:
        """Draw a neighbour of an arch: [L] -> [L]."""
        ...

    def crossover(self, key: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        """Mix two archs, [L] and [L], into one [L]."""
        ...

    def is_valid(self, arch: jax.Array) -> jax.Array:
        """Tell whether an arch [L] is a member, as [] bool; any integers may be asked about."""
        ...

    def canonical(self, arch: jax.Array) -> jax.Array:
        """Return one and the same arch [L] for all that are the same network."""
        ...

    def decode(self, arch: jax.Array | np.ndarray) -> Readable:
        """Write an arch [L] for people.

        Raises:
          ValueError: a wrong length, or a decision out of range.
        """
        ...

    def encode(self, architecture: Readable, /) -> np.ndarray:
        """Read what `decode` wrote, as [L] int32.

        Raises:
          ValueError: it is no architecture of the space; what is wrong is named.
        """
        ...


class Searcher(NamedTuple):
    """A search strategy as pure functions; its state is a pytree of arrays.

    Attributes:
      init: (key) -> state.
      ask: (key, state) -> archs [B, L] int32; changes nothing.
      tell: (key, state, archs [B, L], fitness [B]) -> (state, info): info holds scalars worth
        logging. A fitness that is NaN never wins. Where a front is searched for (`nsga2`), fitness
        is [B, M], every column is maximised, and a NaN in any of them means failed.
      batch_size: B.
      capacity: evaluations that its state has room for, or None: any number.
    """

    init: Callable[[jax.Array], PyTree]
    ask: Callable[[jax.Array, PyTree], jax.Array]
    tell: Callable[[jax.Array, PyTree, jax.Array, jax.Array], tuple[PyTree, Info]]
    batch_size: int
    capacity: int | None = None


class Evaluator(Protocol):
    """Metrics of architectures: (key, archs [B, L] int32) -> {name: [B] float32}; NaN is failed.

    One that can be traced runs inside the search; one that must run on the host says so, and is
    driven by `search.run_on_host`.
    """

    def __call__(self, key: jax.Array, archs: jax.Array) -> Metrics: ...


class Objective(Protocol):
    """What is searched for: {name: [B]} -> fitness [B] float32, to be maximised.

    Several objectives at once are [B, M], see `objectives.vector`.
    """

    def __call__(self, metrics: Metrics) -> jax.Array: ...


class Policy(NamedTuple):
    """A distribution over architectures with parameters, for policy-gradient searchers.

    Attributes:
      init: (key) -> params.
      sample: (key, params) -> arch [L] int32.
      log_prob: (params, arch [L]) -> [L] float32, log P(decision l | decisions before it).
      entropy: (params, arch [L]) -> [L] float32, the entropy in nats of decision l's distribution
        given the decisions of `arch` before it. For decisions that are independent this sums to
        the policy's entropy; else the expectation of the sum under the policy does.
    """

    init: Callable[[jax.Array], PyTree]
    sample: Callable[[jax.Array, PyTree], jax.Array]
    log_prob: Callable[[PyTree, jax.Array], jax.Array]
    entropy: Callable[[PyTree, jax.Array], jax.Array]


class Surrogate(NamedTuple):
    """A model of fitness, from architectures that were evaluated, for sequential searchers.

    Attributes:
      fit: (key, archs [N, L] int32, fitness [N], mask [N] bool) -> model, a pytree. The mask says
        which rows were evaluated; the fitness of the others may be anything, that of these is
        finite.
      predict: (model, archs [M, L]) -> (mean [M], std [M]) of the fitness, float32.
    """

    fit: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], PyTree]
    predict: Callable[[PyTree, jax.Array], tuple[jax.Array, jax.Array]]


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
