"""Farms: what a worker may do wrong, what others do with the store, and how a farm ends."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxnas import farms, trials
from jaxnas.farms.supervision import SupervisedFarm
from jaxnas.trial_json import TrialError

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]


@pytest.fixture
def gate(monkeypatch):
    """What workers run, importable by them, who have this process's path."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.delitem(sys.modules, "farm_gate", raising=False)
    import farm_gate
    return farm_gate


@pytest.fixture
def work(gate, tmp_path):
    """Return work whose evaluations take up to `pause` seconds; notes go to a file."""
    return lambda pause=0.0, **more: farms.Work(
        "farm_gate:make", {"notes": str(tmp_path / "notes"), "pause": pause, **more})


def job(number):
    return farms.Job("toy", (number,), {"seed": 0})


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_results_failures_and_equal_jobs(work, gate, tmp_path):
    store = tmp_path / "a.sqlite"
    with trials.open_store(store) as opened:  # known before
        opened.finish(opened.claim("toy", (5,), {"seed": 0}), {"number": 55.0})
    with farms.local_farm(work(), store, workers=2, logs=tmp_path / "logs") as farm:
        assert farm.next() is None and farm.workers == 2
        tickets = [farm.submit(job(number)) for number in (5, 1, gate.FAILS, 1)]
        assert tickets == [0, 1, 2, 3]
        results = {result.ticket: result.trial for result in iter(farm.next, None)}
    assert results[0].metrics == {"number": 55.0} and results[1] == results[3]
    assert results[1].metrics == {"number": 1.0, "curve": [0.5, 1.0]} and not results[1].failed
    assert results[2].failed and results[2].error == "ValueError: unlucky"
    assert gate.began(tmp_path / "notes") == {1: 1, gate.FAILS: 1}  # an exception is not retried
    logs = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert "Traceback" in logs and "unlucky" in logs
    with pytest.raises(farms.FarmError, match="is closed"):
        farm.submit(job(2))


def test_a_trial_that_kills_its_workers_has_failed(work, gate, tmp_path):
    with farms.local_farm(work(), tmp_path / "a.sqlite", workers=1, lease_seconds=1000.0) as farm:
        farm.submit(job(gate.POISON))
        result = farm.next(60.0)  # before any lease is over
    assert result.trial.failed and result.retries == farms.MAX_RETRIES
    assert result.trial.error == "4 workers died of it, the last one was ended by SIGKILL"
    assert gate.began(tmp_path / "notes") == {gate.POISON: 4}


def test_a_trial_of_another_program_is_waited_for(work, gate, tmp_path):
    store = tmp_path / "a.sqlite"
    with trials.open_store(store) as opened, farms.local_farm(work(), store, workers=1) as farm:
        held = opened.claim("toy", (1,), {"seed": 0})
        farm.submit(job(1))
        farm.submit(job(2))
        assert farm.next(10.0).trial.arch == (2,)  # others are done meanwhile
        assert farm.next(0.1) is None
        opened.finish(held, {"number": 77.0})
        assert farm.next(10.0).trial.metrics == {"number": 77.0}
        held = opened.claim("toy", (3,), {"seed": 0})
        farm.submit(job(3))
        assert farm.next(0.3) is None
        opened.release(held)  # and taken over if nobody does it
        assert farm.next(10.0).trial.metrics["number"] == 3.0


@pytest.mark.parametrize("metrics, error", [
    ({"a": 1.0, "b": float("nan")}, "a metric is not finite"),
    ({"a": 1.0, "b": [float("nan")]}, None), ({"a": "text"}, "TrialError: metrics['a'] must be"),
    (None, "AttributeError")])
def test_outcomes(metrics, error, capsys):
    outcome = farms.evaluate_job(lambda job: metrics, job(1))
    assert outcome.error is None if error is None else outcome.error.startswith(error)
    assert ("Traceback" in capsys.readouterr().err) == (not outcome.metrics)


def test_work_that_cannot_begin_is_said_once(work, gate, tmp_path):
    with farms.local_farm(work(broken=True), tmp_path / "a.sqlite", workers=4,
                          logs=tmp_path) as farm:
        farm.submit(job(1))
        with pytest.raises(farms.FarmError, match="RuntimeError in a worker: no such data"):
            farm.next()
    assert len(gate.lines(tmp_path / "notes")) == 1


class DyingCrew:
    """Workers that die before they are ready."""

    started = 0

    def start(self, worker):
        self.started += 1
        self.news = [("gone", worker)]

    def wait(self, timeout):
        from jaxnas.farms.supervision import Event
        news, self.news = self.news, []
        return [Event(worker, kind, "was ended by SIGKILL") for kind, worker in news]

    def close(self):
        pass


