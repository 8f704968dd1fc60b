"""The experiment on fronts as a user runs it: numbers against brute force, targets, bad input."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import common, pareto, pareto_fronts, pareto_report, table_report, tables
from jaxnas import data, reporting
from jaxnas.search_spaces import NASBench201

CHOICES = (4, 5, 3)
pytestmark = pytest.mark.usefixtures("compiled_once")
STRATEGIES = ("random", "nsga2", "mnasnet_ppo", "mnasnet_evolution")


def call(*arguments):
    return common.main(pareto.Config, pareto.PRESETS, pareto.SMOKE, pareto.run,
                       ["--quiet", *map(str, arguments)])


@pytest.fixture(scope="module")
def table_file(tmp_path_factory):
    """A product of 4 x 5 x 3 with 50 of 60 rows: path, and metrics by arch."""
    generator = np.random.default_rng(2)
    archs = np.stack(np.unravel_index(generator.permutation(60)[:50], CHOICES), -1)
    latency = generator.permutation(50) + 5.0
    metrics = {"accuracy": 60 + 3 * np.sqrt(latency) + generator.normal(0, 3, 50),
               "test": 60 + 3 * np.sqrt(latency) + generator.normal(0, 3, 50),
               "latency_ms": latency}
    metrics["accuracy"][3] = metrics["latency_ms"][7] = np.nan
    path = tmp_path_factory.mktemp("table") / "mine.npz"
    np.savez(path, archs=archs.astype(np.int16), num_choices=CHOICES, **metrics)
    dense = {}
    for name, column in metrics.items():
        dense[name] = np.full(CHOICES, np.nan)
        dense[name][tuple(archs.T)] = column
    return path, dense


def brute_front(metric, cost):
    """Return which points no other beats; both arrays [N]."""
    known = np.isfinite(metric) & np.isfinite(cost)
    return np.array([known[i] and not any(
        known[j] and metric[j] >= metric[i] and cost[j] <= cost[i]
        and (metric[j] > metric[i] or cost[j] < cost[i]) for j in range(len(metric)))
        for i in range(len(metric))])


def brute_area(metric, cost, lowest, highest):
    """Area above (lowest, highest) by a sum over the sorted costs of the union of rectangles."""
    inside = (metric > lowest) & (cost < highest)
    points = sorted(zip(cost[inside], metric[inside]))
    area, best = 0.0, lowest
    for (x, y), after in zip(points, [p[0] for p in points[1:]] + [highest]):
        best = max(best, y)
        area += (after - x) * (best - lowest)
    return area


def shares(dense, archs, count, judge="accuracy"):
    """Percent of the true hypervolume of the front of some archs, by brute force."""
    metric, cost = dense[judge].ravel(), dense["latency_ms"].ravel()
    truth = brute_front(metric, cost)
    lowest, highest = metric[truth].min(), cost[truth].max()
    rows = np.ravel_multi_index(archs[:count].astype(int).T, CHOICES)
    front = rows[brute_front(dense["accuracy"].ravel()[rows], cost[rows])]
    front = front[np.isfinite(metric[front])]
    return 100 * (brute_area(metric[front], cost[front], lowest, highest)
                  / brute_area(metric[truth], cost[truth], lowest, highest))


def read(path):
    with np.load(path / "history.npz") as arrays:
        return reporting.read_result(path), dict(arrays)


@pytest.fixture(scope="module")
def own_run(table_file, tmp_path_factory, compiled_once):
    path = tmp_path_factory.mktemp("own") / "run"
    assert call("--smoke", "--table", table_file[0], "--metric", "accuracy", "--report-metric",
                "test", "--cost-metric", "latency_ms", "--targets", 5.5, 20, 40, "--devices", 1,
                "--output", path) == 0
    return path


def test_shares_are_those_of_brute_force(own_run, table_file):
    result, arrays = read(own_run)
    dense = table_file[1]
    assert result.complete and result.extra["found"] != "random"
    assert set(result.extra["budgets"]) == {"20", "40"}
    for key in STRATEGIES:
        archs = arrays[f"{key}_archs"]
        for count in (20, 40):
            row = result.extra["budgets"][str(count)][key]
            for name, judge in ((pareto_report.SHARE, "accuracy"),
                                (pareto_report.REPORT_SHARE, "test")):
                expected = np.array([shares(dense, seed, count, judge) for seed in archs])
                assert row[name]["mean"] == pytest.approx(expected.mean(), rel=1e-4)
                assert row[name]["std"] == pytest.approx(expected.std(ddof=1), rel=1e-3, abs=1e-3)
    metric = result.metrics[pareto_report.SHARE]
    archs = arrays[f"{result.extra['found']}_archs"]
    np.testing.assert_allclose(
        metric.found["values"], [shares(dense, seed, 40) for seed in archs], rtol=1e-4)
    np.testing.assert_allclose(
        metric.random["values"], [shares(dense, seed, 40) for seed in arrays["random_archs"]],
        rtol=1e-4)
    assert metric.optimum == 100


def test_what_each_strategy_maximised(own_run, table_file):
    _, arrays = read(own_run)
    dense = table_file[1]

    def lookup(name, key):
        return dense[name][tuple(np.moveaxis(arrays[f"{key}_archs"].astype(int), -1, 0))]

    for key in ("random", "nsga2"):
        expected = np.stack([lookup("accuracy", key), -lookup("latency_ms", key)], -1)
        np.testing.assert_allclose(arrays[f"{key}_fitness"], expected, rtol=1e-6)
    # three copies take turns, each with its own target
    for key in ("mnasnet_ppo", "mnasnet_evolution"):
        target = np.resize([5.5, 20.0, 40.0], 40)
        expected = lookup("accuracy", key) * (lookup("latency_ms", key) / target) ** -0.07
        np.testing.assert_allclose(arrays[f"{key}_fitness"], expected, rtol=1e-5)


def test_networks_at_targets(own_run, table_file):
    result, arrays = read(own_run)
    accuracy, latency = table_file[1]["accuracy"], table_file[1]["latency_ms"]
    found = result.extra["found"]
    index = tuple(np.moveaxis(arrays[f"{found}_archs"].astype(int), -1, 0))
    for row in result.extra["targets"]:
        allowed = np.where(latency <= row["target"], accuracy, np.nan)
        assert row["optimum"]["accuracy"] == pytest.approx(np.nanmax(allowed))
        evaluated = allowed[index]
        met = np.isfinite(evaluated).any(1)
        entry = row["strategies"][found]
        assert entry["seeds_without_result"] == (~met).sum()
        if not met.any():
            assert row["network"] is None
            continue
        best = np.nanmax(evaluated[met], axis=1)
        assert entry["accuracy"]["mean"] == pytest.approx(best.mean(), rel=1e-6)
        network = row["network"]
        assert network["accuracy"] == pytest.approx(best.max(), rel=1e-6)
        assert accuracy[tuple(network["arch"])] == pytest.approx(best.max(), rel=1e-6)
        assert network["latency_ms"] <= row["target"]
    # genotype.json is the network of the middle target
    assert list(result.architecture.arch) == result.extra["targets"][1]["network"]["arch"]


def test_run_directory_and_page(own_run):
    assert reporting.validate_run_directory(own_run) == []
    for stem in ("front", "hypervolume", "final"):
        assert (own_run / f"{stem}.svg").stat().st_size > 1000
    front = json.loads((own_run / "front.json").read_text())
    page = (own_run / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and page.count("<circle") <= len(front["networks"])
    shown = next(n for n in front["networks"] if n["front"] and n["y"] > front["y_range"][0])
    assert shown["text"].split("\n")[0] in page
    points = np.array([[n["x"], n["y"]] for n in front["networks"] if n["front"]])
    order = points[:, 0].argsort()
    assert (np.diff(points[order, 1]) >= 0).all()  # dearer is more accurate, or it is dominated
    assert len(front["rows"]) == 3 and len(front["rows"][0]) == len(front["header"])


@pytest.mark.slow
def test_minimized_and_interrupted(table_file, stopping, tmp_path, monkeypatch, capsys):
    """A metric that is minimised leaves MnasNet's reward out; a stopped run resumes bit-equal."""
    monkeypatch.setattr(pareto_report, "draw", lambda *_: None)
    flags = ("--smoke", "--table", table_file[0], "--metric", "accuracy", "--minimize",
             "--cost-metric", "latency_ms", "--devices", 1, "--block", 20)
    assert call(*flags, "--output", tmp_path / "whole") == 0
    assert "MnasNet's reward was left out" in capsys.readouterr().out
    result, arrays = read(tmp_path / "whole")
    assert set(result.extra["budgets"]["40"]) == {"random", "nsga2"}
    np.testing.assert_array_equal(
        arrays["nsga2_fitness"][..., 0],
        -table_file[1]["accuracy"].astype(np.float32)[
            tuple(np.moveaxis(arrays["nsga2_archs"].astype(int), -1, 0))])

    with stopping(3):  # in the fourth block
        assert call(*flags, "--output", tmp_path / "run") == 0
    stopped = reporting.read_result(tmp_path / "run")
    assert not stopped.complete and stopped.evaluations.total == 3 * 60
    assert call("--resume", tmp_path / "run") == 0
    resumed, again = read(tmp_path / "run")
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], again[name], err_msg=name)
    assert resumed.metrics == result.metrics and resumed.extra == result.extra


