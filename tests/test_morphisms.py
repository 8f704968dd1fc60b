"""Morphisms keep the function, and the optimiser goes on; all networks run in one program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import conv_chains, morphisms
from jaxnas.conv_chains import Connect, Deepen, Widen
from jaxnas.morphisms import Morphable
from jaxnas.networks import primitives
from jaxnas.networks.morphable import MorphableNetwork
from jaxnas.networks.morphable_slots import MorphableSlots
from jaxnas.networks.morphable_traced import TracedMorphableNetwork

QUICK = {"xla_backend_optimization_level": 0}
SLOTS = MorphableSlots(2, 3, (1, 3, 5), (2, 4, 8))
TRACED = TracedMorphableNetwork(SLOTS, 1, 3)
IMAGES = np.random.default_rng(1).normal(size=(4, 8, 9, 1))
START = conv_chains.initial_chain(num_stages=2, width=2)


@pytest.fixture(scope="module")
def run():
    """(network, dtype) -> logits with running statistics, [4, 3]; one program a dtype."""
    apply = jax.jit(lambda v, x, arch: TRACED.apply(v, x, arch, train=False),
                    compiler_options=QUICK)

    def call(network, dtype):
        with jax.enable_x64(True):
            given = {"params": network.params, "batch_stats": network.batch_stats}
            variables = TRACED.insert(given, network.chain)
            return np.asarray(apply(variables, IMAGES.astype(dtype), SLOTS.arch(network.chain)))

    yield call
    assert apply._cache_size() <= 2


@functools.cache
def shapes_of(chain):
    return jax.eval_shape(lambda: MorphableNetwork(chain, 3).init(
        jax.random.key(0), jnp.zeros((1, 8, 9, 1)), train=False))


def random_network(seed, chain=START, dtype=np.float64, steps=0):
    """A network with weights as after training, grown by some operations to vary it."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        found = list(conv_chains.operations(chain, max_layers=3, max_width=8))
        chain = conv_chains.transform(chain, found[random.integers(len(found))])
    shapes = shapes_of(chain)
    draw = lambda low: lambda a: random.uniform(low, 1, a.shape).astype(dtype)
    return Morphable(chain, jax.tree.map(draw(-1), dict(shapes["params"])),
                     jax.tree.map(draw(0.3), dict(shapes["batch_stats"])))


def random_operation(random, chain):
    """Deeper, wider and skips equally often where all are possible, as AutoKeras draws."""
    found = list(conv_chains.operations(chain, max_layers=3, max_width=8))
    kinds = sorted({type(operation).__name__ for operation in found})
    kind = kinds[random.integers(len(kinds))]
    found = [operation for operation in found if type(operation).__name__ == kind]
    return found[random.integers(len(found))]


@pytest.mark.parametrize("style", morphisms.STYLES)
def test_hundred_random_morphisms_keep_the_function(style, run):
    random, seen, alive = np.random.default_rng(5), set(), 0
    for seed in range(50):
        network = random_network(seed, steps=seed % 8)
        operation = random_operation(random, network.chain)
        child = morphisms.morph(jax.random.key(seed), network, operation, style=style)
        assert child.chain == conv_chains.transform(network.chain, operation)
        before = run(network, np.float64)
        np.testing.assert_allclose(run(child, np.float64), before, rtol=1e-10,
                                   atol=1e-10 * np.abs(before).max())
        single = [one._replace(
            params=jax.tree.map(np.float32, one.params),
            batch_stats=jax.tree.map(np.float32, one.batch_stats)) for one in (network, child)]
        left, right = (run(one, np.float32) for one in single)
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5 * np.abs(left).max())
        seen.add(type(operation).__name__)
        alive += bool(np.ptp(before, 0).max() > 1e-3)
    assert alive > 40  # of 50, whose images do not all end in the same dead channels
    assert seen == {"Deepen", "Widen", "Connect"}


@pytest.mark.parametrize("style", morphisms.STYLES)
def test_twenty_morphisms_in_a_row_keep_the_function(style, run):
    random, network = np.random.default_rng(6), random_network(3)
    before = run(network, np.float64)
    for number in range(20):
        operation = random_operation(random, network.chain)
        network = morphisms.morph(jax.random.key(number), network, operation, style=style)
    assert len(network.chain.layers) > 2 and network.chain.skips
    np.testing.assert_allclose(run(network, np.float64), before, rtol=1e-9,
                               atol=1e-9 * np.abs(before).max())


def test_a_child_fits_its_fixed_network():
    network = random_network(7)
    for number, operation in enumerate(
            (Deepen(0, 5), Widen(1, 8), Connect(0, 2, "concat"), Connect(1, 2, "add"))):
        network = morphisms.morph(jax.random.key(number), network, operation)
    shapes = shapes_of(network.chain)
    given = {"params": network.params, "batch_stats": network.batch_stats}
    assert jax.tree.map(lambda a: a.shape, given) == jax.tree.map(lambda a: a.shape, dict(shapes))


