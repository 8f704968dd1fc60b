"""Discrete architectures as named tuples, their strict JSON form, and the published cells.

A genotype is what a search finds and what a retraining reads. For spaces of cells it is a
`Genotype` (Liu et al., 2019, section 2.4, https://arxiv.org/abs/1806.09055), for all others the
decisions themselves, an `Encoded`. Files come from strangers, so parsing accepts the two formats
below and answers everything else with a `GenotypeError` of one sentence; nothing is evaluated.

    {"format": "jaxnas.genotype", "version": 1, "space": "darts",
     "normal": {"nodes": [[["sep_conv_3x3", 0], ["skip_connect", 1]], ...], "concat": [2, 3, 4, 5]},
     "reduction": {"nodes": [...], "concat": [...]}}

    {"format": "jaxnas.genotype", "version": 1, "space": "nats_size", "arch": [0, 7, 3, 1, 2],
     "architecture": "8:64:32:16:24"}

Cells may hold what `CELL_OPERATIONS` says. A space with operations of its own, or a name of its
own, has `rules` that say more; what reads, writes or checks a genotype takes them as an argument.
"""

import json
import operator
import os
import re
import stat
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxnas import published
from jaxnas.genotype_json import (MAX_BYTES, GenotypeError, parse, read_integer, read_list,
                                  read_object, read_text, show)

__all__ = [
    "CELLS", "CELL_OPERATIONS", "CellGenotype", "CellRules", "Edge", "Encoded", "FORMAT",
    "Genotype", "GenotypeError", "OPERATION_NAMES", "PUBLISHED", "VERSION", "cell_rules",
    "from_json", "from_json_dict", "load", "load_cells", "to_json", "to_json_dict", "validate"]

FORMAT = "jaxnas.genotype"
VERSION = 1
CELLS = ("normal", "reduction")  # the fields of a Genotype that are cells
MAX_NODES = 16
MAX_DECISIONS = 4096      # of an encoded architecture
MAX_CHOICES = 1 << 16     # of a decision
MAX_TEXT = 32 * 1024      # characters of an encoded architecture's text

OPERATION_NAMES: tuple[str, ...] = (
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5",
    "sep_conv_7x7", "dil_conv_3x3", "dil_conv_5x5", "conv_7x1_1x7", "conv_1x1", "conv_3x3",
    "conv_1x3_3x1", "conv_1x7_7x1", "max_pool_2x2", "max_pool_5x5", "max_pool_7x7",
    "dil_sep_conv_3x3", "dil_sep_conv_5x5")
# What a cell of each space may hold; a searched space may offer fewer. "none" is in no cell: an
# edge that carries nothing is an edge that is not there.
CELL_OPERATIONS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "darts": ("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5",
              "sep_conv_7x7", "dil_conv_3x3", "dil_conv_5x5", "conv_7x1_1x7"),
    "nasnet": ("skip_connect", "conv_1x3_3x1", "conv_1x7_7x1", "dil_conv_3x3", "avg_pool_3x3",
               "max_pool_3x3", "max_pool_5x5", "max_pool_7x7", "conv_1x1", "conv_3x3",
               "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7"),
    "amoebanet": ("skip_connect", "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7", "avg_pool_3x3",
                  "max_pool_3x3", "dil_sep_conv_3x3", "conv_1x7_7x1", "conv_1x1", "conv_3x3",
                  "max_pool_2x2", "dil_sep_conv_5x5"),
    "pnas": ("sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7", "conv_1x7_7x1", "skip_connect",
             "avg_pool_3x3", "max_pool_3x3", "dil_conv_3x3", "conv_3x3"),
    "enas_micro": ("sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3",
                   "skip_connect")})
_INPUTS_IN_CONCAT = ("nasnet", "amoebanet", "enas_micro")  # may concatenate the cell's inputs
_SPACE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", re.ASCII)
_OWN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}", re.ASCII)


class Edge(NamedTuple):
    """One operation applied to one earlier state of the cell."""

    operation: str  # one of CELL_OPERATIONS of the space, or of its own
    source: int     # 0 is the output of cell k-2, 1 of cell k-1, s >= 2 is node s - 2


