"""How promising a prediction is: what sequential model-based searchers maximise.

An acquisition is (key, mean [M], std [M], best []) -> scores [M], the larger the better; `best` is
the largest fitness observed. Predictions are taken to be normal, each for itself.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

Acquisition = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def expected_improvement(*, margin: float | jax.Array = 0.0) -> Acquisition:
    """Return E[max(f - best - margin, 0)] (Jones et al., 1998, eq. 15).

    Args:
      margin: what an improvement must exceed, in units of fitness; explores if above 0.
    """
    def acquisition(key, mean, std, best):
        del key  # deterministic
        gain = mean - best - margin
        certain = std <= 0
        scaled = gain / jnp.where(certain, 1.0, std)
        improvement = gain * norm.cdf(scaled) + std * norm.pdf(scaled)
        return jnp.where(certain, jnp.maximum(gain, 0.0), jnp.maximum(improvement, 0.0))

    return acquisition


def upper_confidence_bound(*, exploration: float | jax.Array = 2.0) -> Acquisition:
    """Return mean + exploration * std (Srinivas et al., 2010, https://arxiv.org/abs/0912.3995).

    Args:
      exploration: the paper's sqrt(beta), 0 or more; 0 takes the best prediction, as PNAS does.

    Raises:
      ValueError: exploration below 0.
    """
    if isinstance(exploration, (int, float)) and not exploration >= 0:
        raise ValueError(f"exploration must be 0 or more, got {exploration}.")

    def acquisition(key, mean, std, best):
        del key, best
        return mean + exploration * std

    return acquisition


def thompson_sampling() -> Acquisition:
    """Return one draw of every prediction, as if they were independent.

    What is drawn best is best with the probability that the model gives it, up to what the
    predictions have in common (White et al., 2019, https://arxiv.org/abs/1910.11858, call this
    independent Thompson sampling and find it as good).
    """
    def acquisition(key, mean, std, best):
        del best
        return mean + std * jax.random.normal(key, mean.shape)

    return acquisition
