"""A farm of worker processes on this machine, which share the trial store."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import IO, Any

from jaxnas.farms.jobs import Job, Work, python_path
from jaxnas.farms.supervision import Event, SupervisedFarm, check_options
from jaxnas.trials import open_store

GRACE_SECONDS = 2.0  # for workers to give their claims back


def local_farm(
    work: Work, store: str | os.PathLike[str], *, workers: int, lease_seconds: float = 60.0,
    environments: Sequence[Mapping[str, str]] = (), logs: str | os.PathLike[str] | None = None,
) -> SupervisedFarm:
    """Start worker processes, each with an interpreter of its own; not on Windows.

        with farms.local_farm(work, "trials.sqlite", workers=4) as farm:
            for arch in archs:
                farm.submit(farms.Job("my_space", arch, {"epochs": 3}))
            while result := farm.next():
                print(result.trial.arch, result.trial.metrics)

    A worker claims a job in the store, renews its lease while it evaluates, and finishes it there.
    One that is killed is noticed at once, one that is stopped after its lease. When this process is
    gone, workers end by themselves. Ctrl-C reaches this process only. The first worker begins
    alone, so that what it compiles is in a shared cache when the others compile the same.

    Args:
      work: what they do; they find modules on this process's `sys.path`.
      store: path of the trial store, made if there is none, on a local disk; others may have it
        open, too.
      workers: processes, 1 or more.
      lease_seconds: after so long without a sign of life a worker is ended, above 0. Signs come ten
        times a lease from a thread, whatever the worker does.
      environments: variables of the workers, on top of this process's; of n mappings, worker i gets
        number i % n: [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}] for two GPUs.
      logs: a folder, made if there is none, for worker_<number>.log with what each writes; None:
        all write to this process's stderr.

    Raises:
      ValueError: a number is out of range.
      TrialError: the store cannot be used.
    """
    check_options(workers=workers, lease_seconds=lease_seconds)
    folder = None if logs is None else Path(logs)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    opened = open_store(store)
    crew = _Processes(work, os.path.abspath(store), lease_seconds, environments or ({},), workers,
                      folder)
    return SupervisedFarm(opened, crew, workers=workers, lease_seconds=lease_seconds)


class _Processes:
    """The crew: one connection a process, over which lines of JSON go."""

    def __init__(self, work: Work, store: str, lease: float,
                 environments: Sequence[Mapping[str, str]], workers: int,
                 logs: Path | None) -> None:
        self._settings = json.dumps({
            "function": work.function, "config": work.config, "store": store,
            "lease_seconds": lease}, default=dict).encode()
        self._environments, self._logs = environments, logs
        self._places: dict[int, int] = {}  # of a worker among the `workers`
        self._free = list(range(workers))
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._connections: dict[int, Any] = {}
        self._news: list[Event] = []

    def start(self, worker: int) -> None:
        ours, theirs = connection.Pipe()
        place = self._places[worker] = self._free.pop(0)
        environment = {**os.environ, "PYTHONPATH": python_path(),
                       **self._environments[place % len(self._environments)]}
        with theirs, contextlib.ExitStack() as stack:
            output: int | IO[bytes] = 2  # stderr as the system knows it
            if self._logs is not None:
                output = stack.enter_context(open(self._logs / f"worker_{worker}.log", "ab"))
            self._processes[worker] = subprocess.Popen(
                [sys.executable, "-P", "-m", "jaxnas.farms.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
                pass_fds=[theirs.fileno()], start_new_session=True)
        self._connections[worker] = ours
        self._send(worker, self._settings)
        self._news.append(Event(worker, "alive"))  # from now on it can hang

    def give(self, worker: int, job: Job) -> None:
        self._send(worker, json.dumps({
            "space": job.space, "arch": job.arch, "recipe": job.recipe}, default=dict).encode())

    def _send(self, worker: int, message: bytes) -> None:
        with contextlib.suppress(OSError):  # if it is dead, `wait` tells
            self._connections[worker].send_bytes(message)

    def wait(self, timeout: float) -> list[Event]:
        numbers = {ours: worker for worker, ours in self._connections.items()}
        events, self._news = self._news, []
        for ours in connection.wait(list(numbers), 0.0 if events else timeout):
            worker = numbers[ours]
            try:
                while self._connections[worker].poll():  # all that it has said
                    kind, text = json.loads(self._connections[worker].recv_bytes())
                    events.append(Event(worker, kind, text))
            except (EOFError, OSError):
                events.append(Event(worker, "gone", _cause(self._end(worker))))
        return events

    def end(self, worker: int) -> None:
        self._end(worker)

    def _end(self, worker: int) -> int:
        """Kill a process unless it has ended, and return its exit status."""
        process = self._processes.pop(worker)
        self._connections.pop(worker).close()
        self._free.append(self._places.pop(worker))
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.2)  # its status rather than our signal, if it is just ending
        process.kill()
        return process.wait()

    def close(self) -> None:
        for ours in self._connections.values():
            ours.close()  # which they take as the end of this process
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        self._connections.clear()


def _cause(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"was ended by {signal.Signals(-status).name}"