class CellGenotype(NamedTuple):
    """A cell of N nodes; every node adds the results of two edges."""

    edges: tuple[Edge, ...]  # 2 N; node i has edges[2 i] and edges[2 i + 1], sources in 0..i+1
    concat: tuple[int, ...]  # states in 0..N+1, ascending, concatenated to the cell's output;
    # in "darts" and "pnas" nodes only, from 2 on

    @property
    def num_nodes(self) -> int:
        """N, the number of intermediate nodes."""
        return len(self.edges) // 2


class Genotype(NamedTuple):
    """The two cells of a network: stride 1 and stride 2."""

    normal: CellGenotype
    reduction: CellGenotype
    space: str = "darts"  # decides how a network is built of the cells


class CellRules(NamedTuple):
    """What the cells of one space may hold; see `cell_rules`."""

    space: str                   # its name
    operations: tuple[str, ...]  # names of operations
    concat_inputs: bool = False  # whether a cell may concatenate its inputs


class Encoded(NamedTuple):
    """An architecture that is not made of two cells: its decisions, and what they say."""

    space: str              # the space's name; none of CELL_OPERATIONS
    arch: tuple[int, ...]   # [L], each in 0..65535
    architecture: str       # the text of `space.decode(arch)`


def cell_rules(
    space: str, own: tuple[str, ...] = (), *, concat_inputs: bool | None = None
) -> CellRules:
    """Return the rules of a space with operations of its own, or of a space of one's own.

    Args:
      space: a key of `CELL_OPERATIONS`, whose operations stay; or another name, whose cells may
        hold every operation of the library.
      own: names of operations that are not the library's.
      concat_inputs: whether a cell may concatenate its inputs; None is True but for the spaces of
        the library that have it otherwise.

    Raises:
      GenotypeError: a name that cannot stand in a file, an own one that is the library's or comes
        twice, or `concat_inputs` that is not so in a space of the library.
    """
    if type(space) is not str or not _SPACE_NAME.fullmatch(space):
        raise GenotypeError("the name of a space must be 1 to 64 letters, digits, '_', '.' and "
                            f"'-', a letter first, got {show(space)}.")
    for i, name in enumerate(own):
        if type(name) is not str or not _OWN_NAME.fullmatch(name):
            raise GenotypeError("the name of an own operation must be 1 to 64 letters, digits and "
                                f"'_', a letter first, got {show(name)}.")
        if name in OPERATION_NAMES or name in own[:i]:
            raise GenotypeError(f"an own operation needs a name of its own, but {name!r} is "
                                "taken; choose another.")
    fixed = space in _INPUTS_IN_CONCAT if space in CELL_OPERATIONS else None
    if fixed is None:
        fixed = True if concat_inputs is None else concat_inputs
    elif concat_inputs not in (None, fixed):
        raise GenotypeError(f"concat_inputs must be {fixed} in the space {space!r}, got "
                            f"{concat_inputs}; give the space a name of its own.")
    return CellRules(space, (*CELL_OPERATIONS.get(space, OPERATION_NAMES[1:]), *own), fixed)


def validate(genotype: Genotype, rules: CellRules | None = None) -> Genotype:
    """Check a genotype built in Python and return it in canonical types.

    Args:
      genotype: operations as strings, sources as anything with `__index__` (NumPy integers too).
      rules: of the space it must be of; None is any space of the library.

    Returns:
      The same genotype made of tuples, `Edge`s and Python integers.

    Raises:
      GenotypeError: a rule of the format is violated; the JSON path is named.
    """
    if not isinstance(genotype, tuple) or isinstance(genotype, Encoded) or len(genotype) != 3:
        raise GenotypeError(
            "genotype: expected Genotype(normal, reduction, space), got " + show(genotype) + ".")
    cells = {name: _loose_cell(cell, name) for name, cell in zip(CELLS, genotype)}
    return _genotype({"format": FORMAT, "version": VERSION, "space": genotype[2], **cells},
                     "genotype", rules)


