"""The cells of NAS-Bench-101: published hashes, parameters and counts."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnas import encodings
from jaxnas.search_spaces import NASBench101
from jaxnas.search_spaces.nasbench101 import (EDGES, OPERATIONS, adjacency, adjacency_encoding,
                                              path_encoding, prune, vertex_channels)

SPACE = NASBench101()
are_valid = jax.jit(jax.vmap(SPACE.is_valid))
# Upper triangle, operations, hash and parameters of cells in the table of EC-NAS (Bakhtiarifard et
# al., 2024, https://arxiv.org/abs/2210.06015), which were made by the code of NAS-Bench-101.
PUBLISHED = (
    ("1", "", "043721b9c7fe8c5fad811d47d83132ec", 882_570),
    ("111", "1", "09fc2d10bdd6225e167a6f81a22a3f06", 2_793_866),
    ("101", "2", "53cee42601ad14d661bb6878031d6acb", 882_570),
    ("111111", "02", "33d2a114f6385661657c44b49cc83815", 4_081_418),
    ("100101", "12", "6adf09ef60d9568b0c5ce41d788a41bc", 1_920_138),
    ("101101", "21", "bb60c46f5b7c352b7900043c5ef7e0a7", 2_793_866),
    ("101111", "21", "81653de2d99676fa3d377640124a73ab", 1_580_170),
    ("1001110011", "111", "2d50bc1881ce5f7b1c9dd0c0e1857c5a", 2_101_642),
    ("1111101101", "200", "81bc718c27fd21f875caa9f4a5d61a15", 6_843_402),
    ("1011101101", "112", "e9e91e247623ba40cf2634cdea34888b", 2_277_770),
    ("1000100101", "122", "cf03685ff0d505fd5ecd5a7cbe5e6cd2", 1_920_138),
    ("1011101101", "202", "8cca79ebad9b132b2e94a4635e7275ea", 4_081_418),
    ("1000100101", "221", "90e3f5faec3240ddfee38a004cead72a", 1_920_138),
    ("1111101011", "211", "bc2f0cf981993ece23da91ab8a22571f", 1_988_486),
    ("1110011111", "220", "9c4852e40048b5aad2642e1c4c54b2c6", 1_907_355),
    ("1111110101", "021", "f007dfe06017dcb52eb914c2de9775a5", 13_836_426),
    ("1101001101", "102", "034f775bd540853f0991232dc49d6837", 4_342_154),
    ("1011100111", "121", "f70e1374d470113de6f35c65eb94c171", 2_277_770),
    ("1001100101", "220", "a231016611ca0fd1992262e6b788a2cc", 11_051_402),
    ("1011110111", "110", "a6117bc821941225ab5fd33509cefa23", 4_602_890),
)
INCEPTION = (((0, 1), (0, 2), (0, 3), (0, 5), (1, 6), (2, 6), (3, 4), (4, 6), (5, 6)), "10002")


def cell_text(edges, operations):
    """The JSON of a cell: pairs i < j, and a digit for every inner vertex."""
    matrix = np.zeros((len(operations) + 2,) * 2, int)
    for edge in edges:
        matrix[edge] = 1
    names = ["input", *(OPERATIONS[int(digit)] for digit in operations), "output"]
    return json.dumps({"matrix": matrix.tolist(), "ops": names})


def published_arch(bits, operations):
    pairs = itertools.combinations(range(len(operations) + 2), 2)
    return SPACE.encode(cell_text(itertools.compress(pairs, map(int, bits)), operations))


def raw_archs(key, count):
    """Uniform decisions, valid or not: [count, 26]."""
    bits_key, operations_key = jax.random.split(key)
    return np.asarray(jnp.concatenate([
        jax.random.randint(bits_key, (count, 21), 0, 2),
        jax.random.randint(operations_key, (count, 5), 0, 3)], axis=1))


def matrices(archs):
    """[n, 26] -> [n, 7, 7]."""
    result = np.zeros((len(archs), 7, 7), np.int64)
    result[:, [i for i, _ in EDGES], [j for _, j in EDGES]] = archs[:, :21]
    return result


def live_vertices(archs):
    """[n, 26] -> [n, 7] bool, by powers of the adjacency matrix."""
    paths = np.linalg.matrix_power(np.eye(7, dtype=np.int64) + matrices(archs), 6)
    return (paths[:, 0, :] > 0) & (paths[:, :, 6] > 0)


@pytest.fixture(scope="module")
def samples():
    return np.asarray(jax.jit(jax.vmap(SPACE.sample))(jax.random.split(jax.random.key(0), 3000)))


@pytest.fixture(scope="module")
def canonical():
    return jax.jit(jax.vmap(SPACE.canonical))


@pytest.mark.parametrize("bits, operations, name, count", PUBLISHED)
def test_published_hashes_and_parameters(bits, operations, name, count):
    arch = published_arch(bits, operations)
    assert SPACE.spec_hash(arch) == name
    assert SPACE.num_parameters(arch) == count


def test_published_parameters_of_examples():
    inception = SPACE.encode(cell_text(*INCEPTION))
    assert SPACE.num_parameters(inception) == 2_694_282
    assert vertex_channels(matrices(inception[None])[0], 128, 128) == [128] + [32] * 5 + [128]
    assert SPACE.num_parameters(SPACE.encode(cell_text([(0, 1)], ""))) == 882_570
    assert SPACE.num_parameters(SPACE.encode(cell_text([(0, 1), (1, 2)], "0"))) == 10_177_674
    assert SPACE.num_parameters(inception, num_classes=100) == 2_694_282 + 513 * 90


def test_channels_by_hand():
    # 3 vertices share 128 channels as 43, 43, 42; vertex 1 leads to 2 and 3 and is as wide as 2
    matrix = np.zeros((6, 6), int)
    for edge in ((0, 1), (1, 2), (1, 3), (0, 4), (2, 5), (3, 5), (4, 5)):
        matrix[edge] = 1
    assert vertex_channels(matrix, 128, 128) == [128, 43, 43, 43, 42, 128]
    assert vertex_channels(np.array([[0, 1], [0, 0]]), 64, 128) == [64, 128]


def test_pruning_and_validity_by_matrix_powers(samples):
    archs = np.concatenate([raw_archs(jax.random.key(1), 2000), samples[:1000]])
    live = live_vertices(archs)
    ends = np.array(EDGES)
    expected = archs * np.concatenate(
        [live[:, ends[:, 0]] & live[:, ends[:, 1]], live[:, 1:-1]], axis=1)
    pruned, valid, matrix = jax.jit(jax.vmap(
        lambda arch: (prune(arch), SPACE.is_valid(arch), adjacency(arch))))(archs)
    np.testing.assert_array_equal(matrix, matrices(archs))
    np.testing.assert_array_equal(pruned, expected)
    num_edges = expected[:, :21].sum(1)
    np.testing.assert_array_equal(valid, live[:, 0] & (num_edges <= 9))
    assert 0 < (~live[:, 0]).sum() and (num_edges > 9).any() and not np.all(valid)
    assert (archs[np.asarray(valid), :21].sum(1) > 9).any()  # edges of dead vertices do not count


def test_at_most_nine_edges_between_live_vertices():
    chain = [(i, i + 1) for i in range(6)]
    nine = chain + [(0, 2), (0, 3), (0, 4)]
    arch = SPACE.encode(cell_text(nine, "00000"))
    ten = arch.copy()
    ten[EDGES.index((0, 5))] = 1
    for call in (SPACE.spec_hash, SPACE.num_parameters):
        with pytest.raises(ValueError, match="at most 9 edges .* got 10"):
            call(ten)
    dead = np.array([edge in ((0, 6), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (2, 3), (2, 4),
                              (2, 5), (2, 6), (3, 4)) for edge in EDGES] + [0] * 5, np.int32)
    assert dead[:21].sum() == 11  # vertices 1 to 5 have no input
    np.testing.assert_array_equal(are_valid(np.stack([arch, ten, dead])), [True, False, True])


def relabelled(arch, rng):
    """An isomorphic arch: inner vertices in another order, dead parts drawn anew."""
    live = live_vertices(arch[None])[0]
    matrix = matrices(arch[None])[0] * np.outer(live, live)
    while True:
        label = np.array([0, *(1 + rng.permutation(5)), 6])
        moved = np.zeros_like(matrix)
        moved[np.ix_(label, label)] = matrix
        if not np.tril(moved).any():
            break
    operations = np.zeros(5, int)
    operations[label[1:-1] - 1] = np.where(live[1:-1], arch[21:], rng.integers(0, 3, 5))
    dead = [label[vertex] for vertex in range(1, 6) if not live[vertex]]
    for vertex in dead:  # reached from anywhere, but leading nowhere
        moved[:vertex, vertex] = rng.integers(0, 2, vertex)
        moved[dead, vertex] = 0
    return np.array([*(moved[edge] for edge in EDGES), *operations], np.int32)


def test_isomorphic_cells_have_one_hash_one_canonical_and_one_size(samples, canonical):
    rng = np.random.default_rng(0)
    archs = samples[:600]
    others = np.stack([relabelled(arch, rng) for arch in archs])
    assert (others != archs).any(1).mean() > 0.7
    np.testing.assert_array_equal(canonical(others), canonical(archs))
    for arch, other in zip(archs[:200], others):
        assert SPACE.spec_hash(arch) == SPACE.spec_hash(other)


def test_classes_are_those_of_the_hash(samples, canonical):
    forms = np.asarray(encodings.flat_index(canonical(samples), SPACE.num_choices)).tolist()
    hashes = [SPACE.spec_hash(arch) for arch in samples]
    assert len(set(forms)) == len(set(hashes)) == len(set(zip(forms, hashes))) > 1000


def test_all_423_624_cells():
    """Count the canonical forms of every cell: first the graphs, then the operations on each."""
    numbers = np.arange(2 ** 21, dtype=np.int32)
    bits = numbers[:, None] >> np.arange(20, -1, -1, dtype=np.int32) & 1
    bits = bits[bits.sum(1) <= 9]
    assert len(bits) == 695_860  # the sum of the binomials (21, k), k = 0 to 9
    graphs = np.concatenate([bits, np.zeros((len(bits), 5), np.int32)], axis=1)
    pruned = np.asarray(jax.jit(jax.vmap(prune))(graphs))
    graphs = graphs[(pruned == graphs).all(1) & bits.any(1)]
    index = jax.jit(jax.vmap(
        lambda arch: encodings.flat_index(SPACE.canonical(arch), SPACE.num_choices)))
    smallest = np.unique(index(graphs))
    bits = np.asarray(encodings.from_flat_index(smallest, SPACE.num_choices))[:, :21]
    cells = np.concatenate([np.repeat(bits, 3 ** 5, axis=0),
                            np.tile(list(itertools.product(range(3), repeat=5)), (len(bits), 1))],
                           axis=1).astype(np.int32)
    assert len(np.unique(index(cells))) == 423_624


def test_samples_are_uniform_among_the_valid(samples):
    archs = raw_archs(jax.random.key(2), 4000)
    archs = archs[np.asarray(are_valid(archs))]
    assert 0.70 < len(archs) / 4000 < 0.76
    for value in (0, 1, 2):
        difference = (samples == value).mean(0) - (archs == value).mean(0)
        assert np.abs(difference).max() < 5 * (0.25 / 3000 + 0.25 / len(archs)) ** 0.5
    # and pairs of neighbouring decisions
    pairs = [(group[:, 1:] > 0) & (group[:, :-1] > 0) for group in (samples, archs)]
    assert np.abs(pairs[0].mean(0) - pairs[1].mean(0)).max() < 5 * (0.5 / 2900) ** 0.5


def test_mutation_is_uniform_over_valid_neighbours():
    parent = SPACE.encode(cell_text(*INCEPTION))  # 9 edges: no live one can be added
    steps = [(p, s) for p, n in enumerate(SPACE.num_choices) for s in range(1, n)]
    neighbours = np.tile(parent, (len(steps), 1))
    for row, (position, step) in enumerate(steps):
        neighbours[row, position] = (parent[position] + step) % SPACE.num_choices[position]
    valid = np.asarray(are_valid(neighbours))
    assert valid[-10:].all() and 0 < (~valid).sum()
    weights = np.where(valid, [1 / (SPACE.num_choices[p] - 1) for p, _ in steps], 0)
    children = np.asarray(jax.jit(jax.vmap(lambda key: SPACE.mutate(key, parent)))(
        jax.random.split(jax.random.key(0), 6000)))
    counts = (children[:, None] == neighbours).all(-1).sum(0)
    assert counts.sum() == 6000 and not counts[~valid].any()
    expected = 6000 * weights / weights.sum()
    assert stats.chisquare(counts[valid], expected[valid]).pvalue > 1e-3


def test_released_mutation_has_the_rates_of_the_baseline():
    space, parent = NASBench101(mutation="released"), SPACE.encode(cell_text(*INCEPTION))
    children = np.asarray(jax.jit(jax.vmap(lambda key: space.mutate(key, parent)))(
        jax.random.split(jax.random.key(0), 6000)))
    rng = np.random.default_rng(0)
    choices = np.array(SPACE.num_choices)
    changed = rng.random((12_000, 26)) < np.where(choices == 2, 1 / 7, 1 / 5)
    drawn = (parent + changed * rng.integers(1, choices, (12_000, 26))) % choices
    drawn = drawn[np.asarray(are_valid(drawn.astype(np.int32)))]
    for value in (0, 1, 2):
        difference = (children == value).mean(0) - (drawn == value).mean(0)
        assert np.abs(difference).max() < 5 * (0.25 / 6000 + 0.25 / len(drawn)) ** 0.5


def test_an_invalid_parent_does_not_hang():
    nothing = np.zeros(26, np.int32)
    full = np.array([1] * 21 + [0] * 5, np.int32)
    children = jax.jit(jax.vmap(SPACE.mutate, (None, 0)))(
        jax.random.key(0), np.stack([nothing, full]))
    np.testing.assert_array_equal(are_valid(children), [True, False])


def test_crossover_falls_back_to_the_first_parent():
    first, second = (SPACE.encode(cell_text([(0, i), (i, 6)], "00000")) for i in (1, 2))
    children = np.asarray(jax.jit(jax.vmap(lambda key: SPACE.crossover(key, first, second)))(
        jax.random.split(jax.random.key(0), 2000)))
    # one has a path if its two edges are kept, 7 of the 16 ways; of these one is `first` itself
    same = (children == first).all(1).mean()
    assert abs(same - (9 + 1) / 16) < 5 * (0.25 / 2000) ** 0.5


def test_path_encoding_lists_all_paths(samples):
    encoded = np.asarray(jax.jit(jax.vmap(path_encoding))(samples[:300]))
    assert encoded.shape == (300, 364) and encoded.dtype == np.float32
    order = [path for length in range(6) for path in itertools.product(range(3), repeat=length)]
    for arch, row in zip(samples, encoded):
        matrix, found = matrices(arch[None])[0], set()
        for length in range(6):
            for inner in itertools.combinations(range(1, 6), length):
                stops = (0, *inner, 6)
                if all(matrix[edge] for edge in zip(stops, stops[1:])):
                    found.add(tuple(arch[20 + np.array(inner, int)].tolist()))
        assert found == {path for path, value in zip(order, row) if value}


def test_adjacency_encoding():
    arch = SPACE.encode(cell_text(*INCEPTION))
    encoded = adjacency_encoding(jnp.stack([arch, arch]))
    assert encoded.shape == (2, 36) and encoded.dtype == jnp.float32
    np.testing.assert_array_equal(encoded[1, :21], arch[:21])
    np.testing.assert_array_equal(encoded[1, 21:].reshape(5, 3), np.eye(3)[arch[21:]])


def test_small_cells_get_dead_vertices():
    arch = SPACE.encode(cell_text([(0, 1), (1, 2)], "2"))
    expected = [edge in ((0, 1), (1, 6)) for edge in EDGES] + [2, 0, 0, 0, 0]
    np.testing.assert_array_equal(arch, expected)
    assert arch.dtype == np.int32
    text = SPACE.decode(arch)
    assert text.startswith('{"matrix": [[0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1], [0, ')
    assert text.endswith('"ops": ["input", "maxpool3x3", "conv3x3-bn-relu", "conv3x3-bn-relu", '
                         '"conv3x3-bn-relu", "conv3x3-bn-relu", "output"]}')


GOOD = cell_text([(0, 1), (1, 2)], "2")


@pytest.mark.parametrize("text, message", [
    ("{", "must be JSON"), ("[" * 4000, "must be JSON"), (" " * 5000, "at most 4096 characters"),
    ("[]", "one object"), ('[["ops", 1], ["matrix", 2]]', "one object"), ("{}", "one object"),
    ('{"ops": 1, "matrix": 2, "name": 3}', "one object"), ('{"ops": 1, "ops": 2}', "one object"),
    (GOOD.replace("maxpool3x3", "maxpool"), "'ops' must be"),
    (GOOD.replace('"maxpool3x3"', "[]"), "'ops' must be"),
    (GOOD.replace('"input"', '"output"'), "'ops' must be"), ('{"ops": 1, "matrix": 2}', "'ops'"),
    (cell_text([(0, 7)], "000000"), "up to 5"),
    (GOOD.replace("[0, 0, 1]", "[0, 1]"), "3 rows of 3"),
    (GOOD.replace("[0, 0, 1], ", ""), "3 rows of 3"), (GOOD.replace("1", "2"), "got 2 in row 0"),
    (GOOD.replace("1", "true"), "got True"), (GOOD.replace("1", "1.0"), "got 1.0"),
    (GOOD.replace("1", '"1"'), "got '1'"), (GOOD.replace("[0, 0, 0]", "[1, 0, 0]"), "in row 2"),
    (GOOD.replace("[0, 0, 1]", "[0, 0, 0]"), "must have a path"),
    (cell_text([(i, i + 1) for i in range(6)] + [(0, i) for i in (2, 3, 4, 5)], "00000"),
     "at most 9 edges .* got 10")])
def test_wrong_texts(text, message):
    with pytest.raises(ValueError, match=message):
        SPACE.encode(text)


def test_errors():
    with pytest.raises(ValueError, match="mutation must be one of"):
        NASBench101(mutation="edge")
    with pytest.raises(ValueError, match="must have a path"):
        SPACE.spec_hash(np.zeros(26, np.int32))
