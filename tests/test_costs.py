"""Costs by closed form: every published count of the cell families, and the built networks."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from jax import extend

from jaxnas.costs import Cost, cost, count_parameters, layer_by_layer
from jaxnas.genotypes import PUBLISHED, CellGenotype, Edge, Genotype
from jaxnas.networks.network import Network
from jaxnas.networks.pair_cells import STYLES, style_operation
from jaxnas.networks.pair_network import PairNetwork


def _cifar(name, features, count, classes=10):
    return PairNetwork(PUBLISHED[name], None, features, count, classes), 32


def _imagenet(name, features, count, classes, size, wide=32):
    options = {"stem": "imagenet", "stem_features": wide}
    return PairNetwork(PUBLISHED[name], None, features, count, classes, **options), size


# (network, image size), parameters, multiply-adds in millions where they are known, to these digits
ANCHORS = {
    "nasnet_a_cifar": (_cifar("NASNET_A", 32, 6), 3_346_538, "544.3"),
    "nasnet_a_cifar100": (_cifar("NASNET_A", 32, 6, 100), 3_415_748, "544.4"),
    "nasnet_a_search_child": (_cifar("NASNET_A", 32, 2), 1_294_698, "232.2"),
    "nasnet_a_n4": (_cifar("NASNET_A", 32, 4), 2_320_618, "388.3"),
    "nasnet_a_mobile": (_imagenet("NASNET_A", 44, 4, 1000, 224), 5_289_978, "563.6"),
    "nasnet_a_mobile_1001": (_imagenet("NASNET_A", 44, 4, 1001, 224), 5_291_035, "563.6"),
    "nasnet_a_large": (_imagenet("NASNET_A", 168, 6, 1000, 331, 96), 88_753_150, "23783"),
    "amoebanet_a_search_child": (_cifar("AMOEBANET_A", 24, 3), 843_322, None),
    "amoebanet_a_24": (_cifar("AMOEBANET_A", 24, 6), 1_486_426, "237.7"),
    "amoebanet_a_32": (_cifar("AMOEBANET_A", 32, 6), 2_567_754, "407.7"),
    "amoebanet_a_36": (_cifar("AMOEBANET_A", 36, 6), 3_218_266, "509.7"),
    "amoebanet_a_128": (_cifar("AMOEBANET_A", 128, 6), 38_392_074, None),
    "amoebanet_b_24": (_cifar("AMOEBANET_B", 24, 6), 1_286_770, None),
    "amoebanet_b_32": (_cifar("AMOEBANET_B", 32, 6), 2_254_378, None),
    "amoebanet_b_36": (_cifar("AMOEBANET_B", 36, 6), 2_839_186, None),
    "amoebanet_b_128": (_cifar("AMOEBANET_B", 128, 6), 34_874_506, None),
    "amoebanet_c_24": (_cifar("AMOEBANET_C", 24, 6), 1_826_770, None),
    "amoebanet_c_32": (_cifar("AMOEBANET_C", 32, 6), 3_169_898, None),
    "amoebanet_c_36": (_cifar("AMOEBANET_C", 36, 6), 3_979_126, None),
    "amoebanet_c_128": (_cifar("AMOEBANET_C", 128, 6), 47_921_546, None),
    "amoebanet_d_24": (_cifar("AMOEBANET_D", 24, 6), 1_065_370, None),
    "amoebanet_d_32": (_cifar("AMOEBANET_D", 32, 6), 1_882_890, None),
    "amoebanet_d_36": (_cifar("AMOEBANET_D", 36, 6), 2_378_350, None),
    "amoebanet_d_128": (_cifar("AMOEBANET_D", 128, 6), 29_726_730, None),
    "amoebanet_a_mobile": (_imagenet("AMOEBANET_A", 50, 4, 1001, 224), 5_087_699, "554.6"),
    "amoebanet_a_large": (_imagenet("AMOEBANET_A", 190, 6, 1001, 331), 86_721_806, "23133"),
    "amoebanet_a_448": (_imagenet("AMOEBANET_A", 448, 6, 1001, 331), 468_158_353, None),
    "amoebanet_b_mobile": (_imagenet("AMOEBANET_B", 62, 3, 1001, 224), 5_259_661, "555.0"),
    "amoebanet_c_mobile": (_imagenet("AMOEBANET_C", 50, 4, 1001, 224), 6_354_759, None),
    "amoebanet_c_large": (_imagenet("AMOEBANET_C", 228, 6, 1001, 331), 155_277_171, "41129"),
    "pnasnet_5_cifar": (_cifar("PNASNET_5", 48, 3), 3_176_602, None),
    "pnasnet_5_mobile": (_imagenet("PNASNET_5", 54, 3, 1001, 224), 5_065_568, None),
    "pnasnet_5_large": (_imagenet("PNASNET_5", 216, 4, 1001, 331, 96), 86_061_989, None),
    "enas_micro_final": (_cifar("ENAS_MICRO", 36, 5), 3_894_372, "620.9"),
    "enas_micro_32": (_cifar("ENAS_MICRO", 32, 5), 3_116_192, None),
    "enas_micro_20": (_cifar("ENAS_MICRO", 20, 5), 1_299_860, None),
    "enas_micro_36_6": (_cifar("ENAS_MICRO", 36, 2), 1_815_372, None),
    "enas_micro_20_6": (_cifar("ENAS_MICRO", 20, 2), 608_540, None),
}  # fmt: skip
AUXILIARY = {
    "nasnet_a_cifar": 1_631_498, "nasnet_a_cifar100": 1_700_708,
    "nasnet_a_search_child": 1_631_498, "nasnet_a_mobile": 2_411_240,
    "nasnet_a_mobile_1001": 2_412_009, "nasnet_a_large": 4_567_784, "enas_micro_final": 494_848,
}  # fmt: skip
DARTS = {  # parameters in CIFAR form, C = 36, L = 20, and in ImageNet form, C = 48, L = 14
    "DARTS_V1": (3_169_414, 4_510_432), "DARTS_V2": (3_349_342, 4_718_752),
    "PC_DARTS_CIFAR": (3_634_678, 5_270_560), "PC_DARTS_IMAGENET": (3_721_510, 5_342_464),
    "P_DARTS": (3_433_798, 4_944_352), "DRNAS_CIFAR10": (4_099_294, 5_738_464),
    "DRNAS_IMAGENET": (4_048_750, 5_726_368), "DARTS_MINUS": (3_454_318, 4_860_256),
    "GDAS_V1": (3_368_782, 4_969_216), "NASNET_A_DARTS": (3_830_950, 5_564_320),
    "AMOEBANET_A_DARTS": (3_145_078, 4_627_360),
}  # fmt: skip


def _cells(name):
    """Return the parameters of every cell."""
    (network, size), totals = ANCHORS[name][0], {}
    for path, found in layer_by_layer(network, (size, size, 3)):
        cell = path.split("/")[0]
        totals[cell] = totals.get(cell, 0) + found.parameters
    return [totals[f"cell_{number}"] for number in range(len(network.placements()))]


@pytest.mark.parametrize("name", ANCHORS)
def test_published_counts(name):
    (network, size), parameters, millions = ANCHORS[name]
    found = cost(network, (size, size, 3))
    assert found.parameters == parameters
    if millions is not None:
        digits = len(millions.partition(".")[2])
        assert f"{found.multiply_adds / 1e6:.{digits}f}" == millions


@pytest.mark.parametrize("name", AUXILIARY)
def test_auxiliary_heads(name):
    network, size = ANCHORS[name][0]
    layers = dict(layer_by_layer(network.clone(auxiliary=True), (size, size, 3)))
    assert layers["auxiliary_head"].parameters == AUXILIARY[name]


@pytest.mark.slow  # a minute and a half; smaller networks are always compared
@pytest.mark.parametrize("name", ANCHORS)
def test_published_counts_of_the_built_networks(name):
    (network, size), parameters, _ = ANCHORS[name]
    assert count_parameters(network, (size, size, 3)) == parameters


def test_cells_one_by_one():
    """Where a mismatch would begin."""
    cells = _cells("nasnet_a_cifar")
    assert cells[:2] == [40_384, 25_152] and set(cells[2:6]) == {28_224}
    assert cells[6:9] == [87_168, 81_024, 93_312] and set(cells[9:13]) == {101_504}
    cells = _cells("amoebanet_a_36")
    assert (cells[0], cells[5], cells[6]) == (33_768, 25_200, 87_732)


def test_concatenating_loose_ends_only_is_another_network():
    """The wrong build of NASNet-A that this catches has 3,076,906 parameters."""
    genotype = PUBLISHED["NASNET_A"]
    normal = genotype.normal._replace(concat=(2, 3, 4, 5, 6))
    reduction = genotype.reduction._replace(concat=(4, 5, 6))
    loose = genotype._replace(normal=normal, reduction=reduction)
    assert cost(PairNetwork(loose)).parameters == 3_076_906


@pytest.mark.parametrize("name", DARTS)
def test_networks_of_darts(name):
    cifar, imagenet = Network(PUBLISHED[name]), Network(PUBLISHED[name], 48, 14, 1000)
    assert cost(cifar).parameters == DARTS[name][0]
    assert cost(imagenet.clone(stem="imagenet"), (224, 224, 3)).parameters == DARTS[name][1]


def test_options_of_darts():
    genotype = PUBLISHED["DARTS_V2"]
    assert cost(Network(genotype, pool_norm="affine")).parameters == 3_351_502
    with_head = cost(Network(genotype, auxiliary=True)).parameters
    assert with_head == DARTS["DARTS_V2"][0] + 476_426


def _multiply_adds(jaxpr):
    """Count those of the products and convolutions in a traced program."""
    total = 0
    for equation in jaxpr.eqns:
        name, options = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            left, right = (variable.aval.shape for variable in equation.invars)
            taps = math.prod(right) // right[-1]  # a convolution's kernel is H W I O
            if name == "dot_general":
                (contracted, _), _ = options["dimension_numbers"]
                taps = math.prod(left[axis] for axis in contracted)
            total += taps * math.prod(equation.outvars[0].aval.shape)
        for inner in extend.core.jaxprs_in_params(options):
            total += _multiply_adds(inner)
    return total


@pytest.mark.parametrize("network, size", [
    (Network(PUBLISHED["DARTS_V2"], 4, 3, method="conv"), 32),
    (Network(PUBLISHED["AMOEBANET_A_DARTS"], 4, 3, method="conv", stem="imagenet"), 96),
    *((PairNetwork(
        PUBLISHED[name], dataclasses.replace(STYLES[PUBLISHED[name].space], padding="symmetric"),
        16, 1, method="conv", stem="imagenet"), 75)
      for name in ("NASNET_A", "AMOEBANET_A", "AMOEBANET_B", "PNASNET_5", "ENAS_MICRO")),
])
def test_multiply_adds_of_the_built_networks(network, size):
    """Of the traced program; "same" padding would have it compute some pixels that it drops."""
    shape = (size, size, 3)
    x = jax.ShapeDtypeStruct((1, *shape), np.float32)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), x)
    program = jax.make_jaxpr(lambda v, x: network.apply(v, x, train=False))(variables, x)
    assert _multiply_adds(program.jaxpr) == cost(network, shape).multiply_adds


OPERATIONS = sorted({
    edge.operation for name in ("NASNET_A", "AMOEBANET_A", "AMOEBANET_B", "ENAS_MICRO")
    for cell in PUBLISHED[name][:2] for edge in cell.edges
} | {"dil_conv_3x3", "conv_1x3_3x1", "dil_sep_conv_3x3", "max_pool_7x7"})


@pytest.mark.parametrize("space", STYLES)
def test_closed_form_is_what_every_operation_has(space):
    """All operations at stride 1 and 2, of the input's width and of another, odd sizes."""
    x = jax.ShapeDtypeStruct((1, 7, 9, 6), np.float32)
    for name in OPERATIONS:
        for features, stride in ((6, 1), (9, 2)):
            operation = style_operation(name, STYLES[space], features, stride, channels=6)
            y, variables = jax.eval_shape(
                lambda x: operation.init_with_output(jax.random.key(0), x, train=False), x)
            size = sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", {})))
            assert operation.cost((7, 9, 6)).parameters == size, (name, features, stride)
            assert operation.output_shape((7, 9, 6)) == y.shape[1:], (name, features, stride)


