"""The edges of a cell as one loop, whose first and second derivatives are such loops too.

A cell is a sequence of edges (node n, source j) in which a source is complete before it is read:

    q_j  = share(x_j)                    once a source
    x_n += edge(params_e, x_j, q_j)      once an edge

So the array of all states *after* the loop holds what every edge read, and the same is true of
their gradients in the loop back: nothing need be put on a stack, as JAX does where it
differentiates a `scan`, and an edge is computed again where its derivative is wanted. Memory is
that of the states. The loop back runs over the edges the other way round; the loop of the second
derivative, which is the derivative of the loop back, the first way again. Third derivatives are
JAX's.

Derivatives to parameters that nobody asks for are not computed.

A product of second derivatives, grad_a of <grad_w L, u>, is cheaper the other way round: the
derivative of L along u is one loop over edges with their tangents, an edge of twice the arrays, and
its gradient is the loop back over those. With `forward_mode` the loop is differentiated like that,
once in forward mode and then in reverse: JAX has no function with both rules. Counted in edges
computed forward, back being two: 8 and not 16.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas.base import PyTree


class Plan(NamedTuple):
    """What is looped over.

    Attributes:
      edge: (params of one edge, x, q) -> what is added to its node, a tree like x.
      share: x -> q, a tree of arrays.
      sources, nodes: rows of the states that each edge reads and adds to, in the order of the loop.
      recursive: whether nodes are rows of the array that the edges read; else of another one.
    """

    edge: Callable[[PyTree, PyTree, PyTree], PyTree]
    share: Callable[[PyTree], PyTree]
    sources: tuple[int, ...]
    nodes: tuple[int, ...]
    recursive: bool


def run(
    plan: Plan, params: PyTree, states: jax.Array, nodes: jax.Array | None, *, recompute: bool,
    forward_mode: bool = False,
) -> jax.Array:
    """Add every edge to its node.

    Args:
      plan: the edges, E of them.
      params: [E, ...], in the order of the loop.
      states: [S, ...], what the edges read; nodes among them begin as what is to be added to.
      nodes: [M, ...], what they add to where `plan.recursive` is false, else None.
      recompute: the derivatives above, in reverse mode of any order; without, JAX's.
      forward_mode: of `recompute`: one derivative in forward mode, and others in reverse after it.

    Returns:
      The states, or the nodes, with the edges added.
    """
    walk: Callable = functools.partial(_forward, opaque=False)
    if recompute:
        walk = _forward_first if forward_mode else _recomputed
    (states, nodes), _ = walk(plan, params, states, nodes)
    return states if plan.recursive else nodes


# ---- three loops ---------------------------------------------------------------------------------


def _forward(plan, params, states, nodes, opaque=True):
    """Return (states, nodes) after the loop, and what is shared of each source."""
    def body(carry, item):
        (states, nodes), shared = carry
        params, place = item
        x = _take(states, place.source)
        q = lax.cond(place.first, lambda x, _: plan.share(x), lambda _, q: q,
                     x, _take(shared, place.source))
        written = states if plan.recursive else nodes
        y = _apart(plan.edge, place, jax.tree.map(lambda leaf: leaf[0], written))(params, x, q)
        shared = _put(shared, place.source, q)
        if plan.recursive:
            return ((_add(states, place.node, y), None), shared), None
        return ((states, _add(nodes, place.node, y)), shared), None

    count = len(jax.tree.leaves(states)[0])
    blank = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype),
                         jax.eval_shape(plan.share, jax.tree.map(lambda leaf: leaf[0], states)))
    body = _opaque(body) if opaque else body
    return lax.scan(body, ((states, nodes), blank), (params, _places(plan)))[0]


def _backward(plan, wanted, params, states, shared, grads, shared_grads):
    """Return gradients of the wanted leaves of params, and all (states, nodes), shared.

    Args:
      plan, params: as in `run`.
      wanted: of each leaf of params, whether its gradient is returned.
      states, shared: after the loop.
      grads: (states, nodes), of what the loop returned.
      shared_grads: of what it returned too.
    """
    def body(carry, item):
        (grads, node_grads), shared_grads = carry
        params, place = item
        x, q = _take((states, shared), place.source)
        g = _take(grads if plan.recursive else node_grads, place.node)
        kept, _ = _split(jax.tree.leaves(params), wanted)
        edge_back = _apart(functools.partial(_edge_back, plan, wanted), place, (kept, x, q))
        params, x_grad, q_grad = edge_back(params, x, q, g)
        shared_grads = _add(shared_grads, place.source, q_grad)
        more = lax.cond(place.first, functools.partial(_share_back, plan),
                        lambda x, _: jax.tree.map(jnp.zeros_like, x),
                        x, _take(shared_grads, place.source))
        grads = _add(grads, place.source, jax.tree.map(jnp.add, x_grad, more))
        return ((grads, node_grads), shared_grads), params

    carry, found = lax.scan(
        _opaque(body), (grads, shared_grads), (params, _places(plan)), reverse=True)
    return found, *carry


def _second(plan, wanted, wanted_too, params, states, shared, grads, shared_grads, cotangents):
    """Differentiate `_backward`.

    Args:
      plan, wanted, params, states, shared: as there.
      wanted_too: of each leaf of params, whether its gradient is returned here.
      grads, shared_grads: what it returned.
      cotangents: of what it returned: of params, (states, nodes), shared.

    Returns:
      Gradients of the leaves of params, the states, shared, grads, shared_grads.
    """
    def body(carry, item):
        (tangents, node_tangents), shared_tangents, state_grads, q_grads = carry
        (params, tangent), place = item
        x, q, q_grad = _take((states, shared, shared_grads), place.source)
        g = _take(grads[0] if plan.recursive else grads[1], place.node)
        x_tangent = _take(tangents, place.source)

        def share_again(x, q_grad, x_tangent):
            return jax.vjp(functools.partial(_share_back, plan), x, q_grad)[1](x_tangent)

        def nothing(x, q_grad, _):
            return jax.tree.map(jnp.zeros_like, (x, q_grad))

        more = lax.cond(place.first, share_again, nothing, x, q_grad, x_tangent)
        shared_tangents = _add(shared_tangents, place.source, more[1])

        def edge_again(params, x, q, g, tangents):
            leaves, tree = jax.tree.flatten(params)
            kept, others = _split(leaves, wanted_too)

            def back(kept, x, q, g):
                joined = jax.tree.unflatten(tree, _join(kept, others, wanted_too))
                return _edge_back(plan, wanted, joined, x, q, g)

            return jax.vjp(back, kept, x, q, g)[1](tangents)

        kept, _ = _split(jax.tree.leaves(params), wanted_too)
        params, x_more, q_more, g_more = _apart(edge_again, place, (kept, x, q, g))(
            params, x, q, g, (tangent, x_tangent, _take(shared_tangents, place.source)))
        state_grads = _add(state_grads, place.source, jax.tree.map(jnp.add, more[0], x_more))
        q_grads = _add(q_grads, place.source, q_more)
        if plan.recursive:
            tangents = _add(tangents, place.node, g_more)
        else:
            node_tangents = _add(node_tangents, place.node, g_more)
        return ((tangents, node_tangents), shared_tangents, state_grads, q_grads), params

    tangent, state_tangents, shared_tangents = cotangents
    blank = jax.tree.map(jnp.zeros_like, (states, shared))
    (state_tangents, shared_tangents, state_grads, q_grads), found = lax.scan(
        _opaque(body), (state_tangents, shared_tangents, *blank),
        ((params, tangent), _places(plan)))
    return found, state_grads, q_grads, state_tangents, shared_tangents


def _edge_back(plan, wanted, params, x, q, g):
    """Return the gradients of the wanted leaves of params, of x and of q."""
    leaves, tree = jax.tree.flatten(params)
    kept, others = _split(leaves, wanted)

    def edge(kept, x, q):
        return plan.edge(jax.tree.unflatten(tree, _join(kept, others, wanted)), x, q)

    return jax.vjp(edge, kept, x, q)[1](g)


def _share_back(plan, x, q_grad):
    return jax.vjp(plan.share, x)[1](q_grad)[0]


# ---- each the derivative of the one before -------------------------------------------------------


@jax.tree_util.register_static
class _Wanted(tuple):
    """Which leaves have a gradient that somebody wants: no array, so that a trace depends on it."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recomputed(plan, params, states, nodes):
    return _forward(plan, params, states, nodes)


