"""Flags that every experiment understands the same way, and how a configuration comes to be.

A preset, or the smoke configuration, gives the defaults; flags override them. With `--resume` the
defaults are those that the run was started with, and a flag that differs is refused.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

import tyro

from jaxnas import distributed_start, reporting
from jaxnas.genotypes import GenotypeError
from jaxnas.reporting.result import read_object


class InputError(ValueError):
    """Bad input; the message is one sentence for the user, who sees no traceback."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """What every experiment has; subclass it, frozen and keyword-only."""

    MIN_DEVICES: ClassVar[int] = 1

    seed: int = 0
    """Of everything random; runs with the same seed are equal."""
    num_seeds: int = 1
    """Independent repetitions, for means and spreads."""
    output: Path | None = None
    """Run directory to make; default runs/<experiment>/<time>."""
    resume: Path | None = None
    """Run directory to continue, with the configuration it was started with."""
    force_resume: bool = False
    """Continue although the configuration, versions, devices or data differ."""
    devices: int = 1
    """Devices of this host to spread the batch over."""
    preset: str = ""
    """Name of the configuration that gives the defaults."""
    smoke: bool = False
    """Take the defaults of a run of seconds, to see that everything works."""
    dry_run: bool = False
    """Check configuration and data, print them, and stop before compiling."""
    compile_only: bool = False
    """Compile every program, print their sizes, and stop before training."""
    tensorboard: bool = False
    """Write TensorBoard events beside metrics.jsonl; experiments.dashboards does so afterwards."""
    quiet: bool = False
    """No progress."""

    def __post_init__(self) -> None:
        for name, low in (("seed", 0), ("num_seeds", 1), ("devices", self.MIN_DEVICES)):
            if getattr(self, name) < low:
                raise InputError(f"{name} must be >= {low}, got {getattr(self, name)}.")
        if self.seed >= 2 ** 32:
            raise InputError(f"seed must be < 2**32, got {self.seed}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig(CommonConfig):
    """What every experiment on a data set has besides."""

    dataset: str = "digits"
    """An embedded name, a tensorflow-datasets name, or the path of an .npz."""
    data_dir: Path | None = None
    """Where data sets are; default $TFDS_DATA_DIR or ~/tensorflow_datasets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig(CommonConfig):
    """What an experiment has besides that spreads a batch over several processes, or hosts.

    SLURM (`srun`), Open MPI (`mpirun`) and `experiments.supervise` say all three; so do the
    variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    Processes do not share accelerators: start one a host, or give each its own
    (JAX_LOCAL_DEVICE_IDS, SLURM's --gpus-per-task, `experiments.supervise --devices`).
    """

    coordinator: str | None = None
    """HOST:PORT of process 0, which all processes reach; the port is free there."""
    num_processes: int | None = None
    """Processes that run this together, each with `devices` devices."""
    process_id: int | None = None
    """Number of this process, from 0."""
    startup_seconds: float = 300.0
    """How long the processes wait for each other at the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.startup_seconds > 0:
            raise InputError(f"startup_seconds must be above 0, got {self.startup_seconds}.")

    def cluster(self) -> distributed_start.Cluster | None:
        """Return the processes of this run; None if it is one.

        Raises:
          ValueError: see `distributed_start.find`.
        """
        return distributed_start.find(self.coordinator, self.num_processes, self.process_id)

    @property
    def all_devices(self) -> int:
        """`devices` times processes: over so many a batch is divided."""
        cluster = self.cluster()
        return self.devices * (1 if cluster is None else cluster.num_processes)


# What may differ between a run and its resumption: it changes no number.
_OF_A_PROCESS = ("coordinator", "num_processes", "process_id")  # their count is a fact of the run
_FREE = ("output", "resume", "force_resume", "dry_run", "compile_only", "tensorboard", "quiet",
         "data_dir", "startup_seconds", *_OF_A_PROCESS)

ConfigT = TypeVar("ConfigT", bound=CommonConfig)
PlainT = TypeVar("PlainT")


def parse(config_class: type[ConfigT], presets: Mapping[str, ConfigT], smoke: ConfigT,
          argv: Sequence[str] | None = None, prog: str | None = None) -> ConfigT:
    """Resolve the configuration of one run from its flags.

    Args:
      config_class: frozen keyword-only dataclass, a subclass of `CommonConfig`.
      presets: name -> configuration; the first is the default.
      smoke: what `--smoke` takes instead.
      argv: flags; by default those of the process.
      prog: the command, for `--help`.

    Raises:
      InputError: one sentence: an unknown or unparsable flag, an unknown preset, a run directory
        that is none, or a flag that differs from the run that is resumed.
      SystemExit: `--help` was asked for and printed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not presets:
        raise ValueError("presets must hold one configuration at least.")
    choice = _prescan(argv)
    name = choice.preset or next(iter(presets))
    if name not in presets:
        raise InputError(f"--preset must be one of {', '.join(presets)}, got {name!r}.")
    default = dataclasses.replace(smoke if choice.smoke else presets[name], preset=name,
                                  smoke=bool(choice.smoke))
    if choice.resume is not None:
        default = _recorded(config_class, Path(choice.resume))
    text = f"{(config_class.__doc__ or '').strip()}\n\nPresets: {', '.join(presets)}."
    config = _tyro(config_class, default, argv, text, prog)
    if config.resume is not None:
        _refuse_changes(config, default)
    return config


