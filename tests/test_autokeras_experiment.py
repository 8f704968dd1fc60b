"""experiments.autokeras as a user runs it, and the pieces that are its own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import autokeras, autokeras_run, autokeras_search, autokeras_weights, common
from experiments.autokeras_search import Bound, Children
from experiments.programs import Program
from jaxnas import conv_chains, data, genotypes, reporting, trials
from jaxnas.networks import MorphableNetwork
from jaxnas.search_spaces import morphable_cnn

SMALL = ["--smoke", "--quiet", "--num-seeds", "1"]


def main(argv):
    """Run the experiment with flags; return its exit code."""
    return common.main(autokeras.Config, autokeras.PRESETS, autokeras.SMOKE, autokeras.run, argv)


@pytest.fixture(scope="module")
def compiled_once():
    """Compile the programs of a configuration once for all runs of this module, and quickly."""
    known, lower = {}, Program.lower

    def name_of(program):
        shapes = jax.tree.map(lambda a: (a.shape, str(a.dtype)), program._args)
        return program.name, str(shapes)

    def lower_once(program):
        return None if name_of(program) in known else lower(program)

    def compile_once(program, lowered):
        name = name_of(program)
        if lowered is not None:
            known[name] = lowered.compile({"xla_backend_optimization_level": 0})
        program.compiled = known[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "lower", lower_once)
        patch.setattr(Program, "compile", compile_once)
        yield


@pytest.fixture(scope="module")
def whole(compiled_once, tmp_path_factory):
    """An uninterrupted smoke run."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*SMALL, "--output", str(path)]) == 0
    return path


def lines_of(path):
    """What a run has measured, without times."""
    rows = reporting.read_metrics(path / "metrics.jsonl")
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def test_a_run_leaves_what_it_owes(whole):
    assert reporting.validate_run_directory(whole) == []
    result = reporting.read_result(whole)
    assert result.complete and result.system == "AutoKeras" and result.compilations == 3
    assert result.programs == ("train_child", "test_child", "retrain")
    for name in ("test_accuracy", "valid_accuracy", "params"):
        assert result.metrics[name].random is not None
    assert set(result.extra["best_valid_accuracy_by_trial"]) == set(autokeras_search.GROUPS)
    assert set(result.extra["test_accuracy_by_group"]) == {
        *autokeras_search.GROUPS, "random_networks"}
    assert set(result.extra["test_accuracy_of_the_best_childs_weights"]) == {
        "inherited", "unchanged"}
    rows = [row for row in lines_of(whole) if row.get("phase") == "search"]
    assert len(rows) == 12 and result.evaluations.total == 12
    found = genotypes.load(whole / "genotype.json")
    space = morphable_cnn.space_of(found.architecture)
    best = max((row for row in rows if row["group"] == "inherited"),
               key=lambda row: row["valid_accuracy"])
    assert str(space.network(np.array(found.arch)).chain) == best["chain"]


def test_children_are_in_the_store_and_grow_from_their_fathers(whole):
    rows = [row for row in lines_of(whole) if row.get("phase") == "search"]
    kinds = {"deepen": conv_chains.Deepen, "widen": conv_chains.Widen,
             "connect": conv_chains.Connect}
    for group in ("inherited", "fresh"):
        mine = [row for row in rows if row["group"] == group]
        assert len({row["chain"] for row in mine}) == len(mine)
        for row in mine[1:]:
            assert row["weights_epochs"] == (mine[row["father"]]["weights_epochs"] + 1
                                             if group == "inherited" else 1)
            father = mine[row["father"]]
            space = autokeras_search.make_space(autokeras.SMOKE)
            chain = space.slots.chain(np.array(father["arch"]))
            for name, *values in row["operations"]:
                chain = conv_chains.transform(chain, kinds[name](*values))
            assert str(chain) == row["chain"]
    with trials.open_store(whole / "trials.sqlite") as store:
        stored = {json.dumps(trial.arch) for trial in store.trials("morphable_cnn")}
    assert stored == {json.dumps(tuple(row["arch"])) for row in rows}


@pytest.mark.slow
def test_interrupted_and_resumed_is_the_same_run(whole, compiled_once, tmp_path, monkeypatch):
    path = tmp_path / "resumed"
    for stop_at in (2, 13):
        steps = 0

        def save(run, original=autokeras_run.Run._save):
            nonlocal steps
            original(run)
            steps += 1
            if run.step >= stop_at:
                run.interrupt.requested = True

        with monkeypatch.context() as patch:
            patch.setattr(autokeras_run.Run, "_save", save)
            where = ["--resume", str(path)] if path.exists() else [*SMALL, "--output", str(path)]
            assert main([*where, "--quiet"]) == 0
        assert not reporting.read_result(path).complete
    assert main(["--resume", str(path), "--quiet"]) == 0
    assert lines_of(path) == lines_of(whole)
    assert reporting.read_result(path).metrics == reporting.read_result(whole).metrics