def _recomputed_forward(plan, params, states, nodes):
    wanted = _Wanted(leaf.perturbed for leaf in jax.tree.leaves(params))
    params, states, nodes = _values((params, states, nodes))
    out = _forward(plan, params, states, nodes)
    (states, _), shared = out
    return out, (wanted, params, states, shared)


def _recomputed_backward(plan, saved, grads):
    wanted, params, states, shared = saved
    grads, shared_grads = _filled(grads)
    found, (state_grads, node_grads), _ = _backward_recomputed(
        plan, wanted, params, states, shared, grads, shared_grads)
    return _as_params(params, found, wanted), state_grads, node_grads


_recomputed.defvjp(_recomputed_forward, _recomputed_backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _backward_recomputed(plan, wanted, params, states, shared, grads, shared_grads):
    return _backward(plan, wanted, params, states, shared, grads, shared_grads)


def _backward_forward(plan, wanted, params, *others):
    wanted_too = _Wanted(leaf.perturbed for leaf in jax.tree.leaves(params))
    params, states, shared, grads, shared_grads = _values((params, *others))
    out = _backward(plan, wanted, params, states, shared, grads, shared_grads)
    _, grads, shared_grads = out
    return out, (wanted_too, params, states, shared, grads, shared_grads)


def _backward_backward(plan, wanted, saved, cotangents):
    wanted_too, params, states, shared, grads, shared_grads = saved
    found, *others = _second(plan, wanted, wanted_too, params, states, shared, grads, shared_grads,
                             _filled(cotangents))
    return _as_params(params, found, wanted_too), *others


_backward_recomputed.defvjp(_backward_forward, _backward_backward, symbolic_zeros=True)


# ---- along a direction ---------------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _forward_first(plan, params, states, nodes):
    return _forward(plan, params, states, nodes)


def _along(plan, primals, tangents):
    """Return what `_forward` does and its derivative along tangents, by the loop over both."""
    params, states, nodes = primals
    leaves, tree = jax.tree.flatten(params)
    param_tangents = jax.tree.leaves(tangents[0])
    moved = _Wanted(not _is_zero(leaf) for leaf in param_tangents)
    kept_tangents, _ = _split(param_tangents, moved)
    states, nodes = (None if pair[0] is None else (pair[0], _filled(pair[1]))
                     for pair in ((states, tangents[1]), (nodes, tangents[2])))

    def edge(params, x, q):
        leaves, kept_tangents = params
        kept, others = _split(leaves, moved)

        def primal(kept, x, q):
            return plan.edge(jax.tree.unflatten(tree, _join(kept, others, moved)), x, q)

        return jax.jvp(primal, (kept, x[0], q[0]), (kept_tangents, x[1], q[1]))

    def share(x):
        return jax.jvp(plan.share, (x[0],), (x[1],))

    both = plan._replace(edge=edge, share=share)
    (states, nodes), shared = _recomputed(both, (leaves, kept_tangents), states, nodes)
    nodes = (None, None) if nodes is None else nodes
    return tuple(((states[i], nodes[i]), shared[i]) for i in (0, 1))


_forward_first.defjvp(_along, symbolic_zeros=True)


# ---- arguments of the rules ----------------------------------------------------------------------


def _is_zero(leaf: Any) -> bool:
    return isinstance(leaf, jax.custom_derivatives.SymbolicZero)


def _values(tree: PyTree) -> PyTree:
    """Return the values of what a rule with symbolic zeros is given."""
    def known(leaf: Any) -> bool:
        return isinstance(leaf, jax.custom_derivatives.CustomVJPPrimal)

    return jax.tree.map(lambda leaf: leaf.value, tree, is_leaf=known)


def _filled(tree: PyTree) -> PyTree:
    """Make arrays of symbolic zeros."""
    def fill(leaf: Any) -> jax.Array:
        return jnp.zeros(leaf.shape, leaf.dtype) if _is_zero(leaf) else leaf

    return jax.tree.map(fill, tree, is_leaf=_is_zero)


def _as_params(params: PyTree, found: list[jax.Array], wanted: tuple[bool, ...]) -> PyTree:
    """Put gradients in the place of the wanted leaves, and None, a zero, in that of the others."""
    return jax.tree.unflatten(jax.tree.structure(params),
                              _join(found, [None] * len(wanted), wanted))


# ---- rows ----------------------------------------------------------------------------------------


class _Place(NamedTuple):
    source: jax.Array  # [E] int32
    node: jax.Array    # [E] int32
    first: jax.Array   # [E] bool: no edge before it read this source


def _places(plan: Plan) -> _Place:
    first = [j not in plan.sources[:number] for number, j in enumerate(plan.sources)]
    return _Place(jnp.array(plan.sources, np.int32), jnp.array(plan.nodes, np.int32),
                  jnp.array(first))


def _take(tree: PyTree, row: jax.Array) -> PyTree:
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, row, keepdims=False), tree)


