"""The controller of `experiments.enas`, and the penalty on its skip connections."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxnas.base import Policy, PyTree
from jaxnas.networks import chain_layout
from jaxnas.networks.enas_controller import enas_macro_controller, enas_micro_controller


def make_controller(config: Any) -> Policy:
    """Return the controller of a configuration of `experiments.enas`."""
    if config.space == "macro":
        return enas_macro_controller(config.layers, hidden_size=config.hidden_size)
    return enas_micro_controller(config.blocks, hidden_size=config.hidden_size)


def regularised(policy: Policy, config: Any) -> Policy:
    """Return the policy with, as its entropy, all that ENAS adds to the objective.

    That is entropy_weight H - skip_weight KL: the searcher has one such term, which it maximises
    and differentiates. The released code adds the entropy to the reward, without a gradient; the
    penalty it has in the loss, as here. `sample` and `log_prob` stay as they are.

    Args:
      policy: of either space.
      config: `space`, `layers`, `entropy_weight`, `skip_weight`, `skip_target` are read.
    """
    penalise = config.space == "macro" and config.skip_weight > 0

    def regulariser(params: PyTree, arch: jax.Array) -> jax.Array:
        total = config.entropy_weight * policy.entropy(params, arch)
        if penalise:
            divergence = skip_divergence(policy.log_prob(params, arch), arch, config.layers,
                                         config.skip_target)
            total -= config.skip_weight * divergence
        return total

    return policy._replace(entropy=regulariser)


def skip_divergence(
    log_prob: jax.Array, arch: jax.Array, num_layers: int, target: float
) -> jax.Array:
    """Return ENAS's penalty of skip connections, decision by decision: [D] -> [D]; 0 for others.

    The sum is the mean over layers 1 to L - 1 of the sum over a layer's bits of KL(p || target)
    (Pham et al., 2018, section 2.3, as in melodyguan/enas general_controller.py). A bit has the
    logits -a and a, so that it is drawn with probability sigmoid(2 a); the penalty's p is, as
    released, sigmoid(a), a flatter one.

    Args:
      log_prob: [D] log P of the decisions of an arch of ENAS macro.
      arch: [D] int32.
      num_layers: L, 2 or more.
      target: t, in (0, 1); 0.4 as published.
    """
    bits = chain_layout.pack(jnp.zeros((num_layers, 1), bool),
                             jnp.ones((num_layers, num_layers), bool))
    safe = jnp.where(bits, log_prob, jnp.log(0.5))  # of other decisions nothing is asked
    towards = (safe - jnp.log1p(-jnp.exp(safe))) / 2
    a = jnp.where(arch == 1, towards, -towards)
    p = jax.nn.sigmoid(a)
    divergence = (p * (jax.nn.log_sigmoid(a) - jnp.log(target))
                  + (1 - p) * (jax.nn.log_sigmoid(-a) - jnp.log1p(-target)))
    return jnp.where(bits, divergence, 0.0) / max(1, num_layers - 1)
