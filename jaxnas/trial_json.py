"""What a trial is called and what came out, as JSON text: canonical, and bit for bit.

`trials` stores these. Two trials are the same if their texts are; a metric comes back as it went.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import struct
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

JSON: TypeAlias = "None | bool | int | float | str | list[JSON] | dict[str, JSON]"
Metrics: TypeAlias = "dict[str, float | list[float]]"


class TrialError(RuntimeError):
    """A store cannot be used, or was asked for something impossible; the message says which."""


def identify(space: str, arch: Iterable[Any], recipe: str) -> tuple[str, str, str]:
    """Return (space, arch as JSON, sha256 of the recipe's canonical JSON); arch is [L] integers."""
    if not isinstance(space, str) or not space or not space.isprintable():
        raise TrialError(f"space must be the name of a search space, got {space!r}.")
    plain: Any = getattr(arch, "tolist", lambda: arch)()
    try:
        values = [operator.index(value) for value in plain]
    except TypeError as error:
        raise TrialError(f"arch must be integers, [L], got {plain!r}: give one architecture in "
                         "its integer encoding.") from error
    return space, json.dumps(values, separators=(",", ":")), sha256(recipe)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(recipe: Mapping[str, Any]) -> str:
    """Return the one text that all equal recipes have, ASCII."""
    def check(value: Any, where: str) -> None:
        if isinstance(value, Mapping):
            for name, item in value.items():
                if not isinstance(name, str):  # json would make "1" of 1
                    raise TrialError(f"{where} has the key {name!r}: use strings.")
                check(item, f"{where}[{name!r}]")
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                check(item, f"{where}[{i}]")
        elif isinstance(value, float) and not math.isfinite(value):
            raise TrialError(f"{where} is {value}: JSON has finite numbers only; use None.")
        elif value is not None and not isinstance(value, (bool, int, float, str)):
            raise TrialError(f"{where} is a {type(value).__name__}: give numbers, text, booleans, "
                             "None, lists and dictionaries; `array.tolist()` makes them.")

    if not isinstance(recipe, Mapping):
        raise TrialError(f"recipe must be a dictionary, got a {type(recipe).__name__}.")
    check(recipe, "recipe")
    return json.dumps(recipe, sort_keys=True, separators=(",", ":"), default=dict)


def metrics_to_json(metrics: Mapping[str, Any]) -> str:
    """Return name -> number or [n] numbers as JSON; what is not finite becomes its bits in hex."""
    # repr of a finite float is exact, and people can read it; JSON has nothing for the others.
    def to_json(name: str, value: Any) -> float | str:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TrialError(f"metrics[{name!r}] must be a number or [n] numbers, got {value!r}.")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if isinstance(value, int) and number != value:
            raise TrialError(f"metrics[{name!r}] is {value}, which no float64 holds: round it.")
        return number if math.isfinite(number) else struct.pack(">d", number).hex()

    encoded: dict[str, float | str | list[float | str]] = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise TrialError(f"metrics has the key {name!r}: use strings.")
        value = getattr(value, "tolist", lambda: value)()
        encoded[name] = ([to_json(name, item) for item in value]
                         if isinstance(value, (list, tuple)) else to_json(name, value))
    return json.dumps(encoded, separators=(",", ":"), allow_nan=False)


def metrics_from_json(text: str) -> Metrics:
    """Return name -> float or list of floats, with the bits that `metrics_to_json` got."""
    return {name: [_to_float(item) for item in value] if isinstance(value, list)
            else _to_float(value) for name, value in json.loads(text).items()}


def printable(text: str | None) -> str | None:
    """Return text that UTF-8 holds: tracebacks name files whose names are no text."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def _to_float(value: float | str) -> float:
    return struct.unpack(">d", bytes.fromhex(value))[0] if isinstance(value, str) else value
