"""`experiments.darts` over two processes: one result, peers killed, an end that all agree on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import common, darts
from jaxnas import checkpoints, reporting

ROOT = Path(__file__).parents[1]
SEARCH = ("--smoke", "--epochs", "6", "--limit", "64", "--checkpoint-steps", "1")  # 12 steps


def supervisor(environment: Mapping[str, str], path: Path, *flags: str) -> subprocess.Popen[str]:
    """Start two supervised processes of `experiments.darts`, in `path`; what they say is kept."""
    with open(path.with_suffix(".log"), "a", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.supervise", "--processes", "2", "--restarts", "20",
             "--", sys.executable, "-m", "experiments.darts", *flags],
            cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], path: Path) -> str:
    """Wait for a supervisor's end, which must be a good one; return what was said."""
    code = process.wait(timeout=3000)
    said = path.with_suffix(".log").read_text(encoding="utf-8")
    assert code == 0, said[-3000:]
    return said


def rows_of(path: Path, kind: str) -> list[dict]:
    try:
        return [row for row in reporting.read_metrics(path / "metrics.jsonl")
                if row["kind"] == kind]
    except FileNotFoundError:
        return []


def wait_until(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 1500
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, "ended or hung"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def outcome(path: Path) -> tuple:
    """Return what must be equal bit by bit: leaves, genotype, metrics without what a clock said."""
    step, digests = checkpoints.digests(path / "checkpoints")
    rows = [{name: value for name, value in row.items() if "seconds" not in name}
            for row in reporting.read_metrics(path / "metrics.jsonl")]
    result = reporting.read_result(path)
    return (step, {name: one for name, one in digests.items() if "clock" not in name}, rows,
            result.architecture, result.metrics, result.complete)


def kill_peers(environment: Mapping[str, str], path: Path, *, kills: int, seed: int = 0) -> str:
    """Run a search of two processes, kill one at random as often as said, and let it finish.

    Each kill comes at a random moment of the first steps, or epochs of retraining, that are new
    since the last one. Either process may be the one.

    Returns:
      What supervisor and processes said; `outcome(path)` is that of an uninterrupted run.
    """
    generator = random.Random(seed)
    process = supervisor(environment, path, *SEARCH, "--output", str(path))
    reached, killed = 0, []
    while len(killed) < kills:
        goal = reached + generator.randint(1, 2)

        def there() -> bool:
            nonlocal reached
            reached = len(rows_of(path, "step")) + len(
                [row for row in rows_of(path, "epoch") if row["phase"] == "retrain"])
            return reached >= goal

        wait_until(there, process)
        time.sleep(generator.random() * 0.1)
        pair = children(process.pid)
        if len(pair) == 2 and pair[0] not in killed:
            victim = generator.choice(pair)
            os.kill(victim, signal.SIGKILL)
            killed += [pair[0]]  # names the attempt
            wait_until(lambda: victim not in children(process.pid), process)
    return finish(process, path)


def run_in_process(arguments: list[str]) -> int:
    return common.main(darts.Config, darts.PRESETS, darts.SMOKE, darts.run, ["--smoke", *arguments])


@pytest.mark.parametrize("flags, message", [
    ("--coordinator h:1", "--num-processes and --process-id must be known too"),
    ("--coordinator h:1 --num-processes 2 --process-id 2", "process_id must be in [0, 1]"),
    ("--coordinator h --num-processes 2 --process-id 0", "HOST:PORT"),
    ("--startup-seconds 0", "startup_seconds must be above 0"),
    ("--coordinator h:1 --num-processes 3 --process-id 0 --dry-run",
     "divisible by devices, got 16 and 3 of all processes"),
    ("--coordinator h:1 --num-processes 2 --process-id 0 --dry-run --max-latency 1",
     "max_latency is measured on one device"),
])
def test_bad_input_is_one_sentence(flags, message, capsys):
    assert run_in_process(flags.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_nobody_comes(tmp_path, capsys):
    flags = "--coordinator 127.0.0.1:9 --num-processes 2 --process-id 1 --startup-seconds 0.3"
    # The second process does not look at --output, where the first may have begun already.
    (tmp_path / "config.json").write_text("{}")
    assert run_in_process([*flags.split(), "--output", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: process 1 waited 0.3 s for process 0 at 127.0.0.1:9")
    assert err.count("\n") == 1 and not jax.distributed.is_initialized()


def test_all_devices_and_what_a_resumption_may_change(tmp_path, monkeypatch):
    flags = ["--coordinator", "h:1", "--num-processes", "2", "--process-id", "1", "--devices", "4"]
    config = common.parse(darts.Config, darts.PRESETS, darts.SMOKE, ["--smoke", *flags])
    assert config.all_devices == 8 and config.cluster().process_id == 1
    (tmp_path / "config.json").write_text(json.dumps({"config": common.to_json(config)}))
    resume = ["--resume", str(tmp_path)]
    alone = common.parse(darts.Config, darts.PRESETS, darts.SMOKE, resume)
    assert alone.cluster() is None and alone.devices == 4
    other = ["--coordinator", "h:2", "--num-processes", "2", "--process-id", "0", *resume]
    assert common.parse(darts.Config, darts.PRESETS, darts.SMOKE, other).cluster().process_id == 0


def test_another_process_than_the_first_writes_nothing(tmp_path, monkeypatch):
    config = darts.Config(output=tmp_path / "run")
    facts = {"name": "none", "sha256": "0" * 64, "splits": {}}
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with common.open_run(config, "darts", facts, root=tmp_path) as directory:
        directory.metrics.write("step", step=0)
        directory.save(1, {"x": np.ones(2)})
        assert directory.restore({"x": np.ones(2)}) is None
    assert list(tmp_path.iterdir()) == [] and not directory.path.exists()


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Two processes with one device each, and a compilation cache of this module's own."""
    cache = os.environ.get("JAXNAS_TEST_CACHE") or str(tmp_path_factory.mktemp("cache"))
    return {**os.environ, "JAXNAS_CACHE_DIR": cache, "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0"}


@pytest.fixture(scope="module")
def whole(environment, tmp_path_factory):
    """An uninterrupted run of two processes."""
    path = tmp_path_factory.mktemp("whole") / "run"
    said = finish(supervisor(environment, path, *SEARCH, "--output", str(path)), path)
    assert "died" not in said
    return path


@pytest.mark.slow
def test_run_directory_of_two_processes(whole):
    assert reporting.validate_run_directory(whole) == []
    device = json.loads((whole / "config.json").read_text())["device"]
    assert device["processes"] == device["count"] == 2
    assert reporting.read_result(whole).device.count == 2
    assert len(rows_of(whole, "step")) == 12


@pytest.mark.slow
def test_five_peers_killed(environment, whole, tmp_path):
    path = tmp_path / "run"
    said = kill_peers(environment, path, kills=5)
    assert said.count(" died (SIGKILL)") == 5 and "restart 5 of 20" in said
    assert outcome(path) == outcome(whole)


@pytest.mark.slow
def test_all_stop_at_one_step_when_one_is_asked(environment, whole, tmp_path):
    path = tmp_path / "run"
    process = supervisor(environment, path, *SEARCH, "--output", str(path))
    wait_until(lambda: len(rows_of(path, "step")) >= 2, process)
    os.kill(children(process.pid)[1], signal.SIGTERM)  # the second process alone
    said = finish(process, path)
    assert said.count("Saved. To continue") == 1 and "died" not in said
    assert not reporting.read_result(path).complete
    steps = len(rows_of(path, "step"))
    assert steps < 12
    process = supervisor(environment, path, "--resume", str(path))
    wait_until(lambda: len(rows_of(path, "evaluation")) > 0, process)
    process.terminate()  # while the first process retrains and the second waits for it
    said = finish(process, path)
    assert said.count("Saved. To continue") == 2 and "died" not in said
    finish(supervisor(environment, path, "--resume", str(path)), path)
    assert outcome(path) == outcome(whole)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["hessian_vector"])
def test_two_processes_of_two_devices_equal_one_device(environment, tmp_path, gradient):
    flags = ("--smoke", "--gradient", gradient, "--num-seeds", "1")
    one, four = tmp_path / "one", tmp_path / "four"
    two_each = {**environment, "XLA_FLAGS": environment["XLA_FLAGS"]
                + " --xla_force_host_platform_device_count=2"}
    finish(supervisor(two_each, four, *flags, "--devices", "2", "--output", str(four)), four)
    subprocess.run([sys.executable, "-m", "experiments.darts", *flags, "--output", str(one)],
                   cwd=ROOT, env=environment, check=True, capture_output=True)
    found, wanted = rows_of(four, "step"), rows_of(one, "step")
    assert len(found) == len(wanted) == 3
    for name in ("train_loss", "valid_loss"):
        np.testing.assert_allclose([row[name] for row in found], [row[name] for row in wanted],
                                   atol=1e-5)
    np.testing.assert_allclose(*([row["alphas_entropy_bits"] for row in rows_of(path, "epoch")
                                  if row["phase"] == "search"] for path in (four, one)), atol=1e-5)
    assert reporting.read_result(four).architecture == reporting.read_result(one).architecture
