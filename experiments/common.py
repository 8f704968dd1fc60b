"""What every experiment shares; an experiment imports this module and no other of its kind.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(common.DatasetConfig):
        epochs: int = 50

    def run(config: Config) -> None:
        with common.validation():
            dataset = data.load(config.dataset, data_dir=config.data_dir)
        if config.dry_run:
            print(common.describe(config)); return
        programs = common.Programs()
        step = programs.add("step", jax.jit(step_fn), *examples)
        facts = common.dataset_facts(dataset, {"train": n})
        with common.progress(config) as progress:
            if config.compile_only:
                programs.compile_all(progress); print(programs.report()); return
            with common.open_run(config, "name", facts) as directory, \
                    common.Interrupt() as interrupt:
                programs.compile_all(progress)
                ...  # restore; steps, looking at interrupt.requested; save; write_result

    if __name__ == "__main__":
        raise SystemExit(common.main(Config, PRESETS, SMOKE, run))
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import jax

from experiments.programs import Program, ProgramCost, Programs, StepTimer
from experiments.run import (Interrupt, RunDirectory, check_output, dataset_facts, device_facts,
                             open_run, versions)
from experiments.settings import (CommonConfig, ConfigT, DatasetConfig, DistributedConfig,
                                  InputError, PlainT, parse, parse_plain, progress, to_json,
                                  validation)
from jaxnas import distributed
from jaxnas.data import DatasetError
from jaxnas.genotypes import GenotypeError

__all__ = [
    "CommonConfig", "DatasetConfig", "DistributedConfig", "InputError", "Interrupt", "Program",
    "ProgramCost", "Programs", "RunDirectory", "StepTimer", "cache_directory", "check_output",
    "dataset_facts", "describe", "device_facts", "enable_compilation_cache", "main", "main_plain",
    "open_run", "parse", "progress", "to_json", "use_huge_pages", "validation", "versions",
]

_MARKER = "JAXNAS_HUGE_PAGES"  # set in the process that was started again


def main(config_class: type[ConfigT], presets: Mapping[str, ConfigT], smoke: ConfigT,
         run: Callable[[ConfigT], object], argv: Sequence[str] | None = None) -> int:
    """Run an experiment and return its exit code.

    Args:
      config_class, presets, smoke: as in `parse`.
      run: the experiment; it checks its input inside `validation()`, before it compiles.
      argv: flags; None for those of this process, which may then be started again with huge pages.

    Returns:
      0 if it is done or was saved on request; 2 for bad input, with one sentence on stderr;
      1 for anything else, with a traceback.
    """
    own_process = argv is None

    def start() -> None:
        name = Path(sys.argv[0]).stem if own_process else config_class.__module__
        config = parse(config_class, presets, smoke, argv,
                       prog=f"python -m experiments.{name.rpartition('.')[2]}")
        with validation():
            cluster = config.cluster() if isinstance(config, DistributedConfig) else None
        if cluster is None or cluster.process_id == 0:
            check_output(config)
        else:  # process 0 writes and shows
            config = dataclasses.replace(config, quiet=True)
        if own_process and not config.dry_run:
            use_huge_pages(several=cluster is not None)
        enable_compilation_cache()
        if isinstance(config, DistributedConfig) and cluster is not None and not config.dry_run:
            distributed.initialize(cluster, timeout=config.startup_seconds)
        run(config)

    code = _exit_code(start, own_process)
    if jax.distributed.is_initialized():
        if code:  # at an ordinary exit JAX would wait for processes that wait for this one
            _exit_now(code)
        distributed.leave()
    return code


def main_plain(config_class: type[PlainT], run: Callable[[PlainT], object], name: str,
               argv: Sequence[str] | None = None) -> int:
    """Run a tool that makes no run directory, and return its exit code, as `main` does."""
    def start() -> None:
        config = parse_plain(config_class, argv, f"python -m experiments.{name}")
        enable_compilation_cache()
        run(config)

    return _exit_code(start, own_process=argv is None)


def _exit_code(start: Callable[[], None], own_process: bool) -> int:
    try:
        start()
        return 0
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (InputError, DatasetError, GenotypeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except distributed.ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted before there was anything to save.", file=sys.stderr)
        if own_process:  # a compilation in a thread cannot be stopped, and would be waited for
            _exit_now(1)
        return 1
    except Exception:
        traceback.print_exc()
        return 1


def _exit_now(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def describe(config: CommonConfig, **facts: object) -> str:
    """Return the resolved configuration as JSON, for `--dry-run`; `facts` are added to it."""
    return json.dumps({"config": to_json(config), **facts}, indent=2)


def cache_directory() -> Path | None:
    """Return $JAXNAS_CACHE_DIR, None if it is empty, or jaxnas in the user's cache folder."""
    chosen = os.environ.get("JAXNAS_CACHE_DIR")
    if chosen == "":
        return None
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen).expanduser() if chosen else Path(base) / "jaxnas"


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs between processes, in $JAXNAS_CACHE_DIR or the user's cache folder.

    An empty $JAXNAS_CACHE_DIR switches it off; jax's own $JAX_COMPILATION_CACHE_DIR goes before.
    Programs that compile within a second are not kept: reading them back would cost as much.

    Returns:
      The folder in use, or None.
    """
    own = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if own:
        return Path(own)
    path = cache_directory()
    if path is None:
        return None
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        print(f"No compilation cache: {path}: {error.strerror}.", file=sys.stderr)
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 64 * 1024)
    return path


def use_huge_pages(*, several: bool = False) -> None:
    """Start this `python -m experiments.X` again with huge pages for malloc, where that pays.

    On the CPU, page faults on fresh temporaries dominate a supernet's step; with
    glibc.malloc.hugetlb=1 it is 1.5 times faster, but the tunable is read when a process starts.
    Does nothing on other devices or systems, if $GLIBC_TUNABLES is set, or in the second process.
    With `several` processes JAX must not look for devices yet: $JAX_PLATFORMS has to say "cpu".
    """
    arguments = sys.orig_argv[1:]
    module = arguments[arguments.index("-m") + 1:][:1] if "-m" in arguments else []
    if not (module and module[0].startswith("experiments.")):
        return
    if "GLIBC_TUNABLES" in os.environ or _MARKER in os.environ or not _has_huge_pages():
        return
    if (os.environ.get("JAX_PLATFORMS") if several else jax.default_backend()) == "cpu":
        _start_again(arguments)


def _has_huge_pages() -> bool:
    library, version = platform.libc_ver()
    try:
        glibc = tuple(int(part) for part in version.split(".")[:2])
        setting = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except (OSError, ValueError):
        return False
    return library == "glibc" and glibc >= (2, 35) and "[never]" not in setting


def _start_again(arguments: Sequence[str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", _MARKER: "1"}
    os.execve(sys.executable, [sys.executable, *arguments], environment)
