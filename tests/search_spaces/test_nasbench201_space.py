"""The cells of NAS-Bench-201: published counts, parameters and strings."""

import itertools
from importlib import resources

import jax
import numpy as np
import pytest
from scipy import stats

from jaxnas.search_spaces import NASBench201
from jaxnas.search_spaces.nasbench201 import EDGES, OPERATIONS, equivalence_classes

SPACE = NASBench201()
TABLE = resources.files("jaxnas.data") / "files" / "nasbench201.npz"
EXAMPLE = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1" \
    "|skip_connect~2|"
RESNET = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
DEEP = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1" \
    "|nor_conv_1x1~2|"


@pytest.fixture(scope="module")
def all_archs():
    return np.array(list(itertools.product(range(5), repeat=6)), np.int32)


def cell_function(arch, x):
    """Run the cell on numbers, with a different nonlinear function for every operation."""
    nodes = [x]
    for target in (1, 2, 3):
        total = np.zeros_like(x)
        for operation, (source, edge_target) in zip(arch, EDGES):
            if edge_target == target:
                value = nodes[source]
                total = total + (0 * value, value, np.tanh(1.3 * value), np.sin(2.1 * value),
                                 0.7 * value ** 2)[operation]
        nodes.append(total)
    return nodes[3]


@pytest.mark.parametrize("rule, count", [("skip", 12_751), ("zero", 6_466), ("sum", 5_390)])
def test_published_numbers_of_unique_cells(rule, count, all_archs):
    classes = equivalence_classes(rule)
    assert classes.shape == (15_625,) and classes.dtype == np.int32 and not classes.flags.writeable
    assert len(np.unique(classes)) == count
    np.testing.assert_array_equal(classes[classes], classes)  # a representative is in its class
    assert (classes <= np.arange(15_625)).all()               # and the smallest of it


def test_cells_of_a_class_are_the_same_function(all_archs):
    values = np.stack([cell_function(arch, np.array([0.31, -0.83, 1.7])) for arch in all_archs])
    for rule in ("skip", "zero", "sum"):
        np.testing.assert_allclose(
            values, values[equivalence_classes(rule)], rtol=1e-12, atol=1e-12)


def test_canonical_of_all_cells(all_archs):
    canonical = np.asarray(jax.jit(jax.vmap(SPACE.canonical))(all_archs))
    np.testing.assert_array_equal(canonical, all_archs[equivalence_classes("zero")])
    assert len(np.unique(canonical, axis=0)) == 6_466 and SPACE.size == 15_625


@pytest.mark.parametrize("first, second", [
    # node 1 is the input: edges 0-2 and 1-2 change places, and so do 0-3 and 1-3
    ([1, 2, 3, 4, 0, 2], [1, 3, 2, 0, 4, 2]),
    # node 1 is zero: what leaves it does not matter
    ([0, 2, 1, 3, 4, 2], [0, 2, 3, 3, 0, 2])])
def test_isomorphic_by_hand(first, second):
    np.testing.assert_array_equal(SPACE.canonical(np.array(first)),
                                  SPACE.canonical(np.array(second)))


def test_connected_cells(all_archs):
    connected = np.asarray(SPACE.is_connected(all_archs))
    assert connected.sum() == 15_284
    matrices = np.zeros((15_625, 4, 4), int)
    matrices[:, [s for s, _ in EDGES], [t for _, t in EDGES]] = all_archs != 0
    paths = np.linalg.matrix_power(np.eye(4, dtype=int) + matrices, 3)
    np.testing.assert_array_equal(connected, paths[:, 0, 3] > 0)


@pytest.mark.parametrize("text, counts", [
    ("+".join("|" + "|".join(f"nor_conv_3x3~{i}" for i in range(n)) + "|" for n in (1, 2, 3)),
     (1_531_546, 1_537_396, 1_538_696)),
    ("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", (73_306, 79_156, 80_456)),
    ("|skip_connect~0|+|avg_pool_3x3~0|none~1|+|none~0|none~1|avg_pool_3x3~2|",
     (73_306, 79_156, 80_456)),
    (DEEP, (1_073_466,)), (RESNET, (559_386,)), (EXAMPLE, (802_426,))])
def test_published_numbers_of_parameters(text, counts):
    arch = SPACE.encode(text)
    for num_classes, count in zip((10, 100, 120), counts):
        assert SPACE.num_parameters(arch, num_classes=num_classes) == count


