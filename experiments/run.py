"""The run directory: made, locked, resumed; see jaxnas/reporting/result.py for its contract.

A resumed run continues the file of metrics where the checkpoint was taken, so what a crash left
after it is forgotten and nothing is counted twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Container, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np

import jaxnas
from experiments.settings import CommonConfig, InputError, read_config, to_json
from jaxnas import checkpoints, reporting
from jaxnas.data import ImageDataset
from jaxnas.integrations import Events, require_tensorboard

OURS = ("config.json", "metrics.jsonl", "result.json", "checkpoints")
# Python's own version changes no number; all others may.
_DRIFT = ("jax", "jaxlib", "flax", "optax", "jaxnas")


def versions() -> dict[str, str]:
    """Return the versions that config.json records."""
    found = {"python": platform.python_version()}
    found |= {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return {**found, "jaxnas": jaxnas.__version__}


def device_facts(count: int | None = None) -> reporting.Device:
    """Return where this runs; `count` is how many devices are used, by default all here."""
    devices = jax.local_devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = _cpu_model() or kind
    return reporting.Device(devices[0].platform, kind, len(devices) if count is None else count)


def dataset_facts(dataset: ImageDataset, splits: Mapping[str, int]) -> dict[str, object]:
    """Return what config.json records of a data set.

    Args:
      dataset: the data set.
      splits: number of images of every part used, such as weights, alphas, test.
    """
    return {"name": dataset.name, "sha256": dataset.sha256, "splits": dict(splits)}


class RunDirectory:
    """An open run directory; made by `open_run`."""

    def __init__(self, path: Path, name: str, metrics: reporting.MetricsWriter,
                 resumed_step: int | None) -> None:
        self.path = path
        self.name = name
        self.metrics = metrics
        self.resumed_step = resumed_step  # of the checkpoint; None for a fresh start

    @property
    def checkpoint_folder(self) -> Path:
        """What `jaxnas.checkpoints` takes."""
        return self.path / "checkpoints"

    @property
    def resume_command(self) -> str:
        """What continues this run."""
        return f"python -m experiments.{self.name} --resume {self.path}"

    def save(self, step: int, state: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Save a checkpoint; `extra` is JSON and comes back as `Restored.metadata["extra"]`.

        Of several processes the first saves; on the others it does nothing.

        Raises:
          CheckpointError: as `jaxnas.checkpoints.save`.
        """
        checkpoints.save(self.checkpoint_folder, step, state, {
            "metrics_offset": self.metrics.offset, "seconds": self.metrics.seconds,
            "extra": dict(extra or {})})

    def restore(self, target: Any) -> checkpoints.Restored | None:
        """Return the newest verified checkpoint of a resumed run; None for a fresh start.

        Raises:
          InputError: it does not fit `target`.
        """
        if self.resumed_step is None:
            return None
        try:
            return checkpoints.restore(self.checkpoint_folder, target)
        except checkpoints.CheckpointError as error:
            raise InputError(str(error)) from error

    def retrained(self, groups: Container[str] | None = None) -> reporting.Evaluations:
        """Count the networks that were retrained and tested, by metrics.jsonl; None: any group."""
        rows = [row for row in reporting.read_metrics(self.path / "metrics.jsonl")
                if row["kind"] == "evaluation" and row.get("phase") == "retrain"
                and (groups is None or row["group"] in groups)]
        return reporting.Evaluations(len(rows), len({str(row["arch"]) for row in rows}),
                                     sum(bool(row["failed"]) for row in rows))

    def write_result(self, result: reporting.Result) -> Path:
        """Write result.json; after an interruption, say on stderr how to go on."""
        path = reporting.write_result(self.path, result)
        if not result.complete:
            print(f"Saved. To continue: {self.resume_command}", file=sys.stderr)
        return path


@contextlib.contextmanager
def open_run(config: CommonConfig, name: str, dataset: Mapping[str, object], *,
             num_devices: int | None = None, root: Path = Path("runs")) -> Iterator[RunDirectory]:
    """Open the run directory of a configuration, locked for this process until the block ends.

    Of several processes the first makes, locks and writes it. The others read what is resumed,
    which all hosts must see, and write to a folder that is deleted.

    Args:
      config: its `output` or `resume` says where; else root/name/<time>.
      name: of the experiment, as in `python -m experiments.<name>`.
      dataset: `dataset_facts(...)`, or of a table likewise: name, sha256, splits.
      num_devices: used by the run; by default the configuration's `devices`.
      root: where runs without `--output` go.

    Raises:
      InputError: the directory cannot be used, is in use, or was written by other versions, on
        other devices or with other data; the field and both values are named.
    """
    missing = [key for key in ("name", "sha256", "splits") if key not in dataset]
    if missing:
        raise ValueError(f"dataset lacks {', '.join(missing)}.")
    processes = {"processes": jax.process_count()} if jax.process_count() > 1 else {}
    facts = {"experiment": name, "config": to_json(config), "seed": config.seed,
             "versions": versions(),
             "device": {**dataclasses.asdict(device_facts(num_devices or config.devices)),
                        "cores": os.cpu_count(), **processes},
             "dataset": dict(dataset)}
    if jax.process_index() != 0:
        step = None if config.resume is None else _position(config.resume)[0]
        with tempfile.TemporaryDirectory() as folder, \
                reporting.MetricsWriter(Path(folder) / "metrics.jsonl") as writer:
            yield RunDirectory(config.resume or Path(folder), name, writer, step)
        return
    check_output(config)
    path = config.resume or _make_directory(config, root / name)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(checkpoints.lock(path / "checkpoints"))
        except checkpoints.CheckpointError as error:
            raise InputError(str(error)) from error
        step, offset, seconds = None, 0, 0.0
        if config.resume is None:
            _write_json(path / "config.json", facts)
        else:
            _refuse_drift(read_config(path), facts, config.force_resume)
            step, offset, seconds = _position(path)
            if config.force_resume:
                _write_json(path / "config.json", facts)
        metrics_path = path / "metrics.jsonl"
        try:
            if metrics_path.exists():
                reporting.truncate(metrics_path, offset)
            elif offset:
                raise ValueError("metrics.jsonl is gone.")
            events = stack.enter_context(Events(path)) if config.tensorboard else None
            writer = reporting.MetricsWriter(metrics_path, start_seconds=seconds,
                                             on_line=None if events is None else events.write)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be continued: {error}") from error
        yield RunDirectory(path, name, stack.enter_context(writer), step)
        if events is not None:
            events.add_drawings()


