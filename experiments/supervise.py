"""Start the processes of a run, and all of them again from the last checkpoint when one dies.

    python -m experiments.supervise --processes 2 -- python -m experiments.darts --output runs/two
    srun --ntasks-per-node=1 python -m experiments.supervise -- \\
        python -m experiments.darts --devices 8 --output runs/many     # one supervisor a node

A process of an SPMD run cannot survive another's death: JAX aborts it. So the rest is ended too,
and after `--output DIR` has become `--resume DIR` the command is started again. With --processes
above 1 the processes find each other by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID, at a port that is chosen anew each time. With one, the command finds the others by
what SLURM or Open MPI says: every node's supervisor sees its process aborted when one dies
elsewhere, and starts it again, and the processes wait for each other.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from experiments.settings import InputError, parse_plain
from jaxnas.checkpoints import latest_step

_POLL = 0.05   # seconds between two looks at the processes
_GRACE = 2.0   # seconds that the others have to report what they saw, before they are killed
_BAD_INPUT = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Keep a run going: --flags, then -- and the command, which has --output or --resume."""

    processes: int = 1
    """Processes to start here; they run the command together."""
    restarts: int = 10
    """Starts after the first, at most."""
    futile: int = 2
    """Deaths in a row with no new checkpoint before them, after which it gives up."""
    devices: int | None = None
    """Accelerators of each process, if they share this host's: the first has the first ones."""

    def __post_init__(self) -> None:
        for name, low in (("processes", 1), ("restarts", 0), ("futile", 1), ("devices", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name} must be >= {low}, got {value}.")


def supervise(config: Config, command: Sequence[str]) -> int:
    """Run a command until it is done, is stopped, or cannot go on.

    Args:
      config: how many processes, and how often to start them again.
      command: program and flags, among them `--output DIR` or `--resume DIR`. It writes
        DIR/config.json and checkpoints DIR/checkpoints/<step>, goes on with `--resume DIR`, and
        exits with 0 when it is done or was saved on request, with 2 for bad input.

    Returns:
      0 if all processes ended with 0; else the exit code of the one that died first, 128 plus the
      number of a signal.

    Raises:
      InputError: the command names no run directory, or cannot be started.
    """
    directory = _run_directory(command)
    futile, saved = 0, _step(directory)
    with _Processes(config) as processes:
        for attempt in range(config.restarts + 1):
            processes.start(command if attempt == 0 else resumed(command))
            number, code = processes.wait()
            if code in (0, _BAD_INPUT) or processes.stopped:
                return code
            now = _step(directory)
            futile = futile + 1 if now == saved else 0
            saved = now
            _say(f"process {number} of {config.processes} died ({_reason(code)}); "
                 + ("nothing is saved." if saved is None else f"step {saved} is saved."))
            if futile >= config.futile:
                _say(f"giving up: {futile} deaths in a row without a new checkpoint.")
                return code
            if attempt < config.restarts:
                _say(f"restart {attempt + 1} of {config.restarts}.")
    _say(f"giving up after {config.restarts} restarts; --restarts allows more.")
    return code


def resumed(command: Sequence[str]) -> list[str]:
    """Return the command that continues a run, or the same if the run has not begun.

    Args:
      command: with `--output DIR` or `--resume DIR`, also written `--output=DIR`.
    """
    directory = _run_directory(command)
    if not (directory / "config.json").is_file():
        return list(command)
    return [part.replace("--output", "--resume", 1)
            if part == "--output" or part.startswith("--output=") else part for part in command]


class _Processes:
    """The processes of one attempt after the other; after the block none of them is left.

    Inside it SIGINT and SIGTERM are passed on to them.
    """

    def __init__(self, config: Config) -> None:
        self.stopped = False  # a signal was passed on
        self._config = config
        self._running: list[subprocess.Popen[bytes]] = []
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _Processes:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def start(self, command: Sequence[str]) -> None:
        """Start the command once a process; those of the last attempt have ended."""
        port, self._running = _free_port(), []
        for number in range(self._config.processes):
            if self.stopped:
                return
            try:
                self._running.append(subprocess.Popen(
                    command, env=_environment(self._config, number, port),
                    stdin=subprocess.DEVNULL,
                    # Ctrl-C reaches a whole group: then each would get it twice, with ours.
                    start_new_session=True))
            except OSError as error:
                raise InputError(f"{command[0]} cannot be started: {error.strerror}.") from error

    def wait(self) -> tuple[int, int]:
        """Wait until all have ended with 0, or one with another code, and end the others.

        Returns:
          Number and exit code of the one to blame, the code 128 + N after signal N; or (0, 0).
        """
        if len(self._running) < self._config.processes:  # stopped while they were started
            self._end()
            return 0, 128 + signal.SIGTERM
        first = None
        while first is None and None in [process.poll() for process in self._running]:
            time.sleep(_POLL)
            first = self._failed()
        first = self._failed() if first is None else first
        if first is None:
            return 0, 0
        deadline = time.monotonic() + _GRACE
        while time.monotonic() < deadline and None in [p.poll() for p in self._running]:
            time.sleep(_POLL)
        refused = [n for n, p in enumerate(self._running) if p.returncode == _BAD_INPUT]
        self._end()
        number = refused[0] if refused else first  # JAX aborts the others of one that is refused
        code = self._running[number].returncode
        return number, code if code > 0 else 128 - code

    def _failed(self) -> int | None:
        return next((n for n, process in enumerate(self._running) if process.poll()), None)

    def _end(self) -> None:
        for process in self._running:
            process.kill()  # does nothing to one that has ended
            process.wait()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        for process in self._running:
            process.send_signal(number)


def _environment(config: Config, number: int, port: int) -> Mapping[str, str]:
    environment = dict(os.environ)
    if config.processes > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                        "JAX_NUM_PROCESSES": str(config.processes), "JAX_PROCESS_ID": str(number)}
        if config.devices is not None:
            first = number * config.devices
            environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(
                str(device) for device in range(first, first + config.devices))
    return environment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _run_directory(command: Sequence[str]) -> Path:
    found = None
    for part, following in zip(command, [*command[1:], None]):
        flag, equals, value = part.partition("=")
        if flag in ("--output", "--resume"):
            found = value if equals else following
    if not found:
        raise InputError("the command after -- must have --output DIR or --resume DIR: from there "
                         "it is continued.")
    return Path(found)


def _step(directory: Path) -> int | None:
    return latest_step(directory / "checkpoints")


def _reason(code: int) -> str:
    if code <= 128:
        return f"exit code {code}"
    try:
        return signal.Signals(code - 128).name
    except ValueError:
        return f"exit code {code}"


def _say(text: str) -> None:
    print(f"supervise: {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code; see the module."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    try:
        config = parse_plain(Config, arguments[:at], "python -m experiments.supervise")
        return supervise(config, arguments[at + 1:])
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return _BAD_INPUT


if __name__ == "__main__":
    raise SystemExit(main())
