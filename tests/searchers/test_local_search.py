"""Local search against a plain one that meets the neighbours in the same order."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnas import encodings, fast_keys, objectives, search
from jaxnas.search_spaces import Product
from jaxnas.searchers import local_search, random_search

SPACE = Product((3, 1, 2, 4))
EVERYTHING = [tuple(arch) for arch in itertools.product(*map(range, SPACE.num_choices))]
COUNT = 2 + 0 + 1 + 3  # neighbours of any
RUNS, STEPS = 6, 300


@functools.lru_cache
def landscape(kind):
    """Return arch -> fitness, NaN for a failure."""
    rng = np.random.default_rng(5)
    if kind == "rugged":
        values = rng.permutation(len(EVERYTHING)).astype(np.float32)
    elif kind == "ties and failures":
        values = rng.integers(0, 4, len(EVERYTHING)).astype(np.float32)
        values[rng.random(len(values)) < 0.4] = np.nan
    else:
        values = np.full(len(EVERYTHING), np.nan, np.float32)
    return dict(zip(EVERYTHING, values.tolist()))


def neighbors(arch):
    return {other for other in EVERYTHING if sum(a != b for a, b in zip(arch, other)) == 1}


@pytest.fixture(scope="module")
def histories():
    """Histories by move and landscape, RUNS of each."""
    @functools.partial(jax.jit, static_argnums=1)
    def run(keys, move, values):
        index = lambda archs: encodings.flat_index(archs, SPACE.num_choices)
        evaluate = lambda key, archs: {"fitness": values[index(archs)]}
        return jax.vmap(lambda key: search.run(
            key, local_search(SPACE, move=move), evaluate, objectives.maximize("fitness"),
            num_steps=STEPS))(keys)

    keys = jax.random.split(fast_keys.key(3), RUNS)
    return lambda move, kind: jax.device_get(
        run(keys, move, jnp.array(list(landscape(kind).values()), jnp.float32)))


@pytest.mark.parametrize("kind", ["rugged", "ties and failures", "hopeless"])
@pytest.mark.parametrize("move", ["best", "first"])
def test_it_is_the_plain_search(histories, move, kind):
    values = {arch: -np.inf if np.isnan(value) else value
              for arch, value in landscape(kind).items()}
    found = histories(move, kind)
    starts, moved, restarts = [], 0, 0
    for run in range(RUNS):
        restarts, centre = 0, None
        for step in range(STEPS):
            arch = tuple(found.archs[run, step, 0].tolist())
            if centre is None:  # any arch may be the start
                centre, remaining, best = arch, neighbors(arch), None
                starts.append(arch)
                value = values[centre]
            else:
                value = values[centre]
                remaining.remove(arch)  # a neighbour, and met once
                if best is None or values[arch] > values[best]:
                    best = arch
                improved = values[best] > value
                if improved and (move == "first" or not remaining):
                    centre, remaining, best = best, neighbors(best), None
                    moved += 1
                elif not remaining:  # a local optimum
                    assert all(values[other] <= value for other in neighbors(centre))
                    centre, restarts = None, restarts + 1
            assert found.info["centre_fitness"][run, step] == value
            assert found.info["restarts"][run, step] == restarts
        assert restarts >= 5
    assert len(set(starts)) > 15
    assert (moved > 0) == (kind != "hopeless")


def test_the_order_of_neighbors_is_random(histories):
    # Of the first neighbours that each start meets: every one as likely, and the second too.
    searcher = local_search(SPACE)

    @jax.jit
    @jax.vmap
    def orders(key):
        state = searcher.init(key)._replace(arch=jnp.zeros(4, jnp.int32))
        return jax.vmap(lambda seen: searcher.ask(key, state._replace(seen=seen))[0])(
            jnp.arange(COUNT))

    archs = np.asarray(orders(jax.random.split(fast_keys.key(4), 6000)))
    index = np.asarray(encodings.flat_index(archs, SPACE.num_choices))
    assert all(len(np.unique(row)) == COUNT for row in index)
    for position in range(COUNT):
        _, counts = np.unique(index[:, position], return_counts=True)
        assert len(counts) == COUNT and stats.chisquare(counts).pvalue > 1e-3


def test_every_neighbor_is_met_once_where_there_are_many():
    space = Product((50_001, 3))
    count = 50_002
    searcher = local_search(space)
    states = jax.jit(jax.vmap(searcher.init))(jax.random.split(fast_keys.key(5), 100))
    # the largest stride that was drawn: start + seen * stride must not wrap round 2 ** 31
    state = jax.tree.map(lambda leaf: leaf[jnp.argmax(states.stride)], states)
    assert state.stride > 30_000
    archs = np.asarray(jax.jit(jax.vmap(lambda seen: searcher.ask(
        None, state._replace(seen=seen))[0]))(jnp.arange(count)))
    assert len(np.unique(archs, axis=0)) == count
    assert ((archs != np.asarray(state.arch)).sum(1) == 1).all()


def test_it_climbs_a_single_hill_and_beats_random_search():
    space = Product((5,) * 6)
    target = np.array([4, 0, 2, 1, 3, 2], np.int32)
    num_steps = 1 + 7 * 24  # the start, at most 6 moves to the best, and to see that the top is one

    def evaluate(key, archs):
        return {"near": -jnp.abs(archs - target).sum(-1).astype(jnp.float32)}

    @jax.jit
    def run():
        keys = jax.random.split(fast_keys.key(6), 32)
        searchers = local_search(space), local_search(space, move="first"), random_search(space)
        return [jax.vmap(lambda key: search.run(
            key, searcher, evaluate, objectives.maximize("near"), num_steps=num_steps))(keys)
            for searcher in searchers]

    histories = jax.device_get(run())
    best, first, drawn = (history.fitness.max(axis=(1, 2)) for history in histories)
    assert (best == 0).all()  # every move sets a decision right
    assert min(best.mean(), first.mean()) > drawn.mean() + 1
    for history in histories[:2]:  # within a climb the centre only rises
        rise = np.diff(history.info["centre_fitness"], axis=1)[:, 1:]
        same_climb = np.diff(history.info["restarts"], axis=1)[:, :-1] == 0
        assert (rise[same_climb] >= 0).all() and (rise > 0).any()


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"move must be one of \('best', 'first'\), got 'any'"):
        local_search(SPACE, move="any")
    with pytest.raises(ValueError, match="one decision must have two choices"):
        local_search(Product((1, 1)))
