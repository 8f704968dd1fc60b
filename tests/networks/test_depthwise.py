"""Depthwise convolution: values and derivatives up to third order against `lax.conv`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.networks.depthwise import depthwise

FORMS = list(
    itertools.product((1, 3), ((3, 1, 1), (5, 2, 2), (3, 2, 1), (5, 1, 1)), ((8, 8), (7, 6)))
)


def arrays(edges_in, size, shape):
    x_key, kernel_key = jax.random.split(jax.random.key(0))
    x = jax.random.normal(x_key, (edges_in, 2, *shape, 3), jnp.float64)
    return x, jax.random.normal(kernel_key, (3, size, size, 3), jnp.float64)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("edges_in, form, shape", FORMS)
def test_equals_lax_conv_to_third_order(edges_in, form, shape):
    size, stride, dilation = form
    x, kernel = arrays(edges_in, size, shape)

    def derivatives(method):
        def value(x, kernel):
            y = depthwise(x, kernel, stride=stride, dilation=dilation, method=method)
            return jnp.sum(jnp.sin(y))

        def second(x, kernel):
            grads = jax.grad(value, (0, 1))(x, kernel)
            return jnp.sum(jnp.cos(grads[0])) + jnp.sum(grads[1] ** 2)

        def third(x, kernel):
            return sum(jnp.sum(g**2) for g in jax.grad(second, (0, 1))(x, kernel))

        return [jax.grad(f, (0, 1))(x, kernel) for f in (value, second, third)]

    for ours, reference in zip(derivatives("shifts"), derivatives("conv")):
        for a, b in zip(ours, reference):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * float(jnp.abs(b).max()))


def test_second_derivative_through_scan_and_vmap():
    x, kernel = arrays(1, 3, (8, 8))
    kernels = jnp.stack([kernel[:1], 2 * kernel[:1], -kernel[:1]])

    def loss(scale, kernels, method):
        def body(carry, xs):
            kernel, factor = xs
            return carry + factor * depthwise(jnp.tanh(carry), kernel, method=method), None

        return jnp.sum(jax.lax.scan(body, x, (kernels, scale))[0] ** 2)

    def product(scale, method):
        return jnp.vdot(jax.grad(loss, 1)(scale, kernels, method), kernels)

    scale = jnp.array([1.0, 0.5, 2.0])
    ours, reference = (jax.grad(product)(scale, m) for m in ("shifts", "conv"))
    np.testing.assert_allclose(ours, reference, rtol=1e-10)
    mapped = jax.vmap(lambda s: jax.grad(product)(s, "shifts"))(jnp.stack([scale, 2 * scale]))
    np.testing.assert_allclose(mapped[0], reference, rtol=1e-10)


def test_hand_worked_numbers():
    x = jnp.arange(9.0).reshape(1, 1, 3, 3, 1)
    ones = jnp.ones((1, 3, 3, 1))
    expected = [[8, 15, 12], [21, 36, 27], [20, 33, 24]]
    np.testing.assert_array_equal(depthwise(x, ones)[0, 0, :, :, 0], expected)
    np.testing.assert_array_equal(depthwise(x, ones, stride=2)[0, 0, :, :, 0], [[8, 12], [20, 24]])
    # dilation 2: the taps two pixels off see the padding, but for the centre's corners
    corners = depthwise(x, ones, dilation=2)[0, 0, :, :, 0]
    assert corners[0, 0] == 0 + 2 + 6 + 8 and corners[1, 1] == 4


def test_errors():
    x, kernel = arrays(1, 3, (8, 8))
    with pytest.raises(ValueError, match="method"):
        depthwise(x, kernel, method="fft")
    with pytest.raises(ValueError, match="odd"):
        depthwise(x, kernel[:, :2, :2])
    with pytest.raises(ValueError, match="x must be"):
        depthwise(x[0], kernel)
    with pytest.raises(ValueError, match="x must be"):
        depthwise(jnp.concatenate([x, x]), kernel)
