"""Narrow arithmetic changes results by its rounding alone, and nothing that is kept."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import precision, training
from jaxnas.networks.mixed import CONVOLUTIONS, mixed_edges
from jaxnas.search_spaces import DARTS

OPERATIONS = ("none", "avg_pool_3x3", "skip_connect", "sep_conv_3x3")
DTYPE = jnp.bfloat16


def relative(found, expected):
    """The distance of two arrays over the length of the second."""
    return float(jnp.linalg.norm(jnp.ravel(found - expected)) / jnp.linalg.norm(expected.ravel()))


@pytest.mark.parametrize("stride", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_gradients_of_a_mixed_edge_add_up_in_float32(stride):
    channels, keys = 4, jax.random.split(jax.random.key(0), 8)
    size, _, blocks = CONVOLUTIONS["sep_conv_3x3"]
    shapes = {f"depthwise_{n}": (2, size, size, channels) for n in range(blocks)}
    shapes |= {f"pointwise_{n}": (2, channels, channels) for n in range(blocks)}
    params = {"sep_conv_3x3": {name: jax.random.normal(key, shape)
                               for key, (name, shape) in zip(keys, shapes.items())}}
    if stride == 2:
        params["skip_connect"] = {
            "kernel": jax.random.normal(keys[4], (2, 2, channels, channels // 2))}
    x = 1 + jax.random.normal(keys[5], (32, 16, 16, channels))  # means that a narrow sum loses
    target = jax.random.normal(keys[6], (2, 32, 16 // stride, 16 // stride, channels))

    def apply(variables, x, weights):
        return mixed_edges(variables["params"], x, weights, operations=OPERATIONS, stride=stride)

    def gradients(name, params, x):
        run = precision.mixed(apply, name)
        return jax.jit(jax.grad(lambda params, weights: jnp.sum(
            target * run({"params": params}, x, weights)), (0, 1)))(
                params, jnp.ones((2, len(OPERATIONS))))

    rounded = jax.tree.map(lambda a: a.astype(DTYPE).astype(a.dtype), (params, x))
    wide, narrow = gradients("float32", params, x), gradients("bfloat16", params, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(narrow, wide)
    # What rounding the parameters and the images alone does to exact arithmetic is the measure.
    # With sums in bfloat16 the weights of the operations are off by 47 times as much.
    least = jax.tree.map(relative, gradients("float32", *rounded), wide)
    errors = jax.tree.map(relative, narrow, wide)
    for error, bound in zip(jax.tree.leaves(errors), jax.tree.leaves(least)):
        assert 0 < error < 4 * bound, (errors, least)


def test_the_supernet_multiplies_narrow_matrices_and_returns_float32():
    space = DARTS(operations=OPERATIONS, num_nodes=2)
    network = space.supernet(features=4, num_layers=3)
    x, alphas = jnp.zeros((2, 8, 8, 3)), jnp.zeros(space.alphas_shape)
    params = jax.eval_shape(network.init, jax.random.key(0), x, alphas)["params"]

    def loss(params, alphas, apply):
        logits = apply({"params": params}, x, space.weights(alphas))
        assert logits.dtype == jnp.float32
        return training.cross_entropy(logits, jnp.zeros(2, jnp.int32))

    def operands(name):
        gradients = jax.grad(functools.partial(
            loss, apply=precision.mixed(network.apply, name)), (0, 1))
        chex.assert_trees_all_equal_shapes_and_dtypes(
            jax.eval_shape(gradients, params, alphas), (params, alphas))
        text = str(jax.make_jaxpr(gradients)(params, alphas))
        return {line.split(":")[1].split("[")[0] for line in text.splitlines()
                if " = dot_general[" in line}

    assert operands("float32") == {"f32"}
    assert operands("bfloat16") == {"bf16"}


def test_running_statistics_and_parameters_are_not_narrowed():
    space = DARTS(num_nodes=2, operations=OPERATIONS)
    genotype = space.decode(np.asarray(space.sample(jax.random.key(0))))
    network = space.network(genotype, features=4, layers=3)
    x = jnp.zeros((4, 8, 8, 3))
    variables = jax.eval_shape(functools.partial(network.init, train=False), jax.random.key(0), x)
    apply = precision.mixed(network.apply, "bfloat16")

    def run(variables):
        return apply(variables, x, train=True, mutable=["batch_stats"])

    (logits, auxiliary), new = jax.eval_shape(run, variables)
    assert logits.dtype == jnp.float32 and auxiliary is None
    chex.assert_trees_all_equal_shapes_and_dtypes(new["batch_stats"], variables["batch_stats"])


def test_float32_is_the_function_itself_and_others_are_refused():
    assert precision.mixed(relative, "float32") is relative
    with pytest.raises(ValueError, match="precision must be one of.*float16"):
        precision.mixed(relative, "float16")


def test_only_parameters_and_images_are_narrowed():
    def apply(variables, x, arch, weights):
        assert x.dtype == DTYPE and variables["params"].dtype == DTYPE
        assert arch.dtype == jnp.int32 and weights.dtype == jnp.float32
        assert variables["batch_stats"].dtype == jnp.float32
        return variables["params"] * x[0, 0]

    result = precision.mixed(apply, "bfloat16")(
        {"params": jnp.ones(3), "batch_stats": jnp.ones(3)}, jnp.ones((2, 2)), jnp.arange(3),
        jnp.ones(3))
    assert result.dtype == jnp.float32
