"""Experiments on tables as a user runs them: directories, budgets, resumption, own tables.

Runs are made in this process and share a compilation cache of this module.
"""

import itertools
import json
import re

import jax
import numpy as np
import pytest

from experiments import compare, evolution, random_search, table_report, tables
from jaxnas import data, fast_keys, reporting
from jaxnas.search_spaces import NASBench201
from jaxnas.search_spaces.nasbench201 import equivalence_classes
from tests.table_cases import STRATEGIES, TEST, VALID, call, lookup, name_of, save_table, spread

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the drawings out, which take longer than the search."""
    monkeypatch.setattr(table_report, "draw", lambda *_: None)


def search(module, path, *arguments):
    """Run in `path`; return result.json and the arrays of history.npz."""
    assert call(module, "--smoke", "--output", path, *arguments) == 0
    return read(path)


def read(path):
    result = reporting.read_result(path)
    with np.load(path / "history.npz") as arrays:
        return result, dict(arrays)


def records(path, kind):
    """Lines of metrics.jsonl without what a clock wrote."""
    rows = reporting.read_metrics(path / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in ("seconds", "step_seconds")}
            for row in rows if row["kind"] == kind]


def assert_equal_runs(path, other):
    (result, arrays), (other_result, other_arrays) = read(path), read(other)
    assert arrays.keys() == other_arrays.keys()
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], other_arrays[name], err_msg=name)
    assert result.metrics == other_result.metrics and result.extra == other_result.extra
    assert result.evaluations == other_result.evaluations
    assert result.architecture == other_result.architecture


# ---- NAS-Bench-201 -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke_runs(tmp_path_factory):
    """Smoke runs on two devices, made when first asked for: module -> path, terminal's text."""
    made = {}

    def get(module, capsys):
        if module not in made:
            path = tmp_path_factory.mktemp(name_of(module)) / "run"
            search(module, path, "--devices", 2)
            made[module] = path, capsys.readouterr().out
        return made[module]

    return get


@pytest.mark.parametrize("module", STRATEGIES, ids=name_of)
def test_smoke_run_directory(module, smoke_runs, capsys):
    path, out = smoke_runs(module, capsys)
    assert reporting.validate_run_directory(path) == []
    result, arrays = read(path)
    expected = {"random", *STRATEGIES[module]}
    assert result.complete and result.experiment == name_of(module)
    assert result.compilations == len(result.programs) == 2 * len(expected) + 1
    assert result.device.count == 2
    assert result.evaluations.total == 3 * 20 * len(expected) and result.evaluations.failed == 0
    assert 0 < result.evaluations.unique <= result.evaluations.total

    table = data.load_table("nasbench201")
    valid, test = table.dense(VALID), table.dense(TEST)
    best = {}
    for key in expected:
        archs, fitness = arrays[f"{key}_archs"], arrays[f"{key}_fitness"]
        assert archs.shape == (3, 20, 6) and arrays[f"{key}_allowed"].all()
        index = np.ravel_multi_index(np.moveaxis(archs.astype(int), -1, 0), (5,) * 6)
        np.testing.assert_array_equal(fitness, valid[index])
        best[key] = index[np.arange(3), fitness.argmax(1)]

    rows = result.extra["strategies"]
    assert set(rows) == expected
    for key, row in rows.items():
        for metric, values in ((VALID, valid), (TEST, test)):
            found = values[best[key]].astype(float)
            assert row[metric]["mean"] == pytest.approx(found.mean(), rel=1e-6)
            assert row[metric]["std"] == pytest.approx(found.std(ddof=1), rel=1e-4, abs=1e-6)
        assert row["evaluations_mean"] == 20 and row["seeds_without_result"] == 0
        assert ("published" in row) == (key in ("random", "evolution", "reinforce"))
    pairs = {frozenset((pair["first"], pair["second"])) for pair in result.extra["comparisons"]}
    assert pairs <= set(map(frozenset, itertools.combinations(expected, 2)))

    found = result.extra["found"]
    means = {key: valid[best[key]].astype(float).mean() for key in expected}
    others = {key: mean for key, mean in means.items() if key != "random"}
    assert found == max(others or means, key=means.get)
    assert set(result.metrics) == {"test_accuracy", "valid_accuracy"}
    for metric, values in (("test_accuracy", test), ("valid_accuracy", valid)):
        entry = result.metrics[metric]
        np.testing.assert_allclose(entry.found["values"], values[best[found]], rtol=1e-6)
        assert entry.optimum == pytest.approx(values.max(), rel=1e-6)
        if found == "random":
            assert entry.random is None
        else:
            np.testing.assert_allclose(entry.random["values"], values[best["random"]], rtol=1e-6)
        told = table_report.PUBLISHED.get(found) if metric == "test_accuracy" else None
        assert entry.published == told
    assert result.metrics["test_accuracy"].optimum == pytest.approx(94.3733, abs=1e-4)

    arch = np.array(result.architecture.arch)
    assert valid[np.ravel_multi_index(arch, (5,) * 6)] == valid[best[found]].max()
    genotype = json.loads((path / "genotype.json").read_text())
    assert NASBench201().encode(genotype["architecture"]).tolist() == arch.tolist()
    for stem in ("regret", "search_regret", "final", "cell"):
        assert (path / f"{stem}.svg").stat().st_size > 1000
    logged = records(path, "evaluation")
    assert [row["fitness"] for row in logged if row["strategy"] == "random"] == (
        arrays["random_fitness"][0].tolist())
    assert "optimum" in out and str(path / "report.html") in out
    assert all(re.search(rf"^{key} ", out, re.MULTILINE) for key in expected)


