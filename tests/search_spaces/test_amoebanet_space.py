"""The cells of AmoebaNet: size, mutation statistics, the published cells, canonical forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnas import genotypes
from jaxnas.search_spaces.amoebanet import OPERATIONS, AmoebaNet

SPACE = AmoebaNet()
PUBLISHED = tuple(f"AMOEBANET_{letter}" for letter in "ABCD")


def test_size_and_decisions():
    assert SPACE.num_choices == sum(((b + 2, b + 2, 8, 8) for b in range(5)), ()) * 2
    assert SPACE.size == 556_627_761_561_600 ** 2  # 5.6e14 a cell, 3.1e29 both
    assert f"{SPACE.size:.1e}" == "3.1e+29"
    assert OPERATIONS == ("skip_connect", "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7",
                          "avg_pool_3x3", "max_pool_3x3", "dil_sep_conv_3x3", "conv_1x7_7x1")


def test_thousand_architectures_round_trip():
    archs = np.asarray(jax.jit(jax.vmap(SPACE.sample))(jax.random.split(jax.random.key(2), 1000)))
    assert archs.shape == (1000, 40) and len(np.unique(archs, axis=0)) == 1000
    for arch in archs:
        genotype = SPACE.decode(arch)
        assert genotype.space == "amoebanet"
        assert genotypes.from_json(genotypes.to_json(genotype)) == genotype
        np.testing.assert_array_equal(SPACE.encode(genotype), arch)
    rows = archs.reshape(-1, 5, 4)
    for block in range(5):
        for column, count in enumerate((block + 2, block + 2, 8, 8)):
            seen = np.bincount(rows[:, block, column], minlength=count)
            assert len(seen) == count and stats.chisquare(seen).pvalue > 1e-4


@pytest.fixture(scope="module")
def mutations():
    """20,000 children of one arch, as [20000, 2, 5, 4], and their parent."""
    parent = SPACE.sample(jax.random.key(0))
    mutate = jax.jit(jax.vmap(SPACE.mutate, (0, None)))
    children = mutate(jax.random.split(jax.random.key(1), 20_000), parent)
    assert np.asarray(jax.jit(jax.vmap(SPACE.is_valid))(children)).all()
    return np.asarray(children).reshape(-1, 2, 5, 4), np.asarray(parent).reshape(2, 5, 4)


def test_mutations_change_one_entry_or_none(mutations):
    children, parent = mutations
    distance = (children != parent).sum((1, 2, 3))
    assert set(distance.tolist()) == {0, 1}


def test_mutation_statistics(mutations):
    """5% identity, 47.5% each of the others; cells, blocks, halves and new values uniform."""
    children, parent = mutations
    changed = children != parent
    states, operations = changed[..., :2], changed[..., 2:]
    counts = [20_000 - changed.sum(), states.sum(), operations.sum()]
    assert stats.chisquare(counts, [1_000, 9_500, 9_500]).pvalue > 1e-3
    for kind in (states, operations):
        assert stats.chisquare(kind.sum(0).reshape(-1)).pvalue > 1e-3  # [2, 5, 2]
        for axes in ((0, 2, 3), (0, 1, 3), (0, 1, 2)):
            assert stats.chisquare(kind.sum(axes)).pvalue > 1e-3
    for cell, block, column in itertools.product(range(2), range(5), range(4)):
        values = children[:, cell, block, column][changed[:, cell, block, column]]
        others = block + 1 if column < 2 else 7
        seen = np.unique(values, return_counts=True)[1]
        assert len(seen) == others  # never the old one
        assert others == 1 or stats.chisquare(seen).pvalue > 1e-5


def test_identity_rate():
    parent = SPACE.sample(jax.random.key(0))
    space = AmoebaNet(identity_rate=0.0)
    children = jax.jit(jax.vmap(space.mutate, (0, None)))(
        jax.random.split(jax.random.key(1), 1000), parent)
    np.testing.assert_array_equal((np.asarray(children) != parent).sum(-1), 1)
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="identity_rate must be in"):
            AmoebaNet(identity_rate=rate)
    with pytest.raises(ValueError, match="two names or more"):
        AmoebaNet(operations=("skip_connect",))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_cells_in_the_space_of_all_operations(name):
    space = AmoebaNet(operations=genotypes.CELL_OPERATIONS["amoebanet"])
    genotype = genotypes.PUBLISHED[name]
    again = space.decode(space.encode(genotype, ignore_concat=True))
    assert [cell.edges for cell in again[:2]] == [cell.edges for cell in genotype[:2]]
    if name == "AMOEBANET_A":  # whose operations are all among the eight searched
        assert SPACE.decode(SPACE.encode(genotype, ignore_concat=True)) == again
    else:
        with pytest.raises(genotypes.GenotypeError, match="operations|concat"):
            SPACE.encode(genotype)


def scrambled(rng, cell):
    """The same graph: halves exchanged at random, blocks in another possible order."""
    order, placed = [], {0, 1}
    while len(order) < len(cell):
        ready = [b for b in range(len(cell)) if b not in order and set(cell[b][:2]) <= placed]
        order.append(ready[rng.integers(len(ready))])
        placed.add(order[-1] + 2)
    name = {0: 0, 1: 1, **{old + 2: new + 2 for new, old in enumerate(order)}}
    rows = []
    for old in order:
        s1, s2, o1, o2 = cell[old]
        row = [(name[s1], o1), (name[s2], o2)]
        (s1, o1), (s2, o2) = row[::-1] if rng.integers(2) else row
        rows.append((s1, s2, o1, o2))
    return rows


def test_canonical_is_the_same_for_all_scrambled_cells():
    rng = np.random.default_rng(0)
    archs = np.stack([rng.integers(SPACE.num_choices) for _ in range(500)]).astype(np.int32)
    others = np.array([[scrambled(rng, cell) for cell in arch.reshape(2, 5, 4).tolist()]
                       for arch in archs], np.int32).reshape(500, 40)
    assert (archs != others).any(-1).mean() > 0.9
    canonical = jax.jit(jax.vmap(SPACE.canonical))
    both = canonical(jnp.concatenate([archs, others]))
    np.testing.assert_array_equal(both[:500], both[500:])
