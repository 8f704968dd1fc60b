"""Mobile networks: published counts stage by stage, padding, layers, dropping, block strings."""

import collections

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnas.networks import mobile, mobile_stages
from jaxnas.networks.mobile import MobileLayer, MobileNetwork
from jaxnas.networks.mobile_grid import MobileGrid, small_images
from jaxnas.networks.mobile_stages import PUBLISHED, MobileModel, Stage

# Parameters with 1,000 classes: stem, seven stages, head, classifier.
BY_STAGE = {
    "MNASNET_B1": [928, 896, 11_472, 33_096, 217_680, 209_184, 1_611_456, 605_440, 412_160,
                   1_281_000],
    "MNASNET_A1": [928, 896, 13_968, 39_098, 281_680, 316_144, 1_067_244, 473_920, 412_160,
                   1_281_000],
}
TOTALS = {"MNASNET_B1": 4_383_312, "MNASNET_A1": 3_887_038, "MNASNET_SMALL": 2_030_264}
TINY = MobileModel((
    Stage("mbconv", 5, 2, 3, 4, 2, 0.25, "identity"),
    Stage("conv", 3, 1, 1, 4, 1, 0.5, "pool"),
    Stage("mbconv", 3, 2, 1, 6, 1, 0.0, "none")), stem_filters=3, stem_stride=1, head_filters=5)


def _shapes(network, size):
    x = jnp.zeros((1, size, size, 3))
    network = network.clone(method="conv")  # traced in less time
    return jax.eval_shape(lambda: network.init(jax.random.key(0), x, train=False))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    params = _shapes(MobileNetwork(PUBLISHED[name]), 224)["params"]
    assert sum(a.size for a in jax.tree.leaves(params)) == TOTALS[name]
    counts = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        part = path[0].key.split("_layer")[0]
        counts["classifier" if "classifier" in str(path) else part] += leaf.size
    order = ["stem", *(f"stage_{number}" for number in range(7)), "head", "classifier"]
    if name in BY_STAGE:
        assert [counts[part] for part in order] == BY_STAGE[name]


def test_squeeze_of_the_expanded_width_is_another_network():
    """Taken of the expanded channels, A1 would have 5,139,518 parameters."""
    wrong, inputs = TOTALS["MNASNET_A1"], 32
    for stage in PUBLISHED["MNASNET_A1"].stages:
        for layer in range(stage.repeats):
            if stage.se_ratio:
                width = stage.expansion * inputs
                more = int(stage.se_ratio * width) - int(stage.se_ratio * inputs)
                wrong += more * (2 * width + 1)
            inputs = stage.filters
    assert wrong == 5_139_518


@pytest.mark.parametrize("size, stem_stride, expected", [
    (224, 2, [112, 112, 56, 28, 14, 14, 7, 7])])
def test_maps_of_the_published_networks(size, stem_stride, expected):
    """Strides on the wrong stages leave the parameters unchanged, and these sizes not."""
    for model in PUBLISHED.values():
        network = MobileNetwork(model, method="conv")
        _, captured = jax.eval_shape(lambda n=network: n.init_with_output(
            jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False,
            capture_intermediates=lambda module, _: isinstance(module, MobileLayer)
            or module.name == "stem", mutable=True))
        outputs = captured["intermediates"]
        last = [f"stage_{n}_layer_{s.repeats - 1}" for n, s in enumerate(model.stages)]
        found = [outputs[name]["__call__"][0].shape[1] for name in ["stem", *last]]
        assert model.stem_stride == stem_stride and found == expected


@pytest.mark.parametrize("size, expected", [(32, 8), (28, 7)])
def test_small_images_are_divided_by_four(size, expected):
    grid = small_images()
    assert isinstance(grid, MobileGrid)
    length = -(-size // grid.stem_stride)
    for stride in grid.strides:
        length = -(-length // stride)
    assert length == expected


@pytest.mark.parametrize("multiplier, millions", [(1.4, 6.1), (0.75, 2.9), (0.5, 2.1), (0.35, 1.7)])
def test_scaled_a1_has_the_published_size(multiplier, millions):
    """The README of the released code gives these, to one decimal."""
    network = MobileNetwork(mobile_stages.scaled(PUBLISHED["MNASNET_A1"], multiplier))
    count = sum(a.size for a in jax.tree.leaves(_shapes(network, 64)["params"]))
    assert round(count / 1e6, 1) == millions
    assert network.model.head_filters == 1280


@pytest.mark.parametrize("size", [(6, 5), (2, 7)])
def test_padding_is_same(size):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, *size, 3))
    for kernel in (3, 5):
        across = jax.random.normal(keys[1], (kernel, kernel, 3))
        dense = jax.random.normal(keys[2], (kernel, kernel, 3, 4))
        for stride in (1, 2):
            for method in ("shifts", "conv"):
                cases = (mobile.depthwise_same, across, 3), (mobile.convolve_same, dense, 1)
                for found, weights, groups in cases:
                    expected = lax.conv_general_dilated(
                        x, weights[:, :, None] if groups == 3 else weights, (stride, stride),
                        "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
                        feature_group_count=groups)
                    np.testing.assert_allclose(
                        found(x, weights, stride=stride, method=method), expected, atol=1e-5)