def check_output(config: CommonConfig) -> None:
    """Find what is wrong with `--output`, `--resume` and `--tensorboard`, changing nothing.

    Raises:
      InputError: one sentence.
    """
    if config.tensorboard:
        try:
            require_tensorboard()
        except ValueError as error:
            raise InputError(str(error)) from error
    try:
        os.stat(config.resume or config.output or ".")
    except (FileNotFoundError, NotADirectoryError):
        pass  # looked at below
    except (OSError, ValueError) as error:  # a name too long, a null byte
        given = "output" if config.resume is None else "resume"
        raise InputError(f"--{given} is no path that can be used: "
                         f"{getattr(error, 'strerror', None) or error}; give another.") from error
    if config.resume is not None:
        if not (config.resume / "config.json").is_file():
            raise InputError(f"--resume {config.resume} is no run directory: it has no "
                             "config.json.")
        _check_free(config.resume)
        return
    output = config.output
    if output is None:
        return
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; give a directory.")
    if not output.exists() and not output.absolute().parent.is_dir():
        raise InputError(f"--output {output}: its parent {output.absolute().parent} does not "
                         "exist.")
    present = [entry for entry in OURS if (output / entry).exists()]
    if present:
        if "checkpoints" in present:
            _check_free(output)
        # killed before it wrote anything but its lock, it can only start again
        last = checkpoints.latest_step(output / "checkpoints")
        if present != ["checkpoints"] or last is not None:
            raise InputError(
                f"--output {output} already holds a run ({present[0]}); continue it with "
                f"--resume {output}, or choose another directory.")
    try:
        folder = output if output.exists() else output.absolute().parent
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # a full disk makes empty files
    except OSError as error:
        raise InputError(f"--output {output} is not writable: {error.strerror}.") from error


def _check_free(path: Path) -> None:
    try:
        with checkpoints.lock(path / "checkpoints"):
            pass
    except checkpoints.CheckpointError as error:
        raise InputError(str(error)) from error


class Interrupt:
    """SIGINT and SIGTERM as a flag that loops look at between steps; the second one ends at once.

        with Interrupt() as interrupt:
            while step < steps and not interrupt.requested:
                ...
    """

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(130)
        self.requested = True
        # os.write: print may be in the middle of a line of its own.
        os.write(2, b"Stopping after this step and saving; once more to stop at once.\n")


def _make_directory(config: CommonConfig, parent: Path) -> Path:
    if config.output is not None:
        path = config.output
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"--output {path} cannot be made: {error.strerror}.") from error
        return path
    stamp = time.strftime("%Y%m%d-%H%M%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 1000):
            path = parent / (stamp if attempt == 1 else f"{stamp}-{attempt}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as error:
        raise InputError(f"{parent} cannot be made: {error.strerror}; use --output.") from error
    raise InputError(f"{parent} is full of runs of this second; use --output.")


def _position(path: Path) -> tuple[int | None, int, float]:
    """Return step, offset of the metrics and seconds of the newest verified checkpoint."""
    if checkpoints.latest_step(path / "checkpoints") is None:
        print(f"{path} has no checkpoint yet: starting from the beginning.", file=sys.stderr)
        return None, 0, 0.0
    try:
        step, found = checkpoints.read_metadata(path / "checkpoints")
        offset, seconds = found["metrics_offset"], found["seconds"]
        if isinstance(offset, int) and isinstance(seconds, (int, float)):
            return step, offset, float(seconds)
    except checkpoints.CheckpointError as error:
        raise InputError(str(error)) from error
    except KeyError as error:
        raise InputError(f"the checkpoint {step} in {path} lacks {error}.") from error
    raise InputError(f"the checkpoint {step} in {path} was not written by an experiment.")


def _refuse_drift(recorded: Mapping[str, Any], facts: Mapping[str, Any], force: bool) -> None:
    fields = [("experiment",), *(("versions", name) for name in _DRIFT),
              *(("device", name) for name in ("platform", "count", "processes")),
              *(("dataset", name) for name in ("name", "sha256", "splits"))]
    for field in fields:
        was, now = _at(recorded, field), _at(facts, field)
        if was != now:
            if force and field != ("experiment",):
                print(f"{'.'.join(field)} was {was}, is {now}: resumed by force.", file=sys.stderr)
                continue
            advice = "" if field == ("experiment",) else "; --force-resume continues all the same"
            raise InputError(f"the run was started with {'.'.join(field)} {was}, now it is {now}"
                             f"{advice}.")


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays so that a reader sees a whole file or none."""
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _write_json(path: Path, value: object) -> None:
    """Write so that a reader sees the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path.parent} is not writable: {error.strerror}.") from error


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor()
