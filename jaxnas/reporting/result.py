"""The contract of a run directory: `result.json` as dataclasses, strict reading, atomic writing.

Everything an experiment leaves behind is listed in `validate_run_directory`; the one file that
scripts read, `result.json`, is `Result`. Keys are only ever added: optional typed fields, or
anything at all under `extra`.
"""

import dataclasses
import functools
import json
import math
import os
import sys
import tempfile
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np

from jaxnas import genotypes
from jaxnas.reporting import metrics as metrics_file

SCHEMA: Literal[1] = 1
MAX_BYTES = 256 * 1024 * 1024


class Summary(TypedDict):
    """One number a seed, and their mean and sample standard deviation."""

    values: list[float]  # one a seed, at least one, all finite
    mean: float
    std: float           # ddof = 1; 0.0 for one value


@dataclasses.dataclass(frozen=True)
class Published:
    """What the paper, or another source, reports for the same metric."""

    mean: float
    std: float | None  # None where the source gives none
    source: str


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric of the found architectures, beside what it must be compared with."""

    found: Summary
    random: Summary | None = None    # random search at the same budget; absent in a retraining
    optimum: float | None = None     # the best of the space, where a table knows it
    published: Published | None = None


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The architecture that was found; the fields are None before a first one exists."""

    space: str
    genotype: Mapping[str, object] | None = None  # the JSON object of genotype.json
    arch: tuple[int, ...] | None = None           # [L] integer encoding


@dataclasses.dataclass(frozen=True)
class Evaluations:
    """Architectures asked for."""

    total: int
    unique: int
    failed: int


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds; `total` is the whole program, end to end."""

    compile: float
    search: float
    retrain: float
    total: float


@dataclasses.dataclass(frozen=True)
class StepSeconds:
    """Wall-clock seconds of one compiled step, without compilation."""

    median: float
    p10: float
    p90: float


@dataclasses.dataclass(frozen=True)
class Device:
    """Where it ran."""

    platform: str
    kind: str
    count: int


@dataclasses.dataclass(frozen=True)
class Result:
    """The content of `result.json`."""

    complete: bool       # False after an interruption
    experiment: str      # python -m experiments.<experiment>
    system: str          # the published system, as its paper calls it
    architecture: Architecture
    metrics: Mapping[str, Metric]  # accuracies in percent; other names carry their unit
    evaluations: Evaluations
    compilations: int
    seconds: Seconds
    step_seconds: StepSeconds
    seed: int
    device: Device
    schema: Literal[1] = SCHEMA
    programs: tuple[str, ...] = ()  # names of the programs that were compiled
    paths: Mapping[str, str] = dataclasses.field(default_factory=dict)  # relative to the directory
    extra: Mapping[str, object] = dataclasses.field(default_factory=dict)  # free form

    def to_dict(self) -> dict[str, object]:
        """Return the JSON object: NumPy and JAX scalars as Python ones, empty options left out.

        Raises:
          ValueError: a number is NaN or infinite, or a value has no JSON form; its key is named.
        """
        value = {"schema": self.schema, **_encode(self, "result")}
        for name in ("programs", "paths", "extra"):
            if not value[name]:
                del value[name]
        return value

    @classmethod
    def from_dict(cls, value: object) -> "Result":
        """Parse the JSON object, strictly.

        Raises:
          ValueError: a key is unknown, missing or of the wrong type; it is named.
        """
        return _decode(cls, value, "result")


def summarize(values: Sequence[float] | np.ndarray) -> Summary:
    """Return values, mean and sample standard deviation (ddof = 1; 0.0 for one value).

    Args:
      values: [S] finite numbers, one a seed, S >= 1.

    Raises:
      ValueError: no values, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    if not array.size or not np.isfinite(array).all():
        raise ValueError(f"values must be at least one finite number, got {array.tolist()}.")
    std = float(array.std(ddof=1)) if array.size > 1 else 0.0
    return {"values": array.tolist(), "mean": float(array.mean()), "std": std}


