"""The lines of a `metrics.jsonl` as curves: which curve a number belongs to, and where on it.

What is compared, such as the search and the random search, are curves of one name in different
series, so that a dashboard draws them into one chart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

Line = Mapping[str, object]
SERIES = ("group", "strategy")  # of a line, whichever it has
# What a line of a kind is counted by: the first that it has; else it is the n-th of its curve.
PLACES = {"step": ("step", "evaluations", "children"), "epoch": ("epoch",),
          "evaluation": ("number", "run"), "event": ("step", "epoch")}
# These say which curve and place, or which architecture: no numbers that one would look at.
NAMES = ("kind", "seconds", "nonfinite", "phase", "stage", "run", "seed", "arch", "canonical",
         *SERIES)


class Point(NamedTuple):
    """One number."""

    series: str   # "", or what is compared: "found", "random-seed0", "found-run2"
    curve: str    # "search_evaluation/valid_accuracy"
    place: int    # step, epoch or number of the evaluation, 0 or more
    value: float  # finite


class Curves:
    """Turns lines into points; it must see all lines of a file, in order."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[str, str]] = Counter()

    def points(self, line: Line) -> Iterator[Point]:
        """Yield the finite numbers of one line; lists and objects have one curve an entry.

        Args:
          line: with "kind", one of `jaxnas.reporting.KINDS`, as `MetricsWriter` has written it.
        """
        kind = str(line["kind"])
        place_name = next((name for name in PLACES[kind] if _is_integer(line.get(name))), None)
        series = "-".join([*(str(line[name]) for name in SERIES if name in line),
                           *(f"{name}{line[name]}" for name in ("run", "seed")
                             if name in line and name != place_name)])
        title = "_".join(str(line[name]) for name in ("phase", "stage", "event", "kind")
                         if name in line)
        place = int(str(line[place_name])) if place_name else self._seen[series, title]
        self._seen[series, title] += 1
        for name, value in line.items():
            if name not in (*NAMES, "event", place_name):
                yield from (Point(series, f"{title}/{path}", place, number)
                            for path, number in _numbers(name, value))


def _numbers(path: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, (bool, int, float)):
        if math.isfinite(value):
            yield path, float(value)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(f"{path}.{name}", item)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _numbers(f"{path}.{number}", item)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