def test_multiply_adds_by_hand():
    """1x7 then 7x1 of stride 2 in AmoebaNet, 8 channels through 2, on a 6 x 6 image."""
    operation = style_operation("conv_1x7_7x1", STYLES["amoebanet"], 8, 2, channels=8)
    wide, row, column, out = 36 * 8 * 2, 18 * 7 * 2 * 2, 9 * 7 * 2 * 2, 9 * 2 * 8
    norms = 2 * (2 + 2 + 2 + 8)
    assert operation.cost((6, 6, 8)) == Cost(
        8 * 2 + 14 * 2 * 2 + 2 * 8 + norms, wide + row + column + out)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", ["NASNET_A", "AMOEBANET_C", "PNASNET_5", "ENAS_MICRO"])
def test_closed_form_is_what_the_network_has(name, stem):
    """The smallest network that has every kind of cell, at odd widths and sizes."""
    size = 41 if stem == "cifar" else 331
    network = PairNetwork(
        PUBLISHED[name], None, 22, 1, 7, auxiliary=True, stem=stem)
    shape = (size, size, 3)
    assert cost(network, shape).parameters == count_parameters(network, shape)


def test_other_networks_and_shapes_are_refused():
    cell = CellGenotype((Edge("skip_connect", 0), Edge("skip_connect", 1)), (2,))
    with pytest.raises(ValueError, match="height, width, channels"):
        cost(Network(Genotype(cell, cell), 2, 3), (32, 32))
    with pytest.raises(ValueError, match="larger images"):
        cost(PairNetwork(PUBLISHED["NASNET_A"], stem="imagenet"), (2, 2, 3))