def test_a_run_that_shares_a_store_trains_no_drawn_child_again(whole, compiled_once, tmp_path):
    other = tmp_path / "other"
    assert main([*SMALL, "--inheritance", "off", "--store",
                 str(whole / "trials.sqlite"), "--output", str(other)]) == 0
    result = reporting.read_result(other)
    assert result.extra["children_trained_by_this_process"] == 0
    assert set(result.extra["children"]) == {"fresh", "random"}
    both = [[row["valid_accuracy"] for row in lines_of(path) if row.get("group") == "fresh"
             and row.get("phase") == "search"] for path in (whole, other)]
    assert both[0] == both[1]


def test_dry_run_says_what_it_costs(capsys):
    assert main(["--preset", "paper", "--dataset", "digits", "--dry-run"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["children"] == 400 and said["retrainings"] == 5
    assert said["programs"] == ["train_child", "test_child", "retrain"]
    assert said["first_network"]["parameters"] == 9 * 64 + 2 * 36_864 + 2 * 193 + 192 + 650


def test_compile_only_compiles_both(compiled_once, capsys):
    assert main([*SMALL, "--compile-only"]) == 0
    assert {"train_child", "retrain"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize("flags, message", [
    (["--max-width", "12"], "power of 2"), (["--kernels", "1", "5"], "hold 3"),
    (["--trials", "0"], "trials"), (["--max-parameters", "100"], "first network"),
    (["--length-scale", "0"], "length_scale"), (["--devices", "2"], "one device"),
    (["--drop-path-rate", "0.1"], "paths to drop"), (["--stages", "4"], "at least 16 pixels"),
    (["--recipe.batch-size", "4000"], "recipe.batch_size"), (["--width", "0"], "width"),
    (["--store", "nowhere/x.sqlite"], "folder")])
def test_bad_input_is_one_sentence(flags, message, capsys):
    assert main([*flags, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_child_that_does_not_fit_shrinks_the_bound():
    bound = Bound(10_000, (8, 8, 1), 10)
    chain = conv_chains.initial_chain(width=8)
    size = 2 * (1 + 24) + 24 + 9 * 8 + 2 * 9 * 64 + 90
    assert bound.fits(chain) and bound.admits(chain, 10, 20) and bound.admits(chain, 10, None)
    assert bound.parameters == 10_000
    assert not bound.admits(chain, 30, 20)
    assert bound.parameters == size - 1 and not bound.fits(chain)
    assert bound.fits(conv_chains.initial_chain(width=4))


def test_running_out_of_memory_drops_the_child_and_goes_on(compiled_once, tmp_path, monkeypatch):
    """The second child of the search ends with the error that XLA raises."""
    original, calls = Children.train, []

    def train(self, key, chain, parent):
        calls.append(chain)
        if len(calls) == 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return original(self, key, chain, parent)

    monkeypatch.setattr(Children, "train", train)
    path = tmp_path / "run"
    assert main([*SMALL, "--trials", "2", "--inheritance", "on", "--output",
                 str(path)]) == 0
    events = [row for row in lines_of(path) if row["kind"] == "event"]
    assert events and events[0]["event"] == "does not fit"
    count = reporting.read_result(path).extra["max_parameters"]
    assert count < autokeras.SMOKE.max_parameters
    rows = [row for row in lines_of(path) if row.get("phase") == "search"]
    assert all(row["parameters"] <= count for row in rows)
    assert str(calls[1]) not in [row["chain"] for row in rows if row["group"] == "inherited"]


def test_weights_go_to_a_file_and_back(tmp_path):
    digits = data.load("digits")
    config = autokeras.SMOKE
    space = autokeras_search.make_space(config)
    split = data.split_validation(digits, fraction=0.2, seed=0, limit=160)
    children = Children(config, space, digits, split, common.Programs())
    chain = conv_chains.initial_chain(num_stages=1, width=2)
    for operation in (conv_chains.Deepen(0, 3), conv_chains.Connect(0, 1, "concat")):
        chain = conv_chains.transform(chain, operation)
    random = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype),
                         children.empty)
    child = autokeras_weights.extract(children.network, state, chain)
    assert len(child.optimizer_state) == 1  # one momentum
    autokeras_weights.save(tmp_path / "weights" / "child.npz", child)
    read = autokeras_weights.load(tmp_path / "weights" / "child.npz", chain)
    jax.tree.map(np.testing.assert_array_equal, read, child)
    again = autokeras_weights.insert(children.network, read, children.optimizer)
    assert jax.tree.structure(again) == jax.tree.structure(children.empty)
    jax.tree.map(np.testing.assert_array_equal,
                 autokeras_weights.extract(children.network, again, chain), child)
    shapes = jax.eval_shape(lambda: MorphableNetwork(chain).init(
        jax.random.key(0), jnp.zeros((1, *digits.image_shape)), train=False))
    assert jax.tree.map(np.shape, child.params) == jax.tree.map(lambda a: a.shape,
                                                                dict(shapes["params"]))
