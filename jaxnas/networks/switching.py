"""A switch between functions that costs, forwards and backwards, what the chosen one costs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax


def switch(index: jax.Array, branches: Sequence[Callable[..., Any]], *operands: Any,
           integers: Any = None) -> Any:
    """`lax.switch` whose derivative is the switch of the branches' derivatives.

    JAX's own saves the intermediate values of every branch, zeros for those that did not run, and
    stacks them in every loop around. Here the operands are saved, and the branch is run again.
    Reverse mode only, of first order. Under `vmap` over `index` every branch runs.

    Args:
      index: [] int32; out of range it is clamped.
      branches: called (*operands), or with integers (integers, *operands); all return the same
        shapes, and none closes over arrays that are differentiated.
      *operands: pytrees of floating-point arrays.
      integers: a pytree of arrays that have no derivative, or None.
    """
    def call(branch: Callable[..., Any], integers: Any, operands: tuple[Any, ...]) -> Any:
        return branch(*operands) if integers is None else branch(integers, *operands)

    @jax.custom_vjp
    def run(index, integers, *operands):
        return lax.switch(
            index, [lambda i, *o, b=b: call(b, i, o) for b in branches], integers, *operands)

    def backward(saved, cotangents):
        index, integers, operands = saved

        def pull(branch):
            def pulled(cotangents, integers, *operands):
                _, pullback = jax.vjp(lambda *o: call(branch, integers, o), *operands)
                return pullback(cotangents)
            return pulled

        gradients = lax.switch(index, [pull(b) for b in branches], cotangents, integers, *operands)
        return None, None, *gradients

    run.defvjp(lambda index, integers, *operands: (
        run(index, integers, *operands), (index, integers, operands)), backward)
    return run(index, integers, *operands)
