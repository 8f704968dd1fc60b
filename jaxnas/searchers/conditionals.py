"""A condition that stays one under `jax.vmap`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnas.base import PyTree


def only_if(condition: jax.Array, function: Callable[[], PyTree], otherwise: PyTree) -> PyTree:
    """Return `function()` where the condition [] holds, else `otherwise`, of the same structure.

    Under `jax.vmap` a `lax.cond` computes both sides for every row. This is a loop of no or one
    turn, which a batch skips altogether where no row needs it: searches of many seeds in step fit
    a model when all do, and not in every step.
    """
    def body(carry):
        return jnp.bool_(False), function()

    return jax.lax.while_loop(lambda carry: carry[0], body, (condition, otherwise))[1]
