"""The fixed network: the parameter counts of the published cells, its head and its options."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.genotypes import PUBLISHED, CellGenotype, Edge, Genotype, GenotypeError
from jaxnas.networks.network import Network

KEY = jax.random.key(0)
# C = 36, L = 20, 10 classes; the same with affine BN after pooling; ImageNet form, C = 48, L = 14.
TABLE = {
    "DARTS_V1": (3_169_414, 3_171_574, 4_510_432),
    "DARTS_V2": (3_349_342, 3_351_502, 4_718_752),
    "PC_DARTS_CIFAR": (3_634_678, 3_638_134, 5_270_560),
    "PC_DARTS_IMAGENET": (3_721_510, 3_721_942, 5_342_464),
    "P_DARTS": (3_433_798, 3_434_662, 4_944_352),
    "DRNAS_CIFAR10": (4_099_294, 4_099_726, 5_738_464),
    "DRNAS_IMAGENET": (4_048_750, 4_049_182, 5_726_368),
    "DARTS_MINUS": (3_454_318, 3_455_182, 4_860_256),
    "GDAS_V1": (3_368_782, 3_368_782, 4_969_216),
    "NASNET_A_DARTS": (3_830_950, 3_841_750, 5_564_320),
    "AMOEBANET_A_DARTS": (3_145_078, 3_159_334, 4_627_360),
    "PT_DARTS_CIFAR10": (2_833_750, 2_835_910, None),
}
IMAGENET = {"features": 48, "layers": 14, "num_classes": 1000, "stem": "imagenet"}
SKIPS = CellGenotype(tuple(Edge("skip_connect", source) for source in (0, 1)), (2,))
POOLS = CellGenotype(tuple(Edge("max_pool_3x3", source) for source in (0, 1)), (2,))


def _init(network, shape):
    return jax.eval_shape(lambda: network.init(KEY, jnp.zeros(shape), train=False))


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _count(name, size=32, **options):
    return _size(_init(Network(PUBLISHED[name], **options), (1, size, size, 3))["params"])


@pytest.mark.slow  # two minutes for all twelve on two busy cores; DARTS_V2 is always run
@pytest.mark.parametrize("name", TABLE)
def test_cifar_parameter_counts(name):
    params = _init(Network(PUBLISHED[name], auxiliary=True), (1, 32, 32, 3))["params"]
    head = _size(params["auxiliary_head"])
    wide = len(PUBLISHED[name].reduction.concat)
    assert head == {4: 476_426, 3: 457_994}[wide]
    assert _size(params) - head == TABLE[name][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_pool_norm_parameter_counts(name):
    assert _count(name, pool_norm="affine") == TABLE[name][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row[2]])
def test_imagenet_parameter_counts(name):
    assert _count(name, 224, **IMAGENET) == TABLE[name][2]


def test_darts_v2_in_all_forms():
    """One row of the slow tests."""
    assert _count("DARTS_V2") == TABLE["DARTS_V2"][0]
    assert _count("DARTS_V2", pool_norm="affine") == TABLE["DARTS_V2"][1]
    assert _count("DARTS_V2", 224, **IMAGENET) == TABLE["DARTS_V2"][2]


def test_outputs_and_gradients_are_finite():
    mixed = CellGenotype((Edge("sep_conv_3x3", 0), Edge("max_pool_3x3", 1)), (2,))
    network = Network(Genotype(mixed, mixed), 2, 2, 5, auxiliary=True)
    x = jax.random.normal(KEY, (4, 24, 24, 1))
    variables = jax.jit(functools.partial(network.init, train=False))(KEY, x)

    @jax.jit
    def run(params, rate):
        (logits, auxiliary), new = network.apply(
            variables | {"params": params}, x, train=True, drop_path_rate=rate,
            rngs={"drop_path": KEY}, mutable=["batch_stats"])
        return (logits**2).sum() + (auxiliary**2).sum(), (logits, auxiliary, new)

    grads, (logits, auxiliary, new) = jax.grad(run, has_aux=True)(variables["params"], 0.3)
    chex.assert_shape((logits, auxiliary), (4, 5))
    chex.assert_trees_all_equal_shapes(new["batch_stats"], variables["batch_stats"])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert not np.allclose(run(variables["params"], 0.0)[1][0], logits)
    evaluate = functools.partial(network.apply, train=False)
    assert jax.eval_shape(evaluate, variables, x)[1] is None


@pytest.mark.parametrize("stem, size", [("cifar", 28), ("cifar", 32), ("imagenet", 224)])
def test_auxiliary_head_fits_the_usual_images(stem, size):
    network = Network(Genotype(SKIPS, SKIPS), 2, 3, auxiliary=True, stem=stem)
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    outputs = jax.eval_shape(lambda x: network.init_with_output(KEY, x, train=True)[0], x)
    chex.assert_shape(outputs, (2, 10))


def test_too_small_for_the_auxiliary_head():
    network = Network(PUBLISHED["DARTS_V2"], 2, 3, auxiliary=True)
    with pytest.raises(ValueError, match="24x24 or more.*auxiliary=False"):
        _init(network, (1, 20, 20, 3))


def test_drop_path_spares_the_identity():
    """In a cell of identities it changes nothing, in a cell of pools it does."""
    x = jax.random.normal(KEY, (4, 8, 8, 1))
    for cell, same in ((SKIPS, True), (POOLS, False)):
        network = Network(Genotype(cell, cell), 2, 3)
        variables = jax.jit(functools.partial(network.init, train=False))(KEY, x)
        run = jax.jit(functools.partial(
            network.apply, train=True, drop_path_rate=0.5, mutable=["batch_stats"]))
        rngs = [{"drop_path": jax.random.key(seed)} for seed in (1, 2)]
        a, b = (run(variables, x, rngs=r)[1]["batch_stats"]["cell_1"] for r in rngs)
        # cell_1 is a reduction: its preprocessing sees what the normal cell_0 put out
        equal = np.array_equal(a["preprocess_1"]["norm"]["mean"], b["preprocess_1"]["norm"]["mean"])
        assert equal == same


@pytest.mark.parametrize("change", [
    {"features": 3}, {"layers": 0}, {"num_classes": 0}, {"stem": "mnist"}, {"pool_norm": "x"}])
def test_refuses(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Network(PUBLISHED["DARTS_V2"], **change)


def test_refuses_images_that_cannot_be_halved():
    with pytest.raises(ValueError, match="divisible by 4"):
        _init(Network(PUBLISHED["DARTS_V2"], 2, 3), (1, 30, 30, 3))


@pytest.mark.parametrize("genotype", [PUBLISHED["NASNET_A"], Genotype(SKIPS, SKIPS, "enas_micro"),
                                      Genotype(SKIPS, SKIPS, "mine")])
def test_refuses_cells_of_other_spaces(genotype):
    with pytest.raises(GenotypeError, match="must be of the space 'darts', got .*PairNetwork"):
        Network(genotype)
    with pytest.raises(GenotypeError):
        Network(None)