def write_result(directory: str | os.PathLike[str], result: Result) -> Path:
    """Write `result.json` so that a reader sees the old file or the new one, never a part.

    Raises:
      ValueError: the result holds NaN, infinity or a wrong type; the old file stays.
    """
    value = result.to_dict()
    Result.from_dict(json.loads(json.dumps(value)))  # what is written can be read
    path = Path(directory) / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".result-", suffix=".json")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files only their owner can read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def read_result(directory: str | os.PathLike[str]) -> Result:
    """Read `result.json` strictly; raises `FileNotFoundError` or a `ValueError` naming the key."""
    return Result.from_dict(read_object(Path(directory) / "result.json"))


def read_object(path: Path) -> dict[str, object]:
    """Read a file that holds one JSON object; NaN and infinities are no JSON.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: too big, not UTF-8, not JSON or not an object; the file's name is in the message.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name}: at most {MAX_BYTES} bytes are read.")

    def refuse(constant: str) -> typing.NoReturn:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name}: must be a JSON object, got {type(value).__name__}.")
    return value


def _encode(value: object, where: str) -> typing.Any:  # Any: the JSON value of anything
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if item is not None or field.default is dataclasses.MISSING or field.name in (
                    "genotype", "arch"):  # these stay as null: readers may index them
                items[field.name] = _encode(item, f"{where}.{field.name}")
        return items
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f"{where} has the key {name!r}; keys must be strings.")
        return {name: _encode(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which JSON cannot hold; leave the key out or "
                             "count the seed as failed.")
        return value
    if hasattr(value, "tolist"):  # NumPy and JAX scalars and arrays
        return _encode(value.tolist(), where)
    raise ValueError(f"{where} is a {type(value).__name__}, which has no JSON form.")


_hints = functools.cache(typing.get_type_hints)


def _decode(kind: typing.Any, value: object, where: str) -> typing.Any:  # Any: driven by types
    """Turn a JSON value into the annotated type `kind`, or raise naming `where`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _decode(next(item for item in arguments if item is not type(None)), value, where)
    if origin is Literal:
        if type(value) is not type(arguments[0]) or value not in arguments:
            raise ValueError(f"{where} must be {arguments[0]!r}, got {_brief(value)}.")
        return value
    if typing.is_typeddict(kind) or dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, got {_brief(value)}.")
        hints = _hints(kind)
        if dataclasses.is_dataclass(kind):
            optional = {field.name for field in dataclasses.fields(kind)
                        if field.default is not dataclasses.MISSING
                        or field.default_factory is not dataclasses.MISSING} - {
                            "schema", "genotype", "arch"}
        else:
            optional = set()
        for name in value:
            if name not in hints:
                raise ValueError(f"{where} has the unknown key {name!r}; allowed: "
                                 f"{', '.join(hints)}.")
        for name in hints:
            if name not in value and name not in optional:
                raise ValueError(f"{where} lacks the key {name!r}.")
        return kind(**{name: _decode(hints[name], item, f"{where}.{name}")
                       for name, item in value.items()})
    if origin is Mapping:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, got {_brief(value)}.")
        return {name: _decode(arguments[1], item, f"{where}.{name}")
                for name, item in value.items()}
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {_brief(value)}.")
        return origin(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:  # an integer may be larger than any float
            return float(value)
    if kind is object or kind is not float and type(value) is kind:
        return value
    raise ValueError(f"{where} must be {_KINDS[kind]}, got {_brief(value)}.")


_KINDS = {float: "a finite number", int: "an integer", str: "a string", bool: "true or false"}


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


VERSIONS = ("python", "jax", "jaxlib", "flax", "optax", "jaxnas")


def validate_run_directory(directory: str | os.PathLike[str]) -> list[str]:
    """Compare a run directory with the contract.

    An interrupted run (`"complete": false`) owes `config.json`, `metrics.jsonl`, `result.json`
    and `checkpoints/`; a complete one owes everything.

    Returns:
      One sentence a violation; empty if there is none.
    """
    directory = Path(directory)
    found: list[str] = []
    result: Result | None = None
    try:
        result = read_result(directory)
    except (OSError, ValueError) as error:
        found.append(f"result.json: {error}")
    complete = result is None or result.complete
    found += _config_violations(directory / "config.json")
    found += _metrics_violations(directory / "metrics.jsonl", complete)
    if result is not None:
        for name, metric in result.metrics.items():
            for group in ("found", "random"):
                found += _summary_violations(f"metrics.{name}.{group}", getattr(metric, group))
        if not 0 <= result.evaluations.unique <= result.evaluations.total:
            found.append("result.json: evaluations.unique must be in [0, total].")
    if not (directory / "checkpoints").is_dir():
        found.append("checkpoints/: missing.")
    if complete:
        found += [f"{name}: missing." for name in ("genotype.json", "report.html", "checklist.md")
                  if not (directory / name).is_file()]
        stems = {suffix: {path.stem for path in directory.glob(f"*{suffix}")}
                 for suffix in (".svg", ".png")}
        if not stems[".svg"]:
            found.append("*.svg: no drawing at all.")
        found += [f"{stem}: both .svg and .png are owed."
                  for stem in sorted(stems[".svg"] ^ stems[".png"])]
        if result is not None and not result.metrics:
            found.append("result.json: a complete run has metrics.")
    if (directory / "genotype.json").is_file():
        found += _genotype_violations(directory / "genotype.json")
    return found


def _summary_violations(where: str, summary: Summary | None) -> list[str]:
    if summary is None:
        return []
    if not summary["values"]:
        return [f"result.json: {where}.values is empty."]
    expected = summarize(summary["values"])
    return [f"result.json: {where}.{name} is {summary[name]}, but its values have {expected[name]}."
            for name in ("mean", "std")
            if not math.isclose(summary[name], expected[name], rel_tol=1e-4, abs_tol=1e-4)]


def _config_violations(path: Path) -> list[str]:
    try:
        config = read_object(path)
    except (OSError, ValueError) as error:
        return [f"config.json: {error}"]
    owed = {"versions": VERSIONS, "device": ("platform", "kind", "count"),
            "dataset": ("name", "sha256", "splits")}
    found = [f"config.json: lacks the key '{name}'." for name in ("config", "seed", *owed)
             if name not in config]
    for name, keys in owed.items():
        group = config.get(name, {})
        missing = [key for key in keys if not isinstance(group, dict) or key not in group]
        if name in config and missing:
            found.append(f"config.json: {name} lacks {', '.join(missing)}.")
    return found


def _metrics_violations(path: Path, complete: bool) -> list[str]:
    try:
        lines = metrics_file.read_metrics(path)
    except (OSError, ValueError) as error:
        return [f"metrics.jsonl: {error}"]
    found = []
    for number, line in enumerate(lines, start=1):
        if line.get("kind") not in metrics_file.KINDS:
            found.append(f"metrics.jsonl: line {number} has the unknown kind {line.get('kind')!r}.")
        if type(line.get("seconds")) not in (int, float):
            found.append(f"metrics.jsonl: line {number} has no number 'seconds'.")
        if line.get("kind") == "evaluation":
            found += [f"metrics.jsonl: line {number}, an evaluation, lacks '{name}'."
                      for name in ("arch", "fitness", "failed") if name not in line]
    if complete and not path.read_bytes().endswith(b"\n"):
        found.append("metrics.jsonl: empty, or the last line is torn.")
    return found


def _genotype_violations(path: Path) -> list[str]:
    try:
        value = read_object(path)
        if value.get("format") == genotypes.FORMAT:
            genotypes.load(path)
    except ValueError as error:
        return [f"genotype.json: {error}"]
    return []
