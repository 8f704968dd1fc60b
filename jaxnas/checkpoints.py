"""Checkpoints that verify: any pytree to disk with Orbax, and back bit for bit.

Orbax makes a save atomic (a temporary directory, then a rename) but restores flipped bits without
a word. So every leaf is stored with its own SHA-256, and `restore` returns the newest step whose
digests all agree. The leaves travel as one byte buffer: Orbax needs about 1 ms a leaf and more,
and bytes keep NaN payloads, -0.0, bfloat16 and typed random keys as they are.

A checkpoint directory belongs to one run and, while it is written, to one process: see `lock`.
Power loss is not covered by a sync to disk; what it leaves half-written fails its digest and an
older step is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnas.leaves import JSON, CheckpointError, PyTree, check_match, pack, unpack

__all__ = [
    "CheckpointError", "Restored", "latest_step", "lock", "read_metadata", "restore", "save",
]

_FORMAT = 1
_STAGING = ".saving-"  # a save that has not been finished
_TRASH = ".deleting-"  # a step that is being removed
_log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """What `restore` found."""

    step: int
    state: PyTree  # the structure of the target, leaves bit-equal to those saved
    metadata: dict[str, JSON]


class _Rejected(Exception):
    """One step on disk does not verify."""


def save(
    directory: Path,
    step: int,
    state: PyTree,
    metadata: Mapping[str, JSON],
    *,
    keep: int = 2,
) -> None:
    """Save `state` as `directory/<step>`, then delete all but the newest `keep` steps.

    Synchronous and atomic: when it returns the step is on disk, and a process killed inside it
    leaves the earlier steps as they were. A step of the same number is replaced. Of the older
    steps only those that verify count towards `keep`, so a damaged one never displaces a good one.
    An array that is replicated over several devices is saved once. With several processes
    (`jax.distributed`) process 0 writes; on the others it does nothing, and nobody waits.

    Args:
      directory: created if missing; hold `lock(directory)` around the run.
      step: >= 0, at least as large as any verified step in `directory`.
      state: a pytree of jax or numpy arrays of any shape and numeric or boolean dtype, typed
        random keys, bool, int, float and str.
      metadata: JSON values without NaN or infinity; for what is not an array, such as a genotype.
      keep: steps left on disk, >= 1.

    Raises:
      CheckpointError: a bad argument; a leaf that cannot be stored; a later verified step in
        `directory`; or the disk is full or not writable, naming the path and the free bytes.
        Older steps are then untouched.
    """
    if jax.process_index() != 0:
        return
    directory = Path(directory).absolute()
    if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < 0:
        raise CheckpointError(f"step must be an integer >= 0, got {step!r}.")
    if keep < 1:
        raise CheckpointError(f"keep must be >= 1, got {keep}.")
    step = int(step)
    try:
        plain = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"metadata must be JSON values without NaN: {error}") from error
    leaves, buffer = pack(state)
    manifest = json.dumps(
        {"format": _FORMAT, "step": step, "metadata": plain, "leaves": leaves}, sort_keys=True
    )
    staged = directory / f"{_STAGING}{step}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _clean(directory)
        damaged = _damaged_later_steps(directory, step)
        _write(staged, buffer, manifest)
        _remove(directory, step, replacement=staged)
        for later in damaged:
            _remove(directory, later)
        _rotate(directory, step, keep)
    except CheckpointError:
        raise
    except Exception as error:  # Orbax reports a full disk as ValueError, OSError and others
        free = _free_bytes(directory)
        with contextlib.suppress(OSError):  # the message below matters more than what is left
            _clean(directory)
        raise CheckpointError(
            f"Could not save step {step} to {directory} ({free} bytes free there): "
            f"{_first_line(error)}"
        ) from error


def restore(directory: Path, target: PyTree) -> Restored:
    """Restore the newest step that verifies; one logged warning for every newer step rejected.

    Args:
      directory: what `save` was given.
      target: a pytree with the structure, shapes and dtypes to restore: a freshly initialised
        state, or `jax.eval_shape` of one. jax arrays come back as jax arrays, on the devices of
        the target's where those were chosen explicitly; numpy arrays and Python scalars as such.

    Returns:
      `Restored(step, state, metadata)`.

    Raises:
      CheckpointError: nothing is there; no step verifies; or the newest verified step differs
        from `target`, naming the leaves: that is a change of configuration, and no older step
        is tried.
    """
    directory = Path(directory).absolute()
    step, manifest, buffer = _newest_verified(directory)
    paths, treedef = jax.tree_util.tree_flatten_with_path(target)
    check_match(directory / str(step), manifest["leaves"], paths)
    by_path = {leaf["path"]: leaf for leaf in manifest["leaves"]}
    restored = [unpack(by_path[jax.tree_util.keystr(p)], buffer, leaf) for p, leaf in paths]
    return Restored(step, jax.tree_util.tree_unflatten(treedef, restored), manifest["metadata"])


def read_metadata(directory: Path) -> tuple[int, dict[str, JSON]]:
    """Return `(step, metadata)` of the step that `restore` would use; needs no target.

    Raises:
      CheckpointError: nothing is there, or no step verifies.
    """
    step, manifest, _ = _newest_verified(Path(directory).absolute())
    return step, manifest["metadata"]


def digests(directory: Path) -> tuple[int, dict[str, str]]:
    """Return `(step, leaf path -> sha256)` of the step that `restore` would use; needs no target.

    Two states are bit-equal if these are equal.

    Raises:
      CheckpointError: nothing is there, or no step verifies.
    """
    step, manifest, _ = _newest_verified(Path(directory).absolute())
    return step, {leaf["path"]: leaf["sha256"] for leaf in manifest["leaves"]}


def latest_step(directory: Path) -> int | None:
    """Return the largest step number in `directory`, verified or not; None if there is none."""
    steps = _steps(Path(directory))
    return steps[-1] if steps else None


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold `directory` for this process; a second holder fails at once.

    The lock (flock on `directory/.lock`) ends with the process, however that ends; a forked child
    shares it. It is meant for local disks: flock on NFS depends on the server.

    Raises:
      CheckpointError: another holder, naming its process id and host; or `directory` cannot be
        created or written.
    """
    import fcntl  # POSIX only

    directory = Path(directory).absolute()
    path = directory / ".lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"Cannot write to {directory}: {error.strerror}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            raise CheckpointError(
                f"{directory} is in use by {holder}; wait for it, stop it, or choose another "
                "directory."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on host {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
            fcntl.flock(file, fcntl.LOCK_UN)


# ---- the directory -------------------------------------------------------------------------------


def _steps(directory: Path) -> list[int]:
    """Return the step numbers in a directory, ascending; [] if it does not exist."""
    if not directory.is_dir():
        return []
    names = (entry.name for entry in directory.iterdir() if entry.is_dir())
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name))


