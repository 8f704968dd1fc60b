"""MnasNet on images: the reward of a run, its front, what a damaged table does, and a whole run."""

import json

import numpy as np
import pytest

from experiments import mnasnet, mnasnet_latency
from jaxnas import data, latency, objectives, reporting
from jaxnas.latency.tables import LatencyTable

DIGITS = data.load("digits")
FLAGS = ["--quiet", "--smoke"]


def fake_latency(monkeypatch, price=0.5, overhead=1.0):
    """Give every part `price` ms; nothing is measured but the networks at the end."""
    real = latency.mobile_latency

    def load_or_build(title, units, calibrations, **options):
        return LatencyTable({unit.name: price for unit in units}, overhead)

    monkeypatch.setattr(latency, "mobile_latency", lambda *args, **options: real(
        *args, **options, load_or_build=load_or_build))


def row(accuracy, latency_ms, canonical, failed=False):
    return {"valid_accuracy": accuracy, "latency_ms": latency_ms, "canonical": canonical,
            "failed": failed}


def test_front_is_sorted_and_without_twins():
    rows = [row(0.7, 50.0, [0]), row(0.75, 80.0, [1]), row(0.74, 90.0, [2]), row(0.7, 40.0, [3]),
            row(0.75, 80.0, [1]), row(None, 10.0, [4], failed=True)]
    found = mnasnet_latency.front(rows)
    assert [one["canonical"] for one in found] == [[3], [1]]
    assert mnasnet_latency.best_within(found, 79.0)["canonical"] == [3]
    assert mnasnet_latency.best_within(found, 80.0)["canonical"] == [1]
    assert mnasnet_latency.best_within(found, 39.0) is None
    assert mnasnet_latency.front(rows[-1:]) == []


@pytest.mark.parametrize("flags, exponent", [
    ({"hard": False}, (-0.07, -0.07)), ({"hard": True}, objectives.HARD),
    ({"exponent": -0.5}, (-0.5, -0.5))])
def test_reward_of_a_run(monkeypatch, flags, exponent):
    fake_latency(monkeypatch)
    config = mnasnet.Config(latency_target=2.0, **flags)
    system = mnasnet.make_system(config, DIGITS)
    archs = np.asarray([system.stages[0].space.encode(
        "conv_k3_se0_none_x1_n-1|conv_k3_se0_none_x1_n" + depth) for depth in ("-1", "+1")])
    costs = system.costs(archs)
    # A head, one layer in the first stage, 1 or 3 in the second, and the overhead.
    np.testing.assert_allclose(costs["latency_ms"], [2.5, 3.5])
    found = system.objective({"valid_accuracy": np.array([80.0, 80.0], np.float32), **costs})
    _, beta = exponent  # both are above the target
    np.testing.assert_allclose(found, 80 * (costs["latency_ms"] / 2.0) ** beta, rtol=1e-5)
    assert costs["params"][0] == system.final_cost(archs[0]).parameters
    assert costs["multiply_adds"][1] == system.final_cost(archs[1]).multiply_adds


def test_default_target_is_a_share_of_random_networks(monkeypatch):
    fake_latency(monkeypatch, price=0.0, overhead=4.0)
    prices = mnasnet_latency.Prices(
        mnasnet.make_system(mnasnet.Config(), DIGITS).stages[0].space, DIGITS, mnasnet.Config())
    assert prices.target == 3.0


@pytest.mark.parametrize("flags, why", [
    (["--latency-target", "0"], "target must be above 0"),
    (["--exponent", "0.1"], "exponent alpha must be 0 or less"),
    (["--latency-batch-size", "0"], "latency_batch_size must be 1 or more"),
    (["--drop-path-rate", "0.1"], "drops no paths"),
    (["--grid-strides", "3"], "strides must be 1 or 2"),
    (["--evaluations", "3"], "multiple of batch_size")])
def test_bad_input(flags, why, capsys, monkeypatch):
    monkeypatch.setattr(latency, "mobile_latency", None)  # nothing is measured before
    assert main(flags) == 2
    assert why in capsys.readouterr().err


def main(flags):
    from experiments import common
    return common.main(mnasnet.Config, mnasnet.PRESETS, mnasnet.SMOKE, mnasnet.run,
                       [*FLAGS, *map(str, flags)])


def test_a_damaged_table_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXNAS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("experiments.common.enable_compilation_cache", lambda: None)
    real = latency.mobile_latency

    def load_or_build(title, units, calibrations, *, directory, **options):
        return latency.read(directory / "x.json", {}, [])

    monkeypatch.setattr(latency, "mobile_latency", lambda *args, **options: real(
        *args, **options, load_or_build=load_or_build))
    (tmp_path / "latency").mkdir()
    (tmp_path / "latency" / "x.json").write_text("{}")
    assert main(["--output", tmp_path / "run"]) == 2
    assert "is no latency table" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_dry_run_measures_nothing(monkeypatch, capsys):
    monkeypatch.setattr(latency, "mobile_latency", None)
    assert main(["--dry-run"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["estimate"]["gpu_hours"] >= 0 and facts["children"]["mnasnet"] == 4


@pytest.mark.slow
def test_smoke_run(tmp_path, capsys):
    path = tmp_path / "run"
    assert main(["--output", path]) == 0
    output = capsys.readouterr().out
    assert "latency target" in output and "front: accuracy %" in output
    assert reporting.validate_run_directory(path) == []
    result = reporting.read_result(path)
    assert result.complete and result.metrics["latency_ms"].found["mean"] > 0
    assert result.metrics["latency_ms"].random["mean"] > 0
    assert result.extra["latency_prediction"]["parts"] == 16 + 2 + 1
    assert result.extra["latency_prediction"]["programs_of_the_table"] == 16 + 2 + 1 + 1 + 4
    rows = [one for one in reporting.read_metrics(path / "metrics.jsonl")
            if one["kind"] == "evaluation" and one.get("phase") == "search"]
    assert len(rows) == 8 and all(one["latency_ms"] > 0 and one["params"] > 0 for one in rows)
    target = result.extra["latency_target_ms"]
    for one in rows:
        np.testing.assert_allclose(
            one["fitness"], one["valid_accuracy"] * (one["latency_ms"] / target) ** -0.07,
            rtol=1e-4)
    front = result.extra["front"]
    assert front == sorted(front, key=lambda one: one["predicted_latency_ms"])
    assert any(one["measured_latency_ms"] for one in front) or all(
        one["predicted_latency_ms"] > 1.5 * target for one in front)
    assert (path / "front.svg").is_file() and (path / "report.html").is_file()
