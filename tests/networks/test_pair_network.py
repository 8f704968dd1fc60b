"""The fixed networks of NASNet, AmoebaNet, PNAS and ENAS micro: skeleton, training, options."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.genotypes import PUBLISHED, CellGenotype, Edge, Genotype
from jaxnas.networks.pair_cells import NASNET, STYLES, PairCell
from jaxnas.networks.pair_network import PairAuxiliaryHead, PairNetwork, scheduled_rate

KEY = jax.random.key(0)
POOLS = CellGenotype((Edge("max_pool_3x3", 0), Edge("avg_pool_3x3", 1)), (2,))
EDGES = {  # cheap to compile; test_pair_cells.py has the others
    "nasnet": (("conv_1x1", 0), ("max_pool_3x3", 1)),
    "amoebanet": (("conv_1x1", 1), ("skip_connect", 0)),
    "pnas": (("avg_pool_3x3", 1), ("skip_connect", 0)),
    "enas_micro": (("avg_pool_3x3", 0), ("skip_connect", 1)),
}  # fmt: skip


def _small(space, **options):
    edges = tuple(Edge(*edge) for edge in EDGES[space])
    cell = CellGenotype(edges, (2,) if space == "pnas" else (0, 2))
    options = {"features": 4, "cells_per_stage": 1, "num_classes": 5, "method": "conv"} | options
    return PairNetwork(Genotype(cell, cell, space), **options)


def _variables(module, *inputs):
    """Draw variables by NumPy: `init` would be one more program to compile."""
    shapes = jax.eval_shape(lambda: module.init(KEY, *inputs, train=False))
    numbers = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.ones(leaf.shape)
        return jnp.asarray(0.3 * numbers.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _check_training(network, size):
    """Gradients reach every parameter, statistics move, and each switch does what it says."""
    x = jax.random.normal(KEY, (6, *size, 3))
    variables = _variables(network, x)

    @jax.jit
    def run(params, rate):
        def loss(params):
            (logits, auxiliary), new = network.apply(
                variables | {"params": params}, x, train=True, drop_path_rate=rate,
                rngs={"drop_path": KEY, "dropout": KEY}, mutable=["batch_stats"])
            target = jnp.arange(30.0).reshape(6, 5) ** 2 % 7
            return ((logits + auxiliary - target) ** 2).sum(), (logits, auxiliary, new)
        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, (logits, auxiliary, new)), grads = run(variables["params"], 0.0)
    chex.assert_shape((logits, auxiliary), (6, 5))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.any(grad != 0), jax.tree_util.keystr(path)
    before, after = variables["batch_stats"], new["batch_stats"]
    chex.assert_trees_all_equal_shapes(before, after)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after)))
    assert not np.allclose(run(variables["params"], 0.3)[0][1][0], logits)

    evaluate = jax.jit(lambda x: network.apply(variables | new, x, train=False))
    logits, none = evaluate(x)
    assert none is None
    others = evaluate(x.at[3:].set(0.0))[0]  # what lies beside an image in a batch
    np.testing.assert_allclose(logits[:3], others[:3], rtol=1e-5, atol=1e-6)
    assert not np.allclose(logits[3:], others[3:])


@pytest.mark.parametrize("space", [
    name if name == "pnas" else pytest.param(name, marks=pytest.mark.slow)
    for name in ("nasnet", "amoebanet", "pnas", "enas_micro")])
def test_training(space):
    """On 21 x 20 pixels, halved to 11 x 10 and 6 x 5."""
    _check_training(_small(space, auxiliary=True, dropout=0.2), (21, 20))


@pytest.mark.slow
@pytest.mark.parametrize("name", [
    "NASNET_A", "AMOEBANET_A", "AMOEBANET_B", "AMOEBANET_C", "AMOEBANET_D", "PNASNET_5",
    "ENAS_MICRO"])
def test_training_of_published_cells(name):
    _check_training(
        PairNetwork(PUBLISHED[name], features=8, cells_per_stage=1, num_classes=5, auxiliary=True,
                    method="conv"), (20, 20))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["NASNET_A", "AMOEBANET_C", "PNASNET_5", "ENAS_MICRO"])
def test_shapes_of_training_on_imagenet(name):
    network = PairNetwork(
        PUBLISHED[name], features=12, cells_per_stage=2, num_classes=1000, stem="imagenet",
        auxiliary=True)

    def step(x):
        variables = network.init(KEY, x, train=False)
        return network.apply(
            variables, x, train=True, drop_path_rate=0.3, progress=0.5,
            rngs={"drop_path": KEY}, mutable=["batch_stats"])[0]

    x = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    chex.assert_shape(jax.eval_shape(step, x), (2, 1000))


def _final_map(network, size):
    shape = (size, size, 3)
    shapes = [network._stem("stem").output_shape(shape)]
    for number, placement in enumerate(network.placements()):
        previous = None if placement.previous is None else shapes[placement.previous]
        cell = network._cell(placement, f"cell_{number}")
        shapes.append(cell.output_shape(previous, shapes[-1]))
    return shapes[-1]


@pytest.mark.parametrize("name, features, size, expected", [
    ("NASNET_A", 32, 32, (8, 8, 768)), ("NASNET_A", 44, 224, (7, 7, 1056)),
    ("NASNET_A", 168, 331, (11, 11, 4032)), ("ENAS_MICRO", 36, 32, (8, 8, 720))])
def test_the_last_feature_map(name, features, size, expected):
    network = PairNetwork(PUBLISHED[name], None, features, stem=(
        "cifar" if size == 32 else "imagenet"))
    assert _final_map(network, size) == expected


def _layout(space, **options):
    network = _small(space, **options)
    cells = network.placements()
    widths = [cell.features for cell in cells]
    return "".join("NR"[cell.reduction] for cell in cells), widths, [c.previous for c in cells]


def test_where_the_cells_are():
    assert _layout("nasnet", cells_per_stage=2) == (
        "NNRNNRNN", [4, 4, 8, 8, 8, 16, 16, 16], [None, 0, 1, 2, 3, 4, 5, 6])
    assert _layout("pnas", cells_per_stage=2) == (
        "NNRNRN", [4, 4, 8, 8, 16, 16], [0, 0, 1, 2, 3, 4])
    assert _layout("enas_micro", cells_per_stage=2)[2][0] == 0  # the stem is both inputs
    assert _layout("amoebanet", features=10, stem="imagenet") == (
        "RRNRNRN", [2, 5, 10, 20, 20, 40, 40], [None, 0, 1, 2, 3, 4, 5])
    # After a reduction, its own first input instead of its second; the stem's cells are as ever.
    assert _layout("nasnet", cells_per_stage=2, stem="imagenet", skip_reduction_input=True)[2] == [
        None, 0, 1, 2, 3, 3, 5, 6, 6, 8]


def test_where_the_auxiliary_head_is():
    assert [_small(space, cells_per_stage=5).auxiliary_cell for space in STYLES] == [
        10, 10, 9, 12]  # before the second reduction, but ENAS's behind it


@pytest.mark.parametrize("version, expected", [
    ("v1", [0.2, 0.2, 0.2, 0.2]), ("v2", [0.1, 0.2, 0.3, 0.4]), ("v3", [0.05, 0.1, 0.15, 0.2])])
def test_scheduled_drop_path(version, expected):
    """Half the training of a network of 4 cells, final rate 0.4."""
    for progress in (0.5, jnp.float32(0.5)):
        rates = [scheduled_rate(version, 0.4, cell=cell, num_cells=4, progress=progress)
                 for cell in range(4)]
        np.testing.assert_allclose(rates, expected, rtol=1e-6)
    start, end = (scheduled_rate("v3", 0.4, cell=3, num_cells=4, progress=p) for p in (0.0, 7.0))
    assert (start, end) == (0, 0.4)
    with pytest.raises(ValueError, match="version must be one of"):
        scheduled_rate("v4", 0.4, cell=0, num_cells=4)


def test_each_cell_drops_at_its_own_rate():
    """What the second cell reads: of the first, dropped by the rate of time (v3) and of its depth.

    The 64 examples are one image; a first cell of pools keeps or drops each of its two operations.
    """
    x = jnp.ones((64, 1, 1, 1)) * jax.random.normal(KEY, (8, 8, 1))
    network = PairNetwork(Genotype(POOLS, POOLS, "nasnet"), features=2, cells_per_stage=1)
    variables = _variables(network, x)

    @jax.jit
    def run(progress, key):
        _, state = network.apply(
            variables, x, train=True, drop_path_rate=0.9, progress=progress,
            rngs={"drop_path": key}, mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: module.name == "cell_0")
        return state["intermediates"]["cell_0"]["__call__"][0][:, 0, 0, 0]

    whole = run(0.0, KEY)
    np.testing.assert_allclose(whole, whole[0], rtol=1e-5)
    keep = 1 - 0.9 / 5  # the first of 5 cells; of 2 operations, both survive with keep^2
    for key in jax.random.split(KEY, 4):
        found = run(1.0, key)
        kept = np.isclose(found, whole / keep, rtol=1e-4).mean()
        assert abs(kept - keep**2) < 4 * (keep**2 * (1 - keep**2) / 64) ** 0.5


def test_drop_path_spares_the_identity():
    x = jax.random.normal(KEY, (4, 8, 8, 2))
    for name, spared in (("skip_connect", True), ("max_pool_3x3", False)):
        genotype = CellGenotype((Edge(name, 0), Edge(name, 1)), (2,))
        cell = PairCell(genotype, 2, reduction=True)  # stride 2: the identity is a convolution
        variables = _variables(cell, x, x)
        run = jax.jit(lambda rate, cell=cell, variables=variables: cell.apply(
            variables, x, x, train=True, drop_path_rate=rate, rngs={"drop_path": KEY},
            mutable=["batch_stats"])[0])
        full, some = run(0.0), run(0.9)
        assert np.array_equal(full, some) == spared


def test_the_auxiliary_head_covers_the_whole_map():
    head = PairAuxiliaryHead(7, NASNET)
    x = jax.ShapeDtypeStruct((1, 14, 11, 6), jnp.float32)
    params = jax.eval_shape(lambda x: head.init(KEY, x, train=False), x)["params"]
    assert params["kernel_1"].shape == (4, 3, 128, 768)
    with pytest.raises(ValueError, match="5x5 or more, got 4x9"):
        head.cost((4, 9, 6))


def test_the_style_is_that_of_the_genotype_unless_given():
    for space, style in STYLES.items():
        assert _small(space).family == style
    assert _small("pnas", style=NASNET).family == NASNET
    assert PairNetwork(PUBLISHED["DARTS_V2"], NASNET).family == NASNET
    with pytest.raises(ValueError, match="style must be given .*'darts'"):
        PairNetwork(PUBLISHED["DARTS_V2"])


@pytest.mark.parametrize("change", [
    {"features": 1}, {"features": 3, "stem": "imagenet"}, {"cells_per_stage": 0},
    {"num_classes": 0}, {"stem": "mnist"}, {"stem_features": 0}, {"dropout": 1.0}])
def test_refuses(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        _small("nasnet", **change)


def test_refuses_what_is_no_batch_of_images():
    network = _small("nasnet")
    with pytest.raises(ValueError, match=r"x must be \[N, H, W, C\]"):
        jax.eval_shape(lambda: network.init(KEY, jnp.zeros((8, 8, 3)), train=False))
