"""AutoKeras's searcher: tree search, Gaussian process and bounds, without training."""

import math

import numpy as np
import pytest

from jaxnas import conv_chains
from jaxnas.searchers import acquisition_tree, morphism_search, search_tree
from jaxnas.searchers.morphism_search import _upper_bound, random_neighbours

START = conv_chains.initial_chain(width=8)
BOUNDS = {"max_layers": 3, "max_width": 32}


def anything(chain):
    return True


def fitness_of(chain):
    """A toy: a third layer of size 5 in the first stage and a skip are what counts."""
    first = chain.stages[0]
    return (len(first) + sum(layer.kernel == 5 for layer in first)
            + 2 * any(skip.kind == "add" for skip in chain.skips)
            - 0.3 * sum(map(len, chain.stages[1:])))


def run(seed, trials, choose):
    """Fitness of all trials of a search from START on."""
    random, chains = np.random.default_rng(seed), [START]
    while len(chains) < trials:
        chains.append(choose(random, chains, [fitness_of(chain) for chain in chains]))
    assert len(set(chains)) == trials  # never a duplicate
    return [fitness_of(chain) for chain in chains]


def test_search_beats_random_morphisms_on_a_toy():
    trials = 14
    propose = morphism_search(capacity=trials, fits=anything, length_scale=2.0, **BOUNDS)

    def at_random(random, chains, fitness):
        while True:
            pairs = random_neighbours(random, chains[random.integers(len(chains))],
                                      kernels=conv_chains.KERNELS, fits=anything, **BOUNDS)
            new = [chain for _, chain in pairs if chain not in chains]
            if new:
                return new[0]

    seeds = range(3)
    ours = [max(run(seed, trials, lambda *a: propose(*a).node)) for seed in seeds]
    others = [max(run(seed, trials, at_random)) for seed in seeds]
    assert np.mean(ours) > np.mean(others) + 0.5, (ours, others)
    assert _upper_bound._cache_size() == 1


def test_operations_lead_from_the_father_to_the_proposal():
    propose = morphism_search(capacity=8, fits=anything, **BOUNDS)
    random, chains = np.random.default_rng(0), [START]
    for _ in range(7):
        found = propose(random, chains, [fitness_of(chain) for chain in chains])
        chain = chains[found.father]
        for operation in found.operations:
            chain = conv_chains.transform(chain, operation)
        assert chain == found.node and found.operations
        chains.append(found.node)


def test_bounds_are_respected_and_nothing_left_is_none():
    small = {"max_layers": 2, "max_width": 16}
    propose = morphism_search(
        capacity=60, fits=lambda chain: len(chain.layers) < 5 and not chain.skips, **small)
    random, chains = np.random.default_rng(0), [START]
    for _ in range(59):
        found = propose(random, chains, [0.0] * len(chains))
        if found is None:
            break
        chains.append(found.node)
        assert max(len(stage) for stage in found.node.stages) <= 2
        assert max(layer.width for layer in found.node.layers) <= 16
        assert len(found.node.layers) < 5 and not found.node.skips
    nothing = morphism_search(capacity=1, fits=lambda chain: False, **small)
    assert nothing(random, [START], [1.0]) is None
    with pytest.raises(ValueError, match="capacity"):
        nothing(random, [START, chains[1]], [1.0, 1.0])


def test_failed_chains_have_no_children_and_are_not_proposed_again():
    propose = morphism_search(capacity=6, fits=anything, **BOUNDS)
    random = np.random.default_rng(0)
    first = propose(random, [START], [1.0])
    chains = [START, first.node]
    for seed in range(5):
        again = propose(np.random.default_rng(seed), chains, [1.0, math.nan])
        assert again.father == 0 and again.node not in chains
    assert propose(random, chains, [math.nan, math.nan]) is None


def test_the_process_interpolates_what_it_has_seen():
    """A large bound is far from the known, and at the known it is their fitness."""
    gram = np.array([[1.0, 0.2], [0.2, 1.0]], np.float32)
    bound = _upper_bound(gram, gram, np.array([-1.0, 1.0], np.float32), np.ones(2, bool), 1e-6, 0.0)
    np.testing.assert_allclose(bound, [-1, 1], atol=1e-4)


def test_tree_search_takes_the_best_of_a_line_that_falls_before_it_rises():
    """Nodes are integers with neighbours at one; annealing has to cross worse ones."""
    def value(nodes):
        return np.array([5.0 if node == 4 else -abs(node) / 100 for node in nodes])

    found = [search_tree(np.random.default_rng(seed), [0], [0.0],
                         neighbours=lambda _, n: [("up", n + 1), ("down", n - 1)],
                         acquisition=value) for seed in range(5)]
    assert sum(one.node == 4 and one.operations == ("up",) * 4 for one in found) >= 4
    assert all(one.father == 0 for one in found)


@pytest.mark.parametrize("options, message", [
    ({"beta": -1.0}, "beta"), ({"noise": 0.0}, "noise"), ({"capacity": 0}, "capacity"),
    ({"length_scale": 0.0}, "length_scale")])
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        morphism_search(**{"capacity": 3, "fits": anything, **BOUNDS} | options)


def test_bad_temperatures_are_named():
    with pytest.raises(ValueError, match="decay"):
        acquisition_tree.search_tree(
            np.random.default_rng(0), [0], [0.0], neighbours=lambda *_: [],
            acquisition=np.array, decay=1.0)
