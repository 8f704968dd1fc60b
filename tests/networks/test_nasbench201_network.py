"""The network of NAS-Bench-201: published counts, and one program equal to every fixed one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import costs
from jaxnas.networks.nasbench201 import EDGES, OPERATIONS, NASBench201Network, extract
from jaxnas.search_spaces import NASBench201, nasbench201

SPACE = NASBench201()
CELLS = {  # text -> parameters with 10, 100 and 120 classes (section 7.1 of the specification)
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+"
    "|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|": (1_531_546, 1_537_396, 1_538_696),
    "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|": (73_306, 79_156, 80_456),
    "|skip_connect~0|+|skip_connect~0|avg_pool_3x3~1|+|skip_connect~0|none~1|avg_pool_3x3~2|":
        (73_306, 79_156, 80_456),
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|"
    "nor_conv_1x1~2|": (1_073_466, None, None),
    "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|":
        (559_386, None, None),
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|"
    "skip_connect~2|": (802_426, None, None),
}


def test_space_and_network_agree_on_the_encoding():
    assert nasbench201.OPERATIONS == OPERATIONS and nasbench201.EDGES == EDGES


@pytest.mark.parametrize("text", CELLS)
def test_published_parameters(text):
    arch = tuple(SPACE.encode(text).tolist())
    for classes, expected in zip((10, 100, 120), CELLS[text]):
        if expected is not None:
            network = NASBench201Network(arch, num_classes=classes)
            assert costs.count_parameters(network, (32, 32, 3)) == expected
            assert SPACE.num_parameters(np.array(arch), num_classes=classes) == expected


@pytest.fixture(scope="module")
def one_for_all():
    network = NASBench201Network(features=4, cells=2, num_classes=3)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 2))
    shapes = jax.eval_shape(lambda: network.init(
        jax.random.key(0), x, train=False, weights=jnp.zeros((6, 5))))
    numbers = np.random.default_rng(0)

    def draw(path, leaf):
        shift = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return jnp.asarray(0.4 * numbers.normal(size=leaf.shape) + shift, jnp.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    variables = {**variables, "batch_stats": jax.tree.map(jnp.abs, variables["batch_stats"])}
    return network, x, variables


def gradient(network, x):
    @jax.jit
    def run(variables, weights=None):
        def loss(params):
            logits, new = network.apply(
                {**variables, "params": params}, x, train=True, weights=weights,
                mutable=["batch_stats"])
            return (logits ** 2).sum(), (logits, new["batch_stats"])
        return jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return run


@pytest.mark.slow
def test_one_hot_equals_fixed(one_for_all):
    network, x, variables = one_for_all
    traced = gradient(network, x)
    keys = jax.random.split(jax.random.key(2), 1)
    for arch in np.asarray(jax.vmap(SPACE.sample)(keys)):
        arch = tuple(arch.tolist())
        (_, (logits, stats)), grads = traced(variables, jax.nn.one_hot(jnp.array(arch), 5))
        fixed = network.clone(arch=arch)
        expected = gradient(fixed, x)(extract(variables, arch))
        np.testing.assert_allclose(logits, expected[0][1][0], rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_close(
            extract({"s": stats}, arch)["s"], expected[0][1][1], rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(
            extract({"g": grads}, arch)["g"], expected[1], rtol=1e-4, atol=1e-4)
        unused = jax.tree.leaves(grads["stage_0"])
        assert sum(bool(np.any(leaf)) for leaf in unused) == len(
            jax.tree.leaves(expected[1].get("stage_0", {})))
    assert traced._cache_size() == 1


def test_wrong_options():
    with pytest.raises(ValueError, match="arch must be 6 integers"):
        NASBench201Network((0, 1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="cells must be 1 or more"):
        NASBench201Network(cells=0)
    network = NASBench201Network((1,) * 6)
    with pytest.raises(ValueError, match="if and only if arch is None"):
        network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False,
                     weights=jnp.zeros((6, 5)))
    with pytest.raises(ValueError, match="divisible by 4"):
        network.init(jax.random.key(0), jnp.zeros((1, 6, 8, 3)), train=False)