def to_json_dict(
    genotype: Genotype | Encoded, rules: CellRules | None = None
) -> dict[str, object]:
    """Return the JSON object of a genotype; `rules` as in `validate`.

    Raises:
      GenotypeError: it is not valid.
    """
    if isinstance(genotype, Encoded):
        arch = ([_index(value) for value in genotype.arch]
                if isinstance(genotype.arch, (list, tuple)) else genotype.arch)
        fields = {"format": FORMAT, "version": VERSION, "space": genotype.space, "arch": arch,
                  "architecture": genotype.architecture}
        from_json_dict(fields)
        return fields
    genotype = validate(genotype, rules)
    cells: dict[str, object] = {}
    for name, cell in zip(CELLS, (genotype.normal, genotype.reduction)):
        pairs = [list(edge) for edge in cell.edges]
        cells[name] = {"nodes": [pairs[i:i + 2] for i in range(0, len(pairs), 2)],
                       "concat": list(cell.concat)}
    return {"format": FORMAT, "version": VERSION, "space": genotype.space, **cells}


def to_json(genotype: Genotype | Encoded, rules: CellRules | None = None) -> str:
    """Return the JSON text of a genotype, one line; see `to_json_dict`."""
    return json.dumps(to_json_dict(genotype, rules))


def from_json_dict(
    value: object, where: str = "genotype", rules: CellRules | None = None
) -> Genotype | Encoded:
    """Parse a decoded JSON value, strictly; with the key "arch" it is an `Encoded`.

    Args:
      value: what `json.loads` returned.
      where: name of the source (a file), the first words of an error.
      rules: of the space its cells must be of, `space.rules`; None is any space of the library.

    Returns:
      A valid genotype; `from_json_dict(to_json_dict(g)) == g`.

    Raises:
      GenotypeError: naming the JSON path, what was wrong, and what is allowed.
    """
    if isinstance(value, dict) and "arch" in value:
        return _encoded(value, where, rules)
    return _genotype(value, where, rules)


def from_json(
    text: str | bytes, where: str = "genotype", rules: CellRules | None = None
) -> Genotype | Encoded:
    """Parse JSON text of at most 64 KiB, strictly; see `from_json_dict`.

    Raises:
      GenotypeError: for every input that is not a valid genotype, in well under 100 ms.
    """
    return from_json_dict(parse(text, where), where, rules)


def load_cells(path_or_name: str | os.PathLike[str], rules: CellRules | None = None) -> Genotype:
    """Return what `load` does if it is a pair of cells.

    Raises:
      GenotypeError: as `load`, and for an architecture that is encoded otherwise.
    """
    found = load(path_or_name, rules)
    if not isinstance(found, Genotype):
        raise GenotypeError(f"genotype {show(os.fspath(path_or_name))}: expected two cells, but "
                            f"this is an architecture of space {found.space!r}.")
    return found


def load(
    path_or_name: str | os.PathLike[str], rules: CellRules | None = None
) -> Genotype | Encoded:
    """Return a published genotype by name, or the one in a JSON file.

    Args:
      path_or_name: a key of `PUBLISHED` (any case, `-` for `_`), else the path of a JSON file.
      rules: of the space its cells must be of, `space.rules`; None is any space of the library.

    Raises:
      GenotypeError: no such name or file, not a regular file, too big, or not a genotype.
    """
    if not isinstance(path_or_name, (str, os.PathLike)):
        raise GenotypeError(f"genotype: expected a name or a path, got {show(path_or_name)}.")
    path = os.fspath(path_or_name)
    if not isinstance(path, str):
        raise GenotypeError(f"genotype: expected a name or a path as text, got {show(path)}.")
    name = path.upper().replace("-", "_")
    if name in PUBLISHED:
        return PUBLISHED[name] if rules is None else validate(PUBLISHED[name], rules)
    where = show(path)
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
    return from_json(text, f"genotype {where}", rules)


