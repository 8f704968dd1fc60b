"""What is done about workers that die, hang, or cannot begin, whatever carries them.

A crew starts and ends workers and reports what happens; the farm of this file decides.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from jaxnas.farms.evaluation import Outcome, finish
from jaxnas.farms.jobs import MAX_RETRIES, FarmError, Job, Result
from jaxnas.trials import Busy, Claimed, Store, Trial

POLL_SECONDS = 0.5  # between two looks at a trial that another program is doing
Identity = tuple[str, str, str]


class Event(NamedTuple):
    """What happened to a worker.

    Kinds: alive, a sign of life; ready, it can take jobs; done, its job is in the store; busy,
    another program is doing its job; broken, it cannot begin or reach the store, and says so in
    `text`; gone, it has died, of what `text` says.
    """

    worker: int
    kind: Literal["alive", "ready", "done", "busy", "broken", "gone"]
    text: str = ""


class Crew(Protocol):
    """Workers by number; a number is given once."""

    def start(self, worker: int) -> None:
        """Start a worker; it reports `ready`, or `broken` or `gone`."""
        ...

    def give(self, worker: int, job: Job) -> None:
        """Give a ready worker a job; it reports `done` or `busy`, or `broken` or `gone`."""
        ...

    def wait(self, timeout: float) -> Sequence[Event]:
        """Return what happened since the last call; wait for it up to `timeout` seconds."""
        ...

    def end(self, worker: int) -> None:
        """End a worker for certain, also one that hangs; it reports nothing more."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...


class _Worker:
    """What the farm knows of one."""

    def __init__(self) -> None:
        self.ready = False
        self.job: Identity | None = None
        self.seen: float | None = None  # None: it does not exist yet, as far as anyone knows


