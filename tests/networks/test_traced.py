"""The program for every genotype equals the program of each genotype."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.networks.network import Network
from jaxnas.networks.traced import TracedNetwork

# Cells 0 1 (2) 3 (4) 5: all kinds, and the first two are of one shape, hence a loop.
SIZES = {"features": 2, "layers": 6, "num_classes": 3, "stem_multiplier": 4}
QUICK = {"xla_backend_optimization_level": 0}  # compile in less time
ARCHS = np.stack([
    np.stack([
        np.random.default_rng(seed).integers(0, 7, (2, 8)),
        np.random.default_rng(seed).integers(0, [2, 2, 3, 3, 4, 4, 5, 5], (2, 8)),
    ], -1)
    for seed in range(3)
]).astype(np.int32)  # fmt: skip


def _loss(logits):
    return jnp.sum(jnp.sin(jnp.arange(logits.size).reshape(logits.shape)) * logits)


def _variables(network, x):
    """Return float64 variables of ordinary size, none at a special value such as a scale of 1."""
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), x, ARCHS[0], train=False))
    random = np.random.default_rng(0)
    return {
        "params": jax.tree.map(lambda a: random.uniform(-1, 1, a.shape), shapes["params"]),
        "batch_stats": jax.tree.map(lambda a: random.uniform(0.5, 1, a.shape),
                                    shapes["batch_stats"]),
    }  # fmt: skip


def _program(network):
    def logits(variables, x, *arch, **options):
        outputs = network.apply(variables, x, *arch, **options)
        new = {}
        if options["train"]:
            outputs, new = outputs
        return (outputs[0] if isinstance(outputs, tuple) else outputs), new

    def loss(params, stats, x, *arch):
        variables = {"params": params, "batch_stats": stats}
        trained, new = logits(variables, x, *arch, train=True, mutable=["batch_stats"])
        frozen, _ = logits(jax.lax.stop_gradient(variables), x, *arch, train=False)
        return _loss(trained), (trained, frozen, new["batch_stats"])

    return loss


@pytest.mark.slow
@pytest.mark.parametrize("pool_norm, archs", [(None, ARCHS), ("affine", ARCHS[:1])])
def test_equals_the_network_of_the_genotype(pool_norm, archs):
    with jax.enable_x64(True):
        network = TracedNetwork(**SIZES, pool_norm=pool_norm)
        x = np.random.default_rng(1).normal(size=(4, 8, 8, 1))
        variables = _variables(network, x)
        loss = chex.assert_max_traces(_program(network), n=1)
        run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
        for arch in archs:
            (_, (logits, frozen, stats)), grads = run(*variables.values(), x, arch)
            fixed = Network(network.decode(arch), pool_norm=pool_norm, **SIZES)
            given = network.extract(variables, arch)
            wanted = jax.eval_shape(lambda n=fixed: n.init(jax.random.key(0), x, train=False))
            chex.assert_trees_all_equal_shapes(given, dict(wanted))
            expected = jax.jit(
                jax.value_and_grad(_program(fixed), has_aux=True), compiler_options=QUICK
            )(given["params"], given["batch_stats"], x)
            (_, (logits_2, frozen_2, stats_2)), grads_2 = expected
            assert logits.dtype == jnp.float64
            found = network.extract({"params": grads, "batch_stats": stats}, arch)
            for left, right in (
                (logits, logits_2), (frozen, frozen_2),
                (found["batch_stats"], stats_2), (found["params"], grads_2),
            ):  # fmt: skip
                scale = max(np.abs(a).max() for a in jax.tree.leaves(right))
                chex.assert_trees_all_close(left, right, rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.slow
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
