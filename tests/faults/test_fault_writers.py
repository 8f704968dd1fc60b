"""Gate 9, the run directory: one process at a time, and a killed one is no obstacle."""

import os
import signal
import time

import pytest

from experiments import common, evolution
from jaxnas import checkpoints

pytestmark = pytest.mark.gate(9)
FLAGS = ("--evaluations", 30, "--block", 3)


def call(*arguments):
    return common.main(evolution.Config, evolution.PRESETS, evolution.SMOKE, evolution.run,
                       ["--quiet", *map(str, arguments)])


def test_a_second_process_is_told_who_the_first_is(nursery, tmp_path, capsys, compilations, gate):
    path = tmp_path / "run"
    life = nursery("evolution", path, *FLAGS)
    while checkpoints.latest_step(path / "checkpoints") is None:
        assert life.status(0.003) is None, life.log.read_text()[-2000:]
    os.kill(life.pid, signal.SIGSTOP)  # still there, and in nobody's way
    compiled, slowest = len(compilations), 0.0  # seconds of this process
    log = (path / "metrics.jsonl").read_bytes()
    for flags in (("--resume", path), ("--smoke", "--output", path)):
        begin = time.process_time()
        assert call(*flags) == 2
        slowest = max(slowest, time.process_time() - begin)
        error = capsys.readouterr().err
        assert f"in use by process {life.pid} on host " in error and error.count("\n") == 1
    assert slowest < 2 and len(compilations) == compiled
    assert (path / "metrics.jsonl").read_bytes() == log
    assert life.end(signal.SIGKILL) == -signal.SIGKILL
    with checkpoints.lock(path / "checkpoints"):  # free at once
        pass
    gate(f"second process refused after {slowest:.2f} s, naming the holder; a killed one frees it")


def test_killed_before_it_wrote_anything(tmp_path):
    # between the lock and config.json: nothing to resume, and nothing that hinders a new start
    path = tmp_path / "run"
    (path / "checkpoints").mkdir(parents=True)
    (path / "checkpoints" / ".lock").write_text("process 1 on host x\n")
    (path / "config.tmp").write_text("{")
    common.check_output(evolution.Config(output=path))
    (path / "checkpoints" / "1").mkdir()
    with pytest.raises(common.InputError, match="already holds a run"):
        common.check_output(evolution.Config(output=path))