def test_widening_by_hand():
    """Two channels become four: copies in front, and zeros or shares behind."""
    network = random_network(0)
    for style in morphisms.STYLES:
        child = morphisms.widen(jax.random.key(3), network, 0, 4, style=style)
        kernel = network.params["kernel_0"]
        np.testing.assert_array_equal(child.params["kernel_0"][..., :2], kernel)
        copied = [np.flatnonzero((kernel == child.params["kernel_0"][..., [i]]).all((0, 1, 2)))[0]
                  for i in range(4)]
        assert copied[:2] == [0, 1]
        after, new = network.params["kernel_1"], child.params["kernel_1"]
        if style == "zero":
            np.testing.assert_array_equal(new[:, :, :2], after)
            assert not new[:, :, 2:].any()
        else:
            for channel in range(4):
                old = copied[channel]
                np.testing.assert_allclose(new[:, :, channel],
                                           after[:, :, old] / copied.count(old))
        np.testing.assert_array_equal(child.batch_stats["norm_1"]["mean"],
                                      network.batch_stats["norm_1"]["mean"][copied])


def test_noise_is_small_and_only_where_weights_are_new(run):
    network = random_network(8)
    before = run(network, np.float64)
    for operation in (Deepen(0, 3), Widen(0, 4), Connect(0, 1, "concat"), Connect(0, 1, "add")):
        child = morphisms.morph(jax.random.key(1), network, operation, noise=1e-4)
        change = np.abs(run(child, np.float64) - before).max()
        assert 0 < change < 1e-2 * np.abs(before).max()
        np.testing.assert_array_equal(child.params["kernel_0"][..., :2], network.params["kernel_0"])


def test_the_state_is_not_changed_and_keys_decide():
    network = random_network(4)
    kept = jax.tree.map(np.copy, network)
    first, again, other = (morphisms.widen(jax.random.key(seed), network, 0, 8, noise=0.1)
                           for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, network, kept)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.params["kernel_0"] != other.params["kernel_0"]).any()


@pytest.mark.parametrize("optimizer", [
    optax.chain(optax.add_decayed_weights(1e-4), optax.trace(0.9, nesterov=True),
                optax.scale_by_learning_rate(0.1)), optax.adam(0.1)], ids=["momentum", "adam"])
def test_the_optimizer_state_goes_along(optimizer):
    network = random_network(5)
    state = optimizer.init(network.params)
    _, state = optimizer.update(network.params, state, network.params)
    network = network._replace(optimizer_state=state)
    for operation in (Deepen(0, 3), Widen(0, 4), Connect(0, 1, "concat")):
        child = morphisms.morph(jax.random.key(0), network, operation, style="split")
        fresh = optimizer.init(child.params)
        assert jax.tree.structure(child.optimizer_state) == jax.tree.structure(fresh)
        assert jax.tree.map(np.shape, child.optimizer_state) == jax.tree.map(np.shape, fresh)
        momentum = optax.tree_utils.tree_get(
            child.optimizer_state, "trace", optax.tree_utils.tree_get(child.optimizer_state, "mu"))
        kernel = optax.tree_utils.tree_get(
            state, "trace", optax.tree_utils.tree_get(state, "mu"))["kernel_0"]
        np.testing.assert_array_equal(momentum["kernel_0"][..., :2], kernel)
        if isinstance(operation, Deepen):
            assert not momentum["kernel_1"].any() and not momentum["norm_1"]["scale"].any()
        if isinstance(operation, Connect):
            assert not momentum["skip_0_1"].any() and not momentum["main_1"].any()


def test_batch_normalisation_has_the_epsilon_of_the_networks():
    assert morphisms.EPSILON == primitives.EPSILON


@pytest.mark.parametrize("call, message", [
    (lambda n: morphisms.deepen(jax.random.key(0), n, 2, 3), "must be in"),
    (lambda n: morphisms.deepen(jax.random.key(0), n, 0, 4), "odd"),
    (lambda n: morphisms.deepen(jax.random.key(0), n, 0, 3, noise=-1.0), "noise"),
    (lambda n: morphisms.widen(jax.random.key(0), n, 0, 2), "above 2"),
    (lambda n: morphisms.widen(jax.random.key(0), n, 0, 4, style="half"), "style"),
    (lambda n: morphisms.add_skip(jax.random.key(0), n, 1, 1), "forward"),
    (lambda n: morphisms.add_skip(
        jax.random.key(0), morphisms.concat_skip(jax.random.key(0), n, 0, 1), 0, 1), "already")])
def test_what_cannot_be_done_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_network(0))
