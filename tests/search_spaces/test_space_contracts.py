"""What base.SearchSpace promises, of every discrete space."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import encodings, genotypes
from jaxnas.genotypes import Genotype
from jaxnas.networks.morphable_slots import MorphableSlots
from jaxnas.search_spaces import DARTS, NASBench101, NASBench201, NASBenchMacro, NATSSize, Product
from jaxnas.search_spaces.amoebanet import AmoebaNet
from jaxnas.search_spaces.darts_rnn import DARTSRNN
from jaxnas.search_spaces.enas_macro import ENASMacro
from jaxnas.search_spaces.enas_micro import ENASMicro
from jaxnas.search_spaces.enas_rnn import ENASRNN
from jaxnas.search_spaces.mnasnet import MnasNet
from jaxnas.search_spaces.morphable_cnn import MorphableCNN
from jaxnas.search_spaces.nasnet import NASNet
from jaxnas.search_spaces.nasrl import NASRL
from jaxnas.search_spaces.nasrl_rnn import NASRLRNN
from jaxnas.search_spaces.pnas import PNAS

SPACES = {
    "product": Product((3, 1, 5, 2)),
    "wide": Product((17,) * 9, name="wide"),
    "nasbench201": NASBench201(),
    "nasbench201_node": NASBench201(mutation="node"),
    "nats_size": NATSSize(),
    "nasbench_macro": NASBenchMacro(),
    "nasbench101": NASBench101(),
    "nasbench101_released": NASBench101(mutation="released"),
    "darts": DARTS(num_nodes=2),  # small cells compile fast; their files test the published sizes
    "nasnet": NASNet(num_blocks=1),
    "amoebanet": AmoebaNet(num_blocks=2),
    "pnas": PNAS(num_blocks=2),
    "enas_micro": ENASMicro(num_blocks=1),
    "enas_macro": ENASMacro(num_layers=4),
    "nasrl": NASRL(num_layers=3),
    "mnasnet": MnasNet(),
    "morphable_cnn": MorphableCNN(MorphableSlots(2, 2)),
    "nasrl_rnn": NASRLRNN(),
    "enas_rnn": ENASRNN(num_nodes=4),
    "darts_rnn": DARTSRNN(num_nodes=4),
}
SILENT = ("nasbench101_released", "amoebanet")  # may return the parent, as published
CELLS = ("darts", "nasnet", "amoebanet", "pnas", "enas_micro")
# The scope makes pytest run all tests of a space together, on one worker, which draws but once.
every_space = pytest.mark.parametrize("label", SPACES, scope="module")
cell_spaces = pytest.mark.parametrize("label", CELLS, scope="module")


def draw(space, key):
    """Two samples, a mutation of one, their crossover, and what the space says of each."""
    sample_keys, (mutate_key, crossover_key) = jnp.split(jax.random.split(key, 4), 2)
    sample, other = jax.vmap(space.sample)(sample_keys)
    archs = jnp.stack([sample, space.mutate(mutate_key, sample),
                       space.crossover(crossover_key, sample, other), other])
    return archs, jax.vmap(space.is_valid)(archs), jax.vmap(space.canonical)(archs)


class Drawn(dict):
    """Draws of 1,000 keys in one vmap, by label; made when first asked for."""

    def __missing__(self, label):
        keys = jax.random.split(jax.random.key(0), 1000)
        self[label] = jax.jit(jax.vmap(functools.partial(draw, SPACES[label])))(keys)
        return self[label]


@pytest.fixture(scope="module")
def drawn():
    return Drawn()


@every_space
def test_thousand_draws_are_valid_integers_in_range(label, drawn):
    space, (archs, valid, canonical) = SPACES[label], drawn[label]
    length = len(space.num_choices)
    assert archs.shape == canonical.shape == (1000, 4, length)
    assert archs.dtype == canonical.dtype == jnp.int32
    assert valid.shape == (1000, 4) and valid.dtype == bool and valid.all()
    assert (archs >= 0).all() and (archs < np.array(space.num_choices)).all()
    sample, _, child, other = np.asarray(archs).swapaxes(0, 1)
    assert ((child == sample) | (child == other)).all()
    assert len(np.unique(sample, axis=0)) > min(0.9 * 30, 500)  # the smallest space has 30


@every_space
def test_mutation_differs_from_its_parent(label, drawn):
    archs = drawn[label][0]
    distance = (np.asarray(archs[:, 0]) != np.asarray(archs[:, 1])).sum(-1)
    if label in SILENT:
        assert 0.92 < (distance > 0).mean() < 1 and distance.max() >= 1
    else:
        np.testing.assert_array_equal(distance, 1)


@every_space
def test_canonical_is_idempotent_valid_and_smallest(label, drawn):
    space, (archs, _, canonical) = SPACES[label], drawn[label]
    flat = canonical.reshape(-1, canonical.shape[-1])
    again, valid = jax.jit(jax.vmap(lambda arch: (space.canonical(arch), space.is_valid(arch))))(
        flat)
    np.testing.assert_array_equal(again, flat)
    assert valid.all()
    before, after = (np.asarray(encodings.words(x, space.num_choices)).reshape(4000, -1)
                     for x in (archs, canonical))
    assert all(map(lambda a, b: tuple(a) >= tuple(b), before.tolist(), after.tolist()))


@pytest.mark.parametrize("label", ["product", "nasbench201", "nasbench_macro", "nasbench101",
                                   "pnas"])
def test_same_key_same_answer_and_jit_equals_no_jit(label, drawn):
    space = SPACES[label]
    keys = jax.random.split(jax.random.key(0), 1000)[:20]
    for eager, jitted in zip(jax.vmap(lambda key: draw(space, key))(keys), drawn[label]):
        np.testing.assert_array_equal(eager, jitted[:20])


@cell_spaces
def test_thousand_cells_round_trip_through_json(label, drawn):
    space = SPACES[label]
    for arch in np.asarray(drawn[label][0][:, 0]):
        genotype = space.decode(arch)
        assert isinstance(genotype, Genotype) and genotype.space == space.name
        assert genotypes.from_json(genotypes.to_json(genotype)) == genotype
        read = space.encode(genotype)
        assert read.dtype == np.int32
        np.testing.assert_array_equal(read, arch)


@cell_spaces
def test_canonical_cells_have_the_edges_of_the_cells_they_stand_for(label, drawn):
    """As many of each operation, and, but for their order, the same states concatenated."""
    space, (archs, _, canonical) = SPACES[label], drawn[label]
    for arch, smallest in zip(np.asarray(archs[:100, 1]), np.asarray(canonical[:100, 1])):
        for before, after in zip(space.decode(arch)[:2], space.decode(smallest)[:2]):
            assert len(before.concat) == len(after.concat)
            assert [s for s in before.concat if s < 2] == [s for s in after.concat if s < 2]
            assert sorted((op, min(s, 2)) for op, s in before.edges) == sorted(
                (op, min(s, 2)) for op, s in after.edges)


@cell_spaces
def test_wrong_cells_are_refused(label, drawn):
    space = SPACES[label]
    genotype = space.decode(np.asarray(drawn[label][0][0, 0]))
    cell = genotype.normal
    edge = cell.edges[0]
    plain = genotypes.CellGenotype(tuple(e._replace(operation="skip_connect") for e in cell.edges),
                                   (cell.num_nodes + 1,))
    wrong = [(None, "expected Genotype"), (7, "expected Genotype"), ("text", "expected Genotype"),
             ((cell, cell), "expected Genotype"), (genotype._replace(reduction=None), "reduction"),
             (genotypes.Encoded("other", (1,), "1"), "expected Genotype"),
             (genotype._replace(space="other"), "space"),
             (Genotype(plain, plain, "darts" if label == "pnas" else "pnas"), "space must be")]
    bad_edges = ((edge._replace(operation="none"), "operation"),
                 (edge._replace(operation="conv_7x7"), "operation"),
                 (edge._replace(source=2), "source"))
    bad_cells = [(cell._replace(edges=cell.edges * 2), "nodes"),
                 (cell._replace(concat=(2, 3, 4)), "concat")]
    bad_cells += [(cell._replace(edges=(bad, *cell.edges[1:])), message)
                  for bad, message in bad_edges]
    wrong += [(Genotype(bad, bad, space.name), message) for bad, message in bad_cells]
    for value, message in wrong:
        with pytest.raises(genotypes.GenotypeError, match=message):
            space.encode(value)


@pytest.mark.parametrize("label", [label for label in SPACES if label not in CELLS])
def test_text_round_trip(label, drawn):
    space = SPACES[label]
    texts = set()
    for arch in np.asarray(drawn[label][0][:100, 1]):
        text = space.decode(arch)
        read = space.encode(text)
        assert isinstance(text, str) and read.dtype == np.int32
        np.testing.assert_array_equal(read, arch)
        assert space.decode(jnp.asarray(arch)) == text
        texts.add((text, tuple(arch.tolist())))
    assert len({text for text, _ in texts}) == len(texts)


@every_space
def test_out_of_range_is_refused(label, drawn):
    space = SPACES[label]
    arch = np.asarray(drawn[label][0][0, 0])
    length = len(space.num_choices)
    wrong = np.tile(arch, (3 * length, 1))
    wrong[np.arange(3 * length), np.arange(3 * length) % length] = np.concatenate(
        [np.full(length, -1), space.num_choices, np.full(length, 2 ** 31 - 1)])
    assert not jax.jit(jax.vmap(space.is_valid))(wrong).any()
    for row in wrong[::7]:
        with pytest.raises(ValueError, match=r"arch\[\d+\] must be in"):
            space.decode(row)
    for values in (arch[1:], arch.astype(np.float32), arch[None]):
        with pytest.raises(ValueError, match=f"{length} integers"):
            space.decode(values)


@pytest.mark.parametrize("label", [label for label in SPACES if label not in CELLS])
def test_wrong_texts_are_refused(label, drawn):
    space = SPACES[label]
    text = space.decode(np.asarray(drawn[label][0][0, 0]))
    for wrong in ("", " ", "nonsense", text + "x", "x" + text, text + "\0", text[:-1] + "\u0661",
                  text + text, "9" * 5000, "[" * 3000, "null"):
        with pytest.raises(ValueError):
            space.encode(wrong)
    for wrong in (None, 7, text.encode(), [text]):
        with pytest.raises(ValueError, match="must be text"):
            space.encode(wrong)


@every_space
def test_spaces_are_static_values(label):
    space = SPACES[label]
    assert hash(space) == hash(type(space)(**vars(space))) and space.name
    assert isinstance(space.num_choices, tuple)
    with pytest.raises(AttributeError):
        space.name = "other"
