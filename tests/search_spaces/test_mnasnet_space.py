"""The factorised hierarchical space of MnasNet, and what its networks cost."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.networks.mobile_grid import MobileGrid, small_images
from jaxnas.networks.mobile_stages import PUBLISHED
from jaxnas.search_spaces import mnasnet_costs
from jaxnas.search_spaces.mnasnet import WORDS, MnasNet

SPACE = MnasNet()
# Widths and depths that agree after rounding, and first layers that may have a skip.
NARROW = MnasNet(MobileGrid((2, 2, 1), (1, 2, 1), (1, 1, 1), stem_filters=2, stem_stride=1,
                            head_filters=4))
SPACES = {"imagenet": SPACE, "small": MnasNet(small_images()), "narrow": NARROW}
# The published B1, A1 and small, in millions of multiply-adds at 224 pixels.
MULTIPLY_ADDS = {"MNASNET_B1": 314.4, "MNASNET_A1": 311.6, "MNASNET_SMALL": 68.3}


@pytest.fixture(scope="module")
def drawn():
    """Samples, mutations, crossovers and canonical forms of 1,000 keys in one vmap, by label."""

    def draw(space, key):
        keys = jax.random.split(key, 4)
        first, second = space.sample(keys[0]), space.sample(keys[1])
        archs = jnp.stack([first, space.mutate(keys[2], first),
                           space.crossover(keys[3], first, second), second])
        canonical = jax.vmap(space.canonical)(archs)
        return archs, jax.vmap(space.is_valid)(archs), canonical, jax.vmap(space.canonical)(
            canonical)

    keys = jax.random.split(jax.random.key(0), 1000)
    return {label: jax.device_get(jax.jit(jax.vmap(lambda key: draw(space, key)))(keys))
            for label, space in SPACES.items()}


def test_size():
    assert SPACE.num_choices == (4, 2, 2, 3, 3, 3) * 7 and SPACE.name == "mnasnet"
    assert SPACE.size == 432 ** 7 and f"{SPACE.size:.1e}" == "2.8e+18"


@pytest.mark.parametrize("label", SPACES)
def test_thousand_draws(label, drawn):
    space, (archs, valid, canonical, again) = SPACES[label], drawn[label]
    assert archs.dtype == canonical.dtype == np.int32 and valid.all()
    assert archs.shape == canonical.shape == (1000, 4, len(space.num_choices))
    sample, child, mixed, other = archs.swapaxes(0, 1)
    np.testing.assert_array_equal((sample != child).sum(-1), 1)
    assert ((mixed == sample) | (mixed == other)).all()
    np.testing.assert_array_equal(canonical, again)
    assert (canonical <= archs).all()  # decision by decision, hence smallest


@pytest.mark.parametrize("label", SPACES)
def test_thousand_texts(label, drawn):
    space = SPACES[label]
    archs = drawn[label][0][:, 0]
    texts = [space.decode(arch) for arch in archs]
    np.testing.assert_array_equal([space.encode(text) for text in texts], archs)
    assert len(set(texts)) == len(np.unique(archs, axis=0))


@pytest.mark.parametrize("label", SPACES)
def test_canonical_arches_are_the_same_network(label, drawn):
    """Equal canonical forms are equal networks: the same stages, but for skips that never are."""

    def meaning(space, arch):
        inputs, stages = space.grid.stem_filters, []
        for stage in space.model(arch).stages:
            skips = stage.repeats > 1 or (stage.stride == 1 and stage.filters == inputs)
            stages.append(stage if skips else stage._replace(skip="pool"))
            inputs = stage.filters
        return tuple(stages)

    space, (archs, _, canonical, _) = SPACES[label], drawn[label]
    pairs = {(meaning(space, arch), tuple(smallest))
             for arch, smallest in zip(archs[:, :2].reshape(2000, -1),
                                       canonical[:, :2].reshape(2000, -1).tolist())}
    assert len({first for first, _ in pairs}) == len({second for _, second in pairs}) == len(pairs)
    assert all(meaning(space, second) == first for first, second in list(pairs)[:300])


def test_canonical_by_hand():
    """Widths 2, 2, 3 (1.5 and 2 both are 2), depths 1, 2, 1 for a base of 1."""
    def canonical(*stages):
        arch = np.array(stages, np.int32).reshape(-1)
        return np.asarray(NARROW.canonical(jnp.asarray(arch))).reshape(3, 6).tolist()

    # 2 -> 2 of stride 1 has a skip; 2 -> 3 twice has one; 3 -> 1 once has none.
    assert canonical([0, 0, 0, 2, 1, 2], [3, 1, 1, 1, 2, 0], [1, 0, 1, 2, 1, 2]) == [
        [0, 0, 0, 2, 0, 0], [3, 1, 1, 1, 2, 0], [1, 0, 1, 0, 0, 0]]


def test_validity():
    archs = np.zeros((4, 42), np.int32)
    archs[1, 0], archs[2, 41], archs[3] = 4, -1, 1
    np.testing.assert_array_equal(jax.vmap(SPACE.is_valid)(archs), [True, False, False, True])


def test_text_by_hand():
    arch = np.array([1, 0, 0, 2, 1, 0] + [3, 1, 1, 1, 2, 1] * 6)
    text = "mbconv1_k3_se0_none_x1_n+0" + "|mbconv6_k5_se0.25_identity_x1.25_n+1" * 6
    assert SPACE.decode(arch) == text
    stages = SPACE.model(arch).stages
    assert [stage.filters for stage in stages] == [16, 30, 40, 80, 120, 200, 400]
    assert [stage.repeats for stage in stages] == [1, 3, 4, 5, 4, 4, 2]
    assert stages[6][:4] == ("mbconv", 5, 1, 6) and stages[6][6:] == (0.25, "identity")


@pytest.mark.parametrize("text, message", [
    ("conv_k3_se0_pool_x1_n+0", "7 stages with '|' between, got 1"),
    ("|" * 6, "stage 0 must be 6 words"),
    ("|".join(["conv_k3_se0_pool_x1_n+0"] * 6 + ["conv_k3_se0_pool_x1"]), "stage 6 must be 6"),
    ("|".join(["conv_k7_se0_pool_x1_n+0"] * 7), "kernel of stage 0 must be one of"),
    ("|".join(["conv_k3_se0_pool_x1_n0"] * 7), "layers of stage 0"),
    ("|".join(["conv_k3_se0_pool_x1_n+0"] * 6 + ["Conv_k3_se0_pool_x1_n+0"]), "operation of st"),
    (42, "must be text")])
def test_wrong_texts(text, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        SPACE.encode(text)


def test_wrong_archs():
    for read in (SPACE.decode, SPACE.model, SPACE.grid.model):
        with pytest.raises(ValueError, match="arch must be 42 integers, got"):
            read(np.zeros(41, np.int32))
        with pytest.raises(ValueError, match=r"arch\[3\] must be in \[0, 2\], got 3"):
            read(np.eye(42, dtype=np.int32)[3] * 3)


@pytest.mark.parametrize("options, message", [
    ({"filters": (8,)}, "one length"), ({"filters": (), "layers": (), "strides": ()}, "1 or more"),
    ({"filters": (0,), "layers": (1,), "strides": (1,)}, "filters must be integers"),
    ({"filters": (8,), "layers": (0,), "strides": (1,)}, "layers must be integers"),
    ({"filters": (8,), "layers": (1,), "strides": (3,)}, "strides must be 1 or 2"),
    ({"stem_filters": 0}, "stem_filters"), ({"stem_stride": 4}, "stem_stride"),
    ({"head_filters": 0}, "head_filters")])
def test_wrong_grids(options, message):
    with pytest.raises(ValueError, match=message):
        MobileGrid(**options)


def test_words_are_one_way_to_write_a_decision():
    assert tuple(map(len, WORDS)) * 7 == SPACE.num_choices
    assert all(len(set(words)) == len(words) for words in WORDS)


def test_costs_of_the_published_networks():
    for name, millions in MULTIPLY_ADDS.items():
        costs = mnasnet_costs.model_costs(PUBLISHED[name])
        assert round(costs.multiply_adds / 1e6, 1) == millions
    assert mnasnet_costs.model_costs(PUBLISHED["MNASNET_A1"]).parameters == 3_887_038
    assert mnasnet_costs.model_costs(PUBLISHED["MNASNET_B1"]).parameters == 4_383_312
    assert mnasnet_costs.model_costs(PUBLISHED["MNASNET_SMALL"]).parameters == 2_030_264


def _built(network, size):
    """Count parameters and multiply-adds from the shapes of a built network's arrays."""
    x = jnp.zeros((1, size, size, 3))
    outputs = jax.eval_shape(lambda: network.init_with_output(
        jax.random.key(0), x, train=False, capture_intermediates=True, mutable=True))[1]
    params = outputs["params"]
    multiply_adds = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "kernel":  # of a convolution or a dense layer, by its output's size
            node = outputs["intermediates"]
            for step in path[:-1]:
                node = node[step.key]
            shape = node["__call__"][0].shape
            multiply_adds += leaf.size * int(np.prod(shape[1:3] if len(shape) == 4 else 1))
    return sum(a.size for a in jax.tree.leaves(params)), multiply_adds


