"""Searches that train children with workers: the same run as without them."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import (amoebanet, child_run, child_search, child_worker, common, nasnet, nasrl,
                         pnas)
from experiments.child_trials import FarmTrials, Kind, Stopped
from jaxnas import data, farms, reporting, trials


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    monkeypatch.delitem(sys.modules, "child_toy", raising=False)
    import child_toy
    return child_toy


def start(toy, *arguments):
    return common.main(toy.Config, {"small": toy.Config()}, toy.Config(), lambda config: (
        child_run.run(config, toy.make_system, toy.make_train)), ["--quiet", *map(str, arguments)])


def test_a_farm_gives_children_as_a_store_does(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    kind, seen = Kind("toy", {"seed": 0}), []
    work = farms.Work("farm_gate:make", {"notes": str(tmp_path / "notes"), "pause": 0.01})
    archs = np.array([[2], [1], [2], [10_003]], np.int32)  # the last one raises
    with farms.local_farm(work, tmp_path / "a.sqlite", workers=2, logs=tmp_path) as farm:
        shared = FarmTrials(farm, kind, on_child=seen.append)
        children = shared.evaluate(archs)
        again = shared.evaluate(archs)
        with pytest.raises(Stopped):
            FarmTrials(farm, kind, stop=lambda: True).evaluate(archs + 1)
    assert [child.metrics.get("number") for child in children] == [2.0, 1.0, 2.0, None]
    assert [child.failed for child in children] == [False, False, False, True]
    assert again == children and shared.trained == 3 and len(seen) == 8


def test_what_a_worker_begins_with(toy):
    config = toy.Config(workers=2, devices=2)
    work = child_worker.work(config, toy.make_system, toy.make_train)
    evaluate = work.load()(json.loads(json.dumps(work.config)))
    dataset = data.load("digits")
    kind = child_search.identity(toy.make_system(config, dataset).stages[0], config, dataset)
    metrics = evaluate(farms.Job(kind.space, (1, 2, 3), kind.recipe))
    assert metrics["valid_accuracy"] == toy.formula((1, 2, 3))["valid_accuracy"]
    with pytest.raises(ValueError, match="the same versions, data and platform"):
        evaluate(farms.Job(kind.space, (1, 2, 3), dict(kind.recipe) | {"seed": 7}))


@pytest.mark.slow
def test_workers_give_the_run_without_them_and_resume_it(toy, tmp_path, capsys, stopping,
                                                         assert_equal_runs):
    whole, path = tmp_path / "whole", tmp_path / "run"
    assert start(toy, "--output", whole) == 0
    with stopping(25):  # in the middle of the search
        assert start(toy, "--workers", 2, "--output", path) == 0
    assert not reporting.read_result(path).complete
    assert start(toy, "--resume", path) == 0
    assert_equal_runs(path, whole)
    with trials.open_store(path / "trials.sqlite") as store:
        pids = {trial.metrics["worker"] for trial in store.trials()}
        assert store.counts().claimed == 0
    assert len(pids) >= 2 and os.getpid() not in pids
    assert (path / "workers").is_dir()


@pytest.mark.parametrize("arguments, word", [
    (["--workers", -1], "workers"), (["--farm", "ray"], "needs --workers"),
    (["--workers", 2, "--population", 2], "population must be 0")])
def test_bad_input_is_one_sentence(toy, arguments, word, tmp_path, capsys):
    assert start(toy, *arguments, "--output", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and word in error


# flags that make batches of two, where the smoke configurations have none
SYSTEMS = {"amoebanet": (amoebanet, ["--children", "2"]), "nasnet": (nasnet, []),
           "nasrl": (nasrl, []), "pnas": (pnas, [])}


def smoke(name, path, *flags):
    module, more = SYSTEMS[name]
    assert common.main(module.Config, module.PRESETS, module.SMOKE, module.run, [
        "--smoke", "--quiet", "--output", str(path), *more, *flags]) == 0
    return path


@pytest.fixture(scope="module")
def cached(compiled_once, tmp_path_factory):
    """Processes of this module share what they compile, as those of users do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXNAS_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=SYSTEMS)
def alone(request, cached, tmp_path_factory):
    """A system's name, and its run without workers."""
    return request.param, smoke(request.param, tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("farm", ["local", pytest.param("ray", marks=pytest.mark.skipif(
    not farms.has_ray(), reason="no Ray"))])
def test_smoke_run_of_a_system_with_workers(alone, farm, tmp_path, capsys, assert_equal_runs):
    name, path = alone
    assert_equal_runs(
        smoke(name, tmp_path / "run", "--workers", "2", "--farm", farm), path)
