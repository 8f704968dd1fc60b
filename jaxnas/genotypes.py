"""Discrete cells as named tuples, their strict JSON form, and the published ones.

A genotype is what a cell search finds and what a retraining reads (Liu et al., 2019, section 2.4,
https://arxiv.org/abs/1806.09055). Files come from strangers, so parsing accepts the one format
below and answers everything else with a `GenotypeError` of one sentence; nothing is evaluated.

    {"format": "jaxnas.genotype", "version": 1, "space": "darts",
     "normal": {"nodes": [[["sep_conv_3x3", 0], ["skip_connect", 1]], ...], "concat": [2, 3, 4, 5]},
     "reduction": {"nodes": [...], "concat": [...]}}
"""

import json
import operator
import os
import stat
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxnas import published

FORMAT = "jaxnas.genotype"
VERSION = 1
SPACE = "darts"
MAX_BYTES = 64 * 1024  # the largest published genotype is 1 KiB
MAX_DEPTH = 8          # the format nests 5 deep
MAX_NODES = 16

OPERATION_NAMES: tuple[str, ...] = (
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5",
    "sep_conv_7x7", "dil_conv_3x3", "dil_conv_5x5", "conv_7x1_1x7")
# "none" exists in supernets only: an edge that carries nothing is an edge that is not there.
_EDGE_OPERATIONS = OPERATION_NAMES[1:]


class GenotypeError(ValueError):
    """A genotype, or a file that should hold one, is not acceptable; the message says why."""


class Edge(NamedTuple):
    """One operation applied to one earlier state of the cell."""

    operation: str  # one of OPERATION_NAMES except "none"
    source: int     # 0 is the output of cell k-2, 1 of cell k-1, s >= 2 is node s - 2


class CellGenotype(NamedTuple):
    """A cell of N nodes; every node adds the results of two edges."""

    edges: tuple[Edge, ...]  # 2 N; node i has edges[2 i] and edges[2 i + 1], sources in 0..i+1
    concat: tuple[int, ...]  # states in 2..N+1, ascending, concatenated to the cell's output

    @property
    def num_nodes(self) -> int:
        """N, the number of intermediate nodes."""
        return len(self.edges) // 2


class Genotype(NamedTuple):
    """The two cells of a network: stride 1 and stride 2."""

    normal: CellGenotype
    reduction: CellGenotype


def validate(genotype: Genotype) -> Genotype:
    """Check a genotype built in Python and return it in canonical types.

    Args:
      genotype: operations as strings, sources as anything with `__index__` (NumPy integers too).

    Returns:
      The same genotype made of tuples, `Edge`s and Python integers.

    Raises:
      GenotypeError: a rule of the format is violated; the JSON path is named.
    """
    if not isinstance(genotype, tuple) or len(genotype) != 2:
        raise GenotypeError(
            "genotype: expected Genotype(normal, reduction), got " + _show(genotype) + ".")
    cells = {name: _loose_cell(cell, name) for name, cell in zip(Genotype._fields, genotype)}
    return from_json_dict({"format": FORMAT, "version": VERSION, "space": SPACE, **cells})


def to_json_dict(genotype: Genotype) -> dict[str, object]:
    """Return the JSON object of a genotype; raises `GenotypeError` if it is not valid."""
    genotype = validate(genotype)
    cells: dict[str, object] = {}
    for name, cell in zip(Genotype._fields, genotype):
        pairs = [list(edge) for edge in cell.edges]
        cells[name] = {"nodes": [pairs[i:i + 2] for i in range(0, len(pairs), 2)],
                       "concat": list(cell.concat)}
    return {"format": FORMAT, "version": VERSION, "space": SPACE, **cells}


def to_json(genotype: Genotype) -> str:
    """Return the JSON text of a genotype, one line; raises `GenotypeError` if it is not valid."""
    return json.dumps(to_json_dict(genotype))


