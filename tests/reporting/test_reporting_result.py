"""result.json: round trips, strictness, atomic writing, and the contract of the directory."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from jaxnas import genotypes
from jaxnas.reporting import (Architecture, Device, Evaluations, Metric, MetricsWriter, Published,
                              Result, Seconds, StepSeconds, read_result, summarize,
                              validate_run_directory, write_result)

GENOTYPE = genotypes.PUBLISHED["DARTS_V2"]
RESULT = Result(
    complete=True, experiment="darts", system="DARTS",
    architecture=Architecture("darts", genotypes.to_json_dict(GENOTYPE), (1, 2, 3)),
    metrics={"test_accuracy": Metric(summarize([94.0, 95.0]), summarize([92.0, 94.0]), optimum=96.0,
                                     published=Published(97.24, 0.09, "1806.09055"))},
    evaluations=Evaluations(10, 9, 1), compilations=2, seconds=Seconds(1.0, 2.0, 3.0, 6.5),
    step_seconds=StepSeconds(0.01, 0.009, 0.02), seed=0, device=Device("cpu", "Xeon", 1))


@pytest.fixture
def run_directory(tmp_path):
    """A complete run directory without any violation."""
    write_result(tmp_path, RESULT)
    (tmp_path / "config.json").write_text(json.dumps({
        "config": {"epochs": 1}, "seed": 0, "device": {"platform": "cpu", "kind": "x", "count": 1},
        "versions": dict.fromkeys(("python", "jax", "jaxlib", "flax", "optax", "jaxnas"), "1"),
        "dataset": {"name": "digits", "sha256": "00", "splits": {"train": 9}}}))
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        writer.write("epoch", loss=1.0)
        writer.write("evaluation", arch=[1], fitness=2.0, failed=False)
    (tmp_path / "genotype.json").write_text(genotypes.to_json(GENOTYPE))
    for name in ("report.html", "checklist.md", "cell.svg", "cell.png"):
        (tmp_path / name).write_text("x")
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def test_round_trip(tmp_path):
    path = write_result(tmp_path, RESULT)
    assert path.name == "result.json" and [p.name for p in tmp_path.iterdir()] == ["result.json"]
    assert read_result(tmp_path) == RESULT
    assert Result.from_dict(RESULT.to_dict()) == RESULT


def test_the_keys_of_the_contract():
    value = RESULT.to_dict()
    assert list(value) == ["schema", "complete", "experiment", "system", "architecture", "metrics",
                           "evaluations", "compilations", "seconds", "step_seconds", "seed",
                           "device"]
    assert value["schema"] == 1
    assert set(value["metrics"]["test_accuracy"]) == {"found", "random", "optimum", "published"}
    assert set(value["architecture"]) == {"space", "genotype", "arch"}
    assert set(value["seconds"]) == {"compile", "search", "retrain", "total"}
    assert set(value["step_seconds"]) == {"median", "p10", "p90"}


def test_options_are_left_out_or_kept(tmp_path):
    bare = dataclasses.replace(
        RESULT, complete=False, architecture=Architecture("darts"), metrics={
            "loss": Metric(summarize([1.0]))})
    assert set(bare.to_dict()["metrics"]["loss"]) == {"found"}
    assert bare.to_dict()["architecture"] == {"space": "darts", "genotype": None, "arch": None}
    rich = dataclasses.replace(RESULT, programs=("step",), paths={"genotype": "genotype.json"},
                               extra={"anything": [1, {"at": "all"}]})
    for result in (bare, rich):
        write_result(tmp_path, result)
        assert read_result(tmp_path) == result


def test_numpy_scalars_become_numbers(tmp_path):
    result = dataclasses.replace(RESULT, seed=np.int64(3), compilations=np.int32(1),
                                 step_seconds=StepSeconds(np.float32(0.5), 1, np.float64(2)))
    write_result(tmp_path, result)
    assert read_result(tmp_path).step_seconds == StepSeconds(0.5, 1.0, 2.0)
    assert read_result(tmp_path).seed == 3


def test_summarize():
    assert summarize([1.0, 3.0]) == {"values": [1.0, 3.0], "mean": 2.0, "std": 2 ** 0.5}
    assert summarize([4]) == {"values": [4.0], "mean": 4.0, "std": 0.0}
    for bad in ([], [float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="finite"):
            summarize(bad)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float32("nan")])
def test_non_finite_is_refused_by_name_and_the_old_file_stays(tmp_path, number):
    write_result(tmp_path, RESULT)
    with pytest.raises(ValueError, match=r"result\.seconds\.search"):
        write_result(tmp_path, dataclasses.replace(RESULT, seconds=Seconds(1.0, number, 1.0, 1.0)))
    with pytest.raises(ValueError, match=r"result\.extra\.deep\[1\]\.x"):
        write_result(tmp_path, dataclasses.replace(RESULT, extra={"deep": [0, {"x": number}]}))
    assert read_result(tmp_path) == RESULT
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("path, value, message", [
    (("seed",), "0", r"result\.seed must be an integer"),
    (("seed",), True, r"result\.seed must be an integer"),
    (("seed",), None, r"result\.seed must be an integer"),
    (("complete",), 1, r"result\.complete must be true or false"),
    (("schema",), 2, r"result\.schema must be 1"),
    (("schema",), True, r"result\.schema must be 1"),
    (("system",), 3, r"result\.system must be a string"),
    (("metrics",), [], r"result\.metrics must be an object"),
    (("metrics", "test_accuracy", "found", "values"), [1, "2"], r"found\.values\[1\] must be a"),
    (("metrics", "test_accuracy", "found", "mean"), None, r"found\.mean must be a finite"),
    (("metrics", "test_accuracy", "best"), 1, r"test_accuracy has the unknown key 'best'"),
    (("seconds", "total"), 10 ** 400, r"result\.seconds\.total must be a finite number"),
    (("seconds", "total"), False, r"result\.seconds\.total must be a finite number"),
    (("architecture", "arch"), [1.5], r"result\.architecture\.arch\[0\] must be an integer"),
    (("surprise",), 1, r"result has the unknown key 'surprise'"),
])
def test_from_dict_names_the_key(path, value, message):
    data = copy.deepcopy(RESULT.to_dict())
    target = data
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        Result.from_dict(data)


@pytest.mark.parametrize("name", RESULT.to_dict())
def test_missing_key_is_named(name):
    data = RESULT.to_dict()
    del data[name]
    with pytest.raises(ValueError, match=f"lacks the key '{name}'"):
        Result.from_dict(data)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"seed": NaN}', "[" * 100_000])
def test_read_result_refuses_what_is_no_json_object(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result\.json"):
        read_result(tmp_path)


def test_a_good_directory_has_no_violations(run_directory):
    assert validate_run_directory(run_directory) == []


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl", "genotype.json",
                                  "report.html", "checklist.md", "cell.png", "cell.svg"])
def test_a_missing_file_is_a_violation(run_directory, name):
    (run_directory / name).unlink()
    assert any(name.removesuffix(".png") in line or "*.svg" in line
               for line in validate_run_directory(run_directory))


def test_an_interrupted_run_owes_less(run_directory):
    write_result(run_directory, dataclasses.replace(RESULT, complete=False))
    for name in ("genotype.json", "report.html", "checklist.md", "cell.svg", "cell.png"):
        (run_directory / name).unlink()
    with open(run_directory / "metrics.jsonl", "ab") as file:
        file.write(b'{"kind": "st')
    assert validate_run_directory(run_directory) == []


@pytest.mark.parametrize("line, message", [
    ('{"kind": "party", "seconds": 1}', "line 3 has the unknown kind 'party'"),
    ('{"kind": ["step"], "seconds": 1}', "line 3 has the unknown kind"),
    ('{"kind": "step"}', "line 3 has no number 'seconds'"),
    ('{"kind": "evaluation", "seconds": 1, "fitness": 1, "failed": false}', "lacks 'arch'"),
    ("[1]", "must be a JSON object"), ("{", "not JSON")])
def test_bad_metrics_lines_are_violations(run_directory, line, message):
    with open(run_directory / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    assert any(message in violation for violation in validate_run_directory(run_directory))


def test_other_violations(run_directory):
    config = json.loads((run_directory / "config.json").read_text())
    del config["versions"]["jaxlib"], config["dataset"]
    (run_directory / "config.json").write_text(json.dumps(config))
    (run_directory / "genotype.json").write_text(
        genotypes.to_json(GENOTYPE).replace("dil_conv_3x3", "eval"))
    value = RESULT.to_dict()
    value["metrics"]["test_accuracy"]["found"]["mean"] = 99.0
    value["evaluations"]["unique"] = 11
    (run_directory / "result.json").write_text(json.dumps(value))
    text = "\n".join(validate_run_directory(run_directory))
    for part in ("versions lacks jaxlib", "lacks the key 'dataset'", "genotype.json:",
                 "found.mean is 99.0", "evaluations.unique"):
        assert part in text
