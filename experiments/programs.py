"""Compile everything before the first step, in parallel, and know what it cost.

A step that is compiled ahead of time refuses other shapes instead of compiling again, so a run
that started will not stall. XLA releases the interpreter lock: programs that have been traced are
compiled in threads while the next one is traced.
"""

from __future__ import annotations

import dataclasses
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from jaxnas import reporting
from jaxnas.device_memory import ProgramBytes, program_bytes


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """What compiling one program took, and what XLA says of it."""

    name: str
    trace_seconds: float
    lower_seconds: float
    compile_seconds: float
    hlo_lines: int      # after optimisation
    memory: ProgramBytes  # on one device
    flops: float        # of one call, loop bodies counted once by XLA; 0.0 if it does not say
    bytes_accessed: float  # read and written by one call, counted like flops


class Program:
    """One function compiled for one set of shapes; made by `Programs.add`."""

    def __init__(self, name: str, jitted: Callable[..., Any], args: tuple[Any, ...],
                 kwargs: dict[str, Any]) -> None:
        self.name = name
        self.compiled: jax.stages.Compiled | None = None
        self.trace_seconds = self.lower_seconds = self.compile_seconds = 0.0
        self._jitted, self._args, self._kwargs = jitted, args, kwargs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it.

        Raises:
          RuntimeError: it has not been compiled.
          TypeError: shapes, dtypes or the tree differ from those it was compiled for.
        """
        if self.compiled is None:
            raise RuntimeError(f"{self.name} is not compiled; call Programs.compile_all() first.")
        return self.compiled(*args, **kwargs)

    def lower(self) -> jax.stages.Lowered:
        """Trace and lower; Python work, so one program at a time."""
        start = time.perf_counter()
        lowerable = self._jitted
        if hasattr(lowerable, "trace"):
            lowerable = lowerable.trace(*self._args, **self._kwargs)
            self.trace_seconds = time.perf_counter() - start
            start = time.perf_counter()
            lowered = lowerable.lower()
        else:  # traces and lowers at once
            lowered = lowerable.lower(*self._args, **self._kwargs)  # type: ignore[attr-defined]
        self.lower_seconds = time.perf_counter() - start
        return lowered

    def compile(self, lowered: jax.stages.Lowered) -> None:
        """Compile; without the interpreter lock."""
        start = time.perf_counter()
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - start
        self._args, self._kwargs = (), {}  # example arrays are not kept alive

    def cost(self) -> ProgramCost:
        """Ask XLA for the size of the compiled program."""
        if self.compiled is None:
            raise RuntimeError(f"{self.name} is not compiled.")
        analysis = _ask(self.compiled.cost_analysis)
        if isinstance(analysis, (list, tuple)):  # one a device, in some versions
            analysis = analysis[0] if analysis else None
        counted = {name: max(0.0, float((analysis or {}).get(name, 0.0)))
                   for name in ("flops", "bytes accessed")}
        return ProgramCost(
            self.name, self.trace_seconds, self.lower_seconds, self.compile_seconds,
            hlo_lines=(_ask(self.compiled.as_text) or "").count("\n"),
            memory=program_bytes(self.compiled), flops=counted["flops"],
            bytes_accessed=counted["bytes accessed"])


class Programs:
    """The compiled programs of one run.

        programs = Programs()
        search_step = programs.add("search_step", jax.jit(step), state, batch)
        programs.compile_all(progress)
        state, info = search_step(state, batch)
    """

    def __init__(self) -> None:
        self._programs: dict[str, Program] = {}
        self._seconds = 0.0

    def add(self, name: str, jitted: Callable[..., Any], *args: Any, **kwargs: Any) -> Program:
        """Register a program.

        Args:
          name: for reports; each only once.
          jitted: what `jax.jit` or `jax.pmap` returned.
          *args, **kwargs: example arguments, arrays or `jax.ShapeDtypeStruct`s (give those of
            sharded arguments their sharding), static ones as they are. They are not donated.

        Returns:
          The program; callable after `compile_all`.

        Raises:
          ValueError: the name is taken, or the function cannot be lowered.
        """
        if name in self._programs:
            raise ValueError(f"there is already a program {name!r}.")
        if not hasattr(jitted, "lower"):
            raise ValueError(f"{name} must come from jax.jit or jax.pmap, got {jitted!r}.")
        program = Program(name, jitted, args, kwargs)
        self._programs[name] = program
        return program

    def __getitem__(self, name: str) -> Program:
        return self._programs[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the compiled programs, in the order of `add`."""
        return tuple(name for name, p in self._programs.items() if p.compiled is not None)

    @property
    def count(self) -> int:
        """Programs compiled; the `compilations` of result.json."""
        return len(self.names)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds that `compile_all` has taken."""
        return self._seconds

    def compile_all(self, progress: reporting.Progress | None = None) -> None:
        """Compile what has not been compiled.

        Args:
          progress: shows one step a program.

        Raises:
          Exception: the first that tracing or compiling raised, with the program's name as a note.
        """
        waiting = [p for p in self._programs.values() if p.compiled is None]
        if not waiting:
            return
        start = time.perf_counter()
        progress = reporting.Progress(quiet=True) if progress is None else progress
        with progress.phase("compile", total=len(waiting)) as phase:
            lowered: queue.SimpleQueue[tuple[Program, jax.stages.Lowered] | None]
            lowered = queue.SimpleQueue()
            done: queue.SimpleQueue[tuple[Program, BaseException | None]] = queue.SimpleQueue()
            # Daemons: Ctrl-C must not wait for a compilation that cannot be stopped.
            workers = [threading.Thread(target=_compile_worker, args=(lowered, done), daemon=True)
                       for _ in range(min(len(waiting), os.cpu_count() or 1))]
            for worker in workers:
                worker.start()
            try:
                for program in waiting:
                    with _named(program):
                        lowered.put((program, program.lower()))
            finally:
                for _ in workers:
                    lowered.put(None)
            for _ in waiting:
                program, error = done.get()
                if error is not None:
                    with _named(program):
                        raise error
                phase.advance(1, f"{program.name} {program.compile_seconds:.1f} s")
        self._seconds += time.perf_counter() - start

    def costs(self) -> list[ProgramCost]:
        """Return one `ProgramCost` a compiled program."""
        return [self._programs[name].cost() for name in self.names]

    def report(self) -> str:
        """Return a table of `costs`, for `--compile-only`."""
        header = ("program", "trace s", "lower s", "compile s", "HLO lines", "peak MiB",
                  "temporary MiB", "GFLOP", "GB moved")
        rows = [header]
        for cost in self.costs():
            rows.append((cost.name, f"{cost.trace_seconds:.2f}", f"{cost.lower_seconds:.2f}",
                         f"{cost.compile_seconds:.2f}", str(cost.hlo_lines),
                         f"{sum(cost.memory) / 2 ** 20:.1f}",
                         f"{cost.memory.temporary / 2 ** 20:.1f}", f"{cost.flops / 1e9:.3f}",
                         f"{cost.bytes_accessed / 1e9:.3f}"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                           for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
                 for row in rows]
        return "\n".join(lines + [
            f"{self.count} programs compiled in {self.seconds:.2f} s; in the last two columns, XLA "
            "counts one turn of a loop"])


class StepTimer:
    """Seconds of steps, without compilation; their median and deciles.

        with timer.measure(steps=chunk):
            state = jax.block_until_ready(chunk_of_steps(state))
    """

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def record(self, seconds: float, steps: int = 1) -> None:
        """Note one measurement of `steps` steps; it counts once, as their mean."""
        if steps < 1 or seconds < 0:
            raise ValueError(f"steps must be >= 1 and seconds >= 0, got {steps} and {seconds}.")
        self._seconds.append(seconds / steps)

    @contextmanager
    def measure(self, steps: int = 1) -> Iterator[None]:
        """Measure the body, which must wait for its results (`block_until_ready`)."""
        start = time.perf_counter()
        yield
        self.record(time.perf_counter() - start, steps)

    @property
    def total(self) -> float:
        """The sum of the means recorded."""
        return float(sum(self._seconds))

    def summary(self) -> reporting.StepSeconds:
        """Return what result.json holds; zeros before the first step."""
        p10, median, p90 = np.percentile(self._seconds or [0.0], [10, 50, 90])
        return reporting.StepSeconds(float(median), float(p10), float(p90))


def _compile_worker(lowered: queue.SimpleQueue[tuple[Program, jax.stages.Lowered] | None],
                    done: queue.SimpleQueue[tuple[Program, BaseException | None]]) -> None:
    while (job := lowered.get()) is not None:
        program, work = job
        try:
            program.compile(work)
            done.put((program, None))
        except BaseException as error:  # raised again by compile_all
            done.put((program, error))


@contextmanager
def _named(program: Program) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"while compiling {program.name}")
        raise


def _ask(question: Callable[[], Any]) -> Any:
    """Return an answer that not every backend has."""
    try:
        return question()
    except (NotImplementedError, RuntimeError, ValueError):
        return None
