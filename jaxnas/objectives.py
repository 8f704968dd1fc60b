"""Metrics become a fitness, which is maximised; NaN stays NaN and never wins.

    maximize("accuracy")                                       # one metric
    mnasnet_reward("accuracy", "latency_ms", target=75.0)      # a trade of two
    constrained(maximize("accuracy"), "latency_ms", maximum=75.0)
    vector(maximize("accuracy"), minimize("latency_ms"))       # several at once: [B, 2]
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnas.base import Objective

SOFT = (-0.07, -0.07)  # MnasNet's exponents (alpha within the target, beta above it)
HARD = (0.0, -1.0)


def maximize(name: str) -> Objective:
    """Take the metric `name` as fitness, such as an accuracy."""
    return lambda metrics: metrics[name]


def minimize(name: str) -> Objective:
    """Take the metric `name`, negated, as fitness, such as a latency or a loss."""
    return lambda metrics: -metrics[name]


def power(name: str, exponent: float) -> Objective:
    """Take a percentage as a fraction to a power, as NASRL's reward does with exponent 3."""
    return lambda metrics: (metrics[name] / 100) ** exponent


def weighted(weights: Mapping[str, float]) -> Objective:
    """Take a sum of metrics, each times its weight: above 0 maximises it, below 0 minimises it.

    Args:
      weights: metric name -> weight, in fitness per unit of the metric; a NaN in any of these
        metrics fails, also where its weight is 0.

    Raises:
      ValueError: no metric, or a weight that is not finite.
    """
    if not weights:
        raise ValueError("weights must name at least one metric.")
    for name, weight in weights.items():
        if isinstance(weight, (int, float)) and not math.isfinite(weight):
            raise ValueError(f"the weight of {name} must be finite, got {weight}.")
    terms = dict(weights)
    return lambda metrics: sum(
        (weight * metrics[name] for name, weight in terms.items()), start=jnp.float32(0))


def mnasnet_reward(accuracy: str, cost: str, *, target: ArrayLike,
                   exponent: float | tuple[float, float] = SOFT) -> Objective:
    """Trade accuracy for a cost as MnasNet does: accuracy * (cost / target) ** w.

    Tan et al., 2019, https://arxiv.org/abs/1807.11626, eq. 2 and 3. w is alpha where the cost is
    at most the target, and beta above it. Soft, alpha = beta = -0.07: twice the latency is worth 5
    percent of the accuracy, since 1.05 * 2 ** w = 1 for w = -0.0704. Hard, alpha = 0 and beta = -1:
    the accuracy itself within the target, and steeply less above it.

    Args:
      accuracy: name of a metric to maximise, a fraction or a percentage: the reward has its unit,
        and what wins does not depend on it. A policy gradient's step size does.
      cost: name of a metric to minimise, such as a latency in milliseconds; must be above 0, else
        the architecture has failed.
      target: the cost that is wished for, in the same unit, above 0; an array [B]
        gives every row its own, see `searchers.islands`.
      exponent: w, or (alpha, beta); `HARD` is (0, -1).

    Raises:
      ValueError: target or an exponent is out of range.
    """
    alpha, beta = exponent if isinstance(exponent, tuple) else (exponent, exponent)
    if isinstance(target, (int, float)) and not 0 < target < math.inf:
        raise ValueError(f"target must be above 0 and finite, got {target}.")
    for name, value in (("alpha", alpha), ("beta", beta)):
        if isinstance(value, (int, float)) and not -math.inf < value <= 0:
            raise ValueError(f"exponent {name} must be 0 or less and finite, got {value}; a "
                             "larger cost must not be worth more.")

    def reward(metrics):
        costs = metrics[cost]
        ratio = jnp.where(costs > 0, costs, jnp.nan) / target
        value = metrics[accuracy] * ratio ** jnp.where(ratio > 1, beta, alpha)
        return jnp.where(jnp.isnan(ratio), jnp.nan, value)  # NaN ** 0 is 1

    return reward


def constrained(objective: Objective, name: str, *, maximum: float | None = None,
                minimum: float | None = None) -> Objective:
    """Fail what breaks a bound on a metric: its fitness becomes NaN, and so it can never win.

    Wrap again for a second metric. A searcher learns nothing from how far a bound was missed; the
    hard `mnasnet_reward` says that.

    Args:
      objective: fitness of what keeps the bound, [B] or [B, M].
      name: of the metric; where it is NaN the bound is broken.
      maximum: the largest value allowed, in the metric's unit.
      minimum: the smallest value allowed.

    Raises:
      ValueError: no bound, one that is NaN, or bounds that nothing can keep.
    """
    if maximum is None and minimum is None:
        raise ValueError(f"constrained needs a maximum or a minimum of {name}.")
    low = -math.inf if minimum is None else minimum
    high = math.inf if maximum is None else maximum
    if all(isinstance(bound, (int, float)) for bound in (low, high)) and not low <= high:
        raise ValueError(f"{name} must have minimum <= maximum, got {minimum} and {maximum}.")

    def fitness(metrics):
        value, inner = metrics[name], objective(metrics)
        kept = (value >= low) & (value <= high)
        return jnp.where(kept.reshape(kept.shape + (1,) * (inner.ndim - kept.ndim)), inner, jnp.nan)

    return fitness


def vector(*objectives: Objective) -> Objective:
    """Search for several objectives at once: fitness [B, M], every column maximised.

    A row with a NaN in any column has failed. For searchers of fronts, such as `searchers.nsga2`.

    Args:
      *objectives: M of them, each {name: [B]} -> [B].

    Raises:
      ValueError: none was given.
    """
    if not objectives:
        raise ValueError("vector needs at least one objective.")
    return lambda metrics: jnp.stack([objective(metrics) for objective in objectives], axis=-1)
