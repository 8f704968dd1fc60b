"""Benchmarks: flags, a smoke run, and that what they compare does the same."""

import json
import random
import sys

import jax
import numpy as np
import pytest

from benchmarks import bench_searchers, bench_supernet, common, python_searchers
from jaxnas import data, fast_keys
from jaxnas.evaluators import tabular
from jaxnas.search_spaces import NASBench201

METRIC = "cifar10_valid_accuracy_e12"
EVALUATIONS, SEEDS = 60, 400


@pytest.fixture(scope="module")
def table():
    return data.load_table("nasbench201")


@pytest.fixture(scope="module")
def python_tables(table):
    return python_searchers.make_tables(table.dense(METRIC))


@pytest.mark.parametrize("module", [bench_searchers, bench_supernet])
def test_help(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--help"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0 and "--repeats" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--questions", "x"], ["--searchers", "x"], ["--repeats", "0"]])
def test_bad_flags(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        bench_searchers.main(flags)
    assert stop.value.code == 2 and flags[0] in capsys.readouterr().err


def test_smoke(capsys):
    bench_searchers.main(["--smoke", "--questions", "budget", "--searchers", "evolution"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["code"] for row in rows} == {
        "jaxnas", *(f"python {style}" for style in python_searchers.BASELINES["evolution"])}
    for row in rows:
        assert row["benchmark"] == "searchers" and row["device"].startswith("cpu")
        assert row["evaluations_per_second"] > 0 and row["core_nanoseconds_per_evaluation"] > 0
        assert set(row["seconds"]) == set(common.Timing._fields)
        if row["code"] == "jaxnas":
            assert (row["seeds"], row["evaluations"]) == (4, 20)
            assert set(row["ratio"]) == set(python_searchers.BASELINES["evolution"])
            assert row["seconds"]["compile"] > 0


def test_interleaved_runs_take_turns():
    calls = []
    seconds = common.interleave({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert calls == list("abababab")  # one round to warm up
    assert seconds["a"][0].shape == seconds["a"][1].shape == (3,)
    timing = common.timing(np.arange(101.0), 1.0, 2.0)
    assert timing == common.Timing(1.0, 2.0, 50.0, 10.0, 90.0, 25.0, 75.0)


@pytest.mark.parametrize("name", python_searchers.BASELINES)
def test_loops_search_as_ours_does(name, table, python_tables):
    searcher = bench_searchers.make_searcher(name, NASBench201(mutation="edge"))
    evaluator = tabular(table.archs, {"valid": table.metric(METRIC)}, table.num_choices)
    one = bench_searchers.make_search(searcher, evaluator, EVALUATIONS)
    archs, fitness = jax.jit(jax.vmap(one))(jax.random.split(fast_keys.key(0), SEEDS))
    index = np.ravel_multi_index(np.moveaxis(np.asarray(archs, int), -1, 0), table.num_choices)
    np.testing.assert_array_equal(fitness, table.dense(METRIC)[index])
    ours = summaries(np.asarray(fitness, float))
    for style, function in python_searchers.BASELINES[name].items():
        rng = random.Random(1)
        told = np.array([function(rng, python_tables, EVALUATIONS) for _ in range(SEEDS)])
        assert told.shape == (SEEDS, EVALUATIONS)
        for what, mean, theirs in zip(("best", "mean", "late"), ours, summaries(told)):
            error = np.hypot(mean.std(), theirs.std()) / np.sqrt(SEEDS)
            assert abs(mean.mean() - theirs.mean()) < 4 * error, (style, what)


def summaries(fitness):
    """Of every seed, [S]: the best, the mean, and the median of the last third."""
    return fitness.max(1), fitness.mean(1), np.median(fitness[:, -EVALUATIONS // 3:], 1)


def test_python_tables(python_tables):
    assert len(python_tables.by_arch) == len(python_tables.by_index) == 15_625
    assert python_tables.by_arch[(1, 2, 3, 4, 0, 1)] == python_tables.by_index[
        np.ravel_multi_index((1, 2, 3, 4, 0, 1), (5,) * 6)]
    neighbors = np.array(python_tables.neighbors).reshape(15_625, 24)
    archs = np.stack(np.unravel_index(np.arange(15_625), (5,) * 6), -1)
    assert ((archs[neighbors] != archs[:, None]).sum(-1) == 1).all()
    assert all(len(set(row)) == 24 for row in neighbors[::1000].tolist())