def test_devices_and_blocks_change_no_number(smoke_runs, tmp_path, undrawn, capsys):
    # 3 seeds on 2 devices, or on one; 20 evaluations at once, or 7, 7 and 6 of 7
    search(evolution, tmp_path / "run", "--devices", 1, "--block", 7)
    assert_equal_runs(tmp_path / "run", smoke_runs(evolution, capsys)[0])


def test_a_strategy_does_not_depend_on_its_company(smoke_runs, capsys):
    _, alone = read(smoke_runs(evolution, capsys)[0])
    _, together = read(smoke_runs(compare, capsys)[0])
    for name in alone:
        np.testing.assert_array_equal(alone[name], together[name], err_msg=name)


def test_seeds_have_keys_of_their_own():
    def keys(num_seeds, name, seed=0):
        config = random_search.Config(num_seeds=num_seeds, seed=seed)
        made = tables.seed_keys(config, name, jax.devices()[:1])
        return np.asarray(jax.random.key_data(made)[0])

    few, many = keys(3, "random"), keys(5, "random")
    np.testing.assert_array_equal(few, many[:3])
    others = [keys(5, "ppo"), keys(5, "random", 1)]
    assert len(np.unique(np.concatenate([many, *others]), axis=0)) == 15
    assert keys(2, "random").dtype == jax.random.key_data(fast_keys.key(0)).dtype


@pytest.mark.parametrize("module, stop", [
    (random_search, 0), (evolution, 1), (evolution, 5), (random_search, 99)],
    ids=lambda value: value if isinstance(value, int) else name_of(value))
def test_interrupted_run_resumes_bit_equal(module, stop, smoke_runs, stopping, tmp_path, undrawn,
                                           capsys):
    path = tmp_path / "run"
    flags = ("--block", 5, "--devices", 2)  # 4 blocks of random search, then 4 of evolution
    with stopping(stop):  # in block `stop`, counting from 0
        assert call(module, "--smoke", "--output", path, *flags) == 0
    result = reporting.read_result(path)
    assert result.complete == (stop == 99)
    if not result.complete:
        assert reporting.validate_run_directory(path) == []
        assert result.evaluations.total == 3 * 5 * stop
        assert not (path / "history.npz").exists() and not result.paths
        assert set(result.extra.get("strategies", ())) == {
            *(["random"] if stop else []), *(["evolution"] if stop > 4 else [])}
    capsys.readouterr()
    assert call(module, "--resume", path) == 0
    whole, _ = smoke_runs(module, capsys)
    assert_equal_runs(path, whole)
    assert records(path, "evaluation") == records(whole, "evaluation")
    assert len(records(path, "step")) == (8 if module is evolution else 4)


# ---- a user's own table --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table_file(tmp_path_factory):
    return save_table(tmp_path_factory.mktemp("table") / "mine.npz")


def test_own_table(table_file, tmp_path, capsys):
    result, arrays = search(
        evolution, tmp_path / "run", "--table", table_file[0], "--metric", "accuracy",
        "--report-metric", "latency_ms", "--evaluations", 40, "--devices", 1)
    assert reporting.validate_run_directory(tmp_path / "run") == []
    accuracy, latency = spread(table_file, "accuracy"), spread(table_file, "latency_ms")
    failed = 0
    for key in ("random", "evolution"):
        expected = lookup(accuracy, arrays[f"{key}_archs"]).astype(np.float32)
        np.testing.assert_array_equal(arrays[f"{key}_fitness"], expected)
        failed += np.isnan(expected).sum()
    assert result.evaluations.failed == failed > 0
    assert result.metrics["accuracy"].optimum == np.nanmax(accuracy)
    assert result.metrics["latency_ms"].optimum == np.nanmin(latency)  # by its name
    assert all(metric.published is None for metric in result.metrics.values())
    assert not any("published" in row for row in result.extra["strategies"].values())
    assert lookup(accuracy, np.array(result.architecture.arch)) == np.nanmax(
        arrays["evolution_fitness"])
    assert "published:" not in capsys.readouterr().out
    assert not (tmp_path / "run" / "cell.svg").exists()