def from_json_dict(value: object, where: str = "genotype") -> Genotype:
    """Parse a decoded JSON value, strictly.

    Args:
      value: what `json.loads` returned.
      where: name of the source (a file), the first words of an error.

    Returns:
      A valid genotype; `from_json_dict(to_json_dict(g)) == g`.

    Raises:
      GenotypeError: naming the JSON path, what was wrong, and what is allowed.
    """
    fields = _object(value, "the top level", where,
                     ("format", "version", "space", "normal", "reduction"))
    for name, wanted in (("format", FORMAT), ("version", VERSION), ("space", SPACE)):
        if type(fields[name]) is not type(wanted) or fields[name] != wanted:
            raise GenotypeError(f"{where}: {name} must be {wanted!r}, got {_show(fields[name])}.")
    return Genotype(_cell(fields["normal"], "normal", where),
                    _cell(fields["reduction"], "reduction", where))


def from_json(text: str | bytes, where: str = "genotype") -> Genotype:
    """Parse JSON text of at most 64 KiB, strictly; see `from_json_dict`.

    Raises:
      GenotypeError: for every input that is not a valid genotype, in well under 100 ms.
    """
    if not isinstance(text, (str, bytes)):
        raise GenotypeError(f"{where}: expected JSON text, got {_show(text)}.")
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
        value = json.loads(text, object_pairs_hook=lambda pairs: _no_duplicates(pairs, where),
                           parse_int=lambda digits: int(digits) if len(digits) <= 18
                           else _LongInteger(digits))
    except json.JSONDecodeError as error:
        raise GenotypeError(f"{where}: not JSON: {error.msg} at line {error.lineno}, "
                            f"column {error.colno}.") from None
    return from_json_dict(value, where)


def load(path_or_name: str | os.PathLike[str]) -> Genotype:
    """Return a published genotype by name, or the one in a JSON file.

    Args:
      path_or_name: a key of `PUBLISHED` (any case, `-` for `_`), else the path of a JSON file.

    Raises:
      GenotypeError: no such name or file, not a regular file, too big, or not a genotype.
    """
    if not isinstance(path_or_name, (str, os.PathLike)):
        raise GenotypeError(f"genotype: expected a name or a path, got {_show(path_or_name)}.")
    path = os.fspath(path_or_name)
    if not isinstance(path, str):
        raise GenotypeError(f"genotype: expected a name or a path as text, got {_show(path)}.")
    name = path.upper().replace("-", "_")
    if name in PUBLISHED:
        return PUBLISHED[name]
    where = _show(path)
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise GenotypeError(
            f"genotype {where}: no published genotype and no file has this name; give the path of "
            f"a .json file or one of {', '.join(PUBLISHED)}.") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte or a lone surrogate
        raise GenotypeError(f"genotype {where}: the file cannot be opened: {error}; give the path "
                            f"of a .json file or one of {', '.join(PUBLISHED)}.") from None
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise GenotypeError(f"genotype {where}: expected a .json file, but this is {kind}.")
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise GenotypeError(
            f"genotype {where}: the file cannot be read: {error.strerror}.") from None
    return from_json(text, where=f"genotype {where}")


class _LongInteger(str):
    """The digits of an integer that no field can hold; converting them would take long or fail."""


def _show(value: object) -> str:
    """Describe any value in a few words, without calling a `__repr__` that could be long."""
    if isinstance(value, _LongInteger):
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
                raise GenotypeError(f"{where}: key {_show(name)} appears twice in one object.")
            seen.add(name)
    return result


