"""The loop: one history for one key, however it is run, stopped, continued or vectorised."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import checkpoints, fast_keys, objectives, parallel, search
from jaxnas.base import Searcher
from jaxnas.networks.controllers import independent_logits
from jaxnas.search_spaces import Product
from jaxnas.searchers import random_search, regularized_evolution, reinforce

SPACE = Product((4,) * 6)
TARGET = np.array([3, 1, 0, 2, 2, 0], np.int32)
EVOLUTION = regularized_evolution(SPACE, population_size=8, tournament_size=3)
OBJECTIVE = objectives.maximize("accuracy")
KEY = fast_keys.key(11)
LONGEST = 300


def noisy(key, archs):
    """Return metrics with noise of their own; a twentieth of all evaluations fail."""
    drawn = jax.random.uniform(key, archs.shape[:1])
    noise = 0.1 * drawn
    accuracy = jnp.where(drawn < 0.05, jnp.nan, jnp.mean(archs == TARGET, axis=-1) + noise)
    return {"accuracy": accuracy, "noise": noise}


def evolve(key, num_steps=40):
    return search.run(key, EVOLUTION, noisy, OBJECTIVE, num_steps=num_steps)


@pytest.fixture(scope="module")
def longest():
    return jax.tree.map(np.asarray, jax.jit(lambda key: evolve(key, LONGEST))(KEY))


def first_steps(history, num_steps):
    return jax.tree.map(lambda leaf: leaf[:num_steps], history)


def assert_same(first, second):
    """Assert equal archs and fitness; what the searcher logs may differ in its rounding."""
    chex.assert_trees_all_equal_shapes_and_dtypes(first, second)
    for a, b in zip(first[:3], second[:3]):
        chex.assert_trees_all_equal(a, b)
    chex.assert_trees_all_close(first.info, second.info, rtol=1e-5)


def test_the_history_is_that_of_a_plain_loop(longest):
    # fold_in(key, 0) initialises; step t asks, evaluates and tells with 3 t + 1, + 2, + 3.
    keys = jax.vmap(lambda number: jax.random.fold_in(KEY, number))(jnp.arange(91))
    ask, tell, evaluate = map(jax.jit, (EVOLUTION.ask, EVOLUTION.tell, noisy))
    state, steps = EVOLUTION.init(keys[0]), []
    for step in range(30):
        ask_key, evaluate_key, tell_key = keys[3 * step + 1 : 3 * step + 4]
        archs = ask(ask_key, state)
        metrics = evaluate(evaluate_key, archs)
        state, info = tell(tell_key, state, archs, metrics["accuracy"])
        steps.append(search.History(archs, metrics["accuracy"], metrics, info))
    assert_same(jax.tree.map(lambda *leaves: np.stack(leaves), *steps), first_steps(longest, 30))


def test_shapes_and_failures(longest):
    chex.assert_shape(longest.archs, (LONGEST, 1, 6))
    chex.assert_shape([longest.fitness, *longest.metrics.values()], (LONGEST, 1))
    chex.assert_shape(list(longest.info.values()), (LONGEST,))
    assert longest.archs.dtype == np.int32 and longest.fitness.dtype == np.float32
    failed = np.isnan(longest.fitness[:, 0])
    assert 5 <= failed.sum() <= 30  # 15 expected
    assert np.isfinite(longest.info["population_best"]).all()  # a failure is never the best
    window = np.where(failed, -np.inf, longest.fitness[:, 0])
    best = [window[max(0, step - 7) : step + 1].max() for step in range(LONGEST)]
    np.testing.assert_array_equal(longest.info["population_best"], best)


@pytest.mark.parametrize("num_steps", [1, 127, 128, 129, 257])
def test_a_longer_run_begins_with_the_shorter(longest, num_steps):
    # 129 is cut into 3 equal blocks and 300 too, the prime 257 into 128s and a rest
    history = jax.jit(lambda key: evolve(key, num_steps))(KEY)
    assert_same(history, first_steps(longest, num_steps))


def test_the_same_history_without_jit(longest):
    assert_same(evolve(KEY, 9), first_steps(longest, 9))


@pytest.fixture(scope="module")
def many():
    keys = jax.random.split(KEY, 5).at[3].set(KEY)
    return keys, jax.tree.map(np.asarray, jax.jit(jax.vmap(evolve))(keys))


def test_a_vmap_over_seeds_is_each_seed(many, longest):
    keys, histories = many
    chex.assert_shape(histories.archs, (5, 40, 1, 6))
    assert_same(jax.tree.map(lambda leaf: leaf[3], histories), first_steps(longest, 40))
    assert len(np.unique(histories.fitness[:, 0])) >= 4


@pytest.mark.parametrize("count", [1, 2, 3])
def test_over_seeds_is_the_same_on_any_number_of_devices(many, count):
    keys, expected = many
    traces = []

    def one(key):
        traces.append(count)
        return evolve(key)

    run = search.over_seeds(one, parallel.available_devices(count))
    assert_same(run(keys), expected)
    assert_same(run(keys[::-1]), jax.tree.map(lambda leaf: leaf[::-1], expected))
    assert len(traces) == 1


def test_over_seeds_takes_several_arguments():
    def one(key, tree):
        return {"sum": jax.random.uniform(key) + tree["rate"], "rate": tree["rate"]}

    keys, rates = jax.random.split(KEY, 7), jnp.arange(7.0)
    found = search.over_seeds(one)(keys, {"rate": rates})  # on 8 devices, fewer seeds
    np.testing.assert_array_equal(found["rate"], rates)
    np.testing.assert_array_equal(found["sum"], jax.vmap(jax.random.uniform)(keys) + rates)


@pytest.mark.parametrize("make", [fast_keys.key, jax.random.PRNGKey],
                         ids=["fast", "legacy"])
def test_a_search_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path, make):
    def advance(num_steps):
        return jax.jit(lambda state: search.advance(
            state, EVOLUTION, noisy, OBJECTIVE, num_steps=num_steps))

    start = search.init(make(3), EVOLUTION)
    whole_state, whole = advance(32)(start)
    half = advance(16)
    state, first = half(start)
    checkpoints.save(tmp_path, 16, state, {})
    restored = checkpoints.restore(tmp_path, start).state
    assert int(restored.step) == 16
    final_state, second = half(restored)
    assert_same(jax.tree.map(lambda *parts: np.concatenate(parts), first, second), whole)
    chex.assert_trees_all_equal(final_state._replace(key=None), whole_state._replace(key=None))


def host(metrics_function):
    """Return an evaluator of NumPy arrays, as a trainer is one."""
    compiled = jax.jit(metrics_function)

    def evaluate(key, archs):
        assert type(archs) is np.ndarray and archs.dtype == np.int32
        return {name: np.asarray(values, np.float64).tolist()
                for name, values in compiled(key, archs).items()}

    return evaluate


def test_the_host_loop_is_the_scan(longest):
    start = search.init(KEY, EVOLUTION)
    state, history = search.run_on_host(
        start, EVOLUTION, host(noisy), OBJECTIVE, num_steps=25)
    assert_same(history, first_steps(longest, 25))
    # and goes on from there
    state, history = search.run_on_host(
        state, EVOLUTION, host(noisy), OBJECTIVE, num_steps=5)
    assert int(state.step) == 30
    assert_same(history, jax.tree.map(lambda leaf: leaf[25:30], longest))


def test_on_step_sees_every_step_and_can_stop(longest):
    seen = []

    def on_step(state, step):
        seen.append((int(state.step), step))
        return len(seen) == 4

    state, history = search.run_on_host(search.init(KEY, EVOLUTION), EVOLUTION, host(noisy),
                                        OBJECTIVE, num_steps=100, on_step=on_step)
    assert int(state.step) == 4 and [number for number, _ in seen] == [1, 2, 3, 4]
    assert_same(history, first_steps(longest, 4))
    for number, step in seen:
        assert_same(step, jax.tree.map(lambda leaf: leaf[number - 1 : number], longest))


@pytest.mark.parametrize("num_steps", [0, -3])
def test_no_steps_are_refused(num_steps):
    state = search.init(KEY, EVOLUTION)
    for take in (search.advance, search.run_on_host):
        with pytest.raises(ValueError, match=f"num_steps must be 1 or more, got {num_steps}"):
            take(state, EVOLUTION, noisy, OBJECTIVE, num_steps=num_steps)
    with pytest.raises(ValueError, match="num_steps must be 1 or more"):
        search.run(KEY, EVOLUTION, noisy, OBJECTIVE, num_steps=num_steps)


def test_one_trace():
    run = jax.jit(chex.assert_max_traces(lambda key: evolve(key, 12), n=1))
    histories = [run(jax.random.fold_in(KEY, number)) for number in range(3)]
    assert len({history.archs.tobytes() for history in jax.device_get(histories)}) == 3
    searcher = Searcher(EVOLUTION.init, chex.assert_max_traces(EVOLUTION.ask, n=1),
                        chex.assert_max_traces(EVOLUTION.tell, n=1), 1)
    search.run_on_host(search.init(KEY, searcher), searcher, host(noisy), OBJECTIVE, num_steps=5)


def innermost_scans(jaxpr):
    for equation in jaxpr.eqns:
        inner = [value.jaxpr for value in equation.params.values() if hasattr(value, "jaxpr")]
        below = [scan for part in inner for scan in innermost_scans(part)]
        yield from below
        if equation.primitive.name == "scan" and not below:
            yield equation


@pytest.mark.parametrize("num_steps, lengths", [
    (20, [20]), (256, [128]), (300, [100]), (257, [128, 1]), (131, [128, 3])])
def test_the_loop_of_steps_draws_nothing_for_ask(num_steps, lengths):
    def quiet(key, archs):
        return {"accuracy": jnp.mean(archs == TARGET, axis=-1)}

    jaxpr = jax.make_jaxpr(lambda key: search.run(
        key, EVOLUTION, quiet, OBJECTIVE, num_steps=num_steps))(KEY).jaxpr
    scans = list(innermost_scans(jaxpr))
    assert [scan.params["length"] for scan in scans] == lengths
    assert "random_bits" in str(jaxpr)
    assert not any("random_" in str(scan.params["jaxpr"]) for scan in scans)


def test_hyper_parameters_are_a_second_vmap():
    def run(rate, key):
        searcher = reinforce(
            independent_logits(SPACE.num_choices), optimizer=optax.sgd(rate), batch_size=4)
        return search.run(key, searcher, noisy, OBJECTIVE, num_steps=30)

    rates, keys = jnp.array([0.0, 3.0]), jax.random.split(KEY, 3)
    sweep = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(rates, keys)
    chex.assert_shape(sweep.archs, (2, 3, 30, 4, 6))
    alone = jax.jit(lambda key: run(3.0, key))(keys[1])
    np.testing.assert_array_equal(sweep.archs[1, 1], alone.archs)
    np.testing.assert_allclose(sweep.fitness[1, 1], alone.fitness, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(sweep.archs[0, :, 0], sweep.archs[1, :, 0])  # nothing learnt yet
    late = np.nanmean(sweep.fitness[:, :, 20:], axis=(1, 2, 3))
    assert late[1] > late[0] + 0.3  # a rate of 0 stays at 1/4


def test_an_evaluator_has_keys_of_its_own(longest):
    # Every key of a search is used once, and the evaluator's do not depend on who searches.
    def all_keys():
        keys = jax.vmap(lambda step: jnp.stack(search.step_keys(KEY, step)))(jnp.arange(1000))
        return jax.random.key_data(jnp.append(keys.ravel(), jax.random.fold_in(KEY, 0)))

    assert len(np.unique(jax.jit(all_keys)(), axis=0)) == 3001
    history = jax.jit(lambda key: search.run(
        key, random_search(SPACE), noisy, OBJECTIVE, num_steps=30))(KEY)
    np.testing.assert_array_equal(history.metrics["noise"], longest.metrics["noise"][:30])
    assert len(np.unique(longest.metrics["noise"])) == LONGEST


def test_metrics_stay_raw_and_fitness_is_shaped():
    def evaluate(key, archs):
        return {"accuracy": 10.0 * archs[:, 0], "latency": archs[:, 1].astype(jnp.float32)}

    shaped = lambda metrics: objectives.power("accuracy", 3)(metrics) - metrics["latency"]
    searcher = regularized_evolution(SPACE, population_size=8, tournament_size=3, batch_size=4)
    history = jax.jit(lambda key: search.run(
        key, searcher, evaluate, shaped, num_steps=6))(KEY)
    chex.assert_shape(history.archs, (6, 4, 6))
    np.testing.assert_array_equal(history.metrics["accuracy"], 10.0 * history.archs[..., 0])
    np.testing.assert_array_equal(history.metrics["latency"], history.archs[..., 1])
    np.testing.assert_allclose(
        history.fitness, (history.archs[..., 0] / 10) ** 3 - history.archs[..., 1], rtol=1e-6)
