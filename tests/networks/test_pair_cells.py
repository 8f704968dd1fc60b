"""The cells of NASNet, AmoebaNet, PNAS and ENAS: what their styles differ in, hand-made values."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.genotypes import PUBLISHED, CellGenotype, Edge
from jaxnas.networks.operations import (OPERATIONS, Conv, DilConv, FactorizedReduce, Identity,
                                        ReLUConvBN)
from jaxnas.networks.pair_cells import (AMOEBANET, ENAS_MICRO, NASNET, PNAS, STYLES, CellStyle,
                                        PairCell, style_operation)

KEY = jax.random.key(0)


def _cell(*edges, concat):
    return CellGenotype(tuple(Edge(name, source) for name, source in edges), concat)


def _apply(module, x):
    """Evaluate with fresh running statistics: BN divides by sqrt(1 + epsilon) only."""
    variables = jax.eval_shape(lambda: module.init(KEY, x, train=False))
    statistics = {"mean": jnp.zeros, "var": jnp.ones}
    stats = jax.tree_util.tree_map_with_path(
        lambda path, leaf: statistics[path[-1].key](leaf.shape), variables["batch_stats"])
    ones = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (jnp.zeros if path[-1].key == "bias" else jnp.ones)(leaf.shape),
        variables["params"])
    return module.apply({"params": ones, "batch_stats": stats}, x, train=False)


@pytest.mark.parametrize("height, width", [(4, 6), (5, 4), (5, 7)])
def test_factorized_reduction_sees_every_second_pixel_and_those_between(height, width):
    """Path 1 begins at pixel (0, 0), path 2 at (1, 1); beyond the end there is zero."""
    x = np.arange(1.0, 1 + height * width, dtype=np.float32).reshape(1, height, width, 1)
    beyond = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
    expected = np.concatenate([x[:, ::2, ::2], beyond[:, ::2, ::2]], -1)
    y = _apply(FactorizedReduce(2, uneven="split", epsilon=0.0), x)
    np.testing.assert_allclose(y, expected)
    assert y.shape[1:3] == (-(-height // 2), -(-width // 2))
    if height % 2 == width % 2 == 0:  # then it is that of DARTS
        np.testing.assert_allclose(_apply(FactorizedReduce(2, epsilon=0.0), x), expected)


@pytest.mark.parametrize("uneven, channels", [("split", [1, 10, 10]), ("zero", [1, 10, 0])])
def test_odd_features_of_a_factorized_reduction(uneven, channels):
    x = jnp.array([[[[1.0], [0.0]], [[0.0], [10.0]]]])  # pixels (0, 0) and (1, 1) of a 2 x 2 image
    reduce = FactorizedReduce(3, uneven=uneven, epsilon=0.0)
    np.testing.assert_allclose(_apply(reduce, x)[0, 0, 0], channels)


def test_relu_of_the_projections():
    x = jnp.full((1, 2, 2, 1), -1.0)
    for kind in (ReLUConvBN, functools.partial(FactorizedReduce, uneven="split")):
        assert np.all(_apply(kind(2), x) == 0)
        assert np.all(_apply(kind(2, rectify=False), x) < 0)


@pytest.mark.parametrize("style, kind", [
    (NASNET, ReLUConvBN), (AMOEBANET, ReLUConvBN), (PNAS, ReLUConvBN),
    (ENAS_MICRO, FactorizedReduce)])
def test_the_identity_where_the_size_changes(style, kind):
    halved = style_operation("skip_connect", style, 4, 2, channels=4)
    assert isinstance(halved, kind)
    assert isinstance(style_operation("skip_connect", style, 4, channels=4), Identity)
    assert isinstance(style_operation("skip_connect", style, 4, channels=6), ReLUConvBN)
    # TensorFlow's 1x1 windows of stride 2 begin at pixel (0, 0); ENAS's identity has no ReLU
    x = np.arange(-8.0, 8, dtype=np.float32).reshape(1, 4, 4, 1)
    one = style_operation("skip_connect", style, 1, 2, channels=1, epsilon=0.0)
    expected = np.maximum(x[:, ::2, ::2], 0) if kind is ReLUConvBN else x[:, 1::2, 1::2]
    np.testing.assert_allclose(_apply(one, x), expected)


def test_dense_convolutions_have_a_bottleneck_in_amoebanet_only():
    x = jax.ShapeDtypeStruct((1, 6, 6, 16), np.float32)
    kernels = {
        "conv_3x3": [(3, 3, 4, 4)], "dil_conv_3x3": [(3, 3, 4, 4)],
        "conv_1x7_7x1": [(1, 7, 4, 4), (7, 1, 4, 4)], "conv_1x3_3x1": [(1, 3, 6, 6), (3, 1, 6, 6)],
    }
    for name, inner in kernels.items():
        operation = style_operation(name, AMOEBANET, 16, channels=16)
        width = inner[0][-1]
        params = jax.eval_shape(lambda x: operation.init(KEY, x, train=False), x)["params"]
        shapes = [leaf.shape for key, leaf in params.items() if "kernel" in key]
        assert sorted(shapes) == sorted([(1, 1, 16, width), *inner, (1, 1, width, 16)])
        assert sum("norm" in key for key in params) == len(shapes)
        plain = style_operation(name, NASNET, 16, channels=16)
        assert isinstance(plain, Conv) and plain.bottleneck == 0
    assert style_operation("conv_1x1", AMOEBANET, 16, channels=16).bottleneck == 0
    assert style_operation("conv_3x3", AMOEBANET, 3, channels=3).bottleneck == 0  # 3 // 4 is none


def test_dilation():
    assert style_operation("dil_conv_3x3", NASNET, 4, channels=4).dilation == 2
    separable = dataclasses.replace(NASNET, dense_dilation=False)
    assert isinstance(style_operation("dil_conv_3x3", separable, 4, channels=4), DilConv)
    released = dataclasses.replace(AMOEBANET, separable_dilation=1)
    for style, dilation in ((AMOEBANET, 2), (released, 1)):
        assert style_operation("dil_sep_conv_5x5", style, 4, channels=4).dilation == dilation
    # one pixel reaches 2 x 2 pixels away in both convolutions of a dilated 3x3 pair
    x = jnp.zeros((1, 11, 11, 1)).at[0, 5, 5, 0].set(1.0)
    y = _apply(OPERATIONS["dil_sep_conv_3x3"](1), x)[0, :, :, 0] != 0
    np.testing.assert_array_equal(np.flatnonzero(y[5]), [1, 3, 5, 7, 9])


def test_momentum_epsilon_padding_and_initialiser_arrive():
    cell = PairCell(
        PUBLISHED["AMOEBANET_B"].reduction, 8, ENAS_MICRO, True, "data", "conv", 0.7, 0.2)
    parts = cell.parts((8, 8, 4), (4, 4, 4))
    layers = [*parts.inputs[0], *parts.inputs[1], *parts.edges, *filter(None, parts.outputs)]
    for layer in layers:
        assert (layer.momentum, layer.epsilon, layer.axis_name) == (0.7, 0.2, "data")
        assert (layer.padding, layer.initializer, layer.method) == ("same", "fan_in", "conv")


@pytest.mark.parametrize("previous, kinds", [
    (None, [1]), ((4, 4, 8), [0, 1]), ((4, 4, 6), [1, 1]), ((8, 8, 8), [1, 1])])
def test_how_the_inputs_are_brought_to_width(previous, kinds):
    """NASNet leaves a first input alone that fits or stands in; the second always passes a 1x1."""
    genotype = _cell(("skip_connect", 0), ("skip_connect", 1), concat=(2,))
    first, second = PairCell(genotype, 8).parts(previous, (4, 4, 6)).inputs
    assert [len(first), len(second)] == ([0, *kinds] if previous is None else kinds)
    if first:
        assert isinstance(first[0], ReLUConvBN if previous[:2] == (4, 4) else FactorizedReduce)
    first, second = PairCell(genotype, 8, ENAS_MICRO).parts(previous, (4, 4, 6)).inputs
    assert len(second) == 2  # once to width, once more
    assert len(PairCell(genotype, 8, ENAS_MICRO).parts(previous, (4, 4, 8)).inputs[1]) == 1


def test_inputs_in_the_concatenation():
    """Of another size: halved; of another width: projected; both without ReLU; else untouched."""
    genotype = _cell(("avg_pool_3x3", 0), ("avg_pool_3x3", 1), concat=(0, 1, 2))
    reduction = PairCell(genotype, 8, reduction=True).parts(None, (5, 5, 6))
    assert [type(layer) for layer in reduction.outputs] == [
        FactorizedReduce, FactorizedReduce, type(None)]
    normal = PairCell(genotype, 8).parts(None, (5, 5, 6))
    assert [type(layer) for layer in normal.outputs] == [ReLUConvBN, type(None), type(None)]
    assert not any(layer.rectify for layer in (*reduction.outputs, *normal.outputs) if layer)
    assert PairCell(genotype, 8, reduction=True).output_shape(None, (5, 5, 6)) == (3, 3, 24)


def test_a_cell_by_hand():
    """Two nodes of pools and identities, all channels 1 wide, BN switched off."""
    genotype = _cell(
        ("max_pool_3x3", 0), ("skip_connect", 1), ("avg_pool_3x3", 2), ("skip_connect", 2),
        concat=(0, 3))
    previous, current = jnp.abs(jax.random.normal(KEY, (2, 2, 4, 4, 1)))
    cell = PairCell(genotype, 1, epsilon=0.0)
    stats = {"mean": jnp.zeros(1), "var": jnp.ones(1)}
    params = {"kernel": jnp.full((1, 1), 2.0), "norm": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}}
    variables = {
        "params": {"current_0": params}, "batch_stats": {"current_0": {"norm": stats}}}
    y = cell.apply(variables, previous, current, train=False)

    def windows(x, reduce):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=np.nan)
        return np.stack([
            [[reduce(image[i:i + 3, j:j + 3]) for j in range(4)] for i in range(4)]
            for image in padded])[..., None]

    node = windows(previous, np.nanmax) + 2 * np.asarray(current)
    expected = np.concatenate([previous, windows(node, np.nanmean) + node], -1)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


SMALL = {  # what each family alone has, on both inputs and on a node
    "nasnet": (("sep_conv_5x5", 0), ("max_pool_5x5", 1), ("conv_1x7_7x1", 2), ("dil_conv_3x3", 1)),
    "amoebanet": (
        ("dil_sep_conv_3x3", 0), ("conv_3x3", 1), ("max_pool_2x2", 2), ("conv_1x7_7x1", 0)),
    "pnas": (("sep_conv_7x7", 0), ("avg_pool_3x3", 1), ("skip_connect", 0), ("conv_3x3", 2)),
    "enas_micro": (
        ("sep_conv_3x3", 0), ("avg_pool_3x3", 1), ("skip_connect", 0), ("skip_connect", 1)),
}  # fmt: skip


@pytest.mark.parametrize("space", SMALL)
def test_gradients_reach_every_parameter(space):
    """Of a reduction cell that reads a map twice as large, and concatenates it."""
    cell = PairCell(_cell(*SMALL[space], concat=(0, 2, 3)), 8, STYLES[space], True, method="conv")
    previous, current = jax.random.normal(KEY, (2, 9, 9, 6)), jax.random.normal(KEY, (2, 5, 5, 12))
    shapes = jax.eval_shape(lambda: cell.init(KEY, previous, current, train=False))
    numbers = np.random.default_rng(0)
    params, stats = (
        jax.tree.map(lambda leaf: jnp.asarray(numbers.normal(size=leaf.shape), jnp.float32),
                     shapes[name]) for name in ("params", "batch_stats"))

    @jax.jit
    @jax.grad
    def gradients(params):
        y, _ = cell.apply({"params": params, "batch_stats": stats}, previous, current, train=True,
                          mutable=["batch_stats"])
        return jnp.sum(y**3)

    for path, grad in jax.tree_util.tree_leaves_with_path(gradients(params)):
        assert np.isfinite(grad).all() and np.any(grad != 0), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name, features, previous, current, expected", [
    ("NASNET_A", 32, None, 96, 40_384), ("NASNET_A", 32, 96, 192, 25_152),
    ("NASNET_A", 32, 192, 192, 28_224), ("AMOEBANET_A", 36, None, 108, 33_768),
    ("AMOEBANET_A", 36, 144, 144, 25_200)])
def test_parameters_of_single_cells(name, features, previous, current, expected):
    cell = PairCell(PUBLISHED[name].normal, features, STYLES[PUBLISHED[name].space])
    inputs = [None if channels is None else jnp.zeros((1, 4, 4, channels))
              for channels in (previous, current)]
    params = jax.eval_shape(lambda: cell.init(KEY, *inputs, train=False))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize("change", [
    {"identity": "x"}, {"uneven": "x"}, {"padding": "valid"}, {"initializer": "x"},
    {"drop_path": "v4"}, {"stem_twice": ("mnist",)}, {"separable_dilation": 0}])
def test_styles_refuse(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        CellStyle(**change)


def test_operations_refuse():
    with pytest.raises(ValueError, match="operation must be one of"):
        style_operation("none", NASNET, 4, channels=4)
    with pytest.raises(ValueError, match="uneven must be one of"):
        FactorizedReduce(4, uneven=True)
