"""Experiments on tables as a user runs them: directories, budgets, resumption, bad input, numbers.

Runs are made in this process and share a compilation cache of this module.
"""

import dataclasses
import itertools
import json
import re

import jax
import numpy as np
import pytest
from scipy import stats

from experiments import (common, compare, evolution, local_search, ppo, random_search, reinforce,
                         table_report, tables)
from jaxnas import data, fast_keys, histories, reporting
from jaxnas.search_spaces import NASBench201
from jaxnas.search_spaces.nasbench201 import equivalence_classes

STRATEGIES = {random_search: (), evolution: ("evolution",), local_search: ("local",),
              reinforce: ("reinforce",), ppo: ("ppo",),
              compare: ("evolution", "reinforce", "ppo", "local", "bayesian", "pnas")}
VALID, TEST = "cifar10_valid_accuracy_e12", "cifar10_test_accuracy_e200"
CHOICES = (3, 4, 2)

pytestmark = pytest.mark.usefixtures("compiled_once")


def name_of(module):
    return module.__name__.rpartition(".")[2]


@pytest.fixture(scope="module")
def compilations():
    """Names of the events of compilation so far, those of other tests too."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: events.append(event) if "backend_compile" in event else None)
    return events


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the drawings out, which take longer than the search."""
    monkeypatch.setattr(table_report, "draw", lambda *_: None)


def call(module, *arguments):
    arguments = ["--quiet", *map(str, arguments)]
    return common.main(module.Config, module.PRESETS, module.SMOKE, module.run, arguments)


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
    """A product of 3 x 4 x 2 with 20 of 24 rows: path, archs [20, 3], metrics by name."""
    generator = np.random.default_rng(1)
    archs = np.stack(np.unravel_index(generator.permutation(24)[:20], CHOICES), -1)
    metrics = {"accuracy": generator.permutation(20) + 70.0,
               "latency_ms": generator.permutation(20) + 5.0,
               "hours": generator.integers(1, 9, 20).astype(np.float64)}
    metrics["accuracy"][3] = np.nan  # a failure that is in the table
    path = tmp_path_factory.mktemp("table") / "mine.npz"
    np.savez(path, archs=archs.astype(np.int16), num_choices=CHOICES, **metrics)
    return path, archs, metrics


def spread(table_file, name):
    _, archs, metrics = table_file
    values = np.full(CHOICES, np.nan)
    values[tuple(archs.T)] = metrics[name]
    return values


def lookup(values, archs):
    return values[tuple(np.moveaxis(archs.astype(int), -1, 0))]


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


# ---- flags ---------------------------------------------------------------------------------------


def saved(path, **arrays):
    np.savez(path / "bad.npz", **arrays)
    return path / "bad.npz"


def text_file(path):
    (path / "bad.npz").write_text("no archive")
    return path / "bad.npz"


def finished(path):
    (path / "run").mkdir()
    (path / "run" / "config.json").write_text("{}")
    return path / "run"