def _object(value: object, path: str, where: str, names: tuple[str, ...]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise GenotypeError(f"{where}: {path} must be an object with the keys {', '.join(names)}, "
                            f"got {_show(value)}.")
    for name in names:
        if name not in value:
            raise GenotypeError(f"{where}: {path} lacks the key '{name}'.")
    for name in value:
        if name not in names:
            raise GenotypeError(f"{where}: {path} has the unknown key {_show(name)}; allowed are "
                                f"{', '.join(names)}.")
    return value


def _list(value: object, path: str, where: str, meaning: str, low: int, high: int) -> list[object]:
    if not isinstance(value, list) or not low <= len(value) <= high:
        size = f"{low}" if low == high else f"{low} to {high}"
        raise GenotypeError(f"{where}: {path} must be a list of {size} {meaning}, "
                            f"got {_show(value)}.")
    return value


def _integer(value: object, path: str, where: str, low: int, high: int, meaning: str) -> int:
    if type(value) is not int or not low <= value <= high:  # True and 1.0 are no integers here
        raise GenotypeError(f"{where}: {path} must be an integer in [{low}, {high}] ({meaning}), "
                            f"got {_show(value)}.")
    return value


def _cell(value: object, path: str, where: str) -> CellGenotype:
    fields = _object(value, path, where, ("nodes", "concat"))
    nodes = _list(fields["nodes"], f"{path}.nodes", where, "nodes", 1, MAX_NODES)
    edges: list[Edge] = []
    for i, node in enumerate(nodes):
        for j, edge in enumerate(_list(node, f"{path}.nodes[{i}]", where, "edges", 2, 2)):
            here = f"{path}.nodes[{i}][{j}]"
            operation, source = _list(edge, here, where, "values: operation, source", 2, 2)
            if type(operation) is not str or operation not in _EDGE_OPERATIONS:
                raise GenotypeError(f"{where}: the operation {here}[0] must be one of "
                                    f"{', '.join(_EDGE_OPERATIONS)}, got {_show(operation)}.")
            edges.append(Edge(operation, _integer(
                source, f"the source {here}[1]", where, 0, i + 1,
                "the two inputs are 0 and 1, node n is n + 2, and only earlier nodes can be read")))
    here, last = f"{path}.concat", len(nodes) + 1
    states = _list(fields["concat"], here, where, "states", 1, len(nodes))
    concat = tuple(_integer(state, f"{here}[{i}]", where, 2, last, "node n is n + 2")
                   for i, state in enumerate(states))
    for i, (left, right) in enumerate(zip(concat, concat[1:])):
        if left >= right:
            raise GenotypeError(f"{where}: {here} must ascend without repeats, got {left} before "
                                f"{right} at {here}[{i + 1}].")
    return CellGenotype(tuple(edges), concat)


def _loose_cell(cell: object, path: str) -> dict[str, object]:
    """Bring a cell built in Python, perhaps of NumPy integers, to its JSON shape unchecked."""
    if not isinstance(cell, tuple) or len(cell) != 2:
        raise GenotypeError(f"genotype: {path} must be CellGenotype(edges, concat), "
                            f"got {_show(cell)}.")
    edges, concat = cell
    for name, value in (("edges", edges), ("concat", concat)):
        if not isinstance(value, (list, tuple)):
            raise GenotypeError(f"genotype: {path}.{name} must be a tuple, got {_show(value)}.")
    if len(edges) % 2:
        raise GenotypeError(f"genotype: {path}.edges must hold two edges a node, got {len(edges)}.")
    pairs = [list(map(_index, edge)) if isinstance(edge, (list, tuple)) else edge
             for edge in edges]
    return {"nodes": [pairs[i:i + 2] for i in range(0, len(pairs), 2)],
            "concat": [_index(state) for state in concat]}


def _index(value: object) -> object:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return value
    return operator.index(value)


def _read_compact(text: published.PublishedText) -> Genotype:
    """Read the notation of published.py."""
    def edges(cell: str) -> tuple[Edge, ...]:
        words = [edge.split() for edge in cell.replace("|", ",").split(",")]
        return tuple(Edge(published.SHORT_NAMES[name], int(source)) for name, source in words)
    return validate(Genotype(CellGenotype(edges(text.normal), text.normal_concat),
                             CellGenotype(edges(text.reduction), text.reduction_concat)))


PUBLISHED: Mapping[str, Genotype] = MappingProxyType(
    {name: _read_compact(text) for name, text in published.PUBLISHED_TEXT.items()})
