"""Count what a compiled program exchanges between devices: read off XLA's own text of it.

Loops are counted as often as they run: XLA notes a scan's length beside it.
"""

from __future__ import annotations

import functools
import math
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_REDUCE = re.compile(r"= (.*?) all-reduce(?:-start)?\(")
_SHAPE = re.compile(r"([a-z]+)(\d+)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Collectives(NamedTuple):
    """All-reduces of one call of a program, on one device."""

    count: int
    bytes: int

    def __add__(self, other: object) -> Collectives:  # type: ignore[override]
        if not isinstance(other, Collectives):
            return NotImplemented
        return Collectives(self.count + other.count, self.bytes + other.bytes)

    def times(self, number: int) -> Collectives:
        """Return those of `number` calls."""
        return Collectives(self.count * number, self.bytes * number)


def all_reduces(text: str) -> Collectives:
    """Return the all-reduces of a compiled program.

    Args:
      text: of `compiled.as_text()`. A conditional counts as its largest branch.

    Raises:
      ValueError: a loop that exchanges something has no noted length, or `text` is no program.
    """
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            lines = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        else:
            lines.append(line)
    if not entry:
        raise ValueError("text must be an HLO module with an ENTRY, as compiled.as_text() gives.")

    @functools.cache
    def count(name: str) -> Collectives:
        total = Collectives(0, 0)
        for line in computations.get(name, ()):
            reduce = _REDUCE.search(line)
            if reduce:  # its to_apply is the sum itself
                total += Collectives(1, sum(
                    int(bits) // 8 * math.prod(map(int, filter(None, shape.split(","))))
                    for _, bits, shape in _SHAPE.findall(reduce[1])))
                continue
            branches = _BRANCHES.search(line)
            names = branches[1].replace("%", "").split(", ") if branches else []
            choices = [count(branch) for branch in names]
            if "true_computation" in line:
                choices = [count(branch) for branch in _CALLED.findall(line)]
            if choices:
                total += max(choices)
                continue
            for called in _CALLED.findall(line):
                inner, trips = count(called), _TRIPS.search(line)
                if " while(" in line and inner.count and trips is None:
                    raise ValueError(f"the loop over {called} has no noted length.")
                total += inner.times(int(trips[1]) if trips else 1)
        return total

    return count(entry)
