"""Experiments as a user runs them: the run directory, bad input, kill -9 and resumption."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import common, darts, retrain
from jaxnas import checkpoints, genotypes, reporting

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A compilation cache of this module's own, cold at its start."""
    cache = tmp_path_factory.mktemp("cache")
    flags = "--xla_backend_optimization_level=0"  # compiles in 2/3 of the time
    return {**os.environ, "JAXNAS_CACHE_DIR": str(cache), "XLA_FLAGS": flags}


def start(environment, name, *arguments):
    command = [sys.executable, "-m", f"experiments.{name}", "--smoke", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-3000:]
    return out, err


@pytest.fixture(scope="module")
def whole_run(environment, tmp_path_factory):
    """An uninterrupted smoke run of experiments.darts."""
    path = tmp_path_factory.mktemp("whole") / "run"
    out, _ = finish(start(environment, "darts", "--output", path))
    return path, out


def test_darts_run_directory(whole_run):
    path, out = whole_run
    assert reporting.validate_run_directory(path) == []
    result = reporting.read_result(path)
    assert result.complete and result.experiment == "darts"
    accuracy = result.metrics["test_accuracy"]
    assert len(accuracy.found["values"]) == len(accuracy.random["values"]) == 2
    assert result.evaluations.total == 4 and result.evaluations.failed == 0
    assert result.compilations == len(result.programs) and "retrain" in result.programs
    genotype = genotypes.load(str(path / "genotype.json"))
    assert genotypes.to_json_dict(genotype) == result.architecture.genotype
    for name in ("cell.svg", "cell.png", "alphas.svg", "history.svg", "accuracy.svg"):
        assert (path / name).stat().st_size > 1000
    page = (path / "report.html").read_text()
    assert "<script" not in page and "src=\"http" not in page
    assert "test accuracy" in out and str(path / "report.html") in out


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["first_order", "hessian_vector"])
def test_several_devices(environment, tmp_path, gradient):
    path = tmp_path / "run"
    two = {**environment, "XLA_FLAGS": environment["XLA_FLAGS"]
           + " --xla_force_host_platform_device_count=2"}
    finish(start(two, "darts", "--devices", 2, "--gradient", gradient, "--output", path))
    assert reporting.validate_run_directory(path) == []
    result = reporting.read_result(path)
    assert result.complete and result.device.count == 2
    assert len(result.metrics["test_accuracy"].random["values"]) == 2


def leaves(path):
    """Digest of every leaf of the last checkpoint, but for the clock."""
    step, found = checkpoints.digests(path / "checkpoints")
    return step, {name: digest for name, digest in found.items() if "clock" not in name}


def wait_for_lines(path, count, process):
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        file = path / "metrics.jsonl"
        if file.exists() and file.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)
    raise AssertionError("the run ended or hung before the kill")


@pytest.mark.parametrize("how, lines", [
    ("kill", 1), pytest.param("kill", 3, marks=pytest.mark.slow),
    pytest.param("term", 2, marks=pytest.mark.slow)])
def test_interrupted_run_resumes_bit_equal(whole_run, records, environment, tmp_path, how, lines):
    whole, _ = whole_run
    path = tmp_path / "run"
    process = start(environment, "darts", "--output", path)
    wait_for_lines(path, lines, process)
    time.sleep(random.Random(lines).random() * 0.2)
    process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    if how == "term":
        assert process.returncode == 0, err[-2000:]
        assert not reporting.read_result(path).complete or "Saved" not in err
        assert (path / "report.html").exists()
    else:
        assert process.returncode == -signal.SIGKILL
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.darts", "--resume", str(path)], cwd=ROOT,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    finish(process)
    assert leaves(path) == leaves(whole)
    assert records(path) == records(whole)
    one, other = reporting.read_result(path), reporting.read_result(whole)
    assert one.architecture == other.architecture and one.metrics == other.metrics
    assert reporting.validate_run_directory(path) == []


