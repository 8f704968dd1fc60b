"""The gates of reliability, their table, and runs that are started to be killed.

`make faults` runs all of them, prints one line a gate, and writes the same as JSON to $FAULTS_JSON
(runs/faults.json).
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxnas import checkpoints, reporting

ROOT = Path(__file__).parents[2]
GATES = {
    1: "kill -9 at random moments, 20 a family: 0 failed restarts, all bit-equal, at most 1 "
       "checkpoint interval repeated",
    2: "50 bit flips over all checkpoint files: 0 silent differences",
    3: "each checkpoint file truncated or deleted, stray steps, leftovers: newest verified step, "
       "one warning; none left: exit 2",
    4: "full disk (3 MB tmpfs): error with path and free bytes, old step bit-exact, log readable",
    5: "output that cannot be written: one line in < 2 s, before compiling",
    6: "SIGTERM, Ctrl-C: checkpoint and exit 0 in < 10 s; second signal at once; resume bit-exact",
    7: "NaN and inf: stopped within 1 step and named; a failed trial is worst; none in checkpoints",
    8: "20 worker kills in 200 trials, 4 workers: 200 done, 0 twice, 0 lost, retries capped at 3",
    9: "second process on a run refused in < 2 s; 4 on a store, 20 kills: 0 lost, 0 twice",
    10: "1,000 hostile genotypes: GenotypeError naming the path, < 100 ms each",
    11: "damaged archive, damaged files of a folder, no network: named, < 2 s",
    12: "changed space, seed, batch, devices, jaxlib on resume: refused by name; --force-resume",
    13: "5 peer deaths in 2-process SPMD: restarted, bit-equal",
    14: "torn log line, SQLite killed in a transaction, clock going back: survived",
    15: "0 compilations after warm-up in every searcher; memory grows < 5 % over 500 trials",
}


@pytest.fixture(autouse=True)
def gate(request, record_property) -> Callable[[str], None]:
    """Record the gate of a test, by its mark; return what says the figure that it measured."""
    number = request.node.get_closest_marker("gate").args[0]
    assert number in GATES
    record_property("gate", [number, ""])
    return lambda figure: record_property("gate", [number, figure])


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the table of gates, if a file for it is named."""
    target = os.environ.get("FAULTS_JSON")
    if not target:
        return
    rows: dict[int, dict] = {number: {
        "gate": number, "required": required, "measured": [], "passed": None, "tests": []}
        for number, required in GATES.items()}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            named = [value for name, value in getattr(report, "user_properties", ())
                     if name == "gate"]
            if named:
                row = rows[named[0][0]]
                row["tests"].append({"test": report.nodeid, "outcome": outcome})
                row["measured"] += [figure for _, figure in named if figure]
                row["passed"] = outcome == "passed" and row["passed"] is not False
    terminalreporter.section("gates of reliability")
    for row in rows.values():
        state = {True: "passed", False: "FAILED", None: "not run"}[row["passed"]]
        terminalreporter.write_line(
            f"{row['gate']:>2} {state:8}{row['required']} | {'; '.join(row['measured'])}")
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(json.dumps(list(rows.values()), indent=2) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def compilations() -> list[str]:
    """Names of the events of compilation in this process from now on."""
    events: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: events.append(event) if "backend_compile" in event else None)
    return events


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """Of processes that share a compilation cache, $JAXNAS_TEST_CACHE or a cold one."""
    cache = os.environ.get("JAXNAS_TEST_CACHE") or tmp_path_factory.mktemp("cache")
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "PYTHONPATH": str(ROOT)}


class Life:
    """A process that runs an experiment."""

    def __init__(self, pid: int, log: Path, answers: "Answers") -> None:
        self.pid, self.log = pid, log
        self._answers, self._status = answers, None

    def status(self, seconds: float) -> int | None:
        """Wait so long for its end; return its exit status, minus a signal, or None."""
        if self._status is None:
            found = self._answers.read(seconds)
            self._status = None if found is None else int(found["status"])
        return self._status

    def end(self, number: int, seconds: float = 60.0) -> int:
        """Send a signal, unless it has ended, and return the status."""
        if self.status(0.0) is None:
            os.kill(self.pid, number)
        status = self.status(seconds)
        assert status is not None, f"still alive {seconds} s after signal {number}"
        return status

    def finish(self, seconds: float = 600.0) -> None:
        """Wait for a good end."""
        assert self.status(seconds) == 0, self.log.read_text()[-3000:]


class Answers:
    """Lines of JSON from a process, read with patience."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process, self._rest = process, b""

    def read(self, seconds: float) -> dict | None:
        """Return the next line, or None after so many seconds."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                return None
            block = os.read(self._process.stdout.fileno(), 65536)
            assert block, "the nursery has died"
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)


@pytest.fixture(scope="session")
def nursery(environment) -> Iterator[Callable[..., Life]]:
    """Return what starts a smoke run, or resumes one: (experiment, folder, *arguments) -> Life."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "nursery.py")], env=environment, cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    answers = Answers(process)
    assert answers.read(120.0) == {"ready": True}
    lives: list[Life] = []

    def start(experiment: str, path: Path, *arguments: object) -> Life:
        if lives:  # one at a time; a test that failed may have left one
            lives.pop().end(signal.SIGKILL)
        fresh = not (path / "config.json").exists()  # else a run that has begun
        flags = ["--smoke", "--output", path, *arguments] if fresh else ["--resume", path]
        log = path.with_suffix(".log")
        line = json.dumps({"experiment": experiment, "log": str(log),
                           "arguments": ["--quiet", *map(str, flags)]})
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()
        lives.append(Life(answers.read(60.0)["pid"], log, answers))
        return lives[0]

    yield start
    if lives:
        lives.pop().end(signal.SIGKILL)
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


@pytest.fixture(scope="session")
def whole_run(nursery, tmp_path_factory) -> Callable[..., Path]:
    """Return what makes an uninterrupted run, or has it already: (experiment, *arguments)."""
    made: dict[tuple[object, ...], Path] = {}

    def get(experiment: str, *arguments: object) -> Path:
        if (experiment, *arguments) not in made:
            path = tmp_path_factory.mktemp(experiment) / "run"
            nursery(experiment, path, *arguments).finish()
            made[experiment, *arguments] = path
        return made[experiment, *arguments]

    return get


@pytest.fixture(scope="session")
def assert_equal_runs(records) -> Callable[[Path, Path], None]:
    """Return what checks that one run is another one bit for bit, but for what a clock wrote."""
    def leaves(path: Path) -> tuple[int, dict[str, str]]:
        step, found = checkpoints.digests(path / "checkpoints")
        return step, {name: digest for name, digest in found.items() if "clock" not in name}

    def check(path: Path, whole: Path) -> None:
        assert leaves(path) == leaves(whole)
        assert records(path) == records(whole)
        assert (path / "genotype.json").read_bytes() == (whole / "genotype.json").read_bytes()
        one, other = reporting.read_result(path), reporting.read_result(whole)
        assert one.complete and one.architecture == other.architecture
        assert one.metrics == other.metrics and one.evaluations == other.evaluations
        assert reporting.validate_run_directory(path) == []
        if (whole / "history.npz").exists():
            with np.load(path / "history.npz") as found, np.load(whole / "history.npz") as wanted:
                assert found.files == wanted.files
                for name in found.files:
                    np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)

    return check
