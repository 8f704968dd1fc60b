"""NSGA-II: one generation by hand, a toy whose front is known, copies and failures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import fast_keys, objectives, pareto, search
from jaxnas.search_spaces import NASBench201, Product
from jaxnas.searchers import NSGA2State, nsga2, random_search

LENGTH = 12
BITS = Product((2,) * LENGTH)
KEY = fast_keys.key(5)
BOTH = objectives.vector(objectives.maximize("ones"), objectives.minimize("cost"))


def leading_and_trailing(key, archs):
    """LOTZ: leading ones, trailing zeros (as a cost). The front is 1^i 0^(n - i): n + 1 points."""
    del key
    ones = jnp.sum(jnp.cumprod(archs, axis=-1), axis=-1)
    zeros = jnp.sum(jnp.cumprod(1 - archs[:, ::-1], axis=-1), axis=-1)
    return {"ones": ones.astype(jnp.float32), "cost": (LENGTH - zeros).astype(jnp.float32)}


@functools.cache
def histories(name, num_evaluations=1500, num_seeds=4):
    searcher = {"nsga2": lambda: nsga2(BITS, population_size=30),
                "smaller": lambda: nsga2(BITS, population_size=30, batch_size=10),
                "random": lambda: random_search(BITS, batch_size=30)}[name]()
    run = jax.jit(jax.vmap(lambda key: search.run(
        key, searcher, leading_and_trailing, BOTH,
        num_steps=num_evaluations // searcher.batch_size)))
    return jax.device_get(run(jax.random.split(KEY, num_seeds)))


@functools.cache
def volumes(name):
    """Hypervolumes [S] of all evaluations, as shares of that of the front."""
    fitness = histories(name).fitness
    points = fitness.reshape(len(fitness), -1, 2)
    reference = np.array([0, -LENGTH], np.float32)
    front = np.array([(i, -i) for i in range(LENGTH + 1)], np.float32)
    volume = jax.jit(pareto.hypervolume)
    whole = float(volume(front, reference))
    assert whole == LENGTH * (LENGTH - 1) / 2
    return np.array([float(volume(rows, reference)) for rows in points]) / whole


@pytest.mark.parametrize("name", ["nsga2", pytest.param("smaller", marks=pytest.mark.slow)])
def test_the_whole_front_is_found_and_random_search_finds_less(name):
    found, by_chance = volumes(name), volumes("random")
    assert (found == 1).all()
    assert by_chance.max() < 0.9


def test_history_of_a_search_for_a_front():
    history = histories("nsga2")
    assert history.archs.shape == (4, 50, 30, LENGTH) and history.fitness.shape == (4, 50, 30, 2)
    metrics = history.metrics
    np.testing.assert_array_equal(
        history.fitness, np.stack([metrics["ones"], -metrics["cost"]], -1))
    # the ends of the front have no volume: one of the two may be missing
    assert (history.info["front_size"][:, -1] >= LENGTH).all()
    assert (history.info["num_copies"][:, -1] == 0).all()


def test_the_host_loop_is_the_scan():
    searcher = nsga2(BITS, population_size=30)
    compiled = jax.jit(leading_and_trailing)
    key = jax.random.split(KEY, 4)[0]
    _, host = search.run_on_host(
        search.init(key, searcher), searcher, lambda key, archs: compiled(key, archs), BOTH,
        num_steps=4)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0, :4], b),
                 histories("nsga2"), host)


# ---- survival ------------------------------------------------------------------------------------

SPACE = Product((10,))


def one_generation(members, children, space=SPACE):
    """Tell fitness of (number, a, b); return the survivors as (number, a, b)."""
    state = NSGA2State(jnp.array([m[:1] for m in members], jnp.int32),
                       jnp.array([m[1:] for m in members], jnp.float32), jnp.int32(len(members)))
    searcher = nsga2(space, population_size=len(members), batch_size=len(children))
    state, info = jax.jit(searcher.tell)(
        KEY, state, jnp.array([c[:1] for c in children], jnp.int32),
        jnp.array([c[1:] for c in children], jnp.float32))
    return [(int(arch[0]), *map(float, row)) for arch, row in zip(state.archs, state.fitness)], info


def test_a_generation_by_hand():
    members = [(0, 0.0, 10.0), (1, 10.0, 0.0), (2, 1.0, 6.0), (3, 2.0, 2.0)]
    children = [(4, 4.0, 5.0), (5, 3.0, 5.5), (6, 0.0, 9.0), (7, 1.0, 1.0)]
    # Front: 0, 1, 2, 4, 5, one too many. Ranges 10 and 10; 0 and 1 are its ends.
    # 2: (3 - 0 + 10 - 5.5) / 10 = 0.75; 5: (4 - 1 + 6 - 5) / 10 = 0.4; 4: (7 + 5.5) / 10 = 1.25
    survivors, info = one_generation(members, children)
    assert {row[0] for row in survivors[:2]} == {0, 1}
    assert survivors[2:] == [(4, 4.0, 5.0), (2, 1.0, 6.0)]
    assert int(info["front_size"]) == 4 and int(info["num_copies"]) == 0


def test_copies_survive_only_for_want_of_others():
    members = [(0, 0.0, 3.0), (1, 3.0, 0.0), (2, 1.0, 1.0)]
    survivors, info = one_generation(members, [(0, 9.0, 9.0), (1, 3.0, 0.0), (3, 0.0, 0.0)])
    # what an architecture got first stays, as of a noisy evaluation
    assert [row[0] for row in survivors[2:]] == [2] and survivors[2][1:] == (1.0, 1.0)
    assert {row[0] for row in survivors[:2]} == {0, 1} and int(info["num_copies"]) == 0
    failed = (np.nan, 1.0)
    survivors, info = one_generation(members[:2] + [(4, *failed)], [(0, 0.0, 3.0), (5, *failed)])
    assert survivors[2] == (0, 0.0, 3.0) and int(info["num_copies"]) == 1


def test_isomorphic_cells_are_copies():
    space = NASBench201()
    archs = jnp.array([[1, 0, 0, 0, 0, 2], [1, 0, 1, 0, 0, 2], [0, 1, 0, 0, 0, 2]], jnp.int32)
    same = np.asarray(jax.jit(jax.vmap(space.canonical))(archs))
    assert (same[1] == same[0]).all() or (same[1] == same[2]).all()
    searcher = nsga2(space, population_size=3)
    state = searcher.init(KEY)
    _, info = jax.jit(searcher.tell)(KEY, state, archs, jnp.ones((3, 2)))
    assert int(info["num_copies"]) == 3 - len(np.unique(same, axis=0))


def test_failures_never_survive_what_did_not_fail():
    survivors, info = one_generation(
        [(0, np.nan, 50.0), (1, -5.0, -5.0)], [(2, np.inf, 0.0), (3, -6.0, -6.0)])
    assert [row[0] for row in survivors] == [1, 3] and int(info["front_size"]) == 1
    survivors, info = one_generation([(0, np.nan, 1.0), (1, 1.0, np.nan)], [(2, 1.0, np.nan)])
    assert all(row[1:] == (-np.inf, -np.inf) for row in survivors)
    assert int(info["front_size"]) == 0


def test_parents_are_taken_in_binary_tournaments():
    # No variation: a child is its first parent, the better of two draws with replacement, so the
    # member at place i of P is chosen with probability (2 (P - i) - 1) / P ** 2.
    searcher = nsga2(SPACE, population_size=4, batch_size=4, crossover_rate=0, mutation_rate=0)
    state = NSGA2State(jnp.arange(4, dtype=jnp.int32)[:, None], jnp.zeros((4, 2)), jnp.int32(4))
    keys = jax.random.split(KEY, 5000)
    archs = np.asarray(jax.jit(jax.vmap(lambda key: searcher.ask(key, state)))(keys))
    counts = np.bincount(archs.ravel(), minlength=4) / archs.size
    np.testing.assert_allclose(counts, [7 / 16, 5 / 16, 3 / 16, 1 / 16], atol=0.015)


def test_rates_can_be_tracers():
    def share(rate):
        searcher = nsga2(BITS, population_size=4, crossover_rate=0, mutation_rate=rate)
        state = NSGA2State(jnp.zeros((4, LENGTH), jnp.int32), jnp.zeros((4, 2)), jnp.int32(4))
        return jnp.mean(jax.vmap(lambda key: searcher.ask(key, state))(
            jax.random.split(KEY, 500)).sum(-1))

    found = jax.jit(jax.vmap(share))(jnp.array([0.0, 0.3, 1.0]))
    np.testing.assert_allclose(found, [0, 0.3, 1], atol=0.05)


@pytest.mark.parametrize("settings, message", [
    ({"population_size": 1}, r"population_size must be in \[2, 65536\], got 1"),
    ({"batch_size": 21}, r"batch_size must be in \[1, 20\], got 21"),
    ({"batch_size": 0}, "batch_size must be"),
    ({"num_objectives": 0}, "num_objectives must be 1 or more"),
    ({"crossover_rate": 1.5}, r"crossover_rate must be in \[0, 1\], got 1.5"),
    ({"mutation_rate": float("nan")}, "mutation_rate must be"),
])
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        nsga2(SPACE, **settings)


def test_one_objective_for_two_is_refused_before_compilation():
    searcher = nsga2(SPACE, population_size=4)
    with pytest.raises(ValueError, match=r"fitness must be \[4, 2\], got \[4\]; give one "):
        searcher.tell(KEY, searcher.init(KEY), jnp.zeros((4, 1), jnp.int32), jnp.zeros(4))
