"""The exact second order on a real supernet: its forms, and a step without recompilation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import training
from jaxnas.search_spaces import DARTS
from jaxnas.searchers import bilevel

SPACE = DARTS(num_nodes=2, operations=("none", "skip_connect", "sep_conv_3x3"))


@pytest.fixture(scope="module")
def problem():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 5)
        net = SPACE.supernet(features=2, num_layers=3, num_classes=3)
        alphas = 0.3 * jax.random.normal(keys[0], SPACE.alphas_shape, jnp.float64)
        image = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float64)
        weights = net.lazy_init(keys[1], image, jax.ShapeDtypeStruct(alphas.shape, alphas.dtype))
        weights = jax.tree.map(lambda a: a.astype(jnp.float64), weights)
        train, valid = (
            {"images": jax.random.normal(key, (4, 8, 8, 1), jnp.float64),
             "labels": jnp.arange(4) % 3}
            for key in keys[2:4]
        )

        def loss_fn(weights, alphas, batch, net=net):
            logits = net.apply(weights, batch["images"], SPACE.weights(alphas))
            return training.cross_entropy(logits, batch["labels"])

        forward = functools.partial(loss_fn, net=net.clone(forward_mode=True))
        return loss_fn, forward, weights, alphas, train, valid


@pytest.mark.slow  # three second-order programs of a supernet: minutes to compile
def test_forms_agree_and_equal_differences(problem):
    with jax.enable_x64(True):
        loss_fn, forward, weights, alphas, train, valid = problem
        inner = training.sgd(0.1, clip_norm=0.5)
        forms = [
            bilevel(loss_fn, inner, optax.sgd(1.0), gradient=name, forward_loss_fn=forward_loss_fn)
            for name, forward_loss_fn in (
                ("unrolled", None), ("hessian_vector", None), ("hessian_vector", forward))
        ]
        state = forms[0].init(weights, alphas)
        one, *others = (form.gradient(state, train, valid)[1] for form in forms)
        for other in others:
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
        _check_direction(problem, inner, state, one)


@pytest.mark.slow  # a minute; test_supernet.py has the second order of a cell in loops
def test_hessian_vector_form_equals_differences(problem):
    with jax.enable_x64(True):
        loss_fn, forward, weights, alphas, train, valid = problem
        inner = training.sgd(0.1, clip_norm=0.5)
        form = bilevel(loss_fn, inner, optax.sgd(1.0), gradient="hessian_vector",
                       forward_loss_fn=forward)
        state = form.init(weights, alphas)
        _, grad = form.gradient(state, train, valid)
        _check_direction(problem, inner, state, grad)


def _check_direction(problem, inner, state, grad):
    """Compare with differences of the whole unrolled objective along random directions."""
    loss_fn, _, weights, _, train, valid = problem

    @jax.jit
    def objective(alphas):
        grads = jax.grad(loss_fn)(weights, alphas, train)
        updates, _ = inner.update(grads, state.inner_state, weights)
        return loss_fn(optax.apply_updates(weights, updates), alphas, valid)

    step = 1e-6
    for seed in range(3):
        direction = jax.random.normal(jax.random.key(seed), grad.shape, jnp.float64)
        ends = [objective(state.alphas + sign * step * direction) for sign in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(jnp.vdot(grad, direction), numeric, rtol=1e-6, atol=1e-9)
