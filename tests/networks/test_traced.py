"""The program for every genotype equals the program of each genotype."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.networks.network import Network
from jaxnas.networks.traced import TracedNetwork

SIZES = {"features": 4, "layers": 6, "num_classes": 3}  # cells 0 1 (2) 3 (4) 5: all kinds
ARCHS = np.stack([
    np.stack([
        np.random.default_rng(seed).integers(0, 7, (2, 8)),
        np.random.default_rng(seed).integers(0, [2, 2, 3, 3, 4, 4, 5, 5], (2, 8)),
    ], -1)
    for seed in range(3)
]).astype(np.int32)  # fmt: skip


def _loss(logits):
    return jnp.sum(jnp.sin(jnp.arange(logits.size).reshape(logits.shape)) * logits)


def _double(tree, key):
    """Return float64 variables, none of them at a special value such as a scale of 1."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    leaves = [
        (leaf + 0.1 * jax.random.uniform(k, leaf.shape)).astype(jnp.float64)
        for k, leaf in zip(keys, leaves)
    ]
    return treedef.unflatten(leaves)


@pytest.fixture(scope="module", params=[None, "affine"])
def traced(request):
    with jax.enable_x64(True):
        network = TracedNetwork(**SIZES, pool_norm=request.param)
        x = jax.random.normal(jax.random.key(1), (4, 8, 8, 1), jnp.float64)
        variables = jax.jit(lambda: network.init(jax.random.key(0), x, ARCHS[0], train=False))()
        return network, x, _double(variables, jax.random.key(2))


def _program(network, x, *arch):
    def loss(params, stats, x, *arch):
        (logits, new), (frozen, _) = (
            network.apply(
                {"params": params, "batch_stats": stats},
                x,
                *arch,
                train=train,
                mutable=["batch_stats"],
            )
            for train in (True, False)
        )
        logits, frozen = (a[0] if isinstance(a, tuple) else a for a in (logits, frozen))
        return _loss(logits) + 2 * _loss(frozen**2), (logits, frozen, new["batch_stats"])

    return jax.value_and_grad(loss, has_aux=True)


@pytest.mark.slow
def test_equals_the_network_of_the_genotype(traced):
    network, x, variables = traced
    with jax.enable_x64(True):
        run = jax.jit(chex.assert_max_traces(_program(network, x), n=1))
        for arch in ARCHS:
            (_, (logits, frozen, stats)), grads = run(
                variables["params"], variables["batch_stats"], x, arch
            )
            fixed = Network(network.decode(arch), pool_norm=network.pool_norm, **SIZES)
            expected = network.extract(variables, arch)
            initial = jax.eval_shape(lambda: fixed.init(jax.random.key(0), x, train=False))
            chex.assert_trees_all_equal_shapes(expected, initial)
            (_, (logits_2, frozen_2, stats_2)), grads_2 = jax.jit(_program(fixed, x))(
                expected["params"], expected["batch_stats"], x
            )
            assert logits.dtype == jnp.float64
            actual = network.extract({"params": grads, "batch_stats": stats}, arch)
            close = dict(rtol=1e-9, atol=1e-11)
            chex.assert_trees_all_close(logits, logits_2, **close)
            chex.assert_trees_all_close(frozen, frozen_2, **close)
            chex.assert_trees_all_close(actual["batch_stats"], stats_2, **close)
            chex.assert_trees_all_close(actual["params"], grads_2, **close)


def test_unused_slots_are_left_alone():
    """A network of pools and skips touches no depthwise kernel and, stride 1, no statistics."""
    names = ("max_pool_3x3", "skip_connect", "sep_conv_3x3")
    network = TracedNetwork(names, features=2, layers=1, num_classes=2)  # one reduction cell
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    arch = np.zeros((2, 8, 2), np.int32)
    arch[1, ::2] = (1, 0)
    variables = jax.jit(lambda: network.init(jax.random.key(0), x, arch, train=False))()

    def run(params):
        logits, new = network.apply(
            variables | {"params": params}, x, arch, train=True, mutable=["batch_stats"]
        )
        return _loss(logits), new["batch_stats"]["cells_0"]["edges"]["mean"][0]

    (_, mean), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(variables["params"])
    edges = grads["cells_0"]["edges"]
    assert not np.any(edges["depthwise_3"]) and not np.any(edges["depthwise_5"])
    used = np.any(edges["pointwise"][0], (-2, -1))  # [8, 2]
    np.testing.assert_array_equal(used, np.outer(np.arange(8) % 2 == 0, [True, False]))
    assert not np.any(mean[1::2]) and not np.any(mean[:, 1]) and np.any(mean[::2, 0])


def test_drop_path_spares_the_identity():
    network = TracedNetwork(("max_pool_3x3", "skip_connect"), features=2, layers=1, num_classes=2)
    x = jax.random.normal(jax.random.key(1), (8, 4, 4, 1))
    pool, skip = np.zeros((2, 8, 2), np.int32), np.ones((2, 8, 2), np.int32)
    skip[..., 1] = [0, 1, 2, 2, 3, 3, 4, 4]
    skip[:, :2, 0] = 0  # stride 2 is a factorised reduction, which may be dropped
    variables = jax.jit(lambda: network.init(jax.random.key(0), x, pool, train=False))()

    @jax.jit
    def run(arch, rate, key):
        return network.apply(
            variables, x, arch, train=True, drop_path_rate=rate,
            rngs={"drop_path": key}, mutable=["batch_stats"],
        )[0]  # fmt: skip

    a, b, c = (run(pool, r, jax.random.key(k)) for r, k in ((0.0, 3), (0.0, 4), (0.5, 4)))
    np.testing.assert_array_equal(a, b)
    assert np.any(a != c)
    # Node 0 carries two pools; the others double it. Dropping both pools zeroes all: only the
    # biased head remains, the same for every such example, and no other value than 0, 2 appears
    # where both or none are dropped.
    out = np.asarray(run(skip, 0.5, jax.random.key(5)))
    bias = np.asarray(variables["params"]["head"]["bias"])
    whole = np.asarray(run(skip, 0.0, jax.random.key(5)))
    ratio = (out - bias) / (whole - bias)
    dropped = np.isclose(ratio, 0.0, atol=1e-4).all(1)
    doubled = np.isclose(ratio, 2.0, atol=1e-4).all(1)
    assert dropped.any() and doubled.any()


@pytest.mark.parametrize(
    "change",
    [{"operations": ("none",)}, {"operations": ()}, {"features": 3}, {"layers": 0},
     {"pool_norm": "batch"}],
)  # fmt: skip
def test_refuses(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TracedNetwork(**change)
