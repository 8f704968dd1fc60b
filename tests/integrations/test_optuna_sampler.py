"""Optuna with our searchers: the same architectures as `search.run`, from any point on."""

import functools

import jax
import numpy as np
import optax
import pytest

from jaxnas import networks, objectives, search, search_spaces, searchers
from jaxnas.evaluators import tabular
from jaxnas.integrations import choices, decisions, read_choices
from jaxnas.search_spaces import Product
from jaxnas.searchers import nsga2, random_search, regularized_evolution

optuna = pytest.importorskip("optuna")
from optuna.trial import TrialState  # noqa: E402

from jaxnas.integrations.optuna_sampler import JaxnasSampler, suggest_arch  # noqa: E402

SPACE = Product((3, 4, 2, 3))
ARCHS = np.stack(np.unravel_index(np.arange(72), SPACE.num_choices), -1).astype(np.int32)
VALUES = np.random.default_rng(0).normal(size=(2, 72)).astype(np.float32)
STEPS = 24


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@functools.cache
def evolution():
    return regularized_evolution(SPACE, population_size=6, tournament_size=3)


@functools.cache
def fronts():
    return nsga2(SPACE, population_size=4)


def row(arch):
    return int(np.ravel_multi_index(tuple(arch), SPACE.num_choices))


@functools.cache
def expected(minimize=False, failures=False):
    """Return the archs [T, L] of `search.run` with seed 3."""
    values = VALUES[0].copy()
    if failures:
        values[::5] = np.nan
    evaluator = tabular(ARCHS, {"value": values}, SPACE.num_choices)
    objective = (objectives.minimize if minimize else objectives.maximize)("value")
    if minimize or failures:  # the same history, by programs that the sampler uses too
        return walk(evolution(), evaluator, objective, STEPS)
    history = jax.jit(lambda key: search.run(
        key, evolution(), evaluator, objective, num_steps=STEPS))(jax.random.key(3))
    return np.asarray(history.archs)[:, 0]


def walk(searcher, evaluator, objective, num_steps):
    """Return the archs [T * B, L] of a search on the host with seed 3."""
    _, history = search.run_on_host(search.init(jax.random.key(3), searcher), searcher, evaluator,
                                    objective, num_steps=num_steps)
    return np.asarray(history.archs).reshape(-1, len(SPACE.num_choices))


def archs_of(study):
    names = [decision.name for decision in decisions(SPACE)]
    return np.array([[int(trial.params[name]) for name in names] for trial in study.trials])


def objective(trial):
    return float(VALUES[0][row(suggest_arch(trial, SPACE))])


@pytest.mark.parametrize("minimize", [False, True])
def test_evolution_walks_as_search_run(minimize):
    study = optuna.create_study(direction="minimize" if minimize else "maximize",
                                sampler=JaxnasSampler(SPACE, evolution(), seed=3))
    study.optimize(objective, n_trials=STEPS)
    assert np.array_equal(archs_of(study), expected(minimize))
    assert not np.array_equal(expected(), expected(True))  # the direction counts


def test_failed_and_pruned_trials_are_told_as_nan():
    def failing(trial):
        number = row(suggest_arch(trial, SPACE))
        if number % 10 == 0:
            raise optuna.TrialPruned
        return float("nan") if number % 5 == 0 else float(VALUES[0][number])

    study = optuna.create_study(direction="maximize",
                                sampler=JaxnasSampler(SPACE, evolution(), seed=3))
    study.optimize(failing, n_trials=STEPS)
    assert {TrialState.FAIL, TrialState.PRUNED} <= {trial.state for trial in study.trials}
    assert np.array_equal(archs_of(study), expected(failures=True))
    assert not np.array_equal(expected(), expected(failures=True))


def test_a_study_is_gone_on_with():
    storage = optuna.storages.InMemoryStorage()

    def study(seed):
        return optuna.create_study(storage=storage, study_name="s", direction="maximize",
                                   load_if_exists=True,
                                   sampler=JaxnasSampler(SPACE, evolution(), seed=seed))

    first = study(3)
    first.optimize(objective, n_trials=9)
    objective(first.ask())  # a process that dies here: its trial stays "running"
    second = study(3)
    second.optimize(objective, n_trials=STEPS - 9)
    done = [n for n, trial in enumerate(second.trials) if trial.state == TrialState.COMPLETE]
    assert len(done) == STEPS and len(second.trials) == STEPS + 1
    assert np.array_equal(archs_of(second)[done], expected())
    with pytest.raises(ValueError, match="is not what this searcher asks for"):
        objective(study(4).ask())


