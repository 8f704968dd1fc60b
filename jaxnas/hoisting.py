"""Split a function into what its first argument alone decides, and the rest.

In a search step the random numbers depend on the step's key and not on what was learnt, so those
of many steps can be drawn at once, in long vectors, before the loop that cannot be vectorised.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.random
from jax.extend import core as jax_core


def split(function: Callable[..., Any], first: Any,
          *rest: Any) -> tuple[Callable[[Any], list[jax.Array]], Callable[..., Any]]:
    """Split `function(first, *rest)`; the two parts together give the same result, bit by bit.

    Args:
      function: traceable.
      first: an example of the first argument, arrays or shapes.
      *rest: examples of the other arguments.

    Returns:
      early: first -> list of arrays: what costs something and needs nothing but `first`, that is
        random numbers and whatever is called or looped. Cheap arithmetic on them is left to
        `late`, where it fuses, so that few arrays are carried.
      late: (early's result, *rest) -> function(first, *rest).
    """
    closed, out_shape = jax.make_jaxpr(function, return_shape=True)(first, *rest)
    jaxpr = closed.jaxpr
    num_first = len(jax.tree.leaves(first))
    first_vars, rest_vars = jaxpr.invars[:num_first], jaxpr.invars[num_first:]
    constant, known = set(jaxpr.constvars), set(first_vars)
    shared, early, late = [], [], []
    for equation in jaxpr.eqns:
        inputs = _variables(equation.invars)
        if not equation.effects and inputs <= constant:
            shared.append(equation)  # depends on nothing: computed where it is used
            constant.update(equation.outvars)
        elif not equation.effects and inputs <= constant | known:
            early.append(equation)
            known.update(equation.outvars)
        else:
            late.append(equation)
    early, cheap = _ending_in_costly(early)
    late = cheap + late
    wanted = [var for equation in late for var in equation.invars] + list(jaxpr.outvars)
    made = {var for equation in late for var in equation.outvars}
    carried = [var for var in dict.fromkeys(filter(_is_variable, wanted))
               if var in known and var not in made]
    early_function = _as_function(closed, shared + early, first_vars, carried)
    late_function = _as_function(closed, shared + late, carried + rest_vars, jaxpr.outvars)

    def compute_early(first):
        return early_function(*jax.tree.leaves(first))

    def compute_late(computed, *rest):
        leaves = late_function(*computed, *jax.tree.leaves(rest))
        return jax.tree.unflatten(jax.tree.structure(out_shape), leaves)

    return compute_early, compute_late


def _as_function(closed, equations, inputs, outputs):
    jaxpr = closed.jaxpr.replace(
        eqns=equations, invars=list(inputs), outvars=list(outputs),
        debug_info=closed.jaxpr.debug_info._replace(arg_names=None, result_paths=None))
    return jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(jaxpr, closed.consts))


def _is_variable(atom) -> bool:
    return not isinstance(atom, jax_core.Literal)


def _variables(atoms) -> set:
    return set(filter(_is_variable, atoms))


def _ending_in_costly(equations) -> tuple[list, list]:
    """Part equations into the costly ones with all that they need, and the rest; both in order."""
    needed: set = set()
    costly: list = []
    cheap: list = []
    for equation in reversed(equations):
        if _is_costly(equation) or needed & set(equation.outvars):
            needed |= _variables(equation.invars)
            costly.insert(0, equation)
        else:
            cheap.insert(0, equation)
    return costly, cheap


def _is_costly(equation) -> bool:
    keys = any(jax.dtypes.issubdtype(var.aval.dtype, jax.dtypes.prng_key)
               for var in _variables(equation.invars))
    calls = any(isinstance(part, (jax_core.Jaxpr, jax_core.ClosedJaxpr))
                for value in equation.params.values()
                for part in (value if isinstance(value, tuple) else (value,)))  # branches of cond
    return keys or calls or equation.primitive is jax.extend.random.threefry2x32_p
