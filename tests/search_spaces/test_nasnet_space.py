"""The cells of NASNet: size, archs by hand, random ones, the published cell."""

import math

import jax
import numpy as np
import pytest

from jaxnas import genotypes
from jaxnas.genotypes import CellGenotype, Edge, GenotypeError
from jaxnas.search_spaces.nasnet import OPERATIONS, NASNet

SPACE = NASNet()


def test_size_and_decisions():
    assert len(OPERATIONS) == 13
    assert SPACE.num_choices == sum(
        ((b + 2, b + 2, 13, 13, 1) for b in range(5)), ()) * 2 and len(SPACE.num_choices) == 50
    with_two_combiners = SPACE.size * 2 ** 10  # as the specification counts: 5.2e36
    assert with_two_combiners == math.prod(2 * ((b + 2) * 13) ** 2 for b in range(5)) ** 2
    assert f"{with_two_combiners:.1e}" == "5.2e+36"
    assert f"{math.isqrt(with_two_combiners):.1e}" == "2.3e+18"


def test_arch_by_hand():
    arch = np.zeros((2, 5, 5), np.int32)
    arch[0, 1] = 2, 1, 10, 4, 0  # block 1 reads block 0 and cell k-1
    genotype = SPACE.decode(arch.reshape(-1))
    assert genotype.space == "nasnet"
    assert genotype.normal.edges[2:4] == (Edge("sep_conv_3x3", 2), Edge("avg_pool_3x3", 1))
    assert genotype.normal.concat == (3, 4, 5, 6)  # 0, 1 and 2 are read
    assert genotype.reduction == CellGenotype((Edge("skip_connect", 0),) * 10, (1, 2, 3, 4, 5, 6))


def test_thousand_architectures():
    @jax.jit
    @jax.vmap
    def draw(key):
        sample_key, mutate_key = jax.random.split(key)
        arch = SPACE.sample(sample_key)
        child = SPACE.mutate(mutate_key, arch)
        return arch, child, SPACE.is_valid(arch) & SPACE.is_valid(child)

    archs, children, valid = map(np.asarray, draw(jax.random.split(jax.random.key(0), 1000)))
    assert valid.all() and archs.shape == (1000, 50)
    for arch in archs:
        genotype = SPACE.decode(arch)
        assert genotypes.from_json(genotypes.to_json(genotype)) == genotype
        np.testing.assert_array_equal(SPACE.encode(genotype), arch)
    changed = archs != children
    np.testing.assert_array_equal(changed.sum(-1), 1)
    per_decision = changed.reshape(1000, 10, 5).sum((0, 1))
    assert per_decision[4] == 0  # there is one combiner
    np.testing.assert_allclose(per_decision[:4], 250, atol=5 * (1000 * 3 / 16) ** 0.5)


def test_published_cell_in_this_space():
    genotype = genotypes.PUBLISHED["NASNET_A"]
    with pytest.raises(GenotypeError, match=r"normal\.concat.*ignore_concat=True"):
        SPACE.encode(genotype)
    again = SPACE.decode(SPACE.encode(genotype, ignore_concat=True))
    # What is published besides is read by blocks: cell k-2, and block 1 of the reduction cell.
    assert again.normal == CellGenotype(genotype.normal.edges, (2, 3, 4, 5, 6))
    assert again.reduction == CellGenotype(genotype.reduction.edges, (4, 5, 6))


def test_errors():
    for options in ({"num_blocks": 0}, {"num_blocks": 7}, {"num_blocks": 2.0}):
        with pytest.raises(ValueError, match=r"num_blocks must be in \[1, 6\]"):
            NASNet(**options)
    for names in ((), ("none",), ("skip_connect", "skip_connect"), ["skip_connect"]):
        with pytest.raises(ValueError, match="operations must be a tuple of distinct names"):
            NASNet(operations=names)
