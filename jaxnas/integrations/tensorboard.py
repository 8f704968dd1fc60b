"""TensorBoard events of a run directory, while it is written or afterwards.

`metrics.jsonl` is the truth, and the events are a copy of it. Whoever opens the events of a run,
which a resumption does too, writes them anew up to where the file is, and so no curve has a point
twice or one that a crash took back. Needs `pip install 'jaxnas[tensorboard]'`.
"""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxnas import reporting
from jaxnas.integrations.curves import Curves, Line

FOLDER = "tensorboard"
_PNG = b"\x89PNG\r\n\x1a\n"
_COLORS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # PNG's colour type -> channels, as an event has them


def require_tensorboard() -> None:
    """Check that events can be written, before anything long begins.

    Raises:
      ValueError: tensorboardX is missing; the message says how to install it.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError("TensorBoard's events need tensorboardX: "
                         "pip install 'jaxnas[tensorboard]'.")


class Events:
    """The events of one run directory, in its folder `tensorboard`; a context manager.

    Every series of `Curves` is a folder of its own there, which TensorBoard shows as a run. All
    that was written is on the file after each call, so that a killed process tears the last event
    only, which TensorBoard leaves out.
    """

    def __init__(self, run_directory: Path) -> None:
        """Write the events of all that `metrics.jsonl` holds, in place of any there are.

        Args:
          run_directory: with a config.json; metrics.jsonl may be missing.

        Raises:
          ValueError: tensorboardX is missing, or metrics.jsonl holds no metrics.
          OSError: a file cannot be read or written.
        """
        require_tensorboard()
        self._directory = run_directory
        config = run_directory / "config.json"
        self._started = config.stat().st_mtime
        self._curves = Curves()
        self._writers: dict[str, Any] = {}
        metrics = run_directory / "metrics.jsonl"
        lines = reporting.read_metrics(metrics) if metrics.exists() else []
        for old in (run_directory / FOLDER).rglob("events.out.tfevents.*"):
            old.unlink()
        self._text("config", f"```\n{config.read_text(encoding='utf-8')}\n```")
        for line in lines:
            self._put(line)
        self._flush()

    def write(self, line: Line) -> None:
        """Add the numbers of one line of metrics.jsonl; see `Curves.points`."""
        self._put(line)
        self._flush()

    def add_drawings(self) -> None:
        """Add the drawings of the run directory, the .png files, as images."""
        from tensorboardX.proto.summary_pb2 import Summary
        for path in sorted(self._directory.glob("*.png")):
            data = path.read_bytes()
            if data[:8] == _PNG and len(data) >= 26:
                width, height = struct.unpack(">II", data[16:24])  # of the chunk that comes first
                image = Summary.Image(height=height, width=width, encoded_image_string=data,
                                      colorspace=_COLORS.get(data[25], 3))
                self._add("", Summary(value=[Summary.Value(tag=path.stem, image=image)]), 0,
                          path.stat().st_mtime)
        self._flush()

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _put(self, line: Line) -> None:
        from tensorboardX import summary
        time = self._started + float(str(line["seconds"]))
        for point in self._curves.points(line):
            self._add(point.series, summary.scalar(point.curve, point.value), point.place, time)

    def _text(self, name: str, text: str) -> None:
        from tensorboardX import summary
        self._add("", summary.text(name, text), 0, self._started)

    def _add(self, series: str, summary: Any, place: int, time: float) -> None:
        from tensorboardX.proto.event_pb2 import Event
        self._writer(series).write_event(Event(wall_time=time, step=place, summary=summary))

    def _writer(self, series: str) -> Any:
        if series not in self._writers:
            # Not SummaryWriter: its queue holds back what a killed process has not flushed.
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            folder = self._directory / FOLDER / series.replace("/", "_")
            folder.mkdir(parents=True, exist_ok=True)
            writer = EventsWriter(str(folder / "events"))
            # A TensorBoard that is looking on forgets what it had.
            writer.write_event(Event(
                wall_time=self._started, step=0, session_log=SessionLog(status=SessionLog.START)))
            self._writers[series] = writer
        return self._writers[series]

    def _flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()