ARCHS = np.arange(4)[:, None]
BAD = {
    "unknown table": (evolution, lambda p: ["--table", "nasbench202"], "no table nasbench202"),
    "missing file": (evolution, lambda p: ["--table", p / "x.npz"], "x.npz"),
    "folder of nothing": (evolution, lambda p: ["--table", p], str),
    "no archive": (evolution, lambda p: ["--table", text_file(p)], "bad.npz"),
    "hostile array": (evolution, lambda p: ["--table", saved(
        p, archs=ARCHS, accuracy=np.array([print] * 4, object))], "Python objects"),
    "hostile archs": (evolution, lambda p: ["--table", saved(
        p, archs=np.array([[open]], object), accuracy=np.ones(1))], "Python objects"),
    "no archs": (evolution, lambda p: ["--table", saved(p, accuracy=np.ones(4))], "archs"),
    "a row twice": (evolution, lambda p: ["--table", saved(
        p, archs=0 * ARCHS, accuracy=np.ones(4))], "twice"),
    "nothing finite": (evolution, lambda p: ["--table", saved(
        p, archs=ARCHS, accuracy=np.full(4, np.nan))], "no finite value"),
    "several metrics": (evolution, lambda p: ["--table", saved(
        p, archs=ARCHS, a=np.ones(4), b=np.ones(4))], "--metric"),
    "nothing to choose": (evolution, lambda p: ["--table", saved(
        p, archs=ARCHS[:1], accuracy=np.ones(1))], "two choices"),
    "unknown metric": (evolution, lambda p: ["--metric", VALID[:-1]], f"did you mean {VALID}"),
    "unknown report metric": (evolution, lambda p: ["--report-metric", "x"], "no metric 'x'"),
    "unknown cost": (evolution, lambda p: ["--cost-metric", "x", "--cost-budget", "1"],
                     "no metric 'x'"),
    "no evaluations": (evolution, lambda p: ["--evaluations", "0"], "evaluations must be >= 1"),
    "unique": (evolution, lambda p: ["--unique-evaluations", "-1"], "unique_evaluations"),
    "no block": (evolution, lambda p: ["--block", "0"], "block must be >= 1"),
    "log seeds": (evolution, lambda p: ["--log-seeds", "-1"], "log_seeds"),
    "no seeds": (evolution, lambda p: ["--num-seeds", "0"], "num_seeds"),
    "a cost alone": (evolution, lambda p: ["--cost-metric", VALID], "go together"),
    "a budget alone": (evolution, lambda p: ["--cost-budget", "5"], "go together"),
    "infinite budget": (evolution, lambda p: ["--cost-metric", VALID, "--cost-budget", "inf"],
                        "cost_budget"),
    "budget of nan": (evolution, lambda p: ["--cost-metric", VALID, "--cost-budget", "nan"],
                      "cost_budget"),
    "population": (evolution, lambda p: ["--population-size", "0"], "population_size"),
    "tournament": (evolution, lambda p: ["--tournament-size", "0"], "tournament_size"),
    "children": (evolution, lambda p: ["--children", "3"], "batch_size must divide"),
    "removal": (evolution, lambda p: ["--removal", "youngest"], "removal"),
    "mutation": (evolution, lambda p: ["--mutation", "cell"], "mutation"),
    "devices": (evolution, lambda p: ["--devices", "99"], "devices must be in [1, 8]"),
    "no devices": (evolution, lambda p: ["--devices", "-1"], "devices must be >= 0"),
    "output with a run": (evolution, lambda p: ["--output", finished(p)], "already holds a run"),
    "preset": (evolution, lambda p: ["--preset", "nasnet"], "--preset must be one of"),
    "move": (local_search, lambda p: ["--move", "last"], "move"),
    "policy": (reinforce, lambda p: ["--policy", "gru"], "policy"),
    "learning rate": (reinforce, lambda p: ["--learning-rate", "0"], "learning_rate"),
    "batch": (ppo, lambda p: ["--batch-size", "0"], "batch_size"),
    "clip": (ppo, lambda p: ["--clip-range", "-0.1"], "clip_range"),
    "a strategy twice": (compare, lambda p: ["--strategies", "ppo", "ppo"], "each once"),
    "unknown strategy": (compare, lambda p: ["--strategies", "annealing"], "strategies"),
    "inside compare": (compare, lambda p: ["--ppo.num-epochs", "0"], "num_epochs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name, compilations, tmp_path, monkeypatch, capsys):
    module, arguments, word = BAD[name]
    arguments = arguments(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = len(compilations)
    code = call(module, "--smoke", *arguments)
    err = capsys.readouterr().err
    assert code == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err, err
    assert word is str or word in err, err
    assert len(err) < 1500 and len(compilations) == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("module, preset", [
    (module, preset) for module in STRATEGIES for preset in module.PRESETS],
    ids=lambda value: value if isinstance(value, str) else name_of(value))
def test_dry_run_of_every_preset(module, preset, compilations, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = len(compilations)
    assert call(module, "--preset", preset, "--dry-run") == 0
    facts = json.loads(capsys.readouterr().out)
    macro = preset == "macro"
    assert facts["dataset"]["name"] == facts["space"] == ("nasbench_macro" if macro
                                                          else "nasbench201")
    assert facts["dataset"]["splits"] == {"architectures": 3 ** 8 if macro else 5 ** 6}
    assert facts["metric"] == ("run0_accuracy" if macro else VALID)
    assert facts["config"] == common.to_json(dataclasses.replace(
        module.PRESETS[preset], preset=preset, dry_run=True, quiet=True))
    assert len(compilations) == before and not list(tmp_path.iterdir())


def test_compile_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(random_search, "--smoke", "--compile-only", "--devices", 2) == 0
    out = capsys.readouterr().out
    lines = [line.split()[0] for line in out.splitlines()]
    assert lines[1:4] == ["random_init", "random", "digest"] and "3 programs compiled" in out
    assert not list(tmp_path.iterdir())


# ---- numbers -------------------------------------------------------------------------------------


def test_published_numbers_and_the_budget_that_belongs_to_them():
    table = data.load_table("nasbench201")
    seconds = table.metric("cifar10_estimated_seconds_e12")
    assert seconds.mean() == pytest.approx(107.5, abs=0.05)
    assert round(12_000 / seconds.mean()) == 112 == compare.Config().evaluations
    np.testing.assert_allclose(seconds[[0, 11, 284]], [89.2, 153.7, 60.9], atol=13)
    text = " ".join(compare.__doc__.split())
    for key, name in (("evolution", "evolution"), ("random", "random search"),
                      ("reinforce", "REINFORCE")):
        told = table_report.PUBLISHED[key]
        assert f"{name} {told.mean:.2f} +- {told.std:.2f}" in text
        module = {"evolution": evolution, "random": random_search, "reinforce": reinforce}[key]
        assert f"{told.mean:.2f} +- {told.std:.2f}" in module.__doc__


def make_task(table_file, metric="accuracy", report_metric="", minimize=False):
    config = random_search.Config(table=str(table_file[0]), metric=metric,
                                  report_metric=report_metric, minimize=minimize)
    return tables.load_task(config), config


def test_differences_are_welchs(table_file):
    task, _ = make_task(table_file)
    generator = np.random.default_rng(0)
    values = {"a": generator.normal(0, 1, 30), "b": generator.normal(1, 3, 50),
              "c": np.append(generator.normal(0.2, 1, 40), np.nan)}
    pairs = {(p["first"], p["second"]): p for p in table_report.compare(task, values)}
    finite = {key: v[np.isfinite(v)] for key, v in values.items()}
    raw = {pair: stats.ttest_ind(finite[pair[0]], finite[pair[1]], equal_var=False).pvalue
           for pair in itertools.combinations("abc", 2)}
    assert pairs.keys() == raw.keys()
    a, b = finite["a"], finite["b"]  # the smallest of the three; by hand
    variances = a.var(ddof=1) / 30, b.var(ddof=1) / 50
    t = (a.mean() - b.mean()) / np.sqrt(sum(variances))
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 29 + variances[1] ** 2 / 49)
    assert raw["a", "b"] == pytest.approx(2 * stats.t.sf(abs(t), freedom))
    worst = 0.0
    for rank, pair in enumerate(sorted(raw, key=raw.get)):
        worst = max(worst, min(1.0, raw[pair] * (3 - rank)))
        assert pairs[pair]["p_value"] == pytest.approx(worst)
        assert pairs[pair]["significant"] == (worst < 0.05)
        first, second = (finite[key].mean() for key in pair)
        assert pairs[pair]["difference"] == pytest.approx(first - second)


def test_holms_correction_by_hand(table_file, monkeypatch):
    # sorted 0.01, 0.03, 0.04: 3 * 0.01 = 0.03; 2 * 0.03 = 0.06; 1 * 0.04, but no less than 0.06
    answers = iter([0.04, 0.01, 0.03])

    class Answer:
        def __init__(self, *args, **kwargs):
            self.pvalue = next(answers)

    monkeypatch.setattr(table_report.stats, "ttest_ind_from_stats", Answer)
    spread_out = np.array([0.0, 1.0])
    pairs = table_report.compare(make_task(table_file)[0], dict.fromkeys("abc", spread_out))
    assert [(p["first"], p["second"]) for p in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [p["p_value"] for p in pairs] == pytest.approx([0.06, 0.03, 0.06])
    assert [p["significant"] for p in pairs] == [False, True, False]


def test_what_cannot_be_compared_is_left_out(table_file):
    task, _ = make_task(table_file)
    values = {"one": np.array([1.0, np.nan]), "flat": np.array([2.0, 2.0]),
              "same": np.array([3.0, 3.0]), "spread": np.array([1.0, 2.0])}
    pairs = {(p["first"], p["second"]) for p in table_report.compare(task, values)}
    assert pairs == {("flat", "spread"), ("same", "spread")}


def evaluated(table_file, task, names, shape=(50, 30), seed=0):
    """Random evaluations of the table, some of them failed, within budgets of many lengths."""
    generator = np.random.default_rng(seed)
    archs = np.stack(np.unravel_index(generator.integers(0, 24, shape), CHOICES), -1)
    columns = {name: lookup(spread(table_file, name), archs).astype(np.float32) for name in names}
    fitness = task.sign * columns[task.metric]
    allowed = np.arange(shape[1]) < generator.integers(1, shape[1] + 1, (shape[0], 1))
    best = jax.vmap(histories.incumbents)(np.where(allowed, fitness, np.nan))
    new = np.ones(shape, bool)
    return tables.Evaluated(archs, fitness, allowed, new, np.asarray(best), columns)


@pytest.mark.parametrize("minimize", [False, True])
def test_regret_never_grows_and_ends_at_the_final_value(table_file, minimize):
    task, _ = make_task(table_file, minimize=minimize)
    found = evaluated(table_file, task, ["accuracy"])
    regret = table_report.regret(task, found, "accuracy")
    values = spread(table_file, "accuracy")
    optimum = np.nanmin(values) if minimize else np.nanmax(values)
    assert table_report.optimum(task, "accuracy") == optimum
    for row, fitness, allowed in zip(regret, found.fitness, found.allowed):
        known = row[np.isfinite(row)]
        assert (np.diff(known) <= 0).all() and (known >= 0).all()
        assert np.isfinite(row[len(row) - len(known):]).all()  # NaN at the start only
        best = np.nanmax(np.append(fitness[allowed], -np.inf)) * task.sign
        assert not known.size or known[-1] == abs(best - optimum)
    final = table_report.final_values(found, "accuracy")
    np.testing.assert_allclose(abs(final - optimum), regret[:, -1])


@pytest.mark.parametrize("metric, minimize", [("accuracy", False), ("latency_ms", True)])
def test_best_arch_has_the_best_metric(table_file, metric, minimize):
    task, config = make_task(table_file, metric, "hours", minimize)
    found = evaluated(table_file, task, [metric, "hours"], (4, 6), seed=3)
    arch = table_report.best_arch(task, found)
    values = found.columns[metric][found.allowed]
    best = np.nanmin(values) if minimize else np.nanmax(values)
    assert lookup(spread(table_file, metric), arch) == best
    summary = table_report.summarize(task, config, {"random": found})
    assert summary.best_arch.tolist() == arch.tolist()
    entry = summary.metrics[metric]
    assert (min if minimize else max)(entry.found["values"]) == best


def test_names_in_the_result_are_short_unless_they_clash():
    for report, names in ((TEST, ["test_accuracy", "valid_accuracy"]),
                          ("cifar100_valid_accuracy_e12", ["cifar100_valid_accuracy_e12", VALID])):
        config = random_search.Config(report_metric=report)
        task = tables.load_task(config)
        archs = np.zeros((2, 1, 6), int)
        columns = {name: np.ones((2, 1), np.float32) for name in (VALID, report)}
        ones = np.ones((2, 1), bool)
        found = tables.Evaluated(archs, columns[VALID], ones, ones, np.zeros((2, 1), int), columns)
        summary = table_report.summarize(task, config, {"random": found})
        assert list(summary.metrics) == names
        assert ("published" in summary.extra["strategies"]["random"]) == (report == TEST)
