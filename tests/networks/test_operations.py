"""The fixed operations: sizes, hand-worked values, parameter counts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnas.genotypes import OPERATION_NAMES
from jaxnas.networks import operations

KEY = jax.random.key(0)
C = 4
COUNTS = {  # without and with affine batch normalisation; stride 1
    "max_pool_3x3": (0, 0), "avg_pool_3x3": (0, 0), "skip_connect": (0, 0),
    "sep_conv_3x3": (2 * (9 * C + C * C), 4 * C), "sep_conv_5x5": (2 * (25 * C + C * C), 4 * C),
    "sep_conv_7x7": (2 * (49 * C + C * C), 4 * C), "dil_conv_3x3": (9 * C + C * C, 2 * C),
    "dil_conv_5x5": (25 * C + C * C, 2 * C), "conv_7x1_1x7": (14 * C * C, 2 * C),
    "max_pool_2x2": (0, 0), "max_pool_5x5": (0, 0), "max_pool_7x7": (0, 0),
    "conv_1x1": (C * C, 2 * C), "conv_3x3": (9 * C * C, 2 * C),
    "conv_1x3_3x1": (6 * C * C, 4 * C), "conv_1x7_7x1": (14 * C * C, 4 * C),
    "dil_sep_conv_3x3": (2 * (9 * C + C * C), 4 * C),
    "dil_sep_conv_5x5": (2 * (25 * C + C * C), 4 * C),
}  # fmt: skip


def _init(operation, x):
    return jax.eval_shape(lambda: operation.init(KEY, x, train=False))


def _size(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", {})))


def test_every_name_has_a_factory():
    assert set(OPERATION_NAMES) - {"none"} <= set(operations.OPERATIONS) == set(COUNTS)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", COUNTS)
def test_shapes_and_parameter_counts(name, stride):
    x = jnp.zeros((2, 8, 8, C))
    for affine in (False, True):
        operation = operations.OPERATIONS[name](features=C, stride=stride, affine=affine)
        variables = _init(operation, x)
        plain, norms = COUNTS[name]
        if name == "skip_connect" and stride == 2:
            plain, norms = C * C, 2 * C
        assert _size(variables) == plain + affine * norms
        shape = jax.eval_shape(lambda v: operation.apply(v, x, train=False), variables).shape
        assert shape == (2, 8 // stride, 8 // stride, C)
        assert operation.output_shape((8, 8, C)) == shape[1:]
        assert operation.cost((8, 8, C)).parameters == plain + affine * norms


def test_pool_norm_adds_scale_and_bias():
    pool = operations.OPERATIONS["max_pool_3x3"](features=C, pool_norm="affine")
    assert _size(_init(pool, jnp.zeros((1, 4, 4, C)))) == 2 * C


def test_batch_norm_keeps_running_statistics():
    x = jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1)  # mean 2, biased variance 1
    norm = operations.BatchNorm()
    variables = norm.init(KEY, x, train=False)
    assert set(variables["params"]) == {"scale", "bias"}
    y, new = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.ravel(), [-1, 1], atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], [0.2], rtol=1e-6)  # 0.9 * 0 + 0.1 * 2
    np.testing.assert_allclose(new["batch_stats"]["var"], [1.0], rtol=1e-6)
    y = norm.apply(variables | new, x, train=False)
    np.testing.assert_allclose(y.ravel(), [0.8, 2.8], rtol=1e-4)
    assert "params" not in operations.BatchNorm(affine=False).init(KEY, x, train=False)


def test_factorized_reduce_of_a_constant_is_zero():
    x = jnp.full((2, 4, 4, C), 0.7)
    reduce = operations.FactorizedReduce(6)
    variables = reduce.init(KEY, x, train=False)
    y, _ = reduce.apply(variables, x, train=True, mutable=["batch_stats"])
    chex.assert_shape(y, (2, 2, 2, 6))
    np.testing.assert_allclose(y, 0, atol=1e-3)
    with pytest.raises(ValueError, match="even"):
        reduce.init(KEY, x[:, :3], train=False)


@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("uneven", ["split", "zero"])
def test_factorized_reduce_to_an_odd_number_of_features(features, uneven):
    # One feature too, a quarter of a narrow network in an ImageNet stem: half of it is none.
    x = jax.random.normal(KEY, (2, 5, 4, C))
    reduce = operations.FactorizedReduce(features, uneven=uneven, initializer="fan_out")
    variables = reduce.init(KEY, x, train=False)
    y, _ = reduce.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.shape == (2, *reduce.output_shape(x.shape[1:])) == (2, 3, 2, features)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (C, features - (uneven == "zero"))
    assert (np.abs(y).max((0, 1, 2)) > 0).tolist() == [True] * kernel.shape[1] + [False] * (
        features - kernel.shape[1])


@pytest.mark.parametrize("size, strides", [((1, 7), (1, 2)), ((7, 1), (2, 1)), ((3, 3), (2, 2))])
def test_convolve_is_lax_conv(size, strides):
    x = jax.random.normal(KEY, (2, 7, 8, 3))
    kernel = jax.random.normal(KEY, (*size, 3, 5))
    expected = lax.conv_general_dilated(
        x, kernel, strides, [(k // 2, k // 2) for k in size],
        dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(
        operations.convolve(x, kernel, strides), expected, rtol=1e-4, atol=1e-5)


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 1, 3))
    y = jax.jit(operations.drop_path)(KEY, x, 0.25)
    assert np.all((y == y[:, :1, :, :1]) & ((y == 0) | np.isclose(y, 4 / 3)))
    np.testing.assert_allclose(y.mean(), 1, atol=0.04)
    np.testing.assert_array_equal(operations.drop_path(KEY, x, 0.0), x)
