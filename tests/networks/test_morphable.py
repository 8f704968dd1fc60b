"""Chains that grow: the fixed network, its costs, and one traced network for all."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import conv_chains, costs
from jaxnas.conv_chains import ConvChain, Layer, Skip
from jaxnas.networks import MorphableNetwork, MorphableSlots, TracedMorphableNetwork

QUICK = {"xla_backend_optimization_level": 0}
SLOTS = MorphableSlots(2, 2, (1, 3, 5), (2, 3, 4))
TRACED = TracedMorphableNetwork(SLOTS, 1, 3)
# Every kernel, both kinds of skip within and across stages, two concatenations into one layer.
FULL = ConvChain(((Layer(1, 2), Layer(3, 3)), (Layer(5, 4), Layer(3, 2))),
                 (Skip(0, 1, "add"), Skip(0, 3, "concat"), Skip(1, 2, "add"),
                  Skip(1, 3, "concat"), Skip(2, 3, "add")))
CHAINS = [FULL, ConvChain(((Layer(3, 4),), (Layer(5, 3),)))]


def program(network):
    """A loss in training; logits and running statistics beside it."""
    def loss(params, stats, x, *arch):
        logits, new = network.apply({"params": params, "batch_stats": stats}, x, *arch, train=True,
                                    mutable=["batch_stats"])
        weights = jnp.sin(jnp.arange(logits.size).reshape(logits.shape))
        return jnp.sum(weights * logits), (logits, new["batch_stats"])

    return loss


def random_variables(network, *arguments):
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), *arguments, train=False))
    return {"params": jax.tree.map(lambda a: random.uniform(-1, 1, a.shape), shapes["params"]),
            "batch_stats": jax.tree.map(lambda a: random.uniform(0.5, 1, a.shape),
                                        shapes["batch_stats"])}


def test_traced_equals_fixed_in_value_gradients_and_statistics():
    with jax.enable_x64(True):
        x = np.random.default_rng(1).normal(size=(3, 8, 9, 1))
        variables = random_variables(TRACED, x, SLOTS.arch(FULL))
        once = chex.assert_max_traces(program(TRACED), n=1)
        run = jax.jit(jax.value_and_grad(once, has_aux=True), compiler_options=QUICK)
        for chain in CHAINS:
            arch = SLOTS.arch(chain)
            (_, (logits, stats)), grads = run(*variables.values(), x, arch)
            given = TRACED.extract(variables, arch)
            fixed = MorphableNetwork(chain, 3)
            wanted = jax.eval_shape(lambda n=fixed: n.init(jax.random.key(0), x, train=False))
            chex.assert_trees_all_equal_shapes(given, dict(wanted))
            expected_run = jax.jit(jax.value_and_grad(program(fixed), has_aux=True),
                                   compiler_options=QUICK)
            (_, expected), grads_2 = expected_run(given["params"], given["batch_stats"], x)
            found = TRACED.extract({"params": grads, "batch_stats": stats}, arch)
            chex.assert_trees_all_close(
                (logits, found["batch_stats"], found["params"]), (*expected, grads_2),
                rtol=1e-9, atol=1e-11)
            # Nothing else has a gradient, and no other running statistics have moved.
            squares, squares_2 = (sum(np.sum(np.square(a)) for a in jax.tree.leaves(tree))
                                  for tree in (grads, grads_2))
            np.testing.assert_allclose(squares, squares_2, rtol=1e-9)
            moved, moved_2 = (
                sum(np.sum(a != b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old)))
                for new, old in ((stats, variables["batch_stats"]),
                                 (expected[1], given["batch_stats"])))
            assert moved == moved_2


def test_insert_is_the_inverse_of_extract():
    random = np.random.default_rng(0)
    for chain in CHAINS:
        shapes = jax.eval_shape(lambda c=chain: MorphableNetwork(c, 3).init(
            jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False))
        variables = jax.tree.map(lambda a: random.uniform(1, 2, a.shape), dict(shapes))
        inserted = TRACED.insert(variables, chain)
        chex.assert_trees_all_equal(TRACED.extract(inserted, SLOTS.arch(chain)), variables)
        assert sum(np.count_nonzero(leaf) for leaf in jax.tree.leaves(inserted)) == sum(
            leaf.size for leaf in jax.tree.leaves(variables))


def test_float32_with_running_statistics():
    x = np.random.default_rng(1).normal(size=(4, 8, 8, 1)).astype(np.float32)
    variables = jax.tree.map(np.float32, random_variables(TRACED, x, SLOTS.arch(FULL)))
    found = jax.jit(lambda v, a: TRACED.apply(v, x, a, train=False), compiler_options=QUICK)(
        variables, SLOTS.arch(FULL))
    expected = jax.jit(lambda v: MorphableNetwork(FULL, 3).apply(v, x, train=False),
                       compiler_options=QUICK)(TRACED.extract(variables, SLOTS.arch(FULL)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_costs_are_those_of_the_built_network(chain):
    network = MorphableNetwork(chain, 3)
    assert costs.cost(network, (8, 9, 1)).parameters == costs.count_parameters(network, (8, 9, 1))


def test_costs_by_hand():
    """AutoKeras's first network on CIFAR-10, 3 layers of 64."""
    found = costs.cost(MorphableNetwork(conv_chains.initial_chain()), (32, 32, 3))
    kernels = [9 * 3 * 64, 9 * 64 * 64, 9 * 64 * 64]
    norms, biases, head = 2 * (3 + 64 + 64 + 64), 3 * 64, 64 * 10 + 10
    assert found.parameters == sum(kernels) + norms + biases + head
    assert found.multiply_adds == (
        kernels[0] * 32**2 + kernels[1] * 16**2 + kernels[2] * 8**2 + 640)


def test_archs_and_chains_are_the_same():
    random = np.random.default_rng(0)
    canonical = jax.jit(SLOTS.canonical)
    for _ in range(200):
        arch = random.integers(0, SLOTS.num_choices).astype(np.int32)
        chain = conv_chains.check(SLOTS.chain(arch))
        np.testing.assert_array_equal(SLOTS.arch(chain), canonical(arch))
        assert SLOTS.chain(SLOTS.arch(chain)) == chain


@pytest.mark.parametrize("make, message", [
    (lambda: MorphableSlots(num_stages=0), "num_stages"),
    (lambda: MorphableSlots(kernels=(2,)), "kernels"),
    (lambda: MorphableSlots(widths=(4, 2)), "widths"),
    (lambda: TracedMorphableNetwork(SLOTS, 5), "image_channels"),
    (lambda: TracedMorphableNetwork(method="fft"), "method"),
    (lambda: MorphableNetwork(ConvChain(((Layer(3, 4),), ()))), "layer or more"),
    (lambda: SLOTS.arch(ConvChain(((Layer(3, 4),) * 3, (Layer(3, 4),)))), "at most 2"),
    (lambda: SLOTS.arch(ConvChain(((Layer(3, 8),), (Layer(3, 4),)))), "widths"),
    (lambda: costs.cost(MorphableNetwork(conv_chains.initial_chain()), (4, 8, 1)), "at least 8")])
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape, length, message", [
    ((1, 8, 8, 2), 14, "channels"), ((1, 8, 8, 1), 13, "arch must be"),
    ((1, 2, 8, 1), 14, "at least")])
def test_wrong_shapes_are_refused(shape, length, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: TRACED.init(
            jax.random.key(0), jnp.zeros(shape), jnp.zeros(length, jnp.int32), train=False))
