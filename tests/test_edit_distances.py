"""The edit distance is a metric with the steps that the paper names, and its kernel a kernel."""

import itertools

import numpy as np
import pytest

from jaxnas import conv_chains, edit_distances
from jaxnas.conv_chains import Connect, ConvChain, Deepen, Layer, Skip, Widen
from jaxnas.edit_distances import distance

START = conv_chains.initial_chain(width=8)


def random_chains(count, seed=0):
    """Different chains, by random operations from the first one."""
    random, found = np.random.default_rng(seed), {START}
    while len(found) < count:
        chain = START
        for _ in range(random.integers(1, 9)):
            options = list(conv_chains.operations(chain, max_layers=4, max_width=64))
            chain = conv_chains.transform(chain, options[random.integers(len(options))])
        found.add(chain)
    return sorted(found)


def brute_force(first, second):
    """D_l over all ways to match layers in order."""
    a, b = edit_distances._sequence(first.stages), edit_distances._sequence(second.stages)
    return min(
        sum(edit_distances._layer(a[i], b[j]) for i, j in zip(left, right))
        + len(a) + len(b) - 2 * count
        for count in range(min(len(a), len(b)) + 1)
        for left in itertools.combinations(range(len(a)), count)
        for right in itertools.combinations(range(len(b)), count))


def test_each_operation_is_the_step_that_is_said():
    for operation, step in ((Deepen(0, 3), 1), (Deepen(2, 5), 1), (Widen(1, 16), 0.5),
                            (Connect(0, 2, "add"), 1), (Connect(0, 1, "concat"), 1)):
        assert distance(START, conv_chains.transform(START, operation)) == step
    quarter = ConvChain(((Layer(3, 8),), (Layer(3, 32),), (Layer(3, 8),)))
    assert distance(START, quarter) == 0.75  # |8 - 32| / 32
    other_kernel = ConvChain(((Layer(5, 8),), (Layer(3, 8),), (Layer(3, 8),)))
    assert distance(START, other_kernel) == pytest.approx(0.4)  # |3 - 5| / 5


def test_skips_by_hand():
    first, second = Skip(1, 3, "add"), Skip(2, 5, "add")
    # starts 1 and 2, reaches 2 and 3: (1 + 1) / (2 + 3)
    assert edit_distances.skip_distance([first], [second]) == pytest.approx(0.4)
    assert edit_distances.skip_distance([first], [second._replace(kind="concat")]) == 1
    assert edit_distances.skip_distance([first], [second, first]) == 1
    assert edit_distances.skip_distance([], [first, second]) == 2
    chains = [ConvChain(START.stages, skips) for skips in ((Skip(0, 1, "add"),), ())]
    assert distance(*chains, skip_weight=0.25) == 0.25


def test_matching_is_the_cheapest_in_order():
    chains = [chain for chain in random_chains(40) if len(chain.layers) < 6]
    assert len(chains) >= 8
    for first, second in itertools.combinations(chains[:8], 2):
        assert edit_distances.layer_distance(first, second) == pytest.approx(
            brute_force(first, second))


def test_assignment_is_the_cheapest():
    random = np.random.default_rng(0)
    pairs = [Skip(i, j, kind) for i in range(4) for j in range(i + 1, 5)
             for kind in conv_chains.KINDS]
    for _ in range(30):
        first, second = ([pairs[i] for i in random.choice(len(pairs), size, False)]
                         for size in random.integers(1, 5, 2))
        short, long = sorted((first, second), key=len)
        best = min(sum(edit_distances.skip_distance([x], [y]) for x, y in zip(short, chosen))
                   for chosen in itertools.permutations(long, len(short)))
        assert edit_distances.skip_distance(first, second) == pytest.approx(
            best + len(long) - len(short))


def test_hundred_chains_have_a_metric_and_a_positive_definite_kernel():
    chains = random_chains(100)
    found = edit_distances.distances(chains)
    np.testing.assert_array_equal(found, found.T)
    assert not np.diag(found).any()
    assert (found[~np.eye(100, dtype=bool)] > 0).all()
    # d(i, k) <= d(i, j) + d(j, k) for all million triples
    assert (found[:, None, :] <= found[:, :, None] + found[None] + 1e-12).all()
    np.testing.assert_array_equal(edit_distances.distances(chains[:7], chains), found[:7])
    for length_scale in (1.0, 4.0):
        raw = edit_distances.kernel(found, length_scale=length_scale)
        gram, project = edit_distances.positive_definite(raw)
        np.testing.assert_array_equal(gram, gram.T)
        assert np.linalg.eigvalsh(gram).min() > 0.5 * edit_distances.MIN_EIGENVALUE
        np.linalg.cholesky(gram)
        # A row of the training set is corrected as the matrix is.
        np.testing.assert_allclose(raw @ project, gram, atol=2 * edit_distances.MIN_EIGENVALUE)
        if length_scale == 4:
            assert np.linalg.eigvalsh(raw).min() < -1e-3  # so that there was something to mend


def test_a_positive_definite_matrix_stays():
    gram = np.array([[2.0, 1.0], [1.0, 3.0]])
    corrected = edit_distances.positive_definite(gram)
    np.testing.assert_allclose(corrected.gram, gram)
    np.testing.assert_allclose(corrected.project, np.eye(2), atol=1e-12)


def test_length_scale_is_checked():
    with pytest.raises(ValueError, match="length_scale"):
        edit_distances.kernel(np.zeros((1, 1)), length_scale=0.0)
