"""`metrics.jsonl`: one JSON object a line, appended whole, readable after a crash.

Every line is one `os.write` on a file opened for appending, so a killed process can tear the last
line only, and two processes never mix inside a line.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

KINDS: tuple[str, ...] = ("step", "epoch", "evaluation", "event")
_RESERVED = ("kind", "seconds", "nonfinite")


class MetricsWriter:
    """Append lines to a metrics file; a context manager.

    A torn last line, left by a crash, is cut off when the file is opened.
    """

    def __init__(self, path: str | os.PathLike[str], start_seconds: float = 0.0,
                 fsync: bool = False,
                 on_line: Callable[[Mapping[str, object]], None] | None = None) -> None:
        """Open the file for appending.

        Args:
          path: the file; it and its folder are made if absent.
          start_seconds: seconds already spent by the run that is resumed, finite and >= 0.
          fsync: wait for the disk after every line; survives a power cut, costs milliseconds.
          on_line: called with the object of every line that was written, to copy it elsewhere.

        Raises:
          ValueError: start_seconds is negative or not finite.
          OSError: the file cannot be opened.
        """
        if not (math.isfinite(start_seconds) and start_seconds >= 0):
            raise ValueError(f"start_seconds must be finite and >= 0, got {start_seconds}.")
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._fsync = fsync
        self._on_line = on_line
        self._offset = _cut_torn_line(self._path)
        self._file: int | None = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._start = time.monotonic() - start_seconds

    @property
    def offset(self) -> int:
        """Bytes of whole lines so far: what a checkpoint stores and `truncate` takes."""
        return self._offset

    @property
    def seconds(self) -> float:
        """Seconds since the run began, those before a resumption included."""
        return time.monotonic() - self._start

    def write(self, kind: str, **fields: object) -> None:
        """Append one line `{"kind", "seconds", **fields}`.

        NumPy and JAX scalars and arrays become JSON numbers and lists. A float that is NaN or
        infinite becomes null, and its name is listed under "nonfinite".

        Args:
          kind: one of KINDS.
          **fields: anything with a JSON form; not "seconds" or "nonfinite".

        Raises:
          ValueError: an unknown kind, a reserved name, or a closed writer.
          TypeError: a field has no JSON form; it is named.
          OSError: the line could not be written whole.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
        for name in _RESERVED:
            if name in fields:
                raise ValueError(f"the field {name!r} is written by MetricsWriter itself.")
        if self._file is None:
            raise ValueError(f"{self._path.name} is closed.")
        nonfinite: list[str] = []
        line: dict[str, object] = {"kind": kind, "seconds": round(self.seconds, 6)}
        line.update((name, _plain(value, name, nonfinite)) for name, value in fields.items())
        if nonfinite:
            line["nonfinite"] = nonfinite
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            written = os.write(self._file, data)
        except OSError as error:
            free = shutil.disk_usage(self._path.parent).free
            raise OSError(error.errno, f"{error.strerror}, {free} bytes free",
                          str(self._path)) from error
        if written < len(data):
            raise OSError(f"{self._path}: only {written} of {len(data)} bytes were written; is the "
                          "disk full?")
        self._offset += written
        if self._fsync:
            os.fsync(self._file)
        if self._on_line is not None:
            self._on_line(line)

    def close(self) -> None:
        """Flush to the disk and close; a second call does nothing."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                os.fsync(file)
            finally:
                os.close(file)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def truncate(path: str | os.PathLike[str], offset: int) -> None:
    """Forget the lines after a checkpoint: cut the file to `offset` bytes.

    Args:
      path: a metrics file that nobody has open.
      offset: a `MetricsWriter.offset`; 0 to the size of the file, at the end of a line.

    Raises:
      ValueError: the offset is beyond the end or inside a line.
      OSError: the file cannot be changed.
    """
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if not 0 <= offset <= size:
            raise ValueError(f"{Path(path).name}: offset must be in [0, {size}], got {offset}.")
        if offset:
            file.seek(offset - 1)
            if file.read(1) != b"\n":
                raise ValueError(f"{Path(path).name}: offset {offset} is inside a line.")
        file.truncate(offset)
        file.flush()
        os.fsync(file.fileno())


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, object]]:
    """Return all lines; a torn last one (no newline at its end) is left out.

    Raises:
      OSError: the file cannot be read.
      ValueError: another line is not a JSON object; its number is named.
    """
    *whole, last = Path(path).read_bytes().split(b"\n")
    lines = [_parse(line, f"line {number} of {Path(path).name}")
             for number, line in enumerate(whole, start=1)]
    try:
        return lines + [_parse(last, "the last line")] if last else lines
    except ValueError:  # torn by a crash in mid-write: by contract it never happened
        return lines


def _parse(line: bytes, where: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a JSON object, got {type(value).__name__}.")
    return value


def _plain(value: object, name: str, nonfinite: list[str]) -> object:
    """Return the JSON value of a field; names of NaN and infinite floats go to `nonfinite`."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        nonfinite.append(name)
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}", nonfinite) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{name}[{i}]", nonfinite) for i, item in enumerate(value)]
    if hasattr(value, "tolist"):  # NumPy and JAX scalars and arrays
        return _plain(value.tolist(), name, nonfinite)
    raise TypeError(f"the field {name!r} is a {type(value).__name__}, which has no JSON form.")


def _cut_torn_line(path: Path) -> int:
    """Cut a file after its last newline and return the size left; 0 for a missing file."""
    if not path.exists():
        return 0
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        position, tail = end, b""
        while position and b"\n" not in tail:  # backwards, a block at a time
            step = min(position, 65536)
            position -= step
            file.seek(position)
            tail = file.read(step)
        kept = position + tail.rfind(b"\n") + 1
        if kept < end:
            file.truncate(kept)
    return kept