@contextlib.contextmanager
def validation() -> Iterator[None]:
    """Mark the part of an experiment that checks its input: a ValueError there is bad input.

        with validation():
            dataset = data.load(config.dataset)
            space = DARTS(num_nodes=config.num_nodes)

    Raises:
      InputError: instead of any ValueError (DatasetError and GenotypeError are such).
    """
    try:
        yield
    except (InputError, GenotypeError):
        raise
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from error


def to_json(value: object) -> Any:
    """Return the JSON form of a configuration: dataclasses as objects, paths as strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name))
                for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return os.fspath(value) if isinstance(value, Path) else value


def from_json(kind: Any, value: Any, where: str) -> Any:
    """Return the value of an annotated type `kind` that `to_json` gave.

    Raises:
      InputError: it does not fit; `where` is in the message.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return from_json(arguments[0], value, where)
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            with contextlib.suppress(InputError):
                return from_json(option, value, where)
    elif kind in (None, type(None)):
        if value is None:
            return None
    elif origin is typing.Literal:
        if any(value == item and type(value) is type(item) for item in arguments):
            return value
    elif origin in (tuple, list):
        if isinstance(value, list):
            kinds = arguments if origin is tuple and arguments[-1] is not Ellipsis else (
                arguments[:1] * len(value))
            if len(kinds) == len(value):
                return origin(from_json(item_kind, item, f"{where}[{i}]")
                              for i, (item_kind, item) in enumerate(zip(kinds, value)))
    elif dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    elif kind is Path:
        if isinstance(value, str):
            return Path(value)
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind is Any or type(value) is kind:
        return value
    raise InputError(f"{where} must be {getattr(kind, '__name__', kind)}, got {value!r}.")


def read_config(directory: Path) -> dict[str, Any]:
    """Read the config.json of a run directory.

    Raises:
      InputError: there is none, or it is not one.
    """
    try:
        return read_object(directory / "config.json")
    except OSError as error:
        raise InputError(f"--resume {directory} is no run directory: config.json cannot be read "
                         f"({error.strerror}).") from error
    except ValueError as error:
        raise InputError(f"--resume {directory}: {error}") from error


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object, got {value!r}.")
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    for name in value:
        if name not in names:
            raise InputError(f"{where} has the unknown field {name!r}.")
    for name in names:
        if name not in value:
            raise InputError(f"{where} lacks the field {name!r}.")
    try:
        return kind(**{name: from_json(hints[name], value[name], f"{where}.{name}")
                       for name in names})
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _recorded(config_class: type[ConfigT], directory: Path) -> ConfigT:
    recorded = read_config(directory).get("config")
    config: ConfigT = from_json(config_class, recorded, f"{directory}/config.json: config")
    own: dict[str, Any] = {name: None for name in _OF_A_PROCESS if hasattr(config, name)}
    return dataclasses.replace(config, output=None, resume=None, force_resume=False,
                               dry_run=False, compile_only=False, quiet=False, **own)


def _refuse_changes(config: CommonConfig, recorded: CommonConfig) -> None:
    if config.output is not None and config.output != config.resume:
        raise InputError("--output cannot be given with --resume: a run continues in place.")
    was, now = dict(_flat(to_json(recorded))), dict(_flat(to_json(config)))
    for name in now:
        if name.split(".")[0] not in _FREE and now[name] != was.get(name):
            if not config.force_resume:
                raise InputError(
                    f"the run was started with {name} {was.get(name)!r}, now it is "
                    f"{now[name]!r}; leave the flag out, or continue all the same with "
                    "--force-resume.")
            print(f"{name} was {was.get(name)!r}, is {now[name]!r}: resumed by force.",
                  file=sys.stderr)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and (value or not prefix):
        for name, item in value.items():
            yield from _flat(item, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, value


class _Prescan(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help.")


def _prescan(argv: Sequence[str]) -> argparse.Namespace:
    """Read the three flags that choose the defaults of the others."""
    parser = _Prescan(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    parser.add_argument("--smoke", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--resume")
    found, _ = parser.parse_known_args(list(argv))
    if found.resume == "None":  # tyro's spelling of no path
        found.resume = None
    return found


def parse_plain(config_class: type[PlainT], argv: Sequence[str] | None, prog: str) -> PlainT:
    """Read the flags of a tool that makes no run, and has none of the common ones.

    Raises:
      InputError: one sentence.
      SystemExit: `--help` was asked for and printed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _tyro(config_class, None, arguments, (config_class.__doc__ or "").strip(), prog)


def _tyro(config_class: type[PlainT], default: PlainT | None, argv: Sequence[str],
          description: str, prog: str | None) -> PlainT:
    """Run tyro, its boxed error messages turned into one sentence."""
    errors = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(config_class, args=argv, prog=prog, description=description, **given)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(_sentence(errors.getvalue())) from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from error


def _sentence(box: str) -> str:
    """Return the message of a box: a title, a rule, the message, a rule, the advice."""
    lines = [line.strip(" │╭╮╰╯|") for line in box.splitlines()]
    message: list[str] = []
    for line in lines[1:]:
        if set(line) <= set("─-━ "):
            if message:
                break
        else:
            message.append(line)
    text = " ".join(" ".join(message).split()).rstrip(".")
    return re.sub(r"^Error parsing (?!-)\S+: ", "", text) + "; see --help."


def progress(config: CommonConfig) -> reporting.Progress:
    """Return the progress display that the flags ask for."""
    return reporting.Progress(quiet=config.quiet)