def test_two_objectives_walk_as_search_run():
    evaluator = tabular(ARCHS, {"a": VALUES[0], "b": VALUES[1]}, SPACE.num_choices)
    fitness = objectives.vector(objectives.maximize("a"), objectives.minimize("b"))
    study = optuna.create_study(directions=["maximize", "minimize"],
                                sampler=JaxnasSampler(SPACE, fronts(), seed=3))
    study.optimize(lambda trial: tuple(map(float, VALUES[:, row(suggest_arch(trial, SPACE))])),
                   n_trials=24)
    assert np.array_equal(archs_of(study), walk(fronts(), evaluator, fitness, 6))


@pytest.mark.parametrize("searcher, directions", [
    (evolution, ["maximize", "maximize"]), (fronts, ["maximize"]), (fronts, ["minimize"] * 3)])
def test_objectives_that_a_searcher_does_not_take(searcher, directions):
    study = optuna.create_study(directions=directions, sampler=JaxnasSampler(SPACE, searcher()))
    with pytest.raises(ValueError, match=f"{len(directions)} objectives.*nsga2"):
        objective(study.ask())


def test_misuse():
    with pytest.raises(ValueError, match="archs of 5 decisions"):
        JaxnasSampler(Product((2,) * 5), evolution())
    sampler = JaxnasSampler(SPACE, evolution())
    study = optuna.create_study(sampler=sampler)
    objective(study.ask())
    with pytest.raises(RuntimeError, match="tell one of these trials"):
        objective(study.ask())
    with pytest.raises(ValueError, match="belongs to the study"):
        objective(optuna.create_study(study_name="another", sampler=sampler).ask())


def test_capacity_ends_the_search():
    searcher = random_search(SPACE)._replace(capacity=2)
    study = optuna.create_study(sampler=JaxnasSampler(SPACE, searcher))
    study.optimize(objective, n_trials=2)
    with pytest.raises(RuntimeError, match="capacity of 2"):
        objective(study.ask())


def test_threads_share_a_sampler_and_batches_stay_whole():
    searcher = random_search(SPACE, batch_size=3)
    study = optuna.create_study(direction="maximize",
                                sampler=JaxnasSampler(SPACE, searcher, seed=3))
    study.optimize(objective, n_trials=12, n_jobs=2)
    evaluator = tabular(ARCHS, {"value": VALUES[0]}, SPACE.num_choices)
    asked = walk(searcher, evaluator, objectives.maximize("value"), 4)
    assert sorted(map(tuple, archs_of(study))) == sorted(map(tuple, asked))


def test_enqueued_trials_and_other_parameters():
    rates = []

    def with_rate(trial):
        rates.append(trial.suggest_float("rate", 0.1, 1.0, log=True))
        return objective(trial)

    study = optuna.create_study(direction="maximize",
                                sampler=JaxnasSampler(SPACE, evolution(), seed=3))
    study.enqueue_trial(choices(SPACE, (2, 3, 1, 2)))
    study.optimize(with_rate, n_trials=7)
    assert tuple(archs_of(study)[0]) == (2, 3, 1, 2)
    assert np.array_equal(archs_of(study)[1:], expected()[:6])
    assert len(set(rates)) == 7 and all(0.1 <= rate <= 1 for rate in rates)


# Spaces whose decisions constrain each other, and cells; every searcher on one of them.
@pytest.mark.slow
@pytest.mark.parametrize("make", [
    lambda: (search_spaces.NASBench101(), searchers.random_search),
    lambda: (search_spaces.DARTS(num_nodes=2), lambda space: regularized_evolution(
        space, population_size=4, tournament_size=2)),
    lambda: (search_spaces.AmoebaNet(2), searchers.local_search),
    lambda: (search_spaces.ENASMacro(3), lambda space: searchers.reinforce(
        networks.lstm_controller(space.num_choices, hidden_size=8), optimizer=optax.adam(0.1),
        batch_size=2)),
    lambda: (search_spaces.MnasNet(), lambda space: searchers.ppo(
        networks.lstm_controller(space.num_choices, hidden_size=8), optimizer=optax.adam(0.1),
        batch_size=4)),
    lambda: (search_spaces.NASBench201(), lambda space: searchers.bayesian_optimization(
        space, capacity=8, num_initial=4))],
    ids=["random", "evolution", "local", "reinforce", "ppo", "bayesian"])
def test_every_searcher_and_space(make):
    space, factory = make()
    searcher = factory(space)
    steps = 8 // searcher.batch_size

    def score(arch):
        return float(np.sin(np.arange(1, len(arch) + 1) * (np.asarray(arch) + 1)).sum())

    study = optuna.create_study(direction="maximize",
                                sampler=JaxnasSampler(space, searcher, seed=3))
    study.optimize(lambda trial: score(suggest_arch(trial, space)), n_trials=8)
    _, history = search.run_on_host(
        search.init(jax.random.key(3), searcher), searcher,
        lambda key, archs: {"score": np.array([score(arch) for arch in archs])},
        objectives.maximize("score"), num_steps=steps)
    asked = [read_choices(space, trial.params) for trial in study.trials]
    assert np.array_equal(asked, np.asarray(history.archs).reshape(8, -1))
