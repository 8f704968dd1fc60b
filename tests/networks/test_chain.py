"""Fixed chains: published counts, forward and backward, and layers worked out independently."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.networks import chain
from jaxnas.networks.chain import FilterNetwork, MacroNetwork
from jaxnas.networks.chain_layout import (FilterChoices, check_arch, num_choices, num_layers,
                                          pool_layers, positions, unpack)

TOY = (1, 1, 0, 2, 2, 1, 1, 0, 3, 2, 1, 1)  # 3x3x24, 5x5x36, 1x7x48, all skip connections
STRIDED = FilterChoices((1, 3), (1, 5), (2, 3), (1, 2, 3))
EVERY = (0, 4, 1, 5, 0, 1, 1, 1, 1, 0, 3, 0, 1, 0, 1, 2, 0, 0, 0, 1, 1)  # 6 layers, 6 operations


def shapes_of(network, *shape):
    return jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros(shape), train=False))["params"]


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_toy_counts_layer_by_layer():
    shapes = shapes_of(FilterNetwork(TOY), 1, 32, 32, 3)
    found = [(shapes[f"kernel_{i}"].size, size(shapes[f"norm_{i}"])) for i in range(3)]
    assert found == [(648, 48), (21_600, 72), (20_160, 96)]
    assert shapes["kernel_2"].shape == (1, 7, 60, 48)
    assert size(shapes["head"]) == 490 and size(shapes) == 43_114


def test_what_reads_nothing_reads_the_image_and_what_nobody_reads_is_classified():
    alone = shapes_of(FilterNetwork((0, 0, 0)), 1, 8, 8, 5)
    assert alone["kernel_0"].shape == (1, 1, 5, 24) and alone["head"]["kernel"].shape == (24, 10)
    no_skips = shapes_of(FilterNetwork((0, 0, 0, 1, 1, 1, 0, 0, 0, 2, 0, 0)), 1, 8, 8, 5)
    assert [no_skips[f"kernel_{i}"].shape[2] for i in range(3)] == [5, 5, 5]
    assert no_skips["head"]["kernel"].shape == (24 + 36 + 48, 10)


def test_maps_are_joined_with_zeros_below_and_right():
    small, tall = jnp.ones((1, 1, 2, 1)), 2 * jnp.ones((1, 2, 1, 2))
    joined = np.asarray(chain.join([small, tall]))[0]
    np.testing.assert_array_equal(joined[..., 0], [[1, 1], [0, 0]])
    np.testing.assert_array_equal(joined[..., 1], [[2, 0], [2, 0]])


def _reference(x, kernel, strides):
    """Convolve with SAME-like symmetric padding by loops over output pixels."""
    tall, wide = kernel.shape[:2]
    padded = np.pad(x, ((0, 0), (tall // 2,) * 2, (wide // 2,) * 2, (0, 0)))
    rows = range(0, x.shape[1], strides[0])
    columns = range(0, x.shape[2], strides[1])
    return np.stack([np.stack([
        np.einsum("nhwc,hwcf->nf", padded[:, r : r + tall, c : c + wide], kernel)
        for c in columns], 1) for r in rows], 1)


def _norm_relu(x):
    x = x - x.mean((0, 1, 2))
    return np.maximum(x / np.sqrt(x.var((0, 1, 2)) + 1e-5), 0)


@pytest.mark.parametrize("method", ["conv", "shifts"])
def test_strided_filters_match_numpy(method):
    # 3x5 of strides 2 and 1 on the image; 1x1 of strides 3 and 3 on it; 3x1 on both, joined.
    arch = (1, 1, 1, 0, 1, 0, 0, 2, 2, 0, 0, 1, 0, 0, 0, 1, 1, 1)
    layers = STRIDED.layers(arch)
    assert [layer.inputs for layer in layers] == [(), (), (0, 1)]
    network = FilterNetwork(arch, STRIDED, num_classes=3, method=method)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 2)).astype(np.float32)
    variables = jax.jit(lambda: network.init(jax.random.key(0), x, train=False))()
    logits, _ = jax.jit(lambda v: network.apply(v, x, train=True, mutable=["batch_stats"]))(
        variables)
    params = jax.tree.map(np.asarray, variables["params"])
    first = _norm_relu(_reference(x, params["kernel_0"], (2, 1)))
    second = _norm_relu(_reference(x, params["kernel_1"], (3, 3)))
    assert first.shape == (2, 4, 8, 3) and second.shape == (2, 3, 3, 2)
    both = np.zeros((2, 4, 8, 5), np.float32)
    both[..., :3], both[:, :3, :3, 3:] = first, second
    third = _norm_relu(_reference(both, params["kernel_2"], (1, 1)))
    expected = third.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", [
    "true", *(pytest.param(form, marks=pytest.mark.slow) for form in ("search", "compat"))])
def test_macro_runs_forward_and_backward(form):
    # A separable convolution, an average, a dense convolution; layer 2 skips to layer 0.
    network = MacroNetwork((1, 4, 1, 2, 0, 1), 2, form, num_classes=3, dropout_rate=0.5)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))

    @jax.jit
    def run(key):
        variables = network.init(key, x, train=False)

        def loss(params):
            logits, new = network.apply(
                variables | {"params": params}, x, train=True, rngs={"dropout": key},
                mutable=["batch_stats"])
            return jnp.sum(logits ** 2), (logits, new["batch_stats"], variables["batch_stats"])

        return jax.grad(loss, has_aux=True)(variables["params"])

    grads, (logits, new, old) = run(jax.random.key(1))
    assert logits.shape == (2, 3) and np.isfinite(logits).all()
    moved = jax.tree.map(lambda a, b: np.any(a != b), new, old)
    assert all(jax.tree.leaves(moved))
    for name, tree in grads.items():
        has_gradient = any(np.any(leaf) for leaf in jax.tree.leaves(tree))
        assert has_gradient == (name != "reduce_1_0"), name  # the stem, which layer 2 does not read


def test_macro_widths():
    shapes = shapes_of(MacroNetwork(EVERY, 4, "true"), 1, 8, 8, 3)
    # Pools after layers 1 and 3: widths 4, 4 | 8, 8 | 16, 16; EVERY's bits in its skip kernels.
    kernels = [shapes[f"layer_{i}"]["kernel_0"].shape for i in range(6)]
    assert kernels == [(4, 4)] * 2 + [(8, 8)] * 2 + [(16, 16)] * 2
    skips = [shapes[f"layer_{i}"]["skip_kernel"].shape[0] for i in range(1, 6)]
    assert skips == [2 * 4, 2 * 8, 3 * 8, 3 * 16, 3 * 16]
    assert "skip_kernel" not in shapes["layer_0"]
    search = shapes_of(MacroNetwork(EVERY, 4, "search"), 1, 8, 8, 3)
    assert {leaf.shape[-1] for name, tree in search.items() if name != "head"
            for leaf in jax.tree.leaves(tree)} == {4, 2}
    assert "bias" not in shapes["head"]


@pytest.mark.parametrize("layers, expected", [
    (1, ()), (2, ()), (3, (0, 1)), (12, (3, 7)), (24, (7, 15))])
def test_pool_layers(layers, expected):
    assert pool_layers(layers) == expected


@pytest.mark.parametrize("width", [1, 3, 5])
def test_layout(width):
    for layers in range(1, 30):
        length = len(num_choices(layers, (2,) * width))
        assert num_layers(length, width) == layers
        own, skips = positions(layers, width)
        places = np.concatenate([own.ravel(), skips[skips < length]])
        np.testing.assert_array_equal(np.sort(places), np.arange(length))
    arch = np.arange(length)
    for found, traced in zip(unpack(arch, layers, width), unpack(jnp.array(arch), layers, width)):
        np.testing.assert_array_equal(found, traced)
    wrong = [length for length in range(30) if width == 3 and length not in (3, 7, 12, 18, 25)]
    for length in wrong:
        with pytest.raises(ValueError, match="decisions for a number of layers"):
            num_layers(length, width)


@pytest.mark.parametrize("arch, message", [
    ([0, 0, 0], "must be a tuple"), ((0.0, 0, 0), "must be a tuple"), ((0, 0), "L of 1 or more"),
    ((0, 4, 0), r"arch\[1\] must be in \[0, 3\], got 4"), ((), "L of 1 or more"),
    ((0, 0, 0, 0, 0, 0, 2), r"arch\[6\] must be in \[0, 1\], got 2")])
def test_wrong_archs_are_named(arch, message):
    for check in (FilterNetwork, lambda arch: check_arch(arch, (4, 4, 4))):
        with pytest.raises(ValueError, match=message):
            check(arch)


@pytest.mark.parametrize("options", [
    {"features": 3}, {"form": "released"}, {"num_classes": 0}, {"dropout_rate": -0.1},
    {"method": "fft"}])
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MacroNetwork((0,), **options)


@pytest.mark.parametrize("network", [FilterNetwork((0, 0, 0)), MacroNetwork((0,), 2)])
def test_drop_path_is_refused(network):
    x = jnp.zeros((1, 4, 4, 3))
    with pytest.raises(ValueError, match="drop_path_rate must be 0"):
        network.init(jax.random.key(0), x, train=True, drop_path_rate=0.1)


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="divisible by 4"):
        shapes_of(MacroNetwork(EVERY, 4), 1, 6, 8, 3)