def test_minimize(table_file, tmp_path, undrawn):
    result, arrays = search(
        evolution, tmp_path / "run", "--table", table_file[0], "--metric", "latency_ms",
        "--minimize", "--evaluations", 60, "--devices", 1)
    latency = spread(table_file, "latency_ms")
    fitness = arrays["evolution_fitness"]
    np.testing.assert_array_equal(fitness, -lookup(latency, arrays["evolution_archs"]))
    metric = result.metrics["latency_ms"]
    assert metric.optimum == 5.0 and result.extra["minimize"]
    np.testing.assert_array_equal(metric.found["values"], -np.nanmax(fitness, 1))
    assert metric.found["values"] == [5.0] * 3  # 60 evaluations of 24 architectures
    assert lookup(latency, np.array(result.architecture.arch)) == 5.0
    assert result.extra["strategies"]["evolution"]["share_at_optimum"] == 1.0


@pytest.mark.parametrize("unique, budget", [(7, None), (None, 50.0), (9, 60.0)])
def test_budgets(unique, budget, table_file, tmp_path, undrawn):
    flags = [] if unique is None else ["--unique-evaluations", unique]
    flags += [] if budget is None else ["--cost-metric", "hours", "--cost-budget", budget]
    result, arrays = search(
        random_search, tmp_path / "run", "--table", table_file[0], "--metric", "accuracy",
        "--evaluations", 40, "--devices", 1, *flags)
    hours, accuracy = spread(table_file, "hours"), spread(table_file, "accuracy")
    total, different, best = 0, 0, []
    for archs, allowed in zip(arrays["random_archs"], arrays["random_allowed"]):
        seen, spent, count, values = set(), 0.0, 0, []
        for arch in map(tuple, archs.tolist()):
            spent += 0.0 if np.isnan(hours[arch]) else hours[arch]
            if len(seen | {arch}) > (unique or np.inf) or spent > (budget or np.inf):
                break
            seen.add(arch)
            count += 1
            values.append(accuracy[arch])
        assert allowed.tolist() == [True] * count + [False] * (40 - count) and 0 < count < 40
        total, different = total + count, different + len(seen)
        best.append(np.nanmax(values))
    assert (result.evaluations.total, result.evaluations.unique) == (total, different)
    assert result.metrics["accuracy"].found["values"] == best


def test_isomorphic_cells_count_once(tmp_path, undrawn):
    result, arrays = search(random_search, tmp_path / "run", "--evaluations", 60,
                            "--unique-evaluations", 40, "--devices", 1)
    classes = equivalence_classes("zero")
    index = np.ravel_multi_index(np.moveaxis(
        arrays["random_archs"].astype(int), -1, 0), (5,) * 6)
    shorter = 0
    for row, allowed in zip(index, arrays["random_allowed"]):
        seen: set[int] = set()
        expected = []
        for cell in classes[row].tolist():
            seen.add(cell)
            expected.append(len(seen) <= 40)
        assert allowed.tolist() == expected
        shorter += len({*row[allowed].tolist()}) > 40
    assert shorter  # cells that differ, and are the same network
    assert result.evaluations.unique == 3 * 40


@pytest.mark.parametrize("decisions", [2, 4])
def test_where_nearly_everything_fails(decisions, tmp_path, capsys):
    # 1 row of 25 or 625: the first evaluation of all seeds fails, or every one
    path = tmp_path / "sparse.npz"
    np.savez(path, archs=np.full((1, decisions), 4), accuracy=np.array([50.0]),
             num_choices=np.full(decisions, 5))
    assert call(random_search, "--smoke", "--table", path, "--evaluations", 20, "--num-seeds", 2,
                "--devices", 1, "--output", tmp_path / "run") == 0, capsys.readouterr().err
    result, arrays = read(tmp_path / "run")
    failed = np.isnan(arrays["random_fitness"])
    assert failed[:, 0].all() and result.evaluations.failed == failed.sum()
    if failed.all():
        assert "no evaluation of 40 succeeded" in capsys.readouterr().out
        assert result.architecture.arch is None and not result.metrics
    else:
        assert result.architecture.arch == (4, 4)
        assert result.extra["strategies"]["random"]["seeds_without_result"] == failed.all(1).sum()
        assert reporting.validate_run_directory(tmp_path / "run") == []
