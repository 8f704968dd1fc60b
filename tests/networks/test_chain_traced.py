"""One program for every chain equals the program of each chain."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.networks.chain import FilterNetwork, MacroNetwork
from jaxnas.networks.chain_layout import FilterChoices, num_choices
from jaxnas.networks.chain_masked import TracedFilterNetwork
from jaxnas.networks.chain_traced import TracedMacroNetwork

QUICK = {"xla_backend_optimization_level": 0}  # compile in less time
CHOICES = FilterChoices((1, 3), (1, 5), (2, 3))
STRIDED = FilterChoices((1, 3), (1, 5), (2, 3), (1, 2, 3))


def macro(num_layers):
    return (TracedMacroNetwork(num_layers, features=2, num_classes=3),
            lambda arch: MacroNetwork(arch, 2, "search", num_classes=3), (6,))


def filters(num_layers, choices):
    return (TracedFilterNetwork(num_layers, choices, num_classes=3),
            lambda arch: FilterNetwork(arch, choices, num_classes=3), choices.counts)


NETWORKS = {
    "macro": macro(4),  # loops of 1, 1 and 2 layers, two reductions
    "macro_small": macro(2), "macro_deep": macro(6),
    "filters": filters(3, CHOICES), "strided": filters(3, STRIDED),
    "strided_deep": filters(5, STRIDED),
}  # fmt: skip


def archs_of(traced, counts, count):
    counts = num_choices(traced.num_layers, counts)
    return np.random.default_rng(0).integers(0, counts, (count, len(counts))).astype(np.int32)


def _loss(logits):
    return jnp.sum(jnp.sin(jnp.arange(logits.size).reshape(logits.shape)) * logits)


def _variables(network, *arguments):
    """Return float64 variables of ordinary size, none at a special value such as a scale of 1."""
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), *arguments, train=False))
    random = np.random.default_rng(0)
    return {
        "params": jax.tree.map(lambda a: random.uniform(-1, 1, a.shape), shapes["params"]),
        "batch_stats": jax.tree.map(lambda a: random.uniform(0.5, 1, a.shape),
                                    shapes["batch_stats"]),
    }  # fmt: skip


def _program(network):
    def loss(params, stats, x, *arch):
        logits, new = network.apply({"params": params, "batch_stats": stats}, x, *arch, train=True,
                                    mutable=["batch_stats"])
        return _loss(logits), (logits, new["batch_stats"])

    return loss


@pytest.mark.parametrize("label, count, depths", [
    ("macro_small", 1, ()), pytest.param("macro_deep", 20, (), marks=pytest.mark.slow),
    ("filters", 1, ()), pytest.param("filters", 20, (), marks=pytest.mark.slow),
    ("strided", 2, ()), pytest.param("strided_deep", 20, (), marks=pytest.mark.slow),
    pytest.param("strided", 3, (2, 1, 3), marks=pytest.mark.slow)])
def test_equals_the_fixed_network(label, count, depths):
    """With depths, the first layers alone: what is behind them is not read."""
    traced, fixed_of, counts = NETWORKS[label]
    archs = archs_of(traced, counts, count)
    with jax.enable_x64(True):
        # Deep ones have large images: where a window covers a whole map the maximum is constant,
        # and what its normalisation makes of it is rounding noise.
        size = (32, 40) if "macro_deep" in label else (8, 12)
        x = np.random.default_rng(1).normal(size=(3, *size, 1))
        variables = _variables(traced, x, archs[0])
        program = chex.assert_max_traces(_program(traced), n=1)
        run = jax.jit(jax.value_and_grad(program, has_aux=True), compiler_options=QUICK)
        for arch, *depth in zip(archs, depths) if depths else zip(archs):
            (_, (logits, stats)), grads = run(*variables.values(), x, arch, *depth)
            arch = arch[:len(num_choices(*depth, counts))] if depth else arch
            fixed = fixed_of(tuple(arch.tolist()))
            given = traced.extract(variables, arch)
            wanted = jax.eval_shape(lambda n=fixed: n.init(jax.random.key(0), x, train=False))
            chex.assert_trees_all_equal_shapes(given, dict(wanted))
            expected = jax.jit(
                jax.value_and_grad(_program(fixed), has_aux=True), compiler_options=QUICK
            )(given["params"], given["batch_stats"], x)
            (_, (logits_2, stats_2)), grads_2 = expected
            assert logits.dtype == jnp.float64
            found = traced.extract({"params": grads, "batch_stats": stats}, arch)
            for left, right in (
                (logits, logits_2), (found["batch_stats"], stats_2), (found["params"], grads_2),
            ):  # fmt: skip
                scale = max(np.abs(a).max() for a in jax.tree.leaves(right))
                chex.assert_trees_all_close(left, right, rtol=1e-9, atol=1e-11 * scale)
            # Nothing else has a gradient, and no other running statistics have moved.
            squares, squares_2 = (sum(np.sum(np.square(a)) for a in jax.tree.leaves(tree))
                                  for tree in (grads, grads_2))
            np.testing.assert_allclose(squares, squares_2, rtol=1e-9)
            moved, moved_2 = (
                sum(np.sum(a != b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old)))
                for new, old in ((stats, variables["batch_stats"]),
                                 (stats_2, given["batch_stats"])))
            assert moved == moved_2


@pytest.mark.parametrize("label", [
    pytest.param("macro", marks=pytest.mark.slow), "strided"])
def test_vmap_over_archs_equals_the_fixed_networks_with_running_statistics(label):
    traced, fixed_of, counts = NETWORKS[label]
    archs = archs_of(traced, counts, 3)
    if label == "macro":
        archs[:, [0, 1, 3, 6]] = [[0, 4, 3, 5], [5, 1, 2, 0], [2, 0, 4, 1]]  # every operation
    x = np.random.default_rng(1).normal(size=(2, 8, 4, 1)).astype(np.float32)
    variables = jax.tree.map(np.float32, _variables(traced, x, archs[0]))
    found = jax.jit(jax.vmap(lambda arch: traced.apply(variables, x, arch, train=False)),
                    compiler_options=QUICK)(archs)
    for arch, logits in zip(archs, found):
        fixed = fixed_of(tuple(arch.tolist()))
        expected = jax.jit(lambda v, f=fixed: f.apply(v, x, train=False), compiler_options=QUICK)(
            traced.extract(variables, arch))
        np.testing.assert_allclose(logits, expected, rtol=1e-4,
                                   atol=1e-5 * np.abs(expected).max())


def test_macro_supernet_has_the_published_size():
    network = TracedMacroNetwork()  # 12 layers, 36 channels
    shapes = jax.eval_shape(lambda: network.init(
        jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros(78, jnp.int32), train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 697_860


def test_initial_weights_have_the_scale_of_a_fresh_network():
    x = jnp.zeros((1, 4, 4, 3))
    network, arch = TracedMacroNetwork(1, 32), jnp.array([1], jnp.int32)
    fixed = MacroNetwork((1,), 32, "search")
    variables, fresh = jax.jit(lambda: (
        network.init(jax.random.key(0), x, arch, train=False),
        fixed.init(jax.random.key(1), x, train=False)))()
    given = network.extract(variables, arch)
    for left, right in zip(jax.tree.leaves(given["params"]), jax.tree.leaves(fresh["params"])):
        np.testing.assert_allclose(left.std(), right.std(), rtol=0.2, atol=1e-6)


@pytest.mark.parametrize("make, options", [
    (TracedMacroNetwork, {"num_layers": 0}), (TracedMacroNetwork, {"features": 3}),
    (TracedMacroNetwork, {"method": "fft"}), (TracedMacroNetwork, {"dropout_rate": 1.0}),
    (TracedFilterNetwork, {"num_layers": True}), (TracedFilterNetwork, {"num_classes": 0})])
def test_bad_options_are_named(make, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make(**options)


@pytest.mark.parametrize("network", [NETWORKS["macro"][0], NETWORKS["filters"][0]])
def test_archs_of_another_length_are_refused(network):
    with pytest.raises(ValueError, match=r"arch must be \["):
        jax.eval_shape(lambda: network.init(
            jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(5, jnp.int32), train=False))
