"""A bound on the latency of a differentiable search: in the alphas' gradient, and in the result."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas.base import PyTree


class LatencyState(NamedTuple):
    """What the bound carries through a search."""

    multiplier: jax.Array  # [] float32, 0 or more


def bound_latency(
    expected: Callable[[PyTree], jax.Array], limit_ms: float, *, rate: float = 0.1
) -> optax.GradientTransformation:
    """Add the gradient of a Lagrangian term to that of the alphas: multiplier * (E / limit - 1).

    The term depends on the alphas alone, so it stands before the alphas' optimiser as weight decay
    does, and a loss of weights and alphas, of whatever order its gradient is, stays what it was.
    The multiplier starts at 0 and takes steps of gradient ascent, `rate` times the relative excess,
    which may be negative; it never falls below 0 (dual ascent; Bertsekas, 1999, section 6.3).

    Args:
      expected: alphas -> [] milliseconds, differentiable.
      limit_ms: above 0.
      rate: of the ascent a step, above 0.

    Raises:
      ValueError: limit_ms or rate is not above 0.
    """
    for name, value in (("limit_ms", limit_ms), ("rate", rate)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}.")

    def init(alphas: PyTree) -> LatencyState:
        del alphas
        return LatencyState(jnp.zeros((), jnp.float32))

    def update(updates: PyTree, state: LatencyState, alphas: PyTree | None = None,
               ) -> tuple[PyTree, LatencyState]:
        if alphas is None:
            raise ValueError("the bound on latency needs the alphas: call update with them.")
        excess, gradient = jax.value_and_grad(
            lambda alphas: expected(alphas) / limit_ms - 1)(alphas)
        multiplier = jnp.maximum(0.0, state.multiplier + rate * excess)
        updates = jax.tree.map(lambda one, other: one + multiplier * other, updates, gradient)
        return updates, LatencyState(multiplier)

    return optax.GradientTransformation(init, update)


def repair(
    arch: np.ndarray, strengths: np.ndarray, edges: np.ndarray, budget_ms: float,
    edge_of: np.ndarray,
) -> tuple[np.ndarray, int]:
    """Exchange operations of a derived architecture until its edges fit a budget. Host only.

    Greedy: of all exchanges for a faster operation on the same edge, the one that loses the least
    strength per millisecond comes first. So no exchange is made once the budget is kept, and the
    fastest choices of these edges are what remains at last.

    Args:
      arch: [R] int, the operation of each chosen edge.
      strengths: [E, O], what an operation on an edge is worth, such as its log-probability.
      edges: [E, O] milliseconds, 0 or more.
      budget_ms: for the sum over the chosen edges.
      edge_of: [R] int, the row of each chosen edge in `strengths` and `edges`.

    Returns:
      The operations [R], and the number of exchanges. Their sum may still be above the budget:
      then no operation on these edges is faster.
    """
    operations, exchanges = np.array(arch), 0
    rows = np.arange(len(operations))
    while True:
        spent = edges[edge_of, operations]
        if spent.sum() <= budget_ms:
            return operations, exchanges
        saved = spent[:, None] - edges[edge_of]
        lost = strengths[edge_of][rows, operations][:, None] - strengths[edge_of]
        price = np.where(saved > 0, lost / np.where(saved > 0, saved, 1), np.inf)
        row, operation = np.unravel_index(np.argmin(price), price.shape)
        if not np.isfinite(price[row, operation]):
            return operations, exchanges
        operations[row] = operation
        exchanges += 1


def relative_error(predicted: Any, measured: Any) -> np.ndarray:
    """Return |predicted - measured| / measured: [...] and [...] -> [...]."""
    measured = np.asarray(measured, np.float64)
    return np.abs(np.asarray(predicted, np.float64) - measured) / measured