def test_squeeze_excitation_by_hand():
    """Means 1 and 3: hidden relu(1 + 3 - 1) = 3; scales sigmoid(3) and sigmoid(-3 + 3)."""
    x = jnp.array([[0.0, 2.0], [2.0, 4.0]]).reshape(1, 2, 1, 2)
    params = {"reduce": {"kernel": jnp.ones((2, 1)), "bias": -jnp.ones(1)},
              "restore": {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.array([0.0, 3.0])}}
    found = mobile.SqueezeExcitation(1).apply({"params": params}, x)
    expected = x * jnp.array([1 / (1 + np.exp(-3.0)), 0.5])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_skip_where_stride_is_one_and_widths_agree():
    """With a projection of zero a layer is its skip."""
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    expected = {"identity": x, "pool": jnp.stack([jnp.stack([
        x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((1, 2))
        for j in range(4)], 1) for i in range(4)], 1), "none": 0 * x}
    for skip, filters, stride in (("identity", 3, 1), ("pool", 3, 1), ("none", 3, 1),
                                  ("identity", 4, 1), ("identity", 3, 2), ("pool", 3, 2)):
        layer = MobileLayer(Stage("mbconv", 3, stride, 1, filters, 1, 0.0, skip), method="conv")
        shapes = jax.eval_shape(lambda n=layer: n.init(jax.random.key(0), x, train=False))
        variables = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), shapes)
        variables["params"]["project"] = jax.tree.map(
            np.zeros_like, variables["params"]["project"])
        found = layer.apply(variables, x, train=False)
        skips = stride == 1 and filters == 3
        np.testing.assert_allclose(found, expected[skip] if skips else 0 * found, atol=1e-6)


@pytest.fixture(scope="module")
def tiny():
    network = MobileNetwork(TINY, num_classes=3, dropout_rate=0.5)
    x = jax.random.normal(jax.random.key(1), (4, 6, 6, 1))
    quick = network.clone(method="conv")  # compiles in less time; the variables are the same
    return network, x, jax.jit(lambda: quick.init(jax.random.key(0), x, train=False))()


def test_initial_values(tiny):
    """Normal with variance 2 / fan_out; of a depthwise kernel the fan-out is its area."""
    network, x, variables = tiny
    wide = mobile.ConvNorm(200, 5, is_depthwise=True)
    params = wide.init(jax.random.key(0), jnp.zeros((1, 5, 5, 200)), train=False)["params"]
    np.testing.assert_allclose(np.std(params["kernel"]), (2 / 25) ** 0.5, rtol=0.05)
    dense = mobile.ConvNorm(50, 3).init(jax.random.key(0), jnp.zeros((1, 3, 3, 9)), train=False)
    np.testing.assert_allclose(np.std(dense["params"]["kernel"]), (2 / 450) ** 0.5, rtol=0.05)
    classifier = variables["params"]["head"]["classifier"]
    assert not np.any(classifier["bias"]) and np.abs(classifier["kernel"]).max() < 3 ** -0.5


