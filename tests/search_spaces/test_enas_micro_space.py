"""The micro space of ENAS: size, archs by hand, random ones, the released architecture."""

import jax
import numpy as np

from jaxnas import genotypes
from jaxnas.genotypes import CellGenotype, Edge
from jaxnas.search_spaces.enas_micro import ENASMicro

SPACE = ENASMicro()
# (idx1 op1 idx2 op2) x 5, twice: scripts/cifar10_micro_final.sh
RELEASED = np.array("0 2 0 0 0 4 0 1 0 4 1 1 1 0 0 1 0 2 1 1 "
                    "1 0 1 0 0 3 0 2 1 1 3 1 1 0 0 4 0 3 1 1".split(), np.int32)


def test_size_and_decisions():
    assert SPACE.num_choices == sum(((b + 2, 5, b + 2, 5) for b in range(5)), ()) * 2
    assert f"{SPACE.size:.2e}" == "2.56e+25" and f"{SPACE.size ** 0.5:.2e}" == "5.06e+12"


def test_released_architecture():
    genotype = SPACE.decode(RELEASED)
    assert genotype == genotypes.PUBLISHED["ENAS_MICRO"]
    np.testing.assert_array_equal(SPACE.encode(genotype), RELEASED)
    # All blocks of the normal cell are loose ends; in the reduction cell state 3 is consumed.
    assert genotype.normal.concat == (2, 3, 4, 5, 6)
    assert genotype.reduction.concat == (2, 4, 5, 6)


def test_unread_inputs_are_loose_ends():
    arch = np.zeros(40, np.int32)
    arch[[0, 2, 4, 6, 8, 10, 12, 14, 16, 18]] = [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]  # a chain from k-1
    cell = SPACE.decode(arch).normal
    assert cell == CellGenotype(
        tuple(Edge("sep_conv_3x3", i) for i in (1, 1, 2, 2, 3, 3, 4, 4, 5, 5)), (0, 6))


def test_thousand_architectures():
    @jax.jit
    @jax.vmap
    def draw(key):
        sample_key, mutate_key = jax.random.split(key)
        arch = SPACE.sample(sample_key)
        child = SPACE.mutate(mutate_key, arch)
        return arch, child, SPACE.is_valid(arch) & SPACE.is_valid(child)

    archs, children, valid = map(np.asarray, draw(jax.random.split(jax.random.key(0), 1000)))
    assert valid.all() and archs.shape == (1000, 40)
    for arch in archs:
        genotype = SPACE.decode(arch)
        assert genotypes.from_json(genotypes.to_json(genotype)) == genotype
        np.testing.assert_array_equal(SPACE.encode(genotype), arch)
    changed = archs != children
    np.testing.assert_array_equal(changed.sum(-1), 1)
    # 40 decisions, 25 changes each on average: standard deviation 5
    assert np.abs(changed.sum(0) - 25).max() < 5 * 5
