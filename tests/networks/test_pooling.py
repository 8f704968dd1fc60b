"""Pools with gradients of their own: against reduce_window and plain autodiff, to any order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnas.networks import pooling, primitives

KINDS = ("max_pool", "avg_pool")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape, dtype", [
    ((8, 8), jnp.float32), ((7, 6), jnp.bfloat16), ((1, 3), jnp.float32)])
def test_equal_to_the_plain_form_ties_included(kind, stride, shape, dtype):
    # Small integers: many ties, where the first in row-major order must take the gradient.
    x = jax.random.randint(jax.random.key(0), (2, *shape, 3), 0, 3).astype(dtype)

    @jax.jit
    def both(x):
        results = []
        for module in (pooling, primitives):
            out, pull = jax.vjp(lambda x, module=module: getattr(module, kind)(x, stride), x)
            assert out.dtype == dtype
            cotangent = jnp.arange(out.size, dtype=dtype).reshape(out.shape) % 7
            results.append((out.astype(float), pull(cotangent)[0].astype(float)))
        return results

    (out, grads), (want, want_grads) = both(x)
    tolerance = 1e-6 if dtype == jnp.float32 else 0.02
    np.testing.assert_allclose(out, want, rtol=tolerance)
    np.testing.assert_allclose(grads, want_grads, rtol=tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("stride", [1, 2])
def test_max_equals_reduce_window_where_values_are_negative_or_infinite(stride):
    x = -jnp.abs(jax.random.normal(jax.random.key(1), (1, 5, 6, 2))) - 1
    x = x.at[0, 2, 3, 0].set(jnp.inf).at[0, 0, 0, 1].set(-jnp.inf)
    want = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1),
                             ((0, 0), (1, 1), (1, 1), (0, 0)))
    np.testing.assert_array_equal(pooling.max_pool(x, stride), want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [1, 2])
def test_second_order_equals_that_of_the_plain_form(kind, stride):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(2), 3)
        x, u = (jax.random.normal(key, (2, 6, 4, 3)) for key in keys[:2])

        def product(pool):
            def loss(x):
                return jnp.sum(jnp.sin(pool(x, stride)) ** 2)

            return jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), u)))(x)

        got, want = product(getattr(pooling, kind)), product(getattr(primitives, kind))
        assert np.abs(want).max() > 0.1
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_and_more_axes_are_the_same(kind):
    x = jax.random.normal(jax.random.key(3), (3, 2, 6, 6, 2))
    pool = getattr(pooling, kind)
    one_by_one = jnp.stack([pool(row, 2) for row in x])
    np.testing.assert_array_equal(jax.vmap(lambda row: pool(row, 2))(x), one_by_one)
    np.testing.assert_array_equal(pool(x, 2), one_by_one)


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_method_has_forward_mode(kind):
    x = jax.random.normal(jax.random.key(4), (1, 4, 4, 1))
    pool = getattr(pooling, kind)
    out, tangent = jax.jvp(lambda x: pool(x, 1, method="conv"), (x,), (2 * x,))
    np.testing.assert_allclose(tangent, 2 * out, rtol=1e-5)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: pool(x, 1), (x,), (x,))


def test_the_gradient_has_no_pad_of_a_gradient_of_a_view():
    # What the file is for: the only pads are those before the views, none after them.
    x = jnp.ones((1, 4, 4, 2))
    text = str(jax.make_jaxpr(jax.grad(lambda x: pooling.max_pool(x, 1).sum()))(x))
    plain = str(jax.make_jaxpr(jax.grad(lambda x: primitives.max_pool(x, 1).sum()))(x))
    assert text.count("add_any") < plain.count("add_any")
