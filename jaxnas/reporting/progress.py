"""Progress on stderr: bars in a terminal, a plain line now and then elsewhere, or nothing."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import rich.progress

PLAIN_INTERVAL = 10.0  # seconds between two plain lines: readable logs, never megabytes of them


class Phase:
    """One bar: how much is done, how fast, how long still, and the last metrics as text."""

    def __init__(self, name: str, total: int | None, completed: int, progress: "Progress") -> None:
        self.name = name
        self.total = total
        self.completed = completed
        self.text = ""
        self._first = completed  # done before a resumption: does not count towards the rate
        self._progress = progress
        self._start = self._last_line = time.monotonic()
        self._task = None if progress.bars is None else progress.bars.add_task(
            name, total=total, completed=completed, text="", rate="")

    def advance(self, steps: int = 1, text: str | None = None) -> None:
        """Report `steps` more of the total done, and the last metrics as one line of text."""
        if steps < 0:
            raise ValueError(f"steps must be >= 0, got {steps}.")
        self.completed += steps
        if text is not None:
            self.text = " ".join(text.split())
        if self._task is not None and self._progress.bars is not None:
            self._progress.bars.update(self._task, completed=self.completed, text=self.text,
                                       rate=self._rate_text())
        elif (self._progress.plain
              and time.monotonic() - self._last_line >= self._progress.interval):
            self._last_line = time.monotonic()
            self._progress.print(self._line())

    def close(self, failed: bool) -> None:
        """End the phase; `Progress.phase` calls it."""
        if self._progress.plain:
            self._progress.print(self._line(end="stopped" if failed else "done"))
        elif self._task is not None and self._progress.bars is not None:
            self._progress.bars.stop_task(self._task)

    def _rate(self) -> float:
        return (self.completed - self._first) / max(time.monotonic() - self._start, 1e-9)

    def _rate_text(self) -> str:
        rate = self._rate()
        return f"{rate:.1f}/s" if rate >= 1 or not rate else f"{1 / rate:.1f} s each"

    def _line(self, end: str = "") -> str:
        total = "" if self.total is None else f"/{self.total}"
        parts = [f"{self.name} {self.completed}{total}", self._rate_text()]
        if end:
            parts.append(f"{end} in {time.monotonic() - self._start:.1f} s")
        elif self.total is not None and self._rate():
            parts.append(f"{max(self.total - self.completed, 0) / self._rate():.0f} s left")
        return " | ".join(parts + [self.text] * bool(self.text))


class Progress:
    """A stack of phases on stderr; a context manager.

    Attributes:
      plain: whether plain lines are printed, because the stream is no terminal.
      interval: seconds between two plain lines.
      bars: the rich display, or None.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None,
                 interval: float = PLAIN_INTERVAL) -> None:
        """Choose the display.

        Args:
          quiet: print nothing at all.
          stream: where to; sys.stderr by default.
          interval: seconds between two plain lines, >= 0.

        Raises:
          ValueError: interval is negative.
        """
        if not interval >= 0:
            raise ValueError(f"interval must be >= 0 seconds, got {interval}.")
        self.interval = interval
        self._stream = sys.stderr if stream is None else stream
        terminal = self._stream.isatty()
        self.plain = not quiet and not terminal
        self.bars: "rich.progress.Progress | None" = None
        self._wants_bars = not quiet and terminal

    def __enter__(self) -> "Progress":
        if self._wants_bars:
            self.bars = _rich_bars(self._stream)
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.bars is not None:
            self.bars.stop()
            self.bars = None

    @contextmanager
    def phase(self, name: str, total: int | None = None, completed: int = 0) -> Iterator[Phase]:
        """Open one bar.

        Args:
          name: what is being done.
          total: steps in all; None if unknown.
          completed: steps done before a resumption.

        Yields:
          A `Phase`; call its `advance(steps, text=...)`.
        """
        phase = Phase(name, total, completed, self)
        try:
            yield phase
        except BaseException:
            phase.close(failed=True)
            raise
        phase.close(failed=False)

    def print(self, text: str) -> None:
        """Write one line above the bars, or plainly; nothing if quiet."""
        if self.bars is not None:
            self.bars.console.print(text, markup=False, highlight=False)
        elif self.plain:
            self._stream.write(text + "\n")
            self._stream.flush()


def _rich_bars(stream: TextIO) -> "rich.progress.Progress":
    from rich import console, progress

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=None),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}", markup=False),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[text]}", markup=False),
        console=console.Console(file=stream), expand=True)
