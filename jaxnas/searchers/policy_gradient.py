"""What the policy-gradient searchers share: their state, and rewards minus a moving baseline.

A searcher here is a policy, an optimiser and an `update`: how the parameters follow a batch of
architectures with advantages. The rest is the same for all, failures above all: an evaluation whose
fitness is NaN (or infinite) has weight zero in every mean and does not move the baseline, and a
batch of nothing but failures changes nothing, not even the optimiser's moments or step count.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnas.base import Info, Policy, PyTree, Searcher

BASELINE_INITS = ("zero", "first")


class PolicyGradientState(NamedTuple):
    """All that changes during a search."""

    params: PyTree             # of the policy
    opt_state: optax.OptState
    baseline: jax.Array        # [] float32, moving average of the fitness
    num_evaluated: jax.Array   # [] int32, evaluations that did not fail


class Feedback(NamedTuple):
    """What a batch of fitness says to the policy."""

    advantages: jax.Array  # [B] float32, fitness minus baseline; 0 where the evaluation failed
    weights: jax.Array     # [B] float32, 1 / n for the n that did not fail, else 0
    baseline: jax.Array    # [] float32, after the batch
    number: jax.Array      # [] int32, n


# (params, opt_state, archs [B, L], feedback) -> (params, opt_state, info)
Update = Callable[
    [PyTree, optax.OptState, jax.Array, Feedback], tuple[PyTree, optax.OptState, Info]
]


def feedback(
    fitness: jax.Array,
    baseline: jax.Array,
    num_evaluated: jax.Array,
    *,
    decay: float | jax.Array,
    init: str,
    first: bool,
) -> Feedback:
    """Subtract the baseline b from a batch, and move b to decay * b + (1 - decay) * mean fitness.

    Args:
      fitness: [B] float32; not finite means failed.
      baseline: [] float32.
      num_evaluated: [] int32, evaluations before this batch that did not fail.
      decay: in [0, 1].
      init: "zero", or "first": b is the mean of the first batch, which sees it already.
      first: whether b moves before it is subtracted.
    """
    succeeded = jnp.isfinite(fitness)
    number = jnp.sum(succeeded, dtype=jnp.int32)
    fitness = jnp.where(succeeded, fitness, 0.0)
    mean = jnp.sum(fitness) / jnp.maximum(number, 1)
    if init == "first":
        baseline = jnp.where((num_evaluated == 0) & (number > 0), mean, baseline)
    moved = jnp.where(number > 0, decay * baseline + (1 - decay) * mean, baseline)
    advantages = jnp.where(succeeded, fitness - (moved if first else baseline), 0.0)
    return Feedback(advantages, succeeded / jnp.maximum(number, 1), moved, number)


def policy_searcher(
    policy: Policy,
    optimizer: optax.GradientTransformation,
    update: Update,
    *,
    batch_size: int,
    baseline_decay: float | jax.Array,
    baseline_init: str,
    baseline_first: bool,
    entropy_weight: float | jax.Array,
) -> Searcher:
    """Make a searcher of an update; `reinforce` and `ppo` tell what the options are.

    Raises:
      ValueError: an option is out of range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
    if isinstance(baseline_decay, (int, float)) and not 0 <= baseline_decay <= 1:
        raise ValueError(f"baseline_decay must be in [0, 1], got {baseline_decay}.")
    if baseline_init not in BASELINE_INITS:
        raise ValueError(f"baseline_init must be one of {BASELINE_INITS}, got {baseline_init!r}.")
    if isinstance(entropy_weight, (int, float)) and not entropy_weight >= 0:
        raise ValueError(f"entropy_weight must be 0 or more, got {entropy_weight}.")

    def init(key: jax.Array) -> PolicyGradientState:
        params = policy.init(key)
        return PolicyGradientState(
            params, optimizer.init(params), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    def ask(key: jax.Array, state: PolicyGradientState) -> jax.Array:
        keys = jax.random.split(key, batch_size)
        return jax.vmap(policy.sample, in_axes=(0, None))(keys, state.params)

    def tell(
        key: jax.Array, state: PolicyGradientState, archs: jax.Array, fitness: jax.Array
    ) -> tuple[PolicyGradientState, Info]:
        del key  # deterministic
        told = feedback(fitness, state.baseline, state.num_evaluated, decay=baseline_decay,
                        init=baseline_init, first=baseline_first)
        params, opt_state, info = update(state.params, state.opt_state, archs, told)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(told.number > 0, new, old),
            (params, opt_state), (state.params, state.opt_state))
        advantage = jnp.sum(told.weights * told.advantages)
        info = {"baseline": told.baseline, "advantage": advantage, **info}
        num_evaluated = state.num_evaluated + told.number
        return PolicyGradientState(params, opt_state, told.baseline, num_evaluated), info

    return Searcher(init, ask, tell, batch_size)


def each(function: Callable[[PyTree, jax.Array], jax.Array], params: PyTree,
         archs: jax.Array) -> jax.Array:
    """Apply a policy's `log_prob` or `entropy` to archs [B, L]: [B, L] float32."""
    return jax.vmap(function, in_axes=(None, 0))(params, archs)


def is_zero(weight: float | jax.Array) -> bool:
    """Tell whether a weight is known to be zero when the searcher is built."""
    return isinstance(weight, (int, float)) and weight == 0