def test_flops_by_the_linear_rule_of_the_benchmark(all_archs):
    one, three = ((all_archs == OPERATIONS.index(name)).sum(-1)
                  for name in ("nor_conv_1x1", "nor_conv_3x3"))
    cifar = SPACE.flops(all_archs)
    np.testing.assert_allclose(cifar / 1e6, 7.78305 + 3.93216 * one + 35.38944 * three, rtol=1e-12)
    imagenet = SPACE.flops(all_archs, num_classes=120, image_size=16)
    # a quarter of the area, and a head of 120 classes: (7.78305e6 - 650) / 4 + 65 * 120
    np.testing.assert_allclose(
        imagenet / 1e6, 1.9534 + 0.98304 * one + 8.84736 * three, rtol=1e-12)
    traced = jax.jit(SPACE.flops)(all_archs)
    np.testing.assert_array_equal(traced, cifar)


def test_parameters_and_flops_of_the_shipped_table():
    if not TABLE.is_file():
        pytest.skip("the table is not shipped")
    with TABLE.open("rb") as file, np.load(file, allow_pickle=False) as table:
        archs = table["ops"].astype(np.int32)
        for data, classes, size in (("c10", 10, 32), ("c100", 100, 32), ("im", 120, 16)):
            if f"{data}_params" in table:
                np.testing.assert_array_equal(
                    SPACE.num_parameters(archs, num_classes=classes), table[f"{data}_params"])
            if f"{data}_flops_m" in table:
                np.testing.assert_allclose(
                    SPACE.flops(archs, num_classes=classes, image_size=size) / 1e6,
                    table[f"{data}_flops_m"], rtol=1e-6)


def test_strings():
    np.testing.assert_array_equal(SPACE.encode(EXAMPLE), [3, 3, 4, 1, 3, 1])
    assert SPACE.decode(np.array([3, 3, 4, 1, 3, 1])) == EXAMPLE


@pytest.mark.parametrize("mutation, shares", [
    ("edge", [1 / 6] * 6), ("node", [1 / 3, 1 / 6, 1 / 6, 1 / 9, 1 / 9, 1 / 9])])
def test_mutation_frequencies(mutation, shares):
    space, parent = NASBench201(mutation=mutation), np.array([0, 1, 2, 3, 4, 0], np.int32)
    children = np.asarray(jax.jit(jax.vmap(lambda key: space.mutate(key, parent)))(
        jax.random.split(jax.random.key(0), 9000)))
    edge = (children != parent).argmax(-1)
    counts = np.zeros((6, 5))
    np.add.at(counts, (edge, children[np.arange(9000), edge]), 1)
    assert (counts[np.arange(6), parent] == 0).all()
    expected = np.repeat(np.array(shares)[:, None] * 9000 / 4, 4, axis=1).reshape(-1)
    observed = counts[np.arange(5) != parent[:, None]]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("text, message", [
    (EXAMPLE.replace("+", ""), "3 nodes"), (EXAMPLE + "+|none~0|", "3 nodes"),
    (EXAMPLE.replace("|nor_conv_3x3~0|+", "nor_conv_3x3~0+", 1), "node 1 must be 1 edges"),
    (EXAMPLE.replace("+|nor_conv_3x3~0|", "+|", 1), "node 2 must be 2 edges"),
    (EXAMPLE.replace("avg_pool", "max_pool"), "edge 1 of node 2 .* 'max_pool_3x3~1'"),
    (EXAMPLE.replace("avg_pool_3x3~1", "avg_pool_3x3~0"), "then '~1', got 'avg_pool_3x3~0'"),
    (EXAMPLE.replace("avg_pool_3x3~1", "avg_pool_3x3"), "edge 1 of node 2"),
    (EXAMPLE.replace("~2|", "~02|"), "edge 2 of node 3"), (EXAMPLE.replace("~1", "~ 1"), "edge 1")])
def test_wrong_strings(text, message):
    with pytest.raises(ValueError, match=message):
        SPACE.encode(text)


def test_errors():
    with pytest.raises(ValueError, match="mutation must be one of"):
        NASBench201(mutation="vertex")
    with pytest.raises(ValueError, match="rule must be one of"):
        equivalence_classes("none")
    with pytest.raises(ValueError, match="multiple of 4"):
        SPACE.flops(np.zeros(6, np.int32), image_size=30)
