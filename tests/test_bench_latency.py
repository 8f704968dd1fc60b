"""The benchmark of latency predictions: its figures, its flags, and a tiny run."""

import json

import numpy as np
import pytest

from benchmarks import bench_latency


def test_errors():
    measured = np.array([1.0, 2.0, 4.0, 8.0])
    exact = bench_latency.errors(measured, measured)
    assert exact["spearman"] == exact["kendall"] == 1.0 and exact["largest_error"] == 0.0
    halves = bench_latency.errors(measured / 2, measured)
    assert halves["kendall"] == 1.0
    assert halves["median_error"] == halves["mean_error"] == halves["largest_error"] == 0.5
    # One of six pairs is in the other order; Spearman's is 1 - 6 * 2 / (4 * 15).
    swapped = bench_latency.errors(measured[[1, 0, 2, 3]], measured)
    np.testing.assert_allclose((swapped["kendall"], swapped["spearman"]), (4 / 6, 0.8))


@pytest.mark.parametrize("flags", [["--spaces", "x"], ["--networks", "2"], ["--repeats", "0"]])
def test_bad_flags(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        bench_latency.main(flags)
    assert stop.value.code == 2 and flags[0] in capsys.readouterr().err


@pytest.mark.slow
def test_smoke(capsys):
    bench_latency.main(["--smoke", "--networks", "3", "--repeats", "3"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["space"] for row in rows] == ["mnasnet", "nasbench201"]
    for row in rows:
        assert row["networks"] == 3 and row["measured_ms"]["min"] > 0
        assert abs(row["table"]["kendall"]) <= 1 and row["table"]["largest_error"] >= 0
    assert [(row["parts"], row["table_programs"]) for row in rows] == [
        (16 + 2 + 1, 19 + 1 + 4), (12, 12 + 3 + 4)]
