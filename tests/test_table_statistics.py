"""Statistics of the experiments on tables: published numbers, tests, regret, the best row."""

import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from experiments import compare, evolution, random_search, reinforce, table_report, tables
from jaxnas import data, histories
from tests.table_cases import CHOICES, TEST, VALID, lookup, save_table, spread


@pytest.fixture(scope="module")
def table_file(tmp_path_factory):
    return save_table(tmp_path_factory.mktemp("table") / "mine.npz")


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