@pytest.mark.parametrize("label, size, count", [
    ("imagenet", 224, 6), pytest.param("small", 28, 9, marks=pytest.mark.slow),
    pytest.param("narrow", 7, 35, marks=pytest.mark.slow)])
def test_costs_of_built_networks(label, size, count, drawn):
    """50 random architectures, of shapes only."""
    space, archs = SPACES[label], drawn[label][0][:count, 0]
    built = [_built(space.network(arch, method="conv"), size) for arch in archs]
    expected = np.array(built).T
    costs = mnasnet_costs.grid_costs(space.grid, archs, image_size=size)
    assert costs.parameters.dtype == np.int64
    np.testing.assert_array_equal(costs, expected)


@pytest.mark.parametrize("label", SPACES)
def test_costs_in_three_ways(label, drawn):
    """The table on the host, the table under jit and vmap, and the sum over decoded stages."""
    space, archs = SPACES[label], drawn[label][0][:, 0]
    options = {"num_classes": 10, "image_size": 33, "channels": 1}
    table = mnasnet_costs.grid_costs(space.grid, archs, **options)
    traced = jax.jit(jax.vmap(chex.assert_max_traces(
        lambda arch: mnasnet_costs.grid_costs(space.grid, arch, **options), n=1)))(archs)
    assert traced.parameters.dtype == jnp.int32
    chex.assert_trees_all_equal(tuple(table), tuple(map(np.int64, traced)))
    for arch, *costs in zip(archs[:100], *table):
        assert mnasnet_costs.model_costs(space.model(arch), **options) == tuple(costs)
    np.testing.assert_array_equal(
        space.num_parameters(archs, num_classes=10, channels=1), table.parameters)
    np.testing.assert_array_equal(space.multiply_adds(archs, **options), table.multiply_adds)


def test_costs_that_do_not_fit():
    archs = np.full((1, 42), 1, np.int32)
    assert SPACE.multiply_adds(archs, image_size=2240) > 0
    with pytest.raises(ValueError, match="more than an int32 holds"):
        SPACE.multiply_adds(jnp.asarray(archs), image_size=2240)
    for name in ("num_classes", "image_size", "channels"):
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
            mnasnet_costs.model_costs(PUBLISHED["MNASNET_A1"], **{name: 0})
    with pytest.raises(ValueError, match=r"archs must be \[..., 42\]"):
        mnasnet_costs.grid_costs(SPACE.grid, archs[:, :-1])
