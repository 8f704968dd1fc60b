"""experiments.enas_rnn as a user runs it, and what its search is made of."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common, enas_rnn, enas_rnn_search, language_retraining
from experiments.language_controller import inverse_perplexity
from jaxnas import genotypes, reporting
from jaxnas.networks import LanguageModel
from jaxnas.search_spaces import ENASRNN


def main(*flags):
    return common.main(enas_rnn.Config, enas_rnn.PRESETS, enas_rnn.SMOKE, enas_rnn.run,
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
    assert result.complete and result.experiment == "enas_rnn" and result.system == "ENAS"
    bits = result.metrics["test_bits_per_character"]
    assert 0 < bits.found["mean"] < 7 and bits.random is not None
    assert set(result.extra["baselines"]) == {"LSTM", "GRU"}
    # One program trains and scores all cells of the search, one retrains all.
    assert sorted(result.programs) == ["derive", "initial_state", "retrain_cell", "retrain_gru",
                                       "retrain_lstm", "search_epoch"]
    genotype = genotypes.load(str(whole / "genotype.json"))
    assert tuple(ENASRNN(3).encode(genotype.architecture)) == result.architecture.arch
    for name in ("cell.svg", "history.svg", "entropy.svg", "accuracy.svg", "report.html"):
        assert (whole / name).stat().st_size > 1000
    rows = reporting.read_metrics(whole / "metrics.jsonl")
    assert [row["group"] for row in rows if row["kind"] == "evaluation"] == list(
        language_retraining.GROUPS)


def test_search_is_what_it_says(whole):
    rows = [row for row in reporting.read_metrics(whole / "metrics.jsonl")
            if row["kind"] == "epoch"]
    epochs = [row for row in rows if row["phase"] == "search"]
    derived, = [row for row in rows if row["phase"] == "derive"]
    assert len(epochs) == 2 and epochs[1]["train_loss"] < epochs[0]["train_loss"]
    assert derived["valid_loss"] <= derived["mean_valid_loss"]
    assert tuple(derived["arch"]) == reporting.read_result(whole).architecture.arch
    # The baseline starts at 0 and moves by 1 percent of the rewards of every step.
    low, high = (80 / np.exp(loss) for loss in (5.0, 3.0))  # of 65 symbols, ln 65 = 4.2
    share = 1 - 0.99 ** 2
    assert share * low < epochs[0]["baseline"] < share * high
    # Nearly uniform at first: sources have a prior of their own, activations have ln 4 nats.
    assert 3 * np.log(4) < epochs[0]["entropy"] < 3 * np.log(4) + np.log(2) + np.log(3)


@pytest.mark.slow  # what is shared with darts_rnn is resumed by default there
@pytest.mark.parametrize("looks", [1, 4])  # in the search, in the retraining
def test_interrupted_run_resumes_equal(whole, records, stopping, tmp_path, looks):
    path = tmp_path / "run"
    with stopping(looks):
        assert main("--smoke", "--output", str(path)) == 0
    assert not reporting.read_result(path).complete
    assert reporting.validate_run_directory(path) == []
    assert main("--resume", str(path)) == 0
    assert records(path) == records(whole)


def test_l2_is_of_what_an_arch_uses():
    space = ENASRNN(3)
    model = LanguageModel(space.shared_cell(hidden_size=2), 5, decoder_bias=False)
    penalty = enas_rnn_search.used_l2(model, 0.5)
    params = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0)))
    arch = jnp.array([0, 1, 1, 2, 0, 3])  # (source, activation) of nodes 1 to 3
    # embedding [5, 2], input and recurrent [2, 4], of nodes 3 matrices [2, 4] of the 6 * 4
    assert penalty(params, *space.split(arch)) == 0.5 * (10 + 8 + 8 + 3 * 8)
    grads = jax.grad(penalty)(params, *space.split(arch))
    nodes = np.asarray(grads["layers"][0]["nodes"])  # [6, 4, 2, 4]
    used = np.zeros((6, 4), bool)
    used[[0, 1 + 1, 3 + 0], [1, 2, 3]] = True
    np.testing.assert_array_equal(nodes, np.where(used[..., None, None], np.ones((2, 4)), 0))


def test_reward_is_inverse_perplexity():
    fitness = inverse_perplexity(80.0)({"perplexity": jnp.array([80.0, 160.0])})
    np.testing.assert_allclose(fitness, [1.0, 0.5])


def test_dry_run_of_the_published_preset(tmp_path, capsys):
    folder = tmp_path / "ptb"
    folder.mkdir()
    for part, times in (("train", 3000), ("valid", 3000), ("test", 3000)):
        (folder / f"ptb.{part}.txt").write_text("to be or not to be\n" * times, encoding="utf-8")
    assert main("--preset", "paper", "--dry-run", "--dataset", str(folder)) == 0
    found = json.loads(capsys.readouterr().out)
    tokens = 7 * 3000
    assert found["vocabulary_size"] == 5
    assert found["cost"] == {
        "tokens_of_weights": 600 * tokens, "tokens_of_controller": 600 * 25 * 10 * 128 * 35,
        "tokens_of_derivation": 100 * 128 * (tokens // 128),
        "tokens_of_retraining": 4 * 3 * 3000 * 3 * tokens}
    # V H + 4 H^2 + N 2 H^2, H = 800, N = 8
    assert found["params"]["cell"] == 5 * 800 + 4 * 800**2 + 8 * 2 * 800**2


@pytest.mark.parametrize("flags, message", [
    (("--dataset", "nowhere.txt"), "There is no text 'nowhere.txt'"),
    (("--baseline-decay", "2"), "baseline_decay must be"),
    (("--derive-tokens", "0"), "derive_tokens must be"), (("--devices", "2"), "on one device"),
    (("--controller-samples", "0"), "controller_samples must be"),
    (("--weights-l2", "-1"), "weights_l2 must be")])
def test_bad_input_is_one_sentence(flags, message, capsys):
    assert main("--smoke", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
