"""The three spaces of recurrent cells: sizes, encodings, derivation, and what is one cell."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import genotypes, published
from jaxnas.networks.recurrent_tree import NAS_CELL
from jaxnas.search_spaces import DARTSRNN, ENASRNN, NASRLRNN

V2 = published.RECURRENT_TEXT["DARTS_RNN_V2"][0]
ENAS_ARC = (0, 2, 1, 0, 2, 1, 2, 2, 4, 0, 5, 0, 3, 2, 6, 2)  # as enas_lm prints it


def test_sizes_of_the_papers():
    assert DARTSRNN().size == ENASRNN().size == 2_642_411_520
    assert ENASRNN(12).size == 4 ** 12 * 479_001_600
    assert NASRLRNN().size == 8 ** 16 * 15 ** 2 == pytest.approx(6e16, rel=0.06)
    assert DARTSRNN().alphas_shape == (36, 5)


def test_encodings_of_published_cells():
    darts, enas = DARTSRNN(), ENASRNN()
    arch = darts.encode(V2)
    np.testing.assert_array_equal(
        arch, [2, 0, 1, 1, 1, 1, 3, 1, 0, 2, 2, 5, 0, 3, 1, 5])  # tanh relu sigmoid identity
    assert darts.decode(arch) == V2
    text = published.RECURRENT_TEXT["ENAS_RNN"][0]
    np.testing.assert_array_equal(enas.encode(text), ENAS_ARC)
    assert enas.decode(np.array(ENAS_ARC)) == text
    assert enas.cell(np.array(ENAS_ARC), hidden_size=3).steps == darts.cell(
        darts.encode(text), hidden_size=3).steps


@pytest.mark.parametrize("space", [DARTSRNN(), ENASRNN(), NASRLRNN()], ids=lambda s: s.name)
def test_genotypes_survive_their_files(space, tmp_path):
    for arch in np.asarray(jax.vmap(space.sample)(jax.random.split(jax.random.key(0), 20))):
        file = tmp_path / "genotype.json"
        file.write_text(genotypes.to_json(space.genotype(arch)), encoding="utf-8")
        read = genotypes.load(file)
        assert read.space == space.name
        np.testing.assert_array_equal(space.encode(read.architecture), arch)
        np.testing.assert_array_equal(read.arch, arch)


def orders(space, arch):
    """All archs of the same tree, by trying every order of its nodes."""
    activation, source = (np.asarray(part) for part in space.split(np.asarray(arch)))
    for order in itertools.permutations(range(space.num_nodes)):
        new = {0: 0} | {old + 1: place + 1 for place, old in enumerate(order)}
        rows = [(activation[old], new[int(source[old])]) for old in order]
        if all(read <= place for place, (_, read) in enumerate(rows)):
            yield tuple(int(v) for row in rows for v in (row[::-1] if space.source_first else row))


@pytest.mark.parametrize("make", [DARTSRNN, ENASRNN])
def test_canonical_is_the_smallest_of_all_orders(make):
    space = make(6, activations=("tanh", "relu"))  # few activations: many like subtrees
    archs = jax.vmap(space.sample)(jax.random.split(jax.random.key(1), 150))
    found = jax.jit(jax.vmap(space.canonical))(archs)
    for arch, smallest in zip(np.asarray(archs), np.asarray(found).tolist()):
        assert tuple(smallest) == min(orders(space, arch))


def test_as_many_orders_as_eight_nodes_can_have_are_followed():
    # Four like nodes at the root, each with another leaf: 4! orders until the leaves are placed.
    space = ENASRNN()
    archs = np.array([[(0, 0)] * 4 + [(place + 1, leaf) for place, leaf in enumerate(order)]
                      for order in itertools.permutations(range(4))])
    found = jax.jit(jax.vmap(space.canonical))(archs.reshape(24, 16).astype(np.int32))
    smallest = [(0, 0)] * 4 + [(1, 0), (2, 1), (3, 2), (4, 3)]
    np.testing.assert_array_equal(found, np.tile(np.reshape(smallest, -1), (24, 1)))


def exchanged(arch, node, leaves):
    """Exchange the halves of an inner node of a tree, with all that hangs on them."""
    def below(node):
        if node < leaves:
            return [node]
        return [node, *below(2 * (node - leaves)), *below(2 * (node - leaves) + 1)]

    first = 2 * (node - leaves)
    new = np.arange(2 * leaves - 1)
    new[below(first) + below(first + 1)] = below(first + 1) + below(first)
    rows = arch[:2 * len(new)].reshape(-1, 2)[new]
    return np.concatenate([rows.ravel(), arch[-4:-2], np.argsort(new)[arch[-2:]]])


@pytest.mark.parametrize("leaves", [4, 8])
def test_exchanging_halves_leaves_a_tree_the_same_cell(leaves):
    space = NASRLRNN(leaves)
    archs = np.random.default_rng(0).integers(0, space.num_choices, (20, 4 * leaves + 2), np.int32)
    archs[:10, :2 * leaves:2], archs[:10, 1:2 * leaves:2] = 1, 2  # halves hard to tell apart
    same = [archs]
    for node in range(leaves, 2 * leaves - 1):
        same += [np.stack([exchanged(arch, node, leaves) for arch in group]) for group in same]
    canonical = jax.jit(jax.vmap(space.canonical))
    forms = np.asarray(canonical(np.concatenate(same))).reshape(len(same), *archs.shape)
    assert len(same) == 2 ** (leaves - 1)
    np.testing.assert_array_equal(forms, np.broadcast_to(forms[0], forms.shape))
    # it is one of them, so that no two cells have one form
    assert all((np.stack(same)[:, number] == forms[0, number]).all(1).any()
               for number in range(len(archs)))


def test_trees_of_other_sizes():
    space = NASRLRNN(4)
    assert len(space.num_choices) == 4 * 4 + 2 and space.name == "nasrl_rnn_4_leaves"
    arch = np.arange(18) % 2
    np.testing.assert_array_equal(space.encode(space.decode(arch)), arch)
    assert space.genotype(arch).space == space.name
    with pytest.raises(ValueError, match="num_leaves"):
        NASRLRNN(3)


def test_nas_cell_as_text():
    space = NASRLRNN()
    text = space.decode(np.array(NAS_CELL))
    assert text.startswith("add sigmoid|add relu|add sigmoid|multiply relu|add tanh|")
    assert text.endswith("|multiply identity|add tanh|multiply tanh|add tanh 8|12")
    np.testing.assert_array_equal(space.encode(text), NAS_CELL)


def test_discretize_takes_one_edge_a_node():
    space = DARTSRNN(3)
    alphas = np.zeros((6, 5), np.float32)
    alphas[0, 0], alphas[0, 3] = 5, 1         # none is strongest and never chosen
    alphas[1, 2], alphas[2, 2] = 1, 1         # a tie goes to the lower source
    alphas[3, 4], alphas[4, 1] = 3, 2.9       # but edge 3 gives its mass to none as well
    alphas[3, 0] = 3
    found = jax.jit(space.discretize)(alphas)
    assert space.decode(found) == "sigmoid 0|relu 0|tanh 1" and found.dtype == jnp.int32
    with pytest.raises(ValueError, match=r"alphas must be \(6, 5\)"):
        space.discretize(jnp.zeros((5, 5)))


def test_one_hot_weights_come_back():
    space = DARTSRNN()
    archs = jax.vmap(space.sample)(jax.random.split(jax.random.key(3), 100))
    weights = jax.jit(jax.vmap(space.one_hot))(archs)
    assert weights.shape == (100, 36, 5)
    np.testing.assert_array_equal(weights.sum((1, 2)), 8)
    np.testing.assert_array_equal(jax.jit(jax.vmap(space.discretize))(20 * weights), archs)


@pytest.mark.parametrize("make, message", [
    (lambda: DARTSRNN(0), "num_nodes"), (lambda: ENASRNN(17), "num_nodes"),
    (lambda: DARTSRNN(activations=("none",)), "activations"),
    (lambda: DARTSRNN(activations=("none", "none", "tanh")), "activations"),
    (lambda: ENASRNN(activations=("none", "tanh")), "activations"),
    (lambda: ENASRNN(activations=("tanh", "tanh")), "activations")])
def test_wrong_spaces_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("text, message", [
    ("tanh 0", "2 nodes"), ("tanh 0|gelu 1", "activation of node 2"),
    ("tanh 0|none 1", "activation of node 2"), ("tanh 0|relu 2", "source of node 2"),
    ("tanh 0|relu 01", "source of node 2"), ("tanh 0|relu", "source of node 2")])
def test_wrong_texts_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        DARTSRNN(2).encode(text)


@pytest.mark.parametrize("old, new, message", [
    ("add tanh 8|12", "add tanh 8|15", "0 to 14"), ("add tanh 8|12", "add tanh 15|12", "0 to 14"),
    ("add relu", "add elu", "part 1"), ("|add relu", "", "15 nodes")])
def test_wrong_tree_texts_are_named(old, new, message):
    space = NASRLRNN()
    with pytest.raises(ValueError, match=message):
        space.encode(space.decode(np.array(NAS_CELL)).replace(old, new, 1))