def _fields(value: object, where: str, names: tuple[str, ...]) -> dict[str, object]:
    fields = read_object(value, "the top level", where, ("format", "version", "space", *names))
    for name, wanted in (("format", FORMAT), ("version", VERSION)):
        if type(fields[name]) is not type(wanted) or fields[name] != wanted:
            raise GenotypeError(f"{where}: {name} must be {wanted!r}, got {show(fields[name])}.")
    return fields


def _genotype(value: object, where: str, rules: CellRules | None) -> Genotype:
    fields = _fields(value, where, CELLS)
    space, known, hint = fields["space"], tuple(CELL_OPERATIONS), ""
    if rules is None:
        hint = "; if it is your own, pass rules=space.rules, or own= to a network"
    else:
        known = (rules.space,)
    if type(space) is not str or space not in known:
        raise GenotypeError(f"{where}: the space of two cells must be one of "
                            f"{', '.join(known)}, got {show(space)}{hint}.")
    if rules is None:
        rules = cell_rules(space)
    return Genotype(_cell(fields["normal"], "normal", where, rules, hint),
                    _cell(fields["reduction"], "reduction", where, rules, hint), space)


def _encoded(value: object, where: str, rules: CellRules | None) -> Encoded:
    fields = _fields(value, where, ("arch", "architecture"))
    space = fields["space"]
    if type(space) is not str or not _SPACE_NAME.fullmatch(space):
        raise GenotypeError(f"{where}: space must be 1 to 64 letters, digits, '_', '.' and '-', a "
                            f"letter first, got {show(space)}.")
    if rules is not None or space in CELL_OPERATIONS:
        raise GenotypeError(f"{where}: an architecture of space "
                            f"{(rules.space if rules else space)!r} is written as its two "
                            "cells, not with the key 'arch'.")
    arch = read_list(fields["arch"], "arch", where, "decisions", 1, MAX_DECISIONS)
    decisions = tuple(
        read_integer(decision, f"arch[{i}]", where, 0, MAX_CHOICES - 1, "a decision's choice")
        for i, decision in enumerate(arch))
    text = read_text(fields["architecture"], "architecture", where, MAX_TEXT)
    return Encoded(space, decisions, text)


def _cell(value: object, path: str, where: str, rules: CellRules, hint: str) -> CellGenotype:
    fields = read_object(value, path, where, ("nodes", "concat"))
    nodes = read_list(fields["nodes"], f"{path}.nodes", where, "nodes", 1, MAX_NODES)
    edges: list[Edge] = []
    for i, node in enumerate(nodes):
        for j, edge in enumerate(read_list(node, f"{path}.nodes[{i}]", where, "edges", 2, 2)):
            here = f"{path}.nodes[{i}][{j}]"
            operation, source = read_list(edge, here, where, "values: operation, source", 2, 2)
            if type(operation) is not str or operation not in rules.operations:
                raise GenotypeError(
                    f"{where}: the operation {here}[0] must be one of "
                    f"{', '.join(rules.operations)}, got {show(operation)}{hint}.")
            edges.append(Edge(operation, read_integer(
                source, f"the source {here}[1]", where, 0, i + 1,
                "the two inputs are 0 and 1, node n is n + 2, and only earlier nodes can be read")))
    first, last = 0 if rules.concat_inputs else 2, len(nodes) + 1
    here = f"{path}.concat"
    states = read_list(fields["concat"], here, where, "states", 1, last + 1 - first)
    concat = tuple(read_integer(state, f"{here}[{i}]", where, first, last, "node n is n + 2")
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
                            f"got {show(cell)}.")
    edges, concat = cell
    for name, value in (("edges", edges), ("concat", concat)):
        if not isinstance(value, (list, tuple)):
            raise GenotypeError(f"genotype: {path}.{name} must be a tuple, got {show(value)}.")
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
                             CellGenotype(edges(text.reduction), text.reduction_concat),
                             text.space))


PUBLISHED: Mapping[str, Genotype] = MappingProxyType(
    {name: _read_compact(text) for name, text in published.PUBLISHED_TEXT.items()})