def test_workers_that_always_die_end_the_farm(tmp_path):
    crew = DyingCrew()
    farm = SupervisedFarm(trials.open_store(tmp_path / "a.sqlite"), crew, workers=3,
                          lease_seconds=1.0)
    farm.submit(job(1))
    with pytest.raises(farms.FarmError, match="4 workers in a row .*the last was ended by SIGK"):
        farm.next()
    assert crew.started == farms.MAX_RETRIES + 1


@pytest.mark.parametrize("function, message", [
    ("nowhere_at_all:make", "cannot be imported"), ("json:no_function", "has no function"),
    ("json", "must be 'module:name'"), ("os;x:make", "must be 'module:name'"),
    ("json:__doc__", "has no function")])
def test_work_is_checked_by_a_plain_import(function, message):
    with pytest.raises(ValueError, match=message):
        farms.Work(function)


def test_bad_jobs_and_options_are_refused(work, tmp_path):
    for arguments in (("", (1,)), ("toy", (1.5,)), ("toy", (1,), {"x": float("nan")})):
        with pytest.raises(TrialError):
            farms.Job(*arguments)
    with pytest.raises(TrialError, match="recipe"):
        farms.Work("json:loads", {"x": object()})
    make = functools.partial(farms.local_farm, work(), tmp_path / "a.sqlite")
    for options, message in (({"workers": 0}, "workers must be 1"),
                             ({"workers": 1, "lease_seconds": 0.0}, "lease_seconds must be")):
        with pytest.raises(ValueError, match=message):
            make(**options)
    with pytest.raises(ValueError, match="num_gpus must be 0 or more"):
        farms.ray_farm(work(), tmp_path / "a.sqlite", workers=1, num_gpus=-1)
    assert not (tmp_path / "a.sqlite").exists()


PARENT = """
import json, signal, sys
sys.path[:0] = sys.argv[1:3]
signal.signal(signal.SIGINT, signal.default_int_handler)
from jaxnas import farms
notes, store, kind, lease = sys.argv[3], sys.argv[4], sys.argv[5], float(sys.argv[6])
work = farms.Work("farm_gate:make", {"notes": notes, "pause": 0.0} | json.loads(sys.argv[7]))
make = farms.local_farm if kind == "local" else farms.ray_farm
options = {} if kind == "local" else {"num_cpus": 0.25}
with make(work, store, workers=2, lease_seconds=lease, **options) as farm:
    for number in json.loads(sys.argv[8]):
        farm.submit(farms.Job("toy", (number,), {"seed": 0}))
    try:
        print(farm.next(), flush=True)
        while farm.next():
            pass
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.fixture
def parent(gate, tmp_path):
    """Start a process with a farm, whose first job finishes, and the others never do."""
    started = []

    def start(kind="local", lease=30.0, numbers=(1, 2, 3)):
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(ROOT), str(HERE), tmp_path / "notes",
             tmp_path / "a.sqlite", kind, str(lease), json.dumps({"endless": True}),
             json.dumps(numbers)], stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        assert process.stdout.readline().startswith("Result(")
        wait_for(lambda: len(gate.began(tmp_path / "notes")) == 3)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc tells the dead from the living")
@pytest.mark.parametrize("kind", ["local", pytest.param("ray", marks=[
    pytest.mark.slow, pytest.mark.skipif(not farms.has_ray(), reason="no Ray")])])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(parent, gate, tmp_path, kind, number):
    process = parent(kind)
    assert len(gate.living(tmp_path / "notes")) == 2
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert ("interrupted" in output) == (number == signal.SIGINT)
    wait_for(lambda: not gate.living(tmp_path / "notes"))
    with trials.open_store(tmp_path / "a.sqlite") as store:
        counts = store.counts()
        assert (counts.done, counts.failed) == (1, 0)  # what was finished is kept
        for arch in (2, 3):  # what was not is free at once
            claimed = store.claim("toy", (arch,), {"seed": 0})
            assert isinstance(claimed, trials.Claimed)
            assert claimed.lost == 0 or kind == "ray"


def test_a_stopped_orphan_ends_when_it_goes_on(parent, gate, tmp_path):
    process = parent()
    pid = gate.living(tmp_path / "notes")[0]
    os.kill(pid, signal.SIGSTOP)
    process.kill()
    wait_for(lambda: len(gate.living(tmp_path / "notes")) == 1)
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not gate.living(tmp_path / "notes"))


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    text = re.search(r"# my_training.py.*?return evaluate\n", farms.Work.__doc__, re.DOTALL)
    lines = [line[8:] for line in text.group().splitlines()[1:]]
    (tmp_path / "my_training.py").write_text("\n".join([
        "def compile_training(epochs):", "    return lambda arch: epochs * sum(arch)", *lines]))
    monkeypatch.syspath_prepend(str(tmp_path))
    with farms.local_farm(farms.Work("my_training:make", {"epochs": 3}), tmp_path / "a.sqlite",
                          workers=1) as farm:
        farm.submit(farms.Job("my_space", (1, 2)))
        assert farm.next().trial.metrics == {"accuracy": 9.0}
