"""Progress: plain lines, bars, silence."""

import io

import pytest

from jaxnas.reporting import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_are_rare(capsys):
    with Progress() as progress, progress.phase("search", total=1000) as bar:
        for _ in range(1000):
            bar.advance(text="loss 0.5")
    captured = capsys.readouterr()
    assert captured.out == ""
    line, = captured.err.splitlines()
    assert line.startswith("search 1000/1000 | ") and "done in" in line
    assert line.endswith("loss 0.5")


def test_plain_lines_carry_rate_and_time_left():
    stream = io.StringIO()
    with Progress(stream=stream, interval=0.0) as progress:
        with progress.phase("retrain", total=10, completed=4) as bar:
            bar.advance(3, text="two\nlines")
        with progress.phase("endless") as bar:
            bar.advance(2)
    first, second, third, fourth = stream.getvalue().splitlines()
    assert first.startswith("retrain 7/10 | ") and "/s" in first and " s left" in first
    assert first.endswith("two lines")
    assert second.startswith("retrain 7/10")
    assert third.startswith("endless 2 | ") and "left" not in third and "done" in fourth


def test_an_exception_passes_and_is_told():
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        with Progress(stream=stream) as progress, progress.phase("search", total=5) as bar:
            bar.advance(2)
            raise KeyboardInterrupt
    assert "search 2/5" in stream.getvalue() and "stopped" in stream.getvalue()


def test_quiet_prints_nothing(capsys):
    for stream in (None, Terminal(), io.StringIO()):
        with Progress(quiet=True, stream=stream, interval=0.0) as progress:
            with progress.phase("search", total=3) as bar:
                bar.advance(3, text="x")
            progress.print("hello")
        assert stream is None or stream.getvalue() == ""
    assert capsys.readouterr() == ("", "")


def test_bars_in_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with Progress(stream=stream) as progress:
        with progress.phase("search", total=4) as bar:
            bar.advance(4, text="[bold]accuracy[/bold] 93")
        with progress.phase("retrain", total=2) as bar:
            bar.advance(1)
        progress.print("saved [x]")
    text = stream.getvalue()
    assert "search" in text and "4/4" in text and "retrain" in text and "saved [x]" in text
    assert "[bold]accuracy" in text  # text is no markup


def test_refusals():
    with pytest.raises(ValueError, match="interval"):
        Progress(interval=-1.0)
    with Progress(quiet=True) as progress, progress.phase("x") as bar:
        with pytest.raises(ValueError, match="steps"):
            bar.advance(-1)
