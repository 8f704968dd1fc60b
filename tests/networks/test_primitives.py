"""Pools, reductions, batch statistics: by hand and against `lax.reduce_window`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnas.networks import primitives


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(8, 8), (7, 6)])
def test_pools_equal_reduce_window(stride, shape):
    # Small integers: many ties, where the first in row-major order must take the gradient.
    x = jax.random.randint(jax.random.key(0), (2, *shape, 3), 0, 3).astype(jnp.float32)

    def window(x, initial, combine):
        pads = ((0, 0), (1, 1), (1, 1), (0, 0))
        return lax.reduce_window(x, initial, combine, (1, 3, 3, 1), (1, stride, stride, 1), pads)

    def max_reference(x):
        return window(x, -jnp.inf, lax.max)

    def avg_reference(x):
        return window(x, 0.0, lax.add) / window(jnp.ones_like(x), 0.0, lax.add)

    for ours, reference in (
        (primitives.max_pool, max_reference),
        (primitives.avg_pool, avg_reference),
    ):
        out = ours(x, stride)
        np.testing.assert_allclose(out, reference(x), rtol=1e-6)
        cotangent = jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape)
        got = jax.vjp(lambda a: ours(a, stride), x)[1](cotangent)[0]
        want = jax.vjp(reference, x)[1](cotangent)[0]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_average_of_ones_is_one_at_the_border():
    np.testing.assert_allclose(primitives.avg_pool(jnp.ones((1, 5, 4, 2)), 1), 1, rtol=1e-6)


def test_factorized_reduce_of_a_constant_normalises_to_zero():
    kernel = jax.random.normal(jax.random.key(1), (2, 3, 2))
    reduced = primitives.factorized_reduce(jnp.full((4, 8, 8, 3), 2.0), kernel)
    assert reduced.shape == (4, 4, 4, 4)
    np.testing.assert_allclose(primitives.normalize(reduced), 0, atol=2e-3)
    many = primitives.factorized_reduce(jnp.full((4, 8, 8, 3), 2.0), jnp.stack([kernel] * 2))
    np.testing.assert_allclose(many[1], reduced, rtol=1e-6)


def test_factorized_reduce_sees_every_second_pixel_shifted():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    out = primitives.factorized_reduce(x, jnp.ones((2, 1, 1)))
    np.testing.assert_array_equal(out[0, :, :, 0], [[0, 2], [8, 10]])
    np.testing.assert_array_equal(out[0, :, :, 1], [[5, 7], [13, 15]])


def test_convolution_equals_lax():
    x = jax.random.normal(jax.random.key(2), (2, 6, 5, 3))
    kernel = jax.random.normal(jax.random.key(3), (3, 3, 3, 4))
    reference = lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(primitives.convolution(x, kernel), reference, rtol=1e-4, atol=1e-5)


def test_normalize_has_unit_scale_and_no_cancellation():
    x = 3 + 0.5 * jax.random.normal(jax.random.key(4), (64, 4, 4, 2))
    out = primitives.normalize(x)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-3)
    assert np.isfinite(primitives.normalize(jnp.full((4, 2, 2, 1), 1e4))).all()


def test_torch_uniform_range():
    draw = primitives.torch_uniform(16)(jax.random.key(5), (1000,))
    assert float(jnp.abs(draw).max()) <= 0.25
    assert float(draw.std()) == pytest.approx(0.25 / 3**0.5, abs=0.01)
