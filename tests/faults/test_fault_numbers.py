"""Gate 7: NaN and infinity stop a training at once, fail a trial, and are in no checkpoint."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import child_run, child_search, common, retraining
from jaxnas import checkpoints, objectives, reporting, trials
from jaxnas.costs import Cost
from jaxnas.evaluators import Recipe
from jaxnas.genotypes import Encoded
from jaxnas.search_spaces import Product
from jaxnas.searchers import random_search, regularized_evolution

pytestmark = [pytest.mark.gate(7), pytest.mark.usefixtures("compiled_once")]
SPACE = Product((3, 4), "toy")
DIVERGES, OVERFLOWS = 1, 2  # of decision 0


class Fragile(nn.Module):
    """A linear classifier that some architectures make diverge, or overflow at once."""

    @nn.compact
    def __call__(self, x, arch, *, train, drop_path_rate=0.0):
        bias = self.param("bias", nn.initializers.zeros_init(), (10,))
        # finite until the first step has moved the bias away from 0
        growth = jnp.exp(jnp.array([0.0, 1e9, 0.0])[arch[0]] * jnp.abs(bias).max())
        scale = jnp.array([1.0, 1.0, jnp.inf])[arch[0]]
        return scale * growth * (nn.Dense(10)(x.reshape(x.shape[0], -1)) + bias) + arch[1]


def make_system(config, dataset):
    stage = child_search.Stage(
        "toy", SPACE, Fragile(), lambda arch: {"arch": arch},
        regularized_evolution(SPACE, population_size=4, tournament_size=2, batch_size=2),
        random_search(SPACE, batch_size=2), config.evaluations // 2, lambda: 640.0)
    return child_search.System(
        "toy", "Toy", (stage,), objectives.maximize("valid_accuracy"), Fragile(),
        lambda arch: jnp.asarray(arch), lambda arch: Cost(650, 640),
        lambda arch: Encoded("toy", tuple(map(int, arch)), SPACE.decode(arch)))


def saved_floats(path):
    """Yield name and values of the floats of the newest checkpoint, from its bytes."""
    _, manifest, buffer = checkpoints._newest_verified(path / "checkpoints")
    for leaf in manifest["leaves"]:
        if leaf["dtype"] in ("float32", "float64") and leaf["kind"] != "key":
            yield leaf["path"], np.frombuffer(
                buffer[leaf["offset"]:leaf["offset"] + leaf["size"]].tobytes(), leaf["dtype"])


@pytest.mark.slow
def test_diverging_children_fail_and_the_search_ends(tmp_path, gate):
    path = tmp_path / "run"
    config = child_search.ChildConfig(
        num_seeds=1, evaluations=24, limit=100, valid_fraction=0.5, retrain_epochs=1,
        recipe=Recipe(epochs=2, batch_size=10), retrain_batch_size=512)
    assert common.main(child_search.ChildConfig, {"small": config}, config, lambda config: (
        child_run.run(config, make_system)), ["--quiet", "--output", str(path)]) == 0
    result = reporting.read_result(path)
    assert result.complete and result.architecture.arch[0] == 0
    rows = [row for row in reporting.read_metrics(path / "metrics.jsonl")
            if row["kind"] == "evaluation" and row["phase"] == "search"]
    for row in rows:
        assert row["failed"] == (row["arch"][0] in (DIVERGES, OVERFLOWS)) == (
            row["fitness"] is None), row
    failed = sum(row["failed"] for row in rows)
    assert 0 < failed < len(rows) == 48 and result.evaluations.failed == failed
    with trials.open_store(path / "trials.sqlite") as store:
        for trial in store.trials():
            assert trial.failed == (trial.arch[0] != 0)
            assert not trial.failed or "not finite" in trial.error
    # what has no value yet is NaN by design; what is computed is not
    names = [name for name, values in saved_floats(path)
             if not name.startswith("['accuracies']") and np.isnan(values).any()]
    assert names == []
    gate(f"{failed} of {len(rows)} children diverge: marked failed, never best, search ends, "
         "no NaN saved")


@pytest.mark.slow
@pytest.mark.parametrize("experiment, arguments, word", [
    ("darts", ("--weights-lr", 1e30, "--checkpoint-steps", 1, "--clip-norm", 1e30), "step"),
    ("enas", ("--weights-lr", 1e30, "--epochs", 3), "epoch"),
    ("darts_rnn", ("--weights-lr", 1e30, "--checkpoint-steps", 1, "--clip-norm", 1e30), "step")])
def test_a_diverging_search_stops_within_one_step(experiment, arguments, word, nursery, tmp_path,
                                                  gate):
    path = tmp_path / "run"
    life = nursery(experiment, path, *arguments)
    assert life.status(600.0) == 1
    *before, last = reporting.read_metrics(path / "metrics.jsonl")
    assert last["kind"] == "event" and last["event"] == "diverged"
    assert all("nonfinite" not in row for row in before)
    where = last[word]
    assert where == sum(row["kind"] == word for row in before)  # the very next one
    assert f"not finite {'at search step' if word == 'step' else 'in epoch'} {where}" in (
        life.log.read_text())
    if (checkpoints.latest_step(path / "checkpoints")) is not None:
        placeholders = tuple(f"['{name}']" for name in (
            "accuracies", "history", "scores", "losses", "valid"))  # NaN: no value yet
        assert [name for name, values in saved_floats(path)
                if not name.startswith(placeholders) and not np.isfinite(values).all()] == []
    gate(f"{experiment}: stopped in {word} {where}, named, checkpoint finite")


RUNS = [retraining.Retraining("found", number, number, np.array([number]), (number == 1,))
        for number in range(3)]
EMPTY = {"w": np.float32(0.0)}


def dummy_epoch(key, state, epoch, diverges):
    """Count epochs in the weights; a diverging one is NaN from epoch 1 on."""
    bad = np.float32(np.nan if diverges and epoch else 0.0)
    weights = np.float32(epoch and state["w"]) + 1 + bad
    return {"w": weights}, {"loss": np.array([weights]), "accuracy": np.array([0.5]),
                            "test_loss": weights, "test_accuracy": np.float32(0.7)}


@pytest.mark.parametrize("stops", [(12,), (3, 5, 7)])
def test_a_diverging_retraining_is_left_out_and_the_others_go_on(stops, tmp_path, gate):
    trainer = retraining.Trainer(dummy_epoch, EMPTY)
    state = {"train": EMPTY, "accuracies": np.full(3, np.nan, np.float32)}
    epochs = []

    def on_epoch(epoch):
        assert np.isfinite(state["train"]["w"])
        epochs.append(epoch.steps)

    with reporting.MetricsWriter(tmp_path / "metrics.jsonl") as metrics:
        for stop in stops:  # interrupted, and resumed with what a checkpoint holds
            complete = retraining.train_all(
                trainer, RUNS, state, jax.random.key(0), epochs=4, done=len(epochs),
                metrics=metrics, progress=reporting.Progress(quiet=True),
                stop=lambda: len(epochs) >= stop, on_epoch=on_epoch)
        if not complete:
            retraining.train_all(
                trainer, RUNS, state, jax.random.key(0), epochs=4, done=len(epochs),
                metrics=metrics, progress=reporting.Progress(quiet=True),
                stop=lambda: False, on_epoch=on_epoch)
    assert epochs == [1] * 6 + [0] * 2 + [1] * 4
    np.testing.assert_array_equal(state["accuracies"], np.float32([70, 0, 70]))
    rows = reporting.read_metrics(tmp_path / "metrics.jsonl")
    tested = [row for row in rows if row["kind"] == "evaluation"]
    assert [row["failed"] for row in tested] == [False, True, False]
    assert [row["fitness"] for row in tested] == [pytest.approx(70), None, pytest.approx(70)]
    assert [(row["event"], row["run"], row["epoch"]) for row in rows if row["kind"] == "event"] == [
        ("diverged", 1, 1)]
    gate("a retraining that diverges: failed, accuracy 0, others unharmed")


@pytest.mark.slow
def test_a_real_retraining_that_diverges(nursery, tmp_path, gate):
    path = tmp_path / "run"
    nursery("retrain", path, "--retrain-lr", 1e30, "--retrain-epochs", 3).finish()
    result = reporting.read_result(path)
    assert result.complete and result.metrics["test_accuracy"].found["values"] == [0.0, 0.0]
    assert result.evaluations == reporting.Evaluations(2, 1, 2)
    kinds = [row["kind"] for row in reporting.read_metrics(path / "metrics.jsonl")]
    assert kinds == ["epoch", "event", "evaluation"] * 2
    assert [name for name, values in saved_floats(path) if not np.isfinite(values).all()] == []
    gate("retrain: stopped in epoch 0 of 3, exit 0, checkpoint finite")
