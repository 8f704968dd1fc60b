"""Searches that train children: the store, resumption, kill -9, and the three systems by main().

The toy's children are not trained: their metrics are a formula of the architecture. What is real
is all else, the retraining of a linear classifier included.
"""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import amoebanet, child_run, child_search, common, nasnet, nasrl, pair_search
from experiments.child_trials import Kind, SharedTrials, Stopped
from jaxnas import data, genotypes, objectives, reporting, trials
from jaxnas.costs import Cost
from jaxnas.evaluators import Recipe
from jaxnas.search_spaces import Product
from jaxnas.searchers import random_search, regularized_evolution

ROOT = Path(__file__).parent.parent
SPACE = Product((4, 5, 6), "toy")
FAILS = 5  # of decision 2


class Linear(nn.Module):
    """A classifier that takes an architecture and makes little of it."""

    @nn.compact
    def __call__(self, x, arch, *, train, drop_path_rate=0.0):
        return nn.Dense(10)(x.reshape(x.shape[0], -1)) * (1.0 + arch[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(child_search.ChildConfig):
    """The toy."""

    num_seeds: int = 2
    evaluations: int = 12
    limit: int | None = 100
    valid_fraction: float = 0.5
    recipe: Recipe = Recipe(epochs=1, batch_size=10)
    retrain_epochs: int = 1
    retrain_batch_size: int = 512


def make_system(config, dataset):
    stage = child_search.Stage(
        "toy", SPACE, Linear(), lambda arch: {"arch": arch},
        regularized_evolution(SPACE, population_size=4, tournament_size=2, batch_size=2),
        random_search(SPACE, batch_size=2), child_search.steps(config.evaluations, 2, "2"),
        lambda: 640.0)
    return child_search.System(
        "toy", "Toy", (stage,), objectives.maximize("valid_accuracy"), Linear(), jnp.asarray,
        lambda arch: Cost(650, 640),
        lambda arch: genotypes.Encoded("toy", tuple(arch.tolist()), SPACE.decode(arch)))


def formula(arch):
    accuracy = float("nan") if arch[2] == FAILS else float(10 * arch[0] + 7 * arch[1] + arch[2])
    return {"valid_accuracy": accuracy, "valid_loss": 1.0, "train_loss": 0.5,
            "diverged_epoch": 0.0 if np.isnan(accuracy) else -1.0, "curve": [accuracy, 1.0]}


def make_train(pause=0.0, after=None):
    """Return a training of children that takes `pause` seconds; `after` is told their number."""
    trained = []

    def make(stage, config, dataset, examples):
        def train(archs):
            time.sleep(pause)
            trained.extend(map(tuple, archs.tolist()))
            if after is not None:
                after(len(trained))
            return [formula(arch) for arch in archs]
        return train

    make.trained = trained
    return make


def start(arguments, train):
    return common.main(Config, {"small": Config()}, Config(), lambda config: child_run.run(
        config, make_system, train), ["--quiet", *map(str, arguments)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, and what it trained."""
    path, train = tmp_path_factory.mktemp("whole") / "run", make_train()
    assert start(["--output", path], train) == 0
    return path, train.trained


def test_run_directory(whole, capsys, records):
    path, trained = whole
    assert reporting.validate_run_directory(path) == []
    result = reporting.read_result(path)
    rows = [row for row in records(path) if row["kind"] == "evaluation" and "group" in row]
    searched = [row for row in rows if row["phase"] == "search"]
    assert [row["group"] for row in searched] == ["found"] * 12 + ["random"] * 12
    assert result.evaluations.total == 24
    assert result.evaluations.unique == len({tuple(row["arch"]) for row in searched})
    assert result.evaluations.failed == sum(row["arch"][2] == FAILS for row in searched) > 0
    for row in searched:
        value = formula(row["arch"])["valid_accuracy"]
        assert row["failed"] == (row["fitness"] is None) == np.isnan(value)
        assert row["failed"] or row["fitness"] == row["valid_accuracy"] == value
    # every network once, whoever asked for it and how often
    assert sorted(trained) == sorted({tuple(row["arch"]) for row in searched})
    best = max((row for row in searched if row["group"] == "found" and not row["failed"]),
               key=lambda row: row["fitness"])
    assert list(result.architecture.arch) == best["arch"]
    retrained = [row["group"] for row in rows if row["phase"] == "retrain"]
    assert retrained == ["found"] * 2 + ["random"] * 2 + ["random_networks"] * 2
    assert len(result.metrics["test_accuracy"].random["values"]) == 2
    assert result.extra["not_worse_than_random_networks"] == (
        result.extra["found_test_accuracy"]["mean"]
        >= result.extra["random_networks_test_accuracy"]["mean"])
    assert result.programs == ("children_toy", "retrain")
    assert (path / "history.svg").exists() and (path / "architecture.svg").exists()
    with trials.open_store(path / "trials.sqlite") as store:
        assert store.counts().failed == len({arch for arch in trained if arch[2] == FAILS})
        assert all(len(trial.metrics["curve"]) == 2 for trial in store.trials())


@pytest.mark.parametrize("children", [
    6, *(pytest.param(children, marks=pytest.mark.slow) for children in (1, 15))])
def test_ctrl_c_saves_and_resumption_is_equal(whole, tmp_path, children, capsys, assert_equal_runs):
    path = tmp_path / "run"
    train = make_train(after=lambda count: count == children and os.kill(
        os.getpid(), signal.SIGINT))
    assert start(["--output", path], train) == 0
    assert not reporting.read_result(path).complete
    assert reporting.validate_run_directory(path) == []
    assert "--resume" in capsys.readouterr().err
    assert len(train.trained) == children  # it stops between two children, not after the step
    rest = make_train()
    assert start(["--resume", path], rest) == 0
    assert_equal_runs(path, whole[0])
    assert sorted(train.trained + rest.trained) == sorted(whole[1])  # nothing was trained twice


def test_a_second_run_on_the_store_trains_nothing(whole, tmp_path, records):
    train = make_train()
    assert start(["--output", tmp_path / "run", "--store", whole[0] / "trials.sqlite"], train) == 0
    assert train.trained == []
    ours, theirs = records(tmp_path / "run"), records(whole[0])
    assert ours == theirs


def test_another_recipe_is_another_child(tmp_path):
    dataset = data.load("digits")
    config = Config()
    stage = make_system(config, dataset).stages[0]
    kinds = [child_search.identity(stage, changed, dataset) for changed in (
        config, dataclasses.replace(config, seed=3), dataclasses.replace(config, child_seed=1),
        dataclasses.replace(config, limit=90),
        dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, epochs=2)))]
    assert kinds[0] == kinds[1]  # the search's seed is no child's
    texts = {json.dumps(kind.recipe, sort_keys=True) for kind in kinds}
    assert len(texts) == 4
    narrow, wide = (pair_search.make_system(
        nasnet.Config(features=features), dataset, nasnet.NASNet(1), random_search(SPACE), 1, "", {}
    ).stages[0] for features in (2, 4))
    assert child_search.identity(narrow, config, dataset) != (
        child_search.identity(wide, config, dataset))


def test_a_store_that_is_none_is_refused_before_compilation(tmp_path, capsys):
    (tmp_path / "a.sqlite").write_text("no database at all, but long enough to be read as one")
    train = make_train()
    assert start(["--output", tmp_path / "run", "--store", tmp_path / "a.sqlite"], train) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "SQLite" in error


# Two runs on one store, and the claims themselves.

KIND = Kind("toy", {"seed": 0})


def archs(*numbers):
    return np.array([[0, 0, number] for number in numbers], np.int32)


def rows(values):
    return [{"valid_accuracy": float(arch[2])} for arch in values]


def test_two_threads_train_every_child_once(tmp_path):
    path, trained = tmp_path / "trials.sqlite", []

    def train(values):
        trained.extend(values[:, 2].tolist())
        time.sleep(0.01)
        return rows(values)

    def work(numbers, results):
        with trials.open_store(path) as store:
            results += SharedTrials(store, KIND, train, population=2, poll_seconds=0.01).evaluate(
                archs(*numbers))

    results = [[], []]
    threads = [threading.Thread(target=work, args=(numbers, result)) for numbers, result in zip(
        (range(12), reversed(range(12))), results)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(trained) == list(range(12))
    for numbers, result in zip((range(12), reversed(range(12))), results):
        assert [child.metrics["valid_accuracy"] for child in result] == list(map(float, numbers))


def test_others_are_trained_first_and_a_lost_lease_takes_the_first_metrics(tmp_path):
    with trials.open_store(tmp_path / "trials.sqlite") as store:
        held = store.claim("toy", (0, 0, 1), KIND.recipe)
        order = []

        def train(values):
            order.extend(values[:, 2].tolist())
            if order == [2]:  # the other one finishes while we train something else
                store.finish(held, {"valid_accuracy": 77.0})
            if 3 in order and 4 not in order:  # and someone is faster with what we train now
                token = store._held[next(iter(store._held))]
                store.finish(token, {"valid_accuracy": 55.0})
            return rows(values)

        shared = SharedTrials(store, KIND, train, poll_seconds=0.01)
        found = shared.evaluate(archs(1, 2, 3, 1))
        assert order == [2, 3]
        assert [child.metrics["valid_accuracy"] for child in found] == [77.0, 2.0, 55.0, 77.0]


def test_stopping_releases_and_errors_release(tmp_path):
    with trials.open_store(tmp_path / "trials.sqlite") as store:
        asked = iter([False, True])
        with pytest.raises(Stopped):
            SharedTrials(store, KIND, rows, stop=lambda: next(asked)).evaluate(archs(1, 2))
        assert store.counts() == trials.Counts(done=1, failed=0, claimed=0, free=1)

        def broken(values):
            raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"):
            SharedTrials(store, KIND, broken).evaluate(archs(1, 2))
        assert store.counts().claimed == 0
        with pytest.raises(ValueError, match="population"):
            SharedTrials(store, KIND, rows, population=0)
        # a process that waits for another one can be stopped, too
        store.claim("toy", (0, 0, 9), KIND.recipe)
        with pytest.raises(Stopped):
            SharedTrials(store, KIND, rows, stop=lambda: True).evaluate(archs(9))


def test_leases_are_renewed_while_a_child_is_trained(tmp_path):
    with trials.open_store(tmp_path / "trials.sqlite") as store:
        def train(values):
            time.sleep(0.5)
            assert isinstance(store.claim("toy", values[0], KIND.recipe), trials.Busy)
            return rows(values)

        SharedTrials(store, KIND, train, lease_seconds=0.2).evaluate(archs(1))


WORKER = """
import sys
sys.path[:0] = sys.argv[1:3]
import test_child_search as toy
sys.exit(toy.start(sys.argv[4:], toy.make_train(pause=float(sys.argv[3]))))
"""


def kill_at_random(path, draw, mode):
    """Start or continue a run in a process of its own, and end it with signal 9."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, ROOT, Path(__file__).parent, "0.05", mode, path],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    file, deadline = path / "metrics.jsonl", time.monotonic() + 300
    # from the first moment of the run directory on, at any stage of the search or retraining
    while not (path / "config.json").exists() or (
            mode == "--output" and not file.exists()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    if mode == "--output":
        lines = draw.randrange(1, 12)
        while process.poll() is None and file.read_bytes().count(b"\n") < lines:
            time.sleep(0.01)
        time.sleep(0.1 * draw.random())
    else:
        time.sleep(4 + 4 * draw.random())
    process.kill()
    return process.wait()


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_and_resumption_are_equal(whole, tmp_path, kills, assert_equal_runs):
    path, draw = tmp_path / "run", random.Random(kills)
    assert kill_at_random(path, draw, "--output") == -signal.SIGKILL
    for _ in range(kills - 1):
        kill_at_random(path, draw, "--resume")
    with trials.open_store(path / "trials.sqlite") as store:
        before = store.counts()
    rest = make_train()
    assert start(["--resume", path], rest) == 0
    assert_equal_runs(path, whole[0])
    # what was finished is not trained again: at most what was in flight was lost
    assert len(rest.trained) == len(whole[1]) - before.done - before.failed


# The three systems.

SYSTEMS = {"nasrl": nasrl, "nasnet": nasnet, "amoebanet": amoebanet}


def main(name, *arguments):
    module = SYSTEMS[name]
    return common.main(module.Config, module.PRESETS, module.SMOKE, module.run,
                       [*map(str, arguments)])


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow) for name in SYSTEMS])
def test_smoke_run_of_a_system(name, tmp_path, capsys):
    path = tmp_path / "run"
    assert main(name, "--smoke", "--quiet", "--output", path) == 0
    assert "random networks at equal cost" in capsys.readouterr().out
    assert reporting.validate_run_directory(path) == []
    result = reporting.read_result(path)
    assert result.complete and result.evaluations.total == 8
    assert result.compilations == len(result.programs) == 2  # all children's and the retraining
    genotype = genotypes.load(str(path / "genotype.json"))
    assert genotype.space == name
    assert genotypes.to_json_dict(genotype) == result.architecture.genotype


@pytest.mark.parametrize("name, preset", [
    ("nasrl", "small"), *(pytest.param(name, preset, marks=pytest.mark.slow) for name, preset in [
        ("nasrl", "paper"), ("nasnet", "small"), ("nasnet", "paper"), ("amoebanet", "small"),
        ("amoebanet", "paper")])])
def test_dry_run(name, preset, capsys):
    assert main(name, "--preset", preset, "--dry-run", "--dataset", "digits") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["retrained_parameters"] > 100
    assert facts["estimate"]["gpu_hours"] > 0
    assert "children_" in facts["programs"][0]


@pytest.mark.parametrize("name, arguments, word", [
    ("nasrl", ["--more-layers", 3], "first_layers"), ("nasrl", ["--kernels", 2], "kernels"),
    ("nasrl", ["--drop-path-rate", 0.1], "drop"), ("nasrl", ["--evaluations", 5], "evaluations"),
    ("nasnet", ["--evaluations", 5], "evaluations"), ("nasnet", ["--num-blocks", 9], "num_blocks"),
    ("nasnet", ["--operations", "nothing"], "operations"),
    ("nasnet", ["--recipe.batch-size", 5000], "recipe.batch_size"),
    ("nasnet", ["--recipe.epochs", 0], "epochs"),
    ("amoebanet", ["--population-size", 0], "population_size"),
    ("amoebanet", ["--population", -1], "population"),
    ("amoebanet", ["--store", "no/such/folder/trials.sqlite"], "folder"),
    ("amoebanet", ["--retrain-epochs", 0], "retrain_epochs")])
def test_bad_input_is_one_sentence(name, arguments, word, tmp_path, capsys):
    assert main(name, "--smoke", *arguments, "--output", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and word in error


def test_a_prefix_of_a_policy_ignores_what_is_behind():
    policy = nasrl.nasrl_controller(3, (2, 2, 4), hidden_size=4, lstm_layers=1)
    length = 7  # decisions of two layers: 3 + 4
    prefix = nasrl.prefix_policy(policy, length)

    @jax.jit
    def everything(key):
        params = policy.init(key)
        arch, whole = prefix.sample(key, params), policy.sample(key, params)
        terms = [(p.log_prob(params, a), p.entropy(params, a))
                 for p, a in ((prefix, arch), (policy, whole))]
        gradient = jax.grad(lambda p: prefix.log_prob(p, arch).sum())(params)
        return arch, whole, terms, gradient["softmax"]

    arch, whole, (ours, theirs), gradient = jax.device_get(everything(jax.random.key(1)))
    np.testing.assert_array_equal(arch, np.where(np.arange(12) < length, whole, 0))
    for values, expected in zip(ours, theirs):
        np.testing.assert_allclose(values[:length], expected[:length], rtol=1e-6)
        assert (values[length:] == 0).all() and (expected[length:] != 0).any()
    assert np.abs(gradient[2]).max() == 0 < np.abs(gradient[1]).max()  # [L, W, H, K]


def test_genotype_of_the_chain_has_the_papers_numbers():
    config = nasrl.Config(kernels=(3, 7), layers=2, first_layers=2)
    chains = nasrl._chains(config, 2)
    arch = np.array([0, 1, 3, 1, 1, 0, 1], np.int32)
    assert chains.decode(arch).architecture == "3x7x64|7x7x24:1"
    assert chains.space.decode(arch) == "3x7x12|7x7x4:1"
