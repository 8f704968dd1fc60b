"""Runs shown in other people's dashboards: what `--tensorboard` and experiments.dashboards do."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from experiments import common, dashboard_spaces, dashboards, evolution
from jaxnas import data, reporting
from jaxnas.integrations import decisions

DATASET = {"name": "none", "sha256": "0" * 64, "splits": {"train": 4}}
REPORTED = "cifar10_test_accuracy_e200"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of evolution on the table of NAS-Bench-201, as far as dashboards look at one."""
    path = tmp_path_factory.mktemp("runs") / "run"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({
        "experiment": "evolution", "config": common.to_json(evolution.SMOKE)}))
    table = data.nasbench201()
    with reporting.MetricsWriter(path / "metrics.jsonl") as writer:
        for strategy in ("random", "evolution"):
            for number in range(3):
                writer.write("evaluation", strategy=strategy, seed=0, failed=number == 2,
                             arch=table.archs[100 * number],
                             fitness=None if number == 2 else 80.0 + number,
                             **{REPORTED: table.metric(REPORTED)[100 * number]})
    return path


def contents(path):
    """Return folder -> bytes of its events, without the first, which holds when it was made."""
    return {file.parent.name: file.read_bytes()[60:]
            for file in (path / "tensorboard").rglob("events.out.tfevents.*")}


def test_a_run_a_resumption_and_the_tool_write_the_same_events(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    path = tmp_path / "run"

    def advance(config, start, save):
        with common.open_run(config, "dummy", DATASET) as directory:
            for step in range(start, start + 3):
                directory.metrics.write("step", step=step, loss=1 / (step + 1))
                if step == save:
                    directory.save(step, {"x": jnp.zeros(2)})

    advance(common.CommonConfig(output=path, tensorboard=True), 0, save=1)
    assert len(contents(path)) == 1
    advance(common.CommonConfig(resume=path, tensorboard=True), 2, save=9)  # 2 was taken back
    resumed = contents(path)
    assert [row["step"] for row in reporting.read_metrics(path / "metrics.jsonl")] == list(range(5))
    assert dashboards.main(["tensorboard", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split()[-1] == str(path / "tensorboard")
    assert contents(path) == resumed
    config = common.CommonConfig(resume=path, tensorboard=True)
    with common.open_run(config, "dummy", DATASET):
        assert dashboards.main(["tensorboard", str(path)]) == 2
    assert "writes its events itself" in capsys.readouterr().err


def test_without_the_flag_there_are_no_events(tmp_path):
    with common.open_run(common.CommonConfig(output=tmp_path / "run"), "dummy", DATASET) as found:
        found.metrics.write("step", step=0, loss=1.0)
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_run_becomes_studies(run, tmp_path, capsys):
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{tmp_path}/o.sqlite3"
    assert dashboards.main(["optuna", str(run), "--storage", storage]) == 0
    assert "evolution seed0: 3 added, 0 known" in capsys.readouterr().out
    assert dashboards.main(["optuna", str(run), "--storage", storage]) == 0
    assert "evolution seed0: 0 added, 3 known" in capsys.readouterr().out
    study = optuna.load_study(storage=storage, study_name="evolution/run evolution seed0")
    rows = [row for row in reporting.read_metrics(run / "metrics.jsonl")
            if row["kind"] == "evaluation" and row["strategy"] == "evolution"]
    assert [trial.value for trial in study.trials] == [row["fitness"] for row in rows]
    assert [trial.user_attrs["arch"] for trial in study.trials] == [row["arch"] for row in rows]
    assert [trial.user_attrs[REPORTED] for trial in study.trials] == [row[REPORTED] for row in rows]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert study.user_attrs["space"] == "nasbench201"


@pytest.mark.parametrize("arguments, words", [
    (["tensorboard"], "give the directory"), (["tensorboard", "{}/none"], "is no run directory"),
    (["optuna", "{run}", "--metrics", "loss"], "--metrics may be of cifar10"),
    (["optuna", "{run}", "--minimize", "loss"], "minimize must name some of metrics"),
    (["optuna", "{run}", "--store", "{}/none"], "is no file")])
def test_bad_input(run, tmp_path, capsys, monkeypatch, arguments, words):
    pytest.importorskip("tensorboardX" if arguments[0] == "tensorboard" else "optuna")
    monkeypatch.chdir(tmp_path)
    given = [word.replace("{run}", str(run)).replace("{}", str(tmp_path)) for word in arguments]
    assert dashboards.main(given) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_missing_package_is_said_before_anything(run, tmp_path, capsys, monkeypatch):
    import importlib.util
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: (
        None if name in ("tensorboardX", "optuna", "ray") else find(name, package)))
    assert dashboards.main(["optuna", str(run)]) == 2
    assert "pip install 'jaxnas[optuna]'" in capsys.readouterr().err
    flags = ["--smoke", "--output", str(tmp_path / "new"), "--dry-run"]
    code = [common.main(evolution.Config, evolution.PRESETS, evolution.SMOKE, evolution.run,
                        [*flags, *more]) for more in ([], ["--tensorboard"])]
    assert code == [0, 2]
    assert "pip install 'jaxnas[tensorboard]'" in capsys.readouterr().err


def test_the_spaces_of_every_experiment_are_known():
    folder = Path(dashboards.__file__).parent
    programs = {path.stem for path in folder.glob("*.py")
                if "\nPRESETS" in path.read_text(encoding="utf-8")}
    evaluate_none = {"finite_difference", "retrain"}
    assert set(dashboard_spaces.EXPERIMENTS) == programs - evaluate_none


@pytest.mark.parametrize("name", ["enas", "mnasnet", "nasrl_rnn", "pnas"])
def test_the_spaces_of_a_run(name, tmp_path):
    config = common.to_json(dashboard_spaces.EXPERIMENTS[name][0]())
    del config["tensorboard"]  # as of a version that did not have the flag
    (tmp_path / "config.json").write_text(json.dumps({"experiment": name, "config": config}))
    experiment, spaces = dashboard_spaces.find(tmp_path)
    assert experiment == name
    for space in (spaces.last, *spaces.stages.values()):
        assert tuple(len(found.choices) for found in decisions(space)) == space.num_choices
