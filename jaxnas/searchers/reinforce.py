"""REINFORCE over architectures (Williams, 1992; Zoph & Le, 2017, https://arxiv.org/abs/1611.01578).

The expected fitness J = E[R(a)] of a policy P has the gradient

    grad J = E[ sum over l of grad log P(a_l | a_<l) * (R(a) - b) ]

for any baseline b that does not depend on a. A batch estimates it.

Published settings; a fitness that is cubed or inverted is the objective's business.

| | policy | optimiser | batch | decay | init | first | entropy |
|---|---|---|---|---|---|---|---|
| NAS-Bench-201, NATS-Bench (1) | independent_logits | adam(0.01) | 1 | 0.9 | zero | yes | 0 |
| NAS with RL, CNN (2) | lstm_controller | adam(6e-4) | 8 | ? | ? | no | 0 |
| NAS with RL, RNN (2) | lstm_controller | adam(5e-4) | 10 | ? | ? | no | 0 |
| ENAS, macro (3) | its own, H = 64 | adam(1e-3, b1=0, eps=1e-3) | 20 | 0.99 | zero | yes | 1e-4 |
| ENAS, micro (3) | its own, H = 64 | adam(3.5e-3, b1=0, eps=1e-3) | 10 | 0.99 | zero | yes | 1e-4 |

(1) The authors' script; 0.01 is NATS-Bench's (https://arxiv.org/abs/2009.00437). (2) The paper does
not give the baseline's decay and start; 100 controllers with 8 children each (CNN) sent
asynchronous gradients to one set of parameters. (3) The authors' script, whose baseline moves with
every sample, ours with every batch; there the entropy is added to the reward, without a gradient.
"""

import jax
import jax.numpy as jnp
import optax

from jaxnas.base import Info, Policy, PyTree, Searcher
from jaxnas.searchers.policy_gradient import Feedback, each, is_zero, policy_searcher


def reinforce(
    policy: Policy,
    *,
    optimizer: optax.GradientTransformation,
    batch_size: int = 1,
    baseline_decay: float | jax.Array = 0.9,
    baseline_init: str = "zero",
    baseline_first: bool = True,
    entropy_weight: float | jax.Array = 0.0,
) -> Searcher:
    """Follow the score-function gradient of the expected fitness, one step a batch.

    The defaults are NAS-Bench-201's. What is maximised is the mean over the batch of

        sum over l of log P(a_l | a_<l) * (R - b)  +  entropy_weight * sum over l of H(l | a_<l),

    of which the second term is differentiated for the decisions before l as they were drawn: the
    gradient of the policy's entropy where decisions are independent, else the usual part of it.
    Archs need not come from the current policy, and may be any number; where they do not, the
    gradient is that of the objective above all the same.

    With `baseline_first` the baseline has a share of the fitness it is subtracted from. In
    expectation this scales grad J by 1 - (1 - baseline_decay) / B, its direction is the same.

    Args:
      policy: of `jaxnas.networks.controllers`, for one.
      optimizer: descends, as all of Optax do, minus the objective.
      batch_size: B.
      baseline_decay: momentum of b, in [0, 1]; 1 with "zero" is no baseline.
      baseline_init: "zero", or "first", the mean of the first batch: of a batch of one the first
        advantage is 0 then.
      baseline_first: move b before it is subtracted (NAS-Bench-201, ENAS) or after.
      entropy_weight: 0 or more.

    Returns:
      Searcher over a `PolicyGradientState`. A fitness that is not finite leaves no trace; a batch
      without any other leaves the state as it is, the optimiser's too. info: `baseline` after the
      batch, `advantage`, the mean over what did not fail (0 if all did), `entropy` of the policy
      before the step, in nats, the mean over the batch.

    Raises:
      ValueError: an option is out of range.
    """

    def update(
        params: PyTree, opt_state: optax.OptState, archs: jax.Array, told: Feedback
    ) -> tuple[PyTree, optax.OptState, Info]:
        def loss(params: PyTree) -> tuple[jax.Array, jax.Array]:
            gains = told.advantages * each(policy.log_prob, params, archs).sum(-1)
            entropies = each(policy.entropy, params, archs).sum(-1)
            if not is_zero(entropy_weight):
                gains += entropy_weight * entropies
            return -jnp.sum(told.weights * gains), entropies.mean()

        grads, entropy = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, {"entropy": entropy}

    return policy_searcher(
        policy, optimizer, update, batch_size=batch_size, baseline_decay=baseline_decay,
        baseline_init=baseline_init, baseline_first=baseline_first, entropy_weight=entropy_weight)