# ---- truth ---------------------------------------------------------------------------------------


def problem_of(**changes):
    config = pareto.Config(**changes)
    task = tables.load_task(config)
    sign = -1.0 if table_report.is_minimized(task, task.report_metric) else 1.0
    return pareto_fronts.make_problem(task, config.cost, config.targets, sign)


@pytest.mark.parametrize("device, size, unsupported", [
    ("edgegpu", 19, 0), ("raspi4", 31, 0), ("edgetpu", 31, 4699), ("pixel3", 37, 0),
    ("eyeriss", 15, 0), ("fpga", 13, 0)])
def test_the_true_fronts_of_the_devices(device, size, unsupported):
    problem = problem_of(device=device)
    metric = problem.task.table.metric("cifar10_valid_accuracy_e12")
    cost = problem.task.table.metric(f"{device}_latency_ms")
    assert np.isnan(cost).sum() == unsupported
    truth = problem.search
    assert len(truth.front) == size == len(truth.rows)
    # no row of the table is better than a row of the front, and all others are beaten by one
    value, price = truth.front[:, 0], -truth.front[:, 1]
    assert (np.diff(value) > 0).all() and (np.diff(price) > 0).all()
    cheapest = np.searchsorted(price, cost.astype(np.float32), side="right") - 1
    known = np.isfinite(cost)
    assert (cheapest[known] >= 0).all()
    assert (metric[known].astype(np.float32) <= value[cheapest[known]]).all()
    np.testing.assert_allclose(metric[truth.rows], value, rtol=1e-6)
    assert truth.reference.tolist() == [value[0], -price[-1]]
    assert truth.volume == pytest.approx(brute_area(value, price, value[0], price[-1]), rel=1e-4)
    assert pareto_fronts.true_best(problem, truth, float(price[-1])) == truth.rows[-1]
    assert pareto_fronts.true_best(problem, truth, 0.9 * float(price[0])) is None
    np.testing.assert_allclose(
        problem.targets, np.nanquantile(cost, [0.1, 0.3, 0.5, 0.7, 0.9]))


