"""The worker process of a local farm: `python -m jaxnas.farms.worker FD`, started by `local_farm`.

It ends by itself when its parent is gone, and gives its claim back first.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from jaxnas import trials
from jaxnas.farms.evaluation import evaluate_job, finish
from jaxnas.farms.heartbeats import Heart
from jaxnas.farms.jobs import Evaluate, Job, Work
from jaxnas.trial_json import TrialError
from jaxnas.trials import Claimed, LeaseLost, Store

BEATS = 10  # in a lease


class _Parent:
    """The connection; every message is one line of JSON, and no message is unpickled."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, kind: str, text: str = "") -> None:
        with self._lock, contextlib.suppress(OSError):  # of its end `receive` tells
            self._connection.send_bytes(json.dumps([kind, text]).encode())

    def receive(self) -> Any:
        """Return a message, or None when the parent is gone."""
        try:
            return json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            return None


def main(descriptor: int) -> None:
    """Work until the parent is gone."""
    parent = _Parent(Connection(descriptor))
    settings = parent.receive()
    if settings is None:
        return
    lease = float(settings["lease_seconds"])

    def beat() -> None:
        # If code that never lets go of the interpreter stops the beats, this ends the process one
        # lease later: then nobody counts on it any more.
        faulthandler.dump_traceback_later(lease, exit=True)
        parent.send("alive")

    try:
        store = trials.open_store(settings["store"])
    except TrialError as error:
        parent.send("broken", " ".join(str(error).split()))
        return
    with store, Heart(store, lease / BEATS, on_beat=beat) as heart:
        jobs = _Jobs(parent, store, heart)
        jobs.start()
        try:
            evaluate = Work(settings["function"], settings["config"]).load()(settings["config"])
        except (Exception, SystemExit) as error:
            parent.send("broken", f"{settings['function']} raised {type(error).__name__} in a "
                        f"worker: {' '.join(str(error).split())}")
            raise
        parent.send("ready")
        while True:
            work(parent, store, heart, evaluate, jobs.next(), lease)


def work(parent: _Parent, store: Store, heart: Heart, evaluate: Evaluate, job: Job, lease: float,
         ) -> None:
    """Claim a job, evaluate it, finish it, and say so."""
    try:
        held = store.claim(job.space, job.arch, job.recipe, lease_seconds=lease)
        if isinstance(held, Claimed):
            heart.hold(held)
            with contextlib.suppress(LeaseLost):  # somebody was faster: its metrics are there
                finish(store, held, evaluate_job(evaluate, job))
            heart.drop(held)
    except TrialError as error:  # of the disk, and another worker would fare no better
        parent.send("broken", " ".join(str(error).split()))
        raise
    parent.send("busy" if isinstance(held, trials.Busy) else "done")


class _Jobs:
    """Jobs as they come, read by a thread, which therefore learns at once of the parent's end."""

    def __init__(self, parent: _Parent, store: Store, heart: Heart) -> None:
        self._parent, self._store, self._heart = parent, store, heart
        self._job: Job | None = None
        self._came = threading.Semaphore(0)

    def start(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> Job:
        self._came.acquire()
        assert self._job is not None
        return self._job

    def _read(self) -> None:
        while (message := self._parent.receive()) is not None:
            self._job = Job(message["space"], tuple(message["arch"]), message["recipe"])
            self._came.release()
        for claimed in self._heart.held:
            with contextlib.suppress(TrialError):
                self._store.release(claimed)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # whatever the main thread is doing


if __name__ == "__main__":
    main(int(sys.argv[1]))