def _put(tree: PyTree, row: jax.Array, values: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, value: lax.dynamic_update_index_in_dim(leaf, value, row, 0),
                        tree, values)


def _add(tree: PyTree, row: jax.Array, values: PyTree) -> PyTree:
    return _put(tree, row, jax.tree.map(jnp.add, _take(tree, row), values))


def _apart(function: Callable, place: _Place, like: PyTree) -> Callable:
    # else XLA would compute an edge inside the update of the states, by one core, not vectorised
    return apart(function, place.source >= 0, like)


def apart(function: Callable, true: jax.Array, like: PyTree) -> Callable:
    """Keep XLA from fusing a function, or its gradients, into what uses the results.

    Args:
      function: of arrays.
      true: [] bool, always true, which XLA cannot know; it does not fuse across a condition.
      like: arrays, or their shapes, as the function returns them.
    """
    def call(*args: Any) -> Any:
        return lax.cond(true, function, lambda *_: jax.tree.map(jnp.zeros_like, like), *args)

    return call


def _opaque(body: Callable) -> Callable:
    """Keep JAX from moving the constants of a loop's body out of it.

    It does where a loop around this one is differentiated, for every turn of this one: arrays of
    zeros, as many as there are edges, are then written and read back.
    """
    return jax.checkpoint(body, prevent_cse=False)


def _split(leaves: list, wanted: tuple[bool, ...]) -> tuple[list, list]:
    kept = [leaf for leaf, want in zip(leaves, wanted) if want]
    return kept, [leaf for leaf, want in zip(leaves, wanted) if not want]


def _join(kept: list, others: list, wanted: tuple[bool, ...]) -> list:
    first, second = iter(kept), iter(others)
    return [next(first) if want else next(second) for want in wanted]
