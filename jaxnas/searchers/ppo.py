"""Proximal policy optimisation over architectures (https://arxiv.org/abs/1707.06347).

As NASNet (https://arxiv.org/abs/1707.07012) and MnasNet (https://arxiv.org/abs/1807.11626) search.
Published of NASNet's: `lstm_controller(hidden_size=100, num_layers=1, init_range=0.1)`,
`adam(3.5e-4)`, batch 20, baseline decay 0.95, entropy weight 1e-5; not published: clip range,
epochs, how the baseline starts.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxnas.base import Info, Policy, PyTree, Searcher
from jaxnas.searchers.policy_gradient import Feedback, each, is_zero, policy_searcher


def ppo(
    policy: Policy,
    *,
    optimizer: optax.GradientTransformation,
    batch_size: int = 20,
    clip_range: float | jax.Array = 0.2,
    num_epochs: int = 4,
    baseline_decay: float | jax.Array = 0.95,
    baseline_init: str = "first",
    baseline_first: bool = False,
    entropy_weight: float | jax.Array = 1e-5,
) -> Searcher:
    """Take a few steps on each batch, until the policy's ratios leave a range around 1.

    With rho_l = P(a_l | a_<l) / P_old(a_l | a_<l) and one advantage A = R - b for all decisions of
    an architecture, what is maximised is the mean over the batch of

        sum over l of min(rho_l A, clip(rho_l, 1 - clip_range, 1 + clip_range) A)
        + entropy_weight * sum over l of H(l | a_<l).

    P_old is the policy that `tell` finds, whichever the architectures were drawn from. Each epoch
    is one step on the whole batch; the first has REINFORCE's gradient. The entropy is that of the
    whole distribution, not of the choices drawn.

    Args:
      policy: of `jaxnas.networks.controllers`, for one.
      optimizer: descends, as all of Optax do, minus the objective.
      batch_size: B.
      clip_range: above 0; `inf` does not clip.
      num_epochs: steps on a batch. Not published; 4 is customary with one minibatch.
      baseline_decay: momentum of b, in [0, 1]; 1 with "zero" is no baseline.
      baseline_init: "zero", or "first", the mean of the first batch.
      baseline_first: move b before it is subtracted, or after.
      entropy_weight: 0 or more.

    Returns:
      Searcher over a `PolicyGradientState`. A fitness that is not finite leaves no trace; a batch
      without any other leaves the state as it is, the optimiser's too. info: `baseline` after the
      batch, `advantage`, the mean over what did not fail (0 if all did), `entropy` of P_old in
      nats, the mean over the batch, and `clipped`, the share of ratios out of range before the
      last step, of what did not fail.

    Raises:
      ValueError: an option is out of range.
    """
    if isinstance(clip_range, (int, float)) and not clip_range > 0:
        raise ValueError(f"clip_range must be above 0, got {clip_range}.")
    if num_epochs < 1:
        raise ValueError(f"num_epochs must be 1 or more, got {num_epochs}.")

    def update(
        params: PyTree, opt_state: optax.OptState, archs: jax.Array, told: Feedback
    ) -> tuple[PyTree, optax.OptState, Info]:
        old_log_probs = each(policy.log_prob, params, archs)  # [B, L]
        entropy = each(policy.entropy, params, archs).sum(-1).mean()
        advantages = told.advantages[:, None]

        def loss(params: PyTree) -> tuple[jax.Array, jax.Array]:
            ratios = jnp.exp(each(policy.log_prob, params, archs) - old_log_probs)
            near = jnp.clip(ratios, 1 - clip_range, 1 + clip_range)
            gains = jnp.minimum(ratios * advantages, near * advantages).sum(-1)
            if not is_zero(entropy_weight):
                gains += entropy_weight * each(policy.entropy, params, archs).sum(-1)
            clipped = jnp.sum(told.weights * jnp.mean(ratios != near, axis=-1))
            return -jnp.sum(told.weights * gains), clipped

        def epoch(carry, _):
            params, opt_state = carry
            grads, clipped = jax.grad(loss, has_aux=True)(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), clipped

        (params, opt_state), clipped = lax.scan(
            epoch, (params, opt_state), None, length=num_epochs)
        return params, opt_state, {"entropy": entropy, "clipped": clipped[-1]}

    return policy_searcher(
        policy, optimizer, update, batch_size=batch_size, baseline_decay=baseline_decay,
        baseline_init=baseline_init, baseline_first=baseline_first, entropy_weight=entropy_weight)
