"""Bilevel optimisation of weights and architecture (DARTS, https://arxiv.org/abs/1806.09055).

    min over a of L_val(w*(a), a)   with   w*(a) = argmin over w of L_train(w, a)

is approached by alternating: one step on the alphas a, one (or K) on the weights w. What differs
between the methods is the gradient of the alphas. With the inner optimiser's update U(g, s, w)
for gradient g and state s, the unrolled objective and its gradient are

    F(a)  = L_val(w'(a), a),       w'(a) = w + U(grad_w L_train(w, a), s, w)                  (1)
    dF/da = grad_a L_val(w', a) + grad_a < grad_w L_train(w, a), u >                          (2)
    u     = (dU/dg)^T grad_w' L_val(w', a)                                                    (3)

For the paper's inner optimiser (momentum and weight decay) dU/dg = -xi, the learning rate, so (2)
is its equation 7. Equation (3) is the correction that makes the same form exact for *any* Optax
chain: clipping, Nesterov momentum, schedules, AdamW.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxnas.base import Batch, BilevelOptimizer, Info, LossFunction, PyTree

GRADIENTS = ("first_order", "unrolled", "hessian_vector", "finite_difference")


class BilevelState(NamedTuple):
    """All that changes during a search."""

    weights: PyTree           # minimise the training loss
    alphas: PyTree            # minimise the validation loss
    inner_state: optax.OptState  # of the weights' optimiser
    outer_state: optax.OptState  # of the alphas' optimiser


def _jit(name: str, function: Callable) -> Callable:
    del name
    return jax.jit(function)


def bilevel(
    loss_fn: LossFunction,
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    *,
    gradient: str = "unrolled",
    inner_steps: int = 1,
    remat: bool = False,
    virtual: optax.GradientTransformation | None = None,
    virtual_state: Callable[[optax.OptState], optax.OptState] = lambda state: state,
    radius: float | jax.Array = 0.01,
    reuse_gradient: bool = False,
    forward_loss_fn: LossFunction | None = None,
    axis_name: str | None = None,
    program: Callable[[str, Callable], Callable] = _jit,
) -> BilevelOptimizer:
    """Alternate one step on the alphas with the steps on the weights (DARTS, algorithm 1).

    `update` is a composition of a few jitted functions. Called as it is, each is a program of its
    own, compiled once and used up to three times a step; under the caller's `jit`, `scan`, `vmap`
    or `pmap` they become one program.

    Args:
      loss_fn: `(weights, alphas, batch) -> scalar`. Pure: batch statistics that it uses are those
        of the batch, and are differentiated through; running ones, if any, are not its concern.
      inner: optimiser of the weights.
      outer: optimiser of the alphas.
      gradient: of the alphas,
        "first_order": grad_a L_val(w, a), the paper's xi = 0;
        "unrolled": `jax.grad` through the inner step itself, equation (1); exact for any `inner`;
        "hessian_vector": equations (2) and (3); exact for any `inner` too, one inner step; never
        holds the intermediate values of two backward passes at once;
        "finite_difference": the paper's equation 8 in place of the second term of (2). Its error
        is not small where the loss has kinks: see docs/finite_differences.md.
      inner_steps: K. With K > 1 the batches of the weights have a leading axis [K]: the alpha step
        looks K weight steps ahead ("unrolled" only), then these K steps are taken.
      remat: recompute each inner step in the backward pass ("unrolled"): memory of one step.
      virtual: inner optimiser of the look-ahead, if it is not `inner`: the published code does not
        clip there. `virtual_state` takes its state out of `inner`'s.
      radius: r, length of the finite difference's perturbation; step size r / ||u||.
      reuse_gradient: "first_order" only: take the alphas' gradient from the program that gives the
        weights' too. One compilation less, up to half as much work again in a step.
      forward_loss_fn: "hessian_vector" only: the same loss in operations that JAX can differentiate
        in forward mode, and then in reverse. The second term of (2) is then taken as the gradient
        of the derivative along u, which has half the work of a gradient of a gradient where what
        is between is computed again; `loss_fn` itself, where it is such a function.
      axis_name: mapped axis (of `pmap` or `shard_map`) over which the gradients of both levels are
        averaged before they reach an optimiser.
      program: `(name, function) -> function`, what makes a program of a piece; `jax.jit`.

    Returns:
      `BilevelOptimizer` over a `BilevelState`; info holds `train_loss` (mean of the K steps) and
      `valid_loss`, [] float, each taken before its own step.

    Raises:
      ValueError: unknown `gradient`; `inner_steps` or `radius` not positive; K > 1 with a form
        that has one inner step; an option of another `gradient`.
    """
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {GRADIENTS}, got {gradient!r}.")
    if inner_steps < 1:
        raise ValueError(f"inner_steps must be 1 or more, got {inner_steps}.")
    if inner_steps > 1 and gradient in ("hessian_vector", "finite_difference"):
        raise ValueError(
            f"gradient={gradient!r} looks one inner step ahead, got {inner_steps=}: "
            "use gradient='unrolled'."
        )
    if isinstance(radius, (int, float)) and not radius > 0:
        raise ValueError(f"radius must be above 0, got {radius}.")
    if gradient == "first_order" and virtual is not None:
        raise ValueError("virtual has no meaning for gradient='first_order': nothing is unrolled.")
    if remat and gradient != "unrolled":
        raise ValueError(f"remat belongs to gradient='unrolled', got {gradient!r}.")
    if reuse_gradient and gradient != "first_order":
        raise ValueError(f"reuse_gradient belongs to gradient='first_order', got {gradient!r}.")
    if forward_loss_fn is not None and gradient != "hessian_vector":
        raise ValueError(
            f"forward_loss_fn belongs to gradient='hessian_vector', got {gradient!r}.")
    ahead = inner if virtual is None else virtual

    def mean(tree: PyTree) -> PyTree:
        return tree if axis_name is None else lax.pmean(tree, axis_name)

    def look_ahead(weights: PyTree, grads: PyTree, inner_state: optax.OptState) -> PyTree:
        updates, _ = ahead.update(grads, virtual_state(inner_state), weights)
        return optax.apply_updates(weights, updates)

    def gradients(weights: PyTree, alphas: PyTree, batch: Batch):
        """Return the loss and its gradients with respect to weights and alphas."""
        return mean(jax.value_and_grad(loss_fn, argnums=(0, 1))(weights, alphas, batch))

    def alpha_gradient(weights: PyTree, alphas: PyTree, batch: Batch):
        return mean(jax.value_and_grad(loss_fn, argnums=1)(weights, alphas, batch))

    def weight_gradient(weights: PyTree, alphas: PyTree, batch: Batch):
        return mean(jax.value_and_grad(loss_fn)(weights, alphas, batch))

    def unrolled_gradient(state: BilevelState, train_batch: Batch, valid_batch: Batch):
        def inner_step(carry, batch):
            weights, inner_state, alphas = carry
            grads = mean(jax.grad(loss_fn)(weights, alphas, batch))
            updates, inner_state = ahead.update(grads, inner_state, weights)
            return (optax.apply_updates(weights, updates), inner_state, alphas), None

        step = jax.checkpoint(inner_step) if remat else inner_step

        def objective(alphas: PyTree) -> jax.Array:
            carry = (state.weights, virtual_state(state.inner_state), alphas)
            if inner_steps == 1:
                carry, _ = step(carry, train_batch)
            else:
                carry, _ = lax.scan(step, carry, train_batch)
            return loss_fn(carry[0], alphas, valid_batch)

        return mean(jax.value_and_grad(objective)(state.alphas))

    def pull_back(weights: PyTree, grads: PyTree, inner_state: optax.OptState, v: PyTree):
        """Return u of equation (3): v through the transposed Jacobian of the optimiser's update."""
        return jax.vjp(lambda g: look_ahead(weights, g, inner_state), grads)[1](v)[0]

    def mixed_product(weights: PyTree, alphas: PyTree, batch: Batch, u: PyTree) -> PyTree:
        """Return grad_a < grad_w L_train(w, a), u >, the second term of equation (2)."""

        def directional(alphas: PyTree) -> jax.Array:
            if forward_loss_fn is not None:
                return jax.jvp(lambda w: forward_loss_fn(w, alphas, batch), (weights,), (u,))[1]
            return optax.tree.vdot(jax.grad(loss_fn)(weights, alphas, batch), u)

        return mean(jax.grad(directional)(alphas))

    def perturb(weights: PyTree, u: PyTree):
        step = radius / jnp.maximum(optax.tree.norm(u), jnp.finfo(jnp.float32).tiny)
        ends = [optax.tree.add_scale(weights, sign * step, u) for sign in (1, -1)]
        return *ends, step

    def difference(plus: PyTree, minus: PyTree, step: jax.Array) -> PyTree:
        return jax.tree.map(lambda p, m: (p - m) / (2 * step), plus, minus)

    def outer_step(state: BilevelState, *grads: PyTree) -> BilevelState:
        total = grads[0] if len(grads) == 1 else optax.tree.add(*grads)
        updates, outer_state = outer.update(total, state.outer_state, state.alphas)
        alphas = optax.apply_updates(state.alphas, updates)
        return state._replace(alphas=alphas, outer_state=outer_state)

    def inner_update(state: BilevelState, grads: PyTree) -> BilevelState:
        updates, inner_state = inner.update(grads, state.inner_state, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        return state._replace(weights=weights, inner_state=inner_state)

    def many_inner_steps(state: BilevelState, batches: Batch):
        def step(state, batch):
            loss, grads = weight_gradient(state.weights, state.alphas, batch)
            return inner_update(state, grads), loss

        state, losses = lax.scan(step, state, batches)
        return state, losses.mean()

    both = program("gradients", gradients)
    only_alphas = program("alpha_gradient", alpha_gradient)
    only_weights = program("weight_gradient", weight_gradient)
    unrolled = program("unrolled_gradient", unrolled_gradient)
    ahead_of = program("look_ahead", look_ahead)
    pull = program("pull_back", pull_back)
    product = program("mixed_product", mixed_product)
    perturbed = program("perturb", perturb)
    differ = program("difference", difference)
    step_alphas = program("outer_step", outer_step)
    step_weights = program("inner_step", inner_update)
    scan_weights = program("inner_steps", many_inner_steps)
    # What the second-order forms need at w' is both gradients; where that program exists, the
    # weights' step takes it too rather than compile another.
    shares = reuse_gradient or gradient in ("hessian_vector", "finite_difference")

    def weights_of(weights, alphas, batch):
        if shares:
            loss, (grads, _) = both(weights, alphas, batch)
            return loss, grads
        return only_weights(weights, alphas, batch)

    def terms(state: BilevelState, train_batch: Batch, valid_batch: Batch):
        """Return the validation loss and the alphas' gradient as one or two summands."""
        weights, alphas, inner_state, _ = state
        if gradient == "unrolled":
            loss, grads = unrolled(state, train_batch, valid_batch)
            return loss, (grads,)
        if gradient == "first_order":
            if reuse_gradient:
                loss, (_, grads) = both(weights, alphas, valid_batch)
            else:
                loss, grads = only_alphas(weights, alphas, valid_batch)
            return loss, (grads,)
        _, (train_grads, _) = both(weights, alphas, train_batch)
        there = ahead_of(weights, train_grads, inner_state)
        loss, (v, direct) = both(there, alphas, valid_batch)
        u = pull(weights, train_grads, inner_state, v)
        if gradient == "hessian_vector":
            return loss, (direct, product(weights, alphas, train_batch, u))
        plus, minus, step = perturbed(weights, u)
        _, (_, plus) = both(plus, alphas, train_batch)
        _, (_, minus) = both(minus, alphas, train_batch)
        return loss, (direct, differ(plus, minus, step))

    def init(weights: PyTree, alphas: PyTree) -> BilevelState:
        return BilevelState(weights, alphas, inner.init(weights), outer.init(alphas))

    def update(
        state: BilevelState, train_batch: Batch, valid_batch: Batch
    ) -> tuple[BilevelState, Info]:
        valid_loss, summands = terms(state, train_batch, valid_batch)
        state = step_alphas(state, *summands)
        if inner_steps > 1:
            state, train_loss = scan_weights(state, train_batch)
        else:
            train_loss, grads = weights_of(state.weights, state.alphas, train_batch)
            state = step_weights(state, grads)
        return state, {"train_loss": train_loss, "valid_loss": valid_loss}

    def alphas_gradient(state: BilevelState, train_batch: Batch, valid_batch: Batch):
        loss, summands = terms(state, train_batch, valid_batch)
        return loss, summands[0] if len(summands) == 1 else optax.tree.add(*summands)

    return BilevelOptimizer(init, update, alphas_gradient)
