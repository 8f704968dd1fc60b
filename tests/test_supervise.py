"""The supervisor, with children that are quick: they import nothing of ours, and no JAX."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import supervise
from experiments.settings import InputError

ROOT = Path(__file__).parents[1]
# Counts to 6, saving every step, and writes down what it was started with. `plan` says at which
# steps which process dies, how, once each: {"<process>": [[step, "kill" or exit code], ...]}.
CHILD = r"""
import json, os, pathlib, signal, sys, time
flag, folder = sys.argv[1:3]
folder = pathlib.Path(folder)
me = os.environ.get("JAX_PROCESS_ID", "0")
steps, plan = folder / "checkpoints", json.loads((folder / "plan.json").read_text())
told = {"flag": flag, "of": os.environ.get("JAX_NUM_PROCESSES"),
        "at": os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "devices": os.environ.get("JAX_LOCAL_DEVICE_IDS")}
with open(folder / ("starts." + me), "a") as file:
    file.write(json.dumps(told) + "\n")
if "refuse" in plan:
    sys.exit(2 if me == plan["refuse"] else 134)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
(folder / "config.json").write_text("{}")
begin = max((int(path.name) for path in steps.glob("*")), default=0)
for step in range(begin + 1, 7):
    for number, (at, how) in enumerate(plan.get(me, [])):
        done = folder / f"died.{me}.{number}"
        if at == step and not done.exists():
            done.write_text("")
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            sys.exit(how)
    while plan.get("stop") and not stopped:
        (folder / ("ready." + me)).write_text("")
        time.sleep(0.01)
    if stopped:
        (folder / ("saved." + me)).write_text(str(len(stopped)))
        sys.exit(0)
    for other in range(int(told["of"] or 1)):  # all make a step together, or wait
        here = "{}.{}." + str(told["at"]) + "." + str(step)
        (folder / here.format("at", me)).write_text("")
        while not (folder / here.format("at", other)).exists():
            time.sleep(0.005)
    if me == "0":
        (steps / str(step)).mkdir(parents=True)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return (folder, function that supervises two children that follow a plan)."""
    monkeypatch.setattr(supervise, "_GRACE", 0.2)
    folder = tmp_path / "run"
    folder.mkdir()

    def start(plan, **options):
        (folder / "plan.json").write_text(json.dumps(plan))
        command = [sys.executable, "-S", "-c", CHILD, "--output", str(folder)]
        return supervise.supervise(supervise.Config(**{"processes": 2, **options}), command)

    return folder, start


def starts(folder, number):
    return [json.loads(line) for line in (folder / f"starts.{number}").read_text().splitlines()]


def test_nothing_dies(run):
    folder, start = run
    assert start({}, restarts=0) == 0
    one, = starts(folder, 1)
    assert one["flag"] == "--output" and one["of"] == "2" and one["devices"] is None
    assert one["at"] == starts(folder, 0)[0]["at"] and one["at"].startswith("127.0.0.1:")


def test_one_process_gets_no_coordinator(run):
    folder, start = run
    assert start({}, processes=1) == 0
    assert starts(folder, 0) == [{"flag": "--output", "of": None, "at": None, "devices": None}]


def test_all_are_started_again_from_the_checkpoint(run, capfd):
    folder, start = run
    assert start({"0": [[3, "kill"]], "1": [[5, 7]]}, restarts=2, devices=2) == 0
    for number in range(2):
        told = starts(folder, number)
        assert [one["flag"] for one in told] == ["--output", "--resume", "--resume"]
        assert len({one["at"] for one in told}) > 1  # a port of an earlier attempt may linger
        assert {one["devices"] for one in told} == {f"{2 * number},{2 * number + 1}"}
    assert (folder / "checkpoints" / "6").exists()
    err = capfd.readouterr().err
    assert "process 0 of 2 died (SIGKILL); step 2 is saved." in err
    assert "process 1 of 2 died (exit code 7); step" in err and "restart 2 of 2." in err


def test_it_gives_up_without_progress(run, capfd):
    folder, start = run
    assert start({"0": [[3, 5], [3, 5], [3, 5], [3, 5]]}) == 5
    # Two steps were new before the first death; then two attempts got no further.
    assert len(starts(folder, 0)) == 3
    assert "2 deaths in a row without a new checkpoint" in capfd.readouterr().err


def test_it_gives_up_after_so_many_restarts(run, capfd):
    folder, start = run
    assert start({"0": [[2, "kill"], [3, "kill"], [4, "kill"]]}, restarts=1) == 128 + 9
    assert len(starts(folder, 1)) == 2
    assert "after 1 restarts" in capfd.readouterr().err


@pytest.mark.parametrize("number", ["0", "1"])
def test_bad_input_is_not_tried_again(run, number):
    folder, start = run
    assert start({"refuse": number}) == 2
    assert len(starts(folder, 0)) == 1


def supervising(folder, plan, *flags):
    (folder / "plan.json").write_text(json.dumps(plan))
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.supervise", "--processes", "2", *flags, "--",
         sys.executable, "-S", "-c", CHILD, "--output", str(folder)], cwd=ROOT,
        stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not all((folder / f"ready.{number}").exists() for number in range(2)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    return process


def test_a_signal_is_passed_on_once_and_ends_the_run(tmp_path):
    process = supervising(tmp_path, {"stop": True})
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and err == ""
    for number in range(2):
        assert (tmp_path / f"saved.{number}").read_text() == "1"
        assert len(starts(tmp_path, number)) == 1


def test_the_others_do_not_outlive_one(run):
    folder, start = run
    begin = time.monotonic()
    # The second waits for a step that the first never makes; nothing but the supervisor ends it.
    assert start({"0": [[1, "kill"]]}, restarts=0) == 137
    assert time.monotonic() - begin < 60
    assert len(starts(folder, 1)) <= 1


@pytest.mark.parametrize("command, expected", [
    (["p", "--output", "new"], ["p", "--output", "new"]),
    (["p", "--output", "DIR", "--smoke"], ["p", "--resume", "DIR", "--smoke"]),
    (["p", "--output=DIR"], ["p", "--resume=DIR"]),
    (["p", "--resume", "DIR"], ["p", "--resume", "DIR"]),
])
def test_resumed(tmp_path, command, expected):
    (tmp_path / "config.json").write_text("{}")
    here = [part.replace("DIR", str(tmp_path)) for part in command]
    assert supervise.resumed(here) == [part.replace("DIR", str(tmp_path)) for part in expected]


@pytest.mark.parametrize("arguments, message", [
    (["--", "python", "x.py"], "--output DIR or --resume DIR"),
    ([], "--output DIR or --resume DIR"),
    (["--", "python", "--output"], "--output DIR"),
    (["--processes", "0", "--", "p", "--output", "d"], "processes must be >= 1, got 0"),
    (["--no-such-flag", "--", "p", "--output", "d"], "no-such-flag"),
    (["--", "no_such_program_here", "--output", "d"], "no_such_program_here cannot be started"),
])
def test_bad_input_is_one_sentence(arguments, message, capsys):
    assert supervise.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_handlers_are_put_back(run):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    _, start = run
    start({"refuse": "0"})
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_config():
    with pytest.raises(InputError, match="futile must be >= 1"):
        supervise.Config(futile=0)
    assert os.environ.get("JAX_PROCESS_ID") is None  # the tests above set nothing here
