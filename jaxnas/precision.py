"""Mixed precision: a network computes in a narrow type, what is kept stays float32.

    apply = precision.mixed(supernet.apply, "bfloat16")

Parameters, optimiser states and gradients stay as they are: the gradient passes through the cast
that narrows the parameters. Sums are taken in float32: matrix products by XLA, batch statistics,
depthwise kernels and the weights of a mixed cell by the networks themselves (added up in bfloat16,
the gradients of the latter were off by 14 % in place of 0.8 %). Running statistics are never
narrowed, and logits are float32 again before a loss sees them. No loss scaling: bfloat16 has the
exponents of float32; float16, which would need it, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def mixed(apply: Callable[..., Any], precision: Precision) -> Callable[..., Any]:
    """Return `apply` with the arithmetic of `precision`.

    Args:
      apply: (variables, x, *inputs, **options) -> logits, (logits, auxiliary logits or None), or
        either with new variables behind: the `apply` of a Flax module. Of `variables`, "params" are
        narrowed, others are not.
      precision: "float32" returns `apply` itself.

    Returns:
      A function of the same arguments; x [N, ...] is narrowed too. Inputs after it (the weights of
      a supernet, whose gradients are sums over whole maps) are not.

    Raises:
      ValueError: another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}.")
    if precision == "float32":
        return apply
    dtype = jnp.dtype(precision)

    def narrow(tree: Any) -> Any:
        return _cast(tree, dtype)

    def narrowed(variables: Mapping[str, Any], x: jax.Array, *inputs: Any, **options: Any) -> Any:
        variables = {name: narrow(tree) if name == "params" else tree
                     for name, tree in variables.items()}
        result = apply(variables, narrow(x), *inputs, **options)
        return _cast(result, jnp.dtype(jnp.float32), only=dtype)

    return narrowed


def _cast(tree: Any, dtype: jnp.dtype, only: jnp.dtype | None = None) -> Any:
    """Cast the floating leaves, or those of one type alone, to a type."""
    def one(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        wanted = jnp.issubdtype(leaf.dtype, jnp.floating) if only is None else leaf.dtype == only
        return leaf.astype(dtype) if wanted else leaf

    return jax.tree.map(one, tree)
