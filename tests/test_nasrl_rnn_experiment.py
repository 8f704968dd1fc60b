"""experiments.nasrl_rnn as a user runs it, and the training of its children."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common, nasrl_rnn
from experiments.child_search import Measured, Searches
from experiments.child_trials import Kind
from experiments.language_controller import inverse_perplexity
from experiments.nasrl_rnn_children import NAMES, _metrics, identity, make_children, worst_if_failed
from jaxnas import data, genotypes, reporting, trials
from jaxnas.search_spaces import NASRLRNN
from jaxnas.searchers import random_search

KEY = jax.random.key(0)
GROUPS = ["found", "random_search", "random", "LSTM", "GRU"]


def main(*flags):
    return common.main(nasrl_rnn.Config, nasrl_rnn.PRESETS, nasrl_rnn.SMOKE, nasrl_rnn.run,
                       [*map(str, flags), "--quiet"])


@pytest.fixture(scope="module")
def whole(compiled_once, tmp_path_factory):
    """An uninterrupted smoke run."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    assert main("--smoke", "--output", path) == 0
    return path


def evaluations(path, phase):
    return [row for row in reporting.read_metrics(path / "metrics.jsonl")
            if row["kind"] == "evaluation" and row["phase"] == phase]


def test_run_directory(whole):
    assert reporting.validate_run_directory(whole) == []
    result = reporting.read_result(whole)
    assert result.complete and result.experiment == "nasrl_rnn" and result.system == "NASRL"
    bits = result.metrics["test_bits_per_character"]
    assert 0 < bits.found["mean"] < 7 and 0 < bits.random["mean"] < 7
    perplexity = result.metrics["test_perplexity"]
    assert perplexity.found["mean"] == pytest.approx(2 ** bits.found["mean"])
    assert set(result.extra["baselines"]) == {"random", "LSTM", "GRU"}
    # One program trains all children, one retrains all cells.
    assert sorted(result.programs) == ["children", "retrain_cell", "retrain_gru", "retrain_lstm"]
    assert [row["group"] for row in evaluations(whole, "retrain")] == GROUPS
    for name in ("cell.svg", "history.svg", "entropy.svg", "accuracy.svg", "report.html"):
        assert (whole / name).stat().st_size > 1000


