"""PNAS on images, and the model-based searches on tables: settings, levels, reports, bad input."""

import json
import types

import numpy as np
import pytest

from experiments import bayesian_optimization, common, compare, pnas, pnas_table, strategies
from jaxnas import data, genotypes, reporting
from jaxnas.search_spaces import PNAS, GrowingPNAS, NASBench201, Product


def main(module, *arguments):
    return common.main(module.Config, module.PRESETS, module.SMOKE, module.run,
                       [*map(str, arguments)])


def test_levels_of_the_presets():
    paper = pnas.PRESETS["paper"]
    assert pnas.level_sizes(paper, GrowingPNAS()) == [136, 256, 256, 256, 256]  # 1,160
    small = pnas.PRESETS["small"]
    growing = GrowingPNAS(PNAS(small.num_blocks, small.operations))
    assert pnas.level_sizes(small, growing) == [36, 24]


def test_stages_share_one_program_and_one_searcher():
    system = pnas.make_system(pnas.Config(num_blocks=3, evaluations=36 + 2 * 5),
                              data.load("digits"))
    assert [(stage.name, stage.steps) for stage in system.stages] == [
        ("pnas_1_blocks", 36), ("pnas_2_blocks", 5), ("pnas_3_blocks", 5)]
    first, *others = system.stages
    assert all(stage.shares(first) and stage.searcher is first.searcher for stage in others)
    given = first.given(np.array([[0, 1, 1, 2]]))
    np.testing.assert_array_equal(given, [[0, 1, 1, 2, 0, 4, 0, 4, 0, 4, 0, 4]])
    assert system.stages[-1].space == PNAS(3, pnas.Config().operations)
    assert system.final.operation_names == pnas.Config().operations  # nothing absent there
    assert system.experiment == "pnas" and system.published["cifar10"].mean == 96.59


def test_dry_run_counts_the_children(capsys):
    assert main(pnas, "--dry-run") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["children"] == {"pnas_1_blocks": 36, "pnas_2_blocks": 24,
                                 "groups": ["found", "random"]}
    assert [name for name in facts["programs"] if name.startswith("children")] == [
        "children_pnas_1_blocks"]


@pytest.mark.parametrize("arguments, word", [
    (["--evaluations", 37, "--num-blocks", 3], "evaluations must be 3"),
    (["--evaluations", 3], "K in"), (["--evaluations", 30], "K in"),
    (["--batch-size", 2], "batch_size must divide 3"), (["--num-blocks", 7], "num_blocks"),
    (["--operations", "nothing"], "operations"), (["--fit-steps", 0], "num_steps"),
    (["--dataset", "no_such"], "no_such")])
def test_bad_input_is_one_sentence(arguments, word, tmp_path, capsys):
    assert main(pnas, "--smoke", *arguments, "--output", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and word in error


def test_conclusion_is_level_by_level():
    def rows(*values):
        return [{"stage": stage, "failed": value is None, "valid_accuracy": value}
                for stage, value in values]

    run = types.SimpleNamespace(rows={
        "found": rows(("a", 50.0), ("a", 60.0), ("a", None), ("b", 70.0)),
        "random": rows(("a", 40.0), ("b", 20.0))})
    found = pnas.conclude(["a", "b"], run)
    assert found.extra["levels"]["a"]["found"] == {
        "children": 3, "failed": 1, "mean": 55.0, "best": 60.0}
    assert "  b: mean 70.00, best 70.00 % of 1, mean 20.00, best 20.00 % of 1" in found.text


@pytest.mark.slow
def test_smoke_run_and_resumption(tmp_path, capsys):
    path = tmp_path / "run"
    assert main(pnas, "--smoke", "--quiet", "--output", path) == 0
    assert "pnas_2_blocks: mean" in capsys.readouterr().out
    assert reporting.validate_run_directory(path) == []
    result = reporting.read_result(path)
    assert result.complete and result.experiment == "pnas" and result.evaluations.total == 10
    assert result.compilations == len(result.programs) == 2
    genotype = genotypes.load(str(path / "genotype.json"))
    assert genotype.space == "pnas" and genotype.normal.num_nodes == 2
    rows = [row for row in reporting.read_metrics(path / "metrics.jsonl")
            if row["kind"] == "evaluation" and row["group"] == "found"]
    assert [len(row["arch"]) for row in rows] == [4, 4, 4, 8, 8]
    assert len({tuple(row["canonical"]) for row in rows}) == 5
    assert {level: values["found"]["children"]
            for level, values in result.extra["levels"].items()} == {
                "pnas_1_blocks": 3, "pnas_2_blocks": 2}


# ---- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("module, name", [
    pytest.param(bayesian_optimization, "bayesian", marks=pytest.mark.slow),
    (pnas_table, "pnas")])
def test_smoke_run_on_a_table(module, name, tmp_path, capsys):
    path = tmp_path / "run"
    assert main(module, "--smoke", "--quiet", "--devices", 1, "--output", path) == 0
    assert name in capsys.readouterr().out
    assert reporting.validate_run_directory(path) == []
    result = reporting.read_result(path)
    assert result.complete and set(result.extra["strategies"]) == {"random", name}
    assert result.compilations == len(result.programs) == 5
    with np.load(path / "history.npz") as arrays:
        archs = arrays[f"{name}_archs"]
    canonical = NASBench201().canonical
    for seed in archs:
        networks = {tuple(np.asarray(canonical(np.asarray(arch, np.int32)))) for arch in seed}
        assert len(networks) == 20  # none is asked for twice


@pytest.mark.parametrize("module, flags, word", [
    (bayesian_optimization, ["--capacity", 19], "capacity must be at least 20"),
    (bayesian_optimization, ["--initial", 1], "num_initial"),
    (bayesian_optimization, ["--batch-size", 0], "batch_size"),
    (pnas_table, ["--capacity", 5], "capacity must be at least 20"),
    (pnas_table, ["--beam-size", 0], "beam_size"),
    (pnas_table, ["--level-size", 0], "level_size"),
    (compare, ["--pnas.capacity", 3], "capacity must be at least 20"),
    (compare, ["--bayesian.acquisition", "x"], "acquisition")])
def test_bad_settings_are_one_sentence(module, flags, word, tmp_path, capsys):
    assert main(module, "--smoke", *flags, "--output", tmp_path / "run") == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize("strategy", [
    strategies.BayesianOptimization(surrogate="lstm", acquisition="ts", batch_size=7),
    strategies.PNAS(surrogate="gp"), strategies.PNAS(surrogate="lstm", batch_size=3)])
def test_strategies_have_room_for_a_last_batch(strategy):
    searcher = strategies.with_room(strategy, 20).searcher(Product((3, 2, 4)))
    assert searcher.batch_size == strategy.batch_size
    steps = -(-20 // searcher.batch_size)
    assert steps * searcher.batch_size <= searcher.capacity
