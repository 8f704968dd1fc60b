"""The DARTS space: derivation, encoding, sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import genotypes
from jaxnas.genotypes import GenotypeError
from jaxnas.networks.mixed import edge_index
from jaxnas.search_spaces import DARTS

SPACE = DARTS()
IN_SPACE = ("DARTS_V1", "DARTS_V2", "PC_DARTS_CIFAR", "P_DARTS", "DRNAS_CIFAR10", "GDAS_V1")


def alphas_for(arch):
    """Alphas whose derivation is `arch`: the first edge of a node a little stronger."""
    alphas = np.zeros(SPACE.alphas_shape, np.float32)
    for cell, rows in enumerate(np.asarray(arch).reshape(2, -1, 2)):
        for row, (operation, source) in enumerate(rows):
            alphas[cell, edge_index(row // 2, source), 1 + operation] = 6 - row % 2
    return jnp.asarray(alphas)


def test_shapes_and_size():
    assert SPACE.alphas_shape == (2, 14, 8)
    assert SPACE.size == 1_037_664_180
    alphas = SPACE.init_alphas(jax.random.key(0))
    assert alphas.shape == (2, 14, 8) and 5e-4 < float(alphas.std()) < 2e-3
    np.testing.assert_allclose(SPACE.weights(alphas).sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(SPACE.weights(jnp.zeros((2, 14, 8))), 1 / 8)


@pytest.mark.parametrize("name", IN_SPACE)
def test_derivation_gives_back_published_cells(name):
    genotype = genotypes.PUBLISHED[name]
    arch = SPACE.encode(genotype)
    assert SPACE.decode(arch) == genotype
    derived = jax.jit(SPACE.discretize)(alphas_for(arch))
    assert SPACE.decode(derived) == genotype


def test_softmax_and_raw_derivation_differ():
    # Edge from state 0 of node 1: all alphas high, none dominant; from state 1: one dominant.
    alphas = jnp.zeros(SPACE.alphas_shape)
    alphas = alphas.at[:, edge_index(1, 0)].set(jnp.array([11, 11, 11, 11, 15, 11, 11, 11.0]))
    alphas = alphas.at[:, edge_index(1, 1)].set(jnp.array([1, 1, 1, 1, 5, 1, 1, 1.0]))
    alphas = alphas.at[:, edge_index(1, 2)].set(jnp.array([20, 19, 19, 19, 19, 19, 19, 19.0]))
    soft = SPACE.discretize(alphas).reshape(2, -1, 2)[0, 2:4]
    raw = SPACE.discretize(alphas, selection="raw").reshape(2, -1, 2)[0, 2:4]
    # softmax: edges 0 and 1 tie at 0.886 of one operation (lower source first), 2 is flat;
    # raw: edge 2 has the largest alphas, though no operation stands out on it.
    np.testing.assert_array_equal(soft, [[3, 0], [3, 1]])
    np.testing.assert_array_equal(raw, [[0, 2], [3, 0]])


def test_none_counts_for_the_edge_but_is_never_chosen():
    alphas = jnp.zeros(SPACE.alphas_shape).at[..., 0].set(9.0)
    alphas = alphas.at[:, edge_index(2, 3), 0].set(0.0)  # this edge alone has little none
    rows = SPACE.discretize(alphas).reshape(2, 4, 2, 2)
    np.testing.assert_array_equal(rows[:, 2, 0, 1], 3)
    assert "none" not in {e.operation for e in SPACE.decode(rows.reshape(-1)).normal.edges}


def test_thousand_random_architectures_round_trip():
    archs = np.asarray(jax.vmap(SPACE.sample)(jax.random.split(jax.random.key(1), 1000)))
    assert archs.shape == (1000, 32) and archs.dtype == np.int32
    for arch in archs:
        np.testing.assert_array_equal(SPACE.encode(SPACE.decode(arch)), arch)
    derived = jax.vmap(SPACE.discretize)(jnp.stack([alphas_for(a) for a in archs[:50]]))
    np.testing.assert_array_equal(derived, archs[:50])
    rows = archs.reshape(1000, 2, 4, 2, 2)
    assert (rows[..., 0, 1] != rows[..., 1, 1]).all()
    counts = np.bincount(rows[..., 0].reshape(-1), minlength=7)
    # 16,000 uniform draws over 7: standard deviation 44
    assert np.abs(counts - 16000 / 7).max() < 5 * 44
    for node in range(4):  # each of the node + 2 sources is one of the two equally often
        share = np.bincount(rows[:, :, node, :, 1].reshape(-1), minlength=node + 2) / 4000
        np.testing.assert_allclose(share, 1 / (node + 2), atol=5 * 0.5 / 4000**0.5)


def test_errors():
    with pytest.raises(GenotypeError, match="32 integers"):
        SPACE.decode(np.zeros(31, np.int32))
    with pytest.raises(GenotypeError, match=r"\[0, 6\]"):
        SPACE.decode(np.full(32, 7, np.int32))
    with pytest.raises(GenotypeError, match="nodes"):
        SPACE.encode(genotypes.PUBLISHED["NASNET_A"])
    with pytest.raises(GenotypeError, match="sep_conv_3x3"):
        DARTS(operations=("none", "skip_connect")).encode(genotypes.PUBLISHED["DARTS_V2"])
    with pytest.raises(ValueError, match="selection"):
        SPACE.discretize(jnp.zeros((2, 14, 8)), selection="hard")
    with pytest.raises(ValueError, match="alphas"):
        SPACE.discretize(jnp.zeros((14, 8)))
    for options in ({"operations": ("none",)}, {"operations": ("skip_connect", "conv")},
                    {"num_nodes": 0}):
        with pytest.raises(ValueError):
            DARTS(**options)
