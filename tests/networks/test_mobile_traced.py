"""The program for every architecture of a mobile grid equals the network of each.

20 random architectures share one trace of each form. 6 of them are compared with their compiled
fixed networks in value, gradients and running statistics; of all 20 the two forms agree, the
extracted variables are as many as the closed form counts, and what is not extracted is left alone.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.networks.mobile import MobileNetwork
from jaxnas.networks.mobile_grid import MobileGrid
from jaxnas.networks.mobile_traced import TracedMobileNetwork
from jaxnas.search_spaces import mnasnet_costs

# Widths 6, 8, 10 and 5, 6, 8: the first layer of the second stage may have a skip.
GRID = MobileGrid((8, 6), (2, 1), (2, 1), stem_filters=4, stem_stride=1, head_filters=6)
OPTIONS = {"num_classes": 3, "dropout_rate": 0.25}
QUICK = OPTIONS | {"method": "conv"}  # compiles in half the time
SHAPE = (3, 6, 5, 2)  # an even and an odd side, which "SAME" pads differently
# Chosen: the operations, kernels, depths, and skips of a first layer, with widths that fit.
CHOSEN = ([0, 1, 1, 1, 1, 1, 2, 0, 1, 0, 2, 1], [1, 0, 0, 0, 1, 0, 3, 1, 0, 1, 2, 2],
          [2, 1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 1])
RANDOM = np.random.default_rng(7).integers(0, GRID.num_choices, (17, 12))
ARCHS = np.concatenate([CHOSEN, RANDOM]).astype(np.int32)
FIXED = 6


def _variables(network, x):
    """Return variables of ordinary size, none at a special value such as a scale of 1."""
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), x, ARCHS[0], train=False))
    random = np.random.default_rng(0)

    def draw(low, tree):
        return jax.tree.map(lambda a: random.uniform(low, 1, a.shape), tree)

    return {"params": draw(-1, shapes["params"]), "batch_stats": draw(0.5, shapes["batch_stats"])}


def _loss(network, params, stats, x, *arch):
    """Return a loss, the logits in training, and the new statistics."""
    variables = {"params": params, "batch_stats": stats}
    trained, new = network.apply(
        variables, x, *arch, train=True, drop_path_rate=0.4, mutable=["batch_stats"],
        rngs={"drop_path": jax.random.key(5)})
    weights = jnp.sin(jnp.arange(trained.size)).reshape(trained.shape)
    return jnp.sum(weights * trained), (trained, new["batch_stats"])


def _program(network):
    def run(params, stats, x, *arch):
        return _loss(network, params, stats, x, *arch)
    return jax.jit(jax.value_and_grad(chex.assert_max_traces(run, n=1), has_aux=True))


@pytest.fixture(scope="module")
def inputs():
    """Images and variables in float64."""
    with jax.enable_x64(True):
        x = np.random.default_rng(1).normal(size=SHAPE)
        return x, _variables(TracedMobileNetwork(GRID, **QUICK), x)


def _run_all(form, inputs):
    x, variables = inputs
    chex.clear_trace_counter()
    with jax.enable_x64(True):
        run = _program(TracedMobileNetwork(GRID, form=form, **QUICK))
        return [jax.device_get(run(variables["params"], variables["batch_stats"], x, arch))
                for arch in ARCHS]


@pytest.fixture(scope="module")
def traced(inputs):
    """Results of form "switch" for all architectures."""
    return _run_all("switch", inputs)


@pytest.fixture(scope="module")
def fixed(inputs):
    """Results of the fixed networks of the first architectures."""
    x, variables = inputs
    network, results = TracedMobileNetwork(GRID, **QUICK), []
    with jax.enable_x64(True):
        for arch in ARCHS[:FIXED]:
            chex.clear_trace_counter()
            given = network.extract(variables, arch)
            results.append(jax.device_get(_program(network.network(arch))(
                given["params"], given["batch_stats"], x)))
    return results


def _assert_equal(found, expected):
    scale = max(np.abs(a).max() for a in jax.tree.leaves(expected))
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.slow
def test_equals_the_network_of_the_arch(traced, fixed):
    network = TracedMobileNetwork(GRID, **QUICK)
    for arch, result, expected in zip(ARCHS, traced, fixed):
        (_, (logits, stats)), grads = result
        found = network.extract({"params": grads, "batch_stats": stats}, arch)
        (_, (logits_2, stats_2)), grads_2 = expected
        assert logits.dtype == np.float64
        _assert_equal(logits, logits_2)
        _assert_equal(found["batch_stats"], stats_2)
        _assert_equal(found["params"], grads_2)


@pytest.mark.slow
def test_forms_agree(inputs, traced):
    for result, expected in zip(_run_all("masked", inputs), traced):
        for found, wanted in zip(result, expected):  # loss, logits and statistics; gradients
            _assert_equal(found, wanted)


@pytest.mark.slow
def test_what_an_arch_does_not_use_is_left_alone(inputs, traced):
    network = TracedMobileNetwork(GRID, **QUICK)
    counts = mnasnet_costs.grid_costs(GRID, ARCHS, num_classes=3, channels=2).parameters
    for arch, count, ((_, (_, stats)), grads) in zip(ARCHS, counts, traced):
        found = network.extract({"params": grads, "batch_stats": stats}, arch)
        assert sum(a.size for a in jax.tree.leaves(found["params"])) == count
        np.testing.assert_allclose(_total(grads), _total(found["params"]), rtol=1e-12)
        # Of the statistics those in use have moved, all of them, and no other.
        moved = jax.tree.map(lambda new, old: np.sum(new != old), stats, inputs[1]["batch_stats"])
        in_use = sum(a.size for a in jax.tree.leaves(found["batch_stats"]))
        assert sum(jax.tree.leaves(moved)) == in_use


def _total(tree):
    return sum(np.abs(a).sum() for a in jax.tree.leaves(tree))


def test_float32_logits_under_vmap_and_in_a_loop(inputs):
    """Both forms, as they are meant to be used, to 1e-5 of the largest logit."""
    x, variables = jax.tree.map(np.float32, inputs)
    masked = TracedMobileNetwork(GRID, form="masked", **OPTIONS)  # by shifts, not by lax.conv
    switch = TracedMobileNetwork(GRID, form="switch", **QUICK)
    batch = jax.jit(jax.vmap(chex.assert_max_traces(
        lambda arch: masked.apply(variables, x, arch, train=False), n=1)))(ARCHS)
    loop = jax.jit(lambda archs: jax.lax.map(
        lambda arch: switch.apply(variables, x, arch, train=False), archs))(ARCHS)
    assert batch.shape == (20, 3, 3) and batch.dtype == loop.dtype == jnp.float32
    scale = np.abs(loop).max((1, 2), keepdims=True)
    np.testing.assert_allclose(batch / scale, loop / scale, atol=1e-5)
    for arch, largest, logits in zip(ARCHS[:FIXED], scale, loop):
        network = switch.network(arch)
        expected = jax.jit(lambda v, n=network: n.apply(v, x, train=False))(
            switch.extract(variables, arch))
        np.testing.assert_allclose(logits / largest, expected / largest, atol=1e-5)


def test_initial_variables():
    network = TracedMobileNetwork(GRID, form="masked", **QUICK)
    x = jnp.zeros(SHAPE)
    variables = jax.jit(lambda: network.init(jax.random.key(0), x, ARCHS[0], train=False))()
    params = variables["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        name = path[-1].key
        if name != "kernel":
            np.testing.assert_array_equal(leaf, 1.0 * (name in ("scale", "var")))
    conv = params["stage_0"]["rest"]["conv"]["kernel"]  # 2 of [5, 5, 10, 10]
    np.testing.assert_allclose(np.std(conv), (2 / 250) ** 0.5, rtol=0.05)
    assert np.std(conv[0] - conv[1]) > 0.1
    across = params["stage_0"]["rest"]["depthwise"]["kernel"]  # 2 of [5, 5, 60]
    np.testing.assert_allclose(np.std(across), (2 / 25) ** 0.5, rtol=0.05)


def test_imagenet_grid_has_one_set_of_slots():
    """21.0 M parameters, as the file says; nothing is allocated."""
    network = TracedMobileNetwork(form="masked", method="conv")
    x, arch = jnp.zeros((1, 224, 224, 3)), jnp.zeros(42, jnp.int32)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), x, arch, train=False))
    count = sum(a.size for a in jax.tree.leaves(shapes["params"]))
    assert round(count / 1e6, 1) == 21.0
    wide = np.array([3, 1, 1, 0, 2, 1] * 7)
    fixed = network.extract(shapes_to_zeros(shapes), wide)
    assert isinstance(network.network(wide), MobileNetwork)
    assert fixed["params"]["stage_6_layer_1"]["expand"]["kernel"].shape == (400, 2400)


def shapes_to_zeros(shapes):
    """Arrays without memory of their own."""
    return jax.tree.map(lambda a: np.broadcast_to(np.float32(0), a.shape), dict(shapes))


@pytest.mark.parametrize("change", [
    {"num_classes": 0}, {"dropout_rate": 1.0}, {"momentum": -0.1}, {"epsilon": 0.0},
    {"method": "fft"}, {"form": "onehot"}])
def test_refuses(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TracedMobileNetwork(GRID, **change)


def test_refuses_another_length():
    network = TracedMobileNetwork(GRID)
    with pytest.raises(ValueError, match=r"arch must be \[12\], got \(42,\)"):
        network.init(jax.random.key(0), jnp.zeros(SHAPE), jnp.zeros(42, jnp.int32), train=False)
