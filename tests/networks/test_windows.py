"""Padding, strided convolutions and pools of any size, against XLA's own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnas.networks import primitives, windows

KEY = jax.random.key(0)
NUMBERS = ("NHWC", "HWIO", "NHWC")


def _close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", range(5, 13))
@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 7])
def test_same_is_what_xla_calls_same(size, kernel):
    for stride in (1, 2, 3):
        for dilation in (1, 2):
            reach = dilation * (kernel - 1) + 1
            (before, after), = lax.padtype_to_pads((size,), (reach,), (stride,), "SAME")
            count = -(-size // stride)
            assert windows.pads(size, kernel, stride, dilation, "same") == (before, after, count)


def test_symmetric_and_valid_pads():
    assert windows.pads(8, 5, 2) == (2, 2, 4)
    assert windows.pads(9, 3, 2, dilation=2) == (2, 2, 5)
    assert windows.pads(224, 3, 2, padding="valid") == (0, 0, 111)
    with pytest.raises(ValueError, match="larger images"):
        windows.pads(4, 5, padding="valid")
    with pytest.raises(ValueError, match="padding must be one of"):
        windows.pads(4, 3, padding="SAME")


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (8, 9)])
def test_strided_convolutions_with_same_padding(shape):
    x = jax.random.normal(KEY, (2, *shape, 3))
    dense = jax.random.normal(KEY, (3, 3, 3, 4))
    narrow = jax.random.normal(KEY, (5, 5, 3))

    @jax.jit
    def both(x):
        ours, theirs = [], []
        for stride, dilation in ((1, 1), (2, 1), (1, 2), (2, 2)):
            options = {"padding": "same", "dilation": dilation}
            strides, rate = (stride, stride), (dilation, dilation)
            ours += [windows.convolve(x, dense, strides, **options)]
            theirs += [lax.conv_general_dilated(
                x, dense, strides, "SAME", rhs_dilation=rate, dimension_numbers=NUMBERS)]
            for method in ("shifts", "conv"):
                ours += [windows.convolve_depthwise(
                    x, narrow, stride=stride, method=method, **options)]
                theirs += [lax.conv_general_dilated(
                    x, narrow[:, :, None], strides, "SAME", rhs_dilation=rate,
                    dimension_numbers=NUMBERS, feature_group_count=3)]
        return ours, theirs

    for a, b in zip(*both(x)):
        chex.assert_equal_shape((a, b))
        _close(a, b)


@pytest.mark.parametrize("shape", [(8, 8), (7, 9)])
def test_pools_leave_padding_out(shape):
    x = jax.random.normal(KEY, (2, *shape, 3))

    @jax.jit
    def both(x):
        ours, theirs = [], []
        for size, stride, padding in (
            (2, 2, "same"), (2, 1, "same"), (3, 2, "same"), (5, 2, "same"), (7, 1, "same"),
            (5, 3, "valid"),
        ):  # fmt: skip
            extent = ((1, size, size, 1), (1, stride, stride, 1), padding.upper())
            ours += [windows.max_pool(x, size, stride, padding=padding)]
            theirs += [lax.reduce_window(x, -jnp.inf, lax.max, *extent)]
            ours += [windows.avg_pool(x, size, stride, padding=padding)]
            total, count = (
                lax.reduce_window(v, 0.0, lax.add, *extent) for v in (x, jnp.ones_like(x)))
            theirs += [total / count]
        return ours, theirs

    for a, b in zip(*both(x)):
        _close(a, b)


def test_symmetric_pools_are_those_of_darts():
    x = jax.random.normal(KEY, (2, 7, 8, 3))
    both = jax.jit(lambda x: [
        (windows.max_pool(x, 3, stride), primitives.max_pool(x, stride),
         windows.avg_pool(x, 3, stride), primitives.avg_pool(x, stride)) for stride in (1, 2)])
    for a, b, c, d in both(x):
        _close(a, b)
        _close(c, d)


def test_the_first_of_equal_values_takes_the_gradient():
    grad = jax.grad(lambda x: windows.max_pool(x, 2, 2, padding="same").sum())
    expected = np.zeros((4, 4))
    expected[::2, ::2] = 1
    np.testing.assert_array_equal(grad(jnp.ones((1, 4, 4, 1)))[0, :, :, 0], expected)