def _newest_verified(directory: Path) -> tuple[int, dict[str, Any], np.ndarray]:
    steps = _steps(directory)
    for step in reversed(steps):
        try:
            return step, *_read(directory, step)
        except _Rejected as rejection:
            _log.warning("Checkpoint %s rejected: %s", directory / str(step), rejection)
    if steps:
        raise CheckpointError(
            f"None of the {len(steps)} checkpoints in {directory} verifies "
            f"(steps {', '.join(map(str, steps))}); not starting afresh by itself."
        )
    raise CheckpointError(f"There is no checkpoint in {directory}.")


def _read(directory: Path, step: int) -> tuple[dict[str, Any], np.ndarray]:
    """Return (manifest, bytes) of one step, all digests verified, or raise _Rejected."""
    path = directory / str(step)
    if not any(path.iterdir()):
        raise _Rejected("the directory is empty")
    try:
        with _orbax() as ocp:
            custom = ocp.metadata(path).custom_metadata or {}
            buffer = np.asarray(ocp.load(path)["leaves"])
        manifest = json.loads(custom["manifest"])
        digest = hashlib.sha256(custom["manifest"].encode("utf-8")).hexdigest()
        if digest != custom["sha256"]:
            raise _Rejected("the digest of its metadata is wrong")
    except _Rejected:
        raise
    except Exception as error:  # damage shows as any of some twenty types; the step is named
        raise _Rejected(f"unreadable, {_first_line(error)}") from error
    if manifest["format"] != _FORMAT or manifest["step"] != step:
        raise _Rejected(f"it says step {manifest['step']}, format {manifest['format']}")
    for leaf in manifest["leaves"]:
        chunk = buffer[leaf["offset"]:leaf["offset"] + leaf["size"]]
        if chunk.dtype != np.uint8 or hashlib.sha256(chunk.tobytes()).hexdigest() != leaf["sha256"]:
            raise _Rejected(f"the digest of {leaf['path'] or 'the state'} is wrong")
    return manifest, buffer


