"""Stores and runs as Optuna studies: names, values, states, times, and nothing twice."""

import datetime
import json
import math

import numpy as np
import pytest

from jaxnas import genotypes, reporting, trials
from jaxnas.integrations import (Evaluation, Part, export_evaluations, run_evaluations,
                                 stored_evaluations)
from jaxnas.search_spaces import AmoebaNet, NASBench201, Product

optuna = pytest.importorskip("optuna")
from optuna.trial import TrialState  # noqa: E402

CELL = NASBench201()
RECIPE = {"epochs": 2, "seed": 0}


@pytest.fixture
def storage():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.storages.InMemoryStorage()


@pytest.fixture
def store(tmp_path):
    with trials.open_store(tmp_path / "trials.sqlite") as store:
        yield store


def finish(store, arch, metrics, **options):
    claimed = store.claim("nasbench201", arch, RECIPE)
    assert isinstance(claimed, trials.Claimed)
    return store.finish(claimed, metrics, **options)


def load(storage, name):
    return optuna.load_study(storage=storage, study_name=name)


def test_a_store_becomes_a_study(store, storage):
    good = finish(store, (3, 1, 2, 0, 0, 4), {
        "valid_accuracy": 81.5, "latency_ms": 2.0, "valid_accuracy_by_epoch": [70.0, 81.5]},
        seconds=30.0)
    finish(store, (0,) * 6, {"valid_accuracy": math.nan, "latency_ms": 1.0}, failed=True,
           error="diverged")

    def export():
        return export_evaluations(stored_evaluations(store, "nasbench201", RECIPE), CELL, storage,
                                  "one", {"valid_accuracy": "maximize"})

    assert export() == (2, 0, 0)
    study = load(storage, "one")
    assert study.metric_names == ["valid_accuracy"]
    done, failed = study.trials
    assert done.state == TrialState.COMPLETE and done.values == [81.5]
    assert done.params == {
        "edge_0_to_1": "nor_conv_3x3", "edge_0_to_2": "skip_connect",
        "edge_1_to_2": "nor_conv_1x1", "edge_0_to_3": "none", "edge_1_to_3": "none",
        "edge_2_to_3": "avg_pool_3x3"}
    assert done.intermediate_values == {0: 70.0, 1: 81.5}
    assert done.duration == datetime.timedelta(seconds=30)
    assert done.datetime_complete.timestamp() == pytest.approx(good.finished_at, abs=1e-5)
    assert done.user_attrs["latency_ms"] == 2.0
    genotype = genotypes.from_json(json.dumps(done.user_attrs["genotype"]))
    assert tuple(CELL.encode(genotype.architecture)) == (3, 1, 2, 0, 0, 4)
    assert failed.state == TrialState.FAIL and failed.values is None
    assert failed.user_attrs["error"] == "diverged"
    assert "valid_accuracy" not in failed.user_attrs  # JSON has no NaN

    finish(store, (1,) * 6, {"valid_accuracy": 90.0})
    assert export() == (1, 2, 0)  # what is new only
    assert export() == (0, 3, 0)
    assert load(storage, "one").best_trial.number == 2


def test_two_objectives_with_directions(store, storage):
    for number, (accuracy, latency) in enumerate([(80.0, 1.0), (90.0, 3.0), (70.0, 2.0)]):
        finish(store, (number,) * 6, {"valid_accuracy": accuracy, "latency_ms": latency})
    objectives = {"valid_accuracy": "maximize", "latency_ms": "minimize"}
    export_evaluations(stored_evaluations(store, "nasbench201"), CELL, storage, "two", objectives)
    study = load(storage, "two")
    assert {trial.number for trial in study.best_trials} == {0, 1}
    with pytest.raises(ValueError, match="has the objectives"):
        export_evaluations([], CELL, storage, "two", {"valid_accuracy": "maximize"})
    with pytest.raises(ValueError, match="at least"):
        export_evaluations([], CELL, storage, "none", {})


def test_evaluations_that_do_not_fit(storage):
    space = Product((2, 2))
    rows = [Evaluation("a", (0, 1), {"x": 1.0}, False, 0.0, 0.0),
            Evaluation("b", (0, 2), {"x": 1.0}, False, 0.0, 0.0),
            Evaluation("c", (1, 1), {"y": 1.0}, False, 0.0, 0.0),  # lacks the objective
            Evaluation("a", (0, 1), {"x": 1.0}, False, 0.0, 0.0)]
    assert export_evaluations(rows, space, storage, "s", {"x": "maximize"}) == (2, 0, 1)
    assert [trial.state for trial in load(storage, "s").trials] == [
        TrialState.COMPLETE, TrialState.FAIL]
    export_evaluations(rows, space, storage, "s", {"x": "maximize"}, facts={"run": 1})
    with pytest.raises(ValueError, match="of another run"):
        export_evaluations(rows, space, storage, "s", {"x": "maximize"}, facts={"run": 2})


def test_parts_of_a_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with reporting.MetricsWriter(tmp_path / "metrics.jsonl", start_seconds=60.0) as writer:
        writer.write("step", loss=1.0)
        for group in ("found", "random"):
            writer.write("evaluation", phase="search", group=group, stage="a", arch=[0, 1],
                         canonical=[0, 1], fitness=math.nan, valid_accuracy=50.0, failed=True,
                         cost_seconds=4.0, budget=3, budget_unit="epochs", number=0)
        writer.write("evaluation", phase="retrain", group="found", run=0, arch="DARTS_V2",
                     fitness=1.0, failed=False)
    parts = run_evaluations(tmp_path)
    assert [part.name for part in parts] == ["search a found", "search a random"]
    (one,) = parts[Part("search", "a", "random", "")]
    started = (tmp_path / "config.json").stat().st_mtime
    assert one.arch == (0, 1) and one.failed and one.metrics == {"valid_accuracy": 50.0}
    assert one.seconds == 4.0 and started + 60 <= one.finished < started + 100
    assert one.facts == {"budget": 3, "budget_unit": "epochs", "canonical": [0, 1]}


def test_own_genotypes_of_cells(storage):
    space = AmoebaNet(1)
    rows = [Evaluation("a", (0, 1, 2, 3, 1, 0, 3, 2), {"x": 1.0}, False, 0.0, 0.0)]
    export_evaluations(rows, space, storage, "cells", {"x": "maximize"})
    (trial,) = load(storage, "cells").trials
    genotype = genotypes.from_json(json.dumps(trial.user_attrs["genotype"]))
    assert np.array_equal(space.encode(genotype), rows[0].arch)
