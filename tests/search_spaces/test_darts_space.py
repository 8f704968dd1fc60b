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
        genotype = SPACE.decode(arch)
        assert genotypes.from_json(genotypes.to_json(genotype)) == genotype
        np.testing.assert_array_equal(SPACE.encode(genotype), arch)
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


def test_mutation_is_uniform_over_what_can_change():
    parent = SPACE.sample(jax.random.key(0))
    mutate = jax.jit(jax.vmap(SPACE.mutate, (0, None)))
    children = mutate(jax.random.split(jax.random.key(1), 14_000), parent)
    assert jax.jit(jax.vmap(SPACE.is_valid))(children).all()
    changed = np.asarray(children) != np.asarray(parent)
    np.testing.assert_array_equal(changed.sum(-1), 1)
    # 16 operations and the 12 sources of nodes 1 to 3 can change; 500 each, deviation 22
    free = np.tile([True, False, True, False] + [True] * 12, 2)
    assert not changed[:, ~free].any()
    assert np.abs(changed[:, free].sum(0) - 500).max() < 5 * 22
    for position in np.flatnonzero(free):
        values = np.asarray(children)[changed[:, position], position]
        node, is_source = position % 16 // 4, position % 2
        seen, counts = np.unique(values, return_counts=True)
        expected = set(range(node + 2 if is_source else 7)) - {int(parent[position])}
        if is_source:
            expected -= {int(parent[position ^ 2])}
        assert set(seen.tolist()) == expected
        assert np.abs(counts - len(values) / len(seen)).max() < 5 * len(values) ** 0.5


def test_crossover_keeps_the_sources_of_a_node_together():
    first, second = jax.vmap(SPACE.sample)(jax.random.split(jax.random.key(3), 2))
    cross = jax.jit(jax.vmap(SPACE.crossover, (0, None, None)))
    children = cross(jax.random.split(jax.random.key(4), 1000), first, second)
    assert jax.jit(jax.vmap(SPACE.is_valid))(children).all()
    sources = np.asarray(children).reshape(1000, 8, 2, 2)[..., 1]
    parents = np.stack([first, second]).reshape(2, 1, 8, 2, 2)[..., 1]
    assert (sources == parents).all(-1).any(0).all()
    differ = np.asarray(first) != np.asarray(second)
    share = (np.asarray(children) == np.asarray(first))[:, differ].mean(0)
    np.testing.assert_allclose(share, 0.5, atol=5 * 0.5 / 1000 ** 0.5)


def test_canonical_forgets_the_order_of_edges_and_of_independent_nodes():
    genotype = genotypes.PUBLISHED["DARTS_V2"]

    def reordered(cell):  # edges exchanged; nodes 0 and 1, which read inputs only, change places
        edges = [cell.edges[i] for i in (3, 2, 1, 0, 5, 4, 7, 6)]
        renamed = {2: 3, 3: 2}
        return cell._replace(edges=tuple(
            edge._replace(source=renamed.get(edge.source, edge.source)) for edge in edges))

    other = genotypes.Genotype(reordered(genotype.normal), genotype.reduction)
    archs = jnp.stack([SPACE.encode(genotype), SPACE.encode(other)])
    assert (archs[0] != archs[1]).any()
    canonical = jax.jit(jax.vmap(SPACE.canonical))(archs)
    np.testing.assert_array_equal(canonical[0], canonical[1])
    with pytest.raises(ValueError, match="at most 6 blocks"):
        space = DARTS(num_nodes=7)
        space.canonical(jnp.zeros(space.num_decisions, jnp.int32))


def test_small_spaces_are_counted_by_the_canonical_form():
    space = DARTS(num_nodes=2, operations=("none", "skip_connect", "max_pool_3x3"))
    archs = np.stack(np.unravel_index(np.arange(np.prod(space.num_choices[:8])),
                                      space.num_choices[:8]), -1)
    archs = np.concatenate([archs, archs], -1).astype(np.int32)
    canonical, valid = jax.jit(jax.vmap(lambda a: (space.canonical(a), space.is_valid(a))))(archs)
    unordered = 4 * 12  # cells with the edges of a node unordered: 1 * 4 and 3 * 4
    # Nodes that both read 0 and 1 may change places: 16 ordered pairs of nodes are 10.
    assert len(np.unique(np.asarray(canonical)[valid], axis=0)) == unordered - 16 + 10
    assert space.size == unordered


def test_errors():
    with pytest.raises(GenotypeError, match="32 integers"):
        SPACE.decode(np.zeros(31, np.int32))
    with pytest.raises(GenotypeError, match=r"\[0, 6\]"):
        SPACE.decode(np.full(32, 7, np.int32))
    with pytest.raises(GenotypeError, match="sources of node 0 must differ, got 0 twice"):
        SPACE.decode(np.zeros(32, np.int32))
    with pytest.raises(GenotypeError, match="space must be 'darts'"):
        SPACE.encode(genotypes.PUBLISHED["NASNET_A"])
    with pytest.raises(GenotypeError, match="nodes"):
        SPACE.encode(genotypes.PUBLISHED["NASNET_A_DARTS"])
    with pytest.raises(ValueError, match="two choices"):
        space = DARTS(num_nodes=1, operations=("skip_connect",))
        space.mutate(jax.random.key(0), jnp.array([0, 0, 0, 1] * 2))
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