def test_search_is_what_it_says(whole):
    result, rows = reporting.read_result(whole), evaluations(whole, "search")
    assert [row["group"] for row in rows] == ["found"] * 4 + ["random"] * 4
    assert result.evaluations.total == 8
    for row in rows:
        assert row["perplexity"] == pytest.approx(np.exp(row["valid_loss"]))
        assert row["fitness"] == pytest.approx(80 / row["perplexity"] ** 2, rel=1e-5)
    best = min(rows[:4], key=lambda row: row["perplexity"])
    assert list(result.architecture.arch) == best["canonical"]
    genotype = genotypes.load(str(whole / "genotype.json"))
    assert NASRLRNN(2).encode(genotype.architecture).tolist() == best["canonical"]
    with trials.open_store(whole / "trials.sqlite") as store:
        stored = {trial.arch: trial.metrics for trial in store.trials()}
    assert set(stored) == {tuple(row["canonical"]) for row in rows}
    assert result.extra["children_trained_by_this_process"] == len(stored)
    assert all(len(metrics["valid_loss_by_epoch"]) == 2 for metrics in stored.values())
    # The first baseline is the mean of the first batch; the entropy starts near the uniform one.
    steps = [row for row in reporting.read_metrics(whole / "metrics.jsonl")
             if row["kind"] == "step" and row["group"] == "found"]
    assert steps[0]["baseline"] == pytest.approx(np.mean([row["fitness"] for row in rows[:2]]))
    uniform = np.log(NASRLRNN(2).num_choices).sum()
    assert 0.99 * uniform < steps[0]["entropy"] <= uniform * (1 + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("looks", [5, 13])  # in the search, in the retraining
def test_interrupted_run_resumes_equal_and_repeats_no_child(
        whole, records, stopping, tmp_path, looks):
    path = tmp_path / "run"
    with stopping(looks):
        assert main("--smoke", "--output", path) == 0
    first = reporting.read_result(path)
    assert not first.complete and reporting.validate_run_directory(path) == []
    assert main("--resume", path) == 0
    assert records(path) == records(whole)
    second = reporting.read_result(path)
    trained = "children_trained_by_this_process"
    assert first.extra[trained] + second.extra[trained] == (
        reporting.read_result(whole).extra[trained])
    assert first.extra[trained] > 0


@pytest.mark.slow
def test_a_second_run_on_the_store_trains_nothing(whole, records, tmp_path):
    path = tmp_path / "run"
    assert main("--smoke", "--store", whole / "trials.sqlite", "--output", path) == 0
    assert reporting.read_result(path).extra["children_trained_by_this_process"] == 0
    assert records(path) == records(whole)


# The children.

def small(**changes):
    return dataclasses.replace(nasrl_rnn.SMOKE, bptt=4, batch_size=16, child_tokens=400,
                               child_valid_tokens=200, deviation=0.0, **changes)


def children(config):
    space, text, programs = NASRLRNN(2), data.load_text("shakespeare"), common.Programs()
    train = make_children(config, space, text, programs)
    programs.compile_all(reporting.Progress(quiet=True))
    return train


ARCHS = np.array([[0, 1, 0, 1, 0, 1, 0, 0, 2, 0],    # bounded
                  [0, 0, 0, 0, 0, 0, 0, 0, 2, 2],    # linear, and explodes without clipping
                  [0, 2, 0, 2, 1, 1, 0, 1, 1, 0]], np.int32)


def test_divergence_is_a_failure_of_its_own():
    train = children(small(weights_lr=3.0, clip_norm=1e9, population=3, epochs=3))
    rows = train(ARCHS)
    assert [np.isfinite(row["perplexity"]) for row in rows] == [True, False, True]
    assert rows[1]["diverged_epoch"] >= 0 and rows[0]["diverged_epoch"] == -1
    assert rows[0]["perplexity"] == pytest.approx(np.exp(min(rows[0]["valid_loss_by_epoch"])))
    # alone as among others
    assert train(ARCHS[2:]) == rows[2:] and train(ARCHS[:1]) == rows[:1]


@pytest.mark.slow
def test_both_forms_give_the_same():
    rows = [children(small(population=2, form=form))(ARCHS[::2]) for form in (
        "sequential", "vmap")]
    for one, other in zip(*rows):
        np.testing.assert_allclose(one["valid_loss_by_epoch"], other["valid_loss_by_epoch"],
                                   rtol=1e-4)


def test_reward_of_a_failure_is_the_worst():
    reward = worst_if_failed(inverse_perplexity(80.0, 2))
    values = reward({"perplexity": jnp.array([4.0, 8.0, jnp.nan, jnp.inf, 1.0])})
    np.testing.assert_allclose(values, [5.0, 1.25, 0.0, 0.0, 80.0])


def test_a_failed_child_is_marked_and_told_the_worst(tmp_path):
    random = random_search(NASRLRNN(2), batch_size=8)
    task = nasrl_rnn.Task((nasrl_rnn.Stage("toy", NASRLRNN(2), random, random, 1),),
                          worst_if_failed(inverse_perplexity(80.0, 2)))
    rows = []

    def train(archs):  # cells whose first leaf multiplies diverge
        return [_metrics(np.array([[np.nan if arch[0] else 2.0, 1.0]])) for arch in archs]

    with trials.open_store(tmp_path / "trials.sqlite") as store:
        searches = Searches(task, small(population=3), [Kind("toy", {})], [train], store,
                            reporting.Progress(quiet=True), lambda: False,
                            Measured(NAMES, "perplexity", "", np.nanmin, 1))
        assert searches.run("random", rows, lambda batch, history: rows.extend(batch))
        assert store.counts().failed == sum(row["failed"] for row in rows) > 0
    for row in rows:
        assert row["failed"] == bool(row["canonical"][0])
        assert row["fitness"] == (0 if row["failed"] else pytest.approx(80 / np.exp(2.0) ** 2))


def test_metrics_of_curves():
    row = _metrics(np.array([[2.0, 2.5], [1.0, 1.5], [3.0, 1.0]]))
    assert row == {"perplexity": pytest.approx(np.e), "valid_loss": 1.0, "train_loss": 1.0,
                   "diverged_epoch": -1.0, "valid_loss_by_epoch": [2.0, 1.0, 3.0]}
    row = _metrics(np.array([[2.0, 2.5], [np.nan, np.nan]]))
    assert np.isnan(row["perplexity"]) and row["diverged_epoch"] == 1 and row["train_loss"] == 2.5


def test_another_recipe_is_another_child():
    text, config = data.load_text("shakespeare"), nasrl_rnn.SMOKE
    kinds = [identity(dataclasses.replace(config, **changes), NASRLRNN(leaves), text)
             for leaves, changes in (
                 (2, {}), (2, {"seed": 3}), (2, {"retrain_epochs": 9}), (2, {"controller_lr": 1.0}),
                 (2, {"child_seed": 1}), (2, {"epochs": 5}), (2, {"num_layers": 2}), (4, {}))]
    assert all(kind == kinds[0] for kind in kinds[1:4])  # what is no child's
    texts = {(kind.space, json.dumps(kind.recipe, sort_keys=True)) for kind in kinds}
    assert len(texts) == 5


def test_dry_run_of_the_published_preset(tmp_path, capsys):
    folder = tmp_path / "ptb"
    folder.mkdir()
    for part in ("train", "valid", "test"):
        (folder / f"ptb.{part}.txt").write_text("to be or not to be\n" * 300, encoding="utf-8")
    assert main("--preset", "paper", "--dry-run", "--dataset", folder) == 0
    found = json.loads(capsys.readouterr().out)
    tokens = 7 * 300
    assert found["cost"] == {
        "children": 2 * 12800, "tokens_of_children": 2 * 12800 * 35 * 2 * tokens,
        "tokens_of_retraining": 5 * 3 * 1000 * 3 * tokens}
    # V H + V and, of each of two layers, 8 H (H + H)
    assert found["params"]["cell"] == 5 * 850 + 5 + 2 * 8 * 850 * 2 * 850


@pytest.mark.parametrize("flags, message", [
    (("--num-leaves", 3), "num_leaves must be"), (("--evaluations", 5), "evaluations must be"),
    (("--child-tokens", 1), "child_tokens must be"), (("--child-tokens", 20), "too short for"),
    (("--baseline-decay", 2), "baseline_decay must be"), (("--population", -1), "population must"),
    (("--controller-lr", 0), "controller_lr must be"), (("--num-layers", 0), "num_layers must be"),
    (("--store", "no/such/folder/trials.sqlite"), "folder"), (("--devices", 2), "one device")])
def test_bad_input_is_one_sentence(flags, message, capsys):
    assert main("--smoke", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
