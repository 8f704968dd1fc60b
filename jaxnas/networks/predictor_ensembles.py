"""Ensembles of accuracy predictors, each fitted to another four fifths of the observations.

PNAS (https://arxiv.org/abs/1712.00559): five predictors, member k without fold k of five; the mean
is the prediction, and the members' spread tells how certain it is.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxnas.base import PyTree, Surrogate
from jaxnas.networks.predictors import initial_params

LOWEST, HIGHEST = 0.1, 0.9  # where the observed fitness lies in a sigmoid's range


class EnsembleModel(NamedTuple):
    """Fitted predictors; a prediction is scale * (sigmoid - LOWEST) + lowest."""

    params: PyTree     # [members, ...]
    lowest: jax.Array  # []
    scale: jax.Array   # []


def predictor_ensemble(predictor: nn.Module, *, members: int = 5, num_steps: int = 200,
                       learning_rate: float = 0.01) -> Surrogate:
    """Fit predictors from scratch by Adam on the mean absolute error of all their observations.

    Deviations from PNAS: whole batches; a learning rate that falls to zero by a cosine (PNAS: 0.01
    for cells of one block and 0.002 later, which fits its small batches); fitness of any range is
    brought into the sigmoid's; the bias of the output starts where the observed mean is.

    Args:
      predictor: arch [L] -> [] in (0, 1), such as `MLPPredictor`, with a layer "accuracy" last.
      members: 2 or more; member k leaves out fold k.
      num_steps: of Adam, in every fit.
      learning_rate: the first.

    Returns:
      A surrogate. Its fit is one program for any number of observations; members are a `vmap`.

    Raises:
      ValueError: a number is out of range.
    """
    if members < 2:
        raise ValueError(f"members must be 2 or more, got {members}.")
    if num_steps < 1:
        raise ValueError(f"num_steps must be 1 or more, got {num_steps}.")
    if isinstance(learning_rate, (int, float)) and not learning_rate > 0:
        raise ValueError(f"learning_rate must be above 0, got {learning_rate}.")
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def apply(params: PyTree, archs: jax.Array) -> jax.Array:
        run: Any = predictor.apply
        return jax.vmap(lambda arch: run({"params": params}, arch))(archs)

    def fit_member(key, archs, targets, weights):
        count = jnp.maximum(weights.sum(), 1.0)
        start = jnp.sum(weights * targets) / count
        params = initial_params(
            key, predictor, archs.shape[1], jnp.clip(start, LOWEST, HIGHEST))  # 0 of nothing

        def loss(params):
            return jnp.sum(weights * jnp.abs(apply(params, archs) - targets)) / count

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None,
                                      length=num_steps)
        return params

    def fit(key, archs, fitness, mask):
        fold_key, init_key = jax.random.split(key)
        targets, lowest, scale = _into_range(fitness, mask)
        weights = member_weights(fold_key, mask, members)
        params = jax.vmap(fit_member, (0, None, None, 0))(
            jax.random.split(init_key, members), archs, targets, weights)
        return EnsembleModel(params, lowest, scale)

    def predict(model, archs):
        values = jax.vmap(apply, (0, None))(model.params, archs)  # [members, M]
        values = model.lowest + model.scale * (values - LOWEST)
        return values.mean(0), values.std(0)

    return Surrogate(fit, predict)


def member_weights(key: jax.Array, mask: jax.Array, members: int) -> jax.Array:
    """Draw folds of equal size, and leave fold k out of member k: [N] bool -> [members, N] float32.

    Every observation is in one fold, drawn anew, of which sizes differ by one at most.
    """
    order = jnp.argsort(jnp.where(mask, jax.random.uniform(key, mask.shape), 2.0))
    rank = jnp.zeros(mask.shape, jnp.int32).at[order].set(jnp.arange(mask.size, dtype=jnp.int32))
    kept = mask & (rank % members != jnp.arange(members)[:, None])
    return kept.astype(jnp.float32)


def _into_range(fitness, mask):
    """Bring what was observed into [LOWEST, HIGHEST]; what is masked out to the middle."""
    lowest = jnp.min(jnp.where(mask, fitness, jnp.inf))
    highest = jnp.max(jnp.where(mask, fitness, -jnp.inf))
    spread = highest > lowest
    scale = jnp.where(spread, highest - lowest, 1.0) / (HIGHEST - LOWEST)
    lowest = jnp.where(jnp.isfinite(lowest), lowest, 0.0)
    targets = LOWEST + (fitness - lowest) / scale
    return jnp.where(mask & spread, targets, (LOWEST + HIGHEST) / 2), lowest, scale