class SupervisedFarm:
    """A `Farm` of any crew; `local_farm` and `ray_farm` make it. It closes its store."""

    def __init__(self, store: Store, crew: Crew, *, workers: int, lease_seconds: float) -> None:
        self._store, self._crew = store, crew
        self._count, self._lease = workers, lease_seconds
        self._crewmen: dict[int, _Worker] = {}
        self._started = self._stillborn = self._submitted = 0
        self._once_ready = self._closed = False
        self._jobs: dict[Identity, Job] = {}  # that are not over
        self._tickets: dict[Identity, list[int]] = {}
        self._queue: collections.deque[Identity] = collections.deque()
        self._later: dict[Identity, float] = {}  # when another program's trial is looked at again
        self._deaths: collections.Counter[Identity] = collections.Counter()
        self._reasons: dict[Identity, str] = {}  # of the last death
        self._finished: collections.deque[Result] = collections.deque()
        try:
            self._start_missing()
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> int:
        """How many jobs are worked on at once, at most."""
        return self._count

    def submit(self, job: Job) -> int:
        """Queue a job; see `Farm.submit`."""
        if self._closed:
            raise FarmError("the farm is closed: make another one.")
        ticket, identity = self._submitted, job.identity
        self._submitted += 1
        if identity in self._tickets:
            self._tickets[identity].append(ticket)
        elif known := self._store.lookup(job.space, job.arch, job.recipe):
            self._finished.append(Result(ticket, known, 0, known=True))
        else:
            self._jobs[identity], self._tickets[identity] = job, [ticket]
            self._queue.append(identity)
            self._give_out()
        return ticket

    def next(self, timeout: float | None = None) -> Result | None:
        """Wait for a job to finish; see `Farm.next`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._finished:
            if self._closed or not self._tickets:
                return None
            self._give_out()
            if self._finished:
                break
            now = time.monotonic()
            if deadline is not None and now > deadline:
                return None
            moments = [*self._later.values(), *([] if deadline is None else [deadline])]
            self._watch(min([self._lease / 4, *(max(0.0, moment - now) for moment in moments)]))
        return self._finished.popleft()

    def wait_ready(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until a worker has begun; tell whether one has, ever.

        Raises:
          FarmError: as `next`.
        """
        deadline = time.monotonic() + timeout
        while not self._once_ready and (left := deadline - time.monotonic()) > 0:
            self._start_missing()
            self._watch(min(left, self._lease / 4))
        return self._once_ready

    def close(self) -> None:
        """End the workers; see `Farm.close`."""
        if not self._closed:
            self._closed = True
            self._crew.close()
            self._store.close()

    def __enter__(self) -> SupervisedFarm:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _watch(self, timeout: float) -> None:
        for event in self._crew.wait(timeout):
            self._handle(event)
        self._end_hung()

    def _start_missing(self) -> None:
        # One alone until it is ready: what it compiles is in the cache for the others, and what is
        # wrong with the work is said once.
        count = self._count if self._once_ready else 1
        while len(self._crewmen) < count:
            self._crewmen[self._started] = _Worker()
            self._crew.start(self._started)
            self._started += 1

    def _give_out(self) -> None:
        self._start_missing()
        now = time.monotonic()
        for identity in [one for one, when in self._later.items() if when <= now]:
            del self._later[identity]
            self._queue.append(identity)
        for identity in [one for one in self._queue if self._deaths[one] > MAX_RETRIES]:
            self._queue.remove(identity)
            self._fail(identity)
        for number, worker in self._crewmen.items():
            if not self._queue:
                return
            if worker.ready and worker.job is None:
                worker.job = self._queue.popleft()
                self._crew.give(number, self._jobs[worker.job])

    def _handle(self, event: Event) -> None:
        worker = self._crewmen.get(event.worker)
        if worker is None:
            return  # ended before it was read
        worker.seen = time.monotonic()
        if event.kind == "broken":
            self.close()
            raise FarmError(event.text)
        if event.kind == "ready":
            worker.ready = self._once_ready = True
            self._stillborn = 0
        elif event.kind == "gone":
            self._lose(event.worker, event.text)
        elif event.kind in ("done", "busy") and worker.job is not None:
            identity, worker.job = worker.job, None
            if not self._over(identity):
                self._later[identity] = time.monotonic() + POLL_SECONDS

    def _end_hung(self) -> None:
        now = time.monotonic()
        for number, worker in list(self._crewmen.items()):
            if worker.seen is not None and now - worker.seen > self._lease:
                self._crew.end(number)
                self._lose(number, f"gave no sign of life for {self._lease:g} s")

    def _lose(self, number: int, reason: str) -> None:
        worker = self._crewmen.pop(number)
        if worker.job is None:
            self._stillborn += not worker.ready
            if self._stillborn > MAX_RETRIES:
                self.close()
                raise FarmError(f"{self._stillborn} workers in a row were lost before they were "
                                f"ready (the last {reason}): look at what they wrote, and at the "
                                "memory they need.")
        elif not self._over(worker.job):  # it may have died between finishing and saying so
            self._deaths[worker.job] += 1
            self._reasons[worker.job] = reason
            self._queue.appendleft(worker.job)

    def _over(self, identity: Identity) -> bool:
        """Give the result if the store has it."""
        job = self._jobs[identity]
        trial = self._store.lookup(job.space, job.arch, job.recipe)
        if trial is not None:
            self._give(identity, trial)
        return trial is not None

    def _fail(self, identity: Identity) -> None:
        job, deaths = self._jobs[identity], self._deaths[identity]
        held = self._store.claim(job.space, job.arch, job.recipe, lease_seconds=self._lease)
        if isinstance(held, Busy):  # somebody else tries, or nobody can tell that the owner is dead
            self._later[identity] = time.monotonic() + POLL_SECONDS
        elif isinstance(held, Claimed):
            error = f"{deaths} workers died of it, the last one {self._reasons[identity]}"
            self._give(identity, finish(self._store, held, Outcome({}, error, 0.0)))
        else:
            self._give(identity, held)

    def _give(self, identity: Identity, trial: Trial) -> None:
        retries = min(self._deaths[identity], MAX_RETRIES)
        del self._jobs[identity]
        for ticket in self._tickets.pop(identity):
            self._finished.append(Result(ticket, trial, retries, known=False))


def check_options(*, workers: int, lease_seconds: float, extra: Mapping[str, float] = {}) -> None:
    """Raise a `ValueError` for what no farm can do; `extra` are numbers of 0 or more."""
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}.")
    if not 0 < lease_seconds < float("inf"):
        raise ValueError(f"lease_seconds must be above 0 and finite, got {lease_seconds}.")
    for name, value in extra.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be 0 or more and finite, got {value}.")
