"""Gate 15: nothing is compiled after the first steps, and memory does not grow with trials."""

import collections

import flax.linen as nn
import jax
import numpy as np
import pytest

from experiments import (bayesian_optimization, child_search, common, darts, enas, nasrl, pareto,
                         pnas_table, retrain, strategies)
from experiments.child_trials import Kind, SharedTrials
from jaxnas import data, evaluators, fast_keys, objectives, reporting, search, trials
from jaxnas.evaluators import Recipe
from jaxnas.search_spaces import NASBench201, Product
from jaxnas.searchers import islands, random_search, regularized_evolution

pytestmark = pytest.mark.gate(15)
SPACE = NASBench201()
SEARCHERS = {
    "random search": strategies.RandomSearch(), "evolution": strategies.Evolution(),
    "local search": strategies.LocalSearch(), "REINFORCE": strategies.Reinforce(),
    "PPO": strategies.PPO(batch_size=4), "NSGA-II": strategies.NSGA2(population_size=6, children=3),
    "Bayesian optimisation": strategies.BayesianOptimization(
        initial=8, capacity=200),
    "PNAS": strategies.PNAS(level_size=3, capacity=200)}


def searcher_of(name):
    if name == "islands":
        return islands(regularized_evolution(
            SPACE, population_size=4, tournament_size=2, batch_size=2), 2)
    return SEARCHERS[name].searcher(SPACE)


@pytest.mark.parametrize("name", [
    name if name == "evolution" else pytest.param(name, marks=pytest.mark.slow)
    for name in (*SEARCHERS, "islands")])
def test_no_searcher_compiles_after_its_first_steps(name, compilations, gate):
    searcher, after = searcher_of(name), []
    objective = objectives.maximize("sum")
    if name == "NSGA-II":
        objective = objectives.vector(objective, objectives.minimize("sum"))

    def evaluate(key, archs):
        return {"sum": np.where(archs[:, 0] == 1, np.nan, archs.sum(-1))}

    _, history = search.run_on_host(
        search.init(fast_keys.key(0), searcher), searcher, evaluate, objective, num_steps=32,
        on_step=lambda state, history: after.append(len(compilations)))
    assert np.isnan(history.fitness).any() and not np.isnan(history.fitness).all()
    assert after[1:] == [after[0]] * 31  # the first step compiles, no other
    gate(f"{name}: 0 compilations in steps 2 to 32")


EXPERIMENTS = {
    "DARTS": (darts, ("--epochs", 2)), "ENAS": (enas, ("--epochs", 4)),
    "retraining": (retrain, ("--retrain-epochs", 3)),
    "children": (nasrl, ("--evaluations", 12)),
    "Bayesian, table": (bayesian_optimization, ("--block", 2)),
    "PNAS, table": (pnas_table, ("--block", 2)), "fronts, table": (pareto, ("--block", 5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_experiment_compiles_after_warm_up(name, compilations, tmp_path, monkeypatch, gate):
    module, flags = EXPERIMENTS[name]
    written, write = [], reporting.MetricsWriter.write

    def counting(writer, kind, **fields):
        if kind in ("step", "epoch"):
            group = fields.get("strategy") or fields.get("group")
            # a stage of a search of children has networks and decisions of its own
            phase = fields.get("phase", kind), group, fields.get("stage")
            written.append((phase, len(compilations)))
        write(writer, kind, **fields)

    monkeypatch.setattr(reporting.MetricsWriter, "write", counting)
    arguments = ["--smoke", "--quiet", "--output", str(tmp_path / "run"), *map(str, flags)]
    code = enas.main(arguments) if module is enas else common.main(
        module.Config, module.PRESETS, module.SMOKE, module.run, arguments)
    assert code == 0 and len(written) > 2
    assert max(collections.Counter(phase for phase, _ in written).values()) > 2
    grown = [(phase, now - before) for (last, before), (phase, now) in zip(written, written[1:])
             if phase == last and now != before]
    assert grown == []
    gate(f"{name}: 0 compilations between {len(written)} steps")


class Linear(nn.Module):
    """A classifier that takes an architecture and makes little of it."""

    @nn.compact
    def __call__(self, x, arch, *, train, drop_path_rate=0.0):
        return nn.Dense(10)(x.reshape(x.shape[0], -1)) * (1.0 + arch[0])


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.slow
def test_memory_does_not_grow_with_trials(tmp_path, gate):
    # a real training each, its claim, its metrics and curves in the store, the searcher's turn
    count, space, dataset = 500, Product((40, 40, 40), "toy"), data.load("digits")
    config = child_search.ChildConfig(
        limit=60, valid_fraction=0.5, recipe=Recipe(epochs=1, batch_size=10))
    stage = child_search.Stage(
        "toy", space, Linear(), lambda arch: {"arch": arch},
        regularized_evolution(space, population_size=20, tournament_size=5),
        random_search(space), count, lambda: 640.0)
    split = data.split_validation(dataset, fraction=0.5, seed=0, limit=60)
    train = child_search.make_train(stage, config, dataset, evaluators.examples(dataset, split))
    sizes = []
    with trials.open_store(tmp_path / "trials.sqlite") as store:
        shared = SharedTrials(store, Kind("toy", {"seed": 0}), train)

        def evaluate(key, archs):
            return {"accuracy": [child.metrics["valid_accuracy"]
                                 for child in shared.evaluate(archs)]}

        search.run_on_host(
            search.init(jax.random.key(0), stage.searcher), stage.searcher, evaluate,
            objectives.maximize("accuracy"), num_steps=count,
            on_step=lambda state, history: sizes.append(resident()))
        assert store.counts().done > 0.9 * count
    warm = sizes[count // 10]
    growth = 100 * (max(sizes[count // 10:]) / warm - 1)
    assert len(sizes) == count and growth < 5
    gate(f"{count} trials: {warm / 2 ** 20:.0f} MiB, {growth:+.1f} % at most")
