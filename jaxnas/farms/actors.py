"""A farm of Ray actors, on this machine or on a cluster; needs the extra `jaxnas[ray]`."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import time
import warnings
from collections.abc import Mapping
from typing import Any

from jaxnas import processes
from jaxnas.farms.evaluation import Outcome, evaluate_job, finish
from jaxnas.farms.heartbeats import Heart
from jaxnas.farms.jobs import Evaluate, Job, Work, python_path
from jaxnas.farms.supervision import Event, SupervisedFarm, check_options
from jaxnas.trial_json import TrialError
from jaxnas.trials import Busy, Claimed, LeaseLost, Store, open_store

BEATS = 10  # in a lease
GRACE_SECONDS = 2.0  # for actors to end


def ray_farm(
    work: Work, store: str | os.PathLike[str], *, workers: int, lease_seconds: float = 60.0,
    num_cpus: float = 1.0, num_gpus: float = 0.0, address: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> SupervisedFarm:
    """Start Ray actors, each of which takes one job after the other.

    The store is on this machine and this process alone writes it; workers need none. They must be
    able to import `work.function` and jaxnas: what is on this process's `sys.path` is on theirs,
    if the files are on their machine. An actor that dies, with its machine or alone, or does not
    answer for a lease, is replaced. When this process is gone, Ray ends them. Where the cluster has
    no room for all of them, some wait, and the others work.

    Args:
      work: what they do.
      store: path of the trial store, made if there is none, on a local disk.
      workers: actors, 1 or more.
      lease_seconds: after so long without an answer an actor is ended, above 0. It is asked ten
        times a lease, and answers from a thread, whatever it does.
      num_cpus, num_gpus: of each worker; Ray reserves CPUs without binding to them, and lets a
        worker see its GPUs alone. Fractions share one.
      address: of a cluster, as `ray.init` takes it; None: the one that is connected to, or else a
        new one on this machine, which ends with the farm. Ray starts that by forks, best before JAX
        has computed anything.
      environment: variables of the workers.

    Raises:
      ValueError: a number is out of range.
      ImportError: Ray is not installed.
      TrialError: the store cannot be used.
    """
    check_options(workers=workers, lease_seconds=lease_seconds,
                  extra={"num_cpus": num_cpus, "num_gpus": num_gpus})
    if not has_ray():
        raise ImportError("ray_farm needs Ray, which is not installed: pip install 'jaxnas[ray]', "
                          "or use local_farm.")
    opened = open_store(store)
    try:
        crew = _Actors(work, opened, lease_seconds, address, {
            "num_cpus": num_cpus, "num_gpus": num_gpus,
            "runtime_env": {"env_vars": {
                "PYTHONPATH": python_path(), **(environment or {})}}})
    except BaseException:
        opened.close()
        raise
    return SupervisedFarm(opened, crew, workers=workers, lease_seconds=lease_seconds)


def has_ray() -> bool:
    """Tell whether Ray is installed, without importing it."""
    return importlib.util.find_spec("ray") is not None


class _Worker:
    """What runs in an actor: `ping` in a thread of its own, all else in another."""

    _evaluate: Evaluate

    def ping(self) -> tuple[str, int, str]:
        """Return which process this is."""
        return processes.this_process()

    def prepare(self, work: Work) -> None:
        self._evaluate = work.load()(work.config)

    def evaluate(self, job: Job) -> Outcome:
        return evaluate_job(self._evaluate, job)


class _Actor:
    """The driver's side of one."""

    def __init__(self, handle: Any, worker: int) -> None:
        self.handle, self.worker = handle, worker
        self.held: Claimed | None = None
        self.where: tuple[str, int, str] | None = None
        self.next_ping: float | None = None  # None: one is on its way