def test_a_front_of_two_points_has_the_worst_of_the_table_as_reference(tmp_path):
    np.savez(tmp_path / "two.npz", archs=np.arange(4)[:, None], accuracy=[1.0, 5.0, 2.0, 0.0],
             ms=[1.0, 2.0, 3.0, 6.0])
    truth = problem_of(table=str(tmp_path / "two.npz"), metric="accuracy", cost_metric="ms").search
    assert truth.rows.tolist() == [0, 1] and truth.reference.tolist() == [0, -6]
    assert truth.volume == 5 * 1 + 4 * 4  # 1 from cost 1 to 2, then 5 until 6


def npz(folder, **arrays):
    np.savez(folder / "bad.npz", archs=np.arange(3)[:, None], accuracy=[1.0, 2.0, 3.0], **arrays)
    return ["--table", folder / "bad.npz", "--metric", "accuracy"]


BAD = {
    "device and cost": (lambda p: ["--device", "fpga", "--cost-metric", "fpga_energy_mj"],
                        "exclude each other"),
    "device of another table": (lambda p: ["--device", "fpga", "--table", "nasbench_macro"],
                                "goes with --table nasbench201"),
    "unknown device": (lambda p: ["--device", "tpu"], "--device"),
    "no cost": (lambda p: ["--table", "nasbench_macro"], "--cost-metric must name"),
    "unknown cost": (lambda p: ["--cost-metric", "edgegpu_latency"], "did you mean"),
    "one objective": (lambda p: ["--cost-metric", "cifar10_valid_accuracy_e12"], "must differ"),
    "targets": (lambda p: ["--targets", "5", "3"], "targets must be above 0 and ascend"),
    "budgets": (lambda p: ["--budgets", "0", "3"], "budgets must be above 0 and ascend"),
    "free networks": (lambda p: npz(p, ms=[0.0, 1.0, 2.0]) + ["--cost-metric", "ms"],
                      "ms must be above 0 everywhere"),
    "nothing to win": (lambda p: npz(p, ms=[2.0, 2.0, 2.0]) + ["--cost-metric", "ms"],
                       "no front to search for"),
    "population": (lambda p: ["--nsga2.population-size", "1"], "population_size must be"),
    "children": (lambda p: ["--nsga2.children", "99"], "batch_size must be"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name, tmp_path, monkeypatch, capsys):
    arguments, word = BAD[name]
    arguments = arguments(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert call("--smoke", *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and word in err, err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("preset", pareto.PRESETS)
def test_dry_run_of_every_preset(preset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("--preset", preset, "--dry-run") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["strategies"] == list(STRATEGIES) and len(facts["targets"]) == 5
    assert facts["cost_metric"] == ("flops" if preset == "macro" else "edgegpu_latency_ms")
    assert facts["config"] == common.to_json(dataclasses.replace(
        pareto.PRESETS[preset], preset=preset, dry_run=True, quiet=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_smoke_run_on_nasbench201(tmp_path, capsys):
    path = tmp_path / "run"
    assert call("--smoke", "--device", "edgetpu", "--devices", 2, "--output", path) == 0
    assert reporting.validate_run_directory(path) == []
    result, arrays = read(path)
    assert result.compilations == len(result.programs) == 2 * len(STRATEGIES) + 1
    latency = data.load_table("nasbench201").dense("edgetpu_latency_ms")
    failed = 0
    for key in STRATEGIES:
        rows = np.ravel_multi_index(np.moveaxis(arrays[f"{key}_archs"].astype(int), -1, 0),
                                    (5,) * 6)
        failed += np.isnan(latency[rows]).sum()
    assert result.evaluations.failed == failed > 0  # what the edge TPU cannot run
    genotype = json.loads((path / "genotype.json").read_text())
    assert NASBench201().encode(genotype["architecture"]).tolist() == list(
        result.architecture.arch)
    assert "true front" in capsys.readouterr().out