def test_forward_and_backward(tiny):
    """Every parameter has a gradient, and running statistics move."""
    network, x, variables = tiny
    variables["params"] = jax.tree_util.tree_map_with_path(
        lambda path, a: a + 5 if path[-2].key == "reduce" else a, variables["params"])  # alive

    def loss(params, x):
        logits, new = network.apply(
            {**variables, "params": params}, x, train=True, drop_path_rate=0.2,
            rngs={"drop_path": jax.random.key(3)}, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(jnp.arange(12.0)).reshape(4, 3) * logits), (logits, new)

    (_, (logits, new)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        variables["params"], x)
    assert logits.shape == (4, 3) and logits.dtype == jnp.float32
    chex.assert_tree_all_finite(grads)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(leaf), jax.tree_util.keystr(path)
    chex.assert_trees_all_equal_shapes(new["batch_stats"], variables["batch_stats"])
    stem = new["batch_stats"]["stem"]["norm"]
    y = mobile.convolve_same(x, variables["params"]["stem"]["kernel"], stride=1, method="conv")
    np.testing.assert_allclose(stem["mean"], 0.01 * y.mean((0, 1, 2)), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(stem["var"], 0.99 + 0.01 * y.var((0, 1, 2)), rtol=1e-4)


def test_constants_of_the_normalisation(tiny):
    """Momentum 0.99 and epsilon 0.001 as published, and other ones where named."""
    network, x, _ = tiny
    assert network.momentum == 0.99 and network.epsilon == 1e-3
    unit = mobile.ConvNorm(1, momentum=0.5, epsilon=0.25)
    variables = unit.init(jax.random.key(0), x, train=False)
    kernel = variables["params"]["kernel"]
    y, new = unit.apply(variables, x, train=True, mutable=["batch_stats"])
    before = x @ kernel
    np.testing.assert_allclose(
        y, (before - before.mean()) / np.sqrt(before.var() + 0.25), atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["norm"]["mean"], [before.mean() / 2], atol=1e-6)


def test_random_streams(tiny):
    """Without dropout and drop path no keys are needed; with them the key decides."""
    network, x, variables = tiny
    quick = network.clone(method="conv")
    still = quick.clone(dropout_rate=0.0)

    @jax.jit
    def run(rate, key):
        return [n.apply(variables, x, train=True, drop_path_rate=rate,
                        rngs={"drop_path": key}, mutable=["batch_stats"])[0]
                for n in (quick, still)]

    plain = jax.jit(lambda: still.apply(variables, x, train=True, mutable=["batch_stats"])[0])()
    first, second = (run(0.0, jax.random.key(number)) for number in (0, 1))
    np.testing.assert_allclose(first[1], plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second[1], plain, rtol=1e-4, atol=1e-5)
    assert np.any(first[0] != second[0])  # dropout
    dropped = run(0.5, jax.random.key(0))
    assert np.any(np.abs(dropped[1] - plain) > 1e-3)  # drop path


@pytest.mark.parametrize("name", PUBLISHED)
def test_block_strings_round_trip(name):
    model = PUBLISHED[name]
    texts = mobile_stages.block_strings(model)
    assert mobile_stages.from_block_strings(texts, stem_filters=model.stem_filters) == model
    assert all(text.startswith("r") for text in texts)


def test_block_strings_of_our_own_suffixes():
    texts = ("r2_k5_s22_e3_i3_o4_se0.25", "r1_k3_s11_e1_i4_o4_conv_se0.5_pool",
             "r1_k3_s22_e1_i4_o6_noskip")
    assert mobile_stages.block_strings(TINY) == texts
    assert mobile_stages.from_block_strings(
        texts, stem_filters=3, stem_stride=1, head_filters=5) == TINY


@pytest.mark.parametrize("text, message", [
    ("r1_k3_s11_e1_i16_o8", "must have the input i32"), ("r1_k3_s12_e1_i32_o8", "read like"),
    ("r0_k3_s11_e1_i32_o8", "read like"), ("r1_k3_s33_e1_i32_o8", "read like"),
    ("r1_k4_s11_e1_i32_o8", "kernel of stage 0 must be odd"), (7, "read like"),
    ("r1_k3_s11_e6_i32_o8_conv", "expansion of stage 0"), ("r1_k3_s11_e1_i32_o8 ", "read like"),
    ("r1_k3_s11_e1_i32_o8_skip", "read like"), ("r1_k3_s11_e1_i32_o8\n", "read like")])
def test_wrong_block_strings(text, message):
    with pytest.raises(ValueError, match=message):
        mobile_stages.from_block_strings((text,))


@pytest.mark.parametrize("change, message", [
    ({"operation": "dense"}, "operation of stage 0"), ({"stride": 3}, "stride of stage 0"),
    ({"skip": "sum"}, "skip of stage 0"), ({"kernel": 2}, "kernel of stage 0"),
    ({"filters": 0}, "filters of stage 0"), ({"repeats": 1.5}, "repeats of stage 0"),
    ({"se_ratio": 1.5}, "se_ratio of stage 0")])
def test_refuses_stages(change, message):
    with pytest.raises(ValueError, match=message):
        MobileNetwork(MobileModel((Stage()._replace(**change),)))


@pytest.mark.parametrize("change", [
    {"num_classes": 0}, {"dropout_rate": 1.0}, {"momentum": 1.0}, {"epsilon": -1.0},
    {"method": "fft"}])
def test_refuses_options(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        MobileNetwork(TINY, **change)


def test_refuses_other_things():
    with pytest.raises(ValueError, match="stages must hold one"):
        MobileNetwork(MobileModel(()))
    with pytest.raises(ValueError, match="stem_stride must be 1 or 2"):
        MobileNetwork(TINY._replace(stem_stride=3))
    with pytest.raises(ValueError, match="multiplier must be positive"):
        mobile_stages.scaled(TINY, 0.0)
    with pytest.raises(ValueError, match=r"x must be \[N, H, W, C\]"):
        MobileNetwork(TINY).init(jax.random.key(0), jnp.zeros((6, 6, 3)), train=False)
