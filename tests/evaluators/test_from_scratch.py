"""A search that trains: one compilation, duplicates once, and a lookup as good as a training."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import data, objectives, parallel, search, trials
from jaxnas.evaluators import PopulationTooLarge, Recipe, children, from_scratch
from jaxnas.search_spaces.product import Product
from jaxnas.searchers import random_search

CHOICES = (3, 4)
RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=0.05)


class Tiny(nn.Module):
    """Decision 0 scales the image; of decision 1 the values 0 and 1 are the same, 3 explodes."""

    @nn.compact
    def __call__(self, x, arch, *, train, drop_path_rate=0.0):
        x = x.reshape(x.shape[0], -1) * (1.0 + arch[0])
        return nn.Dense(10)(x) * jnp.where(arch[1] == 3, jnp.inf, 1.0 + (arch[1] == 2))


def canonical(arch):
    return arch.at[1].set(jnp.where(arch[1] == 1, 0, arch[1]))


@functools.cache
def prepared():
    dataset = data.load("digits")
    examples = children.examples(dataset, data.split_validation(dataset, fraction=0.5, limit=64))
    return children.train_children(Tiny(), RECIPE, augment=lambda key, x: x / 16.0,
                                   normalize=lambda x: x / 16.0), examples


def make(**options):
    trainer, examples = prepared()
    return from_scratch(trainer, examples, CHOICES, **{"population": 4, **options})


def all_archs():
    return np.indices(CHOICES).reshape(2, -1).T.astype(np.int32)


@pytest.fixture
def compilations():
    """Count programs that XLA compiles from here on."""
    counts, listening = [], [True]

    def listen(event, seconds, **_):
        if listening and event == "/jax/core/compile/backend_compile_duration":
            counts.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counts
    listening.clear()  # there is no public way to take it off


def test_a_hundred_children_are_one_compilation(compilations):
    key = jax.random.key(0)
    evaluate = make(canonical=canonical, population=8)
    assert compilations  # the program of the children: the counter counts
    rng = np.random.default_rng(0)
    evaluate(None, all_archs()[:1])  # canonical forms, keys, scores: one each
    before = len(compilations)
    count = 0
    for size in (1, 8, 3, 30, 7, 16, 5, 30):
        archs = all_archs()[rng.integers(0, 12, size)]
        metrics = evaluate(key, archs)
        assert {values.shape for values in metrics.values()} == {(size,)}
        count += size
    assert count == 100 and len(compilations) == before


def test_results_depend_on_seed_and_canonical_architecture_alone():
    trained = []
    evaluate = make(canonical=canonical,
                    record=lambda arch, metrics, curves: trained.append((tuple(arch), curves)))
    archs = all_archs()
    metrics = evaluate(jax.random.key(1), archs)
    # three values of decision 0, and of decision 1 the three that differ
    assert sorted(arch for arch, _ in trained) == [(i, j) for i in range(3) for j in (0, 2, 3)]
    for arch, curves in trained:
        assert {name: curve.shape for name, curve in curves.items()} == dict.fromkeys(
            children.CURVES, (2,))
    loss = metrics["valid_loss"].reshape(CHOICES)
    np.testing.assert_array_equal(loss[:, 0], loss[:, 1])
    assert np.isfinite(loss[:, :3]).all() and np.isnan(loss[:, 3]).all()
    assert (metrics["diverged_epoch"].reshape(CHOICES)[:, 3] == 0).all()
    assert len(np.unique(loss[:, :3])) == 6
    again = make(canonical=canonical, population=1)(jax.random.key(2), archs[::-1])
    two = make(canonical=canonical, devices=parallel.available_devices(2), population=3)
    for other in (again, two(jax.random.key(3), archs[::-1])):
        for name, values in metrics.items():
            np.testing.assert_allclose(other[name][::-1], values, rtol=1e-5, err_msg=name)
    other = make(seed=1)(jax.random.key(1), archs[:4])["valid_loss"]
    assert (other[:3] != metrics["valid_loss"][:3]).all()


def test_metrics_are_the_recipe_of_the_curves():
    seen = {}
    metrics = make(record=lambda arch, row, curves: seen.update({tuple(arch): (row, curves)}))(
        None, np.array([[1, 0]]))
    row, curves = seen[1, 0]
    assert row == {name: values[0] for name, values in metrics.items()}
    assert metrics["valid_accuracy"][0] == curves["valid_accuracy"].max()
    assert 0 <= metrics["valid_accuracy"][0] <= 100
    assert metrics["train_loss"][0] == curves["train_loss"][-1]


def test_a_search_with_a_store_of_trials_trains_nothing_twice(tmp_path):
    trainings = []
    recipe = RECIPE.to_json() | {"seed": 0}

    with trials.open_store(tmp_path / "trials.sqlite") as store:
        claims = {}

        def lookup(arch):
            found = store.claim("tiny", arch, recipe)
            if isinstance(found, trials.Trial):
                return {} if found.failed else found.metrics
            claims[tuple(arch)] = found
            return None

        def record(arch, metrics, curves):
            trainings.append(tuple(arch))
            store.finish(claims.pop(tuple(arch)), metrics, failed=np.isnan(metrics["valid_loss"]))

        evaluate = make(canonical=canonical, lookup=lookup, record=record)
        searcher = random_search(Product(CHOICES), batch_size=5)
        objective = objectives.power("valid_accuracy", 3)
        histories = []
        for _ in range(2):
            state = search.init(jax.random.key(0), searcher)
            histories.append(search.run_on_host(
                state, searcher, evaluate, objective, num_steps=6)[1])
        assert len(trainings) == len(set(trainings)) == store.counts().done + store.counts().failed
    first, second = histories
    np.testing.assert_array_equal(first.fitness, second.fitness)
    np.testing.assert_array_equal(np.isnan(first.fitness), first.archs[..., 1] == 3)
    fraction = np.asarray(first.metrics["valid_accuracy"]) / 100
    np.testing.assert_allclose(first.fitness, fraction ** 3, rtol=1e-6)


def test_a_refused_candidate_fails_alone():
    asked = []
    evaluate = make(accepts=lambda arch: arch[0] < 2, lookup=lambda arch: asked.append(arch))
    loss = evaluate(None, np.array([[0, 0], [2, 0], [1, 0]]))["valid_loss"]
    assert np.isnan(loss).tolist() == [False, True, False]
    assert len(asked) == 2
    with pytest.raises(PopulationTooLarge, match="not even one child"):
        make(available_bytes=100)


def test_wrong_arguments_are_named():
    evaluate = make(lookup=lambda arch: {"valid_loss": 1.0})
    for archs in (np.zeros((2, 3), int), np.zeros((2, 2)), np.zeros((0, 2), int)):
        with pytest.raises(ValueError, match="archs must be integers"):
            evaluate(None, archs)
    with pytest.raises(ValueError, match="decision l of archs"):
        evaluate(None, np.array([[0, 4]]))
    with pytest.raises(ValueError, match="lookup must return"):
        evaluate(None, np.array([[0, 0]]))
