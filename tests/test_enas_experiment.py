"""experiments.enas as a user runs it, and the pieces that are its own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import enas, enas_controller, enas_search, retraining
from experiments.programs import Program
from jaxnas import genotypes, reporting
from jaxnas.networks.used_parameters import used_parameters
from jaxnas.search_spaces.enas_macro import ENASMacro


@pytest.fixture(scope="module")
def compiled_once():
    """Compile the programs of a configuration once for all runs of this module."""
    known, lower, compile_ = {}, Program.lower, Program.compile

    def name_of(program):
        shapes = jax.tree.map(lambda a: (a.shape, str(a.dtype)), program._args)
        return program.name, str(shapes)

    def lower_once(program):
        return None if name_of(program) in known else lower(program)

    def compile_once(program, lowered):
        name = name_of(program)
        if lowered is not None:
            compile_(program, lowered)
            known[name] = program.compiled
        program.compiled = known[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "lower", lower_once)
        patch.setattr(Program, "compile", compile_once)
        yield


def whole(space, folder):
    path = folder / space
    assert enas.main(["--smoke", "--space", space, "--output", str(path), "--quiet"]) == 0
    return path


@pytest.fixture(scope="module")
def macro_run(compiled_once, tmp_path_factory):
    """An uninterrupted smoke run."""
    return whole("macro", tmp_path_factory.mktemp("runs"))


def check_run(path, space):
    assert reporting.validate_run_directory(path) == []
    result = reporting.read_result(path)
    assert result.complete and result.experiment == "enas" and result.system == "ENAS"
    assert result.architecture.space == f"enas_{space}"
    for name in ("test_accuracy", "params", "shared_valid_accuracy"):
        assert result.metrics[name].random is not None
    accuracy = result.metrics["test_accuracy"]
    assert len(accuracy.found["values"]) == len(accuracy.random["values"]) == 2
    assert result.compilations == len(result.programs) == 5
    assert result.extra["ranked_architectures"] == 3
    tau = result.extra["kendall_tau"]
    assert tau is None or -1 <= tau <= 1
    assert result.extra["controller_evaluations"] == 2 * 2 * 3
    genotype = genotypes.load(str(path / "genotype.json"))
    assert genotypes.to_json_dict(genotype) == result.architecture.genotype
    rows = reporting.read_metrics(path / "metrics.jsonl")
    derived = [row for row in rows if row.get("group") == "derived"]
    best = max(derived, key=lambda row: row["shared_valid_accuracy"])
    assert tuple(best["arch"]) == result.architecture.arch
    for name in ("architecture.svg", "history.svg", "entropy.svg", "accuracy.svg", "ranking.svg"):
        assert (path / name).stat().st_size > 1000
    searching = [row for row in rows if row.get("phase") == "search"]
    assert len(searching) == 2 and searching[1]["baseline_accuracy"] > 0


def test_macro_run_directory(macro_run):
    check_run(macro_run, "macro")


@pytest.mark.slow
def test_micro_run_directory(compiled_once, tmp_path):
    check_run(whole("micro", tmp_path), "micro")


@pytest.mark.parametrize("looks", [1, 2, 4])  # in the search, at its end, in the retraining
def test_interrupted_run_resumes_equal(macro_run, records, stopping, tmp_path, looks):
    path = tmp_path / "run"
    with stopping(looks):
        assert enas.main(["--smoke", "--output", str(path), "--quiet"]) == 0
    partial = reporting.read_result(path)
    assert not partial.complete and (path / "report.html").exists()
    assert reporting.validate_run_directory(path) == []
    assert enas.main(["--resume", str(path), "--quiet"]) == 0
    assert records(path) == records(macro_run)
    one, other = reporting.read_result(path), reporting.read_result(macro_run)
    assert one.architecture == other.architecture and one.metrics == other.metrics
    assert one.extra == other.extra and one.evaluations == other.evaluations
    assert reporting.validate_run_directory(path) == []


@pytest.mark.slow
@pytest.mark.parametrize("space, controller, shared", [
    # Specification 4.4, and 4.2 and 4.3 less two of three input channels of the stem.
    ("macro", 41_856, 697_860 - 2 * 9 * 36), ("micro", 41_733, 5_373_140 - 2 * 9 * 60)])
def test_dry_run_of_the_paper(space, controller, shared, capsys):
    arguments = ["--space", space, "--preset", "paper", "--dry-run", "--dataset", "digits"]
    assert enas.main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["controller_parameters"] == controller
    assert facts["shared_parameters"] == shared
    assert set(facts["programs"]) == {
        "initial_state", "weights_epoch", "controller_epoch", "derive"}
    assert facts["config"]["space"] == space


BAD = {
    "unknown space": (["--space", "mesoscopic"], "space"),
    "no value": (["--space"], "space"),
    "normal cells": (["--space", "micro", "--layers", "4"], "multiple of 3"),
    "paths of macro": (["--drop-path-rate", "0.1"], "no paths"),
    "running statistics of micro": (["--space", "micro", "--statistics", "running"], "statistics"),
    "batch": (["--batch-size", "999"], "batch_size"),
    "samples": (["--controller-samples", "0"], "controller_samples"),
    "target": (["--skip-target", "1"], "skip_target"),
    "clip": (["--clip-norm", "-1"], "clip_norm"),
    "devices": (["--devices", "2"], "devices"),
    "update": (["--update", "none"], "update"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name, capsys):
    arguments, word = BAD[name]
    assert enas.main(["--smoke", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and word in error, error


def test_skip_divergence_by_hand():
    layers, target = 3, 0.4
    arch = jnp.array([0, 2, 1, 5, 0, 1])       # operation, operation bit, operation bit bit
    a = np.array([np.log(0.4 / 0.6), -0.3, 1.2])  # logits of the three bits
    drawn = 1 / (1 + np.exp(-2 * a))
    log_prob = np.log([0.1, 0.2, drawn[0], 0.3, 1 - drawn[1], drawn[2]])
    found = jax.jit(lambda log_prob: enas_controller.skip_divergence(
        log_prob, arch, layers, target))(jnp.array(log_prob, jnp.float32))
    p = 1 / (1 + np.exp(-a))
    expected = p * np.log(p / target) + (1 - p) * np.log((1 - p) / (1 - target))
    assert abs(expected[0]) < 1e-12  # at the target
    np.testing.assert_allclose(
        found, np.array([0, 0, expected[0], 0, expected[1], expected[2]]) / 2, atol=1e-6)


def test_regularised_policy_keeps_the_rest():
    config = enas.SMOKE["macro"]
    policy = enas_controller.make_controller(config)
    found = enas_controller.regularised(policy, config)
    assert found.sample is policy.sample and found.log_prob is policy.log_prob

    @jax.jit
    def both(key):
        params = policy.init(key)
        arch = policy.sample(key, params)
        divergence = enas_controller.skip_divergence(policy.log_prob(params, arch), arch, 2, 0.4)
        return found.entropy(params, arch), 1e-4 * policy.entropy(params, arch) - 0.8 * divergence

    np.testing.assert_allclose(*both(jax.random.key(0)), rtol=1e-5)


def test_restarts_of_the_cosine():
    rate = enas_search.cosine_with_restarts(0.05, 0.0005, 310, 7, period=10)
    found = np.array([rate(7 * epoch) for epoch in range(310)])
    np.testing.assert_allclose(found[[0, 10, 30, 70, 150]], 0.05)  # 10, 20, 40, 80, 160 epochs
    assert (np.diff(np.delete(found, [10, 30, 70, 150])) <= 0.0496).all()
    np.testing.assert_allclose(found[20], (0.05 + 0.0005) / 2, rtol=1e-6)
    assert rate(7 * 10 - 1) == found[9] and rate(10 ** 6) == found[-1]
    once = enas_search.cosine_with_restarts(1.0, 0.0, 4, 1, period=0)
    np.testing.assert_allclose(
        [once(step) for step in range(4)], 0.5 * (1 + np.cos(np.pi * np.arange(4) / 4)), rtol=1e-6)


def test_shared_optimizer_by_hand():
    config = enas.Config(weights_l2=0.1, momentum=0.5, weights_lr=0.2, epochs=1)
    optimizer = enas_search.shared_optimizer(config, steps_per_epoch=9)
    w, gradient, v = 2.0, 3.0, 0.0
    params = {"w": jnp.array(w)}
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update({"w": jnp.array(gradient)}, state, params)
        params = {"w": params["w"] + updates["w"]}
        g = gradient + 2 * 0.1 * w  # of the loss's l2 w^2
        v = 0.5 * v + g
        w -= 0.2 * (g + 0.5 * v)
        np.testing.assert_allclose(params["w"], w, rtol=1e-6)


def test_a_child_has_the_parameters_that_its_arch_uses():
    space = ENASMacro(3)
    one_shot = enas_search.make_retrained_network(
        enas.Config(layers=3, retrain_features=2), space, 10)
    arch = np.array(space.sample(jax.random.key(3)))
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    shapes = jax.eval_shape(lambda: one_shot.lazy_init(
        jax.random.key(0), image, jax.ShapeDtypeStruct(arch.shape, jnp.int32), train=False))
    params = shapes["params"]
    masks = used_parameters(one_shot.network, params, jnp.array(arch))
    used = sum(int(np.broadcast_to(mask, leaf.shape).sum())
               for mask, leaf in zip(jax.tree.leaves(masks), jax.tree.leaves(params)))
    assert one_shot.count(arch, (8, 8, 1)) == used


def test_a_found_network_that_is_worse_is_called_so():
    assert "not worse than" in retraining.verdict(95.0, 95.0)
    assert retraining.verdict(94.9, 95.0).count("WORSE") == 1
