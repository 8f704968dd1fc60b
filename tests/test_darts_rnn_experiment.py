"""experiments.darts_rnn as a user runs it: the run directory, a resumption, bad input."""

import json

import numpy as np
import pytest

from experiments import common, darts_rnn, language_retraining
from jaxnas import genotypes, reporting
from jaxnas.networks.language_model import count_parameters
from jaxnas.search_spaces import DARTSRNN


def main(*flags):
    return common.main(darts_rnn.Config, darts_rnn.PRESETS, darts_rnn.SMOKE, darts_rnn.run,
                       [*flags, "--quiet"])


@pytest.fixture(scope="module")
def whole(compiled_once, tmp_path_factory):
    """An uninterrupted smoke run."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    assert main("--smoke", "--output", str(path)) == 0
    return path


def test_run_directory(whole):
    assert reporting.validate_run_directory(whole) == []
    result = reporting.read_result(whole)
    assert result.complete and result.experiment == "darts_rnn" and result.system == "DARTS"
    bits = result.metrics["test_bits_per_character"]
    assert 0 < bits.found["mean"] < 7 and bits.random is not None
    for group in ("LSTM", "GRU"):
        assert 0 < result.extra["baselines"][group]["test_bits_per_character"]["mean"] < 7
    assert result.compilations == len(result.programs) == 8
    genotype = genotypes.load(str(whole / "genotype.json"))
    space = DARTSRNN(3)
    assert tuple(space.encode(genotype.architecture)) == result.architecture.arch
    for name in ("cell.svg", "alphas.svg", "history.svg", "accuracy.svg", "report.html"):
        assert (whole / name).stat().st_size > 1000
    rows = reporting.read_metrics(whole / "metrics.jsonl")
    assert [row["group"] for row in rows if row["kind"] == "evaluation"] == list(
        language_retraining.GROUPS)


@pytest.mark.parametrize("looks", [  # in the search, in the retraining
    pytest.param(2, marks=pytest.mark.slow), 8])
def test_interrupted_run_resumes_equal(whole, records, stopping, tmp_path, looks):
    path = tmp_path / "run"
    with stopping(looks):
        assert main("--smoke", "--output", str(path)) == 0
    assert not reporting.read_result(path).complete
    assert reporting.validate_run_directory(path) == []
    assert main("--resume", str(path)) == 0
    assert records(path) == records(whole)


@pytest.mark.slow
def test_second_order(compiled_once, tmp_path):
    path = tmp_path / "run"
    assert main("--smoke", "--gradient", "hessian_vector", "--output", str(path)) == 0
    assert reporting.read_result(path).complete


def test_dry_run_of_words_in_a_folder(tmp_path, capsys):
    for part in ("train", "valid", "test"):
        (tmp_path / f"ptb.{part}.txt").write_text("to be or not to be\n" * 200, encoding="utf-8")
    assert main("--smoke", "--dry-run", "--level", "words", "--dataset", str(tmp_path)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["vocabulary_size"] == 5 and found["dataset"]["splits"]["valid"] == 1400


@pytest.mark.parametrize("flags, message", [
    (("--dataset", "nowhere.txt"), "There is no text 'nowhere.txt'"),
    (("--bptt", "4000"), "too short for batch_size"), (("--weights-lr", "0"), "weights_lr must be"),
    (("--devices", "2"), "runs on one device"), (("--limit", "1"), "limit must be 2"),
    (("--num-nodes", "40"), "num_nodes must be"),
    (("--dropout-output", "1"), "dropout.output must be")])
def test_bad_input_is_one_sentence(flags, message, capsys):
    assert main("--smoke", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_groups_share_their_sizes():
    models = language_retraining.retrained_models(darts_rnn.Config(), DARTSRNN(), 63)
    sizes = np.array([count_parameters(model) for model in models.values()])
    assert np.abs(sizes / sizes[0] - 1).max() < 0.02
