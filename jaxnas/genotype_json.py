"""JSON from strangers: limits, types and ranges, and one sentence for whatever is not allowed.

`genotypes` reads its files with these. Nothing is evaluated, no value is printed whole, and every
refusal is a `GenotypeError` that begins with `where`, the name of the source.
"""

import json

MAX_BYTES = 64 * 1024  # the largest published genotype is 2 KiB
MAX_DEPTH = 8          # the format nests 5 deep


class GenotypeError(ValueError):
    """A genotype, or a file that should hold one, is not acceptable; the message says why."""


class LongInteger(str):
    """The digits of an integer that no field can hold; converting them would take long or fail."""


def parse(text: str | bytes, where: str) -> object:
    """Return the value of a JSON text of at most 64 KiB, without duplicate keys, 8 deep at most.

    Integers of more than 18 digits become `LongInteger`, which no check below accepts.

    Raises:
      GenotypeError: for every other input, in well under 100 ms.
    """
    if not isinstance(text, (str, bytes)):
        raise GenotypeError(f"{where}: expected JSON text, got {show(text)}.")
    if len(text) > MAX_BYTES:
        raise GenotypeError(f"{where}: a genotype takes at most {MAX_BYTES} bytes, got {len(text)}"
                            + (" or more." if isinstance(text, bytes) else " characters."))
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise GenotypeError(
                f"{where}: expected UTF-8 text, got byte {text[error.start]:#04x} at "
                f"position {error.start}.") from None
    _check_depth(text, where)
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _no_duplicates(pairs, where),
                          parse_int=lambda digits: int(digits) if len(digits) <= 18
                          else LongInteger(digits))
    except json.JSONDecodeError as error:
        raise GenotypeError(f"{where}: not JSON: {error.msg} at line {error.lineno}, "
                            f"column {error.colno}.") from None


def show(value: object) -> str:
    """Describe any value in a few words, without calling a `__repr__` that could be long."""
    if isinstance(value, LongInteger):
        return f"an integer of {len(value)} digits"
    if isinstance(value, (str, bytes)):
        return repr(value) if len(value) <= 60 else repr(value[:57]) + "..."
    if isinstance(value, int) and value.bit_length() > 63:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)} keys"
    return f"a value of type {type(value).__name__}"


def read_object(value: object, path: str, where: str, names: tuple[str, ...]) -> dict[str, object]:
    """Return an object that has exactly the keys `names`; else raise a `GenotypeError`."""
    if not isinstance(value, dict):
        raise GenotypeError(f"{where}: {path} must be an object with the keys {', '.join(names)}, "
                            f"got {show(value)}.")
    for name in names:
        if name not in value:
            raise GenotypeError(f"{where}: {path} lacks the key '{name}'.")
    for name in value:
        if name not in names:
            raise GenotypeError(f"{where}: {path} has the unknown key {show(name)}; allowed are "
                                f"{', '.join(names)}.")
    return value


def read_list(value: object, path: str, where: str, meaning: str, low: int,
              high: int) -> list[object]:
    """Return a list of `low` to `high` items; else raise a `GenotypeError`."""
    if not isinstance(value, list) or not low <= len(value) <= high:
        size = f"{low}" if low == high else f"{low} to {high}"
        raise GenotypeError(f"{where}: {path} must be a list of {size} {meaning}, "
                            f"got {show(value)}.")
    return value


def read_integer(value: object, path: str, where: str, low: int, high: int, meaning: str) -> int:
    """Return an integer from `low` to `high`; else raise a `GenotypeError`."""
    if type(value) is not int or not low <= value <= high:  # True and 1.0 are no integers here
        raise GenotypeError(f"{where}: {path} must be an integer in [{low}, {high}] ({meaning}), "
                            f"got {show(value)}.")
    return value


def read_text(value: object, path: str, where: str, high: int) -> str:
    """Return printable text, line ends allowed, of 1 to `high` characters; else raise."""
    if type(value) is not str or not 1 <= len(value) <= high or not value.replace(
            "\n", "").isprintable():
        raise GenotypeError(f"{where}: {path} must be 1 to {high} printable characters, "
                            f"got {show(value)}.")
    return value


def _check_depth(text: str, where: str) -> None:
    """Refuse deep nesting before the recursive parser of `json` sees it."""
    depth, in_string, escaped = 0, False, False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise GenotypeError(f"{where}: brackets may nest at most {MAX_DEPTH} deep.")
        elif character in "]}":
            depth -= 1


def _no_duplicates(pairs: list[tuple[str, object]], where: str) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise GenotypeError(f"{where}: key {show(name)} appears twice in one object.")
            seen.add(name)
    return result
