"""A farm under fire: workers killed at random, one stopped, and a trial that kills its worker.

As a module it is what the workers of the tests do; it imports no jax. Beginnings and results are
appended to one file, whole lines in their true order.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from jaxnas import farms, processes, trials

POISON, STOPS, FAILS = 10_001, 10_002, 10_003  # arch[0] of jobs that are not well-behaved


def note(path, *words):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, (" ".join(map(str, words)) + "\n").encode())
    os.close(file)


def make(config):
    """What workers run; config: notes (a path), pause (seconds, the longest evaluation),
    broken (nothing works), endless (all but number 1 take for ever)."""
    note(config["notes"], "born", *processes.this_process()[1:])
    if config.get("broken"):
        raise RuntimeError("no such data")
    draw = random.Random(os.getpid())

    def evaluate(job):
        number = job.arch[0]
        note(config["notes"], "began", number)
        if number == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == STOPS and began(config["notes"])[number] == 1:
            note(config["notes"], "stopped", os.getpid())
            os.kill(os.getpid(), signal.SIGSTOP)
        if number == FAILS:
            raise ValueError("unlucky")
        while config.get("endless") and number != 1:
            time.sleep(1.0)
        time.sleep(config["pause"] * draw.random())
        return {"number": number, "curve": [0.5, number]}

    return evaluate


def lines(path):
    return [line.split() for line in Path(path).read_text().splitlines()]


def began(path):
    """Return how often each number was begun."""
    return Counter(int(words[1]) for words in lines(path) if words[0] == "began")


def living(path):
    """Return the process ids of the workers that are there and not stopped."""
    stopped = {words[1] for words in lines(path) if words[0] == "stopped"}
    born = [words[1:] for words in lines(path) if words[0] == "born" and words[1] not in stopped]
    return [int(pid) for pid, started in born
            if not processes.is_gone(processes.machine(), int(pid), started)]


class Figures(NamedTuple):
    """What came of it."""

    done: int
    failed: int
    kills: int        # that hit a living worker
    repeated: int     # evaluations that were begun again
    most_retries: int  # of a well-behaved trial
    poison: str | None  # why it failed
    seconds: float


def run(make_farm, folder, *, count, kills, seed=0, pause=0.02):
    """Evaluate `count` trials while `kills` workers are killed; check that nothing is lost.

    Args:
      make_farm: (work, path of the store) -> farm.
      folder: for the store and the notes.

    Returns:
      Figures, of which `done` and `failed` are counted in the store.
    """
    start, notes, path = time.monotonic(), folder / "notes", folder / "trials.sqlite"
    work = farms.Work("farm_gate:make", {"notes": str(notes), "pause": pause})
    draw = random.Random(seed)
    moments = sorted(draw.sample(range(1, count - 4), kills))  # in results
    numbers = list(range(count))
    for place, number in ((count // 3, POISON), (count // 2, STOPS)):
        numbers.insert(place, number)
    tickets, results, killers, killed = {}, {}, [], []

    def kill(delay):
        time.sleep(delay)
        while not (pids := living(notes)) and moments:  # all are dead, and new ones on their way
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(pid := draw.choice(pids), signal.SIGKILL)
            killed.append(pid)

    with make_farm(work, path) as farm:
        for number in numbers:
            tickets[farm.submit(farms.Job("toy", (number,), {"seed": 0}))] = number
        while result := farm.next():
            number = tickets.pop(result.ticket)  # once each, else a KeyError
            assert result.trial.arch == (number,)
            note(notes, "done", number)
            results[number] = result
            while moments and len(results) >= moments[0]:
                moments.pop(0)
                killers.append(threading.Thread(target=kill, args=(pause * draw.random(),)))
                killers[-1].start()
        for killer in killers:
            killer.join()
    assert not tickets and sorted(results) == sorted(numbers)
    over = set()
    for word, number, *_ in lines(notes):
        assert word != "began" or number not in over, f"{number} was begun after it was done"
        if word == "done":
            over.add(number)
    times = began(notes)
    assert times[STOPS] >= 2  # the poison may be less: a worker may be killed as it gets a job
    assert all(1 <= times[number] <= farms.MAX_RETRIES + 1 for number in numbers)
    with trials.open_store(path) as store:
        stored, counts = list(store.trials()), store.counts()
    assert [trial.order for trial in stored] == list(range(1, len(numbers) + 1))
    assert counts.claimed == counts.free == 0
    for trial in stored:
        assert trial.failed or trial.metrics == {"number": trial.arch[0],
                                                 "curve": [0.5, trial.arch[0]]}
    repeated = sum(times[number] - 1 for number in range(count))
    assert repeated <= len(killed), "only what was in flight is repeated"
    return Figures(
        counts.done, counts.failed, len(killed), repeated,
        max(results[number].retries for number in range(count)),
        results[POISON].trial.error, time.monotonic() - start)
