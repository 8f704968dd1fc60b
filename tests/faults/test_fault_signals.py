"""Gate 6: SIGTERM and Ctrl-C save and end well, the second one ends at once."""

import os
import signal
import time

import pytest

from jaxnas import checkpoints, reporting

pytestmark = pytest.mark.gate(6)
RUNS = {  # experiment, flags on top of --smoke
    "evolution": ("evolution", ("--evaluations", 30, "--block", 3)),
    "DARTS": ("darts", ("--epochs", 4, "--checkpoint-steps", 1, "--num-seeds", 1,
                        "--retrain-epochs", 2)),
    "ENAS": ("enas", ("--epochs", 8, "--num-seeds", 1)),
    "children": ("nasrl", ("--evaluations", 8, "--num-seeds", 1, "--limit", 160)),
    "retraining": ("retrain", ("--retrain-epochs", 6)),
}


def run_until(life, path, steps):
    """Wait for so many checkpoints."""
    while (checkpoints.latest_step(path / "checkpoints") or 0) < steps:
        assert life.status(0.003) is None, life.log.read_text()[-2000:]


@pytest.mark.parametrize("name, number", [
    ("evolution", signal.SIGTERM),
    pytest.param("evolution", signal.SIGINT, marks=pytest.mark.slow), *(
        pytest.param(name, number, marks=pytest.mark.slow) for name in list(RUNS)[1:]
        for number in (signal.SIGTERM, signal.SIGINT))])
def test_a_signal_saves(name, number, nursery, whole_run, assert_equal_runs, tmp_path, gate):
    experiment, arguments = RUNS[name]
    path = tmp_path / "run"
    life = nursery(experiment, path, *arguments)
    run_until(life, path, 2)
    begin = time.perf_counter()
    assert life.end(number) == 0, life.log.read_text()[-2000:]
    seconds = time.perf_counter() - begin
    assert seconds < 10
    log = life.log.read_text()
    assert "Stopping after this step" in log and f"--resume {path}" in log
    assert not reporting.read_result(path).complete
    assert reporting.validate_run_directory(path) == []
    assert (checkpoints.latest_step(path / "checkpoints") or 0) >= 2
    nursery(experiment, path).finish()
    assert_equal_runs(path, whole_run(experiment, *arguments))
    gate(f"{name}, {number.name}: saved and ended in {seconds:.1f} s, resumed bit-equal")


@pytest.mark.parametrize("name", ["evolution", pytest.param("DARTS", marks=pytest.mark.slow)])
def test_the_second_signal_ends_at_once(name, nursery, whole_run, assert_equal_runs, tmp_path,
                                        gate):
    experiment, arguments = RUNS[name]
    path = tmp_path / "run"
    life = nursery(experiment, path, *arguments)
    run_until(life, path, 2)
    # Both are pending when it goes on, so that it has no time to end well in between.
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM):
        os.kill(life.pid, number)
    begin = time.perf_counter()
    os.kill(life.pid, signal.SIGCONT)
    assert life.status(60.0) == 130
    seconds = time.perf_counter() - begin
    assert seconds < 1 and not (path / "result.json").exists()
    if name != "evolution":  # that one is killed elsewhere
        nursery(experiment, path).finish()
        assert_equal_runs(path, whole_run(experiment, *arguments))
    gate(f"{name}: second signal, exit 130 after {seconds:.2f} s")
