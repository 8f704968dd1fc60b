"""The cells of PNAS: published and computed numbers of unique cells, expansion, PNASNet-5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import encodings, genotypes
from jaxnas.genotypes import CellGenotype, Genotype, GenotypeError
from jaxnas.search_spaces.pnas import OPERATIONS, PNAS

SPACE = PNAS()


def all_archs(space):
    return np.stack(np.unravel_index(np.arange(space.size), space.num_choices), -1).astype(np.int32)


def canonical_count(space, archs):
    unique = np.unique(encodings.words(jax.jit(jax.vmap(space.canonical))(archs),
                                       space.num_choices), axis=0)
    return len(unique)


def test_sizes_and_decisions():
    assert SPACE.size == 556_627_761_561_600
    blocks = [PNAS(num_blocks=b).size // (PNAS(num_blocks=b - 1).size if b > 1 else 1)
              for b in range(1, 6)]
    assert blocks == [256, 576, 1024, 1600, 2304]
    assert SPACE.num_choices == (2, 8, 2, 8, 3, 8, 3, 8, 4, 8, 4, 8, 5, 8, 5, 8, 6, 8, 6, 8)
    assert len(OPERATIONS) == 8


def test_136_unique_cells_of_one_block():
    space = PNAS(num_blocks=1)
    assert canonical_count(space, all_archs(space)) == 136 == 16 * 17 // 2


def test_31620_unique_cells_of_two_blocks():
    space = PNAS(num_blocks=2)
    archs = all_archs(space)
    assert len(archs) == 147_456
    assert canonical_count(space, archs) == 31_620
    # Halves exchanged only, blocks in their order: 136 * 24 * 25 / 2.
    rows = archs.reshape(-1, 2, 2, 2)
    codes = np.sort(rows[..., 0] * 8 + rows[..., 1], axis=-1).reshape(-1, 4)
    assert len(np.unique(codes, axis=0)) == 40_800 == 136 * 300


# What is the same by expression and by graph differs from three blocks on: a block that reads one
# of two equal blocks twice is another network than one that reads each once.
@pytest.mark.parametrize("num_blocks, num_operations, graphs, expressions", [
    (1, 2, 10, 10), (2, 2, 165, 165), (2, 3, 735, 735), (3, 1, 97, 94), (4, 1, 807, 738),
    (3, 2, 3_840, 3_810)])
def test_unique_cells_of_few_operations(num_blocks, num_operations, graphs, expressions):
    space = PNAS(num_blocks=num_blocks, operations=OPERATIONS[:num_operations])
    archs = all_archs(space)
    assert canonical_count(space, archs) == graphs
    assert len({space.expression(arch) for arch in archs}) == expressions


def test_37303_graphs_of_three_operations():
    space = PNAS(num_blocks=3, operations=OPERATIONS[:3])
    canonical = np.asarray(jax.jit(jax.vmap(space.canonical))(all_archs(space)))
    unique = np.unique(canonical, axis=0)
    assert len(unique) == 37_303
    assert len({space.expression(arch) for arch in unique}) == 37_177


def test_expansion_makes_all_cells_of_the_next_space():
    small, large = (PNAS(num_blocks=b, operations=OPERATIONS[:2]) for b in (1, 2))
    expanded = jax.jit(small.expand)(all_archs(small))
    assert expanded.shape == (16, 36, 8) and expanded.dtype == jnp.int32
    np.testing.assert_array_equal(
        np.unique(expanded.reshape(-1, 8), axis=0), np.unique(all_archs(large), axis=0))
    assert [PNAS(num_blocks=b).num_expansions for b in range(1, 5)] == [576, 1024, 1600, 2304]


def test_thousand_architectures():
    @jax.jit
    @jax.vmap
    def draw(key):
        sample_key, mutate_key = jax.random.split(key)
        arch = SPACE.sample(sample_key)
        child = SPACE.mutate(mutate_key, arch)
        return arch, child, SPACE.is_valid(arch) & SPACE.is_valid(child)

    archs, children, valid = map(np.asarray, draw(jax.random.split(jax.random.key(0), 1000)))
    assert valid.all() and archs.shape == (1000, 20)
    for arch in archs:
        genotype = SPACE.decode(arch)
        assert genotype.normal == genotype.reduction and genotype.space == "pnas"
        assert genotypes.from_json(genotypes.to_json(genotype)) == genotype
        np.testing.assert_array_equal(SPACE.encode(genotype), arch)
    np.testing.assert_array_equal((archs != children).sum(-1), 1)


def test_unread_inputs_are_not_concatenated():
    arch = np.zeros(20, np.int32)
    arch[4] = 2  # block 1 reads block 0
    assert SPACE.decode(arch).normal.concat == (3, 4, 5, 6)  # neither 1, which nobody reads


def test_pnasnet_5():
    genotype = genotypes.PUBLISHED["PNASNET_5"]
    with pytest.raises(GenotypeError, match="ignore_concat=True"):  # it has block 2, which is read
        SPACE.encode(genotype)
    again = SPACE.decode(SPACE.encode(genotype, ignore_concat=True))
    assert again.normal == CellGenotype(genotype.normal.edges, (2, 3, 5, 6))
    other = Genotype(again.normal, again.normal._replace(edges=again.normal.edges[::-1][-2:]
                                                         + again.normal.edges[2:]), "pnas")
    with pytest.raises(GenotypeError, match="one cell for both strides"):
        SPACE.encode(other)