@pytest.mark.slow
def test_retrain_takes_a_found_genotype(whole_run, environment, tmp_path):
    path = tmp_path / "run"
    genotype = whole_run[0] / "genotype.json"
    out, _ = finish(start(environment, "retrain", "--genotype", genotype, "--output", path))
    assert reporting.validate_run_directory(path) == []
    assert len(reporting.read_result(path).metrics["test_accuracy"].found["values"]) == 2
    assert "parameters" in out


def images(path, **changes):
    generator = np.random.default_rng(0)
    arrays = {
        "x_train": generator.integers(0, 255, (256, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(256) % 4,
        "x_test": generator.integers(0, 255, (16, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(16) % 4,
    } | changes
    np.savez(path, **arrays)
    return str(path)


def run_in_process(module, arguments, capsys):
    compilations = []

    def listen(event, seconds, **_):
        if "backend_compile" in event:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    begin = time.process_time()  # of this process: other tests share the cores
    code = common.main(module.Config, module.PRESETS, module.SMOKE, module.run, arguments)
    return code, capsys.readouterr().err, time.process_time() - begin, len(compilations)


BAD = {
    "unknown data set": (darts, lambda p: ["--dataset", "no_such_set"], "no_such_set"),
    "missing file": (darts, lambda p: ["--dataset", str(p / "x.npz")], "x.npz"),
    "wrong rank": (darts, lambda p: ["--dataset", images(
        p / "a.npz", x_train=np.zeros((256, 8), np.uint8))], "x_train"),
    "odd images": (darts, lambda p: ["--dataset", images(
        p / "a.npz", x_train=np.zeros((256, 10, 10, 3), np.uint8),
        x_test=np.zeros((16, 10, 10, 3), np.uint8))], "divisible by 4"),
    "one class": (darts, lambda p: ["--dataset", images(
        p / "a.npz", y_train=np.zeros(256, int), y_test=np.zeros(16, int))], "class"),
    "labels out of range": (darts, lambda p: ["--dataset", images(
        p / "a.npz", y_train=np.arange(256) % 4 - 1)], "y_train must be 0"),
    "batch too large": (darts, lambda p: ["--dataset", images(p / "a.npz"), "--batch-size", "49"],
                        "batch_size"),
    "output is a file": (darts, lambda p: ["--output", images(p / "a.npz")], "is a file"),
    "too many devices": (darts, lambda p: ["--devices", "99"], "devices"),
    "bad gradient": (darts, lambda p: ["--gradient", "third_order"], "gradient"),
    "few layers": (darts, lambda p: ["--layers", "2"], "layers"),
    "no such flag": (darts, lambda p: ["--no-such-flag"], "no-such-flag"),
    "hostile genotype": (retrain, lambda p: ["--genotype", hostile(p)], "genotype"),
    "unknown genotype": (retrain, lambda p: ["--genotype", "DARTS_V9"], "DARTS_V2"),
    "small images for the head": (retrain, lambda p: ["--auxiliary"], "uxiliary"),
}


def hostile(path):
    file = path / "genotype.json"
    file.write_text("[" * 100_000)
    return str(file)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name, tmp_path, capsys):
    module, arguments, word = BAD[name]
    arguments = ["--smoke", *arguments(tmp_path)]
    code, err, seconds, compilations = run_in_process(module, arguments, capsys)
    assert code == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1 and word in err, err
    assert "Traceback" not in err and len(err) < 600
    assert compilations == 0
    assert seconds < 2


@pytest.mark.parametrize("module", [darts, retrain])
def test_dry_run_of_every_preset(module, capsys):
    for preset in module.PRESETS:
        arguments = ["--preset", preset, "--dry-run", "--dataset", "digits", "--cutout-length", "4"]
        if module is darts:
            arguments += ["--limit", "1000"]
        if preset == "paper" and module is retrain:
            arguments.append("--no-auxiliary")  # digits are too small for the head
        assert common.main(module.Config, module.PRESETS, module.SMOKE, module.run, arguments) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["dataset"]["name"] == "digits"
        key = "supernet_parameters" if module is darts else "parameters"
        if preset == "paper" and module is darts:
            # one input channel, specification 1.1
            assert facts[key] == 1_929_754
