"""Gate 14: a torn line, a transaction that never ended, and a clock that goes back."""

import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from jaxnas import reporting, trials
from jaxnas.trials import Busy, Claimed, Trial

pytestmark = pytest.mark.gate(14)
RECIPE = {"seed": 0}


def test_a_log_cut_at_every_byte(tmp_path, gate):
    path = tmp_path / "metrics.jsonl"
    with reporting.MetricsWriter(path) as writer:
        for i in range(3):
            writer.write("step", step=i, loss=float("nan") if i == 1 else i / 7, text="ä\n\"")
    whole, lines = path.read_bytes(), reporting.read_metrics(path)
    cuts = range(len(whole) + 1)
    for cut in cuts:
        path.write_bytes(whole[:cut])
        count = whole[:cut].count(b"\n")
        found = reporting.read_metrics(path)
        assert found[:count] == lines[:count] and len(found) - count in (0, 1)
        if len(found) > count:  # all but its newline
            assert found == lines[:count + 1]
        with reporting.MetricsWriter(path) as writer:
            writer.write("event", event="resumed")
        assert [row["kind"] for row in reporting.read_metrics(path)] == ["step"] * count + ["event"]
    gate(f"a log cut at each of {len(cuts)} places: read, and continued")


WRITER = """
import sys
from jaxnas import reporting
with reporting.MetricsWriter(sys.argv[1]) as writer:
    print("ready", flush=True)
    for i in range(10 ** 9):
        writer.write("step", step=i, values=list(range(i % 500)))
"""


def killed(environment, program, path, seconds):
    """Start a program, and kill it so long after it is ready."""
    process = subprocess.Popen([sys.executable, "-c", program, path], env=environment,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(seconds)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_writer_leaves_whole_lines(kills, environment, tmp_path, gate):
    path, draw, before, torn = tmp_path / "metrics.jsonl", random.Random(0), 0, 0
    for _ in range(kills):
        killed(environment, WRITER, path, 0.1 * draw.random())
        torn += not path.read_bytes().endswith(b"\n")
        rows = reporting.read_metrics(path)
        steps = [row["step"] for row in rows[before:]]
        assert steps == list(range(len(steps)))
        assert all(len(row["values"]) == row["step"] % 500 for row in rows)
        before = len(rows)
    gate(f"{kills} kills of a process that only logs: {before} lines, {torn} torn")


# Begins a transaction on a store that holds trials, changes them all, and waits for its end.
TRANSACTION = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")  # so that changed pages go to the log at once
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE trials SET metrics = '{}', finish_order = finish_order + 10000")
connection.execute("DELETE FROM trials WHERE finish_order % 2")
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_transaction_that_was_killed_never_was(kills, environment, tmp_path, gate):
    path, draw = tmp_path / "trials.sqlite", random.Random(0)
    with trials.open_store(path) as store:
        for i in range(100):
            store.finish(store.claim("toy", (i,), RECIPE), {"curve": [i / 7] * 20})
        stored = list(store.trials())
    for number in range(kills):
        killed(environment, TRANSACTION, path, 0.05 * draw.random())
        with trials.open_store(path) as store:
            assert list(store.trials()) == stored
            store.finish(store.claim("toy", (1000 + number,), RECIPE), {})
            stored = list(store.trials())
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    gate(f"{kills} kills in a transaction of 100 rows: nothing of it is seen, integrity ok")


def test_a_clock_that_jumps_takes_no_trial_from_the_living(tmp_path, monkeypatch, gate):
    clock, draw, back = [1e9], random.Random(0), 0
    monkeypatch.setattr(trials, "_now", lambda: clock[0])
    path, lease = tmp_path / "trials.sqlite", 10.0
    with trials.open_store(path) as one, trials.open_store(path) as other:
        for i in range(30):
            mine = one.claim("toy", (i,), RECIPE, lease_seconds=lease)
            assert isinstance(mine, Claimed) and mine.lost == 0
            for _ in range(3):
                jump = draw.choice([-1e6, -3600.0, -lease, -1.0, 0.0])
                back += jump < 0
                clock[0] += jump
                assert isinstance(other.claim("toy", (i,), RECIPE), Busy)  # it is alive
                one.heartbeat(mine)
                clock[0] += 0.9 * lease
                assert isinstance(other.claim("toy", (i,), RECIPE), Busy)
            clock[0] -= 1e6
            if i % 3:
                assert one.finish(mine, {"i": i}).seconds >= 0
            else:  # it hangs: a lease later, by the clock that went back, it has lost the trial
                assert isinstance(other.claim("toy", (i,), RECIPE), Busy)
                clock[0] += lease
                taken = other.claim("toy", (i,), RECIPE)
                assert isinstance(taken, Claimed) and taken.lost == 1
                with pytest.raises(trials.LeaseLost):
                    one.heartbeat(mine)
                other.finish(taken, {"i": i})
        assert [trial.arch for trial in one.trials()] == [(i,) for i in range(30)]
        assert all(isinstance(one.claim("toy", (i,), RECIPE), Trial) for i in range(30))
    gate(f"clock back {back + 30} times under 30 leases: none lost alive, hung ones freed "
         "after one lease")


def test_seconds_of_a_run_do_not_go_back(tmp_path, monkeypatch, gate):
    path, clock = tmp_path / "metrics.jsonl", [1e9]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    for start in (0.0, 3.0):  # and of its resumption
        with reporting.MetricsWriter(path, start_seconds=start) as writer:
            for _ in range(3):
                clock[0] -= 3600.0
                writer.write("step")
    seconds = [row["seconds"] for row in reporting.read_metrics(path)]
    assert seconds == sorted(seconds) and seconds[3] >= 3.0
    gate("a log's seconds ascend all the same")