class _Actors:
    """The crew. The store is claimed and finished here, in the driver."""

    def __init__(self, work: Work, store: Store, lease: float, address: str | None,
                 options: Mapping[str, Any]) -> None:
        import ray

        self._ray: Any = ray
        self._store, self._lease = store, lease
        self._own = not ray.is_initialized()
        if self._own:
            with warnings.catch_warnings():
                # of JAX: Ray forks to start its servers, which become other programs at once
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                ray.init(address=address, include_dashboard=False if address is None else None,
                         configure_logging=False, log_to_driver=True)
        self._class = self._ray.remote(
            max_restarts=0, max_task_retries=0, concurrency_groups={"life": 1}, **options)(_Worker)
        self._work = ray.put(work)
        self._actors: dict[int, _Actor] = {}
        self._refs: dict[Any, tuple[int, str]] = {}  # -> worker, what was asked
        self._news: list[Event] = []
        self._heart = Heart(store, lease / BEATS)
        self._heart.__enter__()

    def start(self, worker: int) -> None:
        actor = self._actors[worker] = _Actor(self._class.remote(), worker)
        self._refs[actor.handle.prepare.remote(self._work)] = worker, "prepare"
        self._ping(actor)

    def _ping(self, actor: _Actor) -> None:
        actor.next_ping = None
        if actor.where is not None:  # a lease is counted from the question on
            self._news.append(Event(actor.worker, "alive"))
        call = actor.handle.ping.options(concurrency_group="life")
        self._refs[call.remote()] = actor.worker, "ping"

    def give(self, worker: int, job: Job) -> None:
        actor = self._actors[worker]
        held = self._store.claim(job.space, job.arch, job.recipe, lease_seconds=self._lease)
        if isinstance(held, Claimed):
            actor.held = held
            self._heart.hold(held)
            self._refs[actor.handle.evaluate.remote(job)] = worker, "evaluate"
        else:
            self._news.append(Event(worker, "busy" if isinstance(held, Busy) else "done"))

    def wait(self, timeout: float) -> list[Event]:
        now = time.monotonic()
        for actor in self._actors.values():
            if actor.next_ping is not None and actor.next_ping <= now:
                self._ping(actor)
        due = [actor.next_ping - now for actor in self._actors.values()
               if actor.next_ping is not None]
        timeout = max(0.0, min([timeout, *due]))
        if self._refs:
            refs = list(self._refs)
            told = any(event.kind != "alive" for event in self._news)
            ready, _ = self._ray.wait(refs, timeout=0.0 if told else timeout)
            if ready:  # and all others that are
                ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0.0)
            for ref in ready:
                if ref in self._refs:  # else of an actor that has ended meanwhile
                    self._answered(ref, *self._refs.pop(ref))
        elif not self._news:
            time.sleep(timeout)
        events, self._news = self._news, []
        return events

    def _answered(self, ref: Any, worker: int, what: str) -> None:
        actor = self._actors[worker]
        try:
            value = self._ray.get(ref)
        except self._ray.exceptions.RayActorError as error:
            self._remove(actor)
            self._news.append(Event(worker, "gone", f"died ({_first_line(error)})"))
        except self._ray.exceptions.RayTaskError as error:  # of `prepare`; jobs' are outcomes
            self._news.append(Event(worker, "broken", f"the work raised in a worker: "
                                    f"{_last_line(error)}"))
        else:
            if what == "ping":
                actor.where = value
                actor.next_ping = time.monotonic() + self._lease / BEATS
                self._news.append(Event(worker, "alive"))
            elif what == "prepare":
                self._news.append(Event(worker, "ready"))
            elif actor.held is not None:
                held, actor.held = actor.held, None
                self._heart.drop(held)
                with contextlib.suppress(LeaseLost):  # somebody was faster
                    finish(self._store, held, value)
                self._news.append(Event(worker, "done"))

    def end(self, worker: int) -> None:
        actor = self._actors[worker]
        self._remove(actor)
        self._ray.kill(actor.handle)
        _kill_process(actor)

    def _remove(self, actor: _Actor) -> None:
        """Forget an actor, and give its claim back: it is to be done by another."""
        del self._actors[actor.worker]
        self._refs = {ref: asked for ref, asked in self._refs.items() if asked[0] != actor.worker}
        if actor.held is not None:
            self._heart.drop(actor.held)
            self._store.release(actor.held)

    def close(self) -> None:
        self._heart.__exit__()
        actors = list(self._actors.values())
        for actor in actors:
            with contextlib.suppress(TrialError):  # what is not given back runs out
                self._remove(actor)
            self._ray.kill(actor.handle)
        if self._own:
            self._ray.shutdown()
        deadline = time.monotonic() + GRACE_SECONDS
        for actor in actors:
            while _is_here(actor) and time.monotonic() < deadline:
                time.sleep(0.05)
            _kill_process(actor)


def _is_here(actor: _Actor) -> bool:
    """Tell whether an actor's process is on this machine and has not ended."""
    return actor.where is not None and actor.where[0] == processes.machine() and (
        not processes.is_gone(*actor.where))


def _kill_process(actor: _Actor) -> None:
    # Ray asks a process to end, and one that is stopped does not answer.
    if actor.where is not None and _is_here(actor):
        with contextlib.suppress(ProcessLookupError):
            os.kill(actor.where[1], signal.SIGKILL)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason")


def _last_line(error: Exception) -> str:
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or ["?"])[-1]