def _write(path: Path, buffer: np.ndarray, manifest: str) -> None:
    digest = hashlib.sha256(manifest.encode("utf-8")).hexdigest()
    metadata = {"manifest": manifest, "sha256": digest}
    with _orbax() as ocp:
        if jax.process_count() == 1:
            ocp.save(path, {"leaves": buffer}, custom_metadata=metadata)
        else:
            _write_alone(path, {"leaves": buffer}, metadata)


def _write_alone(path: Path, tree: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write what Orbax's v1 API reads, without the other processes.

    That API's own `save` compares the path on all processes by a collective, whichever it is told
    are active (0.12.8), so that this one would wait for others which do not save.
    """
    import orbax.checkpoint as ocp

    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()},
        barrier_sync_key_prefix="jaxnas")
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        pytree=ocp.PyTreeCheckpointHandler(multiprocessing_options=alone))
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(path, args=ocp.args.Composite(pytree=ocp.args.PyTreeSave(tree)),
                          custom_metadata=metadata)


def _damaged_later_steps(directory: Path, step: int) -> list[int]:
    """Return the steps after `step`, all of which must be damaged, or raise CheckpointError."""
    later = [other for other in _steps(directory) if other > step]
    for other in later:
        try:
            _read(directory, other)
        except _Rejected:
            continue
        raise CheckpointError(
            f"{directory} already holds the later step {other}; resume from it, or save step "
            f"{step} to another directory."
        )
    return later


def _rotate(directory: Path, step: int, keep: int) -> None:
    """Delete what is older than the newest `keep` steps that verify, and what does not verify."""
    older = [other for other in _steps(directory) if other != step]
    kept = 1
    for other in reversed(older if len(older) >= keep else []):
        if kept < keep:
            try:
                _read(directory, other)
                kept += 1
                continue
            except _Rejected as rejection:
                _log.warning("Checkpoint %s deleted: %s", directory / str(other), rejection)
        _remove(directory, other)


def _remove(directory: Path, step: int, replacement: Path | None = None) -> None:
    """Delete or replace one step; a kill in the middle leaves no half of it under its name."""
    path, trash = directory / str(step), directory / f"{_TRASH}{step}"
    if path.exists():
        os.rename(path, trash)
    if replacement is not None:
        os.rename(replacement, path)
    if trash.exists():
        shutil.rmtree(trash)


def _clean(directory: Path) -> None:
    """Delete what an interrupted `save` left: it is hidden from readers but fills the disk."""
    for entry in directory.iterdir():
        if entry.name.startswith((_STAGING, _TRASH)) and entry.is_dir():
            shutil.rmtree(entry)


def _free_bytes(directory: Path) -> int | str:
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
    """Yield Orbax's v1 API, kept from waiting for other processes, and without its log lines.

    Ours name the step.
    """
    from orbax.checkpoint import v1 as ocp

    absl_logger = logging.getLogger("absl")
    level = absl_logger.level
    absl_logger.setLevel(logging.CRITICAL)
    try:
        if jax.process_count() > 1:
            us = jax.process_index()
            only_us = ocp.options.MultiprocessingOptions(primary_host=us, active_processes={us})
            with ocp.Context(multiprocessing_options=only_us):
                yield ocp
        else:
            yield ocp
    finally:
        absl_logger.setLevel(level)
