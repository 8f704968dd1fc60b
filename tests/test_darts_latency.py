"""DARTS under a bound on latency: derivation, repair and what is said, on prices that are given."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import common, darts, darts_latency
from jaxnas import data, latency, reporting
from jaxnas.latency.tables import LatencyTable
from jaxnas.search_spaces import DARTS

DIGITS, SPACE = data.load("digits"), DARTS()
CONFIG = dataclasses.replace(darts.SMOKE, max_latency=10.0, quiet=True)


@pytest.fixture
def prices(monkeypatch):
    """An edge costs its kernel's area in hundredths of a millisecond; nothing is measured."""
    real = latency.darts_latency

    def price(name):
        size = 25 if "5x5" in name else 9 if "conv_3x3" in name else 1
        return size / 100

    def load_or_build(title, units, calibrations, **options):
        return LatencyTable({unit.name: price(unit.name) for unit in units}, 1.0)

    monkeypatch.setattr(latency, "darts_latency", lambda *args, **options: real(
        *args, **options, load_or_build=load_or_build))


def bound_of(limit):
    return darts_latency.LatencyBound(
        dataclasses.replace(CONFIG, max_latency=limit), SPACE, DIGITS)


def wide_alphas():
    """Alphas that want 5x5 separable convolutions first, then 3x3 ones."""
    alphas = np.asarray(jax.random.normal(jax.random.key(0), SPACE.alphas_shape)) / 10
    alphas[..., SPACE.operations.index("sep_conv_5x5")] += 3
    alphas[..., SPACE.operations.index("sep_conv_3x3")] += 2
    return jax.numpy.asarray(alphas)


def test_the_derived_cells_keep_the_bound(prices, monkeypatch):
    # Three cells of 8 edges, one of them normal: 24 * 0.25 + 1 = 7 ms as derived.
    measured = []

    def measure(self, arch):
        measured.append(float(self.predicted.derived(arch)))
        return measured[-1]

    monkeypatch.setattr(darts_latency.LatencyBound, "measure", measure)
    alphas = wide_alphas()
    free = bound_of(8.0).derive(alphas, "softmax")
    assert free.exchanges == 0 and free.measurements == 1
    np.testing.assert_allclose(free.predicted_ms, 7.0, rtol=1e-5)
    np.testing.assert_array_equal(free.arch, SPACE.discretize(alphas))
    for limit in (6.0, 3.2, 2.0):
        found = bound_of(limit).derive(alphas, "softmax")
        assert found.measured_ms <= limit and found.exchanges > 0 and found.measurements == 1
        sources = found.arch.reshape(-1, 2)[:, 1]
        np.testing.assert_array_equal(sources, np.asarray(free.arch).reshape(-1, 2)[:, 1])
        SPACE.decode(found.arch)


@pytest.mark.parametrize("factor, met", [(1.2, True), (20.0, False)])
def test_a_slower_real_network_is_repaired_again(prices, monkeypatch, factor, met):
    monkeypatch.setattr(darts_latency.LatencyBound, "measure",
                        lambda self, arch: factor * float(self.predicted.derived(arch)))
    bound = bound_of(6.0)
    found = bound.derive(wide_alphas(), "softmax")
    assert found.measurements > 1 and (found.measured_ms <= 6.0) == met
    _, extra, text = bound.conclude(found, wide_alphas(), np.asarray([found.arch]), np.array([50.]))
    assert extra["latency_bound_met"] is met
    assert ("is met" if met else "is NOT met") in text and "6 ms" in text


def test_a_bound_that_no_cells_keep_is_refused(prices):
    # 24 edges of 0.01 ms and the overhead.
    np.testing.assert_allclose(bound_of(5.0).fastest(), 1.24, rtol=1e-5)
    with pytest.raises(ValueError, match="max_latency must be at least 1.24 ms"):
        bound_of(1.0)
    for limit in (0.0, -1.0):
        with pytest.raises(ValueError, match="must be above 0"):
            bound_of(limit)


def test_random_cells_keep_the_bound_where_some_do(prices):
    bound = bound_of(3.0)
    archs = bound.random(jax.random.key(0), 5)
    assert archs.shape == (5, SPACE.num_decisions)
    assert all(float(bound.predicted.derived(arch)) <= 3.0 for arch in archs)
    strict = bound_of(1.3)  # hardly any
    kept = [float(strict.predicted.derived(arch)) for arch in strict.random(jax.random.key(0), 5)]
    assert kept == sorted(kept)


def test_bad_input(prices, capsys):
    for flags, why in ((["--max-latency", 1], "at least 1.24 ms"),
                       (["--max-latency", 9, "--latency-rate", 0], "latency_rate must be above"),
                       (["--max-latency", 9, "--latency-batch-size", 0], "batch_size must be 1")):
        assert main(flags) == 2
        assert why in capsys.readouterr().err


def main(flags):
    return common.main(darts.Config, darts.PRESETS, darts.SMOKE, darts.run,
                       ["--quiet", "--smoke", *map(str, flags)])


@pytest.mark.slow
def test_smoke_run(prices, tmp_path, capsys):
    path = tmp_path / "run"
    assert main(["--output", path, "--max-latency", 2.5]) == 0
    output = capsys.readouterr().out
    assert "the bound of 2.5 ms is" in output
    assert reporting.validate_run_directory(path) == []
    result = reporting.read_result(path)
    assert result.metrics["latency_ms"].found["mean"] == result.extra["latency_measured_ms"] > 0
    assert len(result.metrics["latency_ms"].random["values"]) == 2
    assert result.extra["latency_predicted_ms"] <= 2.5
    rows = reporting.read_metrics(path / "metrics.jsonl")
    assert [row["expected_latency_ms"] for row in rows if row["kind"] == "epoch"
            and row["phase"] == "search"][0] > 1
    config = json.loads((path / "config.json").read_text())["config"]
    assert config["max_latency"] == 2.5
    assert main(["--resume", path]) == 0  # what was derived is not derived again
    again = reporting.read_result(path)
    assert again.architecture == result.architecture
    assert again.extra["latency_measured_ms"] == result.extra["latency_measured_ms"]
